"""`theodolite train`: a recipe and encoded clips in; checkpoints, figures and weights out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..annotate.run.cluster import RunAborted
from ..dataset.commit import hold_folder
from ..dataset.encoded import EncodedDataset, open_encoded
from ..dataset.inputs import read_json, read_yaml
from ..dataset.licences import find_licence
from ..dataset.outputs import refuse_other_outputs
from ..dataset.store import write_atomically
from ..dataset.weights import CHAINS, file_digest
from ..model.config import WorldModelConfig
from ..model.memory import SPARE_BYTES
from ..train.check import check_data
from ..train.cost import (
    ClipShape,
    disk_bytes,
    distillation_flops,
    distillation_memory,
    memory_rows,
    num_parameters,
    peak_flops,
    step_flops,
)
from ..train.distillation import make_training
from ..train.feed import BadClip, hold_out
from ..train.guard import Diverged
from ..train.order import sample_order
from ..train.recipe import FREE_TO_CHANGE, PATHS, TrainRecipe, changed_keys, resolve_paths
from ..train.refiner_training import RefinerTraining, pair_problems, refiner_folder, start_refiner
from ..train.run import (
    Outcome,
    check_devices,
    check_loggers,
    describe,
    import_lightning,
    is_first_process,
    num_devices,
    run_training,
)
from ..train.start import check_latents, check_sizes, check_use, start_model, weights_path
from ..train.state import checkpoints, read_progress
from ..train.training import Training
from ..train.trajectories import Trajectories
from .command import Say
from .loader import (
    apply_overrides,
    checked_recipe,
    now_iso,
    packaged_names,
    packaged_or_own,
    read_content,
    surroundings,
)

_PACKAGES = ("torch", "lightning", "triton", "numpy", "safetensors", "peft")
_MFU = 0.35
"""Share of a GPU's peak that a dry run reckons with, until a run has measured its own."""


def train_recipes() -> list[str]:
    """Names of the packaged recipes of trainings."""
    return packaged_names("train")


def load_train_recipe(name: str | Path, overrides: Sequence[str] = ()) -> TrainRecipe:
    """Read, override and check a recipe of a training; a relative `start.weights` is relative to the recipe's file,
    one given with `--set` to the current folder.

    Raises:
        RecipeError: with every mistake found.
    """
    path = packaged_or_own(name, "train", "trainings")
    content, errors = read_content(path)
    resolve_paths(content, path.parent.resolve())
    errors += apply_overrides(content, overrides)
    resolve_paths(content, Path.cwd())  # what is still relative came with `--set`
    return checked_recipe(TrainRecipe, path, content, errors)


def run_train(
    recipe: TrainRecipe,
    data: Sequence[Path],
    out: Path,
    *,
    resume: bool = False,
    dry_run: bool = False,
    accelerator: str = "auto",
    say: Say = lambda text: None,
    command: Sequence[str] = (),
) -> tuple[str, int]:
    """Train, or say what it would take.

    Args:
        data: folders of encoded clips, encoded alike.
        out: folder of the run.
        resume: go on from its last checkpoint, or begin if it has none.
    Returns:
        summary, and 0, or 130 where a signal ended the run early.
    Raises:
        ValueError: nothing was trained: a wrong recipe, data that do not fit, a folder of another run.
        RunAborted: the run diverged, or clips are broken; OSError: the disk is full. Checkpoints are kept.
    """
    clips = open_encoded(*data)
    if dry_run:
        return plan_text(recipe, clips), 0
    import_lightning()
    check_loggers(recipe)
    check_devices(recipe, accelerator)
    out = out.resolve()
    changed = _check_folder(recipe, out, resume=resume)
    first = is_first_process()
    if changed and first:
        say(f"goes on otherwise than before: {'; '.join(changed)}")
    with ExitStack() as stack:
        if first:
            stack.enter_context(hold_folder(out))
            _write_recipe(recipe, out)
        training = _made(recipe, clips, out, say if first else None)
        with _aborting(out):
            training.check_held_out()
        begun = now_iso()
        _record(out, recipe, clips, begun, command, None)
        with _aborting(out):
            outcome = run_training(training, resume=resume, say=say, accelerator=accelerator)
        _record(out, recipe, clips, begun, command, describe(outcome))
    return _summary(training, outcome) if first else ("", 0)


@contextmanager
def _aborting(out: Path) -> Iterator[None]:
    """What ends a run that cannot go on is the end of the command."""
    try:
        yield
    except (Diverged, BadClip) as error:
        raise RunAborted(f"{out}: {error}") from error


def _made(recipe: TrainRecipe, clips: EncodedDataset, out: Path, say: Say | None) -> Training:
    """The training, not placed yet; what it starts from and on is told."""
    if recipe.objective == "refiner":
        e = clips.encoding
        refiner = start_refiner(recipe, latent_channels=e.latent_channels, text_width=e.text_width)
        if say is not None:
            say(refiner.summary())
            say(_clips_text(recipe, clips))
        return RefinerTraining(recipe, refiner, clips, out)
    started = start_model(recipe)
    training = make_training(recipe, started, clips, out)
    if say is not None:
        say(started.summary())
        say(_clips_text(recipe, clips))
    return training


def _summary(training: Training, outcome: Outcome) -> tuple[str, int]:
    out = training.out
    if outcome.stopped is not None:
        return (
            f"stopped by {outcome.stopped} after step {outcome.step}; --resume goes on from its checkpoint",
            130,
        )
    lines = [f"{out}: {outcome.step} steps" + ("" if outcome.loss is None else f", loss {outcome.loss:.4f}")]
    if outcome.validation:
        lines.append("held out: " + ", ".join(f"{k} {v:.4f}" for k, v in outcome.validation.items()))
    if outcome.skipped:
        lines.append(f"{outcome.skipped} steps were not taken (faults/)")
    if training.feed_faults:
        lines.append(
            f"{len(training.feed_faults)} windows could not be read: {', '.join(sorted(training.feed_faults)[:5])}"
        )
    lines += [f"weights: {path}" for path in outcome.exported]
    return "\n".join(lines), 0


def _check_folder(recipe: TrainRecipe, out: Path, *, resume: bool) -> list[str]:
    """A folder with checkpoints is gone on with on request only, and by the same recipe but for what may change.

    Returns:
        what did change.
    """
    refuse_other_outputs(out, "checkpoints")
    found = checkpoints(out / "checkpoints")
    if not found:
        return []
    if not resume:
        raise ValueError(f"{out}: holds checkpoints up to {found[-1].name}; --resume goes on from there")
    path = out / "recipe.resolved.yaml"
    content, _ = read_yaml(path)
    before = content if isinstance(content, dict) else {}
    now = recipe.model_dump(mode="json")
    every = changed_keys(before, now)
    changed = [line for line in every if not line.startswith(FREE_TO_CHANGE)]
    begun, given = _digests_begun_with(out), _digests(recipe)
    for key in sorted(
        begun.keys() & given.keys()
    ):  # what counts is the content: a file may be moved, or written anew
        changed = [line for line in changed if not line.startswith(f"{key}: ")]
        if begun[key] != given[key]:
            section, _, name = key.partition(".")
            path = getattr(getattr(recipe, section), name)
            changed.append(f"{key}: {path} holds something else than it began with")
    if changed:
        raise ValueError(f"{out}: was trained by another recipe: {'; '.join(changed)}; choose another --out")
    step = int(read_progress(found[-1])["step"])
    if step >= recipe.steps and _is_finished(out, recipe.steps):
        raise ValueError(f"{out}: has done its {step} steps; --set steps=N goes on to more")
    return [line for line in every if line.startswith(FREE_TO_CHANGE)]


def _digests(recipe: TrainRecipe) -> dict[str, str]:
    """Of every file that a recipe names, by key, and of trajectories of what they say of themselves; not of releases,
    nor of weights in a folder."""
    found = {}
    for section, key in PATHS:
        value = getattr(getattr(recipe, section), key, None)
        if value is None or value.startswith("released/"):
            continue
        path = Path(value) / "trajectories.json" if key == "trajectories" else Path(value)
        if path.is_file():
            found[f"{section}.{key}"] = file_digest(path)
    return found


def _digests_begun_with(out: Path) -> dict[str, str]:
    """`_digests` of a folder's last run; earlier versions kept that of `start.weights` alone."""
    runs = _runs(out / "run.json")
    last = runs[-1] if runs else {}
    digests = last.get("digests", {"start.weights": last.get("start_digest")})
    return {k: v for k, v in digests.items() if isinstance(v, str)} if isinstance(digests, dict) else {}


def _is_finished(out: Path, steps: int) -> bool:
    """Whether a run came to its end, weights written; one that was killed after its last step has yet to."""
    results = [run.get("result") for run in _runs(out / "run.json")]
    return any(
        isinstance(r, dict)
        and r.get("stopped") is None
        and isinstance(step := r.get("step"), int)
        and step >= steps
        for r in results
    )


def _runs(path: Path) -> list[dict[str, Any]]:
    """Records of a folder's runs, oldest first.

    Raises:
        ValueError: they are damaged.
    """
    if not path.is_file():
        return []
    content = read_json(path)
    runs = content.get("runs") if isinstance(content, dict) else None
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise ValueError(f"{path}: is no record of trainings; move it away, and --resume goes on")
    return runs


def _write_recipe(recipe: TrainRecipe, out: Path) -> None:
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_atomically(out / "recipe.resolved.yaml", text.encode())


def _record(
    out: Path,
    recipe: TrainRecipe,
    clips: EncodedDataset,
    begun: str,
    command: Sequence[str],
    result: dict[str, Any] | None,
) -> None:
    """Add or finish this run in `run.json`; a run without an end was killed."""
    if not is_first_process():
        return
    path = out / "run.json"
    runs = _runs(path)
    if result is None:
        digests = _digests(recipe)
    else:
        # The one that this run added: a time of its own it may not have. The files that it began with may be others
        # by now, or elsewhere.
        runs, digests = runs[:-1], runs[-1].get("digests")
    record = {
        "started": begun,
        "ended": None if result is None else now_iso(),
        "recipe": recipe.name,
        "command": list(command),
        "data": [str(folder) for folder in clips.folders],
        "encoding": clips.encoding.model_dump(mode="json"),
        "licences": _licences(recipe, clips),
        "digests": digests,
        **surroundings(_PACKAGES),
        "result": result,
    }
    write_atomically(path, (json.dumps({"runs": [*runs, record]}, indent=1) + "\n").encode())


def _licences(recipe: TrainRecipe, clips: EncodedDataset) -> dict[str, list[str]]:
    return {
        "data": sorted({w.data_licence for w in clips.windows}),
        "encoders": list(clips.encoding.weight_licences),
        "start": [recipe.start.weights or "initial values"],
    }


def _clips_text(recipe: TrainRecipe, clips: EncodedDataset) -> str:
    train, held_out = hold_out(clips, recipe.data.held_out, seed=recipe.seed)
    hours = sum(clips.windows[i].num_frames for i in train) / clips.encoding.fps / 3600
    without = sum(not clips.windows[i].cameras for i in train)
    text = f"{len(train)} windows to train on ({hours:.2f} h), {len(held_out)} clips held out"
    if (weights := recipe.data.sources) is not None:
        sample_order([clips.windows[i] for i in train], seed=recipe.seed, weights=weights)
        shares = (f"{name} {100 * w / sum(weights.values()):.1f} %" for name, w in sorted(weights.items()))
        text += f"; mixed: {', '.join(shares)}"
    if without and recipe.data.cameras != "none":
        text += f"; {without} have no cameras and get those that stand for none"
    return text


def plan_text(recipe: TrainRecipe, clips: EncodedDataset) -> str:
    """What a run would take: clips, tokens, steps, memory by part, time; no weights are read, no GPU is taken.

    Raises:
        ValueError: the data do not fit the model.
    """
    if recipe.objective == "refiner":
        return _refiner_plan(recipe, clips)
    import torch

    from ..model.network import WorldModel

    config, missing = _planned_sizes(recipe)
    with torch.device("meta"):
        check_data(recipe, WorldModel(config), clips)
    p = recipe.parallel
    world = num_devices(recipe) * p.nodes
    if world % p.context:
        raise ValueError(f"parallel.context {p.context} does not divide {world} ranks")
    _check_beside(recipe, clips)
    longest, shape = _longest(recipe, clips)
    per_step = world // p.context * recipe.data.batch * recipe.data.accumulate
    train, _ = hold_out(clips, recipe.data.held_out, seed=recipe.seed)
    one = step_flops(config, shape) if recipe.student is None else distillation_flops(recipe, config, shape)
    flops = per_step * one
    rows = _planned_memory(recipe, config, shape, world)
    lines = [
        f"recipe   {recipe.name}: {recipe.objective}, {'chunk-causal' if recipe.chunk else 'bidirectional'}, cameras "
        f"{recipe.data.cameras}, {'LoRA of rank ' + str(recipe.lora.rank) if recipe.lora else 'all weights'}",
        f"network  {num_parameters(config) / 1e6:.1f} M parameters, from {recipe.start.weights or 'initial values'}",
        f"data     {_clips_text(recipe, clips)}",
        f"         longest {longest} frames: {shape.tokens} tokens; licences {_licence_text(clips)}",
        f"steps    {recipe.steps} of {per_step} windows: {recipe.steps * per_step / len(train):.1f} epochs, "
        f"{recipe.steps * per_step * shape.tokens / 1e9:.2f} G tokens at most",
        f"ranks    {world} ({p.nodes} machines), {p.context} share a clip",
        f"compute  {flops / 1e12:.2f} TFLOP a step, {recipe.steps * flops / 1e18:.3f} EFLOP in all",
    ]
    lines += [f"memory   {size:7.2f} GB  {what}" for what, size in rows]
    lines.append(
        f"         {sum(size for _, size in rows):7.2f} GB  a GPU by counting; leave {SPARE_BYTES / 1e9:.1f} GB beside "
        "it for CUDA itself, workspaces and gaps"
    )
    lines += [_disk_text(recipe, config), _time_text(flops, world, recipe.steps)]
    return "\n".join([*lines, *missing])


def _planned_memory(
    recipe: TrainRecipe, config: WorldModelConfig, shape: ClipShape, world: int
) -> list[tuple[str, float]]:
    """(what, GB) on one GPU."""
    p = recipe.parallel
    replicated = p.sharding == "replicate"
    exact = recipe.precision == "float32" or (replicated and recipe.lora is None)
    spread = 1 if replicated else world
    rows = memory_rows(
        config,
        replace(shape, frames=shape.frames * recipe.data.batch),
        ranks=spread,
        context=p.context,
        recompute=p.recompute,
        lora=recipe.lora,
        number_bytes=4 if exact else 2,
    )
    if recipe.ema is not None:
        rows.append(("average of the weights, float32", 4e-9 * num_parameters(config) / spread))
    if recipe.student is not None:
        rows += distillation_memory(recipe, config, shape, ranks=spread)
    return rows


def _disk_text(recipe: TrainRecipe, config: WorldModelConfig) -> str:
    checkpoint, exported = (size / 1e9 for size in disk_bytes(recipe, config))
    c = recipe.checkpoint
    kept = c.keep + 1 + (recipe.steps // c.keep_every if c.keep_every else 0)  # one more while it is written
    shown = (
        f"disk     {checkpoint:7.2f} GB a checkpoint"
        if checkpoint > 0.1
        else "disk     less than 0.1 GB a checkpoint"
    )
    return f"{shown}, {kept} of them at most; {exported:.2f} GB of weights at the end"


def _planned_sizes(recipe: TrainRecipe) -> tuple[WorldModelConfig, list[str]]:
    """Sizes of the network, and a line where it is a release that is not on this machine yet: its sizes are known.

    Raises:
        ValueError: weights that are no release are not there.
    """
    from ..model.checkpoint import read_config, read_tensors

    config, weights, missing = recipe.model, recipe.start.weights, list[str]()
    path = None
    if weights is not None:
        try:
            path = weights_path(weights)
        except ValueError as error:
            if not weights.startswith("released/") or weights.removeprefix("released/") not in CHAINS:
                raise
            missing.append(f"start    {error}")
    if path is not None and not recipe.start.grow:
        tensors, layout = read_tensors(path)
        found = read_config({k: v.shape for k, v in tensors.items()}, origin=str(path))
        check_sizes(found, layout, recipe, path)
        config = config or found
    return config or WorldModelConfig(), missing


def _refiner_plan(recipe: TrainRecipe, clips: EncodedDataset) -> str:
    """The plan of a refiner's training; its operations and the insides of a block are not counted."""
    assert recipe.lora is not None
    if recipe.start.weights is not None:
        refiner_folder(recipe.start.weights)
    if problems := pair_problems(recipe, clips, stand_in=recipe.start.weights is None):
        folders = ", ".join(map(str, clips.folders))
        raise ValueError(f"{folders}: these clips do not fit: {'; '.join(problems)}")
    e, world = clips.encoding, num_devices(recipe) * recipe.parallel.nodes
    longest = (max(w.num_frames for w in clips.windows) - 1) // e.temporal_stride + 1
    train, _ = hold_out(clips, recipe.data.held_out, seed=recipe.seed)
    per_step = world * recipe.data.batch * recipe.data.accumulate
    return "\n".join(
        [
            f"recipe   {recipe.name}: refiner, LoRA of rank {recipe.lora.rank} on {', '.join(recipe.lora.parts)}",
            f"network  from {recipe.start.weights or 'random numbers'}",
            f"data     {_clips_text(recipe, clips)}; pairs made by {e.world_model or 'nothing: these are no pairs'}",
            f"         longest {longest} latent frames; licences {_licence_text(clips)}",
            f"steps    {recipe.steps} of {per_step} windows: {recipe.steps * per_step / len(train):.1f} epochs",
            f"ranks    {world} ({recipe.parallel.nodes} machines), each with the whole network",
        ]
    )


def _longest(recipe: TrainRecipe, clips: EncodedDataset) -> tuple[int, ClipShape]:
    """Video frames of the longest clip as far as it is used, and its shape."""
    e = clips.encoding
    longest = max(w.num_frames for w in clips.windows)
    if recipe.student is not None:
        longest = min(longest, (recipe.student.frames - 1) * e.temporal_stride + 1)
    shape = ClipShape(
        frames=(longest - 1) // e.temporal_stride + 1,
        height=e.height // e.spatial_stride,
        width=e.width // e.spatial_stride,
        cameras=recipe.data.cameras != "none",
        chunk=recipe.chunk,
    )
    return longest, shape


def _check_beside(recipe: TrainRecipe, clips: EncodedDataset) -> None:
    """What a training reads beside its start and its clips must be there, and fit."""
    if recipe.start.weights is not None:
        check_use(recipe.start.weights, recipe.objective)
    named = []
    if (consistency := recipe.consistency_init) is not None:
        named.append((consistency.teacher, "teacher"))
    if (forcing := recipe.self_forcing) is not None:
        named += [(forcing.real, "real score"), (forcing.fake, "fake score")]
    for weights, use in named:
        if weights is not None:
            weights_path(weights)
            check_use(weights, use)
            check_latents(weights, use, clips.encoding.autoencoder)
    if recipe.ode_init is not None and recipe.student is not None:
        Trajectories.open(Path(recipe.ode_init.trajectories)).check(recipe.student, clips)


def _licence_text(clips: EncodedDataset) -> str:
    names = sorted({w.data_licence for w in clips.windows})
    unknown = [name for name in names if find_licence(name) is None]
    return ", ".join(names) + (f" (unknown: {', '.join(unknown)})" if unknown else "")


def _time_text(flops: float, world: int, steps: int) -> str:
    import torch

    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "H100"
    peak = peak_flops(name) or 989e12
    seconds = flops / (world * peak * _MFU)
    hours = steps * seconds / 3600
    return (
        f"time     {seconds:.2f} s a step and {hours:.1f} h ({hours * world:.1f} GPU-hours) on {world} x {name}, "
        f"reckoned at {100 * _MFU:.0f} % of its peak, not measured"
    )
