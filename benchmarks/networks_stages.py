"""What each stage of the estimators' networks costs on one GPU beside its floor, and what else could attend.

    python benchmarks/networks_stages.py [--tiny] [--seconds 60]

Sections, most wanted first; one that would begin after `--seconds` is left out:

* `waits`: processor time of the thread that runs the network, with waits that spin and with waits that sleep;
* `stages`: a window of Pi3X and what is kept of it, batches of MoGe-2, by kind of kernel, beside arithmetic at the
  speed of the largest matrix product;
* `tracker`: the batched one, beside them on the same GPU;
* `attention`, `accuracy`: our attention kernel beside cuDNN's, the flash kernel, flash-attn-4 and attention in e4m3
  (both of the package's own kernels, where they are installed), in error of the network's outputs and in time.

Weights are random: the compute does not depend on them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from theodolite.annotate.geometry.config import KeyframesConfig
from theodolite.annotate.geometry.pi3x import OUTPUTS, TINY
from theodolite.annotate.geometry.window_maps import RawWindow, keep_window
from theodolite.annotate.networks import pi3x as pi3x_module
from theodolite.annotate.networks import vit
from theodolite.annotate.networks.device import waits_asleep
from theodolite.annotate.networks.moge2 import MoGe2, MoGe2Size
from theodolite.annotate.networks.pi3x import Pi3X
from theodolite.annotate.tracks.batched.tracker import BatchedTracker
from theodolite.annotate.tracks.records import TracksConfig
from theodolite.annotate.tracks.tracker import WorkingSize
from theodolite.kernels.flash4 import flash4_attention
from theodolite.kernels.fp8 import attention as fp8_module
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parent))
import paced

HEADS, HEAD = 16, 64


def sync() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], repeats: int = 2) -> tuple[float, float]:
    """Least wall and processor time of this thread, after one run to warm up."""
    work()
    sync()
    found = []
    for _ in range(repeats):
        start, cpu = time.perf_counter(), time.thread_time()
        work()
        sync()
        found.append((time.perf_counter() - start, time.thread_time() - cpu))
    return min(found)


def operations(frames: int, patches: int, branches: int = 3) -> dict[str, float]:
    """Multiply-adds x 2 of a window of Pi3X by kind, in units of 1e12, and bytes of its float32 stream in GB.

    `branches`: head transformers (camera, points, confidence).
    """
    L, D = patches + 5, 1024
    products = frames * L * D * D * (24 * (24 + 36 + 5 * branches) + 6 * branches)
    within = frames * 4 * L * L * D * (24 + 18 + 5 * branches)
    across = 18 * 4 * (frames * L) ** 2 * D
    convolutions = frames * (branches - 1) * 0.185e12 * patches / 1296
    # Of a block: the stream read and written twice, its norm written twice, qkv, branch and hidden layer in half types.
    moved = frames * L * D * (24 + 36 + 5 * branches) * (4 * 4 + 2 * 2 + 2 * (3 + 3 + 2 + 2 * 8))
    found = {"products": products, "attention in a frame": within, "attention over all": across}
    return {k: v / 1e12 for k, v in found.items()} | {"convolutions": convolutions / 1e12, "GB": moved / 1e9}


def build(tiny: bool) -> tuple[Pi3X, MoGe2]:
    """Both networks with random numbers, on the GPU if there is one."""
    with paced.quick_stand_ins():
        networks = (
            Pi3X(TINY, conditioning=False) if tiny else Pi3X(conditioning=False),
            MoGe2(MoGe2Size.tiny() if tiny else MoGe2Size.released("vitl-normal")),
        )
        paced.pi3x_module.fill_stand_in(networks[0], 0)
        paced.moge2_module.fill_stand_in(networks[1], 0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return networks[0].to(device), networks[1].to(device)


def images(count: int, height: int, width: int) -> Tensor:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, device=device)


def by_kind(work: Callable[[], object]) -> str:
    """Milliseconds of kernels by kind, of one run."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        work()
        sync()
    kinds: dict[str, float] = {}
    names = {"attention": ("attention", "fmha", "flash"), "convolutions": ("conv", "fprop", "dgrad"),
             "products": ("nvjet", "gemm", "cutlass", "cublas"),
             "ours": ("_add", "_rotate", "_affine", "_channel", "_resize", "_relu")}  # fmt: skip
    count = 0
    for row in trace.key_averages():
        kind = next((k for k, words in names.items() if any(w in row.key.lower() for w in words)), "others")
        kinds[kind] = kinds.get(kind, 0.0) + row.self_device_time_total / 1000
        count += row.count
    told = ", ".join(f"{k} {v:.1f}" for k, v in sorted(kinds.items(), key=lambda x: -x[1]))
    return f"{told}; {sum(kinds.values()):.1f} ms in {count} kernels and copies"


def waits(pi3x: Pi3X, window: Tensor) -> None:
    """The same window with waits that spin (the driver's choice) and with waits that sleep."""
    run = lambda: keep(pi3x(window[None], outputs=OUTPUTS), len(window))  # noqa: E731
    before = seconds(run)
    asleep = waits_asleep()
    after = seconds(run)
    print(f"waits: {len(window)} frames {before[0] * 1000:.0f} ms with {before[1] * 1000:.0f} ms of processor time;"
          f" asleep ({asleep}) {after[0] * 1000:.0f} with {after[1] * 1000:.0f}", flush=True)  # fmt: skip


def keep(found: dict[str, Tensor], frames: int) -> object:
    raw = RawWindow(
        camera_to_world=found["camera_poses"][0],
        points=pi3x_scene(found["local_points"][0]),
        confidence=found["conf"][0, ..., 0].sigmoid(),
    )
    return keep_window(raw, np.arange(frames), KeyframesConfig(), height=720, width=1280)


def pi3x_scene(points: Tensor) -> Tensor:
    from theodolite.annotate.networks.checkpoint import stand_in_scene

    return stand_in_scene(points)


def stages(pi3x: Pi3X, moge2: MoGe2, tiny: bool, speed: float) -> None:
    """Windows and batches by kind of kernel."""
    h, w = (28, 42) if tiny else (378, 672)
    for frames in (2, 3) if tiny else (41, 64, 31):
        window = images(frames, h, w)
        took, cpu = seconds(lambda x=window: pi3x(x[None], outputs=OUTPUTS))
        floor = operations(frames, h * w // 196)
        total = sum(v for k, v in floor.items() if k != "GB")
        told = ", ".join(f"{k} {v:.1f}" for k, v in floor.items())
        floor_text = f", {1000 * total / speed:.0f} ms at {speed:.0f} TFLOP/s" if speed else ""
        print(f"Pi3X, {frames} frames: {took * 1000:.1f} ms, {cpu * 1000:.0f} of its thread;"
              f" {total:.0f} TFLOP{floor_text}: {told}", flush=True)  # fmt: skip
        if torch.cuda.is_available():
            print("   ", by_kind(lambda x=window: pi3x(x[None], outputs=OUTPUTS)), flush=True)
        encoded, _ = seconds(lambda x=window: pi3x._encode(x))
        found = pi3x(window[None], outputs=OUTPUTS)
        kept, cpu = seconds(lambda f=found, n=frames: keep(f, n))
        print(f"    of it the encoder {encoded * 1000:.1f} ms; then masks and reduction {kept * 1000:.1f} ms,"
              f" {cpu * 1000:.0f} of its thread", flush=True)  # fmt: skip
        if torch.cuda.is_available() and frames == 41:
            print("   ", by_kind(lambda f=found, n=frames: keep(f, n)), flush=True)
        del found
    tokens = 40 if tiny else 3600
    for count in (2,) if tiny else (4, 10, 16, 20, 32):
        few = images(count, *((90, 160) if tiny else (720, 1280)))
        took, cpu = seconds(lambda x=few: moge2(x, tokens, normals=False))
        floor_text = f", {1000 * 4.23 * count / speed:.0f} at {speed:.0f} TFLOP/s" if speed else ""
        print(
            f"MoGe-2, {count} images: {took * 1000:.1f} ms, {cpu * 1000:.0f} of its thread{floor_text}",
            flush=True,
        )
        if torch.cuda.is_available() and count == 20:
            print("   ", by_kind(lambda x=few: moge2(x, tokens, normals=False)), flush=True)


def tracker(tiny: bool) -> None:
    """The batched tracker on frames of a texture that moves, and its kernels."""
    width, height, frames = (160, 96, 20) if tiny else (640, 360, 161)
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.random((height + 200, width + 400)).astype(np.float32), (0, 0), 2.0)
    texture = ((texture - texture.min()) / (texture.max() - texture.min()) * 255).astype(np.uint8)
    shown = [texture[i // 2 : i // 2 + height, 2 * i : 2 * i + width].copy() for i in range(frames)]
    size = WorkingSize.of(height, width, TracksConfig())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def run() -> None:
        seen = BatchedTracker(size, TracksConfig(), device=device)
        for gray in shown:
            seen.add(gray)
        seen.finish()

    took, cpu = seconds(run, 1)
    print(
        f"batched tracker, {frames} frames: {took * 1000:.0f} ms, {cpu * 1000:.0f} of its thread", flush=True
    )
    if torch.cuda.is_available():
        print("   ", by_kind(run), flush=True)


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def torch_attend(backend: SDPBackend) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return attend


def by_cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`fp8_attention` as if flash-attn-3 were not installed; it may have been built for other heads."""
    found, fp8_module.has_flash3 = fp8_module.has_flash3, lambda *_: False
    try:
        return fp8_module.fp8_attention(q, k, v)
    finally:
        fp8_module.has_flash3 = found


RIVALS: dict[str, Attend] = {
    "cuDNN": torch_attend(SDPBackend.CUDNN_ATTENTION),
    "flash": torch_attend(SDPBackend.FLASH_ATTENTION),
    "flash-attn-4": flash4_attention,
    "e4m3, flash-attn-3 or cuDNN": fp8_module.fp8_attention,
    "e4m3, cuDNN": by_cudnn,
}


@contextmanager
def attending(attend: Attend, tokens: int) -> Iterator[None]:
    """Attention of Pi3X over more than so many tokens by another kernel."""
    own, direct = vit.attention, pi3x_module.takes_direct

    def by(q: Tensor, k: Tensor, v: Tensor, *, direct: bool = False) -> Tensor:
        if q.shape[1] <= tokens:
            return own(q, k, v, direct=False)
        out = attend(*(x.transpose(1, 2) for x in (q, k, v)))
        return out.transpose(1, 2).reshape(q.shape[0], q.shape[1], -1)

    pi3x_module.attention = by
    pi3x_module.takes_direct = lambda *_: False
    try:
        yield
    finally:
        pi3x_module.attention, pi3x_module.takes_direct = own, direct


def accuracy(exact: dict[str, Tensor], pi3x: Pi3X, window: Tensor) -> None:
    """Error of the outputs against float32, by who attends over all frames."""
    tokens = window.shape[-1] * window.shape[-2] // 196 + 5

    def told(name: str) -> None:
        found = pi3x(window[None], outputs=OUTPUTS)
        errors = {}
        for key, x in found.items():
            a, b = x.double().cpu(), exact[key].double().cpu()
            errors[key] = float((a - b).norm() / b.norm())
        turned, meant = (x["camera_poses"][0, :, :3, :3].double().cpu() for x in (found, exact))
        # Of rotations by an angle apart: ||R - Q|| = 2 sqrt(2) sin(angle / 2).
        angle = 2 * ((turned - meant).flatten(1).norm(dim=1).max() / 8**0.5).clamp(max=1).asin().rad2deg()
        print(f"accuracy, {name}: {', '.join(f'{k} {v:.2e}' for k, v in errors.items())}, worst turn {angle:.3f} deg",
              flush=True)  # fmt: skip

    told("ours")
    for name, attend in RIVALS.items():
        try:
            with attending(attend, tokens):
                told(name)
        except Exception as error:  # noqa: BLE001  # compilers and libraries fail in ways of their own
            print(f"accuracy, {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)


def attention(tiny: bool, speed: float) -> None:
    """Time of attention alone."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for frames in (1, 2) if tiny else (41, 64):
        L = frames * (11 if tiny else 1301)
        qkv = torch.randn(1, L, 3, HEADS, HEAD, device=device).to(torch.bfloat16)
        q, k = (F.layer_norm(qkv[:, :, i].float(), (HEAD,)).to(torch.bfloat16) for i in (0, 1))
        v = qkv[:, :, 2]
        tflop = 4 * L * L * HEADS * HEAD / 1e12
        turned = [x.transpose(1, 2) for x in (q, k, v)]
        entries: dict[str, Callable[[], Tensor]] = {n: (lambda a=a: a(*turned)) for n, a in RIVALS.items()}
        if vit.has_attention_kernel(q):
            scaled = (q.float() * pi3x_module.DIRECT_FACTOR).to(q.dtype)
            entries = {"ours, direct": lambda: vit.own_attention(scaled, k, v, direct=True)} | entries
        for name, run in entries.items():
            try:
                took, _ = seconds(run)
            except Exception as error:  # noqa: BLE001  # as above
                print(
                    f"attention, {frames} frames, {name}: {type(error).__name__}: {str(error)[:300]}",
                    flush=True,
                )
                continue
            share = f", {100 * tflop / took / speed:.0f} %" if speed else ""
            print(
                f"attention, {frames} frames, {name}: {took * 1000:.2f} ms, {tflop / took:.0f} TFLOP/s{share}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="a dry run on small sizes")
    parser.add_argument("--seconds", type=float, default=1e9)
    args = parser.parse_args()
    began = time.monotonic()
    torch.manual_seed(0)
    speed = 0.0
    if torch.cuda.is_available():
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        speed = 2 * 8192**3 / 1e12 / seconds(lambda: a @ b, 5)[0]
        print(
            torch.cuda.get_device_name(),
            torch.__version__,
            f"bf16 matmul 8192^3: {speed:.0f} TFLOP/s",
            flush=True,
        )
    pi3x, moge2 = build(args.tiny)
    h, w = (28, 42) if args.tiny else (378, 672)
    with torch.inference_mode():
        few = images(2 if args.tiny else 4, h, w)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        exact = {k: v.cpu() for k, v in pi3x(few[None], outputs=OUTPUTS).items()}
        torch.backends.cudnn.allow_tf32 = True
        if torch.cuda.is_available():
            pi3x.to_half()
            moge2.to_half()
        print(f"networks are there after {time.monotonic() - began:.0f} s", flush=True)
        for section in (
            lambda: waits(pi3x, images(2 if args.tiny else 41, h, w)),
            lambda: stages(pi3x, moge2, args.tiny, speed),
            lambda: tracker(args.tiny),
            lambda: attention(args.tiny, speed),
            lambda: accuracy(exact, pi3x, few),
        ):
            if time.monotonic() - began < args.seconds:
                section()


if __name__ == "__main__":
    main()
