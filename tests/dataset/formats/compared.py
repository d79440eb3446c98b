"""What the tests of several formats compare with."""

from __future__ import annotations

import importlib.util

import numpy as np
from theodolite.dataset.formats.base import CameraClip


def assert_same_cameras(a: CameraClip, b: CameraClip, *, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(a.camera_to_world, b.camera_to_world, atol=atol)
    np.testing.assert_allclose(a.focal_px, b.focal_px, rtol=1e-6)
    np.testing.assert_allclose(a.principal_point_px, b.principal_point_px, rtol=1e-6)
    assert (a.height, a.width) == (b.height, b.width)


def installed(name: str) -> bool:
    return name != "rerun" or importlib.util.find_spec("rerun") is not None


LEVEL_STEP = 6
