"""Which clips of several datasets go into a training, and how much each source weighs.

All sources stand on one metric footing: a clip is taken if its cameras were accepted, its source's thresholds keep it,
and its translations are metres with a spread that is known and small enough. Why a clip is not taken is said clip by
clip, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from .extra import extra_scores
from .filters import Filters, apply_filters, join_scores
from .reading import ClipDataset
from .strict import Strict

ScaleSource = Literal["measured", "declared", "none"]
"""`measured`: against metric depth, with a spread; `declared`: the source says that it is metric; `none`: neither."""

_COLUMNS = (
    "clip_id",
    "source",
    "num_frames",
    "fps",
    "scale_model",
    "scale_mad_log",
    "metres_per_unit",
    "stand_in",
)
_ADDED = ("scale_source", "is_metric", "bridge_spread_log", "scale_sigma_log")
"""Columns that datasets of earlier versions lack."""


class Metric(Strict):
    """When translations count as metres."""

    required: bool = True
    """False: also clips whose scale is unknown, for a training that never uses metres."""
    most_spread_log: Annotated[float, Field(gt=0)] = 0.35
    """Largest spread of the measured log scale along a clip (`bridge_spread_log`, else `scale_mad_log`)."""
    trust_declared: bool = True
    """Take a source's word that its poses are metric."""


class SourceShare(Strict):
    """One source of a mixture."""

    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Share of the samples, in any unit; null: the hours of its clips that are taken."""
    filters: str | None = None
    """Recipe whose thresholds hold for it; null: those of the recipe beside the dataset."""


@dataclass(frozen=True, kw_only=True)
class SourceMix:
    """One source of a mixture, counted.

    Attributes:
        rows, accepted, kept, taken: clips; with accepted cameras; of these kept by the thresholds; of these on the
            metric footing.
        hours: of the clips that are taken.
        scale: of those, clips by where their scale is from.
        spread_log: median of their spread; None without a measured one.
        share: of the samples of a training, 0 to 1.
    """

    source: str
    rows: int
    accepted: int
    kept: int
    taken: int
    hours: float
    scale: Mapping[str, int]
    spread_log: float | None
    share: float


@dataclass(frozen=True)
class Mixed:
    """A mixture.

    Attributes:
        table: `clip_id`, `source`, `kept`, `mix_reasons`, `scale_source`, `scale_spread_log`, `is_metric`.
        sources: one each, sorted.
        reasons: why clips were not taken, by source, most frequent first.
    """

    table: pa.Table
    sources: tuple[SourceMix, ...]
    reasons: Mapping[str, Counter[str]]

    @property
    def weights(self) -> dict[str, float]:
        """Share of each source with clips, as `data.sources` of a training takes it."""
        return {s.source: round(s.share, 6) for s in self.sources if s.share > 0}


def mix(
    datasets: Sequence[ClipDataset],
    shares: Mapping[str, SourceShare],
    filters: Mapping[str, Filters],
    metric: Metric,
) -> Mixed:
    """Judge every clip of several datasets.

    Args:
        shares: by source; rows of another source are an error, so that none comes in unseen.
        filters: thresholds by source.
    Raises:
        ValueError: a source without a share, a clip in two datasets, or no clip that is taken.
    """
    table = pa.concat_tables([_judged(clips, filters, metric) for clips in datasets])
    _check(table, shares)
    sources = []
    reasons: dict[str, Counter[str]] = {}
    taken_hours: dict[str, float] = {}
    for name in sorted(set(table["source"].to_pylist())):
        rows = table.filter(pa.array([s == name for s in table["source"].to_pylist()]))
        found = _counted(name, rows)
        sources.append(found)
        reasons[name] = Counter(r for rs in rows["mix_reasons"].to_pylist() for r in rs)
        weight = shares[name].weight
        taken_hours[name] = (found.hours if weight is None else weight) if found.taken else 0.0
    total = sum(taken_hours.values())
    if not total:
        raise ValueError("no clip is taken: " + _most_frequent(reasons))
    shared = tuple(_with_share(s, taken_hours[s.source] / total) for s in sources)
    return Mixed(table.drop_columns(["hours", "accepted", "passed"]), shared, reasons)


def _judged(clips: ClipDataset, filters: Mapping[str, Filters], metric: Metric) -> pa.Table:
    """All clips of one dataset with what speaks against each."""
    names = [*_COLUMNS, *(c for c in _ADDED if c in clips.columns)]
    table = clips.to_table(names)
    result = apply_filters(clips, filters, join_scores(extra_scores(clips.path))).table
    found = dict(zip(result["clip_id"].to_pylist(), result["filter_reasons"].to_pylist(), strict=True))
    rows: list[dict[str, Any]] = []
    for row in table.to_pylist():
        why = list(found[row["clip_id"]])
        scale = scale_source(row)
        footing = _footing(row, scale, metric)
        rows.append(
            {
                "clip_id": row["clip_id"],
                "source": row["source"],
                "kept": not why and not footing,
                "mix_reasons": [*why, *footing],
                "scale_source": scale,
                "scale_spread_log": _spread_log(row) if scale == "measured" else row["scale_mad_log"],
                "is_metric": not _footing(row, scale, Metric()),
                "hours": row["num_frames"] / row["fps"] / 3600 if row["fps"] else 0.0,
                "accepted": "cameras_rejected" not in why,
                "passed": not why,
            }
        )
    return pa.Table.from_pylist(rows, _SCHEMA)


_SCHEMA = pa.schema(
    {
        "clip_id": pa.string(),
        "source": pa.string(),
        "kept": pa.bool_(),
        "mix_reasons": pa.list_(pa.string()),
        "scale_source": pa.string(),
        "scale_spread_log": pa.float64(),
        "is_metric": pa.bool_(),
        "hours": pa.float64(),
        "accepted": pa.bool_(),
        "passed": pa.bool_(),
    }
)


_KINDS: Mapping[str, ScaleSource] = {
    "declared_poses": "declared",
    "declared_depth": "declared",
    "metric_anchor": "measured",
    "bridge": "measured",
    "depth_under_poses": "measured",
    "none": "none",
}
"""By the column `scale_source`."""


def _spread_log(row: Mapping[str, Any]) -> float | None:
    """Spread of what the metres of a row were measured by: windows of a bridge, else single frames; where depth that
    the source calls metric was seen from given poses, the standard error is all there is."""
    for name in ("bridge_spread_log", "scale_mad_log", "scale_sigma_log"):
        value = row.get(name)
        if value is not None and not np.isnan(value):
            return float(value)
    return None


def scale_source(row: Mapping[str, Any]) -> str:
    """Where a row's metres are from: as it says itself, else by its scale model (see `ScaleSource`)."""
    said = row.get("scale_source")
    if said is not None:
        return _KINDS[said]
    if row["scale_model"] == "declared":
        return "declared"
    known = row["scale_model"] != "none" and row["metres_per_unit"] is not None
    return "measured" if known else "none"


def _footing(row: Mapping[str, Any], scale: str, metric: Metric) -> list[str]:
    """What speaks against a row's metres."""
    if row["stand_in"]:
        return ["stand_in"]
    if not metric.required:
        return []
    if scale == "none":
        return ["scale_unknown"]
    if row.get("is_metric") is False:
        return ["not_metric"]
    if scale == "declared":
        return [] if metric.trust_declared else ["scale_only_declared"]
    spread = _spread_log(row)
    if spread is None:
        return ["scale_spread_unknown"]
    return ["scale_spread_high"] if spread > metric.most_spread_log else []


def _check(table: pa.Table, shares: Mapping[str, SourceShare]) -> None:
    unknown = sorted(set(table["source"].to_pylist()) - shares.keys())
    if unknown:
        raise ValueError(
            f"the recipe of the mixture has no source {', '.join(unknown)}; give it a weight, 0 for none"
        )
    twice = [i for i, n in Counter(table["clip_id"].to_pylist()).items() if n > 1]
    if twice:
        raise ValueError(f"clip {twice[0]} (of {len(twice)}) is in two of the datasets")


def _counted(name: str, table: pa.Table) -> SourceMix:
    kept = table.filter(table["kept"])
    spread = np.array([x for x in kept["scale_spread_log"].to_pylist() if x is not None], np.float64)
    return SourceMix(
        source=name,
        rows=table.num_rows,
        accepted=sum(table["accepted"].to_pylist()),
        kept=sum(table["passed"].to_pylist()),
        taken=kept.num_rows,
        hours=float(sum(kept["hours"].to_pylist())),
        scale=dict(sorted(Counter(kept["scale_source"].to_pylist()).items())),
        spread_log=float(np.median(spread)) if spread.size else None,
        share=0.0,
    )


def _with_share(source: SourceMix, share: float) -> SourceMix:
    return SourceMix(**{**vars(source), "share": share})


def _most_frequent(reasons: Mapping[str, Counter[str]]) -> str:
    total: Counter[str] = sum(reasons.values(), Counter())
    return ", ".join(f"{name} ({n})" for name, n in total.most_common(8)) or "there are none with a weight"
