"""Errors of the cut detector by kind of clip: whole clips in which it finds a cut, cuts that it misses.

    python benchmarks/cuts.py --data ../shared/data [--part held_out] [--names]

A cut counts as found within 3 frames, a blend or fade within 8. Clips: tests/annotate/cut_clips.py. Only the
detector runs, about eight minutes on a core.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from theodolite.annotate.frames.cuts import CutDetector

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/annotate"))
from cut_clips import CutClip, Part, cut_clips, dissolve_clips, whole_clips

_NEAR_HARD, _NEAR_BLEND = 3, 8


def found(clip: CutClip) -> list[int]:
    detector = CutDetector(fps=16.0)
    for frame in clip.frames:
        detector.update(frame)
    return detector.finish()


def errs(clip: CutClip, cuts: list[int]) -> bool:
    """A whole clip with a cut, or a cut that was not found at its place."""
    if not clip.cuts:
        return bool(cuts)
    near = _NEAR_BLEND if "dissolve" in clip.kind or "black" in clip.kind else _NEAR_HARD
    return not all(any(abs(cut - c) <= near for c in cuts) for cut in clip.cuts)


def table(title: str, clips: Iterable[CutClip], *, names: bool) -> None:
    wrong: dict[str, list[str]] = defaultdict(list)
    count: dict[str, int] = defaultdict(int)
    start, frames = time.process_time(), 0
    for clip in clips:
        cuts = found(clip)
        count[clip.kind] += 1
        frames += len(clip.frames)
        if errs(clip, cuts):
            wrong[clip.kind].append(f"{clip.name} {cuts}")
    spent = time.process_time() - start
    total, errors = sum(count.values()), sum(map(len, wrong.values()))
    print(
        f"\n{title}: {errors} of {total} wrong ({100 * errors / total:.1f} %), {1e3 * spent / frames:.1f} ms a frame"
    )
    for kind, number in count.items():
        print(
            f"  {kind:24s} {len(wrong[kind]):3d} of {number:3d}"
            + (f"  {'; '.join(wrong[kind])}" if names else "")
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of recordings; without it rendered rooms alone")
    parser.add_argument("--part", choices=["development", "held_out"], action="append")
    parser.add_argument("--names", action="store_true", help="also say which clips went wrong")
    args = parser.parse_args()
    parts: list[Part] = args.part or ["development", "held_out"]
    for part in parts:
        table(f"{part}, whole clips", whole_clips(args.data, part), names=args.names)
        table(f"{part}, clips with a cut", cut_clips(args.data, part), names=args.names)
        table(f"{part}, dissolves between moving shots", dissolve_clips(args.data, part), names=args.names)


if __name__ == "__main__":
    main()
