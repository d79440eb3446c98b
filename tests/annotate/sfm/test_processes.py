"""Solvers beside a worker: another process does the work, rejections come back, a dead one is memory, orphans end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import psutil
import pytest
import torch
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.geometry.base import NoDepth
from theodolite.annotate.sfm.config import BundleConfig
from theodolite.annotate.sfm.keyframes import SolverInput
from theodolite.annotate.sfm.processes import CLIPS_STREAMED, in_solver, num_gpus, shares, streamed
from theodolite.annotate.sfm.solve import solve_cameras
from theodolite.annotate.sources.clip import ClipRejection
from theodolite.annotate.tracks.measure import measure_images
from theodolite.annotate.tracks.records import TracksConfig


@pytest.mark.slow
def test_another_process_does_the_work() -> None:
    assert in_solver(0, os.getpid) == os.getpid()
    assert in_solver(1, os.getpid) not in (0, os.getpid())


def test_few_clips_stream_at_a_time() -> None:
    config = AnnotateConfig.model_validate({"executor": {"clips_in_flight": 8}})
    inside, most, lock = 0, 0, threading.Lock()

    def stream(_: int) -> None:
        nonlocal inside, most
        with streamed(config):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(stream, range(16)))
    assert most == CLIPS_STREAMED


@pytest.mark.slow
def test_solvers_have_one_thread_each(monkeypatch) -> None:
    """With a thread a core in each, twelve of them brought a machine of sixteen cores to a load of 130."""
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert in_solver(2, os.getenv, key="OPENBLAS_NUM_THREADS") == "1"
    assert in_solver(2, torch.get_num_threads) == 1
    assert "OPENBLAS_NUM_THREADS" not in os.environ
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.slow
def test_rejections_and_errors_come_back() -> None:
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (90, 200, 3), np.uint8)
    measured = measure_images(
        (texture[:, i : i + 160] for i in range(4)), height=90, width=160, config=TracksConfig()
    )
    found = {}
    for processes in (0, 1):
        with pytest.raises(ClipRejection) as caught:
            in_solver(
                processes,
                solve_cameras,
                inputs=SolverInput(
                    measured=measured,
                    depth=NoDepth(4),
                    depth_sigma_log=0.05,
                    tracks_config=TracksConfig(),
                    config=BundleConfig(),
                ),
            )
        found[processes] = (caught.value.reason, caught.value.detail)
    assert found[0] == found[1]
    assert found[0][0] == "no_depth_on_tracks"
    with pytest.raises(ZeroDivisionError):
        in_solver(1, Fraction, numerator=1, denominator=0)


@pytest.mark.slow
def test_a_solver_that_dies_is_memory_and_is_replaced() -> None:
    with pytest.raises(MemoryError, match="ended from outside"):
        in_solver(1, os._exit, status=9)
    assert in_solver(1, os.getpid) != os.getpid()


@pytest.mark.slow
def test_solvers_end_with_a_killed_worker() -> None:
    code = (
        "import os, time\n"
        "from theodolite.annotate.sfm.processes import in_solver\n"
        "if __name__ == '__main__':\n"
        "    print(in_solver(1, os.getpid), flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        solver = int(worker.stdout.readline())
        assert psutil.pid_exists(solver)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    for _ in range(100):
        if not psutil.pid_exists(solver) or psutil.Process(solver).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    pytest.fail(f"solver {solver} outlived its worker by ten seconds")


def test_without_a_gpu_nothing_changes() -> None:
    plain = AnnotateConfig()
    assert num_gpus(plain) == 0
    assert shares(plain) == (1, 0)
    asked = AnnotateConfig.model_validate({"executor": {"clips_in_flight": 3, "solver_processes": 2}})
    assert shares(asked) == (3, 2)
    networks = AnnotateConfig.model_validate(
        {"geometry": {"sequence": "pi3x", "anchor": "moge2", "device": "cpu"}}
    )
    assert shares(networks) == (1, 0)


def test_with_gpus_workers_are_dealt_out_and_share_of_the_cores(monkeypatch) -> None:
    from theodolite.annotate.networks import device as devices

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)))
    config = AnnotateConfig.model_validate({"geometry": {"sequence": "pi3x", "anchor": "moge2"}})
    assert num_gpus(config) == 2
    assert shares(config) == (9, 4)
    for worker, device in ((0, "cuda:0"), (1, "cuda:1"), (2, "cuda:0")):
        monkeypatch.setattr(devices, "_worker_number", worker)
        assert str(devices.choose_device("auto")) == device
    one = AnnotateConfig.model_validate({"geometry": {"sequence": "pi3x", "device": "cuda:1"}})
    assert num_gpus(one) == 1


def test_bundles_that_overlap_give_the_threads_back_after_the_last() -> None:
    """The first to end gave back what it had found, while the second still ran; that one then left 1 for ever."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    first_runs, second_ran, first_ended = (threading.Event() for _ in range(3))
    seen = []

    def first() -> None:
        first_runs.set()
        second_ran.wait(30)

    def second() -> None:
        second_ran.set()
        first_ended.wait(30)
        seen.append(torch.get_num_threads())

    try:
        with ThreadPoolExecutor(2) as threads:
            a = threads.submit(in_solver, 0, first)
            first_runs.wait(30)
            b = threads.submit(in_solver, 0, second)
            a.result()
            first_ended.set()
            b.result()
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_bundle_without_solvers_takes_one_thread_and_gives_the_others_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert in_solver(0, torch.get_num_threads) == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
