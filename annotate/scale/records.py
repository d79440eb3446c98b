"""What is asked of the scale, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...dataset.arrays import F64
from ...dataset.reasons import ReasonCode
from ...dataset.strict import Strict
from ...dataset.words import ScaleModel

_DECLARED_SIGMA, _ANCHOR_SIGMA = 0.01, 0.07
"""Error that all depth of a clip has in common, which no scatter shows: of a sensor, and of a network's metres."""

_FRAME_SIGMA, _ALIKE_FRAMES = 0.1, 32
"""Error of the metres of a single image, as the simulation assumes it, and clip frames after which it has mostly become
another one."""


class ScaleConfig(Strict):
    """How raw ratios become a scale."""

    method: Literal["robust", "paper"] = "robust"
    """`robust`: weighted medians and a tested model. `paper`: weighted least squares and an exponential mean
    (arXiv 2605.15178, appendix B.1)."""
    paper_weight: Literal["anchor", "sequence"] = "anchor"
    """Which depth the paper's inverse-depth weight inverts; its text leaves that open."""
    ema_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Paper method: weight of the previous frame's scale, per clip frame (over a gap of g frames: its g-th power)."""
    min_valid_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    """A frame counts only if at least this share of its pixels is valid in both maps."""
    min_frames: Annotated[int, Field(ge=1)] = 3
    """Usable anchor frames below which there is no scale."""
    min_usable_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of the anchor frames that must be usable."""
    outlier_mads: Annotated[float, Field(gt=1)] = 4.0
    """Frames further than this many robust standard deviations from the model are dropped."""
    significance: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    """Probability of taking a constant scale for a varying one (all alternatives together)."""
    test_spacing: Annotated[int, Field(ge=1)] = 16
    """Clip frames. For that test, ratios closer together than this are pooled: frames of less than a second err so much
    alike that no short series tells their likeness from a drift."""
    min_change: Annotated[float, Field(ge=0)] = 0.03
    """Smallest change of log scale over a clip that is worth modelling."""
    max_samples: Annotated[int, Field(ge=100)] = 20_000
    """Pixels compared in a frame, on a regular grid."""


class BridgeConfig(Strict):
    """How given poses of unknown unit come to metres."""

    window_s: Annotated[float, Field(gt=0)] = 2.0
    """Length of a window, at least; windows hold five poses of the network or more."""
    min_inlier_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of a window's poses that must fit its similarity."""
    max_window_sigma_log: Annotated[float, Field(gt=0)] = 0.15
    """Standard error of a window's log unit above which it says nothing: the camera hardly moves in it."""
    min_windows: Annotated[int, Field(ge=2)] = 3
    """Windows that must say something; with fewer there is no consensus."""


@dataclass(frozen=True, kw_only=True)
class ScaleEstimate:
    """Scale of a clip, with everything needed to judge it.

    Attributes:
        metres_per_unit: (F,) scale of every clip frame, or None if there is none (`reasons` says why); never 1.0
            for want of something better.
        model: `constant`, `slow_drift`, `step`, `declared` by the source, or `none`.
        frame: (n,) clip frames of the anchors.
        raw: (n,) metres per unit of each anchor frame on its own; NaN where a frame gave none.
        mad_log: 1.4826 x median absolute deviation of log raw scale about the model; NaN without a series.
        sigma_log: standard error of the log scale (autocorrelation of the series included); NaN without a series.
        p10, p90: percentiles of `raw`.
        cov: standard deviation over mean of `raw`, outliers included (the paper's gate).
        num_frames_used: anchor frames that were neither unusable nor outliers.
        p_value: (linear drift, smooth drift, step) under a constant scale; 1.0 where not tested.
        reasons: stable codes of what prevented a scale (`no_metric_scale` first, then why).
    """

    metres_per_unit: F64 | None
    model: ScaleModel
    frame: NDArray[np.int64]
    raw: F64
    mad_log: float
    sigma_log: float
    p10: float
    p90: float
    cov: float
    num_frames_used: int
    p_value: tuple[float, float, float] = (1.0, 1.0, 1.0)
    reasons: tuple[ReasonCode, ...] = ()

    @property
    def value(self) -> float | None:
        """Metres per unit of the clip: the median over its frames."""
        return None if self.metres_per_unit is None else float(np.median(self.metres_per_unit))

    @property
    def common_sigma_log(self) -> float:
        """Standard deviation of the log scale that no scatter shows: what all depth of the clip has in common."""
        return _DECLARED_SIGMA if self.model == "declared" else _ANCHOR_SIGMA

    @property
    def neighbours_sigma_log(self) -> float:
        """Standard deviation of the log scale by what anchors within two seconds or so have wrong in common.

        A clip that is no longer than that shows no scatter of it: its frames are all wrong alike. What a frame errs by
        is then the usual, and the clip's own scatter the more the longer it is.
        """
        frame = self.frame[np.isfinite(self.raw)].astype(np.float64)
        if not len(frame):
            return float("nan")
        alike = float(np.exp(-np.abs(frame[:, None] - frame) / _ALIKE_FRAMES).mean())
        further = 1 / alike - 1  # independent frames, beside one
        seen = np.nan_to_num(self.mad_log) ** 2 / max(1 - alike, 1e-9)
        return float(np.sqrt((_FRAME_SIGMA**2 + further * seen) / (1 + further) * alike))

    @property
    def total_sigma_log(self) -> float:
        """Standard deviation of the log scale, all of it."""
        if self.model == "declared":
            return _DECLARED_SIGMA
        own = max(np.nan_to_num(self.sigma_log), np.nan_to_num(self.neighbours_sigma_log))
        return float(np.hypot(_ANCHOR_SIGMA, own))
