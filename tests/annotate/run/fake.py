"""Clips that need no video, judged by nobody, and runs over them."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import cloudpickle
from theodolite.annotate.config import AnnotateConfig, ExecutorConfig
from theodolite.annotate.run.executor import open_output, run_plan
from theodolite.annotate.run.plan import Shard, plan_run
from theodolite.annotate.run.tally import Tally, read_outcomes
from theodolite.annotate.run.worker import Job, failure_row
from theodolite.annotate.sources.clip import ClipRef

# Workers cannot import test modules: what they run from here travels with the task.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

HASH = "0123456789abcdef"


def fake_annotate(clip, config, *, mode, recipe_hash):
    """Judges every clip `too_short`, except those whose name says what happens to them."""
    if clip.clip_id.startswith("raise"):
        raise ZeroDivisionError("a mistake of ours")
    if clip.clip_id.startswith("memory"):
        raise MemoryError
    if clip.clip_id.startswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    job = Job(out=Path(), config=config, mode=mode, recipe_hash=recipe_hash)
    return failure_row(clip, job, "too_short", "7 frames", wall_s=time.time())


def clips_named(*names: str):
    def clips():
        for name in names:
            yield ClipRef(
                clip_id=name,
                source="test",
                original_id=name,
                media_kind="video",
                media_path=Path(f"{name}.mp4"),
            )

    return clips


def numbered(count: int):
    return clips_named(*(f"c{i:03d}" for i in range(count)))


def job_in(out: Path, **config) -> Job:
    return Job(
        out=out,
        config=AnnotateConfig(executor=ExecutorConfig(**config)),
        mode="given_depth",
        recipe_hash=HASH,
        annotate=fake_annotate,
    )


def make_shards(clips, clips_per_shard: int) -> list[Shard]:
    """Shards of a whole source."""
    return list(plan_run(lambda: clips, Path("absent"), clips_per_shard=clips_per_shard).shards())


def run(clips, out: Path, *, clips_per_shard: int = 3, limit: int | None = None, **options: Any) -> Tally:
    with open_output(out, recipe_hash=HASH):
        plan = plan_run(clips, out, clips_per_shard=clips_per_shard, limit=limit)
        options = {"workers": 0} | options
        return run_plan(plan, job_in(out), show_progress=False, **options)


def ids(out: Path) -> list[str]:
    return [outcome.clip_id for outcome in read_outcomes(out)]
