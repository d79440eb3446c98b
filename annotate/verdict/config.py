"""Thresholds that a recipe sets."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ...dataset.strict import Strict


class GatesConfig(Strict):
    """Bounds of the gates."""

    fov_min_deg: Annotated[float, Field(gt=0, lt=180)] = 25.0
    fov_max_deg: Annotated[float, Field(gt=0, lt=180)] = 120.0
    """Horizontal and vertical field of view of every frame (paper: 25 to 120 degrees)."""
    allow_fisheye: bool = False
    """Fisheyes are accepted: their rows are right for undistorted pictures only, and readers refuse others."""
    max_focal_axis_gap: Annotated[float, Field(ge=0)] = 0.20
    """|fx - fy| / mean of every frame (paper: 0.20)."""
    max_scale_cov: Annotated[float, Field(gt=0)] = 2.0
    """Standard deviation over mean of the raw scale series (paper: 2.0)."""
    max_rigid_error: Annotated[float, Field(gt=0)] = 1e-4
    """Deviation of any rotation from orthonormal."""
    max_jump: Annotated[float, Field(gt=0)] = 6.0
    """Largest step of the camera centre over the 90th percentile of all steps."""
    max_infilled_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of frames whose camera had to be bridged for want of tracks."""
    min_inlier_share: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Share of observations that agree with the cameras, over the clip."""
    max_lost_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of frames into which fewer than 5 % of the tracks survive, and that no 20 points of the solution join to
    the frames before either: where the camera moves fast, descriptors follow what flow loses."""
    min_joined: Annotated[int, Field(ge=0)] = 16
    """Fewest points that hold what lies before a frame and what lies from it on together. Dissolves of two rooms that
    were accepted: 4 and 11, by chance; every third frame of a walk indoors, right to 2 cm: 24; usually hundreds."""
    min_kept_share: Annotated[float, Field(ge=0, le=1)] = 0.75
    """Of what agrees with the cameras in the eight frames before one or from it on, the least share of the picture
    that agrees with both, the median of three frames. Rendered: where nothing moves 0.95 to 1; right beside things that
    fill half of the picture and more 0.79 to 1; cameras that followed one, or bent to please it, 0 to 0.72. Recordings
    by hand: 0.81 (rgbd-office-a, whose worst single frame has 0.69) and more. Of blurred pictures, in which all tracks
    slide, as much more agrees as they err (`picture_noise`): right ones had 0.70.
    """
    max_lone_frame: Annotated[float, Field(gt=0)] = 1.5
    """Largest distance of a camera centre from the middle between its neighbours, over the 90th percentile of all steps
    (at least two hundredths of the scene's depth). True paths at 16 fps and sub-sampled: up to 0.5, hand-held at 30 fps
    with noise 0.7."""
    min_parallax_deg: Annotated[float, Field(ge=0)] = 0.25
    """Median angle under which tracks are seen along their life: without parallax no translation is checked."""
    min_rest_error_ratio: Annotated[float, Field(ge=1)] = 1.2
    """Usual reprojection error of the best camera that stays in one place, turns and zooms, over that of the solved
    one: below, only depth speaks for the path. Cameras at rest that zoom: 0.8 to 1.1; that move 0.1 to 0.3 m within
    1.5 s: from 1.4 on."""
    scale_sweep_tolerance: Annotated[float, Field(ge=0)] = 0.15
    """How far from 1 the factor on depth may lie at which depth and camera path agree best."""
    max_position_sigma: Annotated[float, Field(gt=0)] = 0.2
    """Largest standard deviation of a camera centre, as a share of the median scene depth."""
    max_path_sigma: Annotated[float, Field(gt=0)] = 0.02
    """Where the lens zooms: error of the path that is to be expected, over its length; what is accepted may be off by
    as much. Held-out rendered walks that zoom, given depth and networks: of 33 right to 2 % six are above, of 9 off by
    2.3 to 9 % five; of the other four three fail another gate."""
    shifts_from: Annotated[float, Field(ge=0)] = 0.003
    """Standard deviation of the principal point over frames, beyond errors of measurement, as a share of the diagonal,
    from which on the picture counts as one that a stabiliser shifts. Walks, noisy, blurred or through a rolling shutter
    among them: at most 0.002; shifts of 1.2 % of the width in rendered ones: 0.0036 to 0.0061."""
    max_shifted_path: Annotated[float, Field(gt=0)] = 0.02
    """What such shifts make of the path, over its length. Eight rendered walks: 0.017 to 0.035; six of them are above
    this, two off by 2.2 and 2.5 % and four by 1.2 to 1.8 %, where the same walks without shifts are off by 0.3 %. A
    fast walk through rgbd-office-a, shifted twice as far: 0.005, off by 0.4 %."""
    max_given_rotation_deg: Annotated[float, Field(gt=0)] = 3.0
    max_given_direction_deg: Annotated[float, Field(gt=0)] = 15.0
    """Median angle between given and solved relative rotations, and between directions of travel."""
    max_given_turn_share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """The angle between rotations as a share of what the camera turned. Recordings with true poses: 0.01, and 0.11
    where colour and depth camera differ; poses that are a third of a second late: 0.20; wrong axes, order of numbers
    or rate: from 0.30."""
    given_focal_tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """How far from 1 the focal length that images and depth (or the network) ask for may lie, over the given one. Wide,
    since a short path leaves 10 % open; intrinsics for another size are off by more."""
    given_lens_tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.06
    """The same, of focal length, ratio of fy to fx and order of the frames, where poses are given too and the tracks
    fit only with another lens, and of focal length where they tell it; at least three standard errors are allowed.
    Recordings with true intrinsics: 0.01; a drive straight ahead 0.04, one standard error."""
    max_given_centre: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Offset of the principal point that is asked for then, as a share of the diagonal. True: 0.004, and 0.02 where
    colour and depth camera differ."""
    given_scale_tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.06
    """How far from 1 the ratio of the length by depth to the given one may lie where both are in metres; at least three
    standard errors are allowed."""
    max_given_noise: Annotated[float, Field(gt=0)] = 0.008
    max_given_worst: Annotated[float, Field(gt=0)] = 0.025
    """Error that given poses have on their own, as a share of the long side by which it moves the picture: usual, and
    of the worst pose. Recordings with true poses: 0.002 and 0.012 (five poses a second: 0.021); with 5 mm and 0.1
    degrees added: 0.005."""
    max_given_noise_m: Annotated[float, Field(gt=0)] = 0.1
    """The same in metres; three thousandths of the usual depth are always allowed."""
    max_given_path: Annotated[float, Field(gt=0)] = 0.02
    """Distance of the given path from the one that the images ask for, over its length; three standard errors of the
    latter and five thousandths of the usual depth are always allowed. True poses, recordings and rendered, also at five
    a second and with 5 mm of noise: at most 0.003. A slow error of 6 % of the path, which nothing else tells: 0.02 to
    0.06."""
    max_given_reprojection: Annotated[float, Field(gt=0)] = 0.008
    """Median reprojection error of tracks under given poses, as a share of the long side. True: 0.003; with 5 mm and
    0.1 degrees added: 0.005."""
    max_given_offset_frames: Annotated[float, Field(gt=0)] = 0.4
    """Time by which given poses may be late or early, in frames of the clip; 20 ms and three standard errors are
    always allowed."""
    min_given_inlier_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of observations that agree with given cameras: good poses are good to millimetres, tracks to half a
    pixel. What errs more fails by its reprojection."""
    max_bridge_spread_log: Annotated[float, Field(gt=0)] = 0.4
    """Robust standard deviation of the logs of what windows of a clip find a given unit to be worth in metres.
    Simulated: 0.09 usually, at most 0.21."""
    max_bridge_network_spread_log: Annotated[float, Field(gt=0)] = 0.15
    """The same without the metric depth: between a network's path and the given one. Simulated: 0.02 usually; slow
    cameras up to 0.2, with standard errors of which three are always allowed."""
    max_bridge_change_log: Annotated[float, Field(gt=0)] = 0.2
    """Change of that from the first third of the clip to the last; four standard errors are always allowed."""
    max_given_gap_s: Annotated[float, Field(gt=0)] = 1.0
    """Longest time in a clip without a given pose; sources ship one four or five times a second, or on every frame."""
    max_focal_sigma: Annotated[float, Field(gt=0)] = 0.03
    """What the focal length of a clip with given depth may be wrong by where all measurements of a view err alike. Ten
    frames on 11 cm of path: 0.04; a second of walking 0.017 to 0.08; 40 frames 0.013 to 0.018; recordings 0.01."""
    max_depth_scale_sigma: Annotated[float, Field(gt=0)] = 0.08
    """Standard deviation of the log of the unit that a clip takes from given depth. Sensors: 0.002 to 0.025; depth that
    drifts or steps by 20 % along the clip 0.05 to 0.07; what is worse has no unit that a clip could state."""
    min_depth_margin_log: float = 0.0
    """How much better given depth must fit the images as it is than in any other reading (turned, of other frames,
    inverted ...), at least, in the logs of `checks/depth.py`; below zero another one fits better for certain."""
    max_depth_unexplained: Annotated[float, Field(ge=0)] = 0.3
    """Share of the parallax between frames that given depth may leave unexplained beyond its own noise. Depth that
    fits: at most 0.02 with up to 20 % of noise; one depth for all points: 1."""
    max_depth_inconsistency_log: Annotated[float, Field(gt=0)] = 0.105
    """Median log difference between given depth and what the frame before lets expect. Recordings: 0.01; with 5 % of
    noise over patches of the image 0.045, with 10 % 0.09; depth of another clip: from 0.11."""
    max_depth_unit_step_log: Annotated[float, Field(gt=0)] = 0.3
    """Median step of the unit of given depth within pairs of frames. With 10 % of noise in each frame's unit: 0.16."""
    max_normalised_unit_step_log: Annotated[float, Field(gt=0)] = 0.03
    """The same where all maps end at one value, as maps do that were normalised one by one. Depth of sensors: 0.01 to
    0.02; recordings normalised by each map's largest value: 0.04 to 0.13."""
    max_depth_residual_log: Annotated[float, Field(gt=0)] = 0.2
    """Median log difference between the depth that the cameras give and the measured one. Clean 0.001 to 0.01, network
    depth 0.03; single pixels with 20 % of noise 0.135."""
    max_speed_m_s: Annotated[float, Field(gt=0)] = 150.0
    """Usual speed of the camera: nothing that films from the ground or a drone goes faster, unless it is shown in fast
    motion: of scenes nearer than 100 m, which millimetres would place within 10 cm, as many times as much is allowed
    as they are nearer. A walk (1 m/s) whose millimetres are taken for metres: 1000 m/s."""
    min_scene_depth_m: Annotated[float, Field(ge=0)] = 0.02
    max_scene_depth_m: Annotated[float, Field(gt=0)] = 2000.0
    """Median distance of what is tracked. A room whose metres are taken for millimetres: 2 mm."""
    static_motion: Annotated[float, Field(ge=0)] = 0.004
    """Image motion over the clip, as a share of the diagonal, below which the camera stands still."""
