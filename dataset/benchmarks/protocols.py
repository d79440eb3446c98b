"""Protocols of public sets: which sequences count, which figures, how they are aligned, and whose rules those are.

Poses are scored by `dataset/evaluation`, lenses by `dataset/metrics/lens.py`; here stands only what a set wants of
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..camera_files.match import Matching
from ..evaluation.score import METRICS
from .record import Metric

SetName = Literal["influx", "tum", "sintel", "kitti", "eth3d-slam"]
SETS: tuple[SetName, ...] = get_args(SetName)

AUC_LIMIT_M = 0.08
"""Largest ATE that counts in the area under the curve of ETH3D SLAM."""
EPE_LIMIT_PX = 300.0
"""End point error below which a point counts as right in InFlux's main figure, at 3424x2202 pixels."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a set is scored.

    Attributes:
        title, source: of the set, and where its rules stand.
        layouts: readers of `annotate/sources` that may be used for it.
        recipe: packaged recipe that runs it.
        metrics: in the order of tables; the first ones are the set's own.
        main: names of those that a terminal shows.
        sequences: ids that the protocol counts; None: all that lie there.
        ships_depth: it has depth that may be given to the run.
        matching: how true poses find their frames.
        trajectories: format in which the set takes trajectories: `tum`, `kitti` or None.
    """

    title: str
    source: str
    layouts: tuple[str, ...]
    recipe: str
    metrics: tuple[Metric, ...]
    main: tuple[str, ...]
    sequences: tuple[str, ...] | None = None
    ships_depth: bool = False
    matching: Matching = field(default_factory=Matching)
    trajectories: Literal["tum", "kitti"] | None = None


def _of_poses(*names: str) -> tuple[Metric, ...]:
    """Scores of `theodolite evaluate`."""
    known = {m.name: m for m in METRICS}
    found = (known[name] for name in names)
    return tuple(
        Metric(name=m.name, unit=m.unit, better="" if m.better == "1" else m.better, meaning=m.meaning)
        for m in found
    )


_POSES = _of_poses(
    *("ate_se3_m", "ate_sim3_m", "scale", "rpe_m", "rpe_sim3_m", "rpe_deg", "rotation_rmse_deg"),
    *("ate_se3_percent", "path_length_m", "covered_span", "focal_mape_percent"),
)

SINTEL_SEQUENCES = (
    *("alley_2", "ambush_4", "ambush_5", "ambush_6", "cave_2", "cave_4", "market_2", "market_5", "market_6"),
    *("shaman_3", "sleeping_1", "sleeping_2", "temple_2", "temple_3"),
)
"""The 14 in which the camera moves on no straight line: those of ParticleSfM, MonST3R, CUT3R and MegaSaM."""

_KITTI = (
    Metric(
        name="t_rel_percent",
        unit="%",
        better="less",
        meaning="Translation error over stretches of 100 to 800 m; the set's figure weighs every stretch alike.",
        weight="num_segments",
    ),
    Metric(
        name="r_rel_deg_per_100m",
        unit="deg/100m",
        better="less",
        meaning="Rotation error over the same stretches.",
        weight="num_segments",
    ),
    Metric(
        name="t_rel_sim3_percent",
        unit="%",
        better="less",
        meaning="t_rel_percent after scaling the prediction by `scale`, as methods without metres are compared.",
        weight="num_segments",
    ),
)

_ETH3D = tuple(
    Metric(
        name=f"auc_{kind}_cm",
        unit="cm",
        better="more",
        meaning=f"Area under the number of sequences with an ATE ({kind}) below a threshold, from 0 to"
        f" {100 * AUC_LIMIT_M:g} cm: the sum over sequences of what each stays below the limit; 0 where there is none.",
        total=True,
        absent=0.0,
    )
    for kind in ("se3", "sim3")
)


def _of_lenses() -> tuple[Metric, ...]:
    errors = (
        Metric(
            name=f"{name}_error_percent",
            unit="%",
            better="less",
            meaning=f"Mean absolute error of {name} over the true one, over the frames that have a prediction.",
            weight="num_frames",
        )
        for name in ("fx", "fy", "cx", "cy")
    )
    return (
        Metric(
            name="epe_below_300px_percent",
            unit="%",
            better="more",
            meaning="Share of points of frames that true and predicted lens put less than 300 px apart in the"
            " image; frames without a prediction count as wrong.",
            weight="num_truth",
            absent=0.0,
        ),
        *errors,
        Metric(
            name="epe_median_px",
            unit="px",
            better="less",
            meaning="Median over frames and points of how far apart true and predicted lens put the same ray.",
            weight="num_frames",
        ),
        Metric(
            name="distortion_median_px",
            unit="px",
            better="less",
            meaning="The same, of the distortion alone: focal length and principal point are the true ones.",
            weight="num_frames",
        ),
        Metric(
            name="focal_mape_percent",
            unit="%",
            better="less",
            meaning="Mean of the errors of fx and fy.",
            weight="num_frames",
        ),
    )


PROTOCOLS: Mapping[SetName, Protocol] = {
    "influx": Protocol(
        title="InFlux-Real",
        source="arXiv 2510.23589 (its table of baselines) and 2607.05389; github.com/princeton-vl/InFlux",
        layouts=("influx-real",),
        recipe="benchmarks/influx",
        metrics=_of_lenses(),
        main=(
            *("epe_below_300px_percent", "fx_error_percent", "fy_error_percent", "cx_error_percent"),
            *("cy_error_percent", "epe_median_px"),
        ),
    ),
    "tum": Protocol(
        title="TUM RGB-D",
        source="Sturm et al., IROS 2012; evo_ape and evo_rpe (translation, delta 1 frame)",
        layouts=("tum-rgbd", "tum-dynamics"),
        recipe="benchmarks/tum",
        metrics=_POSES,
        main=(
            "ate_se3_m",
            "ate_sim3_m",
            "scale",
            "rpe_sim3_m",
            "rpe_deg",
            "path_length_m",
            "focal_mape_percent",
        ),
        ships_depth=True,
        matching=Matching(max_difference_s=0.02),
        trajectories="tum",
    ),
    "sintel": Protocol(
        title="MPI Sintel",
        source="ATE, RPE trans and RPE rot of MonST3R (arXiv 2410.03825), CUT3R and MegaSaM: Sim(3), 14 sequences",
        layouts=("sintel-final", "sintel-clean"),
        recipe="benchmarks/sintel",
        metrics=_POSES,
        main=("ate_sim3_m", "rpe_sim3_m", "rpe_deg", "path_length_m", "focal_mape_percent"),
        sequences=SINTEL_SEQUENCES,
        ships_depth=True,
    ),
    "kitti": Protocol(
        title="KITTI odometry",
        source="Geiger et al., CVPR 2012; odometry development kit, evaluate_odometry.cpp",
        layouts=("kitti-odometry",),
        recipe="benchmarks/kitti",
        metrics=(*_KITTI, *_POSES),
        main=(
            *("t_rel_percent", "r_rel_deg_per_100m", "t_rel_sim3_percent", "ate_se3_m", "ate_sim3_m"),
            *("path_length_m", "focal_mape_percent"),
        ),
        sequences=tuple(f"{i:02d}" for i in range(11)),
        matching=Matching(rows="source"),
        trajectories="kitti",
    ),
    "eth3d-slam": Protocol(
        title="ETH3D SLAM",
        source="Schops et al., CVPR 2019; github.com/ETH3D/slam-evaluation",
        layouts=("eth3d-slam",),
        recipe="benchmarks/eth3d-slam",
        metrics=(*_ETH3D, *_POSES),
        main=("ate_se3_m", "ate_sim3_m", "scale", "rpe_deg", "path_length_m", "focal_mape_percent"),
        ships_depth=True,
        matching=Matching(interpolate=True),
        trajectories="tum",
    ),
}
