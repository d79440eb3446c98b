"""What `theodolite generate` does once its options are read."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from ...annotate.run.cluster import signals_as_interrupt
from ...dataset.store import write_atomically
from .build import (
    build_generator,
    check_choices,
    file_digests,
    locate_parts,
    notes_on_weights,
    resolve_precision,
)
from .inputs import Prepared, prepare
from .memory import check_memory, memory_text, use_room
from .options import ClipRequest, GenerateOptions
from .plan import Place, describe, find_place
from .plot import path_svg
from .progress import shown_progress
from .single import OutOfRoom, generate_video, record_path, say


def run_generate(
    clip: ClipRequest,
    options: GenerateOptions,
    video: Path,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    plot: Path | None = None,
) -> tuple[str, int]:
    """Make one video.

    Args:
        clip: image, prompt, camera.
        options: of the run.
        video: `.mp4` file to write; its record lies beside it as `.json`.
        overwrite: replace a video that is there.
        dry_run: check everything and show path, memory and time; loads and writes nothing (but `plot`).
        plot: SVG of the path to write.
    Returns:
        what is there now, and 0; 130 after Ctrl-C, 1 for a full disk (what was finished plays).
    Raises:
        ValueError: something about the request or the weights, before anything was written.
    """
    _check_place(video, may_be_there=overwrite or dry_run)
    if plot is not None and (plot.is_dir() or not plot.parent.is_dir()):
        raise ValueError(
            f"--plot {plot}: {'is a folder' if plot.is_dir() else f'no such folder {plot.parent}'}"
        )
    place = find_place(options.device, options.gpu_memory_gb)
    prepared = prepare(clip, options)
    precision = check_choices(options, place.device)
    if plot is not None:
        drawing = path_svg(
            prepared.path, title=f"{prepared.path.origin}, {prepared.figures.duration_s:.1f} s"
        )
        write_atomically(plot, drawing.encode())
    if dry_run:
        return _look_over(prepared, options, place)
    files = locate_parts(options)
    prepared = replace(prepared, notes=(*prepared.notes, *notes_on_weights(options, files)))
    check_memory(prepared.request, options, precision, place)
    for note in prepared.notes:
        say(f"note: {note}")
    generator = build_generator(options, files)
    use_room(generator, prepared.request, options, precision, place)
    generator.check(prepared.request)
    digests = file_digests(options, files)
    if options.warm_up:
        generator.warm_up(prepared.request)
    video.unlink(missing_ok=True)
    record_path(video).unlink(missing_ok=True)
    try:
        with signals_as_interrupt(), shown_progress(video.name) as progress:
            outcome = generate_video(
                generator,
                prepared,
                video,
                progress=progress,
                command=sys.argv,
                digests=digests,
            )
    except KeyboardInterrupt:
        say(f"interrupted; {_what_is_there(video)}")
        return "", 130
    except OutOfRoom as error:
        say(f"error: {error.strerror}")
        return "", 1
    return "\n".join([outcome.summary, *_streaming_lines(outcome.streaming), f"record: {outcome.record}"]), 0


def _look_over(prepared: Prepared, options: GenerateOptions, place: Place) -> tuple[str, int]:
    """What a dry run says."""
    precision = resolve_precision(options, place.device)
    memory = memory_text(prepared.request, options, precision, place)
    text = describe(prepared, place, precision=precision, memory=memory)
    missing, notes = _missing_weights(options)
    text += "".join(f"\nnote     {note}" for note in notes)
    last = f"weights: {missing}" if missing else "nothing was loaded or written"
    return f"{text}\n\n{last}", 1 if missing else 0


def _check_place(video: Path, *, may_be_there: bool) -> None:
    if video.suffix.lower() != ".mp4":
        raise ValueError(f"--out {video}: videos are written as .mp4; with --manifest, --out is a folder")
    if not video.parent.is_dir():
        raise ValueError(f"--out {video}: no such folder {video.parent}")
    if video.is_dir():
        raise ValueError(f"--out {video}: is a folder")
    if video.exists() and not may_be_there:
        raise ValueError(f"--out {video}: is there already; --overwrite replaces it")
    try:
        with tempfile.TemporaryFile(dir=video.parent):  # before minutes of loading, not after
            pass
    except OSError as error:
        raise ValueError(f"--out {video}: nothing can be written there: {error.strerror}") from None


def _missing_weights(options: GenerateOptions) -> tuple[str | None, tuple[str, ...]]:
    """What is wrong with the weights, and what to know of them."""
    try:
        return None, notes_on_weights(options, locate_parts(options))
    except ValueError as error:
        return str(error), ()


def _what_is_there(video: Path) -> str:
    from .single import read_made

    made = read_made(video)
    if made is None or not made.num_frames or not video.is_file():
        return f"no frame of {video} was finished"
    return f"{video} holds the first {made.num_frames} frames and plays; its record says so"


def _streaming_lines(report: object) -> list[str]:
    from ...model.generation_record import StreamingReport

    if not isinstance(report, StreamingReport):
        return []
    words = f"streaming: first chunk after {report.time_to_first_chunk_s:.2f} s, "
    words += f"{report.real_time_factor:.2f}x real time"
    if report.sustained_factor is not None:
        words += f" ({report.sustained_factor:.2f}x after the first chunk)"
    if report.deadlines_met is not None:
        words += f", {100 * report.deadlines_met:.0f} % of {report.chunks - 1} deadlines met"
        if report.latest_s > 0:
            words += f", the latest chunk {report.latest_s:.2f} s late"
    if report.warm_up_s is not None:
        words += f"; after a warm-up of {report.warm_up_s:.1f} s"
    return [words]
