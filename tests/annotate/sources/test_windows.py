"""Windows of a video: which there are, and what they decode to."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.frames.timing import choose_frames
from theodolite.annotate.sources.clip import ClipRef, ClipRejection
from theodolite.annotate.sources.entries import VideosSource
from theodolite.annotate.sources.read import read_clips
from theodolite.annotate.sources.tree import probe
from theodolite.annotate.sources.windows import Windows, count_samples, cut_windows

from ...typed import known
from .trees import TEN, listed, video


@pytest.mark.parametrize(
    ("frames", "rate", "samples"),
    [
        (1800, Fraction(30), 960),
        (1800, Fraction(30000, 1001), 961),
        (1801, Fraction(30), 961),
        (1440, Fraction(24), 960),
        (1439, Fraction(24), 959),
        (1441, Fraction(24), 961),
        (300, Fraction(30), 160),
    ],
)
def test_counted_samples_are_those_that_are_chosen(frames: int, rate: Fraction, samples: int) -> None:
    assert count_samples(frames / float(rate), float(rate)) == samples
    assert len(choose_frames(np.arange(frames), 1 / rate)) == samples


@pytest.mark.parametrize(("frames", "fps", "samples"), [(300, 30.0, 160), (600, 30000 / 1001, 321)])
def test_counted_samples_are_those_that_are_decoded(
    tmp_path: Path, frames: int, fps: float, samples: int
) -> None:
    assert count_samples(frames / fps, fps) == samples
    clip = ClipRef(
        clip_id="c",
        source="t",
        original_id="c",
        media_kind="video",
        media_path=video(tmp_path / "a.mp4", frames=frames, fps=fps),
    )
    assert len(open_clip(clip, DecodeConfig())) == samples


@pytest.mark.parametrize("fps", [16.0, 24.0, 30000 / 1001, 30.0, 60.0])
@pytest.mark.parametrize("windows", [TEN, Windows(frames=161, stride=80), Windows(frames=81, shortest=40)])
def test_a_window_decodes_to_what_it_says(tmp_path: Path, fps: float, windows: Windows) -> None:
    frames = round(25 * fps)
    path = video(tmp_path / "a.mp4", frames=frames, fps=fps)
    cut = list(cut_windows(windows, duration_s=frames / fps, fps=fps))
    stride, least = windows.stride or windows.frames, windows.shortest or windows.frames
    held = count_samples(frames / fps, fps)
    assert [w.start for w in cut] == list(range(0, held - least + 1, stride))[: len(cut)]
    assert (
        len(cut) >= (held - least - 1) // stride + 1
    )  # the last may lack a frame, for where its own grid begins
    for window in cut:
        clip = ClipRef(
            clip_id="c",
            source="t",
            original_id="c",
            media_kind="video",
            media_path=path,
            start_s=window.start_s,
            end_s=window.end_s,
            max_frames=windows.frames,
        )
        timing = open_clip(clip, DecodeConfig()).timing
        assert len(timing.frame_index) >= least
        assert len(timing.frame_index) in (min(windows.frames, held - window.start), held - window.start - 1)
        assert abs(timing.time_s[0] - window.start / 16) <= 1 / fps


def test_windows_are_those_that_decode_to_enough_frames() -> None:
    """Against the rule that chooses frames, on 60 random rates and lengths: none too many, none too few."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        rate = Fraction(int(rng.integers(16_000, 61_000)), 1000)
        frames, fps, stride = int(rng.integers(100, 200)), float(rate), int(rng.integers(7, 14))
        held = count_samples(frames / fps, fps)
        # The last window has just enough frames, unless its own grid begins late.
        windows = Windows(frames=33, stride=stride, shortest=stride + held % stride)
        cut = {w.start: w for w in cut_windows(windows, duration_s=frames / fps, fps=fps)}
        for start in range(0, round(frames / fps * 16), stride):
            window = cut.get(start)
            end_s = None if window is None else window.end_s
            chosen = choose_frames(np.arange(frames), 1 / rate, start_s=start / 16, end_s=end_s)
            if window is None:
                assert len(chosen) < known(windows.shortest), (rate, frames, windows, start)
            else:
                assert len(chosen) >= known(windows.shortest), (rate, frames, windows, start)


@pytest.mark.slow
def test_a_short_window_is_rejected_not_padded(tmp_path: Path) -> None:
    """Nothing is repeated to fill a class: a minute at 30 fps has 960 frames, which a recipe allows or not."""
    path = video(tmp_path / "--Rwt95Vkw0_0000000_0001800.mp4", frames=1800)
    (clip,) = listed("sekai-game", tmp_path, windows=Windows(frames=961, most=1)).values()
    assert clip.media_path == path
    with pytest.raises(
        ClipRejection, match=r"too_short.*960 frames.*at least 961 are wanted \(source.windows\)"
    ):
        open_clip(clip, DecodeConfig())
    (clip,) = listed("sekai-game", tmp_path, windows=Windows(frames=961, shortest=960, most=1)).values()
    assert len(open_clip(clip, DecodeConfig())) == 960


def test_windows_of_media_without_a_table_come_from_the_header(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4", frames=750)
    clips = listed("sekai-game", tmp_path, windows=Windows(frames=161, stride=100))
    assert list(clips) == ["a_s000000", "a_s000100", "a_s000200"]
    assert [len(open_clip(clip, DecodeConfig())) for clip in clips.values()] == [161, 161, 161]


def test_a_stretch_too_short_for_any_window_is_a_row_that_says_so(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4", frames=90)
    video(tmp_path / "b/c.mp4", frames=700)
    source = VideosSource(kind="videos", name="v", root=tmp_path, windows=TEN)
    clips = {clip.clip_id: clip for clip in read_clips(source)}
    first, *others = clips
    assert first == "a_s000000"
    assert [name[-8:] for name in others] == ["_s000000", "_s000161"]
    with pytest.raises(ClipRejection, match="too_short"):
        open_clip(clips[first], DecodeConfig())
    assert [len(open_clip(clips[name], DecodeConfig())) for name in others] == [161, 161]


def _muxed(path: Path, *, start: int, sound_s: int, drop: int = 0) -> Path:
    """48 pictures at 16 a second, the first at second `start`, less the first packets, beside sound from 0 on."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        stream = out.add_stream({".webm": "libvpx", ".flv": "flv"}.get(path.suffix, "mpeg4"), rate=16)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound = out.add_stream("aac", rate=48000) if sound_s else None
        if sound is not None:
            assert isinstance(sound, av.AudioStream)
            for at in range(0, 48000 * sound_s, 1024):
                frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
                frame.sample_rate, frame.pts, frame.time_base = 48000, at, Fraction(1, 48000)
                out.mux(sound.encode(frame))
        packets = []
        for i in range(48):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (48, 64, 3), np.uint8), "rgb24")
            frame.pts, frame.time_base = 16 * start + i, Fraction(1, 16)
            packets += stream.encode(frame)
        out.mux((packets + stream.encode(None))[drop:])
        if sound is not None:
            out.mux(sound.encode(None))
    return path


_MUXED = [(0, 0, 0), (10, 0, 0), (2, 0, 3)]
_WITH_SOUND = [(10, 12, 0), (1, 8, 0)]


@pytest.mark.parametrize(
    ("suffix", "start", "sound_s", "drop"),
    [(suffix, *case) for suffix in (".mkv", ".ts", ".mp4", ".flv") for case in _MUXED + _WITH_SOUND]
    + [(".wmv", *case) for case in _MUXED]
    + [(".webm", 10, 0, 0)],
)
def test_windows_are_cut_from_the_first_frame_to_the_last(
    tmp_path: Path, suffix: str, start: int, sound_s: int, drop: int
) -> None:
    """Headers count from zero, or from the first frame, or are those of the sound."""
    path = _muxed(tmp_path / f"v{suffix}", start=start, sound_s=sound_s, drop=drop)
    duration_s, fps = probe(path)
    source = VideosSource(kind="videos", name="v", root=tmp_path)
    (clip,) = read_clips(source)
    assert count_samples(known(duration_s), fps) == len(open_clip(clip, DecodeConfig()))


def test_a_duration_that_cannot_be_is_unknown(tmp_path: Path) -> None:
    assert [w.start for w in cut_windows(TEN, duration_s=1e20, fps=24.0)] == [0]
    assert [w.start for w in cut_windows(TEN, duration_s=float("inf"))] == [0]


def test_windows_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="shortest"):
        Windows(frames=161, shortest=162)
