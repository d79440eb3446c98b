"""The plan of the corpus: the paper's table, counts from tables alone, and figures that all come from a measurement."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from theodolite.recipes.cli import app
from theodolite.recipes.corpus.costs import ALL_COSTS, held_gpu_s
from theodolite.recipes.corpus.plan import plan_source, run_plan_command
from theodolite.recipes.loader import PACKAGED, RecipeError, load_recipe, recipe_hash
from typer.testing import CliRunner

from ..typed import known

CORPUS = sorted(PACKAGED.glob("corpus/*.yaml"))
PAPER = {
    "spatialvid-hq": (158_369, 10, "estimate"),
    "dl3dv": (5_691, 10, "given_pose"),
    "dl3dv-gs": (14_881, 60, "given_pose"),
    "omniworld": (1_720, 60, "given_depth"),
    "sekai-game": (3_560, 60, "given_pose"),
    "sekai-walking": (9_767, 60, "estimate"),
    "miradata": (18_987, 60, "estimate"),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recipes(tmp_path: Path):
    return [load_recipe(path, [f"source.root={tmp_path}"]) for path in CORPUS]


def test_the_papers_table(tmp_path: Path) -> None:
    found = {r.name: r for r in recipes(tmp_path)}
    for name, (clips, seconds, mode) in PAPER.items():
        recipe = found[name]
        corpus = known(recipe.corpus)
        assert (corpus.paper_clips, corpus.clip_s, recipe.mode) == (clips, seconds, mode)
        windows = vars(recipe.source)["windows"]
        if windows is not None:
            assert windows.frames == 16 * seconds + 1
    done = CliRunner().invoke(
        app, ["plan", *map(str, CORPUS), "--set", f"source.root={tmp_path}", "--gpus", "8"]
    )
    assert done.exit_code == 0, done.output
    for clips, _, _ in PAPER.values():
        assert f"{clips:,}" in done.output
    (total,) = re.findall(r"^in all.*$", done.output, re.MULTILINE)
    assert "212,975" in total
    for cost in ALL_COSTS:
        assert (
            f"{cost.seconds:g} s of a {cost.of} for a clip of {cost.clip_s:g} s ({cost.measured})"
            in done.output
        )


def test_gpu_hours_are_clips_times_the_measured_seconds(tmp_path: Path) -> None:
    plans = {r.name: plan_source(r, gpus=8) for r in recipes(tmp_path)}
    assert plans["spatialvid-hq"].gpu_h == pytest.approx(158_369 * 2.0 / 3600)
    assert plans["miradata"].gpu_h == pytest.approx(18_987 * 13.2 / 3600)
    assert plans["miradata"].days == pytest.approx(18_987 * 13.2 / 3600 / 24 / 8)
    assert held_gpu_s(60) == pytest.approx(13.2)
    # Shipped depth needs no network: cores alone.
    assert (plans["omniworld"].gpu_h, plans["omniworld"].networks_gpu_h) == (0, 0)
    assert plans["omniworld"].days == pytest.approx(1_720 * 128 / 3600 / 24 / (8 * 16))


def test_tables_count_before_anything_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "DL3DV-valid.csv").write_text(
        "hash,sensibility label,batch,duration\na,0,1K,69.3\nb,0,problem,\nc,0,1K,0.12\n"
    )
    (tmp_path / "SpatialVID_HQ_metadata.csv").write_text(
        "id,group id,num frames,fps\n"
        + "".join(f"{i},1,{n},30.0\n" for i, n in enumerate((90, 301, 302, 450)))
    )
    walks = "".join(
        f"{v}_0000000_{n:07d}.mp4,c\n" for v, n in (("--a", 1800), ("b_c", 1800), ("d", 900), ("b_c", 1800))
    )
    (tmp_path / "sekai-real-walking-hq.csv").write_text("\ufeffvideoFile,caption\n" + walks)
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata/omniworld_game_metadata.csv").write_text(
        "UID,Img Num,Split Num,FPS,Resolution\nb04f88d1f85a,2890,8,24.0,1280×720\n"
    )
    plans = {r.name: plan_source(r, gpus=1) for r in recipes(tmp_path)}
    assert (plans["dl3dv"].clips, plans["dl3dv"].counted) == (6, "table")  # 69.3 s hold 1109 frames
    assert plans["spatialvid-hq"].clips == 3  # 161 frames need 301 at 30 fps
    assert plans["sekai-walking"].clips == 2  # one twice, one too short
    assert (plans["omniworld"].clips, plans["omniworld"].counted) == (2, "table, at most")
    assert plans["miradata"].counted == "paper"
    text, code = run_plan_command(recipes(tmp_path), gpus=1)
    assert code == 0
    assert "table, at most" in text


def test_a_plan_of_another_kind_of_recipe() -> None:
    with pytest.raises(RecipeError, match="needs a source of kind release and the section corpus"):
        plan_source(load_recipe("rgbd"), gpus=1)


def test_corpus_fetch_and_filters_change_no_row(tmp_path: Path) -> None:
    recipe = load_recipe("corpus/miradata")
    bare = recipe.model_copy(update={"corpus": None, "fetch": None, "filters": None})
    assert recipe_hash(bare) == recipe_hash(recipe)
    other = load_recipe("corpus/miradata", ["source.windows.frames=161"])
    assert recipe_hash(other) != recipe_hash(recipe)


@pytest.mark.slow
def test_unpack_command(tmp_path: Path) -> None:
    import io
    import tarfile

    root = tmp_path / "data"
    path = root / "videos/group_0001.tar.gz"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as archive:
        for name in ("group_0001/a.mp4", "../group_0001/b.mp4"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
    arguments = ["unpack", "corpus/spatialvid-hq", "--set", f"source.root={root}"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "archive_member_unsafe: videos/group_0001.tar.gz: member '../group_0001/b.mp4'" in done.output
    again = CliRunner().invoke(app, [*arguments, "--drop"])
    assert again.exit_code == 0
    assert "0 unpacked now" in again.output
    assert not path.exists()
    assert (root / "videos/group_0001/a.mp4").is_file()
    nothing = CliRunner().invoke(
        app, ["unpack", "corpus/spatialvid-hq", "--set", f"source.root={tmp_path / 'x'}"]
    )
    assert nothing.exit_code == 2
    assert "holds no archive of this release" in nothing.output
