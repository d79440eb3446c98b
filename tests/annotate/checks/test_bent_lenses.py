"""Depth that is right, seen through a lens that bends, is not taken for depth that is read wrongly, nor the reverse."""

from __future__ import annotations

import numpy as np
import pytest
from theodolite.annotate.checks.depth import DepthCheck, check_depth
from theodolite.annotate.tracks.records import TracksConfig

from ..maps import Maps
from ..sfm.test_lens_model import HEIGHT, WIDTH, Glass, walk

PINHOLE = Glass(focal=600)
BENT = {
    "barrel": Glass(focal=600, terms=(-0.3, 0.0)),
    "pincushion": Glass(focal=600, terms=(0.2, 0.0)),
    "fisheye of 90 degrees": Glass(focal=640 / np.deg2rad(90), fisheye=True),
    "fisheye of 120 degrees": Glass(focal=640 / np.deg2rad(120), fisheye=True),
    "fisheye of 150 degrees": Glass(focal=640 / np.deg2rad(150), fisheye=True),
}


def checked(glass: Glass, *, ray_power: int = 0) -> DepthCheck:
    """The check of a walk whose depth is multiplied with a power of the length of rays (Z = 1)."""
    measured, depth, _ = walk(glass, noise_px=0.3)
    grid = np.stack(np.meshgrid(np.arange(1.0, WIDTH, 2), np.arange(1.0, HEIGHT, 2)), -1)
    length = np.linalg.norm(glass.rays(grid.reshape(-1, 2)), axis=1).reshape(grid.shape[:2])
    maps = [z * length**ray_power for z in depth.maps if z is not None]
    return check_depth(measured, Maps(maps), tracks_config=TracksConfig())


@pytest.mark.slow(about_s=3)
@pytest.mark.parametrize(
    "name",
    [
        "barrel",
        "fisheye of 150 degrees",
        *(
            pytest.param(name, marks=pytest.mark.thorough)
            for name in ("pincushion", "fisheye of 90 degrees", "fisheye of 120 degrees")
        ),
    ],
)
def test_right_depth_through_a_bent_lens_is_taken(name: str) -> None:
    found = checked(BENT[name])
    assert not found.margin_log < 0, found.explain("depth_reading")
    assert not found.unexplained > 0.3


@pytest.mark.slow(about_s=4)
@pytest.mark.parametrize("name", ["pincushion", pytest.param("pinhole", marks=pytest.mark.thorough)])
def test_distance_along_rays_is_refused_through_a_bent_lens_too(name: str) -> None:
    found = checked({"pinhole": PINHOLE, **BENT}[name], ray_power=1)
    assert found.margin_log < 0
    assert found.better_reading == "as distance along the ray"
