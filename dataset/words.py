"""Words that columns of a row hold; schema.py says what they mean."""

from __future__ import annotations

from typing import Literal, get_args

Mode = Literal["estimate", "given_depth", "given_pose"]
"""Which geometry the source ships: none, depth, or poses."""
MediaKind = Literal["video", "images", "rendered"]
TimeStamps = Literal["constant", "varying", "assumed"]
"""`constant`: frames lie at one rate to within the rounding of the stamps, so that nothing can be measured of the clock
(a remuxed file looks so whatever the camera did); `varying`: stamps that deviate; `assumed`: there were none, or the
recipe replaced them."""
FocalModel = Literal["constant", "smooth", "piecewise", "given"]
ScaleModel = Literal["constant", "slow_drift", "step", "declared", "none"]

MODES: tuple[Mode, ...] = get_args(Mode)
MEDIA_KINDS: tuple[MediaKind, ...] = get_args(MediaKind)
TIME_STAMPS: tuple[TimeStamps, ...] = get_args(TimeStamps)
FOCAL_MODELS: tuple[FocalModel | Literal["none"], ...] = (*get_args(FocalModel), "none")
SCALE_MODELS: tuple[ScaleModel, ...] = get_args(ScaleModel)
SCALE_SOURCES = ("declared_poses", "declared_depth", "metric_anchor", "bridge", "depth_under_poses", "none")
LENS_MODELS = ("radial", "fisheye")
VERDICTS = ("accepted", "rejected")
POSE_SOURCES = ("none", "solved", "infilled", "given")
"""Meaning of the codes 0 to 3 in `pose_source`: no pose; solved from measurements; bridged by motion model or
resection between solved frames; shipped with the source and kept."""
