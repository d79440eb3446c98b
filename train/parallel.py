"""A training's ranks: who takes which clips and which frames, where weights lie, what is computed again.

The model's file knows of none of this but of shares of frames. Every rank's loss is its part: `scaled` makes the mean
over all ranks of a gradient the gradient of the mean over clips, whether FSDP2 averages it or `reduce_gradients` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ..model.blocks import FeedForward
from ..model.frame_parallel import FrameShare, split_frames
from ..model.network import WorldModel
from .recipe import Recompute


@dataclass(frozen=True)
class Ranks:
    """This rank's place.

    Attributes:
        rank, world: of all.
        context: neighbours in rank order that share a clip.
        group: those that share this rank's clips; None: it has them for itself.
    """

    rank: int = 0
    world: int = 1
    context: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def data_rank(self) -> int:
        """Number among those that take different clips, of `data_ranks`."""
        return self.rank // self.context

    @property
    def data_ranks(self) -> int:
        return self.world // self.context

    def share(self, frames: int) -> FrameShare | None:
        """This rank's frames of a clip; None: all.

        Raises:
            ValueError: the clip is too short for so many ranks.
        """
        if self.context == 1:
            return None
        return FrameShare(split_frames(frames, self.context), self.rank % self.context, self.group)

    def scaled(self, loss: Tensor) -> Tensor:
        """A rank's part of the loss, such that gradients are averaged over ranks."""
        return loss * self.context

    def mean(self, value: Tensor) -> Tensor:
        """Mean over clips of a loss of which every rank has its part; the same on all ranks."""
        value = value.detach().float().clone()
        if self.world > 1:
            dist.all_reduce(value)
        return value / self.data_ranks

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether it is so on any rank."""
        if self.world == 1:
            return flag
        found = torch.tensor(float(flag), device=device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def told(self, text: str | None, device: torch.device) -> list[str]:
        """What any rank has to tell, each once: a rank that ends alone leaves the others waiting for it."""
        texts = [text]
        if self.world > 1:
            if not self.any(text is not None, device):
                return []
            texts = [None] * self.world
            dist.all_gather_object(texts, text)
        return list(dict.fromkeys(one for one in texts if one is not None))


def make_ranks(context: int) -> Ranks:
    """Place of this process, groups of those that share clips made; a collective call.

    Raises:
        ValueError: the ranks do not divide.
    """
    if not (dist.is_available() and dist.is_initialized()):
        if context > 1:
            raise ValueError(f"parallel.context {context}: there is one process only")
        return Ranks()
    rank, world = dist.get_rank(), dist.get_world_size()
    if world % context:
        raise ValueError(f"parallel.context {context} does not divide {world} ranks")
    group = None
    if context > 1:
        for first in range(0, world, context):
            members = dist.new_group(list(range(first, first + context)))
            if first <= rank < first + context:
                assert isinstance(members, dist.ProcessGroup)
                group = members
    return Ranks(rank, world, context, group)


def recompute_blocks(model: WorldModel, what: Recompute) -> None:
    """Let the backward pass compute blocks again instead of keeping what is in them."""
    if what == "nothing":
        return
    contexts = None
    if what == "blocks_in_parts":
        for module in model.modules():
            if isinstance(module, FeedForward):
                module.recompute_parts = True
    elif what != "blocks":
        contexts = partial(
            create_selective_checkpoint_contexts, partial(_policy, what == "all_but_attention")
        )
    settings: dict[str, Any] = {} if contexts is None else {"context_fn": contexts}
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, **settings)


_SOFTMAX = frozenset(
    getattr(torch.ops.aten, name).default
    for name in (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
    )
    if hasattr(torch.ops.aten, name)
)


def _policy(recurrences: bool, context: Any, op: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    """Keep what is dear to compute: softmax over video tokens (not over the text's), and recurrences on request."""
    if op in _SOFTMAX and arguments[1].shape[-2] >= arguments[0].shape[-2]:
        return CheckpointPolicy.MUST_SAVE
    if recurrences and str(op).startswith("theodolite.frame_gdn."):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def shard_weights(model: WorldModel, *, compute: torch.dtype) -> None:
    """Spread weights over all ranks by FSDP2: float32 where they rest, `compute` where they work, float32 sums of
    gradients. A collective call; one rank is allowed, which then only computes in another type."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def reduce_gradients(parameters: Iterable[nn.Parameter], world: int) -> None:
    """Mean of gradients over all ranks, where every rank holds all weights. What has none on any rank keeps none, as on
    one rank: a gradient of zeros would let the optimiser decay a weight that nothing used."""
    if world == 1:
        return
    learned = [p for p in parameters if p.requires_grad]
    if not learned:
        return
    used = torch.tensor([float(p.grad is not None) for p in learned], device=learned[0].device)
    dist.all_reduce(used, dist.ReduceOp.MAX)
    for parameter, somewhere in zip(learned, used.tolist(), strict=True):
        if somewhere:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(grad)
            parameter.grad = grad / world


def clip_gradients(parameters: Iterable[nn.Parameter], most: float) -> float:
    """Scale gradients to a norm of at most `most`; returns the norm before, of the whole gradient on every rank."""
    norm: Any = nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], most)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
