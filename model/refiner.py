"""The refiner: LTX-2's video transformer redraws the world model's latents in three steps.

Frame 0 is the clean sink: it attends to itself alone and is never changed. All other frames see the sink and one
another, either all at once, or in blocks that see the sink, what was refined last and themselves. The first is one
block of all frames, so there is one loop. Sound, which LTX-2 can also make, is neither loaded nor run.

Source: diffusers (`SanaWMLTX2RefinerTransformer3DModel` and its key cache) and the public NVlabs/Sana code
(`DiffusersLTX2Refiner`, `RefinerChunkRunner`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel

from ..kernels import rotate_heads
from ..kernels.attention import SDPA_ORDER
from .released import drop_parts, import_diffusers, load_module
from .samplers import Text

_KEEP = "inject_and_capture_post_rope"
"""diffusers' name of the mode in which keys and values are kept."""

Progress = Callable[[int, int], None]
"""Called after each network call with the number of calls done and of all."""

SIGMAS = (0.909375, 0.725, 0.421875, 0.0)
"""Noise levels of the released three steps."""

SOUND = (
    *("audio_proj_in", "audio_caption_projection", "audio_time_embed", "audio_rope"),
    *("audio_norm_out", "audio_proj_out"),
    *("av_cross_attn_video_scale_shift", "av_cross_attn_audio_scale_shift"),
    *("av_cross_attn_video_a2v_gate", "av_cross_attn_audio_v2a_gate"),
    *("cross_attn_rope", "cross_attn_audio_rope"),
    *("audio_norm1", "audio_attn1", "audio_norm2", "audio_attn2"),
    *("audio_norm3", "audio_ff", "audio_scale_shift_table"),
    *("audio_to_video_norm", "audio_to_video_attn", "video_to_audio_norm", "video_to_audio_attn"),
    *("video_a2v_cross_attn_scale_shift_table", "audio_a2v_cross_attn_scale_shift_table"),
    *("prompt_adaln", "audio_prompt_adaln", "prompt_scale_shift_table", "audio_prompt_scale_shift_table"),
)
"""Parts of LTX-2 that the path for pictures does not use, by their last name."""


@dataclass(frozen=True)
class RefinerOptions:
    """How latents are refined; defaults as released.

    Attributes:
        sigmas: falling noise levels that end in 0.
        sink_frames: first latent frames that stay as they are and that all others see.
        block_frames: latent frames that are refined together; None: all at once (bidirectional release), 3: as the
            streaming release.
        window_frames: most frames of keys that a block sees before itself, sink included; none are seen all at once.
        remember: what later blocks see of a block: keys from a pass of their own over the refined frames, as released,
            or those of the last step, which saw them with noise. That is a quarter of the time less, and not the same.
        frames_per_second: of the video; enters the positions.
    """

    sigmas: tuple[float, ...] = SIGMAS
    sink_frames: int = 1
    block_frames: int | None = None
    window_frames: int = 11
    remember: Literal["refined", "last-step"] = "refined"
    frames_per_second: float = 16.0

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in pairwise(self.sigmas))
        if len(self.sigmas) < 2 or self.sigmas[-1] != 0 or not falling or self.sigmas[0] > 1:
            raise ValueError(f"noise levels {self.sigmas} must fall strictly from at most 1 and end in 0")
        if self.sink_frames < 1 or (self.block_frames is not None and self.block_frames < 1):
            raise ValueError(
                f"sink of {self.sink_frames} and blocks of {self.block_frames} frames: both need at least 1"
            )
        if self.remember not in ("refined", "last-step"):
            raise ValueError(f"remember {self.remember!r}: use refined or last-step")
        if self.window_frames < self.sink_frames or not self.frames_per_second > 0:
            raise ValueError(
                f"window of {self.window_frames} frames at {self.frames_per_second}/s: it holds the sink, and the rate "
                "is positive"
            )


class Refiner(nn.Module):
    """Redraws latents; the network is diffusers'.

    Attributes:
        transformer: `SanaWMLTX2RefinerTransformer3DModel` without its half for sound.
        options: how latents are refined.
        stand_in: whether the weights are random numbers.
    """

    def __init__(
        self, transformer: Any, *, options: RefinerOptions | None = None, stand_in: bool = False
    ) -> None:
        super().__init__()
        config = transformer.config
        if config.patch_size != 1 or config.patch_size_t != 1:
            raise ValueError(
                f"a refiner with patches of {config.patch_size_t}x{config.patch_size} is not known here"
            )
        drop_parts(transformer, SOUND)
        for i, block in enumerate(transformer.transformer_blocks):
            transformer.transformer_blocks[i] = _Block(block)
        self.transformer = transformer.eval().requires_grad_(False)
        self.options = options or RefinerOptions()
        self.stand_in = stand_in

    @property
    def device(self) -> torch.device:
        return self.transformer.proj_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.proj_in.weight.dtype

    def streamed_blocks(self) -> list[nn.Module]:
        """What may come to the device one after another (`residence`)."""
        return list(self.transformer.transformer_blocks)

    @torch.no_grad()
    def refine(
        self, latents: Tensor, text: Text, *, seed: int = 42, progress: Progress | None = None
    ) -> Tensor:
        """Refined latents of a clip.

        Args:
            latents: (1, C, T, h, w) of the world model, normalised; frame 0 clean.
            text: of the prompt (`text.RefinerTextEncoder`).
            seed: of the noise.
        Returns:
            (1, C, T, h, w); the sink frames as they were. The released pipelines drop the sink's video frame.
        Raises:
            ValueError: on another shape, or no frames beside the sink.
        """
        stream = RefinerStream(self, text, seed=seed, total_frames=latents.shape[2], progress=progress)
        return torch.cat([stream.add(latents), stream.finish()], dim=2)

    def velocity(self, noisy: Tensor, sigma: float, text: Text, *, before: Tensor) -> Tensor:
        """One call as `refine` makes it, for training: (1, C, t, h, w) velocity of noisy frames, with its graph.

        Args:
            before: (1, C, n, h, w) the clip's clean frames up to them, the sink first, which are seen without a graph;
                with all frames at once (no `block_frames`) the sink alone.
        Raises:
            ValueError: on another number of them.
        """
        sink, size = self.options.sink_frames, self.options.block_frames
        if before.shape[2] < sink or (size is None and before.shape[2] != sink):
            raise ValueError(f"{before.shape[2]} clean frames come first; the sink has {sink}")
        stream = RefinerStream(self, text, seed=0)
        stream.see(before)
        return stream.ask(noisy, sigma)

    def start_stream(self, text: Text, *, seed: int = 42) -> RefinerStream:
        """Refine a clip while it is made, block by block.

        Raises:
            ValueError: if the options ask for all frames at once.
        """
        if self.options.block_frames is None:
            raise ValueError("a stream is refined in blocks: give RefinerOptions(block_frames=3)")
        return RefinerStream(self, text, seed=seed)


class RefinerStream:
    """A clip that is refined block by block; what it remembers does not grow with the clip.

    Args:
        refiner, text, seed: as in `Refiner.refine`.
        total_frames: of the clip if it is known: nothing is remembered after its last block.
    """

    def __init__(
        self,
        refiner: Refiner,
        text: Text,
        *,
        seed: int,
        total_frames: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        cache = import_diffusers("models.transformers.transformer_sana_wm_refiner").SanaWMRefinerKVCache
        self._refiner, self._options, self._progress = refiner, refiner.options, progress
        self._seed, self._total = seed, total_frames
        self._text, self._mask = text.states, text.mask
        self._cache = cache(len(refiner.transformer.transformer_blocks))
        self._noise: torch.Generator | None = None
        self._prompt_keys: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._waiting: Tensor | None = None
        self._next = 0
        self._history_frames = 0
        self._calls = 0

    @torch.no_grad()
    def add(self, latents: Tensor) -> Tensor:
        """The next latents of the clip, any number of frames.

        Returns:
            (1, C, t, h, w): the frames that are finished with them, in order: the sink with the first block, then
            whole blocks. t may be 0.
        Raises:
            ValueError: on another shape.
        """
        channels = self._refiner.transformer.config.in_channels
        if latents.ndim != 5 or latents.shape[:2] != (1, channels):
            raise ValueError(f"latents are {tuple(latents.shape)}; give (1, {channels}, t, h, w)")
        latents = latents.to(self._refiner.device, self._refiner.dtype)
        if self._noise is None:  # only now is the refiner where it works
            self._set_out(latents.device, latents.dtype)
        self._waiting = latents if self._waiting is None else torch.cat([self._waiting, latents], dim=2)
        done = []
        if self._next == 0 and self._waiting.shape[2] > self._options.sink_frames:
            done.append(self._take(self._options.sink_frames))
            self._remember_sink(done[0])
        size = self._options.block_frames
        while self._next and size is not None and self._waiting.shape[2] >= size:
            done.append(self._refine_block(self._take(size)))
        return torch.cat(done, dim=2) if done else latents[:, :, :0]

    @torch.no_grad()
    def see(self, clean: Tensor) -> None:
        """Take the clip's first frames as they are: remember them as if they had been refined."""
        clean = clean.to(self._refiner.device, self._refiner.dtype)
        self._set_out(clean.device, clean.dtype)
        self._waiting = clean
        self._remember_sink(self._take(self._options.sink_frames))
        while (left := self._waiting.shape[2]) and self._options.block_frames is not None:
            block = self._take(min(left, self._options.block_frames))
            self._network(block, 0.0, self._place(block), mode=_KEEP)
            self._remember_block(block.shape[2], block.shape[3] * block.shape[4])

    def ask(self, noisy: Tensor, sigma: float) -> Tensor:
        """Velocity of the next frames at a noise level; remembers nothing."""
        noisy = noisy.to(self._refiner.device, self._refiner.dtype)
        self._next += noisy.shape[2]
        return self._network(noisy, sigma, self._place(noisy), mode="inject")

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The clip has ended: frames that were too few for a block are refined as a smaller one.

        Raises:
            ValueError: if there were no frames beside the sink.
        """
        if self._waiting is None or not self._next:
            raise ValueError(
                f"the refiner needs more latent frames than its sink of {self._options.sink_frames}"
            )
        if not self._waiting.shape[2]:
            return self._waiting
        return self._refine_block(self._take(self._waiting.shape[2]))

    def _set_out(self, device: torch.device, dtype: torch.dtype) -> None:
        self._text = self._text.to(device, dtype)
        everything = self._mask is None or bool(self._mask.all())
        self._mask = None if everything or self._mask is None else self._mask.to(device).int()
        self._noise = torch.Generator(device).manual_seed(self._seed)

    def _take(self, frames: int) -> Tensor:
        assert self._waiting is not None
        block, self._waiting = self._waiting[:, :, :frames], self._waiting[:, :, frames:]
        self._next += frames
        return block

    def _remember_sink(self, sink: Tensor) -> None:
        """Keys before rotation and values of the sink, which sees itself alone at time 0."""
        self._network(sink, 0.0, self._positions(range(sink.shape[2]), sink), mode="capture_pre_rope")
        for layer in self._cache.layer_caches:
            layer.store_sink(*layer.get_captured_pre_rope())

    def _refine_block(self, clean: Tensor) -> Tensor:
        options = self._options
        end, frames = self._next, clean.shape[2]
        positions = self._place(clean)
        noise = torch.randn(clean.shape, generator=self._noise, device=clean.device, dtype=clean.dtype)
        first = options.sigmas[0]
        x = ((1 - first) * clean.float() + first * noise.float()).to(clean.dtype)
        seen_again = self._remembers and self._total != end
        for sigma, following in pairwise(options.sigmas):
            keep = seen_again and options.remember == "last-step" and following == 0
            velocity = self._network(x, sigma, positions, mode=_KEEP if keep else "inject")
            found = (x.float() - sigma * velocity.float()).to(x.dtype)
            x = (following / sigma * x.float() + (1 - following / sigma) * found.float()).to(x.dtype)
        if seen_again:
            if options.remember == "refined":
                self._network(x, 0.0, positions, mode=_KEEP)
            self._remember_block(frames, clean.shape[3] * clean.shape[4])
        return x

    def _place(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of the block that ends at the next frame; the sink stands just before what is remembered."""
        sink, start = self._options.sink_frames, self._next - block.shape[2]
        before = start - self._history_frames - sink
        self._cache.sink_pe = self._positions(range(before, before + sink), block)
        return self._positions(range(start, self._next), block)

    @property
    def _remembers(self) -> bool:
        options = self._options
        return options.block_frames is not None and options.window_frames > options.sink_frames

    def _remember_block(self, frames: int, tokens_per_frame: int) -> None:
        most = self._options.window_frames - self._options.sink_frames
        fresh = min(frames, most) * tokens_per_frame
        keep = min(self._history_frames, most - min(frames, most)) * tokens_per_frame
        self._history_frames = min(most, self._history_frames + frames)
        for layer in self._cache.layer_caches:
            new = tuple(t[:, t.shape[1] - fresh :] for t in layer.get_captured_post_rope())
            old = layer.get_history()
            if old is None:
                layer.store_history(*(t.clone() for t in new))
                continue
            # Only what is kept is put together: a part of a longer tensor would hold all of it.
            pairs = zip(old, new, strict=True)
            layer.store_history(*(torch.cat([o[:, o.shape[1] - keep :], n], dim=1) for o, n in pairs))

    def _positions(self, frames: range, like: Tensor) -> tuple[Tensor, Tensor]:
        return self._refiner.transformer.build_rotary_emb_for_absolute_positions(
            batch_size=1,
            frame_positions=list(frames),
            height=like.shape[3],
            width=like.shape[4],
            device=like.device,
            fps=self._options.frames_per_second,
        )

    def _network(self, x: Tensor, sigma: float, positions: tuple[Tensor, Tensor], *, mode: str) -> Tensor:
        """Velocity (1, C, t, h, w) of one call; all tokens have one time, which is therefore embedded once."""
        transformer = self._refiner.transformer
        time = torch.full((1, 1), sigma * transformer.config.timestep_scale_multiplier, device=x.device)
        for block in transformer.transformer_blocks:
            block.attn2.processor.kept = self._prompt_keys
        with sdpa_kernel(SDPA_ORDER, set_priority=True):
            tokens = transformer(
                hidden_states=x.flatten(2).transpose(1, 2),
                encoder_hidden_states=self._text,
                timestep=time,
                video_rotary_emb=positions,
                encoder_attention_mask=self._mask,
                kv_cache=self._cache,
                kv_cache_mode=mode,
                return_dict=False,
            )[0]
        self._calls += 1
        if self._progress is not None:
            self._progress(self._calls, self._all_calls())
        return tokens.transpose(1, 2).reshape(1, -1, *x.shape[2:])

    def _all_calls(self) -> int:
        if self._total is None:
            return self._calls
        steps = len(self._options.sigmas) - 1
        if self._options.block_frames is None:
            return 1 + steps
        blocks = -(-(self._total - self._options.sink_frames) // self._options.block_frames)
        passes = self._remembers and self._options.remember == "refined"
        return 1 + blocks * (steps + passes) - passes


class _Block(nn.Module):
    """diffusers' block with fewer passes over its tokens; modules bear the same names.

    What takes its time beside the matrix products are norms, modulations and rotations, each in a few passes in float32
    there. Here each is one.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        if any(norm.weight is not None for norm in (block.norm1, block.norm2, block.norm3)):
            raise ValueError("a refiner whose norms have weights is not known here")
        self.attn1, self.attn2, self.ff = block.attn1, block.attn2, _InPieces(block.ff)
        self.scale_shift_table = block.scale_shift_table
        self.eps = float(block.norm1.eps)
        self.attn1.set_processor(_SelfAttention())
        self.attn2.set_processor(_PromptAttention())

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        video_rotary_emb: tuple[Tensor, Tensor],
        encoder_attention_mask: Tensor | None = None,
        sink_rotary_emb: tuple[Tensor, Tensor] | None = None,
        kv_cache: Any = None,
        kv_cache_mode: str | None = None,
    ) -> Tensor:
        table = self.scale_shift_table + temb.unflatten(2, (len(self.scale_shift_table), -1))
        shift, scale, gate, ff_shift, ff_scale, ff_gate = table.unbind(2)
        attended = self.attn1(
            torch.addcmul(shift, self._norm(hidden_states), 1 + scale),
            query_rotary_emb=video_rotary_emb,
            sink_rotary_emb=sink_rotary_emb,
            kv_cache=kv_cache,
            kv_cache_mode=kv_cache_mode,
        )
        hidden_states = torch.addcmul(hidden_states, attended, gate)
        hidden_states = hidden_states + self.attn2(
            self._norm(hidden_states),
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=encoder_attention_mask,
        )
        wide = self.ff(torch.addcmul(ff_shift, self._norm(hidden_states), 1 + ff_scale))
        return torch.addcmul(hidden_states, wide, ff_gate)

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), None, self.eps)


class _SelfAttention:
    """diffusers' attention to the sink, the history and the block itself, with norm and rotation in one pass."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        query_rotary_emb: tuple[Tensor, Tensor] | None = None,
        key_rotary_emb: None = None,
        sink_rotary_emb: tuple[Tensor, Tensor] | None = None,
        kv_cache: Any = None,
        kv_cache_mode: str | None = None,
    ) -> Tensor:
        assert query_rotary_emb is not None
        query = _rotated(attn, attn.to_q(hidden_states), attn.norm_q, query_rotary_emb)
        plain, value = attn.to_k(hidden_states), attn.to_v(hidden_states)
        if kv_cache_mode == "capture_pre_rope":
            kv_cache.store_captured_pre_rope(attn.norm_k(plain), value)
        key = _rotated(attn, plain, attn.norm_k, query_rotary_emb)
        if kv_cache_mode == _KEEP:
            kv_cache.store_captured_post_rope(key, value)
        if kv_cache_mode in ("inject", _KEEP):
            assert sink_rotary_emb is not None
            sink_key, sink_value = kv_cache.get_sink()
            history = kv_cache.get_history() or (key[:, :0], value[:, :0])
            key = torch.cat([_rotated(attn, sink_key, None, sink_rotary_emb), history[0], key], dim=1)
            value = torch.cat([sink_value, history[1], value], dim=1)
        return _attended(attn, hidden_states, *(_heads(attn, x) for x in (query, key, value)), mask=None)


def _rotated(attn: Any, x: Tensor, norm: Any, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """(B, N, C) after RMSNorm, if one is given, and rotation."""
    if attn.rope_type == "split":
        weight = None if norm is None else norm.weight
        return rotate_heads(x, weight, *rotation, eps=1e-6 if norm is None else norm.eps)
    rotate = import_diffusers("models.transformers.transformer_sana_wm_refiner").apply_interleaved_rotary_emb
    return rotate(x if norm is None else norm(x), rotation)


def _heads(attn: Any, x: Tensor) -> Tensor:
    return x.unflatten(2, (attn.heads, -1)).transpose(1, 2)


def _attended(
    attn: Any, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None
) -> Tensor:
    """Softmax attention, the gate of each head if there is one, and the projection behind."""
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
    if attn.to_gate_logits is not None:
        out = out * (2 * torch.sigmoid(attn.to_gate_logits(hidden_states)))[..., None]
    return attn.to_out[1](attn.to_out[0](out.flatten(2)))


class _PromptAttention:
    """diffusers' attention to the prompt, whose keys and values are computed once a stream.

    Attributes:
        kept: keys and values by layer, of the stream that is running; not of calls that learn, whose keys may change.
    """

    def __init__(self) -> None:
        self.kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        query_rotary_emb: None = None,
        key_rotary_emb: None = None,
    ) -> Tensor:
        learns = torch.is_grad_enabled()
        kept = None if learns else self.kept.get(attn)
        if kept is None:
            key, value = attn.norm_k(attn.to_k(encoder_hidden_states)), attn.to_v(encoder_hidden_states)
            kept = _heads(attn, key), _heads(attn, value)
            if not learns:
                self.kept[attn] = kept
        query = _heads(attn, attn.norm_q(attn.to_q(hidden_states)))
        mask = None if attention_mask is None else attention_mask[:, None].to(query.dtype)
        return _attended(attn, hidden_states, query, *kept, mask=mask)


class _InPieces(nn.Module):
    """A feed-forward network that takes long inputs in pieces, so that its wide middle stays small."""

    piece = 16384
    """Tokens at once: enough to keep a GPU busy."""

    def __init__(self, ff: Any) -> None:
        super().__init__()
        self.net = ff.net

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] <= self.piece:
            return self._whole(x)
        out = torch.empty_like(x)
        for start in range(0, x.shape[1], self.piece):
            out[:, start : start + self.piece] = self._whole(x[:, start : start + self.piece])
        return out

    def _whole(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


def load_refiner(
    folder: Path | str,
    *,
    options: RefinerOptions | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
) -> Refiner:
    """The released refiner: folder `transformer` of its release, or the folder that holds it.

    Weights for sound are not read; the others stay mapped until they are moved.

    Raises:
        FileNotFoundError, ValueError: files are missing, damaged or another network's; the message names them.
        ModuleNotFoundError: diffusers is not installed.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() and (folder / "transformer" / "config.json").is_file():
        folder = folder / "transformer"
    transformer = load_module(_kind(), folder, dtype=dtype, leave_out=SOUND)
    return Refiner(transformer.to(device), options=options)


def _kind() -> Any:
    return import_diffusers(
        "models.transformers.transformer_sana_wm_refiner"
    ).SanaWMLTX2RefinerTransformer3DModel


TINY: dict[str, Any] = dict(
    num_attention_heads=2,
    attention_head_dim=16,
    cross_attention_dim=32,
    audio_num_attention_heads=2,
    audio_attention_head_dim=8,
    audio_cross_attention_dim=16,
    num_layers=2,
    rope_type="split",
)
"""diffusers' settings of a network small enough for a laptop."""


def tiny_refiner(
    seed: int = 0, *, latent_channels: int = 8, text_width: int = 16, options: RefinerOptions | None = None
) -> Refiner:
    """Random numbers in the released shape at a tiny size, on the CPU in float32: a stand-in to try the chain with.

    Raises:
        ModuleNotFoundError: diffusers is not installed.
    """
    kind = _kind()
    sizes = dict(in_channels=latent_channels, out_channels=latent_channels, caption_channels=text_width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = kind(**TINY, **sizes)
    return Refiner(transformer, options=options, stand_in=True)
