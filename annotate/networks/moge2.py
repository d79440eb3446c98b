"""MoGe-2: metric depth, focal, mask and normals from single images.

Written from the published description (arXiv 2507.02546) and the public inference code, with its parameter names.
"""

from __future__ import annotations

# torch types attributes of modules as Tensor | Module; which one it is, the parity tests show.
# pyright: reportIndexIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportAttributeAccessIssue=false
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv import ConvStack, last_maps, view_plane
from .focal import focal_and_shift
from .images import check_values
from .variants import BACKBONES, Variant
from .vit import PATCH, VisionTransformer, cast_linears, linear

OUTPUTS = ("points", "depth", "normal")


@dataclass(frozen=True, kw_only=True)
class StackSize:
    """Constructor arguments of one conv stack as a checkpoint's `model_config` names them."""

    dim_in: tuple[int, ...]
    dim_res_blocks: tuple[int, ...]
    dim_out: tuple[int | None, ...]
    num_res_blocks: tuple[int, ...]

    def build(self) -> ConvStack:
        return ConvStack(self.dim_in, self.dim_res_blocks, self.dim_out, self.num_res_blocks)

    @staticmethod
    def from_checkpoint(config: Mapping[str, object], name: str) -> StackSize:
        """Sizes of the stack `name` of a `model_config`.

        Raises:
            ValueError: for an option that stacks do not have here, named.
        """
        given = _table(config, name)
        dims = given["dim_res_blocks"]
        assert isinstance(dims, Sequence)
        n = len(dims)
        for key, value in _fixed_options(n).items():
            found = given.get(key, _OPTION_DEFAULTS.get(key))
            if (
                list(found) if isinstance(found, Sequence) and not isinstance(found, str) else found
            ) != value:
                raise ValueError(f"model_config {name}.{key}: {found!r} is not supported, only {value!r}")
        blocks = _numbers(given["num_res_blocks"], f"{name}.num_res_blocks", n)
        if blocks[-1]:
            raise ValueError(
                f"model_config {name}.num_res_blocks: {blocks} is not supported, the last level must have none"
            )
        out = given["dim_out"]
        outs = tuple(out) if isinstance(out, Sequence) else (out,) * n
        if any(c is not None for c in outs[:-1]):
            raise ValueError(f"model_config {name}.dim_out: {outs} is not supported, only the last level's")
        return StackSize(
            dim_in=_numbers(given["dim_in"], f"{name}.dim_in", n),
            dim_res_blocks=tuple(dims),
            dim_out=outs,
            num_res_blocks=blocks,
        )


_OPTION_DEFAULTS = {"dim_times_res_block_hidden": 1, "activation": "relu"}
"""What a checkpoint means that does not name an option."""


def _fixed_options(num_levels: int) -> dict[str, object]:
    """Options of a stack that are built in one way only."""
    return {
        "resamplers": ["conv_transpose"] * (num_levels - 2) + ["bilinear"],
        "res_block_in_norm": "none",
        "res_block_hidden_norm": "none",
        **_OPTION_DEFAULTS,
    }


def _table(config: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = config.get(name)
    if not isinstance(value, Mapping):
        raise ValueError(f"model_config has no table {name!r}; keys: {sorted(config)}")
    return value


def _numbers(values: object, name: str, n: int) -> tuple[int, ...]:
    if isinstance(values, int):
        return (values,) * n
    if isinstance(values, Sequence) and len(values) == n:
        return tuple(values)
    raise ValueError(f"model_config {name}: expected {n} numbers, got {values!r}")


@dataclass(frozen=True, kw_only=True)
class MoGe2Size:
    """Everything that fixes the shapes; made by `released` or `from_checkpoint`."""

    width: int
    depth: int
    layers: tuple[int, ...]
    neck: StackSize
    heads: tuple[tuple[str, StackSize], ...]
    scale_dims: tuple[int, ...]
    num_tokens_range: tuple[int, int] = (1200, 3600)

    @staticmethod
    def released(variant: Variant) -> MoGe2Size:
        """Sizes of a published checkpoint."""
        name, _, normal = variant.partition("-")
        width, depth = BACKBONES[f"dinov2_{name}14"]
        layers = (5, 11, 17, 23) if name == "vitl" else (5, 11)
        dims = (width, 256, 128, 64, 32)
        blocks = 2 if name == "vitl" else 1
        neck = StackSize(
            dim_in=(width + 2, 2, 2, 2, 2),
            dim_res_blocks=dims,
            dim_out=(None,) * 5,
            num_res_blocks=(0, blocks, blocks, blocks, 0),
        )
        outs = {"points_head": 3, "mask_head": 1} | ({"normal_head": 3} if normal else {})
        heads = tuple(
            (
                head,
                StackSize(
                    dim_in=dims,
                    dim_res_blocks=dims,
                    dim_out=(None,) * 4 + (c,),
                    num_res_blocks=(0, 1, 1, 1, 0),
                ),
            )
            for head, c in outs.items()
        )
        return MoGe2Size(
            width=width,
            depth=depth,
            layers=layers,
            neck=neck,
            heads=heads,
            scale_dims=(width, width, width, 1),
        )

    @staticmethod
    def tiny() -> MoGe2Size:
        """The smallest published layout cut to two blocks, for stand-ins that run on any machine."""
        return replace(MoGe2Size.released("vits-normal"), depth=2, layers=(0, 1), num_tokens_range=(24, 48))

    @staticmethod
    def from_checkpoint(config: Mapping[str, object]) -> MoGe2Size:
        """Sizes from the `model_config` of a checkpoint.

        Raises:
            ValueError: for a backbone or option that this class does not have, named.
        """
        encoder = _table(config, "encoder")
        backbone = str(encoder.get("backbone"))
        if backbone not in BACKBONES:
            raise ValueError(
                f"model_config encoder.backbone {backbone!r} is unknown; there are {', '.join(BACKBONES)}"
            )
        if config.get("remap_output") != "exp":
            raise ValueError(
                f"model_config remap_output {config.get('remap_output')!r} is not supported, only 'exp'"
            )
        width, depth = BACKBONES[backbone]
        if encoder.get("dim_out") != width:
            raise ValueError(f"model_config encoder.dim_out {encoder.get('dim_out')!r} must be {width}")
        layers = encoder["intermediate_layers"]
        taken = tuple(range(depth - layers, depth)) if isinstance(layers, int) else tuple(layers)
        span = config.get("num_tokens_range", (1200, 3600))
        return MoGe2Size(
            width=width,
            depth=depth,
            layers=taken,
            neck=StackSize.from_checkpoint(config, "neck"),
            heads=tuple(
                (h, StackSize.from_checkpoint(config, h))
                for h in ("points_head", "mask_head", "normal_head")
                if config.get(h)
            ),
            scale_dims=tuple(_table(config, "scale_head")["dims"]),
            num_tokens_range=(span[0], span[1]),
        )


class _Encoder(nn.Module):
    def __init__(self, size: MoGe2Size) -> None:
        super().__init__()
        self.backbone = VisionTransformer(size.width, size.depth, num_registers=0, mask_token=True)
        self.output_projections = nn.ModuleList(nn.Conv2d(size.width, size.width, 1) for _ in size.layers)
        self.register_buffer("image_mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, image: Tensor, h: int, w: int, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        image = F.interpolate(
            image, (PATCH * h, PATCH * w), mode="bilinear", align_corners=False, antialias=True
        )
        taken = self.backbone((image - self.image_mean) / self.image_std, layers)
        total: Tensor | None = None
        for layer, (patches, _) in zip(self.output_projections, taken, strict=True):
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            # A 1x1 convolution of a channels-last map is a matrix product of its tokens.
            part = F.linear(patches, layer.weight.flatten(1).to(patches.dtype), layer.bias.to(patches.dtype))
            total = part if total is None else total + part
        assert total is not None
        return total.unflatten(1, (h, w)).permute(0, 3, 1, 2), taken[-1][1]


class MoGe2(nn.Module):
    """The network; `forward` gives raw maps, `infer` metric geometry."""

    def __init__(self, size: MoGe2Size) -> None:
        super().__init__()
        self.size = size
        self.encoder = _Encoder(size)
        self.neck = size.neck.build()
        for name, stack in size.heads:
            self.add_module(name, stack.build())
        dims = size.scale_dims
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(dims):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.scale_head = nn.Sequential(*layers[:-1])
        self.eval().requires_grad_(False)

    def to_half(self) -> MoGe2:
        """float16 matrix products and convolutions; stream, norms and everything after the heads in float32."""
        cast_linears([self.encoder.backbone], torch.float16)
        for module in (
            self.neck,
            *(self.get_submodule(name) for name, _ in self.size.heads),
            self.scale_head,
        ):
            module.half()
        self.encoder.output_projections.half()
        return self

    @torch.inference_mode()
    def forward(self, image: Tensor, num_tokens: int, *, normals: bool = True) -> dict[str, Tensor]:
        """Affine-invariant geometry.

        Args:
            image: (B, 3, H, W) RGB in [0, 1], or uint8.
            num_tokens: patches to use; the grid follows the aspect ratio.
            normals: also compute normals if the network has that head.
        Returns:
            points (B, H, W, 3) with an unknown shift in z; mask (B, H, W) in 0..1; normal (B, H, W, 3);
            metric_scale (B,). All float32.
        Raises:
            ValueError: for sizes, types or numbers that do not fit.
        """
        if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
            raise ValueError(f"image must be (B, 3, H, W), got {tuple(image.shape)}")
        check_values(image)
        if num_tokens < 1 or num_tokens != int(num_tokens):
            raise ValueError(f"num_tokens is {num_tokens}; give a whole number of at least 1")
        if image.dtype == torch.uint8:
            image = image.float() / 255
        _, _, H, W = image.shape
        aspect = W / H
        h, w = (max(1, round(x**0.5)) for x in (num_tokens / aspect, num_tokens * aspect))
        feature, class_token = self.encoder(image.float(), h, w, self.size.layers)
        last = len(self.size.neck.dim_in) - 1
        planes = [view_plane(w * 2**i, h * 2**i, aspect, feature) for i in range(last)]
        planes.append(view_plane(w * 2**last, h * 2**last, aspect, feature.float()))
        names = [name for name, _ in self.size.heads if name != "normal_head" or normals]
        heads = [self.get_submodule(name) for name in names]
        levels = self.neck.levels([feature, *planes[1:-1]], planes[0])
        finals = last_maps(
            self.neck, heads, levels[-1], [head.levels(levels)[-1] for head in heads], planes[-1]
        )
        out: dict[str, Tensor] = {}
        for name, maps in zip(names, finals, strict=True):
            if maps.shape[-2:] != (H, W):
                maps = F.interpolate(maps, (H, W), mode="bilinear", align_corners=False)
            if name == "points_head":
                xy, z = maps.permute(0, 2, 3, 1).split([2, 1], dim=-1)
                z = z.exp()
                out["points"] = torch.cat([xy * z, z], dim=-1)
            elif name == "mask_head":
                out["mask"] = maps[:, 0].sigmoid()
            else:
                out["normal"] = F.normalize(maps.permute(0, 2, 3, 1), dim=-1)
        x = class_token
        for layer in self.scale_head:
            x = linear(layer, x) if isinstance(layer, nn.Linear) else layer(x)
        out["metric_scale"] = x[:, 0].float().exp()
        return out

    @torch.inference_mode()
    def infer(
        self,
        image: Tensor,
        *,
        num_tokens: int | None = None,
        resolution_level: int = 9,
        fov_x_deg: Tensor | float | None = None,
        pooled_focal: bool = False,
        force_projection: bool = True,
        apply_mask: bool = True,
        outputs: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """Metric geometry of a batch of images.

        Args:
            image: (B, 3, H, W) RGB in [0, 1], or uint8.
            num_tokens: patches; default by `resolution_level` 0..9 between the network's limits.
            fov_x_deg: known horizontal field of view, number or (B,); only the shift is then solved.
            pooled_focal: one focal for all images of the batch (frames of one clip).
            force_projection: recompute x and y from depth and focal.
            apply_mask: points and depth become +inf, normals 0 where the mask is False.
            outputs: which of points, depth, normal to give; None: all that the network has. Dropping normals saves
                their head.
        Returns:
            depth_m (B, H, W) along z; points_m (B, H, W, 3); normal (B, H, W, 3); intrinsics (B, 3, 3) normalised by
            image width and height; valid (B, H, W) bool; metric_scale (B,).
        Raises:
            ValueError: for sizes, types, names or numbers that do not fit.
        """
        given = [n for n in OUTPUTS if n != "normal" or "normal_head" in dict(self.size.heads)]
        outputs = given if outputs is None else [outputs] if isinstance(outputs, str) else outputs
        unknown = sorted(set(outputs) - set(given))
        if unknown or not outputs:
            raise ValueError(f"unknown outputs {unknown}; this network gives {', '.join(given)}")
        if not 0 <= resolution_level <= 9:
            raise ValueError(f"resolution_level is {resolution_level}; give 0 to 9")
        if image.ndim != 4:
            raise ValueError(f"image must be (B, 3, H, W), got {tuple(image.shape)}")
        B, _, H, W = image.shape
        aspect = W / H
        diagonal = (1 + aspect**2) ** 0.5
        if num_tokens is None:
            low, high = self.size.num_tokens_range
            num_tokens = int(low + resolution_level / 9 * (high - low))
        raw = self(image, num_tokens, normals="normal" in outputs)
        points, scale = raw["points"], raw["metric_scale"]
        valid = raw["mask"] > 0.5
        known = None if fov_x_deg is None else _focal_of_fov(fov_x_deg, points)
        focal, shift = focal_and_shift(points, valid, focal=known, pooled=pooled_focal)
        fx, fy = focal / 2 * diagonal / aspect, focal / 2 * diagonal
        intrinsics = torch.zeros(B, 3, 3, device=points.device)
        intrinsics[:, 0, 0], intrinsics[:, 1, 1] = fx, fy
        intrinsics[:, :2, 2], intrinsics[:, 2, 2] = 0.5, 1.0
        depth = points[..., 2] + shift[:, None, None]
        valid = valid & (depth > 0)
        out = {"intrinsics": intrinsics, "valid": valid, "metric_scale": scale}
        if "points" in outputs:
            if force_projection:
                full = _projected(depth, fx, fy)
            else:
                full = torch.cat([points[..., :2], depth[..., None]], dim=-1)
            full = full * scale.view(B, 1, 1, 1)
            out["points_m"] = torch.where(valid[..., None], full, torch.inf) if apply_mask else full
        if "depth" in outputs:
            depth = depth * scale.view(B, 1, 1)
            out["depth_m"] = torch.where(valid, depth, torch.inf) if apply_mask else depth
        if "normal" in raw:
            out["normal"] = raw["normal"] * valid[..., None] if apply_mask else raw["normal"]
        return out


def _focal_of_fov(fov_x_deg: Tensor | float, points: Tensor) -> Tensor:
    """(B,) focal in half image diagonals of a horizontal field of view, number or (B,), of (B, H, W, 3) maps."""
    B, H, W, _ = points.shape
    aspect = W / H
    fov = torch.as_tensor(fov_x_deg, device=points.device, dtype=torch.float32)
    if fov.shape not in ((), (B,)) or not bool(((fov > 0) & (fov < 180)).all()):
        raise ValueError(f"fov_x_deg is {fov_x_deg}; give a number of degrees between 0 and 180, or {B}")
    return aspect / (1 + aspect**2) ** 0.5 / torch.tan(torch.deg2rad(fov.expand(B)) / 2)


def _projected(depth: Tensor, fx: Tensor, fy: Tensor) -> Tensor:
    """(B, H, W, 3) points of depth (B, H, W) under focal lengths (B,) in image widths and heights."""
    _, H, W = depth.shape
    u = (torch.arange(W, device=depth.device) + 0.5) / W - 0.5
    v = (torch.arange(H, device=depth.device) + 0.5) / H - 0.5
    x = u / fx[:, None, None] * depth
    y = v[:, None] / fy[:, None, None] * depth
    return torch.stack([x, y, depth], dim=-1)
