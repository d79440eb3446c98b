"""Filters by the quality of the pictures: thresholds on measured columns, applied whenever a dataset is read.

Rows keep what was measured, not what was decided: other thresholds need no model and no media. A threshold on something
that was not measured keeps nothing, since a missing number is no good number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as _compute
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import model_validator

from .inputs import InputError, parse_json, read_text
from .parquet import read_table
from .reading import ClipDataset
from .store import write_atomically
from .strict import Strict

pc: Any = _compute  # its functions are made at import, where no type checker sees them

Bounds = tuple[float | None, float | None]
"""Smallest and largest value that is kept, both included; null: no bound on that side."""


class Filters(Strict):
    """Thresholds of one source; what is left out is not looked at. Names are those of metrics in the rows."""

    vmaf_motion: Bounds | None = None
    """Motion as libvmaf defines it, on the clip's frames (16 a second)."""
    flow_px: Bounds | None = None
    """Mean length of the optical flow over half a second, pixels at the working width of the flow."""
    dover: Bounds | None = None
    """DOVER's fused score, 0 to 1."""
    saturation: Bounds | None = None
    """Mean saturation, 0 to 255."""
    duplicate_frames_share: Bounds | None = None
    """Share of frames that show what the frame before them shows, 0 to 1."""
    letterbox_share: Bounds | None = None
    """Share of the picture that black bars at its edges take."""
    black_frames_share: Bounds | None = None
    """Share of black frames: fades, leaders."""
    num_cuts: Bounds | None = None
    """Shot cuts inside the clip."""
    vlm_entities: Bounds | None = None
    """People, vehicles and animals that a vision-language model counts."""
    vlm_quality: Bounds | None = None
    """1 where a vision-language model finds the clip good, else 0."""

    @model_validator(mode="after")
    def _in_order(self) -> Filters:
        for name, (low, high) in self.items():
            if low is not None and high is not None and low > high:
                raise ValueError(f"{name}: the smallest value {low:g} is above the largest {high:g}")
        return self

    def items(self) -> Iterator[tuple[str, Bounds]]:
        """Metrics with a threshold."""
        for name in type(self).model_fields:
            if (bounds := getattr(self, name)) is not None:
                yield name, bounds


# --- applying them --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ThresholdReport:
    """What one threshold does to the accepted clips of a source.

    Attributes:
        missing: clips without the number; they are not kept.
        alone: clips that this threshold alone keeps.
        only: clips that it alone throws out, which all others keep.
    """

    name: str
    bounds: Bounds
    missing: int
    alone: int
    only: int


@dataclass(frozen=True, kw_only=True)
class SourceReport:
    """What the thresholds do to one source.

    Attributes:
        rows, accepted: clips, and those with accepted cameras.
        kept: accepted clips that all thresholds keep, and nothing else speaks against.
        thresholds: one each; empty where the source has none, and then every accepted clip is kept.
    """

    source: str
    rows: int
    accepted: int
    kept: int
    thresholds: tuple[ThresholdReport, ...]


@dataclass(frozen=True, kw_only=True)
class Filtered:
    """Every row of a dataset under thresholds.

    Attributes:
        table: `clip_id`, `source`, `kept`, and `filter_reasons`: `cameras_rejected`, `<metric>_missing`,
            `<metric>_low` and `<metric>_high`.
    """

    table: pa.Table
    sources: tuple[SourceReport, ...]


def apply_filters(
    dataset: ClipDataset,
    filters: Mapping[str, Filters],
    scores: pa.Table | None = None,
    *,
    against: Mapping[str, Sequence[str]] | None = None,
) -> Filtered:
    """Judge all rows of a dataset by the thresholds of their sources; no row is read beyond its numbers.

    Args:
        filters: by source; rows of others are judged by their cameras alone.
        scores: `clip_id` and further metrics by name, which take precedence over those in the rows.
        against: further reasons by clip id (`same_video.py`); a clip with one is not kept.
    Raises:
        ValueError: scores of a clip given twice.
    """
    names = sorted({name for each in filters.values() for name, _ in each.items()})
    clip_id, source, accepted, columns = _numbers(dataset, names)
    if scores is not None:
        _take_scores(columns, clip_id, scores)
    kept = accepted.copy()
    failing: list[tuple[NDArray[np.bool_], str]] = [(~accepted, "cameras_rejected")]
    further = _further(clip_id, against or {})
    spared = ~np.logical_or.reduce([np.zeros_like(kept), *(mask for mask, _ in further)])
    kept &= spared
    reports = []
    known: list[str] = source.chunk(0).dictionary.to_pylist() if source.num_chunks else []
    codes = np.concatenate([np.zeros(0, np.int32), *(np.asarray(chunk.indices) for chunk in source.chunks)])
    for name in sorted(set(known)):
        of_source = codes == known.index(name)
        passed: dict[str, NDArray[np.bool_]] = {}
        found = filters.get(name, Filters())
        for metric, (low, high) in found.items():
            values = columns[metric]
            missing = np.isnan(values)
            too_low = values < (-np.inf if low is None else low)
            too_high = values > (np.inf if high is None else high)
            for mask, word in ((missing, "missing"), (too_low, "low"), (too_high, "high")):
                failing.append((of_source & mask, f"{metric}_{word}"))
            passed[metric] = ~(missing | too_low | too_high)
        reports.append(_report(name, of_source, accepted, passed, found, columns, spared))
        for mask in passed.values():
            kept &= mask | ~of_source
    text = _reasons(failing + further, len(kept))
    judged = pa.table(
        {"clip_id": clip_id, "source": source.cast(pa.string()), "kept": kept, "filter_reasons": text}
    )
    return Filtered(table=judged, sources=tuple(reports))


def _numbers(
    dataset: ClipDataset, names: Sequence[str]
) -> tuple[pa.ChunkedArray, pa.ChunkedArray, NDArray[np.bool_], dict[str, NDArray[np.float64]]]:
    """Ids, sources (as dictionary), whether cameras were accepted, and metrics of all clips; of everything else that a
    row has no more than a batch is in memory."""
    ids: list[pa.Array] = []
    sources: list[pa.Array] = []
    accepted = [np.zeros(0, bool)]
    columns = {name: [np.zeros(0)] for name in names}
    for batch in dataset.narrow_batches(["clip_id", "source", "verdict", "metrics"]):
        ids.append(batch["clip_id"])
        sources.append(pc.dictionary_encode(batch["source"]))
        accepted.append(np.asarray(pc.equal(batch["verdict"], "accepted")))
        for name, values in metric_columns(batch["metrics"], names).items():
            columns[name].append(values)
    kind = pa.dictionary(pa.int32(), pa.string())
    return (
        pa.chunked_array(ids, pa.string()),
        pa.chunked_array(sources, kind).unify_dictionaries(),
        np.concatenate(accepted),
        {name: np.concatenate(values) for name, values in columns.items()},
    )


def _further(
    clip_id: pa.ChunkedArray, against: Mapping[str, Sequence[str]]
) -> list[tuple[NDArray[np.bool_], str]]:
    """Rows that each word speaks against."""
    ids = clip_id.to_pylist() if against else []
    words = sorted({word for reasons in against.values() for word in reasons})
    return [(np.array([word in against.get(i, ()) for i in ids], bool), word) for word in words]


def metric_columns(column: pa.ChunkedArray, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Chosen entries of the column `metrics` as arrays, NaN where a row does not have them."""
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    found = {name: np.full(len(lists), np.nan) for name in names}
    if not len(lists) or not names:
        return found
    rows = np.asarray(pc.list_parent_indices(lists))
    entries = pc.list_flatten(lists)
    values = np.asarray(pc.fill_null(pc.cast(pc.struct_field(entries, "value"), pa.float64()), np.nan))
    labels = pc.dictionary_encode(pc.struct_field(entries, "name"))
    if isinstance(labels, pa.ChunkedArray):
        labels = labels.combine_chunks()
    codes, known = np.asarray(labels.indices), labels.dictionary.to_pylist()
    for name in names:
        if name in known:
            chosen = codes == known.index(name)
            found[name][rows[chosen]] = values[chosen]
    return found


def _take_scores(columns: dict[str, NDArray[np.float64]], clip_id: pa.ChunkedArray, scores: pa.Table) -> None:
    ids = scores["clip_id"]
    if pc.count_distinct(ids).as_py() != len(ids):
        raise ValueError("scores: a clip is there twice")
    index = pc.index_in(clip_id, value_set=ids.combine_chunks())
    known = np.asarray(index.is_valid())
    place = np.asarray(pc.fill_null(index, 0), np.int64)
    for name in columns:
        if name in scores.column_names:
            values = np.asarray(pc.fill_null(pc.cast(scores[name], pa.float64()), np.nan))[place]
            given = known & ~np.isnan(values)
            columns[name][given] = values[given]


def _report(
    name: str,
    of_source: NDArray[np.bool_],
    accepted: NDArray[np.bool_],
    passed: dict[str, NDArray[np.bool_]],
    filters: Filters,
    columns: dict[str, NDArray[np.float64]],
    spared: NDArray[np.bool_],
) -> SourceReport:
    candidates = of_source & accepted
    everything = np.logical_and.reduce([candidates, spared, *passed.values()])
    thresholds = []
    for metric, bounds in filters.items():
        others = np.logical_and.reduce([candidates, *(mask for m, mask in passed.items() if m != metric)])
        thresholds.append(
            ThresholdReport(
                name=metric,
                bounds=bounds,
                missing=int((np.isnan(columns[metric]) & candidates).sum()),
                alone=int((passed[metric] & candidates).sum()),
                only=int((others & ~passed[metric]).sum()),
            )
        )
    return SourceReport(
        source=name,
        rows=int(of_source.sum()),
        accepted=int(candidates.sum()),
        kept=int(everything.sum()),
        thresholds=tuple(thresholds),
    )


def _reasons(reasons: Sequence[tuple[NDArray[np.bool_], str]], count: int) -> pa.Array:
    """List of words for each row, in the order of the thresholds."""
    each = np.zeros(count, np.int32)
    for mask, _ in reasons:
        each += mask
    offsets = np.concatenate([[0], np.cumsum(each)]).astype(np.int32)
    words, free = np.empty(int(offsets[-1]), np.int16), offsets[:-1].copy()
    for word, (mask, _) in enumerate(reasons):
        words[free[mask]] = word
        free[mask] += 1
    text = pa.DictionaryArray.from_arrays(pa.array(words), pa.array([word for _, word in reasons])).cast(
        pa.string()
    )
    return pa.ListArray.from_arrays(pa.array(offsets), text)


# --- scores of networks ---------------------------------------------------------------------------

_SIDECAR_KEYS = {
    "vmafmotion_score": "vmaf_motion",
    "unimatch_flow_score": "flow_px",
    "dover_score": "dover",
    "mean_video_saturation": "saturation",
    "entity_count": "vlm_entities",
    "quality_pass": "vlm_quality",
}
"""Names in NVIDIA's sidecars (NVlabs/Sana, sana_wm_zip_latent_data.py) -> ours."""


def read_scores(path: Path) -> pa.Table:
    """Scores by clip id: Parquet or CSV with `clip_id` and columns of our names, or one of NVIDIA's sidecars (JSON or
    JSON lines, `{key: {name: value}}`; lists are averaged, truth values are 1 and 0).

    Raises:
        ValueError: unreadable, without clip ids, or without a known metric.
    """
    try:
        if path.suffix == ".parquet":
            table = read_table(path)
        elif path.suffix == ".csv":
            table = pacsv.read_csv(
                path, convert_options=pacsv.ConvertOptions(column_types={"clip_id": pa.string()})
            )
        else:
            table = _sidecar(path)
    except (pa.ArrowInvalid, OSError, InputError) as error:
        raise ValueError(f"{path}: no readable scores ({str(error).splitlines()[0]})") from None
    known = [name for name in Filters.model_fields if name in table.column_names]
    if "clip_id" not in table.column_names or not known:
        raise ValueError(
            f"{path}: expected clip_id and some of {', '.join(Filters.model_fields)}; found"
            f" {', '.join(table.column_names)}"
        )
    return table.select(["clip_id", *known])


def _sidecar(path: Path) -> pa.Table:
    text = read_text(path)
    parts = [line for line in text.splitlines() if line.strip()] if path.suffix == ".jsonl" else [text]
    rows: list[dict[str, Any]] = []
    for part in (parse_json(part, path) for part in parts):
        if not isinstance(part, dict):
            raise ValueError(f"{path}: expected an object by clip")
        rows += [{"clip_id": key, **_own_names(stats)} for key, stats in part.items()]
    names = ["clip_id", *(ours for ours in _SIDECAR_KEYS.values() if any(ours in row for row in rows))]
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _own_names(stats: Any) -> dict[str, float]:
    found = {}
    for theirs, ours in _SIDECAR_KEYS.items():
        if isinstance(stats, dict) and stats.get(theirs) is not None:
            value = stats[theirs]
            found[ours] = float(np.mean(value)) if isinstance(value, list) else float(value)
    return found


def join_scores(tables: Sequence[pa.Table]) -> pa.Table | None:
    """One table of several; None of none. A number that two tables have of a clip is taken from the later one."""
    joined: pa.Table | None = None
    for table in tables:
        if joined is None:
            joined = table
            continue
        twice = [name for name in table.column_names if name != "clip_id" and name in joined.column_names]
        earlier = joined.rename_columns([f"earlier {n}" if n in twice else n for n in joined.column_names])
        both: pa.Table = earlier.join(table, "clip_id", join_type="full outer")
        for name in twice:
            later = pc.cast(both[name], pa.float64())
            values = pc.coalesce(later, pc.cast(both[f"earlier {name}"], pa.float64()))
            both = both.drop_columns([name, f"earlier {name}"]).append_column(name, values)
        joined = both
    return joined


def write_judgement(result: Filtered, out: Path) -> None:
    """Write a Parquet file with `clip_id`, `source`, `kept`, `filter_reasons`."""
    sink = pa.BufferOutputStream()
    pq.write_table(result.table, sink, compression="zstd")
    write_atomically(out, sink.getvalue())


def kept_clips(path: Path) -> set[str]:
    """Ids that a file of `theodolite filter` or `theodolite mix` keeps.

    Raises:
        ValueError: unreadable, or without the columns `clip_id` and `kept`.
    """
    table = read_table(path, ["clip_id", "kept"])
    if set(table.column_names) != {"clip_id", "kept"}:
        raise ValueError(f"{path}: has no columns clip_id and kept, as theodolite filter and mix write them")
    return set(table.filter(table["kept"])["clip_id"].to_pylist())
