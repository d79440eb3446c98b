"""`theodolite evaluate --videos`: what was asked for against cameras of the videos, and true videos beside them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from theodolite.dataset.camera_files.load import GENERATION_LOG, load_cameras
from theodolite.dataset.camera_files.single import GENERATION_FORMAT
from theodolite.dataset.cameras.paths import named_path
from theodolite.dataset.cameras.transforms import se3_exp
from theodolite.dataset.formats.trajectories import write_matrices
from theodolite.dataset.media.write import VideoWriter
from theodolite.recipes.cli import app
from typer.testing import CliRunner

FRAMES, HEIGHT, WIDTH = 49, 96, 160
runner = CliRunner()


def pictures(seed: int, noise: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wide = cv2.GaussianBlur(rng.integers(0, 255, (HEIGHT, WIDTH + FRAMES, 3), dtype=np.uint8), (0, 0), 3)
    wide = cv2.normalize(wide, np.empty_like(wide), 0, 255, cv2.NORM_MINMAX).astype(float)
    stack = np.stack([wide[:, i : i + WIDTH] for i in range(FRAMES)])
    return np.clip(stack + noise * rng.standard_normal(stack.shape), 0, 255).astype(np.uint8)


def write_video(path: Path, frames: np.ndarray) -> None:
    with VideoWriter(path, width=frames.shape[2], height=frames.shape[1], fps=16) as writer:
        for frame in frames:
            writer.write(frame)


def write_generated(folder: Path, clip_id: str, number: int, *, status: str = "complete") -> np.ndarray:
    """A video with the record that `theodolite generate` leaves; returns the path that was asked for."""
    folder.mkdir(exist_ok=True)
    poses = named_path(("orbit", "spiral", "figure-eight")[number], FRAMES)
    write_video(folder / f"{clip_id}.mp4", pictures(number, 5))
    camera = {
        "camera_to_world": poses.tolist(),
        "intrinsics_px": [[120.0, 120.0, 80.0, 48.0]] * FRAMES,
        **{"fps": 16, "height": HEIGHT, "width": WIDTH},
    }
    record = {"format": GENERATION_FORMAT, "stand_in": False, "message": None, "camera": camera}
    (folder / f"{clip_id}.json").write_text(json.dumps({**record, "run": {"status": status}}))
    (folder / GENERATION_LOG).write_text(json.dumps({"format": GENERATION_FORMAT, "runs": []}))
    return poses


def evaluate(*words: object):
    return runner.invoke(app, ["evaluate", *map(str, words)])


def test_given_cameras_against_what_was_asked_for(tmp_path: Path) -> None:
    videos, found = tmp_path / "videos", tmp_path / "found"
    found.mkdir()
    rng = np.random.default_rng(0)
    for i, clip_id in enumerate(("a", "b")):
        poses = write_generated(videos, clip_id, i)
        noise = se3_exp(rng.normal(size=(FRAMES, 6)) * [0.01, 0.01, 0.01, 0.002, 0.002, 0.002])
        write_matrices(found / f"{clip_id}.txt", poses @ noise)
    done = evaluate(found, "--videos", videos, "--format", "json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert [c["clip_id"] for c in result["clips"]] == ["a", "b"]
    for clip in result["clips"]:
        assert clip["num_frames"] == FRAMES
        assert 0 < clip["rot_err_deg"] < 0.6
        assert 0 < clip["trans_err_m"] < 0.05
        assert 0 < clip["cam_mc"] < 0.1
        assert clip["truth_psnr_db"] is None


@pytest.mark.slow
def test_true_videos_beside_generated_ones(tmp_path: Path) -> None:
    videos, true = tmp_path / "videos", tmp_path / "true"
    true.mkdir()
    paths = [write_generated(videos, clip_id, i) for i, clip_id in enumerate(("a", "b"))]
    for clip_id, poses in zip(("a", "b"), paths, strict=True):
        write_matrices(tmp_path / f"{clip_id}.txt", poses)
    write_video(true / "a.mp4", pictures(0))  # b has no true video
    done = evaluate(tmp_path, "--videos", videos, "--truth-videos", true, "--format", "json")
    assert done.exit_code == 0, done.output
    a, b = json.loads(done.stdout)["clips"]
    assert 25 < a["truth_psnr_db"] < 40
    assert 0.5 < a["truth_ssim"] < 1
    assert b["truth_psnr_db"] is None
    # A true video of another size, which is cut as the image was.
    large = np.stack([cv2.resize(f, (2 * WIDTH, 2 * HEIGHT)) for f in pictures(0)])
    (true / "a.mp4").unlink()
    write_video(true / "a.mp4", np.pad(large, ((0, 0), (16, 16), (0, 0), (0, 0))))
    again = json.loads(
        evaluate(tmp_path, "--videos", videos, "--truth-videos", true, "--format", "json").stdout
    )
    assert again["clips"][0]["truth_psnr_db"] > 24
    write_video(true / "a.mp4", pictures(0)[:30])
    short = evaluate(tmp_path, "--videos", videos, "--truth-videos", true)
    assert "end before the generated video" in short.output


def test_videos_that_are_not_whole_are_no_truth(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    write_generated(videos, "a", 0)
    write_generated(videos, "b", 1, status="interrupted")
    (videos / "c.json").write_text(
        json.dumps({"format": GENERATION_FORMAT, "run": {"status": "complete"}, "camera": {}})
    )
    found = load_cameras(videos)
    assert list(found) == ["a"]
    assert found["a"].whole_source
    assert "not whole (interrupted)" in found.unreadable["b"]
    assert "damaged record" in found.unreadable["c"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "give PRED and TRUTH"),
        (["pred"], "give PRED and TRUTH"),
        (["--videos", "nowhere"], "no such folder"),
        (["--videos", "."], "holds no records of generated videos"),
        (["pred", "truth", "--workers", "1"], "leave PRED out"),
    ],
)
def test_sides_that_are_missing(
    words: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = evaluate(*words)
    assert done.exit_code == 2
    assert named in done.output


def test_recovering_needs_the_networks_of_annotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    write_generated(tmp_path / "videos", "a", 0)
    done = evaluate("--videos", tmp_path / "videos")
    assert done.exit_code == 2
    assert "theodolite weights pull" in done.output
    assert "theodolite evaluate PRED --videos" in done.output


@pytest.mark.slow
def test_cameras_are_recovered_and_compared(tmp_path: Path) -> None:
    """Through our own annotation, with stand-in networks, whose rows are rejected: nothing is scored as if it were."""
    videos = tmp_path / "videos"
    write_generated(videos, "a", 0)
    done = evaluate(
        *("--videos", videos, "--workers", 0),
        *("--set", "annotate.geometry.weights=stand_in", "--set", "annotate.geometry.stand_in_size=tiny"),
        *("--set", "annotate.geometry.device=cpu", "--set", "annotate.geometry.pi3x.max_pixels=5000"),
        *("--set", "annotate.tracks={num_flow_tracks: 60, num_descriptors: 150}"),
    )
    assert (videos / "recovered" / "dataset.json").is_file()
    assert done.exit_code in (0, 1), done.output
    assert "cameras of the videos" in done.output
    assert "rejected" in done.output or "failed" in done.output
