"""A second copy of the kernels under another name, as libraries make that look for a package called `kernels`."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from theodolite import kernels
from theodolite.kernels.frame_gdn import op as gdn
from theodolite.kernels.output_gate import op as gate
from theodolite.kernels.short_conv import op as conv

OURS = [gdn, gate, conv]


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch):
    """The same modules, found in the checkout's own folder as `kernels`."""
    for name in [n for n in sys.modules if n.split(".")[0] == "kernels"]:  # the tests' folder of that name
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(Path(kernels.__file__).parents[1]))
    yield [importlib.import_module(m.__name__.removeprefix("theodolite.")) for m in OURS]
    for name in [n for n in sys.modules if n.split(".")[0] == "kernels"]:
        del sys.modules[name]


def test_a_second_copy_takes_no_operator_away(copies):
    for ours, copy in zip(OURS, copies, strict=True):
        assert copy is not ours
        for name in ("_forward_op", "_backward_op"):
            mine, other = getattr(ours, name), getattr(copy, name)
            assert mine._opoverload.name().startswith("theodolite::")
            assert other._opoverload.name() == mine._opoverload.name().replace("theodolite::", "kernels::")
            # What torch calls under our name is still what we registered: calls of a replaced operator crash.
            packet = getattr(torch.ops.theodolite, mine._opoverload.name().split("::")[1])
            assert packet.default is mine._opoverload
