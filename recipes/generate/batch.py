"""Many videos: a manifest or a split of SANA-WM-Bench in, a folder of videos and records out; resumed by itself.

A video is whole when its record says `complete` and has its size. What is whole is never made again; a run that is
killed in any way is continued by the same command and loses only the clips in flight.
"""

from __future__ import annotations

import json
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...annotate.run.cluster import (
    Patience,
    RunAborted,
    cluster_behind,
    local_cluster,
    raise_if_interrupted,
    signals_as_interrupt,
)
from ...annotate.run.worker import begin_as_worker
from ...dataset.camera_files.load import GENERATION_LOG
from ...dataset.camera_files.single import GENERATION_FORMAT as FORMAT
from ...dataset.commit import hold_folder
from ...dataset.formats.sana import SPLITS
from ...dataset.inputs import parse_json, read_text
from ...dataset.outputs import refuse_other_outputs
from ...dataset.processes import num_cores
from ...dataset.store import write_atomically
from ...model.generation import Generator
from ..loader import now_iso, surroundings
from .build import (
    build_generator,
    check_choices,
    file_digests,
    locate_parts,
    notes_on_weights,
    resolve_precision,
)
from .inputs import Prepared, prepare
from .memory import check_memory, use_room
from .options import ClipRequest, GenerateOptions
from .plan import find_place
from .progress import clock, shown_progress
from .single import OutOfRoom, generate_video, is_whole, read_made, record_path, say

_COLUMNS = {
    "image_path": "image",
    "camera_path": "camera",
    "action": "camera",
    "clip_id": "id",
    "caption": "prompt",
}
"""Other names under which manifests have them."""
_MOST_SHOWN = 20


# --- the manifest ---------------------------------------------------------------------------------


def read_manifest(path: Path) -> list[ClipRequest]:
    """Clips of a manifest: JSON lines, a JSON list, Parquet, or a split of SANA-WM-Bench.

    Rows have `id`, `image`, `prompt`, `camera` and may have `intrinsics`, `seconds`, `fps`, `seed`; paths are relative
    to the manifest (in the benchmark to its root).

    Raises:
        ValueError: no manifest, or rows that cannot be: all of them are named.
    """
    path = Path(path)
    if path.is_dir():
        root, rows = path.resolve().parent, _bench_rows(path)
    elif path.is_file():
        root = path.resolve().parent
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        rows = _parquet_rows(path) if is_parquet else _json_rows(path)
    else:
        raise ValueError(f"{path}: no such manifest (.jsonl, .json, .parquet, or a split of SANA-WM-Bench)")
    clips: list[ClipRequest] = []
    problems: list[str] = []
    for number, row in enumerate(rows, start=1):
        try:
            clips.append(_clip(row, root))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(p) for p in first["loc"])
            problems.append(f"row {number}: {name}: {first['msg'].removeprefix('Value error, ')}")
        except ValueError as error:
            problems.append(f"row {number}: {error}")
    ids = [clip.id for clip in clips]
    problems += [f"id {i}: given twice" for i in sorted(i for i, n in Counter(ids).items() if n > 1)]
    log = Path(GENERATION_LOG).stem
    problems += [
        f"id {i}: its record would lie on the run's log {GENERATION_LOG}" for i in ids if i.lower() == log
    ]
    if problems:
        more = f"; and {len(problems) - _MOST_SHOWN} more" if len(problems) > _MOST_SHOWN else ""
        raise ValueError(f"{path}: {'; '.join(problems[:_MOST_SHOWN])}{more}")
    if not clips:
        raise ValueError(f"{path}: holds no clips")
    return clips


def _clip(row: Any, root: Path) -> ClipRequest:
    if not isinstance(row, dict):
        raise ValueError("is no object with id, image, prompt and camera")
    values: dict[str, Any] = {_COLUMNS.get(str(k), str(k)): v for k, v in row.items() if v is not None}
    if isinstance(values.get("image"), str):
        values["image"] = root / values["image"]
    camera = values.get("camera")
    if isinstance(camera, str):
        values["camera"] = _relative(camera, root)
    if isinstance(values.get("intrinsics"), str):
        values["intrinsics"] = _relative(values["intrinsics"], root)
    return ClipRequest(**values)


def _relative(text: str, root: Path) -> str:
    """A path beside the manifest if there is one, else the text (actions, a name, an absolute path)."""
    file, mark, clip_id = text.partition("#")
    try:
        if (root / text).exists():
            return str(root / text)
        if mark and (root / file).exists():
            return f"{root / file}#{clip_id}"
    except OSError:
        pass
    return text


def _bench_rows(folder: Path) -> list[Any]:
    manifest = folder / "sanawm_export_v2" / "run_manifest.jsonl"
    if folder.resolve().name not in SPLITS.values() and not manifest.is_file():
        raise ValueError(
            f"{folder}: a folder that is no split of SANA-WM-Bench ({', '.join(SPLITS.values())})"
        )
    return [
        {k: row[k] for k in ("id", "prompt", "image_path", "camera_path") if k in row}
        if isinstance(row, dict)
        else row
        for row in _json_rows(manifest)
    ]


def _json_rows(path: Path) -> list[Any]:
    text = read_text(path)
    if text.lstrip().startswith("["):
        return parse_json(text, path)
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            rows.append(parse_json(line, f"{path}:{number}"))
    return rows


def _parquet_rows(path: Path) -> list[Any]:
    from ...dataset.parquet import read_table

    return read_table(path).to_pylist()


# --- one clip on a worker -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is the same for all clips of a run."""

    out: Path
    options: GenerateOptions
    command: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a clip ended: status `complete` or `failed`, and in words."""

    clip_id: str
    status: str
    text: str


@cache
def _generator(options_json: str) -> tuple[Generator, dict[str, Any]]:
    """The generator of this process, loaded once."""
    options = GenerateOptions.model_validate_json(options_json)
    files = locate_parts(options)
    return build_generator(options, files), file_digests(options, files)


def make_clip(clip: ClipRequest, job: Job, *, show: bool = False) -> Done:
    """Make one video; whatever goes wrong with it is its record.

    Raises:
        OutOfRoom: the disk is full.
        RunAborted: the parts cannot be loaded, for this clip or any other.
    """
    video = job.out / f"{clip.id}.mp4"
    if is_whole(video):
        return Done(clip_id=clip.id, status="complete", text="is there")
    video.unlink(missing_ok=True)
    record_path(video).unlink(missing_ok=True)
    begin_as_worker()
    try:
        prepared = prepare(clip, job.options)
        generator, digests = _with_room(prepared, job.options)
        with shown_progress(clip.id, show=show) as progress:
            outcome = generate_video(
                generator, prepared, video, progress=progress, command=job.command, digests=digests
            )
        return Done(clip_id=clip.id, status="complete", text=outcome.summary)
    except (OutOfRoom, RunAborted):
        raise
    # The one place where anything may be caught: a run must survive its worst clip, and the record keeps the traceback.
    except Exception as error:  # noqa: BLE001
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        _write_failure(clip, job, text, None if isinstance(error, ValueError) else traceback.format_exc())
        return Done(clip_id=clip.id, status="failed", text=text)


def _with_room(prepared: Prepared, options: GenerateOptions) -> tuple[Generator, dict[str, Any]]:
    """This process's generator; before it is loaded, whether the first clip has room on the GPU."""
    if _generator.cache_info().currsize:
        return _generator(options.model_dump_json())
    place = find_place(options.device, options.gpu_memory_gb)
    precision = resolve_precision(options, place.device)
    check_memory(prepared.request, options, precision, place)
    try:
        generator, digests = _generator(options.model_dump_json())
    except (ValueError, OSError, ImportError) as error:
        raise RunAborted(f"the parts cannot be loaded: {error}") from error
    use_room(generator, prepared.request, options, precision, place)
    if options.warm_up:
        generator.warm_up(prepared.request)
    return generator, digests


def _write_failure(clip: ClipRequest, job: Job, text: str, trace: str | None) -> None:
    path = record_path(job.out / f"{clip.id}.mp4")
    content: dict[str, Any] = {
        "format": FORMAT,
        "stand_in": job.options.stand_in,
        "message": text,
        "traceback": trace,
        "ended": now_iso(),
        "clip": clip.model_dump(mode="json"),
        "clip_digest": clip.digest(),
        "options": job.options.model_dump(mode="json"),
        "options_digest": clip.options(job.options).digest(),
        "video": {"file": None, "num_frames": 0},
        "run": {"status": "failed"},
    }
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


# --- the run --------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Tally:
    """Counts of a run."""

    to_do: int
    there: int
    complete: int = 0
    failed: list[Done] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)

    def add(self, done: Done) -> None:
        if done.status == "complete":
            self.complete += 1
        else:
            self.failed.append(done)

    def line(self) -> str:
        """Done of all, failed, time left."""
        done = self.complete + len(self.failed)
        text = f"{done}/{self.to_do} clips, {len(self.failed)} failed"
        if done and done < self.to_do:
            text += f", about {clock((time.monotonic() - self.start) / done * (self.to_do - done))} left"
        return text


def run_batch(
    manifest: Path,
    options: GenerateOptions,
    out: Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    command: Sequence[str] = (),
) -> tuple[str, int]:
    """Make the videos of a manifest that are not there yet.

    Args:
        manifest: see `read_manifest`.
        options: of all clips.
        out: folder; made if absent, continued if it was made with the same options.
        workers: processes; None: one a GPU, or this process where there is one GPU or none. 0: this process.
        scheduler: address of a running dask scheduler, whose workers see `out` and the manifest's files.
        limit: only so many clips from the start.
        dry_run: check every clip and say what would be done; nothing is written.
    Returns:
        summary, and 0, or 1 if clips failed.
    Raises:
        ValueError: nothing was written: bad manifest, options or folder, missing weights.
        RunAborted: disk full, cluster gone.
    """
    clips = read_manifest(manifest)[:limit]
    job = Job(out=out.resolve(), options=options, command=tuple(command))
    for note in notes_on_weights(options, locate_parts(options)):
        say(f"note: {note}")
    _check_folder(out, clips, options)
    check_choices(options, find_place(options.device, options.gpu_memory_gb).device)
    left = [clip for clip in clips if not is_whole(out / f"{clip.id}.mp4")]
    if dry_run:
        return _looked_over(clips, left, options, out)
    with hold_folder(out):
        _note_run(out, options, manifest, command)
        left = [clip for clip in clips if not is_whole(out / f"{clip.id}.mp4")]
        tally = Tally(to_do=len(left), there=len(clips) - len(left))
        number = _num_workers(workers, options, len(left))
        with ExitStack() as stack:
            stack.enter_context(signals_as_interrupt())
            for done in _done(stack, left, job, number, scheduler):
                tally.add(done)
                say(f"{done.clip_id}: {done.text}")
                say(tally.line())
                raise_if_interrupted()
    return _summary(out, tally), 1 if tally.failed else 0


def _looked_over(
    clips: Sequence[ClipRequest], left: Sequence[ClipRequest], options: GenerateOptions, out: Path
) -> tuple[str, int]:
    """What a dry run says: which clips are to do, and which of them cannot be."""
    lines, failed, seconds = [], 0, 0.0
    for clip in left:
        try:
            prepared = prepare(clip, options)
        except ValueError as error:
            failed += 1
            lines.append(f"{clip.id}: {error}")
        else:
            seconds += prepared.figures.duration_s
            notes = "".join(f"; {note}" for note in prepared.notes)
            lines.append(
                f"{clip.id}: {prepared.figures.num_frames} frames, {prepared.figures.length_m:.2f} m{notes}"
            )
    lines.append(
        f"{len(clips)} clips, {len(clips) - len(left)} there, {len(left)} to do ({seconds:.0f} s of video), "
        f"{failed} of them cannot be made; nothing was written to {out}"
    )
    return "\n".join(lines), 1 if failed else 0


def _summary(out: Path, tally: Tally) -> str:
    lines = [
        f"{out}: {tally.there + tally.complete} videos ({tally.complete} new), {len(tally.failed)} failed"
    ]
    lines += [f"  {done.clip_id}: {done.text}" for done in tally.failed[:_MOST_SHOWN]]
    if len(tally.failed) > _MOST_SHOWN:
        lines.append(f"  and {len(tally.failed) - _MOST_SHOWN} more; each has a record")
    return "\n".join(lines)


def _check_folder(out: Path, clips: Sequence[ClipRequest], options: GenerateOptions) -> None:
    """Whole videos in a folder must be those that this run would make."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file; --out must be a folder beside --manifest")
    refuse_other_outputs(out, GENERATION_LOG)
    for clip in clips:
        video = out / f"{clip.id}.mp4"
        if not is_whole(video):
            continue
        made = read_made(video)
        assert made is not None
        for what, found, wanted in (
            ("options", made.options_digest, clip.options(options).digest()),
            ("a request (image, prompt, camera, seed)", made.clip_digest, clip.digest()),
        ):
            if found != wanted:
                raise ValueError(
                    f"{video} was made with other {what} than this run's: choose another --out, or remove it to "
                    "make it again"
                )


def _note_run(out: Path, options: GenerateOptions, manifest: Path, command: Sequence[str]) -> None:
    """Add this run to the folder's log."""
    path = out / GENERATION_LOG
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    except (OSError, ValueError, KeyError, TypeError):
        runs = []
    entry = {
        "started": now_iso(),
        "manifest": str(manifest),
        "options": options.model_dump(mode="json"),
        "command": list(command),
        **surroundings(("torch", "diffusers", "transformers")),
    }
    write_atomically(path, (json.dumps({"format": FORMAT, "runs": [*runs, entry]}, indent=1) + "\n").encode())


def _num_workers(workers: int | None, options: GenerateOptions, clips: int) -> int:
    """Processes beside this one; 0: none."""
    if workers is None:
        workers = _num_gpus() if options.device in ("auto", "cuda") else 0
        workers = 0 if workers < 2 else workers
    return min(workers, clips)


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _done(
    stack: ExitStack, clips: Sequence[ClipRequest], job: Job, workers: int, scheduler: str | None
) -> Iterator[Done]:
    if not clips:
        return
    if scheduler is None and not workers:
        for clip in clips:
            with _room_or_abort(job.out):
                done = make_clip(clip, job, show=True)
            yield done
        return
    if scheduler is not None:
        client = stack.enter_context(cluster_behind(scheduler))
    else:
        client = stack.enter_context(
            local_cluster(
                workers,
                threads_per_worker=1,
                compute_threads=max(1, num_cores() // workers),
                memory_bytes=None,
                attempts=1,
            )
        )
    yield from _on_cluster(client, clips, job)


def _on_cluster(client: Any, clips: Sequence[ClipRequest], job: Job) -> Iterator[Done]:
    from distributed import KilledWorker, as_completed

    waiting = iter(clips)
    clip_of: dict[Any, ClipRequest] = {}
    completed: Any = as_completed(loop=client.loop, raise_errors=False)

    patience = Patience(client, job.out, more_room="use fewer workers (--workers)")

    def submit_next() -> None:
        while len(clip_of) < patience.num_threads and (clip := next(waiting, None)) is not None:
            future = client.submit(make_clip, clip, job, key=f"video-{clip.id}", pure=False)
            clip_of[future.key] = clip
            completed.add(future)

    submit_next()
    while clip_of:
        future = patience.next_of(completed, submit_next)  # also for workers that have come meanwhile
        clip = clip_of.pop(future.key)
        error = future.exception()
        if error is None:
            yield future.result()
        elif isinstance(error, KilledWorker):
            text = "its worker died (out of memory, or a crash)"
            _write_failure(clip, job, text, None)
            yield Done(clip_id=clip.id, status="failed", text=text)
        else:
            with _room_or_abort(job.out):
                raise error
        future.release()
        submit_next()


class _room_or_abort:
    """A full disk ends the run: the next clip would find it full as well."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            raise RunAborted(
                f"{error.strerror or error}; free some room, the same command goes on"
            ) from error
