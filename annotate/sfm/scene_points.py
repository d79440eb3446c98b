"""Points of the scene for a clip whose cameras are known: corners followed through its pictures and triangulated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ...dataset.cameras.transforms import world_to_camera
from ...dataset.formats.colmap import ColmapPoints
from ...dataset.media.read import iterate_frames
from ...dataset.rows import Row
from ..tracks.measure import measure_images
from ..tracks.records import Tracks, TracksConfig
from .bundle.lens import LENS_DOF, straightened
from .bundle.problem import Problem, State, project, sum_by
from .triangulation import triangulate

_LARGEST_ERROR_PX = 1.5
"""Root mean square distance of a point's projections from its track, for pictures 640 pixels wide: what moves on its
own or was followed wrongly exceeds it."""
_DRIFT_PX = 0.5
_LARGEST_DEPTH_ERROR = 0.05
"""Relative error in depth that `_DRIFT_PX` may make, for pictures 640 pixels wide. Tracks slide slowly over what they
follow: their observations err together, and many are no better than few."""
_COLOUR_WIDTH = 320


def scene_points(
    row: Row, media_root: str | Path = ".", *, config: TracksConfig | None = None
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Static points that a clip shows, by its own cameras: (P, 3) metres in the clip's world and (P, 3) RGB.

    Args:
        row, config: as for `observed_points`. media_root: folder to which the row's media path refers.
    Raises:
        ValueError: the row lacks cameras, or its media cannot be read.
    """
    found = observed_points(row, iterate_frames(row, media_root), config=config)
    assert found.colour is not None, "observed points are always coloured"
    return found.points_world.astype(np.float32), found.colour


def observed_points(
    row: Row, pictures: Iterable[NDArray[np.uint8]], *, config: TracksConfig | None = None
) -> ColmapPoints:
    """Static points that a clip shows, by its own cameras, and where they are seen.

    Args:
        row: with a camera on every frame. pictures: its RGB frames, all of them.
        config: how corners are followed.
    Returns:
        Points in metres in the clip's world, with colours. Tracks are left out whose viewing rays are so nearly
        parallel that half a pixel is over 5 % of depth, and those that their point explains worse than 1.5 pixels (at
        640 pixels width).
    Raises:
        ValueError: the row lacks cameras.
    """
    if len(row.camera_to_world) != row.num_frames or (row.pose_source == 0).any():
        raise ValueError(f"clip {row.clip_id}: points need a camera on every frame")
    thumbnails: list[NDArray[np.uint8]] = []
    small = (_COLOUR_WIDTH, max(1, round(row.height * _COLOUR_WIDTH / row.width)))

    def seen() -> Iterator[NDArray[np.uint8]]:
        for rgb in pictures:
            thumbnails.append(np.asarray(cv2.resize(rgb, small, interpolation=cv2.INTER_AREA), np.uint8))
            yield rgb

    measured = measure_images(
        seen(), height=row.height, width=row.width, config=config or TracksConfig(num_descriptors=100)
    )
    tracks = measured.flow
    if not tracks.num_tracks:
        none = np.zeros(0, np.int64)
        return ColmapPoints(
            points_world=np.zeros((0, 3)),
            frame=none,
            point=none,
            xy_px=np.zeros((0, 2)),
            colour=np.zeros((0, 3), np.uint8),
        )
    points, kept = _triangulated(row, tracks)
    first = np.searchsorted(tracks.track, np.arange(tracks.num_tracks))  # sorted by track, then frame
    colours = np.empty((tracks.num_tracks, 3), np.uint8)
    pixels = (tracks.xy_px[first] * [small[0] / row.width, small[1] / row.height]).astype(int)
    for i, (frame, (x, y)) in enumerate(zip(tracks.frame[first], pixels, strict=True)):
        colours[i] = thumbnails[frame][min(y, small[1] - 1), min(x, small[0] - 1)]
    used = kept[tracks.track]
    number = np.cumsum(kept) - 1
    return ColmapPoints(
        points_world=points[kept],
        frame=tracks.frame[used],
        point=number[tracks.track[used]],
        xy_px=tracks.xy_px[used],
        colour=colours[kept],
    )


def _triangulated(row: Row, tracks: Tracks) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(P, 3) points of all tracks and which of them hold, (P,)."""
    focal = row.focal_px.astype(np.float64)[tracks.frame]
    seen = (tracks.xy_px - row.principal_point_px.astype(np.float64)[tracks.frame]) / focal
    pinhole = torch.from_numpy(seen)
    if row.radial_k1 or row.radial_k2:
        k1, k2 = (torch.tensor(k or 0.0, dtype=torch.float64) for k in (row.radial_k1, row.radial_k2))
        pinhole = straightened("radial", pinhole, k1, k2)
    # Normalised coordinates are pixels of a camera with focal length 1, which every lens is here.
    one = torch.ones(len(tracks.frame), dtype=torch.float64)
    problem = Problem(
        frame=torch.from_numpy(tracks.frame),
        point=torch.from_numpy(tracks.track),
        uv_px=pinhole,
        sigma_px=one,
        log_depth=0 * one,
        sigma_log_depth=torch.inf * one,
        num_frames=row.num_frames,
        num_points=tracks.num_tracks,
        centre_px=torch.zeros(2, dtype=torch.float64),
        focal_scale_px=1.0,
    )
    to_camera = torch.from_numpy(world_to_camera(row.camera_to_world.astype(np.float64)))
    state = State(
        rotation=to_camera[:, :3, :3],
        translation=to_camera[:, :3, 3],
        log_focal=torch.zeros(row.num_frames, dtype=torch.float64),
        lens=torch.zeros(LENS_DOF, dtype=torch.float64),
        points=torch.zeros((tracks.num_tracks, 3), dtype=torch.float64),
    )
    points = triangulate(problem, state, torch.ones(tracks.num_tracks, dtype=torch.bool))
    found = torch.isfinite(points).all(1)
    state = State(state.rotation, state.translation, state.log_focal, state.lens, points.nan_to_num())
    predicted, in_camera = project(problem, state)
    squared_px = ((predicted - problem.uv_px) * torch.from_numpy(focal)).square().sum(1)
    count = sum_by(problem.point, one, problem.num_points)
    rms_px = (sum_by(problem.point, squared_px, problem.num_points) / count).sqrt()
    behind = sum_by(problem.point, (in_camera[:, 2] <= 0).double(), problem.num_points) > 0
    working = max(row.height, row.width) / 640
    away = torch.nn.functional.normalize(in_camera, dim=1)
    world = (state.rotation[problem.frame].transpose(1, 2) @ away[:, :, None])[:, :, 0]
    across = torch.eye(3, dtype=torch.float64) - world[:, :, None] * world[:, None, :]
    # A ray says nothing about places along it; what the mean of them says least about is the depth.
    weight = (torch.from_numpy(focal[:, 0]) / (_DRIFT_PX * working)) ** 2
    information = (
        sum_by(problem.point, across * weight[:, None, None], problem.num_points) / count[:, None, None]
    )
    sharp = torch.linalg.eigvalsh(information)[:, 0] > _LARGEST_DEPTH_ERROR**-2
    kept = found & ~behind & sharp & (rms_px < _LARGEST_ERROR_PX * working)
    return points.numpy(), kept.numpy()
