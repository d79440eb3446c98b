"""The one decoder: frames by number equal those decoded from the start, and are shown the way players show them."""

import itertools
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.sources.clip import ClipRef
from theodolite.dataset.media import video as video_module
from theodolite.dataset.media.errors import MediaError
from theodolite.dataset.media.orientation import ORIENTATIONS, Orientation
from theodolite.dataset.media.packets import scan_packets
from theodolite.dataset.media.read import count_video_frames, image_paths, read_frames, video_frames
from theodolite.dataset.media.video import Video, open_video, open_video_at
from theodolite.dataset.report.pictures import thumbnail_from_media
from theodolite.dataset.rows import Row
from theodolite.dataset.words import MediaKind

from ...support import SHARED

HEIGHT, WIDTH = 48, 64
QUARTERS = {"R": (220, 30, 30), "G": (30, 200, 30), "B": (30, 30, 220), "W": (230, 230, 230)}
SHOWN = ("RGBW", "GRWB", "WBGR", "BWRG", "RBGW", "BRWG", "WGBR", "GWRB")
"""Quarters of the test picture as ffplay and image viewers show it under EXIF orientation 1 to 8: upper left, upper
right, lower left, lower right. (FFmpeg 5.1 showed the same for the display matrices of MP4, MOV, MKV and WebM.)"""


def drawn_quarters() -> np.ndarray:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    half_height, half_width = HEIGHT // 2, WIDTH // 2
    image[:half_height, :half_width], image[:half_height, half_width:] = QUARTERS["R"], QUARTERS["G"]
    image[half_height:, :half_width], image[half_height:, half_width:] = QUARTERS["B"], QUARTERS["W"]
    return image


def quarters(image: np.ndarray) -> str:
    height, width = image.shape[:2]
    names = list(QUARTERS)
    colours = np.array(list(QUARTERS.values()))
    return "".join(
        names[int(np.abs(colours - image[y * height // 4, x * width // 4]).sum(1).argmin())]
        for y, x in ((1, 1), (1, 3), (3, 1), (3, 3))
    )


def display_matrix(orientation: Orientation, scale: float = 1.0) -> list[int]:
    """As `tkhd` boxes hold it: (p, q) is shown at (a p + c q, b p + d q)."""
    a, c, b, d = (
        round(65536 * scale * x) for x in (orientation.xx, orientation.xy, orientation.yx, orientation.yy)
    )
    return [a, b, 0, c, d, 0, 0, 0, 1 << 30]


def write(
    path: Path,
    images,
    *,
    codec: str = "libx264",
    rate: int = 30,
    options: dict[str, str] | None = None,
    matrix: list[int] | None = None,
) -> Path:
    with av.open(str(path), "w") as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=rate, options=options))
        stream.pix_fmt = "yuv420p"
        if matrix is not None:
            cast(Any, stream).set_display_matrix(matrix)
        for i, image in enumerate(images):
            if i == 0:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def moving(count: int) -> list[np.ndarray]:
    """Every picture unlike every other, with motion that references frames on both sides."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 255, (HEIGHT, WIDTH + 2 * count, 3), dtype=np.uint8)
    return [np.ascontiguousarray(ground[:, 2 * i : 2 * i + WIDTH]) for i in range(count)]


def from_the_start(video: Video) -> list[bytes]:
    """Pixels of all frames by plain decoding."""
    convert = VideoReformatter()
    with av.open(str(video.path)) as container:
        return [
            video.orientation.show(
                np.asarray(convert.reformat(frame, format="rgb24", threads=1).to_ndarray())
            ).tobytes()
            for frame in container.decode(cast(VideoStream, container.streams[video.stream_index]))
        ]


# --- frames by number ----------------------------------------------------------------------------

OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "options", "seeks"),
    [
        ("a.mp4", "libx264", OPEN_GOP, True),
        ("a.mkv", "libx264", OPEN_GOP, True),
        ("a.ts", "libx264", OPEN_GOP, True),
        ("a.flv", "libx264", {"g": "12"}, True),
        # Key frames that are none: the picture is refreshed strip by strip.
        ("refresh.mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}, True),
        ("hevc.mp4", "libx265", {"x265-params": "log-level=error:keyint=12:open-gop=1:bframes=4"}, True),
        ("a.webm", "libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8"}, True),
        ("a.mpg", "mpeg2video", {"g": "12", "bf": "2"}, False),  # not every packet has a time
        ("a.avi", "libx264", {"g": "12", "bf": "2"}, False),  # no presentation times: counted
        ("vp8.webm", "libvpx", {"g": "12"}, False),  # packets that show nothing
    ],
)
def test_frames_reached_by_seeking_are_those_decoded_from_the_start(
    tmp_path, monkeypatch, name, codec, options, seeks
):
    path = write(tmp_path / name, moving(80), codec=codec, options=options)
    video = open_video("c", path)
    truth = from_the_start(video)
    assert len(video.timeline.ticks) == len(truth) == 80
    ways: list[int | None] = []
    frames = Video._frames
    monkeypatch.setattr(Video, "_frames", lambda self, c, s, key: ways.append(key) or frames(self, c, s, key))
    for i in (0, 1, 11, 12, 13, 30, 50, 61, 79):
        ((alone,),) = [list(open_video_at("c", path, i).read(np.array([i])))]
        assert alone.tobytes() == truth[i], f"frame {i}"
    assert any(key is not None for key in ways) == seeks
    some = np.array([2, 3, 40, 41, 78])  # with jumps in between
    assert [rgb.tobytes() for rgb in video.read(some)] == [truth[i] for i in some]
    assert [rgb.tobytes() for rgb in video_frames("c", path, np.arange(80))] == truth


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="real recordings (../shared/data) are not here")
@pytest.mark.parametrize(
    "name",
    [
        "edge-videos/coded_edit_list.mp4",
        "edge-videos/coded_open_gop_30fps.mp4",
        "edge-videos/coded_vfr.mp4",
        "edge-videos/discard_first_keyframe.mp4",
        "edge-videos/nasa_13013_rotated.mp4",
        "edge-videos/test_non_zero_start.mp4",
        "clips/nasa-cut.mp4",
    ],
)
def test_edge_cases_too(name):
    video = open_video("c", SHARED / name)
    truth = from_the_start(video)
    chosen = np.unique(np.linspace(0, len(truth) - 1, 9).astype(int))
    for i in chosen:
        (alone,) = open_video_at("c", video.path, int(i)).read(np.array([i]))
        assert alone.tobytes() == truth[i], f"frame {i}"
    assert [rgb.tobytes() for rgb in video.read(chosen)] == [truth[i] for i in chosen]
    assert count_video_frames("c", video.path)[0] == len(truth)


@pytest.mark.slow
def test_the_end_of_a_long_video_costs_no_more_than_its_own_frames(tmp_path, monkeypatch):
    path = write(
        tmp_path / "v.mp4",
        (np.full((HEIGHT, WIDTH, 3), i % 200, np.uint8) for i in range(3000)),
        options={"g": "30", "preset": "ultrafast"},
    )
    decoded = 0
    frames = Video._frames

    def counted(self, container, stream, key):
        nonlocal decoded
        for frame in frames(self, container, stream, key):
            decoded += 1
            yield frame

    monkeypatch.setattr(Video, "_frames", counted)
    assert sum(1 for _ in video_frames("c", path, np.arange(2900, 3000))) == 100
    assert decoded <= 130
    # A window at the beginning does not read to the end.
    video_module._seen.clear()
    assert len(open_video_at("c", path, 40).timeline.ticks) < 400
    # Later and later frames do not scan the file again each time.
    scans = []
    scan = scan_packets
    monkeypatch.setattr(video_module, "scan_packets", lambda *a, **k: scans.append(1) or scan(*a, **k))
    for i in range(40, 3000, 40):
        open_video_at("c", path, i)
    assert len(scans) <= 6


def test_a_changed_file_is_looked_at_anew(tmp_path):
    path = write(tmp_path / "v.mp4", moving(20))
    assert open_video_at("c", path, 19).width == WIDTH
    write(path, [image[:, :32] for image in moving(30)])
    assert (open_video_at("c", path, 29).width, len(open_video_at("c", path, 29).timeline.ticks)) == (32, 30)


def test_frames_beyond_the_end_and_cut_files(tmp_path):
    path = write(tmp_path / "v.mkv", moving(80), options={"g": "10"})
    with pytest.raises(MediaError, match=r"clip c: .*v\.mkv: ends after 80 frames, number 80 is wanted"):
        list(video_frames("c", path, np.array([3, 80])))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert len(list(video_frames("c", path, np.arange(20)))) == 20  # its beginning is still there
    with pytest.raises(MediaError, match="ends after"):
        list(video_frames("c", path, np.array([79])))
    with pytest.raises(MediaError) as caught:
        open_video("c", path)
    assert caught.value.reason == "truncated_video"


# --- which way up --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize(("orientation", "shown"), list(zip(ORIENTATIONS, SHOWN, strict=True)))
def test_display_matrices_are_shown_as_players_do(tmp_path, suffix, orientation, shown):
    path = write(tmp_path / f"v.{suffix}", [drawn_quarters()] * 3, matrix=display_matrix(orientation))
    video = open_video("c", path)
    (first,) = video.read(np.array([0]))
    assert quarters(first) == shown
    assert first.shape == (video.height, video.width, 3)
    assert (video.width < video.height) == orientation.swaps_sides
    assert bool(video.notes) == (shown != "RGBW")


def test_matrices_that_are_no_quarter_turn(tmp_path):
    half = round(65536 * np.sqrt(0.5))
    for name, matrix in (
        ("turn", [half, half, 0, -half, half, 0, 0, 0, 1 << 30]),
        ("shear", [65536, 0, 0, 30000, 65536, 0, 0, 0, 1 << 30]),
        ("perspective", [65536, 0, 1 << 20, 0, 65536, 0, 0, 0, 1 << 30]),
        ("flat", [65536, 0, 0, 65536, 0, 0, 0, 0, 1 << 30]),
    ):
        with pytest.raises(ValueError, match="no multiple of a quarter turn"):
            Orientation.of_display_matrix(matrix)
        path = write(tmp_path / f"{name}.mp4", [drawn_quarters()] * 3, matrix=matrix)
        if name in ("turn", "shear"):  # FFmpeg's writer keeps these
            with pytest.raises(MediaError, match=r"clip c: .*\.mp4: its display matrix") as caught:
                open_video("c", path)
            assert caught.value.reason == "orientation_unsupported"
    assert not Orientation.of_display_matrix([0] * 9)
    assert not Orientation.of_display_matrix(display_matrix(ORIENTATIONS[0], 2.0))  # a scale is no turn
    nearly = [65530, 400, 0, -400, 65530, 0, 0, 0, 1 << 30]
    assert not Orientation.of_display_matrix(nearly)


def test_a_video_that_turns_on_the_way(tmp_path, monkeypatch):
    """Some encoders change the orientation within the stream (SEI of H.264); here the decoder is made to say so."""
    path = write(tmp_path / "v.mp4", moving(24))
    video = open_video("c", path)
    said = itertools.chain([ORIENTATIONS[0]] * 20, itertools.repeat(ORIENTATIONS[5]))
    monkeypatch.setattr(video_module, "_orientation_of", lambda frame: next(said))
    with pytest.raises(MediaError, match="frame 20 is turned by 90 degrees clockwise") as caught:
        list(video.read(np.arange(24)))
    assert caught.value.reason == "orientation_changed"


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_cameras_follow_their_pixels(orientation):
    """A world point projects to where its pixel is shown, in the camera that the orientation makes."""
    rng = np.random.default_rng(1)
    intrinsics = np.array([[50.0, 0, 30.5], [0, 60.0, 25.25], [0, 0, 1]])
    camera_to_world = np.eye(4)
    axis = rng.normal(size=3)
    cross = np.cross(np.eye(3), axis / np.linalg.norm(axis))
    camera_to_world[:3, :3] = np.eye(3) + np.sin(0.4) * cross + (1 - np.cos(0.4)) * cross @ cross
    camera_to_world[:3, 3] = rng.normal(size=3)
    pixels = np.stack([rng.integers(0, WIDTH, 20), rng.integers(0, HEIGHT, 20)], 1)
    depth = rng.uniform(1, 4, 20)
    rays = np.linalg.solve(intrinsics, np.c_[pixels + 0.5, np.ones(20)].T) * depth
    world = camera_to_world[:3, :3] @ rays + camera_to_world[:3, 3:]
    if orientation.mirrors:  # then the world is mirrored along
        axes = np.array([[orientation.xx, orientation.xy, 0], [orientation.yx, orientation.yy, 0], [0, 0, 1]])
        world = axes @ world
    shown_pose = orientation.show_poses(camera_to_world)
    if not orientation.mirrors:
        # A turn leaves the world as it is, up to the frame of the poses.
        shown_pose = np.linalg.inv(orientation.show_poses(np.eye(4)) @ np.eye(4)) @ shown_pose
        axes = np.array([[orientation.xx, orientation.xy, 0], [orientation.yx, orientation.yy, 0], [0, 0, 1]])
        world = axes @ world
    assert np.linalg.det(shown_pose[:3, :3]) == pytest.approx(1)
    shown_intrinsics = orientation.show_intrinsics(intrinsics, (HEIGHT, WIDTH))
    assert (shown_intrinsics[[0, 1], [0, 1]] > 0).all()
    in_camera = np.linalg.inv(shown_pose) @ np.r_[world, np.ones((1, 20))]
    projected = (shown_intrinsics @ in_camera[:3] / in_camera[2])[:2].T
    np.testing.assert_allclose(in_camera[2], depth)
    for (x, y), at in zip(pixels, projected, strict=True):
        marked = np.zeros((HEIGHT, WIDTH), bool)
        marked[y, x] = True
        ((row,), (column,)) = np.nonzero(orientation.show(marked))
        np.testing.assert_allclose(at, [column + 0.5, row + 0.5], atol=1e-9)


@pytest.mark.parametrize("kind", ["video", "images"])
@pytest.mark.parametrize(("number", "shown"), list(enumerate(SHOWN)))
def test_annotation_loader_thumbnails_and_scores_show_the_same(
    tmp_path: Path, make_row: Callable[..., Row], kind: MediaKind, number: int, shown: str
) -> None:
    orientation = ORIENTATIONS[number]
    if kind == "video":
        media = write(
            tmp_path / "v.mp4", [drawn_quarters()] * 20, rate=16, matrix=display_matrix(orientation)
        )
    else:
        media = tmp_path / "frames"
        media.mkdir()
        coded = av.CodecContext.create("mjpeg", "w")
        coded.width, coded.height, coded.pix_fmt, coded.time_base = WIDTH, HEIGHT, "yuvj420p", Fraction(1, 16)
        frame = av.VideoFrame.from_ndarray(drawn_quarters(), format="rgb24").reformat(format="yuvj420p")
        data = bytes(coded.encode(frame)[0])
        tag = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 274, 3, 1, number + 1, 0, 0)
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(tag) + 2) + tag + data[2:]
        for i in range(20):
            (media / f"{i}.jpg").write_bytes(data)
    clip = ClipRef(
        clip_id="c",
        source="s",
        original_id="c",
        media_kind=kind,
        media_path=media,
        source_fps=16.0,
    )
    annotated = open_clip(clip, DecodeConfig(min_frames=2, max_side_px=None))
    assert annotated.orientation == orientation
    first = next(iter(annotated))
    assert quarters(first) == shown
    row = make_row(
        0,
        frames=len(annotated),
        media_kind=kind,
        media=media.name,
        frame_index=annotated.timing.frame_index,
        time_s=annotated.timing.time_s,
        height=annotated.height,
        width=annotated.width,
    )
    loaded = read_frames(row, tmp_path, positions=[0, 7])
    assert loaded.shape[1:] == first.shape
    assert np.array_equal(loaded[0], first)
    jpeg = thumbnail_from_media(tmp_path, width=80)(row)
    assert jpeg is not None
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert quarters(decoded[..., ::-1]) == shown
    assert decoded.shape[1] / decoded.shape[0] == pytest.approx(row.width / row.height, rel=0.02)
    if kind == "video":
        (scored,) = video_frames("c", media, np.array([3]))
        assert quarters(scored) == shown


def test_thumbnails_show_the_window_and_natural_order(tmp_path: Path, make_row: Callable[..., Row]) -> None:
    shades = [np.full((HEIGHT, WIDTH, 3), 10 * i, np.uint8) for i in range(20)]
    write(tmp_path / "v.mp4", shades)
    (tmp_path / "f").mkdir()
    for i, shade in enumerate(shades):
        cv2.imwrite(str(tmp_path / "f" / f"{i}.png"), shade)
        cv2.imwrite(str(tmp_path / "f" / f"{i}_mask.png"), 255 - shade)
    for media, kind, pattern in (("v.mp4", "video", None), ("f", "images", "*[0-9].png")):
        row = make_row(
            0,
            frames=3,
            media_kind=kind,
            media=media,
            media_pattern=pattern,
            frame_index=[12, 14, 15],
            height=HEIGHT,
            width=WIDTH,
        )
        jpeg = thumbnail_from_media(tmp_path)(row)
        assert jpeg is not None
        decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None
        assert decoded.mean() == pytest.approx(120, abs=4)
    assert [p.name for p in image_paths(row, tmp_path)] == ["12.png", "14.png", "15.png"]
