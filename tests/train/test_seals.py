"""One flipped bit in any file of a checkpoint or of weights is found where they are read, and named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from theodolite.model.checkpoint import Layout, load_world_model, save_world_model
from theodolite.model.context import Operators
from theodolite.model.lora import merge_lora
from theodolite.model.network import WorldModel
from theodolite.model.seals import digests_of
from theodolite.model.weight_files import STAGE
from theodolite.train.seals import SEAL
from theodolite.train.state import StatePart, is_sealed, load_checkpoint, read_progress, save_checkpoint
from torch import nn

from .encoded_clips import MODEL

GO_BACK = "without that folder --resume goes on from the checkpoint before it"


def flip(path: Path, place: int, bit: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def part() -> StatePart:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 3))
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 16)).sum().backward()
    optimiser.step()
    return StatePart(model, optimiser)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path, 7, part().tensors(), {"step": 7, "taken": 14, "guard": {"norms": [0.1]}})


def tensors_of_a_new_run(path: Path) -> dict[str, torch.Tensor]:
    fresh = part()
    for tensor in fresh.tensors().values():
        tensor.zero_()
    load_checkpoint(path, [fresh])
    return fresh.tensors()


def test_a_checkpoint_s_flipped_bit_names_file_and_tensor(saved: Path) -> None:
    found = tensors_of_a_new_run(saved)
    assert all(torch.equal(found[name], tensor) for name, tensor in part().tensors().items())
    places = pickle.loads((saved / ".metadata").read_bytes()).storage_data
    (place,) = (p for index, p in places.items() if index.fqn == "optimiser.1.weight.exp_avg")
    file = saved / place.relative_path
    weights = found["optimiser.1.weight.exp_avg"].numpy().tobytes()
    at = file.read_bytes().index(weights, place.offset)
    flip(file, at + 5)
    with pytest.raises(
        ValueError, match=rf"{file}: tensor optimiser\.1\.weight\.exp_avg: damaged, .*; {GO_BACK}"
    ):
        tensors_of_a_new_run(saved)


def test_no_bit_of_a_checkpoint_s_tensors_changes_what_is_loaded(saved: Path) -> None:
    (file,) = saved.glob("*.distcp")
    whole, expected = file.read_bytes(), part().tensors()
    refused = []
    for place in range(0, len(whole), 487):
        flip(file, place, place % 8)
        try:
            found = tensors_of_a_new_run(saved)
        except ValueError as error:
            refused.append(str(error))
        else:  # where an archive keeps nothing
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        file.write_bytes(whole)
    assert len(refused) > 10
    assert all(str(saved) in why and GO_BACK in why for why in refused)


@pytest.mark.parametrize("name", [".metadata", "progress.json"])
def test_a_flipped_bit_beside_the_tensors_is_found(name: str, saved: Path) -> None:
    path = saved / name
    whole = path.read_bytes()
    # A number in place of another: 14 samples become 15, a tensor's piece lies elsewhere.
    place = whole.index(b"14,") + 1 if name == "progress.json" else len(whole) * 3 // 4
    flip(path, place, 0)
    with pytest.raises(ValueError, match=rf"{path}: is damaged \(it differs from its digest\); {GO_BACK}"):
        tensors_of_a_new_run(saved)


def test_checkpoints_of_earlier_versions_load_and_are_known(saved: Path) -> None:
    assert is_sealed(saved)
    before = {k: v for k, v in read_progress(saved).items() if k != SEAL}
    (saved / "progress.json").write_text(json.dumps(before))
    assert not is_sealed(saved)
    found = tensors_of_a_new_run(saved)
    assert all(torch.equal(found[name], tensor) for name, tensor in part().tensors().items())


def test_exported_weights_with_a_flipped_bit_are_not_read(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        model = WorldModel(MODEL, Operators())
    names = tuple((k, k) for k in model.state_dict())
    path = tmp_path / "step-00000001.safetensors"
    save_world_model(model, path, Layout(file="safetensors", names=names, metadata={STAGE: "stage1"}))
    again, layout = load_world_model(path)
    # Written back with other weights, the digests are theirs.
    nn.init.ones_(next(again.parameters()))
    save_world_model(again, tmp_path / "other.safetensors", layout)
    load_world_model(tmp_path / "other.safetensors")
    weights = model.state_dict()["blocks.1.attn.qkv.weight"].numpy().tobytes()
    flip(path, path.read_bytes().index(weights) + 1, 0)
    with pytest.raises(ValueError, match=rf"{path}: is damaged: blocks\.1\.attn\.qkv\.weight differ"):
        load_world_model(path)


def test_a_lora_with_a_flipped_bit_is_not_merged(tmp_path: Path) -> None:
    model = WorldModel(MODEL, Operators())
    width = MODEL.width
    halves = {
        "base_model.model.blocks.0.attn.proj.lora_A.weight": torch.randn(2, width),
        "base_model.model.blocks.0.attn.proj.lora_B.weight": torch.randn(width, 2),
    }
    file = tmp_path / "adapter_model.safetensors"
    save_file(halves, file, metadata=digests_of(halves))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    assert merge_lora(model, tmp_path).layers == 1
    flip(file, len(file.read_bytes()) - 3, 0)
    with pytest.raises(ValueError, match=r"is damaged: .*lora_[AB]\.weight differ from the digests"):
        merge_lora(model, tmp_path)
