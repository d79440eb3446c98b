"""Speed and error of the world model's network at full size: one forward pass of a minute of 720p, by part.

    python benchmarks/model_speed.py [--frames 121] [--precision bf16 fp8-attention fp8] [--check] [--parts]
        [--guidance] [--train FRAMES] [--sweep] [--stream [SECONDS ...]] [--loop [published fast]] [--chunk-causal]
        [--profile] [--no-passes]
    TRITON_INTERPRET=1 python benchmarks/model_speed.py --smoke

With --check every kernel is first compared with its twin, and the output of every precision with float32's. Then all
precisions are timed in one run: milliseconds, achieved TFLOP/s, peak memory, shares by part and the floor (operations
over the measured ceilings of this card). --smoke does all of it at a tiny size on a CPU, to prove that it runs.
"""

from __future__ import annotations

import argparse
import functools
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from model_checks import block_operators, check
from model_parts import time_attention, time_products
from model_sizes import (
    FULL,
    PRECISIONS,
    SMOKE,
    Size,
    attempt,
    ceilings,
    peak_gib,
    random_inputs,
    random_model,
    relative,
    synchronise,
    time_ms,
)
from model_sweep import sweep
from theodolite.model.config import chunk_starts
from theodolite.model.context import Operators
from theodolite.model.network import WorldModel
from theodolite.model.precision import ALL_SCOPES, set_precision
from theodolite.model.samplers import Guidance, Text, sample_bidirectional, stream_distilled
from torch.utils.checkpoint import checkpoint


def operations(size: Size) -> dict[str, float]:
    """Floating point operations of one forward pass by part."""
    config = size.config
    n, c, f = size.frames * size.tokens, config.width, config.ffn_width
    softmax = sum(config.is_softmax(i) for i in range(config.depth))
    per_token = 3 * c * c + 4 * c * c + 2 * c * c  # qkv, camera, gate and projection
    per_token += (
        2 * c * c
    )  # queries and projection of the cross attention; the ray map's product is folded away
    per_token += 3 * c * f + 3 * c * c  # feed-forward
    return {
        "matrix products": 2.0 * n * per_token * config.depth,
        "softmax attention": 2 * softmax * 4.0 * n * n * c,
    }


PARTS = (
    ("softmax attention", ("cudnn_generated", "flash", "fmha", "sdpa", "attention", "mha")),
    ("rounding to fp8", ("round_rows", "round_and_pad", "crop_and_scale", "statistics", "finish")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk", "scaled")),
    (
        "block operators",
        ("modulated_norm", "gated_add", "glu_conv", "norm_rotate", "output_gate", "gate_forward"),
    ),
    (
        "DeltaNet",
        ("products", "scan", "readout", "short_conv", "conv_", "inverse_rms", "gdn", "norm_of", "rms"),
    ),
)


def by_part(call: Callable[[], object]) -> None:
    """Milliseconds by part, by the names of kernels, and the largest of the rest."""
    if not torch.cuda.is_available():
        call()
        return
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    sums: dict[str, float] = defaultdict(float)
    rest: dict[str, float] = defaultdict(float)
    for event in found.key_averages():
        ms = event.device_time_total / 1e3
        part = next((p for p, words in PARTS if any(w in event.key.lower() for w in words)), "other")
        sums[part] += ms
        if part == "other":
            rest[event.key[:70]] += ms
    total = sum(sums.values())
    for name, ms in sorted(sums.items(), key=lambda x: -x[1]):
        print(f"    {name:20s} {ms:8.1f} ms {100 * ms / total:5.1f} %")
    for name, ms in sorted(rest.items(), key=lambda x: -x[1])[:6]:
        print(f"        {ms:7.2f} ms {name}")


def by_kernel(call: Callable[[], object]) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in found.key_averages():
        sums[event.key[:90]][0] += event.device_time_total / 1e3
        sums[event.key[:90]][1] += event.count
    for name, (ms, count) in sorted(sums.items(), key=lambda x: -x[1][0])[:40]:
        print(f"{ms:9.2f} ms {count:6d}  {name}")


def waits(call: Callable[[], object]) -> int:
    """How often the host waits for the device within a call."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in caught)


# --- whole passes ---------------------------------------------------------------------------------------------------


def time_precisions(size: Size, names: list[str], starts: tuple[int, ...] | None, profile: bool) -> None:
    """Every precision in one run; bf16 once more at the end tells how far the card drifted."""
    product, narrow, copy = ceilings(size)
    work = operations(size)
    if starts is not None:
        work["softmax attention"] *= 0.5
    total = sum(work.values())
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{name}: bf16 product {product:.0f}, e4m3 product {narrow:.0f} TFLOP/s, copy {copy:.2f} TB/s")
    print(", ".join(f"{k} {v / 1e12:.0f} TFLOP" for k, v in work.items()))
    inputs = random_inputs(size)
    first = None
    failed = []

    def measure(variant: str, again: bool) -> None:
        nonlocal first
        precision, attention = PRECISIONS[variant]
        model = random_model(size)
        report = set_precision(model, precision, scopes=ALL_SCOPES, attention=attention)

        def call() -> torch.Tensor:
            return model(**inputs, chunk_starts=starts)

        found = call()
        error = 0.0 if first is None else relative(found, first)
        first = found if first is None else first
        del found
        elapsed = time_ms(call, 3, 0)
        floor = work["matrix products"] / (narrow if precision == "fp8" else product)
        floor += work["softmax attention"] / (narrow if attention == "fp8" else product)
        print(
            f"{variant}: forward {elapsed:.0f} ms, {total / elapsed / 1e9:.0f} TFLOP/s, floor {floor / 1e9:.0f} ms, "
            f"peak {peak_gib(call):.2f} GiB (weights {report.weight_bytes_after / 2**30:.2f}), "
            f"error against {names[0]} {error:.2e}, host waits {waits(call)} times"
        )
        if not again:
            by_part(call)
            if profile:
                by_kernel(call)

    for number, variant in enumerate([*names, "bf16"]):
        if not attempt(variant, lambda v=variant, n=number: measure(v, n == len(names))):
            failed.append(variant)
    if failed:
        raise AssertionError(f"did not run: {', '.join(failed)}")


def time_guidance(size: Size) -> None:
    """One guided step: two passes one after the other, or both in one batch; geometry once a clip."""
    model = random_model(size)
    inputs = random_inputs(size)
    text = Text(inputs["text"])
    results = []
    for batched in (False, True):
        guidance = Guidance(Text(torch.zeros_like(inputs["text"])), batched=batched)

        def step(guidance: Guidance = guidance) -> torch.Tensor:
            return sample_bidirectional(
                model, inputs["latents"], text, guidance=guidance, cameras=inputs["cameras"], steps=1
            )

        memory = peak_gib(step)
        results.append(step())
        print(
            f"guided step, {'one batch' if batched else 'two passes'}: {time_ms(step, 2, 0):.0f} ms, "
            f"peak {memory:.2f} GiB"
        )
    print(f"    finite: {[bool(r.isfinite().all()) for r in results]}")
    print(f"    they differ by {relative(results[1], results[0]):.1e}")
    print(
        f"geometry of a clip: {time_ms(lambda: model.geometry(inputs['latents'], inputs['cameras'])):.2f} ms"
    )


def time_training(size: Size, frames: int) -> None:
    """Forward and backward of the block's operators and of the network, with their kernels and with their twins."""
    small = replace(size, frames=min(size.frames, frames))
    copy = ceilings(size)[2]
    print(f"{small.frames} frames, forward + backward: kernels | twins | floor")
    for name, (operator, inputs, options) in block_operators(small, small.frames).items():

        def both(backend: str, operator=operator, inputs=inputs, options=options) -> None:
            with torch.enable_grad():
                out = operator(*inputs, backend=backend, **options)
                torch.autograd.grad(out, inputs, out)

        least = sum(3 * x.numel() * x.element_size() for x in inputs)  # read twice, gradient written
        times = [time_ms(lambda b=b: both(b), 3, 1) for b in ("auto", "reference")]
        print(f"    {name:18s} {times[0]:8.2f} ms | {times[1]:8.2f} ms | {least / copy / 1e9:.2f} ms")
    inputs = random_inputs(small)
    for kernels in ("auto", "reference"):
        model = random_model(small).train()
        _recomputed(model.blocks, kernels)

        def step(model: WorldModel = model) -> None:
            with torch.enable_grad():
                model(**inputs).float().square().mean().backward()
            model.zero_grad()

        step()
        memory = peak_gib(step)
        print(
            f"network, blocks recomputed, block operators by {'kernels' if kernels == 'auto' else 'twins'}: "
            f"{time_ms(step, 2, 0):.0f} ms, peak {memory:.1f} GiB"
        )
        del model, step


def _recomputed(blocks: Any, kernels: str) -> None:
    """Blocks by these kernels, each computed again on the way back."""
    for block in blocks:
        block.backend = block.mlp.backend = kernels
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


LOOPS: dict[str, tuple[str, dict]] = {
    "published": ("bf16", {}),
    "fast": ("fp8", {"first": 0.0, "last": 0.5}),
}
"""Name: precision, and guidance where it leaves the published schedule."""


def whole_loop(size: Size, names: list[str], steps: int) -> None:
    """Sixty guided steps of the bidirectional model, by the sampler that users run."""
    for name in names:
        variant, interval = LOOPS[name]
        precision, attention = PRECISIONS[variant]
        model = random_model(size)
        set_precision(model, precision, scopes=ALL_SCOPES, attention=attention)
        inputs = random_inputs(size)
        guidance = Guidance(Text(torch.zeros_like(inputs["text"])), **interval)

        def run(
            count: int, model: WorldModel = model, guidance: Guidance = guidance, inputs: dict = inputs
        ) -> None:
            began = time.perf_counter()

            def told(done: int, total: int) -> None:
                synchronise()
                if done % 10 == 0:
                    print(f"    {done} of {total} after {time.perf_counter() - began:.1f} s", flush=True)

            found = sample_bidirectional(
                model, inputs["latents"], Text(inputs["text"]), guidance=guidance, cameras=inputs["cameras"],
                steps=count, progress=told,
            )  # fmt: skip
            synchronise()
            if count == steps:
                print(
                    f"loop {name}: {count} steps, guidance {guidance.scale} in {guidance.first:g} to "
                    f"{guidance.last:g} of them, {variant}: {time.perf_counter() - began:.1f} s, "
                    f"finite {bool(found.isfinite().all())}"
                )

        run(1)  # compiles
        print(f"    peak {peak_gib(lambda run=run: run(steps)):.2f} GiB")
        del model, run


def stream(size: Size, names: list[str], seconds_of: tuple[int, ...]) -> None:
    """The distilled student over clips of several lengths: seconds, time to the first chunk, memory."""
    for variant in names:
        precision, attention = PRECISIONS[variant]
        model = random_model(size)
        set_precision(model, precision, scopes=ALL_SCOPES, attention=attention)
        for number, length in enumerate(seconds_of):
            frames = 1 + max(2, round(16 * length / 24)) * 3
            inputs = random_inputs(size, frames)
            text = Text(inputs["text"])
            ways = (
                (False, True) if number < 2 else (True,)
            )  # the same memory a chunk, without waiting for the host
            for graphs in ways if size.device == "cuda" else (False,):
                elapsed = first = 0.0
                for _ in range(1 if number else 2):  # the first compiles kernels for new shapes
                    if torch.cuda.is_available():
                        torch.cuda.reset_peak_memory_stats()
                    synchronise()
                    start, first = time.perf_counter(), 0.0
                    chunks = stream_distilled(
                        model, inputs["latents"], text, cameras=inputs["cameras"], graphs=graphs
                    )
                    for _chunk in chunks:
                        if not first:
                            synchronise()
                            first = time.perf_counter() - start
                    synchronise()
                    elapsed = time.perf_counter() - start
                seconds = (8 * (frames - 1) + 1) / 16
                memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
                print(
                    f"{variant}, student {'with graphs' if graphs else 'as it is'}, {seconds:.0f} s of video: "
                    f"{elapsed:.2f} s ({seconds / elapsed:.1f}x real time), first chunk after {first:.2f} s, "
                    f"peak {memory:.1f} GiB"
                )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--precision", nargs="+", choices=list(PRECISIONS), default=["bf16"])
    parser.add_argument("--check", action="store_true", help="kernels against twins, outputs against float32")
    parser.add_argument("--parts", action="store_true", help="also products and attention alone")
    parser.add_argument("--sweep", action="store_true", help="launch parameters of the block's kernels")
    parser.add_argument("--guidance", action="store_true", help="also one guided step both ways")
    parser.add_argument("--train", type=int, default=0, metavar="FRAMES", help="also forward and backward")
    parser.add_argument("--chunk-causal", action="store_true")
    parser.add_argument("--profile", action="store_true", help="also every kernel")
    parser.add_argument(
        "--stream",
        type=int,
        nargs="*",
        metavar="SECONDS",
        help="also the four-step student, chunk by chunk; lengths of its clips, default 10 60 180",
    )
    parser.add_argument(
        "--loop",
        nargs="*",
        choices=list(LOOPS),
        help="also the 60 guided steps of a minute: published, or with the speed options",
    )
    parser.add_argument("--no-passes", action="store_true", help="without single passes")
    parser.add_argument("--smoke", action="store_true", help="everything at a tiny size on a CPU")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_grad_enabled(False)
    size = SMOKE if arguments.smoke else replace(FULL, frames=arguments.frames)
    names = list(PRECISIONS) if arguments.smoke else arguments.precision
    starts = chunk_starts(size.frames) if arguments.chunk_causal else None
    print(f"operators {Operators()}, torch {torch.__version__}")
    everything = arguments.smoke
    lengths = (3,) if everything else tuple(arguments.stream or (10, 60, 180))
    loops = list(LOOPS) if everything else arguments.loop or ["published"]
    parts: list[tuple[bool, str, Callable[[], object]]] = [
        (arguments.check, "checks", lambda: check(size, names)),
        (
            not arguments.no_passes,
            "passes",
            lambda: time_precisions(size, names, starts, arguments.profile and not everything),
        ),
        (arguments.parts, "one attention", lambda: time_attention(size)),
        (arguments.parts, "products", lambda: time_products(size, ceilings(size)[0])),
        (arguments.sweep, "sweep", lambda: sweep(size)),
        (arguments.guidance, "guidance", lambda: time_guidance(size)),
        (arguments.train > 0, "training", lambda: time_training(size, arguments.train or size.frames)),
        (arguments.stream is not None, "stream", lambda: stream(size, names, lengths)),
        (arguments.loop is not None, "loop", lambda: whole_loop(size, loops, 3 if everything else 60)),
    ]
    good = [attempt(what, call) for wanted, what, call in parts if wanted or everything]
    if not all(good):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
