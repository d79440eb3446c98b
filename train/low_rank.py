"""Low-rank layers of peft as a training computes them: float32 halves at rest, products in the type of the tokens.

peft brings tokens to the type of the halves, adds there and goes back: at a minute of 720p that is a hidden layer of
5.3 GiB in float32 three times over, and products at the speed of float32. Here the halves are brought to the tokens,
and their product is added where the frozen layer's answer lies, in one call that sums in float32.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def compute_low_rank(network: nn.Module) -> None:
    """Let all layers that peft gave halves, maps of channels-last tokens, compute them so."""
    for layer in network.modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "base_layer"):
            layer.forward = partial(_added, layer)


def _added(layer: Any, x: Tensor) -> Tensor:
    """(..., C) -> (..., C'): the frozen map plus scale * up(down(x))."""
    (name,) = layer.active_adapters
    down, up = (half[name].weight.flatten(1) for half in (layer.lora_A, layer.lora_B))
    answer = layer.base_layer(x)
    low = F.linear(x, down.to(x.dtype))
    scaled = (layer.scaling[name] * up).to(answer.dtype)
    return answer.flatten(0, -2).addmm_(low.flatten(0, -2), scaled.T).view(answer.shape)
