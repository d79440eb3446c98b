"""What measuring the pictures costs, and the numbers of real videos: `python benchmarks/quality_cost.py FILE...`

Prints a table: every metric of each video on the frames that a clip of it has, and milliseconds of one core a frame.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import cv2
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.frames.quality import QualityConfig, QualityMeter
from theodolite.annotate.sources.clip import ClipRef, ClipRejection


def measured(path: Path) -> tuple[dict[str, float], int, tuple[int, int], float]:
    """Metrics of a video, its clip frames, their size, and CPU milliseconds a frame of measuring alone."""
    clip = ClipRef(clip_id="c", source="s", original_id="c", media_kind="video", media_path=path)
    frames = open_clip(clip, DecodeConfig(detect_cuts=False))
    meter = QualityMeter(QualityConfig(), frames.timing.fps)
    inside = 0.0
    for number, rgb in enumerate(frames):
        start = time.process_time()
        meter.add(number, rgb)
        inside += time.process_time() - start
    return meter.metrics(), len(frames), (frames.height, frames.width), 1e3 * inside / len(frames)


def main() -> None:
    """Measure the videos named."""
    cv2.setNumThreads(1)
    names = ("vmaf_motion", "flow_px", "flow_share_of_width", "saturation")
    print(f"{'video':32} {'frames':>6} {'size':>9} " + " ".join(f"{n:>20}" for n in names) + "  ms a frame")
    for path in map(Path, sys.argv[1:]):
        try:
            found, count, (height, width), cost_ms = measured(path)
        except ClipRejection as rejection:
            print(f"{path.name:32} {rejection.reason}")
            continue
        cells = " ".join(f"{found.get(n, float('nan')):20.4g}" for n in names)
        print(f"{path.name:32} {count:>6} {f'{width}x{height}':>9} {cells}  {cost_ms:.2f}")


if __name__ == "__main__":
    main()
