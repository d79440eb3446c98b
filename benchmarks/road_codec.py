"""A small video autoencoder of LTX-2's architecture whose weights are computed, not trained.

From random values it learns slowly: a cell of 8 frames of 32 x 32 pixels goes through 64 numbers, and until encoder
and decoder have found a common code, the best answer is one grey. So all of it is computed from pictures. The encoder's
downsamplers take principal components, stage by stage: of patches of 4 x 4 pixels, of 8 x 8, of these over two frames,
of 16 x 16 over four, at last of a whole cell. The decoder's upsamplers are least squares of what the encoder saw at the
same size. There are no residual blocks: nothing would be in them.

Both networks end in a root-mean-square norm and a SiLU, which are no linear maps. A channel that holds a large constant
keeps the norm's divisor the same everywhere, and leaves the others so small that SiLU halves them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Say = Callable[[str], None]
_PIXELS = 48
"""Numbers of a patch of 4 x 4 pixels."""
_LARGE = 1000.0
"""The constant, in lengths of what else a place holds."""


@dataclass(frozen=True, kw_only=True)
class Codec:
    """A small autoencoder of LTX-2's architecture (strides 8 and 32).

    Attributes:
        channels: of the latents, at least the 48 of a patch's pixels.
        kept: components of a patch that each downsampler keeps; the last one's are one less.
        decoder: channels before the first upsampler, halved by each.
    """

    channels: int = 64
    kept: tuple[int, int, int, int] = (32, 64, 64, 128)
    decoder: int = 512

    def __post_init__(self) -> None:
        if self.channels < _PIXELS or self.decoder // 8 <= _PIXELS or self.decoder % 64:
            raise ValueError(
                f"{self.channels} latent channels, {self.decoder} in the decoder: a patch has {_PIXELS} numbers, which "
                "the latents and an eighth of the decoder's channels must hold, the latter with one to spare; the "
                "decoder's are a multiple of 64"
            )

    def build(self) -> Any:
        """Diffusers' module with random values."""
        from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video

        encoder = tuple(k * s for k, s in zip(self.kept, (4, 2, 8, 8), strict=True))
        return cast(Any, AutoencoderKLLTX2Video)(
            latent_channels=self.channels,
            block_out_channels=encoder,
            decoder_block_out_channels=tuple(self.decoder // n for n in (4, 2, 1)),
            layers_per_block=(0, 0, 0, 0, 0),
            decoder_layers_per_block=(0, 0, 0, 0),
            decoder_causal=True,
        )


def make_codec(codec: Codec, pool: Tensor, held_out: Tensor, folder: Path, say: Say) -> float:
    """Make an autoencoder for pictures like those of `pool` and write it to `folder`.

    Args:
        pool, held_out: (N, F, H, W, 3) uint8 clips on the device that is to work, F at least 17.
    Returns:
        PSNR in dB of the held-out clips' pictures.
    """
    torch.manual_seed(0)
    vae = codec.build().to(pool.device).float().eval()
    start = time.perf_counter()
    fit_weights(vae, pool)
    found = psnr_db(vae, held_out)
    seconds = time.perf_counter() - start
    say(f"  autoencoder: {seconds:.1f} s; held-out pictures come back with {found:.1f} dB")
    set_statistics(vae, pool)
    vae.cpu().save_pretrained(folder)
    return found


# --- weights ---------------------------------------------------------------------------------


@torch.no_grad()
def fit_weights(vae: Any, pool: Tensor) -> None:
    """Principal components into the encoder, least squares into the decoder."""
    for conv in [m for m in vae.modules() if isinstance(m, nn.Conv3d)]:
        conv.weight.zero_()
        cast(Tensor, conv.bias).zero_()
    clips = [_patches(video) for video in _batches(pool)]
    latents, seen = _fit_encoder(vae.encoder, clips)
    _fit_decoder(vae.decoder, latents, [*seen, clips])


def _fit_encoder(encoder: Any, clips: list[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Latents of the clips, and what the last two downsamplers are given, the last one's first."""
    _middle(encoder.conv_in).copy_(torch.eye(encoder.conv_in.conv.out_channels, clips[0].shape[1]))
    x = [encoder.conv_in(clip) for clip in clips]
    seen = []
    for block in encoder.down_blocks:
        (down,) = block.downsamplers
        seen.append(x)
        mean, vectors, _ = _components(x)
        kept = down.conv.conv.out_channels - (block is encoder.down_blocks[-1])
        # Twice, so that the mean over neighbours that the block adds by itself is the smaller part.
        weight = 2 * vectors[:, :kept].T
        _middle(down.conv)[:kept].copy_(weight)
        down.conv.conv.bias[:kept].copy_(-weight @ mean)
        x = [down(part) for part in x]
    length = _LARGE * _length(x)
    last = encoder.down_blocks[-1].downsamplers[0].conv.conv
    last.bias[-1] = length
    places = x[0].shape[1] // last.out_channels
    for part in x:
        part[:, -places:] += length
    x = [encoder.conv_act(encoder.norm_out(part)) for part in x]
    # Nothing is read from the constant: bfloat16 rounds it by more than the others are large.
    mean, vectors, values = _components([part[:, :-places] for part in x])
    kept = encoder.conv_out.conv.out_channels - 1
    # Scaled to the root of their spread, as a mean of one: strong components lead, weak ones are not lost in noise.
    scale = values[:kept].clamp_min(1e-6 * float(values[0])).pow(-0.25)
    scale = scale / (values[:kept] * scale.square()).mean().sqrt()
    weight = (vectors[:, :kept] * scale).T
    _middle(encoder.conv_out)[:kept, :-places].copy_(weight)
    encoder.conv_out.conv.bias[:kept].copy_(-weight @ mean)
    return [encoder.conv_out(part)[:, :kept] for part in x], [seen[3], seen[2]]


def _fit_decoder(decoder: Any, latents: list[Tensor], wanted: list[list[Tensor]]) -> None:
    """Each upsampler makes what the encoder held at that size, or the components of it that there are channels for; the
    last one the pixels themselves, and the constant."""
    _middle(decoder.conv_in).copy_(torch.eye(decoder.conv_in.conv.out_channels, latents[0].shape[1]))
    x = [decoder.conv_in(part) for part in latents]
    ups = [block.upsamplers[0] for block in decoder.up_blocks]
    # Latents that a world model makes are never quite right: their decoder is told of noise on them.
    _fit_upsampler(ups[0], x, _main_parts(ups[0], wanted[0]), taps=3, noise=1e-3)
    x = [ups[0](part) for part in x]
    _fit_upsampler(ups[1], x, _main_parts(ups[1], wanted[1]), taps=1, noise=1e-6)
    x = [ups[1](part) for part in x]
    _fit_upsampler(ups[2], x, wanted[2], taps=1, noise=1e-6)
    x = [ups[2](part) for part in x]
    length = _LARGE * _length(x)
    ups[2].conv.conv.bias[8 * _PIXELS : 8 * (_PIXELS + 1)] += length  # of a channel that no pixel needs
    sums = _Sums()
    for part, pixels in zip(x, wanted[2], strict=True):
        part[:, _PIXELS] += length
        seen = decoder.conv_act(decoder.norm_out(part))[:, :_PIXELS]
        sums.add(_neighbours(seen, 1), _neighbours(pixels, 1))
    weight, bias = sums.solve()
    _middle(decoder.conv_out)[:, :_PIXELS].copy_(weight)
    decoder.conv_out.conv.bias.copy_(bias)


def _main_parts(up: Any, targets: list[Tensor]) -> list[Tensor]:
    """As many components as an upsampler makes channels, with a variance of one in the mean."""
    mean, vectors, values = _components(targets)
    kept = min(up.conv.conv.out_channels // 8, len(mean))
    basis = vectors[:, :kept] / values[:kept].mean().sqrt()
    return [((target.movedim(1, -1) - mean) @ basis).movedim(-1, 1) for target in targets]


def _fit_upsampler(up: Any, x: list[Tensor], targets: list[Tensor], *, taps: int, noise: float) -> None:
    """Least squares of an upsampler's first channels from what it is given; its others make nothing."""
    conv = up.conv.conv
    sums = _Sums()
    for given, target in zip(x, targets, strict=True):
        b, channels, t, h, w = target.shape
        # The place before the first frame is dropped later: it may as well be like the first.
        y = given.new_zeros(b, conv.out_channels // 8, t + 1, h, w)
        y[:, :channels, :1], y[:, :channels, 1:] = target[:, :, :1], target
        sums.add(_neighbours(given, taps), _children(up, y - _residual(up, given)))
    weight, bias = sums.solve(noise=noise)
    low = (3 - taps) // 2
    conv.weight[:, :, -1, low : low + taps, low : low + taps] = weight.unflatten(1, (-1, taps, taps))
    conv.bias.copy_(bias)


class _Sums:
    """Least squares of Y from X, both centred, from sums over batches."""

    def __init__(self) -> None:
        self.count, self.parts = 0, None

    def add(self, x: Tensor, y: Tensor) -> None:
        """(N, p) and (N, q)."""
        x, y = x.double(), y.double()
        parts = [x.sum(0), y.sum(0), x.T @ x, x.T @ y]
        self.parts = parts if self.parts is None else [a + b for a, b in zip(self.parts, parts, strict=True)]
        self.count += len(x)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of X."""
        assert self.parts is not None
        mean = self.parts[0] / self.count
        return mean, self.parts[2] / self.count - mean[:, None] * mean

    def solve(self, noise: float = 1e-6) -> tuple[Tensor, Tensor]:
        """(q, p) weights and (q,) biases, for X with noise of so much of its mean variance."""
        assert self.parts is not None
        mean_x, xx = self.moments()
        mean_y = self.parts[1] / self.count
        xy = self.parts[3] / self.count - mean_x[:, None] * mean_y
        xx.diagonal().add_(noise * xx.diagonal().mean() + 1e-30)
        weight = torch.linalg.solve(xx, xy).T
        return weight.float(), (mean_y - weight @ mean_x).float()


def _components(parts: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, principal directions (columns, largest first) and variances of channels over all places."""
    sums = _Sums()
    for part in parts:
        x = _neighbours(part, 1)
        sums.add(x, x[:, :1])
    mean, covariance = sums.moments()
    values, vectors = torch.linalg.eigh(covariance)
    return mean.float(), vectors.flip(1).float(), values.flip(0).float()


def _length(parts: list[Tensor]) -> float:
    """Root of the mean square of the length of what places hold."""
    return float(torch.stack([part.square().sum(dim=1).mean() for part in parts]).mean().sqrt())


def _middle(convolution: Any) -> Tensor:
    """(out, in) weights of a causal convolution's own place: the last in time, the middle of the picture."""
    return convolution.conv.weight[:, :, -1, 1, 1]


def _patches(video: Tensor) -> Tensor:
    """(B, 48, T, H / 4, W / 4): pixels as the encoder stacks them."""
    x = video.unflatten(4, (-1, 4)).unflatten(3, (-1, 4))  # B C T h ph w pw
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def _residual(up: Any, x: Tensor) -> Tensor:
    """(B, C, 2 T, 2 H, 2 W): what an upsampler adds by itself, the place before the first frame included."""
    st, sh, sw = up.stride
    b, _, t, h, w = x.shape
    y = x.reshape(b, -1, st, sh, sw, t, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    y = y.reshape(b, -1, t * st, h * sh, w * sw)
    return y.repeat(1, st * sh * sw // up.upscale_factor, 1, 1, 1)


def _children(up: Any, y: Tensor) -> Tensor:
    """(N, C * 8): values at the eight places that an upsampler makes of one, of (B, C, 2 T, 2 H, 2 W)."""
    st, sh, sw = up.stride
    y = y.unflatten(4, (-1, sw)).unflatten(3, (-1, sh)).unflatten(2, (-1, st))  # B C T st H sh W sw
    return y.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(0, 3)


def _neighbours(x: Tensor, taps: int) -> Tensor:
    """(N, C * taps^2): every place with its neighbours in the picture, mirrored at the border."""
    if taps == 1:
        return x.movedim(1, -1).flatten(0, 3)
    flat = F.pad(x.transpose(1, 2).flatten(0, 1), (1, 1, 1, 1), mode="reflect")
    return F.unfold(flat, taps).transpose(1, 2).flatten(0, 1)


# --- clips and figures ------------------------------------------------------------------------


def _batches(pool: Tensor) -> Iterator[Tensor]:
    """All clips, from their first frame on, four at a time, 8 k + 1 frames of each."""
    frames = pool.shape[1] - (pool.shape[1] - 1) % 8
    return (_video(part[:, :frames]) for part in pool.split(4))


def _video(pictures: Tensor) -> Tensor:
    return pictures.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


@torch.no_grad()
def set_statistics(vae: Any, pool: Tensor) -> None:
    """The latents' mean; one spread for all channels, so that strong components stay strong."""
    channels = int(vae.config.latent_channels)
    latents = torch.cat(
        [vae.encoder(v)[:, :channels].transpose(0, 1).flatten(1) for v in _batches(pool[:32])], 1
    )
    vae.latents_mean.copy_(latents.mean(dim=1))
    vae.latents_std.fill_(float(latents.var(dim=1).mean().sqrt()))


@torch.no_grad()
def psnr_db(vae: Any, pool: Tensor) -> float:
    """Of clips that went through the autoencoder."""
    channels = int(vae.config.latent_channels)
    errors = [
        ((vae.decoder(vae.encoder(v)[:, :channels], None) - v) / 2).square().mean() for v in _batches(pool)
    ]
    return float(-10 * torch.stack(errors).mean().log10())
