"""Pi3X and MoGe-2 on one GPU beside upstream's code: same run, same weights, same input.

    THEODOLITE_UPSTREAM=<folder with pi3, moge, utils3d> python benchmarks/networks_speed.py [--tiny]

Prints frames/s, peak memory, achieved TFLOP/s against a measured matmul and the difference of the outputs. The
weights are random (the compute does not depend on them). The error of both against float32 with TF32 off is
measured at a short window. `--parts clips` measures several short clips in one call of the network against one.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable

import torch
from theodolite.annotate.geometry.pi3x import OUTPUTS as RECIPE
from theodolite.annotate.networks import vit
from theodolite.annotate.networks.checkpoint import fill_stand_in
from theodolite.annotate.networks.fused import op as fused
from theodolite.annotate.networks.moge2 import MoGe2, MoGe2Size
from theodolite.annotate.networks.pi3x import Pi3X, Pi3XSize

sys.path.insert(0, os.environ["THEODOLITE_UPSTREAM"])
WITHOUT_CONFIDENCE = ("camera_poses", "local_points", "metric")


def clear() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def seconds(work: Callable[[], object], repeats: int, *, warm: bool = False) -> tuple[float, float]:
    """Median time (the longer one of two) after one warm-up, unless it is `warm`, and peak GiB."""
    if not warm:
        work()
    clear()
    times = []
    for _ in range(repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return sorted(times)[len(times) // 2], peak


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.float(), b.float()
    good = a.isfinite() & b.isfinite()
    return float((a - b)[good].double().norm() / b[good].double().norm())


def tflop_pi3x(frames: int, h: int, w: int, *, branches: int = 3) -> float:
    """Multiply-adds x 2 per window of matrix products, attention and dense heads, in units of 1e12.

    `branches`: 3 head transformers (camera, points, confidence), or 2 without confidence.
    """
    L, P, D = h * w + 5, h * w, 1024
    block = lambda n, tokens: n * tokens * 24 * D * D  # noqa: E731
    encoder = 24 * (block(1, P + 5) + 4 * (P + 5) ** 2 * D)
    decoder = 36 * block(1, L) + 18 * 4 * L**2 * D + 18 * 4 * L * (L * frames) * D
    heads = branches * (5 * (block(1, L) + 4 * L**2 * D) + 6 * L * D * D)
    return frames * (encoder + decoder + heads + (branches - 1) * 0.185e12 * P / 1296) / 1e12


def report(name: str, count: int, timing: tuple[float, float], tflop: float, ceiling: float) -> float:
    took, peak = timing
    rate = tflop / took
    share = f"{100 * rate / ceiling:3.0f} %" if ceiling else ""
    print(
        f"{name:44s} {count / took:8.2f} /s  {took:7.3f} s  {peak:6.1f} GiB  {rate:5.0f} TFLOP/s {share}",
        flush=True,
    )
    return took


def build_pi3x(device: torch.device, tiny: bool) -> Pi3X:
    size = Pi3XSize(encoder_depth=1, decoder_depth=2, head_depth=1) if tiny else Pi3XSize()
    with torch.device(device):
        network = Pi3X(size, conditioning=False)
    randomise(network)
    return network


def randomise(network: torch.nn.Module) -> None:
    """Values drawn on the network's device; `fill_stand_in` draws on the CPU, which takes long at full size."""
    with torch.no_grad():
        for name, p in network.named_parameters():
            if p.ndim > 1:
                p.copy_(torch.randn_like(p) / max(1, p[0].numel()) ** 0.5)
            elif name.endswith("gamma"):
                p.fill_(0.2)
            elif name.endswith("bias"):
                p.copy_(0.05 * torch.randn_like(p))
            else:
                p.copy_(1 + 0.1 * torch.randn_like(p))


def pi3x(device: torch.device, tiny: bool, windows: list[int], ceiling: float) -> None:
    """Ours beside the authors', window by window. Long: what is timed shares its weights and inputs."""
    # brought by whoever wants it
    from pi3.models.pi3x import Pi3X as Upstream  # pyright: ignore[reportMissingImports]

    H, W = (28, 42) if tiny else (378, 672)
    ours = build_pi3x(device, tiny)
    with torch.device(device):
        theirs = Upstream(use_multimodal=False)
    if tiny:
        theirs.encoder.blocks = theirs.encoder.blocks[:1]
        theirs.decoder = theirs.decoder[:2]
        for n in ("point", "camera", "conf", "metric"):
            getattr(theirs, f"{n}_decoder").blocks = getattr(theirs, f"{n}_decoder").blocks[:1]
    theirs.load_state_dict(ours.state_dict())
    theirs = theirs.to(device).eval()
    half = torch.autocast(
        device.type, torch.bfloat16, enabled=device.type == "cuda"
    )  # upstream turns only CUDA off

    def rival(images: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad(), half:
            return theirs(images)

    few = torch.rand(1, 4, 3, H, W, device=device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    exact = ours(few)
    torch.backends.cudnn.allow_tf32 = True
    base = rival(few)
    ours.to_half()
    for label, dtype in (("float16 heads", torch.float16), ("TF32 heads", torch.float32)):
        ours.head_dtype = dtype
        mine = ours(few)
        print(f"error against float32, window 4: upstream bf16 | ours bf16, {label} | ours against upstream")
        for key in exact:
            a, b, c = (
                difference(base[key], exact[key]),
                difference(mine[key], exact[key]),
                difference(mine[key], base[key]),
            )
            print(f"  {key:14s} {a:.2e} | {b:.2e} | {c:.2e}")
    ours.head_dtype = torch.float16
    own = fused._attention_kernel
    for n in windows:
        images = torch.rand(1, n, 3, H, W, device=device)
        work = tflop_pi3x(n, H // 14, W // 14)
        expected = {k: v.cpu() for k, v in rival(images).items()}
        ref = report(
            f"Pi3X {W}x{H} window {n}, upstream",
            n,
            seconds(lambda: rival(images), 2, warm=True),
            work,
            ceiling,
        )
        variants = [
            ("all outputs", own, None, torch.float16),
            ("what the recipe reads", own, RECIPE, torch.float16),
            ("poses, depth, metric", own, WITHOUT_CONFIDENCE, torch.float16),
        ]
        if n <= 64:
            variants += [
                ("all outputs, cuDNN attention", lambda: None, None, torch.float16),
                ("all outputs, TF32 heads", own, None, torch.float32),
            ]
        for label, kernel, outputs, head in variants:
            fused._attention_kernel = kernel
            ours.head_dtype = head
            run = lambda o=outputs: ours(images, outputs=o) if o else ours(images)  # noqa: E731
            mine = run()
            worst = max(difference(mine[k].cpu(), expected[k]) for k in mine)
            del mine
            done = tflop_pi3x(n, H // 14, W // 14, branches=2) if outputs == WITHOUT_CONFIDENCE else work
            took = report(f"  ours, {label}", n, seconds(run, 2, warm=True), done, ceiling)
            print(f"      {ref / took:.2f}x upstream, largest difference of an output {worst:.1e}")
        fused._attention_kernel = own
        ours.head_dtype = torch.float16
    if device.type == "cuda":
        stages(lambda: ours(torch.rand(1, 64, 3, H, W, device=device)))


def stages(work: Callable[[], object]) -> None:
    """Where the time goes: kernels by name, one profiled call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        work()
        torch.cuda.synchronize()
    rows = sorted(trace.key_averages(), key=lambda r: -r.self_device_time_total)
    total = sum(r.self_device_time_total for r in rows)
    for r in rows[:14]:
        print(f"      {100 * r.self_device_time_total / total:5.1f} %  {r.count:5d} x  {r.key[:90]}")


def build_moge2(device: torch.device, size: MoGe2Size) -> MoGe2:
    network = MoGe2(size)
    fill_stand_in(network, 1)
    return network.to(device)


def moge(device: torch.device, tiny: bool, ceiling: float) -> None:
    # brought by whoever wants it
    from moge.model.v2 import MoGeModel  # pyright: ignore[reportMissingImports]

    size = MoGe2Size.released("vits-normal" if tiny else "vitl-normal")
    ours = build_moge2(device, size)
    stack = lambda s: dict(  # noqa: E731
        dim_in=list(s.dim_in), dim_res_blocks=list(s.dim_res_blocks), dim_out=list(s.dim_out),
        num_res_blocks=list(s.num_res_blocks), resamplers=["conv_transpose"] * 3 + ["bilinear"],
        res_block_in_norm="none", res_block_hidden_norm="none",
    )  # fmt: skip
    with torch.device(device):
        theirs = MoGeModel(
        encoder=dict(backbone="dinov2_vits14" if tiny else "dinov2_vitl14",
                     intermediate_layers=list(size.layers), dim_out=size.width),
        neck=stack(size.neck), **{n: stack(s) for n, s in size.heads},
        scale_head=dict(dims=list(size.scale_dims)), remap_output="exp", num_tokens_range=[1200, 3600],
    )  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    theirs = theirs.to(device).eval()
    H, W = (90, 160) if tiny else (720, 1280)
    tokens = 40 if tiny else 3600
    few = torch.rand(2, 3, H, W, device=device)
    torch.backends.cudnn.allow_tf32 = False
    exact = ours(few, tokens)
    torch.backends.cudnn.allow_tf32 = True
    with (
        torch.no_grad(),
        torch.autocast(device.type, torch.float16 if device.type == "cuda" else torch.bfloat16),
    ):
        base = theirs(few, num_tokens=tokens)
    if device.type == "cuda":
        ours.to_half()
    mine = ours(few, tokens)
    for key in exact:
        a, b = difference(base[key], exact[key]), difference(mine[key], exact[key])
        print(f"  MoGe-2 {key:14s} error against float32: upstream {a:.2e} | ours {b:.2e}")
    for batch in (2,) if tiny else (8, 32):
        images = torch.rand(batch, 3, H, W, device=device)
        work = batch * 4.45
        ref = report(
            f"MoGe-2 ViT-L infer {W}x{H}, batch {batch}, upstream", batch,
            seconds(lambda: theirs.infer(images, num_tokens=tokens, use_fp16=device.type == "cuda"), 3), work, ceiling,
        )  # fmt: skip
        for label, outputs in (("all outputs", ("points", "depth", "normal")), ("depth only", ("depth",))):
            run = lambda o=outputs: ours.infer(images, num_tokens=tokens, outputs=o)  # noqa: E731
            done = work if "normal" in outputs else batch * 4.23
            took = report(f"  ours, {label}", batch, seconds(run, 3), done, ceiling)
            print(f"      {ref / took:.2f}x upstream")
    if device.type == "cuda":
        stages(lambda: ours.infer(torch.rand(32, 3, H, W, device=device), num_tokens=tokens))


def attention_table(device: torch.device) -> None:
    """Attention at head width 64: torch's cuDNN and flash kernels beside ours, as the networks call it."""
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for batch, L, dtype, note in (
        (1, 83264, torch.bfloat16, "64 frames of Pi3X"),
        (1, 166528, torch.bfloat16, "128 frames of Pi3X"),
        (64, 1301, torch.bfloat16, "each of 64 frames of Pi3X"),
        (32, 3601, torch.float16, "32 images of MoGe-2"),
    ):
        qkv = torch.randn(batch, L, 3, 16, 64, device=device, dtype=dtype)
        q, k = (F.layer_norm(qkv[:, :, i].float(), (64,)).to(dtype) for i in (0, 1))
        v = qkv[:, :, 2]
        tflop = 4 * batch * L * L * 1024 / 1e12
        turned = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        expected = None
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            with sdpa_kernel(backend):
                expected = F.scaled_dot_product_attention(*turned)
                took, _ = seconds(lambda: F.scaled_dot_product_attention(*turned), 3, warm=True)
            print(f"attention {batch} x {L} tokens ({note}), {backend.name}: {tflop / took:.0f} TFLOP/s")
        if not fused.has_attention_kernel(q):
            continue
        assert expected is not None
        expected = expected.transpose(1, 2).flatten(2)
        scaled = (q.float() * fused.DIRECT_FACTOR).to(dtype)
        for direct in (False, True)[: 1 + fused.takes_direct(q, 8.0)]:
            run = lambda d=direct: fused.own_attention(scaled if d else q, k, v, direct=d)  # noqa: E731
            error = difference(run(), expected)
            took, _ = seconds(run, 3, warm=True)
            kind = "no maximum" if direct else "running maximum"
            print(f"    ours, {kind}: {tflop / took:.0f} TFLOP/s, difference {error:.1e}", flush=True)


def clips(device: torch.device, tiny: bool) -> None:
    """Short clips together or one by one: 10 s are 41 keyframes for Pi3X and 10 images for MoGe-2."""
    H, W, frames = (28, 42, 3) if tiny else (378, 672, 41)
    network = build_pi3x(device, tiny).to_half()
    for batch in (1, 2, 4):
        images = torch.rand(batch, frames, 3, H, W, device=device)
        took, _ = seconds(lambda n=network, x=images: n(x, outputs=RECIPE), 3)
        print(
            f"Pi3X, {batch} clips of {frames} frames at once: {batch * frames / took:.2f} frames/s",
            flush=True,
        )
    del network, images
    clear()
    size = MoGe2Size.released("vits-normal" if tiny else "vitl-normal")
    depth = build_moge2(device, size).to_half()
    for batch in (1, 2) if tiny else (10, 16, 32):
        images = torch.rand(batch, 3, 90 if tiny else 720, 160 if tiny else 1280, device=device)
        took, _ = seconds(lambda x=images: depth(x, 40 if tiny else 3600, normals=False), 3)
        print(f"MoGe-2 without normals, batch {batch}: {batch / took:.2f} images/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="a dry run on small sizes")
    parser.add_argument("--windows", type=int, nargs="*", default=[16, 64, 128])
    parser.add_argument("--parts", nargs="*", default=["attention", "pi3x", "moge", "clips"])
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    ceiling = 0.0
    if device.type == "cuda":
        a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
        ceiling = 2 * 8192**3 / 1e12 / seconds(lambda: a @ b, 10)[0]
        print(torch.cuda.get_device_name(), torch.__version__, f"bf16 matmul 8192^3: {ceiling:.0f} TFLOP/s")
        if "attention" in args.parts:
            attention_table(device)
    assert vit.HEAD_WIDTH == 64
    with torch.no_grad():
        if "pi3x" in args.parts:
            pi3x(device, args.tiny, [2] if args.tiny else args.windows, ceiling)
            clear()
        if "moge" in args.parts:
            moge(device, args.tiny, ceiling)
            clear()
        if "clips" in args.parts:
            clips(device, args.tiny)


if __name__ == "__main__":
    main()
