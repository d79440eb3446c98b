"""Decoding: the right frames, at the right times, or a rejection that says why."""

import importlib.util
import itertools
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
import pytest
from av.video.stream import VideoStream
from hypothesis import given
from hypothesis import strategies as st
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.decoded import DecodedFrames
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.frames.timing import choose_frames
from theodolite.annotate.frames.video import check_decoder
from theodolite.annotate.sources.clip import ClipRef, ClipRejection

from ...support import SHARED
from ...typed import known

with_decord = pytest.mark.skipif(
    importlib.util.find_spec("decord") is None, reason="pip install theodolite[decord]"
)
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="real recordings (../shared/data) are not here")

NTSC = Fraction(30000, 1001)
WITH_CUTS = DecodeConfig(min_frames=2)


def clip_of(path: Path, **fields) -> ClipRef:
    kind = "images" if path.is_dir() else "video"
    return ClipRef(
        **{"clip_id": "c", "source": "test", "original_id": "c", "media_kind": kind, "media_path": path}
        | fields
    )


def open_path(path: Path, config: DecodeConfig | None = None, **fields) -> DecodedFrames:
    """The frames; by default without looking for cuts, which costs ten times what decoding does."""
    frames = open_clip(clip_of(path, **fields), config or DecodeConfig(min_frames=2, detect_cuts=False))
    assert isinstance(frames, DecodedFrames)
    return frames


def rejection(path: Path, config: DecodeConfig | None = None, **fields) -> ClipRejection:
    with pytest.raises(ClipRejection) as caught:
        for _ in open_path(path, config or DecodeConfig(), **fields):
            pass
    assert str(path) in caught.value.detail
    assert caught.value.detail.startswith("clip c: ")
    return caught.value


def frame_number(rgb: np.ndarray) -> int:
    """The number painted into a coded frame: bit b (lowest first) in the square x 4+20b..20+20b, y 4..20."""
    gray = rgb.mean(axis=-1)
    return sum(1 << b for b in range(10) if gray[8:16, 8 + 20 * b : 16 + 20 * b].mean() > 128)


def coded_frame(number: int, *, height: int = 64, width: int = 240) -> np.ndarray:
    image = np.full((height, width, 3), 90, np.uint8)
    image[32:, (3 * number) % (width - 20) :][:, :20] = (200, 40, 60)
    for b in range(10):
        image[4:20, 4 + 20 * b : 20 + 20 * b] = 255 if number >> b & 1 else 0
    return image


def write_video(
    path: Path,
    images,
    *,
    rate: Fraction | int = 30,
    codec: str = "libx264",
    pts: list[int] | None = None,
    time_base: Fraction | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pixel_format: str = "yuv420p",
) -> Path:
    """`pts[i]` is the time stamp of image i in `time_base` (default 1 / rate)."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=rate, options=options))
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = time_base or 1 / Fraction(rate)
        for i, image in enumerate(images):
            if i == 0:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = pts[i] if pts else i
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


# --- the rule ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fps", "num_source", "num_clip"),
    [
        (Fraction(24000, 1001), 1439, 960),  # 60.018 s; sample 960 would need frame 1439
        (Fraction(24000, 1001), 1440, 961),
        (Fraction(24), 1440, 960),
        (Fraction(25), 1500, 960),
        (NTSC, 1800, 961),  # 60.060 s
        (Fraction(30), 1800, 960),  # 60.000 s exactly: sample 960 lies one period past the last frame
        (Fraction(30), 1801, 961),
        (Fraction(50), 3000, 960),
        (Fraction(60000, 1001), 3600, 961),
        (Fraction(60), 3600, 960),
        (Fraction(16), 961, 961),
        (Fraction(30), 300, 160),
        (Fraction(30), 301, 161),
    ],
)
def test_constant_rates_take_the_nearest_existing_frame(fps, num_source, num_clip):
    index = choose_frames(np.arange(num_source), 1 / fps)
    nearest = [
        int(k * fps / 16 + Fraction(1, 2)) for k in range(num_clip + 1)
    ]  # half goes to the later frame
    assert index.tolist() == nearest[:num_clip]
    assert nearest[num_clip] >= num_source  # the sample left out has no frame


@pytest.mark.parametrize("first", [0, 12_345, -40])
def test_windows_count_from_the_first_frame_and_do_not_change_the_grid_spacing(first):
    index = choose_frames(np.arange(300) + first, 1 / Fraction(30), start_s=31 / 30, end_s=(31 + 90) / 30)
    assert index.tolist() == [31 + int(k * 30 / 16 + 0.5) for k in range(48)]


def test_variable_rate_follows_time_stamps_not_the_average():
    shown = np.array([n for n in range(400) if n % 7 != 3])
    index = choose_frames(shown, Fraction(1, 30))
    wanted_s = np.arange(len(index)) / 16
    away_s = np.abs(shown[index] / 30 - wanted_s)
    assert away_s.max() <= 1 / 30 + 1e-9  # half of the widest gap (2 / 30 s)
    # The average rate alone (25.7 fps) would drift off by frames.
    naive = (
        shown[np.minimum(np.floor(np.arange(len(index)) * 25.725 / 16 + 0.5).astype(int), len(shown) - 1)]
        / 30
    )
    assert np.abs(naive - wanted_s).max() > away_s.max()


def test_milliseconds_time_stamps_of_16_fps_keep_every_frame():
    ticks = np.round(np.arange(161) * 1000 / 16).astype(np.int64)  # Matroska rounds to milliseconds
    assert choose_frames(ticks, Fraction(1, 1000)).tolist() == list(range(161))


@pytest.mark.slow
@given(
    gaps=st.lists(st.integers(1, 62), min_size=20, max_size=200),
    start=st.integers(-5000, 5000),
)
def test_frames_are_distinct_ordered_and_near_their_sample(gaps, start):
    ticks = start + np.cumsum([0, *gaps])
    index = choose_frames(ticks, Fraction(1, 1000))
    assert (np.diff(index) > 0).all()
    assert index[0] == 0
    away_ms = np.abs((ticks[index] - ticks[0]) - np.arange(len(index)) * 62.5)
    assert away_ms.max() <= 62.5
    # Nothing is left on the table: one more sample would lie past the last frame.
    assert (
        len(index) * 62.5 >= ticks[-1] - ticks[0] + np.median(gaps) / 2 - 0.5 or index[-1] == len(ticks) - 1
    )


def test_below_16_fps_is_rejected_never_padded():
    with pytest.raises(ClipRejection, match=r"15\.000 fps") as caught:
        choose_frames(np.arange(150), Fraction(1, 15))
    assert caught.value.reason == "source_fps_below_16"
    assert len(choose_frames(np.arange(150), Fraction(1, 15), fps="native")) == 150


def test_a_hole_in_the_middle_is_rejected():
    ticks = np.concatenate([np.arange(100), np.arange(115, 300)])  # half a second missing at 30 fps
    with pytest.raises(ClipRejection, match=r"within 1/16 s") as caught:
        choose_frames(ticks, Fraction(1, 30))
    assert caught.value.reason == "frame_gap"
    assert (
        len(choose_frames(np.delete(np.arange(300), [100, 101]), Fraction(1, 30))) == 160
    )  # two frames: no hole


# --- files made here ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbered():
    return [coded_frame(i) for i in range(90)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "rate", "options"),
    [
        ("a.mp4", "libx264", 30, {"g": "12"}),
        ("b.mp4", "libx264", NTSC, {"x264-params": "open-gop=1:keyint=12:bframes=3"}),
        ("c.mkv", "libx264", 25, {}),
        ("d.webm", "libvpx-vp9", 60, {"deadline": "realtime", "cpu-used": "8"}),
        ("e.mp4", "libsvtav1", 30, {"preset": "12"}),
        ("f.webm", "libvpx", 30, {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}),
        ("g.ts", "libx264", 30, {"g": "12"}),
        ("h.avi", "libx264", 30, {"bf": "3"}),  # AVI has no presentation times: frames are counted
        ("i.avi", "mpeg4", 30, {"qscale": "2"}),
    ],
)
def test_codecs_decode_the_chosen_frames(tmp_path, numbered, name, codec, rate, options):
    path = write_video(tmp_path / name, numbered, rate=rate, codec=codec, options=options)
    frames = open_path(path)
    assert frames.timing.frame_index.tolist() == choose_frames(np.arange(90), 1 / Fraction(rate)).tolist()
    assert [frame_number(f) for f in frames] == frames.timing.frame_index.tolist()
    assert frames.num_source_frames == 90
    assert frames.timing.source_fps == pytest.approx(float(rate), rel=1e-3)  # Matroska: milliseconds


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.ts"])
def test_a_window_is_reached_by_seeking_and_stays_exact(tmp_path, numbered, name):
    path = write_video(
        tmp_path / name, numbered, options={"x264-params": "open-gop=1:keyint=10:bframes=3:min-keyint=10"}
    )
    for start in (
        0,
        1,
        9,
        10,
        11,
        25,
        40,
    ):  # whatever the container's own start: a transport stream begins at 1.4 s
        begin_s = max(0, start - 0.5) / 30
        frames = open_path(path, start_s=begin_s, end_s=begin_s + 1)
        assert [frame_number(f) for f in frames] == frames.timing.frame_index.tolist()
        assert frames.timing.frame_index[0] == start
        assert len(frames) == 16


@pytest.mark.slow
def test_iterations_are_equal_and_memory_is_flat(tmp_path):
    rng = np.random.default_rng(0)
    images = [np.full((360, 640, 3), rng.integers(0, 255, 3), np.uint8) for _ in range(160)]
    path = write_video(tmp_path / "v.mp4", images, rate=16, options={"preset": "ultrafast"})
    frames = open_path(path)
    first = [int(f.sum()) for f in frames]
    assert first == [int(f.sum()) for f in frames]
    tracemalloc.start()
    for _ in frames:
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(first) == 160
    assert peak < 8 * images[0].nbytes  # a few frames, not 160


@pytest.mark.slow
def test_all_source_frames_a_nominal_rate_and_a_limit(tmp_path, numbered):
    path = write_video(tmp_path / "v.mp4", numbered, rate=30)
    native = open_path(path, DecodeConfig(fps="native"))
    assert len(native) == 90
    assert native.timing.fps == pytest.approx(30)
    played_at_16 = open_path(path, DecodeConfig(source_fps=16, max_frames=61))
    assert played_at_16.timing.frame_index.tolist() == list(range(61))
    np.testing.assert_allclose(played_at_16.timing.time_s, np.arange(61) / 16)
    assert [frame_number(f) for f in played_at_16] == list(range(61))
    assert "time stamps replaced by 16 fps" in played_at_16.notes
    by_clip = open_path(path, source_fps=60.0)
    assert by_clip.timing.source_fps == pytest.approx(60)
    assert len(by_clip) == 24


def test_large_frames_are_capped_with_their_aspect(tmp_path):
    images = [np.full((750, 1000, 3), 60 + i, np.uint8) for i in range(20)]
    path = write_video(tmp_path / "v.mp4", images, rate=16, options={"preset": "ultrafast"})
    frames = open_path(path, DecodeConfig(max_side_px=400))
    assert (frames.height, frames.width) == (300, 400)
    assert (frames.source_height, frames.source_width) == (750, 1000)
    assert frames.pixel_aspect == pytest.approx(1)
    assert next(iter(frames)).shape == (300, 400, 3)


def test_a_decoder_that_is_missing_is_said_before_any_clip(tmp_path, numbered, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    monkeypatch.setattr("theodolite.annotate.frames.video.find_spec", lambda name: None)
    path = write_video(tmp_path / "v.mp4", numbered, rate=30)
    assert len(list(open_path(path))) > 0
    with pytest.raises(ValueError, match=r"pip install 'theodolite\[decord\]'"):
        check_decoder(DecodeConfig(backend="decord"))
    with pytest.raises(ValueError, match="decord"):
        open_path(path, DecodeConfig(backend="decord"))


@pytest.mark.slow
@with_decord
def test_decord_reads_plain_files_alike_and_hands_over_the_rest(tmp_path, numbered):
    config = DecodeConfig(backend="decord")
    path = write_video(tmp_path / "v.mp4", numbered, rate=30, options={"x264-params": "open-gop=1:keyint=12"})
    by_decord = open_path(path, config)
    assert by_decord.notes == ()
    assert [frame_number(f) for f in by_decord] == by_decord.timing.frame_index.tolist()
    for a, b in zip(by_decord, open_path(path), strict=True):
        assert np.abs(a.astype(int) - b).mean() < 1  # the two convert colours by different tables
    av1 = write_video(tmp_path / "av1.mp4", numbered, codec="libsvtav1", options={"preset": "12"})
    handed_over = open_path(av1, config)
    assert any("PyAV instead of decord" in note for note in handed_over.notes)
    assert [frame_number(f) for f in handed_over] == handed_over.timing.frame_index.tolist()


# --- broken files ------------------------------------------------------------------------------


def test_a_text_file_is_unreadable(tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_text("not a video\n" * 100)
    assert rejection(path).reason == "unreadable_video"
    assert rejection(tmp_path / "absent.mp4").reason == "unreadable_video"
    (tmp_path / "empty.mp4").touch()
    assert rejection(tmp_path / "empty.mp4").reason == "unreadable_video"


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    ("name", "container_options"),
    [("index_last.mp4", {}), ("index_first.mp4", {"movflags": "faststart"}), ("v.mkv", {})],
)
def test_truncated_files_are_reported(tmp_path, share, name, container_options):
    noise = np.random.default_rng(1)
    images = [noise.integers(0, 255, (64, 96, 3), dtype=np.uint8) for _ in range(60)]
    whole = write_video(tmp_path / name, images, rate=16, container_options=container_options)
    assert len(open_path(whole)) == 60
    cut = tmp_path / f"cut_{name}"
    data = whole.read_bytes()
    cut.write_bytes(data[: int(len(data) * share)])
    if name.endswith("mkv") and share == 0.99:
        # Matroska keeps no count: less than a second may be lost unseen, but nothing is repeated instead.
        frames = open_path(cut)
        assert 55 <= sum(1 for _ in frames) == len(frames) <= 60
        return
    reasons = (
        {"truncated_video", "corrupt_video"} if share == 0.99 else {"truncated_video"}
    )  # half a last frame
    assert rejection(cut).reason in reasons


def test_damage_in_the_middle_is_reported(tmp_path, numbered):
    path = write_video(tmp_path / "v.mp4", numbered, rate=30, codec="libx264", options={"g": "90"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(container.streams.video[0]) if p.size]
    for at, size in packets[30:40]:
        data[known(at) : known(at) + size] = bytes(size)
    path.write_bytes(bytes(data))
    assert rejection(path, DecodeConfig()).reason == "corrupt_video"


def test_short_clips_and_slow_sources(tmp_path, numbered):
    short = rejection(write_video(tmp_path / "seven.mp4", numbered[:7], rate=16))
    assert short.reason == "too_short"
    assert "7 frames" in short.detail
    slow = rejection(write_video(tmp_path / "slow.mp4", numbered, rate=15))
    assert slow.reason == "source_fps_below_16"
    path = write_video(tmp_path / "v.mp4", numbered, rate=30)
    assert rejection(path, start_s=100.0).reason == "too_short"


def test_a_file_without_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for i in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert "no video stream" in rejection(path).detail


# --- image folders -----------------------------------------------------------------------------


@pytest.mark.slow
def test_image_folders(tmp_path, numbered):
    for i in range(20):
        cv2.imwrite(
            str(tmp_path / f"frame{i}.png"), numbered[i][..., ::-1]
        )  # unpadded: 10 sorts before 2 as text
    (tmp_path / "notes.txt").write_text("not an image")
    frames = open_path(tmp_path, source_fps=16.0)
    assert [frame_number(f) for f in frames] == list(range(20))
    np.testing.assert_array_equal(next(iter(frames)), numbered[0])
    assert rejection(tmp_path).reason == "no_frame_rate"
    cv2.imwrite(str(tmp_path / "frame20.png"), numbered[0][:-2])
    assert rejection(tmp_path, source_fps=16.0).reason == "image_size_changed"
    (tmp_path / "frame20.png").write_bytes(b"\x89PNG broken")
    assert rejection(tmp_path, source_fps=16.0).reason == "unreadable_image"


# --- cuts --------------------------------------------------------------------------------------


def texture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = np.full((900, 1400, 3), rng.integers(60, 190, 3), np.uint8)
    for _ in range(400):
        x, y = (int(v) for v in rng.integers(0, (1400, 900)))
        w, h = (int(v) for v in rng.integers(10, 90, 2))
        cv2.rectangle(image, (x, y), (x + w, y + h), rng.integers(0, 255, 3).tolist(), -1)
    return cv2.GaussianBlur(image, (5, 5), 0)


def pan(image: np.ndarray, num_frames: int, step_px: int) -> list[np.ndarray]:
    return [image[i * 3 : i * 3 + 240, i * step_px : i * step_px + 320] for i in range(num_frames)]


def cuts_of(path: Path, **config) -> tuple[int, ...]:
    return open_path(path, DecodeConfig(min_frames=2, **config)).cuts


@pytest.mark.slow
def test_cuts_are_found(tmp_path):
    images = pan(texture(1), 25, 4) + pan(texture(2), 25, 4) + pan(texture(3), 25, 4)
    path = write_video(tmp_path / "v.mp4", images, rate=16)
    assert cuts_of(path) == (25, 50)
    assert open_path(path, DecodeConfig(detect_cuts=False)).cuts == ()


@pytest.mark.slow
def test_fast_pans_flashes_and_blur_are_no_cuts(tmp_path):
    images = pan(texture(4), 30, 35)  # a tenth of the width a frame
    images[10] = np.clip(images[10].astype(int) * 2 + 40, 0, 255).astype(np.uint8)  # flash
    images[20] = cv2.blur(images[20], (61, 1))
    images[21] = cv2.blur(images[21], (61, 1))
    path = write_video(tmp_path / "v.mp4", images, rate=16)
    assert cuts_of(path) == ()


@pytest.mark.slow
def test_a_dissolve_between_still_shots_is_found(tmp_path):
    a, b = texture(5)[:240, :320].astype(float), texture(6)[:240, :320].astype(float)
    weights = [0.0] * 20 + list(np.linspace(0, 1, 12)) + [1.0] * 20
    path = write_video(tmp_path / "v.mp4", [((1 - w) * a + w * b).astype(np.uint8) for w in weights], rate=16)
    (found,) = cuts_of(path)
    assert abs(found - 26) <= 4


@pytest.mark.slow
def test_cuts_are_found_in_the_first_complete_pass(tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.mp4", pan(texture(1), 20, 4) + pan(texture(2), 20, 4), rate=16)
    frames = open_path(path, WITH_CUTS)
    assert len(list(itertools.islice(frames, 30))) == 30  # not complete: nothing is concluded from it
    assert sum(1 for _ in frames) == 40
    monkeypatch.setattr(DecodedFrames, "__iter__", lambda self: pytest.fail("decoded again"))
    assert frames.cuts == (20,)


# --- real and coded files ----------------------------------------------------------------------


def coded_videos() -> list:
    """Every video by both decoders, whole and in part; each of the two pairs only where all are wanted."""
    videos = (
        ("coded_closed_gop_30fps", 400, 214, 0, 30),
        ("coded_open_gop_30fps", 400, 214, 0, 30),
        ("coded_2997fps", 400, 214, 0, NTSC),
        ("coded_60fps", 400, 107, 0, 60),
        ("coded_edit_list", 301, 161, 99, 30),  # decord alone counts 306
        ("coded_vfr", 343, 214, 0, 30),
    )
    windows, found = ((None, None), (3.2, 6.0), (5.05, None)), []
    for (number, video), (which, window), backend in itertools.product(
        enumerate(videos), enumerate(windows), ("pyav", "decord")
    ):
        repeat = which == 2 or (number + which + (backend == "decord")) % 2 == 1
        marks = [pytest.mark.thorough] * repeat + [with_decord] * (backend == "decord")
        found.append(pytest.param(backend, window, *video, marks=marks))
    return found


@pytest.mark.slow
@shared
@pytest.mark.parametrize(
    ("backend", "window", "name", "num_source", "num_clip", "first_code", "rate"), coded_videos()
)
def test_coded_videos(name, num_source, num_clip, first_code, rate, backend, window):
    frames = open_path(
        SHARED / "edge-videos" / f"{name}.mp4",
        DecodeConfig(backend=backend, detect_cuts=False),
        start_s=window[0],
        end_s=window[1],
    )
    codes = np.array([frame_number(f) for f in frames])
    # The painted number tells the frame's place in the constant-rate original, and so its time.
    assert codes.tolist() == np.rint(frames.timing.time_s * float(rate)).astype(int).tolist()[
        : len(codes)
    ] or (
        first_code
        and (codes - first_code).tolist() == np.rint(frames.timing.time_s * 30).astype(int).tolist()
    )
    if name != "coded_vfr":
        assert (codes - first_code).tolist() == frames.timing.frame_index.tolist()
    if window == (None, None):
        assert (frames.num_source_frames, len(frames)) == (num_source, num_clip)


@shared
def test_edge_videos():
    edge = SHARED / "edge-videos"
    native = DecodeConfig(fps="native", min_frames=2)
    rotated = open_path(edge / "nasa_13013_rotated.mp4", native)
    assert (len(rotated), rotated.height, rotated.width) == (17, 480, 270)
    assert next(iter(rotated)).shape == (480, 270, 3)
    late = open_path(edge / "test_non_zero_start.mp4", native)
    assert len(late) == sum(1 for _ in late) == 12
    assert late.timing.time_s[0] == pytest.approx(8.333, abs=1e-3)
    assert late.pixel_aspect == pytest.approx(224 / 225)
    discarded = open_path(edge / "discard_first_keyframe.mp4", native)
    assert len(discarded) == sum(1 for _ in discarded) == 25
    assert discarded.timing.time_s[0] == 0
    odd = open_path(edge / "testsrc2_odd_height_and_width_vp9.mp4", native)
    assert (len(odd), odd.height, odd.width) == (25, 241, 321)
    assert next(iter(odd)).shape == (241, 321, 3)
    ten_bit = open_path(edge / "h264_10bits.mp4", native)
    assert [f.dtype for f in ten_bit] == [np.dtype(np.uint8)] * 30
    assert rejection(edge / "truncated.mp4").reason == "truncated_video"


@pytest.mark.slow
@shared
@pytest.mark.parametrize(
    ("name", "num_source", "num_clip"),
    [("dog.mp4", 122, 65), ("generated-walk-16fps.mp4", 81, 81), ("handheld-forward-1080p.mov", 40, 22)],
)
def test_real_clips_have_no_cuts(name, num_source, num_clip, thorough):
    look = thorough or name.endswith(".mov")
    frames = open_path(SHARED / "clips" / name, WITH_CUTS.model_copy(update={"detect_cuts": look}))
    assert (frames.num_source_frames, len(frames)) == (num_source, num_clip)
    if look:
        assert frames.cuts == ()
    assert max(frames.height, frames.width) == 1280


@shared
def test_a_source_slower_than_16_fps():
    path = SHARED / "clips" / "generated-street-15fps.mp4"
    assert rejection(path).reason == "source_fps_below_16"
    assert len(open_path(path, DecodeConfig(fps="native"))) == 195


@pytest.mark.slow
@shared
def test_shot_changes_and_the_best_of_two_streams(thorough):
    path = SHARED / "clips" / "nasa-cut.mp4"
    frames = open_path(path, WITH_CUTS)
    assert (frames.num_source_frames, frames.height, frames.width) == (390, 270, 480)
    assert "2 video streams; stream 3 (480x270) is used" in frames.notes
    dissolve, cut = frames.cuts
    assert abs(dissolve - 86) <= 6  # frames 80 to 92 are mixtures
    assert cut == 128
    if not thorough:
        return
    native = open_path(path, DecodeConfig(fps="native", max_frames=260))
    assert native.cuts[-1] == frames.timing.frame_index[128] == 240


@pytest.mark.slow
@shared
@pytest.mark.parametrize("name", [pytest.param("rgb.mp4", marks=pytest.mark.thorough), "zoom.mp4"])
def test_brisk_motion_and_zoom_are_no_cuts(name, thorough):
    config = DecodeConfig(min_frames=2, max_frames=None if thorough else 40)
    assert open_path(SHARED / "rgbd-office-a" / name, config).cuts == ()


@shared
def test_the_minute_long_case_and_the_resampled_one():
    path = SHARED / "rgbd-redkitchen" / "rgb.mp4"
    minute = open_path(path, DecodeConfig(source_fps=16, max_frames=961))
    assert minute.timing.frame_index.tolist() == list(range(961))
    assert minute.timing.time_s[-1] == 60
    resampled = open_path(path)
    assert len(resampled) == 534
    assert resampled.timing.frame_index[-1] == 999


@shared
def test_png_folder():
    frames = open_path(SHARED / "rgbd-tum-mini" / "rgb", DecodeConfig(min_frames=2), source_fps=30.0)
    assert frames.timing.frame_index.tolist() == [0, 2, 4, 6, 8, 9]
    native = DecodeConfig(fps="native", min_frames=2)
    assert len(open_path(SHARED / "rgbd-tum-mini" / "rgb", native, source_fps=30.0)) == 10
