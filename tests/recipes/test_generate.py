"""`theodolite generate` as a user starts it: videos of stand-ins, records, and everything that is refused."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from theodolite.dataset.cameras.paths import named_path
from theodolite.dataset.media.read import count_video_frames
from theodolite.dataset.weights import file_digest
from theodolite.model.parts import PartFiles
from theodolite.model.weight_files import STAGE, START
from theodolite.recipes.cli import app
from theodolite.recipes.generate import run as generate_run
from theodolite.recipes.generate.build import build_generator, file_digests, notes_on_weights
from theodolite.recipes.generate.options import GenerateOptions
from typer.testing import CliRunner

from ..support import ForkedCommand

needs_networks = pytest.mark.skipif(
    find_spec("diffusers") is None or find_spec("transformers") is None, reason="needs theodolite[generate]"
)
TRY = ("--weights", "stand_in", "--size", "tiny", "--mode", "distilled", "--device", "cpu")
runner = CliRunner()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_image(tmp_path / "street.png")


def write_image(path: Path, height: int = 360, width: int = 640) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), cv2.GaussianBlur(noise, (0, 0), 5))
    return path


def generate(*words: object):
    return runner.invoke(app, ["generate", *map(str, words)])


def usual(image: Path, out: Path, **changes: object) -> list[object]:
    """Words of a sound command; an option that is None is left out."""
    words: dict[str, object] = {"image": image, "prompt": "a street", "camera": "w-48", "out": out} | changes
    listed = [
        w
        for k, v in words.items()
        if v is not None
        for w in (f"--{k.replace('_', '-')}", *(() if v is True else (v,)))
    ]
    return [*TRY, *listed]


# --- sound ----------------------------------------------------------------------------------------


@needs_networks
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["distilled", "bidirectional", "chunk-causal"])
def test_a_video_and_its_record(image: Path, tmp_path: Path, mode: str) -> None:
    out = tmp_path / "v.mp4"
    steps = [] if mode == "distilled" else ["--steps", 2]
    done = generate(*usual(image, out), "--mode", mode, *steps)
    assert done.exit_code == 0, done.output
    assert "49 frames, 3.1 s" in done.output
    assert ("streaming: first chunk after" in done.output) is (mode == "distilled")
    assert count_video_frames("v", out) == (49, 16.0)
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["run"]["status"] == "complete"
    assert record["stand_in"] is True
    assert record["video"]["bytes"] == out.stat().st_size
    assert len(record["camera"]["camera_to_world"]) == len(record["camera"]["intrinsics_px"]) == 49
    assert record["run"]["seeds"] == {"world_model": 42, "refiner": 42}
    assert set(record["run"]["parts"]) >= {"world_model", "autoencoder", "text_encoder", "refiner"}
    assert record["run"]["departures"].keys() == (set() if mode == "distilled" else {"steps"})
    assert set(record["run"]["stages"]) == {"text", "image", "denoising", "refining", "decoding"}
    assert (record["run"]["streaming"] is None) is (mode != "distilled")
    assert record["packages"]["torch"]
    assert record["run"]["operators"]["kernels"] == "reference"
    assert record["image"]["size"] == [360, 640]


@needs_networks
@pytest.mark.slow
def test_stand_ins_are_marked(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.mp4"
    assert generate(*usual(image, out, crf=1), "--no-refiner").exit_code == 0
    with av.open(str(out)) as container:
        assert "STAND-IN" in container.metadata["title"]
        assert "STAND-IN" in container.metadata["comment"]
        frames = [f.to_ndarray(format="gray") for f in container.decode(video=0)]
    # The same letters on every frame.
    stack = np.stack(frames).astype(float)
    letters = stack.mean(axis=0) > 220
    assert letters.sum() > 100
    assert (stack[:, letters] > 180).mean() > 0.95


@needs_networks
@pytest.mark.slow
def test_a_record_makes_the_same_video(image: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "a.mp4", tmp_path / "b.mp4"
    assert generate(*usual(image, first, intrinsics="fov=60"), "--no-refiner").exit_code == 0
    record = json.loads(first.with_suffix(".json").read_text())
    # Path and lens from the record itself.
    words = usual(image, again, camera=first.with_suffix(".json"))
    assert generate(*words, "--no-refiner").exit_code == 0
    assert json.loads(again.with_suffix(".json").read_text())["video"]["sha256"] == record["video"]["sha256"]
    other = tmp_path / "c.mp4"
    assert generate(*usual(image, other, intrinsics="fov=60", seed=1), "--no-refiner").exit_code == 0
    assert json.loads(other.with_suffix(".json").read_text())["video"]["sha256"] != record["video"]["sha256"]


@needs_networks
@pytest.mark.slow
def test_ctrl_c_leaves_what_is_finished(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.mp4"
    process = ForkedCommand("generate", *usual(image, out, camera="walk", seconds=60), folder=tmp_path)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and (not out.is_file() or out.stat().st_size < 100_000):
        time.sleep(0.05)
        assert process.poll() is None, process.stderr.read_text()
    done = process.end(signal.SIGINT)
    assert done.returncode == 130, done.stderr
    frames = count_video_frames("v", out)[0]
    assert 0 < frames < 961
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["run"]["status"] == "interrupted"
    # Of a chunk that was being written, too; those of whole chunks are the run's.
    assert record["video"]["num_frames"] == frames >= record["run"]["num_frames"]
    assert f"holds the first {frames} frames and plays" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@needs_networks
@pytest.mark.slow
def test_a_full_disk_leaves_what_is_finished(image: Path, tmp_path: Path) -> None:
    """A bound on the size of files fails writing as a full disk does."""
    out = tmp_path / "v.mp4"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        done = generate(*usual(image, out, camera="walk", seconds=30))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.exit_code == 1, done.output
    assert "the disk is full or the file cannot grow" in done.stderr
    assert "v.mp4 holds the first" in done.stderr
    assert 0 < count_video_frames("v", out)[0] < 481
    assert json.loads(out.with_suffix(".json").read_text())["run"]["status"] == "failed"


@pytest.mark.slow
def test_a_dry_run_shows_path_memory_and_time(image: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "v.mp4", tmp_path / "path.svg"
    words = (
        "--image",
        image,
        "--prompt",
        "rain",
        "--camera",
        "orbit",
        "--out",
        out,
        "--intrinsics",
        "fov=60",
    )
    done = generate(*words, "--dry-run", "--plot", plot, "--guidance-interval", "0,0.5", "--seconds", 60)
    assert done.exit_code == 1  # the weights are missing
    for text in (
        *(
            "from above, m",
            "961 frames, 60.00 s",
            "12.57 m long",
            "60 deg horizontally",
            "memory",
            "world model",
        ),
        *("guidance interval (0.0, 0.5) (published (0.0, 1.0))", "theodolite weights pull bidirectional"),
    ):
        assert text in done.output, text
    assert plot.read_text().startswith("<svg")
    assert not out.exists()
    done = generate(*usual(image, out), "--dry-run", "--seconds", 2)
    assert done.exit_code == 0
    assert "2 s were asked for, the video lasts 1.5 s: a multiple of 1.5 s" in done.output
    assert list(tmp_path.iterdir()) == [p for p in tmp_path.iterdir() if p in (image, plot)]


def test_too_little_memory_is_said_before_anything_is_loaded(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card of 24 GB: what is needed, and what would fit; the dry run says so too."""
    from theodolite.recipes.generate.plan import Place

    card = Place(device="cuda", name="a card", total_bytes=25_000_000_000, free_bytes=24_000_000_000)
    monkeypatch.setattr(generate_run, "find_place", lambda device, most_gb: card)
    monkeypatch.setattr(generate_run, "locate_parts", lambda options: None)
    monkeypatch.setattr(generate_run, "build_generator", lambda *a: pytest.fail("something was loaded"))
    words = ("--image", image, "--prompt", "rain", "--camera", "walk", "--out", tmp_path / "v.mp4")
    words += ("--intrinsics", "fov=60", "--seconds", 60)
    done = generate(*words)
    assert done.exit_code == 2
    assert "too little GPU memory" in done.output
    assert "What would fit: --offload blocks" in done.output
    dry = generate(*words, "--dry-run")
    assert dry.exit_code == 0
    assert "a card has 24.0 GB free of 25.0" in dry.output
    assert "too little GPU memory" in dry.output
    fits = generate(*words, "--dry-run", "--offload", "blocks")
    assert "too little GPU memory" not in fits.output


def test_full_stand_ins_need_memory(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 4_000_000)  # 16 GB
    words = (
        "--image",
        image,
        "--prompt",
        "rain",
        "--camera",
        "walk",
        "--intrinsics",
        "fov=60",
        "--device",
        "cpu",
    )
    done = generate(*words, "--out", tmp_path / "v.mp4", "--weights", "stand_in")
    assert done.exit_code == 2
    assert "GB of the machine's memory, it has 16: add --size tiny" in done.output


# --- refused --------------------------------------------------------------------------------------


def refused(image: Path, out: Path, **changes: object) -> str:
    done = generate(*usual(image, out, **changes))
    assert done.exit_code == 2, done.output
    assert done.output.startswith("error: ")
    assert "Traceback" not in done.output
    assert not out.exists()
    assert not out.with_suffix(".json").exists()
    return done.output


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": "word " * 5000}, "24999 characters"),
        ({"prompt": "@nowhere.txt"}, "cannot be read"),
        ({"camera": None, "prompt": None}, "give --prompt, --camera"),
        ({"camera": "loop"}, "no such file, no named path"),
        ({"camera": "w-5"}, "at least 25 frames"),
        ({"camera": "w-480,x-3"}, "unknown keys 'x'"),
        ({"camera": "walk", "seconds": 600}, "more than the model can number"),
        ({"camera": "w-48", "seconds": 60}, "ask for --seconds 3 at most"),
        (
            {"camera": "orbit:size=100"},
            "a named path slows down with more seconds, fewer turns or a smaller size",
        ),
        ({"seconds": -1}, "--seconds"),
        ({"seconds": "inf"}, "--seconds"),
        ({"seconds": "nan"}, "--seconds"),
        ({"fps": "inf"}, "--fps"),
        ({"max_speed": "nan"}, "--max-speed"),
        ({"fps": 0}, "--fps"),
        ({"intrinsics": "fov=130"}, "field of view of frame 0 is 129"),
        ({"intrinsics": "fov=20"}, "25 to 120"),
        ({"intrinsics": "wide"}, "neither fov=DEGREES"),
        ({"intrinsics": "estimate=eyes"}, "moge-2 or pi3x"),
        (
            {"intrinsics": "3000,3000,1500,900"},
            "--intrinsics 3000,3000,1500,900: the principal point of frame 0 is 1500",
        ),
        ({"steps": 4}, "steps is an option of bidirectional and chunk-causal, not of distilled"),
        ({"times": "1000,zero"}, "numbers with commas"),
        ({"times": "1000,500"}, "end in 0"),
        ({"times": "1000.5,0"}, "from 1000 at most"),
        ({"negative_prompt": "fog"}, "what guidance leads away from, and distilled has none"),
        ({"mode": "bidirectional", "negative_prompt": "fog", "guidance": 1}, "and --guidance 1 is none"),
        (
            {"mode": "bidirectional", "negative_prompt": "a" * 20_001},
            "the negative prompt has 20001 characters",
        ),
        ({"plot": ""}, "--plot .: is a folder"),
        ({"plot": "nowhere/path.svg"}, "--plot nowhere/path.svg: no such folder nowhere"),
        ({"mode": "fast"}, "--mode"),
        ({"precision": "fp4"}, "--precision"),
        ({"offload": "all"}, "--offload"),
        ({"kernels": "fast"}, "--kernels"),
        ({"attention": "fast"}, "--attention"),
        ({"workers": 2}, "goes with --manifest"),
        ({"device": "cuda:99"}, "--device"),
        ({"seconds": 1e9, "camera": "walk"}, "1e+09 s are more than the model can number (8185 frames)"),
        ({"precision": "nvfp4", "dry_run": True}, "nvfp4 needs a Blackwell GPU"),
        ({"graphs": True, "dry_run": True}, "CUDA graphs need a GPU"),
        ({"overlap": True, "offload": "idle", "dry_run": True}, "overlap needs all parts on the device"),
        ({"attention": "cudnn", "dry_run": True}, "attention by cudnn needs a GPU"),
        ({"intrinsics": ""}, "intrinsics '': neither fov=DEGREES"),
        (
            {"intrinsics": "-600,600,320,180"},
            "intrinsics '-600,600,320,180': the intrinsics of pose 0 are not",
        ),
        ({"camera": "#clip"}, "camera '#clip': no such file"),
        ({"prompt": "\udcff"}, "the prompt is no text"),
        ({"scopes": "ffn"}, "--scopes goes with a low --precision, not with auto"),
        ({"gpu_memory": 24}, "--gpu-memory 24: --device cpu is no GPU"),
        ({"resolution": "300x96"}, "--resolution 300x96: both sides must be multiples of 32"),
        ({"resolution": "96"}, "--resolution"),
        ({"mode": "bidirectional", "warm_up": True}, "--warm-up is an option of distilled"),
    ],
)
def test_options_that_cannot_be(image: Path, tmp_path: Path, changes: dict[str, object], named: str) -> None:
    assert named in refused(image, tmp_path / "v.mp4", **changes)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("missing", "No such file"),
        ("folder", "is a folder"),
        ("text", "image"),
        ("truncated", "ends before its picture does"),
        ("tiny", "shorter side must have 64"),
        ("upright", "32 % of it would be left"),
    ],
)
def test_images_that_cannot_be(tmp_path: Path, kind: str, named: str) -> None:
    path = tmp_path / "bad.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("no picture")
    elif kind == "truncated":
        write_image(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "tiny":
        write_image(path, 40, 80)
    elif kind == "upright":
        write_image(path, 1280, 720)
    text = refused(path, tmp_path / "v.mp4")
    assert named in text
    assert "bad.png" in text


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("nan", "pose of frame 30 is not finite"),
        ("scaled", "no rigid transform"),
        ("jump", "jumps"),
        ("millimetres", "in metres"),
        ("short", "at least 25 frames"),
    ],
)
def test_paths_that_cannot_be(image: Path, tmp_path: Path, kind: str, named: str) -> None:
    poses = named_path("walk", 97, size_m=3)
    if kind == "nan":
        poses[30, 1, 3] = np.nan
    elif kind == "scaled":
        poses[:, :3, :3] *= 1.1
    elif kind == "jump":
        poses[50:, 0, 3] += 5
    elif kind == "millimetres":
        poses[:, :3, 3] *= 1000
    elif kind == "short":
        poses = poses[:20]
    np.save(tmp_path / "path.npy", poses)
    text = refused(image, tmp_path / "v.mp4", camera=tmp_path / "path.npy")
    assert named in text
    assert "path.npy" in text


@needs_networks
@pytest.mark.slow
def test_kernels_that_are_not_here(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice that cannot be kept is refused, not replaced."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # tests of the kernels set it for their process
    text = refused(image, tmp_path / "v.mp4", kernels="triton")
    assert "triton" in text.lower()


@needs_networks
@pytest.mark.slow
def test_weights_of_another_size_make_their_own_pictures() -> None:
    from theodolite.recipes.generate.options import GenerateOptions

    asked = GenerateOptions.checked(weights="mine.safetensors", resolution="320x192")
    plain = GenerateOptions.checked(weights="mine.safetensors")
    assert (asked.picture, plain.picture) == ((192, 320), (704, 1280))
    assert asked.digest() != plain.digest()
    assert plain.digest() == "19964b538563efa3"  # videos of earlier versions stay theirs


@pytest.mark.slow
def test_two_runs_on_one_video(image: Path, tmp_path: Path) -> None:
    """The second one stops and touches nothing of the first."""
    from theodolite.recipes.generate.inputs import prepare
    from theodolite.recipes.generate.options import ClipRequest, GenerateOptions
    from theodolite.recipes.generate.single import generate_video

    out = tmp_path / "v.mp4"
    out.write_bytes(b"of another run")
    out.with_suffix(".json").write_text("{}")
    run = GenerateOptions.checked(
        weights="stand_in", size="tiny", mode="distilled", refine=False, device="cpu"
    )
    prepared = prepare(ClipRequest(id="v", image=image, prompt="rain", camera="w-24"), run)
    with pytest.raises(ValueError, match="another run has begun"):
        generate_video(build_generator(run, None), prepared, out)
    assert out.read_bytes() == b"of another run"
    assert out.with_suffix(".json").read_text() == "{}"


@needs_networks
@pytest.mark.slow
def test_an_overlong_prompt_costs_nothing_that_is_there(image: Path, tmp_path: Path) -> None:
    there = tmp_path / "v.mp4"
    there.write_bytes(b"mine")
    done = generate(*usual(image, there, prompt="street " * 60), "--overwrite", "--no-refiner")
    assert done.exit_code == 2
    assert "tokens, the world model sees 29" in done.output
    assert there.read_bytes() == b"mine"


@needs_networks
@pytest.mark.slow
def test_weights_of_a_folder(image: Path, tmp_path: Path) -> None:
    """A whole release of tiny parts at the size of released videos; then one that is damaged or another's."""
    from ..model.release import write_release

    folder, out = write_release(tmp_path / "release"), tmp_path / "v.mp4"
    words = [
        "--image",
        image,
        "--prompt",
        "rain",
        "--camera",
        "w-8",
        "--intrinsics",
        "fov=60",
        "--device",
        "cpu",
    ]
    words += ["--steps", 1, "--out", out, "--precision", "float32"]
    done = generate(*words, "--weights", folder)
    assert done.exit_code == 0, done.output
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["stand_in"] is False
    assert (record["video"]["height"], record["video"]["width"]) == (704, 1280)
    files = record["files"]
    assert set(files) >= {"world_model", "autoencoder", "text_encoder", "refiner", "connectors"}
    assert all(len(f["sha256"]) == 64 for part in files.values() for f in part["files"])
    out.unlink()

    model = folder / "dit" / "model.pt"
    whole = model.read_bytes()
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    for path, content, named in (
        (model, whole[: len(whole) // 2], "cannot be read as a torch checkpoint"),
        (model, b"", "cannot be read as a torch checkpoint"),
        (vae, vae.read_bytes()[:-50], "no intact safetensors file"),
    ):
        before = path.read_bytes()
        path.write_bytes(content)
        done = generate(*words, "--weights", folder)
        path.write_bytes(before)
        assert done.exit_code == 2, done.output
        assert named in done.output
        assert path.name in done.output
        assert not out.exists()
    # Weights of another network, by mistake.
    done = generate(*words, "--weights", folder, "--autoencoder", folder / "refiner" / "transformer")
    assert done.exit_code == 2
    assert "does not fit" in done.output
    model.unlink()
    other = folder / "vae" / "diffusion_pytorch_model.safetensors"
    (folder / "dit" / "model.safetensors").write_bytes(other.read_bytes())
    done = generate(*words, "--weights", folder)
    assert done.exit_code == 2
    assert "holds no weights of the world model" in done.output


def test_a_lens_for_every_pose_of_the_file(image: Path, tmp_path: Path) -> None:
    """Of a path at another rate: lenses are brought to the model's rate with the poses."""
    from theodolite.recipes.generate.inputs import prepare
    from theodolite.recipes.generate.options import ClipRequest, GenerateOptions

    frames = 91
    np.save(tmp_path / "path.npy", named_path("walk", frames))
    focal = np.linspace(500, 590, frames)
    np.save(tmp_path / "k.npy", np.stack([focal, focal, np.full(frames, 320), np.full(frames, 180)], axis=1))
    clip = ClipRequest(id="a", image=image, prompt="x", camera=str(tmp_path / "path.npy"))
    run = GenerateOptions.checked(weights="stand_in", size="tiny", fps=30, intrinsics=str(tmp_path / "k.npy"))
    found = prepare(clip, run)
    assert found.request.num_frames == 49
    scale = found.cover.resized[1] / 640
    assert found.request.intrinsics_px[16, 0, 0] == pytest.approx(530 * scale, rel=1e-3)  # after 1 s
    assert found.lens == f"--intrinsics {tmp_path / 'k.npy'}"


def test_places_that_cannot_be_written(image: Path, tmp_path: Path) -> None:
    assert "written as .mp4" in refused(image, tmp_path / "v.avi")
    assert "no such folder" in refused(image, tmp_path / "nowhere" / "v.mp4")
    for name in (".", "..", "/"):
        done = generate(*usual(image, Path(name)))
        assert done.exit_code == 2
        assert f"--out {name}: names no file; give an .mp4" in done.output
    (tmp_path / "folder.mp4").mkdir()
    assert "is a folder" in generate(*usual(image, tmp_path / "folder.mp4"), "--overwrite").output
    if Path("/proc").is_dir():
        assert "nothing can be written there" in generate(*usual(image, Path("/proc/v.mp4"))).output
    there = tmp_path / "there.mp4"
    there.write_bytes(b"mine")
    done = generate(*usual(image, there))
    assert done.exit_code == 2
    assert "--overwrite replaces it" in done.output
    assert there.read_bytes() == b"mine"


@pytest.mark.slow
def test_a_lora_is_looked_at_before_anything_is_loaded(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    monkeypatch.setattr(generate_run, "build_generator", lambda *a: pytest.fail("something was loaded"))
    other = tmp_path / "weights.safetensors"
    save_file({"blocks.0.weight": torch.zeros(2)}, other)
    out = tmp_path / "v.mp4"
    for choice, named in (
        (f"{image}=2", "no intact safetensors file"),
        (str(tmp_path / "nowhere"), "no such LoRA file"),
        (str(other), "holds no LoRA: it has blocks.0.weight"),
    ):
        for option in ("--lora", "--refiner-lora"):
            done = generate(*usual(image, out), option, choice)
            assert done.exit_code == 2
            assert f"{option} {choice}: " in done.output
            assert named in done.output
            dry = generate(*usual(image, out), option, choice, "--dry-run")
            assert dry.exit_code == 1
            assert named in dry.output


def test_exports_are_told_where_they_are_used_as_others(tmp_path: Path) -> None:
    """A network that is sampled as another stage's makes a worse video, and nothing else would say so."""
    from safetensors.torch import save_file

    weights, lora = tmp_path / "w.safetensors", tmp_path / "lora" / "adapter_model.safetensors"
    lora.parent.mkdir()
    files = PartFiles(world_model=weights, autoencoder=tmp_path, text_encoder=tmp_path)
    options = GenerateOptions(mode="distilled", weights=str(weights), lora=(str(lora.parent),))

    def notes(stage: str, start: str | None = None) -> tuple[str, ...]:
        save_file({"a": torch.zeros(2)}, weights, metadata={STAGE: stage})
        save_file({"a": torch.zeros(2)}, lora, metadata={START: start or file_digest(weights)})
        return notes_on_weights(options, files)

    assert notes("distilled") == ()
    assert notes("bidirectional", "12") == (
        "w.safetensors holds bidirectional weights, and is sampled as distilled ones are",
        "lora was trained on other weights than w.safetensors",
    )
    (told,) = file_digests(options.model_copy(update={"lora": ()}), files)["world_model"]["files"]
    assert told["told"] == {STAGE: "bidirectional"}
    with pytest.raises(ValueError, match="are those of a fake score"):
        notes("fake-score")


def test_weights_that_are_not_there(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--image", image, "--prompt", "rain", "--camera", "orbit", "--intrinsics", "fov=60"]
    out = tmp_path / "v.mp4"
    for weights, named in (
        ("released", "run: theodolite weights pull bidirectional"),
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path, "lacks parts of the release: world model (dit/*.safetensors"),
    ):
        done = generate(*words, "--out", out, "--weights", weights)
        assert done.exit_code == 2
        assert named in done.output
    done = generate(*words, "--out", out, "--size", "tiny")
    assert done.exit_code == 2
    assert "--size tiny is of stand-ins" in done.output
