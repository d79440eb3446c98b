"""Does the network learn to follow cameras? Four small ones, trained in minutes, asked for paths that they never saw.

    python benchmarks/learns_cameras.py --minutes 9.2 --graph --out runs/learns   # on a GPU, all in all
    python benchmarks/learns_cameras.py --size toy --minutes 20 --out runs/toy    # the same on one core

Rooms and paths are drawn at random and rendered on the spot (`learns_scenes.py`). The network is the world model at
about 20 M parameters with all its parts, trained by `train.objective` from `initialise`'s values, four times with the
same clips in the same order: with both camera controls, the Plücker map alone, UCPE alone, none. Then rooms and paths
that none of them saw: the first picture and a path go in, the cameras of the pictures that come out are measured by
direct alignment with the first picture (`learns_align.py`), once with the path and once with another clip's.

What is small here: pictures of 96 x 64, one for every eighth video frame; the autoencoder is a linear one, the
principal components of patches of 8 x 8 pixels; there is no text (one fixed caption).

Prints a table; leaves figures.json, loss curves and a contact sheet in --out after every network.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from learns_clips import (
    PATCH,
    SIZES,
    TEXT_TOKENS,
    TEXT_WIDTH,
    Control,
    HeldOut,
    PatchCodec,
    Size,
    clips_of,
    conditions,
    held_out_clips,
)
from learns_figures import Figures, contact_sheet, figures_of, measure, table
from theodolite.kernels.attention import AttentionBackend
from theodolite.model.blocks import Block
from theodolite.model.context import Cameras, Operators
from theodolite.model.network import WorldModel
from theodolite.model.samplers import Text, noise_latents, sample_bidirectional
from theodolite.model.start import initialise
from theodolite.train.objective import Batch, ObjectiveConfig, training_loss
from torch import Tensor

CONTROLS: tuple[Control, ...] = ("both", "plucker", "ucpe", "none")
NAMES = {"both": "UCPE + Plücker", "plucker": "Plücker alone", "ucpe": "UCPE alone", "none": "none"}


# --- pictures and latents ----------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Clips as the training takes them, all on the device."""

    latents: Tensor
    cameras: Cameras

    def __len__(self) -> int:
        return len(self.latents)

    def take(self, index: Tensor) -> tuple[Tensor, Cameras]:
        c = self.cameras
        assert c.plucker is not None
        return self.latents[index], Cameras(c.camera_to_world[index], c.intrinsics[index], c.plucker[index])


def render_pool(size: Size, codec: PatchCodec, generator: torch.Generator, dtype: torch.dtype) -> Pool:
    """`size.clips` clips of rooms of their own."""
    latents, poses, lenses, plucker = [], [], [], []
    for _ in range(math.ceil(size.clips / 64)):
        clips = clips_of(size, generator, 64)
        cameras = conditions(size, clips.camera_to_world, clips.intrinsics_px)
        assert cameras.plucker is not None
        latents.append(codec.encode(clips.pictures).to(dtype))
        poses.append(cameras.camera_to_world)
        lenses.append(cameras.intrinsics)
        plucker.append(cameras.plucker.to(dtype))
    return Pool(torch.cat(latents), Cameras(torch.cat(poses), torch.cat(lenses), torch.cat(plucker)))


def seen_by(control: Control, cameras: Cameras) -> Cameras | None:
    """What a network with this control is given."""
    if control == "none":
        return None
    return replace(cameras, plucker=None) if control == "ucpe" else cameras


# --- training ----------------------------------------------------------------------------------


class MasterAdam:
    """AdamW on float32 copies of weights that run in bfloat16."""

    def __init__(self, model: WorldModel, lr: float) -> None:
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.masters = [p.detach().float().clone() for p in self.weights]
        cuda = self.weights[0].is_cuda
        self.lr = torch.tensor(lr, device=self.weights[0].device)
        self.optimiser = torch.optim.AdamW(
            self.masters,
            lr=self.lr if cuda else lr,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=cuda,
            capturable=cuda,
        )

    def set_lr(self, lr: float) -> None:
        self.lr.fill_(lr)
        if not self.lr.is_cuda:
            for group in self.optimiser.param_groups:
                group["lr"] = lr

    @torch.no_grad()
    def step(self) -> None:
        """One step from the weights' gradients, clipped to a norm of 1."""
        for master, weight in zip(self.masters, self.weights, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimiser.step()
        # Torch names it nowhere else, and it is one launch for all weights.
        copy_all: Any = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]
        copy_all(self.weights, self.masters)


def build_model(
    size: Size, control: Control, device: torch.device, operators: Operators, dtype: torch.dtype | None = None
) -> WorldModel:
    """The same initial weights for every control."""
    model = WorldModel(size.config(), operators)
    initialise(model, torch.Generator().manual_seed(7))
    if control == "plucker":
        # The camera branch stays as silent as it starts: what is left of the cameras is the map.
        for block in model.blocks:
            assert isinstance(block, Block)
            block.attn.out_proj_cam.requires_grad_(False)
    return model.to(device, dtype or working_type(device))


def working_type(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def caption(batch: int, device: torch.device) -> Text:
    return Text(_caption(device).expand(batch, -1, -1))


@lru_cache
def _caption(device: torch.device) -> Tensor:
    """The one caption of all clips: any numbers will do."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, TEXT_TOKENS, TEXT_WIDTH, generator=generator).to(device)


class Run:
    """A training in progress; on request its step is one CUDA graph."""

    def __init__(self, size: Size, control: Control, model: WorldModel, pool: Pool) -> None:
        self.size, self.model, self.pool = size, model, pool
        self.control: Control = control
        self.device = pool.latents.device
        self.objective = ObjectiveConfig(shift=size.shift)
        self.adam = MasterAdam(model, size.lr)
        torch.manual_seed(11)  # noise and levels: the default generator is the one that graphs replay
        self.order = torch.Generator(device=self.device).manual_seed(12)
        self.index = torch.zeros(size.batch, dtype=torch.long, device=self.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.loss = torch.zeros((), device=self.device)
        self.losses: list[Tensor] = []

    def step(self, lr: float) -> None:
        self.adam.set_lr(lr)
        torch.randint(len(self.pool), self.index.shape, generator=self.order, out=self.index)
        if self.graph is None:
            self.loss = self._work()
        else:
            self.graph.replay()
        self.losses.append(self.loss.clone())

    def _work(self) -> Tensor:
        latents, cameras = self.pool.take(self.index)
        batch = Batch(latents, caption(len(self.index), self.device), seen_by(self.control, cameras))
        loss = training_loss(self.model, batch, self.objective)
        loss.backward()
        self.adam.step()
        return loss.detach()

    def record(self) -> None:
        """Record the step as a CUDA graph, after steps that change nothing but the optimiser's averages."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step(0.0)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.loss = self._work()
        self.graph = graph
        self.losses.clear()


def learning_rate(size: Size, progress: float, step: int) -> float:
    """Up over 100 steps, flat, then down along a line over the last 60 percent of the training."""
    return size.lr * min(1.0, (step + 1) / 100) * min(1.0, max(0.02, (1 - progress) / 0.6))


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def train(run: Run, *, seconds: float, steps: int | None, log: Callable[[str], None]) -> int:
    """Train for so many steps, or for so many seconds where they are not given; steps done.

    The first network finds by the clock how many steps fit, the others take as many.
    """
    device = run.pool.latents.device
    run.model.train()
    start, said = time.perf_counter(), 0.0
    step = 0
    while True:
        if step % 10 == 0:
            synchronise(device)
        passed = time.perf_counter() - start
        progress = passed / seconds if steps is None else step / steps
        if progress >= 1:
            break
        run.step(learning_rate(run.size, progress, step))
        step += 1
        if passed - said > 15:
            said = passed
            recent = float(torch.stack(run.losses[-50:]).mean())
            log(f"  {run.control}: step {step}, {passed:.0f} s, loss {recent:.4f}")
            if not math.isfinite(recent):
                raise FloatingPointError(f"{run.control}: the loss is {recent} at step {step}")
    synchronise(device)
    log(f"  {run.control}: {step} steps in {time.perf_counter() - start:.0f} s")
    return step


def curve(losses: list[Tensor], points: int = 100) -> list[float]:
    values = torch.stack(losses).float().cpu()
    return [round(float(part.mean()), 5) for part in values.tensor_split(min(points, len(values)))]


def generate(
    size: Size, model: WorldModel, codec: PatchCodec, held: HeldOut, cameras: Cameras | None, steps: int
) -> Tensor:
    """(B, T, 3, H, W) pictures after the first picture of every held-out clip, by the bidirectional sampler."""
    model.eval()
    device = held.clips.pictures.device
    found = []
    for part in torch.arange(size.held_out, device=device).split(64):
        image = codec.encode(held.clips.pictures[part, :1])
        generator = torch.Generator(device=device).manual_seed(int(part[0]))
        latents = noise_latents(model, image, size.pictures, generator)
        given = None
        if cameras is not None:
            plucker = None if cameras.plucker is None else cameras.plucker[part]
            given = Cameras(cameras.camera_to_world[part], cameras.intrinsics[part], plucker)
        text = caption(len(part), device)
        latents = sample_bidirectional(model, latents, text, cameras=given, steps=steps, shift=size.shift)
        found.append(codec.decode(latents))
    return torch.cat(found)


# --- one run -----------------------------------------------------------------------------------


def one_gradient(size: Size, pool: Pool, operators: Operators, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Velocity (sampling's path) and gradients of all weights (training's path) of one batch from fixed draws."""
    device = pool.latents.device
    model = build_model(size, "both", device, operators, dtype)
    generator = torch.Generator(device=device).manual_seed(5)
    with torch.no_grad():  # what starts silent would hide what lies behind it
        for block in model.blocks:
            assert isinstance(block, Block)
            block.attn.out_proj_cam.weight.normal_(std=0.02, generator=generator)
        model.plucker_embedder.proj.weight.normal_(std=0.02, generator=generator)
    latents, cameras = pool.take(torch.arange(8, device=device))
    text = caption(8, device)
    with torch.no_grad():
        times = torch.full((8,), 600, device=device)
        velocity = model(latents, times, text.states, cameras=cameras)
    batch = Batch(latents, text, cameras)
    training_loss(model, batch, ObjectiveConfig(shift=size.shift), generator).backward()
    gradient = torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])
    return velocity.float(), gradient


def choose_operators(
    size: Size, pool: Pool, attention: AttentionBackend
) -> tuple[Operators, dict[str, float | str]]:
    """Triton kernels in training if their velocity and gradients err like the plain twins in bfloat16, else the twins.

    Both are held against the twins in float32. What was measured is part of the report.
    """
    twins, kernels = Operators("reference", attention), Operators("auto", attention)
    exact = one_gradient(size, pool, Operators("reference", "reference"), torch.float32)

    def errors(operators: Operators) -> tuple[float, float]:
        found = one_gradient(size, pool, operators, torch.bfloat16)
        first, second = ((f - e).norm() / e.norm() for f, e in zip(found, exact, strict=True))
        return float(first), float(second)

    rough = errors(twins)
    report: dict[str, float | str] = {"twins_velocity": rough[0], "twins_gradient": rough[1], "used": "twins"}
    try:
        found = errors(kernels)
    except Exception as error:  # noqa: BLE001  a kernel that does not build must not cost the study
        report["error"] = f"{type(error).__name__}: {error}"[:500]
        return twins, report
    report.update(kernels_velocity=found[0], kernels_gradient=found[1])
    if all(f <= 2 * r + 0.01 for f, r in zip(found, rough, strict=True)):  # NaN is not
        report["used"] = "Triton"
        return kernels, report
    return twins, report


def timed(run: Run, steps: int = 10) -> float:
    """Seconds of a step."""
    synchronise(run.device)
    start = time.perf_counter()
    for _ in range(steps):
        run.step(0.0)
    synchronise(run.device)
    return (time.perf_counter() - start) / steps


def profile(run: Run, steps: int = 3) -> str:
    """Where the time of a step goes, by kernel."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    with recorded(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        for _ in range(steps):
            run.step(0.0)
        synchronise(run.pool.latents.device)
    return found.key_averages().table(sort_by="self_cuda_time_total", row_limit=14, max_name_column_width=60)


class Study:
    """All trainings of a run, and what they leave behind; written after each, so that a run that is cut keeps it."""

    def __init__(self, size: Size, args: argparse.Namespace) -> None:
        self.size, self.args = size, args
        self.device = torch.device(args.device)
        self.out = Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, Figures] = {}
        self.shown: dict[str, Tensor] = {}
        self.facts: dict[str, object] = {}
        self.operators = Operators(attention=args.attention)
        self.start = time.perf_counter()

    def log(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.start:6.1f} s] {text}", flush=True)

    def save(self) -> None:
        figures = {
            name: {k: v for k, v in asdict(f).items() if math.isfinite(v)} for name, f in self.rows.items()
        }
        report = {**self.facts, "size": asdict(self.size), "figures": figures}
        part = self.out / "figures.json.part"
        part.write_text(json.dumps(report, indent=1), encoding="utf-8")
        part.replace(self.out / "figures.json")
        (self.out / "table.md").write_text(table(self.rows) + "\n", encoding="utf-8")
        contact_sheet(self.out / "contact_sheet.png", self.shown)

    def prepare(self) -> tuple[PatchCodec, Pool, HeldOut]:
        size, device = self.size, self.device
        generator = torch.Generator(device=device).manual_seed(1)
        codec = PatchCodec(clips_of(size, generator, 64).pictures, size.channels)
        held = held_out_clips(size, device)
        true = held.clips.pictures
        coded = codec.decode(codec.encode(true))
        identity = torch.eye(4, device=device).expand_as(held.truth)
        (self.rows["true pictures (what the measurement errs)"],) = measure(held, true, held.truth)
        (self.rows["true pictures through the autoencoder"],) = measure(held, coded, held.truth)
        self.rows["a camera at rest"] = figures_of(identity, held.truth, held, true[:, :1].expand_as(true))
        self.shown["true"] = true
        self.log("\n" + table(self.rows))
        pool = render_pool(size, codec, generator, torch.bfloat16 if device.type == "cuda" else torch.float32)
        synchronise(device)
        self.log(
            f"{len(pool)} clips of {size.pictures} pictures rendered, {pool.latents.std():.2f} their spread"
        )
        return codec, pool, held

    def share_s(self) -> float:
        """Seconds of training for each network, if they share what is left of the time but for their measurement."""
        left = 60 * self.args.minutes - (time.perf_counter() - self.start)
        return max(5.0, left / len(self.args.controls.split(",")) - self.args.measuring_s)

    def start_run(self, control: Control, pool: Pool, lr: float) -> Run:
        size = replace(self.size, lr=lr)
        model = build_model(size, control, self.device, self.operators)
        run = Run(size, control, model, pool)
        if self.args.graph and "graph_refused" not in self.facts:
            try:
                run.record()
            except RuntimeError as error:  # the study goes on, slower
                self.facts["graph_refused"] = str(error)[:300]
                self.log(f"no graph of the step: {error}")
                return self.start_run(control, pool, lr)
        return run

    def control(
        self, control: Control, codec: PatchCodec, pool: Pool, held: HeldOut, steps: int | None
    ) -> int:
        """Train and measure one network; its steps."""
        size, args = self.size, self.args
        run = self.start_run(control, pool, size.lr)
        if steps is None:
            for _ in range(5):  # kernels are built, memory is reserved
                run.step(0.0)
            if args.profile:
                self.log("\n" + profile(run))
                self.log(f"a step takes {1000 * timed(run):.1f} ms")
            run = self.start_run(control, pool, size.lr)
        try:
            steps = train(run, seconds=self.share_s(), steps=steps, log=self.log)
        except FloatingPointError as error:
            self.log(f"{error}: once more with a third of the learning rate")
            self.facts[f"diverged_{control}"] = str(error)
            run = self.start_run(control, pool, size.lr / 3)
            steps = train(run, seconds=self.share_s(), steps=steps, log=self.log)
        model = run.model
        self.facts[f"loss_{control}"] = curve(run.losses)
        name = NAMES[control]
        pictures = generate(size, model, codec, held, seen_by(control, held.asked), args.sampling_steps)
        (self.rows[name],) = measure(held, pictures, held.truth)
        self.shown[name.replace("ü", "u")] = pictures
        if control != "none":
            cameras = seen_by(control, held.shuffled)
            pictures = generate(size, model, codec, held, cameras, args.sampling_steps)
            self.rows[f"{name}, shuffled"], told = measure(held, pictures, held.truth, held.others)
            self.rows[f"{name}, shuffled, against the path given"] = replace(told, psnr_db=math.nan)
            self.shown[name.replace("ü", "u") + ", another clip's path"] = pictures
        self.save()
        self.log("\n" + table(self.rows))
        return steps

    def run(self) -> None:
        codec, pool, held = self.prepare()
        count = sum(p.numel() for p in WorldModel(self.size.config()).parameters())
        self.facts.update(
            parameters=count,
            device=torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            torch=torch.__version__,
            minutes=self.args.minutes,
            patch_pixels=PATCH,
        )
        self.log(f"{count / 1e6:.1f} M parameters")
        if self.device.type == "cuda":
            self.operators, self.facts["kernels"] = choose_operators(self.size, pool, self.args.attention)
            self.log(f"against twins in float32: {self.facts['kernels']}")
        self.save()
        steps = self.args.steps
        for control in self.args.controls.split(","):
            steps = self.control(control, codec, pool, held, steps)
            self.facts["steps"] = steps


def arguments() -> Iterator[tuple[str, dict]]:
    yield "--size", dict(choices=SIZES, default="small")
    yield (
        "--minutes",
        dict(type=float, default=9.2, help="for everything; all networks train for equally many steps"),
    )
    yield "--steps", dict(type=int, default=None, help="of each network, instead of sharing the minutes")
    yield "--device", dict(default="cuda" if torch.cuda.is_available() else "cpu")
    yield "--controls", dict(default=",".join(CONTROLS))
    yield "--attention", dict(choices=("auto", "cudnn", "flash"), default="auto")
    yield "--sampling-steps", dict(type=int, default=30)
    yield (
        "--measuring-s",
        dict(type=float, default=15, help="kept back for sampling and measuring each network"),
    )
    yield "--graph", dict(action="store_true", help="replay a recorded step: spares the host")
    yield "--profile", dict(action="store_true")
    yield "--out", dict(required=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, options in arguments():
        parser.add_argument(name, **options)
    args = parser.parse_args()
    unknown = set(args.controls.split(",")) - set(CONTROLS)
    if unknown:
        parser.error(f"--controls: unknown {', '.join(sorted(unknown))}; known are {', '.join(CONTROLS)}")
    Study(SIZES[args.size], args).run()


if __name__ == "__main__":
    main()
