"""Given geometry: every way in which depth, pose and intrinsics files surprise, and what comes out if they do not."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from theodolite.annotate.frames.base import ClipTiming
from theodolite.annotate.frames.rendered import open_rendered
from theodolite.annotate.geometry.config import RenderedConfig
from theodolite.annotate.geometry.given import GivenAnchor, GivenGeometrySource, omniworld_depth
from theodolite.annotate.geometry.rendered import RenderedAnchor, RenderedGeometrySource
from theodolite.annotate.given.cameras import read_given_cameras, read_intrinsics
from theodolite.annotate.given.depth_files import read_depth_file
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import write_clip
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sources.clip import ClipRef, ClipRejection, GivenGeometry

from ...support import SHARED
from ...typed import known
from ..unseen import UnseenFrames

PNG = cv2.imencode(".png", np.arange(45 * 80, dtype=np.uint16).reshape(45, 80))[1].tobytes()


def timing(*index: int) -> ClipTiming:
    return ClipTiming(frame_index=np.array(index), time_s=np.array(index) / 30.0, source_fps=30.0, fps=16.0)


FRAMES = UnseenFrames(timing(0, 2, 3, 5))


def clip_of(folder: Path, pattern: str = "{frame:06d}.png", **given) -> ClipRef:
    return ClipRef(
        clip_id="c1",
        source="test",
        original_id="c1",
        media_kind="video",
        media_path=folder / "rgb.mp4",
        given=GivenGeometry(depth_pattern=str(folder / pattern), **given),
    )


def write_png_maps(folder: Path, count: int = 6, size: tuple[int, int] = (45, 80)) -> None:
    for i in range(count):
        depth = np.full(size, 1000 * (i + 1), np.uint16)
        depth[0, 0] = 0
        cv2.imwrite(str(folder / f"{i:06d}.png"), depth)


def write_npy_maps(folder: Path, maps: list[np.ndarray]) -> None:
    for i, depth in enumerate(maps):
        np.save(folder / f"{i:06d}.npy", depth)


def rejection(clip: ClipRef, frames: UnseenFrames = FRAMES, *, read: int | None = None) -> ClipRejection:
    def attempt() -> None:
        result = GivenGeometrySource().read(clip, frames)
        if read is not None:
            result.depth.read(read)

    with pytest.raises(ClipRejection) as caught:
        attempt()
    assert "c1" in caught.value.detail
    return caught.value


def test_depth_follows_the_source_frame_index_and_the_declared_unit(tmp_path) -> None:
    write_png_maps(tmp_path)
    result = GivenGeometrySource().read(clip_of(tmp_path, depth_units_per_metre=500.0), FRAMES)
    assert result.metres_per_unit == 1.0
    assert len(result.depth) == 4
    for frame, source in enumerate((0, 2, 3, 5)):
        depth = known(result.depth.read(frame))
        assert depth.dtype == np.float32
        assert np.isnan(depth[0, 0])
        np.testing.assert_allclose(depth[1:], 2.0 * (source + 1))
    assert result.camera_to_world is None
    assert result.focal_px is None


def test_an_undeclared_unit_stays_undeclared(tmp_path) -> None:
    write_png_maps(tmp_path)
    result = GivenGeometrySource().read(clip_of(tmp_path), FRAMES)
    assert result.metres_per_unit is None
    np.testing.assert_allclose(known(result.depth.read(1))[1:], 3000.0)


def test_float_maps_keep_sky_and_lose_what_is_no_depth(tmp_path) -> None:
    depth = np.full((45, 80), 2.0, np.float32)
    depth[0, :4] = [np.nan, np.inf, -np.inf, -1.0]
    depth[1, 0] = 7.0
    for i in range(6):
        np.savez(tmp_path / f"{i:06d}.npz", depth=depth, other=np.zeros(3))
    clip = clip_of(tmp_path, "{frame:06d}.npz", depth_units_per_metre=1.0, depth_invalid_value=7.0)
    read = known(GivenGeometrySource().read(clip, FRAMES).depth.read(0))
    assert np.isposinf(read[0, 1])
    assert np.isnan(read[0, [0, 2, 3]]).all()
    assert np.isnan(read[1, 0])
    np.testing.assert_allclose(read[2:], 2.0)


@pytest.mark.parametrize("kind", ["z", "ray_distance"])
def test_all_bits_set_and_overflown_halves_are_no_measurement(tmp_path, kind) -> None:
    np.savetxt(tmp_path / "K.txt", [[300.0, 0, 160], [0, 300, 90], [0, 0, 1]])
    stored = np.full((45, 80), 2000, np.uint16)
    stored[0, :3] = [65535, 65534, 0]
    halves = np.full((45, 80), 2000, np.float16)
    halves[0, :3] = [np.inf, 65504, -np.inf]
    for i in range(6):
        cv2.imwrite(str(tmp_path / f"{i:06d}.png"), stored)
        np.save(tmp_path / f"{i:06d}.npy", halves)
    for pattern in ("{frame:06d}.png", "{frame:06d}.npy"):
        clip = clip_of(
            tmp_path,
            pattern,
            depth_units_per_metre=1000.0,
            depth_kind=kind,
            intrinsics_path=tmp_path / "K.txt",
        )
        depth = known(GivenGeometrySource().read(clip, FRAMES).depth.read(0))
        assert np.isnan(depth[0, [0, 2]]).all()
        assert 40 < depth[0, 1] < 66
        assert np.isfinite(depth).sum() == depth.size - 2


def test_infinite_disparity_is_no_depth_of_nought(tmp_path) -> None:
    disparity = np.full((45, 80), 0.5, np.float32)
    disparity[0, 0] = np.inf
    write_npy_maps(tmp_path, [disparity] * 6)
    clip = clip_of(tmp_path, "{frame:06d}.npy", depth_kind="disparity")
    depth = known(GivenGeometrySource().read(clip, FRAMES).depth.read(0))
    assert np.isnan(depth[0, 0])
    np.testing.assert_allclose(depth[1:], 2.0)


def test_disparity(tmp_path) -> None:
    disparity = np.full((45, 80), 0.5, np.float32)
    disparity[0, 0], disparity[0, 1], disparity[0, 2] = 0.0, -1.0, np.nan
    write_npy_maps(tmp_path, [disparity] * 6)
    measured = clip_of(tmp_path, "{frame:06d}.npy", depth_kind="disparity")
    depth = known(GivenGeometrySource().read(measured, FRAMES).depth.read(0))
    np.testing.assert_allclose(depth[1:], 2.0)
    assert np.isnan(depth[0, :3]).all()  # 0 is the invalid value unless another is named
    far = clip_of(tmp_path, "{frame:06d}.npy", depth_kind="disparity", depth_invalid_value=-1.0)
    depth = known(GivenGeometrySource().read(far, FRAMES).depth.read(0))
    assert np.isposinf(depth[0, 0])
    assert np.isnan(depth[0, 1:3]).all()


def test_ray_distances_become_z_at_another_resolution(tmp_path) -> None:
    """A wall at z = 3 seen through a lens whose principal point is off centre; intrinsics are of the source size."""
    K = np.array([[300.0, 0, 150], [0, 310.0, 95], [0, 0, 1]])
    np.savetxt(tmp_path / "K.txt", K)
    u, v = np.meshgrid((np.arange(80) + 0.5) * 4, (np.arange(45) + 0.5) * 4)
    distance = 3.0 * np.sqrt(((u - 150) / 300) ** 2 + ((v - 95) / 310) ** 2 + 1)
    write_npy_maps(tmp_path, [distance] * 6)
    clip = clip_of(
        tmp_path,
        "{frame:06d}.npy",
        depth_units_per_metre=1.0,
        depth_kind="ray_distance",
        intrinsics_path=tmp_path / "K.txt",
    )
    result = GivenGeometrySource().read(clip, FRAMES)
    np.testing.assert_allclose(known(result.depth.read(2)), 3.0, rtol=1e-6)
    cameras = read_given_cameras(clip, FRAMES)
    assert cameras is not None
    assert cameras.camera_to_world is None
    np.testing.assert_allclose(known(cameras.focal_px), [[150, 155]] * 4)  # stored at half of the source size
    np.testing.assert_allclose(known(cameras.principal_point_px), [[75, 47.5]] * 4)
    blind = replace(clip, given=replace(clip.given, intrinsics_path=None))
    assert rejection(blind).reason == "ray_distance_without_intrinsics"


def test_per_frame_intrinsics_and_poses_follow_the_frame_index(tmp_path) -> None:
    write_png_maps(tmp_path)
    rows = "\n".join(f"{i},{400 + i},{410 + i},160,90" for i in range(6))
    (tmp_path / "k.csv").write_text("frame,fx,fy,cx,cy\n" + rows)
    poses = np.tile(np.eye(4), (6, 1, 1))
    poses[:, 0, 3] = np.arange(6)
    np.savetxt(tmp_path / "poses.txt", poses.reshape(6, 16))
    clip = clip_of(
        tmp_path,
        depth_units_per_metre=1000.0,
        intrinsics_path=tmp_path / "k.csv",
        camera_to_world_path=tmp_path / "poses.txt",
        poses_metric=True,
    )
    found = read_given_cameras(clip, FRAMES)
    assert found is not None
    assert found.focal_px is not None
    assert found.camera_to_world is not None
    np.testing.assert_allclose(found.focal_px[:, 0], (400 + np.array([0, 2, 3, 5])) / 2)
    np.testing.assert_allclose(found.camera_to_world[:, 0, 3], [0, 2, 3, 5])
    np.testing.assert_array_equal(found.position, [0, 1, 2, 3])
    assert found.metres_per_unit == 1.0
    own = replace(clip, given=replace(clip.given, poses_metric=False))
    unknown = read_given_cameras(own, FRAMES)
    assert unknown is not None
    assert unknown.metres_per_unit is None
    mixed = replace(clip, given=replace(clip.given, depth_units_per_metre=None))
    assert rejection(mixed).reason == "given_units_disagree"
    np.savetxt(tmp_path / "poses.txt", poses[:5].reshape(5, 16))
    with pytest.raises(ClipRejection, match="pose_count_mismatch: clip c1: 5 poses"):
        read_given_cameras(clip, FRAMES)
    np.savetxt(tmp_path / "poses.txt", poses.reshape(6, 16))
    (tmp_path / "k.csv").write_text("frame,fx,fy,cx,cy\n0,400,400,160,90\n1,400,400,160,90\n")
    with pytest.raises(ClipRejection, match="intrinsics_count_mismatch"):
        read_given_cameras(clip, FRAMES)


def test_another_number_of_depth_files(tmp_path) -> None:
    write_png_maps(tmp_path, count=5)
    found = rejection(clip_of(tmp_path))
    assert found.reason == "depth_frame_count_mismatch"
    assert "5 depth files" in found.detail
    assert "6 frames" in found.detail
    # Where the source was not counted, the frames in use decide.
    uncounted = replace(FRAMES, num_source_frames=None)
    assert rejection(clip_of(tmp_path), uncounted).reason == "depth_frame_count_mismatch"
    within = replace(uncounted, timing=timing(0, 2, 4))
    assert len(GivenGeometrySource().read(clip_of(tmp_path), within).depth) == 3


def test_a_pattern_that_no_file_matches_says_what_is_there(tmp_path) -> None:
    write_png_maps(tmp_path, count=6)
    clip = clip_of(tmp_path)
    short = replace(clip, given=replace(clip.given, depth_pattern=str(tmp_path / "{frame:05d}.png")))
    found = rejection(short)
    assert found.reason == "depth_frame_count_mismatch"
    assert found.detail.endswith("{frame:05d}.png: the folder holds others, e.g. 000000.png")
    (tmp_path / "empty").mkdir()
    empty = replace(clip, given=replace(clip.given, depth_pattern=str(tmp_path / "empty" / "{frame}.png")))
    assert rejection(empty).detail.endswith("the folder is empty")


def test_a_hole_in_the_numbering(tmp_path) -> None:
    """A frame without its file has no depth; the others keep theirs."""
    write_png_maps(tmp_path, count=6)
    used = FRAMES.timing.frame_index.tolist()
    whole = GivenGeometrySource().read(clip_of(tmp_path), FRAMES).depth
    expected = [whole.read(i) for i in range(len(used))]
    holes = {used[0], used[2]}
    for hole in holes:
        (tmp_path / f"{hole:06d}.png").unlink()
    depth = GivenGeometrySource().read(clip_of(tmp_path), FRAMES).depth
    assert [depth.read(i) is None for i in range(len(used))] == [f in holes for f in used]
    np.testing.assert_array_equal(known(depth.read(3)), expected[3])
    # With most of them missing, it is no recorder that dropped some.
    (tmp_path / f"{used[1]:06d}.png").unlink()
    found = rejection(clip_of(tmp_path))
    assert found.reason == "depth_frame_count_mismatch"
    assert f"3 of the clip's {len(used)} frames have no depth file" in found.detail


def test_files_counted_from_one_are_not_taken_for_holes(tmp_path) -> None:
    write_png_maps(tmp_path, count=7)
    (tmp_path / "000000.png").unlink()
    found = rejection(clip_of(tmp_path))
    assert found.reason == "depth_frame_count_mismatch"
    assert "7 depth files" in found.detail
    assert "1 of them missing" in found.detail


def test_files_of_other_names_do_not_count(tmp_path) -> None:
    write_png_maps(tmp_path)
    (tmp_path / "thumbs.png").write_bytes(b"")
    (tmp_path / "6.png").write_bytes(b"")
    assert len(GivenGeometrySource().read(clip_of(tmp_path), FRAMES).depth) == 4


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("depth_unreadable", lambda f: (f / "000002.png").write_bytes(b"not a png")),
        ("depth_unreadable", lambda f: cv2.imwrite(str(f / "000002.png"), np.ones((45, 80), np.uint8))),
        ("depth_unreadable", lambda f: cv2.imwrite(str(f / "000002.png"), np.ones((45, 80, 3), np.uint16))),
        ("depth_size_changed", lambda f: cv2.imwrite(str(f / "000002.png"), np.ones((90, 160), np.uint16))),
    ],
)
def test_a_bad_file_in_the_middle(tmp_path, reason: str, change) -> None:
    write_png_maps(tmp_path)
    change(tmp_path)
    found = rejection(clip_of(tmp_path), read=1)
    assert found.reason == reason
    assert "000002.png" in found.detail


def palette_png(path: Path) -> None:
    """Indexed colours of 8 bits, as tools write that paint depth."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 80, 45, 8, 3, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes(range(80)) for _ in range(45)))
    parts = (b"IHDR", header), (b"PLTE", bytes(range(240))), (b"IDAT", rows), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def lying_npy(path: Path) -> None:
    """A header that asks for more memory than there is."""
    np.save(path, np.ones((45, 80), np.float32))
    stored = path.read_bytes()
    header = stored[10:127].replace(b"(45, 80)", b"(99999999, 99999999)").rstrip().ljust(117)
    path.write_bytes(stored[:10] + header + stored[127:])


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("000002.png", palette_png, "of 8 bits"),
        ("000002.png", lambda p: cv2.imwrite(str(p), np.ones((45, 80), np.uint8)), "found 1 of 8 bits"),
        ("000002.png", lambda p: cv2.imwrite(str(p), np.ones((45, 80, 3), np.uint16)), "found 3 of 16 bits"),
        ("000002.npy", lambda p: np.save(p, np.ones((45, 80, 3))), "found shape (45, 80, 3)"),
        ("000002.npy", lambda p: np.save(p, np.ones((6, 45, 80))), "write a file for each frame"),
        ("000002.npy", lambda p: np.save(p, np.ones((45, 80), bool)), "of bool"),
        ("000002.npy", lambda p: np.save(p, np.ones((45, 80), complex)), "holds complex128 values"),
        ("000002.npy", lying_npy, "not a readable numpy file"),
        ("000002.npz", lambda p: np.savez(p, a=np.ones((45, 80)), b=np.ones((45, 80))), "['a', 'b']"),
        ("000002.exr", lambda p: p.write_bytes(b"v/1\x01"), "not .exr; convert others to float .npy"),
        ("000002.png", lambda p: p.write_bytes(PNG[: len(PNG) // 2]), "ends before its picture does"),
    ],
)
def test_files_that_hold_no_depth_are_refused_by_name(tmp_path, name: str, write, words: str) -> None:
    write(tmp_path / name)
    with pytest.raises(ClipRejection) as caught:
        read_depth_file(tmp_path / name, clip_id="c1")
    assert caught.value.reason == "depth_unreadable"
    assert caught.value.detail.startswith(f"clip c1: {tmp_path / name}: ")
    assert words in caught.value.detail


def test_turned_depth_is_refused_with_the_turn(tmp_path) -> None:
    write_png_maps(tmp_path, size=(80, 45))
    found = rejection(clip_of(tmp_path))
    assert found.reason == "depth_aspect_mismatch"
    assert "turned by 90 degrees or transposed" in found.detail


def test_depth_of_another_field_of_view(tmp_path) -> None:
    write_png_maps(tmp_path, size=(60, 80))
    found = rejection(clip_of(tmp_path))
    assert found.reason == "depth_aspect_mismatch"
    assert "80x60" in found.detail


def test_depth_of_a_camera_beside_the_colours_is_laid_onto_the_image(tmp_path) -> None:
    """Two cameras look at one slanted wall; that of the depth has the longer lens and sees 0.8 of the view."""
    height, width, focal = 90, 160, 120.0

    def seen(by: float) -> np.ndarray:
        x = (np.arange(width) + 0.5 - width / 2) / by
        return np.tile(3.0 / (1 - 0.4 * x), (height, 1))  # z of the plane z = 3 + 0.4 x

    write_npy_maps(tmp_path, [seen(focal / 0.8)] * 6)
    given = {"depth_units_per_metre": 1.0, "depth_view": 0.8}
    z = known(GivenGeometrySource().read(clip_of(tmp_path, "{frame:06d}.npy", **given), FRAMES).depth.read(0))
    assert z is not None
    covered = np.isfinite(z)
    np.testing.assert_allclose(z[covered], seen(focal)[covered], rtol=0.004)
    rows, columns = covered.any(1), covered.any(0)
    assert (rows.sum(), columns.sum()) == (72, 128)
    assert covered[9:81, 16:144].all()
    plain = GivenGeometrySource().read(
        clip_of(tmp_path, "{frame:06d}.npy", depth_units_per_metre=1.0), FRAMES
    )
    assert np.isfinite(known(plain.depth.read(0))).all()
    # Of the wider view the image sees the middle.
    write_npy_maps(tmp_path, [seen(focal / 1.25)] * 6)
    wide = clip_of(tmp_path, "{frame:06d}.npy", **(given | {"depth_view": 1.25}))
    z = known(GivenGeometrySource().read(wide, FRAMES).depth.read(0))
    np.testing.assert_allclose(z, seen(focal), rtol=0.004)


def test_distances_along_the_rays_of_a_camera_beside_the_colours(tmp_path) -> None:
    height, width, focal, view = 90, 160, 120.0, 0.8
    y, x = ((np.arange(n) + 0.5 - n / 2) * view / focal for n in (height, width))
    write_npy_maps(tmp_path, [3.0 * np.sqrt(1 + x**2 + y[:, None] ** 2)] * 6)  # a wall at 3 m
    intrinsics = tmp_path / "K.txt"
    np.savetxt(intrinsics, [[2 * focal, 0, width], [0, 2 * focal, height], [0, 0, 1]])  # of 320x180
    given = {"depth_units_per_metre": 1.0, "depth_kind": "ray_distance", "intrinsics_path": intrinsics}
    clip = clip_of(tmp_path, "{frame:06d}.npy", depth_view=view, **given)
    z = known(GivenGeometrySource().read(clip, FRAMES).depth.read(0))
    np.testing.assert_allclose(z[np.isfinite(z)], 3.0, rtol=1e-5)


def test_nothing_but_nan(tmp_path) -> None:
    good = np.ones((45, 80), np.float32)
    write_npy_maps(tmp_path, [good, good, np.full((45, 80), np.nan), good, good, good])
    found = rejection(clip_of(tmp_path, "{frame:06d}.npy"), read=1)
    assert found.reason == "depth_not_finite"
    assert "000002.npy" in found.detail
    write_npy_maps(tmp_path, [np.full((45, 80), np.nan)] * 6)
    assert rejection(clip_of(tmp_path, "{frame:06d}.npy")).reason == "depth_not_finite"


def test_not_one_valid_value(tmp_path) -> None:
    for i in range(6):
        cv2.imwrite(str(tmp_path / f"{i:06d}.png"), np.zeros((45, 80), np.uint16))
    found = rejection(clip_of(tmp_path))
    assert found.reason == "depth_all_invalid"
    assert "4 maps" in found.detail


def test_broken_numpy_files_and_patterns(tmp_path) -> None:
    for i in range(6):
        (tmp_path / f"{i:06d}.npz").write_bytes(b"PK\x03\x04 cut off")
        np.save(tmp_path / f"{i:06d}.npy", np.array([["a"]]))
    assert rejection(clip_of(tmp_path, "{frame:06d}.npz")).reason == "depth_unreadable"
    assert rejection(clip_of(tmp_path, "{frame:06d}.npy")).reason == "depth_unreadable"
    no_field = rejection(clip_of(tmp_path, "depth.npy"))
    assert no_field.reason == "depth_unreadable"
    assert "{frame:06d}" in no_field.detail
    assert rejection(clip_of(tmp_path / "absent")).reason == "depth_unreadable"
    assert rejection(replace(clip_of(tmp_path), given=GivenGeometry())).reason == "depth_missing"


def test_intrinsics_files(tmp_path) -> None:
    path = tmp_path / "k.txt"
    path.write_text("500 0 320\n0 501 240\n0 0 1\n")
    assert read_intrinsics(path)[1, 1] == 501
    path.write_text("% as spreadsheets write it\n500,5;0;320\n0;501,5;240\n0;0;1\n")
    assert read_intrinsics(path)[1].tolist() == [0, 501.5, 240]
    for text in ("500 0 320\n0 501 240\n", "fx,fy,cx\n1,2,3\n", "fx,fy,cx,cy\n-5,5,1,1\n", "", "a b c\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"k\.txt"):
            read_intrinsics(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_intrinsics(tmp_path / "absent.txt")


def test_anchor_on_some_frames_only(tmp_path) -> None:
    for source in (0, 3, 4):
        cv2.imwrite(str(tmp_path / f"a{source:03d}.png"), np.full((9, 16), 2500, np.uint16))
    cv2.imwrite(str(tmp_path / "a003.png"), np.zeros((9, 16), np.uint16))
    clip = ClipRef(
        clip_id="c1",
        source="test",
        original_id="c1",
        media_kind="video",
        media_path=tmp_path / "rgb.mp4",
        given=GivenGeometry(
            anchor_depth_pattern=str(tmp_path / "a{frame:03d}.png"), anchor_units_per_metre=1000.0
        ),
    )
    anchor = GivenAnchor()
    assert anchor.available_frames(clip, FRAMES) == [0, 2]
    found = anchor.read(clip, FRAMES, [0, 1, 2])
    assert [a.frame for a in found] == [0, 2]
    np.testing.assert_allclose(found[0].depth_m, 2.5)
    assert np.isnan(found[1].depth_m).all()
    unknown = replace(clip, given=replace(clip.given, anchor_units_per_metre=None))
    with pytest.raises(ClipRejection, match="anchor_unit_unknown"):
        anchor.read(unknown, FRAMES, [0])
    assert anchor.read(replace(clip, given=GivenGeometry()), FRAMES, [0]) == []


@pytest.mark.slow
def test_what_the_renderer_writes_is_what_given_reads(tmp_path) -> None:
    config = RenderConfig(width=160, height=90, num_frames=6, depth_width=80, depth_height=45)
    rendered = render_clip(config)
    files = write_clip(rendered, tmp_path, media="images", depth_units_per_metre=2700.0)
    clip = ClipRef(
        clip_id="c1",
        source="test",
        original_id="c1",
        media_kind="images",
        media_path=files.media_path,
        given=GivenGeometry(
            depth_pattern=files.depth_pattern,
            depth_units_per_metre=2700.0,
            camera_to_world_path=files.camera_to_world_path,
            poses_metric=True,
            intrinsics_path=files.intrinsics_path,
        ),
    )
    frames = replace(FRAMES, source_height=90, source_width=160)
    result = GivenGeometrySource().read(clip, frames)
    cameras = read_given_cameras(clip, frames)
    assert cameras is not None
    assert cameras.camera_to_world is not None
    assert cameras.focal_px is not None
    for frame, source in enumerate((0, 2, 3, 5)):
        np.testing.assert_allclose(
            known(result.depth.read(frame)), rendered.depth_m(source), atol=0.51 / 2700
        )
        np.testing.assert_allclose(
            cameras.camera_to_world[frame], rendered.camera_to_world[source], atol=1e-6
        )
        np.testing.assert_allclose(
            cameras.focal_px[frame], rendered.intrinsics[source, [0, 1], [0, 1]], rtol=1e-6
        )


@pytest.mark.skipif(not (SHARED / "rgbd-office-a").is_dir(), reason="the real recordings are not here")
def test_a_real_recording() -> None:
    folder = SHARED / "rgbd-office-a"
    clip = ClipRef(
        clip_id="c1",
        source="rgbd",
        original_id="office",
        media_kind="video",
        media_path=folder / "rgb.mp4",
        given=GivenGeometry(
            depth_pattern=str(folder / "depth/{frame:06d}.png"),
            depth_units_per_metre=1000.0,
            camera_to_world_path=folder / "poses_c2w.txt",
            poses_metric=True,
            intrinsics_path=folder / "K.txt",
        ),
    )
    frames = UnseenFrames(timing(*range(150)), 360, 540, 360, 540, 150)
    result = GivenGeometrySource().read(clip, frames)
    depth = known(result.depth.read(70))
    cameras = read_given_cameras(clip, frames)
    assert cameras is not None
    assert cameras.focal_px is not None
    assert cameras.camera_to_world is not None
    assert len(cameras.camera_to_world) == 150
    assert 0.4 < np.isnan(depth).mean() + 0.25 < 0.75  # 20 to 45 % of a frame have no value
    assert 0.5 < np.nanmedian(depth) < 5


# --- rendered -------------------------------------------------------------------------------------


def rendered_clip(folder: Path, **fields) -> ClipRef:
    (folder / "render.yaml").write_text(
        yaml.safe_dump({"width": 64, "height": 36, "num_frames": 5, **fields})
    )
    return ClipRef(
        clip_id="c1",
        source="rendered",
        original_id="c1",
        media_kind="rendered",
        media_path=folder / "render.yaml",
        render_seed=3,
    )


@pytest.mark.slow
def test_rendered_geometry_hides_its_unit(tmp_path) -> None:
    clip = rendered_clip(tmp_path)
    frames = open_rendered(clip)
    truth = render_clip(RenderConfig(width=64, height=36, num_frames=5, seed=3))
    assert np.array_equal(next(iter(frames)), truth.frame(0).rgb)
    assert len(list(frames)) == len(frames) == 5
    result = RenderedGeometrySource(RenderedConfig(metres_per_unit=0.25)).read(clip, frames)
    assert result.metres_per_unit is None
    np.testing.assert_allclose(known(result.depth.read(4)) * 0.25, truth.depth_m(4), rtol=1e-6)
    declared = RenderedGeometrySource(RenderedConfig(declare_metric=True)).read(clip, frames)
    assert declared.metres_per_unit == 1.0
    with pytest.raises(ValueError, match="declare_metric"):
        RenderedGeometrySource(RenderedConfig(declare_metric=True, metres_per_unit=2.0))


@pytest.mark.slow
def test_rendered_anchor_is_as_wrong_as_asked(tmp_path) -> None:
    clip = rendered_clip(tmp_path, num_frames=60, motion="static")
    frames = open_rendered(clip)
    config = RenderedConfig(anchor_sigma_log=0.05, anchor_invalid_share=0.2)
    anchors = RenderedAnchor(config).read(clip, frames, range(60))
    truth = frames.rendered.depth_m(0)
    errors = np.array([np.nanmedian(np.log(a.depth_m / truth)) for a in anchors])
    assert errors.std() == pytest.approx(0.05, rel=0.35)
    assert abs(errors.mean()) < 0.025
    assert np.mean([np.isnan(a.depth_m).mean() for a in anchors]) == pytest.approx(0.2, abs=0.01)
    again = RenderedAnchor(config).read(clip, frames, [7])[0]
    np.testing.assert_array_equal(again.depth_m, anchors[7].depth_m)


def test_a_wrong_render_configuration_is_a_rejection(tmp_path) -> None:
    with pytest.raises(ClipRejection, match="widht"):
        open_rendered(rendered_clip(tmp_path, widht=3))
    clip = replace(rendered_clip(tmp_path), media_path=tmp_path / "absent.yaml")
    with pytest.raises(ClipRejection, match="unreadable_video"):
        open_rendered(clip)


def test_omniworld_depth_table() -> None:
    """250 u / (65535000 - 999 u), the released formula multiplied out; 98 is too near, 65501 is sky."""
    stored = np.array([[0, 98, 99, 13107, 32768], [60000, 65499, 65500, 65501, 65535]], np.uint16)
    depth = omniworld_depth(stored)
    assert np.isnan(depth[0, :2]).all()
    np.testing.assert_allclose(depth[0, 2:], [3.78232e-4, 0.0624844, 0.249758], rtol=3e-6)
    np.testing.assert_allclose(depth[1, :3], [2.680965, 161.32918, 162.93532], rtol=3e-6)
    assert np.isposinf(depth[1, 3:]).all()
