"""`theodolite mix` as users run it: sources on one metric footing, weights for the trainer, and a card."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from theodolite.dataset.store import write_dataset
from theodolite.recipes.loader import PACKAGED, RecipeError, load_recipe
from theodolite.recipes.mixing.run import load_mix_recipe, mix_recipes
from theodolite.train.recipe import TrainRecipe

from ..support import Done, run_here
from ..train.encoded_clips import row_with_pictures
from ..typed import known

RECIPE = """
schema_version: 1
name: two
sources:
  walks: {}
  games: {weight: 3}
  other: {weight: 0}
"""
MEASURED = {"scale_model": "constant", "metres_per_unit": 2.0, "scale_mad_log": 0.1}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("mix")

    def row(number: int, source: str, **changes):
        values = {**MEASURED, "source": source, "metrics": {"vmaf_motion": 5.0}, **changes}
        return row_with_pictures(root, number, frames=9, **values)

    rejected = {"verdict": "rejected", "reasons": ("fov_x",), "reason_details": ("wide",)}
    walks = [
        row(0, "walks"),
        row(1, "walks", scale_mad_log=0.9),
        row(2, "walks", scale_model="none", metres_per_unit=None, scale_mad_log=None),
        row(3, "walks", metrics={"vmaf_motion": 0.1}),
        row(4, "walks", **rejected),
        row(5, "walks", stand_in=True),
    ]
    games = [
        row(
            10,
            "games",
            scale_model="declared",
            metres_per_unit=1.0,
            scale_mad_log=None,
            data_licence="research-only",
        ),
        row(11, "games", weights=("pi3x@a",), weight_licences=("CC-BY-NC-4.0",)),
        row(12, "other"),
    ]
    write_dataset(root / "walks", walks)
    write_dataset(root / "games", games)
    (root / "walks" / "recipe.resolved.yaml").write_text(
        "schema_version: 1\nname: w\nmode: estimate\nsource: {kind: videos, name: walks, root: .}\n"
        "annotate: {gates: {a_gate_that_was: 0.3}}\nfilters: {vmaf_motion: [0.5, 50]}\n"
    )
    (root / "two.yaml").write_text(RECIPE)
    return root / "walks", root / "games"


def mixed(datasets: tuple[Path, Path], *more: object) -> Done:
    return run_here("mix", datasets[0].parent / "two.yaml", *datasets, *more)


def test_clips_weights_and_card(datasets: tuple[Path, Path], tmp_path: Path) -> None:
    said = mixed(datasets, "--out", tmp_path / "m")
    assert said.returncode == 0, said
    table = {r["clip_id"]: r for r in pq.ParquetFile(tmp_path / "m/kept.parquet").read().to_pylist()}
    assert {i: r["mix_reasons"] for i, r in table.items() if r["mix_reasons"]} == {
        "clip_0001": ["scale_spread_high"],
        "clip_0002": ["scale_unknown"],
        "clip_0003": ["vmaf_motion_low"],
        "clip_0004": ["cameras_rejected"],
        "clip_0005": ["stand_in"],
    }
    assert [i for i, r in table.items() if not r["is_metric"]] == ["clip_0001", "clip_0002", "clip_0005"]
    assert {table[i]["scale_source"] for i in ("clip_0000", "clip_0010")} == {"measured", "declared"}
    record = json.loads((tmp_path / "m/mixture.json").read_text())
    hours = 9 / 16 / 3600
    assert record["weights"] == pytest.approx(
        {"games": 3 / (3 + hours), "walks": hours / (3 + hours)}, abs=2e-6
    )
    assert record["sources"]["walks"]["taken"] == 1
    card = (tmp_path / "m/README.md").read_text()
    for text in ("| scale\\_spread", "fov_x", "research-only", "CC-BY-NC-4.0", "| walks | 6 | 5 | 4 | 1 |"):
        assert text.replace("\\_", "_") in card.replace("\\_", "_"), card
    assert str(tmp_path) not in card
    # What is printed is what the trainer takes.
    weights = said.stdout.split("data.sources=")[1].split('"')[0]
    base = yaml.safe_load((PACKAGED / "train/stage1_smoke.yaml").read_text())
    base["data"] = {**base.get("data", {}), "sources": yaml.safe_load(weights)}
    assert TrainRecipe.model_validate(base).data.sources == pytest.approx(record["weights"], abs=1e-5)


def test_footing_is_a_choice(datasets: tuple[Path, Path], tmp_path: Path) -> None:
    loose = mixed(datasets, "--set", "metric.required=false", "--set", "sources.games.weight=null")
    assert "walks" in loose.stdout
    assert "scale_unknown" not in loose.stdout
    strict = mixed(datasets, "--set", "metric.trust_declared=false")
    assert "scale_only_declared 1" in strict.stdout


def test_what_cannot_be_mixed(datasets: tuple[Path, Path]) -> None:
    said = run_here("mix", "sana_wm", *datasets)
    assert said.returncode == 2
    assert "has no source games, other, walks" in said.stderr
    said = mixed(datasets, datasets[0])
    assert "is in two of the datasets" in said.stderr
    said = mixed(datasets, "--set", "sources.games.weigth=1")
    assert "weigth: unknown key" in said.stderr
    said = mixed(datasets, "--set", "metric.most_spread_log=0.01", "--set", "metric.trust_declared=false")
    assert said.returncode == 2
    assert "no clip is taken: scale_spread_high" in said.stderr
    assert "mixtures that come with theodolite: sana_wm" in run_here("mix", "nothing", datasets[0]).stderr


def test_packaged_mixtures_name_recipes_that_are_there() -> None:
    for name in mix_recipes():
        recipe = load_mix_recipe(name)
        assert recipe.name == name
        assert recipe.description
        for source, share in recipe.sources.items():
            assert load_recipe(known(share.filters)).source.name == source


def test_a_mixture_without_sources(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("schema_version: 1\nname: x\n")
    with pytest.raises(RecipeError, match="sources: is required"):
        load_mix_recipe(tmp_path / "m.yaml")


@pytest.mark.slow
def test_encode_takes_only_what_is_kept(datasets: tuple[Path, Path], tmp_path: Path) -> None:
    mixed(datasets, "--out", tmp_path / "m")
    (datasets[0] / "0.mp4").touch()
    said = run_here(
        *("encode", datasets[0], "--out", tmp_path / "e", "--weights", "stand_in", "--dry-run"),
        *("--set", "frames=9", "--set", "height=64", "--set", "width=96", "--set", "allow_stand_in=true"),
        *("--only", tmp_path / "m/kept.parquet"),
    )
    assert said.returncode == 0, said
    assert "1 windows of 1 clips" in said.stdout
    assert "is not kept by" in said.stdout


def test_thresholds_of_a_mixture_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As files in any recipe; those of `--set` are named from the current folder."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "own.yaml").write_text(
        "schema_version: 1\nname: w\nmode: estimate\nsource: {kind: videos, name: w, root: .}\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "schema_version: 1\nname: mine\nsources: {a: {filters: own.yaml}, b: {filters: rgbd}, c: {}}\n"
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    named = load_mix_recipe(tmp_path / "mine.yaml", ["sources.c.filters=../own.yaml"]).sources
    assert [named[name].filters for name in "abc"] == [str(tmp_path / "own.yaml"), "rgbd", "../own.yaml"]
    assert all(load_recipe(known(share.filters)).name in ("w", "rgbd") for share in named.values())
