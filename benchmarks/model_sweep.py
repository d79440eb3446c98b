"""Launch parameters of the world model's kernels (`model_speed.py --sweep`): milliseconds of each choice."""

# Launch options are arguments of every Triton kernel, which its stubs do not know; nor are values of constexpr numbers.
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

from collections.abc import Callable

import torch
from model_sizes import Size, time_ms


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
