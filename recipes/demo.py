"""`theodolite demo`: render a clip, annotate it by the demo recipe as any other, and mark it against its truth."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ..dataset.reading import open_dataset
from ..dataset.report.pictures import pictures_from_media
from ..dataset.report.write import write_report
from .demo_clips import CLIP_ID, DemoConfig, compare_with_truth, errors_table, write_demo_clip
from .loader import load_recipe
from .run import RunOptions, run_annotate
from .truth import report_sources


def run_demo(
    out: Path,
    *,
    config: DemoConfig | None = None,
    say: Callable[[str], None] = lambda text: None,
    show_progress: bool = True,
) -> tuple[str, int]:
    """Render, annotate, compare and report.

    Args:
        out: folder for the rendered clip (`clip/`), the dataset (`dataset/`) and the report.
        config: the clip; the default is the 10 s 1280x720 one.
        say: told what is being done, one line at a time.
        show_progress: bar of the annotation.
    Returns:
        The table and where everything lies; 0 if the clip is accepted and every bound of the table holds, else 1.
    Raises:
        ValueError: `out` holds something else.
    """
    start = time.perf_counter()
    say(f"rendering the clip into {out / 'clip'}")
    files = write_demo_clip(out / "clip", config)
    rendered = time.perf_counter()
    say(
        "annotating it as theodolite annotate would: the lens, its zoom, the poses and the unit of depth are unknown"
    )
    dataset = out / "dataset"
    recipe = load_recipe("demo", [f"source.index={files.index}"])
    summary, code = run_annotate(recipe, dataset, RunOptions(workers=0), show_progress=show_progress)
    annotated = time.perf_counter()
    row = open_dataset(dataset).row(CLIP_ID)
    if len(row.camera_to_world) == 0:
        return f"{summary}\nno cameras to compare", 1
    table, good = errors_table(compare_with_truth(row, files))
    report_path = out / "report.html"
    sources = report_sources(dataset)
    write_report(
        dataset,
        report_path,
        truth=sources.truth,
        pictures=pictures_from_media(sources.media_root),
        notes=sources.notes,
    )
    verdict = row.verdict if not row.reasons else f"{row.verdict} ({', '.join(row.reasons)})"
    lines = [
        "",
        table,
        "",
        f"verdict  {verdict}",
        f"dataset  {dataset}  (Parquet; theodolite inspect {dataset} --clip {CLIP_ID})",
        f"report   {report_path}",
        f"seconds  {rendered - start:.0f} to render, {annotated - rendered:.0f} to annotate",
    ]
    return "\n".join(lines), 0 if good and code == 0 and row.verdict == "accepted" else 1
