"""Pi3X: poses, point maps, confidence and one metric factor for a window of frames.

Written from the published description (arXiv 2507.13347) and the public inference code, with its parameter names;
a state dict of the released network loads strictly. Frames are interchangeable: no frame is a reference, and the
world frame of the output is arbitrary. Shapes: B windows, N frames, H x W pixels (multiples of 14), P = H*W/196.
"""

# torch types attributes of modules as Tensor | Module; which one it is, the parity tests show.
# pyright: reportIndexIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conditioning import Conditions, WindowShape, invert_rigid, prepare_conditions
from .conv import ConvHead
from .fused.op import DIRECT_FACTOR, add_norm, rotate_qk, takes_direct
from .fused.reference import rope_table, rotate
from .images import check_values
from .vit import (
    PATCH,
    Attention,
    Block,
    LayerScale,
    Mlp,
    PatchEmbed,
    Pending,
    VisionTransformer,
    attention,
    cast_linears,
    finish,
    linear,
)

OUTPUTS = ("points", "local_points", "rays", "conf", "camera_poses", "metric")
CONDITION_PREFIXES = ("depth_encoder.", "depth_emb", "ray_embed.", "pose_inject_blk.")
NUM_SPECIAL = 5
FRAMES_AT_ONCE = 64
"""Frames that pass a frame-wise transformer at once: bounds the memory of its widest activation."""
_POSE_AFTER = (1, 9, 17, 25, 33)


@dataclass(frozen=True, kw_only=True)
class Pi3XSize:
    """Widths and depths; the defaults are the released network, smaller ones serve tests."""

    width: int = 1024
    encoder_depth: int = 24
    decoder_depth: int = 36
    head_depth: int = 5
    camera_width: int = 512


class NotFinite(ValueError):
    """A network's output left every number format: the input is at fault, or the weights are."""


class RopeAttend:
    """Attention with 2-D rotary positions; token l of a sequence stands at place l mod n of a frame."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, attn: Attention, x: Tensor) -> Tensor:
        qkv = attn.split(x)
        direct = takes_direct(qkv, attn.score_bound)
        factor = DIRECT_FACTOR if direct else 1.0
        q, k = rotate_qk(qkv, self.table, attn.q_norm, attn.k_norm, q_factor=factor)
        return attention(q, k, qkv[:, :, 2], direct=direct)


class FrameDecoder(nn.Module):
    """Head transformer: linear, blocks inside each frame, linear."""

    def __init__(self, width: int, depth: int, out: int) -> None:
        super().__init__()
        self.projects = nn.Linear(2 * width, width)
        self.blocks = nn.ModuleList(Block(width, layer_scale=False) for _ in range(depth))
        self.linear_out = nn.Linear(width, out)

    def forward(self, features: Tensor, attend: RopeAttend) -> Tensor:
        x = linear(self.projects, features).float()
        pending: Pending = None
        for block in self.blocks:
            x, pending = block(x, pending, attend)
        return linear(self.linear_out, finish(x, pending)[:, NUM_SPECIAL:])


class CrossAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)


class CrossBlock(nn.Module):
    """A query reads the context; the context stays as it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.norm_y = nn.LayerNorm(width, eps=1e-6)
        self.cross_attn = CrossAttention(width)
        self.norm3 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, context: Tensor, table: Tensor) -> Tensor:
        dtype = self.cross_attn.q_proj.weight.dtype
        _, y = add_norm(context, None, self.norm_y, dtype)
        _, query = add_norm(x.contiguous(), None, self.norm2, dtype)
        # The query stands at position (0, 0), where the rotation is the identity.
        q, k, v = (
            linear(layer, t).unflatten(-1, (-1, 64))
            for layer, t in (
                (self.cross_attn.q_proj, query),
                (self.cross_attn.k_proj, y),
                (self.cross_attn.v_proj, y),
            )
        )
        # One query: two small products beat every fused kernel, whose parallelism is over queries.
        k = rotate(k, table)
        weight = (torch.einsum("bqhe,blhe->bhql", q, k).float() * 64**-0.5).softmax(-1).to(v.dtype)
        branch = torch.einsum("bhql,blhe->bqhe", weight, v).flatten(2)
        x = x + linear(self.cross_attn.proj, branch)
        _, h = add_norm(x.contiguous(), None, self.norm3, dtype)
        return x + self.mlp(h)


class MetricDecoder(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.projects_x = nn.Linear(2 * width, width // 2)
        self.projects_y = nn.Linear(2 * width, width // 2)
        self.blocks = nn.ModuleList(CrossBlock(width // 2) for _ in range(depth))
        self.linear_out = nn.Linear(width // 2, width // 2)

    def forward(self, query: Tensor, context: Tensor, table: Tensor) -> Tensor:
        x = linear(self.projects_x, query).float()
        y = linear(self.projects_y, context).float()
        for block in self.blocks:
            x = block(x, y, table)
        return linear(self.linear_out, x)


class ResMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.res_conv1 = nn.Linear(width, width)
        self.res_conv2 = nn.Linear(width, width)
        self.res_conv3 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.res_conv1(x))
        y = F.relu(self.res_conv2(y))
        return x + F.relu(self.res_conv3(y))


class CameraHead(nn.Module):
    """(B, P, C) patch features to (B, 4, 4) camera-to-world, float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.res_conv = nn.ModuleList(ResMlp(width) for _ in range(2))
        self.more_mlps = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.fc_t = nn.Linear(width, 3)
        self.fc_rot = nn.Linear(width, 9)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.res_conv:
            x = block(x)
        x = self.more_mlps(x.mean(dim=1))
        pose = torch.zeros(x.shape[0], 4, 4, device=x.device)
        pose[:, :3, :3] = nearest_rotation(self.fc_rot(x).unflatten(-1, (3, 3)))
        pose[:, :3, 3] = self.fc_t(x)
        pose[:, 3, 3] = 1
        return pose


def nearest_rotation(matrix: Tensor) -> Tensor:
    """(..., 3, 3) to the nearest rotation after normalising each row, by SVD.

    Raises:
        NotFinite: for values that are no numbers, which the SVD would end at with an error of its own.
    """
    if not bool(matrix.isfinite().all()):
        raise NotFinite("Pi3X: camera_poses hold values that are no numbers")
    u, _, vt = torch.linalg.svd(F.normalize(matrix, dim=-1))
    sign = torch.ones(matrix.shape[:-1], device=matrix.device)
    sign[..., 2] = torch.linalg.det(u @ vt)
    return (u * sign[..., None, :]) @ vt


class PoseBlock(nn.Module):
    """Attention between the patches of posed frames, steered by their relative cameras; both branches parallel.

    Half of the head dims are multiplied by the camera matrices, a quarter each is turned by column and row
    (relative-pose attention as in GTA, arXiv 2310.10375, and PRoPE, arXiv 2507.10496).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, qk_norm=True)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)
        self.ls1 = LayerScale(width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor, camera_to_world: Tensor, h: int, w: int) -> Tensor:
        """Increment for the patch tokens.

        Args:
            x: (M, h * w, D) patch tokens of the M posed frames of one window.
            camera_to_world: (M, 4, 4).
        """
        M, P, D = x.shape
        flat = x.reshape(1, M * P, D)
        attn = self.attn
        assert attn.q_norm is not None
        assert attn.k_norm is not None
        dtype = attn.qkv.weight.dtype
        q, k, v = attn.split(add_norm(flat, None, self.norm1, dtype)[1]).float().unbind(2)
        q = F.layer_norm(q, (64,), attn.q_norm.weight, attn.q_norm.bias, attn.q_norm.eps)
        k = F.layer_norm(k, (64,), attn.k_norm.weight, attn.k_norm.bias, attn.k_norm.eps)
        world_to_camera = invert_rigid(camera_to_world)
        frequency = 100.0 ** (-torch.arange(8, device=x.device) / 8)
        column = torch.arange(w, device=x.device).repeat(h)[:, None] * frequency
        row = torch.arange(h, device=x.device).repeat_interleave(w)[:, None] * frequency

        def steer(t: Tensor, matrix: Tensor, sign: float) -> Tensor:
            t = t.reshape(M, P, -1, 64)
            cameras = torch.einsum("mij,mphgj->mphgi", matrix, t[..., :32].unflatten(-1, (8, 4))).flatten(-2)
            parts = [cameras]
            for angle, start in ((column, 32), (row, 48)):
                a, b = t[..., start : start + 8], t[..., start + 8 : start + 16]
                c, s = angle.cos()[:, None], sign * angle.sin()[:, None]
                parts += [c * a + s * b, c * b - s * a]
            return torch.cat(parts, dim=-1).reshape(1, M * P, -1, 64)

        q = steer(q, world_to_camera.transpose(-1, -2), 1.0).to(dtype)
        k = steer(k, camera_to_world, 1.0).to(dtype)
        v = steer(v, camera_to_world, 1.0).to(dtype)
        out = attention(q, k, v).float().unflatten(-1, (-1, 64))
        out = steer(out, world_to_camera, -1.0).flatten(2)
        branch = linear(attn.proj, out) * self.ls1.gamma
        mlp = self.mlp(add_norm(flat, None, self.norm2, dtype)[1]) * self.ls2.gamma
        return (branch + mlp).reshape(M, P, D).float()


@dataclass(frozen=True)
class _Posed:
    """Poses that steer the decoder.

    Attributes:
        camera_to_world: (B, N, 4, 4), normalised.
        frames: (B, N) bool, which of them count.
    """

    camera_to_world: Tensor
    frames: Tensor


class Pi3X(nn.Module):
    """The network.

    Args:
        size: widths and depths.
        conditioning: build the parts for known depth, rays and poses (27 % of the parameters); without them the
            unconditioned result is the same to the last bit.
    """

    def __init__(self, size: Pi3XSize | None = None, *, conditioning: bool = True) -> None:
        super().__init__()
        size = size or Pi3XSize()
        width = size.width
        self.size = size
        self.conditioning = conditioning
        self.head_dtype = torch.float32
        self.encoder = VisionTransformer(width, size.encoder_depth, num_registers=4)
        self.decoder = nn.ModuleList(Block(width, qk_norm=True) for _ in range(size.decoder_depth))
        self.register_token = nn.Parameter(torch.zeros(1, 1, NUM_SPECIAL, width))
        if conditioning:
            self.depth_encoder = VisionTransformer(width, size.encoder_depth, num_registers=4, channels=2)
            self.depth_emb = nn.Parameter(torch.zeros(1, 1, width))
            self.ray_embed = PatchEmbed(2, width)
            self.pose_inject_blk = nn.ModuleList(PoseBlock(width) for _ in self._pose_after())
        self.point_decoder = FrameDecoder(width, size.head_depth, width)
        self.point_head = ConvHead((2, 1), width)
        self.camera_decoder = FrameDecoder(width, size.head_depth, size.camera_width)
        self.camera_head = CameraHead(size.camera_width)
        self.metric_token = nn.Parameter(torch.zeros(1, 1, 2 * width))
        self.metric_decoder = MetricDecoder(width, size.head_depth)
        self.metric_head = nn.Linear(width // 2, 1)
        self.conf_decoder = FrameDecoder(width, size.head_depth, width)
        self.conf_head = ConvHead((1,), width)
        self.register_buffer("image_mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def _pose_after(self) -> tuple[int, ...]:
        return tuple(i for i in _POSE_AFTER if i < self.size.decoder_depth)

    def to_half(self, *, head_dtype: torch.dtype = torch.float16) -> Pi3X:
        """bfloat16 transformers, and `head_dtype` convolutions in the dense heads; everything else float32.

        float16 has the mantissa of TF32, which is what these convolutions run in by default on CUDA; a value
        beyond its range raises in `forward` and then float32 is to be chosen.
        """
        parts = [self.encoder, self.decoder, self.point_decoder, self.camera_decoder, self.conf_decoder]
        parts.append(self.metric_decoder)
        if self.conditioning:
            parts += [self.depth_encoder, self.ray_embed, self.pose_inject_blk]
        cast_linears(parts, torch.bfloat16)
        self.head_dtype = head_dtype
        return self

    @torch.inference_mode()
    def forward(
        self,
        images: Tensor,
        conditions: Conditions | None = None,
        *,
        outputs: Collection[str] = OUTPUTS,
        chunk: int = 16,
    ) -> dict[str, Tensor]:
        """Geometry of a window.

        Args:
            images: (B, N, 3, H, W) RGB in [0, 1], or uint8; H and W multiples of 14.
            conditions: what is known.
            outputs: names to compute; dropping `conf` or all of points, local_points and rays saves their branch.
            chunk: frames that pass the convolutions of the dense heads at once (no effect on results).
        Returns:
            camera_poses: (B, N, 4, 4) camera-to-world, OpenCV axes, approximately metric, arbitrary world frame;
            local_points: (B, N, H, W, 3) in the camera frame, same unit; points: the same in the world frame;
            rays: (B, N, H, W, 3) unit vectors; conf: (B, N, H, W, 1) logits; metric: (B,) the factor inside.
        Raises:
            ValueError: for sizes, types, names or conditions that do not fit.
            NotFinite: for results that are no numbers.
        """
        if 0 in images.shape:
            raise ValueError(f"images are {tuple(images.shape)}: they hold nothing")
        check_values(images)
        if chunk < 1 or chunk != int(chunk):
            raise ValueError(f"chunk is {chunk}; a whole number of frames passes at once, at least one")
        if images.ndim != 5 or images.shape[2] != 3 or images.shape[-1] % PATCH or images.shape[-2] % PATCH:
            raise ValueError(
                f"images must be (B, N, 3, H, W) with H, W multiples of 14, got {tuple(images.shape)}"
            )
        unknown = {outputs} if isinstance(outputs, str) else set(outputs) - set(OUTPUTS)
        if unknown or not outputs:
            raise ValueError(f"unknown outputs {sorted(unknown)}; name some of {', '.join(OUTPUTS)}")
        B, N, _, H, W = images.shape
        window = WindowShape(B, N, H // PATCH, W // PATCH)
        flat = images.flatten(0, 1)
        tokens = torch.cat([self._encode(part) for part in flat.split(FRAMES_AT_ONCE)]).float()
        posed = None
        if conditions is not None:
            if not self.conditioning:
                raise ValueError(
                    "this Pi3X was built without its conditioning parts (conditioning=True builds them)"
                )
            tokens, posed = self._condition(tokens, conditions, window)
        compute = self.decoder[0].attn.qkv.weight.dtype
        attend = RopeAttend(rope_table(window.rows, window.columns, NUM_SPECIAL, compute, images.device))
        features = self._decode(tokens, attend, window, posed)
        found = self._heads(features, attend, set(outputs), window, chunk)
        wrong = [name for name, x in found.items() if not bool(x.isfinite().all())]
        if wrong:
            raise NotFinite(f"Pi3X: {' and '.join(wrong)} hold values that are no numbers")
        return found

    def _encode(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return self.encoder((images - self.image_mean) / self.image_std)[0][0]

    def _condition(
        self, tokens: Tensor, given: Conditions, window: WindowShape
    ) -> tuple[Tensor, _Posed | None]:
        """Add depth and ray embeddings to (B * N, P, D) tokens; and the frames whose poses steer the decoder."""
        known = prepare_conditions(given, window, tokens.device)
        if known.rays is not None:
            embedded = self.ray_embed(known.rays.flatten(0, 1).permute(0, 3, 1, 2))
            tokens = tokens + embedded * known.ray_frames.view(-1, 1, 1)
        if bool(known.depth_frames.any()):
            stacked = torch.stack([known.depth, known.has_depth.float()], dim=2).flatten(0, 1)
            wanted = known.depth_frames.flatten().nonzero()[:, 0]
            for part in wanted.split(FRAMES_AT_ONCE):
                tokens[part] += self.depth_encoder(stacked[part])[0][0].float() + self.depth_emb[0]
        if known.camera_to_world is None or not bool(known.pose_frames.any()):
            return tokens, None
        return tokens, _Posed(known.camera_to_world, known.pose_frames)

    def _decode(
        self, tokens: Tensor, attend: RopeAttend, window: WindowShape, posed: _Posed | None
    ) -> Tensor:
        """(B * N, 5 + P, 2D) features of the last frame block and the last window block."""
        B, N = window.frames
        width = tokens.shape[-1]
        x = torch.cat([self.register_token[0].float().expand(B * N, -1, -1), tokens], dim=1)
        L = x.shape[1]
        dtype = self.decoder[0].attn.qkv.weight.dtype
        pending: Pending = None
        features = torch.empty(B * N, L, 2 * width, device=x.device, dtype=dtype)
        pose_after = self._pose_after()
        for i, block in enumerate(self.decoder):
            shape = (B * N, L, width) if i % 2 == 0 else (B, N * L, width)
            if pending is not None:
                pending = (pending[0].reshape(shape), pending[1])
            x, pending = block(x.reshape(shape), pending, attend)
            if posed is not None and i in pose_after:
                x, pending = finish(x, pending).reshape(B, N, L, width), None
                self._inject(x, self.pose_inject_blk[pose_after.index(i)], posed, window)
            if i == len(self.decoder) - 2:
                features[..., :width] = finish(x, pending).reshape(B * N, L, width)
        features[..., width:] = finish(x, pending).reshape(B * N, L, width)
        return features

    @staticmethod
    def _inject(x: Tensor, inject: PoseBlock, posed: _Posed, window: WindowShape) -> None:
        """Let the patches of posed frames, in (B, N, 5 + P, D) tokens, see each other's cameras."""
        for b, frames in enumerate(posed.frames):
            chosen = frames.nonzero()[:, 0]
            if len(chosen):
                patches = x[b, chosen, NUM_SPECIAL:]
                increment = inject(patches, posed.camera_to_world[b, chosen], window.rows, window.columns)
                x[b, chosen, NUM_SPECIAL:] = patches + increment

    def _heads(
        self, features: Tensor, attend: RopeAttend, wanted: set[str], window: WindowShape, chunk: int
    ) -> dict[str, Tensor]:
        (B, N), (H, W) = window.frames, window.pixels
        out: dict[str, Tensor] = {}
        context = features.view(B, -1, features.shape[-1])
        token = self.metric_token.expand(B, -1, -1)
        metric = self.metric_head(self.metric_decoder(token, context, attend.table).float()).reshape(B).exp()
        out["metric"] = metric
        scale = metric.view(B, 1, 1, 1, 1)
        if wanted & {"camera_poses", "points"}:
            camera = torch.cat([self.camera_decoder(part, attend) for part in features.split(FRAMES_AT_ONCE)])
            poses = self.camera_head(camera.float()).view(B, N, 4, 4)
            poses[..., :3, 3] *= metric.view(B, 1, 1)
            out["camera_poses"] = poses
        if wanted & {"points", "local_points", "rays"}:
            maps = self._dense(self.point_decoder, self.point_head, features, attend, window, chunk)
            maps = maps.view(B, N, H, W, 3)
            xy, z = maps[..., :2], maps[..., 2:].clamp(max=15.0).exp()
            if "rays" in wanted:
                out["rays"] = F.normalize(torch.cat([xy, torch.ones_like(z)], dim=-1), dim=-1)
            local = torch.cat([xy * z, z], dim=-1) * scale
            if "local_points" in wanted:
                out["local_points"] = local
            if "points" in wanted:
                rotation, centre = out["camera_poses"][..., :3, :3], out["camera_poses"][..., :3, 3]
                world = (local.flatten(2, 3) @ rotation.transpose(-1, -2)).view(B, N, H, W, 3)
                out["points"] = world + centre[:, :, None, None]
        if "conf" in wanted:
            conf = self._dense(self.conf_decoder, self.conf_head, features, attend, window, chunk)
            out["conf"] = conf.view(B, N, H, W, 1)
        return {name: out[name] for name in OUTPUTS if name in wanted}

    def _dense(
        self,
        decoder: FrameDecoder,
        head: ConvHead,
        features: Tensor,
        attend: RopeAttend,
        window: WindowShape,
        chunk: int,
    ) -> Tensor:
        tokens = (decoder(part, attend) for part in features.split(FRAMES_AT_ONCE))
        parts = (few for part in tokens for few in part.split(chunk))
        maps = torch.cat([head(few, window.rows, window.columns, self.head_dtype) for few in parts])
        if self.head_dtype == torch.float16 and not bool(maps.isfinite().all()):
            raise NotFinite(
                "Pi3X: a dense head left the range of float16; use to_half(head_dtype=torch.float32)"
            )
        return maps
