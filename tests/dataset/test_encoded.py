"""Encoded clips: written whole or not at all, read back by window and by frames, refused where they are damaged."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
import torch
from theodolite.dataset.encoded import all_finite, begin, encoded_windows, open_encoded, write_shard

from ..train.encoded_clips import encoded_clip, encoding, write_encoded
from ..typed import known


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    data = open_encoded(write_encoded(tmp_path / "e", 5))
    assert [w.clip_id for w in data.windows] == [f"clip_{i:04d}" for i in range(5)]
    given, found = encoded_clip(3), data.read(3)
    assert torch.equal(found.latents, given.latents.bfloat16())
    assert torch.equal(found.text_mask, given.text_mask)
    assert torch.equal(known(found.camera_to_world), known(given.camera_to_world))
    part = pickle.loads(pickle.dumps(data)).read(3, slice(1, 4))
    assert torch.equal(part.latents, found.latents[:, 1:4])
    assert known(part.camera_to_world).shape == (33, 4, 4)


def test_a_folder_is_of_one_encoding(tmp_path: Path) -> None:
    write_encoded(tmp_path / "e", 1)
    empty = (torch.zeros(10, 16), torch.ones(10, dtype=torch.bool))
    with pytest.raises(ValueError, match="autoencoder: 'vae 1234' there, 'other' now"):
        begin(tmp_path / "e", encoding(autoencoder="other"), empty)
    write_encoded(tmp_path / "f", 1, autoencoder="other")
    with pytest.raises(ValueError, match="autoencoder 'other' against 'vae 1234'"):
        open_encoded(tmp_path / "e", tmp_path / "f")


def test_windows_are_there_once(tmp_path: Path) -> None:
    write_encoded(tmp_path / "e", 2)
    write_shard(tmp_path / "e", [encoded_clip(1)])
    with pytest.raises(ValueError, match=r"window clip_0001_w000000 is in shard-.* and in shard-"):
        encoded_windows(tmp_path / "e")


def test_stand_ins_taint_the_whole(tmp_path: Path) -> None:
    write_encoded(tmp_path / "e", 1)
    other = tmp_path / "f"
    begin(other, encoding(stand_in=True), (torch.zeros(10, 16), torch.ones(10, dtype=torch.bool)))
    write_shard(other, [encoded_clip(7)])
    assert open_encoded(tmp_path / "e", other).encoding.stand_in


@pytest.mark.parametrize("damage", ["cut", "noise", "header"])
def test_damaged_shards_are_named(damage: str, tmp_path: Path) -> None:
    folder = write_encoded(tmp_path / "e", 2)
    (shard,) = (folder / "shards").glob("*.safetensors")
    content = shard.read_bytes()
    shard.write_bytes(
        {"cut": content[:-100], "noise": b"\xff" * 400, "header": (1 << 60).to_bytes(8, "little") + content}[
            damage
        ]
    )
    with pytest.raises(ValueError, match=f"{shard.name}: is no intact shard"):
        open_encoded(folder)


def test_a_broken_latent_names_its_window(tmp_path: Path) -> None:
    folder = write_encoded(tmp_path / "e", 2)
    (shard,) = (folder / "shards").glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    data = open_encoded(folder)
    at = content.index(
        data.read(1).latents.permute(1, 0, 2, 3).contiguous().view(torch.uint8).numpy().tobytes()
    )
    content[at : at + 2] = b"\xc0\x7f"  # NaN
    shard.write_bytes(content)
    fresh = open_encoded(folder)
    fresh.read(0)
    with pytest.raises(ValueError, match=r"clip_0001_w000000 of .*latents hold NaN"):
        fresh.read(1)
    shard.unlink()
    with pytest.raises(ValueError, match="clip_0000_w000000"):
        open_encoded_later(fresh).read(0)


def open_encoded_later(data):
    """As a worker of a loader gets it."""
    return pickle.loads(pickle.dumps(data))


def test_a_full_disk_leaves_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_encoded(tmp_path / "e", 1)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_shard(folder, [encoded_clip(5)])
    assert len(list((folder / "shards").iterdir())) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_value_that_is_not_finite_is_seen_wherever_it_is(dtype: torch.dtype) -> None:
    for count in (1, 7, 33, 130):  # also in what is left over of the processor's vectors
        for place in range(count):
            for value in (math.nan, math.inf, -math.inf):
                x = torch.randn(count).to(dtype)
                assert all_finite(x)
                x[place] = value
                assert not all_finite(x), (count, place, value)
    assert all_finite(torch.empty(0, 3, dtype=dtype))
