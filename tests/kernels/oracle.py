"""NVlabs/Sana's operators on the inputs of a `Case`, from a checkout named by THEODOLITE_SANA.

The checkout is taken as it is (its root holds `diffusion/`). Its operators need torch, Triton and einops; what its
packages import beside them at their start (trainers, datasets, other libraries) is left out.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import torch
from theodolite.kernels.frame_gdn.reference import ray_matrices
from torch import Tensor


def available() -> bool:
    root = os.environ.get("THEODOLITE_SANA")
    if not root:
        return False
    for package in ("diffusion", "diffusion.model", "diffusion.model.nets", "diffusion.model.ops"):
        folder = Path(root, *package.split("."))
        if not folder.is_dir():
            raise FileNotFoundError(f"THEODOLITE_SANA={root}: holds no {folder.relative_to(root)}")
        if package not in sys.modules:
            sys.modules[package] = ModuleType(package)
            sys.modules[package].__path__ = [str(folder)]
    return True


def tables(rope: Tensor) -> tuple[Tensor, Tensor]:
    """Their rotary tables (N, 2 pairs): y[d] = x[d] cos[d] + x[d ^ 1] sin[d], so the even sines are negative."""
    cos, sin = rope.float().flatten(1, 2)
    signed = torch.stack([-sin, sin], dim=-1).flatten(-2)
    return cos.repeat_interleave(2, dim=-1).contiguous(), signed.contiguous()


def packed(case) -> Tensor:
    """(B, N, 3, H, D)."""
    return torch.stack([x.flatten(1, 2) for x in (case.q, case.k, case.v)], dim=2).contiguous()


def main_branch(case, *, precision: int, eps: float = 1e-8) -> Tensor:
    """Their both-direction chunkwise forward; `precision` 0 bfloat16 products, 2 float32."""
    from diffusion.model.ops.fused_gdn_chunkwise import fused_bigdn_bidi_chunkwise

    qkv = packed(case)
    _, _, _, h, d = qkv.shape
    t, s = case.k.shape[1:3]

    def inverse_rms(x: Tensor) -> Tensor:
        return torch.rsqrt(x.float().square().sum(dim=(-1, -2)) / (h * d) + 1e-5).contiguous()

    cos, sin = tables(case.rope)
    out = fused_bigdn_bidi_chunkwise(
        qkv,
        inverse_rms(qkv[:, :, 0]),
        inverse_rms(qkv[:, :, 1]),
        case.q_weight.float(),
        case.k_weight.float(),
        cos,
        sin,
        case.beta.permute(0, 3, 1, 2).contiguous(),
        case.decay.transpose(1, 2).contiguous(),
        t,
        s,
        k_scale=case.options["key_scale"],
        eps=eps,
        dot_precision=precision,
    )
    return out.unflatten(1, (t, s))


def camera_branch(case, *, fused: bool, training: bool = False) -> Tensor:
    """Their camera preparation, discount, scans and output transform.

    fused: their Triton kernels; else their plain torch references. training: the kernels through which their
    training code sends gradients.
    """
    from diffusion.model.ops import fused_cam_gdn
    from diffusion.model.ops.fused_gdn_chunkwise import cam_scan_bidi_chunkwise

    t, s, _h, d = case.k.shape[1:]
    matrix, inverse = (m.float().flatten(1, 2).contiguous() for m in ray_matrices(case.rays))
    cos, sin = tables(case.rope)
    prepare = fused_cam_gdn.cam_prep_func if fused else fused_cam_gdn._torch_cam_prep_reference
    if training:
        prepare = fused_cam_gdn.cam_prep_func_with_grad
    q, k, v, inflation = prepare(
        *(x.flatten(1, 2).contiguous() for x in (case.q, case.k, case.v)),
        q_norm_weight=case.q_weight.float(),
        k_norm_weight=case.k_weight.float(),
        proj_q=matrix.transpose(-1, -2).contiguous(),
        proj_kv=inverse,
        rope_cos=cos,
        rope_sin=sin,
        k_scale=case.options["key_scale"],
        norm_eps=1e-5,
    )
    beta = case.beta.permute(0, 3, 1, 2).float()
    beta = beta / inflation.unflatten(-1, (t, s)).mean(-1, keepdim=True).clamp_min(1.0)
    decay = case.decay.transpose(1, 2).float().contiguous()
    scan = (q.float().contiguous(), k.float().contiguous(), v.float().contiguous(), beta.contiguous(), decay)
    if training:
        out = fused_cam_gdn.cam_scan_func_with_grad(*scan)
        out = out + fused_cam_gdn.cam_scan_func_with_grad(*scan, reverse=True)
    elif fused:
        out = cam_scan_bidi_chunkwise(*scan)
    else:
        out = fused_cam_gdn._torch_cam_scan_reference(*scan)
        out = out + fused_cam_gdn._torch_cam_scan_reference(*scan, reverse=True)
    out = out.permute(0, 3, 1, 2).to(case.v.dtype)  # (B, N, H, D)
    half = d // 2
    first = torch.einsum("bnij,bnhgj->bnhgi", matrix.to(out.dtype), out[..., :half].unflatten(-1, (-1, 4)))
    pairs = out[..., half:]
    swapped = pairs.unflatten(-1, (half // 2, 2)).flip(-1).flatten(-2)
    second = pairs * cos[None, :, None].to(out.dtype) - swapped * sin[None, :, None].to(out.dtype)
    return torch.cat([first.flatten(-2), second], dim=-1).unflatten(1, (t, s))
