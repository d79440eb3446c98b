"""`theodolite train`: packaged recipes, dry runs, and a smoke run by Lightning that is ended and goes on."""

from __future__ import annotations

import csv
import json
import re
import signal
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from theodolite.annotate.rendered.files import write_png
from theodolite.dataset.encoded import begin as begin_encoded
from theodolite.dataset.encoded import write_shard
from theodolite.dataset.media.read import count_video_frames
from theodolite.model.checkpoint import load_world_model
from theodolite.recipes import training, trajectories
from theodolite.recipes.loader import PACKAGED
from theodolite.recipes.training import load_train_recipe, run_train, train_recipes
from theodolite.recipes.trajectories import TrajectoryJob, run_trajectories
from theodolite.train.recipe import TrainRecipe
from theodolite.train.run import Metrics, _Signals, check_devices, num_devices
from theodolite.train.state import checkpoints
from theodolite.train.student import StudentConfig
from theodolite.train.training import Training
from theodolite.train.trajectories import TrajectoryOptions, TrajectoryRecord, begin

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from encoded_clips import encoded_clip, encoding, write_encoded

from ..model.release import write_release
from ..support import run_here

STAND_IN = dict(text_tokens=10, stand_in=True)
TINY = ["model.text_tokens=10", "model.depth=2", "model.softmax_every=2", "parallel.recompute=nothing"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoded(tmp_path_factory.mktemp("encoded") / "data", 4, **STAND_IN)


@pytest.mark.parametrize("name", train_recipes())
def test_packaged_recipes_hold(name: str) -> None:
    recipe = load_train_recipe(name)
    assert recipe.name == name
    assert TrainRecipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ((), PACKAGED / "train/stage2.safetensors"),
        (("start.weights=stage2.safetensors",), "stage2.safetensors"),  # the name of the file's own
        (("start={weights: w/a.safetensors}",), "w/a.safetensors"),
        (("start.weights=released/bidirectional",), None),
    ],
)
def test_files_lie_beside_the_recipe_or_where_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: tuple[str, ...], found: Path | str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = load_train_recipe("stage3", override).start.weights
    assert weights == ("released/bidirectional" if found is None else str(tmp_path / found))


def test_every_recipe_has_a_smoke_sibling() -> None:
    names = train_recipes()
    assert all(f"{name}_smoke" in names for name in names if not name.endswith("_smoke"))


def test_recipe_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"optimizer: unknown key"):
        load_train_recipe("finetune", ["optimizer.lr=1"])
    with pytest.raises(ValueError, match=r"trainings that come with theodolite: .*finetune"):
        load_train_recipe("stage7")


@pytest.mark.slow
def test_clips_are_not_trained_into(data: Path) -> None:
    pytest.importorskip("lightning")
    recipe = load_train_recipe("finetune_smoke", TINY)
    with pytest.raises(ValueError, match="holds encoded clips; choose another --out"):
        run_train(recipe, [data], data, accelerator="cpu")
    options = TrajectoryOptions(student=StudentConfig(frames=5))
    record = TrajectoryRecord(teacher="x", autoencoder="y", options=options)
    with pytest.raises(ValueError, match="holds encoded clips; choose another --out"):
        begin(data, record)


def test_devices_that_are_not_there_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is loaded; what torchrun started is what there is."""
    recipe = load_train_recipe("stage3", ["parallel.devices=8"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="--accelerator gpu: torch finds no GPU here"):
        check_devices(recipe, "gpu")
    check_devices(recipe, "cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match="8 GPUs are asked for, this machine has 2"):
        check_devices(recipe, "auto")
    check_devices(recipe, "cpu")
    started = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"parallel.devices 8: torchrun started 4 ranks"):
        check_devices(recipe, "cpu")
    recipe = load_train_recipe("stage3")
    with pytest.raises(ValueError, match=r"parallel.nodes 1: torchrun started 8 .*--set parallel.nodes=2"):
        check_devices(recipe, "cpu")
    recipe = load_train_recipe("stage3", ["parallel.nodes=2"])
    check_devices(recipe, "cpu")
    assert num_devices(recipe, "cpu") == 4
    with pytest.raises(ValueError, match="4 GPUs are asked for, this machine has 2"):
        check_devices(recipe, "auto")


@pytest.mark.slow
def test_ranks_of_a_run_that_fails_are_ended(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that Lightning started would wait for the first one, and hold their GPUs."""
    lightning = pytest.importorskip("lightning")
    ended: list[int] = []

    class Fails(lightning.Trainer):
        error: BaseException = OSError(28, "No space left on device")

        def fit(self, module: object) -> None:
            self.strategy._launcher = SimpleNamespace(kill=ended.append)
            try:
                raise self.error
            except KeyboardInterrupt:
                sys.exit(1)  # as Lightning does

    monkeypatch.setattr(lightning, "Trainer", Fails)
    recipe = load_train_recipe("finetune_smoke", TINY)
    with pytest.raises(OSError, match="No space left"):
        run_train(recipe, [data], tmp_path / "r", accelerator="cpu")
    Fails.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_train(recipe, [data], tmp_path / "r", accelerator="cpu")
    assert ended == [signal.SIGKILL] * 2


def test_ctrl_c_ends_after_the_step_and_twice_at_once() -> None:
    signals, before = _Signals(), signal.getsignal(signal.SIGINT)
    signals.hear()
    signal.raise_signal(signal.SIGINT)
    assert signals.received == "SIGINT"
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    signals.forget()
    assert signal.getsignal(signal.SIGINT) is before


def test_loggers_that_are_not_installed_are_told_before_anything_is_made(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightning")
    monkeypatch.setattr("theodolite.train.run.find_spec", lambda name: None)
    for name in ("tensorboard", "wandb"):
        recipe = load_train_recipe("finetune_smoke", [*TINY, f"log.loggers=[csv, {name}]"])
        with pytest.raises(ModuleNotFoundError, match=rf"log\.loggers {name}: .*: pip install {name}"):
            run_train(recipe, [data], tmp_path / "r", accelerator="cpu")
    assert not (tmp_path / "r").exists()


def test_figures_that_cannot_be_written_name_their_file(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.csv", [], from_step=0)
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"figures of step 3 cannot be written \(No space.*metrics.csv"):
        metrics.add(3, {"loss": 1.0})


def test_figures_that_a_power_cut_leaves_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,loss\n1,0.5\n2\n3,\0\0\n2,0.25\n3,0.1\n\xff\xff")
    Metrics(path, [], from_step=2)
    with path.open() as file:
        assert [(row["step"], row["loss"]) for row in csv.DictReader(file)] == [("1", "0.5"), ("2", "0.25")]


def test_a_dry_run_counts_batch_average_sharding_and_disk(data: Path, tmp_path: Path) -> None:
    def plan(*changes: str) -> str:
        recipe = load_train_recipe("stage4_smoke", [*TINY, "model.width=768", "model.heads=6", *changes])
        return run_train(recipe, [data], tmp_path / "r", dry_run=True)[0]

    def gb(text: str, what: str) -> float:
        return sum(float(line.split()[1]) for line in text.splitlines() if what in line)

    alone, weights = plan(), 16 * 35.8e-3
    assert gb(alone, "AdamW") == pytest.approx(weights, abs=0.02)
    assert gb(plan("data.batch=200"), "kept by all") == pytest.approx(
        200 * 36 * 30 * 768 * 2 * 2e-9, rel=0.02
    )
    assert gb(plan("precision=float32", "data.batch=200"), "kept by all") == pytest.approx(
        2 * gb(plan("data.batch=200"), "kept by all"), abs=0.02
    )
    assert gb(plan("ema=0.9"), "average") == pytest.approx(weights / 4, abs=0.01)
    assert gb(plan("parallel.devices=4"), "AdamW") == pytest.approx(weights / 4, abs=0.01)
    assert gb(plan("parallel.devices=4", "parallel.sharding=replicate"), "AdamW") == gb(alone, "AdamW")
    assert gb(alone, "disk") == pytest.approx(0.75 * weights, abs=0.01)
    assert "3 of them at most; 0.14 GB of weights" in alone


def test_a_dry_run_says_what_it_takes_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    text, code = run_train(load_train_recipe("stage4_smoke", TINY), [data], tmp_path / "r", dry_run=True)
    assert code == 0
    assert "chunk-causal" in text
    assert "3 windows to train on" in text
    assert "CC-BY-4.0" in text
    assert "not measured" in text
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_a_dry_run_needs_no_released_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a LoRA fits is asked before gigabytes are fetched: the release's sizes are known."""

    def locate(name: str) -> Path:
        raise ValueError(f"weights {name} are not on this machine; run: theodolite weights pull {name}")

    monkeypatch.setattr("theodolite.train.start.locate", locate)
    empty = (torch.zeros(300, 2304), torch.ones(300, dtype=torch.bool))
    begin_encoded(tmp_path, encoding(latent_channels=128, text_width=2304, text_tokens=300), empty)
    clip = replace(encoded_clip(0, channels=128), text=empty[0], text_mask=empty[1])
    write_shard(tmp_path, [clip])
    changes = ["data.held_out=0", "validation.every=0"]
    text, code = run_train(
        load_train_recipe("finetune_lora", changes), [tmp_path], tmp_path / "r", dry_run=True
    )
    assert code == 0
    assert re.search(r"GB  a GPU.* by counting; leave 1\.5 GB", text)
    assert "start    weights sana-wm-bidirectional are not on this machine" in text
    other = load_train_recipe("finetune_lora", [*changes, "start.weights=released/other"])
    with pytest.raises(ValueError, match=r"start\.weights released/other: use released/ with one of"):
        run_train(other, [tmp_path], tmp_path / "r", dry_run=True)


def killed(*_: object) -> list[Path]:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_that_is_ended_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps, and after the last one before its weights are written."""
    pytest.importorskip("lightning")
    out = tmp_path / "r"
    recipe = load_train_recipe("finetune_smoke", [*TINY, "steps=4", "log.every=1", "validation.every=4"])
    lines: list[str] = []

    def say(text: str) -> None:
        lines.append(text)
        if text.startswith("step 2/"):
            signal.raise_signal(signal.SIGTERM)

    text, code = run_train(recipe, [data], out, say=say, accelerator="cpu")
    assert code == 130, text
    assert "stopped by SIGTERM after step 2" in text
    lines.clear()
    with pytest.raises(ValueError, match="--resume goes on"):
        run_train(recipe, [data], out, accelerator="cpu")
    other = load_train_recipe("finetune_smoke", [*TINY, "steps=4", "optimiser.lr=5"])
    with pytest.raises(ValueError, match=r"optimiser.lr: 0.001 -> 5.0"):
        run_train(other, [data], out, resume=True, accelerator="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(Training, "export", killed)
        with pytest.raises(KeyboardInterrupt):
            run_train(recipe, [data], out, resume=True, accelerator="cpu")
    assert checkpoints(out / "checkpoints")[-1].name == "step-00000004"
    assert not (out / "weights").exists()
    more = load_train_recipe("finetune_smoke", [*TINY, "steps=4", "log.every=1", "validation.every=2"])
    text, code = run_train(more, [data], out, resume=True, say=lines.append, accelerator="cpu")
    assert code == 0, text
    assert "goes on otherwise than before: validation.every: 4 -> 2" in lines
    assert text.startswith(f"{out}: 4 steps\nweights: ")
    with (out / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]
    runs = json.loads((out / "run.json").read_text())["runs"]
    assert [run["result"] and run["result"]["stopped"] for run in runs] == ["SIGTERM", None, None]
    assert sorted(p.name for p in (out / "weights").iterdir()) == [
        "step-00000004-average.safetensors",
        "step-00000004.safetensors",
    ]
    with pytest.raises(ValueError, match="has done its 4 steps"):
        run_train(recipe, [data], out, resume=True, accelerator="cpu")


@pytest.mark.parametrize("result", ["ended", [4], 4, {"step": "four"}, {"step": None}, {"step": 3}, None])
def test_a_run_with_an_odd_result_is_none_that_came_to_its_end(tmp_path: Path, result: object) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"runs": [{"result": result}]}))
    assert not training._is_finished(tmp_path, 4)
    (tmp_path / "run.json").write_text(json.dumps({"runs": [{"result": result}, {"result": {"step": 4}}]}))
    assert training._is_finished(tmp_path, 4)


SMALL = [*TINY, "steps=2", "log.every=1", "checkpoint.every=1"]


def smoke(name: str, data: Path, out: Path, *overrides: str) -> Path:
    """Weights that a packaged smoke recipe leaves after two steps."""
    small = [s for s in SMALL if name.startswith("stage") or not s.startswith("model.")]
    text, code = run_train(load_train_recipe(name, [*small, *overrides]), [data], out, accelerator="cpu")
    assert code == 0, text
    return out / "weights" / "step-00000002.safetensors"


def shards(job: TrajectoryJob) -> list[Path]:
    return sorted((job.out / "shards").iterdir())


@pytest.mark.slow
def test_the_student_is_made_by_commands(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 4, its trajectories, regression, self-forcing and its longer part, by the packaged smoke recipes; the plan
    of three networks; weights that `generate` reads as a distilled model's."""
    pytest.importorskip("lightning")
    both = smoke("stage3_smoke", data, tmp_path / "stage3")
    causal = smoke("stage4_smoke", data, tmp_path / "stage4", f"start.weights={both}", "model=null")
    options = TrajectoryOptions(student=StudentConfig(frames=5, chunk=1), steps=4, guidance=2.0)
    job = TrajectoryJob(
        data=[data], out=tmp_path / "paths", weights=str(causal), options=options, device="cpu", part="1/2"
    )
    assert "2 windows of 5 latent frames; 0 are recorded" in run_trajectories(job, dry_run=True)[0]
    assert not job.out.exists()
    assert run_trajectories(job)[0].endswith("2 trajectories recorded, 0 were there, 0 failed")
    text, code = run_trajectories(replace(job, part="1/1"))
    assert code == 0
    assert text.endswith("2 trajectories recorded, 2 were there, 0 failed")
    together = replace(job, part="1/1", batch=3, out=tmp_path / "together")
    assert run_trajectories(together)[0].endswith("4 trajectories recorded, 0 were there, 0 failed")
    for path in shards(job):  # stored in bfloat16: a last digit may differ
        one, all_ = (load_file(p)["trajectory"].float() for p in (path, together.out / "shards" / path.name))
        assert one.allclose(all_, rtol=2**-7, atol=1e-5), path.name
    with pytest.raises(ValueError, match="teacher takes chunk-causal"):
        run_trajectories(replace(job, weights=str(both)))
    with monkeypatch.context() as patch:  # one that comes to nothing costs itself alone
        made = torch.stack([load_file(p)["trajectory"].float().transpose(1, 2) for p in shards(together)])
        made[1] = torch.nan
        patch.setattr(trajectories, "teacher_trajectory", lambda *_: made)
        said: list[str] = []
        text, code = run_trajectories(replace(together, batch=4, out=tmp_path / "one"), say=said.append)
    assert code == 1
    assert text.endswith("3 trajectories recorded, 0 were there, 1 failed")
    assert "the teacher's trajectory is not finite" in said[0]
    student = smoke(
        "ode_init_smoke",
        data,
        tmp_path / "ode",
        f"start.weights={causal}",
        f"ode_init.trajectories={job.out}",
    )
    scores = [f"start.weights={student}", f"self_forcing.real={both}"]
    plan, _ = run_train(
        load_train_recipe("self_forcing_smoke", scores), [data], tmp_path / "no", dry_run=True
    )
    assert "fake score: weights, gradients and AdamW" in plan
    assert "real score, bfloat16" in plan
    forced = smoke("self_forcing_smoke", data, tmp_path / "forced", *scores)
    with (tmp_path / "forced" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["generator_loss"]) for row in rows] == [True, False]
    fake = forced.with_name("step-00000002-fake.safetensors")
    longer = smoke(
        "self_forcing_long_smoke",
        data,
        tmp_path / "long",
        f"start.weights={forced}",
        f"self_forcing.real={both}",
        f"self_forcing.fake={fake}",
    )
    assert load_world_model(longer)[0].config.depth == 2
    generate_with(longer, tmp_path)


def generate_with(student: Path, folder: Path) -> None:
    """What was exported makes a video by the command, beside encoders as a release lays them out."""
    if missing := [name for name in ("diffusers", "transformers", "av") if find_spec(name) is None]:
        pytest.skip(f"no {', '.join(missing)}")
    parts = write_release(folder / "parts", distilled=True, refiner=False)
    write_png(folder / "room.png", np.full((64, 96, 3), 90, np.uint8))
    done = run_here(
        "generate",
        *(
            "--image",
            folder / "room.png",
            "--prompt",
            "a room",
            "--camera",
            "w-24",
            "--out",
            folder / "v.mp4",
        ),
        *("--mode", "distilled", "--weights", student, "--autoencoder", parts / "ltx2_causal_vae"),
        *(
            "--text-encoder",
            parts / "text_encoder",
            "--no-refiner",
            "--resolution",
            "96x64",
            "--device",
            "cpu",
        ),
        *("--times", "1000,967,908,764,0", "--intrinsics", "fov=70"),
    )
    assert done.returncode == 0, done.stderr
    assert count_video_frames("v", folder / "v.mp4") == (25, 16.0)


def test_a_run_goes_on_from_weights_that_were_moved_but_not_from_others(tmp_path: Path) -> None:
    """The file that it began with is told by its content: a LoRA's weights are changes of that one alone."""
    weights, out = tmp_path / "base.safetensors", tmp_path / "run"
    weights.write_bytes(b"weights")
    changes = ["lora={rank: 4}", "steps=5"]

    def recipe_from(path: Path) -> TrainRecipe:
        return load_train_recipe("finetune_lora", [f"start.weights={path}", *changes])

    begun = recipe_from(weights)
    write_file(out / "checkpoints" / "step-00000002" / "progress.json", '{"step": 2}')
    write_file(out / "recipe.resolved.yaml", yaml.safe_dump(begun.model_dump(mode="json")))
    run = {"start_digest": training._digests(begun)["start.weights"], "result": None}  # as it was called
    write_file(out / "run.json", json.dumps({"runs": [run]}))
    moved = weights.rename(tmp_path / "elsewhere.safetensors")
    training._check_folder(recipe_from(moved), out, resume=True)
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"others!")
    with pytest.raises(
        ValueError,
        match=r"was trained by another recipe: start\.weights: .*other\.safetensors holds something else",
    ):
        training._check_folder(recipe_from(other), out, resume=True)
    weights.write_bytes(b"written anew")
    with pytest.raises(
        ValueError, match=r"start\.weights: .*base\.safetensors holds something else than it began"
    ):
        training._check_folder(begun, out, resume=True)


def test_a_run_is_recorded_with_the_weights_that_it_began_with(tmp_path: Path) -> None:
    """Those of the same name when it ends may be others: the best of a stage that still runs."""
    weights = tmp_path / "base.safetensors"
    weights.write_bytes(b"weights")
    recipe = load_train_recipe("finetune_lora", [f"start.weights={weights}"])
    encoding = SimpleNamespace(model_dump=lambda mode: {}, weight_licences=())
    clips: Any = SimpleNamespace(folders=(), encoding=encoding, windows=())
    training._record(tmp_path, recipe, clips, "now", (), None)
    begun = training._digests_begun_with(tmp_path)
    assert begun == training._digests(recipe)
    assert list(begun) == ["start.weights"]
    for change in (lambda: weights.write_bytes(b"others!"), weights.unlink):
        change()
        training._record(tmp_path, recipe, clips, "now", (), {"step": 5})
        assert training._digests_begun_with(tmp_path) == begun


def write_file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
