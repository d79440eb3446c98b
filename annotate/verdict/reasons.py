"""What a row is rejected for where a gate is not passed."""

from __future__ import annotations

from collections.abc import Mapping

from ...dataset.reasons import ReasonCode

REASONS: Mapping[str, ReasonCode] = {
    "finite": "cameras_not_finite",
    "fov_min": "fov_too_narrow",
    "fov_max": "fov_too_wide",
    "fisheye": "fisheye_lens",
    "focal_axis_gap": "focal_axes_differ",
    "scale_cov": "scale_inconsistent",
    "rigid": "poses_not_rigid",
    "jump": "pose_jump",
    "lone_frame": "pose_jump",
    "infilled": "too_many_infilled",
    "inliers": "too_few_inliers",
    "tracks_lost": "tracks_lost",
    "joined": "tracks_lost",
    "held": "moving_things",
    "motion": "static_camera",
    "parallax": "no_parallax",
    "rest_error": "no_parallax",
    "scale_sweep": "depth_and_path_disagree",
    "scene_depth": "metres_implausible",
    "speed": "metres_implausible",
    "position_sigma": "position_uncertain",
    "path_sigma": "position_uncertain",
    "shifted_path": "picture_shifts",
    "focal_sigma": "focal_uncertain",
    "depth_scale": "depth_scale_wanders",
    "depth_residual": "depth_residual_large",
    "depth_reading": "depth_does_not_fit_images",
    "depth_parallax": "depth_does_not_fit_images",
    "depth_consistency": "depth_does_not_fit_images",
    "depth_unit": "depth_unit_changes",
    "given_focal": "given_intrinsics_disagree",
    "given_rotation": "given_poses_disagree",
    "given_turn": "given_poses_disagree",
    "given_direction": "given_poses_disagree",
    "given_scale": "given_poses_disagree",
    "given_noise": "given_poses_disagree",
    "given_noise_m": "given_poses_disagree",
    "given_path": "given_poses_disagree",
    "given_worst": "given_poses_disagree",
    "given_reprojection": "given_poses_disagree",
    "given_time_offset": "given_poses_disagree",
    "given_aspect": "given_intrinsics_disagree",
    "given_centre": "given_intrinsics_disagree",
    "given_focal_order": "given_intrinsics_disagree",
    "given_gap": "given_poses_sparse",
    "bridge_spread": "given_scale_disagrees",
    "bridge_network": "given_scale_disagrees",
    "bridge_change": "given_scale_disagrees",
}
"""Rejection reason of each gate."""
