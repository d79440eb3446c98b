"""Small clips of random rooms with exact cameras and depth, rendered in batches by torch, thousands a second on a GPU.

A room is a box seen from inside with smaller boxes in it; every face has two colours that a sum of waves in space
mixes, so that every pixel carries texture and nothing is finer than the pictures can show. Nothing about the path of
the camera can be told from the room: both are drawn by themselves.

Conventions: OpenCV axes (x right, y down, z forward), metres, camera-to-world, pixel centres at +0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from theodolite.dataset.cameras.rotations import so3_exp
from torch import Tensor

NUM_BOXES = 5
NUM_WAVES = 10
MAX_TURN_DEG = 28.0
MAX_SHIFT_M = 0.6


@dataclass(frozen=True)
class Rooms:
    """B rooms.

    Attributes:
        half_m: (B, 3) half the room's size, centred at the origin.
        box_centre_m, box_half_m: (B, N, 3).
        colours: (B, 6 + N, 2, 3) the two colours of every wall and box, 0..1.
        waves: (B, K, 3) radians a metre, with phase (B, K) and gain (B, K).
    """

    half_m: Tensor
    box_centre_m: Tensor
    box_half_m: Tensor
    colours: Tensor
    waves: Tensor
    phase: Tensor
    gain: Tensor


@dataclass(frozen=True)
class Clips:
    """B clips of F video frames, of which every `stride`-th is a picture.

    Attributes:
        pictures: (B, T, 3, H, W) in 0..1.
        depth_m: (B, H, W) z-depth of the first picture.
        camera_to_world: (B, F, 4, 4); intrinsics_px: (B, F, 4) fx, fy, cx, cy.
    """

    pictures: Tensor
    depth_m: Tensor
    camera_to_world: Tensor
    intrinsics_px: Tensor


class Draw:
    """Uniform and normal numbers of one seeded generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        unit = torch.rand(*shape, generator=self.generator, device=self.generator.device)
        return low + (high - low) * unit

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.generator.device)


def random_rooms(draw: Draw, batch: int, start: Tensor) -> Rooms:
    """Rooms around cameras that start at `start` (B, 3): no box stands where they go."""
    half = torch.stack(
        [draw.uniform(2.2, 3.6, batch), draw.uniform(1.2, 1.8, batch), draw.uniform(2.2, 3.6, batch)], dim=-1
    )
    box_half = draw.uniform(0.15, 0.55, batch, NUM_BOXES, 3)
    angle = draw.uniform(0, 2 * math.pi, batch, NUM_BOXES)
    distance = draw.uniform(1.7, 2.8, batch, NUM_BOXES)
    height = draw.uniform(-0.8, 1.0, batch, NUM_BOXES)
    offset = torch.stack([distance * angle.sin(), height, distance * angle.cos()], dim=-1)
    directions = torch.nn.functional.normalize(draw.normal(batch, NUM_WAVES, 3), dim=-1)
    # Wavelengths of 0.45 to 2.5 m: six pixels and more where pictures of 96 columns look at a wall.
    length = (draw.uniform(math.log(0.45), math.log(2.5), batch, NUM_WAVES)).exp()
    first = draw.uniform(0, 1, batch, 6 + NUM_BOXES, 1, 3)
    # The second colour lies on the other side of the cube: strong texture everywhere.
    second = (first + 0.5 + draw.uniform(-0.2, 0.2, batch, 6 + NUM_BOXES, 1, 3)) % 1.0
    return Rooms(
        half_m=half,
        box_centre_m=start[:, None] + offset,
        box_half_m=box_half,
        colours=torch.cat([first, second], dim=2),
        waves=directions * (2 * math.pi / length)[..., None],
        phase=draw.uniform(0, 2 * math.pi, batch, NUM_WAVES),
        gain=draw.uniform(0.5, 1.0, batch, NUM_WAVES) * length.clamp_max(1.0),
    )


def random_paths(
    draw: Draw,
    batch: int,
    num_frames: int,
    *,
    reach: float = 1.0,
    shift: float = 1.0,
    fov_deg: tuple[float, float] = (62.0, 95.0),
    zoom: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """(B, F, 4, 4) smooth paths from a random place and heading, and (B, F) focal lengths for pictures one wide.

    Turns reach 28 degrees and ways 0.6 m, both times `reach`, ways times `shift` as well; each of the six components is
    a random mix of a steady drift, an acceleration and a swing there and back. Half of the clips zoom by up to `zoom`.
    """
    device = draw.generator.device
    s = torch.linspace(0, 1, num_frames, device=device)
    basis = torch.stack([s, s * s, torch.sin(math.pi * s)], dim=0)
    mix = draw.normal(batch, 6, 3) * torch.tensor([0.7, 0.5, 0.4], device=device)
    size = reach * torch.tensor([18.0, 8.0, 5.0], device=device).deg2rad()
    curve = torch.einsum("bck,kf->bfc", mix, basis)
    turn = curve[..., :3] * size
    turn = turn * (
        reach * math.radians(MAX_TURN_DEG) / turn.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    ).clamp_max(1)
    way = 0.3 * reach * shift * curve[..., 3:]
    way = way * (reach * shift * MAX_SHIFT_M / way.norm(dim=-1, keepdim=True).clamp_min(1e-6)).clamp_max(1)
    yaw = draw.uniform(0, 2 * math.pi, batch)
    heading = so3_exp(torch.stack([0 * yaw, yaw, 0 * yaw], dim=-1))
    tilt = so3_exp(draw.normal(batch, 3) * 0.08)
    # Components of `turn` are yaw, pitch, roll; those of a rotation vector are about x, y, z.
    relative = so3_exp(turn[..., [1, 0, 2]])
    first = heading @ tilt
    place = torch.stack(
        [draw.uniform(-0.6, 0.6, batch), draw.uniform(-0.3, 0.3, batch), draw.uniform(-0.6, 0.6, batch)],
        dim=-1,
    )
    poses = torch.eye(4, device=device).repeat(batch, num_frames, 1, 1)
    poses[..., :3, :3] = first[:, None] @ relative
    poses[..., :3, 3] = place[:, None] + torch.einsum("bij,bfj->bfi", first, way)
    focal = 0.5 / torch.tan(draw.uniform(math.radians(fov_deg[0]), math.radians(fov_deg[1]), batch) / 2)
    zooming = (draw.uniform(-zoom, zoom, batch) * (draw.uniform(0, 1, batch) < 0.5))[:, None] * s
    focal = focal[:, None] * zooming.exp()
    return poses, focal


def render(
    rooms: Rooms, poses: Tensor, intrinsics_px: Tensor, height: int, width: int, *, samples: int = 2
) -> Tensor:
    """(B, T, 4, height, width): colours 0..1 and z-depth of T cameras a room, samples x samples rays a pixel.

    Args:
        poses: (B, T, 4, 4); intrinsics_px: (B, T, 4).
    """
    device = poses.device
    v = (torch.arange(height * samples, device=device) + 0.5) / samples
    u = (torch.arange(width * samples, device=device) + 0.5) / samples
    fx, fy, cx, cy = (intrinsics_px[..., i, None, None] for i in range(4))
    x, y = torch.broadcast_tensors((u - cx) / fx, (v[:, None] - cy) / fy)
    ray = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    ray = torch.einsum("btij,bthwj->bthwi", poses[..., :3, :3], ray).flatten(1, 3)
    b, pixels = ray.shape[:2]
    origin = poses[..., None, :3, 3].expand(-1, -1, pixels // poses.shape[1], -1).flatten(1, 2)
    z, face = _nearest(rooms, origin, ray)
    point = origin + z[..., None] * ray
    wave = (point @ rooms.waves.transpose(1, 2) + rooms.phase[:, None] + 2.4 * face[..., None]).cos()
    mixed = torch.sigmoid(3.0 * torch.einsum("bpk,bk->bp", wave, rooms.gain))[..., None]
    pair = rooms.colours.gather(1, face[..., None, None].expand(-1, -1, 2, 3))
    colour = pair[:, :, 0] + mixed * (pair[:, :, 1] - pair[:, :, 0])
    image = torch.cat([colour, z[..., None]], dim=-1)
    grid = image.view(b, poses.shape[1], height, samples, width, samples, 4)
    picture = grid[..., :3].mean(dim=(3, 5))
    depth = (
        grid[..., 3].median(dim=5).values.median(dim=3).values if samples > 1 else grid[:, :, :, 0, :, 0, 3]
    )
    return torch.cat([picture, depth[..., None]], dim=-1).permute(0, 1, 4, 2, 3)


def _nearest(rooms: Rooms, origin: Tensor, ray: Tensor) -> tuple[Tensor, Tensor]:
    """z-depth (B, P) and face (B, P) that each ray meets first: 0..5 walls, then boxes."""
    step = torch.where(ray.abs() < 1e-6, 1e-6, ray)
    inverse = 1 / step
    wall = (torch.sign(step) * rooms.half_m[:, None] - origin) * inverse
    z, axis = wall.min(dim=-1)
    positive = step.gather(-1, axis[..., None])[..., 0] > 0
    face = 2 * axis + positive.long()
    for n in range(NUM_BOXES):
        centre, half = rooms.box_centre_m[:, n, None], rooms.box_half_m[:, n, None]
        middle, reach = (centre - origin) * inverse, half * inverse.abs()
        enter, leave = (middle - reach).amax(dim=-1), (middle + reach).amin(dim=-1)
        hit = (enter < leave) & (enter > 0.05) & (enter < z)
        z, face = torch.where(hit, enter, z), torch.where(hit, 6 + n, face)
    return z, face


def random_clips(
    generator: torch.Generator,
    batch: int,
    *,
    num_pictures: int,
    stride: int,
    height: int,
    width: int,
    **path: Any,
) -> Clips:
    """Clips whose every `stride`-th video frame is rendered; the others have cameras only.

    Args:
        path: of `random_paths`.
    """
    draw = Draw(generator)
    poses, focal = random_paths(draw, batch, stride * (num_pictures - 1) + 1, **path)
    rooms = random_rooms(draw, batch, poses[:, 0, :3, 3])
    centre = torch.tensor([width / 2, height / 2], device=focal.device).expand(*focal.shape, 2)
    lens = torch.cat([(focal * width)[..., None].expand(*focal.shape, 2), centre], dim=-1)
    image = render(rooms, poses[:, ::stride], lens[:, ::stride], height, width)
    return Clips(pictures=image[:, :, :3], depth_m=image[:, 0, 3], camera_to_world=poses, intrinsics_px=lens)
