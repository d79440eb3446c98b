"""Clips cut from one video: is a change of lens or a zoom in one of them found, and are intact ones left in peace?

    python benchmarks/same_video.py [--videos 10] [--workers 2] [--seconds 400] [--json FILE]

Every video is a walk through a rendered room, cut into five clips; beside them lie one clip seen through a lens that is
longer by a quarter and one that zooms by as much. Each goes through `annotate_clip` with its depth alone, so that the
focal lengths are those that the images ask for; the rows are then compared by `check_videos`.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import write_depth_png
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sources.clip import ClipRef, GivenGeometry
from theodolite.dataset.media.write import VideoWriter
from theodolite.dataset.reading import open_dataset
from theodolite.dataset.rows import Row
from theodolite.dataset.same_video import LENS_DIFFERS, LENS_ZOOMS, check_videos
from theodolite.dataset.store import prepare_output, write_part
from theodolite.dataset.text_table import text_table

FRAMES, PIECES, FPS, ZOOM = 48, 5, 16.0, 1.25
LIGHT = {"tracks": {"num_flow_tracks": 200, "num_descriptors": 300, "max_loops_per_keyframe": 0}}
HASH = "0" * 16
WANTED = {"lens": LENS_DIFFERS, "zoom": LENS_ZOOMS}


def video_config(seed: int, kind: str) -> RenderConfig:
    rng = np.random.default_rng([seed, 79])
    fov = float(rng.uniform(50, 75))
    if kind == "lens":
        fov = math.degrees(2 * math.atan(math.tan(math.radians(fov) / 2) / ZOOM))
    return RenderConfig(
        width=320,
        height=192,
        num_frames=FRAMES if kind == "zoom" else FRAMES * PIECES,
        fps=FPS,
        seed=seed,
        speed=float(rng.uniform(1.0, 1.6)),
        horizontal_fov_deg=fov,
        zoom="ramp" if kind == "zoom" else "none",
        zoom_factor=ZOOM,
        noise_sigma=1.0,
    )


def pieces(seed: int) -> list[tuple[int, str, int]]:
    """(seed, kind, first frame) of each clip of a video."""
    intact = [(seed, "intact", FRAMES * i) for i in range(PIECES)]
    return [*intact, (seed, "lens", FRAMES), (seed, "zoom", 0)]


def annotate_piece(piece: tuple[int, str, int]) -> Row:
    """The row of one clip."""
    seed, kind, first = piece
    rendered = render_clip(video_config(seed, kind))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        media = folder / f"video{seed:03d}_{first:07d}_{first + FRAMES:07d}.mp4"
        with VideoWriter(media, width=320, height=192, fps=FPS) as video:
            for number in range(FRAMES):
                frame = rendered.frame(first + number)
                video.write(frame.rgb)
                write_depth_png(folder / f"{number:06d}.png", frame.depth_m, units_per_metre=1000.0)
        clip = ClipRef(
            clip_id=f"video{seed:03d}-{kind}-{first}",
            source="rendered",
            original_id=media.stem,
            media_kind="video",
            media_path=media,
            media_root=folder,
            given=GivenGeometry(depth_pattern=str(folder / "{frame:06d}.png"), depth_units_per_metre=1000.0),
        )
        config = AnnotateConfig.model_validate(LIGHT)
        return annotate_clip(clip, config, mode="given_depth", recipe_hash=HASH)


def annotate_in_time(job: tuple[tuple[int, str, int], float]) -> Row | None:
    """`annotate_piece`, or nothing when the time is over (`time.monotonic`)."""
    piece, end = job
    return annotate_piece(piece) if time.monotonic() < end else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no clip is begun after these")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    todo = [(piece, end) for seed in range(args.videos) for piece in pieces(seed)]
    rows: list[Row] = []
    with multiprocessing.get_context("spawn").Pool(args.workers, cv2.setNumThreads, (1,)) as pool:
        for row in filter(None, pool.imap_unordered(annotate_in_time, todo)):
            rows.append(row)
            print(f"{len(rows)}/{len(todo)} {row.clip_id} {row.verdict} {row.reason_details}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        prepare_output(folder, recipe_hash=HASH)
        write_part(folder, rows, shard_id="000000-x", recipe_hash=HASH)
        found = check_videos(open_dataset(folder)).table.to_pylist()
    kinds = Counter(row.clip_id.split("-")[1] for row in rows if row.verdict == "accepted")
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    intact_by_video: Counter[str] = Counter()
    for clip in found:
        kind = clip["clip_id"].split("-")[1]
        reasons[kind].update(clip["reasons"] or ["none"])
        if kind == "intact":
            intact_by_video[clip["video"]] += 1
    pairs = sum(n * (n - 1) // 2 for n in intact_by_video.values())
    off = [abs(c["lens_log"]) for c in found if "-intact-" in c["clip_id"] and c["lens_log"] is not None]
    lines = [
        (kind, str(kinds[kind]), WANTED.get(kind, "none"), ", ".join(f"{w} {n}" for w, n in c.most_common()))
        for kind, c in sorted(reasons.items())
    ]
    print(text_table(("clips", "accepted", "to be found", "found"), lines))
    if len(rows) < len(todo):
        print(f"time over: {len(todo) - len(rows)} clips were not begun")
    most = max(off, default=math.nan)
    print(
        f"{pairs} intact pairs; focal lengths of intact clips off their video's by {most:.3f} at most (log)"
    )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    if any(row.error for row in rows):
        sys.exit("some clips stopped with an error")


if __name__ == "__main__":
    main()
