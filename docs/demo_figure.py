"""The picture of the README, from what `theodolite demo --out runs/demo` left.

    python docs/demo_figure.py runs/demo docs/demo.png

Above: five frames of the clip, whose lens zooms 2x and back while somebody walks past. Below: the camera's path from
above and the focal length, as they were found and as they were.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from theodolite.annotate.given.cameras import read_intrinsics
from theodolite.dataset.formats.trajectories import read_trajectory
from theodolite.dataset.metrics.trajectory import align_trajectory
from theodolite.dataset.reading import open_dataset
from theodolite.recipes.demo_clips import CLIP_ID

FOUND, TRUE = "#d1495b", "#222222"
SHOWN = 5


def main(demo: Path, out: Path) -> None:
    row = open_dataset(demo / "dataset").row(CLIP_ID)
    truth = read_trajectory(demo / "clip" / "poses_c2w.txt").camera_to_world[row.frame_index]
    focal = read_intrinsics(demo / "clip" / "intrinsics.csv")[row.frame_index, 0, 0]
    # The world of an annotation is arbitrary: one rigid motion of the path, no scale.
    poses, _ = align_trajectory(row.camera_to_world, truth, alignment="se3")
    with av.open(str(demo / "clip" / "rgb.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]

    figure = plt.figure(figsize=(11, 3.9), dpi=100, layout="constrained")
    pictures, charts = figure.subfigures(2, 1, height_ratios=(1, 1.5))
    for axes, k in zip(
        pictures.subplots(1, SHOWN), np.linspace(0, len(frames) - 1, SHOWN).astype(int), strict=True
    ):
        axes.imshow(frames[k])
        axes.set_title(f"{row.time_s[k]:.1f} s", fontsize=8)
        axes.axis("off")
    above, lens = charts.subplots(1, 2, width_ratios=(1.3, 1))
    above.plot(truth[:, 0, 3], truth[:, 2, 3], color=TRUE, lw=4, alpha=0.25, label="truth")
    above.plot(poses[:, 0, 3], poses[:, 2, 3], color=FOUND, lw=1.2, label="found")
    above.set(aspect="equal", xlabel="x, m", ylabel="z, m", title="path of the camera, from above")
    lens.plot(row.time_s, focal, color=TRUE, lw=4, alpha=0.25, label="truth")
    lens.plot(row.time_s, np.asarray(row.focal_px)[:, 0], color=FOUND, lw=1.2, label="found")
    lens.set(xlabel="time, s", ylabel="px", title="focal length")
    for axes in (above, lens):
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)
    Image.open(out).convert("RGB").quantize(192).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
