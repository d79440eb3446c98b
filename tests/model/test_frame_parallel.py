"""A clip spread over ranks against one rank that holds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from theodolite.model.config import chunk_starts
from theodolite.model.frame_parallel import FrameShare, split_frames

from .cases import loss_and_gradients, relative


def test_shares_cover_the_clip() -> None:
    assert split_frames(13, 4) == (4, 3, 3, 3)
    assert FrameShare((4, 3, 3, 3), 2).frames == slice(7, 10)


def test_starts_of_chunks_are_counted_from_the_share() -> None:
    share = FrameShare((4, 4, 5), 1)
    assert share.starts(chunk_starts(13)) == (0, 3)
    assert share.starts(chunk_starts(13), 3, 3) == (3, 6, 9)
    assert share.starts(None) is None


def test_shares_that_are_too_short_are_told() -> None:
    with pytest.raises(ValueError, match=r"7 latent frames over 4 .* at most 2 ranks"):
        FrameShare(split_frames(7, 4), 0)


@pytest.mark.slow
def test_four_ranks_equal_one(tmp_path: Path) -> None:
    """14 frames do not divide, bidirectional and in chunks that cross the borders."""
    script, size, frames = str(Path(__file__).with_name("frame_parallel_worker.py")), 4, 14
    command = [sys.executable, script, str(size), str(tmp_path), str(frames)]
    subprocess.run(command, timeout=120, check=True)
    for causal in (False, True):
        parts = [torch.load(tmp_path / f"{rank}-{causal}.pt") for rank in range(size)]
        loss, gradients = loss_and_gradients(frames, causal)
        assert relative(torch.stack([part[0] for part in parts]).sum(0), loss) < 1e-9
        assert all(part[1].keys() == gradients.keys() for part in parts)
        for name, expected in gradients.items():
            if float(expected.norm()) > 1e-12:  # decays are float32, so are their gradients
                assert relative(torch.stack([part[1][name] for part in parts]).sum(0), expected) < 1e-6, (
                    name,
                    causal,
                )
