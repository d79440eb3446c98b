"""Direct RGB-D alignment against the renderer's truth."""

from __future__ import annotations

from functools import partial

import cv2
import numpy as np
import pytest
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sfm.rgbd import View, align_rgbd, link_points
from theodolite.dataset.cameras.transforms import se3_inverse


@pytest.fixture(scope="module")
def clip():
    rendered = render_clip(
        RenderConfig(width=320, height=180, num_frames=20, seed=5, speed=1.5, zoom="ramp", zoom_factor=1.2)
    )
    return rendered, list(rendered)


def view(clip, i: int, *, blur: float = 0.0, gain: float = 1.0, focal: float | None = None) -> View:
    rendered, frames = clip
    grey = cv2.cvtColor(frames[i].rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    if blur:
        grey = cv2.GaussianBlur(grey, (0, 0), blur)
    own = rendered.intrinsics[i, 0, 0] / 320
    return View(grey * gain, frames[i].depth_m, focal if focal is not None else own)


def truth(clip, i: int, j: int) -> np.ndarray:
    pose = clip[0].camera_to_world
    return se3_inverse(pose[j]) @ pose[i]


def errors(found: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Rotation in degrees and translation over that of the truth."""
    off = se3_inverse(true) @ found
    angle = np.degrees(np.arccos(np.clip((np.trace(off[:3, :3]) - 1) / 2, -1, 1)))
    return float(angle), float(np.linalg.norm(off[:3, 3]) / np.linalg.norm(true[:3, 3]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blur", "gain"), [(0.0, 1.0), pytest.param(6.0, 1.0, marks=pytest.mark.thorough), (6.0, 0.5)]
)
def test_pose_between_neighbours(clip, blur: float, gain: float) -> None:
    """Sharp, blurred, and blurred at half the exposure."""
    for i in (2, 8, 14):
        found = align_rgbd(view(clip, i, blur=blur), view(clip, i + 2, blur=blur, gain=gain), [])
        assert found is not None
        angle, distance = errors(found.second_from_first, truth(clip, i, i + 2))
        assert angle < 0.3
        assert distance < 0.15
        assert found.agreement > 0.9


@pytest.mark.slow
def test_upright_pictures_are_aligned_too() -> None:
    """They have more points than OpenCV samples at once: such a clip ended with an internal error."""
    rendered = render_clip(RenderConfig(width=180, height=240, num_frames=6, seed=5, speed=1.5))
    upright = rendered, list(rendered)
    first, second = (
        View(v.grey, v.depth, rendered.intrinsics[0, 0, 0] / 180) for v in map(partial(view, upright), (2, 4))
    )
    assert np.isfinite(first.depth).mean() > 0.9
    found = align_rgbd(first, second, [])
    assert found is not None
    angle, distance = errors(found.second_from_first, truth(upright, 2, 4))
    assert angle < 0.3
    assert distance < 0.15


@pytest.mark.slow
def test_a_zoom_step_that_the_views_do_not_declare(clip) -> None:
    rendered, _ = clip
    focal = rendered.intrinsics[:, 0, 0] / 320
    i = int(np.argmax(np.diff(np.log(focal))))
    step = float(np.log(focal[i + 1] / focal[i]))
    assert step > 0.008
    found = align_rgbd(view(clip, i), view(clip, i + 1, focal=focal[i]), [])
    assert found is not None
    assert found.log_focal_change == pytest.approx(step, abs=0.4 * step)


@pytest.mark.slow
def test_link_points_lie_where_the_truth_puts_them(clip) -> None:
    first, second = view(clip, 3), view(clip, 5)
    found = align_rgbd(first, second, [])
    assert found is not None
    here, there = link_points(first, second, found)
    assert len(here) > 20
    z = first.depth[(here[:, 1] * 180).astype(int), (here[:, 0] * 320).astype(int)]
    p = np.stack(
        [(here[:, 0] - 0.5) / first.focal * z, (here[:, 1] - 0.5) * 180 / 320 / first.focal * z, z], 1
    )
    p = p @ truth(clip, 3, 5)[:3, :3].T + truth(clip, 3, 5)[:3, 3]
    expected = np.stack(
        [p[:, 0] / p[:, 2] * second.focal + 0.5, p[:, 1] / p[:, 2] * second.focal * 320 / 180 + 0.5], 1
    )
    assert np.abs(there - expected).max() * 320 < 3


@pytest.mark.slow
def test_no_depth_gives_nothing(clip) -> None:
    blind = View(np.zeros((180, 320), np.float32), np.full((180, 320), np.nan), 0.9)
    assert align_rgbd(blind, view(clip, 3), []) is None
    assert align_rgbd(view(clip, 3), blind, []) is None


def test_a_bare_wall_gives_nothing() -> None:
    """Seen face on, depth holds three unknowns and nothing holds the slide along it."""
    wall = View(np.full((90, 160), 120, np.float32), np.full((90, 160), 2.0), 1.0)
    assert align_rgbd(wall, wall, []) is None
