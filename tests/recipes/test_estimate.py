"""`mode: estimate` from the command: stand-in networks over a real clip, and what is missing said before any work."""

import json
from pathlib import Path

import pytest
from theodolite.dataset.reading import open_dataset
from theodolite.recipes.commands.datasets import validate
from theodolite.recipes.loader import load_recipe
from theodolite.recipes.run import RunOptions, run_annotate

from ..support import SHARED, run_here
from ..typed import known

CLIPS = SHARED / "clips"
TINY = (
    "annotate.geometry.weights=stand_in",
    "annotate.geometry.stand_in_size=tiny",
    "annotate.geometry.device=cpu",
    "annotate.geometry.pi3x.max_pixels=5000",
    "annotate.decode.max_side_px=320",
    "annotate.decode.max_frames=13",
    "annotate.tracks={num_flow_tracks: 60, num_descriptors: 150}",
)


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has fetched before."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def stand_in_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real hand-held clip and a generated one through the whole recipe with tiny random networks."""
    if not (CLIPS / "handheld-forward-1080p.mov").is_file():
        pytest.skip(f"needs the real clips in {CLIPS}")
    videos = tmp_path_factory.mktemp("videos")
    for name in ("handheld-forward-1080p.mov", "generated-walk-16fps.mp4"):
        (videos / name).symlink_to(CLIPS / name)
    out = tmp_path_factory.mktemp("run") / "dataset"
    recipe = load_recipe("estimate", [f"source.root={videos}", *TINY])
    run_annotate(recipe, out, RunOptions(workers=0), show_progress=False)
    return out


@pytest.mark.slow
def test_every_row_is_marked_and_complete(stand_in_run: Path):
    dataset = open_dataset(stand_in_run)
    ids = dataset.to_table(["clip_id"])["clip_id"].to_pylist()
    assert len(ids) == 2
    for clip_id in ids:
        row = dataset.row(clip_id)
        assert row.stand_in
        assert row.weights == ("stand-in:pi3x-tiny", "stand-in:moge-2-tiny")
        assert len(row.weight_licences) == 2
        assert row.error is None, row.error
        # Random depth cannot pass for geometry: either a reason, or every number that a verdict needs.
        assert row.verdict == "rejected" or len(known(row.camera_to_world)) == row.num_frames
        assert row.metres_per_unit != 1.0
        # A machine is tried to the end: random numbers are made a scene, so that no clip stops at its scale.
        stages = {"open", "tracks", "geometry", "scale", "networks_busy", "start", "bundle", "total"}
        assert set(known(row.stage_wall_s)) >= stages


@pytest.mark.slow
def test_stand_ins_leave_nowhere(stand_in_run: Path, tmp_path: Path):
    text, code = validate(stand_in_run)
    assert code == 1
    assert "no_stand_in" in text
    done = run_here("publish", stand_in_run, "owner/name", "--staging", tmp_path / "s", "--dry-run")
    assert done.returncode != 0
    assert "stand-in" in done.stderr
    for style in ("tum", "colmap"):
        done = run_here("export", stand_in_run, "--out", tmp_path / style, "--format", style)
        assert done.returncode != 0
    assert not (tmp_path / "tum").exists() or not list((tmp_path / "tum").iterdir())


@pytest.mark.slow
def test_missing_weights_are_one_error_before_any_work(tmp_path: Path):
    (tmp_path / "clip.mp4").write_bytes(b"never opened")
    out = tmp_path / "out"
    done = run_here("annotate", "estimate", "--set", f"source.root={tmp_path}", "--out", out, "--workers", 0)
    assert done.returncode == 2
    assert not out.exists()
    # Both networks in one message, each with what to do.
    assert "weights pi3x" in done.stderr
    assert "weights moge-2-vitl-normal" in done.stderr
    assert "Traceback" not in done.stderr
    commit = "0" * 40
    done = run_here(
        "annotate", "estimate", "--set", f"source.root={tmp_path}", "--out", out,
        "--set", f"annotate.geometry.pi3x.revision='{commit}'",
        "--set", f"annotate.geometry.moge2.revision='{commit}'"
    )  # fmt: skip
    assert done.returncode == 2
    assert f"theodolite weights pull pi3x --revision {commit}" in done.stderr
    assert not out.exists()


@pytest.mark.slow
def test_wrong_digests_devices_and_pairs(tmp_path: Path):
    (tmp_path / "clip.mp4").write_bytes(b"never opened")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"not these")
    done = run_here(
        "annotate", "estimate", "--set", f"source.root={tmp_path}", "--out", tmp_path / "out",
        "--set", f"annotate.geometry.pi3x.path={weights}",
        "--set", f"annotate.geometry.pi3x.sha256={'a' * 64}",
        "--set", f"annotate.geometry.moge2.path={tmp_path / 'none.pt'}",
        "--set", "annotate.geometry.device=cuda:77x"
    )  # fmt: skip
    assert done.returncode == 2
    # A file that is none of the kind is told by its header, before anything is hashed.
    for part in ("model.safetensors is no safetensors file", "none.pt", "cuda:77x"):
        assert part in done.stderr
    assert not (tmp_path / "out").exists()
    done = run_here(
        "annotate", "rgbd", "--set", f"source.index={tmp_path / 'clips.yaml'}", "--out", tmp_path / "out",
        "--set", "annotate.geometry.anchor=moge2"
    )  # fmt: skip
    assert done.returncode == 2


@pytest.mark.slow
def test_the_record_names_the_stand_ins(stand_in_run: Path):
    resolved = load_recipe(stand_in_run / "recipe.resolved.yaml")
    assert resolved.annotate.geometry.weights == "stand_in"
    assert json.loads((stand_in_run / "run.json").read_text())["runs"][-1]["ended"]
