"""Output gate: the kernel against the twin, forward and gradients."""

from __future__ import annotations

import pytest
import torch
from theodolite.kernels import output_gate, output_gate_reference

from .cases import relative


@pytest.mark.triton
@pytest.mark.parametrize("camera", [False, True])
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str
)
def test_kernel_equals_the_twin(camera: bool, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    inputs = [(3 * torch.randn(2, 63, 24)).to(device, dtype).requires_grad_() for _ in range(2 + camera)]
    double = [x.detach().double().requires_grad_() for x in inputs]
    seed = torch.randn(2, 63, 24).to(device, dtype)

    def run(function, main, gate, extra=None, **kw):
        return function(main, extra, gate, **kw)

    fast = run(output_gate, *inputs, backend="triton")
    exact = run(output_gate_reference, *double)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert relative(fast, exact) < tolerance
    grads = torch.autograd.grad(fast, inputs, seed)
    truth = torch.autograd.grad(exact, double, seed.double())
    for grad, expected in zip(grads, truth, strict=True):
        assert relative(grad, expected) < tolerance


def test_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match="gate is"):
        output_gate(torch.zeros(1, 2), None, torch.zeros(2, 1))
