"""Image scores against a direct per-pixel computation and on constructed cases."""

from __future__ import annotations

import importlib.util
import itertools

import numpy as np
import pytest
from theodolite.dataset.cameras.rotations import so3_exp
from theodolite.dataset.metrics.image import (
    RevisitPair,
    load_function,
    load_scorer,
    lpips_alex,
    psnr_db,
    quality_drop,
    revisit_pairs,
    revisit_score,
    sharpness,
    ssim,
)

from ...typed import wrong


def _image(seed: int, shape: tuple[int, int] = (24, 30)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_psnr() -> None:
    a = _image(0) // 2
    assert psnr_db(a, a) == 100.0
    np.testing.assert_allclose(psnr_db(a, a + 5), 10 * np.log10(255**2 / 25))
    with pytest.raises(ValueError, match="uint8"):
        psnr_db(a, wrong(a.astype(np.float32)))


def test_ssim_equals_a_direct_window_by_window_computation() -> None:
    a, b = _image(1), _image(2)
    assert ssim(a, a) == pytest.approx(1.0)
    c1, c2 = 6.5025, 58.5225
    total = []
    for channel in range(3):
        x, y = (np.pad(i[..., channel].astype(float), 5, mode="symmetric") for i in (a, b))
        for r in range(24):
            for c in range(30):
                p, q = x[r : r + 11, c : c + 11], y[r : r + 11, c : c + 11]
                cov = ((p - p.mean()) * (q - q.mean())).mean()
                total.append(
                    ((2 * p.mean() * q.mean() + c1) * (2 * cov + c2))
                    / ((p.mean() ** 2 + q.mean() ** 2 + c1) * (p.var() + q.var() + c2))
                )
    np.testing.assert_allclose(ssim(a, b), np.mean(total), atol=1e-9)


def test_revisit_takes_the_closest_returns_and_an_injected_perceptual_distance() -> None:
    frames = [_image(i) for i in range(10)]
    frames[9] = frames[0]
    pairs = [RevisitPair(frame_a=0, frame_b=i, quality_score=10.0 - i) for i in range(1, 10)]
    score = revisit_score(
        frames, pairs, max_pairs=1, lpips=lambda a, b: float(np.abs(a.astype(int) - b).mean())
    )
    assert (score.psnr_db, score.lpips, score.num_pairs) == (100.0, 0.0, 1)
    assert score.ssim == pytest.approx(1.0)
    assert revisit_score(frames, pairs).num_pairs == 5
    assert revisit_score(frames, pairs).lpips is None
    with pytest.raises(ValueError, match="frame 12"):
        revisit_score(frames, [RevisitPair(frame_a=0, frame_b=12)])
    with pytest.raises(ValueError, match="no pair"):
        revisit_score(frames, [RevisitPair(frame_a=3, frame_b=3)])


def test_quality_drop_compares_first_and_last_window() -> None:
    scores = [70.0] * 160 + [50.0] * 641 + [66.5] * 160
    assert quality_drop(scores) == pytest.approx(3.5)
    with pytest.raises(ValueError, match="no two windows"):
        quality_drop(scores[:300])
    sharp = _image(3)
    assert sharpness(sharp) > 10 * sharpness(np.repeat(np.repeat(_image(3, (4, 5)), 8, 0), 8, 1))


def test_returns_of_a_camera_that_goes_and_comes_back() -> None:
    poses = np.tile(np.eye(4), (401, 1, 1))
    poses[:, 0, 3] = np.abs(np.linspace(-3, 3, 401))  # back at the start, at the end
    pairs = revisit_pairs(poses)
    assert pairs[0].frame_a + pairs[0].frame_b == 400
    assert pairs[0].quality_score == pytest.approx(0, abs=1e-9)
    for p in pairs:
        assert p.frame_b - p.frame_a >= 80
        assert abs(p.frame_a + p.frame_b - 400) * 6 / 400 <= 0.25 + 1e-9  # metres apart
    for p, q in itertools.combinations(pairs, 2):
        assert abs(p.frame_a - q.frame_a) > 16 or abs(p.frame_b - q.frame_b) > 16
    assert len(pairs) == 5
    turned = poses.copy()
    turned[200:, :3, :3] = so3_exp(np.array([0, 0.2, 0]))  # the same places, looking elsewhere
    assert revisit_pairs(turned) == ()
    assert revisit_pairs(poses[:80]) == ()


def test_scorers_by_name() -> None:
    assert load_scorer("sharpness") is sharpness
    assert load_scorer("statistics:mean")([1, 2, 3]) == 2
    for name, message in [
        ("vbench", "expected sharpness, lpips or package.module:function"),
        ("no_such_module:f", "no_such_module"),
        ("statistics:nothing", "has no function 'nothing'"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_scorer(name)


def test_functions_of_ones_own_are_told_of_by_what_they_are() -> None:
    assert load_function("statistics:mean", "--fixer x")([1, 2, 3]) == 2
    for name, message in [
        ("sharpness", "^--fixer x: expected package.module:function$"),
        ("no_such_module:f", "^--fixer x: No module named"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_function(name, "--fixer x")


@pytest.mark.skipif(importlib.util.find_spec("lpips") is not None, reason="lpips is installed")
def test_lpips_says_what_to_install() -> None:
    with pytest.raises(ImportError, match="pip install lpips"):
        lpips_alex()
    with pytest.raises(ValueError, match="pip install lpips"):
        load_scorer("lpips")
