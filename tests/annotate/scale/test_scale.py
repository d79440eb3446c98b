"""Scale: closed forms of the per-frame estimators, the clip's robust value, and the rates of the test for change."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.geometry.base import AnchorFrame, SequenceGeometryResult
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.scale.estimate import estimate_scale
from theodolite.annotate.scale.ratio import frame_log_scale, weighted_median
from theodolite.annotate.scale.records import ScaleConfig
from theodolite.annotate.scale.series import fit_scale
from theodolite.annotate.sources.clip import ClipRef, GivenGeometry
from theodolite.dataset.reasons import REASONS

TRUE_SCALE = 0.37
FRAMES_PER_ANCHOR = 16


class Maps:
    """Depth maps made on demand."""

    def __init__(self, make, count: int) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def read(self, frame: int):
        return self.make(frame)


def sequence_of(make, count: int, **fields) -> SequenceGeometryResult:
    values = {"depth": Maps(make, count), "depth_sigma_log": 0.02, "metres_per_unit": None, **fields}
    return SequenceGeometryResult(**values)


def series(n: int, rng: np.random.Generator, *, sigma: float = 0.05, correlation: float = 0.0) -> np.ndarray:
    noise = rng.standard_normal(n)
    for i in range(1, n):
        noise[i] = correlation * noise[i - 1] + np.sqrt(1 - correlation**2) * noise[i]
    return np.log(TRUE_SCALE) + sigma * noise


def fit(log_raw: np.ndarray, **config):
    frame = np.arange(len(log_raw)) * FRAMES_PER_ANCHOR
    return fit_scale(
        frame, log_raw, num_frames=len(log_raw) * FRAMES_PER_ANCHOR, config=ScaleConfig(**config)
    )


# --- one frame --------------------------------------------------------------------------------------


def test_weighted_median() -> None:
    assert weighted_median(np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 1.0])) == 2.0
    assert weighted_median(np.array([3.0, 1.0, 2.0]), np.array([5.0, 1.0, 1.0])) == 3.0


def test_both_readings_of_the_papers_weight() -> None:
    """The least squares that each stands for, solved by brute force."""
    rng = np.random.default_rng(0)
    a = rng.uniform(1, 8, (30, 40))
    b = TRUE_SCALE * a * np.exp(rng.normal(0, 0.2, a.shape))
    cases: list[tuple[Literal["sequence", "anchor"], np.ndarray]] = [("sequence", a), ("anchor", b)]
    for weight, inverse in cases:
        found = np.exp(frame_log_scale(a, b, config=ScaleConfig(method="paper", paper_weight=weight)))
        candidates = TRUE_SCALE * np.linspace(0.8, 1.3, 20001)
        w = 1 / inverse
        cost = candidates**2 * np.sum(w * a * a) - 2 * candidates * np.sum(w * a * b)
        assert found == pytest.approx(candidates[cost.argmin()], rel=5e-5)
    arithmetic = np.exp(frame_log_scale(a, b, config=ScaleConfig(method="paper", paper_weight="sequence")))
    harmonic = np.exp(frame_log_scale(a, b, config=ScaleConfig(method="paper", paper_weight="anchor")))
    assert arithmetic == pytest.approx(b.sum() / a.sum())
    assert harmonic < arithmetic  # a depth-weighted harmonic mean of ratios lies below the arithmetic one


def test_masks_infinities_and_sizes() -> None:
    a = np.full((90, 160), 2.0, np.float32)
    b = np.full((45, 80), 2.0 * TRUE_SCALE, np.float32)
    a[:30] = np.inf  # sky in the sequence
    b[:20] = np.inf  # sky in the anchor, larger
    a[60:70] = np.nan
    b[40:] = -1.0
    for method in ("robust", "paper"):
        found = frame_log_scale(a, b, config=ScaleConfig(method=method))
        assert found == pytest.approx(np.log(TRUE_SCALE), abs=1e-6)
    assert np.isnan(frame_log_scale(np.full((9, 16), np.nan), np.ones((9, 16))))
    almost = np.full((100, 100), np.nan)
    almost[:4] = 1.0  # 4 % valid
    assert np.isnan(frame_log_scale(almost, np.ones((100, 100))))


def test_confidence_and_nearness_decide() -> None:
    a = np.full((40, 40), 1.0)
    a[:, 20:] = 10.0
    b = a * TRUE_SCALE
    b[:, 20:] *= 3.0  # the far half is wrong
    assert frame_log_scale(a, b) == pytest.approx(np.log(TRUE_SCALE))
    far_is_trusted = np.where(a > 5, 1.0, 0.01)
    assert frame_log_scale(a, b, confidence=far_is_trusted) == pytest.approx(np.log(3 * TRUE_SCALE))


# --- a clip -----------------------------------------------------------------------------------------


def test_outliers_sky_and_an_invalid_first_frame_cost_less_than_two_percent() -> None:
    """The case of the requirements, from maps: 60 anchors, 30 % of them wrong by 1.5 to 2.5."""
    rng = np.random.default_rng(5)
    wrong = set(rng.choice(np.arange(1, 60), 18, replace=False).tolist())

    def depth(frame: int) -> np.ndarray:
        values = np.random.default_rng(frame).uniform(1, 6, (45, 80))
        values[:10] = np.inf
        return values

    def anchors():
        for k in range(60):
            noise = np.random.default_rng([9, k])
            factor = noise.uniform(1.5, 2.5) if k in wrong else np.exp(noise.normal(0, 0.05))
            anchor = TRUE_SCALE * factor * depth(16 * k) * np.exp(noise.normal(0, 0.1, (45, 80)))
            anchor[35:] = np.nan
            if k == 0:
                anchor[:] = np.nan
            yield AnchorFrame(frame=16 * k, depth_m=anchor)

    sequence = sequence_of(depth, 960)
    found = estimate_scale(sequence, anchors(), num_frames=960)
    assert found.model == "constant"
    assert found.metres_per_unit is not None
    np.testing.assert_allclose(found.metres_per_unit, TRUE_SCALE, rtol=0.02)
    assert np.isnan(found.raw[0])
    assert 38 <= found.num_frames_used <= 42
    assert found.p10 < TRUE_SCALE < found.p90
    assert found.cov > 0.2
    assert 0.03 < found.mad_log < 0.2
    assert found.sigma_log < 0.02
    paper = estimate_scale(sequence, anchors(), num_frames=960, config=ScaleConfig(method="paper"))
    assert paper.metres_per_unit is not None
    assert np.abs(paper.metres_per_unit / TRUE_SCALE - 1).max() > 0.1


def test_one_map_at_a_time() -> None:
    alive: list[weakref.ref] = []
    most = 0

    def count(array: np.ndarray) -> np.ndarray:
        nonlocal most
        alive.append(weakref.ref(array))
        most = max(most, sum(r() is not None for r in alive))
        return array

    def anchors():
        for k in range(20):
            yield AnchorFrame(frame=k, depth_m=count(np.full((45, 80), TRUE_SCALE)))

    estimate_scale(sequence_of(lambda frame: count(np.ones((45, 80))), 20), anchors(), num_frames=20)
    assert most <= 4  # a pair, and the pair before it until it is replaced


@pytest.mark.parametrize(
    ("count", "usable", "reason"),
    [
        (0, 0, "no_anchor_frames"),
        (10, 0, "too_few_usable"),
        (2, 2, "too_few_usable"),
        (20, 5, "too_few_usable"),
    ],
)
def test_no_scale_is_none_with_a_reason_and_never_one(count: int, usable: int, reason: str) -> None:
    log_raw = np.full(count, np.nan)
    log_raw[:usable] = 0.1
    found = fit_scale(np.arange(count), log_raw, num_frames=30)
    assert found.metres_per_unit is None
    assert found.value is None
    assert found.model == "none"
    assert found.reasons[0] == "no_metric_scale"
    assert found.reasons[1].startswith(reason)


def test_the_key_that_is_missing_for_metres_is_named(tmp_path: Path) -> None:
    """In the row, and in what the end of a run says of the reason."""
    for folder in ("images", "depth"):
        (tmp_path / folder).mkdir()
        for i in range(16):
            cv2.imwrite(str(tmp_path / folder / f"{i:06d}.png"), np.full((45, 80), 1000 + i, np.uint16))
    clip = ClipRef(
        clip_id="c1",
        source="test",
        original_id="c1",
        media_kind="images",
        media_path=tmp_path / "images",
        source_fps=16.0,
        given=GivenGeometry(depth_pattern=str(tmp_path / "depth/{frame:06d}.png")),
    )
    for anchor, keys in (
        ("none", "give depth_units_per_metre in the index"),
        ("given", "give anchor_depth_pattern and anchor_units_per_metre in the index"),
    ):
        config = AnnotateConfig.model_validate({"geometry": {"sequence": "given", "anchor": anchor}})
        row = annotate_clip(clip, config, mode="given_depth", recipe_hash="0" * 16)
        assert row.reasons[0] == "no_metric_scale", row.reason_details
        assert keys in row.reason_details[0]
    remedy = REASONS["no_metric_scale"].remedy
    for key in ("depth_pattern", "depth_units_per_metre", "anchor_depth_pattern", "anchor_units_per_metre"):
        assert f" {key}" in remedy
    assert REASONS["no_anchor_frames"].remedy == remedy


def test_declared_depth_is_kept_and_the_series_recorded() -> None:
    sequence = sequence_of(lambda frame: np.ones((9, 16)), 5, metres_per_unit=1.0)
    plain = estimate_scale(sequence, [], num_frames=5)
    assert plain.model == "declared"
    assert plain.metres_per_unit is not None
    assert plain.metres_per_unit.tolist() == [1.0] * 5
    seen = estimate_scale(sequence, [AnchorFrame(frame=2, depth_m=np.full((9, 16), 1.2))], num_frames=5)
    assert seen.model == "declared"
    assert seen.value == 1.0
    assert seen.raw == pytest.approx([1.2])


def test_frames_without_sequence_depth_and_wrong_frames() -> None:
    sequence = sequence_of(lambda frame: None if frame % 2 else np.ones((9, 16)), 20)
    anchors = [AnchorFrame(frame=k, depth_m=np.full((9, 16), 2.0)) for k in range(10)]
    found = estimate_scale(sequence, anchors, num_frames=20)
    assert found.value == pytest.approx(2.0)
    assert np.isnan(found.raw[1::2]).all()
    with pytest.raises(ValueError, match="outside"):
        estimate_scale(sequence, [AnchorFrame(frame=20, depth_m=np.ones((9, 16)))], num_frames=20)
    with pytest.raises(ValueError, match="twice"):
        estimate_scale(sequence, [anchors[0], anchors[0]], num_frames=20)


def test_the_papers_mean_forgets_by_the_frame() -> None:
    log_raw = np.log(np.array([1.0, 2.0, 2.0]))
    found = fit_scale(np.array([2, 3, 13]), log_raw, num_frames=20, config=ScaleConfig(method="paper"))
    assert found.metres_per_unit is not None
    second = 0.99 + 0.01 * 2.0
    third = 0.99**10 * second + (1 - 0.99**10) * 2.0
    expected = np.array([1.0] * 3 + [second] * 10 + [third] * 7)
    np.testing.assert_allclose(found.metres_per_unit, expected, rtol=1e-12)


# --- does it vary ---------------------------------------------------------------------------------


def models(make, *, runs: int = 30) -> list[str]:
    rng = np.random.default_rng(0)
    return [fit(make(rng)).model for _ in range(runs)]


def with_outliers(log_raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    wrong = rng.random(len(log_raw)) < 0.3
    return log_raw + np.where(wrong, np.log(rng.uniform(1.5, 2.5, len(log_raw))), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "correlation", "dirty"),
    [
        (11, 0.0, False),
        pytest.param(30, 0.0, False, marks=pytest.mark.thorough),
        (60, 0.6, False),
        (60, 0.0, True),
    ],
)
def test_constant_series_are_called_constant(n: int, correlation: float, dirty: bool) -> None:
    """Stated rate 1 %; 60 runs must not show more than 3 alarms (probability 0.3 % at the stated rate)."""

    def make(rng: np.random.Generator) -> np.ndarray:
        clean = series(n, rng, correlation=correlation)
        return with_outliers(clean, rng) if dirty else clean

    assert models(make, runs=60).count("constant") >= 57


@pytest.mark.slow
def test_frames_of_one_second_are_not_taken_for_a_drift() -> None:
    """Ten seconds of metric frames at 4 fps whose errors last two seconds: unpooled, a quarter looked like one."""
    frame = np.arange(0, 161, 4)
    rng = np.random.default_rng(5)
    found = [
        fit_scale(frame, series(41, rng, sigma=0.1, correlation=0.97**4), num_frames=161).model
        for _ in range(60)
    ]
    assert found.count("constant") >= 54


@pytest.mark.slow
def test_ten_percent_changes_are_found() -> None:
    ramp = np.log(1.1) * np.linspace(0, 1, 60)
    step = np.where(np.arange(60) < 25, 0.0, np.log(1.1))
    steps = models(lambda rng: series(60, rng, sigma=0.03) + step)
    assert steps.count("constant") <= 1
    assert steps.count("step") >= 24
    ramps = models(lambda rng: series(60, rng, sigma=0.03) + ramp)
    assert ramps.count("constant") <= 3
    assert ramps.count("slow_drift") >= 20


def test_values_follow_a_step_and_a_drift() -> None:
    rng = np.random.default_rng(3)
    step = np.where(np.arange(60) < 25, 0.0, np.log(1.1))
    found = fit(series(60, rng, sigma=0.02) + step)
    assert found.model == "step"
    assert found.metres_per_unit is not None
    np.testing.assert_allclose(found.metres_per_unit[: 24 * 16], TRUE_SCALE, rtol=0.015)
    np.testing.assert_allclose(found.metres_per_unit[27 * 16 :], 1.1 * TRUE_SCALE, rtol=0.015)
    assert found.mad_log < 0.03  # about the model, not about one number
    found = fit(series(60, rng, sigma=0.02) + np.log(1.2) * np.linspace(0, 1, 60))
    assert found.model == "slow_drift"
    assert found.metres_per_unit is not None
    truth = TRUE_SCALE * np.exp(np.log(1.2) * np.linspace(0, 1, 60))
    np.testing.assert_allclose(found.metres_per_unit[::16], truth, rtol=0.03)
    assert found.metres_per_unit[-1] == pytest.approx(
        found.metres_per_unit[59 * 16]
    )  # held after the last anchor


def test_a_change_too_small_to_matter_is_not_modelled() -> None:
    """0.5 % over the clip with almost no noise: certain, and not worth a model."""
    log_raw = series(60, np.random.default_rng(0), sigma=0.0005) + 0.005 * np.linspace(0, 1, 60)
    found = fit(log_raw)
    assert min(found.p_value) < 0.001
    assert found.model == "constant"


def test_the_same_series_gives_the_same_answer() -> None:
    log_raw = series(40, np.random.default_rng(1))
    first, second = fit(log_raw), fit(log_raw)
    assert first.p_value == second.p_value
    assert first.value == second.value


def test_a_short_clip_knows_less_of_its_metres_than_its_scatter_says() -> None:
    """Anchors within a second are wrong alike: that they agree says nothing. Over a minute it does."""

    def sigma(seconds: int, spread: float) -> float:
        frame = np.arange(0, 16 * seconds, max(1, 16 * seconds // 40))
        log_raw = spread * np.random.default_rng(3).standard_normal(len(frame))
        return fit_scale(frame, log_raw, num_frames=16 * seconds).total_sigma_log

    assert 0.1 < sigma(1, 0.001) < 0.13
    assert sigma(60, 0.001) < 0.08
    assert sigma(60, 0.001) < sigma(60, 0.3) < 0.13
