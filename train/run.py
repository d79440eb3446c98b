"""A recipe's run under Lightning: processes, devices, strategy, loggers; what is learned is `training.Training`'s.

Lightning starts the processes (or finds those of torchrun and SLURM), makes the process group through its
`ModelParallelStrategy` and drives the loop; steps, checkpoints and validation are ours. SIGTERM and SIGUSR1, as batch
systems send them before the end, and Ctrl-C write a checkpoint after the step under way.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..dataset.store import write_atomically
from .deaf import hold_signal, release_signal
from .parallel import make_ranks
from .recipe import TrainRecipe
from .state import checkpoints, is_sealed
from .training import StepReport, Training

log = logging.getLogger(__name__)

Say = Callable[[str], None]


def import_lightning() -> ModuleType:
    """Lightning.

    Raises:
        ModuleNotFoundError: it is not installed; says what brings it.
    """
    try:
        import lightning
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"lightning>=2.5 is needed here ({error}): pip install theodolite[train]", name=error.name
        ) from error
    return lightning


_LOGGERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}
"""Packages of a logger, one of which is enough."""


def check_loggers(recipe: TrainRecipe) -> None:
    """The loggers that a recipe names must be installed.

    Raises:
        ModuleNotFoundError: one is not; says what brings it.
    """
    for name in recipe.log.loggers:
        packages = _LOGGERS.get(name, ())
        if packages and not any(find_spec(package) for package in packages):
            raise ModuleNotFoundError(
                f"log.loggers {name}: the package {packages[0]} is not installed: pip install {packages[0]} (csv needs "
                "none)",
                name=packages[0],
            )


def is_first_process() -> bool:
    """Whether this is the process that a user started, or the first of torchrun's or SLURM's: the one that speaks."""
    return all(int(os.environ.get(name, "0") or 0) == 0 for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        step: steps done in all.
        loss: of the last step that this run took; None: it took none.
        stopped: name of the signal that ended it early; None: it is done.
        exported: files of weights, on the first rank.
        skipped: steps that were not taken.
        validation: last figures.
    """

    step: int = 0
    loss: float | None = None
    stopped: str | None = None
    exported: list[Path] = field(default_factory=list)
    skipped: int = 0
    validation: dict[str, float] = field(default_factory=dict)


class Metrics:
    """Rows of figures: `metrics.csv`, and Lightning's loggers beside it."""

    _COLUMNS: tuple[str, ...] = (
        "step",
        "loss",
        "norm",
        "rate",
        "tokens_per_s",
        "mfu",
        "step_s",
        "memory_gb",
        "validation_loss",
        "validation_sampled_error",
        "validation_sampled_error_other_path",
        "generator_loss",
        "generator_norm",
        "skipped",
    )

    def __init__(self, path: Path, loggers: list[Any], *, from_step: int) -> None:
        self._path, self._loggers = path, loggers
        kept = []
        if path.is_file():
            # A machine that loses power leaves a last line that is cut, or zeros.
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            rows = csv.DictReader(line for line in lines if not {"\0", "\ufffd"} & set(line))
            whole = [row for row in rows if None not in row and None not in row.values()]
            # Later ones are done again.
            kept = [row for row in whole if row.get("step", "").isdigit() and int(row["step"]) <= from_step]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        write_atomically(path, text.getvalue().encode())

    def add(self, step: int, figures: dict[str, float | str | None]) -> None:
        """One row.

        Raises:
            OSError: the disk is full.
        """
        row = {k: v for k, v in figures.items() if v is not None}
        try:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._COLUMNS, extrasaction="ignore").writerow({"step": step, **row})
        except OSError as error:
            why = f"figures of step {step} cannot be written ({error.strerror}); checkpoints are kept"
            raise OSError(error.errno, why, str(self._path)) from error
        numbers = {k: v for k, v in figures.items() if isinstance(v, int | float)}
        for logger in self._loggers:
            logger.log_metrics(numbers, step=step)


class _Signals:
    """SIGTERM, SIGUSR1 and Ctrl-C as a wish to stop after the step under way; a second Ctrl-C ends at once.

    SIGUSR1, by which a process ends that has not asked for it, waits until there are steps, and does not end what comes
    after the last one.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._here = threading.current_thread() is threading.main_thread()
        self._mask = hold_signal() if self._here else None

    def hear(self) -> None:
        """From now on; in the main thread only."""
        if self._here:
            names = [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
            self._before |= {name: signal.signal(name, self._note) for name in names}
            if self._mask is not None:
                # A parent may have begun this process while it held the signal back.
                release_signal(self._mask - {signal.SIGUSR1})

    def forget(self) -> None:
        """Leave signals to whom they were left before; SIGUSR1 waits again."""
        if self._here:
            hold_signal()
        while self._before:
            signal.signal(*self._before.popitem())

    def leave(self) -> None:
        """The run has ended: a SIGUSR1 that waits is dropped."""
        self.forget()
        if self._mask is not None:
            if signal.SIGUSR1 in signal.sigpending():
                signal.sigwait({signal.SIGUSR1})
            release_signal(self._mask)

    def _note(self, number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        if name == self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = name
        if name == "SIGINT" and is_first_process():
            os.write(2, b"ends after this step, with a checkpoint; Ctrl-C again ends without\n")


class Loop:
    """What happens after every step: figures, validation, checkpoints, the end."""

    def __init__(self, training: Training, signals: _Signals, say: Say, loggers: list[Any]) -> None:
        self.training, self.signals, self.say = training, signals, say
        self.outcome = Outcome(step=training.step)
        self._loggers = loggers
        self.metrics: Metrics | None = None
        self._since = time.perf_counter()
        self._reports: list[StepReport] = []
        self._saved = training.step

    def begin(self) -> None:
        """Once the training has its place and its state."""
        if self.training.ranks.rank == 0:
            path = self.training.out / "metrics.csv"
            self.metrics = Metrics(path, self._loggers, from_step=self.training.step)
        self._since = time.perf_counter()
        self._saved = self.outcome.step = self.training.step

    def after_step(self, report: StepReport) -> bool:
        """Do what is due; whether the run ends here. A collective call."""
        training, recipe = self.training, self.training.recipe
        self._reports.append(report)
        self.outcome.step, self.outcome.loss = report.step, report.loss
        self.outcome.skipped = sum(g.skipped for g in (training.guard, *(o.guard for o in training.others())))
        last = report.step >= recipe.steps
        validation, validated = recipe.validation, dict[str, float]()
        if validation.every and (report.step % validation.every == 0 or last):
            self.outcome.validation = validated = training.validate()
        if report.step % recipe.log.every == 0 or last or report.skipped or validated:
            self._tell({f"validation_{k}": v for k, v in validated.items()})
        stop = training.ranks.any(self.signals.received is not None, training.device)
        if (report.step % recipe.checkpoint.every == 0 or last or stop) and self._saved != report.step:
            training.save()
            self._saved = report.step
        if stop and not last:
            self.outcome.stopped = self.signals.received or "SIGTERM"
        return last or stop

    def _tell(self, validated: dict[str, float]) -> None:
        reports, self._reports = self._reports, []
        now = time.perf_counter()
        wall, self._since = now - self._since, now
        last, training = reports[-1], self.training
        per_step = wall / len(reports)
        tokens = sum(r.tokens for r in reports) / wall
        known = [r.mfu for r in reports if r.mfu is not None]
        memory = None
        if training.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(training.device) / 1e9
        loss = sum(r.loss for r in reports) / len(reports)
        figures = {
            "loss": loss,
            "norm": last.norm,
            "rate": last.rate,
            "tokens_per_s": tokens,
            "mfu": sum(known) / len(known) if known else None,
            "step_s": per_step,
            "memory_gb": memory,
            "skipped": last.skipped,
            **_means(reports),
            **validated,
        }
        if self.metrics is not None:
            self.metrics.add(last.step, figures)
        if training.ranks.rank == 0:
            left = (training.recipe.steps - last.step) * per_step
            text = f"step {last.step}/{training.recipe.steps}  loss {loss:.4f}  norm {last.norm:.3g}  "
            text += f"{per_step:.2f} s/step  {tokens:.0f} tokens/s  {_clock(left)} left"
            if figures["mfu"] is not None:
                text += f"  MFU {100 * sum(known) / len(known):.0f} %"
            if validated:
                text += f"  held out {validated['validation_loss']:.4f}"
            if last.skipped:
                text += f"  NOT TAKEN: {last.skipped}"
            self.say(text)


def _means(reports: list[StepReport]) -> dict[str, float]:
    """Means of further figures over the steps that have them."""
    names = {name: None for report in reports for name in report.more}
    values = {name: [r.more[name] for r in reports if name in r.more] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def run_training(training: Training, *, resume: bool, say: Say, accelerator: str = "auto") -> Outcome:
    """Train to the recipe's last step, or to the signal that ends it before.

    Args:
        training: not placed yet.
        resume: go on from the last checkpoint of its folder, if there is one.
        accelerator: `auto`, `cpu` or `gpu`.
    Raises:
        ModuleNotFoundError: Lightning, or a logger's package, is not installed.
        RuntimeError: `guard.Diverged`, `feed.BadClip`: the run cannot go on; the last checkpoint is kept.
        OSError: a checkpoint cannot be written; those before it are kept.
    """
    lightning = import_lightning()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    signals = _Signals()
    try:
        return _run_with(lightning, training, signals, resume=resume, say=say, accelerator=accelerator)
    finally:
        signals.leave()


def _run_with(
    lightning: Any, training: Training, signals: _Signals, *, resume: bool, say: Say, accelerator: str
) -> Outcome:
    recipe = training.recipe
    loggers = _loggers(lightning, recipe, training.out)
    loop = Loop(training, signals, say, loggers if is_first_process() else [])
    module = _module(lightning, training, loop, resume=resume)
    trainer = lightning.Trainer(
        accelerator=accelerator,
        devices=_devices(recipe, accelerator),
        num_nodes=recipe.parallel.nodes,
        strategy=_strategy(lightning, recipe, accelerator),
        precision="32-true",
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=training.out,
    )
    try:
        with _quiet():
            trainer.fit(module)
    except BaseException as error:
        _end_children(trainer)
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None  # of which Lightning makes an end without a word
        raise
    finally:
        signals.forget()
    if loop.outcome.stopped is None:
        loop.outcome.exported = training.export()
    for logger in loggers:
        logger.finalize("success")
    return loop.outcome


def _end_children(trainer: Any) -> None:
    """End the ranks that Lightning started from this process: they wait for one that is no more, and hold their GPUs
    as long as that takes. Those of torchrun and SLURM are ended by them."""
    kill = getattr(trainer.strategy.launcher, "kill", None)
    if kill is not None:
        kill(signal.SIGKILL)  # SIGTERM only asks them to stop after their step


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning warns of loaders without a length and of optimisers that it does not drive; both are meant."""
    import warnings

    with warnings.catch_warnings():
        for pattern in ("lightning", "torch.distributed.checkpoint"):
            warnings.filterwarnings("ignore", module=pattern)
        yield


def num_devices(recipe: TrainRecipe, accelerator: str = "auto") -> int:
    """Ranks of this machine."""
    found = _devices(recipe, accelerator)
    if found != "auto":
        return int(found)
    return max(1, torch.cuda.device_count()) if accelerator != "cpu" and torch.cuda.is_available() else 1


def check_devices(recipe: TrainRecipe, accelerator: str) -> None:
    """What a recipe asks for must be here, and be what torchrun started where it did.

    Raises:
        ValueError: it is not.
    """
    p = recipe.parallel
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError(
            "--accelerator gpu: torch finds no GPU here (nvidia-smi; --accelerator cpu goes without)"
        )
    if (started := _torchrun()) is not None:
        local, world = started
        if p.devices not in ("auto", local):
            raise ValueError(f"parallel.devices {p.devices}: torchrun started {local} ranks on this machine")
        if world != local * p.nodes:
            raise ValueError(
                f"parallel.nodes {p.nodes}: torchrun started {world} ranks, {local} of them on this machine "
                f"(--set parallel.nodes={world // local})"
            )
    wanted = num_devices(recipe, accelerator)
    if accelerator != "cpu" and torch.cuda.is_available() and wanted > torch.cuda.device_count():
        raise ValueError(
            f"parallel.devices: {wanted} GPUs are asked for, this machine has {torch.cuda.device_count()}"
        )


def _torchrun() -> tuple[int, int] | None:
    """Ranks that torchrun started on this machine and in all; None: it did not."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])


def _devices(recipe: TrainRecipe, accelerator: str) -> int | str:
    if (started := _torchrun()) is not None:
        return started[0]
    if recipe.parallel.devices == "auto" and (accelerator == "cpu" or not torch.cuda.is_available()):
        return 1
    return recipe.parallel.devices


def _strategy(lightning: Any, recipe: TrainRecipe, accelerator: str) -> Any:
    """One process without a group on one CPU, else the strategy that makes one."""
    world = num_devices(recipe, accelerator) * recipe.parallel.nodes
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    if world == 1 and not on_gpu and recipe.parallel.sharding != "fsdp":
        return "auto"
    from lightning.pytorch.strategies import ModelParallelStrategy

    return ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)


def _loggers(lightning: Any, recipe: TrainRecipe, out: Path) -> list[Any]:
    """Lightning's loggers beside `metrics.csv`; only the first rank's write."""
    from lightning.pytorch import loggers

    made: list[Any] = []
    for name in recipe.log.loggers:
        if name == "tensorboard":
            made.append(loggers.TensorBoardLogger(out, name="", version="tensorboard"))
        elif name == "wandb":
            made.append(
                loggers.WandbLogger(
                    project=recipe.log.project, name=recipe.name, save_dir=out, resume="allow"
                )
            )
    if is_first_process():
        for logger in made:
            logger.experiment  # noqa: B018  a logger that cannot begin says so before a step is taken
    return made


def _module(lightning: Any, training: Training, loop: Loop, *, resume: bool) -> Any:
    class Module(lightning.LightningModule):
        """The training as Lightning drives it: it brings processes and devices, nothing that learns."""

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.network = training.model
            self._placed = False

        def configure_model(self) -> None:
            if self._placed:  # called again by some strategies
                return
            self._placed = True
            training.place(self.trainer.strategy.root_device, make_ranks(training.recipe.parallel.context))
            training.share_held_out()
            found = checkpoints(training.out / "checkpoints")
            if resume and found:
                training.restore(found[-1])
                if training.ranks.rank == 0 and not is_sealed(found[-1]):
                    loop.say(
                        f"{found[-1].name}: is unsealed, of an earlier version: its tensors alone were checked"
                    )
            loop.begin()

        def configure_optimizers(self) -> None:
            return None

        def train_dataloader(self) -> Any:
            feed = training.feed()
            feed.ending = lambda: loop.signals.received is not None
            return feed

        def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
            return batch  # micro-batch by micro-batch in the step

        def on_train_start(self) -> None:
            loop.signals.hear()

        def on_train_end(self) -> None:
            loop.signals.forget()

        def training_step(self, batch: Any, batch_idx: int) -> None:
            if training.step >= training.recipe.steps:
                self.trainer.should_stop = True
                return
            if loop.after_step(training.take_step(batch)):
                self.trainer.should_stop = True

    return Module()


def describe(outcome: Outcome) -> dict[str, Any]:
    """For a run's record."""
    content = asdict(outcome)
    content["exported"] = [str(path) for path in outcome.exported]
    return content


def command_line() -> list[str]:
    """How this process was started."""
    return list(sys.argv)
