"""Cameras as the model takes them."""

from __future__ import annotations

import pytest
import torch
from theodolite.dataset.cameras.transforms import relative_to_first
from theodolite.model.conditioning import condition_cameras, latent_frames, plucker_map

from ..typed import known
from .cases import poses


def clip(frames: int = 17, batch: int = 2):
    generator = torch.Generator().manual_seed(3)
    camera_to_world = torch.stack([poses(frames, generator) for _ in range(batch)])
    camera_to_world[1] = (
        torch.tensor([[0.0, 0, 1, 5], [0, 1, 0, -2], [-1, 0, 0, 1], [0, 0, 0, 1]]) @ camera_to_world[1]
    )
    return camera_to_world, torch.tensor([90.0, 88.0, 64.0, 48.0]).repeat(batch, frames, 1)


def test_every_eighth_frame_relative_to_the_first_in_tokens() -> None:
    camera_to_world, intrinsics = clip()
    cameras = condition_cameras(camera_to_world, intrinsics, height=96, width=128)
    assert cameras.camera_to_world.shape == (2, 3, 4, 4)
    assert torch.allclose(cameras.camera_to_world[:, 0], torch.eye(4), atol=1e-6)
    expected = torch.linalg.inv(camera_to_world[1, 0]) @ camera_to_world[1, 8]
    assert torch.allclose(cameras.camera_to_world[1, 1], expected, atol=1e-5)
    assert cameras.intrinsics[0, 0].tolist() == [90 / 32, 88 / 32, 2.0, 1.5]
    assert known(cameras.plucker).shape == (2, 48, 3, 3, 4)


def test_map_of_the_rays_by_hand() -> None:
    camera_to_world, intrinsics = clip()
    relative, tokens = torch.stack([relative_to_first(c) for c in camera_to_world]), intrinsics / 32
    found = plucker_map(relative, tokens, 3, 4)
    # Latent frame 0 holds video frames 0..7, latent frame 1 frames 1..8, latent frame 2 frames 9..16.
    for latent, first in ((0, 0), (1, 1), (2, 9)):
        for k in range(8):
            pose, (fx, fy, cx, cy) = relative[1, first + k], tokens[1, first + k]
            ray = pose[:3, :3] @ torch.tensor([(3 - cx) / fx, (2 - cy) / fy, 1.0])
            ray = ray / ray.norm()
            six = torch.cat([ray, torch.linalg.cross(pose[:3, 3], ray)])
            assert torch.allclose(found[1, 6 * k : 6 * k + 6, latent, 2, 3], six, atol=1e-5)


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (9, 2), (161, 21), (961, 121)])
def test_latent_frames(frames: int, latents: int) -> None:
    assert latent_frames(frames) == latents


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c, k: (c[:, :16], k[:, :16], 96, 128), "16 frames"),
        (lambda c, k: (c, k, 100, 128), "multiples of 32"),
        (lambda c, k: (c, k[:, :16], 96, 128), "intrinsics"),
        (lambda c, k: (c[..., :3, :], k, 96, 128), "camera_to_world"),
        (lambda c, k: (c * float("nan"), k, 96, 128), "frame 0 is not finite"),
        (lambda c, k: (c * 1.1, k, 96, 128), "no rigid transform"),
        (lambda c, k: (c * torch.tensor([-1.0, 1, 1, 1]), k, 96, 128), "no rigid transform"),
        (lambda c, k: (c, k * 0, 96, 128), "positive"),
        (lambda c, k: (c, k / 128, 96, 128), "in a picture of 128x96 is of no lens"),
    ],
)
def test_bad_cameras_are_refused(change, named: str) -> None:
    camera_to_world, intrinsics, height, width = change(*clip())
    with pytest.raises(ValueError, match=named):
        condition_cameras(camera_to_world, intrinsics, height=height, width=width)
