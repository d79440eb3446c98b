"""Videos that play while they grow, and after whatever ends their writer."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from theodolite.dataset.media.growing_video import GrowingVideo, VideoWriteError
from theodolite.dataset.media.read import count_video_frames, video_frames

HEIGHT, WIDTH = 96, 160


def pictures(count: int) -> np.ndarray:
    """Smooth noise that moves to the left by two pixels a frame."""
    rng = np.random.default_rng(0)
    wide = cv2.GaussianBlur(rng.integers(0, 255, (HEIGHT, WIDTH + 2 * count, 3), dtype=np.uint8), (0, 0), 4)
    wide = cv2.normalize(wide, np.empty_like(wide), 0, 255, cv2.NORM_MINMAX)
    return np.stack([wide[:, 2 * i : 2 * i + WIDTH] for i in range(count)])


def video(path: Path, **changes) -> GrowingVideo:
    return GrowingVideo(path, **{**dict(width=WIDTH, height=HEIGHT, fps=16, key_frame_every=8), **changes})


def test_frames_come_back(tmp_path: Path) -> None:
    path, frames = tmp_path / "v.mp4", pictures(40)
    with video(path, metadata={"comment": "made up", "title": "a title"}) as writer:
        for start in range(0, 40, 7):
            writer.write(frames[start : start + 7])
    assert count_video_frames("v", path) == (40, 16.0)
    assert writer.num_frames == 40
    for i in (0, 9, 39):
        found = next(iter(video_frames("v", path, np.array([i]))))
        assert np.abs(found.astype(float) - frames[i]).mean() < 6
    with av.open(str(path)) as container:
        assert container.metadata["comment"] == "made up"
        assert container.metadata["title"] == "a title"


def test_it_plays_while_it_grows(tmp_path: Path) -> None:
    path, frames = tmp_path / "v.mp4", pictures(20)
    with video(path) as writer:
        for done in range(1, 21):
            writer.write(frames[done - 1])
            shutil.copy(path, tmp_path / "seen.mp4")
            if done > 1:
                # The last frame waits for the next one, which ends it.
                assert count_video_frames("v", tmp_path / "seen.mp4")[0] == writer.num_frames == done - 1


def test_an_exception_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"

    def interrupted() -> None:
        with video(path) as writer:
            writer.write(pictures(11))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert count_video_frames("v", path)[0] == 11


@pytest.mark.slow
@pytest.mark.parametrize("limit", [300, 25_000, 31_011])
def test_a_full_disk(tmp_path: Path, limit: int) -> None:
    """A bound on the file's size fails the same write as a full disk does, halfway through it."""
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_growing_video import VideoWriteError, pictures, video
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
try:
    with video(Path({str(tmp_path / "v.mp4")!r})) as writer:
        writer.write(pictures(60))
except VideoWriteError as error:
    print("refused", error.strerror, writer.num_frames)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "refused" in done.stdout, done.stderr
    assert "v.mp4" in done.stdout
    written = int(done.stdout.split()[-1])
    path = tmp_path / "v.mp4"
    if limit > 1000:
        assert count_video_frames("v", path)[0] == written
        assert 0 < written < 60
        assert len(list(video_frames("v", path, np.arange(written)))) == written


@pytest.mark.slow
def test_killed(tmp_path: Path) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_growing_video import pictures, video
writer = video(Path({str(tmp_path / "v.mp4")!r}))
writer.write(pictures(13))
print("ready", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert count_video_frames("v", tmp_path / "v.mp4")[0] == 12


def test_refused(tmp_path: Path) -> None:
    from ...typed import wrong  # the processes of other tests import this file by its path

    (tmp_path / "there.mp4").write_bytes(b"")
    with pytest.raises(FileExistsError):
        video(tmp_path / "there.mp4")
    for changes, path in (({"width": 161}, "v.mp4"), ({}, "v.avi")):
        with pytest.raises(ValueError, match=path):
            video(tmp_path / path, **changes)
    assert not (tmp_path / "v.mp4").exists()
    with video(tmp_path / "v.mp4") as writer, pytest.raises(ValueError, match="expected uint8"):
        writer.write(wrong(pictures(2).astype(np.float32)))
    assert issubclass(VideoWriteError, OSError)
