"""Commands for a dataset, from `validate` to `publish`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..command import Outcome
from .options import Dataset, MediaRoot, Sets, Stored, Times, one_of

if TYPE_CHECKING:
    from ...dataset.card import Use
    from ...dataset.filters import Filtered
    from ...dataset.same_video import SameVideo
    from ..loader import FiltersBeside, Recipe


def _media_root_if_known(path: Path) -> Path | None:
    """Where the recipe beside a dataset says that its media lie; None without one."""
    if not (path / "recipe.resolved.yaml").is_file():
        return None
    from ..loader import media_root_of_dataset

    return media_root_of_dataset(path)


def validate(path: Stored) -> Outcome:
    """Prove every promise that a dataset makes; names each row and rule that does not hold.

    Example: theodolite validate runs/rgbd
    """
    from ...dataset.processes import num_cores
    from ...dataset.validate import changed_media, unknown_licences, validate_dataset

    num_rows, violations = validate_dataset(path, processes=num_cores())
    lines = [str(v) for v in violations]
    if violations:
        rules = sorted({v.rule for v in violations})
        lines.append(f"{path}: {num_rows} rows read, {len(violations)} violations of {', '.join(rules)}")
    else:
        lines.append(f"{path}: {num_rows} rows, every invariant holds")
        if unnamed := unknown_licences(path):
            lines.append(
                f"note: the licence of {unnamed} clips' media is unknown, so they cannot be published; annotate with"
                " --set source.data_licence=NAME, or data_licence in the index, to name it"
            )
    media_root = _media_root_if_known(path)
    if media_root is not None and (changed := changed_media(path, media_root)):
        lines.append(
            f"note: the media of {len(changed)} clips changed after they were annotated, e.g. {', '.join(changed[:3])};"
            " annotate --retry-failed all tries those that failed again, the others only a new --out"
        )
    return "\n".join(lines), 1 if violations else 0


def compact(
    path: Stored,
    part_mb: Annotated[
        int, typer.Option("--part-mb", min=1, help="Size of a gathered part; parts above half of it stay.")
    ] = 64,
) -> Outcome:
    """Gather the small parts of a dataset into larger ones, while nothing writes to it; rows stay what they are.

    Example: theodolite compact runs/rgbd
    """
    from ...dataset.compact import compact as gather
    from ...dataset.limits import MIB
    from ...dataset.processes import num_cores

    done = gather(path, part_bytes=part_mb * MIB, processes=num_cores())
    return f"{path}: {done.num_before} parts became {done.num_after}; {done.num_clips} clips", 0


def inspect(
    path: Dataset,
    clip: Annotated[str | None, typer.Option("--clip", help="Show everything about one clip.")] = None,
) -> Outcome:
    """Show a dataset as a table, or one clip in full.

    Example: theodolite inspect runs/rgbd --clip office
    """
    from ...dataset.report.inspect import inspect_text

    return inspect_text(path, clip_id=clip, media_root=_media_root_if_known(path)), 0


def report(
    path: Dataset,
    html: Annotated[
        Path | None, typer.Option("--html", help="File to write; default DIR/report.html.")
    ] = None,
    max_clips: Annotated[int, typer.Option("--max-clips", min=1, help="Clips shown in detail.")] = 60,
    clips: Annotated[
        list[str] | None,
        typer.Option("--clip", help="Only this clip, without the whole dataset; may be given often."),
    ] = None,
    truth: Annotated[
        bool,
        typer.Option("--truth/--no-truth", help="Overlay the ground truth that the recipe's source names."),
    ] = True,
    truth_from: Annotated[
        Path | None,
        typer.Option("--truth-from", help="Ground truth from here instead: anything that `evaluate` reads."),
    ] = None,
    media_root: MediaRoot = None,
    *,
    times: Times,
) -> Outcome:
    """Write one HTML file that shows trajectories, focal lengths, scale, residuals and gates.

    Example: theodolite report runs/rgbd --html rgbd.html
    """
    from ...dataset.report.pictures import pictures_from_media, thumbnail_from_media
    from ...dataset.report.write import write_report
    from ..truth import report_sources

    if media_root is not None and not media_root.is_dir():
        raise ValueError(f"--media-root {media_root}: no such folder")
    sources = report_sources(path, truth=truth, truth_from=truth_from, matching=times.matching())
    root = media_root or sources.media_root
    target = write_report(
        path,
        html,
        truth=sources.truth,
        thumbnail=thumbnail_from_media(root),
        pictures=pictures_from_media(root),
        max_clips=max_clips,
        clip_ids=clips,
        notes=sources.notes,
    )
    lines = [f"report: {target}", f"pictures: from {root.absolute()}"]
    return "\n".join([*lines, *(f"note: {note}" for note in sources.notes)]), 0


def export(
    path: Dataset,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    style: Annotated[
        str,
        typer.Option(
            "--format",
            help="colmap, colmap-text, nerfstudio, tum, kitti, sana-npy, rerun, sana-zip, webdataset, lerobot or "
            "huggingface.",
        ),
    ],
    clips: Annotated[
        list[str] | None, typer.Option("--clip", help="Only these clips; may be given often.")
    ] = None,
    source: Annotated[str | None, typer.Option("--source", help="Only this source.")] = None,
    media_root: Annotated[
        Path | None,
        typer.Option(
            "--media-root",
            help="Folder that media paths are relative to; colmap and nerfstudio then carry pictures and points, "
            "webdataset and lerobot a video of each clip, rerun both.",
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--where", help='Only clips for which this holds, e.g. "reprojection_rms_px < 1".'),
    ] = None,
    undistort: Annotated[
        bool,
        typer.Option(
            "--undistort",
            help="Pictures as the row's pinhole cameras would have taken them, cameras without distortion.",
        ),
    ] = False,
) -> Outcome:
    """Write the accepted clips in the format of another tool: whole, or nothing.

    Example: theodolite export runs/rgbd --format colmap --out exports/colmap --clip office
    """
    from ...dataset.export import SCENES, PictureOptions, export_dataset

    points = None
    if media_root is not None and style in (*SCENES, "rerun"):
        from ...annotate.sfm.scene_points import observed_points as points
    written = export_dataset(
        path,
        out,
        format=style,
        clip_ids=clips,
        source=source,
        where=where,
        media_root=media_root,
        pictures=PictureOptions(points=points, undistort=undistort),
    )
    return "\n".join([f"{written.num_clips} clips as {style}: {out}", *written.notes]), 0


def subset(
    path: Dataset,
    where: Annotated[
        str,
        typer.Option(
            "--where",
            help="Condition on columns: =, !=, <, <=, >, >=, in (...), is null, and, or, not, parentheses.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Absent or empty folder to write.")],
) -> Outcome:
    """Write the clips for which a condition holds, rejected ones too, as a dataset of their own.

    Example: theodolite subset runs/rgbd --where "verdict = 'accepted' and num_frames > 160" --out runs/some
    """
    from ...dataset.export import write_subset

    count, total = write_subset(path, out, where=where)
    return f"{count} of {total} clips: {out}", 0


def filter_(
    path: Dataset,
    recipes: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe",
            help="Recipe whose section `filters` is for the rows of its source; may be given often. Default: the one "
            "beside the dataset.",
        ),
    ] = None,
    overrides: Sets = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            "--scores",
            help="Further metrics by clip_id: Parquet, CSV, or a sidecar of SANA-WM's zips; may be given often. Those "
            "that `theodolite score` added are taken anyhow.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Parquet file to write: clip_id, source, kept, filter_reasons."),
    ] = None,
    same_video: Annotated[
        bool,
        typer.Option(
            "--same-video", help="Throw out clips that contradict others of their video (integrity)."
        ),
    ] = False,
) -> Outcome:
    """Judge a dataset by thresholds on its metrics, which runs no model; says what each threshold keeps.

    Example: theodolite filter runs/mira --scores dover.json --out kept.parquet
    """
    from ...dataset.extra import extra_scores
    from ...dataset.filters import Filters, apply_filters, join_scores, read_scores, write_judgement
    from ...dataset.reading import open_dataset
    from ...dataset.same_video import check_videos
    from ..loader import FiltersBeside, load_recipe, recipe_beside

    dataset = open_dataset(path)
    loaded: list[Recipe | FiltersBeside] = [load_recipe(name, overrides or ()) for name in recipes or ()]
    if not recipes:
        beside = recipe_beside(path, FiltersBeside, overrides or ())
        if beside is None:
            raise ValueError(f"{path}: no recipe lies beside it; name one with --recipe")
        loaded.append(beside)
    filters = {recipe.source.name: recipe.filters or Filters() for recipe in loaded}
    found = join_scores([*extra_scores(path), *(read_scores(file) for file in scores or ())])
    against, words = None, ""
    if same_video:
        compared = check_videos(dataset)
        against = dict(
            zip(compared.table["clip_id"].to_pylist(), compared.table["reasons"].to_pylist(), strict=True)
        )
        words = _same_video_text(compared) + "\n"
    result = apply_filters(dataset, filters, found, against=against)
    text = words + _thresholds_text(result)
    absent = sorted(set(filters) - {source.source for source in result.sources})
    text += "".join(f"\n{name}: no clip here; its thresholds were not used" for name in absent)
    if out is not None:
        write_judgement(result, out)
        text += f"\nwritten: {out} (clip_id, source, kept, filter_reasons)"
    return text, 0


def integrity(
    path: Dataset,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Parquet file to write: what is found of each clip, with its reasons."),
    ] = None,
) -> Outcome:
    """Compare the clips of each source video: do they share one lens and one scale?

    Example: theodolite integrity runs/sekai-game --out same-video.parquet
    """
    from ...dataset.reading import open_dataset
    from ...dataset.same_video import check_videos, write_same_video

    found = check_videos(open_dataset(path))
    text = _same_video_text(found)
    if out is not None:
        write_same_video(found, out)
        text += f"\nwritten: {out} ({', '.join(found.table.column_names)})"
    return text, 0


def _same_video_text(found: SameVideo) -> str:
    counts = ", ".join(f"{word} {count:,}" for word, count in found.counts().items())
    return f"{found.num_videos:,} videos with several clips ({found.num_pairs:,} pairs): {counts}"


_LINE = "  {:14} {:>8} {:>8} {:>10} {:>12} {:>17}"


def _thresholds_text(result: Filtered) -> str:
    lines = []
    for source in result.sources:
        lines.append(
            f"{source.source}: {source.rows:,} clips, {source.accepted:,} with accepted cameras, {source.kept:,} kept"
            + ("" if source.thresholds else " (no thresholds)")
        )
        if source.thresholds:
            lines.append(
                _LINE.format("threshold", "from", "to", "missing", "keeps alone", "only one against")
            )
        for t in source.thresholds:
            low, high = ("-" if bound is None else f"{bound:g}" for bound in t.bounds)
            lines.append(_LINE.format(t.name, low, high, f"{t.missing:,}", f"{t.alone:,}", f"{t.only:,}"))
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Publishing:
    """What is published, and to whom."""

    use: Annotated[
        str,
        typer.Option("--for", help="research, or commercial-use: only clips whose licences allow it."),
    ] = "research"
    media_root: MediaRoot = None
    public: Annotated[bool, typer.Option("--public", help="Create the repository as public.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stage only; upload nothing.")] = False


def publish(
    path: Stored,
    repository: Annotated[
        str, typer.Argument(help="Hugging Face dataset, owner/name.", metavar="REPOSITORY")
    ],
    staging: Annotated[Path, typer.Option("--staging", help="Empty folder for the files to upload.")],
    *,
    how: Publishing,
) -> Outcome:
    """Stage a dataset with its card, check licences, and upload it.

    Example: theodolite publish runs/rgbd owner/name --staging staging --dry-run
    """
    from ...dataset import publish as publishing

    asked = one_of("--for", how.use, ("research", "commercial-use"))
    use: Use = "commercial" if asked == "commercial-use" else "research"
    publishing.check_repository(repository)
    if how.dry_run:
        staged = publishing.stage_publication(
            path, staging, use=use, repository=repository, media_root=how.media_root
        )
        where = f"staged in {staged.folder}, nothing uploaded"
    else:
        staged, url = publishing.publish(
            path, repository, staging, use=use, media_root=how.media_root, private=not how.public
        )
        where = f"uploaded to {url}"
    left = f", {staged.left_out} left out (no commercial use)" if staged.left_out else ""
    unshipped = (
        f"\nnote: folders of images are not shipped: the media of {staged.num_folders} accepted clips stay pointers to"
        " their source"
        if staged.num_folders
        else ""
    )
    return f"{staged.num_clips} clips{left}, {staged.num_media} media files: {where}{unshipped}", 0
