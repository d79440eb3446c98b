"""Can that be metres? A unit that is off by a thousand fits images and depth as well as the right one; what no camera
does tells it."""

from __future__ import annotations

import numpy as np

from ...dataset.rows import Gate
from ..sfm.records import CameraSolution
from .config import GatesConfig
from .gates import bounded


def judge_metres(cameras: CameraSolution, config: GatesConfig, *, duration_s: float) -> tuple[Gate, ...]:
    """Gates of the speed of the camera and of the distance of what it looks at.

    Args:
        cameras: in what is taken for metres.
        duration_s: of the clip, from its first frame to its last.
    """
    steps = np.linalg.norm(np.diff(cameras.camera_to_world[:, :3, 3], axis=0), axis=1)
    gates = [
        bounded(
            "scene_depth",
            cameras.median_depth,
            lower=config.min_scene_depth_m,
            upper=config.max_scene_depth_m,
            unit="m",
        )
    ]
    if duration_s > 0:
        gates.append(
            bounded("speed", float(steps.sum()) / duration_s, upper=config.max_speed_m_s, unit="m/s")
        )
    return tuple(gates)
