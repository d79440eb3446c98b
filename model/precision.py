"""Which parts of the world model compute in fewer bits than bfloat16, and a record of it.

Scopes as in the released low-precision path: the main branch's queries, keys and values by default; the rest of self
attention, the camera branch, cross attention and the feed-forward network if named. Embedders, time modulation, gates
of the recurrence, the ray map, convolutions of single channels and the final layer are never touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import nn

from ..kernels.attention import AttentionPrecision
from ..kernels.backend import Backend, installed_version
from ..kernels.fp8.attention import check_fp8_attention, fp8_attention_library
from ..kernels.fp8.product import check_fp8_products
from ..kernels.fp8.reference import E4M3
from .attention import CameraAttention
from .config import WorldModelConfig
from .network import WorldModel
from .scaled_layers import NarrowWeights, ScaledLinear

Precision = Literal["bf16", "fp8", "nvfp4", "int8-weights", "fp8-weights"]
"""bf16: as loaded. fp8: weights and activations in e4m3, a scale for every row. nvfp4: both in four bits, Blackwell
only. The last two: weights alone, for small cards; each product then takes as long as before."""

Scope = Literal["qkv", "attention", "camera", "cross", "ffn"]

_LAYERS: dict[Scope, tuple[str, ...]] = {
    "qkv": ("attn.qkv",),
    "attention": ("attn.output_gate", "attn.proj"),
    "camera": (
        "attn.q_proj_cam",
        "attn.k_proj_cam",
        "attn.v_proj_cam",
        "attn.out_proj_cam",
    ),
    "cross": ("cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"),
    "ffn": ("mlp.inverted_conv.conv", "mlp.point_conv.conv", "mlp.t_conv"),
}

ALL_SCOPES: tuple[Scope, ...] = get_args(Scope)
DEFAULT_SCOPES: tuple[Scope, ...] = ("qkv",)


@dataclass(frozen=True)
class PrecisionReport:
    """What `set_precision` changed, for the record of a run.

    Attributes:
        precision, scopes, attention: as asked for.
        layers: names of the converted layers.
        weight_bytes_before, weight_bytes_after: of all parameters and buffers.
        library: what multiplies, with its version.
    """

    precision: Precision
    scopes: tuple[Scope, ...]
    attention: AttentionPrecision
    layers: tuple[str, ...]
    weight_bytes_before: int
    weight_bytes_after: int
    library: str

    def record(self) -> dict[str, object]:
        """Plain numbers and strings; layers as their number."""
        return {**asdict(self), "scopes": list(self.scopes), "layers": len(self.layers)}


def check_precision(
    precision: Precision,
    *,
    device: torch.device | str,
    attention: AttentionPrecision = "input",
    head_size: int = 112,
    scopes: Sequence[Scope] = DEFAULT_SCOPES,
) -> None:
    """Raise ValueError, with what to do, where a precision cannot run on a device; ask before weights are loaded."""
    for name, value, known in (
        ("precision", precision, Precision),
        ("attention", attention, AttentionPrecision),
        *(("scope", scope, Scope) for scope in scopes),
    ):
        if value not in get_args(known):
            raise ValueError(f"{name} {value!r}: use one of {', '.join(get_args(known))}")
    if not scopes:
        raise ValueError(f"scopes are empty: name some of {', '.join(ALL_SCOPES)}, or use precision bf16")
    if attention == "fp8":
        check_fp8_attention(device, head_size)
    if precision == "fp8":
        check_fp8_products(device)
    if precision == "nvfp4":
        _check_nvfp4(torch.device(device))


def _check_nvfp4(device: torch.device) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (10, 0):
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        raise ValueError(
            f"nvfp4 needs a Blackwell GPU (compute capability 10.0 or newer), not {name}: use fp8 on Hopper and Ada, "
            "int8-weights elsewhere"
        )
    if find_spec("torchao") is None:
        raise ValueError("nvfp4 needs torchao: pip install theodolite[nvfp4]")


@torch.no_grad()
def set_precision(
    model: WorldModel,
    precision: Precision,
    *,
    scopes: Sequence[Scope] = DEFAULT_SCOPES,
    attention: AttentionPrecision = "input",
    backend: Backend = "auto",
) -> PrecisionReport:
    """Convert a loaded model in place, for inference; call it last, on the device where the model stays.

    A converted model has other tensors under other names: it can neither be trained, nor saved as released weights, nor
    converted again.

    Args:
        model: in bfloat16 (or float32, where the plain twins compute) on its device.
        precision: of the linear maps that `scopes` name.
        scopes: see the module; without effect for bf16.
        attention: of softmax attention over video tokens.
        backend: of the kernels that round activations.
    Returns:
        what was changed.
    Raises:
        ValueError: what cannot run here (`check_precision`), sizes that the products do not take, or a model that is
            converted already.
    """
    device = model.final_layer.linear.weight.device
    check_precision(
        precision, device=device, attention=attention, head_size=model.config.head_size, scopes=scopes
    )
    if model.converted is not None:
        raise ValueError(f"the model is converted to {model.converted} already: load its weights again")
    before = _weight_bytes(model)
    paths = [] if precision == "bf16" else list(_paths(model, scopes))
    _check_layers(model, paths, whole_tiles=precision == "fp8" and device.type == "cuda")
    for path in paths:
        # One after the other, so that each old layer goes before the next new one comes.
        model.set_submodule(path, _converted(_layer(model, path), precision, backend))
        model.converted = precision
    if precision == "nvfp4":
        _to_nvfp4(model, set(paths))
    model.operators = replace(model.operators, attention_precision=attention)
    for module in model.modules():
        if isinstance(module, CameraAttention):
            module.operators = model.operators
    return PrecisionReport(
        precision=precision,
        scopes=tuple(scopes) if paths else (),
        attention=attention,
        layers=tuple(paths),
        weight_bytes_before=before,
        weight_bytes_after=_weight_bytes(model),
        library=_library(model, precision, attention),
    )


def planned_bytes(
    config: WorldModelConfig, precision: Precision, *, scopes: Sequence[Scope] = DEFAULT_SCOPES
) -> int:
    """Bytes of a network's weights after `set_precision` of a bfloat16 model, before anything is loaded."""
    with torch.device("meta"):
        model = WorldModel(config).bfloat16()
    total = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    for path in () if precision == "bf16" else _paths(model, scopes):
        rows, columns = _matrix(_layer(model, path)).shape
        total += _narrow_bytes(precision, rows, columns) - 2 * rows * columns
    return total


def _narrow_bytes(precision: Precision, rows: int, columns: int) -> int:
    """Of a layer's weights: eight bits and a float32 for every row, or four bits and eight for every sixteen."""
    if precision == "nvfp4":
        return rows * columns // 2 + rows * columns // 16
    return rows * columns + 4 * rows


Linear = nn.Linear | nn.Conv2d
"""What is converted: linear layers, 1 x 1 convolutions, and the convolution over time as its three taps."""


def _paths(model: WorldModel, scopes: Sequence[Scope]) -> Iterator[str]:
    for number in range(len(model.blocks)):
        for scope in dict.fromkeys(scopes):
            yield from (f"blocks.{number}.{path}" for path in _LAYERS[scope])


def _layer(model: WorldModel, path: str) -> Linear:
    layer = model.get_submodule(path)
    assert isinstance(layer, Linear), path
    return layer


def _matrix(layer: Linear) -> torch.Tensor:
    """(N, K) weights; of a convolution over time (C, C, 3, 1) the taps below each other, oldest first."""
    weight = layer.weight
    if weight.ndim == 4 and weight.shape[2] == 3:
        return weight.squeeze(-1).permute(2, 0, 1).flatten(0, 1)
    return weight.flatten(1)


def _check_layers(model: WorldModel, paths: Sequence[str], *, whole_tiles: bool) -> None:
    """Everything that can be refused is refused before the first layer is changed."""
    for path in paths:
        weight = _matrix(_layer(model, path))
        if whole_tiles and any(size % 16 for size in weight.shape):
            raise ValueError(
                f"{path} has weights {tuple(weight.shape)}; products in fp8 take multiples of 16: leave it in bf16"
            )
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(f"{path} has weights that are not finite")


def _converted(layer: Linear, precision: Precision, backend: Backend) -> nn.Module:
    weight, bias = _matrix(layer), layer.bias
    if precision == "fp8":
        return ScaledLinear(weight, bias, backend)
    if precision == "int8-weights":
        return NarrowWeights(weight, bias, torch.int8)
    if precision == "fp8-weights":
        return NarrowWeights(weight, bias, E4M3)
    assert precision == "nvfp4"
    # torchao converts linear layers alone; 1 x 1 convolutions become what they are applied as.
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def _to_nvfp4(model: WorldModel, paths: set[str]) -> None:
    from torchao.prototype.mx_formats import NVFP4DynamicActivationNVFP4WeightConfig
    from torchao.quantization import quantize_

    quantize_(
        model,
        NVFP4DynamicActivationNVFP4WeightConfig(),
        filter_fn=lambda module, path: path in paths,
    )


def _weight_bytes(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(t.untyped_storage().nbytes() for t in tensors if not t.is_meta)


def _library(model: WorldModel, precision: Precision, attention: AttentionPrecision) -> str:
    names = [f"torch {torch.__version__}"]
    if attention == "fp8":
        device = model.final_layer.linear.weight.device
        names.append(fp8_attention_library(device, model.config.head_size))
    if precision == "nvfp4":
        version = installed_version("torchao")
        names.append("without torchao (plain twin)" if version is None else f"torchao {version}")
    return ", ".join(names)
