"""The refiner: equal to the released code at once and in blocks, and to diffusers' own pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from theodolite.model import refiner as module
from theodolite.model.refiner import TINY, Refiner, RefinerOptions, _kind, tiny_refiner
from theodolite.model.samplers import Text

from ..support import needs_packages
from ..typed import wrong
from .cases import relative
from .neighbours import REFINER_SIZES, fill, refiner_inputs

pytestmark = needs_packages("diffusers", extra="generate")

RECORDED = np.load(Path(__file__).with_name("nvlabs_sana_neighbours.npz"))


def filled(block: int | None, window: int = 11) -> tuple[Refiner, torch.Tensor, Text]:
    latents, states, mask = refiner_inputs()
    transformer = fill(_kind()(**TINY, **REFINER_SIZES))
    options = RefinerOptions(block_frames=block, window_frames=window)
    return Refiner(transformer, options=options), latents, Text(states, mask)


@pytest.mark.slow
@pytest.mark.parametrize(("block", "window"), [(None, 11), (3, 11), (3, 5), (2, 1)])
def test_equal_to_the_released_code(block: int | None, window: int) -> None:
    own, latents, text = filled(block, window)
    calls: list[tuple[int, int]] = []
    made = own.refine(latents, text, progress=lambda i, n: calls.append((i, n)))
    assert relative(made, torch.from_numpy(RECORDED[f"refined_{block}_{window}"])) < 1e-5
    assert torch.equal(made[:, :, :1], latents[:, :, :1])
    assert calls == [(i + 1, calls[-1][1]) for i in range(calls[-1][1])]


def test_keys_of_the_last_step_as_the_released_option_has_them() -> None:
    own, latents, text = filled(3, 5)
    own.options = replace(own.options, remember="last-step")
    calls: list[tuple[int, int]] = []
    made = own.refine(latents, text, progress=lambda i, n: calls.append((i, n)))
    assert relative(made, torch.from_numpy(RECORDED["refined_3_5_last-step"])) < 1e-5
    assert calls[-1] == (10, 10)


def test_two_streams_at_once_do_not_mix() -> None:
    own, latents, text = filled(3, 5)
    other = Text(text.states.flip(1), text.mask)
    expected = [own.refine(latents, t) for t in (text, other)]
    streams = [own.start_stream(t) for t in (text, other)]
    made = [[], []]
    for part in latents.split(3, dim=2):
        for stream, frames in zip(streams, made, strict=True):
            frames.append(stream.add(part))
    for stream, frames, whole in zip(streams, made, expected, strict=True):
        assert relative(torch.cat([*frames, stream.finish()], dim=2), whole) < 1e-6
    assert relative(expected[0], expected[1]) > 1e-2


def test_a_stream_looks_where_the_refiner_is_when_latents_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between chunks the refiner may be off the device (`residence`)."""
    own, latents, text = filled(3, 5)
    with monkeypatch.context() as away:
        away.setattr(Refiner, "device", property(lambda self: pytest.fail("asked too early")))
        stream = own.start_stream(text)
    assert stream.add(latents).shape[2] == 7


def test_the_records_differ() -> None:
    """Windows and blocks matter, so that the test above can fail."""
    names = sorted(RECORDED.files)
    refined = [torch.from_numpy(RECORDED[n]) for n in names if n.startswith("refined")]
    assert all(relative(a, b) > 1e-3 for i, a in enumerate(refined) for b in refined[:i])


@pytest.mark.parametrize("sizes", [(4, 3, 1), (1,) * 8, (2, 5, 1), (8,)])
def test_a_stream_gives_the_same_whatever_the_chunks(sizes: tuple[int, ...]) -> None:
    own, latents, text = filled(3, 5)
    stream = own.start_stream(text)
    made = [stream.add(part) for part in latents.split(sizes, dim=2)]
    made.append(stream.finish())
    assert relative(torch.cat(made, dim=2), own.refine(latents, text)) < 1e-6
    if sizes == (4, 3, 1):
        assert [m.shape[2] for m in made] == [4, 3, 0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"rope_type": "split"}, {"rope_type": "interleaved"}, {"gated_attn": True}], ids=str
)
def test_equal_to_the_pipeline_of_diffusers(settings: dict[str, Any]) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, SanaWMLTX2Refiner

    latents, states, mask = refiner_inputs()
    text = Text(states, mask)
    ours, theirs_network = (fill(_kind()(**{**TINY, **REFINER_SIZES, **settings})) for _ in range(2))
    own = Refiner(ours, options=RefinerOptions(block_frames=3))
    theirs: Any = SanaWMLTX2Refiner.__new__(SanaWMLTX2Refiner)
    cast(Any, SanaWMLTX2Refiner).__init__(
        theirs,
        transformer=theirs_network,
        connectors=None,
        tokenizer=None,
        text_encoder=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )
    theirs._encode_prompt = lambda prompt, **_: (text.states, mask.int())
    theirs.set_progress_bar_config(disable=True)
    assert relative(own.refine(latents, text), theirs(latents, "", fps=16.0)) < 1e-5


def test_memory_of_a_stream_is_bounded() -> None:
    own, latents, text = filled(3, 5)
    stream = own.start_stream(text)
    sizes = []
    for _ in range(6):
        stream.add(latents)
        layer = stream._cache.get(0)
        sizes.append(layer.history_k.untyped_storage().nbytes())
    assert set(sizes[1:]) == {4 * 6 * 32 * 4}, (
        "four frames of six tokens with 32 channels, and nothing behind them"
    )


def test_long_inputs_go_through_the_feed_forward_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    own, latents, text = filled(None)
    expected = own.refine(latents, text)
    monkeypatch.setattr(module._InPieces, "piece", 5)
    assert relative(own.refine(latents, text), expected) < 1e-6


def test_sound_is_left_out() -> None:
    names = [n for n, _ in tiny_refiner().named_parameters()]
    assert names
    assert not [n for n in names if "audio" in n or "av_cross" in n]


def test_seeds() -> None:
    own, latents, text = filled(3)
    assert torch.equal(own.refine(latents, text, seed=7), own.refine(latents, text, seed=7))
    assert not torch.equal(own.refine(latents, text, seed=7), own.refine(latents, text, seed=8))


def test_bad_input() -> None:
    own, latents, text = filled(3)
    with pytest.raises(ValueError, match="more latent frames than its sink"):
        own.refine(latents[:, :, :1], text)
    with pytest.raises(ValueError, match="give \\(1, 8, t, h, w\\)"):
        own.refine(latents[:, :7], text)
    with pytest.raises(ValueError, match="block_frames=3"):
        filled(None)[0].start_stream(text)
    with pytest.raises(ValueError, match="must fall strictly"):
        RefinerOptions(sigmas=(0.9, 0.5))
    with pytest.raises(ValueError, match="holds the sink"):
        RefinerOptions(window_frames=0)
    with pytest.raises(ValueError, match="refined or last-step"):
        RefinerOptions(remember=wrong("all"))
    with pytest.raises(ValueError, match="at least 1"):
        RefinerOptions(block_frames=0)
