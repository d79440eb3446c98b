"""`theodolite mix`: datasets of several sources in; the clips that are taken, their sources' weights and a card out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field

from ...dataset.card import rejection_table, source_licences
from ...dataset.filters import Filters
from ...dataset.mixing import Metric, Mixed, SourceMix, SourceShare, mix
from ...dataset.parquet import sealed
from ...dataset.reading import ClipDataset, open_dataset
from ...dataset.store import write_atomically
from ...dataset.strict import Strict
from ...dataset.text_table import markdown_table, text_table
from ..loader import (
    FiltersBeside,
    apply_overrides,
    checked_recipe,
    load_recipe,
    packaged_names,
    packaged_or_own,
    read_content,
    recipe_beside,
)

_HEAD = ("source", "clips", "accepted", "filters keep", "taken", "hours", "scale from", "spread", "share")


class MixRecipe(Strict):
    """A mixture."""

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    description: str = ""
    metric: Metric = Metric()
    sources: Annotated[dict[str, SourceShare], Field(min_length=1)]
    """By the name that rows carry; rows of another source are refused."""


def mix_recipes() -> list[str]:
    """Names of the packaged mixtures."""
    return packaged_names("mixing")


def load_mix_recipe(name: str | Path, overrides: Sequence[str] = ()) -> MixRecipe:
    """Read, override and check a mixture's recipe; the file of `filters` lies beside it, or has a packaged name.

    Raises:
        RecipeError: with every mistake found.
    """
    path = packaged_or_own(name, "mixing", "mixtures")
    content, errors = read_content(path)
    sources = content.get("sources")
    for share in sources.values() if isinstance(sources, dict) else ():
        if isinstance(share, dict) and isinstance(share.get("filters"), str):
            beside = path.parent.resolve() / Path(share["filters"]).expanduser()
            share["filters"] = str(beside) if beside.is_file() else share["filters"]
    return checked_recipe(MixRecipe, path, content, [*errors, *apply_overrides(content, overrides)])


def run_mix(recipe: MixRecipe, paths: Sequence[Path], out: Path | None) -> tuple[str, int]:
    """Judge all clips of the datasets.

    Args:
        out: folder for `kept.parquet` (every clip: kept or why not), `mixture.json` (weights, counts) and `README.md`.
    Returns:
        The table of sources, with what a training takes, and 0.
    Raises:
        ValueError: as `mix`, or a dataset that cannot be read.
    """
    datasets = [open_dataset(path) for path in paths]
    filters = {name: f for path in paths for name, f in _filters_beside(path).items()}
    filters |= {
        name: load_recipe(share.filters).filters or Filters()
        for name, share in recipe.sources.items()
        if share.filters is not None
    }
    mixed = mix(datasets, recipe.sources, filters, recipe.metric)
    rows = [_cells(source) for source in mixed.sources]
    text = [text_table(_HEAD, rows, left=[True, *[False] * 5, True, False, False])]
    for name, why in mixed.reasons.items():
        if why:
            text.append(f"{name} lacks: " + ", ".join(f"{reason} {n:,}" for reason, n in why.most_common(8)))
    weights = "{" + ", ".join(f"{name}: {share:g}" for name, share in mixed.weights.items()) + "}"
    text.append(f'a training of them: --set "data.sources={weights}"')
    if out is not None:
        _write(out, recipe, mixed, datasets)
        text.append(f"written: {out} (kept.parquet for theodolite encode --only, mixture.json, README.md)")
    return "\n".join(text), 0


def _filters_beside(path: Path) -> dict[str, Filters]:
    """Thresholds of the recipe beside a dataset, by its source."""
    recipe = recipe_beside(path, FiltersBeside)
    return {} if recipe is None else {recipe.source.name: recipe.filters or Filters()}


def _cells(source: SourceMix) -> tuple[str, ...]:
    return (
        source.source,
        f"{source.rows:,}",
        f"{source.accepted:,}",
        f"{source.kept:,}",
        f"{source.taken:,}",
        f"{source.hours:,.1f}",
        ", ".join(f"{name} {n:,}" for name, n in source.scale.items()) or "-",
        "-" if source.spread_log is None else f"{source.spread_log:.3f}",
        f"{100 * source.share:.1f} %",
    )


def _write(out: Path, recipe: MixRecipe, mixed: Mixed, datasets: Sequence[ClipDataset]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    content = sealed(mixed.table, compression="zstd", row_group_size=1 << 16)
    write_atomically(out / "kept.parquet", memoryview(content))
    record = {
        "recipe": recipe.model_dump(mode="json"),
        "datasets": [clips.path for clips in datasets],
        "weights": mixed.weights,
        "sources": {s.source: {k: v for k, v in vars(s).items() if k != "source"} for s in mixed.sources},
        "not_taken": {name: dict(why.most_common()) for name, why in mixed.reasons.items()},
    }
    write_atomically(out / "mixture.json", (json.dumps(record, indent=1) + "\n").encode())
    write_atomically(out / "README.md", mixture_card(recipe, mixed, datasets).encode())


def mixture_card(recipe: MixRecipe, mixed: Mixed, datasets: Sequence[ClipDataset]) -> str:
    """Card of a mixture: counts, why every clip that is not taken is not, licences; no paths of this machine."""
    total: Counter[str] = sum(mixed.reasons.values(), Counter())
    reasons = [
        [name, str(n), *(str(mixed.reasons[s.source][name]) for s in mixed.sources)]
        for name, n in total.most_common()
    ]
    columns = ["clip_id", "source", "reasons", "data_licence", "weight_licences", "data_redistributable"]
    rows = pa.concat_tables([clips.to_table(columns) for clips in datasets])
    return "\n".join(
        [
            f"# Mixture {recipe.name}\n",
            recipe.description.strip() + "\n",
            "A clip is taken if its cameras were accepted, its source's thresholds keep it and its translations are"
            " metres: measured with a spread of the log scale of at most"
            f" {recipe.metric.most_spread_log:g}"
            + (", or declared metric by its source" if recipe.metric.trust_declared else "")
            + (".\n" if recipe.metric.required else "; clips of unknown scale are taken as well.\n"),
            "## Sources\n",
            markdown_table(_HEAD, [_cells(s) for s in mixed.sources]) + "\n",
            "## Why clips are not taken\n",
            "A clip may have several reasons.\n",
            markdown_table(["reason", "clips", *(s.source for s in mixed.sources)], reasons) + "\n",
            "## Why cameras were rejected\n",
            rejection_table(rows),
            "## Licences of the clips that are taken\n",
            source_licences(rows, mixed.table),
        ]
    )
