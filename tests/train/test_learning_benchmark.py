"""What the learning benchmark measures with: known cameras are found again, the linear autoencoder is one."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def benchmark(name: str) -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def clips_module():
    return benchmark("learns_clips")


@pytest.fixture(scope="module")
def held_out(clips_module):
    size = replace(clips_module.SIZES["toy"], held_out=8)
    return size, clips_module.held_out_clips(size, torch.device("cpu"))


@pytest.mark.slow
def test_measurement_finds_the_cameras_of_true_pictures(held_out):
    _, held = held_out
    true = held.clips.pictures
    right, wrong = benchmark("learns_figures").measure(held, true, held.truth, held.others)
    assert right.rotation_deg < 1.5  # pictures of 48 x 32: a pixel is 1.6 degrees
    assert right.translation_m < 0.08
    assert wrong.rotation_deg > 4 * right.rotation_deg
    assert right.psnr_db > 80


def test_rendered_depth_and_pose_agree_between_pictures(held_out):
    """A point of the first picture lies where the second camera sees it, as far as nothing hides it."""
    _, held = held_out
    clips = held.clips
    relative = torch.linalg.inv(held.truth[:, 1])
    lens = clips.intrinsics_px[:, [0, 8]]
    height, width = clips.depth_m.shape[1:]
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    fx, fy, cx, cy = (lens[:, 0, i, None, None] for i in range(4))
    z = clips.depth_m
    point = torch.stack([(u - cx) / fx * z, (v - cy) / fy * z, z], dim=-1)
    moved = torch.einsum("bij,bhwj->bhwi", relative[:, :3, :3], point) + relative[:, None, None, :3, 3]
    fx, fy, cx, cy = (lens[:, 1, i, None, None] for i in range(4))
    x, y = moved[..., 0] / moved[..., 2] * fx + cx, moved[..., 1] / moved[..., 2] * fy + cy
    grid = torch.stack([2 * x / width - 1, 2 * y / height - 1], dim=-1)
    seen = (grid.abs() < 0.97).all(dim=-1)
    taken = torch.nn.functional.grid_sample(clips.pictures[:, 1], grid, align_corners=False)
    error = (taken - clips.pictures[:, 0]).abs().mean(dim=1)
    still = (clips.pictures[:, 1] - clips.pictures[:, 0]).abs().mean(dim=1)
    assert float(error[seen].median()) < 0.25 * float(still[seen].median())


def test_autoencoder_is_linear_and_keeps_the_picture(clips_module, held_out):
    size, held = held_out
    true = held.clips.pictures
    codec = clips_module.PatchCodec(true, size.channels)
    latents = codec.encode(true)
    assert latents.shape == (8, size.channels, size.pictures, size.height // 8, size.width // 8)
    assert float(latents.square().mean()) == pytest.approx(1, abs=0.1)
    error = (codec.decode(latents) - true).square().mean()
    assert float(-10 * error.log10()) > 20
    whole = clips_module.PatchCodec(true, 192)
    assert torch.allclose(whole.decode(whole.encode(true)), true, atol=2e-3)
