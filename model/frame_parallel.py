"""Context parallelism: a clip's frames spread over ranks, contiguous shares in order of rank, of any sizes.

What stays local: norms, gates, linear maps, cross attention. What travels: convolutions along time read a few frames
across a border (`halo`), softmax attention reads all keys and values (`gather`), and the recurrences compose D x D
matrices a head (`kernels.frame_gdn_context_parallel`). Every exchange has the gradient that belongs to it: the sum over
ranks of the gradients of a weight is the gradient of one rank that holds the whole clip.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .config import chunk_ranges

REACH = 3
"""Frames that the widest convolution of the released network reads across a border: taps - 1."""


def split_frames(frames: int, ranks: int) -> tuple[int, ...]:
    """Frames of each rank's share; they differ by at most one."""
    base, extra = divmod(frames, ranks)
    return tuple(base + (rank < extra) for rank in range(ranks))


@dataclass(frozen=True)
class FrameShare:
    """Which frames of a clip this rank holds, and with whom it shares the clip.

    Attributes:
        counts: frames of every rank of the group, in order of rank.
        rank: this one, in the group.
        group: process group of the ranks that share a clip; None: all ranks.
    """

    counts: tuple[int, ...]
    rank: int
    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if min(self.counts) < REACH:
            raise ValueError(
                f"{sum(self.counts)} latent frames over {len(self.counts)} context-parallel ranks: every rank needs at "
                f"least {REACH}; use at most {max(1, sum(self.counts) // REACH)} ranks, or longer clips"
            )

    @cached_property
    def first(self) -> int:
        """This rank's first frame."""
        return sum(self.counts[: self.rank])

    @property
    def frames(self) -> slice:
        """This rank's frames of the clip."""
        return slice(self.first, self.first + self.counts[self.rank])

    def starts(
        self, chunk_starts: tuple[int, ...] | None, left: int = 0, right: int = 0
    ) -> tuple[int, ...] | None:
        """First frames of chunks that lie in this share, and in so many frames left and right of it, counted from its
        first frame (the left ones included)."""
        if chunk_starts is None:
            return None
        chunk_ranges(sum(self.counts), chunk_starts)
        begin, end = self.first - left, self.frames.stop + right
        return tuple(start - begin for start in chunk_starts if begin <= start < end)

    def halo(self, x: Tensor, frames: int) -> tuple[Tensor, int, int]:
        """x (B, t, ...) with the `frames` neighbouring frames of either side, as far as the clip has them.

        Returns:
            the longer tensor, and how many frames were added left and right.
        """
        found = cast(Tensor, _Halo.apply(x, frames, self))
        left = frames if self.rank > 0 else 0
        right = frames if self.rank < len(self.counts) - 1 else 0
        return found, left, right

    def gather(self, x: Tensor) -> Tensor:
        """(B, t, ...) of every rank -> (B, T, ...) of the whole clip."""
        return cast(Tensor, _Gather.apply(x, self))

    def peer(self, step: int) -> int | None:
        """Global number of the rank `step` places further on, None beyond the ends."""
        place = self.rank + step
        if not 0 <= place < len(self.counts):
            return None
        return place if self.group is None else dist.get_global_rank(self.group, place)


def _swap(
    share: FrameShare, to_left: Tensor, to_right: Tensor, like: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Give each neighbour a tensor and take one of shape `like` from each: (from the left, from the right)."""
    left, right = share.peer(-1), share.peer(1)
    received: list[Tensor | None] = [None, None]
    operations = []
    for i, (peer, given) in enumerate(((left, to_left), (right, to_right))):
        if peer is None:
            continue
        received[i] = taken = torch.empty_like(like, memory_format=torch.contiguous_format)
        operations.append(dist.P2POp(dist.isend, given.contiguous(), peer, share.group))
        operations.append(dist.P2POp(dist.irecv, taken, peer, share.group))
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()
    return received[0], received[1]


class _Halo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, frames: int, share: FrameShare) -> Tensor:
        ctx.frames, ctx.share = frames, share
        left, right = _swap(share, x[:, :frames], x[:, -frames:], x[:, :frames])
        return torch.cat([part for part in (left, x, right) if part is not None], dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        frames, share = ctx.frames, ctx.share
        grad = grads[0]
        left = frames if share.rank > 0 else 0
        right = frames if share.rank < len(share.counts) - 1 else 0
        own = grad[:, left : grad.shape[1] - right].clone()
        from_left, from_right = _swap(share, grad[:, :frames], grad[:, -frames:], grad[:, :frames])
        if from_left is not None:
            own[:, :frames] += from_left
        if from_right is not None:
            own[:, -frames:] += from_right
        return own, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: FrameShare) -> Tensor:
        ctx.share = share
        most = max(share.counts)
        mine = x.new_zeros(most, x.shape[0], *x.shape[2:])
        mine[: x.shape[1]] = x.transpose(0, 1)
        parts = [torch.empty_like(mine) for _ in share.counts]
        dist.all_gather(parts, mine, group=share.group)
        whole = torch.cat([part[:count] for part, count in zip(parts, share.counts, strict=True)])
        return whole.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        share: FrameShare = ctx.share
        grad = grads[0].transpose(0, 1).contiguous()
        if not grad.is_cuda:
            dist.all_reduce(grad, group=share.group)
            return grad[share.frames].transpose(0, 1), None
        most, count = max(share.counts), share.counts[share.rank]
        edges = list(itertools.accumulate((0, *share.counts)))
        padded = grad.new_zeros(len(share.counts), most, *grad.shape[1:])
        for row, (first, end) in zip(padded, itertools.pairwise(edges), strict=True):
            row[: end - first] = grad[first:end]
        mine = torch.empty_like(padded[0])
        dist.reduce_scatter_tensor(mine, padded.flatten(0, 1), group=share.group)
        return mine[:count].transpose(0, 1), None
