"""Numbers for filters: motion against libvmaf, flow on known shifts, saturation on known colours, and the pipeline."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.filter import Graph
from av.video.format import VideoFormat
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.frames.quality import FlowLength, QualityConfig, QualityMeter, VmafMotion, luma_of
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.sources.clip import ClipRef
from theodolite.dataset.media.write import VideoWriter

from ...support import SHARED
from ...typed import known

DATA = SHARED / "clips"
LIBVMAF = {"dog.mp4": 17.152375, "nasa-cut.mp4": 0.26826532, "generated-walk-16fps.mp4": 5.137575}
"""Mean integer_motion2 of all frames: `ffmpeg -i F -i F -lavfi "[0:v][1:v]libvmaf=feature=name=motion:log_fmt=json"`
with FFmpeg 9.0.2 as the wheel imageio-ffmpeg carries it."""


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Soft random texture, (height, width, 3)."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height, width, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 4)
    return np.clip((soft - soft.mean()) * 8 + 128, 0, 255).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBVMAF)
def test_motion_is_that_of_libvmaf(name: str) -> None:
    path = next(DATA.rglob(name), None) if DATA.is_dir() else None
    if path is None:
        pytest.skip("needs the recordings of ../shared/data")
    stored, seen = VmafMotion(), VmafMotion()
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            plane = frame.reformat(format="yuv420p").to_ndarray()[: frame.height]
            stored.add(np.ascontiguousarray(plane, np.uint8))
            seen.add(luma_of(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)))
    assert stored.mean() == pytest.approx(LIBVMAF[name], rel=1e-4)
    # From colours, as clips are decoded, rounding adds a hundredth of a step where next to nothing moves.
    assert seen.mean() == pytest.approx(LIBVMAF[name], rel=2e-3, abs=0.01)


def test_motion_equals_ffmpegs_filter() -> None:
    """Against the filter inside PyAV, frame by frame (its figures have two decimals), without any file."""
    picture = texture(72, 160)[..., 0]
    motion = VmafMotion()
    graph = Graph()
    source = graph.add_buffer(width=128, height=72, format=VideoFormat("gray"), time_base=Fraction(1, 16))
    measure, sink = graph.add("vmafmotion"), graph.add("buffersink")
    source.link_to(measure)
    measure.link_to(sink)
    graph.configure()
    theirs = []
    for i, shift in enumerate((0, 0, 1, 3, 7, 7, 20)):
        plane = np.ascontiguousarray(picture[:, shift : shift + 128])
        motion.add(plane)
        frame = av.VideoFrame.from_ndarray(plane, format="gray")
        frame.pts = i
        graph.push(frame)
        theirs.append(float(graph.pull().metadata["lavfi.vmafmotion.score"]))
    np.testing.assert_allclose(motion.scores, theirs, rtol=1e-3, atol=0.006)


def test_a_flash_counts_once_and_rest_is_zero() -> None:
    rest, flash = VmafMotion(), VmafMotion()
    still, bright = np.full((40, 40), 100, np.uint8), np.full((40, 40), 150, np.uint8)
    for i in range(10):
        rest.add(still)
        flash.add(bright if i >= 5 else still)
    assert rest.mean() == 0
    assert flash.scores[5] == pytest.approx(50)
    assert flash.mean() == 0  # one change alone: the smaller of two neighbours


def test_luma_is_of_video_range() -> None:
    white, black = np.full((2, 2, 3), 255, np.uint8), np.zeros((2, 2, 3), np.uint8)
    assert (luma_of(white) == 235).all()
    assert (luma_of(black) == 16).all()


@pytest.mark.parametrize("width", [256, 512, 1024])
@pytest.mark.parametrize("share", [0.005, 0.02, 0.05])
def test_flow_is_in_pixels_of_the_working_width(width: int, share: float) -> None:
    """A shift by a share of the picture is the same number whatever the size of the frames."""
    shift = round(share * width)
    picture = texture(width // 2, width + 100, seed=1)
    flow = FlowLength(512)
    for x in (50, 50 + shift):
        flow.add(np.ascontiguousarray(picture[:, x : x + width]))
    assert flow.lengths_px == pytest.approx([shift / width * 512], rel=0.06, abs=0.15)


def test_saturation_is_that_of_opencv() -> None:
    meter = QualityMeter(QualityConfig(), 16.0)
    frame = np.zeros((20, 20, 3), np.uint8)
    frame[:, :10] = (255, 0, 0)
    frame[:, 10:] = (200, 200, 200)
    for number in range(17):
        meter.add(number, frame)
    assert meter.metrics()["saturation"] == pytest.approx(127.5)
    assert meter.metrics()["flow_px"] == pytest.approx(0, abs=0.1)


def test_motion_is_only_stated_at_sixteen_frames_a_second() -> None:
    meter = QualityMeter(QualityConfig(), 30.0)
    for number in range(40):
        meter.add(number, np.zeros((20, 20, 3), np.uint8))
    assert "vmaf_motion" not in meter.metrics()
    assert "saturation" in meter.metrics()


def test_pairs_are_half_a_second_apart_and_end_after_a_minute() -> None:
    meter = QualityMeter(QualityConfig(until_s=2.0), 16.0)
    picture = texture(64, 600)
    frames = [np.ascontiguousarray(picture[:, i : i + 512]) for i in range(64)]
    for number, frame in enumerate(frames):
        meter.add(number, frame)
    assert len(meter._flow.lengths_px) == 4
    assert meter.metrics()["flow_px"] == pytest.approx(8.0, rel=0.05)


@pytest.mark.slow
def test_rows_carry_what_was_measured_with_cuts_as_well(tmp_path: Path) -> None:
    """One pass serves trackers, cut detector and filters; the clip is rejected and still has its numbers."""
    first, second = texture(96, 320, seed=1), texture(96, 320, seed=2)
    with VideoWriter(tmp_path / "a.mp4", width=128, height=96, fps=16.0) as video:
        for i in range(48):
            video.write(np.ascontiguousarray((first if i < 24 else 255 - second)[:, 2 * i : 2 * i + 128]))
    clip = ClipRef(
        clip_id="a", source="t", original_id="a", media_kind="video", media_path=tmp_path / "a.mp4"
    )
    config = AnnotateConfig.model_validate({"quality": {"flow_width_px": 128}})
    row = annotate_clip(clip, config, mode="estimate", recipe_hash="0" * 16)
    assert "shot_cut" in row.reasons, row.reasons
    found = known(row.metrics)
    assert found["num_cuts"] == 1
    assert found["vmaf_motion"] > 1
    assert found["flow_share_of_width"] == pytest.approx(found["flow_px"] / 128)
    without = annotate_clip(clip, AnnotateConfig(), mode="estimate", recipe_hash="0" * 16)
    assert "vmaf_motion" not in (without.metrics or {})
