"""A benchmark in the layout of SANA-WM-Bench, for tests of what reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from theodolite.dataset.cameras.rotations import rotation_angle
from theodolite.dataset.formats.base import CameraClip
from theodolite.dataset.formats.sana import SPLITS, BenchScene
from theodolite.dataset.metrics.image import RevisitPair

BENCH_FRAMES = 961
_SCENE_ID = re.compile(r"[a-z]+(_[a-z]+)*_\d{3}")


def write_sana_bench(root: str | Path, scenes: Mapping[str, Sequence[BenchScene]]) -> Path:
    """Write the SANA-WM-Bench layout: `images/`, `scene_set/kept_scenes.txt` and one folder per split.

    Args:
        scenes: by split (`simple_60s`, `hard_60s`), the same ids in each; names are `<category>_001` and so
            on.
    Raises:
        ValueError: unknown splits, ids that differ between splits, wrong names or frame counts.
    """
    root = Path(root)
    if not scenes or not set(scenes) <= set(SPLITS):
        raise ValueError(f"{root}: splits {sorted(scenes)}, expected {sorted(SPLITS)}")
    ids = [s.clip.name for s in next(iter(scenes.values()))]
    for split, members in scenes.items():
        if sorted(s.clip.name for s in members) != sorted(ids) or len(set(ids)) != len(ids):
            raise ValueError(
                f"{root}: split {split} has other scene ids than the first split, or an id twice"
            )
        for scene in members:
            if not _SCENE_ID.fullmatch(scene.clip.name):
                raise ValueError(f"scene {scene.clip.name!r}: expected <category>_001 to <category>_020")
            if len(scene.clip) != BENCH_FRAMES:
                raise ValueError(
                    f"scene {scene.clip.name}: {len(scene.clip)} frames, expected {BENCH_FRAMES} (60 s at 16 fps)"
                )
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "scene_set").mkdir(exist_ok=True)
    (root / "scene_set" / "kept_scenes.txt").write_text("\n".join(sorted(ids)) + "\n", encoding="utf-8")
    for split, members in scenes.items():
        folder = root / SPLITS[split]
        export = folder / "sanawm_export_v2"
        export.mkdir(parents=True, exist_ok=True)
        manifest, trajectories = [], []
        for scene in sorted(members, key=lambda s: s.clip.name):
            name = scene.clip.name
            (root / "images" / f"{name}.png").write_bytes(scene.image_png)
            np.savez(
                export / f"{name}.npz",
                c2w=scene.clip.camera_to_world.astype(np.float32),
                intrinsics=scene.clip.intrinsics.astype(np.float32),
                fps=np.int64(16),
                num_frames=np.int64(BENCH_FRAMES),
            )
            manifest.append(
                {
                    "id": name,
                    "prompt": scene.prompt,
                    "image_path": f"images/{name}.png",
                    "camera_path": f"{SPLITS[split]}/sanawm_export_v2/{name}.npz",
                }
            )
            pairs = [
                {
                    "frame_a": p.frame_a,
                    "frame_b": p.frame_b,
                    "quality_score": p.quality_score,
                    **_distance(scene.clip, p),
                }
                for p in scene.pairs
            ]
            trajectories.append({"scene_id": name, "evaluation_pairs": pairs})
        lines = "".join(json.dumps(entry) + "\n" for entry in manifest)
        (export / "run_manifest.jsonl").write_text(lines, encoding="utf-8")
        (folder / "scene_trajectories_v2.json").write_text(
            json.dumps({"scenes": trajectories}, indent=1) + "\n"
        )
    return root


def _distance(clip: CameraClip, pair: RevisitPair) -> dict[str, float]:
    a, b = clip.camera_to_world[pair.frame_a], clip.camera_to_world[pair.frame_b]
    return {
        "distance_m": float(np.linalg.norm(a[:3, 3] - b[:3, 3])),
        "angle_diff_deg": float(np.rad2deg(rotation_angle(a[:3, :3].T @ b[:3, :3]))),
    }
