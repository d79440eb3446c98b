"""What annotating sources will take, from their tables alone: clips, hours of video, gigabytes, GPU and core time.

Nothing is opened but the tables that a release ships; where none lies below the root, the paper's count stands in and
the table says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...annotate.sources.entries import ReleaseSource
from ...annotate.sources.read import release_of
from ...annotate.sources.releases import LAYOUTS
from ...annotate.sources.windows import cut_windows
from ...dataset.text_table import text_table
from ..loader import Recipe, RecipeError
from .costs import ALL_COSTS, BUNDLE, NETWORKS, PICTURES, TRACKS, held_gpu_s

_HEAD = (
    "source",
    "clips",
    "from",
    "paper",
    "s",
    "hours",
    "GB",
    "networks GPU-h",
    "tracks core-h",
    "pictures core-h",
    "bundle core-h",
    "GPU-h held",
    "days",
    "licence",
)


@dataclass(frozen=True, kw_only=True)
class SourcePlan:
    """One line of the plan.

    Attributes:
        clips: to annotate; None: neither a table nor the paper says how many.
        counted: where that number is from.
        gpu_h: hours that the clips hold a GPU; 0 where no network takes part.
        networks_gpu_h, tracks_core_h, pictures_core_h, bundle_core_h: hours of work by stage.
        days: on the GPUs asked for.
    """

    name: str
    clips: int | None
    counted: str
    paper_clips: int | None
    clip_s: float
    hub_gb: float | None
    networks_gpu_h: float
    tracks_core_h: float
    pictures_core_h: float
    bundle_core_h: float
    gpu_h: float
    days: float
    licence: str

    @property
    def hours(self) -> float:
        """Of video."""
        return (self.clips or 0) * self.clip_s / 3600


def plan_source(recipe: Recipe, *, gpus: int, cores_per_gpu: int = 16) -> SourcePlan:
    """What one recipe will take.

    Args:
        gpus, cores_per_gpu: of the cluster. A source without networks is spread over the cores alone.
    Raises:
        RecipeError: a recipe of no release, or without its `corpus` section.
        ValueError: a table that cannot be read.
    """
    source, corpus = recipe.source, recipe.corpus
    if not isinstance(source, ReleaseSource) or corpus is None:
        raise RecipeError(f"{recipe.name}: a plan needs a source of kind release and the section corpus")
    clips, counted = count_listed(source)
    if clips is None and corpus.paper_clips is not None:
        clips, counted = corpus.paper_clips, "paper"
    number = clips or 0
    geometry = recipe.annotate.geometry
    networks = geometry.sequence == "pi3x"
    tracks = TRACKS.for_clip(corpus.clip_s) * number / 3600
    measures = recipe.annotate.quality is not None
    pictures = PICTURES.for_clip(corpus.clip_s) * number / 3600 if measures else 0.0
    bundle = BUNDLE.for_clip(corpus.clip_s) * number / 3600
    held = held_gpu_s(corpus.clip_s) * number / 3600 if networks else 0.0
    return SourcePlan(
        name=recipe.name,
        clips=clips,
        counted=counted,
        paper_clips=corpus.paper_clips,
        clip_s=corpus.clip_s,
        hub_gb=corpus.hub_gb,
        networks_gpu_h=min(NETWORKS.for_clip(corpus.clip_s) * number / 3600, held) if networks else 0.0,
        tracks_core_h=tracks,
        pictures_core_h=pictures,
        bundle_core_h=bundle,
        gpu_h=held,
        days=(held / gpus if networks else (tracks + pictures + bundle) / (gpus * cores_per_gpu)) / 24,
        licence=source.data_licence,
    )


def count_listed(source: ReleaseSource) -> tuple[int | None, str]:
    """Clips that the tables below the root list, and where the number is from; None without a table."""
    release, layout = release_of(source), LAYOUTS[source.layout]
    if layout.listed is None or not release.root.is_dir():
        return None, "-"
    count = entries = 0
    for entry in layout.listed(release):
        entries += 1
        if release.windows is None:
            count += 1
            continue
        count += sum(1 for _ in cut_windows(release.windows, duration_s=entry.duration_s, fps=entry.fps))
    if not entries:
        return None, "-"
    return count, "table, at most" if layout.listed_is_bound else "table"


def run_plan_command(recipes: Sequence[Recipe], *, gpus: int) -> tuple[str, int]:
    """The plan as a table, with its sum and the measurement behind each figure."""
    plans = [plan_source(recipe, gpus=gpus) for recipe in recipes]
    rows = [*(_cells(plan) for plan in plans), _total(plans)]
    table = text_table(_HEAD, rows, left=[name in ("source", "from", "licence") for name in _HEAD])
    notes = [
        "",
        f"days: on {gpus} GPU{'s' if gpus > 1 else ''} with 16 cores each; GPU-h held: networks and the bundles beside"
        " them, overlapped.",
        "from: `table` is counted in the release's own table, before anything is fetched; `at most`: a table of whole"
        " scenes; `paper`: no table lies below source.root, the paper's count stands in.",
        "GB: of the wanted files, as their publishers or users state it; `?` counts as nothing in the sum.",
        f"networks: {NETWORKS.seconds:g} s for a minute in proportion, at most what a GPU is held.",
        "Not in it, since nothing of it was measured: captions, DOVER, judgements by a vision-language model, rendering"
        " splats and fetching.",
        "Measured:",
        *(
            f"  {cost.name}: {cost.seconds:g} s of a {cost.of} for a clip of {cost.clip_s:g} s ({cost.measured})"
            for cost in ALL_COSTS
        ),
    ]
    return "\n".join([table, *notes]), 0


def _cells(plan: SourcePlan) -> tuple[str, ...]:
    return (
        plan.name,
        "?" if plan.clips is None else f"{plan.clips:,}",
        plan.counted,
        "-" if plan.paper_clips is None else f"{plan.paper_clips:,}",
        f"{plan.clip_s:g}",
        f"{plan.hours:,.0f}",
        "?" if plan.hub_gb is None else f"{plan.hub_gb:,.0f}",
        f"{plan.networks_gpu_h:,.1f}",
        f"{plan.tracks_core_h:,.0f}",
        f"{plan.pictures_core_h:,.0f}",
        f"{plan.bundle_core_h:,.0f}",
        f"{plan.gpu_h:,.1f}",
        f"{plan.days:,.2f}",
        plan.licence,
    )


def _total(plans: Sequence[SourcePlan]) -> tuple[str, ...]:
    def total(name: str) -> float:
        return sum(getattr(plan, name) or 0 for plan in plans)

    return (
        "in all",
        f"{total('clips'):,.0f}",
        "",
        f"{total('paper_clips'):,.0f}",
        "",
        f"{total('hours'):,.0f}",
        f"{total('hub_gb'):,.0f}",
        f"{total('networks_gpu_h'):,.1f}",
        f"{total('tracks_core_h'):,.0f}",
        f"{total('pictures_core_h'):,.0f}",
        f"{total('bundle_core_h'):,.0f}",
        f"{total('gpu_h'):,.1f}",
        f"{total('days'):,.2f}",
        "",
    )
