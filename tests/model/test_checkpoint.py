"""Weights in the layouts of released files: read strictly, written back as they were."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from theodolite.model.checkpoint import Layout, load_world_model, read_config, save_world_model
from theodolite.model.network import WorldModel

from .cases import TINY, relative, tiny_inputs, tiny_model


@pytest.fixture
def released() -> dict[str, torch.Tensor]:
    """A file's tensors: the network's, and the table that no model reads."""
    state = {"pos_embed": torch.randn(1, 4, 48)}
    return state | {k: v.clone() for k, v in tiny_model().state_dict().items()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bare(state, path):
    with (path / "model.pt").open(
        "wb"
    ) as file:  # torch names the folder inside after the file, if it knows it
        torch.save(state, file)
    return path / "model.pt"


def renamed(state, path):
    from collections import OrderedDict

    ordered = OrderedDict(state)
    vars(ordered)["_metadata"] = OrderedDict({"": {"version": 1}})
    torch.save(ordered, path / "epoch_1_step_2.pth")
    return (path / "epoch_1_step_2.pth").rename(path / "model.pth")


def wrapped(state, path):
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path / "model.pth")
    return path / "model.pth"


def student(state, path):
    content = {
        "generator": {f"model.{k}": v for k, v in state.items()},
        "step": 3700,
        "denoising_step_list": [1000, 0],
    }
    torch.save(content, path / "model.pt")
    return path / "model.pt"


def sharded_ranks(state, path):
    named = {k.replace("blocks.", "blocks._checkpoint_wrapped_module.", 1): v for k, v in state.items()}
    torch.save({f"_fsdp_wrapped_module.{k}": v for k, v in named.items()}, path / "model.pt")
    return path / "model.pt"


def half_precision(state, path):
    mixed = {k: v.bfloat16() if "attn" in k else v for k, v in state.items()}
    save_file(mixed, path / "model.safetensors", metadata={"format": "pt"})
    return path / "model.safetensors"


def diffusers_names(state):
    def theirs(name):
        return name.replace("t_embedder.mlp.0", "t_embedder.linear_1").replace(
            "t_embedder.mlp.2", "t_embedder.linear_2"
        )

    return {theirs(k): v for k, v in state.items() if k not in ("pos_embed", "y_embedder.y_embedding")}


def diffusers(state, path):
    save_file(diffusers_names(state), path / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return path / "diffusion_pytorch_model.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", [bare, renamed, wrapped, student, sharded_ranks, half_precision, diffusers]
)
def test_every_layout_is_read_and_written_back_to_the_byte(layout, released, tmp_path: Path) -> None:
    source = layout(released, tmp_path)
    model, found = load_world_model(source)
    assert model.config == TINY.model_copy(update={"text_tokens": 300 if layout is diffusers else 10})
    assert found.has_null_caption == (layout is not diffusers)
    tolerance = 0.02 if layout is half_precision else 1e-6
    with torch.no_grad():
        out = model.float()(**tiny_inputs())
        assert relative(out, tiny_model()(**tiny_inputs())) < tolerance
    copy = tmp_path / "copy" / source.name
    copy.parent.mkdir()
    save_world_model(load_world_model(source)[0], copy, found)
    assert digest(copy) == digest(source)
    assert [p.name for p in copy.parent.iterdir()] == [source.name]


@pytest.mark.slow
def test_shards_of_a_diffusers_folder(released, tmp_path: Path) -> None:
    state = diffusers_names(released)
    names = sorted(state)
    shards = {"a-00001-of-00002.safetensors": names[:90], "a-00002-of-00002.safetensors": names[90:]}
    for shard, held in shards.items():
        save_file({k: state[k] for k in held}, tmp_path / shard)
    index = tmp_path / "a.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {k: s for s, held in shards.items() for k in held}}))
    model, _ = load_world_model(tmp_path)
    assert torch.equal(model.get_parameter("blocks.2.attn.qkv.weight"), released["blocks.2.attn.qkv.weight"])
    (tmp_path / "a-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="a-00002-of-00002"):
        load_world_model(tmp_path)
    index.write_text(json.dumps({"weight_map": {"x": "../../etc/passwd"}}))
    with pytest.raises(ValueError, match="does not lie beside it"):
        load_world_model(tmp_path)


def test_options_types_and_what_is_trained(released, tmp_path: Path) -> None:
    source = bare(released, tmp_path)
    model, _ = load_world_model(source, options={"camera_rms_cap": "all"}, dtype=torch.bfloat16)
    assert model.config.camera_rms_cap == "all"
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training
    idle = {k for k, p in model.named_parameters() if not p.requires_grad}
    assert idle == {k for k, p in WorldModel(TINY).named_parameters() if not p.requires_grad}
    assert "blocks.3.attn.A_log" in idle
    assert "raymap_embedder.proj.weight" in idle
    assert "blocks.0.attn.A_log" not in idle
    with pytest.raises(ValueError, match="camera_cap"):
        load_world_model(source, options={"camera_cap": "all"})


def broken(state: dict, kind: str) -> dict:
    state = dict(state)
    if kind == "missing":
        del state["blocks.1.mlp.t_conv.weight"]
    elif kind == "unknown":
        state["blocks.1.attn.extra.weight"] = torch.zeros(2)
    elif kind == "shape":
        state["blocks.1.mlp.t_conv.weight"] = torch.zeros(48, 48, 5, 1)
    elif kind == "nan":
        state["blocks.1.mlp.t_conv.weight"] = torch.full((48, 48, 3, 1), float("nan"))
    elif kind == "another network":
        state = {"encoder.weight": torch.zeros(3, 3), "pos_embed": torch.zeros(1)}
    elif kind == "twice":
        state["module.pos_embed"] = torch.zeros(1, 4, 48)
    elif kind == "integers":
        state["blocks.1.mlp.t_conv.weight"] = torch.zeros(48, 48, 3, 1, dtype=torch.int64)
    return state


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("missing", "missing blocks.1.mlp.t_conv.weight"),
        ("unknown", "unknown blocks.1.attn.extra.weight"),
        ("shape", "t_conv.weight is .48, 48, 5, 1., expected .48, 48, 3, 1."),
        ("nan", "t_conv.weight holds NaN"),
        ("another network", "no weights of the world model"),
        ("twice", "pos_embed' twice"),
        ("integers", "t_conv.weight holds"),
    ],
)
def test_what_does_not_fit_is_named(kind: str, named: str, released, tmp_path: Path) -> None:
    source = bare(broken(released, kind), tmp_path)
    with pytest.raises(ValueError, match=named) as error:
        load_world_model(source)
    assert str(source) in str(error.value)


def test_damaged_and_missing_files(released, tmp_path: Path) -> None:
    for layout in (bare, half_precision):
        source = layout(released, tmp_path)
        content = source.read_bytes()
        source.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=str(source)):
            load_world_model(source)
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.pt"):
        load_world_model(tmp_path / "text.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="no state dict"):
        load_world_model(tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        load_world_model(tmp_path / "none.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        load_world_model(tmp_path / "empty")


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt"):
        load_world_model(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "Git LFS pointer in place of",
        ),
        (b"<!DOCTYPE html><html>Not found</html>", "a web page; the download went wrong"),
        (b"", "the file is empty"),
    ],
)
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_files_that_are_no_weights_are_named(name: str, content: bytes, named: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} .*{named}"):
        load_world_model(tmp_path / name)


def test_torch_files_of_the_old_kind(released, tmp_path: Path) -> None:
    """Before torch 1.6 they were no archives and cannot be mapped."""
    old = tmp_path / "old.pt"
    torch.save({"state_dict": released, "step": 3}, old, _use_new_zipfile_serialization=False)
    model, layout = load_world_model(old)
    assert all(torch.equal(released[k], v) for k, v in model.state_dict().items())
    save_world_model(model, tmp_path / "new.pt", layout)
    assert torch.equal(
        load_world_model(tmp_path / "new.pt")[0].x_embedder.proj.weight, released["x_embedder.proj.weight"]
    )


def test_a_failed_write_leaves_the_old_file(released, tmp_path: Path, monkeypatch) -> None:
    source = bare(released, tmp_path)
    before = digest(source)
    model, layout = load_world_model(source)

    def failing(error: Exception):
        def write(*_args, **_options):
            raise error

        return write

    monkeypatch.setattr(torch, "save", failing(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save_world_model(model, source, layout)
    # As torch and safetensors tell of it.
    monkeypatch.setattr(torch, "save", failing(RuntimeError("unexpected pos 64 vs 0")))
    with pytest.raises(OSError, match=r"weights cannot be written \(No space left.*model.pt"):
        save_world_model(model, source, layout)
    told = SafetensorError("Error while serializing: I/O error: Read-only (os error 30)")
    monkeypatch.setattr("safetensors.torch.save_file", failing(told))
    names = tuple((k, k) for k in model.state_dict())
    with pytest.raises(OSError, match=r"weights cannot be written \(Read-only file system"):
        save_world_model(model, tmp_path / "w.safetensors", Layout(file="safetensors", names=names))
    assert digest(source) == before
    assert [p.name for p in tmp_path.iterdir()] == [source.name]
    with pytest.raises(ValueError, match="suffix"):
        save_world_model(model, tmp_path / "model.safetensors", layout)


def test_what_a_training_left_beside_its_weights_is_told_from_them(tmp_path: Path) -> None:
    """Its folder, which holds weights further down, and a LoRA, which changes others."""
    written = tmp_path / "run" / "weights" / "step-00000010.safetensors"
    written.parent.mkdir(parents=True)
    save_file({"x_embedder.proj.weight": torch.zeros(2)}, written)
    with pytest.raises(
        ValueError, match=f"is a training's folder; name weights of it, the last are {written}"
    ):
        load_world_model(written.parents[1])
    adapter = tmp_path / "lora" / "adapter_model.safetensors"
    adapter.parent.mkdir()
    save_file({"base_model.model.blocks.0.attn.qkv.lora_A.weight": torch.zeros(2, 3)}, adapter)
    with pytest.raises(ValueError, match="lora: is a LoRA, which changes weights that lie elsewhere"):
        load_world_model(adapter.parent)


def test_sizes_whose_quotient_is_rounded_are_read() -> None:
    """61 / 56 in floating point times 56 is below 61."""
    for hidden, width in ((61, 56), (230, 112), (144, 48), (6720, 2240)):
        config = TINY.model_copy(
            update=dict(depth=1, width=width, heads=width // 8, ffn_ratio=(hidden + 0.5) / width)
        )
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in WorldModel(config).state_dict().items()}
        assert read_config(shapes, origin="file").ffn_width == hidden
