"""From a run's folder to a public dataset: checked, filtered by licence, with a card, uploaded in resumable
steps."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .escape import for_markdown
from .frames import media_path
from .licences import allows_commercial_use, find_licence, known_licences, unknown_licences
from .reading import ClipDataset, open_dataset
from .rows import Row
from .schema import schema_markdown
from .staging import staged
from .store import DATA_FILES, write_dataset
from .validate import validate_dataset

Use = Literal["research", "commercial"]
_MAX_LISTED = 10
_LOCAL_PATH = re.compile(r"(?<![\w/.])/(?:[^\s/:]+/)+([^\s/:]*)")
"""Absolute paths in messages, of which only the last part is published."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A staged folder, ready to upload.

    Attributes:
        folder: holds README.md, dataset.json, data/ and, where allowed, media/.
        num_clips: rows in it; left_out: rows that `use` does not allow.
        num_media: media files copied.
    """

    folder: Path
    num_clips: int
    left_out: int
    num_media: int


def stage_publication(
    path: str | Path,
    folder: str | Path,
    *,
    use: Use = "research",
    name: str | None = None,
    media_root: str | Path | None = None,
) -> Publication:
    """Write what would be published into an empty `folder`.

    Rows keep all columns except tracebacks, and messages lose the folders of absolute paths. Media that may
    not be passed on stays
    where it is: its row points to the source's own id. Redistributable videos of accepted clips are copied to
        `media/` if `media_root` is given.

    Args:
        use: `commercial` leaves out every row whose data or weights are not licensed for it.
        name: title of the card; the folder's name if None.
        media_root: folder to which relative media paths refer.
    Raises:
        ValueError: the dataset breaks an invariant (stand-in rows, missing licences and all others of
        `validate`), a
            licence is not in the table, nothing is left, or `folder` is not empty.
    """
    path, folder = Path(path), Path(folder)
    _num_rows, violations = validate_dataset(path)
    if violations:
        shown = "\n  ".join(str(v) for v in violations[:_MAX_LISTED])
        more = "" if len(violations) <= _MAX_LISTED else f"\n  and {len(violations) - _MAX_LISTED} more"
        raise ValueError(f"{path}: not fit to publish, {len(violations)} violations:\n  {shown}{more}")
    clips = open_dataset(path)
    _refuse_unknown_licences(clips)
    _ = clips.arrow  # rows then have the columns of all parts
    counts = {"left out": 0, "media": 0}
    with staged(folder) as staging:

        def public_rows() -> Iterator[Row]:
            for row in clips.rows():
                if use == "commercial" and not allows_commercial_use(row.data_licence, row.weight_licences):
                    counts["left out"] += 1
                    continue
                pointer, copied = _publish_media(row, staging, media_root)
                counts["media"] += copied
                details = tuple(_LOCAL_PATH.sub(r"\1", text) for text in row.reason_details)
                yield replace(row, error=None, media=pointer, reason_details=details)

        num_clips = write_dataset(staging, public_rows())
        if not num_clips:
            raise ValueError(f"{path}: no clip's data and weights allow {use} use; nothing to publish")
        (staging / "README.md").write_text(
            dataset_card(open_dataset(staging), name=name or path.stem, use=use), encoding="utf-8"
        )
    return Publication(
        folder=folder, num_clips=num_clips, left_out=counts["left out"], num_media=counts["media"]
    )


def _refuse_unknown_licences(clips: ClipDataset) -> None:
    unknown: Counter[str] = Counter()
    example: dict[str, str] = {}
    for row in clips.rows():
        for licence in unknown_licences(row):
            unknown[licence] += 1
            example.setdefault(licence, row.clip_id)
    if unknown:
        listed = ", ".join(f"{name!r} ({n} clips, e.g. {example[name]})" for name, n in unknown.most_common())
        known = ", ".join(licence.name for licence in known_licences())
        raise ValueError(
            f"{clips.path}: licence_present: licences that are not known: {listed}; the known ones are {known}"
        )


def _publish_media(row: Row, folder: Path, media_root: str | Path | None) -> tuple[str, int]:
    """Pointer for the public row, and the number of files copied."""
    if re.fullmatch(
        r"https?://[^\s@]+", row.media
    ):  # others (file:, with a password) say things of this machine
        return row.media, 0
    if (
        media_root is not None
        and row.data_redistributable
        and row.media_kind == "video"
        and row.verdict == "accepted"
    ):
        source = media_path(row, media_root)
        if not source.is_file():
            raise ValueError(
                f"clip {row.clip_id}: {source}: no such file; media_root must be where media paths start"
            )
        if not re.fullmatch(r"(\.[A-Za-z0-9]{1,10})?", source.suffix):
            raise ValueError(f"clip {row.clip_id}: {source}: no suffix of a video")
        target = folder / "media" / f"source={row.source}" / f"{row.clip_id}{source.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return str(target.relative_to(folder)), 1
    return f"{row.source}:{row.original_id}", 0  # a local path means nothing to others, and may name people


def dataset_card(clips: ClipDataset, *, name: str, use: Use = "research") -> str:
    """README.md of a published dataset: what it is, how it was made, counts, licences, quality, how to load
    it."""
    columns = [
        *(
            "source",
            "verdict",
            "num_frames",
            "fps",
            "mode",
            "data_licence",
            "data_redistributable",
            "weights",
        ),
        *("weight_licences", "recipe_hash", "package_version", "focal_model", "scale_model", "reasons"),
        *(
            "reprojection_rms_px",
            "scale_mad_log",
            "path_length_m",
            "fov_x_min_rad",
            "fov_x_max_rad",
            "focal_spread",
        ),
    ]
    rows = clips.to_table(columns).to_pylist()
    accepted = [r for r in rows if r["verdict"] == "accepted"]
    hours = sum(r["num_frames"] / r["fps"] for r in accepted if r["fps"]) / 3600
    licences = sorted({r["data_licence"] for r in rows} | {x for r in rows for x in r["weight_licences"]})
    sources = sorted({r["source"] for r in rows})
    front = {
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
                    "data_files": [{"split": "train", "path": f"data/{source}/*.parquet"}],
                }
                for source in sources
                if len(sources) > 1 and source != "default"
            ),
        ],
    }
    parts = [
        "---\n" + _yaml(front) + "---\n",
        f"# {for_markdown(name)}\n",
        f"Metric cameras for {len(accepted)} video clips ({hours:.1f} h): for every frame a camera-to-world pose "
        "in metres, "
        "focal length and principal point in pixels, with uncertainty. The lens may zoom: each frame has its own focal "
        f"length. Rejected clips ({len(rows) - len(accepted)}) are kept as rows with their reasons."
        + (" Every clip's data and weights allow commercial use." if use == "commercial" else "")
        + "\n",
        "## How it was made\n",
        _bullet_counts("Recipe hash", Counter(r["recipe_hash"] for r in rows)),
        _bullet_counts("theodolite", Counter(r["package_version"] for r in rows)),
        _bullet_counts("Mode", Counter(r["mode"] for r in rows)),
        _bullet_counts("Focal model", Counter(r["focal_model"] for r in accepted)),
        _bullet_counts("Scale model", Counter(r["scale_model"] for r in accepted)),
        _bullet_counts(
            "Weights", Counter(w for r in rows for w in r["weights"]) or Counter({"none": len(rows)})
        ),
        "\n## Clips\n",
        _counts_table(rows),
        _reasons_table(rows),
        "## Licences\n",
        "Licences hold clip by clip (`data_licence`, `weight_licences`). Media that may not be passed on is not in "
        "this repository; `media` then names the clip at its source.\n",
        _licence_table(rows, licences),
        "## Quality of accepted clips\n",
        _quality_table(accepted),
        "## Load it\n",
        "```python\nimport pyarrow.compute as pc\nimport theodolite.dataset\n\n"
        'clips = theodolite.dataset.open("OWNER/NAME")\n'
        'good = clips.where((pc.field("verdict") == "accepted") & (pc.field("reprojection_rms_px") < 1))\n'
        'row = clips.row(good.to_pandas(["clip_id"]).clip_id[0])\n'
        "row.camera_to_world  # (F, 4, 4), OpenCV axes, metres\nrow.intrinsics       # (F, 3, 3), pixels\n```\n",
        "Or without theodolite: any Parquet reader; `camera_to_world` is a flat list of 12 floats a frame "
        "(row-major 3x4).\n",
        "```python\nimport datasets\nimport numpy\n\n"
        'clips = datasets.load_dataset("OWNER/NAME", split="train")\n'
        'poses = numpy.float32(clips[0]["camera_to_world"]).reshape(-1, 3, 4)\n```\n',
        "## Columns\n",
        schema_markdown(),
    ]
    return "\n".join(parts)


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
        f"{for_markdown(name)} ({n})" for name, n in counts.most_common(_MAX_LISTED)
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escaped = ([for_markdown(cell) for cell in row] for row in rows)
    lines = ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *escaped)]
    return "\n".join(lines) + "\n"


def _counts_table(rows: list[dict[str, Any]]) -> str:
    sources = sorted({r["source"] for r in rows})
    body = []
    for source in sources:
        of = [r for r in rows if r["source"] == source]
        good = [r for r in of if r["verdict"] == "accepted"]
        hours = sum(r["num_frames"] / r["fps"] for r in good if r["fps"]) / 3600
        body.append([source, str(len(good)), str(len(of) - len(good)), f"{hours:.2f}"])
    return _table(["source", "accepted", "rejected", "accepted hours"], body)


def _reasons_table(rows: list[dict[str, Any]]) -> str:
    reasons = Counter(x for r in rows for x in r["reasons"])
    if not reasons:
        return ""
    return _table(["rejection reason", "clips"], [[name, str(n)] for name, n in reasons.most_common()])


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
    return _table(header, body)


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
    return _table(["", "p5", "p25", "median", "p75", "p95", "histogram p1 to p99"], body)


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


def publish(
    path: str | Path,
    repo_id: str,
    staging: str | Path,
    *,
    use: Use = "research",
    media_root: str | Path | None = None,
    private: bool = True,
    api: Any = None,
) -> tuple[Publication, str]:
    """Stage and upload to the Hugging Face hub; returns what was staged and the repository's address.

    The upload is the hub client's own resumable one. It needs a logged-in client (`hf auth login`).

    Args:
        repo_id: `owner/name`.
        staging: empty folder for the staged files.
        private: create the repository as private; make it public on the hub once looked through.
        api: a `huggingface_hub.HfApi`; the default one if None.
    Raises:
        ValueError: as `stage_publication`, or a repo id of another form.
    """
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise ValueError(f"repo id {repo_id!r}: expected owner/name")
    publication = stage_publication(path, staging, use=use, name=repo_id.split("/")[1], media_root=media_root)
    readme = publication.folder / "README.md"
    readme.write_text(readme.read_text(encoding="utf-8").replace("OWNER/NAME", repo_id), encoding="utf-8")
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    url = str(api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True))
    # Clients before 2.0 keep their resumable upload under a name of its own; later ones made it the normal
    # one.
    upload = getattr(api, "upload_large_folder", None) or api.upload_folder
    upload(repo_id=repo_id, repo_type="dataset", folder_path=str(publication.folder))
    return publication, url
