"""A recording with depth in millimetres as a sequence of TUM RGB-D, for `theodolite benchmark tum --depth`.

    python benchmarks/as_tum.py RECORDING OUT/rgbd_dataset_NAME --fps 30

RECORDING holds `rgb.mp4` or `rgb/000000.png` and so on, `depth/000000.png` (16 bits, millimetres unless --units says
how many a metre) and `poses_c2w.txt` (4x4 camera-to-world a line, metres). Colour is written without loss, depth as
5000 a metre, poses as ground truth at the times of the frames, which are their numbers over --fps.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from theodolite.dataset.formats.trajectories import read_matrices, write_tum

START_S = 1000.0
"""Time of the first frame: names of all have as many digits."""


def pictures(recording: Path) -> Iterator[np.ndarray]:
    """Colour frames in order, BGR."""
    folder = recording / "rgb"
    if folder.is_dir():
        for path in sorted(folder.glob("*.png")):
            picture = cv2.imread(str(path))
            assert picture is not None, path
            yield picture
        return
    video = cv2.VideoCapture(str(recording / "rgb.mp4"))
    while True:
        there, picture = video.read()
        if not there:
            return
        yield picture


def write_sequence(recording: Path, out: Path, *, fps: float, units_per_metre: float) -> int:
    """Write the sequence; returns how many frames it has."""
    poses = read_matrices(recording / "poses_c2w.txt").camera_to_world
    lists: dict[str, list[str]] = {"rgb": [], "depth": []}
    for kind in lists:
        (out / kind).mkdir(parents=True)
    count = 0
    for i, picture in enumerate(pictures(recording)):
        name = f"{START_S + i / fps:.6f}"
        cv2.imwrite(str(out / f"rgb/{name}.png"), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        depth = cv2.imread(str(recording / f"depth/{i:06d}.png"), cv2.IMREAD_UNCHANGED)
        assert depth is not None, i
        scaled = np.rint(depth.astype(np.float64) * 5000 / units_per_metre)
        stored = np.where(scaled > 65535, 0, scaled).astype(np.uint16)  # beyond 13 m: no value
        cv2.imwrite(str(out / f"depth/{name}.png"), stored)
        for kind, lines in lists.items():
            lines.append(f"{name} {kind}/{name}.png")
        count += 1
    assert count == len(poses), f"{count} frames, {len(poses)} poses"
    for kind, lines in lists.items():
        (out / f"{kind}.txt").write_text("# timestamp filename\n" + "\n".join(lines) + "\n")
    write_tum(
        out / "groundtruth.txt", poses, np.array([float(f"{START_S + i / fps:.6f}") for i in range(count)])
    )
    return count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recording", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--units", type=float, default=1000.0)
    given = parser.parse_args()
    count = write_sequence(given.recording, given.out, fps=given.fps, units_per_metre=given.units)
    print(f"{given.out}: {count} frames")


if __name__ == "__main__":
    main()
