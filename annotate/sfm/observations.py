"""Tracks and depth as the observations of a bundle: chosen, thinned, weighted."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...dataset.arrays import FloatArray, IntArray
from ..tracks.records import (
    DENSE,
    DESCRIPTOR,
    ImageMeasurements,
    Tracks,
    indices_by_group,
    make_tracks,
)
from .bundle.lens import NEAR_PINHOLE, Lens
from .bundle.problem import Problem, sum_by
from .config import BundleConfig


def build_problem(
    tracks: Tracks,
    depth: FloatArray,
    config: BundleConfig,
    *,
    depth_sigma_log: float,
    lens: Lens = NEAR_PINHOLE,
) -> Problem:
    """Bundle problem of a set of tracks, observations in the same order.

    Args:
        depth: (N,) z-depth of each observation, NaN where none; its unit becomes that of the solution.
        depth_sigma_log: relative error of a depth.
        lens: how it bends.
    """
    working = max(tracks.height, tracks.width) / 640.0
    sigma = (
        np.where(tracks.kind == DESCRIPTOR, config.descriptor_sigma_px, config.reprojection_sigma_px)
        * working
    )
    sigma = np.where(tracks.kind == DENSE, tracks.sigma_px, sigma)
    has = np.isfinite(depth) & (depth > 0)
    relative = config.depth_sigma_log or depth_sigma_log

    def tensor(x: NDArray, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(x), dtype=dtype)

    return Problem(
        frame=tensor(tracks.frame, torch.long),
        point=tensor(tracks.track, torch.long),
        uv_px=tensor(tracks.xy_px),
        sigma_px=tensor(sigma),
        log_depth=tensor(np.log(np.where(has, depth, 1.0))),
        sigma_log_depth=tensor(np.where(has, relative, np.inf)),
        num_frames=tracks.num_frames,
        num_points=tracks.num_tracks,
        centre_px=tensor(np.array([tracks.width / 2, tracks.height / 2])),
        focal_scale_px=float(np.hypot(tracks.width, tracks.height)),
        lens=lens,
    )


def subset_frames(tracks: Tracks, depth: FloatArray, frames: IntArray) -> tuple[Tracks, FloatArray]:
    """Tracks restricted to `frames` (increasing), which are renumbered 0..len-1; single observations dropped."""
    number = np.full(tracks.num_frames, -1)
    number[frames] = np.arange(len(frames))
    keep = number[tracks.frame] >= 0
    count = np.bincount(tracks.track[keep], minlength=tracks.num_tracks)
    keep &= count[tracks.track] >= 2
    sub = make_tracks(
        number[tracks.frame[keep]],
        tracks.track[keep],
        tracks.xy_px[keep],
        tracks.kind[keep],
        len(frames),
        tracks.height,
        tracks.width,
        tracks.sigma_px[keep],
    )
    return sub, depth[keep]


def thin_observations(
    tracks: Tracks, depth: FloatArray, keyframes: IntArray, config: BundleConfig
) -> tuple[Tracks, FloatArray]:
    """Fewer observations where more would not help: cost grows with pairs of them.

    Between keyframes only some of the flow tracks are kept (whole tracks, so that they stay long; numbers are dealt
    out round robin over the image, so that any share of them is spread). Of descriptor tracks the longest stay.
    """
    flow = tracks.kind != DESCRIPTOR  # dense links lie on keyframes, where nothing but descriptors is thinned
    is_key = np.zeros(tracks.num_frames, bool)
    is_key[keyframes] = True
    between = np.bincount(tracks.frame[flow], minlength=tracks.num_frames)[~is_key]
    usual = float(np.median(between)) if len(between) else 0.0
    keep = np.ones(len(tracks.frame), bool)
    if usual > config.max_observations:
        share = config.max_observations / usual
        # Golden-ratio sequence: an even share of any run of consecutive track numbers.
        chosen = (np.arange(tracks.num_tracks) * 0.6180339887498949) % 1.0 < share
        keep &= ~flow | is_key[tracks.frame] | chosen[tracks.track]
    length = np.bincount(tracks.track, minlength=tracks.num_tracks)
    described = np.nonzero(~flow)[0]
    order = described[
        np.lexsort((tracks.track[described], -length[tracks.track[described]], tracks.frame[described]))
    ]
    frame = tracks.frame[order]
    start = (
        np.maximum.accumulate(np.where(np.r_[True, frame[1:] != frame[:-1]], np.arange(len(order)), 0))
        if len(order)
        else order
    )
    keep[order[np.arange(len(order)) - start >= config.max_descriptor_observations]] = False
    return drop_observations(tracks, depth, keep)


def drop_observations(
    tracks: Tracks, depth: FloatArray, keep: NDArray[np.bool_]
) -> tuple[Tracks, FloatArray]:
    """Tracks without the observations where `keep` is False; single observations dropped."""
    count = np.bincount(tracks.track[keep], minlength=tracks.num_tracks)
    keep = keep & (count[tracks.track] >= 2)
    sub = make_tracks(
        tracks.frame[keep],
        tracks.track[keep],
        tracks.xy_px[keep],
        tracks.kind[keep],
        tracks.num_frames,
        tracks.height,
        tracks.width,
        tracks.sigma_px[keep],
    )
    return sub, depth[keep]


def count_depth(problem: Problem, per_frame: float | None) -> Problem:
    """The problem with depth weighted as if no frame had more than `per_frame` independent ones; None changes nothing.

    A network errs alike over large parts of an image. Believed one by one, hundreds of its depths move a camera and
    bend its focal length to please an error that they share.
    """
    if per_frame is None:
        return problem
    has = torch.isfinite(problem.sigma_log_depth)
    count = sum_by(problem.frame, has.double(), problem.num_frames)
    factor = (count / per_frame).clamp_min(1.0).sqrt()[problem.frame]
    return replace(problem, sigma_log_depth=problem.sigma_log_depth * factor)


def stretched(measured: ImageMeasurements, factor: float) -> ImageMeasurements:
    """Measurements with x multiplied, as if the frames were `factor` times as wide."""
    stretch = np.array([factor, 1.0])
    flow = replace(measured.flow, xy_px=measured.flow.xy_px * stretch, width=measured.flow.width * factor)
    features = []
    for f in measured.features:
        high, wide = f.thumbnail.shape
        size = (wide, max(8, round(high / factor)))
        thumbnail = cv2.resize(f.thumbnail, size, interpolation=cv2.INTER_AREA)
        overlay = f.overlay
        if overlay is not None:
            overlay = cv2.resize(overlay.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        features.append(replace(f, xy_px=f.xy_px * stretch, thumbnail=thumbnail, overlay=overlay))
    return replace(measured, flow=flow, features=features)


def median_depth_by_frame(problem: Problem) -> FloatArray:
    has = torch.isfinite(problem.sigma_log_depth).cpu().numpy()
    frame = problem.frame.cpu().numpy()[has]
    z = problem.log_depth.cpu().numpy()[has]
    overall = np.median(z)
    out = np.full(problem.num_frames, overall)
    for i, indices in enumerate(indices_by_group(frame, problem.num_frames)):
        if len(indices) >= 5:
            out[i] = np.median(z[indices])
    return np.exp(out)
