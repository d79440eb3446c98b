"""Can that be metres? A unit that is off by a thousand fits images and depth as well as the right one; what no camera
does tells it."""

from __future__ import annotations

import numpy as np

from ...dataset.rows import Gate
from ..sfm.records import CameraSolution
from .config import GatesConfig
from .gates import bounded

_SEEN_FROM_M = 0.1
"""Distance from which on depth cameras see: what is nearer once a metre is taken for a millimetre was never one."""


def judge_metres(cameras: CameraSolution, config: GatesConfig, *, duration_s: float) -> tuple[Gate, ...]:
    """Gates of the speed of the camera and of the distance of what it looks at.

    Args:
        cameras: in what is taken for metres.
        duration_s: of the clip, from its first frame to its last. A ride shown in fast motion is as fast as it is
            fast: the nearer what it passes, the less speaks for millimetres.
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
        near = 1000 * _SEEN_FROM_M / max(cameras.median_depth, 1e-9)
        fastest = config.max_speed_m_s * max(1.0, near)
        gates.append(bounded("speed", float(steps.sum()) / duration_s, upper=fastest, unit="m/s"))
    return tuple(gates)
