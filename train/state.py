"""Checkpoints: everything that a run hangs on, by name, each rank its part; whole or not there.

A checkpoint is a folder `step-00001234` with tensors (torch.distributed.checkpoint: any number of ranks reads what any
other number wrote) and `progress.json`, which is written last inside a hidden folder that is then renamed. What a kill
or a full disk leaves is that hidden folder; the checkpoint before stays.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..dataset.inputs import read_json
from ..dataset.store import TEMPORARY, sync_folder, write_atomically
from .seals import GO_BACK, SEAL, check_metadata, check_progress, damaged_tensors, sealed

log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8})")


class Average:
    """An exponential mean of the trainable weights, each rank of its part."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take a step's weights in."""
        current = dict(model.named_parameters())
        for name, mean in self.weights.items():
            mean.lerp_(current[name].detach(), 1 - self.decay)


@dataclass(frozen=True)
class StatePart:
    """One network's share of a run's state.

    Attributes:
        model: the network.
        optimiser: of its weights; None: it learns from no gradient.
        average: of its weights.
        frozen: weights that are not trained belong to it, too, and buffers.
        prefix: what its tensors' names begin with.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer | None = None
    average: Average | None = None
    frozen: bool = True
    prefix: str = ""

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, themselves: what is loaded into them changes the run."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            if self.frozen or parameter.requires_grad:
                found[f"model.{name}"] = parameter.detach()
            if self.optimiser is not None:
                for key, value in self.optimiser.state.get(parameter, {}).items():
                    found[f"optimiser.{name}.{key}"] = value
        if self.frozen:
            found |= {f"model.{name}": buffer for name, buffer in self.model.named_buffers()}
        if self.average is not None:
            found |= {f"average.{name}": value for name, value in self.average.weights.items()}
        return {self.prefix + name: tensor for name, tensor in found.items()}

    def prepare(self, stored: Set[str]) -> None:
        """Empty state for every weight whose optimiser's state is stored, as AdamW would make it."""
        if self.optimiser is None:
            return
        for name, parameter in self.model.named_parameters():
            keys = [
                k for k in ("step", "exp_avg", "exp_avg_sq") if f"{self.prefix}optimiser.{name}.{k}" in stored
            ]
            if keys and parameter.requires_grad:
                fused = bool(self.optimiser.param_groups[0].get("fused"))
                step = torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu")
                self.optimiser.state[parameter] = {
                    k: step
                    if k == "step"
                    else torch.zeros_like(parameter, memory_format=torch.preserve_format).detach()
                    for k in keys
                }


def tensors_of(parts: Sequence[StatePart]) -> dict[str, Tensor]:
    """Every tensor of a run's state by name."""
    return {name: tensor for part in parts for name, tensor in part.tensors().items()}


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = [p for p in folder.glob("step-*") if _NAME.fullmatch(p.name) and (p / "progress.json").is_file()]
    return sorted(found)


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]
) -> Path:
    """Write a checkpoint; a collective call.

    Raises:
        OSError: the disk is full (says so) or cannot be written; checkpoints that were there stay.
    """
    # Here and below alone: it brings sympy and tensors over several devices, a third of torch's own time once more.
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save

    target = folder / f"step-{step:08d}"
    temporary = folder / f"{TEMPORARY}step-{step:08d}"

    def begin() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f"{TEMPORARY}step-*"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary.mkdir()

    def finish() -> None:
        content = json.dumps(sealed(progress, temporary), indent=1) + "\n"
        write_atomically(temporary / "progress.json", content.encode())
        if target.exists():
            _remove(target)
        temporary.rename(target)
        sync_folder(folder)

    try:
        _on_first_rank(begin)
        torch.serialization.set_crc32_options(True)  # what `seals` looks at
        save(dict(tensors), checkpoint_id=temporary, no_dist=not dist.is_initialized())
        _on_first_rank(finish)
    except BaseException as error:
        if _is_first():
            shutil.rmtree(temporary, ignore_errors=True)
        cause = _disk_error(error)
        if cause is None and isinstance(error, CheckpointException):
            raise RuntimeError(f"{folder}: checkpoint of step {step} failed: {error}") from error
        if cause is None:
            raise
        raise OSError(
            cause.errno,
            f"checkpoint of step {step} cannot be written ({cause.strerror}); those before it are kept",
            str(folder),
        ) from error
    return target


_OF_DISKS = frozenset(
    getattr(errno, name)
    for name in (
        "ENOSPC",
        "EDQUOT",
        "EFBIG",
        "EIO",
        "EROFS",
        "EACCES",
        "EPERM",
        "ENOENT",
        "ENOTDIR",
        "EEXIST",
        "ESTALE",
    )
    if hasattr(errno, name)
)


def _disk_error(error: BaseException) -> OSError | None:
    """The error of the disk that lies under what torch wraps around it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _OF_DISKS:
            return seen
        failures = getattr(seen, "failures", None)
        if isinstance(failures, dict):
            for failure in failures.values():
                inner = failure[0] if isinstance(failure, tuple) else failure
                if isinstance(inner, BaseException) and (found := _disk_error(inner)) is not None:
                    return found
        seen = seen.__cause__ or seen.__context__
    text = str(error)
    if "No space left" in text or "unexpected pos" in text or "file write failed" in text:
        return OSError(errno.ENOSPC, "No space left on device")
    return None


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _on_first_rank(act: Callable[[], None]) -> None:
    """Let the first rank act while the others wait; what goes wrong is raised on all of them, for one that is left
    alone waits for the others for ever."""
    told: list[Exception | None] = [None]
    if _is_first():
        try:
            act()
        except Exception as error:  # noqa: BLE001 (raised below, everywhere)
            told[0] = error
    if dist.is_initialized():
        dist.broadcast_object_list(told, src=0)
    if told[0] is not None:
        raise told[0]


def _remove(path: Path) -> None:
    """Take a checkpoint away whole: what a kill leaves of it bears no name of one, and goes with the next save."""
    hidden = path.with_name(f"{TEMPORARY}{path.name}-removed")
    if hidden.exists():
        shutil.rmtree(hidden)
    path.rename(hidden)
    shutil.rmtree(hidden)


def remove_old(folder: Path, *, keep: int, keep_every: int | None) -> None:
    """Remove all checkpoints but the last `keep` and those of every so many steps."""
    for path in checkpoints(folder)[:-keep]:
        if keep_every is None or step_of(path) % keep_every:
            _remove(path)


def step_of(path: Path) -> int:
    """Step of a checkpoint."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path}: is no checkpoint (step-00001234)")
    return int(match[1])


def read_progress(path: Path) -> dict[str, Any]:
    """What stands beside a checkpoint's tensors.

    Raises:
        ValueError: it is damaged, by what it says or by its digest.
    """
    found = read_json(path / "progress.json")
    if not isinstance(step := found.get("step"), int):
        raise ValueError(
            f"{path / 'progress.json'}: its step is {step!r}; without that folder --resume goes on before"
        )
    check_progress(path / "progress.json", found)
    return found


def is_sealed(path: Path) -> bool:
    """Whether a checkpoint's files bear digests beside those of its tensors; those of earlier versions do not."""
    return SEAL in read_progress(path)


def load_checkpoint(path: Path, parts: Sequence[StatePart]) -> None:
    """Put a checkpoint's tensors into a run's, of whatever number of ranks; a collective call.

    Raises:
        ValueError: tensors are missing, of other shapes, or the files are damaged: of a flipped bit it names file and
            tensor.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    check_metadata(path, read_progress(path))
    try:
        metadata = FileSystemReader(path).read_metadata()
    except Exception as error:
        raise ValueError(
            f"{path}: is no intact checkpoint ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    stored = metadata.state_dict_metadata
    _check_tensors(path, metadata.storage_data)
    for part in parts:
        part.prepare(stored.keys())
    wanted = tensors_of(parts)
    missing = [name for name in wanted if name not in stored]
    odd = [
        f"{name} {tuple(size)} against {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if (size := getattr(stored.get(name), "size", tensor.shape)) != tensor.shape
    ]
    if missing or odd:
        raise ValueError(
            f"{path}: is of another run: {len(missing)} tensors are missing ({', '.join(missing[:4])})"
            + (f", {'; '.join(odd[:4])}" if odd else "")
        )
    try:
        load(wanted, checkpoint_id=path, no_dist=not dist.is_initialized())
    except (Exception, CheckpointException) as error:  # torch's own has no base but BaseException
        cause = _innermost(error)
        why = (str(cause).strip().splitlines() or [""])[0][:200]
        raise ValueError(f"{path}: cannot be read ({type(cause).__name__}: {why}); {GO_BACK}") from error


def _check_tensors(path: Path, places: Mapping[Any, Any]) -> None:
    """Each rank looks at some of the files; all raise what one of them found."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    found: list[list[str]] = [damaged_tensors(path, places, part=rank, parts=world)]
    if world > 1:
        mine, found = found[0], [[] for _ in range(world)]
        dist.all_gather_object(found, mine)
    if lines := [line for part in found for line in part]:
        more = f"; and {len(lines) - 4} more" if len(lines) > 4 else ""
        raise ValueError(
            f"{'; '.join(lines[:4])}{more}: damaged, its bytes are not those that were written; {GO_BACK}"
        )


def _innermost(error: BaseException) -> BaseException:
    """What went wrong on a rank, under what torch wraps around it."""
    failures = getattr(error, "failures", None)
    for failure in failures.values() if isinstance(failures, dict) else ():
        inner = failure[0] if isinstance(failure, tuple) else failure
        if isinstance(inner, BaseException):
            return _innermost(inner)
    return error
