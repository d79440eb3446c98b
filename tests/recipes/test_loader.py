"""Recipes: what is wrong is said at once and in full; what ran can be read back."""

import json
import re
from pathlib import Path

import pytest
import yaml
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.sources.entries import IndexSource
from theodolite.recipes.loader import (
    PACKAGED,
    PATH_KEYS,
    RENAMED_KEYS,
    RecipeError,
    find_recipe,
    git_state,
    load_recipe,
    packaged_recipes,
    recipe_hash,
    resolved_yaml,
    write_run_record,
)
from theodolite.recipes.mistakes import misread_paths
from theodolite.recipes.mixing.run import mix_recipes
from theodolite.recipes.training import load_train_recipe, train_recipes

TRAIN_RECIPES = sorted(PACKAGED.glob("train/*.yaml"))
MIX_RECIPES = sorted(PACKAGED.glob("mixing/*.yaml"))
RECIPES = sorted({*PACKAGED.glob("**/*.yaml")} - {*TRAIN_RECIPES, *MIX_RECIPES})
"""Recipes of `annotate`. Those of `train` and `mix` have loaders of their own, see test_train_command.py and
test_mixing.py."""

GOOD = """
schema_version: 1
name: test
mode: given_depth
source: {kind: index, name: rgbd, index: clips.yaml}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.relative_to(PACKAGED).as_posix())
def test_every_recipe_loads_and_round_trips(path, tmp_path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.description
    again = load_recipe(written(tmp_path, resolved_yaml(recipe)))
    assert again == recipe
    assert recipe_hash(again) == recipe_hash(recipe)
    assert load_recipe(path.relative_to(PACKAGED).with_suffix("")) == recipe


def test_there_are_recipes():
    assert {"rgbd", "videos", "corpus/miradata"} <= set(packaged_recipes())
    assert len(packaged_recipes()) == len(RECIPES)


def test_every_packaged_file_has_a_loader():
    """A folder of recipes that neither command lists would be a folder that nobody can run."""
    named = {PACKAGED / f"{name}.yaml" for name in packaged_recipes()}
    named |= {PACKAGED / "train" / f"{name}.yaml" for name in train_recipes()}
    named |= {PACKAGED / "mixing" / f"{name}.yaml" for name in mix_recipes()}
    assert named == {*PACKAGED.glob("**/*.yaml")}
    assert len(TRAIN_RECIPES) == len(train_recipes()) > 5


def test_all_mistakes_in_one_message(tmp_path):
    text = GOOD + "annotate: {decod: {fps: 16}, scale: {ema_momentum: 1.4}}\noutput: {clips_per_shards: 2}\n"
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, text))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path / 'recipe.yaml'} is not a valid recipe:"
    assert sorted(lines[1:]) == [
        "  annotate.decod: unknown key (got {'fps': 16}); did you mean decode?",
        "  annotate.scale.ema_momentum: should be less than 1 (got 1.4)",
        "  output.clips_per_shards: unknown key (got 2); did you mean clips_per_shard?",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "mode: estimate\n", r"mode: given twice \(lines 4 and 6\)"),
        (GOOD + "annotate: {decode: {threads: 1, threads: 2}}", r"threads: given twice"),
        (GOOD.replace("index: clips.yaml", ""), r"source\.index: is required"),
        (GOOD.replace("kind: index", "kind: folder"), r"source: .*'folder'"),
        (GOOD.replace("version: 1", "version: 2"), r"schema_version: should be 1 \(got 2\)"),
        (
            GOOD + "annotate: {decode: {fps: 17}}",
            r"annotate\.decode\.fps: should be 16 or 'native' \(got 17\)",
        ),
        ("a: [", "is not YAML"),
        ("- a", "must hold keys and values, found list"),
        ("", "must hold keys and values, found NoneType"),
    ],
)
def test_single_mistakes(tmp_path, text, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(written(tmp_path, text))


def test_overrides(tmp_path):
    path = written(tmp_path, GOOD)
    recipe = load_recipe(path, ["annotate.decode.fps=native", "annotate.decode.max_frames=961", "name=other"])
    assert recipe.annotate.decode == DecodeConfig(fps="native", max_frames=961)
    assert recipe.name == "other"
    assert load_recipe(path, ["annotate.decode.max_side_px=null"]).annotate.decode.max_side_px is None
    assert (
        load_recipe(path, ["output.clips_per_shard=2", "output.clips_per_shard=3"]).output.clips_per_shard
        == 3
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("decode.fps=native", r"decode: unknown key .*; did you mean annotate\.decode\?"),
        ("gates.fov_max_deg=150", r"gates: unknown key .*; did you mean annotate\.gates\?"),
        (
            "min_frames=8",
            r"min_frames: unknown key .*; did you mean annotate\.decode\.min_frames or annotate\.scale\.min_frames\?",
        ),
        ("source.layout=dl3dv", r"source\.layout: unknown key .*; it goes with source\.kind=release"),
        ("source.depth_pattern=d", "unknown key .*; depth_pattern is said of each clip in the index"),
        ("annotate.decode.fsp=16", r"annotate\.decode\.fsp: unknown key \(got 16\); did you mean fps\?"),
        ("annotate", "must be key.path=value"),
        ("annotate..fps=3", "must be key.path=value"),
        ("name.x=3", "name is not a section"),
        ("name=[", "the value is not YAML"),
    ],
)
def test_wrong_overrides(tmp_path, override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(written(tmp_path, GOOD), [override])


def test_another_kind_of_source_has_nothing_of_the_one_it_replaces(tmp_path, monkeypatch):
    """The recipe's own root would be that of the index as well, and its media be looked for in the package."""
    monkeypatch.chdir(tmp_path)
    for order in (("kind=index", "index=clips.yaml"), ("index=clips.yaml", "kind=index")):
        source = load_recipe("estimate", [f"source.{item}" for item in order]).source
        assert isinstance(source, IndexSource)
        assert (source.name, source.root, source.index) == ("videos", None, tmp_path / "clips.yaml")
    source = load_recipe("estimate", ["source.root=here", "source.kind=index", "source.index=i.csv"]).source
    assert source.root == tmp_path / "here"
    assert load_recipe("estimate", ["source.kind=videos"]) == load_recipe("estimate")
    with pytest.raises(RecipeError, match=r"source\.index: unknown key .*; it goes with source\.kind=index"):
        load_recipe("estimate", ["source.index=clips.yaml"])


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        (
            "estimate",
            "annotate.geometry.anchor=rendered",
            r"\n  annotate\.geometry\.anchor: rendered .* source\.kind is videos",
        ),
        ("estimate", "annotate.geometry.anchor=given", r"anchor: given .* a folder of plain videos has none"),
        (
            "omniworld",
            "annotate.geometry.sequence=rendered",
            r"sequence: rendered .* source\.kind is release",
        ),
    ],
)
def test_estimators_that_a_source_has_nothing_for(recipe, override, message):
    """They would fail with every clip, one after the other."""
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe, [override])


def test_a_recipe_whose_name_is_nearly_right():
    with pytest.raises(
        RecipeError, match=r"rgdb: no such recipe file; did you mean rgbd\?; recipes that come"
    ):
        find_recipe("rgdb")


def test_paths_are_relative_to_the_recipe_and_overrides_to_the_caller(tmp_path, monkeypatch):
    path = written(tmp_path, GOOD)
    assert vars(load_recipe(path).source)["index"] == tmp_path / "clips.yaml"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert (
        vars(load_recipe(path, ["source.index=mine.yaml"]).source)["index"]
        == tmp_path / "elsewhere/mine.yaml"
    )


def test_every_path_of_a_recipe_is_relative_to_it(tmp_path, monkeypatch):
    assert {".".join(keys) for keys in PATH_KEYS} == {
        "source.root",
        "source.index",
        "source.metadata",
        "annotate.geometry.pi3x.path",
        "annotate.geometry.moge2.path",
    }
    weights = GOOD + "annotate:\n  geometry:\n    pi3x: {path: weights/a}\n    moge2: {path: ../b}\n"
    path = written(tmp_path, weights)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    geometry = load_recipe(path).annotate.geometry
    assert geometry.pi3x.path == tmp_path / "weights/a"
    assert geometry.moge2.path == tmp_path / "../b"
    whole = load_recipe(path, ["annotate.geometry.pi3x={path: mine}"]).annotate.geometry
    assert whole.pi3x.path == tmp_path / "elsewhere/mine"


@pytest.mark.parametrize("old", RENAMED_KEYS)
def test_a_key_of_earlier_versions_names_the_new_one(old, tmp_path):
    new = RENAMED_KEYS[old]
    assert new in set(_all_keys(load_recipe(written(tmp_path, GOOD)).model_dump()))
    with pytest.raises(
        RecipeError, match=rf"{re.escape(old)}: unknown key .*; it is called {re.escape(new)} now"
    ):
        load_recipe(written(tmp_path, GOOD), [f"{old}.window=8"])
    *parents, key = old.split(".")
    content = {key: {"window": 8}}
    for parent in reversed(parents):
        content = {parent: content}
    with pytest.raises(RecipeError, match=f"is called {re.escape(new)} now"):
        load_recipe(written(tmp_path, GOOD + yaml.safe_dump(content)))


def _all_keys(content: dict, before: str = ""):
    for key, value in content.items():
        yield before + key
        if isinstance(value, dict):
            yield from _all_keys(value, f"{before}{key}.")


def test_unknown_recipe_names_the_known_ones():
    with pytest.raises(RecipeError, match=r"come with theodolite: .*rgbd.*videos"):
        find_recipe("rgdb")


def test_hash_covers_what_changes_rows_and_nothing_else(tmp_path):
    path = written(tmp_path, GOOD)
    base = recipe_hash(load_recipe(path))
    assert re.fullmatch(r"[0-9a-f]{16}", base)
    assert recipe_hash(load_recipe(path, ["annotate.executor.attempts=5"])) == base
    assert recipe_hash(load_recipe(path, ["annotate.decode.max_frames=10"])) != base
    # Where things lie and where they run: data may move, and another card may go on.
    for place in (
        "source.index=/elsewhere/clips.yaml",
        "source.root=/elsewhere",
        "annotate.geometry.device=cuda:1",
        "annotate.geometry.pi3x.path=/elsewhere/model.safetensors",
        "description=other words",
        # Said or left out: recipes of before there was a choice keep their hash.
        "annotate.tracks.tracker=opencv",
        "annotate.bundle.device=cuda",
        "annotate.bundle.derivatives=float64",
    ):
        assert recipe_hash(load_recipe(path, [place])) == base, place
    for other in (
        "source.name=other",
        "annotate.tracks.tracker=batched",
        "annotate.bundle.derivatives=float32",
        "annotate.geometry.pi3x.sha256=" + "a" * 64,
        # No digest says what this file is, so its path has to.
        "annotate.geometry.moge2={variant: vits-normal, path: /elsewhere/model.pt}",
    ):
        assert recipe_hash(load_recipe(path, [other])) != base, other


def test_run_record(tmp_path):
    recipe = load_recipe(written(tmp_path, GOOD))
    out = tmp_path / "out"
    out.mkdir()

    def write(started, ended, result):
        write_run_record(out, recipe, started=started, ended=ended, command=["theodolite"], result=result)

    write("2026-01-01T00:00:00+00:00", None, {"clips": 3})
    write("2026-01-01T00:00:00+00:00", "2026-01-01T01:00:00+00:00", {"clips": 3})
    write("2026-01-02T00:00:00+00:00", None, {"clips": 3})
    killed_first, second = json.loads((out / "run.json").read_text())["runs"]
    assert killed_first["ended"] == "2026-01-01T01:00:00+00:00"
    assert second["ended"] is None
    assert second["recipe_hash"] == recipe_hash(recipe)
    assert second["packages"]["torch"]
    assert load_recipe(out / "recipe.resolved.yaml") == recipe
    assert sorted(p.name for p in out.iterdir()) == ["recipe.resolved.yaml", "run.json"]
    for _ in range(2):  # both in one second
        write("2026-01-03T00:00:00+00:00", None, {})
        write("2026-01-03T00:00:00+00:00", "2026-01-03T00:00:00+00:00", {"clips": 3})
    assert len(json.loads((out / "run.json").read_text())["runs"]) == 4


def test_git_state_is_ours_or_nothing(tmp_path):
    assert git_state(tmp_path / "theodolite" / "recipes") == {"git_commit": None, "git_dirty": None}
    state = git_state(PACKAGED)
    if (PACKAGED.parent / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}", state["git_commit"])
        assert state["git_dirty"] in (True, False)


def test_recipes_are_plain_yaml():
    for path in RECIPES:
        assert yaml.safe_load(path.read_text())["schema_version"] == 1


@pytest.mark.parametrize("text", ["Q: what is seen?\nA:\ta room", "first line\nsecond"])
def test_texts_may_have_lines_and_tabulators(text: str) -> None:
    assert misread_paths({"describe": {"prompt": text}}) == []
    assert misread_paths({"describe": [{"prompt": text + "\b"}]})[0].startswith("describe.prompt: ")


@pytest.mark.parametrize("path", ["C:\\runs\\base", "D:\\temp\\new", "..\\runs\\base"])
def test_backslashes_that_yaml_took_for_control_characters_are_told(path: str, tmp_path: Path) -> None:
    """In double quotes, in files and in --set; in single quotes and without any they stay what they are."""
    own = tmp_path / "own.yaml"
    text = "schema_version: 1\nname: own\nsteps: 3\nlora: {rank: 4}\nstart:\n  weights: "
    own.write_text(f'{text}"{path}"\n', encoding="utf-8")
    with pytest.raises(
        RecipeError, match=r"start\.weights: .* holds control characters: in double quotes YAML"
    ):
        load_train_recipe(own)
    with pytest.raises(RecipeError, match=r"start\.weights: .* holds control characters"):
        load_train_recipe("finetune_lora", [f'start.weights="{path}"'])
    root = "schema_version: 1\nname: own\nmode: estimate\nsource: {kind: videos, name: v, root: "
    (tmp_path / "videos.yaml").write_text(f'{root}"{path}"}}\n', encoding="utf-8")
    with pytest.raises(RecipeError, match=r"source\.root: .* holds control characters"):
        load_recipe(tmp_path / "videos.yaml")
    with pytest.raises(RecipeError, match=r"source\.root: .* holds control characters"):
        load_recipe("videos", [f'source.root="{path}"'])
    for quote in ("'", ""):
        own.write_text(f"{text}{quote}{path}{quote}\n", encoding="utf-8")
        weights = load_train_recipe(own).start.weights
        assert weights is not None
        assert weights.endswith(path)
