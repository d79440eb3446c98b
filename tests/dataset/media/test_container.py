"""Containers are opened by every PyAV that is supported."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from theodolite.dataset.media.container import open_container
from theodolite.dataset.media.write import VideoWriter


@pytest.mark.parametrize(
    ("version", "options"),
    [("14.4.0", {"metadata_errors"}), ("18.1.0", {"metadata_errors"}), ("19.0.2", set())],
)
def test_options_that_a_pyav_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, options: set[str]
) -> None:
    """PyAV 19 no longer takes `metadata_errors`: every video of every user who had it failed."""
    path = tmp_path / "a.mp4"
    with VideoWriter(path, width=64, height=64, fps=16) as writer:
        writer.write(np.zeros((64, 64, 3), np.uint8))
    given: list[set[str]] = []
    monkeypatch.setattr(av, "__version__", version)
    monkeypatch.setattr(av, "open", lambda *_, **keys: given.append(set(keys)))
    open_container(path)
    assert given == [{"container_options", "options"} | options]


def test_tags_of_any_bytes(tmp_path: Path) -> None:
    """With the PyAV that is here."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as out:
        out.metadata["comment"] = "caf?"
        stream = out.add_stream("mpeg4", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for packet in stream.encode(av.VideoFrame(64, 64, "yuv420p")):
            out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    data = path.read_bytes()
    assert b"caf?" in data
    path.write_bytes(data.replace(b"caf?", b"caf\xe9"))
    with open_container(path) as container:
        assert container.metadata["comment"].startswith("caf")
        assert container.streams.video[0].width == 64
