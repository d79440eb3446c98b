"""Depth and cameras beside media that is shown turned or mirrored are turned along, or the clip is rejected."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
import pytest
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.decoded import DecodedFrames
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.geometry.given import GivenAnchor, GivenGeometrySource
from theodolite.annotate.given.cameras import read_given_cameras, read_given_lens
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sources.clip import ClipRef, ClipRejection, GivenGeometry
from theodolite.dataset.cameras.intrinsics import intrinsics_matrix
from theodolite.dataset.cameras.transforms import se3_inverse
from theodolite.dataset.media.orientation import ORIENTATIONS, Orientation
from theodolite.dataset.rows import Row

from ...typed import known

FRAMES, HEIGHT, WIDTH = 4, 48, 80
K = np.array([[70.0, 0, 41.5], [0, 72.0, 23.0], [0, 0, 1]])
TURNS = [o for o in ORIENTATIONS if o.swaps_sides]
REST = [o for o in ORIENTATIONS if o and not o.swaps_sides]


def poses() -> np.ndarray:
    out = np.tile(np.eye(4), (FRAMES, 1, 1))
    for i, pose in enumerate(out):
        pose[:3, :3] = cv2.Rodrigues(np.array([0.1, 0.2, 0.05]) * i)[0]
        pose[:3, 3] = 0.1 * i, 0.02 * i * i, 0.3 * i
    return out


def depth(i: int) -> np.ndarray:
    return np.arange(1, HEIGHT * WIDTH + 1, dtype=np.uint16).reshape(HEIGHT, WIDTH) + 7 * i


def write_video(path: Path, orientation: Orientation, images: list[np.ndarray]) -> None:
    """Images (h, w, 3) as they are stored, and the display matrix of `orientation`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16, options={"crf": "12"})
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuv420p"
        a, c, b, d = (65536 * x for x in (orientation.xx, orientation.xy, orientation.yx, orientation.yy))
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 16)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def clip_of(folder: Path, orientation: Orientation, shown: bool = False, **given) -> ClipRef:
    """A video of stored size 80x48 with everything beside it, for its pixels as stored or as `shown`."""
    grey = [np.full((HEIGHT, WIDTH, 3), 50 * i, np.uint8) for i in range(FRAMES)]
    write_video(folder / "v.mp4", orientation, grey)
    turn = orientation if shown else ORIENTATIONS[0]
    np.savetxt(folder / "K.txt", turn.show_intrinsics(K, (HEIGHT, WIDTH)))
    np.savetxt(folder / "poses.txt", turn.show_poses(poses()).reshape(FRAMES, 16))
    for i in range(FRAMES):
        cv2.imwrite(str(folder / f"{i}.png"), turn.show(depth(i)))
    return ClipRef(
        clip_id="c",
        source="s",
        original_id="c",
        media_kind="video",
        media_path=folder / "v.mp4",
        given=GivenGeometry(
            **{
                "depth_pattern": str(folder / "{frame}.png"),
                "depth_units_per_metre": 1.0,
                "anchor_depth_pattern": str(folder / "{frame}.png"),
                "anchor_units_per_metre": 1.0,
                "camera_to_world_path": folder / "poses.txt",
                "intrinsics_path": folder / "K.txt",
            }
            | given
        ),
    )


def opened(clip: ClipRef) -> DecodedFrames:
    frames = open_clip(clip, DecodeConfig(min_frames=2, detect_cuts=False))
    assert isinstance(frames, DecodedFrames)
    return frames


def check(clip: ClipRef, orientation: Orientation) -> None:
    """All that is given comes out for the pixels as shown."""
    frames = opened(clip)
    assert (frames.height, frames.width) == orientation.shown_size((HEIGHT, WIDTH))
    cameras = read_given_cameras(clip, frames)
    assert cameras is not None
    assert cameras.focal_px is not None
    assert cameras.principal_point_px is not None
    intrinsics = intrinsics_matrix(cameras.focal_px, cameras.principal_point_px)
    np.testing.assert_allclose(
        intrinsics, np.tile(orientation.show_intrinsics(K, (HEIGHT, WIDTH)), (FRAMES, 1, 1))
    )
    np.testing.assert_allclose(known(cameras.camera_to_world), orientation.show_poses(poses()), atol=1e-9)
    sequence = GivenGeometrySource().read(clip, frames).depth
    (anchor,) = GivenAnchor().read(clip, frames, [2])
    np.testing.assert_array_equal(sequence.read(2), orientation.show(depth(2)))
    np.testing.assert_array_equal(anchor.depth_m, orientation.show(depth(2)))


@pytest.mark.parametrize("pixels", ["shown", "stored"])
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_what_the_source_says_is_done(tmp_path, orientation, pixels):
    check(clip_of(tmp_path, orientation, shown=pixels == "shown", pixels=pixels), orientation)


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("orientation", TURNS, ids=str)
def test_quarter_turns_are_seen_in_the_shapes(tmp_path, orientation, shown):
    clip = clip_of(tmp_path, orientation, shown=shown)
    check(clip, orientation)
    # Poses without intrinsics beside them go with the depth.
    alone = replace(clip, given=replace(clip.given, intrinsics_path=None))
    cameras = read_given_cameras(alone, opened(alone))
    assert cameras is not None
    np.testing.assert_allclose(known(cameras.camera_to_world), orientation.show_poses(poses()), atol=1e-9)


@pytest.mark.parametrize("orientation", REST, ids=str)
def test_what_no_shape_can_tell_is_rejected(tmp_path, orientation):
    clip = clip_of(tmp_path, orientation)
    frames = opened(clip)
    for read in (
        lambda: read_given_cameras(clip, frames),
        lambda: GivenGeometrySource().read(clip, frames),
        lambda: GivenAnchor().read(clip, frames, [2]),
    ):
        with pytest.raises(ClipRejection, match=r"clip c: .*v\.mp4 is shown .*given_pixels") as caught:
            read()
        assert caught.value.reason == "given_orientation_unknown"


def test_poses_alone_beside_a_turned_video_are_rejected(tmp_path):
    clip = clip_of(tmp_path, TURNS[0], depth_pattern=None, intrinsics_path=None)
    with pytest.raises(ClipRejection, match=r"poses\.txt is for the pixels as shown or as stored"):
        read_given_cameras(clip, opened(clip))


def test_a_lens_for_mode_estimate(tmp_path):
    for focal in ("held", "prior"):
        clip = clip_of(tmp_path, ORIENTATIONS[5], focal=focal)
        lens = read_given_lens(clip, opened(clip))
        assert lens is not None
        assert lens.focal_px is not None
        assert lens.camera_to_world is None
        assert lens.lens_is_prior == (focal == "prior")
        whole = read_given_cameras(clip, opened(clip))  # in the other modes
        assert whole is not None
        assert whole.lens_is_prior == (focal == "prior")
        assert not whole.stand_alone
        metric = replace(clip, given=replace(clip.given, poses_metric=True))
        found = read_given_cameras(metric, opened(metric))
        assert found is not None
        assert found.stand_alone == (focal == "held")  # a lens that is only expected cannot do without depth
        np.testing.assert_allclose(lens.focal_px, [[72.0, 70.0]] * FRAMES)
    none = replace(clip, given=replace(clip.given, intrinsics_path=None))
    assert read_given_lens(none, opened(none)) is None


def test_photographs_that_are_turned_apart(tmp_path):
    """With depth or cameras beside them, images of one clip must be turned alike."""
    ok, data = cv2.imencode(".jpg", np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    assert ok
    for i in range(FRAMES):
        tag = b"Exif\0\0II*\0" + bytes(
            (8, 0, 0, 0, 1, 0, 0x12, 1, 3, 0, 1, 0, 0, 0, 3 if i == 2 else 1, 0, 0, 0)
        )
        tag += bytes(4)
        segment = b"\xff\xe1" + (len(tag) + 2).to_bytes(2, "big") + tag
        (tmp_path / f"{i}.jpg").write_bytes(data.tobytes()[:2] + segment + data.tobytes()[2:])
    (tmp_path / "K.txt").write_text("70 0 41\n0 70 23\n0 0 1\n")
    clip = ClipRef(
        clip_id="c", source="s", original_id="c", media_kind="images", media_path=tmp_path, source_fps=16.0
    )
    assert sum(1 for _ in opened(clip)) == FRAMES
    with_lens = replace(clip, given=GivenGeometry(intrinsics_path=tmp_path / "K.txt"))
    with pytest.raises(ClipRejection, match=r"2\.jpg is turned by 180 degrees") as caught:
        list(opened(with_lens))
    assert caught.value.reason == "orientation_changed"
    stated = replace(with_lens, given=replace(with_lens.given, pixels="shown"))
    assert sum(1 for _ in opened(stated)) == FRAMES


MIRROR = next(o for o in ORIENTATIONS if (o.xx, o.xy, o.yx, o.yy) == (-1, 0, 0, 1))


@pytest.mark.slow
def test_a_mirrored_recording_with_given_cameras_is_solved_to_the_end(tmp_path: Path) -> None:
    """A front camera: what is stored is the mirror image of what players show. Cameras and depth for the stored pixels
    come out as those of the shown ones, and the images agree; taken for the shown pixels they are refused."""
    config = RenderConfig(width=320, height=180, num_frames=32, seed=3, speed=1.5)
    clip = render_clip(config)
    frames = list(clip)
    write_video(tmp_path / "v.mp4", MIRROR, [MIRROR.show(f.rgb) for f in frames])
    for i, frame in enumerate(frames):
        np.save(tmp_path / f"{i:03d}.npy", MIRROR.show(frame.depth_m).astype(np.float32))
    np.savetxt(tmp_path / "poses.txt", MIRROR.show_poses(clip.camera_to_world).reshape(-1, 16))
    np.savetxt(tmp_path / "K.txt", MIRROR.show_intrinsics(clip.intrinsics[0], (180, 320)))

    def annotated(pixels: Literal["shown", "stored"]) -> Row:
        given = GivenGeometry(
            depth_pattern=str(tmp_path / "{frame:03d}.npy"),
            depth_units_per_metre=1.0,
            camera_to_world_path=tmp_path / "poses.txt",
            poses_metric=True,
            intrinsics_path=tmp_path / "K.txt",
            pixels=pixels,
        )
        ref = ClipRef(
            clip_id="c", source="s", original_id="c", media_kind="video", media_path=tmp_path / "v.mp4",
            given=given,
        )  # fmt: skip
        settings = AnnotateConfig.model_validate(
            {
                "geometry": {"sequence": "given"},
                "tracks": {"num_flow_tracks": 120, "num_descriptors": 200, "max_loops_per_keyframe": 0},
                "bundle": {"focal_model": "constant", "max_iterations": 8},
            }
        )
        return annotate_clip(ref, settings, mode="given_pose", recipe_hash="0" * 16)

    row = annotated("stored")
    assert row.verdict == "accepted", row.reason_details
    truth = se3_inverse(clip.camera_to_world[:1]) @ clip.camera_to_world
    np.testing.assert_allclose(row.camera_to_world, truth, atol=1e-4)
    np.testing.assert_allclose(row.focal_px[:, 0], clip.intrinsics[:, 0, 0], rtol=1e-5)
    assert row.reprojection_median_px is not None
    assert row.reprojection_median_px < 1  # measured on the cameras that the row holds
    assert annotated("shown").reasons == ("depth_does_not_fit_images",)
