"""Scale estimators against known truth: error, false alarms and power.

    python benchmarks/scale_estimators.py [--runs 200]

Series are raw log ratios of one anchor a second (60 of them, 961 frames at 16 fps) or of every frame. Errors are RMS
over frames and runs, in percent of the true scale; wander is the median peak-to-peak of the estimate in percent.
"""

from __future__ import annotations

import argparse

import numpy as np
from theodolite.annotate.scale.records import ScaleConfig
from theodolite.annotate.scale.series import fit_scale

NUM_FRAMES = 961


def noise_series(rng: np.random.Generator, n: int, sigma: float, correlation: float) -> np.ndarray:
    """(n,) first-order autoregressive log noise."""
    noise = rng.standard_normal(n)
    for i in range(1, n):
        noise[i] = correlation * noise[i - 1] + np.sqrt(1 - correlation**2) * noise[i]
    return sigma * noise


def spoil(rng: np.random.Generator, x: np.ndarray, share: float, *, first_invalid: bool) -> np.ndarray:
    """The series with `share` of its values wrong by a factor of 1.5 to 2.5, and its first one missing."""
    wrong = rng.random(len(x)) < share
    x = x + np.where(wrong, np.log(rng.uniform(1.5, 2.5, len(x))), 0.0)
    if first_invalid:
        x[0] = np.nan
    return x


def estimators() -> dict[str, ScaleConfig]:
    return {
        "robust (default)": ScaleConfig(),
        "paper, EMA 0.99": ScaleConfig(method="paper"),
        "paper, EMA 0.90": ScaleConfig(method="paper", ema_momentum=0.9),
    }


def accuracy(runs: int) -> None:
    """Constant truth: what each estimator makes of noise, outliers and an invalid first frame."""
    print("constant truth: RMS error % (wander %)")
    print(f"{'series':58s}" + "".join(f"{name:>22s}" for name in estimators()))
    for label, step, sigma, correlation, share in (
        ("every frame, noise 10 % correlated 0.97", 1, 0.10, 0.97, 0.0),
        ("every frame, the same, 10 % outliers", 1, 0.10, 0.97, 0.1),
        ("1 fps, noise 5 %", 16, 0.05, 0.0, 0.0),
        ("1 fps, noise 5 %, 30 % outliers, first frame invalid", 16, 0.05, 0.0, 0.3),
        ("1 fps, noise 10 % correlated 0.6", 16, 0.10, 0.6, 0.0),
        ("1 fps, the same, 30 % outliers, first frame invalid", 16, 0.10, 0.6, 0.3),
    ):
        frame = np.arange(0, NUM_FRAMES, step)
        cells = []
        for config in estimators().values():
            rng = np.random.default_rng(0)
            errors, wander = [], []
            for _ in range(runs):
                x = noise_series(rng, len(frame), sigma, correlation)
                found = fit_scale(
                    frame,
                    spoil(rng, x, share, first_invalid=share > 0.2),
                    num_frames=NUM_FRAMES,
                    config=config,
                )
                assert found.metres_per_unit is not None
                errors.append(np.mean((found.metres_per_unit - 1) ** 2))
                wander.append(np.ptp(found.metres_per_unit))
            cells.append(f"{100 * np.sqrt(np.mean(errors)):.2f} ({100 * np.median(wander):.1f})")
        print(f"{label:58s}" + "".join(f"{c:>22s}" for c in cells))


def decisions(runs: int) -> None:
    """How often each model is chosen, at the stated significance of 1 %."""
    print("\nmodel chosen, % of runs: constant / slow_drift / step (truth: constant, 10 % step, 10 % drift)")
    for n, sigma, correlation, share in (
        (11, 0.05, 0.0, 0.0),
        (30, 0.05, 0.0, 0.0),
        (60, 0.05, 0.0, 0.0),
        (60, 0.03, 0.0, 0.0),
        (60, 0.05, 0.3, 0.0),
        (60, 0.05, 0.6, 0.0),
        (60, 0.05, 0.9, 0.0),
        (60, 0.05, 0.0, 0.3),
    ):
        frame = np.arange(n) * 16
        u = np.linspace(0, 1, n)
        rng = np.random.default_rng(1)
        cells = []
        for kind in ("constant", "step", "drift"):
            counts = {"constant": 0, "slow_drift": 0, "step": 0}
            for _ in range(runs):
                truth = {
                    "constant": np.zeros(n),
                    "step": np.where(u > rng.uniform(0.3, 0.7), np.log(1.1), 0.0),
                    "drift": np.log(1.1) * u,
                }[kind]
                x = spoil(rng, truth + noise_series(rng, n, sigma, correlation), share, first_invalid=False)
                counts[fit_scale(frame, x, num_frames=16 * n).model] += 1
            cells.append(" / ".join(f"{100 * c / runs:.0f}" for c in counts.values()))
        label = f"n {n}, noise {100 * sigma:.0f} %, correlation {correlation}, outliers {100 * share:.0f} %"
        print(f"{label:52s}" + "".join(f"{c:>18s}" for c in cells))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs
    accuracy(runs)
    decisions(runs)
