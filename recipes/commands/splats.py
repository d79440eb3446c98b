"""`theodolite render`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..command import Outcome, say
from .options import one_of

PATHS = "orbit, spiral, dolly, crane, fly-through, whip-pan, figure-eight, walk"


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What is written of each frame, and by what."""

    size: Annotated[str, typer.Option("--size", help="WIDTHxHEIGHT of the video.")] = "1280x720"
    fov: Annotated[
        float | None,
        typer.Option("--fov", min=25, max=120, help="Horizontal, degrees; default that of the training."),
    ] = None
    depth: Annotated[
        bool, typer.Option("--depth/--no-depth", help="Also depth, and clips.yaml for `annotate rgbd`.")
    ] = False
    renderer: Annotated[
        str, typer.Option("--renderer", help="gsplat, or plain (torch, slow) to try a scene without a GPU.")
    ] = "gsplat"
    fixer: Annotated[
        str | None,
        typer.Option(
            "--fixer", help="package.module:function of (n, H, W, 3) uint8 frames: a network that mends them."
        ),
    ] = None
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto"


def render(
    scene: Annotated[Path, typer.Argument(help="PLY file of 3D Gaussian splats.", metavar="SCENE")],
    out: Annotated[Path, typer.Option("--out", help="Folder of clips, the root of source dl3dv-gs.")],
    cameras: Annotated[
        Path | None,
        typer.Option(
            "--cameras", help="cameras.json of the scene's training; default beside the scene or above it."
        ),
    ] = None,
    paths: Annotated[
        list[str] | None, typer.Option("--path", help=f"{PATHS}; may be given often; default all.")
    ] = None,
    starts: Annotated[
        int, typer.Option("--starts", min=1, help="Cameras of the training that each path begins at.")
    ] = 1,
    frames: Annotated[int, typer.Option("--frames", min=2, help="Of each clip, 16 a second.")] = 961,
    metres_per_unit: Annotated[
        float | None, typer.Option("--metres-per-unit", min=1e-9, help="Of the scene, where it is known.")
    ] = None,
    *,
    pictures: Pictures,
) -> Outcome:
    """Render clips along new camera paths through a scene of splats: out of geometry, inside what was seen.

    Example: theodolite render scene/point_cloud.ply --path orbit --starts 4 --out /data/DL3DV-GS-renders
    """
    from ...annotate.networks.device import choose_device
    from ...annotate.splats.render import GsplatRenderer, PlainRenderer
    from ...dataset.metrics.image import load_function
    from ..rendering import RenderJob, run_render

    one_of("--renderer", pictures.renderer, ("gsplat", "plain"))
    width, cross, height = pictures.size.partition("x")
    if not cross or not width.isdecimal() or not height.isdecimal():
        raise ValueError(f"--size {pictures.size}: use WIDTHxHEIGHT, such as 1280x720")
    device = choose_device(pictures.device)
    if pictures.renderer == "gsplat" and device.type != "cuda":
        raise ValueError(
            "gsplat draws on a CUDA device, and there is none: --renderer plain draws slowly without"
        )
    job = RenderJob(
        scene=scene,
        cameras=_cameras(scene) if cameras is None else cameras,
        out=out,
        paths=tuple(paths) if paths else tuple(PATHS.split(", ")),
        starts=starts,
        num_frames=frames,
        height=int(height),
        width=int(width),
        fov_deg=pictures.fov,
        metres_per_unit=metres_per_unit,
        depth=pictures.depth,
    )
    return run_render(
        job,
        GsplatRenderer() if pictures.renderer == "gsplat" else PlainRenderer(),
        device,
        fixer=None if pictures.fixer is None else load_function(pictures.fixer, f"--fixer {pictures.fixer}"),
        say=say,
    )


def _cameras(scene: Path) -> Path:
    """`cameras.json` of a scene: beside it, or above `point_cloud/iteration_N/`."""
    for folder in (scene.parent, *scene.parents[1:4]):
        if (folder / "cameras.json").is_file():
            return folder / "cameras.json"
    raise ValueError(f"{scene}: no cameras.json lies beside it or above; name it (--cameras)")
