"""Our networks against upstream's code: random weights, float32 on the CPU, small images, reduced depth."""

from __future__ import annotations

import warnings

import pytest
import torch
from theodolite.annotate.networks.checkpoint import fill_stand_in
from theodolite.annotate.networks.conditioning import Conditions
from theodolite.annotate.networks.moge2 import MoGe2, MoGe2Size
from theodolite.annotate.networks.pi3x import Pi3X, Pi3XSize
from theodolite.annotate.networks.variants import Variant

from . import upstream

# Two float32 evaluations of the same graph in another order of sums; a wrong rule anywhere gives 1e-3 and more.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def pair():
    upstream.require()
    torch.set_num_threads(1)
    with torch.device("meta"):
        ours = Pi3X(Pi3XSize(encoder_depth=2, decoder_depth=4, head_depth=1))
    ours.to_empty(device="cpu")
    for prefix, mean, std in (("image", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),):
        getattr(ours, f"{prefix}_mean").copy_(torch.tensor(mean).view(1, 3, 1, 1))
        getattr(ours, f"{prefix}_std").copy_(torch.tensor(std).view(1, 3, 1, 1))
    fill_stand_in(ours, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ours, upstream.pi3x(ours)


def random_poses(batch: int, frames: int, generator: torch.Generator) -> torch.Tensor:
    q, _ = torch.linalg.qr(torch.randn(batch, frames, 3, 3, generator=generator))
    q = q * torch.linalg.det(q)[..., None, None]
    pose = torch.eye(4).repeat(batch, frames, 1, 1)
    pose[..., :3, :3] = q
    pose[..., :3, 3] = torch.randn(batch, frames, 3, generator=generator)
    return pose


def conditions(kind: str, batch: int, frames: int, height: int, width: int) -> tuple[Conditions | None, dict]:
    g = torch.Generator().manual_seed(11)
    if kind == "none":
        return None, {}
    K = torch.tensor([[80.0, 0, width / 2], [0, 85.0, height / 2], [0, 0, 1]]).repeat(batch, frames, 1, 1)
    K[:, 1:, 0, 0] += 7
    rays = torch.randn(batch, frames, height, width, 3, generator=g)
    rays[..., 2] = rays[..., 2].abs() + 1
    depth = torch.rand(batch, frames, height, width, generator=g) * 5 - 0.5
    pose = random_poses(batch, frames, g)
    some = torch.ones(batch, frames, dtype=torch.bool)
    some[:, 1] = False
    if kind == "intrinsics":
        return Conditions(intrinsics=K), {"intrinsics": K}
    if kind == "rays":
        return Conditions(rays=rays, ray_frames=some), {"rays": rays, "mask_add_ray": some.clone()}
    if kind == "depth":
        return Conditions(depth=depth, depth_frames=some), {"depths": depth, "mask_add_depth": some.clone()}
    if kind == "poses":
        return Conditions(camera_to_world=pose, intrinsics=K), {"poses": pose, "intrinsics": K}
    if kind == "some_poses":
        return (
            Conditions(camera_to_world=pose, intrinsics=K, pose_frames=some),
            {"poses": pose, "intrinsics": K, "mask_add_pose": some.clone()},
        )
    assert kind == "all"
    return (
        Conditions(camera_to_world=pose, intrinsics=K, depth=depth),
        {"poses": pose, "intrinsics": K, "depths": depth},
    )


@pytest.mark.parametrize(
    ("kind", "batch", "frames", "height", "width"),
    [
        ("none", 1, 3, 42, 70),
        ("none", 2, 2, 70, 28),
        ("none", 1, 1, 28, 28),
        ("intrinsics", 2, 3, 42, 56),
        ("rays", 1, 3, 56, 28),
        ("depth", 2, 3, 28, 56),
        ("poses", 1, 3, 42, 28),
        ("some_poses", 2, 4, 28, 42),
        ("all", 2, 3, 42, 42),
    ],
)
def test_pi3x_equals_upstream(pair, kind, batch, frames, height, width):
    ours, theirs = pair
    images = torch.rand(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(5))
    given, keywords = conditions(kind, batch, frames, height, width)
    with torch.no_grad():
        expected = theirs(images, **keywords)
    found = ours(images, given)
    errors = {name: upstream.relative_error(found[name], expected[name]) for name in expected}
    assert set(found) == set(expected)
    assert max(errors.values()) < TOLERANCE, errors


def test_pi3x_layout_equals_upstream():
    theirs = upstream.layout(upstream.pi3x(None))
    with torch.device("meta"):
        ours = upstream.layout(Pi3X())
    assert ours.shapes == theirs.shapes


@pytest.mark.parametrize("variant", ["vitl", "vitl-normal", "vitb-normal", "vits-normal"])
def test_moge2_layout_equals_upstream(variant: Variant):
    with torch.device("meta"):
        ours = MoGe2(MoGe2Size.released(variant))
    assert upstream.layout(ours).shapes == upstream.layout(upstream.moge2(ours)).shapes


@pytest.mark.parametrize(
    ("variant", "batch", "height", "width", "tokens"),
    [("vits-normal", 1, 90, 160, 40), ("vits-normal", 2, 77, 51, 30), ("vitb-normal", 2, 64, 64, 25)],
)
def test_moge2_equals_upstream(variant: Variant, batch: int, height: int, width: int, tokens: int):
    upstream.require()
    torch.set_num_threads(1)
    ours = MoGe2(MoGe2Size.released(variant))
    fill_stand_in(ours, 7)
    theirs = upstream.moge2(ours)
    image = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = theirs(image, num_tokens=tokens)
    found = ours(image, tokens)
    errors = {name: upstream.relative_error(found[name], expected[name]) for name in expected}
    assert set(found) == set(expected)
    assert max(errors.values()) < TOLERANCE, errors

    # infer with the field of view given: one unknown, and upstream's solver stops at a relative change of 1e-3.
    theirs_out = theirs.infer(image, num_tokens=tokens, fov_x=70.0, use_fp16=False, apply_mask=False)
    ours_out = ours.infer(image, num_tokens=tokens, fov_x_deg=70.0, apply_mask=False)
    torch.testing.assert_close(ours_out["intrinsics"], theirs_out["intrinsics"], rtol=1e-5, atol=1e-6)
    assert set(theirs_out) == {"points", "depth", "intrinsics", "mask", "normal"}
