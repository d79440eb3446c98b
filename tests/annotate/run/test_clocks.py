"""The time of day may be set at any moment of a run."""

import os
import subprocess
import sys

import pytest
import theodolite.dataset
from theodolite.annotate.run.tally import read_outcomes
from theodolite.dataset.validate import validate_dataset

from ...support import environment_with


def test_a_run_s_key_is_valid_whenever_it_is():
    """Of a certificate from now on no new worker takes any notice once the clock was put back."""
    from theodolite.annotate.run.credentials import run_credentials

    x509 = pytest.importorskip("cryptography.x509")
    security = run_credentials()
    assert security is not None
    certificate = x509.load_pem_x509_certificate(security.tls_ca_file.encode())
    assert certificate.not_valid_before_utc.year == 2000
    assert certificate.not_valid_after_utc.year == 2100


CLOCK = """
import os, time

def shifted(clock, unit):
    def now():
        try:
            return clock() + unit * int(open(os.environ["SHIFT"]).read() or 0)
        except FileNotFoundError:
            return clock()
    return now

time.time, time.time_ns = shifted(time.time, 1), shifted(time.time_ns, 10**9)
"""
"""Sets the time of day of every process of a run by what stands in a file."""

JUMPS = """
import os, sys, time
from pathlib import Path
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.run.executor import open_output, run_plan
from theodolite.annotate.run.plan import plan_run
from theodolite.annotate.run.worker import Job, failure_row
from theodolite.annotate.sources.clip import ClipRef

def annotate(clip, config, *, mode, recipe_hash):
    start = time.time()
    shift = {0: -86400, 1: 0, 2: 4000, 3: -600}[int(clip.clip_id[1:]) % 4]
    Path(os.environ["SHIFT"] + clip.clip_id).write_text(str(shift))
    os.replace(os.environ["SHIFT"] + clip.clip_id, os.environ["SHIFT"])
    time.sleep(0.05)
    if clip.clip_id == "c20" and not Path(sys.argv[1], "killed").exists():
        Path(sys.argv[1], "killed").touch()
        os.kill(os.getpid(), 9)
    job = Job(out=Path(), config=config, mode=mode, recipe_hash=recipe_hash)
    if time.time() < start:
        raise ZeroDivisionError("the clock was put back")
    return failure_row(clip, job, "too_short", "7 frames")

def clips():
    for i in range(60):
        yield ClipRef(clip_id=f"c{i}", source="test", original_id="x", media_kind="video", media_path=Path("x.mp4"))

if __name__ == "__main__":
    import cloudpickle
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    out = Path(sys.argv[1], "out")
    with open_output(out, recipe_hash="0123456789abcdef"):
        job = Job(
            out=out,
            config=AnnotateConfig(),
            mode="given_depth",
            recipe_hash="0123456789abcdef",
            annotate=annotate,
        )
        run_plan(plan_run(clips, out, clips_per_shard=4), job, workers=2, show_progress=False)
"""


@pytest.mark.slow(about_s=8)
def test_a_clock_that_is_set_costs_nothing(tmp_path):
    """Put forth and back by up to a day while clips are done, in the command as in its workers, of which one dies."""
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    (tmp_path / "jumps.py").write_text(JUMPS)
    folders = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = environment_with(PYTHONPATH=os.pathsep.join(folders), SHIFT=str(tmp_path / "shift"))
    command = [sys.executable, str(tmp_path / "jumps.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, timeout=200, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    outcomes = list(read_outcomes(tmp_path / "out"))
    assert sorted(o.clip_id for o in outcomes) == sorted(f"c{i}" for i in range(60))
    assert {o.reasons for o in outcomes} == {("too_short",), ("internal_error",)}, "the clock has jumped"
    walls = (
        theodolite.dataset.open(tmp_path / "out").to_table(["annotate_wall_s"])["annotate_wall_s"].to_pylist()
    )
    assert min(wall for wall in walls if wall is not None) >= 0
    assert validate_dataset(tmp_path / "out") == (60, [])
