"""Videos whose streams change on the way, begin in the middle, or whose headers lie: the right frames or a reason."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from theodolite.dataset.media import boxes
from theodolite.dataset.media.boxes import impossible_table
from theodolite.dataset.media.errors import MediaError
from theodolite.dataset.media.video import open_video

FPS = 25


class Stretch(NamedTuple):
    """Frames of one size and format."""

    height: int
    width: int
    pix_fmt: str
    num_frames: int


def brightness(number: int) -> int:
    return 20 + 10 * (number % 20)


def write(path: Path, codec: str, *stretches: Stretch, gop: int = 12, drop: int = 0) -> Path:
    """A video of stretches one after the other in one stream, each coded by itself, as recorders and `concat` leave
    them; frame i has one brightness.

    Args:
        drop: packets at the beginning that are left out.
    """
    with av.open(str(path), "w") as container:
        stream: Any = None
        number = 0
        for stretch in stretches:
            encoder: Any = av.CodecContext.create(codec, "w")
            encoder.width, encoder.height, encoder.pix_fmt = stretch.width, stretch.height, stretch.pix_fmt
            encoder.time_base, encoder.framerate = Fraction(1, FPS), FPS
            encoder.gop_size, encoder.max_b_frames = gop, 0
            if codec == "libx264":
                encoder.options = {"preset": "ultrafast", "x264-params": "repeat-headers=1:scenecut=0"}
            packets: list[Any] = []
            for _ in range(stretch.num_frames):
                picture = np.full((stretch.height, stretch.width, 3), brightness(number), np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=stretch.pix_fmt)
                frame.pts, frame.time_base = number, Fraction(1, FPS)
                packets += encoder.encode(frame)
                number += 1
            packets += encoder.encode(None)
            if stream is None:
                stream = container.add_stream(codec, rate=FPS)
                stream.width, stream.height, stream.pix_fmt = stretch.width, stretch.height, stretch.pix_fmt
            for packet in packets:
                packet.stream = stream
                if drop > 0:
                    drop -= 1
                else:
                    container.mux(packet)
    return path


def shown(path: Path, first: int = 0) -> list[int]:
    """Brightness of the frames from number `first` on."""
    video = open_video("c", path)
    wanted = np.arange(first, len(video.timeline.ticks))
    return [round(float(picture.mean())) for picture in video.read(wanted)]


def near(found: list[int], wanted: list[int]) -> bool:
    return len(found) == len(wanted) and bool(np.abs(np.subtract(found, wanted)).max() <= 3)


SMALL, LARGE = Stretch(48, 80, "yuv420p", 15), Stretch(64, 96, "yuv420p", 20)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.ts", "libx264"),
        ("a.webm", "libvpx-vp9"),
        ("a.avi", "mpeg4"),
        ("a.ts", "mpeg2video"),  # its decoder drops the frame before the change
        ("a.mpg", "mpeg2video"),
    ],
)
def test_a_size_that_changes_in_mid_stream_is_said(tmp_path: Path, name: str, codec: str) -> None:
    path = write(tmp_path / name, codec, LARGE, SMALL)
    video = open_video("c", path)
    assert (video.height, video.width) == (64, 96)
    read = []
    with pytest.raises(MediaError, match=r"source frame (19|20) is 80x48, the first one 96x64") as error:
        read += [picture.shape for picture in video.read(np.arange(len(video.timeline.ticks)))]
    assert error.value.reason == "frame_size_changed"
    assert near(shown_until(path, 19), [brightness(i) for i in range(19)])


def shown_until(path: Path, count: int) -> list[int]:
    return [round(float(picture.mean())) for picture in open_video("c", path).read(np.arange(count))]


def test_a_pixel_format_that_changes_shows_the_same_pictures(tmp_path: Path) -> None:
    for name, codec, other in (("a.mp4", "libx264", "yuv444p"), ("b.webm", "libvpx-vp9", "yuv444p")):
        path = write(tmp_path / name, codec, LARGE, LARGE._replace(pix_fmt=other))
        assert near(shown(path), [brightness(i) for i in range(40)])
        assert near(shown(path, 35), [brightness(i) for i in range(35, 40)])


def test_decord_does_not_hide_a_size_that_changes(tmp_path: Path) -> None:
    """It scales what follows to the first picture's size, and says nothing."""
    pytest.importorskip("decord")
    from theodolite.annotate.frames.base import DecodeConfig
    from theodolite.annotate.frames.video import open_video_clip
    from theodolite.annotate.sources.clip import ClipRef

    def notes(name: str, *stretches: Stretch) -> tuple[str, ...]:
        clip = ClipRef(
            clip_id="c",
            source="demo",
            original_id=name,
            media_kind="video",
            media_path=write(tmp_path / name, "libx264", *stretches),
            data_licence="CC0-1.0",
        )
        return open_video_clip(clip, DecodeConfig(backend="decord")).notes

    (note,) = notes("a.mp4", LARGE, LARGE, SMALL)
    assert "PyAV instead of decord: its pictures change on the way" in note
    assert notes("b.mp4", LARGE, LARGE) == ()


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.ts", "libx264"), ("a.webm", "libvpx-vp9")],
)
def test_a_stream_that_begins_between_key_frames_shows_from_the_first_one(
    tmp_path: Path, name: str, codec: str
) -> None:
    """Cut out of a longer recording: what players show, and never a picture made of nothing."""
    path = write(tmp_path / name, codec, LARGE._replace(num_frames=40), gop=10, drop=3)
    assert near(shown(path), [brightness(i) for i in range(10, 40)])
    assert near(shown(path, 25), [brightness(i) for i in range(35, 40)])


@pytest.mark.parametrize("stated", [0, 1, 10**9, 2**32 - 1])
def test_durations_that_lie_change_no_frame(tmp_path: Path, stated: int) -> None:
    whole = bytearray(write(tmp_path / "a.mp4", "libx264", LARGE).read_bytes())
    for box, place in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        struct.pack_into(">I", whole, whole.index(box) + place, stated)
    (tmp_path / "b.mp4").write_bytes(whole)
    assert near(shown(tmp_path / "b.mp4"), [brightness(i) for i in range(20)])
    whole = bytearray(write(tmp_path / "a.mkv", "libx264", LARGE).read_bytes())
    struct.pack_into(">d", whole, whole.index(b"\x44\x89\x88") + 3, float(stated))
    (tmp_path / "b.mkv").write_bytes(whole)
    assert near(shown(tmp_path / "b.mkv"), [brightness(i) for i in range(20)])


@pytest.mark.parametrize("stated", [10**6, 2**32 - 1])
def test_a_count_of_frames_that_are_not_there_is_said(tmp_path: Path, stated: int) -> None:
    whole = bytearray(write(tmp_path / "a.avi", "mpeg4", LARGE).read_bytes())
    struct.pack_into("<I", whole, whole.index(b"avih") + 24, stated)
    struct.pack_into("<I", whole, whole.index(b"strh") + 40, stated)
    (tmp_path / "b.avi").write_bytes(whole)
    with pytest.raises(MediaError, match=f"the index lists {stated} frames, the file holds 20") as error:
        open_video("c", tmp_path / "b.avi")
    assert error.value.reason == "truncated_video"


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_sound_alone_is_no_video(tmp_path: Path, name: str) -> None:
    with av.open(str(tmp_path / name), "w") as container:
        stream: Any = container.add_stream("aac", rate=48_000)
        for i in range(5):
            sound = av.AudioFrame.from_ndarray(
                np.zeros((2, 1024), np.float32), format="fltp", layout="stereo"
            )
            sound.sample_rate, sound.pts = 48_000, 1024 * i
            for packet in stream.encode(sound):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    with pytest.raises(MediaError, match="has no video stream") as error:
        open_video("c", tmp_path / name)
    assert error.value.reason == "unreadable_video"


@pytest.mark.parametrize(
    ("table", "place", "change"),
    [
        ("stsz", 8, struct.pack(">II", 1, 1 << 25)),  # took 2.4 GB
        ("stts", 12, struct.pack(">I", 1 << 26)),
        ("stsc", 16, struct.pack(">I", 1 << 27)),
        ("trun", 8, struct.pack(">I", 1 << 26)),
    ],
)
def test_tables_that_promise_more_samples_than_bytes_can_hold_are_refused(
    tmp_path: Path, table: str, place: int, change: bytes
) -> None:
    source = write(tmp_path / "a.mp4", "libx264", LARGE)
    if table == "trun":
        with av.open(str(source)) as given:
            options = {"movflags": "frag_keyframe+empty_moov"}
            with av.open(str(tmp_path / "f.mp4"), "w", options=options) as container:
                stream = container.add_stream_from_template(given.streams.video[0])
                for packet in given.demux(given.streams.video[0]):
                    if packet.dts is not None:
                        packet.stream = stream
                        container.mux(packet)
        source = tmp_path / "f.mp4"
        assert near(shown(source), [brightness(i) for i in range(20)])
    whole = bytearray(source.read_bytes())
    at = whole.index(table.encode()) + place
    whole[at : at + len(change)] = change
    (tmp_path / "b.mp4").write_bytes(whole)
    with pytest.raises(MediaError, match=f"table '{table}' promises .* samples, and the file has") as error:
        open_video("c", tmp_path / "b.mp4")
    assert error.value.reason == "unreadable_video"


MANY = struct.pack(">IIII", 0, 1, 1 << 25, 512)
"""Content of a `stts` of 2.4 GB in memory."""


def box(kind: bytes, *content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, content)), kind) + b"".join(content)


def header(tables: bytes, *, edits: bytes = b"") -> bytes:
    """A track with these tables, as `moov` holds it behind its own first box."""
    first = box(b"mvhd", bytes(100))
    return first + box(b"trak", edits, box(b"mdia", box(b"minf", box(b"stbl", tables))))


def in_compressed_header() -> bytes:
    whole = box(b"moov", header(box(b"stts", MANY)))
    folded = box(b"cmvd", struct.pack(">I", len(whole)), zlib.compress(whole))
    return box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), folded))


HIDDEN = {
    "moved as hoov": box(b"hoov", header(box(b"stts", MANY))),
    "moved as free": box(b"free", header(box(b"stts", MANY))),
    "compressed": in_compressed_header(),
    "behind a box that none begins with": box(b"abcd") + box(b"moov", header(box(b"stts", MANY))),
    "among data references": box(b"moov", header(box(b"dinf", box(b"dinf", box(b"stts", MANY))))),
    "in a meta behind its version": box(
        b"moov", header(box(b"meta", bytes(4), box(b"hdlr"), box(b"stts", MANY)))
    ),
    "in many fragments": box(b"moof", box(b"traf", box(b"trun", struct.pack(">II", 0, 500)))) * 100,
    "in many tracks": box(b"moov", header(box(b"stts", struct.pack(">IIII", 0, 1, 8000, 512))) * 100),
    "shown again by many edits": box(
        b"moov",
        header(
            box(b"stsz", struct.pack(">III", 0, 1, 8000)),
            edits=box(b"edts", box(b"elst", struct.pack(">II", 0, 300), bytes(12 * 300))),
        ),
    ),
}


@pytest.mark.parametrize("place", HIDDEN)
def test_tables_are_judged_wherever_ffmpeg_reads_them(tmp_path: Path, place: str) -> None:
    """Each took FFmpeg a gigabyte, or would with more of its kind in as many kilobytes."""
    (tmp_path / "a.mp4").write_bytes(HIDDEN[place])
    assert "samples" in impossible_table(tmp_path / "a.mp4")


def test_a_compressed_header_is_unfolded_within_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boxes, "_MOST_HEADER_BYTES", 2**16)
    folded = box(b"cmvd", bytes(4), zlib.compress(bytes(2**17)))
    (tmp_path / "a.mov").write_bytes(box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), folded)))
    assert "compressed header becomes more than" in impossible_table(tmp_path / "a.mov")


def test_one_edit_behind_an_empty_one_may_show_all_samples(tmp_path: Path) -> None:
    edits = box(b"edts", box(b"elst", struct.pack(">II", 0, 2), bytes(24)))
    tables = box(b"stsz", struct.pack(">III", 0, 1, 7000))
    (tmp_path / "a.mov").write_bytes(box(b"moov", header(tables, edits=edits)) + box(b"mdat", bytes(1000)))
    assert impossible_table(tmp_path / "a.mov") == ""


def with_edits(movie: bytes, count: int) -> bytes:
    """The film with a sound track that is shown in so many stretches; its header is its end."""
    moov = movie.rindex(b"moov") - 4
    trak = movie.rindex(b"trak", 0, movie.index(b"soun")) - 4
    edits = b"".join(struct.pack(">IiI", 10, 480 * i, 1 << 16) for i in range(count))
    edits = box(b"edts", box(b"elst", struct.pack(">II", 0, count), edits))
    whole = bytearray(movie.replace(b"edts", b"skip"))
    for at in (moov, trak):
        whole[at : at + 4] = struct.pack(">I", struct.unpack_from(">I", whole, at)[0] + len(edits))
    return bytes(whole[: trak + 8] + edits + whole[trak + 8 :])


@pytest.mark.parametrize("shown", [True, False])
def test_sound_that_was_cut_into_many_stretches_is_no_bomb(tmp_path: Path, shown: bool) -> None:
    """A sample of it is two bytes, but FFmpeg keeps a thousand of them as one."""
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height = 64, 48
        sound = container.add_stream("pcm_s16le", rate=48_000, layout="mono")
        for i in range(25 if shown else 0):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), i, np.uint8), "rgb24")
            container.mux(video.encode(picture))
        container.mux(video.encode())
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000 * 10), np.int16), "s16", "mono")
        frame.sample_rate = 48_000
        container.mux(sound.encode(frame))
    movie = (tmp_path / "a.mov").read_bytes()
    (tmp_path / "b.mov").write_bytes(with_edits(movie, 900))
    assert impossible_table(tmp_path / "b.mov") == ""
    with av.open(str(tmp_path / "b.mov")) as container:
        assert container.streams.audio[0].frames or container.streams.audio[0].duration
        shown_frames = sum(1 for _ in container.decode(video=0)) if shown else 0
    assert shown_frames == (25 if shown else 0)
    # As many as frames of 160 samples would make too many: a header may say that they are so short.
    (tmp_path / "d.mov").write_bytes(with_edits(movie, 4000))
    assert "'elst' shows 3" in impossible_table(tmp_path / "d.mov")
    (tmp_path / "c.mov").write_bytes(with_edits(movie, 900).replace(b"soun", b"vide"))
    assert "'elst' shows 480000 samples up to 900 times" in impossible_table(tmp_path / "c.mov")


def test_tables_of_cut_files_are_judged_as_far_as_they_go(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.mp4", "libx264", LARGE).read_bytes()
    assert impossible_table(tmp_path / "a.mp4") == ""
    for length in range(0, len(whole), 7):
        (tmp_path / "b.mp4").write_bytes(whole[:length])
        assert impossible_table(tmp_path / "b.mp4") == ""
