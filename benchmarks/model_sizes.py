"""The world model at full size and at a tiny one, of random numbers, and how calls of it are timed."""

from __future__ import annotations

import gc
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch
from theodolite.kernels.attention import AttentionPrecision
from theodolite.kernels.fp8.product import round_rows, scaled_product
from theodolite.model.conditioning import condition_cameras
from theodolite.model.config import WorldModelConfig
from theodolite.model.network import WorldModel
from theodolite.model.precision import Precision
from theodolite.model.start import initialise

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
