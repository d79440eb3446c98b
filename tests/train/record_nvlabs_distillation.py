"""Record what the public NVlabs/Sana code makes of a toy network, as `nvlabs_sana_distillation.npz`.

    python -m theodolite.tests.train.record_nvlabs_distillation SANA OUT.npz

SANA: a checkout of NVlabs/Sana of July 2026 or later. Of `diffusion/longsana/trainer/sana_wm_distill.py` the methods of
a step run as they are, on a trainer without its constructor; of `diffusion/model/respace.py` the times and the loss.
What they draw is recorded beside what they make of it. Recorded with the methods as published, torch 2.13, CPU.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from .distillation_cases import FORCING, LOOSE, SIZES, inputs, levels_and_noise, toys

TIMES = [1000, 967, 908, 764, 0]


class Called(torch.nn.Module):
    """The toy by the released network's signature."""

    def __init__(self, toy: Any) -> None:
        super().__init__()
        self.toy, self.blocks = toy, toy.blocks

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.toy.official(*arguments, **named)


class Optimiser:
    """Leaves the weights as they are."""

    def zero_grad(self, set_to_none: bool = True) -> None: ...
    def step(self) -> None: ...


class Accelerator:
    """Keeps the gradients before they are clipped."""

    device = torch.device("cpu")

    def __init__(self, found: dict[str, Any], networks: dict[str, Any]) -> None:
        self.found, self.networks, self.name = found, networks, ""

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def unwrap_model(self, model: Any) -> Any:
        return model

    def unscale_gradients(self, optimiser: Any) -> None:
        for role, network in self.networks.items():
            for name, parameter in network.toy.named_parameters():
                if parameter.grad is not None:
                    self.found[f"{self.name}.grad.{role}.{name}"] = parameter.grad.numpy().copy()
                    parameter.grad = None


@contextmanager
def listened(found: dict[str, Any], name: str) -> Iterator[None]:
    """Everything that is drawn meanwhile, in order."""
    number = iter(range(10**6))

    def kept(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Tensor:
            made = function(*arguments, **named)
            found[f"{name}.drawn.{next(number):02d}"] = made.numpy().copy()
            return made

        return call

    with (
        mock.patch.object(torch, "randint", kept(torch.randint)),
        mock.patch.object(torch, "randn", kept(torch.randn)),
        mock.patch.object(torch, "randn_like", kept(torch.randn_like)),
    ):
        yield


def trainer(kind: Any, found: dict[str, Any], case: str, frames: int) -> Any:
    made = kind.__new__(kind)
    networks = {role: Called(toy) for role, toy in toys().items()}
    made.accelerator = Accelerator(found, networks)
    made.student, made.fake_score, made.real_score = (networks[k] for k in ("student", "fake", "real"))
    made.student_optimizer = made.fake_optimizer = Optimiser()
    made.cp_size, made.dtype = 1, torch.float32
    made.student_config = SimpleNamespace(
        model=SimpleNamespace(chunk_size=3, chunk_split_strategy="first_chunk_plus_one")
    )
    windowed = case == "windowed"
    made.config = SimpleNamespace(
        num_latent_frames=frames,
        denoising_step_list=TIMES,
        num_cached_blocks=2 if windowed else -1,
        sink_token=windowed,
        timestep_shift=10.0,
        min_score_timestep=20,
        max_score_timestep=980,
        real_guidance_scale=3.0,
        train=SimpleNamespace(gradient_clip=1.0, generator_gradient_clip=10.0, critic_gradient_clip=10.0),
    )
    return made


def record_steps(kind: Any, found: dict[str, Any]) -> None:
    for case, (frames, seed) in FORCING.items():
        x = inputs(frames)
        values = (x.image, x.conditions, x.plucker, x.y, x.mask, x.other, x.other_mask)
        made = trainer(kind, found, case, frames)
        for step, run in (("generator", made._train_generator_step), ("critic", made._train_critic_step)):
            torch.manual_seed(seed)
            made.accelerator.name = name = f"{case}.{step}"
            with listened(found, name):
                said = run(values)
            found[f"{name}.loss"] = np.float64(said[f"{step}_loss"])
    for seed in LOOSE:
        x = inputs(SIZES["ode"])
        made = trainer(kind, found, "ode", SIZES["ode"])
        made._encode = lambda prompt, x=x: (x.y, x.mask)
        made.accelerator.name = name = f"ode{seed}"
        torch.manual_seed(seed)
        batch = dict(
            trajectory=x.trajectory.transpose(2, 3).contiguous(),
            camera_conditions=x.conditions,
            chunk_plucker=x.plucker,
            first_frame=x.image,
            prompt=[""],
        )
        with listened(found, name):
            found[f"{name}.loss"] = np.float64(made._train_ode_step(batch)["ode_loss"])


def record_flow_matching(found: dict[str, Any]) -> None:
    # brought by whoever wants it
    from diffusion.scheduler.iddpm import Scheduler  # pyright: ignore[reportMissingImports]

    schedule = Scheduler(
        "", noise_schedule="linear_flow", predict_flow_v=True, learn_sigma=False, pred_sigma=False,
        snr=False, flow_shift=9.95,
    )  # fmt: skip
    for case in ("clip", "chunks"):
        x = inputs(SIZES["ode"])
        index, noise = levels_and_noise(case)
        toy = toys()["student"]
        mask = torch.ones(1, 1, SIZES["ode"], 1, 1)
        mask[:, :, 0] = 0
        named: dict[str, Any] = dict(
            y=x.y, mask=x.mask, camera_conditions=x.conditions, chunk_plucker=x.plucker
        )
        if case == "chunks":
            named["chunk_index"] = [0, 4]
        model = Called(toy)
        loss = schedule.training_losses(
            lambda x, timestep, model=model, **more: model(x, timestep, **more),
            x.video,
            index[:, None],
            model_kwargs=named,
            noise=noise,
            loss_mask=mask,
        )["loss"].mean()
        loss.backward()
        found[f"flow.{case}.loss"] = np.float64(loss.detach())
        for name, parameter in toy.named_parameters():
            if parameter.grad is not None:
                found[f"flow.{case}.grad.student.{name}"] = parameter.grad.numpy().copy()


def record_times(found: dict[str, Any], chunks: int = 40, count: int = 20_000) -> None:
    """Moments of the mixture of chunk times at the size of a minute."""
    # brought by whoever wants it
    from diffusion.model.respace import IncrementalTimesteps, process_timesteps  # pyright: ignore[reportMissingImports]

    torch.manual_seed(1)
    sampler = IncrementalTimesteps(F=chunks, T=1000, device="cpu", dtype=torch.float64)
    drawn = []
    for _ in range(count // 2000):
        drawn.append(
            process_timesteps(
                "logit_normal", 1000, (2000,), torch.device("cpu"), num_frames=chunks,
                chunk_index=list(range(chunks)), time_sampler=sampler,
                chunk_mixture_probs=dict(
                    same_t=0.1, incremental=0.4, last_chunk_anchor=0.4, teacher_forcing_clean=0.1
                ),
            ).reshape(2000, chunks)
        )  # fmt: skip
    index = torch.cat(drawn).double()
    found["times.mean"], found["times.covariance"] = index.mean(0).numpy(), index.T.cov().float().numpy()
    found["times.clean"] = (index == 0).double().mean(0).numpy()
    found["times.same"] = np.float64((index[:, 0] == index[:, -1]).double().mean())


def main() -> None:
    sana, out = Path(sys.argv[1]), Path(sys.argv[2])
    sys.path.insert(0, str(sana))
    parallel = types.ModuleType("diffusion.distributed.context_parallel")
    vars(parallel).update(get_cp_group=lambda: None, cp_reduce_loss=None)
    sys.modules[parallel.__name__] = parallel
    kind = importlib.import_module("diffusion.longsana.trainer.sana_wm_distill").SanaWMDistillTrainer
    found: dict[str, Any] = {}
    record_steps(kind, found)
    record_flow_matching(found)
    record_times(found)
    np.savez_compressed(out, allow_pickle=False, **found)


if __name__ == "__main__":
    main()
