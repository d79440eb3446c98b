"""`theodolite trajectories`: encoded clips and a chunk-causal teacher in, its trajectories out, for `ode_init`.

What is recorded is what the folder holds, a window a file, whole or not there: the same command goes on where it
stopped. Several processes share the work by parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..annotate.networks.device import choose_device
from ..annotate.run.cluster import raise_if_interrupted, signals_as_interrupt
from ..dataset.encoded import EncodedDataset, Window, check_windows, open_encoded
from ..dataset.weights import file_digest
from ..model.checkpoint import load_world_model
from ..model.network import WorldModel
from ..model.samplers import Text
from ..train.feed import Samples, joined, make_batch
from ..train.objective import Batch
from ..train.recipe import Precision
from ..train.start import check_latents, check_use, weights_path
from ..train.student import Conditions, cut
from ..train.trajectories import (
    TrajectoryOptions,
    TrajectoryRecord,
    begin,
    check_folder,
    noise_of,
    recorded,
    recorded_windows,
    teacher_trajectory,
    write_trajectory,
)
from .command import Say

_PART = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True, kw_only=True)
class TrajectoryJob:
    """What is recorded, and with what.

    Attributes:
        data: folders of encoded clips. out: folder of trajectories.
        weights: of the teacher, as `start.weights` of a training.
        part: `k/n`, k from 1: only every n-th window.
        batch: windows that go through the teacher together.
        device, precision: of the network.
    """

    data: Sequence[Path]
    out: Path
    weights: str
    options: TrajectoryOptions
    part: str = "1/1"
    batch: int = 1
    device: str = "auto"
    precision: Precision = "auto"


def run_trajectories(
    job: TrajectoryJob,
    *,
    limit: int | None = None,
    dry_run: bool = False,
    say: Say = lambda text: None,
) -> tuple[str, int]:
    """Record what is not recorded yet.

    Args:
        limit: only so many windows.
        dry_run: say what would be done; write nothing.
    Returns:
        summary, and 0, or 1 if windows failed.
    Raises:
        ValueError, FileNotFoundError: nothing was written: weights or clips do not fit, or `out` holds other ones.
        OSError: the disk is full; what is whole is kept.
    """
    clips = open_encoded(*job.data)
    windows = _part(_windows(clips, job), job.part)[:limit]
    weights = weights_path(job.weights)
    check_use(job.weights, "teacher")
    check_latents(job.weights, "teacher", clips.encoding.autoencoder)
    record = _record(job, clips, weights)
    check_folder(job.out, record)  # before a network is loaded, which takes minutes
    there = recorded(job.out)
    mine = {window.id: window for _, window in windows}
    check_windows(job.out, recorded_windows(job.out, there & mine.keys()), mine.values())
    if dry_run:
        return _planned(job, clips, windows), 0
    place = choose_device(job.device)
    bf16 = job.precision == "bf16" or (job.precision == "auto" and place.type == "cuda")
    model, _ = load_world_model(weights, dtype=torch.bfloat16 if bf16 else torch.float32)
    _check_fit(model, clips)
    begin(job.out, record)
    model.eval().requires_grad_(False).to(place)
    left = [(i, window) for i, window in windows if window.id not in there]
    failed: list[str] = []
    with signals_as_interrupt():
        for first in range(0, len(left), job.batch):
            group = left[first : first + job.batch]
            good = list[tuple[Window, Batch]]()
            for index, window in group:
                with _failing_alone(failed, say):
                    good.append((window, _batch(clips, index, job.options)))
            if good:
                made = _trajectories(model, clips, good, job.options, place)
                for (window, _), one in zip(good, made, strict=True):
                    with _failing_alone(failed, say):
                        write_trajectory(job.out, window, one)
            say(f"{first + len(group)}/{len(left)} windows, {len(failed)} failed")
            raise_if_interrupted()
    text = (
        f"{job.out}: {len(left) - len(failed)} trajectories recorded, {len(windows) - len(left)} were there, "
    )
    return text + f"{len(failed)} failed", 1 if failed else 0


@contextmanager
def _failing_alone(failed: list[str], say: Say) -> Iterator[None]:
    """What is wrong with one window is told, and the others go on."""
    try:
        yield
    except ValueError as error:
        failed.append(str(error))
        say(str(error))


def _windows(clips: EncodedDataset, job: TrajectoryJob) -> list[tuple[int, Window]]:
    frames = job.options.student.frames
    found = list(enumerate(clips.windows))
    short = [window.id for i, window in found if clips.latent_frames(i) < frames]
    if short:
        raise ValueError(
            f"{len(short)} of {len(found)} windows have fewer than student.frames {frames} latent frames "
            f"({', '.join(short[:3])})"
        )
    return found


def _part(windows: list[tuple[int, Window]], part: str) -> list[tuple[int, Window]]:
    match = _PART.fullmatch(part)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"--part {part}: give k/n with k from 1 to n")
    return windows[int(match[1]) - 1 :: int(match[2])]


def _check_fit(model: WorldModel, clips: EncodedDataset) -> None:
    theirs = (clips.encoding.latent_channels, clips.encoding.text_width)
    mine = (model.config.latent_channels, model.config.text_width)
    if theirs != mine:
        raise ValueError(
            f"{', '.join(map(str, clips.folders))}: latent channels and text width {theirs}, the teacher's are {mine}: "
            "another encoder's"
        )


def _record(job: TrajectoryJob, clips: EncodedDataset, weights: Path) -> TrajectoryRecord:
    files = [weights] if weights.is_file() else sorted(p for p in weights.iterdir() if p.is_file())
    digest = file_digest(files[0])[:16]
    return TrajectoryRecord(
        teacher=f"{weights.name} {digest}",
        autoencoder=clips.encoding.autoencoder,
        options=job.options,
        stand_in=clips.encoding.stand_in,
    )


def _batch(clips: EncodedDataset, index: int, options: TrajectoryOptions) -> Batch:
    """One window, cut to the student's frames.

    Raises:
        ValueError: it cannot be read, or its cameras cannot be.
    """
    batch = make_batch([clips.read(index)], clips.encoding, options.cameras)
    return cut(batch, options.student.frames)


def _trajectories(
    model: WorldModel,
    clips: EncodedDataset,
    group: Sequence[tuple[Window, Batch]],
    options: TrajectoryOptions,
    place: torch.device,
) -> torch.Tensor:
    """(B, K, C, T, h, w) of some windows."""
    joint = Samples(joined([batch for _, batch in group]), (), ()).to(place).batch
    states, mask = (x[None].expand(len(group), *x.shape).to(place) for x in clips.empty_caption())
    shape = torch.Size((1, *joint.latents.shape[1:]))
    noise = torch.cat([noise_of(window.id, shape, options) for window, _ in group]).to(place)
    asked = Conditions.of(joint, options.student.frames)
    return teacher_trajectory(model, asked, Text(states, mask), options, noise)


def _planned(job: TrajectoryJob, clips: EncodedDataset, windows: Sequence[tuple[int, Window]]) -> str:
    options, e = job.options, clips.encoding
    there = recorded(job.out) if job.out.is_dir() else set[str]()
    tokens = e.height // e.spatial_stride * (e.width // e.spatial_stride) * options.student.frames
    size = tokens * e.latent_channels * 2 * len(options.student.times)
    calls = options.steps * (2 if options.guidance != 1 else 1)
    return "\n".join(
        [
            f"{len(windows)} windows of {options.student.frames} latent frames; "
            f"{sum(w.id in there for _, w in windows)} are recorded",
            f"{calls} calls a chunk; about {len(windows) * size / 1e9:.3f} GB",
            f"licences of the data: {', '.join(sorted({w.data_licence for _, w in windows}))}",
        ]
    )
