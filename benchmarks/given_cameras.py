"""Given poses and intrinsics with faults put in on purpose: which are refused, for what reason, with what numbers.

    python benchmarks/given_cameras.py --data ../shared/data --work DIR [--recordings office-a,kitti]
        [--faults true,long-20] [--json FILE]

Every fault goes through `annotate_clip` in the mode `given_pose`, as a file beside the recording. Tracks and solutions
do not depend on the poses that are given, so both are kept in `<work>` and only the check runs again.

Faults are to be refused; `true`, `small-noise`, `5mm`, `5-hz` and the like are none. A driving recording has no depth:
`kitti` is given as it is, `kitti-depth` with depth triangulated from its own tracks by its true cameras.
"""

# OpenCV types every image as MatLike; functions of modules are replaced here.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.interpolate import griddata
from theodolite.annotate import pipeline
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import write_clip
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sfm.keyframes import SolverInput
from theodolite.annotate.sources.clip import ClipRef, GivenGeometry
from theodolite.dataset.cameras.rotations import so3_exp
from theodolite.dataset.cameras.transforms import interpolate_poses, se3_exp, se3_inverse
from theodolite.dataset.formats.trajectories import read_trajectory
from theodolite.dataset.rows import Row

F64 = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A recording with true cameras.

    Attributes:
        poses: (N, 4, 4) of every source frame, camera-to-world, metres.
        intrinsics: (N, 4) fx, fy, cx, cy of every source frame in source pixels; None: not known well.
        fps: of the source.
        decode: of `annotate.decode`.
    """

    name: str
    media: Path
    poses: F64
    intrinsics: F64 | None
    fps: float
    size: tuple[int, int]
    given: dict[str, Any] = field(default_factory=dict)
    decode: dict[str, Any] = field(default_factory=dict)


def recordings(data: Path, work: Path) -> dict[str, Callable[[], Recording]]:
    """Recordings by name, made when they are asked for. Long: a list of them."""

    def lens(matrix: F64, count: int) -> F64:
        return np.tile(np.asarray(matrix, np.float64)[[0, 1, 0, 1], [0, 1, 2, 2]], (count, 1))

    def rgbd(
        name: str, folder: str, media: str, units: float, rate: float, focal: F64 | None, size, **decode
    ):
        poses = read_trajectory(data / folder / "poses_c2w.txt").camera_to_world
        return Recording(
            name=name,
            media=data / folder / media,
            poses=poses,
            intrinsics=None if focal is None else lens(focal, len(poses)),
            fps=rate,
            size=size,
            given={
                "depth_pattern": str(data / folder / "depth/{frame:06d}.png"),
                "depth_units_per_metre": units,
            },
            decode=decode,
        )

    def office(name: str = "office-a", **decode) -> Recording:
        matrix = np.loadtxt(data / "rgbd-office-a/K.txt")
        return rgbd(name, "rgbd-office-a", "rgb.mp4", 1000.0, 16.0, matrix, (360, 540), **decode)

    def redkitchen() -> Recording:
        # The colour camera's focal length is not shipped; epipolar lines ask for 521 px (README of the recording).
        matrix = np.array([[521.0, 0, 320], [0, 521.0, 240], [0, 0, 1]])
        return rgbd(
            "redkitchen", "rgbd-redkitchen", "rgb.mp4", 1000.0, 30.0, matrix, (480, 640), max_frames=160
        )

    def tum() -> Recording:
        matrix = np.loadtxt(data / "rgbd-tum-mini/K.txt")
        return rgbd(
            "tum-mini", "rgbd-tum-mini", "rgb", 5000.0, 30.0, matrix, (480, 640), fps="native", min_frames=10
        )

    def room() -> Recording:
        shipped = np.load(data / "room-8views/condition.npz")
        folder = work / "room-depth"
        folder.mkdir(exist_ok=True)
        for i, z in enumerate(shipped["depths"]):
            np.save(folder / f"{i:06d}.npy", z)
        return Recording(
            name="room",
            media=data / "room-8views/rgb",
            poses=np.asarray(shipped["poses"], np.float64),
            intrinsics=np.asarray(shipped["intrinsics"], np.float64)[:, [0, 1, 0, 1], [0, 1, 2, 2]],
            fps=8.0,
            size=(350, 434),
            given={"depth_pattern": str(folder / "{frame:06d}.npy"), "depth_units_per_metre": 1.0},
            decode={"fps": "native", "min_frames": 8, "detect_cuts": False},
        )

    def kitti() -> Recording:
        poses = read_trajectory(data / "kitti-straight/poses_c2w.txt").camera_to_world
        projection = np.loadtxt(data / "kitti-straight/calib.txt")[0].reshape(3, 4)
        return Recording(
            name="kitti",
            media=data / "kitti-straight/gray.mp4",
            poses=poses,
            intrinsics=lens(projection[:, :3], len(poses)),
            fps=10.0,
            size=(370, 1226),
            decode={"fps": "native"},
        )

    def rendered(name: str, config: RenderConfig) -> Recording:
        clip = render_clip(config)
        files = write_clip(clip, work / name)
        return Recording(
            name=name,
            media=files.media_path,
            poses=clip.camera_to_world,
            intrinsics=clip.intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]],
            fps=config.fps,
            size=(config.height, config.width),
            given={"depth_pattern": files.depth_pattern, "depth_units_per_metre": 1000.0},
        )

    small = {"width": 320, "height": 192, "num_frames": 48}
    return {
        "office-a": lambda: office(max_frames=96),
        "redkitchen": redkitchen,
        "tum-mini": tum,
        "room": room,
        "kitti": kitti,
        "kitti-depth": lambda: with_depth(kitti(), work / "kitti-depth"),
        "office-a-bare": lambda: without_depth(office(max_frames=48)),
        "rendered": lambda: rendered("rendered", RenderConfig(**small, seed=3, speed=1.5)),
        "rendered-zoom": lambda: rendered(
            "rendered-zoom", RenderConfig(**small, seed=5, zoom="ramp", zoom_factor=1.4)
        ),
        "rendered-bare": lambda: without_depth(
            rendered("rendered-bare", RenderConfig(**small, seed=7, speed=1.2))
        ),
    }


def without_depth(recording: Recording) -> Recording:
    """The recording with its cameras alone."""
    return replace(recording, name=f"{recording.name.removesuffix('-bare')}-bare", given={})


def with_depth(recording: Recording, folder: Path) -> Recording:
    """The recording with depth maps that its true cameras and its own tracks give, filled in between points."""
    given = {"depth_pattern": str(folder / "{frame:06d}.npy"), "depth_units_per_metre": 1.0}
    recording = replace(recording, name=f"{recording.name}-depth", given=given)
    if not (folder / f"{len(recording.poses) - 1:06d}.npy").is_file():
        folder.mkdir(exist_ok=True)
        assert recording.intrinsics is not None
        capture = cv2.VideoCapture(str(recording.media))
        images = [cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2GRAY) for _ in range(len(recording.poses))]
        for i in range(len(images)):
            np.save(folder / f"{i:06d}.npy", _depth_by_motion(recording, images, i))
    return recording


def _depth_by_motion(recording: Recording, images: list[F64], frame: int) -> F64:
    """(h / 2, w / 2) z-depth of one frame from its optical flow to a frame half a second on (or back)."""
    assert recording.intrinsics is not None
    other = frame + 5 if frame + 5 < len(images) else frame - 5
    step = 1 if other > frame else -1
    focal, centre = recording.intrinsics[0, 0], recording.intrinsics[0, 2:]
    points = cv2.goodFeaturesToTrack(images[frame], 3000, 0.002, 6)
    start = points
    alive = np.ones(len(points), bool)
    for k in range(frame, other, step):
        moved, good, _ = cv2.calcOpticalFlowPyrLK(images[k], images[k + step], points, None)
        back, good_back, _ = cv2.calcOpticalFlowPyrLK(images[k + step], images[k], moved, None)
        alive &= (good[:, 0] & good_back[:, 0] == 1) & (np.linalg.norm(back - points, axis=2)[:, 0] < 0.5)
        points = moved
    a, b = start[alive, 0] + 0.5, points[alive, 0] + 0.5
    relative = se3_inverse(recording.poses[other]) @ recording.poses[frame]
    ray = np.c_[(a - centre) / focal, np.ones(len(a))]
    seen = np.c_[(b - centre) / focal, np.ones(len(b))]
    # z R ray + t is parallel to `seen`.
    turned = ray @ relative[:3, :3].T
    left, right = np.cross(seen, turned), -np.cross(seen, relative[:3, 3])
    z = (left * right).sum(1) / (left * left).sum(1)
    error = np.linalg.norm(left * z[:, None] - right, axis=1) * focal / np.maximum(z, 1e-6)
    far = np.linalg.norm(a - b, axis=1) > 3
    ok = (z > 2) & (z < 80) & (error < 1.5) & far
    h, w = images[frame].shape
    y, x = np.mgrid[1:h:2, 1:w:2]
    maps = griddata(a[ok][:, ::-1], 1 / z[ok], (y + 0.0, x + 0.0), method="linear")
    return (1 / maps).astype(np.float32)


# --- faults ---------------------------------------------------------------------------------------


def _noise(poses: F64, metres: float, degrees: float) -> F64:
    rng = np.random.default_rng(11)
    bent = poses.copy()
    bent[:, :3, 3] += metres * rng.standard_normal((len(poses), 3))
    bent[:, :3, :3] = poses[:, :3, :3] @ so3_exp(np.radians(degrees) * rng.standard_normal((len(poses), 3)))
    return bent


def _scaled(poses: F64, factor: float) -> F64:
    out = poses.copy()
    out[:, :3, 3] *= factor
    return out


def _late(poses: F64, frames: float) -> F64:
    """Poses of `frames` frames earlier."""
    at = np.clip(np.arange(len(poses)) - frames, 0, len(poses) - 1)
    return interpolate_poses(np.arange(len(poses), dtype=float), poses, at)


def _drift(poses: F64, share: float) -> F64:
    """Every step turned and stretched alike, so that the path's end is about `share` of its length off."""
    steps = se3_inverse(poses[:-1]) @ poses[1:]
    length = np.linalg.norm(steps[:, :3, 3], axis=1).mean()
    bend = se3_exp(np.r_[share * length, 0, 0, 0, share * 0.5 / len(steps), 0])
    out = [poses[0]]
    for step in steps:
        out.append(out[-1] @ step @ bend)
    return np.array(out)


def _wandering(poses: F64, share: float) -> F64:
    """A slow error of each position, of `share` of the path's length."""
    out = poses.copy()
    length = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum()
    t = np.linspace(0, 1, len(poses))
    out[:, :3, 3] += share * length * np.stack([np.sin(5 * t), np.cos(4 * t) - 1, t * t], 1)
    return out


def _two_gauges(poses: F64) -> F64:
    """What follows an eighth of the poses in a world turned by three degrees and shifted by a twentieth of the path."""
    out = poses.copy()
    half = max(3, len(poses) // 8)
    length = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum()
    gauge = se3_exp(np.r_[0.05 * length, 0.03 * length, 0, 0, np.radians(3), 0])
    out[half:] = poses[half] @ gauge @ se3_inverse(poses[half]) @ out[half:]
    return out


def _one_wrong(poses: F64) -> F64:
    """Two neighbours of the source, so that the clip has one of them whatever its rate."""
    out = poses.copy()
    i = max(2, len(poses) // 8)
    out[i : i + 2] = out[i : i + 2] @ se3_exp(np.r_[0.1, 0.05, 0, 0, np.radians(3), 0])
    return out


def _smoothed(poses: F64, frames: int) -> F64:
    """Mean of position and rotation over a window."""
    out = poses.copy()
    for i in range(len(poses)):
        of = slice(max(0, i - frames // 2), i + frames // 2 + 1)
        out[i, :3, 3] = poses[of, :3, 3].mean(0)
        u, _, vt = np.linalg.svd(poses[of, :3, :3].sum(0))
        out[i, :3, :3] = u @ vt
    return out


def _quantised(poses: F64) -> F64:
    out = np.round(poses, 2)
    u, _, vt = np.linalg.svd(out[:, :3, :3])
    out[:, :3, :3] = u @ vt
    return out


POSE_FAULTS: dict[str, Callable[[F64, float], F64]] = {
    "true": lambda p, fps: p,
    "small-noise": lambda p, fps: _noise(p, 0.003, 0.1),
    "5mm": lambda p, fps: _noise(p, 0.005, 0.1),
    "long-20": lambda p, fps: _scaled(p, 1.2),
    "short-10": lambda p, fps: _scaled(p, 0.9),
    "long-5": lambda p, fps: _scaled(p, 1.05),
    "noise-12cm": lambda p, fps: _noise(p, 0.12, 0.0),
    "noise-5cm-1deg": lambda p, fps: _noise(p, 0.05, 1.0),
    "noise-2cm": lambda p, fps: _noise(p, 0.02, 0.3),
    "late-1-frame": lambda p, fps: _late(p, 1),
    "early-2-frames": lambda p, fps: _late(p, -2),
    "late-0.5s": lambda p, fps: _late(p, 0.5 * fps),
    "early-1s": lambda p, fps: _late(p, -1.0 * fps),
    "late-2s": lambda p, fps: _late(p, 2.0 * fps),
    "drift-10": lambda p, fps: _drift(p, 0.1),
    "wander-6": lambda p, fps: _wandering(p, 0.06),
    "two-gauges": lambda p, fps: _two_gauges(p),
    "one-wrong": lambda p, fps: _one_wrong(p),
    "two-decimals": lambda p, fps: _quantised(p),
    "held-5-hz": lambda p, fps: p[np.arange(len(p)) // max(2, round(fps / 5)) * max(2, round(fps / 5))],
    "smoothed-1s": lambda p, fps: _smoothed(p, round(fps)),
    "reversed": lambda p, fps: p[::-1].copy(),
    "world-to-camera": lambda p, fps: se3_inverse(p),
}
SPARSE = ("5-hz", "5-hz-noise-5cm", "5-hz-small-noise")
LENS_FAULTS: dict[str, Callable[[F64, tuple[int, int]], F64]] = {
    "lens-1.2": lambda k, size: k * [1.2, 1.2, 1, 1],
    "lens-0.85": lambda k, size: k * [0.85, 0.85, 1, 1],
    "lens-1.07": lambda k, size: k * [1.07, 1.07, 1, 1],
    "lens-fx-1.15": lambda k, size: k * [1.15, 1, 1, 1],
    "lens-centre": lambda k, size: k + [0, 0, 0.12 * size[1], 0.08 * size[0]],
    "lens-reversed": lambda k, size: k[::-1].copy(),
    "lens-1.2-only": lambda k, size: k * [1.2, 1.2, 1, 1],
    "lens-0.85-only": lambda k, size: k * [0.85, 0.85, 1, 1],
    "lens-true-only": lambda k, size: k,
}
INTACT = ("true", "small-noise", "5mm", "5-hz", "5-hz-small-noise", "lens-true-only", "free-lens")


def _spatialvid(folder: Path, recording: Recording, poses: F64, frames: F64) -> dict[str, Any]:
    """Poses of some frames, in SpatialVID's layout."""
    from theodolite.dataset.cameras.rotations import quaternion_wxyz_from_rotation

    assert recording.intrinsics is not None
    folder.mkdir(parents=True, exist_ok=True)
    w2c = se3_inverse(poses[frames])
    quaternion = quaternion_wxyz_from_rotation(w2c[:, :3, :3])
    np.save(folder / "poses.npy", np.c_[w2c[:, :3, 3], quaternion[:, 1:], quaternion[:, :1]])
    height, width = recording.size
    np.save(folder / "intrinsics.npy", recording.intrinsics[frames] / [width, height, width, height])
    (folder / "indexes.txt").write_text("".join(f"{i} {f}\n" for i, f in enumerate(frames)))
    return {"cameras_path": folder, "cameras_format": "spatialvid"}


def given_of(recording: Recording, fault: str, folder: Path) -> GivenGeometry | None:
    """What the source of a recording would name, with a fault in it; None where it does not apply."""
    folder.mkdir(parents=True, exist_ok=True)
    fields: dict[str, Any] = dict(recording.given)
    poses, lens = recording.poses, recording.intrinsics
    metric = True
    if fault in SPARSE:
        if lens is None or len(poses) < 24:
            return None
        bent = poses
        if fault != "5-hz":
            bent = _noise(poses, *((0.05, 0.5) if fault.endswith("5cm") else (0.003, 0.1)))
        step = max(2, round(recording.fps / 5))
        fields |= _spatialvid(folder / "spatialvid", recording, bent, np.arange(0, len(poses), step))
        return GivenGeometry(**fields, poses_metric=True)
    if fault in LENS_FAULTS:
        if lens is None:
            return None
        lens = LENS_FAULTS[fault](lens, recording.size)
        if fault == "lens-reversed" and np.ptp(lens[:, 0]) < 1:
            return None
        poses = None if fault.endswith("only") else poses
    elif fault == "free-lens":
        lens = None
    elif fault == "unit":
        poses, metric = _scaled(poses, 0.37), False
    else:
        poses = POSE_FAULTS[fault](poses, recording.fps)
    if poses is not None:
        np.savetxt(folder / "poses.txt", poses.reshape(-1, 16))
        fields |= {"camera_to_world_path": folder / "poses.txt", "poses_metric": metric}
    if lens is not None:
        np.savetxt(folder / "k.csv", lens, delimiter=",", header="fx,fy,cx,cy", comments="")
        fields["intrinsics_path"] = folder / "k.csv"
    return GivenGeometry(**fields)


# --- kept results ---------------------------------------------------------------------------------


def keep_results(work: Path, place: list[str]) -> None:
    """Let the pipeline take tracks and solutions from `<work>` if they are there; `place[0]` is the recording."""

    def kept(name: str, function: Callable, key: Callable[..., str]) -> Callable:
        def call(*args, **arguments):
            words = f"{place[0]}-{name}-{key(*args, **arguments)}"
            path = work / f"{words}.pickle"
            if path.is_file():
                with path.open("rb") as stream:
                    return pickle.load(stream)
            found = function(*args, **arguments)
            with path.open("wb") as stream:
                pickle.dump(found, stream)
            return found

        return call

    def lens_key(inputs: SolverInput, **_: object) -> str:
        lens, start = inputs.lens, inputs.start
        parts = [] if lens is None else [lens.focal_px.round(6), lens.principal_point_px.round(6)]
        parts += [] if start is None else [start.camera_to_world.round(6)]
        return hashlib.md5(b"".join(p.tobytes() for p in parts)).hexdigest()[:10]

    pipeline.measure_images = kept("tracks", pipeline.measure_images, lambda *_, **__: "")
    for module in [m for n, m in sys.modules.items() if n.startswith("theodolite.annotate.")]:
        if hasattr(module, "solve_cameras") and module.__name__ != "theodolite.annotate.sfm.solve":
            module.solve_cameras = kept("solved", module.solve_cameras, lens_key)


# --- run ------------------------------------------------------------------------------------------

COLUMNS = ("reprojection_rms_px", "given_reprojection_px", "depth_residual_log_median", "inlier_share_min")


def annotate(recording: Recording, given: GivenGeometry) -> Row:
    """The row of a recording with what is given."""
    clip = ClipRef(
        clip_id=recording.name,
        source="recordings",
        original_id=recording.name,
        media_kind="images" if recording.media.is_dir() else "video",
        media_path=recording.media,
        source_fps=recording.fps,
        data_licence="Apache-2.0",
        given=given,
    )
    config = AnnotateConfig.model_validate(
        {"geometry": {"sequence": "given", "anchor": "none"}, "decode": recording.decode}
    )
    return annotate_clip(clip, config, mode="given_pose", recipe_hash="0" * 16)


def results(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    place = [""]
    keep_results(args.work, place)
    known = recordings(args.data, args.work)
    faults = args.faults or [*POSE_FAULTS, "unit", "free-lens", *SPARSE, *LENS_FAULTS]
    for name in args.recordings or list(known):
        recording = known[name]()
        for fault in faults:
            place[0] = recording.name
            given = given_of(recording, fault, args.work / "files" / name / fault)
            if given is None:
                continue
            start = time.perf_counter()
            row = annotate(recording, given)
            numbers = {
                **{g.name: g.value for g in row.gates},
                **{c: getattr(row, c, None) for c in COLUMNS},
                **{f: getattr(row, f) for f in vars(row) if f.startswith("given_")},
            }
            yield {
                "recording": name,
                "fault": fault,
                "wanted": "accepted" if fault in INTACT or fault == "unit" else "rejected",
                "verdict": row.verdict,
                "reasons": list(row.reasons),
                "details": list(row.reason_details),
                "error": row.error,
                "failed": [g.name for g in row.gates if not g.passed],
                "wall_s": round(time.perf_counter() - start, 1),
                "numbers": {k: float(v) for k, v in numbers.items() if isinstance(v, float)},
            }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recordings", type=lambda text: text.split(","))
    parser.add_argument("--faults", type=lambda text: text.split(","))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    found = []
    for result in results(args):
        found.append(result)
        wrong = " " if result["verdict"] == result["wanted"] else "!"
        show = {k: v for k, v in result["numbers"].items() if k.startswith("given") or k in COLUMNS}
        print(
            f"{wrong} {result['recording']:14} {result['fault']:16} {result['verdict']:9}"
            f" {','.join(result['reasons'])} ({','.join(result['failed'])}) "
            + " ".join(f"{k.removeprefix('given_')}={v:.4g}" for k, v in show.items())
            + (f" ERROR {result['error'].splitlines()[-1]}" if result["error"] else ""),
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
