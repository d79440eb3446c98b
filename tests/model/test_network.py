"""The world model: sizes as released, causality, and one set of weights in three ways of running."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from theodolite.model.conditioning import without_cameras
from theodolite.model.config import WorldModelConfig, chunk_ranges, chunk_starts
from theodolite.model.context import Cameras, Operators
from theodolite.model.network import WorldModel
from theodolite.model.start import initialise, start_camera_from_main

from ..typed import known
from .cases import HEIGHT, TINY, WIDTH, relative, tiny_inputs, tiny_model

EXACT = TINY.model_copy(update={"softmax_bfloat16": False})
"""Without rounding to bfloat16 in softmax attention, so that two ways of running agree to float32."""


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def part(cameras: Cameras, first: int, end: int) -> Cameras:
    return Cameras(
        camera_to_world=cameras.camera_to_world[:, first:end],
        intrinsics=cameras.intrinsics[:, first:end],
        plucker=None if cameras.plucker is None else cameras.plucker[:, :, first:end],
    )


def test_the_full_network_has_the_released_names_and_sizes() -> None:
    with torch.device("meta"):
        model = WorldModel(WorldModelConfig())
    state = model.state_dict()
    # 872 tensors in a released file, of which `pos_embed` is not the network's.
    assert len(state) == 871
    assert sum(p.numel() for p in model.parameters()) == 2_661_800_448
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    assert shapes["x_embedder.proj.weight"] == (2240, 128, 1, 1, 1)
    assert shapes["t_embedder.mlp.0.weight"] == (2240, 256)
    assert shapes["t_block.1.weight"] == (13440, 2240)
    assert shapes["y_embedder.y_proj.fc1.weight"] == (2240, 2304)
    assert shapes["y_embedder.y_embedding"] == (300, 2304)
    assert shapes["plucker_embedder.proj.weight"] == (2240, 48, 1, 1, 1)
    assert shapes["raymap_embedder.proj.weight"] == (2240, 3, 1, 1, 1)
    assert shapes["final_layer.scale_shift_table"] == (2, 2240)
    assert shapes["blocks.0.attn.qkv.weight"] == (6720, 2240)
    assert shapes["blocks.0.attn.conv_k_cam.weight"] == (2240, 1, 4)
    assert shapes["blocks.7.attn.beta_proj.weight"] == (20, 2240)
    assert shapes["blocks.7.attn.recall_gate"] == (1,)
    assert shapes["blocks.19.cross_attn.kv_linear.weight"] == (4480, 2240)
    assert shapes["blocks.19.mlp.inverted_conv.conv.weight"] == (13440, 2240, 1, 1)
    assert shapes["blocks.19.mlp.depth_conv.conv.weight"] == (13440, 1, 3, 3)
    assert shapes["blocks.19.mlp.t_conv.weight"] == (2240, 2240, 3, 1)
    softmax = [i for i in range(20) if f"blocks.{i}.attn.conv_k.weight" not in shapes]
    assert softmax == [3, 7, 11, 15, 19]


@pytest.mark.parametrize(
    ("frames", "starts"), [(1, (0,)), (4, (0,)), (6, (0,)), (7, (0, 4)), (9, (0, 4)), (13, (0, 4, 7, 10))]
)
def test_chunks(frames: int, starts: tuple[int, ...]) -> None:
    assert chunk_starts(frames) == starts


def test_a_minute_is_forty_chunks() -> None:
    assert len(chunk_starts(121)) == 40


def test_one_chunk_is_bidirectional() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    assert torch.equal(model(**inputs, chunk_starts=(0,)), model(**inputs))


@pytest.mark.parametrize("starts", [(0, 4), (0, 1, 2, 3, 4, 5, 6), (0, 3, 6)])
def test_no_chunk_sees_a_later_one(starts: tuple[int, ...]) -> None:
    model, inputs = tiny_model(), tiny_inputs()
    out = model(**inputs, chunk_starts=starts)
    last = starts[-1]
    changed = dict(inputs, latents=inputs["latents"].clone(), times=inputs["times"].clone())
    changed["latents"][:, :, last:] += 1
    changed["times"][:, last:] = 5
    camera = replace(inputs["cameras"], camera_to_world=inputs["cameras"].camera_to_world.clone())
    camera.camera_to_world[:, last:, 0, 3] += 1
    after = model(**dict(changed, cameras=camera), chunk_starts=starts)
    assert torch.equal(out[:, :, :last], after[:, :, :last])
    assert relative(after[:, :, last:], out[:, :, last:]) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("with_cameras", [True, False])
@pytest.mark.parametrize(
    "starts", [(0, 4, 7, 10), pytest.param(tuple(range(13)), marks=pytest.mark.thorough), (0, 5, 6, 12)]
)
def test_streaming_with_all_history_is_chunk_causal(starts: tuple[int, ...], with_cameras: bool) -> None:
    """Each chunk, noisy, after clean ones: equal to one forward pass over the clip up to here."""
    model, inputs = tiny_model(EXACT), tiny_inputs(13)
    if not with_cameras:
        inputs["cameras"] = None
    cache = model.start_stream()
    for first, end in chunk_ranges(13, starts):
        chunk: dict[str, Any] = dict(
            latents=inputs["latents"][:, :, first:end],
            text=inputs["text"],
            text_mask=inputs["text_mask"],
            cameras=part(known(inputs["cameras"]), first, end) if with_cameras else None,
        )
        times = inputs["times"][:, :end].clone()
        times[:, :first] = 0
        whole = dict(
            inputs,
            latents=inputs["latents"][:, :, :end],
            times=times,
            cameras=part(known(inputs["cameras"]), 0, end) if with_cameras else None,
        )
        expected = model(**whole, chunk_starts=tuple(s for s in starts if s < end))[:, :, first:]
        for _ in range(2):  # calls without `save` leave no trace
            found = model.forward_chunk(times=times[:, first:], cache=cache, **chunk)
            assert relative(found, expected) < 1e-5
        model.forward_chunk(times=torch.zeros(2), cache=cache, save=True, **chunk)
    assert cache.next_frame == 13


@pytest.mark.parametrize(
    ("window", "sink", "kept"), [(1, 1, [0, 3]), (2, 0, [2, 3]), (0, 0, []), (1, 2, [0, 1, 3])]
)
def test_windows_hold_what_they_say(window: int, sink: int, kept: list[int]) -> None:
    """Softmax blocks read the sink and the window; frames outside them are forgotten, memory does not grow."""
    starts = (0, 4, 7, 10, 13)
    model, inputs = tiny_model(EXACT), tiny_inputs(16)
    cache = model.start_stream(window_chunks=window, sink_chunks=sink)
    sizes, chunks = [], []
    for first, end in chunk_ranges(16, starts):
        chunks.append((first, end))
        model.forward_chunk(
            inputs["latents"][:, :, first:end],
            torch.zeros(2),
            inputs["text"],
            cache,
            cameras=part(inputs["cameras"], first, end),
            save=True,
        )
        sizes.append(cache.num_bytes)
        if len(chunks) == 4:
            held = [c.key.shape[2] // (HEIGHT * WIDTH) for c in cache.blocks[3].chunks]
            assert held == [chunks[i][1] - chunks[i][0] for i in kept]
    assert sizes[-1] == sizes[-2]
    deltanet = cache.blocks[0]
    assert deltanet.gdn is not None
    assert deltanet.gdn.kv.shape == (2, 2, 24, 24)
    assert deltanet.conv is not None
    assert deltanet.conv.shape == (2, 3, HEIGHT * WIDTH, 48)


def test_a_window_of_everything_is_full_history() -> None:
    model, inputs = tiny_model(EXACT), tiny_inputs(10)
    outs = []
    for window in (None, 2):
        cache = model.start_stream(window_chunks=window)
        *_, last = (
            model.forward_chunk(
                inputs["latents"][:, :, first:end], torch.zeros(2), inputs["text"], cache, save=True
            )
            for first, end in chunk_ranges(10, (0, 4, 7))
        )
        outs.append(last)
    assert torch.equal(*outs)


def test_cameras_for_some_chunks_of_a_stream_only_are_refused() -> None:
    model, inputs = tiny_model(), tiny_inputs(7)
    cache = model.start_stream()
    model.forward_chunk(inputs["latents"][:, :, :4], torch.zeros(2), inputs["text"], cache, save=True)
    with pytest.raises(ValueError, match="all chunks of a stream"):
        model.forward_chunk(
            inputs["latents"][:, :, 4:],
            torch.zeros(2),
            inputs["text"],
            cache,
            cameras=part(inputs["cameras"], 4, 7),
        )


def test_cameras_matter_in_both_ways() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    out = model(**inputs)
    moved = replace(inputs["cameras"], camera_to_world=inputs["cameras"].camera_to_world.flip(1))
    assert relative(model(**dict(inputs, cameras=moved)), out) > 0.01
    assert relative(model(**dict(inputs, cameras=replace(inputs["cameras"], plucker=None))), out) > 0.01
    assert relative(model(**dict(inputs, cameras=None)), out) > 0.01


def test_the_ray_transform_sees_relative_cameras_only() -> None:
    """Another world: queries and keys meet as P P'^-1, so the camera branch does not change."""
    model, inputs = tiny_model(EXACT), tiny_inputs()
    cameras = replace(inputs["cameras"], plucker=None)
    world = torch.linalg.inv(cameras.camera_to_world[:, 3:4])
    moved = replace(cameras, camera_to_world=world @ cameras.camera_to_world)
    out = model(**dict(inputs, cameras=cameras))
    # The discount of beta looks at how far the origin of the world stretches keys: leave it out.
    for block in model.blocks:
        block.get_parameter("attn.beta_proj.bias").fill_(-20)
        block.get_parameter("attn.beta_proj.weight").zero_()
    out, again = (model(**dict(inputs, cameras=c)) for c in (cameras, moved))
    assert relative(again, out) < 1e-4


def test_padding_of_the_text_is_not_read() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    text = inputs["text"].clone()
    text[1, 6:] = 100.0
    assert relative(model(**dict(inputs, text=text)), model(**inputs)) < 1e-6


def test_times_are_cut_to_whole_numbers_and_go_by_frame() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    inputs["times"] = torch.full((2, 7), 500.0)
    out = model(**inputs)
    assert relative(model(**dict(inputs, times=torch.full((2,), 500.9))), out) < 1e-4
    inputs["times"][:, 0] = 0
    assert relative(model(**inputs), out) > 0.01


def test_initial_network_has_silent_cameras_and_open_gates() -> None:
    torch.manual_seed(0)
    model = WorldModel(TINY, Operators(kernels="reference"))
    initialise(model, torch.Generator().manual_seed(0))
    inputs = tiny_inputs()
    assert torch.equal(model(**inputs), model(**dict(inputs, cameras=None)))
    attn: Any = model.blocks[0].attn
    beta, decay = attn.gates(torch.randn(1, 2, 3, 48))
    assert torch.allclose(beta, torch.tensor(0.9933), atol=1e-4)
    assert torch.allclose(decay, torch.tensor(0.99331), atol=1e-5)
    gate = torch.nn.functional.silu(attn.output_gate(torch.randn(5, 48)))
    assert torch.allclose(gate, torch.ones(()), atol=1e-6)
    start_camera_from_main(model)
    assert torch.equal(attn.k_proj_cam.weight, attn.qkv.weight[48:96])
    again = WorldModel(TINY)
    initialise(again, torch.Generator().manual_seed(0))
    start_camera_from_main(again)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("cap", ["softmax", "all"])
def test_options_change_the_camera_branch_only(cap: str) -> None:
    inputs = tiny_inputs()
    model = tiny_model(TINY.model_copy(update={"camera_rms_cap": cap, "camera_softmax_scale": 128**-0.5}))
    assert relative(model(**inputs), tiny_model()(**inputs)) > 1e-3
    inputs["cameras"] = None
    assert torch.equal(model(**inputs), tiny_model()(**inputs))


def test_clips_without_cameras() -> None:
    cameras = without_cameras(2, 7, height=HEIGHT, width=WIDTH)
    assert cameras.intrinsics[0, 0].tolist() == [WIDTH, HEIGHT, WIDTH / 2, HEIGHT / 2]
    out = tiny_model()(**dict(tiny_inputs(), cameras=cameras))
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(latents=torch.zeros(2, 7, 7, 2, 3)), "latents"),
        (dict(latents=torch.zeros(2, 8, 2, 3)), "latents"),
        (dict(times=torch.zeros(2, 1, 7)), "times"),
        (dict(times=torch.zeros(3)), "times"),
        (dict(text=torch.zeros(2, 10, 17)), "text"),
        (dict(text=torch.zeros(2, 1, 10, 16)), "text"),
        (dict(text_mask=torch.ones(2, 9)), "text_mask"),
        (dict(cameras=Cameras(torch.zeros(2, 6, 4, 4), torch.zeros(2, 7, 4))), "camera_to_world"),
        (dict(cameras=Cameras(torch.zeros(2, 7, 4, 4), torch.zeros(2, 7, 3))), "intrinsics"),
        (
            dict(cameras=Cameras(torch.zeros(2, 7, 4, 4), torch.zeros(2, 7, 4), torch.zeros(2, 6, 7, 2, 3))),
            "plucker",
        ),
        (dict(chunk_starts=(0, 7)), "chunk starts"),
        (dict(chunk_starts=(1, 4)), "chunk starts"),
        (dict(chunk_starts=(0, 4, 4)), "chunk starts"),
        (dict(chunk_starts=(0, -3, 4)), "chunk starts"),
    ],
)
def test_what_does_not_fit_is_named(change: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        tiny_model()(**(tiny_inputs() | change))


@pytest.mark.parametrize(
    "sizes", [dict(width=50), dict(width=40, heads=2), dict(depth=0), dict(camera_rms_cap="most")]
)
def test_impossible_sizes_are_refused(sizes: dict) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic names the field
        WorldModelConfig(**{**TINY.model_dump(), **sizes})


@pytest.mark.gpu
@pytest.mark.parametrize("starts", [None, (0, 4)])
def test_kernels_give_the_same_on_a_gpu(starts: tuple[int, ...] | None) -> None:
    def to(x):
        if isinstance(x, Cameras):
            return Cameras(*(known(t).cuda() for t in (x.camera_to_world, x.intrinsics, x.plucker)))
        return x.cuda() if isinstance(x, torch.Tensor) else x

    inputs = {k: to(v) for k, v in tiny_inputs().items()}
    model = tiny_model(EXACT, operators=Operators(kernels="auto")).cuda()
    expected = tiny_model(EXACT)(**tiny_inputs(), chunk_starts=starts)
    assert relative(model(**inputs, chunk_starts=starts).cpu(), expected) < 1e-4
    half = model.bfloat16()(**inputs, chunk_starts=starts)
    assert relative(half.cpu(), expected) < 0.05


def test_chunk_ranges() -> None:
    assert chunk_ranges(7, (0, 4)) == [(0, 4), (4, 7)]
    assert list(itertools.chain(*chunk_ranges(3, None))) == [0, 3]


def test_geometry_stands_for_cameras() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    cameras = inputs.pop("cameras")
    with torch.no_grad():
        geometry = model.geometry(inputs["latents"], cameras)
        for starts in (None, (0, 4)):
            expected = model(**inputs, cameras=cameras, chunk_starts=starts)
            assert torch.equal(model(**inputs, cameras=geometry, chunk_starts=starts), expected)
        none = model.geometry(inputs["latents"], None)
        assert torch.equal(model(**inputs, cameras=none), model(**inputs))
    other = tiny_inputs(frames=5)
    other["cameras"] = geometry
    with pytest.raises(ValueError, match="geometry's rope"):
        model(**other)


def test_a_long_clip_goes_through_the_feed_forward_network_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one frame and of several, batches included; with gradients it goes through whole."""
    model, inputs = tiny_model(TINY.model_copy(update={"softmax_bfloat16": False})), tiny_inputs()
    expected = model(**inputs)
    for tokens in (1, 20):
        monkeypatch.setattr("theodolite.model.blocks._HIDDEN_TOKENS", tokens)
        assert relative(model(**inputs), expected) < 1e-6
    with torch.enable_grad():
        model(**inputs).sum().backward()


def test_ray_map_through_weights_or_through_tokens() -> None:
    """Where a block's projection is no plain linear layer, as with adapters, tokens go through it themselves."""

    class Adapted(torch.nn.Linear):
        pass

    model, inputs = tiny_model(), tiny_inputs()
    expected = model(**inputs)
    for block in model.blocks:
        cast(Any, block).plucker_proj.__class__ = Adapted
    assert relative(model(**inputs), expected) < 2e-4  # softmax rounds to bfloat16
    nothing = replace(inputs["cameras"], plucker=None)
    assert relative(model(**{**inputs, "cameras": nothing}), expected) > 1e-2
