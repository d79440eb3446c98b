"""The most that a training step holds, tensor by tensor, at full size on any machine: nothing is computed.

    TRITON_INTERPRET=1 python benchmarks/training_memory.py --frames 41 91 --recompute blocks blocks_in_parts
    TRITON_INTERPRET=1 python benchmarks/training_memory.py --frames 121 --all-weights --largest 20

Tensors are torch's fakes, which have shapes and no values; kernels are not run, but what surrounds them makes their
tensors as ever, the operators that torch takes for one each included. Every storage is followed from its making to its
end, rounded up to 512 bytes as torch's allocator does. Not counted: CUDA itself, workspaces of libraries, gaps. RMSNorm
goes through float32 on a CPU and not on a GPU: `counted` is told less the two token tensors that this makes. Beside it
is what `train --dry-run` says (`train.cost`), whose numbers of token tensors come from here.
"""

from __future__ import annotations

import argparse
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any, cast
from unittest import mock

import torch
import triton
from theodolite.kernels.frame_gdn import op as gdn
from theodolite.model import network
from theodolite.model.config import WorldModelConfig
from theodolite.model.context import Cameras, Operators
from theodolite.model.network import WorldModel
from theodolite.train.cost import ClipShape, memory_rows
from theodolite.train.parallel import Recompute, recompute_blocks
from theodolite.train.recipe import LoraConfig
from theodolite.train.start import add_lora
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HEIGHT, WIDTH = 22, 40
NORM_ROWS = 2


class Alive(TorchDispatchMode):
    """Storages that are alive, in bytes, and the most that ever were at once.

    Args:
        weights: tensors that are there before, and not counted.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = {x.untyped_storage()._cdata for x in weights}
        self._alive: dict[int, tuple[int, str]] = {}
        self.now = self.most = 0
        self.at_most: list[tuple[int, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor):
                self._add(made, f"{func} {tuple(made.shape)} {str(made.dtype).removeprefix('torch.')}")
        return out

    def _add(self, made: Tensor, what: str) -> None:
        storage = made.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // 512) * 512
        if size == 0 or key in self._known or key in self._alive:
            return
        self._alive[key] = (size, what)
        self.now += size
        weakref.finalize(storage, self._remove, key)
        if self.now > self.most:
            self.most, self.at_most = self.now, list(self._alive.values())

    def _remove(self, key: int) -> None:
        self.now -= self._alive.pop(key)[0]


class _Recurrence(torch.autograd.Function):
    """`frame_gdn` by its own code, which torch does not see into otherwise."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        own: Any = gdn._forward_op
        out = own._init_fn(*inputs)
        gdn._setup_context(ctx, inputs, out)
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gdn._backward(ctx, list(gradients))


def compute_nothing() -> None:
    """Leave kernels out, and what asks for values."""

    def skipped(*arguments: Any, **named: Any) -> None:
        return None

    def own(*inputs: Any) -> Any:
        return _Recurrence.apply(*inputs)

    def rays(poses: Tensor, lenses: Tensor, height: int, width: int) -> Tensor:
        return torch.empty(*poses.shape[:2], height * width, 3, 4, dtype=poses.dtype)

    def unchanged(module: nn.Module, *arguments: Any, **named: Any) -> nn.Module:
        return module  # fakes cannot be moved

    forward: Any = gdn._forward_op
    backward: Any = gdn._backward_op
    vars(own)["_init_fn"] = forward._init_fn
    triton_parts: Any = triton
    for target, name, instead in (
        (triton_parts.runtime.jit.JITFunction, "run", skipped),
        (triton_parts.runtime.autotuner.Autotuner, "run", skipped),
        (triton_parts.runtime.interpreter.GridExecutor, "__call__", skipped),
        (gdn, "_forward_op", own),
        (gdn, "_backward_op", backward._init_fn),
        (network, "world_to_ray", rays),
        (nn.Module, "_apply", unchanged),
    ):
        mock.patch.object(target, name, instead).start()


def fake_model(config: WorldModelConfig, lora: LoraConfig | None) -> WorldModel:
    torch.set_default_dtype(torch.bfloat16)
    model = WorldModel(config, Operators(kernels="triton")).train()
    torch.set_default_dtype(torch.float32)
    if lora is not None:
        add_lora(model, lora, seed=0, dtype=torch.bfloat16)
    return model


def count_step(config: WorldModelConfig, frames: int, recompute: str, lora: LoraConfig | None) -> Alive:
    """Forward and backward pass of one clip, weights in bfloat16."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = fake_model(config, lora)
        recompute_blocks(model, cast(Recompute, recompute))
        latents = torch.randn(1, config.latent_channels, frames, HEIGHT, WIDTH)
        text = torch.randn(1, config.text_tokens, config.text_width)
        cameras = Cameras(
            torch.randn(1, frames, 4, 4),
            torch.randn(1, frames, 4),
            torch.randn(1, config.plucker_channels, frames, HEIGHT, WIDTH),
        )
        with Alive([*model.parameters(), *model.buffers()]) as alive:
            out = model(latents, torch.full((1, frames), 500.0), text, cameras=cameras)
            (out.float() - latents).square().mean().backward()
    return alive


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[41], help="latent frames")
    parser.add_argument("--recompute", nargs="+", default=["blocks"])
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--all-weights", action="store_true", help="all weights learn, not a LoRA")
    parser.add_argument("--largest", type=int, default=0, help="tell so many kinds of tensors at the peak")
    asked = parser.parse_args()
    compute_nothing()
    config, lora = WorldModelConfig(depth=asked.depth), None if asked.all_weights else LoraConfig()
    for frames in asked.frames:
        row = frames * HEIGHT * WIDTH * config.width * 2
        clip = ClipShape(frames=frames, height=HEIGHT, width=WIDTH)
        for recompute in asked.recompute:
            alive = count_step(config, frames, recompute, lora)
            counted = alive.most / row - NORM_ROWS
            plan = memory_rows(config, clip, ranks=1, context=1, recompute=recompute, lora=lora)
            told = 1e9 * sum(gb for what, gb in plan if "weights" not in what) / row
            print(
                f"{frames} latent frames, {recompute}: counted {counted:.1f} token tensors, {counted * row / 1e9:.2f} "
                f"GB beside weights; the plan {told:.1f}, {told * row / 1e9:.2f} GB",
                flush=True,
            )
            sizes: Counter[str] = Counter()
            for size, what in alive.at_most:
                sizes[what] += size
            for what, size in sizes.most_common(asked.largest):
                print(f"    {size / row:6.2f}  {what}")


if __name__ == "__main__":
    main()
