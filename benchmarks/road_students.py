"""The road's last part: both ways from the chunk-causal teacher to four steps, and self-forcing after either."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from road_times import FORCED_S, LAST_S, LEAST_FORCED, START_S, last_step, num_steps, pilot_seconds

if TYPE_CHECKING:
    from road import Road


def students(road: Road) -> None:
    """Regression onto trajectories and consistency, side by side; then self-forcing from either."""
    s, teacher, paths = road.size, road.weights("stage4"), road.out / "paths"
    asked = (f"student.frames={(s.window - 1) // 8 + 1}", f"shift={s.shift}", "guidance=1")
    words = [w for key in (*asked, f"steps={max(3, s.sampling_steps // 2)}") for w in ("--set", key)]
    where = (*road.encoded("rooms"), "--out", paths, "--weights", teacher)
    start = f"start.weights={teacher}"
    steps = ("consistency_init.guidance=1", f"consistency_init.shift={s.shift}")

    def along_paths() -> None:
        if not road.trained("ode"):
            road.command("trajectories", "trajectories", *where, *words, "--batch", 4 * s.batch)
        train_within(road, [road.training("ode", "ode_init", start, f"ode_init.trajectories={paths}")], rest)

    def without() -> None:
        train_within(road, [road.training("consistency", "consistency_init", start, *steps)], rest)

    road.fit_time("ode", "forced")
    rest = 0.0 if road.asked.minutes is None else LAST_S + FORCED_S
    _each({"ode": along_paths, "consistency": without}, road)
    ended = [way for way in ("ode", "consistency") if road.trained(way)]
    road.sample(*ended)
    force(road, ended)


def _each(work: dict[str, Callable[[], None]], road: Road) -> None:
    """Some ways at once; one that fails does not end the others."""
    with concurrent.futures.ThreadPoolExecutor(road.size.together) as pool:
        found = {name: pool.submit(act) for name, act in work.items()}
    for name, future in found.items():
        if (error := future.exception()) is not None:
            road.note(name, error)


def force(road: Road, ways: Sequence[str]) -> None:
    """Self-forcing after every way that ended. Where time is limited its first steps tell what one takes: what is left
    then says how many there will be, so that all of them end with weights and are sampled."""
    names = [f"forced-{way}" for way in ways]
    jobs = _forcings(road, ways)
    if road.asked.minutes is not None and not all(road.trained(name) for name in names):
        pilot_s = pilot_seconds(road.left())
        if pilot_s is None:
            road.say(f"no time for self-forcing: {road.left():.0f} s are left")
            return
        road.train_missing(*jobs, seconds=pilot_s)
        left = (
            road.left() - LAST_S - 3 * START_S
        )  # their last figures, and another start of what is stopped all the same
        found = [num_steps(road.out / "train" / name, left, pilot_s) for name in names]
        road.steps["forced"] = max(LEAST_FORCED, min(found, default=0))
        road.say(f"self-forcing: {left:.0f} s for steps, {found} of them after each way")
        jobs = _forcings(road, ways)
    train_within(road, jobs, LAST_S)
    road.sample(*(name for name in names if road.trained(name)))


def _forcings(road: Road, ways: Sequence[str]) -> list[tuple[Any, ...]]:
    real = f"self_forcing.real={road.weights('stage3-both')}"
    judged = (real, "self_forcing.guidance=1", f"self_forcing.fake_lr={road.size.student_lr / 2}")
    return [
        road.training(f"forced-{way}", "self_forcing", f"start.weights={road.weights(way)}", *judged)
        for way in ways
    ]


def train_within(road: Road, jobs: Sequence[tuple[Any, ...]], rest_s: float) -> None:
    """Train what is not trained, until so many seconds are left of the road's time; what was stopped by then gives the
    weights that it has, which costs another start."""
    if road.asked.minutes is None:
        road.train_missing(*jobs)
        return
    road.train_missing(*jobs, seconds=max(1.0, road.left() - rest_s - START_S))
    stopped = [job for job in jobs if last_step(_folder(road, job)) and not road.trained(_name(job))]
    for job in stopped:
        road.say(f"{job[0]}: stopped after step {last_step(_folder(road, job))}")
    road.train_missing(*((*job, "--set", "steps=1") for job in stopped))


def _name(job: tuple[Any, ...]) -> str:
    return str(job[0]).removeprefix("train-")


def _folder(road: Road, job: tuple[Any, ...]) -> Path:
    return road.out / "train" / _name(job)
