"""The card of a published dataset: what is in it, under which licences, and how good it is."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from .escape import for_markdown
from .licences import find_licence
from .reading import ClipDataset
from .reasons import find_reason
from .schema_page import schema_markdown
from .store import DATA_FILES
from .text_table import markdown_table

Use = Literal["research", "commercial"]
MAX_LISTED = 10


_COLUMNS = (
    *("source", "verdict", "num_frames", "fps", "mode", "data_licence", "data_redistributable", "weights"),
    *("weight_licences", "recipe_hash", "package_version", "focal_model", "scale_model", "reasons"),
    *("reprojection_rms_px", "scale_mad_log", "path_length_m", "fov_x_min_rad", "fov_x_max_rad"),
    "focal_spread",
)
"""What a card counts."""


def dataset_card(clips: ClipDataset, *, name: str, use: Use = "research") -> str:
    """README.md of a published dataset: what it is, how it was made, counts, licences, quality, how to load it."""
    table = clips.to_table(list(_COLUMNS))
    rows = table.to_pylist()
    accepted = [r for r in rows if r["verdict"] == "accepted"]
    licences = sorted({r["data_licence"] for r in rows} | {x for r in rows for x in r["weight_licences"]})
    parts = [
        "---\n" + _yaml(_front_matter(rows)) + "---\n",
        f"# {for_markdown(name)}\n",
        _introduction(rows, accepted, use),
        "## How it was made\n",
        *_how_it_was_made(rows, accepted),
        "\n## Clips\n",
        _counts_table(rows),
        rejection_table(table),
        "## Licences\n",
        "Licences hold clip by clip (`data_licence`, `weight_licences`). Media that may not be passed on is not in "
        "this repository; `media` then names the clip at its source.\n",
        _licence_table(rows, licences),
        "## Quality of accepted clips\n",
        _quality_table(accepted),
        "## Load it\n",
        *_HOW_TO_LOAD,
        "## Columns\n",
        schema_markdown(),
    ]
    return "\n".join(parts)


def _front_matter(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the hub reads of a card."""
    sources = sorted({r["source"] for r in rows})
    return {
        "license": "other",
        "license_name": "per-clip",
        "task_categories": ["image-to-video", "depth-estimation"],
        "tags": ["camera-pose", "intrinsics", "metric", "video", "world-model", "theodolite"],
        "size_categories": [_size_category(len(rows))],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": DATA_FILES}]},
            *(
                {
                    "config_name": source,
                    "data_files": [{"split": "train", "path": f"data/{source}/**/*.parquet"}],
                }
                for source in sources
                if len(sources) > 1 and source != "default"
            ),
        ],
    }


def _introduction(rows: list[dict[str, Any]], accepted: list[dict[str, Any]], use: Use) -> str:
    hours = sum(r["num_frames"] / r["fps"] for r in accepted if r["fps"]) / 3600
    return (
        f"Metric cameras for {len(accepted)} video clips ({hours:.1f} h): for every frame a camera-to-world pose "
        "in metres, "
        "focal length and principal point in pixels, with uncertainty. The lens may zoom: each frame has its own focal "
        f"length. Rejected clips ({len(rows) - len(accepted)}) are kept as rows with their reasons."
        + (" Every clip's data and weights allow commercial use." if use == "commercial" else "")
        + "\n"
    )


def _how_it_was_made(rows: list[dict[str, Any]], accepted: list[dict[str, Any]]) -> list[str]:
    weights = Counter(w for r in rows for w in r["weights"]) or Counter({"none": len(rows)})
    return [
        _bullet_counts("Recipe hash", Counter(r["recipe_hash"] for r in rows)),
        _bullet_counts("theodolite", Counter(r["package_version"] for r in rows)),
        _bullet_counts("Mode", Counter(r["mode"] for r in rows)),
        _bullet_counts("Focal model", Counter(r["focal_model"] for r in accepted)),
        _bullet_counts("Scale model", Counter(r["scale_model"] for r in accepted)),
        _bullet_counts("Weights", weights),
    ]


_HOW_TO_LOAD = (
    "```python\nimport pyarrow.compute as pc\nimport theodolite.dataset\n\n"
    'clips = theodolite.dataset.open("OWNER/NAME")\n'
    'good = clips.where((pc.field("verdict") == "accepted") & (pc.field("reprojection_rms_px") < 1))\n'
    'row = clips.row(good.to_pandas(["clip_id"]).clip_id[0])\n'
    "row.camera_to_world  # (F, 4, 4), OpenCV axes, metres\nrow.intrinsics  # (F, 3, 3), pixels\n```\n",
    "Or without theodolite: any Parquet reader; `camera_to_world` is a flat list of 12 floats a frame "
    "(row-major 3x4).\n",
    "```python\nimport datasets\nimport numpy\n\n"
    'clips = datasets.load_dataset("OWNER/NAME", split="train")\n'
    'poses = numpy.float32(clips[0]["camera_to_world"]).reshape(-1, 3, 4)\n```\n',
)


def _yaml(values: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(values, sort_keys=False)


def _size_category(n: int) -> str:
    for limit, label in (
        (1e3, "n<1K"),
        (1e4, "1K<n<10K"),
        (1e5, "10K<n<100K"),
        (1e6, "100K<n<1M"),
        (1e7, "1M<n<10M"),
    ):
        if n < limit:
            return label
    return "10M<n<100M"


def _bullet_counts(label: str, counts: Counter[str]) -> str:
    return f"- {label}: " + ", ".join(
        f"{for_markdown(name)} ({n})" for name, n in counts.most_common(MAX_LISTED)
    )


def _counts_table(rows: list[dict[str, Any]]) -> str:
    sources = sorted({r["source"] for r in rows})
    body = []
    for source in sources:
        own = [r for r in rows if r["source"] == source]
        good = [r for r in own if r["verdict"] == "accepted"]
        hours = sum(r["num_frames"] / r["fps"] for r in good if r["fps"]) / 3600
        body.append([source, str(len(good)), str(len(own) - len(good)), f"{hours:.2f}"])
    return markdown_table(["source", "accepted", "rejected", "accepted hours"], body) + "\n"


def rejection_table(rows: pa.Table) -> str:
    """Every reason of a rejection with its clips, by source, and what it means.

    Args:
        rows: with the columns `source` and `reasons`.
    """
    found = Counter(
        (reason, source)
        for source, reasons in zip(rows["source"].to_pylist(), rows["reasons"].to_pylist(), strict=True)
        for reason in dict.fromkeys(reasons)
    )
    sources = sorted(set(rows["source"].to_pylist()))
    total = Counter[str]()
    for (reason, _), n in found.items():
        total[reason] += n
    body = [
        [name, str(n), *(str(found[name, s]) for s in sources), _meaning(name)]
        for name, n in total.most_common()
    ]
    return markdown_table(["rejection reason", "clips", *sources, "meaning"], body) + "\n" if body else ""


def _meaning(code: str) -> str:
    """What a reason says; nothing of one that this version does not know."""
    reason = find_reason(code)
    return "" if reason is None else reason.meaning


def source_licences(rows: pa.Table, kept: pa.Table) -> str:
    """Licences of data and weights of the clips that are kept, by source.

    Args:
        rows: with `clip_id`, `source`, `data_licence`, `weight_licences`, `data_redistributable`.
        kept: with `clip_id` and `kept`.
    """
    taken = {i for i, k in zip(kept["clip_id"].to_pylist(), kept["kept"].to_pylist(), strict=True) if k}
    counts: Counter[tuple[str, str, str]] = Counter()
    for row in rows.to_pylist():
        if row["clip_id"] in taken:
            kind = "data, may be passed on" if row["data_redistributable"] else "data"
            counts[row["source"], kind, row["data_licence"]] += 1
            counts.update((row["source"], "weights", name) for name in set(row["weight_licences"]))
    body = []
    for (source, kind, name), n in sorted(counts.items()):
        licence = find_licence(name)
        allowed = "unknown" if licence is None else "yes" if licence.commercial else "no"
        body.append([source, kind, name, str(n), allowed])
    return markdown_table(["source", "of", "licence", "clips", "commercial use"], body) + "\n"


def _licence_table(rows: list[dict[str, Any]], names: list[str]) -> str:
    body = []
    for name in names:
        licence = find_licence(name)
        as_data = sum(r["data_licence"] == name for r in rows)
        as_weights = sum(name in r["weight_licences"] for r in rows)
        passed_on = sum(r["data_licence"] == name and r["data_redistributable"] for r in rows)
        allowed = "unknown" if licence is None else "yes" if licence.commercial else "no"
        body.append([name, str(as_data), str(passed_on), str(as_weights), allowed])
    header = ["licence", "clips (data)", "of these redistributable", "clips (weights)", "commercial use"]
    return markdown_table(header, body) + "\n"


def _quality_table(accepted: list[dict[str, Any]]) -> str:
    body = []
    for label, values in (
        ("reprojection error, px", [r["reprojection_rms_px"] for r in accepted]),
        ("spread of log scale", [r["scale_mad_log"] for r in accepted]),
        ("path length, m", [r["path_length_m"] for r in accepted]),
        ("horizontal field of view (widest), deg", [_degrees(r["fov_x_max_rad"]) for r in accepted]),
        ("focal spread along the clip", [r["focal_spread"] for r in accepted]),
    ):
        x = np.array([v for v in values if v is not None], dtype=np.float64)
        if x.size:
            p = np.percentile(x, [5, 25, 50, 75, 95])
            body.append([label, *(f"{v:.4g}" for v in p), _bars(x)])
    return markdown_table(["", "p5", "p25", "median", "p75", "p95", "histogram p1 to p99"], body) + "\n"


def _degrees(value: float | None) -> float | None:
    return None if value is None else float(np.rad2deg(value))


def _bars(x: np.ndarray, *, bins: int = 16) -> str:
    """Histogram in one line of text."""
    low, high = np.percentile(x, [1, 99])
    if high <= low:
        return "█"
    count, _ = np.histogram(np.clip(x, low, high), bins=bins, range=(low, high))
    levels = " ▁▂▃▄▅▆▇█"
    return "".join(levels[int(np.ceil(8 * c / count.max()))] for c in count).replace(" ", "·")
