"""What a dataset looks like: `inspect` as text, and a report as one HTML file that needs no network."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..reading import ClipDataset, open_dataset
from ..storage.paths import as_path
from .clip import clip_section
from .inspect import row_of
from .overview import SORT_KEYS, Overview
from .page import page, toolbar
from .pictures import Pictures, Thumbnail
from .truth import Truth

# ---------------------------------------------------------------------------------------------------- HTML

FEW_CLIPS = 8
"""Up to here clips come first and distributions, small, last."""
_NO_PICTURES = (
    "No pictures: no clip's media were found. Their paths are relative to the source in the recipe beside the dataset, "
    "or to the current folder where there is none; --media-root names another one."
)


def write_report(
    path: str | Path,
    html_path: str | Path | None = None,
    *,
    truth: Mapping[str, Truth] | None = None,
    thumbnail: Thumbnail | None = None,
    pictures: Pictures | None = None,
    max_clips: int = 60,
    clip_ids: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write the report of a dataset folder, or of single clips, and return its path (`<path>/report.html` by
    default, for a Parquet file the one beside it).

    The head counts verdicts and reasons, lists the clips and shows distributions; below, clips in detail: all of them,
    or, beyond `max_clips`, those with truth, the worst and the best by reprojection error and scale spread, and
    rejected ones. Of few clips the details come first.

    Args:
        clip_ids: only these clips, without the head.
        truth: ground truth by clip id, overlaid where given; only that of clips in detail is asked for.
        thumbnail: gives a JPEG for a clip; see `thumbnail_from_media`.
        pictures: gives several along a clip; see `pictures_from_media`.
        notes: sentences for the head of the page.
    Raises:
        ValueError: nothing to read there, or no such clip.
    """
    clips = open_dataset(path)
    place = as_path(path)
    beside = place.with_suffix(".html") if place.is_file() else place / "report.html"
    target = beside if html_path is None else as_path(html_path)
    truth = truth or {}
    body: list[str] = []
    after: list[str] = []
    if clip_ids is None:
        chosen, total = _choose_clips(clips, truth, max_clips), len(clips)
        num_chosen = sum(map(len, chosen.values()))
        few = total <= FEW_CLIPS
        overview = Overview.of(clips)
        body.extend([overview.head(), *_notes(notes), overview.reasons()])
        if num_chosen > 1:
            body.append(toolbar(overview.statuses(), SORT_KEYS))
        if not few:
            body.extend(
                [overview.listing({c for ids in chosen.values() for c in ids}), overview.distributions()]
            )
        else:
            after.append(overview.distributions(small=True))
        if num_chosen < total:
            body.append(f'<p class="note">{num_chosen} of {total} clips in detail.</p>')
    else:
        chosen = {"": list(clip_ids)}
        body.extend(_notes(notes))
    title = place.name if clip_ids is None else ", ".join(clip_ids)
    for heading, ids in chosen.items():
        if not ids:
            continue
        body.append(f'<div class="group">{f"<h2>{heading}</h2>" if heading else ""}')
        body.extend(clip_section(row_of(clips, c), truth.get(c), thumbnail, pictures) for c in ids)
        body.append("</div>")
    if pictures is not None and any(chosen.values()) and not any("<img " in part for part in body):
        body.insert(0 if clip_ids is not None else 1, "".join(_notes([_NO_PICTURES])))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(f"Camera annotations: {title}", [*body, *after]), encoding="utf-8")
    return target


def _notes(notes: Sequence[str]) -> list[str]:
    return [f'<p class="note">{html.escape(note)}</p>' for note in notes]


def _choose_clips(clips: ClipDataset, truth: Mapping[str, Truth], max_clips: int) -> dict[str, list[str]]:
    """Clips to show in detail by heading, each once."""
    table = clips.to_table(["clip_id", "verdict", "reprojection_rms_px", "scale_mad_log"]).to_pylist()
    if len(table) <= max_clips:
        return {"Clips": [c["clip_id"] for c in table]}
    accepted = [c for c in table if c["verdict"] == "accepted"]

    def badness(c: dict) -> float:
        return (c["reprojection_rms_px"] or 0.0) * (1.0 + 10.0 * (c["scale_mad_log"] or 0.0))

    by_badness = [c["clip_id"] for c in sorted(accepted, key=badness, reverse=True)]
    share = max(1, max_clips // 3)
    groups = {
        "Clips with ground truth": [c["clip_id"] for c in table if c["clip_id"] in truth],
        "Worst accepted clips": by_badness[:share],
        "Best accepted clips": by_badness[: -share - 1 : -1],
        "Rejected and failed clips": [c["clip_id"] for c in table if c["verdict"] != "accepted"],
    }
    chosen: dict[str, list[str]] = {}
    picked: set[str] = set()
    for heading, ids in groups.items():
        new = [c for c in ids if c not in picked][: max_clips - len(picked)]
        chosen[heading] = new
        picked.update(new)
    return chosen
