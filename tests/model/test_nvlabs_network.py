"""Equal to the public code's network: bidirectional, chunk-causal and streaming with every slot of its cache.

`record_nvlabs_network.py` says what was recorded, and how.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from theodolite.model.config import chunk_ranges
from theodolite.model.context import BlockCache
from torch import Tensor

from .cases import TINY, relative, tiny_inputs, tiny_model
from .nvlabs_network import CAUSAL, STREAM_FRAMES, STREAM_STARTS, STREAMS

RECORDED = np.load(Path(__file__).with_name("nvlabs_sana_network.npz"))
EXACT = 1e-6
"""float32 on another machine: some 3e-7 on the one that recorded."""
WHOLE = TINY.model_copy(update={"softmax_bfloat16": False, "camera_softmax_scale": 128**-0.5})
STREAMING = WHOLE.model_copy(update={"softmax_scale": 128**-0.5})


def recorded(name: str) -> Tensor:
    return torch.from_numpy(RECORDED[name])


def test_bidirectional() -> None:
    with torch.no_grad():
        assert relative(tiny_model(WHOLE)(**tiny_inputs()), recorded("bidirectional")) < EXACT


@pytest.mark.parametrize("name", CAUSAL)
def test_chunk_causal(name: str) -> None:
    with torch.no_grad():
        out = tiny_model(WHOLE)(**tiny_inputs(), chunk_starts=CAUSAL[name])
    assert relative(out, recorded(name)) < EXACT


def test_gradients_of_every_parameter() -> None:
    model = tiny_model(WHOLE)
    model(**tiny_inputs(), chunk_starts=CAUSAL["causal_pairs"]).square().mean().backward()
    norms = dict(zip(RECORDED["names"].tolist(), RECORDED["gradient_norms"].tolist(), strict=True))
    found = {n: float(p.grad.norm()) for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == norms.keys()
    for name, norm in norms.items():
        assert found[name] == pytest.approx(norm, rel=1e-5, abs=1e-9), name


@pytest.mark.parametrize("name", STREAMS)
def test_streaming_and_its_slots(name: str) -> None:
    window, sink = STREAMS[name]
    model, given = tiny_model(STREAMING), tiny_inputs(STREAM_FRAMES)
    cache = model.start_stream(window_chunks=window, sink_chunks=sink)
    outs = []
    with torch.no_grad():
        for first, end in chunk_ranges(STREAM_FRAMES, STREAM_STARTS):
            part = slice(first, end)
            words = dict(text_mask=given["text_mask"], cameras=given["cameras"].of_frames(part))
            latents, text = given["latents"][:, :, part], given["text"]
            outs.append(model.forward_chunk(latents, given["times"][:, part], text, cache, **words))
            model.forward_chunk(latents, torch.zeros(2), text, cache, **words, save=True)
    assert relative(torch.cat(outs, dim=2), recorded(name)) < EXACT
    held = [f"{name}/{block}/{slot}" for block in (0, 3) for slot, _ in slots(cache.blocks[block])]
    assert sorted(held) == sorted(key for key in RECORDED.files if key.startswith(f"{name}/"))
    for block in (0, 3):
        for slot, value in slots(cache.blocks[block]):
            assert relative(value, recorded(f"{name}/{block}/{slot}")) < EXACT, (block, slot)


def slots(block: BlockCache) -> Iterator[tuple[int, Tensor]]:
    """What a block remembers by the numbers and shapes of the public code's slots."""
    if block.gdn is None:
        last = block.chunks[-1]
        for slot, value in enumerate((last.key, last.value, last.camera_key, last.camera_value)):
            assert value is not None
            yield slot, value
    else:
        assert block.camera_gdn is not None
        assert block.gdn.z is not None
        yield 0, block.gdn.kv
        yield 1, block.gdn.z[..., None]
        yield 2, block.camera_gdn.kv
        for slot, conv in ((3, block.camera_conv), (4, block.conv)):
            assert conv is not None
            yield slot, conv.transpose(1, 2).flatten(0, 1)
    assert block.ffn is not None
    yield 9, block.ffn.permute(0, 3, 1, 2)
