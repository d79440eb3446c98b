"""Lenses: projection equals OpenCV's, and errors are those of hand-made cases."""

import cv2
import numpy as np
import pytest
from theodolite.dataset.metrics.lens import end_point_errors_px, image_grid, project, unproject

HEIGHT, WIDTH = 2202, 3424
LENS = np.array([3000.0, 3010.0, 1700.0, 1110.0, -0.12, 0.03, 0.001, -0.002])


def matrix(lens: np.ndarray) -> np.ndarray:
    return np.array([[lens[0], 0, lens[2]], [0, lens[1], lens[3]], [0, 0, 1.0]])


@pytest.mark.parametrize("k1", [-0.3, 0.0, 0.2])
def test_projection_is_opencv_s(k1: float) -> None:
    lens = np.array([*LENS[:4], k1, *LENS[5:]])
    rays = np.random.default_rng(1).uniform(-0.6, 0.6, (200, 2))
    points = np.concatenate([rays, np.ones((200, 1))], axis=1)
    theirs, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix(lens), lens[4:8])
    assert np.abs(project(rays, lens) - theirs[:, 0]).max() < 1e-9


def test_rays_are_put_back_at_their_pixels_by_opencv() -> None:
    pixels = image_grid(HEIGHT, WIDTH)
    rays = unproject(pixels, LENS)
    points = np.concatenate([rays, np.ones((len(rays), 1))], axis=1)
    there, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix(LENS), LENS[4:8])
    assert np.abs(there[:, 0] - pixels).max() < 1e-5


def test_pixels_beyond_a_fold_have_no_ray() -> None:
    """r (1 - 0.3 r^2) grows to 0.703 at r = 1.05 and no further."""
    lens = np.array([1000.0, 1000.0, 0.0, 0.0, -0.3, 0, 0, 0])
    rays = unproject(np.array([[700.0, 0.0], [710.0, 0.0]]), lens)
    assert np.isfinite(rays[0]).all()
    assert np.isnan(rays[1]).all()


@pytest.mark.parametrize(("k1", "k2"), [(-0.3, 0.0), (-0.5, 0.0), (-0.6, 0.12), (0.2, -0.1), (-0.2, 0.05)])
def test_no_ray_from_behind_a_fold_is_taken(k1: float, k2: float) -> None:
    """There it meets the pixels of others: a third of the points of such a picture had one."""
    lens = np.array([800.0, 800.0, 999.5, 499.5, k1, k2, 0, 0])
    radius = np.linspace(0, 5, 500_001)
    there = radius * (1 + k1 * radius**2 + k2 * radius**4)
    folds = np.flatnonzero(np.diff(there) <= 0)
    first = folds[0] if len(folds) else len(radius) - 1
    pixels = image_grid(1000, 2000)
    wanted = np.linalg.norm(pixels - lens[2:4], axis=1) / 800
    has = wanted < there[first] - 1e-4
    rays = unproject(pixels, lens)
    assert np.array_equal(np.isfinite(rays).all(axis=1), has)
    assert (
        np.abs(
            np.linalg.norm(rays[has], axis=1)
            - np.interp(wanted[has], there[: first + 1], radius[: first + 1])
        ).max()
        < 1e-4
    )
    assert np.abs(project(rays[has], lens) - pixels[has]).max() < 1e-5


def test_end_point_errors_of_known_lenses() -> None:
    truth = np.array([[1000.0, 1000.0, 319.5, 239.5, 0, 0, 0, 0]] * 3)
    estimated = truth.copy()
    estimated[0, 2] += 3.0  # the centre moves all points alike
    estimated[1, :2] *= 1.1  # the focal length by a tenth of their distance from it
    apart = end_point_errors_px([estimated], truth, height=480, width=640)[0]
    grid = image_grid(480, 640)
    assert grid.shape == (300, 2)
    assert np.allclose(grid.mean(axis=0), [319.5, 239.5])  # centres of cells, the first pixel's centre at 0
    assert np.allclose(apart[0], 3.0)
    assert np.allclose(apart[1], 0.1 * np.linalg.norm(grid - [319.5, 239.5], axis=1))
    assert np.allclose(apart[2], 0.0)
    with pytest.raises(ValueError, match="must both be"):
        end_point_errors_px([estimated[:, :4]], truth[:, :4], height=480, width=640)
