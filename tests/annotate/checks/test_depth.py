"""Given depth against the images: every way in which a folder of maps is misread, and depth that only errs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from theodolite.annotate.checks.depth import DepthCheck, check_depth
from theodolite.annotate.checks.depth_pairs import Wanted, choose_pairs
from theodolite.annotate.checks.readings import TURNS, order_readings, rate_readings, shifted_reading
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import write_clip
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sfm.records import KnownLens
from theodolite.annotate.sources.clip import ClipRef, DepthKind, GivenGeometry
from theodolite.annotate.tracks.measure import measure_images
from theodolite.annotate.tracks.records import ImageMeasurements, TracksConfig
from theodolite.annotate.verdict.config import GatesConfig
from theodolite.annotate.verdict.gates import REASONS, describe_failure, judge_depth

from ...typed import known
from ..simulator import smooth_field

F32 = NDArray[np.float32]
FRAMES, HEIGHT, WIDTH = 56, 180, 320
SCENE = RenderConfig(width=WIDTH, height=HEIGHT, num_frames=FRAMES, seed=0, speed=1.6)

TRACKS = TracksConfig(num_flow_tracks=250, num_descriptors=100, max_keyframe_gap=64, keyframe_flow=0.5)
"""Flow tracks are all that is looked at here."""


@dataclass(frozen=True)
class Recording:
    """Tracks of a clip with (F, h, w) true depth."""

    measured: ImageMeasurements
    depth: F32
    focal_px: float

    def check(
        self, depth: F32, *, kind: DepthKind = "z", lens: KnownLens | None = None, missing: range = range(0)
    ) -> DepthCheck:
        maps = Maps(depth, missing)
        return check_depth(self.measured, maps, tracks_config=TRACKS, kind=kind, lens=lens)


@dataclass(frozen=True)
class Maps:
    """`DepthMaps` in memory."""

    depth: F32
    missing: range

    def __len__(self) -> int:
        return len(self.depth)

    def read(self, frame: int) -> F32 | None:
        return None if frame in self.missing else self.depth[frame]


@pytest.fixture(scope="module")
def walk() -> Recording:
    clip = render_clip(SCENE)
    frames = list(clip)
    measured = measure_images((f.rgb for f in frames), height=HEIGHT, width=WIDTH, config=TRACKS)
    return Recording(measured, np.stack([f.depth_m for f in frames]), float(clip.intrinsics[0, 0, 0]))


def reasons(check: DepthCheck) -> list[str]:
    return [REASONS[g.name] for g in judge_depth(check, GatesConfig()) if not g.passed]


def stretched(maps: F32) -> F32:
    """Turned maps back at the size of the image, as a careless resize makes them."""
    out = np.empty((len(maps), HEIGHT, WIDTH), np.float32)
    for z, to in zip(maps, out, strict=True):
        to[:] = cv2.resize(np.ascontiguousarray(z), (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
    return out


def at(frames: NDArray) -> Callable[[F32], F32]:
    return lambda z: z[np.clip(frames, 0, FRAMES - 1)]


def ray_length(focal_px: float) -> F32:
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    x, y = (x - WIDTH / 2) / focal_px, (y - HEIGHT / 2) / focal_px
    return np.sqrt(1 + x**2 + y**2).astype(np.float32)


N = np.arange(FRAMES)
BY_TEXT = np.array(sorted(range(FRAMES), key=str))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("misread", "words"),
    [
        (lambda z: z[:, ::-1], "when flipped vertically"),
        pytest.param(lambda z: z[:, :, ::-1], "when flipped horizontally", marks=pytest.mark.thorough),
        (lambda z: z[:, ::-1, ::-1], "when turned by 180 degrees"),
        (lambda z: stretched(z.transpose(0, 2, 1)), "when transposed (rows taken for columns)"),
        pytest.param(
            lambda z: stretched(np.rot90(z, 1, (1, 2))),
            "when turned by 90 degrees clockwise",
            marks=pytest.mark.thorough,
        ),
        (lambda z: stretched(np.rot90(z, -1, (1, 2))), "when turned by 90 degrees counter-clockwise"),
        pytest.param(at(N - 3), "when taken 3 clip frames later", marks=pytest.mark.thorough),
        (at(N + 5), "when taken 5 clip frames earlier"),
        pytest.param(at(N + 17), "when taken 17 clip frames earlier", marks=pytest.mark.thorough),
        (at(FRAMES - 1 - N), "when taken from last to first"),
        (at(2 * N), "when taken at 0.5 times their rate"),
        (at(BY_TEXT), "when the files are sorted by number (10 after 9), not by text"),
        (lambda z: 1 / z, "as disparity, the inverse of depth"),
        pytest.param(
            lambda z: 0.2 / z + 0.02, "as disparity, the inverse of depth", marks=pytest.mark.thorough
        ),
    ],
)
def test_misread_depth_is_refused_in_words_of_what_would_fit(walk: Recording, misread, words: str) -> None:
    check = walk.check(np.ascontiguousarray(misread(walk.depth)).astype(np.float32))
    assert "depth_does_not_fit_images" in reasons(check)
    assert check.better_reading == words
    assert words in check.explain("depth_reading")
    assert check.better_log > 3.5 * check.better_sigma_log


TURNED: dict[str, Callable[[NDArray], NDArray]] = {
    "when flipped vertically": lambda z: z[::-1],
    "when flipped horizontally": lambda z: z[:, ::-1],
    "when turned by 180 degrees": lambda z: z[::-1, ::-1],
    "when transposed (rows taken for columns)": lambda z: z.T,
    "when transposed and turned by 180 degrees": lambda z: z[::-1, ::-1].T,
    "when turned by 90 degrees clockwise": lambda z: np.rot90(z, 1),
    "when turned by 90 degrees counter-clockwise": lambda z: np.rot90(z, -1),
}
"""Misread maps by the reading that puts them right."""


@pytest.mark.parametrize("words", TURNED)
def test_every_turn_finds_the_pixels_where_they_went(words: str) -> None:
    (reading,) = [reading for reading in TURNS if reading.words == words]
    true = np.arange(6 * 10).reshape(6, 10)
    turned = TURNED[words](true)
    y, x = (np.mgrid[:6, :10] + 0.5).reshape(2, -1)
    assert reading.place is not None
    place = reading.place(np.stack([x / 10, y / 6], 1))
    row, column = (place[:, ::-1] * turned.shape).astype(int).T
    np.testing.assert_array_equal(turned[row, column].reshape(6, 10), true)


def test_every_order_finds_the_maps_where_they_went() -> None:
    number = np.arange(30)
    late = {shifted_reading(k).words: k for k in (-17, -3, -1, 1, 5)}
    assert late["when taken 17 clip frames earlier"] == -17
    for k in late.values():
        assert known(shifted_reading(k).frame)(number)[20] == 20 + k
    orders = (*order_readings(30), *rate_readings())
    readings = {reading.words: known(reading.frame)(number) for reading in orders}
    by_text = np.array(sorted(range(30), key=str))
    # Map i of files in the order of their text is that of frame by_text[i], and the other way round.
    np.testing.assert_array_equal(
        by_text[readings["when the files are sorted by number (10 after 9), not by text"]], number
    )
    np.testing.assert_array_equal(
        readings["when the files are sorted by text (10 before 2), not by number"], by_text
    )
    np.testing.assert_array_equal(readings["when taken from last to first"], number[::-1])
    assert readings["when taken at 0.5 times their rate"][20] == 10
    assert readings["when taken at 1.25 times their rate"][20] == 25


@pytest.mark.slow
def test_ray_distance_taken_for_depth_and_depth_for_ray_distance(walk: Recording) -> None:
    ray = ray_length(walk.focal_px)
    assert walk.check(walk.depth * ray).better_reading == "as distance along the ray"
    other = walk.check(walk.depth / ray, kind="ray_distance")
    assert other.better_reading == "as depth along the axis (not as ray distance)"


@pytest.mark.slow
def test_depth_declared_as_disparity(walk: Recording) -> None:
    assert (
        walk.check((1 / walk.depth).astype(np.float32), kind="disparity").better_reading
        == "as depth (not as disparity)"
    )


@pytest.mark.slow
def test_one_depth_for_all_points_explains_nothing(walk: Recording) -> None:
    check = walk.check(np.full_like(walk.depth, 2.0))
    assert "depth_does_not_fit_images" in reasons(check)
    assert check.unexplained > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "speed", "fov_deg"), [(87, 1.13, 61.5), pytest.param(92, 0.9, 61.8, marks=pytest.mark.thorough)]
)
def test_little_parallax_and_tracks_that_err_along_it_are_no_fault_of_the_depth(
    seed: int, speed: float, fov_deg: float
) -> None:
    """Two seconds at 240x144: counting all that tracks leave against the depth, 0.31 to 0.36 of it was unexplained."""
    scene = RenderConfig(
        width=240,
        height=144,
        num_frames=32,
        seed=seed,
        speed=speed,
        horizontal_fov_deg=fov_deg,
        noise_sigma=2.0,
    )
    frames = list(render_clip(scene))
    measured = measure_images((f.rgb for f in frames), height=144, width=240, config=TRACKS)
    check = Recording(measured, np.stack([f.depth_m for f in frames]), 1.0)
    found = check.check(check.depth)
    assert found.unexplained < 0.2
    assert not reasons(found)


@pytest.mark.slow
def test_numbers_read_wrongly_contradict_themselves(walk: Recording) -> None:
    millimetres = (walk.depth * 1000).astype(np.uint16)
    low_byte = (millimetres & 0xFF).astype(np.float32)
    swapped = millimetres.byteswap().astype(np.float32)
    for wrong in (low_byte, swapped):
        check = walk.check(wrong)
        assert "depth_does_not_fit_images" in reasons(check)
        assert check.inconsistency_log > 0.15


@pytest.mark.slow
def test_maps_in_units_of_their_own_are_told_from_noise(walk: Recording) -> None:
    rng = np.random.default_rng(2)
    unit = np.exp(rng.standard_normal(FRAMES)).astype(np.float32)[:, None, None]
    assert reasons(walk.check(walk.depth * unit)) == ["depth_unit_changes"]


@pytest.mark.slow
@pytest.mark.parametrize("levels", [None, 255, pytest.param(65535, marks=pytest.mark.thorough)])
def test_maps_that_all_end_at_one_value_were_normalised_one_by_one(
    walk: Recording, levels: int | None
) -> None:
    """The unit steps by a few per cent only, as noise may; that every map ends at the same value, noise does not do."""
    depth = walk.depth / walk.depth.max((1, 2), keepdims=True)
    depth *= np.linspace(1, 1.02, FRAMES, dtype=np.float32)[:, None, None] if levels is None else 1
    drifted = walk.check(depth)
    assert not drifted.same_end or levels is not None
    depth = walk.depth / walk.depth.max((1, 2), keepdims=True)
    if levels is not None:
        depth = np.maximum(np.round(depth * levels), 1).astype(np.float32)
    check = walk.check(depth)
    assert check.same_end
    assert check.unit_step_log < 0.2
    assert reasons(check) == ["depth_unit_changes"]
    assert "every map ends at the same value" in check.explain("depth_unit")


@pytest.mark.slow
def test_a_range_that_ends_is_no_sign_of_maps_normalised_one_by_one(walk: Recording) -> None:
    far = float(np.percentile(walk.depth, 80))
    check = walk.check(np.minimum(walk.depth, far))
    assert not check.same_end
    assert reasons(check) == []
    assert not walk.check(np.where(walk.depth > far, np.nan, walk.depth)).same_end


NOISE = {
    "clean": lambda z, rng: z,
    "2 % per pixel": lambda z, rng: z * np.exp(0.02 * rng.standard_normal(z.shape)),
    "20 % per pixel": lambda z, rng: z * np.exp(0.2 * rng.standard_normal(z.shape)),
    "10 % per frame": lambda z, rng: z * np.exp(0.1 * rng.standard_normal((FRAMES, 1, 1))),
    "5 % in patches, as networks err": lambda z, rng: (
        z * np.exp([0.05 * smooth_field(rng, (HEIGHT, WIDTH)) for _ in z])
    ),
    "half of the pixels missing": lambda z, rng: np.where(rng.random(z.shape) < 0.5, np.nan, z),
    "near and far missing": lambda z, rng: np.where(
        (z > np.percentile(z, 10)) & (z < np.percentile(z, 80)), z, np.nan
    ),
    "another unit": lambda z, rng: 1000 * z,
    "a unit that drifts": lambda z, rng: z * np.linspace(1, 1.3, FRAMES)[:, None, None],
    "a quarter of the size": lambda z, rng: z[:, 1::4, 1::4],
}
MILD = ("2 % per pixel", "half of the pixels missing", "another unit")
"""Others of the list err in the same way, and more."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.thorough] * (kind in MILD)) for kind in NOISE]
)
def test_depth_that_only_errs_is_not_refused(walk: Recording, kind: str) -> None:
    noisy = NOISE[kind](walk.depth, np.random.default_rng(4))
    check = walk.check(noisy.astype(np.float32))
    assert reasons(check) == []
    assert check.num_pairs >= 8
    assert check.better_reading == ""


@pytest.mark.slow
def test_pairs_go_only_as_far_apart_as_they_share_the_tracks_that_are_asked_for(walk: Recording) -> None:
    apart = choose_pairs(walk.measured, TRACKS, Wanted(pairs=12, points=250))
    nearer = choose_pairs(walk.measured, TRACKS, Wanted(pairs=12, shared=150, points=250))
    assert len(nearer) == len(apart)
    assert ((nearer.there.sum(1) >= 150) | (nearer.second == nearer.first + 1)).all()
    assert not ((apart.there.sum(1) >= 150) | (apart.second == apart.first + 1)).all()


@pytest.mark.slow
def test_depth_whose_far_part_reads_its_limit_is_what_it_is_without_it(walk: Recording) -> None:
    """Of two in five of all points that read one number it was said that the depth explains nothing."""
    limit = np.float32(np.quantile(walk.depth, 0.6))
    saturated = walk.check(np.minimum(walk.depth, limit))
    assert not reasons(saturated)
    assert saturated.unexplained < 0.1
    absent = walk.check(np.where(walk.depth < limit, walk.depth, np.nan).astype(np.float32))
    assert saturated.margin_log == pytest.approx(absent.margin_log, abs=0.05)


@pytest.mark.slow
def test_frames_without_depth_are_left_out(walk: Recording) -> None:
    assert reasons(walk.check(walk.depth, missing=range(20, 35))) == []
    flipped = walk.check(np.ascontiguousarray(walk.depth[:, ::-1]), missing=range(20, 35))
    assert flipped.better_reading == "when flipped vertically"
    assert walk.check(walk.depth, missing=range(FRAMES)).num_pairs < 3


@pytest.mark.slow
def test_a_known_lens_is_used(walk: Recording) -> None:
    lens = KnownLens(
        focal_px=np.full((FRAMES, 2), walk.focal_px),
        principal_point_px=np.tile([WIDTH / 2, HEIGHT / 2], (FRAMES, 1)),
    )
    known, unknown = walk.check(walk.depth, lens=lens), walk.check(walk.depth)
    assert reasons(known) == []
    assert known.margin_log >= unknown.margin_log - 0.1
    assert walk.check(walk.depth * ray_length(walk.focal_px), lens=lens).better_reading == (
        "as distance along the ray"
    )


@pytest.mark.slow
def test_nothing_is_said_of_a_camera_at_rest() -> None:
    clip = render_clip(SCENE.model_copy(update={"motion": "static", "num_frames": 12}))
    frames = list(clip)
    measured = measure_images((f.rgb for f in frames), height=HEIGHT, width=WIDTH, config=TRACKS)
    flipped = np.stack([f.depth_m[::-1] for f in frames])
    assert reasons(Recording(measured, flipped, 1.0).check(flipped)) == []


def test_a_failed_gate_names_the_better_reading() -> None:
    check = DepthCheck(
        num_pairs=16,
        margin_log=-1.5,
        better_reading="when flipped vertically",
        better_log=2.0,
        better_sigma_log=0.1,
    )
    (gate,) = [g for g in judge_depth(check, GatesConfig()) if not g.passed]
    assert gate.name == "depth_reading"
    assert "-1.5; required at least 0" in describe_failure(gate)
    assert "better when flipped vertically (log misfit 2.00 +- 0.10 lower over 16 pairs" in check.explain(
        gate.name
    )


def test_numbers_that_are_not_known_make_no_gate() -> None:
    assert judge_depth(DepthCheck(num_pairs=1), GatesConfig()) == ()


@pytest.mark.slow
def test_upside_down_depth_ends_as_a_rejected_row_with_its_numbers(tmp_path: Path) -> None:
    """The way that users take; damaged before the maps are written, so that all readers are in it."""
    write_clip(render_clip(SCENE.model_copy(update={"num_frames": 24})), tmp_path)
    for path in sorted((tmp_path / "depth").glob("*.png")):
        z = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert z is not None
        cv2.imwrite(str(path), z[::-1])
    clip = ClipRef(
        clip_id="upside-down",
        source="test",
        original_id="x",
        media_kind="video",
        media_path=tmp_path / "rgb.mp4",
        given=GivenGeometry(
            depth_pattern=str(tmp_path / "depth" / "{frame:06d}.png"), depth_units_per_metre=1000.0
        ),
    )
    config = AnnotateConfig.model_validate(
        {"geometry": {"sequence": "given"}, "tracks": {"num_flow_tracks": 150, "num_descriptors": 100}}
    )
    row = annotate_clip(clip, config, mode="given_depth", recipe_hash="0" * 16)
    assert row.verdict == "rejected"
    assert set(row.reasons) == {"depth_does_not_fit_images"}
    assert "when flipped vertically" in row.reason_details[0]
    assert row.depth_reading_margin_log is not None
    assert row.depth_reading_margin_log < -0.3
    assert row.depth_misfit_px is not None
    assert len(row.camera_to_world) == 0  # no bundle is run on depth of something else
