"""The whole chain from a picture to a video with random weights of full size: wall time and peak memory by stage.

    python benchmarks/chain.py [--mode bidirectional] [--offload none|idle|blocks] [--cap-gb 24] [--seconds 60]
        [--steps 2] [--refiner-block 3] [--no-refiner] [--no-gemma3] [--no-tiles] [--channels-last] [--parts] [--mp4 V]
        [--graphs] [--overlap]
    python benchmarks/chain.py --tiny

It runs `Generator.generate`, what users run, and prints for each stage the memory that was planned beside what was
measured. --cap-gb limits torch's allocator, as a smaller card would. --steps: of the 60 (the time of one step is
printed). --no-gemma3 gives the refiner random hidden states in place of its language model. --parts times the refiner's
and the decoder's own parts first. --tiny does all of it at a tiny size on the CPU, to prove that it runs.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import numpy as np
import torch
from theodolite.dataset.cameras.paths import named_path
from theodolite.model.autoencoder import Tiling, VideoAutoencoder, tiny_autoencoder
from theodolite.model.config import WorldModelConfig
from theodolite.model.generation import GenerationRequest, Generator
from theodolite.model.generation_record import GenerationRecord
from theodolite.model.memory import RELEASED_SIZES, Networks, VideoShape, measured_size, plan_memory
from theodolite.model.network import WorldModel
from theodolite.model.refiner import Refiner, RefinerOptions, tiny_refiner
from theodolite.model.residence import Residence
from theodolite.model.samplers import Text
from theodolite.model.sampling import Sampling
from theodolite.model.stand_ins import (
    full_autoencoder,
    full_refiner,
    full_refiner_text_encoder,
    full_text_encoder,
    full_world_model,
)
from theodolite.model.text import (
    TextEncoder,
    tiny_refiner_text_encoder,
    tiny_text_encoder,
)
from torch import Tensor, nn

PROMPT = (
    "A narrow street in an old town after rain, morning light on wet stones, a bicycle leans against a wall."
)


class GivenText(nn.Module):
    """Random hidden states in place of the refiner's language model."""

    stand_in = True

    def __init__(
        self, device: torch.device, dtype: torch.dtype, tokens: int = 1024, width: int = 3840
    ) -> None:
        super().__init__()
        self.states = torch.randn(1, tokens, width, device=device).to(dtype)

    def encode(self, prompt: str) -> Text:
        return Text(self.states)


@dataclass(frozen=True)
class Parts:
    """What a chain is made of."""

    world_model: WorldModel
    autoencoder: VideoAutoencoder
    text_encoder: TextEncoder
    refiner: Refiner | None
    refiner_text_encoder: Any


def full_parts(asked: argparse.Namespace, home: torch.device) -> Parts:
    """Random networks of the released sizes in bfloat16."""
    dtype = torch.bfloat16
    tiling = Tiling(size_px=None) if asked.no_tiles else Tiling()
    autoencoder = full_autoencoder(home, dtype, causal=asked.mode == "distilled", tiling=tiling)
    if asked.channels_last:
        to_layout: Any = nn.Module.to  # its stubs know channels_last alone
        to_layout(autoencoder, memory_format=torch.channels_last_3d)
    refiner, reader = None, None
    if not asked.no_refiner:
        refiner = full_refiner(home, dtype, options=RefinerOptions(block_frames=asked.refiner_block))
        reader = (
            GivenText(torch.device(asked.device), dtype)
            if asked.no_gemma3
            else full_refiner_text_encoder(home, dtype)
        )
    return Parts(full_world_model(home, dtype), autoencoder, full_text_encoder(home, dtype), refiner, reader)


def tiny_parts(asked: argparse.Namespace) -> Parts:
    config = WorldModelConfig(depth=4, width=48, heads=2, latent_channels=8, text_width=16, text_tokens=40)
    torch.manual_seed(0)
    options = RefinerOptions(block_frames=asked.refiner_block)
    return Parts(
        WorldModel(config).eval(),
        tiny_autoencoder(causal=asked.mode == "distilled", tiling=Tiling(frames=16, stride_frames=8)),
        tiny_text_encoder(tokens=40),
        None if asked.no_refiner else tiny_refiner(options=options),
        GivenText(torch.device("cpu"), torch.float32, 64, 16)
        if asked.no_gemma3
        else tiny_refiner_text_encoder(tokens=128),
    )


def request(asked: argparse.Namespace) -> GenerationRequest:
    height, width = (64, 96) if asked.tiny else (704, 1280)
    step = 24 if asked.mode == "distilled" else 8
    frames = max(1, round(16 * asked.seconds / step)) * step + 1
    changes = {} if asked.mode == "distilled" else {"steps": asked.steps}
    k = np.tile(
        np.array([[0.7 * width, 0, width / 2], [0, 0.7 * width, height / 2], [0, 0, 1]]), (frames, 1, 1)
    )
    image = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return GenerationRequest(
        image=image.repeat(8, 0).repeat(8, 1),
        prompt="A narrow street." if asked.tiny else PROMPT,
        camera_to_world=named_path("fly-through", frames),
        intrinsics_px=k,
        sampling=Sampling.published(
            asked.mode, graphs=asked.graphs or None, overlap=asked.overlap or None, **changes
        ),
        refine=not asked.no_refiner,
    )


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(call: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Least seconds of a call, and its last result."""
    result = call()
    best = float("inf")
    for _ in range(repeats):
        synchronise()
        start = time.perf_counter()
        result = call()
        synchronise()
        best = min(best, time.perf_counter() - start)
    return best, result


def time_parts(parts: Parts, asked: argparse.Namespace, wanted: GenerationRequest) -> None:
    """The refiner's block and the decoder's tile or chunk on their own; weights must be on the device."""
    height, width = (s // 32 for s in wanted.image.shape[:2])
    channels = parts.autoencoder.latent_channels
    device, dtype = parts.autoencoder.device, parts.autoencoder.dtype

    def latents(frames: int) -> Tensor:
        return torch.randn(1, channels, frames, height, width, device=device).to(dtype)

    if parts.autoencoder.is_causal:
        stream = parts.autoencoder.start_stream()
        stream.add(latents(4))
        seconds, frames = timed(lambda: stream.add(latents(3)))
        print(f"decode a chunk of 3: {1e3 * seconds:.0f} ms, {frames.shape[1] / seconds:.1f} frames/s, "
              f"{stream.num_bytes / 1e9:.2f} GB remembered")  # fmt: skip
    else:
        tile = latents(13)
        seconds, _ = timed(lambda: parts.autoencoder._decode_tile(tile), repeats=2)
        print(
            f"decode a tile of 13 latent frames: {seconds:.2f} s, {64 / seconds:.1f} frames/s in a long clip"
        )
    if parts.refiner is not None:
        text = GivenText(device, dtype, *((64, 16) if asked.tiny else (1024, 3840))).encode("")
        stream = replace_options(parts.refiner, 3).start_stream(text)
        stream.add(latents(4))
        for _ in range(3):
            stream.add(latents(3))
        seconds, _ = timed(lambda: stream.add(latents(3)))
        print(
            f"refine a block of 3, window full: {1e3 * seconds:.0f} ms, {24 / 16 / seconds:.2f} x real time"
        )


def replace_options(refiner: Refiner, block: int) -> Refiner:
    refiner.options = replace(refiner.options, block_frames=block)
    return refiner


class Told:
    """Says on stderr which stage sets out and how far it is, once in ten seconds: a slow machine shows where."""

    def __init__(self) -> None:
        self._start, self._stage, self._last = time.perf_counter(), "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter() - self._start
        if stage != self._stage or now - self._last > 10:
            print(f"{now:7.1f} s  {stage} {done} of {total}", file=sys.stderr, flush=True)
            self._stage, self._last = stage, now


def report(
    record: GenerationRecord, asked: argparse.Namespace, parts: Parts, wanted: GenerationRequest
) -> None:
    names = dict(
        text_encoder=parts.text_encoder,
        autoencoder=parts.autoencoder,
        world_model=parts.world_model,
        refiner=parts.refiner,
        refiner_text_encoder=parts.refiner_text_encoder,
    )
    sizes = {
        n: measured_size(p) for n, p in names.items() if isinstance(p, nn.Module) and list(p.parameters())
    }
    shape = VideoShape(
        wanted.num_frames,
        *wanted.image.shape[:2],
        mode=asked.mode,
        refine=not asked.no_refiner,
        refiner_block_frames=asked.refiner_block,
        tile_px=None if asked.no_tiles else 512,
    )
    networks = Networks(world_model=parts.world_model.config)
    if asked.tiny:
        networks = replace(
            networks, refiner_width=32, refiner_layers=2, text_layers=2, text_width=16, text_tokens=128
        )
    plan = plan_memory(shape, asked.offload, sizes={**RELEASED_SIZES, **sizes}, networks=networks)
    planned: dict[str, int] = {}
    for stage in plan.stages:
        name = "text" if stage.name == "refiner text" else stage.name
        planned[name] = max(planned.get(name, 0), plan.stage_bytes(stage))
    print(f"\n{wanted.num_frames} frames of {wanted.image.shape[1]}x{wanted.image.shape[0]}, {asked.mode}, "
          f"offload {asked.offload}, refiner {'no' if asked.no_refiner else asked.refiner_block or 'at once'}"
          f"{', refiner text given' if asked.no_gemma3 else ''}")  # fmt: skip
    print(f"{'stage':12} {'calls':>6} {'wall s':>9} {'peak GB':>9} {'planned GB':>11}")
    for name, stage in record.stages.items():
        peak = "-" if stage.peak_bytes is None else f"{stage.peak_bytes / 1e9:.2f}"
        print(f"{name:12} {stage.calls:6d} {stage.wall_s:9.2f} {peak:>9} {planned.get(name, 0) / 1e9:11.2f}")
    total = sum(s.wall_s for s in record.stages.values())
    print(f"{'all':12} {'':6} {total:9.2f}   {wanted.num_frames / 16 / total:.2f} x real time")
    if asked.mode != "distilled":
        step = record.stages["denoising"].wall_s / asked.steps
        rest = total - record.stages["denoising"].wall_s
        print(
            f"one of 60 steps (guidance: two passes) {step:.2f} s; the published schedule: {60 * step + rest:.0f} s"
        )
    if record.streaming is not None:
        print(record.streaming)


def options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--mode", choices=("bidirectional", "chunk-causal", "distilled"), default="bidirectional"
    )
    parser.add_argument("--offload", choices=("none", "idle", "blocks"), default="none")
    parser.add_argument("--cap-gb", type=float)
    parser.add_argument(
        "--resident-gb", type=float, default=0.0, help="weights of blocks that stay, with blocks"
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--refiner-block", type=int)
    for flag in (
        "no-refiner",
        "no-gemma3",
        "no-tiles",
        "channels-last",
        "graphs",
        "overlap",
        "parts",
        "tiny",
        "no-pin",
        "warm",
    ):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("--mp4", type=Path)
    parser.add_argument(
        "--trace-after", type=float, default=400, help="seconds until all threads say where they are"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args(arguments)
    if asked.mode == "distilled" and asked.refiner_block is None:
        asked.refiner_block = 3
    if asked.tiny:
        asked.device, asked.seconds = "cpu", min(asked.seconds, 3)
    return asked


def main(arguments: list[str]) -> None:
    asked = options(arguments)
    faulthandler.dump_traceback_later(asked.trace_after)
    device = torch.device(asked.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if asked.cap_gb:
        share = asked.cap_gb * 1e9 / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
    if device.type == "cuda":
        print(torch.cuda.get_device_name(device), torch.__version__, f"cap {asked.cap_gb} GB")
    torch.backends.cudnn.benchmark = True
    start = time.perf_counter()
    home = device if asked.offload == "none" else torch.device("cpu")
    parts = tiny_parts(asked) if asked.tiny else full_parts(asked, home)
    synchronise()
    print(f"random weights made in {time.perf_counter() - start:.1f} s")
    residence = Residence(
        asked.offload,
        device,
        resident_bytes=int(asked.resident_gb * 1e9),
        pin=False if asked.no_pin else None,
    )
    wanted = request(asked)
    if asked.parts:
        place = residence.on(parts.autoencoder, *([parts.refiner] if parts.refiner is not None else []))
        with place, torch.no_grad():
            before = None if parts.refiner is None else parts.refiner.options
            time_parts(parts, asked, wanted)
            if parts.refiner is not None and before is not None:
                parts.refiner.options = before
        gc.collect()
    generator = Generator(
        parts.world_model,
        parts.autoencoder,
        parts.text_encoder,
        refiner=parts.refiner,
        refiner_text_encoder=parts.refiner_text_encoder,
        residence=residence,
        parts={"world_model": {"stand_in": True}},
        device=device,
    )
    for run in range(2 if asked.warm else 1):
        with tempfile.TemporaryDirectory() as folder:
            path = asked.mp4 or Path(folder) / "video.mp4"
            height, width = wanted.image.shape[:2]
            keeps = asked.mp4 is not None or asked.tiny
            if keeps:  # its packages are not everywhere where a GPU is
                from theodolite.dataset.media.growing_video import GrowingVideo

                sink: Any = GrowingVideo(path, height=height, width=width, fps=16)
            else:
                sink = nullcontext()
            with sink as video:
                write = (lambda frames: None) if video is None else video.write
                record = generator.generate(wanted, on_frames=write, progress=Told())
        print(f"run {run + 1}" + (" (kernels are chosen and compiled in it)" if run == 0 else ""))
        report(record, asked, parts, wanted)


if __name__ == "__main__":
    main(sys.argv[1:])
