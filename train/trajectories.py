"""Trajectories of the chunk-causal teacher: recorded once, by clip, and read beside the encoded clips.

A folder holds `trajectories.json` (whose they are, and how they were made) and `shards/<window>.safetensors`, one
window each: there whole or not at all, so that the same command goes on where it stopped, and several processes may
each make a part.

    trajectory  (K, T, C, h, w) bfloat16: the teacher at the student's K times, the last the clean end; frame 0 is the
                given image at all of them; the header says of which window (`dataset.encoded.Window`)
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from ..dataset.encoded import EncodedDataset, Window, all_finite, check_windows
from ..dataset.inputs import read_json
from ..dataset.outputs import refuse_other_outputs
from ..dataset.store import TEMPORARY, write_atomically
from ..dataset.strict import Finite, error_lines
from ..model.config import chunk_ranges
from ..model.network import WorldModel
from ..model.samplers import Text
from .feed import Control
from .student import Conditions, StudentConfig, call_chunk, remember, with_image

FORMAT = "theodolite trajectories"


class TrajectoryOptions(Finite):
    """How the teacher is asked."""

    student: StudentConfig
    steps: Annotated[int, Field(gt=0)] = 48
    """Euler steps from noise to video, shared out evenly between the student's times."""
    shift: Annotated[float, Field(gt=0)] = 9.8
    """Between two times, levels are evenly spaced before this shift."""
    guidance: Annotated[float, Field(ge=0)] = 5.0
    """uncond + g (cond - uncond); 1: the teacher is asked once a step."""
    cameras: Control = "both"
    seed: Annotated[int, Field(ge=0)] = 0


class TrajectoryRecord(Finite):
    """What `trajectories.json` says."""

    format: str = FORMAT
    version: int = 1
    teacher: str
    """Name and digest of the weights."""
    autoencoder: str
    """Of the clips' latents."""
    options: TrajectoryOptions
    stand_in: bool = False


def levels_between(options: TrajectoryOptions) -> list[list[float]]:
    """Noise levels of the teacher's steps from each of the student's times to the next, both ends included."""
    k, times = options.shift, options.student.times
    per = max(1, round(options.steps / (len(times) - 1)))
    found = []
    for high, low in pairwise(times):
        start, end = ((t / 1000) / (k - (k - 1) * t / 1000) for t in (high, low))  # before the shift
        plain = np.linspace(start, end, per + 1)
        levels = (k * plain / (1 + (k - 1) * plain)).tolist()
        found.append([high / 1000, *levels[1:-1], low / 1000])
    return found


@torch.no_grad()
def teacher_trajectory(
    model: WorldModel, asked: Conditions, empty: Text, options: TrajectoryOptions, noise: Tensor
) -> Tensor:
    """The teacher's way from noise to video, chunk after chunk, each seeing all that was finished before it.

    Args:
        noise: (B, C, T, H, W).
    Returns:
        (B, K, C, T, H, W) float32.
    """
    prompts = [asked] if options.guidance == 1 else [asked, asked.told(empty)]
    caches = [model.start_stream() for _ in prompts]
    chunks = []
    for first, end in chunk_ranges(options.student.frames, options.student.starts):
        x = with_image(noise[:, :, first:end], asked, first)
        snapshots = [x]
        for levels in levels_between(options):
            for level, ahead in pairwise(levels):
                times = x.new_full((len(x), end - first), 1000 * level)
                if first == 0:
                    times[:, 0] = 0
                said = [
                    call_chunk(model, x, times, prompt, cache, first=first)
                    for prompt, cache in zip(prompts, caches, strict=True)
                ]
                velocity = said[0] if len(said) == 1 else torch.lerp(said[1], said[0], options.guidance)
                x = with_image(x - (level - ahead) * velocity, asked, first)
            snapshots.append(x)
        for prompt, cache in zip(prompts, caches, strict=True):
            remember(model, x, prompt, cache, first=first)
        chunks.append(torch.stack(snapshots, dim=1))
    return torch.cat(chunks, dim=3)


def noise_of(window: str, shape: Sequence[int], options: TrajectoryOptions) -> Tensor:
    """The noise that a window's trajectory begins with, the same whenever it is made."""
    seed = np.random.SeedSequence([options.seed, zlib.crc32(window.encode())]).generate_state(1, np.uint64)[0]
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(int(seed >> 1)))


def _path(folder: Path, window: str) -> Path:
    return folder / "shards" / f"{window}.safetensors"


def begin(folder: Path, record: TrajectoryRecord) -> None:
    """Make a folder for trajectories, or check that it was made alike.

    Raises:
        ValueError: as `check_folder`.
    """
    check_folder(folder, record)
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    if not (folder / _MARKER).is_file():
        write_atomically(folder / _MARKER, (record.model_dump_json(indent=1) + "\n").encode())


_MARKER = "trajectories.json"


def check_folder(folder: Path, record: TrajectoryRecord) -> None:
    """Make sure that trajectories may go into a folder, which may be absent; writes nothing.

    Raises:
        ValueError: it holds other ones (names every difference), or what another command wrote.
    """
    refuse_other_outputs(folder, _MARKER)
    if (folder / _MARKER).is_file():
        found = read_record(folder)
        before, now = ({**r.model_dump(), **r.options.model_dump()} for r in (found, record))
        differences = [
            f"{key}: {before[key]!r} there, {now[key]!r} now"
            for key in now
            if key != "options" and before[key] != now[key]
        ]
        if differences:
            raise ValueError(
                f"{folder}: holds trajectories that were made otherwise ({'; '.join(differences)}); choose another "
                "--out"
            )


def read_record(folder: Path) -> TrajectoryRecord:
    """What `trajectories.json` says.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    marker = folder / "trajectories.json"
    if not marker.is_file():
        raise ValueError(
            f"{folder}: holds no trajectories (no trajectories.json): theodolite trajectories DATA --out {folder}"
        )
    content = read_json(marker)
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != 1:
        raise ValueError(f"{marker}: is no {FORMAT!r} of version 1")
    try:
        return TrajectoryRecord(**content)
    except ValidationError as error:
        raise ValueError(f"{marker}: {'; '.join(error_lines(error))}") from None


def recorded(folder: Path) -> set[str]:
    """Windows whose trajectory is there."""
    return {
        path.stem for path in (folder / "shards").glob("*.safetensors") if not path.name.startswith(TEMPORARY)
    }


def recorded_windows(folder: Path, windows: Iterable[str]) -> dict[str, tuple[Path, Window]]:
    """Of which windows trajectories were made, by id; reads headers only. Those of earlier versions do not say, nor do
    damaged ones, which are told when they are read."""
    from safetensors import safe_open

    found = {}
    for name in windows:
        path = _path(folder, name)
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get("window")
            if text is not None:
                found[name] = path, Window.model_validate_json(text)
        except Exception:  # noqa: BLE001  (safetensors' own kind of error has no base but Exception)
            continue
    return found


def write_trajectory(folder: Path, window: Window, trajectory: Tensor) -> None:
    """Write one window's (K, C, T, H, W), whole or not at all.

    Raises:
        ValueError: it is not finite. OSError: the disk is full; nothing remains.
    """
    from safetensors.torch import save

    if not all_finite(trajectory):
        raise ValueError(f"window {window.id}: the teacher's trajectory is not finite")
    content = {"trajectory": trajectory.bfloat16().transpose(1, 2).cpu().contiguous()}
    write_atomically(_path(folder, window.id), save(content, metadata={"window": window.model_dump_json()}))


@dataclass(frozen=True)
class Trajectories:
    """A folder of them.

    Attributes:
        folder: where they lie.
        record: how they were made.
    """

    folder: Path
    record: TrajectoryRecord

    @classmethod
    def open(cls, folder: Path) -> Trajectories:
        """Raises ValueError where there are none."""
        return cls(folder, read_record(folder))

    def check(self, student: StudentConfig, data: EncodedDataset) -> None:
        """They must be the student's, and of all of the clips.

        Raises:
            ValueError: with every mismatch found.
        """
        mine, problems = self.record.options.student, []
        for name in ("times", "chunk"):
            if getattr(mine, name) != getattr(student, name):
                problems.append(f"{name} {getattr(mine, name)}, the recipe's {getattr(student, name)}")
        if mine.frames < student.frames:
            problems.append(f"{mine.frames} latent frames, the recipe's student {student.frames}")
        if self.record.autoencoder != data.encoding.autoencoder:
            problems.append(f"latents of {self.record.autoencoder}, the clips' {data.encoding.autoencoder}")
        there = recorded(self.folder)
        first = next((w.id for w in data.windows if w.id in there), None)
        if first is not None and (problem := self._other_picture(first, data)):
            problems.append(problem)
        if missing := [w.id for w in data.windows if w.id not in there]:
            problems.append(
                f"{len(missing)} of {len(data.windows)} clips have none ({', '.join(missing[:3])}): theodolite "
                "trajectories goes on where it stopped"
            )
        if problems:
            raise ValueError(f"{self.folder}: these trajectories do not fit: {'; '.join(problems)}")
        check_windows(
            self.folder, recorded_windows(self.folder, there & {w.id for w in data.windows}), data.windows
        )

    def _other_picture(self, window: str, data: EncodedDataset) -> str | None:
        """What is wrong with the size of a trajectory's latents; None: nothing, or it cannot be read, as is told when
        it is its turn."""
        from safetensors import safe_open

        e = data.encoding
        wanted = (e.latent_channels, e.height // e.spatial_stride, e.width // e.spatial_stride)
        try:
            with safe_open(_path(self.folder, window), framework="pt") as file:
                found = tuple(file.get_slice("trajectory").get_shape()[2:])
        except Exception:  # noqa: BLE001  (safetensors' own kind of error has no base but Exception)
            return None
        return (
            None if found == wanted else f"latents of {found} a frame, the clips' {wanted}: encoded otherwise"
        )

    def read(self, window: str, frames: int) -> Tensor:
        """(K, C, T, H, W) of a window's first latent frames.

        Raises:
            ValueError: it cannot be read, or is of another shape; names the window.
        """
        from safetensors import safe_open

        path = _path(self.folder, window)
        try:
            with safe_open(path, framework="pt") as file:
                found = file.get_slice("trajectory")[:, :frames]
        except Exception as error:  # safetensors' own kind of error has no base but Exception
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"window {window}: its trajectory {path} cannot be read: {first[:200]}"
            ) from error
        count = len(self.record.options.student.times)
        if found.ndim != 5 or tuple(found.shape[:2]) != (count, frames) or not all_finite(found):
            raise ValueError(
                f"window {window}: its trajectory {path} is {tuple(found.shape)} or not finite, expected ({count}, "
                f"{frames}, C, h, w)"
            )
        return found.transpose(1, 2)
