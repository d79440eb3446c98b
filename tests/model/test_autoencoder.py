"""The video autoencoder: equal to diffusers' own calls and to the released streaming decoder, in pieces that add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from theodolite.model.autoencoder import TINY, Tiling, VideoAutoencoder, _kind, tiny_autoencoder, to_pixels

from ..support import needs_packages
from .cases import relative
from .neighbours import VAE_STRIDES, decoder_inputs, fill

pytestmark = needs_packages("diffusers", extra="generate")

RECORDED = Path(__file__).with_name("nvlabs_sana_neighbours.npz")
SMALL = Tiling(frames=16, stride_frames=8, size_px=96, stride_px=64)


def pair(*, causal: bool, tiling: Tiling) -> tuple[VideoAutoencoder, Any]:
    """Ours, and diffusers' with the same weights, set up as the released code does."""
    own = tiny_autoencoder(causal=causal, tiling=tiling)
    plain = fill(_kind()(**TINY, **VAE_STRIDES, decoder_causal=causal))
    own.vae.load_state_dict(plain.state_dict())
    plain.enable_tiling(
        tile_sample_min_height=tiling.size_px,
        tile_sample_min_width=tiling.size_px,
        tile_sample_min_num_frames=tiling.frames,
        tile_sample_stride_height=tiling.stride_px,
        tile_sample_stride_width=tiling.stride_px,
        tile_sample_stride_num_frames=tiling.stride_frames,
    )
    plain.use_framewise_encoding = plain.use_framewise_decoding = True
    return own, plain


def raw(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    mean, std = (t.view(1, -1, 1, 1, 1) for t in (vae.latents_mean, vae.latents_std))
    return latents * std / vae.config.scaling_factor + mean


@pytest.mark.slow
def test_strides_are_those_of_the_layers() -> None:
    own = tiny_autoencoder()
    assert (own.temporal_stride, own.spatial_stride, own.latent_channels) == (8, 32, 8)
    assert own.encode(torch.zeros(3, 17, 64, 96)).shape == (1, 8, 3, 2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 64, 96), (9, 64, 64), (25, 64, 32), (41, 32, 160), (9, 128, 160)])
def test_encoding_equals_the_released_code(shape: tuple[int, int, int]) -> None:
    own, plain = pair(causal=False, tiling=SMALL)
    frames = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        z = plain.encode(frames[None]).latent_dist.mode()
    mean, std = (t.view(1, -1, 1, 1, 1) for t in (plain.latents_mean, plain.latents_std))
    expected = (z - mean) * plain.config.scaling_factor / std
    assert relative(own.encode(frames), expected) < 1e-6
    if shape[0] == 1:
        assert relative(own.encode_image(frames[:, 0]), expected) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 2, 3), (3, 2, 2), (4, 2, 3), (9, 2, 2), (3, 4, 6)])
def test_decoding_in_tiles_equals_the_released_code(shape: tuple[int, int, int]) -> None:
    own, plain = pair(causal=False, tiling=SMALL)
    latents = torch.randn(1, 8, *shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = plain.decode(raw(plain, latents)).sample[0]
    pieces = list(own.decode(latents))
    assert relative(torch.cat(pieces, dim=1), expected) < 1e-6
    assert sum(p.shape[1] for p in pieces) == 8 * (shape[0] - 1) + 1
    assert max(p.shape[1] for p in pieces) <= 17


def test_aligned_tiles_show_each_moment_once() -> None:
    """With a decoder whose frames only show their own latent, aligned tiles add up to the untiled video; the released
    counting is one frame late after the first tile."""
    own = tiny_autoencoder(causal=False)
    for conv in own.vae.decoder.modules():
        if isinstance(conv, torch.nn.Conv3d):
            conv.weight.data[:, :, [0, 2]] = 0
    latents = decoder_inputs(9)
    own.tiling = Tiling(frames=None, size_px=None)
    whole = torch.cat(list(own.decode(latents)), dim=1)
    for aligned in (True, False):
        own.tiling = Tiling(frames=16, stride_frames=8, size_px=None, aligned=aligned)
        made = torch.cat(list(own.decode(latents)), dim=1)
        assert made.shape == whole.shape
        assert relative(made[:, :10], whole[:, :10]) < 1e-6
        if aligned:
            assert relative(made, whole) < 1e-6
        else:
            assert relative(made[:, 17:], whole[:, 16:-1]) < 1e-6
            assert relative(made[:, 17:], whole[:, 17:]) > 1e-2


@pytest.mark.parametrize("sizes", [(5,), (1, 1, 1, 1, 1), (4, 1), (2, 3)])
def test_streaming_equals_the_released_decoder(sizes: tuple[int, ...]) -> None:
    own, _ = pair(causal=True, tiling=SMALL)
    latents = decoder_inputs()
    stream = own.start_stream()
    made = [stream.add(part) for part in latents.split(sizes, dim=2)]
    assert [m.shape[1] for m in made] == [8 * (sizes[0] - 1) + 1, *(8 * s for s in sizes[1:])]
    recorded = torch.from_numpy(np.load(RECORDED)["streamed"])
    assert relative(torch.cat(made, dim=1)[..., ::7, ::5], recorded) < 1e-5


def test_a_stream_leaves_nothing_behind_and_does_not_grow() -> None:
    own, plain = pair(causal=True, tiling=Tiling(size_px=None))
    latents = decoder_inputs()
    with torch.no_grad():
        expected = plain.decoder(raw(plain, latents), None)[0]
    one, other = own.start_stream(), own.start_stream()
    made, size = [], 0
    for part in latents.split(1, dim=2):
        made.append(one.add(part))
        other.add(part.flip(3))  # two clips at once do not mix
        size = one.num_bytes
    assert relative(torch.cat(made, dim=1), expected) < 1e-5
    one.add(latents)
    assert one.num_bytes == size
    assert relative(torch.cat(list(own.decode(latents)), dim=1), expected) < 1e-5
    assert not any(m._forward_pre_hooks for m in own.modules())


def test_bad_input() -> None:
    own = tiny_autoencoder(causal=False)
    with pytest.raises(ValueError, match="8 k \\+ 1"):
        own.encode(torch.zeros(3, 16, 32, 32))
    with pytest.raises(ValueError, match="multiples of 32"):
        own.encode_image(torch.zeros(3, 40, 64))
    for value in (torch.nan, torch.inf, 1.5, -2.0):
        with pytest.raises(ValueError, match=r"largest value is .*; give finite"):
            own.encode_image(torch.full((3, 32, 32), value))
    with pytest.raises(ValueError, match="uint8"):
        own.encode_image(torch.zeros(3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="give \\(3, H, W\\)"):
        own.encode_image(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="give \\(1, 8, T, h, w\\)"):
        own.decode(torch.zeros(1, 9, 1, 2, 2))
    own.tiling = SMALL
    for shape in ((1, 1), (1, 3), (3, 5)):
        with pytest.raises(ValueError, match="single latent wide"):
            next(own.decode(torch.zeros(1, 8, 1, *shape)))
    with pytest.raises(ValueError, match="ltx2_causal_vae"):
        own.start_stream()
    with pytest.raises(ValueError, match="at most the tile"):
        Tiling(frames=8, stride_frames=16)
    with pytest.raises(ValueError, match="multiples of 8"):
        tiny_autoencoder(tiling=Tiling(frames=20, stride_frames=10))


def test_pixels_are_rounded_and_clamped() -> None:
    frames = torch.tensor([-2.0, -1.0, 0.0, 0.003, 1.0, 3.0]).view(1, 1, 1, 6).expand(3, 1, 1, 6)
    assert to_pixels(frames).shape == (1, 1, 6, 3)
    assert to_pixels(frames)[0, 0, :, 0].tolist() == [0, 0, 128, 128, 255, 255]


@pytest.mark.parametrize(("causal", "frames"), [(False, 2), (False, 5), (False, 9), (True, 4), (True, 7)])
def test_what_a_piece_needs(causal: bool, frames: int) -> None:
    """Pieces come out the same when the latents behind what they need are still noise."""
    own = tiny_autoencoder(causal=causal, tiling=SMALL)
    clean = torch.randn(1, own.latent_channels, frames, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = list(own.decode(clean))
    needed = own.latents_needed(frames)
    growing = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    pieces = own.decode(growing)
    found = []
    for count in needed:
        growing[:, :, :count] = clean[:, :, :count]
        if (piece := next(pieces, None)) is not None:
            found.append(piece)
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert needed[-1] == frames
