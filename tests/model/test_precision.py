"""Networks in fewer bits: how far their outputs move, what is converted, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from theodolite.model import scaled_layers
from theodolite.model.checkpoint import save_world_model
from theodolite.model.context import Cameras
from theodolite.model.network import WorldModel
from theodolite.model.precision import ALL_SCOPES, Precision, check_precision, set_precision

from ..typed import wrong
from .cases import relative, tiny_inputs, tiny_model


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    with torch.no_grad():
        return tiny_model()(**tiny_inputs())


@torch.no_grad()
def output(precision: Precision, **options: Any) -> tuple[torch.Tensor, WorldModel]:
    model = tiny_model()
    set_precision(model, precision, backend="reference", **options)
    return model(**tiny_inputs()), model


@pytest.mark.parametrize(
    ("precision", "scopes", "attention", "least", "most"),
    [
        ("bf16", ("qkv",), "fp8", 1e-4, 0.005),
        ("fp8", ("qkv",), "input", 1e-3, 0.01),
        ("fp8", ALL_SCOPES, "fp8", 1e-2, 0.08),
        ("fp8-weights", ALL_SCOPES, "input", 1e-2, 0.06),
        ("int8-weights", ALL_SCOPES, "input", 1e-3, 0.015),
    ],
)
def test_error_against_the_network_as_loaded(
    precision: Precision, scopes: tuple, attention: str, least: float, most: float, expected: torch.Tensor
) -> None:
    found, _ = output(precision, scopes=scopes, attention=attention)
    assert least < relative(found, expected) < most


def test_bf16_changes_nothing(expected: torch.Tensor) -> None:
    found, model = output("bf16", scopes=ALL_SCOPES)
    assert torch.equal(found, expected)
    assert model.converted is None


def test_report_names_what_was_converted_and_nothing_else_was() -> None:
    model = tiny_model()
    before = dict(model.named_modules())
    report = set_precision(model, "fp8", scopes=("cross", "qkv"))
    changed = {name for name, module in model.named_modules() if before.get(name) is not module}
    assert changed == set(report.layers)
    assert len(report.layers) == 4 * model.config.depth
    assert report.weight_bytes_after < report.weight_bytes_before
    assert json.loads(json.dumps(report.record()))["layers"] == len(report.layers)


def test_everything_named_is_smaller_and_the_rest_is_as_it_was() -> None:
    model = tiny_model()
    set_precision(model, "int8-weights", scopes=ALL_SCOPES)
    wide = {name for name, p in model.named_parameters() if p.ndim > 1 and name.endswith("weight")}
    assert not any("attn.qkv" in name or "inverted_conv" in name for name in wide)
    assert isinstance(model.get_submodule("blocks.0.mlp.t_conv"), scaled_layers.NarrowWeights)
    for kept in ("x_embedder.proj.weight", "final_layer.linear.weight", "blocks.0.attn.beta_proj.weight"):
        assert kept in wide


def test_an_activation_is_rounded_once_for_all_that_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block has one for queries, keys, values and gates of both branches, one for each other product's input."""
    model = tiny_model()
    set_precision(model, "fp8", scopes=ALL_SCOPES, backend="reference")
    seen = []
    true = scaled_layers.round_rows
    monkeypatch.setattr(scaled_layers, "round_rows", lambda x, **kw: seen.append(x.shape) or true(x, **kw))
    with torch.no_grad():
        model(**tiny_inputs())
    # One of attention's two projections; text, the input of cross attention's projection; two of the feed-forward
    # network. All others are rounded where they are made.
    assert len(seen) == 5 * model.config.depth


def test_streaming_and_chunks_run_in_fp8(expected: torch.Tensor) -> None:
    inputs = tiny_inputs()
    model = tiny_model()
    inputs["times"][:, :4] = 0
    with torch.no_grad():
        exact = model(**inputs, chunk_starts=(0, 4))
        set_precision(model, "fp8", scopes=ALL_SCOPES, attention="fp8", backend="reference")
        found = model(**inputs, chunk_starts=(0, 4))
        assert relative(found, exact) < 0.08
        cache = model.start_stream()
        for first, end in ((0, 4), (4, 7)):
            cameras = inputs["cameras"]
            part = model.forward_chunk(
                inputs["latents"][:, :, first:end],
                inputs["times"][:, first:end],
                inputs["text"],
                cache,
                text_mask=inputs["text_mask"],
                cameras=Cameras(
                    cameras.camera_to_world[:, first:end],
                    cameras.intrinsics[:, first:end],
                    cameras.plucker[:, :, first:end],
                ),
                save=True,
            )
            # Attention's scales are those of the chunks read, so that roundings differ.
            assert relative(part, found[:, :, first:end]) < 0.05


@pytest.mark.parametrize(
    ("precision", "options", "named"),
    [
        ("fp4", {}, "precision 'fp4'"),
        ("fp8", {"scopes": ("qvk",)}, "scope 'qvk'"),
        ("fp8", {"scopes": ()}, "scopes are empty"),
        ("fp8", {"attention": "int8"}, "attention 'int8'"),
        ("nvfp4", {}, "needs a Blackwell GPU"),
    ],
)
def test_what_does_not_exist_or_cannot_run_is_named(precision: str, options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        set_precision(tiny_model(), wrong(precision), **options)


def test_refusals_need_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some H100")
    with pytest.raises(ValueError, match="Some H100: use fp8"):
        check_precision("nvfp4", device="cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    monkeypatch.setattr("theodolite.model.precision.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install theodolite\[nvfp4\]"):
        check_precision("nvfp4", device="cuda")


def test_a_converted_model_is_not_converted_again_nor_saved_nor_trained(tmp_path) -> None:
    model = tiny_model()
    set_precision(model, "fp8")
    with pytest.raises(ValueError, match="converted to fp8 already"):
        set_precision(model, "int8-weights")
    with pytest.raises(ValueError, match="converted to fp8"):
        save_world_model(model, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="no backward"):
        model(**tiny_inputs())


def test_weights_that_are_not_finite_are_named_before_anything_changes() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("blocks.2.attn.qkv.weight")[3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"blocks\.2\.attn\.qkv"):
        set_precision(model, "fp8")
    assert model.converted is None


@pytest.mark.parametrize("precision", ["fp8", "int8-weights"])
def test_a_converted_model_moves_but_does_not_change_its_type(precision: Precision) -> None:
    model = tiny_model()
    set_precision(model, precision)
    model.to("cpu")
    with pytest.raises(ValueError, match="before set_precision"):
        model.to(torch.bfloat16)
    with pytest.raises(ValueError, match="before set_precision"):
        model.half()
