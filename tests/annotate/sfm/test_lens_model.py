"""Lenses that are no pinhole: found from tracks and depth of a bare room whose walls are seen exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from theodolite.annotate.sfm import lens_model
from theodolite.annotate.sfm.bundle.lens import NEAR_PINHOLE, Lens, LensModel, bending, straightened
from theodolite.annotate.sfm.bundle.problem import Solution
from theodolite.annotate.sfm.config import BundleConfig
from theodolite.annotate.sfm.keyframes import SETTLED, KeyframeProblem, SolverInput
from theodolite.annotate.sfm.lens_model import KeyframeFit, choose_lens
from theodolite.annotate.sfm.records import CameraSolution
from theodolite.annotate.sfm.solve import solve_cameras
from theodolite.annotate.sources.clip import ClipRejection
from theodolite.annotate.tracks.records import FLOW, Features, ImageMeasurements, TracksConfig, make_tracks
from theodolite.dataset.cameras.rotations import so3_exp
from theodolite.dataset.metrics.trajectory import path_length, trajectory_error

from ..maps import Maps
from .bundle.test_bundle import scene

WIDTH, HEIGHT, FRAMES = 640, 480, 24
ROOM = np.array([3.0, 1.6, 4.0])  # half of its size, metres


@dataclass(frozen=True, kw_only=True)
class Glass:
    """A lens by OpenCV: `cv2.projectPoints` or, for a fisheye, `cv2.fisheye.projectPoints`."""

    focal: float
    centre: tuple[float, float] = (WIDTH / 2, HEIGHT / 2)
    terms: Sequence[float] = (0.0, 0.0)
    fisheye: bool = False

    @property
    def _given(self) -> tuple[NDArray, NDArray]:
        matrix = np.array([[self.focal, 0, self.centre[0]], [0, self.focal, self.centre[1]], [0, 0, 1.0]])
        return matrix, np.array([*self.terms, 0.0, 0.0])

    def pixels(self, points: NDArray) -> NDArray:
        """(n, 2) of points (n, 3) ahead of the camera."""
        of = cv2.fisheye if self.fisheye else cv2
        found, _ = of.projectPoints(points[:, None], np.zeros(3), np.zeros(3), *self._given)
        return found.reshape(-1, 2)

    def rays(self, pixels: NDArray) -> NDArray:
        """(n, 3) with Z = 1."""
        undistort = cv2.fisheye.undistortPoints if self.fisheye else cv2.undistortPoints
        found = undistort(pixels[:, None], *self._given).reshape(-1, 2)
        return np.concatenate([found, np.ones((len(found), 1))], 1)


def _depth(camera: NDArray, rays: NDArray) -> NDArray:
    """(n,) z-depth at which rays (n, 3) of a camera in the room meet its walls."""
    along = rays @ camera[:3, :3].T
    with np.errstate(divide="ignore"):
        return np.min((np.sign(along) * ROOM - camera[:3, 3]) / along, axis=1)


def walk(glass: Glass, *, noise_px: float = 0.2, seed: int = 0) -> tuple[ImageMeasurements, Maps, NDArray]:
    """Tracks, depth and truth of a walk that turns and tilts."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, FRAMES)
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    turn = np.stack([0.25 * np.sin(5 * t), 1.1 * t, 0.15 * np.sin(4 * t)], 1)
    poses[:, :3, :3] = so3_exp(turn)
    poses[:, :3, 3] = np.stack([-0.8 + 1.5 * t, 0.3 * np.sin(6 * t), -1.0 + 0.8 * np.sin(3 * t)], 1)
    size = (WIDTH // 2, HEIGHT // 2)
    grid = np.stack(np.meshgrid(2 * np.arange(size[0]) + 1.0, 2 * np.arange(size[1]) + 1.0), -1).reshape(
        -1, 2
    )
    rays = glass.rays(grid)
    maps = [_depth(pose, rays).reshape(size[::-1]) for pose in poses]
    frame, track, seen = [], [], []
    for first in range(0, FRAMES, 3):
        start = rng.uniform([4, 4], [WIDTH - 4, HEIGHT - 4], (110, 2))
        r = glass.rays(start)
        world = (r * _depth(poses[first], r)[:, None]) @ poses[first][:3, :3].T + poses[first][:3, 3]
        alive = np.ones(len(world), bool)
        for i in range(first, min(FRAMES, first + 16)):
            local = (world - poses[i][:3, 3]) @ poses[i][:3, :3]
            px = np.where(local[:, 2:] > 0.05, glass.pixels(np.maximum(local, [-1e9, -1e9, 0.05])), -1.0)
            alive &= ((px > 2) & (px < [WIDTH - 2, HEIGHT - 2])).all(1)
            number = np.flatnonzero(alive)
            frame += [i] * len(number)
            track += (len(world) * first + number).tolist()
            seen.append(px[number] + rng.normal(0, noise_px, (len(number), 2)))
    flow = make_tracks(
        np.array(frame),
        np.array(track),
        np.concatenate(seen),
        np.full(len(frame), FLOW, np.uint8),
        FRAMES,
        HEIGHT,
        WIDTH,
    )
    keyframes = np.unique(np.r_[np.arange(0, FRAMES, 2), FRAMES - 1])
    nothing = {"xy_px": np.zeros((0, 2)), "descriptors": np.zeros((0, 128), np.float32)}
    blank = np.zeros((144, 192), np.uint8)
    one = np.ones(FRAMES)
    measured = ImageMeasurements(
        flow=flow,
        keyframes=keyframes,
        features=[Features(frame=int(k), thumbnail=blank, **nothing) for k in keyframes],
        survival=one,
        median_flow_px=8 * one,
        sharpness=one,
    )
    return measured, Maps(maps), poses


def solved(glass: Glass, **config) -> tuple[CameraSolution, float]:
    """Cameras of the walk, and the error of their path as a share of its length."""
    measured, depth, poses = walk(glass)
    cameras = solve_cameras(
        SolverInput(
            measured=measured,
            depth=depth,
            depth_sigma_log=0.01,
            tracks_config=TracksConfig(),
            config=BundleConfig(**config),
        )
    )
    error = trajectory_error(cameras.camera_to_world, poses, alignment="se3")
    return cameras, error.ate_rmse_m / float(path_length(poses))


def apart_px(cameras: CameraSolution, glass: Glass) -> NDArray:
    """(n,) distances over the picture between where the true lens and the one found put the same ray."""
    x, y = np.meshgrid(np.linspace(5, WIDTH - 5, 15), np.linspace(5, HEIGHT - 5, 11))
    grid = np.stack([x.ravel(), y.ravel()], 1)
    middle = FRAMES // 2
    found = Glass(
        focal=float(cameras.focal_px[middle, 0]),
        centre=tuple(cameras.principal_point_px[middle]),
        terms=(cameras.radial_k1, cameras.radial_k2 or 0.0),
        fisheye=cameras.lens_model == "fisheye",
    )
    return np.linalg.norm(found.pixels(glass.rays(grid)) - grid, axis=1)


@pytest.mark.parametrize(
    "glass",
    [
        Glass(focal=600, terms=(-0.3, 0.0)),
        Glass(focal=500, terms=(-0.25, 0.08)),
        Glass(focal=600, terms=(0.2, 0.05)),
        Glass(focal=300, fisheye=True),
        Glass(focal=210, terms=(0.03, -0.01), fisheye=True),
    ],
)
def test_rays_and_their_places_are_those_of_opencv(glass: Glass) -> None:
    x, y = np.meshgrid(np.linspace(120, WIDTH - 120, 9), np.linspace(90, HEIGHT - 90, 7))
    pixels = np.stack([x.ravel(), y.ravel()], 1)
    rays = glass.rays(pixels)
    seen = torch.as_tensor((pixels - np.array(glass.centre)) / glass.focal)
    k1, k2 = torch.tensor(glass.terms, dtype=torch.float64)
    model: LensModel = "fisheye" if glass.fisheye else "radial"
    found = straightened(model, seen, k1, k2)
    # OpenCV's own inverse stops at 1e-6 or so.
    assert np.abs(found.numpy() - rays[:, :2]).max() < 1e-5
    r2 = (found**2).sum(1)
    assert torch.allclose(found * bending(model, r2, k1, k2)[0][:, None], seen, atol=1e-9)


@pytest.mark.parametrize("model", ["radial", "fisheye"])
def test_slopes_of_the_bending_are_its_differences(model: LensModel) -> None:
    r2 = torch.cat([torch.zeros(1), torch.logspace(-9, 1, 40)]).double()
    k1, k2 = torch.tensor([0.07, -0.03], dtype=torch.float64)
    _, slope, by_term = bending(model, r2, k1, k2)
    step = 1e-6 * (1e-3 + r2)
    wide = bending(model, r2 + step, k1, k2)[0] - bending(model, (r2 - step).clamp_min(0), k1, k2)[0]
    assert torch.allclose(slope[1:], (wide / (2 * step))[1:], rtol=1e-5, atol=1e-5)
    for k, (up, down) in enumerate((((k1 + 1e-6, k2), (k1 - 1e-6, k2)), ((k1, k2 + 1e-6), (k1, k2 - 1e-6)))):
        apart = bending(model, r2, *up)[0] - bending(model, r2, *down)[0]
        assert torch.allclose(by_term[k], apart / 2e-6, rtol=1e-6, atol=1e-8)


def test_beyond_the_fold_rays_stay_at_the_border() -> None:
    """With k1 = -0.3 nothing is seen further out than 0.70 focal lengths, at tan t = 1.05."""
    k1, k2 = torch.tensor([-0.3, 0.0], dtype=torch.float64)
    seen = torch.tensor([[0.5, 0.0], [0.9, 0.0], [0.0, -5.0]], dtype=torch.float64)
    found = straightened("radial", seen, k1, k2)
    border = 1 / 0.9**0.5
    assert found[0, 0] * (1 - 0.3 * found[0, 0] ** 2) == pytest.approx(0.5, abs=1e-9)
    assert found[1].norm() == pytest.approx(border, abs=0.01)
    assert found[2].norm() == pytest.approx(border, abs=0.01)


@pytest.mark.slow(about_s=9)
@pytest.mark.parametrize(
    ("glass", "model"),
    [
        pytest.param(Glass(focal=600, terms=(-0.3, 0.0)), "radial", id="barrel"),
        pytest.param(
            Glass(focal=640 / np.deg2rad(120), fisheye=True), "fisheye", id="fisheye of 120 degrees"
        ),
    ],
)
def test_a_lens_that_bends_is_found_with_its_cameras(glass: Glass, model: LensModel) -> None:
    cameras, off = solved(glass)
    assert cameras.lens_model == model
    assert cameras.radial_k2 is not None
    assert off < 0.003
    apart = apart_px(cameras, glass)
    assert float((apart**2).mean() ** 0.5) < 1.0


@pytest.mark.slow
def test_a_pinhole_stays_one_and_its_principal_point_is_found() -> None:
    """Of a picture that was cropped by a tenth at two sides: its lens off the centre is chosen."""
    glass = Glass(focal=600, centre=(256, 288))
    cameras, off = solved(glass)
    assert (cameras.lens_model, cameras.radial_k2) == ("near_pinhole", None)
    assert off < 0.002
    # With the prior of a lens in the middle of its picture 1.73 px.
    assert float((apart_px(cameras, glass) ** 2).mean() ** 0.5) < 0.6
    assert np.abs(cameras.principal_point_px[0] - glass.centre).max() < 1.0


@dataclass(frozen=True)
class Fit:
    """What `choose_lens` looks at."""

    model: LensModel
    of_whole: float
    terms: tuple[float, float] = (-0.3, 0.0)
    offset: float = 0.0
    prior_cost: float = 0.0

    @property
    def placed(self) -> NDArray:
        return np.ones(9, bool)

    @property
    def problem(self) -> SimpleNamespace:
        return SimpleNamespace(
            focal_scale_px=800.0, lens=Lens(self.model, off_centre=self.model == "near_pinhole")
        )

    @property
    def solution(self) -> SimpleNamespace:
        return SimpleNamespace(state=SimpleNamespace(lens=torch.tensor([self.offset, 0, 0, *self.terms])))

    def cost(self, observations: int) -> float:
        return self.of_whole


@pytest.mark.parametrize(
    ("radial", "fisheye", "terms", "chosen"),
    [
        (900.0, 800.0, (0.01, 0.02), "fisheye"),
        (900.0, 870.0, (0.01, 0.02), "radial"),
        (900.0, 500.0, (0.05, -0.28), "radial"),  # what a radial lens is as a fisheye
        (1990.0, 1995.0, (0.0, 0.0), None),
    ],
)
def test_another_lens_must_be_worth_it_and_a_fisheye_one_of_its_kind(
    radial: float,
    fisheye: float,
    terms: tuple[float, float],
    chosen: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near = Fit("near_pinhole", 2000.0)
    monkeypatch.setattr(lens_model, "_refined", lambda keys, lens, near: Fit("radial", radial))
    monkeypatch.setattr(lens_model, "_fisheye", lambda keys: Fit("fisheye", fisheye, terms))
    monkeypatch.setattr(lens_model, "_worth", lambda fit: (5.0, 40.0))
    taken = []
    keys = SimpleNamespace(
        given=SimpleNamespace(config=BundleConfig(), held_lens=None),
        problem=SimpleNamespace(frame=np.zeros(5000)),
        lens="one that was tried",
        rough=SETTLED,
        take_lens=lambda lens: taken.append(lens.model),
    )
    found = choose_lens(cast(KeyframeProblem, keys), cast(KeyframeFit, near))
    assert (found and found.model) == chosen
    assert taken == [chosen or "near_pinhole"]


@pytest.mark.parametrize(
    ("offset", "shifted", "prior_cost", "tried", "chosen"),
    [
        (11.0, 1000.0, 6.0, False, False),
        (13.0, 1930.0, 1.0, True, False),  # two degrees of freedom, 40 each
        (13.0, 1910.0, 1.0, True, True),
        (40.0, 1950.0, 50.0, True, True),  # of the 50, all are the prior's: five times as much
        (20.0, 1985.0, 12.5, True, False),
    ],
)
def test_a_principal_point_off_the_centre_is_asked_for_and_must_be_worth_it(
    offset: float,
    shifted: float,
    prior_cost: float,
    tried: bool,
    chosen: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, taken = [], []

    def refined(keys: SimpleNamespace, lens: Lens, near: Fit) -> Fit:
        asked.append(lens.off_centre)
        keys.lens = lens
        return Fit("near_pinhole", shifted, (0.0, 0.0), offset)

    monkeypatch.setattr(lens_model, "_refined", refined)
    monkeypatch.setattr(lens_model, "_worth", lambda fit: (5.0, 40.0))
    keys = SimpleNamespace(
        given=SimpleNamespace(config=BundleConfig(), held_lens=None),
        problem=SimpleNamespace(frame=np.zeros(5000)),
        lens=NEAR_PINHOLE,
        rough=SETTLED,
        take_lens=lambda lens: taken.append(lens.off_centre),
    )
    near = Fit("near_pinhole", 2000.0, (0.01, 0.0), offset, prior_cost)
    found = choose_lens(cast(KeyframeProblem, keys), cast(KeyframeFit, near))
    assert (found is not None) == chosen
    assert asked == [True] * tried
    assert taken == [chosen] * tried  # where nothing was tried, nothing is made anew


@pytest.mark.parametrize(("k1", "settled"), [(0.01, False), (-0.3, True)])
def test_a_lens_is_compared_with_others_at_its_optimum_and_only_then_brought_there(
    k1: float, settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, state = scene(2)
    monkeypatch.setattr(
        lens_model, "_others", lambda keys, near: iter([Fit("radial", near.solution.cost - 90)])
    )
    monkeypatch.setattr(lens_model, "_worth", lambda fit: (5.0, 100.0))
    solved = SimpleNamespace(cost=1000.0, state=SimpleNamespace(lens=torch.tensor([0.0, 0, 0, k1, 0])))
    asked = []

    def bundle(*given: object) -> tuple[object, object, object]:
        asked.append(given)
        return state, problem, SimpleNamespace(**vars(solved) | {"cost": 900.0})

    keys = SimpleNamespace(
        given=SimpleNamespace(config=BundleConfig(), held_lens=None),
        problem=problem,
        lens=NEAR_PINHOLE,
        rough=10 * SETTLED,
        bundle=bundle,
    )
    near = KeyframeFit(state=state, placed=np.ones(2, bool), problem=problem, solution=cast(Solution, solved))
    assert choose_lens(cast(KeyframeProblem, keys), near) is None
    assert len(asked) == settled


@pytest.mark.parametrize(
    "failure",
    [
        FloatingPointError("not positive definite"),
        ClipRejection("no_reconstruction", "no point is seen by two frames"),
    ],
)
def test_where_the_bundle_of_another_lens_fails_the_cameras_that_are_there_stay(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise failure

    problem, state = scene(2)
    near = SimpleNamespace(
        state=state,
        problem=problem,
        solution=SimpleNamespace(state=SimpleNamespace(lens=torch.tensor([0.0, 0, 0, 0.2, 0]))),
        placed=np.ones(2, bool),
    )
    taken = []
    keys = SimpleNamespace(
        given=SimpleNamespace(config=BundleConfig(), held_lens=None),
        problem=problem,
        lens="one that was tried",
        rough=SETTLED,
        take_lens=lambda lens: taken.append(lens.model),
    )
    monkeypatch.setattr(lens_model, "_bundled", fail)
    assert choose_lens(cast(KeyframeProblem, keys), cast(KeyframeFit, near)) is None
    assert taken == ["radial", "near_pinhole"]


@pytest.mark.parametrize(
    ("config", "held"),
    [
        ({"lens_model": "near_pinhole"}, None),
        ({"radial_sigma": 0.0}, None),
        ({}, "a lens that the source knows"),
    ],
)
def test_where_no_other_lens_is_asked_for_none_is_tried(config: dict, held: str | None) -> None:
    # Anything else of the keyframes would be missed.
    keys = SimpleNamespace(given=SimpleNamespace(config=BundleConfig(**config), held_lens=held))
    assert choose_lens(cast(KeyframeProblem, keys), None) is None
