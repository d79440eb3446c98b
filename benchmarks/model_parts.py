"""Parts of the world model's blocks alone (`model_speed.py --parts`): linear maps and attention in bf16 and e4m3."""

# Products in e4m3 are no public function of torch yet.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from model_sizes import Size, random_model, time_ms
from theodolite.kernels import gated_add, gated_shift_add
from theodolite.kernels.attention import frame_attention
from theodolite.kernels.fp8 import attention as fp8
from theodolite.kernels.fp8.product import round_rows, scaled_product
from theodolite.kernels.fp8.reference import (
    attend_reference,
)
from torch.nn.attention import SDPBackend, sdpa_kernel


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
