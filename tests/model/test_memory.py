"""Memory of a chain, planned before anything is loaded: weights to the byte, and what is said when there is no room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from theodolite.model.config import WorldModelConfig
from theodolite.model.memory import (
    RELEASED_SIZES,
    SPARE_BYTES,
    Networks,
    PartSize,
    VideoShape,
    check_memory,
    converted_size,
    measured_size,
    plan_memory,
    room_for_blocks,
)
from theodolite.model.network import WorldModel
from theodolite.model.precision import ALL_SCOPES, Precision, Scope, set_precision
from theodolite.model.residence import Offload
from torch import nn

from ..typed import wrong

MINUTE = VideoShape(961)
STREAM = VideoShape(961, mode="distilled", refiner_block_frames=3)


def test_the_released_world_model_to_the_weight() -> None:
    with torch.device("meta"):
        model = WorldModel(WorldModelConfig())
    assert sum(p.numel() for p in model.parameters()) == RELEASED_SIZES["world_model"].values
    assert measured_size(model).values - RELEASED_SIZES["world_model"].values < 10**6  # buffers


@pytest.mark.slow
def test_the_released_neighbours_to_the_weight() -> None:
    """Sizes and tensors are those that users report of the files: 18.9 G values in 3510 tensors for LTX-2, 184 tensors
    for the video autoencoder, 5,228,683,776 bytes for Gemma-2-2b-it."""
    pytest.importorskip("diffusers", reason="needs theodolite[generate]")
    import transformers
    from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video
    from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
    from theodolite.model.autoencoder import VideoAutoencoder
    from theodolite.model.refiner import Refiner, _kind
    from theodolite.model.stand_ins import GEMMA_3_12B
    from theodolite.model.text import RefinerTextEncoder, TextEncoder

    with torch.device("meta"):
        whole, video = LTX2VideoTransformer3DModel(rope_type="split"), _kind()(rope_type="split")
        autoencoder = AutoencoderKLLTX2Video()
        language = transformers.Gemma3TextModel(transformers.Gemma3TextConfig(**dict[str, Any](GEMMA_3_12B)))
        connectors = LTX2TextConnectors(rope_type="split")
        small = transformers.Gemma2Model(transformers.Gemma2Config())

    def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
        return {k: tuple(v.shape) for k, v in module.state_dict().items()}

    assert shapes(whole) == shapes(video)
    assert (len(shapes(whole)), sum(p.numel() for p in whole.parameters())) == (3510, 18_876_174_592)
    assert len(shapes(autoencoder)) == 184
    assert tuple(autoencoder.decoder.conv_out.conv.weight.shape) == (48, 128, 3, 3, 3)
    assert 2 * sum(p.numel() for p in small.parameters()) == 5_228_683_776
    parts = {
        "refiner": Refiner(video),
        "autoencoder": VideoAutoencoder(autoencoder),
        "refiner_text_encoder": RefinerTextEncoder(language, connectors, None),
        "text_encoder": TextEncoder(small, None, instruction=""),
    }
    for name, part in parts.items():
        found, said = measured_size(part), RELEASED_SIZES[name]
        assert abs(found.values - said.values) < 1000, name  # small tables of rotations
        if said.block_values:
            assert (found.block_values, found.largest_block) == (said.block_values, said.largest_block)
    assert parts["autoencoder"].temporal_stride == 8
    assert parts["autoencoder"].spatial_stride == 32


def test_policies_need_less_in_their_order() -> None:
    for shape in (MINUTE, STREAM):
        peaks = [plan_memory(shape, policy).peak_bytes for policy in get_args(Offload)]
        assert peaks[0] > 1.5 * peaks[1] > 3 * peaks[2]
        assert plan_memory(shape, "blocks", resident_bytes=10**10).peak_bytes > peaks[2]
    weights = sum(s.num_bytes for s in RELEASED_SIZES.values())
    last = plan_memory(MINUTE, "none").stages[-1]
    assert plan_memory(MINUTE, "none").weights_bytes(last) == weights


def test_a_card_of_24_gb_holds_a_minute_block_by_block() -> None:
    for shape in (MINUTE, STREAM):
        check_memory(plan_memory(shape, "blocks"), 24_000_000_000)
        with pytest.raises(ValueError, match=r"What would fit: --offload blocks \(1\d\.\d GB\)"):
            check_memory(plan_memory(shape, "none"), 24_000_000_000)


def test_blocks_use_the_room_that_is_left() -> None:
    for shape in (MINUTE, STREAM):
        plan = plan_memory(shape, "blocks")
        room = room_for_blocks(plan, 24_000_000_000)
        assert 10**9 < room < 20 * 10**9
        assert plan_memory(shape, "blocks", resident_bytes=room).fits(24_000_000_000)
        assert room_for_blocks(plan, 10_000_000_000) == 0
        assert room_for_blocks(plan_memory(shape, "idle"), 80_000_000_000) == 0


def test_a_stream_needs_no_more_for_longer_clips() -> None:
    short, long = (plan_memory(replace(STREAM, num_frames=n), "idle").peak_bytes for n in (241, 2881))
    assert long - short < 0.01 * short + 200_000_000


def test_what_would_fit_fits() -> None:
    with pytest.raises(ValueError, match=r"while refining runs .* 12\.0 GB may be used") as error:
        check_memory(plan_memory(MINUTE, "blocks"), 12_000_000_000)
    seconds = float(str(error.value).split("--seconds ")[1].split()[0])
    shorter = replace(MINUTE, num_frames=int(16 * seconds) + 1)
    assert plan_memory(shorter, "blocks").fits(12_000_000_000)
    longer = replace(MINUTE, num_frames=int(16 * seconds) + 9)
    assert not plan_memory(longer, "blocks").fits(12_000_000_000)
    with pytest.raises(ValueError, match="--no-refiner"):
        check_memory(plan_memory(STREAM, "blocks"), 14_000_000_000)
    with pytest.raises(ValueError, match="nothing of this size"):
        check_memory(plan_memory(MINUTE, "blocks"), 2_000_000_000)


def test_rows_say_what_is_where() -> None:
    plan = plan_memory(replace(MINUTE, refine=False), "idle")
    rows = {row["stage"]: row for row in plan.rows()}
    assert list(rows) == ["text", "image", "denoising", "decoding"]
    assert rows["denoising"]["weights"] == "5.3"
    assert float(rows["denoising"]["all"]) == pytest.approx(plan.stage_bytes(plan.stages[2]) / 1e9, abs=0.05)
    assert plan.fits(plan.peak_bytes + SPARE_BYTES)
    assert not plan.fits(plan.peak_bytes + SPARE_BYTES - 1)


def test_sizes_of_blocks() -> None:
    size = PartSize(100, 80, 20, bytes_per_value=2)
    assert size.on_device("none") == size.on_device("idle") == 200
    assert size.on_device("blocks") == 40 + 80
    assert size.on_device("blocks", resident_bytes=50) == 40 + 40 + 80
    assert size.on_device("blocks", resident_bytes=10**6) == 200
    assert PartSize(100).on_device("blocks") == 200


def test_other_networks_and_bad_input() -> None:
    tiny = Networks(world_model=WorldModelConfig(depth=2, width=64, heads=2))
    assert plan_memory(MINUTE, "idle", networks=tiny).stages[3].working_bytes < 10**9
    with pytest.raises(ValueError, match="use none, idle, blocks"):
        plan_memory(MINUTE, wrong("cpu"))
    with pytest.raises(ValueError, match="8 k \\+ 1"):
        plan_memory(VideoShape(960), "none")
    with pytest.raises(ValueError, match="no size is given for refiner"):
        plan_memory(MINUTE, "none", sizes={k: v for k, v in RELEASED_SIZES.items() if k != "refiner"})


def test_low_precision_is_planned_to_the_byte() -> None:
    config = WorldModelConfig(depth=4, width=64, heads=2, latent_channels=8, text_width=16, text_tokens=10)
    cases: list[tuple[Precision, Sequence[Scope]]] = [
        ("fp8", ALL_SCOPES),
        ("int8-weights", ("qkv", "ffn")),
        ("fp8-weights", ("camera",)),
    ]
    for precision, scopes in cases:
        report = set_precision(WorldModel(config).bfloat16(), precision, scopes=scopes)
        size = converted_size(config, precision, scopes=scopes)
        assert size.num_bytes == report.weight_bytes_after
    whole = converted_size(WorldModelConfig(), "int8-weights", scopes=ALL_SCOPES)
    assert whole.num_bytes < 0.55 * RELEASED_SIZES["world_model"].num_bytes
    assert converted_size(WorldModelConfig(), "nvfp4", scopes=ALL_SCOPES).num_bytes < 0.35 * 5.4e9


def test_what_is_converted_on_the_device_comes_there_whole() -> None:
    small = VideoShape(25, height=64, width=64, refine=False)
    sizes = {**RELEASED_SIZES, "world_model": converted_size(WorldModelConfig(), "fp8", scopes=ALL_SCOPES)}
    plan = plan_memory(small, "idle", sizes=sizes, converted_on_device=True)
    stage = plan.stages[0]
    assert stage.name == "converting"
    assert abs(plan.stage_bytes(stage) - RELEASED_SIZES["world_model"].num_bytes) < 10
    assert plan_memory(small, "idle", sizes=sizes).stages[0].name == "text"
