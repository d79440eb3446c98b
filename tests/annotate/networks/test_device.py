"""Which GPU is a worker's own."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from theodolite.annotate.networks.device import choose_device, waits_asleep


@pytest.mark.slow
def test_workers_of_a_machine_have_numbers_of_their_own(tmp_path):
    """Behind a scheduler dask gives workers names that say nothing of machines: all of them took the first GPU."""
    code = """
from theodolite.annotate.networks.device import claim_worker_number as claim
print(claim(), claim(), flush=True)
input()
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    workers = [start() for _ in range(3)]
    try:
        numbers = [w.stdout.readline().split() for w in workers if w.stdout]
        assert sorted(numbers) == [["0", "0"], ["1", "1"], ["2", "2"]]
        # The number of a worker that died, however, is free again.
        gone = numbers.index(["1", "1"])
        workers[gone].kill()
        workers[gone].wait()
        workers.append(start())
        assert workers[-1].stdout is not None
        assert workers[-1].stdout.readline().split() == ["1", "1"]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mps", "meta", "xla", "gpu", ""):
        with pytest.raises(ValueError, match="use auto, cpu, cuda or cuda:N"):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cuda") == torch.device("cuda")
    with pytest.raises(ValueError, match=r"'cuda:2' .*: this machine has 2 CUDA devices, the last is cuda:1"):
        choose_device("cuda:2")


class FakeDriver:
    """The part of libcuda that says how threads wait, on a machine with two GPUs."""

    def __init__(self, refused: int = 0) -> None:
        self.flags: dict[int, int] = {}
        self.refused = refused

    def cuInit(self, flags):  # the driver's name
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, device, number):
        device._obj.value = 10 + number
        return 0

    def cuDevicePrimaryCtxSetFlags_v2(self, device, flags):
        self.flags[device.value] = flags.value
        return self.refused


def test_waits_sleep_on_every_gpu(monkeypatch):
    driver = FakeDriver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert waits_asleep.__wrapped__()
    assert driver.flags == {10: 4, 11: 4}
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(refused=1))
    assert not waits_asleep.__wrapped__()


def test_without_a_driver_nothing_waits_asleep(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert not waits_asleep.__wrapped__()


@pytest.mark.gpu
def test_a_wait_for_a_gpu_takes_no_processor_time():
    code = """
import time, torch
from theodolite.annotate.networks.device import waits_asleep
assert waits_asleep()
x = torch.randn(8192, 8192, device="cuda")
(x @ x).sum().item()
cpu, wall = time.thread_time(), time.perf_counter()
for _ in range(40):
    y = x @ x
y.sum().item()
print((time.thread_time() - cpu) / (time.perf_counter() - wall))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 0.5
