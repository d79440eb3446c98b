"""Speed of the world model's network at full size: one forward pass of a minute of 720p, by part.

    python tests/benchmarks/model_speed.py [--frames 121] [--chunk-causal] [--profile] [--stream]

Prints milliseconds, achieved TFLOP/s, peak memory and the floor (operations over the measured ceilings of this card).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict

import torch
from theodolite.model.conditioning import condition_cameras
from theodolite.model.config import WorldModelConfig, chunk_starts
from theodolite.model.network import WorldModel, initialise
from theodolite.model.samplers import Text, stream_distilled


def random_model(config: WorldModelConfig, dtype: torch.dtype = torch.bfloat16) -> WorldModel:
    """Full-size network of random numbers on the GPU."""
    with torch.device("cuda"):
        model = WorldModel(config)
    initialise(model, torch.Generator(device="cuda").manual_seed(0))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "cam" in name or "plucker" in name or "t_conv" in name:
                tensor.normal_(std=max(1, tensor[0].numel()) ** -0.5)
    return model.to(dtype).eval()


def random_inputs(frames: int, height: int = 22, width: int = 40) -> dict:
    generator = torch.Generator(device="cuda").manual_seed(1)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    video = 8 * (frames - 1) + 1
    poses = torch.eye(4, device="cuda").repeat(1, video, 1, 1)
    poses[..., :3, 3] = randn(1, video, 3).cumsum(1) * 0.02
    intrinsics = torch.tensor([900.0, 900.0, 640.0, 352.0], device="cuda").repeat(1, video, 1)
    return dict(
        latents=randn(1, 128, frames, height, width).bfloat16(),
        times=torch.full((1, frames), 700, device="cuda"),
        text=randn(1, 300, 2304).bfloat16(),
        cameras=condition_cameras(poses, intrinsics, height=32 * height, width=32 * width),
    )


def time_ms(call, repeats: int = 5, warm_up: int = 2) -> float:
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def operations(config: WorldModelConfig, frames: int, tokens: int) -> dict[str, float]:
    """Floating point operations of one forward pass by part."""
    n, c, f = frames * tokens, config.width, config.ffn_width
    softmax = sum(config.is_softmax(i) for i in range(config.depth))
    per_token = 3 * c * c + 4 * c * c + 2 * c * c  # qkv, camera, gate and projection
    per_token += c * c + 2 * c * c  # Plücker; queries and projection of the cross attention
    per_token += 3 * c * f + 3 * c * c  # feed-forward
    return {
        "matrix products": 2.0 * n * per_token * config.depth,
        "softmax attention": 2 * softmax * 4.0 * n * n * c,
    }


def ceilings() -> tuple[float, float]:
    """Measured TFLOP/s of a large bfloat16 product and TB/s of a large copy."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = 2 * 8192**3 / time_ms(lambda: a @ b, 10) / 1e9
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return product, 2 * 2**31 / time_ms(lambda: target.copy_(source), 10) / 1e9


def stream(model: WorldModel, lengths: tuple[int, ...]) -> None:
    """The distilled student over clips of several lengths: seconds, time to the first chunk, memory."""
    for frames in lengths:
        inputs = random_inputs(frames)
        text = Text(inputs["text"])
        for graphs in (False, True):
            for _ in range(2):  # the first compiles kernels for new shapes
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
                start, first = time.perf_counter(), 0.0
                chunks = stream_distilled(
                    model, inputs["latents"], text, cameras=inputs["cameras"], graphs=graphs
                )
                for _chunk in chunks:
                    if not first:
                        torch.cuda.synchronize()
                        first = time.perf_counter() - start
                torch.cuda.synchronize()
                elapsed = time.perf_counter() - start
            seconds = (8 * (frames - 1) + 1) / 16
            print(
                f"student {'with graphs' if graphs else 'as it is'}, {seconds:.0f} s of video: {elapsed:.2f} s "
                f"({seconds / elapsed:.1f}x real time), first chunk after {first:.2f} s, "
                f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--chunk-causal", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--stream", action="store_true", help="also the four-step student, chunk by chunk")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    config = WorldModelConfig()
    model = random_model(config)
    inputs = random_inputs(arguments.frames)
    starts = chunk_starts(arguments.frames) if arguments.chunk_causal else None
    torch.cuda.reset_peak_memory_stats()
    elapsed = time_ms(lambda: model(**inputs, chunk_starts=starts), 3, 1)
    memory = torch.cuda.max_memory_allocated() / 2**30
    product, copy = ceilings()
    work = operations(config, arguments.frames, 880)
    if starts is not None:
        work["softmax attention"] *= 0.5
    total = sum(work.values())
    print(torch.cuda.get_device_name(), f"product {product:.0f} TFLOP/s, copy {copy:.2f} TB/s")
    print(f"forward {elapsed:.0f} ms, {total / elapsed / 1e9:.0f} TFLOP/s, peak {memory:.1f} GiB")
    print(
        f"floor {total / product / 1e9:.0f} ms: "
        + ", ".join(f"{k} {v / 1e12:.0f} TFLOP" for k, v in work.items())
    )
    if arguments.stream:
        stream(model, (21, 61, 121))
    if arguments.profile:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as found:
            model(**inputs, chunk_starts=starts)
            torch.cuda.synchronize()
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        for event in found.key_averages():
            sums[event.key[:90]][0] += event.device_time_total / 1e3
            sums[event.key[:90]][1] += event.count
        for name, (ms, count) in sorted(sums.items(), key=lambda x: -x[1][0])[:40]:
            print(f"{ms:9.2f} ms {count:6d}  {name}")


if __name__ == "__main__":
    main()
