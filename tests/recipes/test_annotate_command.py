"""`theodolite annotate` from the outside: damaged clips, killed processes, resume, exit codes."""

import os
import random
import re
import signal
import subprocess
import time
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import psutil
import pytest
import yaml
from av.video.stream import VideoStream
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import RenderedFiles, write_clip
from theodolite.annotate.rendered.render import render_clip
from theodolite.dataset.metrics.trajectory import trajectory_error
from theodolite.dataset.reading import open_dataset
from theodolite.dataset.store import list_parts

from ..support import COMMAND, environment_with, run_here


def write_recipe(folder: Path, clips: list[dict], *, per_shard: int, **annotate) -> Path:
    (folder / "clips.yaml").write_text(
        yaml.safe_dump(
            {"defaults": {"data_licence": "CC0-1.0", "data_redistributable": True}, "clips": clips}
        )
    )
    recipe = {
        "schema_version": 1,
        "name": "test",
        "mode": "given_depth",
        "source": {"kind": "index", "name": "test", "index": "clips.yaml"},
        "annotate": annotate,
        "output": {"clips_per_shard": per_shard},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


# --- nine clips --------------------------------------------------------------------------------


def re_encode(source: Path, target: Path, codec: str, keep=lambda i: True, rate: int = 16) -> int:
    """Copy the frames that `keep` takes, at their own times; returns their number."""
    count = 0
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = cast(VideoStream, writer.add_stream(codec, rate=rate))
        stream.codec_context.time_base = Fraction(1, rate)
        for i, frame in enumerate(reader.decode(video=0)):
            if not keep(i):
                continue
            if not count:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
                stream.options = {"crf": "12", "preset": "10" if codec == "libsvtav1" else "veryfast"}
            copy = frame.reformat(format="yuv420p")
            copy.pts, copy.time_base = i, stream.codec_context.time_base
            writer.mux(stream.encode(copy))
            count += 1
        writer.mux(stream.encode(None))
    return count


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> RenderedFiles:
    config = RenderConfig(width=320, height=192, num_frames=24, seed=3, moving_object=False)
    return write_clip(render_clip(config), tmp_path_factory.mktemp("rendered"))


@pytest.mark.slow(about_s=8)
def test_nine_clips_make_nine_rows(tmp_path, rendered):
    """A good clip among damaged and unusual ones: all have a row, with the right verdict and reason. Long: nine kinds
    of clips in one run."""
    good = rendered.media_path.read_bytes()
    assert rendered.depth_pattern is not None
    depth = {"depth_pattern": rendered.depth_pattern, "depth_units_per_metre": 1000.0}

    def write_depth(name: str, frames: int, value: float) -> dict:
        (tmp_path / name).mkdir()
        for i in range(frames):
            np.save(tmp_path / name / f"{i:06d}.npy", np.full((24, 40), value, np.float32))
        return {"depth_pattern": f"{name}/{{frame:06d}}.npy", "depth_units_per_metre": 1.0}

    (tmp_path / "good.mp4").write_bytes(good)
    (tmp_path / "truncated.mp4").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.mp4").write_text("This is not a video.\n" * 50)
    re_encode(rendered.media_path, tmp_path / "seven.mp4", "libx264", keep=lambda i: i < 7)
    re_encode(rendered.media_path, tmp_path / "av1.mp4", "libsvtav1")
    # 24 fps with every fifth frame missing: 19.2 fps on average, gaps of 83 ms.
    shown = [i for i in range(24) if i % 5 != 3]
    re_encode(rendered.media_path, tmp_path / "vfr.mp4", "libx264", keep=lambda i: i in shown, rate=24)
    (tmp_path / "vfr_depth").mkdir()
    for target, source in enumerate(shown):
        (tmp_path / "vfr_depth" / f"{target:06d}.png").symlink_to(rendered.depth_pattern.format(frame=source))
    vfr_depth = {"depth_pattern": "vfr_depth/{frame:06d}.png", "depth_units_per_metre": 1000.0}
    recipe = write_recipe(
        tmp_path,
        [
            {"clip_id": "good", "media_path": "good.mp4", **depth},
            {"clip_id": "truncated", "media_path": "truncated.mp4", **depth},
            {"clip_id": "text", "media_path": "text.mp4", **depth},
            {"clip_id": "seven", "media_path": "seven.mp4", **depth},
            {"clip_id": "av1", "media_path": "av1.mp4", **depth},
            {"clip_id": "vfr", "media_path": "vfr.mp4", **vfr_depth},
            {"clip_id": "nan", "media_path": "good.mp4", **write_depth("nan_depth", 24, np.nan)},
            {"clip_id": "invalid", "media_path": "good.mp4", **write_depth("invalid_depth", 24, 0.0)},
            {"clip_id": "count", "media_path": "good.mp4", **write_depth("count_depth", 23, 2.0)},
        ],
        per_shard=4,
        decode={"min_frames": 12},
        tracks={"num_flow_tracks": 120, "num_descriptors": 300},
    )
    done = run_here("annotate", recipe, "--out", tmp_path / "out", "--workers", 2)  # one thread each
    rows = {row.clip_id: row for row in open_dataset(tmp_path / "out").rows()}
    assert {name: (row.verdict, row.reasons[:1]) for name, row in rows.items()} == {
        "good": ("accepted", ()),
        "truncated": ("rejected", ("truncated_video",)),
        "text": ("rejected", ("unreadable_video",)),
        "seven": ("rejected", ("too_short",)),
        "av1": ("accepted", ()),
        "vfr": ("accepted", ()),
        "nan": ("rejected", ("depth_not_finite",)),
        "invalid": ("rejected", ("depth_all_invalid",)),
        "count": ("rejected", ("depth_frame_count_mismatch",)),
    }
    assert done.returncode == 1
    assert "9 clips: 3 accepted, 1 rejected (too_short 1), 5 failed" in done.stdout
    for name in ("truncated", "text", "nan", "invalid", "count"):
        assert f"  {name}: {rows[name].reasons[0]}: clip {name}: " in done.stdout
    # The unusual ones are right, not merely accepted: true poses and focal length come out.
    truth = render_clip(RenderConfig(width=320, height=192, num_frames=24, seed=3, moving_object=False))
    for name, times in (("av1", np.arange(24)), ("vfr", np.array(shown))):
        index = times[rows[name].frame_index]
        error = trajectory_error(rows[name].camera_to_world, truth.camera_to_world[index])
        assert error.ate_rmse_m < 0.05, (
            f"{name}: {error.ate_rmse_m}"
        )  # 7 % of the path; the wrong frames give 20 cm
        np.testing.assert_allclose(rows[name].focal_px[:, 0], truth.intrinsics[index, 0, 0], rtol=0.05)
    checked = run_here("validate", tmp_path / "out")
    assert checked.returncode == 0, checked.stdout


# --- killed runs -------------------------------------------------------------------------------


class Running:
    """The command in a session of its own, with its workers."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            env=environment_with(),
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.family = psutil.Process(self.process.pid)

    def workers(self) -> list[psutil.Process]:
        """Processes that a helper of the command has forked."""
        return [p for p in self.family.children(recursive=True) if p.ppid() != self.process.pid]

    def wait_for(self, what, timeout_s: float = 120) -> None:
        end = time.monotonic() + timeout_s
        while not what():
            if self.process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"ended or stuck ({self.process.poll()}): {self.process.communicate()[0]}")
            time.sleep(0.02)

    def end(self, number: int) -> int:
        """Send a signal as its source would, wait for the command and all its workers, return its exit code."""
        family = [self.family, *self.family.children(recursive=True)]
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)  # Ctrl-C reaches every process of the terminal
        else:
            self.process.send_signal(number)
        code = self.process.wait(timeout=30)
        _, alive = psutil.wait_procs(family, timeout=15)
        assert not alive, "workers outlived their command"
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def content(out: Path) -> list[dict]:
    rows = open_dataset(out).to_table().drop_columns(["annotate_wall_s", "stage_wall_s"])
    return sorted(rows.to_pylist(), key=lambda row: row["clip_id"])


@pytest.mark.slow(about_s=30)
def test_killed_runs_end_in_the_same_rows(tmp_path, thorough):
    """kill -9 of a worker and of the command, Ctrl-C, a full stop in between; then the same command again. One
    story, so in one piece: each kill goes on from where the one before left the run."""
    num_clips = 40 if thorough else 24
    # Most are too short: what is solved is dear. The last ones take long enough to be interrupted in.
    solved = {*range(0, num_clips - 8, 8), *range(num_clips - 8, num_clips, 2)}
    config = RenderConfig(width=160, height=96, num_frames=num_clips + 10, seed=5, moving_object=False)
    files = write_clip(render_clip(config), tmp_path)
    clips = [
        {
            "clip_id": f"window_{i:02d}",
            "media_path": str(files.media_path),
            "start_s": i / 16,
            "end_s": (i + (10 if i in solved else 4)) / 16,
            "intrinsics_path": str(files.intrinsics_path),  # a known lens is solved in half the time
            "depth_pattern": files.depth_pattern,
            "depth_units_per_metre": 1000.0,
        }
        for i in range(num_clips)
    ]
    recipe = write_recipe(
        tmp_path,
        clips,
        per_shard=2,
        decode={"min_frames": 8},
        tracks={"num_flow_tracks": 60, "num_descriptors": 100, "max_loops_per_keyframe": 0},
        bundle={"focal_model": "constant", "max_iterations": 4},
    )

    def arguments(out: str) -> list[object]:
        return ["annotate", recipe, "--out", tmp_path / out, "--workers", 2]

    whole = run_here(*arguments("whole"), "--workers", 0)
    assert whole.returncode == 0, whole.stderr
    assert f"{num_clips} clips" in whole.stdout

    out, dice = tmp_path / "killed", random.Random(os.getpid())

    def parts() -> int:
        return len(list_parts(out))

    run = Running(*arguments("killed"))
    run.wait_for(lambda: parts() >= 2)
    dice.choice(run.workers()).kill()
    run.wait_for(lambda: parts() >= 4)
    time.sleep(dice.random() / 4)
    assert run.end(signal.SIGKILL) == -signal.SIGKILL
    after_kill = parts()
    assert after_kill >= 4

    run = Running(*arguments("killed"))
    run.wait_for(lambda: parts() >= after_kill + 1)
    time.sleep(dice.random() / 4)
    assert run.end(signal.SIGINT) == 130
    after_interrupt = parts()

    second = run_here(*arguments("killed"), "--limit", num_clips - 1, "--dry-run")
    assert f"{num_clips - 1} clips" in second.stdout
    again = run_here(*arguments("killed"), "--workers", 0)
    assert again.returncode == 0, again.stderr
    assert f"{num_clips} clips" in again.stdout
    adopted = sum(
        int(n) for run in (second, again) for n in re.findall(r"(\d+) clips that an ended run", run.stderr)
    )
    left = num_clips - 2 * after_interrupt - adopted
    assert f"{left}/{left} clips" in again.stderr

    assert content(out) == content(tmp_path / "whole")
    assert [p.name for p in list_parts(out)] == [p.name for p in list_parts(tmp_path / "whole")]
    assert not [p for p in out.rglob("*") if "tmp" in p.name]
    assert run_here("validate", out).returncode == 0
    assert open_dataset(out).index is not None  # written at the end of the resumed run, of all its parts


# --- usage -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_wrong_recipe_writes_nothing(tmp_path):
    recipe = write_recipe(tmp_path, [], per_shard=2, decod={"fps": 16}, scale={"ema_momentum": 1.4})
    out = tmp_path / "out"
    done = run_here("annotate", recipe, "--out", out, "--set", "output.clips=3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {recipe} is not a valid recipe:\n")
    for line in (
        "annotate.decod: unknown key (got {'fps': 16}); did you mean decode?",
        "annotate.scale.ema_momentum: should be less than 1 (got 1.4)",
        "output.clips: unknown key (got 3)",
    ):
        assert f"  {line}" in done.stderr
    assert not out.exists()


@pytest.mark.slow
def test_a_wrong_source_writes_nothing(tmp_path):
    recipe = write_recipe(tmp_path, [{"clip_id": "a"}], per_shard=2)
    done = run_here("annotate", recipe, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "entry 1 (clip a): media_path: is required" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_dry_run_and_another_recipes_folder(tmp_path):
    recipe = write_recipe(
        tmp_path, [{"clip_id": f"c{i}", "media_path": "none.mp4"} for i in range(5)], per_shard=2
    )
    out = tmp_path / "out"
    dry = run_here("annotate", recipe, "--out", out, "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert "5 clips, 0 done, 5 to do in 3 shards" in dry.stdout
    assert not out.exists()
    done = run_here("annotate", recipe, "--out", out, "--workers", 0)
    assert done.returncode == 1
    assert "0 accepted, 0 rejected, 5 failed" in done.stdout
    assert "  c0: unreadable_video: clip c0: " in done.stdout
    again = run_here("annotate", recipe, "--out", out)
    assert (again.returncode, again.stdout) == (1, done.stdout)
    other = run_here("annotate", recipe, "--out", out, "--set", "annotate.decode.fps=native")
    assert other.returncode == 2
    assert "choose another --out" in other.stderr
