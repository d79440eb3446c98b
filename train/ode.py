"""Regression onto the teacher's trajectories: the first few-step start.

A trajectory is what the chunk-causal teacher passes through from noise to video, kept at the student's times. The
student is shown a clip whose chunks stand at random times of it and must name the end.

Source: ODE initialisation (CausVid, arXiv 2412.07772) as the public NVlabs/Sana code trains SANA-WM's student with it.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from ..dataset.strict import Finite
from ..model.config import chunk_ranges
from ..model.frame_parallel import FrameShare
from ..model.network import WorldModel
from .objective import Batch, mean_of_counting
from .student import StudentConfig


class OdeConfig(Finite):
    """Onto what the student is regressed."""

    trajectories: str = Field(min_length=1)
    """Folder that `theodolite trajectories` wrote, of the same clips."""


def draw_snapshots(student: StudentConfig, clips: int, generator: torch.Generator) -> Tensor:
    """(B, T) at which of the student's times each frame stands: one a chunk, all equally likely, frame 0 the end."""
    last = len(student.times) - 1
    ranges = chunk_ranges(student.frames, student.starts)
    drawn = torch.randint(last + 1, (clips, len(ranges)), generator=generator, device=generator.device)
    sizes = torch.tensor([end - first for first, end in ranges], device=generator.device)
    index = drawn.repeat_interleave(sizes, dim=1, output_size=student.frames)
    index[:, 0] = last
    return index


def ode_loss(
    model: WorldModel,
    batch: Batch,
    student: StudentConfig,
    index: Tensor,
    share: FrameShare | None = None,
) -> Tensor:
    """Mean squared error of the clean estimate: per clip over frames that do not stand at the end, then over clips.

    Args:
        batch: with trajectories of the student's times and frames.
        index: (B, T) of `draw_snapshots`. A clip whose frames all stand at the end counts as zero.
        share: this rank computes its frames; losses of the ranks sum up to the clip's.
    """
    trajectory = batch.trajectory
    if trajectory is None:
        raise ValueError("the batch has no trajectories")
    b, _, channels, _, height, width = trajectory.shape
    place = index[:, None, None, :, None, None].expand(b, 1, channels, -1, height, width)
    noisy = trajectory.gather(1, place)[:, 0].float()
    noisy[:, :, 0] = batch.latents[:, :, 0].float()
    times = torch.tensor(student.times, device=noisy.device)[index]
    part = slice(None) if share is None else share.frames
    velocity = model(
        noisy[:, :, part],
        times[:, part],
        batch.text.states,
        text_mask=batch.text.mask,
        cameras=None if batch.cameras is None else batch.cameras.of_frames(part),
        chunk_starts=student.starts,
        share=share,
    ).float()
    estimate = noisy[:, :, part] - (times[:, part] / 1000)[:, None, :, None, None] * velocity
    error = (estimate - trajectory[:, -1, :, part].float()).square().mean(dim=(1, 3, 4))
    counting = times != 0
    error = torch.where(counting[:, part], error, 0.0)
    none = ~counting.any(
        dim=1, keepdim=True
    )  # such a clip's error is zero; it is counted to divide by something
    return mean_of_counting(error, counting | none, part)
