"""U8 scores of generated video: consistency when the camera returns to a place, and decline over a
minute."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays import U8
from ..cameras.rotations import rotation_angle
from ..media.picture import cover
from ..media.read import count_video_frames, video_frames

ImagePairScorer = Callable[[U8, U8], float]
"""Distance of two (H, W, 3) uint8 RGB images."""
ImageScorer = Callable[[U8], float]
"""Quality of one (H, W, 3) uint8 RGB image."""

PSNR_CAP_DB = 100.0


def _check_pair(a: U8, b: U8) -> None:
    if a.shape != b.shape or a.ndim != 3 or a.shape[2] != 3 or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(
            f"images must both be (H, W, 3) uint8, found {a.shape} {a.dtype} and {b.shape} {b.dtype}"
        )


def psnr_db(a: U8, b: U8) -> float:
    """Peak signal-to-noise ratio of two uint8 RGB images (H, W, 3) in dB, at most 100 (as the benchmark caps
    it)."""
    _check_pair(a, b)
    mse = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return PSNR_CAP_DB if mse == 0 else min(PSNR_CAP_DB, 10.0 * np.log10(255.0**2 / mse))


def ssim(a: U8, b: U8, *, window: int = 11) -> float:
    """Structural similarity of two uint8 RGB images (H, W, 3): uniform window, mean over pixels and channels.

    Source: Wang et al. 2004 with K1 = 0.01, K2 = 0.03 and population variances; uniform 11 x 11 window with
    mirrored borders, as SANA-WM-Bench computes it.
    """
    from scipy.ndimage import uniform_filter

    _check_pair(a, b)
    x, y = a.astype(np.float64), b.astype(np.float64)

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return uniform_filter(values, size=window, axes=(0, 1))

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = ((2 * mx * my + c1) * (2 * cov + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return float(value.mean())


def lpips_alex(*, device: str = "cpu") -> ImagePairScorer:
    """LPIPS with AlexNet features, the benchmark's perceptual distance.

    Raises:
        ImportError: the `lpips` package (which brings torchvision and downloads weights) is not installed.
    """
    try:
        # brought by whoever wants it
        import lpips  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "LPIPS needs the package `lpips` (pip install lpips); or pass a scorer of your own"
        ) from error
    import torch

    model = lpips.LPIPS(net="alex", verbose=False).to(device).eval()

    def score(a: U8, b: U8) -> float:
        _check_pair(a, b)
        x, y = (torch.from_numpy(i).permute(2, 0, 1)[None].float().to(device) / 127.5 - 1.0 for i in (a, b))
        with torch.no_grad():
            return float(model(x, y))

    return score


@dataclass(frozen=True, kw_only=True)
class RevisitPair:
    """Two frames at which the camera should see the same; lower `quality_score` is the closer return."""

    frame_a: int
    frame_b: int
    quality_score: float = 999.0


@dataclass(frozen=True, kw_only=True)
class RevisitScore:
    """Means over the pairs of a clip. `lpips` is None without a scorer."""

    psnr_db: float
    ssim: float
    lpips: float | None
    num_pairs: int


def revisit_score(
    frames: Sequence[U8] | Mapping[int, U8],
    pairs: Sequence[RevisitPair],
    *,
    max_pairs: int = 5,
    lpips: ImagePairScorer | None = None,
) -> RevisitScore:
    """PSNR, SSIM and LPIPS between frames of returning cameras; the `max_pairs` closest returns count.

    Args:
        frames: images by clip frame index (16 fps), all of them or at least those of the pairs.
    Raises:
        ValueError: no pair, or a frame that the video does not have.
    Source: SANA-WM-Bench (`evaluation_pairs` of scene_trajectories_v2.json), NVlabs/Sana eval_unified.py.
    """
    chosen = sorted(pairs, key=lambda p: p.quality_score)[:max_pairs]
    chosen = [p for p in chosen if p.frame_a != p.frame_b]
    if not chosen:
        raise ValueError("revisit_score: no pair of different frames to compare")
    values: list[tuple[float, float, float | None]] = []
    for pair in chosen:
        images: list[U8] = []
        for index in (pair.frame_a, pair.frame_b):
            try:
                images.append(frames[index])
            except (IndexError, KeyError):
                raise ValueError(
                    f"revisit_score: frame {index} is asked for but the video does not have it"
                ) from None
        a, b = images
        values.append((psnr_db(a, b), ssim(a, b), None if lpips is None else lpips(a, b)))
    perceptual = [v[2] for v in values if v[2] is not None]
    return RevisitScore(
        psnr_db=float(np.mean([v[0] for v in values])),
        ssim=float(np.mean([v[1] for v in values])),
        lpips=float(np.mean(perceptual)) if perceptual else None,
        num_pairs=len(values),
    )


def quality_drop(scores: Sequence[float], *, fps: float = 16.0, window_s: float = 10.0) -> float:
    """Mean image quality of the first `window_s` seconds minus that of the last; positive means it declines.

    Args:
        scores: one quality per frame, from a scorer of your choice (the paper: VBench imaging quality).
    Raises:
        ValueError: a clip shorter than two windows.
    """
    values = np.asarray(scores, dtype=np.float64)
    size = round(fps * window_s)
    if len(values) < 2 * size:
        raise ValueError(f"quality_drop: {len(values)} frames hold no two windows of {size} frames")
    return float(values[:size].mean() - values[-size:].mean())


def revisit_pairs(
    camera_to_world: ArrayLike,
    *,
    min_gap_frames: int = 80,
    max_distance_m: float = 0.25,
    max_angle_rad: float = math.radians(5.0),
    max_pairs: int = 5,
) -> tuple[RevisitPair, ...]:
    """Closest returns of a camera (F, 4, 4), OpenCV axes, metres, to where it was at least `min_gap_frames` before.

    `quality_score` is the sum of distance and angle, each as a share of its bound. Pairs whose frames both lie within
    16 of those of a closer pair are the same return and left out. The bounds are ours; where a benchmark ships
    its own pairs, use those.
    """
    poses = np.asarray(camera_to_world, dtype=np.float64)
    centre, rotation = poses[:, :3, 3], poses[:, :3, :3]
    found: list[RevisitPair] = []
    for b in range(min_gap_frames, len(poses)):
        past = slice(0, b - min_gap_frames + 1)
        distance = np.linalg.norm(centre[past] - centre[b], axis=1) / max_distance_m
        angle = rotation_angle(np.swapaxes(rotation[past], 1, 2) @ rotation[b]) / max_angle_rad
        cost = np.where((distance <= 1) & (angle <= 1), distance + angle, np.inf)
        a = int(cost.argmin())
        if np.isfinite(cost[a]):
            found.append(RevisitPair(frame_a=a, frame_b=b, quality_score=float(cost[a])))
    chosen: list[RevisitPair] = []
    for pair in sorted(found, key=lambda p: p.quality_score):
        if len(chosen) == max_pairs:
            break
        if all(abs(pair.frame_a - c.frame_a) > 16 or abs(pair.frame_b - c.frame_b) > 16 for c in chosen):
            chosen.append(pair)
    return tuple(chosen)


def load_scorer(name: str) -> Callable[..., Any]:
    """A scorer by name: `sharpness`, `lpips`, or `package.module:function` of your own.

    A quality scorer takes one (H, W, 3) uint8 RGB image, a perceptual distance takes two; both return a number.

    Raises:
        ValueError: no such module or function, or `lpips` is not installed.
    """
    if name == "sharpness":
        return sharpness
    if name == "lpips":
        try:
            return lpips_alex()
        except ImportError as error:
            raise ValueError(f"scorer 'lpips': {error}") from error
    return load_function(name, f"scorer {name!r}", expected="sharpness, lpips or package.module:function")


def load_function(name: str, what: str, *, expected: str = "package.module:function") -> Callable[..., Any]:
    """A function of somebody's own, `package.module:function`.

    Args:
        what: it is, for messages.
        expected: in its place.
    Raises:
        ValueError: no such module or function.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"{what}: expected {expected}")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"{what}: {error}") from None
    if not callable(found):
        raise ValueError(f"{what}: {module} has no function {attribute!r}")
    return found


@dataclass(frozen=True, kw_only=True)
class VideoScore:
    """Scores of one generated video. None: no return of the camera, too short for two windows, or no scorer."""

    revisit: RevisitScore | None
    quality_drop: float | None


def score_video(
    clip_id: str,
    path: str | Path,
    pairs: Sequence[RevisitPair],
    *,
    quality: ImageScorer | None = None,
    perceptual: ImagePairScorer | None = None,
    window_s: float = 10.0,
) -> VideoScore:
    """Consistency at returns, and decline of image quality from the first to the last `window_s` seconds.

    Args:
        pairs: frames of the video, counted as decoded; see `revisit_pairs`.
        quality: scorer of one image; only the frames of the two windows are scored.
    Raises:
        ValueError: a video that cannot be read, or pairs beyond its end.
    """
    path = Path(path)
    num_frames, fps = count_video_frames(clip_id, path)
    size = round(fps * window_s)
    windows = range(0)
    if quality is not None and num_frames >= 2 * size:
        windows = [*range(size), *range(num_frames - size, num_frames)]
    returns = {i for p in pairs for i in (p.frame_a, p.frame_b)}
    beyond = [i for i in returns if i >= num_frames]
    if beyond:
        raise ValueError(
            f"clip {clip_id}: {path}: {num_frames} frames, but the camera returns at frame {max(beyond)}; the video "
            "must have one frame for each camera"
        )
    wanted = np.array(sorted({*windows, *returns}), dtype=np.int64)
    kept: dict[int, U8] = {}
    scores: dict[int, float] = {}
    for i, image in zip(wanted.tolist(), video_frames(clip_id, path, wanted), strict=True):
        if i in returns:
            kept[i] = image
        if quality is not None and i in windows:
            scores[i] = quality(image)
    return VideoScore(
        revisit=revisit_score(kept, pairs, lpips=perceptual) if pairs else None,
        quality_drop=quality_drop([scores[i] for i in windows], fps=fps, window_s=window_s)
        if scores
        else None,
    )


@dataclass(frozen=True, kw_only=True)
class TruthScore:
    """Means over frames of a generated video beside a true one. `lpips` is None without a scorer."""

    psnr_db: float
    ssim: float
    lpips: float | None
    num_frames: int


def compare_videos(
    clip_id: str,
    path: str | Path,
    truth: str | Path,
    *,
    perceptual: ImagePairScorer | None = None,
    max_frames: int = 121,
) -> TruthScore:
    """A generated video frame by frame beside the true video of the same path.

    True frames are those shown at the same time from the start, resized to cover the generated ones and cut in the
    middle, as the first frame was. The first frame was given and does not count; of longer videos evenly spaced frames
    are compared.

    Args:
        max_frames: how many at most.
    Raises:
        ValueError: a video that cannot be read, or a true one that ends before the generated one.
    """
    num_frames, fps = count_video_frames(clip_id, Path(path))
    num_true, true_fps = count_video_frames(clip_id, Path(truth))
    if num_frames < 2:
        raise ValueError(f"clip {clip_id}: {path}: holds the given frame alone")
    wanted = np.unique(
        np.linspace(1, num_frames - 1, min(max_frames, num_frames - 1)).round().astype(np.int64)
    )
    true_index = np.round(wanted * (true_fps / fps)).astype(np.int64)
    if true_index[-1] >= num_true:
        raise ValueError(
            f"clip {clip_id}: {truth}: {num_true} frames at {true_fps:g} a second end before the generated video "
            f"({num_frames} at {fps:g})"
        )
    if (np.diff(true_index) <= 0).any():
        raise ValueError(f"clip {clip_id}: {truth}: {true_fps:g} frames a second are too few beside {fps:g}")
    values: list[tuple[float, float, float | None]] = []
    pairs = zip(
        video_frames(clip_id, Path(path), wanted), video_frames(clip_id, Path(truth), true_index), strict=True
    )
    for made, true in pairs:
        fitted = cover(true.shape[:2], made.shape[:2]).apply(true)
        values.append(
            (
                psnr_db(made, fitted),
                ssim(made, fitted),
                None if perceptual is None else perceptual(made, fitted),
            )
        )
    distances = [v[2] for v in values if v[2] is not None]
    return TruthScore(
        psnr_db=float(np.mean([v[0] for v in values])),
        ssim=float(np.mean([v[1] for v in values])),
        lpips=float(np.mean(distances)) if distances else None,
        num_frames=len(values),
    )


def sharpness(image: U8) -> float:
    """Variance of the Laplacian of luma: a scorer without weights, to try `quality_drop` with."""
    luma = image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4.0 * luma[1:-1, 1:-1]
    return float(laplacian.var())
