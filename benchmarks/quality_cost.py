"""What measuring the pictures costs, and the numbers of real videos: `python benchmarks/quality_cost.py FILE...`

Prints a table in Markdown: every metric that pictures alone give, on the frames that a clip of the video has (10 s of
it with `--seconds 10`), and milliseconds of one core a frame for all of them. Networks' scores (DOVER, VLM) come later,
and the share of moving things with the cameras.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.frames.quality import QualityConfig
from theodolite.annotate.frames.watchers import picture_watchers
from theodolite.annotate.sources.clip import ClipRef, ClipRejection

NAMES = {
    "vmaf_motion": "motion",
    "flow_px": "flow, px of 512",
    "flow_share_of_width": "flow, share",
    "saturation": "saturation",
    "num_cuts": "cuts",
    "duplicate_frames_share": "same frames",
    "letterbox_share": "bars",
    "black_frames_share": "black frames",
    "luma_low": "dark end",
    "luma_high": "bright end",
}


def measured(path: Path, end_s: float | None) -> tuple[dict[str, float], int, tuple[int, int], float, float]:
    """Metrics of a video, its clip frames, their size and rate, and CPU milliseconds a frame of measuring alone."""
    clip = ClipRef(clip_id="c", source="s", original_id="c", media_kind="video", media_path=path, end_s=end_s)
    frames = open_clip(clip, DecodeConfig())
    watchers = picture_watchers(QualityConfig(), frames, detect_cuts=True)
    inside = 0.0
    for number, rgb in enumerate(frames):
        start = time.process_time()
        for watcher in watchers:
            watcher.add(number, rgb)
        inside += time.process_time() - start
    metrics: dict[str, float] = {}
    for watcher in watchers:
        metrics |= watcher.columns().get("metrics", {})
    size = (frames.height, frames.width)
    return metrics, len(frames), size, frames.timing.fps, 1e3 * inside / len(frames)


def main() -> None:
    """Measure the videos named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, help="of each video at most")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    print("| video | frames | fps | size | " + " | ".join(NAMES.values()) + " | ms a frame |")
    print("| --- " * (len(NAMES) + 5) + "|")
    for path in args.files:
        name = f"{path.parent.name}/{path.name}"
        try:
            found, count, (height, width), fps, cost_ms = measured(path, args.seconds)
        except ClipRejection as rejection:
            print(f"| {name} | {rejection.reason} |", flush=True)
            continue
        cells = " | ".join(f"{found[n]:.3g}" if n in found else "-" for n in NAMES)
        print(f"| {name} | {count} | {fps:.4g} | {width}x{height} | {cells} | {cost_ms:.1f} |", flush=True)


if __name__ == "__main__":
    main()
