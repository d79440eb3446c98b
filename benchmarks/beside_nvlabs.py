"""The world model's network beside that of NVlabs/Sana: the same random weights and inputs, outputs, times, memory.

    python benchmarks/beside_nvlabs.py SANA [--parts bidirectional streaming chunk-causal] [--frames 121]
    TRITON_INTERPRET=1 python benchmarks/beside_nvlabs.py SANA --smoke

SANA is a checkout of NVlabs/Sana, or its `diffusion` folder's parent; written for the authors' fork of 15 June 2026
(5b5cc40). Its network is imported without the packages around it (training, data, other autoencoders); the streaming
sampler needs diffusers. Where that code attends with another scale than today's default, ours is asked for the same.
--smoke does all of it at a tiny size on a CPU, to prove that it runs.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.machinery
import importlib.metadata
import os
import sys
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from model_sizes import (
    FULL,
    SMOKE,
    Size,
    attempt,
    peak_gib,
    random_inputs,
    random_model,
    relative,
    synchronise,
    time_ms,
)
from theodolite.model.config import chunk_starts
from theodolite.model.context import Cameras
from theodolite.model.graphs import ChunkGraph
from theodolite.model.network import WorldModel
from theodolite.model.samplers import STUDENT_TIMES, Text, stream_distilled, streaming_ranges
from torch import Tensor, nn

PADDED_SCALE = 128**-0.5
"""Of softmax logits where that code fills heads up to 128 channels and leaves the scale to the library."""


# --- its network ----------------------------------------------------------------------------------------------------


class _Registry:
    """What `mmcv.Registry` does for names of classes."""

    def __init__(self, name: str) -> None:
        self.name, self._kinds = name, {}

    def register_module(self, name: Any = None, **_: Any) -> Callable[[Any], Any]:
        def add(kind: Any) -> Any:
            names = [name] if isinstance(name, str) else name or [kind.__name__]
            self._kinds.update(dict.fromkeys(names, kind))
            return kind

        return add

    def get(self, name: str) -> Any:
        return self._kinds.get(name)


class _ShortConvolution(nn.Conv1d):
    """Causal depthwise convolution in place of `fla.modules.ShortConvolution`, where fla is not installed."""

    def __init__(self, hidden_size: int, kernel_size: int, activation: None = None) -> None:
        super().__init__(hidden_size, hidden_size, kernel_size, groups=hidden_size, bias=False)

    def forward(self, input: Tensor) -> Any:  # theirs also hands out a state
        padded = nn.functional.pad(input.transpose(1, 2), (self.kernel_size[0] - 1, 0))
        return super().forward(padded).transpose(1, 2), None


class _Attention(nn.Module):
    """The layers that its blocks take over from timm's `Attention`, where timm is not installed."""

    def __init__(self, dim: int, num_heads: int = 8, qkv_bias: bool = False) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)


class _Mlp(nn.Module):
    """timm's `Mlp`, the same way."""

    def __init__(
        self, in_features: int, hidden_features: int, out_features: int | None = None, **options: Any
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = options.get("act_layer", nn.GELU)()
        self.fc2 = nn.Linear(hidden_features, out_features or in_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def _module(name: str, **content: Any) -> types.ModuleType:
    """Put a module of this content in place of one that is not there or not needed."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    vars(module).update(content)
    sys.modules[name] = module
    return module


def import_official(sana: Path) -> list[str]:
    """Make `diffusion` importable without its packages' __init__; which parts of others are stood in for."""
    if not (sana / "diffusion" / "model" / "nets").is_dir():
        raise SystemExit(f"{sana}: holds no diffusion/model/nets; give a checkout of NVlabs/Sana")
    sys.path.insert(0, str(sana))
    for name in ("diffusion", "diffusion.model", "diffusion.model.nets", "diffusion.model.wan"):
        _module(name).__path__ = [str(sana / name.replace(".", "/"))]
    _module("mmcv", Registry=_Registry)
    _module("importlib_metadata").__dict__.update(vars(importlib.metadata))
    _module("termcolor", colored=lambda text, *_, **__: text)
    _module("diffusion.model.builder", MODELS=_Registry("models"))
    _module("diffusion.model.wan.model", BlockHook=object)
    _module("diffusion.utils.logger", get_root_logger=lambda *_: None)
    _module("diffusion.utils.dist_utils", get_rank=lambda: 1)
    _module("diffusion.utils").__path__ = [str(sana / "diffusion" / "utils")]
    stood_in = ["mmcv"]
    try:
        if not torch.cuda.is_available():
            raise RuntimeError("no GPU")
        from fla.modules import ShortConvolution  # noqa: F401
    except Exception as error:  # noqa: BLE001  (whatever it says, there is another convolution)
        stood_in.append(f"fla ({type(error).__name__})")
        _module("fla")
        _module("fla.modules", ShortConvolution=_ShortConvolution)
    try:
        importlib.import_module("timm.models.layers")
    except ImportError:
        stood_in.append("timm")
        _module("timm")
        _module("timm.models")
        _module("timm.models.layers", DropPath=nn.Identity)
        _module("timm.models.vision_transformer", Attention=_Attention, Mlp=_Mlp)
    return stood_in


def official_network(size: Size, part: str) -> nn.Module:
    """Its network of this size, with its initial values."""
    nets = importlib.import_module("diffusion.model.nets.sana_multi_scale_video_camctrl")
    config = size.config
    streaming = part == "streaming"
    kind = nets.SanaMSVideoCamCtrlStreaming if streaming else nets.SanaMSVideoCamCtrl
    ffn = {"bidirectional": "GLUMBConvTemp", "chunk-causal": "ChunkGLUMBConvTemp"}.get(
        part, "CachedGLUMBConvTemp"
    )
    causal = (
        {"camctrl_type": "ChunkCausalGDNUCPESinglePathLiteLABothTriton"} if part == "chunk-causal" else {}
    )
    with torch.device(size.device):
        model = kind(
            depth=config.depth,
            hidden_size=config.width,
            patch_size=(1, 1, 1),
            num_heads=config.heads,
            linear_head_dim=config.head_size,
            softmax_every_n=config.softmax_every,
            in_channels=config.latent_channels,
            caption_channels=config.text_width,
            model_max_length=config.text_tokens,
            mlp_ratio=config.ffn_ratio,
            input_size=size.height,
            attn_type="ChunkCausalGDNTriton" if part == "chunk-causal" else "BidirectionalGDNTriton",
            ffn_type=ffn,
            pos_embed_type="casual_wan_rope" if streaming else "wan_rope",
            chunk_size=None if part == "bidirectional" else 3,
            chunk_split_strategy="first_chunk_plus_one",
            qk_norm=True, cross_norm=True, y_norm=True, y_norm_scale_factor=0.01,
            learn_sigma=False, pred_sigma=False, class_dropout_prob=0.0,
            cam_attn_compress=1, init_cam_from_base=True,
            use_chunk_plucker_post_attn=True, chunk_plucker_channels=48, chunk_plucker_post_attn_blocks=config.depth,
            use_fp32_attention=True, **causal,
        )  # fmt: skip
    importlib.import_module("diffusion.model.utils").set_fp32_attention(model)
    return model


def load_ours(model: nn.Module, state: dict[str, Tensor], size: Size) -> nn.Module:
    """Give its network our weights under the names that both have."""
    left = nn.Module.load_state_dict(model.to(size.dtype), state, strict=False)
    if set(left.missing_keys) - {"pos_embed"} or left.unexpected_keys:
        raise AssertionError(f"names differ: {left}")
    return model.eval()


@dataclass(frozen=True)
class Inputs:
    """Of one clip, as ours takes them and as that code does."""

    latents: Tensor
    times: Tensor
    text: Tensor
    cameras: Cameras

    @property
    def official(self) -> dict[str, Tensor]:
        """Cameras in the type of the latents, as its scripts give them: its ray transforms are rounded to it."""
        poses = self.cameras.camera_to_world.flatten(2)
        assert self.cameras.plucker is not None
        return dict(
            camera_conditions=torch.cat([poses, self.cameras.intrinsics], dim=-1).to(self.latents.dtype),
            chunk_plucker=self.cameras.plucker,
        )

    @property
    def mask(self) -> Tensor:
        return torch.ones(self.text.shape[:2], dtype=torch.int16, device=self.text.device)


def inputs_of(size: Size) -> Inputs:
    """Of random numbers; poses that bfloat16 holds, so that both see the same."""
    found = random_inputs(size)
    found["times"][:, 0] = 0  # the clean image
    cameras = found["cameras"]
    found["cameras"] = replace(
        cameras,
        camera_to_world=cameras.camera_to_world.to(torch.bfloat16).float(),
        intrinsics=cameras.intrinsics.to(torch.bfloat16).float(),
    )
    return Inputs(**found)


# --- the comparison -------------------------------------------------------------------------------------------------


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def ours_like(size: Size, **scales: float) -> WorldModel:
    return random_model(replace(size, config=size.config.model_copy(update=scales)))


def measure(name: str, call: Callable[[], Tensor], repeats: int = 3) -> Tensor:
    """First call, median of the next ones, peak memory; its result on the CPU."""
    synchronise()
    start = time.perf_counter()
    found = call().cpu()
    first = time.perf_counter() - start
    if not torch.cuda.is_available():  # an interpreter's times say nothing
        print(f"  {name:34s} runs", flush=True)
        return found
    elapsed = time_ms(call, repeats, 0)
    print(
        f"  {name:34s} {elapsed:9.1f} ms, peak {peak_gib(call):6.2f} GiB (first call {first:.1f} s)",
        flush=True,
    )
    return found


def compare(name: str, found: Tensor, expected: Tensor) -> None:
    if not bool(expected.isfinite().all()):  # Triton's interpreter cannot multiply bfloat16
        print(f"  {name}: that of NVlabs/Sana is not finite", flush=True)
        return
    print(f"  {name}: differ by {relative(found, expected):.2e} relative", flush=True)


def whole_clips(size: Size, part: str) -> None:
    """A pass over the whole clip, bidirectional or chunk-causal."""
    inputs = inputs_of(size)
    starts = chunk_starts(size.frames) if part == "chunk-causal" else None
    state, found, bare = own_passes(size, inputs, starts)
    free()
    theirs, theirs_bare = official_passes(size, inputs, starts, part, state)
    free()
    compare("outputs", found, theirs)
    if bare is not None and theirs_bare is not None:
        compare("outputs without cameras (its camera branch sees later chunks)", bare, theirs_bare)
    if size.dtype != torch.float32:
        small = replace(size, frames=13, dtype=torch.float32)
        print("  13 latent frames in float32:", flush=True)
        whole_clips(small, part)


def own_passes(
    size: Size, inputs: Inputs, starts: tuple[int, ...] | None
) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
    """Weights on the CPU, output, and for chunks the output without cameras."""
    model = ours_like(size, camera_softmax_scale=PADDED_SCALE)
    state = {k: v.cpu() for k, v in model.state_dict().items()}
    arguments = (inputs.latents, inputs.times, inputs.text)
    found = measure("ours", lambda: model(*arguments, cameras=inputs.cameras, chunk_starts=starts))
    return state, found, None if starts is None else model(*arguments, chunk_starts=starts).cpu()


def official_passes(
    size: Size, inputs: Inputs, starts: tuple[int, ...] | None, part: str, state: dict[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    model = load_ours(official_network(size, part), state, size)
    chunks = {} if starts is None else {"chunk_index": list(starts)}

    def call(**cameras: Tensor) -> Tensor:
        text = inputs.text[:, None]
        options = {"mask": inputs.mask, "data_info": {}, **chunks, **cameras}
        return model(inputs.latents, inputs.times[:, None], text, **options)

    theirs = measure("NVlabs/Sana", lambda: call(**inputs.official))
    return theirs, None if starts is None else call().cpu()


def loop_chunks(sana: Any, model: Any, inputs: Inputs, latents: Tensor) -> Iterator[Tensor]:
    """Its own streaming sampler, as its script starts it."""
    solver = sana.SelfForcingFlowEulerCamCtrl(
        model,
        condition=inputs.text[:, None],
        uncondition=None,
        cfg_scale=1.0,
        flow_shift=8.0,
        model_kwargs=dict(data_info={"condition_frame_info": {0: 0.0}}, mask=inputs.mask, **inputs.official),
        base_chunk_frames=3,
        num_cached_blocks=2,
        sink_token=True,
        use_softmax_attention=True,
    )
    times = [int(t) for t in STUDENT_TIMES]
    for _number, chunk, _first, _end in solver.sample_chunks(latents, denoising_step_list=times):
        yield chunk


def timed_stream(name: str, chunks: Callable[[], Iterator[Tensor]], runs: int = 2) -> Tensor:
    """Every run's seconds; the last one's steady seconds a chunk and peak; its latents."""
    found: list[Tensor] = []
    for run in range(runs if torch.cuda.is_available() else 1):
        free()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        synchronise()
        start, found, ends = time.perf_counter(), [], []
        for chunk in chunks():
            synchronise()
            ends.append(time.perf_counter() - start)
            found.append(chunk.float().cpu())
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        steady = (ends[-1] - ends[len(ends) // 2]) / max(1, len(ends) - 1 - len(ends) // 2)
        print(
            f"  {name:34s} run {run + 1}: {ends[-1]:7.2f} s, first chunk {ends[0]:.2f} s, later "
            f"{1e3 * steady:.1f} ms a chunk, peak {peak:.2f} GiB",
            flush=True,
        )
    return torch.cat(found, dim=2)


def streaming(size: Size) -> None:
    """The student's loop over a clip, and one call of the network with sink and window full."""
    os.environ["DPM_TQDM"] = "True"  # no bar
    inputs = inputs_of(size)
    with ThreadPoolExecutor(1) as beside:
        scan = beside.submit(cuda_scan) if size.device == "cuda" else None  # a minute of nvcc
        state, step, found = own_stream(size, inputs)
        free()
        if scan is not None:
            print(f"  its camera scan in CUDA: {scan.result()}", flush=True)
    theirs_step, theirs = official_stream(size, inputs, state)
    free()
    compare("one call", step, theirs_step)
    compare("latents of the whole loop", found, theirs)
    compare("latents of the first chunk", found[:, :, :4], theirs[:, :, :4])


def own_stream(size: Size, inputs: Inputs) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    model = ours_like(size, camera_softmax_scale=PADDED_SCALE, softmax_scale=PADDED_SCALE)
    step = own_step(model, inputs)

    def chunks(graphs: bool) -> Iterator[Tensor]:
        return stream_distilled(
            model, inputs.latents, Text(inputs.text), cameras=inputs.cameras, graphs=graphs
        )

    found = timed_stream("ours", lambda: chunks(False), runs=1)
    if size.device == "cuda":
        found = timed_stream("ours, with graphs", lambda: chunks(True))
    return {k: v.cpu() for k, v in model.state_dict().items()}, step, found


def official_stream(size: Size, inputs: Inputs, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    sana = importlib.import_module("diffusion.scheduler.self_forcing_flow_euler_sampler")
    model = load_ours(official_network(size, "streaming"), state, size)
    step = official_step(model, sana, inputs)

    def chunks() -> Iterator[Tensor]:
        vars(model).pop("forward_long", None)  # its sampler wraps the method once more each time
        return loop_chunks(sana, model, inputs, inputs.latents.clone())

    return step, timed_stream("NVlabs/Sana", chunks)


def cuda_scan() -> str:
    """Whether its CUDA kernel compiles here; where it does not, it takes Triton's without a word."""
    began = time.perf_counter()
    try:
        importlib.import_module("diffusion.model.ops.fused_gdn_chunkwise_cuda").build()
    except Exception as error:  # noqa: BLE001  (compilers raise anything)
        os.environ["SANA_GDN_CUDA"] = "0"
        return f"no, {type(error).__name__}: {str(error)[-300:]}"
    return f"compiled in {time.perf_counter() - began:.0f} s"


def step_ranges(inputs: Inputs) -> list[tuple[int, int]]:
    """Chunks until sink and window are full, and the one that is asked for."""
    return streaming_ranges(inputs.latents.shape[2])[:4]


def chunk_of(inputs: Inputs, first: int, end: int) -> tuple[Tensor, Cameras]:
    cameras = inputs.cameras
    assert cameras.plucker is not None
    own = Cameras(
        cameras.camera_to_world[:, first:end],
        cameras.intrinsics[:, first:end],
        cameras.plucker[:, :, first:end],
    )
    return inputs.latents[:, :, first:end], own


def own_step(model: WorldModel, inputs: Inputs) -> Tensor:
    """Ours: chunks that are remembered, then one call on the next."""
    cache = model.start_stream(window_chunks=1, sink_chunks=1)
    *past, (first, end) = step_ranges(inputs)
    for begin, stop in past:
        latents, cameras = chunk_of(inputs, begin, stop)
        times = torch.zeros(1, stop - begin, device=latents.device)
        model.forward_chunk(latents, times, inputs.text, cache, cameras=cameras, save=True)
    latents, cameras = chunk_of(inputs, first, end)
    times = inputs.times[:, first:end].float()
    found = measure(
        "ours, one call", lambda: model.forward_chunk(latents, times, inputs.text, cache, cameras=cameras), 20
    )
    if latents.is_cuda:
        graph = ChunkGraph(model, cache, latents, inputs.text, None, cameras)
        replayed = measure(
            "ours, one call as a graph", lambda: graph(latents, times, cameras, save=False), 20
        )
        compare("graph against eager", replayed, found)
    return found


def official_step(model: Any, sana: Any, inputs: Inputs) -> Tensor:
    """The same through its `forward_long`, caches put together by its sampler."""
    ranges = step_ranges(inputs)
    solver = sana.SelfForcingFlowEulerCamCtrl(
        model, condition=inputs.text[:, None], uncondition=None, cfg_scale=1.0, base_chunk_frames=3,
        num_cached_blocks=2, sink_token=True, use_softmax_attention=True,
        model_kwargs=dict(mask=inputs.mask, **inputs.official),
    )  # fmt: skip
    solver._chunk_indices = [0, *(end for _, end in ranges)]
    caches = solver._initialize_kv_cache(len(ranges))
    found = None
    for number, (first, end) in enumerate(ranges):
        cache, *_ = solver.accumulate_kv_cache(caches, number)
        last = number == len(ranges) - 1
        times = (
            inputs.times[:, first:end].float()
            if last
            else torch.zeros(1, end - first, device=inputs.latents.device)
        )

        def call(
            first: int = first,
            end: int = end,
            cache: Any = cache,
            times: Tensor = times,
            save: bool = not last,
        ):
            return model.forward_long(
                inputs.latents[:, :, first:end], times[:, None], inputs.text[:, None], mask=inputs.mask,
                start_f=first, end_f=end, save_kv_cache=save, kv_cache=cache, data_info={},
            )  # fmt: skip

        if last:
            found = measure("NVlabs/Sana, one call", lambda: call()[0], 20)
        else:
            caches[number] = call()[1]
    model.__dict__.pop("forward_long", None)
    assert found is not None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sana", type=Path)
    names = ("bidirectional", "streaming", "chunk-causal")
    parser.add_argument("--parts", nargs="+", choices=names, default=list(names))
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--no-flex", action="store_true", help="its chunk-causal pass by one call a chunk")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    torch.set_grad_enabled(False)
    os.environ.setdefault("DISABLE_XFORMERS", "1")
    size = replace(SMOKE, frames=13, height=2, width=2) if asked.smoke else replace(FULL, frames=asked.frames)
    if asked.smoke:
        os.environ["GDN_DISABLE_COMPILE"] = "1"
    print(f"stood in for: {', '.join(import_official(asked.sana))}; torch {torch.__version__}")
    print(torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")
    if asked.no_flex or asked.smoke:
        blocks = importlib.import_module("diffusion.model.nets.sana_gdn_blocks")
        vars(blocks)["_HAS_FLEX_ATTENTION_CHUNK"] = False
    good = []
    for part in asked.parts:
        print(f"{part}, {size.frames} latent frames, {size.frames * size.tokens} tokens", flush=True)
        run = streaming if part == "streaming" else lambda size, part=part: whole_clips(size, part)
        good.append(attempt(part, lambda run=run: run(size)))
    if not all(good):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
