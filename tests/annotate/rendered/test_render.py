"""The renderer's truth is checked against a plain ray caster and against the pixels themselves."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import pytest
from theodolite.annotate.rendered.cameras import RenderConfig, camera_path
from theodolite.annotate.rendered.files import depth_to_uint16, write_clip
from theodolite.annotate.rendered.render import RenderedClip, render_clip

from ...typed import known

SMALL = {"width": 320, "height": 180, "num_frames": 17, "fps": 8.0}


def small(**changes) -> RenderedClip:
    return render_clip(RenderConfig(**{**SMALL, **changes}))


def cast_rays(clip: RenderedClip, frame: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """z-depth by plane intersection in world space, face by face: shares no formula with the rasteriser."""
    K, pose = clip.intrinsics[frame], clip.camera_to_world[frame]
    rays_cam = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], -1)
    rays = rays_cam @ pose[:3, :3].T
    quads = clip.scene.quads_at(float(clip.time_s[frame]))
    depth_m = np.full(len(u), np.inf)
    for o, a, b in zip(quads.origin, quads.a, quads.b, strict=True):
        normal = np.cross(a, b)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = ((o - pose[:3, 3]) @ normal) / (rays @ normal)
            hit = pose[:3, 3] + z[:, None] * rays - o
        s, t = hit @ a / (a @ a), hit @ b / (b @ b)
        inside = (s >= 0) & (s <= 1) & (t >= 0) & (t <= 1) & (z > 0.02)
        depth_m = np.where(inside & (z < depth_m), z, depth_m)
    return depth_m


def warp_into(clip: RenderedClip, target: int, source: int) -> tuple[np.ndarray, np.ndarray]:
    """Frame `source` seen from `target` through the truth, and where it is visible there."""
    first, second = clip.frame(target), clip.frame(source)
    height, width = first.depth_m.shape
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(clip.intrinsics[target]).T
    relative = np.linalg.inv(clip.camera_to_world[source]) @ clip.camera_to_world[target]
    points = (rays * first.depth_m[..., None]) @ relative[:3, :3].T + relative[:3, 3]
    pixels = points @ clip.intrinsics[source].T
    x = (pixels[..., 0] / pixels[..., 2] - 0.5).astype(np.float32)
    y = (pixels[..., 1] / pixels[..., 2] - 0.5).astype(np.float32)
    image = cv2.remap(second.rgb, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    there = cv2.remap(second.depth_m, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
    visible = np.abs(there - points[..., 2]) < 0.01 * points[..., 2]
    visible &= (x > 2) & (x < width - 3) & (y > 2) & (y < height - 3) & ~first.moving
    return image, visible


def residual_shift_px(first: np.ndarray, second: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """(2,) translation between two nearly aligned images by one least-squares step on grey values."""
    a, b = (cv2.cvtColor(i, cv2.COLOR_RGB2GRAY).astype(np.float64) for i in (first, second))
    gy, gx = (np.asarray(g) for g in np.gradient((a + b) / 2))
    inner = cv2.erode(visible.astype(np.uint8), np.ones((5, 5))).astype(bool)
    difference = (b - a)[inner]
    small_enough = np.abs(difference) < 40  # drops what an occlusion border lets through
    jacobian = np.stack([gx[inner], gy[inner]], -1)[small_enough]
    return np.linalg.lstsq(jacobian, difference[small_enough], rcond=None)[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.thorough), 3])
def test_depth_equals_a_plain_ray_caster(seed: int) -> None:
    clip = small(seed=seed, moving_object=True, zoom="in_out")
    rng = np.random.default_rng(seed)
    for frame in (0, 9, 16):
        depth_m = clip.depth_m(frame)
        x, y = rng.integers(0, 320, 3000), rng.integers(0, 180, 3000)
        expected = cast_rays(clip, frame, x + 0.5, y + 0.5)
        error = np.abs(depth_m[y, x] - expected) / expected
        # float32 may give a pixel on the very border of two faces to the other one.
        assert np.mean(error > 1e-6) < 1e-3
        assert np.isfinite(depth_m).all()
        assert depth_m.min() > 0.3


@pytest.mark.slow
@pytest.mark.parametrize(("motion", "bound_px"), [("rotation", 0.02), ("handheld", 0.06)])
def test_truth_aligns_pixels(motion: str, bound_px: float) -> None:
    """A pixel centre that is off by half a pixel shows at once; occlusion borders bias the walk's measure a little."""
    clip = small(zoom="ramp", width=480, height=270, motion=motion)
    for target, source in ((2, 4), (8, 9), (14, 11)):
        image, visible = warp_into(clip, target, source)
        assert visible.mean() > 0.5
        shift = residual_shift_px(clip.frame(target).rgb, image, visible)
        assert np.abs(shift).max() < bound_px, shift
    moved = np.roll(image, 1, axis=1)
    shift = residual_shift_px(clip.frame(14).rgb, moved, np.roll(visible, 1, axis=1))
    assert abs(shift[0]) > 0.2  # the measure itself sees one pixel


@pytest.mark.slow
def test_the_object_moves_on_its_own() -> None:
    clip = small(moving_object=True, motion="static", seed=1)
    first, last = clip.frame(0), clip.frame(16)
    assert first.moving.any()
    still = ~(first.moving | last.moving)
    still = cv2.erode(still.astype(np.uint8), np.ones((3, 3))).astype(bool)
    assert np.array_equal(first.rgb[still], last.rgb[still])
    assert not np.array_equal(first.moving, last.moving)
    assert not small(seed=1).frame(0).moving.any()


@pytest.mark.parametrize("motion", ["handheld", "rotation", "static", "forward", "along_wall"])
def test_a_camera_is_at_one_place_at_a_time_whichever_times_are_asked_for(motion: str) -> None:
    # An open shutter asks for one time after the other: a camera that turned had a place of its own at each of them,
    # and its blurred clips were those of one that walks.
    clip = small(motion=motion, num_frames=9)
    alone = [camera_path(clip.config, clip.time_s[k : k + 1])[0] for k in range(9)]
    np.testing.assert_allclose(alone, clip.camera_to_world, atol=1e-12)


@pytest.mark.parametrize("motion", ["handheld", "rotation", "static"])
def test_motion_kinds(motion: str) -> None:
    clip = small(motion=motion, num_frames=81)
    poses = clip.camera_to_world
    np.testing.assert_allclose(
        poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1), np.tile(np.eye(3), (81, 1, 1)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(poses[:, :3, :3]), 1, atol=1e-12)
    path_m = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum()
    relative = np.einsum("fji,fjk->fik", poses[:-1, :3, :3], poses[1:, :3, :3])
    step_deg = np.degrees(np.arccos(np.clip((np.trace(relative, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    if motion == "handheld":
        assert 2 < path_m < 12
    else:
        assert path_m == 0
    if motion == "static":
        assert step_deg.max() < 1e-5
    else:
        assert 0.5 < step_deg.max() < 5


def test_forward_walks_along_its_line_of_sight() -> None:
    clip = small(motion="forward", num_frames=81)
    poses = clip.camera_to_world[clip.time_s <= 6.0]
    gone = poses[-1, :3, 3] - poses[0, :3, 3]
    assert 2.3 < np.linalg.norm(gone) < 2.5
    sight = poses[:, :3, 2]
    assert (sight @ gone / np.linalg.norm(gone)).min() > np.cos(np.radians(1.5))


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_along_a_bare_wall_the_camera_sees_one_plane(seed: int) -> None:
    clip = small(motion="along_wall", furniture=False, num_frames=81, seed=seed)
    for frame in (0, 40, 80):
        inverse = 1 / clip.depth_m(frame)
        # The inverse depth of a plane is linear over the image, and its edges bend it.
        assert np.abs(np.diff(inverse, 2, axis=0)).max() < 1e-4
        assert np.abs(np.diff(inverse, 2, axis=1)).max() < 1e-4
        assert 1.5 < np.median(1 / inverse) < 2.5
    centre = clip.camera_to_world[:, :3, 3]
    assert 0.3 < np.linalg.norm(np.ptp(centre, axis=0)) < 2.5


def test_zoom_profiles() -> None:
    def factor(zoom: str) -> np.ndarray:
        focal = small(zoom=zoom, num_frames=81, zoom_period_s=10.0).intrinsics[:, 0, 0]
        return focal / (160 / np.tan(np.radians(31)))

    np.testing.assert_allclose(factor("none"), 1)
    ramp = factor("ramp")
    assert (np.diff(ramp) >= 0).all()
    np.testing.assert_allclose(ramp[[0, -1]], [1, 2])
    in_out = factor("in_out")
    np.testing.assert_allclose(in_out[[0, 40, 80]], [1, 2, 1], atol=1e-9)
    step = factor("step")
    assert set(np.round(step, 9)) == {1.0, 2.0}
    assert np.count_nonzero(np.diff(step)) == 1


@pytest.mark.slow
def test_same_configuration_same_pixels_other_seed_other_pixels() -> None:
    config = RenderConfig(**SMALL, noise_sigma=3, exposure_stops=0.5, shutter=0.5)
    first, again = render_clip(config).frame(5), render_clip(config).frame(5)
    assert np.array_equal(first.rgb, again.rgb)
    assert np.array_equal(first.depth_m, again.depth_m)
    other = render_clip(config.model_copy(update={"seed": 1})).frame(5)
    assert np.mean(first.rgb != other.rgb) > 0.5


@pytest.mark.slow
def test_disturbances_do_what_they_say() -> None:
    clean, blurred = small(speed=3.0).frame(6).rgb, small(speed=3.0, shutter=1.0).frame(6).rgb
    sharpness = [
        cv2.Laplacian(cv2.cvtColor(i, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var() for i in (clean, blurred)
    ]
    assert sharpness[1] < 0.6 * sharpness[0]
    dark = small(exposure_stops=1.0).frame(16).rgb  # 2 s: darkest point of the 4 s cycle
    bright = small().frame(16).rgb
    assert np.median(dark.astype(float) / np.maximum(bright, 1)) == pytest.approx(0.5, abs=0.02)
    noisy = small(noise_sigma=4.0).frame(0).rgb.astype(float) - small().frame(0).rgb
    assert noisy.std() == pytest.approx(4.0, rel=0.1)


@pytest.mark.slow
def test_depth_of_another_size_covers_the_same_image() -> None:
    clip = small(depth_width=80, depth_height=45)
    coarse = clip.frame(3).depth_m
    assert coarse.shape == (45, 80)
    x, y = np.meshgrid(np.arange(80), np.arange(45))
    expected = cast_rays(clip, 3, (x.ravel() + 0.5) * 4, (y.ravel() + 0.5) * 4).reshape(45, 80)
    assert np.mean(np.abs(coarse - expected) > 1e-6 * expected) < 1e-3


@pytest.mark.slow
def test_texture_is_rich_but_not_everywhere() -> None:
    clip = small(width=640, height=360)
    for frame in (0, 8, 16):
        grey = cv2.cvtColor(clip.frame(frame).rgb, cv2.COLOR_RGB2GRAY)
        corners = cv2.goodFeaturesToTrack(grey, 2000, 0.01, 5)
        assert len(corners) > 200
        gradient = cv2.GaussianBlur(np.abs(cv2.Laplacian(grey, cv2.CV_64F)), (0, 0), 8)
        assert np.mean(gradient < 2) > 0.03


@pytest.mark.slow
@pytest.mark.parametrize("media", ["video", "images"])
def test_files_read_back(tmp_path, media: Literal["video", "images"]) -> None:
    clip = small(num_frames=4, depth_width=160, depth_height=90)
    files = write_clip(clip, tmp_path / "clip", media=media, depth_units_per_metre=2500.0)
    if media == "video":
        reader = cv2.VideoCapture(str(files.media_path))
        frames = [reader.read()[1][..., ::-1] for _ in range(4)]
        assert not reader.read()[0]
        assert reader.get(cv2.CAP_PROP_FPS) == pytest.approx(8.0)
        tolerance = 3.0  # grey levels, mean: chroma is halved in a video
    else:
        frames = [known(cv2.imread(str(p)))[..., ::-1] for p in sorted(files.media_path.iterdir())]
        tolerance = 0.0
    for i, truth in enumerate(clip):
        assert np.abs(frames[i].astype(float) - truth.rgb).mean() <= tolerance
        stored = known(cv2.imread(known(files.depth_pattern).format(frame=i), cv2.IMREAD_UNCHANGED))
        assert stored.dtype == np.uint16
        np.testing.assert_allclose(stored / 2500.0, truth.depth_m, atol=0.5001 / 2500)
    np.testing.assert_allclose(
        np.loadtxt(files.camera_to_world_path).reshape(-1, 4, 4), clip.camera_to_world, atol=1e-9
    )
    table = np.genfromtxt(files.intrinsics_path, delimiter=",", names=True)
    np.testing.assert_allclose(table["fx"], clip.intrinsics[:, 0, 0], rtol=1e-7)


def test_depth_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        depth_to_uint16(np.full((2, 2), 14.0, np.float32), units_per_metre=5000)
    stored = depth_to_uint16(np.array([[np.nan, np.inf, -1.0, 0.0, 2.0]], np.float32), units_per_metre=1000)
    assert stored.tolist() == [[0, 0, 0, 0, 2000]]


def test_half_a_depth_size_is_refused() -> None:
    with pytest.raises(ValueError, match="both or neither"):
        RenderConfig(depth_width=64)
