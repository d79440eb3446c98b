"""The video autoencoder: LTX-2's, through diffusers, with the world model's normalisation and pieces of finite size.

Latents are normalised as the world model takes them: (z - mean) * scaling / std. One latent frame holds the first video
frame, every further one eight. Long videos are encoded and decoded in overlapping tiles that are blended, or, where the
decoder is causal, chunk by chunk with what its convolutions saw last.

Source: diffusers (`AutoencoderKLLTX2Video`) and the public NVlabs/Sana code (`vae_encode`, `vae_decode`, the causal
decoder and its per-layer cache).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .released import import_diffusers, load_module

_STREAM_CHUNK = 3
"""Latent frames that a causal decoder takes at once when it decodes a whole clip; any number gives the same."""


@dataclass(frozen=True)
class Tiling:
    """Into what a long or large video is cut; the defaults are those of the released inference code.

    Attributes:
        frames, stride_frames: video frames of a tile and between the starts of two; None: never cut in time.
        size_px, stride_px: side of a tile and distance between two; None: never cut in the picture. Tiles see nothing
            beyond their border, and where they overlap they are blended, which moves the result a little.
        aligned: of two frames that stand for one moment where decoded tiles meet, drop the second tile's. The released
            code keeps it and drops that tile's last frame, so that from the end of the first tile on frame n shows
            moment n - 1.
    """

    frames: int | None = 96
    stride_frames: int = 64
    size_px: int | None = 512
    stride_px: int = 448
    aligned: bool = False

    def __post_init__(self) -> None:
        for what, size, stride in (
            ("frames", self.frames, self.stride_frames),
            ("pixels", self.size_px, self.stride_px),
        ):
            if size is not None and not 0 < stride <= size:
                raise ValueError(
                    f"tiles of {size} {what} every {stride}: the distance must be positive, at most the tile"
                )


class VideoAutoencoder(nn.Module):
    """Pictures and videos to normalised latents and back.

    Attributes:
        vae: diffusers' module; its device and type are those of the computation.
        tiling: how long and large videos are cut.
        stand_in: whether the weights are random numbers.
    """

    def __init__(self, vae: Any, *, tiling: Tiling | None = None, stand_in: bool = False) -> None:
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)
        self.tiling = tiling or Tiling()
        self.stand_in = stand_in
        for block in vae.decoder.up_blocks:
            for i, upsampler in enumerate(block.upsamplers or ()):
                block.upsamplers[i] = _Upsampler(upsampler)
        self._check_tiles()

    def _check_tiles(self) -> None:
        for what, size, stride, unit in (
            ("frames", self.tiling.frames, self.tiling.stride_frames, self.temporal_stride),
            ("pixels", self.tiling.size_px, self.tiling.stride_px, self.spatial_stride),
        ):
            if size is not None and (size % unit or stride % unit):
                raise ValueError(f"tiles of {size} {what} every {stride}: both must be multiples of {unit}")

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def temporal_stride(self) -> int:
        """Video frames a latent frame but the first (8 as released)."""
        return math.prod(up.stride[0] for up in self._upsamplers()) * self.vae.decoder.patch_size_t

    @property
    def spatial_stride(self) -> int:
        """Pixels a latent in both directions (32 as released)."""
        return math.prod(up.stride[1] for up in self._upsamplers()) * self.vae.decoder.patch_size

    def _upsamplers(self) -> list[_Upsampler]:
        return [up for block in self.vae.decoder.up_blocks for up in block.upsamplers or ()]

    @property
    def is_causal(self) -> bool:
        """Whether the decoder sees no later frames, so that `start_stream` is possible."""
        return bool(self.vae.decoder.is_causal)

    @property
    def device(self) -> torch.device:
        return self.vae.decoder.conv_in.conv.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vae.decoder.conv_in.conv.weight.dtype

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> Tensor:
        """Latent of one picture, as the world model takes its first frame.

        Args:
            image: (3, H, W) in [-1, 1], sides multiples of the spatial stride.
        Returns:
            (1, C, 1, H / 32, W / 32) mode of the posterior, normalised, in the autoencoder's type and on its device.
        Raises:
            ValueError: on another shape, or values outside [-1, 1].
        """
        if image.ndim != 3:
            raise ValueError(f"the picture is {tuple(image.shape)}; give (3, H, W) in [-1, 1]")
        return self.encode(image[:, None])

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Latents of a video.

        Args:
            frames: (3, F, H, W) in [-1, 1] with F = 8 k + 1; may lie on another device, tiles are brought over.
        Returns:
            (1, C, k + 1, H / 32, W / 32) mode of the posterior, normalised.
        Raises:
            ValueError: on another shape, or values outside [-1, 1].
        """
        self._check_frames(frames)
        size, stride = self.tiling.frames, self.tiling.stride_frames
        if size is None or frames.shape[1] <= size:
            return self._normalised(self._encode_tile(frames))
        unit = self.temporal_stride
        pieces, last = [], None
        for start in range(0, frames.shape[1], stride):
            tile = self._encode_tile(frames[:, start : start + size + 1])
            if last is not None:
                tile = _blend(last, tile[:, :, 1:], (size - stride) // unit, dim=2)
            pieces.append(tile[:, :, : stride // unit + (last is None)])
            last = tile
        whole = torch.cat(pieces, dim=2)[:, :, : (frames.shape[1] - 1) // unit + 1]
        return self._normalised(whole)

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Video frames of latents, piece after piece; no more than two tiles are held at a time.

        A causal decoder goes through the clip as a stream, without tiles; pieces are then what one call for the whole
        clip gives. Pieces of another one are what the released code gives, tiles and blends included.

        Args:
            latents: (1, C, T, h, w) normalised; may lie on another device.
        Yields:
            (3, f, H, W) in about [-1, 1], on the autoencoder's device and in its type; 8 (T - 1) + 1 frames in all.
        Raises:
            ValueError: on another shape.
        """
        self._check_latents(latents)
        return self._decode_streamed(latents) if self.is_causal else self._decode_tiles(latents)

    def _decode_streamed(self, latents: Tensor) -> Iterator[Tensor]:
        stream = self.start_stream()
        for chunk in latents.split(_STREAM_CHUNK, dim=2):
            yield stream.add(chunk)

    @torch.no_grad()
    def _decode_tiles(self, latents: Tensor) -> Iterator[Tensor]:
        size, stride, unit = self.tiling.frames, self.tiling.stride_frames, self.temporal_stride
        left = (latents.shape[2] - 1) * unit + 1
        if size is None or latents.shape[2] <= size // unit:
            yield self._decode_tile(latents)[0]
            return
        last = None
        for start in range(0, latents.shape[2], stride // unit):
            tile = self._decode_tile(latents[:, :, start : start + size // unit + 1])
            if last is not None:
                tile = tile[:, :, 1:] if self.tiling.aligned else tile[:, :, :-1]
                tile = _blend(last, tile, size - stride, dim=2)
            piece = tile[:, :, : min(left, stride + (last is None))]
            last, left = tile, left - piece.shape[2]
            if piece.shape[2]:
                yield piece[0]

    def latents_needed(self, frames: int) -> list[int]:
        """For each piece that `decode` gives of so many latent frames, how many of them must be final by then."""
        if self.is_causal:
            return [min(frames, end) for end in range(_STREAM_CHUNK, frames + _STREAM_CHUNK, _STREAM_CHUNK)]
        size, unit = self.tiling.frames, self.temporal_stride
        if size is None or frames <= size // unit:
            return [frames]
        starts = range(0, frames, self.tiling.stride_frames // unit)
        return [min(frames, start + size // unit + 1) for start in starts]

    def start_stream(self) -> DecodeStream:
        """A decoder that takes latents chunk by chunk and remembers what its convolutions saw last.

        Raises:
            ValueError: if the decoder looks ahead: only a causal one can stream.
        """
        return DecodeStream(self)

    def _check_frames(self, frames: Tensor) -> None:
        if frames.ndim != 4 or frames.shape[0] != 3:
            raise ValueError(f"the video is {tuple(frames.shape)}; give (3, F, H, W) in [-1, 1]")
        count, height, width = frames.shape[1:]
        if count < 1 or (count - 1) % self.temporal_stride:
            raise ValueError(f"{count} frames: the video autoencoder takes {self.temporal_stride} k + 1")
        if height % self.spatial_stride or width % self.spatial_stride or height < 1 or width < 1:
            raise ValueError(
                f"pictures of {width}x{height}: sides must be multiples of {self.spatial_stride}"
            )
        if not frames.is_floating_point():
            raise ValueError(f"the video holds {frames.dtype}; give floating-point values in [-1, 1]")
        largest = float(frames.abs().max())
        if not largest <= 1.001:  # NaN too
            raise ValueError(f"the video's largest value is {largest:g}; give finite values in [-1, 1]")

    def _check_latents(self, latents: Tensor) -> None:
        if latents.ndim != 5 or latents.shape[:2] != (1, self.latent_channels) or latents.shape[2] < 1:
            raise ValueError(
                f"latents are {tuple(latents.shape)}; give (1, {self.latent_channels}, T, h, w) with T >= 1"
            )

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        def shaped(values: Tensor) -> Tensor:
            return values.view(1, -1, 1, 1, 1).to(device, self.dtype)

        return shaped(self.vae.latents_mean), shaped(self.vae.latents_std)

    def _normalised(self, z: Tensor) -> Tensor:
        mean, std = self._statistics(z.device)
        return (z - mean) * self.vae.config.scaling_factor / std

    def _encode_tile(self, frames: Tensor) -> Tensor:
        """(1, C, t, h, w) mean of the posterior."""
        video = frames[None].to(self.device, self.dtype)
        moments = self._in_pictures(video, self.vae.encoder, down=True)
        return moments[:, : self.latent_channels]

    def _decode_tile(self, latents: Tensor) -> Tensor:
        latents = latents.to(self.device, self.dtype)
        mean, std = self._statistics(latents.device)
        z = latents * std / self.vae.config.scaling_factor + mean
        return self._in_pictures(z, lambda tile: self.vae.decoder(tile, None), down=False)

    def _in_pictures(self, x: Tensor, function: Callable[[Tensor], Tensor], *, down: bool) -> Tensor:
        """Apply `function` to (1, ., t, height, width) in spatial tiles if the picture is larger than one."""
        unit = self.spatial_stride
        size, stride = self.tiling.size_px, self.tiling.stride_px
        scale = 1 if down else unit
        if size is None or max(x.shape[3:]) * scale <= size:
            size = stride = max(x.shape[3:]) * scale
        if not down and any((side - 1) % (stride // unit) == 0 for side in x.shape[3:]):
            raise ValueError(
                f"latents of {x.shape[4]}x{x.shape[3]} cannot be decoded in tiles of {size} pixels every {stride}: "
                "one tile would be a single latent wide, whose border the decoder cannot mirror"
            )
        blend, keep = (size - stride) // (unit if down else 1), stride // (unit if down else 1)
        size, stride = size // scale, stride // scale
        rows: list[Tensor] = []
        above: list[Tensor] = []
        for top in range(0, x.shape[3], stride):
            row: list[Tensor] = []
            for left in range(0, x.shape[4], stride):
                tile = function(x[:, :, :, top : top + size, left : left + size])
                if above:
                    tile = _blend(above[len(row)], tile, blend, dim=3)
                if row:
                    tile = _blend(row[-1], tile, blend, dim=4)
                row.append(tile)
            rows.append(torch.cat([tile[:, :, :, :keep, :keep] for tile in row], dim=4))
            above = row
        height, width = (s // unit if down else s * unit for s in x.shape[3:])
        return torch.cat(rows, dim=3)[:, :, :, :height, :width]


def _blend(before: Tensor, tile: Tensor, extent: int, *, dim: int) -> Tensor:
    """`tile` with its first `extent` slices faded over from the last ones of `before`; a new tensor."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    if extent < 1:
        return tile
    shape = [1] * tile.ndim
    shape[dim] = extent
    weight = (torch.arange(extent, device=tile.device) / extent).to(tile.dtype).view(shape)
    old = before.narrow(dim, before.shape[dim] - extent, extent)
    faded = old * (1 - weight) + tile.narrow(dim, 0, extent) * weight
    return torch.cat([faded, tile.narrow(dim, extent, tile.shape[dim] - extent)], dim=dim)


class _Upsampler(nn.Module):
    """diffusers' upsampler, which may also go on where an earlier call ended.

    A clip's first latent frame stands for one video frame: the first of the frames that a step in time makes of it is
    dropped. In a later chunk there is none to drop.
    """

    def __init__(self, upsampler: Any) -> None:
        super().__init__()
        self.conv = upsampler.conv
        self.stride: tuple[int, int, int] = tuple(upsampler.stride)
        self.residual: bool = upsampler.residual
        self.upscale_factor: int = upsampler.upscale_factor
        self.goes_on = False

    def forward(self, x: Tensor, causal: bool = True) -> Tensor:
        skip = 0 if self.goes_on else self.stride[0] - 1
        out = self._spread(self.conv(x, causal=causal), skip)
        if self.residual:
            times = self.stride[0] * self.stride[1] * self.stride[2] // self.upscale_factor
            out = out + self._spread(x, skip).repeat(1, times, 1, 1, 1)
        return out

    def _spread(self, x: Tensor, skip: int) -> Tensor:
        """Channels (C * st * sh * sw) to places: (B, C, st T - skip, sh H, sw W)."""
        b, _, t, h, w = x.shape
        st, sh, sw = self.stride
        x = x.reshape(b, -1, st, sh, sw, t, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return x.reshape(b, -1, t * st, h * sh, w * sw)[:, :, skip:]


class DecodeStream:
    """Decodes a clip chunk by chunk; chunks of any size give what one call for the whole clip gives.

    A causal convolution over time sees its last two inputs again; at a clip's start it sees the first one repeated, as
    in one call. Nothing else in the decoder looks across frames, and memory does not grow with the clip.
    """

    def __init__(self, autoencoder: VideoAutoencoder) -> None:
        if not autoencoder.is_causal:
            raise ValueError(
                "this video autoencoder's decoder sees later frames and cannot decode chunk by chunk: use the causal "
                "one (`ltx2_causal_vae` of the streaming release), or decode the whole clip"
            )
        self._autoencoder = autoencoder
        self._seen: dict[nn.Module, Tensor] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes that are remembered between chunks."""
        return sum(t.numel() * t.element_size() for t in self._seen.values())

    @torch.no_grad()
    def add(self, latents: Tensor) -> Tensor:
        """Frames of the next chunk.

        Args:
            latents: (1, C, t, h, w) normalised.
        Returns:
            (3, f, H, W): 8 (t - 1) + 1 frames of the first chunk, 8 t of a later one.
        Raises:
            ValueError: on another shape.
        """
        self._autoencoder._check_latents(latents)
        with self._remembering():
            latents = latents.to(self._autoencoder.device, self._autoencoder.dtype)
            mean, std = self._autoencoder._statistics(latents.device)
            z = latents * std / self._autoencoder.vae.config.scaling_factor + mean
            return self._autoencoder.vae.decoder(z, None)[0]

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """Let the decoder's convolutions see what they saw last, and its upsamplers go on."""
        goes_on = bool(self._seen)
        hooks, upsamplers = [], []
        for module in self._autoencoder.vae.decoder.modules():
            if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1:
                hooks.append(module.register_forward_pre_hook(self._with_past))
            elif isinstance(module, _Upsampler):
                upsamplers.append(module)
        try:
            for upsampler in upsamplers:
                upsampler.goes_on = goes_on
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for upsampler in upsamplers:
                upsampler.goes_on = False

    def _with_past(self, conv: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Put the last inputs where the padding (the first frame, repeated) stands; the tensor is a fresh one."""
        (padded,) = arguments
        past = cast(nn.Conv3d, conv).kernel_size[0] - 1
        if conv in self._seen:
            padded[:, :, :past] = self._seen[conv]
        self._seen[conv] = padded[:, :, -past:].clone()


def to_pixels(frames: Tensor) -> Tensor:
    """(f, H, W, 3) uint8, rounded, of (3, f, H, W) in [-1, 1]; on the same device, so that little is moved."""
    return (frames.float() * 127.5 + 127.5).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 3, 0)


def load_autoencoder(
    folder: Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    tiling: Tiling | None = None,
) -> VideoAutoencoder:
    """The released video autoencoder: a folder with `config.json` and safetensors, or one with such a folder `vae`.

    Raises:
        FileNotFoundError, ValueError: files are missing, damaged or another network's; the message names them.
        ModuleNotFoundError: diffusers is not installed.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
        folder = folder / "vae"
    # The causal one was released by a class of its own, whose files are the same but for this name.
    vae = load_module(_kind(), folder, dtype=dtype, renamed=_RENAMED, finite=True)
    return VideoAutoencoder(vae.to(device), tiling=tiling)


_RENAMED = {"decoder_upsample_type": "upsample_type", "gradient_checkpointing": ""}


def _kind() -> Any:
    return import_diffusers("models.autoencoders.autoencoder_kl_ltx2").AutoencoderKLLTX2Video


TINY: dict[str, Any] = dict(
    latent_channels=8,
    block_out_channels=(8, 8, 8, 8),
    decoder_block_out_channels=(8, 16, 32),
    layers_per_block=(1, 1, 1, 1, 1),
    decoder_layers_per_block=(1, 1, 1, 1),
)
"""diffusers' settings of a network small enough for a laptop, with the strides of the released one."""


def tiny_autoencoder(
    seed: int = 0, *, latent_channels: int = 8, causal: bool = True, tiling: Tiling | None = None
) -> VideoAutoencoder:
    """Random numbers in the released shape at a tiny size, on the CPU in float32: a stand-in to try the chain with.

    Raises:
        ModuleNotFoundError: diffusers is not installed.
    """
    kind = _kind()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = {**TINY, "latent_channels": latent_channels}
        vae = kind(**settings, decoder_causal=causal)
    return VideoAutoencoder(vae, tiling=tiling, stand_in=True)
