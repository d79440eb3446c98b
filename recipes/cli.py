"""The `theodolite` command: verbs, long flags, results on stdout, everything else on stderr.

Exit codes: 0 done, 1 some clips failed or a check did not hold, 2 wrong recipe or usage, 130 interrupted.
Everything heavy is imported inside the commands, so that help and completion are instant.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ..dataset.escape import for_terminal

app = typer.Typer(
    name="theodolite",
    help="Metric per-frame cameras, focal length included, for video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 110},
)

Out = Annotated[
    Path, typer.Option("--out", help="Dataset folder; continued if it holds parts of the same recipe.")
]
Dataset = Annotated[
    Path,
    typer.Argument(help="Folder that `theodolite annotate` wrote, or owner/name on the hub.", metavar="DIR"),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override one key: key.path=value (YAML); may be given often.", metavar="KEY=VALUE"
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        help="Local worker processes; default one a core (with 3 GiB of memory each), or two a GPU where networks run "
        "on one. 0: work in this process.",
    ),
]


def _example(text: str) -> str:
    return f"Example: {text}"


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit


def _recipes() -> str:
    """Recipes that come with the package, each with the first sentence of its description; read without a parser, so
    that help stays instant."""
    lines = []
    here = Path(__file__).parent
    for path in [*sorted(here.glob("*.yaml")), *sorted(here.glob("corpus/*.yaml"))]:
        words = re.search(
            r"^description:[ >-]*\n((?: .*\n)+)", path.read_text(encoding="utf-8"), re.MULTILINE
        )
        text = " ".join(words[1].split()) if words else ""
        name = path.relative_to(here).with_suffix("").as_posix()
        lines.append(f"  {name:20} {re.split(r'[.:;] ', text)[0].rstrip('.')}")
    return "\n".join(lines)


@app.command(
    epilog="Recipes that come with the package:\n\n\b\n"
    + _recipes()
    + "\n\n"
    + _example("theodolite annotate rgbd --set source.index=/data/clips.yaml --out runs/rgbd")
)
def annotate(
    recipe: Annotated[
        str, typer.Argument(help="Recipe file, or the name of one that comes with the package.")
    ],
    out: Out,
    overrides: Sets = None,
    workers: Workers = None,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", help="Address of a running dask scheduler, instead of local workers."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many clips.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    fetching: Annotated[
        bool,
        typer.Option("--fetch", help="Fetch the source, too: fetched, annotated and deleted in turns."),
    ] = False,
    budget_gb: Annotated[
        float | None,
        typer.Option("--budget-gb", min=0, help="With --fetch: most that the source's root may ever hold."),
    ] = None,
    retry_failed: Annotated[
        str | None,
        typer.Option(
            "--retry-failed",
            help="Try clips again that failed: `all`, or for one reason (unreadable_video ...).",
            metavar="REASON",
        ),
    ] = None,
    max_failed: Annotated[
        int,
        typer.Option(
            "--max-failed",
            min=0,
            help="Stop once so many clips one after the other failed for the same reason; 0: never.",
        ),
    ] = 200,
) -> None:
    """Annotate the clips of a recipe; resumes where an earlier run of the same recipe stopped."""

    def act() -> tuple[str, int]:
        from .loader import load_recipe
        from .run import run_annotate

        loaded = load_recipe(recipe, overrides or ())

        def run() -> tuple[str, int]:
            return run_annotate(
                loaded,
                out,
                workers=workers,
                scheduler=scheduler,
                limit=limit,
                dry_run=dry_run,
                retry_failed=retry_failed,
                max_failed=max_failed or None,
            )

        if not fetching:
            return run()
        if dry_run:
            raise ValueError("--fetch and --dry-run: `theodolite plan` says what fetching would bring")
        from .corpus.fetching import FetchOptions, run_annotate_fetching

        options = FetchOptions(
            limit=limit, budget_bytes=None if budget_gb is None else int(budget_gb * 1e9), unpack=True
        )
        return run_annotate_fetching(
            loaded, out, options=options, annotate=run, say=lambda text: typer.echo(text, err=True)
        )

    _finish(act)


@app.command(epilog=_example("theodolite validate runs/rgbd"))
def validate(path: Dataset) -> None:
    """Prove every promise that a dataset makes; names each row and rule that does not hold."""

    def act() -> tuple[str, int]:
        from ..dataset.validate import run_validate
        from .run import media_root_of_dataset

        known = (path / "recipe.resolved.yaml").is_file()
        return run_validate(path, media_root=media_root_of_dataset(path) if known else None)

    _finish(act)


@app.command(epilog=_example("theodolite inspect runs/rgbd --clip office"))
def inspect(
    path: Dataset,
    clip: Annotated[str | None, typer.Option("--clip", help="Show everything about one clip.")] = None,
) -> None:
    """Show a dataset as a table, or one clip in full."""

    def act() -> tuple[str, int]:
        from ..dataset.report import run_inspect
        from .run import media_root_of_dataset

        known = (path / "recipe.resolved.yaml").is_file()
        return run_inspect(path, clip_id=clip, media_root=media_root_of_dataset(path) if known else None)

    _finish(act)


@app.command(epilog=_example("theodolite report runs/rgbd --html rgbd.html"))
def report(
    path: Dataset,
    html: Annotated[
        Path | None, typer.Option("--html", help="File to write; default DIR/report.html.")
    ] = None,
    max_clips: Annotated[int, typer.Option("--max-clips", min=1, help="Clips shown in detail.")] = 60,
    clips: Annotated[
        list[str] | None,
        typer.Option("--clip", help="Only this clip, without the whole dataset; may be given often."),
    ] = None,
    truth: Annotated[
        bool,
        typer.Option("--truth/--no-truth", help="Overlay the ground truth that the recipe's source names."),
    ] = True,
    truth_from: Annotated[
        Path | None,
        typer.Option("--truth-from", help="Ground truth from here instead: anything that `evaluate` reads."),
    ] = None,
    max_difference: Annotated[
        float, typer.Option("--t-max-diff", min=0, help="Largest distance of times that belong together, s.")
    ] = 0.01,
    offset: Annotated[
        str,
        typer.Option(
            "--t-offset", help="Seconds added to the clips' times; `start`: both begin at the same moment."
        ),
    ] = "0",
) -> None:
    """Write one HTML file that shows trajectories, focal lengths, scale, residuals and gates."""

    def act() -> tuple[str, int]:
        from ..dataset.clip_cameras import Matching, parse_offset
        from ..dataset.report import pictures_from_media, run_report, thumbnail_from_media
        from .run import report_sources

        sources = report_sources(
            path,
            truth=truth,
            truth_from=truth_from,
            matching=Matching(max_difference_s=max_difference, offset_s=parse_offset(offset)),
        )
        return run_report(
            path,
            html,
            truth=sources.truth,
            thumbnail=thumbnail_from_media(sources.media_root),
            pictures=pictures_from_media(sources.media_root),
            max_clips=max_clips,
            clip_ids=clips,
            notes=sources.notes,
        )

    _finish(act)


def _help_metrics(value: bool) -> None:
    if value:
        from ..dataset.evaluate import explain_metrics

        typer.echo(explain_metrics())
        raise typer.Exit


@app.command(epilog=_example("theodolite evaluate runs/a truth/ --baseline runs/b --format markdown"))
def evaluate(
    predicted: Annotated[
        Path | None,
        typer.Argument(
            help="Dataset folder or owner/name on the hub, split of SANA-WM-Bench, one clip's cameras (TUM, KITTI, 4x4 "
            "rows, EuRoC, COLMAP, transforms.json) or a folder of them. Left out beside --videos: cameras are "
            "recovered from the videos by the recipe `estimate`.",
            metavar="PRED",
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Argument(
            help="The same for the ground truth. Left out beside --videos: the paths that `theodolite generate` was "
            "asked to follow, from the records beside the videos.",
            metavar="TRUTH",
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", help="A second prediction; differences are tested clip by clip."),
    ] = None,
    style: Annotated[
        str, typer.Option("--format", help="text, markdown, csv (the clips alone) or json (everything).")
    ] = "text",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for clips.csv, means.csv and evaluation.json.")
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option("--plots", help="Folder for figures: every score, and each clip's path and errors."),
    ] = None,
    max_difference: Annotated[
        float, typer.Option("--t-max-diff", min=0, help="Largest distance of times that belong together, s.")
    ] = 0.01,
    offset: Annotated[
        str,
        typer.Option(
            "--t-offset", help="Seconds added to the predicted times; `start`: both begin at the same moment."
        ),
    ] = "0",
    interpolate: Annotated[
        bool,
        typer.Option(
            "--interpolate", help="Compare with the truth between its neighbours in time, not the nearest."
        ),
    ] = False,
    rows: Annotated[
        str,
        typer.Option(
            "--rows",
            help="What row i of a file without times is, beside a dataset: source or clip frame i; auto: by count.",
        ),
    ] = "auto",
    first_frame: Annotated[
        int | None,
        typer.Option(
            "--first-frame", min=0, help="Number of a source's first frame in image names and numbered rows."
        ),
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option(
            "--videos",
            help="Folder of generated videos, <clip_id>.mp4: scored where the camera returns to a place.",
        ),
    ] = None,
    baseline_videos: Annotated[
        Path | None, typer.Option("--baseline-videos", help="The same for --baseline.")
    ] = None,
    truth_videos: Annotated[
        Path | None,
        typer.Option(
            "--truth-videos",
            help="Folder of true videos, <clip_id>.mp4, where there are any: PSNR, SSIM and --perceptual beside them.",
        ),
    ] = None,
    recovered: Annotated[
        Path | None,
        typer.Option(
            "--recovered",
            help="Where cameras recovered from --videos go; default VIDEOS/recovered. Continued.",
        ),
    ] = None,
    overrides: Sets = None,
    workers: Workers = None,
    quality: Annotated[
        str | None,
        typer.Option(
            "--quality",
            help="Scorer of image quality, for its decline from the first to the last 10 s: sharpness, or "
            "package.module:function of one RGB image.",
        ),
    ] = None,
    perceptual: Annotated[
        str | None,
        typer.Option(
            "--perceptual",
            help="Distance of two images at returns: lpips, or package.module:function of two RGB images.",
        ),
    ] = None,
    _help: Annotated[
        bool,
        typer.Option(
            "--help-metrics", callback=_help_metrics, is_eager=True, help="Explain every column and exit."
        ),
    ] = False,
) -> None:
    """Measure predicted cameras, and videos that follow them, against ground truth, with confidence intervals."""

    def act() -> tuple[str, int]:
        from typing import get_args

        from ..dataset.clip_cameras import Matching, parse_offset
        from ..dataset.evaluate import TableFormat, run_evaluate

        if style not in get_args(TableFormat):
            raise ValueError(f"--format {style}: use one of {', '.join(get_args(TableFormat))}")
        if rows not in ("auto", "source", "clip"):
            raise ValueError(f"--rows {rows}: use auto, source or clip")
        sides = (predicted, truth)
        if truth is None or predicted is None:
            from .recover import sides_of_videos

            sides = sides_of_videos(
                predicted, videos, recovered=recovered, overrides=overrides or (), workers=workers
            )
        elif recovered or overrides or workers is not None:
            raise ValueError(
                "--recovered, --set and --workers are of cameras that are recovered: leave PRED out"
            )
        return run_evaluate(
            *sides,
            truth_videos=truth_videos,
            baseline=baseline,
            style=style,  # type: ignore[arg-type]
            out=out,
            plots=plots,
            videos=videos,
            baseline_videos=baseline_videos,
            quality=quality,
            perceptual=perceptual,
            matching=Matching(
                max_difference_s=max_difference,
                offset_s=parse_offset(offset),
                interpolate=interpolate,
                rows=rows,  # type: ignore[arg-type]
                first_frame=first_frame,
            ),
        )

    _finish(act)


@app.command(
    epilog=_example("theodolite export runs/rgbd --format colmap --out exports/colmap --clip office")
)
def export(
    path: Dataset,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    style: Annotated[
        str, typer.Option("--format", help="colmap, nerfstudio, tum, kitti, lerobot and others.")
    ],
    clips: Annotated[
        list[str] | None, typer.Option("--clip", help="Only these clips; may be given often.")
    ] = None,
    source: Annotated[str | None, typer.Option("--source", help="Only this source.")] = None,
    media_root: Annotated[
        Path | None,
        typer.Option(
            "--media-root",
            help="Folder that media paths are relative to; colmap and nerfstudio then carry pictures and points, "
            "webdataset and lerobot a video of each clip, rerun both.",
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--where", help='Only clips for which this holds, e.g. "reprojection_rms_px < 1".'),
    ] = None,
) -> None:
    """Write the accepted clips in the format of another tool: whole, or nothing."""

    def act() -> tuple[str, int]:
        from ..dataset.export import SCENES, run_export

        points = None
        if media_root is not None and style in (*SCENES, "rerun"):
            from ..annotate.scene_points import observed_points as points
        return run_export(
            path,
            out,
            format=style,
            clip_ids=clips,
            source=source,
            where=where,
            media_root=media_root,
            points=points,
        )

    _finish(act)


@app.command(
    epilog=_example(
        "theodolite subset runs/rgbd --where \"source = 'walks' and num_frames > 160\" --out runs/some"
    )
)
def subset(
    path: Dataset,
    where: Annotated[
        str,
        typer.Option(
            "--where",
            help="Condition on columns: =, !=, <, <=, >, >=, in (...), is null, and, or, not, parentheses.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Absent or empty folder to write.")],
) -> None:
    """Write the clips for which a condition holds, rejected ones too, as a dataset of their own."""

    def act() -> tuple[str, int]:
        from ..dataset.export import run_subset

        return run_subset(path, out, where=where)

    _finish(act)


@app.command(
    name="filter",
    epilog=_example("theodolite filter runs/mira --scores dover.json --out kept.parquet"),
)
def filter_(
    path: Dataset,
    recipes: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe",
            help="Recipe whose section `filters` is for the rows of its source; may be given often. Default: the one "
            "beside the dataset.",
        ),
    ] = None,
    overrides: Sets = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            "--scores",
            help="Further metrics by clip_id: Parquet, CSV, or a sidecar of SANA-WM's zips; may be given often.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Parquet file to write: clip_id, source, kept, filter_reasons."),
    ] = None,
) -> None:
    """Judge a dataset by thresholds on its metrics, which runs no model; says what each threshold keeps."""

    def act() -> tuple[str, int]:
        from ..dataset.filters import Filters, run_filter
        from .loader import load_recipe

        beside = path / "recipe.resolved.yaml"
        if not recipes and not beside.is_file():
            raise ValueError(f"{path}: no recipe lies beside it; name one with --recipe")
        loaded = [load_recipe(name, overrides or ()) for name in recipes or [beside]]
        filters = {recipe.source.name: recipe.filters or Filters() for recipe in loaded}
        return run_filter(path, filters, scores=scores or (), out=out)

    _finish(act)


@app.command(epilog=_example("theodolite publish runs/rgbd owner/name --staging staging --dry-run"))
def publish(
    path: Dataset,
    repository: Annotated[
        str, typer.Argument(help="Hugging Face dataset, owner/name.", metavar="REPOSITORY")
    ],
    staging: Annotated[Path, typer.Option("--staging", help="Empty folder for the files to upload.")],
    use: Annotated[
        str, typer.Option("--for", help="research, or commercial-use: only clips whose licences allow it.")
    ] = "research",
    media_root: Annotated[
        Path | None, typer.Option("--media-root", help="Folder that media paths are relative to.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Create the repository as public.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stage only; upload nothing.")] = False,
) -> None:
    """Stage a dataset with its card, check licences, and upload it."""

    def act() -> tuple[str, int]:
        from ..dataset.publish import run_publish

        if use not in ("research", "commercial-use"):
            raise ValueError(f"--for {use}: use research or commercial-use")
        return run_publish(
            path,
            repository,
            staging,
            for_commercial_use=use == "commercial-use",
            media_root=media_root,
            private=not public,
            dry_run=dry_run,
        )

    _finish(act)


@app.command(
    epilog="Without weights: theodolite generate --image street.jpg --prompt rain --camera orbit --out try.mp4 --mode "
    "distilled --weights stand_in --size tiny\n\n"
    + _example(
        'theodolite generate --image street.jpg --prompt "a street in the rain" --camera w-80,wd-40 --out street.mp4'
    )
)
def generate(
    out: Annotated[Path, typer.Option("--out", help="MP4 to write, or with --manifest the folder.")],
    image: Annotated[Path | None, typer.Option("--image", help="First frame.")] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What the video shows; @FILE reads it.")
    ] = None,
    camera: Annotated[
        str | None,
        typer.Option(
            "--camera",
            help="Path of the camera: .npy, .npz, JSON, a dataset's clip (DIR#ID), COLMAP, TUM, KITTI, EuRoC or "
            "transforms.json; actions such as w-40,wd-20; or orbit, spiral, dolly, crane, fly-through, whip-pan, "
            "figure-eight, walk (orbit:size=3,turns=0.5).",
        ),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            help="Many videos: .jsonl, .json or .parquet with id, image, prompt, camera; or a split of SANA-WM-Bench.",
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option("--mode", help="bidirectional, chunk-causal or distilled (chunk by chunk, four steps)."),
    ] = "bidirectional",
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            help="released (theodolite weights pull MODE), stand_in, or a folder or file of your own.",
        ),
    ] = "released",
    size: Annotated[str, typer.Option("--size", help="full, or tiny (stand-ins only).")] = "full",
    autoencoder: Annotated[
        Path | None, typer.Option("--autoencoder", help="Folder of the autoencoder.")
    ] = None,
    text_encoder: Annotated[
        Path | None, typer.Option("--text-encoder", help="Folder of the text encoder.")
    ] = None,
    refiner_folder: Annotated[
        Path | None,
        typer.Option(
            "--refiner", help="Folder with transformer, connectors and text_encoder of the refiner."
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            help="LoRA file of the world model, or FILE=SCALE; may be repeated.",
            metavar="FILE[=SCALE]",
        ),
    ] = None,
    refiner_lora: Annotated[
        list[str] | None,
        typer.Option("--refiner-lora", help="The same of the refiner.", metavar="FILE[=SCALE]"),
    ] = None,
    refine: Annotated[bool, typer.Option("--refine/--no-refiner", help="Run the refiner.")] = True,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="Of the world model: auto (bf16 on a GPU, float32 on a CPU), float32, bf16, fp8, nvfp4, int8-weights, "
            "fp8-weights.",
        ),
    ] = "auto",
    scopes: Annotated[
        str | None,
        typer.Option(
            "--scopes", help="Layers in that precision: of qkv, attention, camera, cross, ffn (commas)."
        ),
    ] = None,
    attention_precision: Annotated[
        str, typer.Option("--attention-precision", help="Of softmax attention: input or fp8.")
    ] = "input",
    kernels: Annotated[
        str, typer.Option("--kernels", help="Operators of the world model: auto, triton or reference.")
    ] = "auto",
    attention: Annotated[
        str, typer.Option("--attention", help="Its softmax attention: auto, cudnn, flash or reference.")
    ] = "auto",
    offload: Annotated[
        str,
        typer.Option("--offload", help="Parts leave the GPU when idle: none, idle, blocks (block by block)."),
    ] = "none",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N.")] = "auto",
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", help="Length; default the whole path, of named paths 10 s."),
    ] = None,
    fps: Annotated[
        float | None, typer.Option("--fps", help="Poses a second of the camera file, if it does not say.")
    ] = None,
    metres_per_unit: Annotated[
        float, typer.Option("--metres-per-unit", help="Of the camera file (COLMAP, nerfstudio).")
    ] = 1.0,
    max_speed: Annotated[float, typer.Option("--max-speed", help="Faster paths are refused, m/s.")] = 10.0,
    max_turn: Annotated[float, typer.Option("--max-turn", help="Faster turns are refused, deg/s.")] = 240.0,
    intrinsics: Annotated[
        str | None,
        typer.Option(
            "--intrinsics",
            help="Lens of the image: fov=DEGREES, fx,fy,cx,cy, a .npy file, estimate (MoGe-2) or estimate=pi3x; "
            "default that of the camera file.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the noise.")] = 42,
    refiner_seed: Annotated[int, typer.Option("--refiner-seed", min=0, help="Of the refiner's noise.")] = 42,
    steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps; published 60.")] = None,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", help="How strongly the prompt is followed; published 5, 1: off."),
    ] = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option(
            "--guidance-interval", help="Shares of the steps with guidance, e.g. 0,0.5; published 0,1."
        ),
    ] = None,
    guidance_batched: Annotated[
        bool, typer.Option("--guidance-batched", help="Both passes of guidance in one call.")
    ] = False,
    negative_prompt: Annotated[
        str, typer.Option("--negative-prompt", help="What guidance leads away from.")
    ] = "",
    shift: Annotated[
        float | None, typer.Option("--shift", help="Of the noise levels; published 9.8.")
    ] = None,
    chunk_interval: Annotated[
        float | None,
        typer.Option("--chunk-interval", help="chunk-causal: share of the steps between two chunks' starts."),
    ] = None,
    times: Annotated[
        str | None, typer.Option("--times", help="distilled: its times; published 1000,960,889,727,0.")
    ] = None,
    window_chunks: Annotated[
        int | None,
        typer.Option("--window-chunks", help="distilled: chunks that are looked back on; published 1."),
    ] = None,
    sink_chunks: Annotated[
        int | None,
        typer.Option("--sink-chunks", help="distilled: first chunks that stay in view; published 1."),
    ] = None,
    graphs: Annotated[bool, typer.Option("--graphs", help="distilled: CUDA graphs.")] = False,
    crf: Annotated[
        int, typer.Option("--crf", min=0, max=51, help="Quality of the MP4, lower is better.")
    ] = 16,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a video that is there.")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="SVG of the camera path to write.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=0, help="With --manifest: processes; default one a GPU, 0: this process."
        ),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help="With --manifest: address of a running dask scheduler.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="With --manifest: only so many.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show path, memory and time; load and write nothing.")
    ] = False,
) -> None:
    """Make a video from one image, a prompt and a camera path; it can be watched while it grows."""

    def act() -> tuple[str, int]:
        from .generate.command import Given, run

        return run(
            Given(
                image=image,
                prompt=prompt,
                camera=camera,
                out=out,
                manifest=manifest,
                overwrite=overwrite,
                plot=plot,
                workers=workers,
                scheduler=scheduler,
                limit=limit,
                dry_run=dry_run,
            ),
            mode=mode,
            weights=weights,
            size=size,
            autoencoder=autoencoder,
            text_encoder=text_encoder,
            refiner_folder=refiner_folder,
            lora=tuple(lora or ()),
            refiner_lora=tuple(refiner_lora or ()),
            refine=refine,
            precision=precision,
            scopes=scopes,
            attention_precision=attention_precision,
            kernels=kernels,
            attention=attention,
            offload=offload,
            device=device,
            seconds=seconds,
            fps=fps,
            metres_per_unit=metres_per_unit,
            max_speed_m_s=max_speed,
            max_turn_deg_s=max_turn,
            intrinsics=intrinsics,
            seed=seed,
            refiner_seed=refiner_seed,
            steps=steps,
            guidance=guidance,
            guidance_interval=guidance_interval,
            guidance_batched=guidance_batched,
            negative_prompt=negative_prompt,
            shift=shift,
            chunk_interval=chunk_interval,
            times=times,
            window_chunks=window_chunks,
            sink_chunks=sink_chunks,
            graphs=graphs,
            crf=crf,
        )

    _finish(act)


@app.command(epilog=_example("theodolite plan corpus/spatialvid-hq corpus/miradata --gpus 8"))
def plan(
    recipes: Annotated[list[str], typer.Argument(help="Recipe files or names.", metavar="RECIPE...")],
    overrides: Sets = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs of the cluster.")] = 1,
) -> None:
    """Say what annotating sources will take, from their tables alone; nothing is fetched or written."""

    def act() -> tuple[str, int]:
        from .corpus.plan import run_plan_command
        from .loader import load_recipe

        return run_plan_command([load_recipe(name, overrides or ()) for name in recipes], gpus=gpus)

    _finish(act)


@app.command(epilog=_example("theodolite fetch corpus/sekai-game --out /data/Sekai-Project --budget-gb 300"))
def fetch(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or the name of one of the package.")],
    out: Annotated[Path, typer.Option("--out", help="Folder that becomes the source's root.")],
    overrides: Sets = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many media files.")] = None,
    budget_gb: Annotated[
        float | None, typer.Option("--budget-gb", min=0, help="Most that the folder may ever hold.")
    ] = None,
    annotated: Annotated[
        Path | None,
        typer.Option(
            "--annotated", help="Dataset: media all of whose clips have a row there are deleted first."
        ),
    ] = None,
    unpack: Annotated[
        bool, typer.Option("--unpack/--keep-archives", help="Unpack archives as they come, and delete them.")
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=32, help="Files of the hub at once.")] = 4,
    pause: Annotated[
        float, typer.Option("--pause", min=0, help="Seconds between two videos of a site, at least.")
    ] = 5.0,
    retry: Annotated[
        bool, typer.Option("--retry-gone", help="Ask again for what is recorded as gone.")
    ] = False,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="List repositories anew instead of by the kept list.")
    ] = False,
) -> None:
    """Fetch a source's files: resumed, checked, never twice; what cannot be had is recorded with its reason."""

    def act() -> tuple[str, int]:
        from .corpus.fetching import FetchOptions, drop_annotated, run_fetch
        from .loader import load_recipe

        def say(text: str) -> None:
            typer.echo(text, err=True)

        loaded = load_recipe(recipe, [*(overrides or ()), f"source.root={out}"])
        if annotated is not None:
            drop_annotated(loaded, annotated, say=say)
        options = FetchOptions(
            limit=limit,
            budget_bytes=None if budget_gb is None else int(budget_gb * 1e9),
            jobs=jobs,
            pause_s=pause,
            unpack=unpack,
            retry=retry,
            refresh=refresh,
        )
        return run_fetch(loaded, options=options, say=say)

    _finish(act)


@app.command(epilog=_example("theodolite unpack corpus/omniworld --set source.root=/data/OmniWorld"))
def unpack(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or the name of one of the package.")],
    overrides: Sets = None,
    max_member_gib: Annotated[
        float, typer.Option("--max-member-gib", min=0, help="Largest file that an archive may unfold to.")
    ] = 64.0,
    drop: Annotated[
        bool, typer.Option("--drop", help="Delete an archive once all of it is unpacked.")
    ] = False,
) -> None:
    """Unpack a release's archives below its root, each in one pass; those that are done are left alone."""

    def act() -> tuple[str, int]:
        from .corpus.unpacking import run_unpack
        from .loader import load_recipe

        return run_unpack(
            load_recipe(recipe, overrides or ()),
            max_member_gib=max_member_gib,
            drop=drop,
            say=lambda text: typer.echo(text, err=True),
        )

    _finish(act)


@app.command(epilog=_example("theodolite encode runs/rgbd --out encoded/rgbd"))
def encode(
    path: Dataset,
    out: Annotated[Path, typer.Option("--out", help="Folder of encoded windows; continued if it is one.")],
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            help="released (theodolite weights pull), a folder laid out as a release, or stand_in.",
        ),
    ] = "released",
    media_root: Annotated[
        Path | None,
        typer.Option("--media-root", help="Folder of the rows' media; default: by the recipe beside them."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="One of: height, width, fit (cover, squeeze), frames (961), stride, shortest, cameras (required, "
            "none), caption, missing_caption (error, empty), fps, allow_rejected, allow_stand_in; may be given often.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        str, typer.Option("--precision", help="auto (bf16 on a GPU), float32 or bf16.")
    ] = "auto",
    per_shard: Annotated[
        int, typer.Option("--windows-per-shard", min=1, max=1000, help="Windows that one file holds.")
    ] = 8,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=0, help="Processes; default one a GPU. 0: this process."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many windows.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
) -> None:
    """Encode a dataset's clips for training: latents, text states, cameras; resumes where it stopped."""

    def act() -> tuple[str, int]:
        from ..train.encode import EncodeOptions
        from .encode import EncodeJob, on_absolute_paths, run_encode
        from .loader import options_from_items

        if precision not in ("auto", "float32", "bf16"):
            raise ValueError(f"--precision {precision}: use auto, float32 or bf16")
        job = EncodeJob(
            dataset=path,
            out=out,
            options=options_from_items(EncodeOptions, overrides or ()),
            weights=weights,
            device=device,
            precision=precision,
            windows_per_shard=per_shard,
        )
        return run_encode(
            on_absolute_paths(job, media_root=media_root),
            workers=workers,
            limit=limit,
            dry_run=dry_run,
            command=sys.argv,
        )

    _finish(act)


@app.command(epilog=_example("theodolite demo --out runs/demo"))
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the clip, the dataset and the report.")],
) -> None:
    """Render a clip whose lens zooms, annotate it, and compare with the truth; takes a few minutes."""

    def act() -> tuple[str, int]:
        from .demo import run_demo

        return run_demo(out, say=lambda text: typer.echo(text, err=True))

    _finish(act)


weights_app = typer.Typer(
    name="weights",
    help="Released network weights: what there is, under which licence, and how it gets here.",
    epilog=_example("theodolite weights list"),
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(weights_app)


@weights_app.command("list", epilog=_example("theodolite weights list"))
def weights_list() -> None:
    """Every checkpoint that a recipe can name, with size, licence, revision and where it lies here."""

    def act() -> tuple[str, int]:
        from ..dataset.weights import run_list

        return run_list()

    _finish(act)


@weights_app.command("pull", epilog=_example("theodolite weights pull moge-2-vitl-normal"))
def weights_pull(
    name: Annotated[
        str,
        typer.Argument(
            help="See `theodolite weights list`; or a mode of generation (bidirectional, chunk-causal, distilled): "
            "all that it needs.",
            metavar="NAME",
        ),
    ],
    revision: Annotated[
        str | None,
        typer.Option("--revision", help="Full commit hash, if not the pinned one; branches move."),
    ] = None,
    sha256: Annotated[str | None, typer.Option("--sha256", help="Expected digest of the file.")] = None,
) -> None:
    """Download weights into the hub's cache; size and licence are shown first, the digest is checked."""

    def act() -> tuple[str, int]:
        from ..dataset.weights import names_of, pull

        names = names_of(name)
        if len(names) > 1 and (revision or sha256):
            raise ValueError(
                f"{name} is several weights: give --revision and --sha256 with one of {', '.join(names)}"
            )
        lines = []
        for each in names:
            found = pull(each, revision=revision, sha256=sha256, show=lambda text: typer.echo(text, err=True))
            lines += [found.label, str(found.path), f"SHA-256 {found.sha256}"]
        return "\n".join(lines), 0

    _finish(act)


_EXTRAS = {
    "datasets": "pip install datasets",
    "decord": "pip install theodolite[decord]",
    "diffusers": "pip install theodolite[generate]",
    "lpips": "pip install lpips",
    "matplotlib": "pip install matplotlib",
    "open3d": "pip install theodolite[rivals]",
    "peft": "pip install theodolite[generate]",
    "pycolmap": "pip install theodolite[colmap]",
    "rerun": "pip install theodolite[viz]",
    "transformers": "pip install theodolite[generate]",
    "triton": "pip install theodolite[kernels]",
    "yt_dlp": "pip install theodolite[fetch]",
}
"""What brings each package that only some commands need."""


class _Plain(logging.Formatter):
    """Names of files and clips come with data: nothing in them may act upon the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return for_terminal(super().format(record))


def _say(text: str) -> None:
    typer.echo(for_terminal(text), err=True)


def _finish(act: Callable[[], tuple[str, int]]) -> NoReturn:
    """Run a command's work; its text goes to stdout, what a user can correct becomes one message and exit code 2."""
    # Our own warnings only: distributed logs every connection.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain("%(levelname)s: %(message)s"))
    logging.getLogger("theodolite").addHandler(handler)
    try:
        text, code = act()
    except KeyboardInterrupt:
        typer.echo("interrupted; finished parts are kept, the same command continues", err=True)
        raise typer.Exit(130) from None
    except ValueError as error:
        _say(f"error: {error}")
        raise typer.Exit(2) from None
    except ImportError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if "pip install" in str(error):  # what needs it says so itself
            typer.echo(f"error: {error}", err=True)
        elif extra is not None:
            typer.echo(
                f"error: this needs the package {error.name}, which is not installed: {extra}", err=True
            )
        else:
            raise
        raise typer.Exit(2) from None
    except (OSError, RuntimeError) as error:
        from ..annotate.run.cluster import RunAborted

        if not isinstance(error, RunAborted | OSError):
            raise  # a mistake of ours: the traceback is what helps
        _say(f"error: {error}")
        raise typer.Exit(1) from None
    if text:
        typer.echo(for_terminal(text))
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the `theodolite` command."""
    app()
