"""`theodolite encode`: a dataset in, a folder of encoded windows out; resumed by itself, killed at any moment.

What is encoded is what the shards hold, and a shard appears whole or not at all: the same command goes on with the
windows that are in none. A window that cannot be encoded is told with its reason, recorded, and tried again next time.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..annotate.networks.device import choose_device
from ..annotate.run.cluster import (
    Patience,
    RunAborted,
    local_cluster,
    num_cores,
    raise_if_interrupted,
    signals_as_interrupt,
)
from ..annotate.run.worker import begin_as_worker
from ..dataset.commit import hold_folder
from ..dataset.encoded import (
    MARKER,
    Window,
    begin,
    check_same,
    check_windows,
    encoded_windows,
    write_shard,
)
from ..dataset.filters import kept_clips
from ..dataset.media.read import pointed_at
from ..dataset.outputs import refuse_other_outputs
from ..dataset.reading import ClipDataset, open_dataset
from ..dataset.store import TEMPORARY, write_atomically
from ..train.encode import (
    EncodeOptions,
    Encoders,
    Refused,
    bent_share,
    encode_group,
    grouped,
    load_encoders,
    windows_of,
)
from ..train.recipe import Precision
from .generate.single import say
from .loader import media_root_of_dataset, now_iso, surroundings


@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """What is the same for all windows of a run.

    Attributes:
        dataset, out: folders.
        media_root: to which the rows' media refer.
        only: file of clips that are kept (`theodolite filter` and `mix` write one); None: all.
        weights: see `train.encode.load_encoders`.
        device, precision: of the networks.
        windows_per_shard: windows of a shard: what a killed run has to do again at most, per worker.
    """

    dataset: Path
    out: Path
    options: EncodeOptions
    media_root: Path = Path()
    only: Path | None = None
    weights: str = "released"
    device: str = "auto"
    precision: Precision = "auto"
    windows_per_shard: int = 8


@dataclass(frozen=True, kw_only=True)
class _Group:
    """How a group of windows ended: how many were encoded, and why the others were not."""

    encoded: int
    failed: tuple[tuple[str, str], ...]


@cache
def _encoders(weights: str, device: str, precision: Precision) -> Encoders:
    """The networks of this process, loaded once."""
    place = choose_device(device)
    chosen = precision if precision != "auto" else "bf16" if place.type == "cuda" else "float32"
    return load_encoders(weights, device=place, dtype=torch.bfloat16 if chosen == "bf16" else torch.float32)


@cache
def _clips(dataset: Path) -> ClipDataset:
    return open_dataset(dataset)


def encode_windows(windows: Sequence[Window], job: EncodeJob) -> _Group:
    """Encode a group of windows and write its shard."""
    begin_as_worker()
    encoders = _encoders(job.weights, job.device, job.precision)
    done, failed = encode_group(windows, _clips(job.dataset).row, encoders, job.options, job.media_root)
    if done:
        write_shard(job.out, done)
    return _Group(encoded=len(done), failed=tuple((window.id, why) for window, why in failed))


def run_encode(
    job: EncodeJob,
    *,
    workers: int | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    command: Sequence[str] = (),
) -> tuple[str, int]:
    """Encode what is not encoded yet.

    Args:
        workers: processes; None: one a GPU, or this process where there is one GPU or none. 0: this process.
        limit: only so many windows in all.
        dry_run: say what would be done; write nothing.
    Returns:
        summary, and 0, or 1 if windows failed.
    Raises:
        ValueError: nothing was written: no window may be encoded, or `out` was encoded otherwise.
        RunAborted: the cluster is gone. OSError: the disk is full; whole shards are kept.
    """
    refuse_other_outputs(job.out, MARKER)
    plan = plan_windows(job)
    windows, refused = plan.windows[:limit], plan.refused
    if not windows:
        raise ValueError(f"{job.dataset}: no clip can be encoded\n" + "\n".join(_reasons(refused)))
    _check_media(job, windows)
    there = (job.out / MARKER).is_file()
    if there:  # before networks are loaded, which takes minutes
        names = ("height", "width", "fit", "fps", "undistort")
        check_same(job.out, {name: getattr(job.options, name) for name in names})
    have = encoded_windows(job.out) if there else {}
    check_windows(job.out, have, windows)
    if dry_run:
        return "\n".join([_planned(job, windows, have), *plan.notes, *_reasons(refused)]), 0
    with hold_folder(job.out):
        encoders = _encoders(job.weights, job.device, job.precision)
        begin(job.out, encoders.encoding(job.options, stand_in_rows=plan.stand_in), encoders.empty_text())
        for stale in (job.out / "shards").glob(f"{TEMPORARY}*"):
            stale.unlink()
        have = encoded_windows(job.out)
        left = [window for window in windows if window.id not in have]
        started = now_iso()
        _record(job, command, started, None, refused, {})
        failed: dict[str, str] = {}
        encoded = 0
        with ExitStack() as stack:
            stack.enter_context(signals_as_interrupt())
            for group in _done(
                stack, list(grouped(left, job.windows_per_shard)), job, _number(workers, job, len(left))
            ):
                encoded += group.encoded
                for window, why in group.failed:
                    failed[window] = why
                    say(f"{window}: {why}")
                say(f"{encoded + len(failed)}/{len(left)} windows, {len(failed)} failed")
                raise_if_interrupted()
        _record(job, command, started, now_iso(), refused, failed)
    lines = [
        f"{job.out}: {encoded} windows encoded, {len(windows) - len(left)} were there, {len(failed)} failed"
    ]
    if further := len(have.keys() - {window.id for window in plan.windows}):
        lines.append(f"{further} further windows lie there, of other clips or other --set")
    return "\n".join([*lines, *plan.notes, *_reasons(refused)]), 1 if failed else 0


_BENT = 0.01
"""Share of the diagonal by which a lens moves the corners from which on it is told."""


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """What is encoded of a dataset.

    Attributes:
        refused: why other clips have no windows.
        notes: what to know of those that have.
        stand_in: whether rows of stand-in networks are among them.
    """

    windows: list[Window]
    refused: list[str]
    notes: list[str]
    stand_in: bool


def plan_windows(job: EncodeJob) -> WindowPlan:
    """Windows of the dataset, in order of their ids."""
    windows: list[Window] = []
    refused: list[str] = []
    bent: list[float] = []
    kept = None if job.only is None else kept_clips(job.only)
    for row in _clips(job.dataset).rows():
        if kept is not None and row.clip_id not in kept:
            refused.append(f"clip {row.clip_id}: is not kept by {job.only}")
            continue
        try:
            windows += windows_of(row, job.options)
            as_they_are = job.options.cameras != "none" and not job.options.undistort
            if as_they_are and (share := bent_share(row)) > _BENT:
                bent.append(share)
        except Refused as why:
            refused.append(str(why))
    windows.sort(key=lambda window: window.id)
    notes: list[str] = []
    if bent:
        notes.append(
            f"{len(bent)} clips were seen through lenses that move the corners by {100 * min(bent):.0f} to "
            f"{100 * max(bent):.0f} % of the diagonal, and cameras are those of pinholes (--set undistort=true makes "
            "the pictures a pinhole's)"
        )
    stand_in = any(window.stand_in for window in windows)
    return WindowPlan(windows=windows, refused=refused, notes=notes, stand_in=stand_in)


def _check_media(job: EncodeJob, windows: Sequence[Window]) -> None:
    """Say at once where no clip's media lies where it is looked for: every window that is left would fail.

    Raises:
        ValueError: there is none at all, and not all windows are encoded already.
    """
    wanted, missing = {window.clip_id for window in windows}, ""
    table = _clips(job.dataset).to_table(["clip_id", "media"])
    for clip_id, media in zip(table["clip_id"].to_pylist(), table["media"].to_pylist(), strict=True):
        if clip_id not in wanted:
            continue
        try:
            path = pointed_at(clip_id, media, job.media_root)
        except ValueError as error:  # of this clip, which fails by itself
            missing = missing or str(error)
            continue
        if os.path.exists(path):
            return
        missing = missing or f"clip {clip_id}: {path}"
    have = encoded_windows(job.out) if (job.out / MARKER).is_file() else {}
    if all(window.id in have for window in windows):
        return
    raise ValueError(
        f"{job.dataset}: of the {len(wanted)} clips to encode no media is there ({missing}); "
        "--media-root names the folder that media paths are relative to"
    )


def _reasons(refused: Sequence[str]) -> list[str]:
    """Refused clips, counted by reason, each with one example."""
    if not refused:
        return []
    kinds: Counter[str] = Counter()
    example: dict[str, str] = {}
    for text in refused:
        kind = "".join("#" if c.isdigit() else c for c in text.partition(": ")[2])
        kinds[kind] += 1
        example.setdefault(kind, text)
    return [f"{len(refused)} clips are left out:"] + [
        f"  {count} x {example[kind]}" for kind, count in kinds.most_common(8)
    ]


def _planned(job: EncodeJob, windows: Sequence[Window], have: Collection[str]) -> str:
    options = job.options
    there = sum(window.id in have for window in windows)
    frames = sum(window.num_frames for window in windows)
    per_frame = (options.height // 32) * (options.width // 32) * 128 * 2 / 8
    lines = [
        f"{len(windows)} windows of {len({w.clip_id for w in windows})} clips, {frames} frames "
        f"({frames / options.fps / 3600:.2f} h); {there} are encoded",
        f"about {frames * per_frame / 1e9:.2f} GB of latents (128 channels) and {len(windows) * 1.4e-3:.2f} GB of text",
        f"licences of the data: {', '.join(sorted({w.data_licence for w in windows}))}",
    ]
    return "\n".join(lines)


def _number(workers: int | None, job: EncodeJob, windows: int) -> int:
    if workers is None:
        gpus = (
            torch.cuda.device_count() if torch.cuda.is_available() and job.device in ("auto", "cuda") else 0
        )
        workers = gpus if gpus > 1 else 0
    return min(workers, -(-windows // job.windows_per_shard))


def _done(stack: ExitStack, groups: Sequence[list[Window]], job: EncodeJob, workers: int) -> Iterator[_Group]:
    if not workers:
        for group in groups:
            yield encode_windows(group, job)
        return
    from distributed import KilledWorker, as_completed

    client = stack.enter_context(
        local_cluster(
            workers,
            threads_per_worker=1,
            compute_threads=max(1, num_cores() // workers),
            memory_bytes=None,
            attempts=2,
        )
    )
    group_of = {}
    for group in groups:
        future = client.submit(encode_windows, group, job, key=f"encode-{group[0].id}", pure=False)
        group_of[future.key] = (future, group)
    completed: Any = as_completed([f for f, _ in group_of.values()], loop=client.loop, raise_errors=False)
    patience = Patience(client, job.out, more_room="use fewer workers (--workers)")
    while group_of:
        future = patience.next_of(completed)
        _, group = group_of.pop(future.key)
        error = future.exception()
        if error is None:
            yield future.result()
        elif isinstance(error, KilledWorker):
            why = "its worker died (out of memory, or a crash)"
            yield _Group(encoded=0, failed=tuple((window.id, why) for window in group))
        elif isinstance(error, OSError | ValueError):
            raise error
        else:
            raise RunAborted(f"{job.out}: {type(error).__name__}: {error}")


def _record(
    job: EncodeJob,
    command: Sequence[str],
    started: str,
    ended: str | None,
    refused: Sequence[str],
    failed: dict[str, str],
) -> None:
    """The last run, beside the shards."""
    content = {
        "started": started,
        "ended": ended,
        "command": list(command),
        "dataset": str(job.dataset),
        "options": job.options.model_dump(mode="json"),
        "weights": job.weights,
        **surroundings(("torch", "numpy", "safetensors", "diffusers", "transformers", "av")),
        "left_out": list(refused),
        "failed": failed,
    }
    write_atomically(job.out / "encode.json", (json.dumps(content, indent=1) + "\n").encode())


def on_absolute_paths(job: EncodeJob, *, media_root: Path | None) -> EncodeJob:
    """The job as any process may run it, the media's folder taken from the recipe beside the dataset unless given."""
    dataset = job.dataset.resolve()
    root = media_root_of_dataset(dataset) if media_root is None else media_root
    return replace(job, dataset=dataset, out=job.out.resolve(), media_root=root.resolve())
