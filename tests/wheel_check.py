"""Run the packaged rgbd recipe from an installed wheel on a small rendered recording. Not collected by pytest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import theodolite
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import write_clip
from theodolite.annotate.rendered.render import render_clip
from theodolite.dataset.reading import open_dataset


def main() -> None:
    package = Path(theodolite.__file__).parent
    if package.name != "theodolite":
        raise SystemExit(f"imported {package}, not the installed wheel")
    work = Path("wheel_run").resolve()
    config = RenderConfig(width=320, height=180, num_frames=20, seed=2, speed=1.5)
    files = write_clip(render_clip(config), work / "clip")
    (work / "clips.yaml").write_text(
        "defaults: {data_licence: CC0-1.0, depth_units_per_metre: 1000}\n"
        "clips:\n"
        f"  - {{clip_id: wheel, media_path: {files.media_path}, depth_pattern: '{files.depth_pattern}'}}\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-c", "from theodolite.recipes.cli import main; main()", "annotate", "rgbd"]
    command += ["--set", f"source.index={work / 'clips.yaml'}", "--out", str(work / "out"), "--workers", "1"]
    subprocess.run(command, check=True)
    row = open_dataset(work / "out").row("wheel")
    if row.num_frames != 20 or row.verdict != "accepted":
        raise SystemExit(f"the wheel's row: {row.num_frames} frames, {row.verdict}, {row.reason_details}")
    print(f"wheel: {row.num_frames} frames, {row.verdict}, path {row.path_length_m:.2f} m")


if __name__ == "__main__":
    main()
