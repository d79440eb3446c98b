"""The demo's input and its marking: a rendered clip on disk as a source would ship it, and its errors.

The clip is an ordinary entry of an index: a video, depth maps in a unit that nobody declares, and metric depth with
errors of its own as the anchor. The truth lies beside it in files that the estimator never opens.
`recipes/demo.py` sends it through the same code as every other recipe.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import yaml
from pydantic import Field

from ..annotate.geometry.config import RenderedConfig
from ..annotate.geometry.rendered import disturb_anchor_depth
from ..annotate.given.cameras import read_intrinsics
from ..annotate.rendered.cameras import RenderConfig
from ..annotate.rendered.files import write_clip, write_depth_png
from ..annotate.rendered.render import render_clip
from ..dataset.formats.trajectories import read_trajectory
from ..dataset.metrics.trajectory import focal_mape_percent, rotation_error, trajectory_error
from ..dataset.rows import Row
from ..dataset.strict import Strict

CLIP_ID = "demo"


class DemoConfig(Strict):
    """The demo clip and how its depth is spoilt."""

    render: RenderConfig = RenderConfig(
        width=1280,
        height=720,
        num_frames=161,
        fps=16.0,
        seed=7,  # the walker is in half of the frames and carries up to two fifths of their corners
        horizontal_fov_deg=82.0,  # 27 degrees high at the long end: narrower ones are rejected (gate fov_min)
        zoom="in_out",
        zoom_factor=2.0,
        moving_object=True,
        noise_sigma=2.0,
        depth_width=640,
        depth_height=360,
    )
    depth_units_per_metre: Annotated[float, Field(gt=0)] = 2700.0
    """Stored depth of one metre; the estimator is not told."""
    anchor: RenderedConfig = RenderedConfig(anchor_seed=1)
    """Errors of the metric anchor: 5 % common to a frame, 3 % over its pixels, 15 % of them missing. Over 161 frames
    that leaves a standard error of 0.4 to 0.5 % on the scale, whatever the seed."""
    anchor_size: tuple[int, int] = (180, 320)
    """(height, width) of the anchor maps."""


@dataclass(frozen=True, kw_only=True)
class DemoFiles:
    """What `write_demo_clip` leaves in its folder.

    Attributes:
        index: index file with the one clip, for an `index` source.
        truth_camera_to_world, truth_intrinsics: files of the truth.
        metres_per_unit: what a unit of the stored depth is worth.
    """

    index: Path
    truth_camera_to_world: Path
    truth_intrinsics: Path
    metres_per_unit: float


def write_demo_clip(folder: Path, config: DemoConfig | None = None) -> DemoFiles:
    """Render the demo clip into `folder`, unless the same one is there already.

    Written under another name first, so that an interrupted run leaves nothing that looks complete.

    Raises:
        ValueError: `folder` exists and holds something else.
    """
    config = config or DemoConfig()
    record = json.dumps(config.model_dump(mode="json"), indent=1)
    marker = folder / "demo.json"
    if folder.exists():
        if not marker.is_file() or marker.read_text(encoding="utf-8") != record:
            raise ValueError(
                f"{folder} exists and is not this demo's clip; remove it or choose another --out"
            )
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(f".{folder.name}.partial")
        if partial.exists():
            shutil.rmtree(partial)
        _write(partial, config)
        (partial / "demo.json").write_text(record, encoding="utf-8")
        partial.rename(folder)
    return DemoFiles(
        index=folder / "index.yaml",
        truth_camera_to_world=folder / "poses_c2w.txt",
        truth_intrinsics=folder / "intrinsics.csv",
        metres_per_unit=1.0 / config.depth_units_per_metre,
    )


def _write(folder: Path, config: DemoConfig) -> None:
    rendered = render_clip(config.render)
    files = write_clip(rendered, folder, depth_units_per_metre=config.depth_units_per_metre)
    (folder / "anchor").mkdir()
    for frame in range(len(rendered)):
        truth = rendered.depth_m(frame, size=config.anchor_size)
        wrong = disturb_anchor_depth(truth, frame, config.anchor)
        write_depth_png(folder / "anchor" / f"{frame:06d}.png", wrong, units_per_metre=1000.0)
    entry = {
        "clip_id": CLIP_ID,
        "media_path": files.media_path.name,
        "depth_pattern": "depth/{frame:06d}.png",
        "anchor_depth_pattern": "anchor/{frame:06d}.png",
        "anchor_units_per_metre": 1000.0,
        "data_licence": "Apache-2.0",
        "data_redistributable": True,
        "truth_camera_to_world_path": files.camera_to_world_path.name,
        "truth_intrinsics_path": files.intrinsics_path.name,
    }
    (folder / "index.yaml").write_text(yaml.safe_dump({"clips": [entry]}, sort_keys=False), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class DemoErrors:
    """Errors of the demo row against the truth.

    The world frame of an annotation is arbitrary, so poses are compared after one rigid motion (rotation and
    translation) of the whole path; nothing is ever scaled.

    Attributes:
        rotation_rmse_deg: angle between orientations, after the rotation that fits all frames best.
        position_rmse_m: distance between camera centres after the best rigid motion.
        position_rmse_percent: the same in percent of the path length.
        first_position_rmse_percent: with the rigid motion that makes only the first poses equal.
        path_length_m: of the truth.
        focal_mape_percent: mean absolute error of the focal length over frames and axes.
        focal_max_percent: the worst frame's.
        focal_range: smallest and largest estimated fx over the first frame's true fx.
        scale_error_percent: metres per unit, against the truth; None if the clip has no scale.
        num_frames: frames compared.
    """

    rotation_rmse_deg: float
    position_rmse_m: float
    position_rmse_percent: float
    first_position_rmse_percent: float
    path_length_m: float
    focal_mape_percent: float
    focal_max_percent: float
    focal_range: tuple[float, float]
    scale_error_percent: float | None
    num_frames: int


def compare_with_truth(row: Row, files: DemoFiles) -> DemoErrors:
    """Errors of an annotated demo clip.

    Raises:
        ValueError: the row holds no cameras (then its reasons say why).
    """
    if len(row.camera_to_world) == 0:
        why = "; ".join(f"{a}: {b}" for a, b in zip(row.reasons, row.reason_details, strict=True))
        raise ValueError(f"clip {row.clip_id} has no cameras: {why or row.error}")
    truth = read_trajectory(files.truth_camera_to_world).camera_to_world[row.frame_index]
    estimated = np.asarray(row.camera_to_world, np.float64)
    intrinsics = read_intrinsics(files.truth_intrinsics)[row.frame_index]
    focal_truth = np.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], -1)
    focal = np.asarray(row.focal_px, np.float64)
    best = trajectory_error(estimated, truth, alignment="se3")
    first = trajectory_error(estimated, truth, alignment="first")
    scale = row.metres_per_unit
    return DemoErrors(
        rotation_rmse_deg=float(np.degrees(np.sqrt(np.mean(rotation_error(estimated, truth) ** 2)))),
        position_rmse_m=best.ate_rmse_m,
        position_rmse_percent=best.ate_percent_of_path,
        first_position_rmse_percent=first.ate_percent_of_path,
        path_length_m=best.path_length_m,
        focal_mape_percent=focal_mape_percent(focal, focal_truth),
        focal_max_percent=float(100 * np.abs(focal / focal_truth - 1).max()),
        focal_range=(
            float(focal[:, 0].min() / focal_truth[0, 0]),
            float(focal[:, 0].max() / focal_truth[0, 0]),
        ),
        scale_error_percent=None if scale is None else 100 * (scale / files.metres_per_unit - 1),
        num_frames=len(estimated),
    )


def errors_table(errors: DemoErrors) -> tuple[str, bool]:
    """A table of measured errors beside their bounds, and whether all bounds hold."""
    scale = errors.scale_error_percent
    rows = [
        ("rotation RMSE", f"{errors.rotation_rmse_deg:.3f} deg", "0.2 deg", errors.rotation_rmse_deg < 0.2),
        (
            "position RMSE, no scale alignment",
            f"{errors.position_rmse_percent:.2f} % of path ({100 * errors.position_rmse_m:.1f} cm)",
            "1 %",
            errors.position_rmse_percent < 1,
        ),
        (
            "  the same, first poses made equal",
            f"{errors.first_position_rmse_percent:.2f} % of path",
            "-",
            True,
        ),
        (
            "focal length, mean error per frame",
            f"{errors.focal_mape_percent:.2f} % (worst {errors.focal_max_percent:.2f} %)",
            "1 %",
            errors.focal_mape_percent < 1,
        ),
        (
            "metric scale",
            "none" if scale is None else f"{scale:+.2f} %",
            "1 %",
            scale is not None and abs(scale) < 1,
        ),
    ]
    lines = [f"{'against ground truth':36s}{'measured':28s}{'bound':10s}"]
    lines += [
        f"{name:36s}{value:28s}{bound:10s}{'' if ok else '  NOT MET'}".rstrip()
        for name, value, bound, ok in rows
    ]
    low, high = errors.focal_range
    lines.append(
        f"{errors.num_frames} frames, path {errors.path_length_m:.2f} m, zoom {low:.2f}x to {high:.2f}x found; poses"
        " compared after one rigid motion of the path"
    )
    return "\n".join(lines), all(ok for *_, ok in rows)
