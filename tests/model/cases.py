"""A tiny world model with weights and inputs that are the same everywhere."""

from __future__ import annotations

from dataclasses import replace

import torch
from theodolite.model.config import WorldModelConfig, chunk_starts
from theodolite.model.context import Cameras, Operators
from theodolite.model.frame_parallel import FrameShare
from theodolite.model.network import WorldModel
from torch import Tensor

TINY = WorldModelConfig(depth=4, width=48, heads=2, latent_channels=8, text_width=16, text_tokens=10)
FRAMES, HEIGHT, WIDTH = 7, 2, 3


def filled(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Weights under which every part of the network speaks, drawn in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name in sorted(shapes):
        noise = torch.randn(shapes[name], generator=generator)
        if name.endswith("A_log"):
            value = 0.3 * noise
        elif name.endswith("dt_bias"):
            value = -2 + 0.5 * noise
        elif name.endswith(("norm.weight", "norm_cam.weight")):
            value = 1 + 0.2 * noise
        elif name.endswith("beta_proj.bias"):
            value = noise
        elif name.endswith("y_embedding"):
            value = 0.1 * noise
        elif noise.ndim == 1:
            value = 0.2 * noise
        elif name.endswith("scale_shift_table"):
            value = 0.3 * noise
        else:
            value = noise / max(1, noise[0].numel()) ** 0.5
        found[name] = value
    return found


def tiny_model(config: WorldModelConfig = TINY, *, operators: Operators | None = None) -> WorldModel:
    model = WorldModel(config, operators or Operators(kernels="reference"))
    model.load_state_dict(filled({k: tuple(v.shape) for k, v in model.state_dict().items()}))
    return model.eval()


def poses(frames: int, generator: torch.Generator) -> Tensor:
    """(frames, 4, 4) a camera that turns and walks at random."""
    found = torch.eye(4).repeat(frames, 1, 1)
    turn, place = torch.zeros(3), torch.zeros(3)
    for t in range(1, frames):
        turn = turn + 0.1 * torch.randn(3, generator=generator)
        place = place + 0.2 * torch.randn(3, generator=generator)
        x, y, z = turn.tolist()
        found[t, :3, :3] = torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]]))
        found[t, :3, 3] = place
    return found


def tiny_inputs(frames: int = FRAMES, batch: int = 2, seed: int = 1) -> dict:
    """Arguments of `WorldModel.forward`."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    mask = torch.ones(batch, TINY.text_tokens)
    mask[-1, 6:] = 0
    return dict(
        latents=randn(batch, TINY.latent_channels, frames, HEIGHT, WIDTH),
        times=torch.randint(1000, (batch, frames), generator=generator),
        text=randn(batch, TINY.text_tokens, TINY.text_width),
        text_mask=mask,
        cameras=Cameras(
            camera_to_world=torch.stack([poses(frames, generator) for _ in range(batch)]),
            intrinsics=torch.tensor([2.5, 2.4, 1.4, 1.1]) * (1 + 0.02 * randn(batch, frames, 4)),
            plucker=randn(batch, 48, frames, HEIGHT, WIDTH),
        ),
    )


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def loss_and_gradients(
    frames: int, causal: bool, share: FrameShare | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of squares of the velocity of a rank's frames, and gradients of all weights."""
    model = tiny_model(TINY.model_copy(update={"softmax_bfloat16": False})).double()
    given = tiny_inputs(frames, batch=1)
    part = slice(None) if share is None else share.frames
    cameras = given["cameras"]
    velocity = model(
        given["latents"][:, :, part].double(),
        given["times"][:, part],
        given["text"].double(),
        text_mask=given["text_mask"],
        cameras=replace(
            cameras,
            camera_to_world=cameras.camera_to_world[:, part].double(),
            intrinsics=cameras.intrinsics[:, part].double(),
            plucker=cameras.plucker[:, :, part].double(),
        ),
        chunk_starts=chunk_starts(frames) if causal else None,
        share=share,
    )
    loss = velocity.square().sum()
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
