"""One image, a prompt and a camera path in; a video out: the whole chain, and a record of what it did.

The parts (text encoder, video autoencoder, world model, refiner) are loaded once by a `Generator`; a
`GenerationRequest` says what is wanted. Finished frames are handed out as they come. Whatever ends a run, its
`GenerationRecord` says how far it went.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Generator as Generator_
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..dataset.cameras.transforms import relative_to_first
from ..kernels.attention import FLASH4_QUERIES, chosen_backend
from ..kernels.backend import resolve_backend
from ..kernels.flash4 import flash4_refusal, flash4_version
from ..kernels.fp8.attention import fp8_attention_library
from .ahead import Ahead
from .autoencoder import to_pixels
from .conditioning import SPATIAL_STRIDE, condition_cameras, latent_frames
from .context import Cameras, Operators
from .generation_record import GenerationRecord, Stage, streaming_report
from .network import WorldModel
from .samplers import (
    ChunkSchedule,
    Guidance,
    StudentSchedule,
    Text,
    noise_latents,
    sample_bidirectional,
    stream_chunk_causal,
    stream_distilled,
    streaming_ranges,
)
from .sampling import Sampling

Pictures = NDArray[np.uint8]
OnFrames = Callable[[Pictures], None]
"""Takes finished frames (n, H, W, 3), in order."""
Progress = Callable[[str, int, int], None]
"""Called with a stage, and how many of its steps are done, of how many."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerationRequest:
    """What a video is made of.

    Attributes:
        image: (H, W, 3) uint8 RGB, the first frame, in the size of the video (multiples of 32).
        prompt: what the video shows.
        camera_to_world: (F, 4, 4) of frames at 16 a second, OpenCV axes, metres, any world; F = 8 k + 1, for the
            distilled model 24 k + 1.
        intrinsics_px: (F, 3, 3) in pixels of `image`.
        sampling: how the world model is asked.
        seed: of the world model's noise.
        refine: run the refiner.
        refiner_seed: of its noise (released: 42).
        negative_prompt: what guidance leads away from (released: empty).
    """

    image: Pictures
    prompt: str
    camera_to_world: NDArray[np.floating]
    intrinsics_px: NDArray[np.floating]
    sampling: Sampling
    seed: int = 42
    refine: bool = True
    refiner_seed: int = 42
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(f"the image is {self.image.dtype} {self.image.shape}; give uint8 (H, W, 3)")
        if any(side % SPATIAL_STRIDE or side == 0 for side in self.image.shape[:2]):
            height, width = self.image.shape[:2]
            raise ValueError(
                f"the image is {width}x{height}; both sides must be multiples of {SPATIAL_STRIDE}"
            )
        frames = len(self.camera_to_world)
        if self.camera_to_world.shape != (frames, 4, 4) or self.intrinsics_px.shape != (frames, 3, 3):
            raise ValueError(
                f"{self.camera_to_world.shape} poses and {self.intrinsics_px.shape} intrinsics; give (F, 4, 4) and "
                "(F, 3, 3)"
            )
        latent_frames(frames)
        multiple = self.sampling.chunk_frames
        if frames < multiple + 1 or (frames - 1) % multiple:
            raise ValueError(f"{frames} frames: {self.sampling.mode} makes {multiple} k + 1, k at least 1")
        for name in ("seed", "refiner_seed"):
            if not 0 <= getattr(self, name) < 2**63:
                raise ValueError(f"{name} {getattr(self, name)}: give 0 to 2^63 - 1")

    @property
    def num_frames(self) -> int:
        return len(self.camera_to_world)


class Residence(Protocol):
    """Brings parts to where they compute, and lets them go; see `residence.py`."""

    @property
    def policy(self) -> str: ...

    def on(self, *parts: Any) -> AbstractContextManager[Any]: ...


class Generator:
    """The chain with its parts loaded.

    Args:
        world_model: weights of the mode that is asked for.
        autoencoder: `autoencoder.VideoAutoencoder`, or what has its methods.
        text_encoder: `text.TextEncoder`, or what has its `encode`.
        refiner: `refiner.Refiner`, or None; in distilled mode with blocks as in the streaming release.
        refiner_text_encoder: `text.RefinerTextEncoder`, beside a refiner.
        residence: where parts live while they are idle; None: where they are.
        parts: what to say of the parts in records.
        device: of the computation.
    """

    def __init__(
        self,
        world_model: WorldModel,
        autoencoder: Any,
        text_encoder: Any,
        *,
        refiner: Any = None,
        refiner_text_encoder: Any = None,
        residence: Residence | None = None,
        parts: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.world_model, self.autoencoder, self.text_encoder = world_model, autoencoder, text_encoder
        self.refiner, self.refiner_text_encoder = refiner, refiner_text_encoder
        self.residence = residence
        self.parts = dict(parts or {})
        self.device = torch.device(device)
        self.warm_up_s: float | None = None
        """What `warm_up` took, if it ran."""
        if autoencoder.latent_channels != world_model.config.latent_channels:
            raise ValueError(
                f"the autoencoder has {autoencoder.latent_channels} latent channels, the world model "
                f"{world_model.config.latent_channels}: they are not of one release"
            )

    @property
    def stand_in(self) -> bool:
        """Whether some part's weights are random numbers."""
        named = (self.autoencoder, self.text_encoder, self.refiner, self.refiner_text_encoder)
        return any(getattr(part, "stand_in", False) for part in named) or bool(
            self.parts.get("world_model", {}).get("stand_in")
        )

    def check(self, request: GenerationRequest) -> None:
        """Refuse what these parts cannot do, before anything runs.

        Raises:
            ValueError: naming it.
        """
        sampling = request.sampling
        if sampling.mode == "distilled" and not self.autoencoder.is_causal:
            raise ValueError(
                "distilled mode shows chunks as they come and needs the causal video autoencoder of the streaming "
                "release"
            )
        check_choices(
            sampling,
            self.world_model.operators,
            device=self.device,
            dtype=self.world_model.final_layer.linear.weight.dtype,
            policy="none" if self.residence is None else self.residence.policy,
        )
        if request.refine and None in (self.refiner, self.refiner_text_encoder):
            raise ValueError("this generator has no refiner: load one, or ask without (--no-refiner)")
        if not request.prompt.strip():
            raise ValueError("the prompt is empty: say what the video shows")
        for words, what in ((request.prompt, "prompt"), (request.negative_prompt, "negative prompt")):
            count, room = self.text_encoder.count_tokens(words, instruction=what == "prompt")
            if count > room:
                raise ValueError(
                    f"the {what} has {count} tokens, the world model sees {room}: shorten it by about "
                    f"{count - room} tokens"
                )

    def warm_up(self, request: GenerationRequest) -> float:
        """Make a short clip of the request's kind and drop it: kernels are compiled, libraries have chosen theirs and
        memory is taken before a stream is timed. Only distilled mode gains by it.

        Returns:
            seconds, which the streaming reports from now on mention.
        Raises:
            ValueError: as of `generate`, or another mode.
        """
        sampling = request.sampling
        if sampling.mode != "distilled":
            raise ValueError(f"warming up is of the distilled mode, not of {sampling.mode}")
        held = (sampling.sink_chunks or 0) + (sampling.window_chunks or 0)
        frames = min(request.num_frames, max(_WARM_UP_CHUNKS, held + 2) * sampling.chunk_frames + 1)
        short = replace(
            request,
            camera_to_world=request.camera_to_world[:frames],
            intrinsics_px=request.intrinsics_px[:frames],
        )
        start = time.perf_counter()
        for _ in self.stream(short):
            pass
        self.warm_up_s = time.perf_counter() - start
        return self.warm_up_s

    def generate(
        self,
        request: GenerationRequest,
        *,
        on_frames: OnFrames,
        progress: Progress | None = None,
        record: GenerationRecord | None = None,
    ) -> GenerationRecord:
        """Make the video; blocks until it is done.

        Args:
            request: what is wanted.
            on_frames: takes finished frames.
            progress: hears of each step.
            record: to fill, for a caller that wants to know how far a run came that was ended; None: a new one.
        Returns:
            the record.
        Raises:
            ValueError: these parts cannot do it.
        """
        record = GenerationRecord() if record is None else record
        stream = self.stream(request, progress=progress, record=record)
        try:
            for frames in stream:
                on_frames(frames)
        except BaseException as error:
            stream.close()
            record.status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            raise
        return record

    def stream(
        self,
        request: GenerationRequest,
        *,
        progress: Progress | None = None,
        record: GenerationRecord | None = None,
    ) -> Generator_[Pictures, None, None]:
        """The video's frames as they are finished; arguments and errors as of `generate`.

        Yields:
            (n, H, W, 3) uint8, in order. Frames count as handed out once the next ones are asked for.
        """
        record = GenerationRecord() if record is None else record
        self.check(request)
        return self._frames(_Run(self, request, record, progress))

    def _frames(self, run: _Run) -> Generator_[Pictures, None, None]:
        record = run.record
        record.status = "running"
        try:
            for frames in run.frames():
                frames = frames[: record.num_frames_wanted - record.num_frames]
                yield frames
                record.num_frames += len(frames)
                run.hears(run.handing_out)(record.num_frames, record.num_frames_wanted)
        except (KeyboardInterrupt, GeneratorExit):
            record.status = "interrupted"
            raise
        except BaseException:
            record.status = "failed"
            raise
        record.status = "complete"


def check_choices(
    sampling: Sampling, operators: Operators, *, device: torch.device | str, dtype: torch.dtype, policy: str
) -> None:
    """Refuse what cannot run on a device, or with parts that leave it (`policy`); nothing needs to be loaded.

    Raises:
        ValueError: naming it.
    """
    device = torch.device(device)
    if operators.kernels == "triton":
        resolve_backend(operators.kernels, torch.empty(0, dtype=dtype, device=device))
    if operators.attention in ("cudnn", "flash") and device.type != "cuda":
        raise ValueError(f"attention by {operators.attention} needs a GPU: use auto or reference")
    if operators.attention == "flash4" and (refusal := flash4_refusal(device, dtype)):
        raise ValueError(refusal)
    if sampling.graphs and device.type != "cuda":
        raise ValueError("CUDA graphs need a GPU")
    if sampling.graphs and policy != "none":
        raise ValueError("CUDA graphs need weights that stay where they are: use them without offload")
    if sampling.overlap and policy != "none":
        raise ValueError("overlap needs all parts on the device at once: use it without offload")


_WARM_UP_CHUNKS = 6
"""Until sink and window of the world model and the window of the refiner are full, and graphs are recorded."""


def _operators(model: WorldModel, latents: Tensor, sampling: Sampling) -> dict[str, Any]:
    """Which implementations run on these latents, and what was asked for."""
    asked = model.operators
    device, heads = latents.device, model.config.head_size
    chosen = chosen_backend(
        asked.attention, device, model.final_layer.linear.weight.dtype, heads, FLASH4_QUERIES
    )
    if asked.attention != "auto":
        attention = asked.attention
    elif asked.attention_precision == "fp8":
        attention = f"{fp8_attention_library(device, heads)}, e4m3"
    else:
        attention = (
            "the first of cuDNN and flash that takes the shapes" if latents.is_cuda else "torch on the CPU"
        )
        if chosen == "flash4":
            version = flash4_version()
            attention = (
                f"flash-attn-4 {version} for chunks of {FLASH4_QUERIES} tokens and more, else {attention}"
            )
    return {
        "asked": asdict(asked),
        "kernels": "triton" if resolve_backend(asked.kernels, latents) else "reference",
        "attention": attention,
        "cuda_graphs": sampling.graphs,
        "device": torch.cuda.get_device_name(latents.device) if latents.is_cuda else "cpu",
    }


class _Run:
    """One video on its way."""

    def __init__(
        self,
        generator: Generator,
        request: GenerationRequest,
        record: GenerationRecord,
        progress: Progress | None,
    ) -> None:
        self.generator, self.request, self.record = generator, request, record
        self.progress = progress
        self.handing_out = "frames"
        self.start = time.perf_counter()
        self.together = False
        """Whether stages run at the same time; the most memory of one is then that of all."""
        self.ready_s: list[float] = []
        self.ready_frames: list[int] = []
        record.num_frames_wanted = request.num_frames
        record.sampling = request.sampling.model_dump(mode="json")
        record.departures = request.sampling.departures()
        record.seeds = {"world_model": request.seed}
        record.refined, record.stand_in = request.refine, generator.stand_in
        record.parts = generator.parts
        if request.refine:
            record.seeds["refiner"] = request.refiner_seed

    def frames(self) -> Iterator[Pictures]:
        """Finished frames, in order; a decoder may give more than were asked for."""
        generator, request = self.generator, self.request
        with self.stage("text", generator.text_encoder):
            text, guidance = self._texts()
        with self.stage("image", generator.autoencoder):
            image = torch.from_numpy(request.image).permute(2, 0, 1).float() / 127.5 - 1
            first = generator.autoencoder.encode_image(image)
        first = first.to(generator.device)
        noise = torch.Generator(generator.device).manual_seed(request.seed)
        latents = noise_latents(generator.world_model, first, latent_frames(request.num_frames), noise)
        cameras = self._cameras(latents)
        self.record.operators = _operators(generator.world_model, latents, request.sampling)
        refiner_text = None
        if request.refine:
            with self.stage("text", generator.refiner_text_encoder):
                refiner_text = generator.refiner_text_encoder.encode(request.prompt)
        if request.sampling.mode == "distilled":
            yield from self._stream(latents, text, cameras, refiner_text)
        else:
            yield from self._whole(latents, text, guidance, cameras, refiner_text)

    def _texts(self) -> tuple[Text, Guidance | None]:
        encoder, sampling = self.generator.text_encoder, self.request.sampling
        text = self._moved(encoder.encode(self.request.prompt))
        if sampling.mode == "distilled" or sampling.guidance in (None, 1):
            return text, None
        empty = self._moved(encoder.encode(self.request.negative_prompt, instruction=False))
        first, last = sampling.guidance_interval or (0.0, 1.0)
        assert sampling.guidance is not None
        return text, Guidance(
            empty=empty, scale=sampling.guidance, first=first, last=last, batched=sampling.guidance_batched
        )

    def _moved(self, text: Text) -> Text:
        model = self.generator.world_model
        dtype = model.final_layer.linear.weight.dtype
        device = self.generator.device
        return Text(text.states.to(device, dtype), None if text.mask is None else text.mask.to(device))

    def _cameras(self, latents: Tensor) -> Cameras:
        """Geometry in float32 on the computing device, once a clip."""
        request, device = self.request, self.generator.device
        k = torch.as_tensor(np.asarray(request.intrinsics_px, np.float64))
        lens = torch.stack([k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2]], dim=-1)
        # Relative before they are float32: in a world of map coordinates, metres are lost in it.
        poses = relative_to_first(torch.as_tensor(np.asarray(request.camera_to_world, np.float64)))
        height, width = request.image.shape[:2]
        found = condition_cameras(poses[None].float(), lens[None].float(), height=height, width=width)
        plucker = None if found.plucker is None else found.plucker.to(device, latents.dtype)
        return Cameras(found.camera_to_world.to(device), found.intrinsics.to(device), plucker)

    def _whole(
        self, latents: Tensor, text: Text, guidance: Guidance | None, cameras: Cameras, refiner_text: Any
    ) -> Iterator[Pictures]:
        """Denoise everything, refine everything, then decode piece after piece."""
        generator, request, sampling = self.generator, self.request, self.request.sampling
        assert sampling.steps is not None
        assert sampling.shift is not None
        common: dict[str, Any] = dict(guidance=guidance, cameras=cameras)
        steps: dict[str, Any] = dict(steps=sampling.steps, shift=sampling.shift)
        if sampling.mode == "bidirectional":
            with self.stage("denoising", generator.world_model):
                latents = sample_bidirectional(
                    generator.world_model, latents, text, progress=self.hears("denoising"), **steps, **common
                )
        else:
            chunks = stream_chunk_causal(
                generator.world_model,
                latents,
                text,
                schedule=ChunkSchedule(**steps, interval=sampling.chunk_interval),
                progress=self.hears("denoising"),
                **common,
            )
            if not request.refine:
                yield from self._while_denoising(chunks)
                return
            with self.stage("denoising", generator.world_model):
                for _done, latents in chunks:  # noqa: B007 - the last one is whole
                    pass
        if request.refine:
            with self.stage("refining", generator.refiner):
                latents = generator.refiner.refine(
                    latents, refiner_text, seed=request.refiner_seed, progress=self.hears("refining")
                )
        pieces = iter(generator.autoencoder.decode(latents))
        while (frames := self._decoded(pieces)) is not None:
            yield frames

    def _while_denoising(self, chunks: Iterator[tuple[int, Tensor]]) -> Iterator[Pictures]:
        """Decode what no later step changes any more, while later chunks are still denoised."""
        generator = self.generator
        pieces: Iterator[Tensor] | None = None
        needed: list[int] = []
        while True:
            with self.stage("denoising", generator.world_model):
                found = next(chunks, None)
            if found is None:
                break
            done, latents = found
            if pieces is None:
                pieces = iter(generator.autoencoder.decode(latents))
                needed = generator.autoencoder.latents_needed(latents.shape[2])
            while needed and needed[0] <= done:
                del needed[0]
                if (frames := self._decoded(pieces)) is not None:
                    yield frames

    def _decoded(self, pieces: Iterator[Tensor]) -> Pictures | None:
        """The next piece's frames, or None after the last."""
        with self.stage("decoding", self.generator.autoencoder):
            piece = next(pieces, None)
            return None if piece is None else to_pixels(piece).cpu().numpy()

    def _stream(self, latents: Tensor, text: Text, cameras: Cameras, refiner_text: Any) -> Iterator[Pictures]:
        """Denoise, refine and decode chunk after chunk; with `overlap` the next chunk is made while one is decoded and
        handed out."""
        autoencoder, overlap = self.generator.autoencoder, self.request.sampling.overlap
        decoder = autoencoder.start_stream()
        made = self._chunks(latents, text, cameras, refiner_text)
        beside = torch.cuda.Stream(latents.device) if overlap and latents.is_cuda else None
        self.together = overlap
        chunks = Ahead(made) if overlap else made
        try:
            for chunk in chunks:
                with self.stage("decoding", autoencoder), torch.cuda.stream(beside):
                    frames = to_pixels(decoder.add(chunk)).cpu().numpy()
                self.ready_s.append(time.perf_counter() - self.start)
                self.ready_frames.append(len(frames))
                self.record.streaming = streaming_report(
                    self.ready_s, self.ready_frames, warm_up_s=self.generator.warm_up_s
                )
                yield frames
        finally:
            chunks.close()
            self.together = False

    def _chunks(
        self, latents: Tensor, text: Text, cameras: Cameras, refiner_text: Any
    ) -> Generator_[Tensor, None, None]:
        """Finished latents of one chunk after another; the device has done with them when they are given."""
        generator, request, sampling = self.generator, self.request, self.request.sampling
        assert sampling.times is not None
        refining = (
            generator.refiner.start_stream(refiner_text, seed=request.refiner_seed)
            if request.refine
            else None
        )
        chunks = iter(
            stream_distilled(
                generator.world_model,
                latents,
                text,
                cameras=cameras,
                schedule=StudentSchedule(
                    times=sampling.times,
                    window_chunks=sampling.window_chunks,
                    sink_chunks=sampling.sink_chunks or 0,
                ),
                graphs=sampling.graphs,
            )
        )
        ranges = streaming_ranges(latents.shape[2])
        for number in range(len(ranges)):
            with self.stage("denoising", generator.world_model):
                chunk = next(chunks)
            if refining is not None:
                with self.stage("refining", generator.refiner):
                    chunk = refining.add(chunk)
                    if number == len(ranges) - 1:
                        chunk = torch.cat([chunk, refining.finish()], dim=2)
                if not chunk.shape[2]:
                    continue  # the refiner waits for a whole block
            yield chunk

    def hears(self, stage: str) -> Callable[[int, int], None]:
        """Progress of a stage."""
        progress = self.progress
        return (
            (lambda _done, _total: None)
            if progress is None
            else lambda done, total: progress(stage, done, total)
        )

    @contextmanager
    def stage(self, name: str, part: Any) -> Iterator[None]:
        """Bring a part in, and count its time and memory."""
        device, residence = self.generator.device, self.generator.residence
        on_gpu = device.type == "cuda"
        if on_gpu and not self.together:
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        entry = self.record.stages.setdefault(name, Stage())
        try:
            with ExitStack() as stack, torch.no_grad():
                stack.enter_context(nullcontext() if residence is None else residence.on(part))
                yield
        finally:
            if on_gpu:
                torch.cuda.current_stream(device).synchronize()
                entry.peak_bytes = max(entry.peak_bytes or 0, torch.cuda.max_memory_allocated(device))
            entry.wall_s += time.perf_counter() - start
            entry.calls += 1
