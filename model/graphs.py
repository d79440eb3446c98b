"""The network's calls for one chunk of a stream as CUDA graphs: recorded once, replayed without the host."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .context import BlockCache, Cameras, StreamCache
from .network import WorldModel


class ChunkGraph:
    """Replays `WorldModel.forward_chunk` for chunks of one size on a cache whose shapes no longer change.

    The cache's tensors are the graphs' memory from now on: a replay with `save` writes the new state into them.

    Args:
        model: weights must stay where they are.
        cache: after enough chunks that sink and window are full.
        latents: (B, C, t, H, W) of a chunk, for its shape.
        text, text_mask: of the whole clip.
        cameras: of a chunk, for their shapes; None: no cameras.
    """

    def __init__(
        self,
        model: WorldModel,
        cache: StreamCache,
        latents: Tensor,
        text: Tensor,
        text_mask: Tensor | None,
        cameras: Cameras | None,
    ) -> None:
        held = cache.sink_chunks + (cache.window_chunks or 0)
        if cache.window_chunks is None or any(len(b.chunks) not in (0, held) for b in cache.blocks):
            raise ValueError("the cache still grows: record a graph once sink and window are full")
        self.model, self.cache, self.text, self.text_mask = model, cache, text.clone(), text_mask
        self.latents = latents.clone()
        self.times = torch.zeros(latents.shape[0], latents.shape[2], device=latents.device)
        self.index = torch.zeros(latents.shape[2], dtype=torch.long, device=latents.device)
        self.cameras = None
        if cameras is not None:
            self.cameras = Cameras(
                cameras.camera_to_world.clone(), cameras.intrinsics.clone(), _copy(cameras.plucker)
            )
        # Slices of larger tensors and the like become tensors of their own.
        for block in cache.blocks:
            for state in (block.gdn, block.camera_gdn):
                assert state is None or state.kv.is_contiguous()
            block.chunks[:] = [replace(c, **{k: _copy(v) for k, v in vars(c).items()}) for c in block.chunks]
        stream = torch.cuda.Stream(latents.device)
        stream.wait_stream(torch.cuda.current_stream(latents.device))
        with torch.cuda.stream(stream):
            for save in (False, True):
                self._run(self._other_cache(), save)  # compiles what is new, outside of the recording
        torch.cuda.current_stream(latents.device).wait_stream(stream)
        self.ask, self.answer = self._record(save=False)
        self.remember, self.remembered = self._record(save=True)

    def __call__(self, latents: Tensor, times: Tensor, cameras: Cameras | None, *, save: bool) -> Tensor:
        """As `forward_chunk` for the cache's next chunk; the result is good until the next call."""
        if latents.shape != self.latents.shape or (cameras is None) != (self.cameras is None):
            raise ValueError(
                f"the graph was recorded for chunks of {tuple(self.latents.shape)} "
                f"{'with' if self.cameras is not None else 'without'} cameras"
            )
        self.latents.copy_(latents)
        self.times.copy_(times)
        first = self.cache.next_frame
        self.index.copy_(torch.arange(first, first + latents.shape[2]), non_blocking=True)
        if cameras is not None and self.cameras is not None:
            for held, given in zip(_parts(self.cameras), _parts(cameras), strict=True):
                if held is not None and given is not None:
                    held.copy_(given)
        if not save:
            self.ask.replay()
            return self.answer
        self.remember.replay()
        self.cache.next_frame += latents.shape[2]
        return self.remembered

    def _run(self, cache: StreamCache, save: bool) -> Tensor:
        return self.model.run_chunk(
            self.latents,
            self.times,
            self.text,
            cache,
            self.index,
            text_mask=self.text_mask,
            cameras=self.cameras,
            save=save,
        )

    def _other_cache(self) -> StreamCache:
        """The same tensors in records that a call may rebind."""
        return replace(self.cache, blocks=[replace(b, chunks=list(b.chunks)) for b in self.cache.blocks])

    def _record(self, *, save: bool) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        # What other threads do meanwhile (decoding, say) is no part of it and does not end it.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            cache = self._other_cache()
            out = self._run(cache, save)
            if save:
                for held, new in zip(self.cache.blocks, cache.blocks, strict=True):
                    _write_back(held, new)
        return graph, out


def _parts(cameras: Cameras) -> tuple[Tensor | None, ...]:
    return cameras.camera_to_world, cameras.intrinsics, cameras.plucker


def _copy(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.clone()


def _write_back(held: BlockCache, new: BlockCache) -> None:
    """Copy a block's new state into the tensors that hold the old one, oldest chunks first."""
    pairs = [(held.conv, new.conv), (held.camera_conv, new.camera_conv), (held.ffn, new.ffn)]
    for before, after in ((held.gdn, new.gdn), (held.camera_gdn, new.camera_gdn)):
        if before is not None and after is not None:
            pairs += [(before.kv, after.kv), (before.z, after.z)]
    for before, after in zip(held.chunks, new.chunks, strict=True):
        pairs += list(zip(vars(before).values(), vars(after).values(), strict=True))
    for target, source in pairs:
        if target is not None and source is not None and target is not source:
            target.copy_(source)
