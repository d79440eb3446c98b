"""MiraData of both generations as its tables are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.sources.windows import Windows

from ...typed import known
from .trees import V1, listed, mira, touch, video


def write_v1(root: Path, *rows: str) -> Path:
    path = root / "miradata_v1_9k.csv"
    path.write_text(V1 + "".join(row + "\n" for row in rows), encoding="utf-8")
    return path


def test_mira_ids_are_text(tmp_path: Path) -> None:
    """8720.1 and 8720.10 are two clips; as numbers they are one."""
    rows = [mira(f"8720.{n}", (f"00:00:{s:02d}.000", f"00:00:{s + 4:02d}.500")) for n, s in ((1, 1), (10, 2))]
    write_v1(tmp_path, *rows)
    touch(tmp_path / "raw_video/000000008/000000008720.mp4")
    clips = listed("miradata", tmp_path)
    assert [(k, c.original_id, c.start_s, c.end_s) for k, c in clips.items()] == [
        ("8720_1", "8720.1", 1.0, 5.5),
        ("8720_10", "8720.10", 2.0, 6.5),
    ]


def test_mira_is_cut_by_decoding_from_the_whole_video(tmp_path: Path) -> None:
    """The official cut copies packets and starts at the key frame before; from the whole video the start is exact."""
    write_v1(
        tmp_path, mira("8165.3", ("00:00:02.000", "00:00:04.500"), file_path="000000008/000000008165.3.mp4")
    )
    video(tmp_path / "raw_video/000000008/000000008165.mp4", frames=180)
    video(tmp_path / "000000008/000000008165.3.mp4", frames=90)
    (clip,) = listed("miradata", tmp_path).values()
    timing = open_clip(clip, DecodeConfig()).timing
    assert timing.frame_index[0] == 60
    assert timing.frame_index[-1] < 135
    (tmp_path / "raw_video/000000008/000000008165.mp4").unlink()
    (clip,) = listed("miradata", tmp_path).values()  # nothing but the cut one: from its own start
    assert (clip.media, clip.start_s) == ("000000008/000000008165.3.mp4", None)


def test_mira_leaves_out_what_is_not_here_and_what_makes_no_sense(tmp_path: Path, caplog) -> None:
    write_v1(
        tmp_path,
        mira("1.0", ("00:00:00.000", "00:01:02.000"), video_id="here0000000"),
        mira("2.0", ("00:00:00.000", "00:01:02.000"), video_id="gone0000000"),
        mira("nan", ("00:00:00.000", "00:01:02.000")),
        mira("3.0", ("00:01:00.000", "00:00:02.000")),
        mira("4.0", ("__import__('os').abort()", "00:00:02.000")),
        mira("5.0", ("00:00:00.000", "00:01:00.000"), file_path="../outside.mp4", video_id="gone0000001"),
    )
    touch(tmp_path / "raw_video/here0000000.mp4")
    touch(tmp_path.parent / "outside.mp4")
    assert list(listed("miradata", tmp_path, windows=Windows(frames=961, stride=480, shortest=481))) == [
        "1_0_s000000",
        "1_0_s000480",
    ]
    assert "lists 3 clips, of 2 no media lie below" in caplog.text
    assert "3 rows make no sense, the first is {'clip_id': 'nan'" in caplog.text


def test_mira_of_the_first_generation(tmp_path: Path) -> None:
    table = tmp_path / "miradata_v0.csv"
    header = "index,video_id,start_frame,end_frame,fps,short_caption,start_timestep,end_timestep,,\n"
    row = "000000000001_-a_bcdefghi-000002,-a_bcdefghi,2997,5994,29.97,caf\xe9,0:01:40,0:03:20,,\n"
    table.write_bytes((header + row).encode("iso-8859-1"))
    touch(tmp_path / "raw_video/-a_bcdefghi.webm")
    (clip,) = listed("miradata", tmp_path).values()
    np.testing.assert_allclose([known(clip.start_s), known(clip.end_s)], [100.0, 200.0])
    assert clip.clip_id == "000000000001_-a_bcdefghi-000002"
