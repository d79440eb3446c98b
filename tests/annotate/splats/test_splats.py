"""Scenes of splats: files, pictures, and where a camera may go."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y
from theodolite.annotate.splats.paths import PathGates, SolidScene, find_path, smoothed
from theodolite.annotate.splats.render import PlainRenderer, harmonics
from theodolite.annotate.splats.scene import Splats, read_splats, read_trained_cameras, write_splats
from theodolite.dataset.cameras.paths import named_path
from theodolite.dataset.cameras.transforms import rigid_error

from .room import HALF, room, write_room

LENS = torch.tensor([[60.0, 0, 32], [0, 60.0, 24], [0, 0, 1]])


def one(mean, *, scale=(0.1, 0.1, 0.1), opacity=0.9, colour=(1.0, 0.0, -1.0), turn=(1.0, 0, 0, 0)) -> Splats:
    arrays = ([mean], [turn], [scale], [opacity], [[colour]])
    return Splats(*(torch.tensor(a, dtype=torch.float32).reshape(1, *np.shape(a)[1:]) for a in arrays))


def together(*splats: Splats) -> Splats:
    return Splats(*(torch.cat(parts) for parts in zip(*(vars(s).values() for s in splats), strict=True)))


# --- files ----------------------------------------------------------------------------------------


def test_a_scene_goes_to_a_file_and_back(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    n = 50
    turn = torch.nn.functional.normalize(torch.randn(n, 4, generator=generator), dim=1)
    splats = Splats(
        torch.randn(n, 3, generator=generator),
        turn,
        torch.rand(n, 3, generator=generator) + 0.01,
        torch.rand(n, generator=generator) * 0.9 + 0.05,
        torch.randn(n, 16, 3, generator=generator),
    )
    write_splats(tmp_path / "s.ply", splats)
    again = read_splats(tmp_path / "s.ply")
    for name, value in vars(splats).items():
        assert torch.allclose(getattr(again, name), value, atol=1e-4), name
    assert again.degree == 3
    assert torch.allclose(torch.linalg.det(again.rotations()), torch.ones(n), atol=1e-5)


def test_splats_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    splats = together(one((0, 0, 2)), one((0, 0, math.nan)), one((0, 0, 3), turn=(0, 0, 0, 0)))
    write_splats(tmp_path / "s.ply", splats)
    assert read_splats(tmp_path / "s.ply").means.tolist() == [[0, 0, 2]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c[:-7], "cut off"),
        (lambda c: b"no ply", "no PLY"),
        (lambda c: c.replace(b"binary_little_endian", b"ascii"), "binary little-endian"),
        (lambda c: c.replace(b"property float opacity", b"property float opaque"), "without opacity"),
        (lambda c: c.replace(b"vertex 1", b"vertex 99999999999"), "holds no splats"),
        (lambda c: c.replace(b"element vertex", b"element face"), "first element is face"),
        (lambda c: c.replace(b"property float x", b"property list uchar int x"), "none of a splat"),
        (lambda c: c.replace(b"end_header\n", b""), "no PLY"),
    ],
)
def test_files_that_are_no_splats(tmp_path: Path, damage, message: str) -> None:
    path = tmp_path / "s.ply"
    write_splats(path, one((0, 0, 2)))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        read_splats(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {}, "no list"),
        (lambda c: [], "no list"),
        (lambda c: [{**c[0], "fx": 0}], "no pose with a lens"),
        (lambda c: [{**c[0], "rotation": [[2, 0, 0], [0, 1, 0], [0, 0, 1]]}], "no pose"),
        (lambda c: [{**c[0], "position": [0, 0]}], "camera 0 is none"),
        (lambda c: [{k: v for k, v in c[0].items() if k != "width"}], "width"),
    ],
)
def test_files_that_are_no_cameras(tmp_path: Path, change, message: str) -> None:
    write_room(tmp_path, 2.0)
    path = tmp_path / "cameras.json"
    assert len(read_trained_cameras(path).focal_px) == 12
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        read_trained_cameras(path)


# --- pictures -------------------------------------------------------------------------------------


def test_harmonics_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(20, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    polar, around = np.arccos(directions[:, 2]), np.arctan2(directions[:, 1], directions[:, 0])
    for degree in range(4):
        for order in range(-degree, degree + 1):
            y = sph_harm_y(degree, abs(order), polar, around)
            expected = y.real if order == 0 else math.sqrt(2) * (y.imag if order < 0 else y.real)
            number = degree * degree + degree + order
            coefficients = torch.zeros(20, 16, 3)
            coefficients[:, number] = 1
            found = harmonics(coefficients, torch.from_numpy(directions).float())[:, 0].numpy()
            # scipy has the Condon-Shortley phase, and so has this order of signs.
            assert np.allclose(found, expected, atol=1e-5), (degree, order)


def test_one_gaussian_is_where_and_as_wide_as_the_lens_says() -> None:
    picture = PlainRenderer().draw(one((0.4, -0.2, 4.0), scale=(0.2, 0.1, 0.1)), torch.eye(4), LENS, (48, 64))
    alpha = picture.alpha.numpy()
    y, x = np.mgrid[0:48, 0:64] + 0.5
    assert (alpha * x).sum() / alpha.sum() == pytest.approx(32 + 60 * 0.1, abs=0.05)
    assert (alpha * y).sum() / alpha.sum() == pytest.approx(24 - 60 * 0.05, abs=0.05)
    spread = np.sqrt((alpha * (x - 38) ** 2).sum() / alpha.sum())
    assert spread == pytest.approx(math.sqrt((60 * 0.2 / 4) ** 2 + 0.3), rel=0.05)
    peak = 0.9 * math.exp(-0.5 * (0.25 / (9 + 0.3) + 0.25 / (2.25 + 0.3)))
    assert picture.alpha.max() == pytest.approx(peak, abs=1e-3)
    assert picture.depth[21, 38] == pytest.approx(4.0, abs=1e-4)
    at = picture.rgb[21, 38] / picture.alpha[21, 38]
    assert at.tolist() == pytest.approx([0.5 + 0.2820948, 0.5, 0.5 - 0.2820948], abs=1e-3)


def test_the_nearer_one_hides_the_other_and_what_is_behind_is_not_seen() -> None:
    near, far = one((0, 0, 2.0), opacity=0.75), one((0, 0, 5.0), colour=(-1.0, 0, 1.0), scale=(1, 1, 1))
    picture = PlainRenderer().draw(together(far, near, one((0, 0, -2.0))), torch.eye(4), LENS, (48, 64))
    a = 0.75 * math.exp(-0.5 * 0.5 / (9 + 0.3))
    depth = (a * 2 + (1 - a) * 0.9 * 5) / (a + (1 - a) * 0.9)
    assert picture.depth[24, 32] == pytest.approx(depth, rel=1e-2)
    moved = torch.eye(4)
    moved[2, 3] = 3.0  # past the near one
    assert PlainRenderer().draw(near, moved, LENS, (48, 64)).alpha.max() == 0


def test_a_wall_has_its_depth_everywhere() -> None:
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([-1.0, 0.0, 0.0])
    picture = PlainRenderer().draw(room(0.2), pose, LENS, (48, 64))
    z = float(HALF[2])
    assert picture.depth[20:28, 5:25].numpy() == pytest.approx(z, abs=0.02)
    assert picture.alpha[20:28, 5:25].min() > 0.8


# --- paths ----------------------------------------------------------------------------------------


def test_smoothing_keeps_paths_rigid_and_takes_jitter_out() -> None:
    rng = np.random.default_rng(0)
    poses = named_path("orbit", 201)
    rough = poses.copy()
    rough[:, :3, 3] += rng.normal(size=(201, 3)) * 0.02
    smooth = smoothed(rough, 4)
    assert float(np.max(rigid_error(smooth))) < 1e-9
    assert np.abs(smooth[20:-20, :3, 3] - poses[20:-20, :3, 3]).max() < 0.06
    shake = [np.linalg.norm(np.diff(p[:, :3, 3], 2, axis=0), axis=1).mean() for p in (rough, smooth)]
    assert shake[1] < 0.1 * shake[0]


@pytest.fixture(scope="module")
def solid(tmp_path_factory: pytest.TempPathFactory) -> SolidScene:
    pytest.importorskip("open3d", exc_type=ImportError)
    scene = write_room(tmp_path_factory.mktemp("room"), 0.2)
    return SolidScene(read_splats(scene), read_trained_cameras(scene.parent / "cameras.json"), PathGates())


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ModuleNotFoundError("No module named 'open3d'"), ImportError, r"pip install theodolite\[gs\]"),
        (
            ImportError("libusb-1.0.so.0: cannot open"),
            ValueError,
            "needs a library that this system lacks .libusb",
        ),
        (OSError("libGL.so.1: cannot open"), ValueError, "needs a library that this system lacks .libGL"),
    ],
)
def test_what_open3d_lacks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], said: str
) -> None:
    scene = write_room(tmp_path, 0.5)
    splats, cameras = read_splats(scene), read_trained_cameras(scene.parent / "cameras.json")

    def missing(name: str) -> None:
        raise error

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(kind, match=said):
        SolidScene(splats, cameras, PathGates())


def test_distances_and_what_was_seen(solid: SolidScene) -> None:
    assert solid.distance(np.array([[0.0, 0.0, -3.0], [-1.0, 0.0, 0.0]])) == pytest.approx(
        [1.0, 1.5], abs=0.05
    )
    assert 2 < solid.usual_depth < 6
    inside = solid.cameras.camera_to_world
    assert solid.covered(inside, every=1) == 1.0
    outside = inside.copy()
    outside[:, :3, 3] += [0.0, 0.0, 30.0]
    assert solid.covered(outside, every=1) < 0.3


def test_a_path_through_a_wall_shrinks_or_is_refused(solid: SolidScene) -> None:
    start = np.eye(4)
    start[:3, 3] = [-1.0, 0.0, -1.0]
    ahead = find_path(solid, "dolly", start, num_frames=81, size=12.0)  # the wall is 5 m ahead
    assert ahead.problem is None
    assert ahead.size == pytest.approx(12.0 * 0.7**3)
    assert ahead.clearance > PathGates().clearance * solid.usual_depth
    blocked = find_path(solid, "dolly", start, num_frames=81, size=1000.0)
    assert blocked.problem == "in_geometry"
    assert solid.clearance(blocked.camera_to_world) == 0.0
    start[:3, 3] = [20.0, 0.0, 20.0]
    assert find_path(solid, "crane", start, num_frames=81, size=1.0).problem == "not_covered"
