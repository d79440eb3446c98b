"""Files of the networks: another size, another variant, truncated, or no checkpoint at all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from theodolite.annotate.geometry.choose import check_estimators
from theodolite.annotate.geometry.config import GeometryConfig
from theodolite.annotate.geometry.pi3x import TINY
from theodolite.annotate.networks.checkpoint import check_moge2, check_pi3x, load_moge2, load_pi3x
from theodolite.annotate.networks.moge2 import MoGe2, MoGe2Size
from theodolite.annotate.networks.pi3x import Pi3X
from theodolite.dataset import weights


def tiny_pi3x(path: Path) -> Path:
    save_file({k: v.contiguous() for k, v in Pi3X(TINY, conditioning=False).state_dict().items()}, path)
    return path


def test_a_checkpoint_of_another_size_is_refused_by_its_header(tmp_path, monkeypatch):
    file = tiny_pi3x(tmp_path / "model.safetensors")
    monkeypatch.setattr(weights, "file_digest", lambda path: pytest.fail("its gigabytes are read"))
    config = GeometryConfig.model_validate({"sequence": "pi3x", "device": "cpu", "pi3x": {"path": file}})
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit Pi3X: missing .*more"):
        check_estimators(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", ": it is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", ": it is a web page"),
        (b"\0" * 100, ": it begins with zeros"),
        (b"PK\3\4 something else", ", or it is damaged"),
    ],
)
def test_what_is_no_checkpoint_is_said(tmp_path, content, message):
    for name, check in (("a.safetensors", check_pi3x), ("a.pt", lambda p: check_moge2(p, "vits-normal"))):
        path = tmp_path / name
        path.write_bytes(content)
        expected = re.escape(message)
        with pytest.raises(ValueError, match=rf"{name} is no (safetensors file|checkpoint){expected}"):
            check(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "model_config has no table 'encoder'"),
        ({"encoder": {"backbone": "dinov2_vitx14"}}, "backbone 'dinov2_vitx14' is unknown"),
        ({"encoder": {"backbone": "dinov2_vits14", "dim_out": 384}, "remap_output": "exp"}, "lacks 'inter"),
    ],
)
def test_a_checkpoint_of_an_unknown_kind_is_named(tmp_path, config, message):
    path = tmp_path / "odd.pt"
    torch.save({"model_config": config, "model": {"a": torch.zeros(3)}}, path)
    for read in (lambda p: check_moge2(p, "vits-normal"), load_moge2):
        with pytest.raises(
            ValueError, match=rf"odd\.pt is no MoGe-2 checkpoint of a known kind: .*{message}"
        ):
            read(path)


@pytest.mark.slow
def test_truncated_checkpoints_are_named(tmp_path):
    whole = tiny_pi3x(tmp_path / "whole.safetensors").read_bytes()
    for share in (0.2, 0.5, 0.999):
        short = tmp_path / "short.safetensors"
        short.write_bytes(whole[: int(share * len(whole))])
        for read in (check_pi3x, load_pi3x):
            with pytest.raises(ValueError, match=r"short\.safetensors is (truncated|no safetensors file)"):
                read(short)
    (tmp_path / "long.safetensors").write_bytes(whole + b"more")
    with pytest.raises(ValueError, match="longer than its header says"):
        check_pi3x(tmp_path / "long.safetensors")
    torch.save({"model_config": {}, "model": {"a": torch.zeros(1000)}}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    for share in (0.2, 0.5, 0.999):
        short = tmp_path / "short.pt"
        short.write_bytes(whole[: int(share * len(whole))])
        for read in (lambda p: check_moge2(p, "vits-normal"), load_moge2):
            with pytest.raises(ValueError, match=r"short\.pt is no checkpoint"):
                read(short)


@pytest.mark.slow
def test_another_variant_is_no_stand_in_for_the_named_one(tmp_path):
    """Sizes are read from the file, so one of another size would load; rows would bear the wrong name."""
    size = MoGe2Size.released("vits-normal")

    def stack(s):
        return {
            "dim_in": list(s.dim_in), "dim_res_blocks": list(s.dim_res_blocks), "dim_out": list(s.dim_out),
            "num_res_blocks": list(s.num_res_blocks), "res_block_in_norm": "none", "res_block_hidden_norm": "none",
            "resamplers": ["conv_transpose"] * 3 + ["bilinear"],
        }  # fmt: skip

    config = {
        "encoder": {"backbone": "dinov2_vits14", "intermediate_layers": list(size.layers), "dim_out": size.width},
        "remap_output": "exp", "neck": stack(size.neck), "scale_head": {"dims": list(size.scale_dims)},
    } | {name: stack(s) for name, s in size.heads}  # fmt: skip
    with torch.device("meta"):
        state = {k: torch.empty(v.shape, device="cpu") for k, v in MoGe2(size).state_dict().items()}
    torch.save({"model_config": config, "model": state}, tmp_path / "model.pt")
    check_moge2(tmp_path / "model.pt", "vits-normal")
    with pytest.raises(ValueError, match="is not MoGe-2 vitl-normal: width 384, expected 1024"):
        check_moge2(tmp_path / "model.pt", "vitl-normal")
    del state["neck.resamplers.0.0.weight" if "neck.resamplers.0.0.weight" in state else min(state)]
    torch.save({"model_config": config, "model": state}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="does not fit MoGe2: missing"):
        check_moge2(tmp_path / "model.pt", "vits-normal")
