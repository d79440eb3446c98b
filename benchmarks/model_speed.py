"""Speed and error of the world model's network at full size: one forward pass of a minute of 720p, by part.

    python benchmarks/model_speed.py [--frames 121] [--precision bf16 fp8-attention fp8] [--check] [--parts]
        [--guidance] [--train FRAMES] [--sweep] [--stream [SECONDS ...]] [--loop [published fast]] [--chunk-causal]
        [--profile] [--no-passes]
    TRITON_INTERPRET=1 python benchmarks/model_speed.py --smoke

With --check every kernel is first compared with its twin, and the output of every precision with float32's. Then all
precisions are timed in one run: milliseconds, achieved TFLOP/s, peak memory, shares by part and the floor (operations
over the measured ceilings of this card). --smoke does all of it at a tiny size on a CPU, to prove that it runs.
"""

# Launch options are arguments of every Triton kernel, which its stubs do not know; nor are values of constexpr numbers.
# pyright: reportCallIssue=false, reportArgumentType=false, reportPrivateImportUsage=false
from __future__ import annotations

import argparse
import functools
import gc
import statistics
import sys
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from theodolite.kernels import gated_add, gated_shift_add, glu_conv, modulated_norm, norm_rotate, rope_tables
from theodolite.kernels.attention import AttentionPrecision, frame_attention
from theodolite.kernels.fp8 import attention as fp8
from theodolite.kernels.fp8.product import round_rows, scaled_product
from theodolite.kernels.fp8.reference import (
    attend_reference,
    fp8_attention_reference,
    round_heads_reference,
    round_rows_reference,
    scaled_product_reference,
)
from theodolite.model.conditioning import condition_cameras
from theodolite.model.config import WorldModelConfig, chunk_starts
from theodolite.model.context import Operators
from theodolite.model.network import WorldModel
from theodolite.model.precision import ALL_SCOPES, Precision, set_precision
from theodolite.model.samplers import Guidance, Text, sample_bidirectional, stream_distilled
from theodolite.model.start import initialise
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

PRECISIONS: dict[str, tuple[Precision, AttentionPrecision]] = {
    "bf16": ("bf16", "input"),
    "fp8-attention": ("bf16", "fp8"),
    "fp8-products": ("fp8", "input"),
    "fp8": ("fp8", "fp8"),
    "fp8-weights": ("fp8-weights", "input"),
    "int8-weights": ("int8-weights", "input"),
}
"""Name: linear maps, softmax attention; all scopes are converted."""


@dataclass(frozen=True)
class Size:
    """What is measured: the network and the clip."""

    config: WorldModelConfig
    frames: int
    height: int
    width: int
    device: str
    dtype: torch.dtype

    @property
    def tokens(self) -> int:
        return self.height * self.width


FULL = Size(WorldModelConfig(), 121, 22, 40, "cuda", torch.bfloat16)
SMOKE = Size(
    WorldModelConfig(depth=4, width=64, heads=2, latent_channels=8, text_width=16, text_tokens=10),
    4, 2, 4, "cpu", torch.float32,
)  # fmt: skip


def random_model(size: Size) -> WorldModel:
    """Network of random numbers in which the parts that start silent speak; the same at every call."""
    with torch.device(size.device):
        model = WorldModel(size.config)
    initialise(model, torch.Generator(device=size.device).manual_seed(0))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "cam" in name or "plucker" in name or "t_conv" in name:
                if tensor.ndim > 1:
                    tensor.normal_(std=tensor[0].numel() ** -0.5)
                else:
                    tensor.normal_(std=0.2).add_(1.0 if "norm" in name else 0.0)
    return model.to(size.dtype).eval()


def random_inputs(size: Size, frames: int | None = None) -> dict:
    generator = torch.Generator(device=size.device).manual_seed(1)
    frames = size.frames if frames is None else frames
    config, device = size.config, size.device

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    video = 8 * (frames - 1) + 1
    poses = torch.eye(4, device=device).repeat(1, video, 1, 1)
    poses[..., :3, 3] = randn(1, video, 3).cumsum(1) * 0.02
    intrinsics = torch.tensor([900.0, 900.0, 640.0, 352.0], device=device).repeat(1, video, 1)
    return dict(
        latents=randn(1, config.latent_channels, frames, size.height, size.width).to(size.dtype),
        times=torch.full((1, frames), 700, device=device),
        text=randn(1, config.text_tokens, config.text_width).to(size.dtype),
        cameras=condition_cameras(poses, intrinsics, height=32 * size.height, width=32 * size.width),
    )


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_ms(call: Callable[[], object], repeats: int = 5, warm_up: int = 2) -> float:
    """Median milliseconds on the device (of the host, without one)."""
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(repeats):
        if not torch.cuda.is_available():
            began = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - began))
            continue
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def peak_gib(call: Callable[[], object]) -> float:
    if not torch.cuda.is_available():
        call()
        return 0.0
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.double(), expected.double()
    assert bool(expected.isfinite().all()), "what is compared with is not finite"
    return float((found - expected).norm() / expected.norm())


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


def ceilings(size: Size) -> tuple[float, float, float]:
    """Measured TFLOP/s of large bfloat16 and e4m3 products, and TB/s of a large copy."""
    side = 8192 if size.device == "cuda" else 64
    a, b = (torch.randn(side, side, device=size.device, dtype=size.dtype) for _ in range(2))
    product = 2 * side**3 / time_ms(lambda: a @ b, 10) / 1e9
    left, right = round_rows(a), round_rows(b)
    narrow = 2 * side**3 / time_ms(lambda: scaled_product(left, right), 10) / 1e9
    count = 2**31 if size.device == "cuda" else 2**16
    source = torch.empty(count, dtype=torch.uint8, device=size.device)
    target = torch.empty_like(source)
    return product, narrow, 2 * count / time_ms(lambda: target.copy_(source), 10) / 1e9


# --- checks ---------------------------------------------------------------------------------------------------------


def check_rounding(size: Size) -> Iterator[tuple[str, float, float]]:
    """(what, found, allowed) for every kernel around products in e4m3."""
    heads, tokens, channels = (3, 1500, 112) if size.device == "cuda" else (2, 70, 24)
    triton = True
    x = (torch.randn(tokens, heads, channels, device=size.device) + 1).to(size.dtype).transpose(0, 1)
    for centre in (False, True):
        for per_head in (False, True):
            found = fp8.round_heads(x, centre=centre, per_head=per_head, triton=triton)
            exact = round_heads_reference(x, centre=centre, per_head=per_head)
            yield (
                f"round_heads centre={centre} per_head={per_head}",
                relative(found.values[..., :channels].float(), exact.values.float()),
                2e-3,
            )
            assert not found.values[..., channels:].float().any(), "padding is not zero"
    found = fp8.round_heads(x, centre=True, per_head=True, triton=triton)
    back = (
        torch.full((tokens, heads, channels), float("nan"), device=size.device).to(size.dtype).transpose(0, 1)
    )
    fp8.scale_back(found.values, found, found, found, out=back, triton=triton)
    plain = found.values[..., :channels].float() / found.scale[:, None, None]
    plain += found.mean[:, None, :channels]
    yield "scale_back", relative(back, plain), 4e-3
    rows = torch.randn(tokens, 96, device=size.device).to(size.dtype) * torch.linspace(
        0.01, 9, 96, device=size.device
    )
    found, exact = round_rows(rows, backend="triton"), round_rows_reference(rows)
    yield "round_rows", relative(found.values.float(), exact.values.float()), 1e-5
    weight = round_rows(torch.randn(64, 96, device=size.device))
    bias = torch.randn(64, device=size.device)
    product = scaled_product(found, weight, bias)
    yield "scaled_product", relative(product, scaled_product_reference(found, weight, bias)), 6e-3


def check_attention(size: Size) -> Iterator[tuple[str, float, float]]:
    """Attention in e4m3: library against twin, and against exact attention on inputs of several kinds."""
    heads, tokens, channels = (3, 2112, 112) if size.device == "cuda" else (2, 64, 24)

    def three(sharp: float, shift: float) -> list[torch.Tensor]:
        q, k, v = (torch.randn(heads, tokens, channels, device=size.device) for _ in range(3))
        return [(sharp * q).to(size.dtype), (k + shift).to(size.dtype), (v + shift).to(size.dtype)]

    for name, sharp, shift in (("random", 1.0, 0.0), ("shifted", 1.0, 2.0), ("sharp", 6.0, 0.0)):
        q, k, v = three(sharp, shift)
        found = fp8.fp8_attention(q[None], k[None], v[None])[0]
        twin = fp8_attention_reference(q.float(), k.float(), v.float())
        exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
        # Both round softmax weights, but against different maxima: each is off by the error printed, in its own way.
        yield f"fp8_attention {name}: kernel against twin", relative(found, twin), 5e-2
        spread = exact - v.double().mean(dim=1, keepdim=True)
        off = float((found.double() - exact).norm())
        print(
            f"    {name}: error {off / float(exact.norm()):.2e} of the output, "
            f"{off / float(spread.norm()):.2e} of what differs from the mean value; twin {relative(twin, exact):.2e}"
        )
    q, k, v = three(1.0, 0.0)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    for number in (1.0, 16.0, 256.0, 448.0):
        kept, fp8.WEIGHT_SCALE = fp8.WEIGHT_SCALE, number
        fp8._plan.cache_clear()
        found = fp8.fp8_attention(q[None], k[None], v[None])[0]
        print(f"    random, weights times {number:.0f} before rounding: error {relative(found, exact):.2e}")
        fp8.WEIGHT_SCALE = kept
    fp8._plan.cache_clear()
    frames = 8 if size.device == "cuda" else 4
    q, k, v = (x.unflatten(1, (frames, -1))[None] for x in three(1.0, 0.0))
    choices: list[dict[str, Any]] = [
        {"chunk_starts": (0, 2, 3)},
        {"chunk_starts": (0, 1, 2, 3), "window_chunks": 1, "sink_chunks": 1},
    ]
    for options in choices:
        found = frame_attention(q, k, v, precision="fp8", **options)
        exact = frame_attention(q.float(), k.float(), v.float(), backend="reference", **options)
        yield f"fp8 frame_attention {options}", relative(found, exact), 8e-2


def block_operators(size: Size, frames: int) -> dict[str, tuple[Callable, list[torch.Tensor], dict]]:
    """Name: operator of a block, its differentiable inputs, its options."""
    s, c, hidden = size.tokens, size.config.width, size.config.ffn_width

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=size.device).to(size.dtype).requires_grad_()

    def rope(half: bool) -> torch.Tensor:
        found = rope_tables(frames, size.height, size.width, size.config.head_size, half=half)
        return found.to(size.device, torch.float32)

    matrix = torch.randn(1, frames, s, 4, 4, device=size.device)
    heads = size.config.heads
    tokens, row = (1, frames, s, c), (1, frames, c)
    return {
        "modulated_norm": (modulated_norm, [randn(*tokens), randn(*row), randn(*row)], {}),
        "gated_add": (gated_add, [randn(*tokens), randn(*tokens), randn(*row), randn(*tokens)], {}),
        "glu_conv": (
            glu_conv,
            [randn(1, frames, s, 2 * hidden), randn(2 * hidden, 1, 3, 3), randn(2 * hidden)],
            {"height": size.height, "width": size.width},
        ),
        "norm_rotate": (norm_rotate, [randn(*tokens), randn(c)], {"heads": heads, "rope": rope(False)}),
        "norm_rotate rays": (
            norm_rotate,
            [randn(*tokens), randn(c)],
            {"heads": heads, "rope": rope(True), "matrix": matrix},
        ),
    }


def check_blocks(size: Size) -> Iterator[tuple[str, float, float]]:
    """Outputs and gradients of the block's kernels against their twins in float32."""
    allowed = 1e-2 if size.dtype == torch.bfloat16 else 1e-5
    for name, (operator, inputs, options) in block_operators(size, 2).items():
        with torch.enable_grad():
            wide = [x.detach().float().requires_grad_() for x in inputs]
            fast = operator(*inputs, backend="triton", **options)
            exact = operator(*wide, backend="reference", **options)
            seed = torch.randn_like(fast)
            found = torch.autograd.grad(fast, inputs, seed)
            truth = torch.autograd.grad(exact, wide, seed.float())
        yield f"{name} forward", relative(fast, exact), allowed
        worst = max(relative(a, b) for a, b in zip(found, truth, strict=True))
        yield f"{name} backward", worst, allowed
    x, y, z, gate = (
        torch.randn(1, 3, size.tokens, n * size.config.width, device=size.device).to(size.dtype)
        for n in (1, 1, 3, 1)
    )
    exact = gated_shift_add(*(t.float() for t in (x, y, z, gate[:, :, 0])), backend="reference")
    yield (
        "gated_shift_add",
        relative(gated_shift_add(x, y, z, gate[:, :, 0], backend="triton"), exact),
        allowed,
    )


def check_outputs(size: Size, names: list[str]) -> None:
    """Output of a few frames by every precision, against float32 on the same bfloat16 weights."""
    small = replace(size, frames=min(size.frames, 9))
    inputs = random_inputs(small)
    model = random_model(small)
    torch.backends.cuda.matmul.allow_tf32 = False
    exact = random_model(small).float()
    wide = {k: v.float() if k in ("latents", "text") else v for k, v in inputs.items()}
    truth = exact(**wide)
    del exact
    plain = model(**inputs)
    print(f"{small.frames} frames: relative error of the output against float32 | against bf16")
    print(f"    bf16             {relative(plain, truth):.2e} |")
    for name in names:
        if name == "bf16":
            continue
        model = random_model(small)
        precision, attention = PRECISIONS[name]
        set_precision(model, precision, scopes=ALL_SCOPES, attention=attention)
        found = model(**inputs)
        print(f"    {name:16s} {relative(found, truth):.2e} | {relative(found, plain):.2e}")
    for scope in ALL_SCOPES:
        model = random_model(small)
        set_precision(model, "fp8", scopes=(scope,))
        print(f"    fp8, only {scope:10s} {relative(model(**inputs), truth):.2e}")
    for kept in ALL_SCOPES:
        model = random_model(small)
        set_precision(model, "fp8", scopes=[s for s in ALL_SCOPES if s != kept], attention="fp8")
        print(f"    fp8, all but {kept:10s} {relative(model(**inputs), truth):.2e}")


def attempt(what: str, call: Callable[[], object]) -> bool:
    """Run a part; what it raises is printed, and the other parts still run."""
    began = time.perf_counter()
    try:
        call()
    except Exception:  # noqa: BLE001  (whatever it is, it is printed and counted)
        traceback.print_exc(file=sys.stdout)
        print(f"FAILED: {what}", flush=True)
        return False
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    print(f"[{what}: {time.perf_counter() - began:.0f} s]", flush=True)
    return True


def check(size: Size, names: list[str]) -> None:
    failed = []

    def compare(checks: Iterator[tuple[str, float, float]]) -> None:
        for what, found, allowed in checks:
            good = found <= allowed
            print(f"    {'ok ' if good else 'OFF'} {what}: {found:.2e} (allowed {allowed:.0e})", flush=True)
            failed.extend([] if good else [what])

    for checks in (check_rounding, check_attention, check_blocks):
        if not attempt(checks.__name__, lambda checks=checks: compare(checks(size))):
            failed.append(checks.__name__)
    check_outputs(size, names)
    if failed:
        raise AssertionError(f"checks failed: {', '.join(failed)}")


# --- parts ----------------------------------------------------------------------------------------------------------


def time_products(size: Size, ceiling: float) -> None:
    """Linear maps of a block: bfloat16, and e4m3 with a scale a row or one for all, and the rounding."""
    tokens, c = size.frames * size.tokens, size.config.width
    print("product (tokens x K -> N)        bf16       e4m3 rows   e4m3 one    round rows")
    for k, n in ((c, c), (c, 3 * c), (c, 6 * c), (3 * c, c)):
        x = torch.randn(tokens, k, device=size.device, dtype=size.dtype)
        weight = torch.randn(n, k, device=size.device, dtype=size.dtype)
        work = 2e-9 * tokens * k * n
        rows, other = round_rows(x), round_rows(weight)
        plain = time_ms(lambda: x @ weight.T)
        narrow = time_ms(lambda: scaled_product(rows, other))
        rounding = time_ms(lambda: round_rows(x))
        one = float("nan")
        if size.device == "cuda":
            unit = torch.ones((), device=size.device)

            def single() -> torch.Tensor:
                return torch._scaled_mm(
                    rows.values, other.values.t(), scale_a=unit, scale_b=unit,
                    out_dtype=torch.bfloat16, use_fast_accum=True,
                )  # fmt: skip

            one = time_ms(single)
        print(
            f"{tokens} x {k} -> {n}: {plain:.2f} ms {work / plain:.0f} | {narrow:.2f} ms {work / narrow:.0f} | "
            f"{one:.2f} ms {work / one:.0f} TFLOP/s | {rounding:.3f} ms"
        )
    print(f"    ceiling of bf16 {ceiling:.0f} TFLOP/s")
    y = torch.randn(1, size.frames, size.tokens, c, device=size.device, dtype=size.dtype)
    gate = torch.randn(1, size.frames, c, device=size.device, dtype=size.dtype)
    mlp: Any = random_model(replace(size, config=size.config.model_copy(update={"depth": 1}))).blocks[0].mlp
    for name, call in (
        ("three added products", lambda: gated_add(y, mlp._temporal(y, None, None), gate)),
        ("one product, one pass", lambda: gated_shift_add(y, y, mlp._taps(y), gate)),
    ):
        ms = time_ms(call)
        print(f"    convolution over time by {name}: {ms:.2f} ms, {6e-9 * tokens * c * c / ms:.0f} TFLOP/s")


def time_attention(size: Size) -> None:
    """One full attention: bfloat16 as it is and padded to 128, e4m3 whole and in its pieces."""
    tokens, heads, d = size.frames * size.tokens, size.config.heads, size.config.head_size
    work = 4e-9 * tokens * tokens * heads * d
    q, k, v = (
        torch.randn(1, tokens, heads, d, device=size.device, dtype=size.dtype).transpose(1, 2)
        for _ in range(3)
    )
    padded = [F.pad(x.transpose(1, 2), (0, 128 - d)).transpose(1, 2) for x in (q, k, v)]

    def row(name: str, ms: float) -> None:
        print(f"    {name:44s} {ms:8.2f} ms {work / ms:6.0f} TFLOP/s")

    def plain(*three: torch.Tensor) -> Callable[[], object]:
        five = [x.unflatten(2, (size.frames, -1)) for x in three]
        return lambda: frame_attention(*five, scale=d**-0.5)

    print("one attention over all tokens")
    library = [SDPBackend.CUDNN_ATTENTION] if size.device == "cuda" else [SDPBackend.MATH]

    def direct(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(library):
            return F.scaled_dot_product_attention(a, b, c, scale=d**-0.5)

    for _ in range(2):
        row(f"bf16, library, heads of {d}", time_ms(lambda: direct(q, k, v), 3, 1))
        row("bf16, library, heads filled up to 128", time_ms(lambda: direct(*padded), 3, 1))
        row("bf16, as the network calls it", time_ms(plain(q, k, v), 3, 1))
    row("fp8 with rounding and way back", time_ms(lambda: fp8.fp8_attention(q, k, v), 3, 1))
    queries = fp8.round_heads(q[0], centre=False, per_head=False)
    keys = fp8.round_heads(k[0], centre=True, per_head=False)
    values = fp8.round_heads(v[0], centre=True, per_head=True)
    out = torch.empty_like(queries.values)
    print(
        f"    round one of q, k, v: {time_ms(lambda: fp8.round_heads(k[0], centre=True, per_head=False)):.3f} ms"
    )
    row("fp8 library call", time_ms(lambda: fp8.attend(queries, keys, values, d**-0.5, out=out), 3, 1))
    back = torch.empty(tokens, heads, d, device=size.device, dtype=size.dtype).transpose(0, 1)
    print(f"    way back: {time_ms(lambda: fp8.scale_back(out, values, queries, keys, out=back)):.3f} ms")
    if size.device == "cpu":
        attend_reference(queries, keys, values, d**-0.5)
        return
    interleaved = [
        x._replace(values=x.values.transpose(0, 1).contiguous().transpose(0, 1))
        for x in (queries, keys, values)
    ]
    other = interleaved[0].values.clone(memory_format=torch.preserve_format)
    row(
        "fp8 library call, heads beside each other",
        time_ms(lambda: fp8.attend(interleaved[0], interleaved[1], interleaved[2], d**-0.5, out=other), 3, 1),
    )
    time_plans(queries, keys, values, d**-0.5, out, row)


def time_plans(q, k, v, scale: float, out: torch.Tensor, row: Callable[[str, float], None]) -> None:
    """Every plan that the library has for the call, the one it takes first among them."""
    plan, tensors = fp8._ready(q, k, v, scale, out)
    graph = plan.graph
    handle = fp8._handle(0, torch.cuda.current_stream().cuda_stream)
    for i in range(graph.get_execution_plan_count()):
        try:
            graph.build_plan_at_index(i)
            bytes_needed = max(1, graph.get_workspace_size())
            workspace = torch.empty(bytes_needed, dtype=torch.uint8, device="cuda")
            ms = time_ms(lambda w=workspace: graph.execute(tensors, w, handle=handle), 2, 1)
            row(f"plan {i} {graph.get_plan_name_at_index(i)[:24]} {bytes_needed >> 20} MiB", ms)
        except Exception as error:  # noqa: BLE001  (plans that do not build are told, not timed)
            print(f"    plan {i}: {str(error)[:90]}")
    fp8._plan.cache_clear()


class Sweep:
    """Tensors of one block at full size, and a line of times for choices of launch parameters."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.t, self.s, self.c = size.frames, size.tokens, size.config.width
        self.hidden, self.heads, self.d = size.config.ffn_width, size.config.heads, size.config.head_size
        self.emulated = {"ROUND": size.device == "cpu"}

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.size.device).to(self.size.dtype)

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(*shape, device=self.size.device, dtype=dtype)

    def line(self, name: str, launch: Callable[..., object], choices: tuple[tuple[int, ...], ...]) -> None:
        found = []
        on_gpu = self.size.device == "cuda"
        for choice in choices if on_gpu else choices[:1]:  # the interpreter proves that it runs
            try:
                ms = time_ms(lambda c=choice: launch(*c), 5 if on_gpu else 1, int(on_gpu))
                found.append(f"{choice} {ms:.3f}")
            except Exception as error:  # noqa: BLE001  (a choice that does not fit the chip is told)
                found.append(f"{choice} {type(error).__name__}")
        print(f"    {name}: " + ", ".join(found), flush=True)


def sweep(size: Size) -> None:
    """Milliseconds by launch parameters; the first choice of a line is what the operators use."""
    sweep_rows(Sweep(size))
    sweep_heads(Sweep(size))
    sweep_convolution(Sweep(size))


def sweep_rows(w: Sweep) -> None:
    from theodolite.kernels.block_ops import triton_kernels as block
    from theodolite.kernels.fp8 import triton_kernels as narrow
    from triton import cdiv, next_power_of_2

    t, s, c, wide = w.t, w.s, w.c, next_power_of_2(w.c)
    x, y, row = w.randn(1, t, s, c), w.randn(1, t, s, c), w.randn(1, t, c)
    out, eighth = torch.empty_like(x), w.empty(t * s, c, dtype=torch.float8_e4m3fn)
    scales = w.empty(t * s, dtype=torch.float32)
    steps = (row.stride(0), row.stride(1))

    def norm(rows: int, warps: int) -> None:
        block.modulated_norm[(cdiv(s, rows), t)](
            x, y, row, row, out, out, t, s, c, *steps, *steps, 1e-6,
            ROWS=rows, BLOCK=wide, HAS_ADDED=False, num_warps=warps,
        )  # fmt: skip

    def norm_rows(rows: int, warps: int) -> None:
        narrow.modulated_norm_rows[(cdiv(s, rows), t)](
            x, y, row, row, out, out, eighth, scales, t, s, c, *steps, *steps, 1e-6,
            ROWS=rows, BLOCK=wide, HAS_ADDED=True, KEEP=False, **w.emulated, num_warps=warps,
        )  # fmt: skip

    def norm_backward(rows: int, warps: int) -> None:
        part = w.empty(t, cdiv(s, rows), 2, c, dtype=torch.float32)
        block.modulated_norm_backward[(cdiv(s, rows), t)](
            x, row, y, out, part, t, s, c, *steps, 1e-6, ROWS=rows, BLOCK=wide, num_warps=warps
        )
        part.sum(dim=1)

    def add(warps: int) -> None:
        block.gated_add[(s, t)](
            x, y, row, y, out, t, s, c, *steps, HAS_EXTRA=True, BLOCK=wide, num_warps=warps
        )

    def add_backward(rows: int, warps: int) -> None:
        part = w.empty(t, cdiv(s, rows), c, dtype=torch.float32)
        block.gated_add_backward[(cdiv(s, rows), t)](
            x, row, y, out, part, t, s, c, *steps, ROWS=rows, BLOCK=wide, num_warps=warps
        )
        part.sum(dim=1)

    def rounded(warps: int) -> None:
        narrow.round_rows[(t * s,)](x, eighth, scales, c, c, BLOCK=wide, **w.emulated, num_warps=warps)

    w.line("modulated_norm (rows, warps)", norm, ((8, 4), (1, 4), (4, 4), (8, 8), (4, 8), (16, 4), (8, 16)))
    w.line("modulated_norm_rows (rows, warps)", norm_rows, ((1, 4), (8, 4), (4, 4), (8, 8), (1, 8)))
    w.line(
        "modulated_norm_backward (rows, warps)", norm_backward, ((16, 4), (8, 4), (32, 4), (64, 4), (16, 8))
    )
    w.line("gated_add (warps)", add, ((4,), (2,), (8,), (16,)))
    w.line("gated_add_backward (rows, warps)", add_backward, ((16, 4), (8, 4), (64, 4), (16, 8)))
    w.line("round_rows (warps)", rounded, ((4,), (1,), (2,), (8,)))


def sweep_heads(w: Sweep) -> None:
    from theodolite.kernels.block_ops import triton_kernels as block
    from theodolite.kernels.fp8 import triton_kernels as narrow
    from triton import cdiv, next_power_of_2

    n, c, d, heads = w.t * w.s, w.c, w.d, w.heads
    x, out = w.randn(n, c), w.randn(n, c)
    weight = w.randn(c)
    cos, sin = w.randn(n, d // 2), w.randn(n, d // 2)
    part = w.empty(cdiv(n, 128), heads, 3, 128, dtype=torch.float32)
    mean, one = w.randn(heads, 128).float(), w.randn(heads).float()
    padded = w.empty(heads, n, 128, dtype=torch.float8_e4m3fn)
    size = {"SIZE": d, "PADDED": 128}

    def statistics_of(tokens: int, rounds: int, warps: int) -> None:
        narrow.statistics[(heads, cdiv(n, tokens * rounds))](
            x, part, n, d, c, **size, TOKENS=tokens, ROUNDS=rounds, num_warps=warps
        )

    def rounding(tokens: int, warps: int) -> None:
        narrow.round_and_pad[(heads, cdiv(n, tokens))](
            x, mean, one, padded, n, d, c, 1, **size, TOKENS=tokens, **w.emulated, num_warps=warps
        )

    def back(tokens: int, warps: int) -> None:
        narrow.crop_and_scale[(heads, cdiv(n, tokens))](
            padded, mean, one, out, n, heads, **size, TOKENS=tokens, num_warps=warps
        )

    heads_of = {
        "HEADS": heads, "SIZE": d, "HAS_WEIGHT": True, "HAS_MATRIX": False,
        "BH": next_power_of_2(heads), "BP": next_power_of_2(d // 2),
    }  # fmt: skip

    def turned(warps: int) -> None:
        block.norm_rotate[(n,)](x, weight, cos, sin, None, out, n, c, 1e-5, 1.0, **heads_of, num_warps=warps)

    def turned_back(rows: int, warps: int) -> None:
        sums = w.empty(cdiv(n, rows), c, dtype=torch.float32)
        block.norm_rotate_backward[(cdiv(n, rows),)](
            x, weight, cos, sin, None, out, out, sums, n, n, c, 1e-5, 1.0,
            **heads_of, ROWS=rows, num_warps=warps,
        )  # fmt: skip
        sums.sum(dim=0)

    w.line(
        "statistics (tokens, rounds, warps)",
        statistics_of,
        ((16, 16, 1), (64, 8, 4), (32, 8, 4), (64, 2, 4), (32, 16, 2), (16, 8, 1)),
    )
    w.line(
        "round_and_pad (tokens, warps)", rounding, ((64, 4), (32, 4), (128, 4), (128, 8), (32, 2), (16, 1))
    )
    w.line("crop_and_scale (tokens, warps)", back, ((64, 4), (32, 4), (128, 4), (128, 8), (32, 2), (16, 1)))
    w.line("norm_rotate (warps)", turned, ((4,), (2,), (8,), (16,)))
    w.line("norm_rotate_backward (rows, warps)", turned_back, ((8, 4), (2, 4), (32, 4), (8, 8), (8, 2)))


def sweep_convolution(w: Sweep) -> None:
    from theodolite.kernels.block_ops import triton_kernels as block
    from triton import cdiv

    t, hidden, height, width = w.t, w.hidden, w.size.height, w.size.width
    x, half = w.randn(1, t, w.s, 2 * hidden), w.randn(1, t, w.s, hidden)
    taps, bias = w.randn(9, 2 * hidden), w.randn(2 * hidden)
    inner = w.randn(1, t, w.s, 2 * hidden)
    tiles = cdiv(height, 4)
    fast = {"FAST": w.size.device == "cuda"}

    def forward(channels: int, warps: int) -> None:
        block.glu_conv[(cdiv(hidden, channels), tiles, t)](
            x, taps, bias, None, half, height, width, hidden,
            CHANNELS=channels, **fast, BACKWARD=False, num_warps=warps,
        )  # fmt: skip

    def halves(channels: int, warps: int) -> None:
        block.glu_conv[(cdiv(hidden, channels), tiles, t)](
            x, taps, bias, half, inner, height, width, hidden,
            CHANNELS=channels, **fast, BACKWARD=True, num_warps=warps,
        )  # fmt: skip

    choices = ((128, 2), (64, 1), (128, 1), (64, 2), (128, 4), (256, 4), (256, 8))
    w.line("glu_conv (channels, warps)", forward, choices)
    w.line("glu_conv backward, halves (channels, warps)", halves, choices)
    inner.normal_()
    dx = torch.empty_like(x)

    def before_silu(channels: int, warps: int) -> None:
        block.glu_conv_dx[(cdiv(2 * hidden, channels), tiles, t)](
            x, taps, inner, dx, height, width, 2 * hidden, CHANNELS=channels, num_warps=warps
        )

    w.line("glu_conv_dx (channels, warps)", before_silu, choices[:6])
    sums = w.empty(cdiv(t, 2), tiles, 10, 2 * hidden, dtype=torch.float32)

    def of_taps(frames: int, channels: int, warps: int) -> None:
        block.glu_conv_dtaps[(cdiv(2 * hidden, channels), tiles, cdiv(t, frames))](
            x, inner, sums, height, width, 2 * hidden, t, CHANNELS=channels, FRAMES=frames, num_warps=warps
        )

    w.line(
        "glu_conv_dtaps (frames, channels, warps)",
        of_taps,
        ((4, 128, 2), (2, 128, 2), (8, 128, 2), (4, 64, 1), (4, 128, 1), (4, 256, 4)),
    )


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
