"""Truth and media of a dataset are found again through the recipe beside it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import write_clip
from theodolite.annotate.rendered.render import render_clip
from theodolite.dataset.camera_files.load import load_cameras
from theodolite.dataset.camera_files.match import Matching
from theodolite.dataset.compact import compact
from theodolite.dataset.export import export_dataset
from theodolite.dataset.formats.trajectories import write_tum
from theodolite.dataset.publish import stage_publication
from theodolite.dataset.report.inspect import inspect_text
from theodolite.dataset.report.write import write_report
from theodolite.dataset.rows import Row
from theodolite.dataset.store import prepare_output, write_part
from theodolite.dataset.validate import validate_dataset
from theodolite.recipes.commands.datasets import filter_
from theodolite.recipes.loader import load_recipe, media_root_of_dataset, recipe_hash, write_run_record
from theodolite.recipes.run import RunOptions, run_annotate
from theodolite.recipes.truth import report_sources, truth_of_dataset


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    config = RenderConfig(
        width=192, height=96, num_frames=40, fps=32.0, seed=1, zoom="ramp", moving_object=False
    )
    clip = render_clip(config)
    files = write_clip(clip, tmp_path_factory.mktemp("rendered") / "scene", depth_units_per_metre=None)
    return clip, files


@pytest.fixture
def dataset(tmp_path, rendered):
    """A dataset of one rendered clip, seen at half size on every second source frame; rows written by hand."""
    clip, files = rendered
    shutil.copytree(files.media_path.parent, tmp_path / "scene")
    entry = {
        "clip_id": "a",
        "media_path": "scene/rgb.mp4",
        "truth_camera_to_world_path": f"scene/{files.camera_to_world_path.name}",
        "truth_intrinsics_path": f"scene/{files.intrinsics_path.name}",
    }
    (tmp_path / "clips.yaml").write_text(
        yaml.safe_dump({"clips": [entry, {"clip_id": "b", "media_path": "b.mp4"}]})
    )
    recipe = load_recipe(
        "rgbd", [f"source.index={tmp_path / 'clips.yaml'}", "annotate.decode.max_side_px=96"]
    )
    out = tmp_path / "out"
    digest = recipe_hash(recipe)
    prepare_output(out, recipe_hash=digest)
    rows = [
        Row(
            clip_id=name,
            source="rgbd",
            original_id=name,
            media_kind="video",
            media=f"scene/{name}.mp4",
            mode="given_depth",
            data_licence="CC0-1.0",
            data_redistributable=True,
            stand_in=False,
            recipe_hash=digest,
            package_version="0",
            verdict="rejected",
            reasons=("no_metric_scale",),
            reason_details=("none",),
            height=48 if name == "a" else 0,
            width=96 if name == "a" else 0,
            frame_index=np.arange(0, 40, 2, dtype=np.int32) if name == "a" else np.zeros(0, np.int32),
            time_s=np.arange(20) / 16 if name == "a" else np.zeros(0),
        )
        for name in ("a", "b")
    ]
    write_part(out, rows, shard_id="0", recipe_hash=digest)
    write_run_record(out, recipe, started="2026-01-01", ended=None, command=[], result={})
    return out, clip


@pytest.mark.slow
def test_truth_is_for_the_stored_frames_and_size(dataset):
    out, rendered = dataset
    resolved = out / "recipe.resolved.yaml"
    of_today = resolved.read_text()
    resolved.write_text(of_today.replace("min_kept_share:", "min_held_share:"))  # of the version before
    assert resolved.read_text() != of_today
    truth = truth_of_dataset(out)
    assert set(truth) == {"a"}
    poses, focal_px = truth["a"].camera_to_world, truth["a"].focal_px
    assert poses is not None
    assert focal_px is not None
    np.testing.assert_allclose(poses, rendered.camera_to_world[::2], atol=1e-9)
    np.testing.assert_allclose(focal_px[:, 0], rendered.intrinsics[::2, 0, 0] / 2, rtol=1e-8)
    assert focal_px[-1, 0] > 1.2 * focal_px[0, 0]  # it zooms: frames are not mixed up


@pytest.mark.slow
def test_truth_that_is_too_short_costs_its_overlay_and_nothing_else(dataset):
    out, _ = dataset
    path = out.parent / "scene" / "poses_c2w.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:30]))
    truth = truth_of_dataset(out)["a"]
    assert truth.camera_to_world is None
    assert "30 rows without times, but the clip has 20 frames, up to source frame 38" in (truth.problem or "")
    assert str(path) in (truth.problem or "")
    assert truth.focal_px is not None  # that file is whole
    sources = report_sources(out)
    assert sources.truth is not None
    assert sources.notes == ()


@pytest.mark.slow
def test_a_report_outlives_its_source(dataset):
    out, _ = dataset
    (out.parent / "clips.yaml").unlink()
    sources = report_sources(out)
    assert sources.truth is None
    assert "no ground truth" in sources.notes[0]
    (out / "recipe.resolved.yaml").write_text("name: 3")
    assert len(report_sources(out).notes) == 2


@pytest.mark.slow
def test_truth_with_times_is_shown_at_the_frames_of_these_times(dataset):
    out, rendered = dataset
    path = out.parent / "scene" / "poses_c2w.txt"
    write_tum(path, rendered.camera_to_world[::-1], 100 - np.arange(40)[::-1] / 32)
    poses = truth_of_dataset(out, matching=Matching(offset_s=100 - 39 / 32))["a"].camera_to_world
    assert poses is not None
    np.testing.assert_allclose(poses, rendered.camera_to_world[::-2], atol=1e-9)


@pytest.mark.slow
def test_a_dataset_without_its_recipe_has_no_truth(dataset):
    out, _ = dataset
    assert media_root_of_dataset(out) == out.parent
    (out / "recipe.resolved.yaml").unlink()
    assert truth_of_dataset(out) == {}


def test_rows_point_to_media_below_the_root(tmp_path):
    (tmp_path / "notes.mp4").write_text("no video")
    recipe = load_recipe("videos", [f"source.root={tmp_path}"])
    summary, code = run_annotate(recipe, tmp_path / "out", RunOptions(workers=0), show_progress=False)
    assert code == 1
    assert "notes: unreadable_video" in summary
    from theodolite.dataset.reading import open_dataset

    assert open_dataset(tmp_path / "out").row("notes").media == "notes.mp4"


# --- the same run again, elsewhere -----------------------------------------------------------------------


def videos(folder: Path, *names: str, content: bytes = b"no video") -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / f"{name}.mp4").write_bytes(content)
    return folder


def annotate(root: Path, out: Path, *sets: str, **options) -> tuple[str, int]:
    recipe = load_recipe("videos", [f"source.root={root}", *sets])
    return run_annotate(recipe, out, RunOptions(workers=0, **options), show_progress=False)


def test_a_run_goes_on_after_its_data_have_moved(tmp_path):
    root, out = videos(tmp_path / "a", "one", "two"), tmp_path / "out"
    annotate(root, out, limit=1)
    root.rename(tmp_path / "b")
    text, _ = annotate(tmp_path / "b", out, "annotate.geometry.device=cpu")
    assert "2 clips: 0 accepted, 0 rejected, 2 failed" in text
    # Reports look for the media where they are now, also if nothing was left to do.
    (tmp_path / "b").rename(tmp_path / "c")
    annotate(tmp_path / "c", out)
    assert media_root_of_dataset(out) == tmp_path / "c"
    # A copy of the same files is the same source, too.
    shutil.copytree(tmp_path / "c", tmp_path / "d")
    annotate(tmp_path / "d", out)


def test_media_are_found_beside_a_recipe_whose_other_keys_are_of_another_version(tmp_path):
    resolved = tmp_path / "recipe.resolved.yaml"
    content = {
        "schema_version": 1,
        "annotate": {"gates": {"a_gate_that_was": 0.3}},
        "source": {"kind": "videos", "name": "mine", "root": str(tmp_path / "videos"), "data_licence": "MIT"},
    }
    resolved.write_text(yaml.safe_dump(content))
    assert media_root_of_dataset(tmp_path) == tmp_path / "videos"
    del content["source"]
    resolved.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="source"):
        media_root_of_dataset(tmp_path)


def test_other_clips_do_not_count_as_done(tmp_path):
    out = tmp_path / "out"
    annotate(videos(tmp_path / "a", "one", "two"), out)
    before = sorted(p.name for p in out.rglob("*"))
    for kind, other in {
        "another file than": videos(tmp_path / "b", "one", "two", content=b"another video"),
        "none of which is in": videos(tmp_path / "c", "three"),
    }.items():
        for dry_run in (True, False):
            with pytest.raises(ValueError, match=rf"{kind}.*choose another --out"):
                annotate(other, out, dry_run=dry_run)
    assert sorted(p.name for p in out.rglob("*")) == before


def test_dry_run_finds_what_a_run_would_refuse(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    root = videos(tmp_path / "a", "one")
    with pytest.raises(ValueError, match="weights pull pi3x"):
        run_annotate(
            load_recipe("estimate", [f"source.root={root}"]), tmp_path / "out", RunOptions(dry_run=True)
        )
    foreign = tmp_path / "foreign"
    annotate(root, foreign, "annotate.decode.max_frames=10")
    with pytest.raises(ValueError, match="was written with recipe hash"):
        annotate(root, foreign, dry_run=True)
    (foreign / "dataset.json").write_text("damaged")
    with pytest.raises(ValueError, match="is no JSON object"):
        annotate(root, foreign, dry_run=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        annotate(root, tmp_path / "file", dry_run=True)
    assert not (tmp_path / "out").exists()


def test_a_folder_above_several_runs_is_refused_by_all(tmp_path):
    root, runs = videos(tmp_path / "a", "one"), tmp_path / "runs"
    for name in ("x", "y"):
        annotate(root, runs / name)
    for act in (
        lambda: annotate(root, runs),
        lambda: annotate(root, runs, dry_run=True),
        lambda: inspect_text(runs),
        lambda: write_report(runs, tmp_path / "report.html"),
        lambda: validate_dataset(runs),
        lambda: export_dataset(runs, tmp_path / "export", format="tum"),
        lambda: stage_publication(runs, tmp_path / "staging", use="research"),
        lambda: load_cameras(runs),
        lambda: compact(runs),
        lambda: filter_(runs),
    ):
        with pytest.raises(ValueError, match=r"runs: (lies above|holds) whole datasets \(x, y\)"):
            act()
    assert sorted(p.name for p in runs.iterdir()) == ["x", "y"]


def test_a_hub_that_is_not_reached_is_said(monkeypatch):
    class Hub:
        def glob(self, pattern):
            raise type("TransportError", (Exception,), {})("no route")

    monkeypatch.setattr("huggingface_hub.HfFileSystem", Hub)
    for name in ("owner/name", Path("owner/name")):
        with pytest.raises(
            ValueError, match=r"owner/name: no folder here.*the hub was not reached: no route"
        ):
            inspect_text(name)
        with pytest.raises(ValueError, match=r"owner/name: no folder here.*the hub was not reached"):
            load_cameras(name)
    for act in (validate_dataset, compact, stage_publication):  # these read no hub
        with pytest.raises(
            ValueError, match=r"owner/name: no such folder or file here; .*: hf download owner/name"
        ):
            act("owner/name", *([Path("staging")] if act is stage_publication else []))
    with pytest.raises(ValueError, match="no such file or folder, nor a hub id"):
        load_cameras("owner/cameras.txt")  # a file that is not there
    with pytest.raises(ValueError, match="no such folder"):
        inspect_text(Path("./owner/name/deeper"))


@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_source_is_listed_once(tmp_path, monkeypatch, meanwhile):
    """A table of a million clips takes a minute. What another run does before the folder is held is not done again."""
    import theodolite.recipes.run as module

    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(b"no video")
    recipe = load_recipe("videos", [f"source.root={tmp_path}", "output.clips_per_shard=1"])
    out = tmp_path / "out"
    listings = []
    read_clips, check_decoder = module.read_clips, module.check_decoder

    def counted(source):
        listings.append(source)
        return read_clips(source)

    def in_between(config):
        monkeypatch.setattr(module, "check_decoder", check_decoder)
        if meanwhile:
            run_annotate(recipe, out, RunOptions(workers=0), show_progress=False)
            listings.clear()

    monkeypatch.setattr(module, "read_clips", counted)
    monkeypatch.setattr(module, "check_decoder", in_between)
    text, code = run_annotate(recipe, out, RunOptions(workers=0), show_progress=False)
    assert code == 1
    assert "3 failed" in text
    assert len(listings) == (0 if meanwhile else 1)
