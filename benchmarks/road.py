"""The road from clips to samples by the commands that a user types: does every joint hold, and what is learned?

    python benchmarks/road.py --size tiny --out runs/road      # every joint, on a CPU, in some minutes
    python benchmarks/road.py --size small --out runs/road     # about 20 M parameters, one GPU, under nine minutes

Rooms are rendered as RGB-D recordings with a known lens (`road_clips.py`); from there on everything is `theodolite`:
annotate, encode, train (stage 1 to 4, the third with each camera control, a LoRA on rooms of another domain, both roads
to the four-step student), generate (a manifest of held-out clips) and evaluate. The cameras of the
videos are measured by direct alignment with the first picture, whose depth is known; the released networks that
`evaluate --videos` would ask are not here. Small are the autoencoder (LTX-2's architecture, trained here for a minute)
and the text encoder (random numbers, one caption).

What one step wrote is taken over by the next call with the same --out. Prints a table; leaves it, all commands with
their times, and their output in --out.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from road_clips import (
    Codec,
    Rooms,
    measure_cameras,
    train_codec,
    write_manifest,
    write_rooms,
    write_text_encoder,
)

COMMAND = (sys.executable, "-c", "from theodolite.recipes.cli import main; main()")
STUDENTS = ("ode", "consistency", "forced-ode", "forced-consistency")
CONTROLS = ("both", "plucker", "ucpe", "none")
NAMES = {"both": "UCPE + Plücker", "plucker": "Plücker", "ucpe": "UCPE", "none": "none"}
ROOMS = dict(shift=1.6)
OTHER = dict(fov_deg=(96.0, 110.0), shift=1.6, zoom=0.2)
"""The changed domain: wide lenses that zoom. (Long ones see too little texture here: annotation rejects them.)"""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large everything is.

    Attributes:
        model: sizes of the world model, as keys of its recipe.
        steps: of each training; lora_steps: of the LoRA.
        train, other, held: clips to train on, of the other domain, held out of each domain.
        height, width: of the recordings; picture: (height, width) of what is learned and made.
        frames: of a clip; window: of what is learned and made, 24 k + 1.
    """

    height: int
    width: int
    picture: tuple[int, int]
    frames: int
    window: int
    train: int
    other: int
    held: int
    codec: Codec
    codec_rooms: int
    model: dict[str, object]
    batch: int
    lr: float
    student_lr: float
    shift: float
    steps: dict[str, int]
    sampling_steps: int
    held_out: int = 8
    together: int = 1
    """Commands that run at the same time on one device."""


SIZES = {
    "tiny": Size(
        height=192, width=320, picture=(96, 160), frames=49, window=49, train=5, other=4, held=1,
        codec=Codec(channels=8, encoder=(8, 8, 8, 8), decoder=(8, 16, 32), seconds=0.1, batch=1), codec_rooms=1,
        model={"depth": 4, "width": 48, "heads": 2, "latent_channels": 8, "text_width": 16},
        batch=1, lr=1e-3, student_lr=1e-3, shift=3.0, sampling_steps=3, held_out=1,
        steps={"stage1": 3, "stage2": 3, "stage3": 4, "stage4": 3, "lora": 3, "ode": 3, "consistency": 3, "forced": 5},
    ),
    "small": Size(
        height=192, width=320, picture=(192, 320), frames=73, window=49, train=176, other=48, held=16,
        codec=Codec(channels=128, encoder=(48, 96, 160, 256), decoder=(48, 96, 192), seconds=80), codec_rooms=64,
        model={"depth": 8, "width": 320, "heads": 8, "latent_channels": 128, "text_width": 16, "ffn_ratio": 2.5},
        batch=16, lr=1e-3, student_lr=2e-4, shift=3.0, sampling_steps=25, together=4,
        steps={"stage1": 400, "stage2": 300, "stage3": 1000, "stage4": 400, "lora": 300, "ode": 200, "consistency": 150,
               "forced": 100},
    ),
}  # fmt: skip


@dataclass
class Scores:
    """What is known of one network."""

    loss: float | None = None
    found: dict[str, float] = field(default_factory=dict)


def _beside(typed: list[str]) -> tuple[int, str, str]:
    """The command in a process of its own: code, stdout, stderr."""
    done = subprocess.run([*COMMAND, *typed], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def _here(typed: list[str]) -> tuple[int, str, str]:
    """The same in this process, which spares its imports: most of the time of a tiny one."""
    from theodolite.recipes.cli import app
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, typed)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


class Road:
    """The run: folders, commands, figures."""

    def __init__(self, size: Size, asked: argparse.Namespace) -> None:
        self.size, self.asked = size, asked
        self.out = asked.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "logs").mkdir(exist_ok=True)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.start = time.perf_counter()
        self.times: list[tuple[str, float]] = []
        self.rows: dict[str, Scores] = {}

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.start:6.1f} s] {text}", flush=True)

    def command(self, name: str, *words: object) -> str:
        """Run `theodolite WORDS`; its output. What ends with another code than 0 ends the road.

        Raises:
            RuntimeError: with the last lines that the command wrote.
        """
        log, start = self.out / "logs" / f"{name}.log", time.perf_counter()
        typed = [str(word) for word in words]
        run = _here if self.device.type == "cpu" else _beside
        code, said, told = run(typed)
        log.write_text("\n".join(["theodolite " + " ".join(typed), told, said]), encoding="utf-8")
        seconds = time.perf_counter() - start
        self.times.append((name, seconds))
        if code:
            raise RuntimeError(
                f"{name}: exit {code}\n" + "\n".join(log.read_text("utf-8").splitlines()[-25:])
            )
        self.say(f"{name}: {seconds:.1f} s")
        return said

    def together(self, jobs: Sequence[tuple[Any, ...]]) -> None:
        """Several commands, as many at once as the size says."""
        with concurrent.futures.ThreadPoolExecutor(self.size.together) as pool:
            for future in [pool.submit(self.command, *job) for job in jobs]:
                future.result()

    # --- data ---------------------------------------------------------------------------------

    def rooms(self, name: str, clips: int, seed: int, frames: int, path: dict[str, Any]) -> Rooms:
        s = self.size
        return Rooms(
            name=name, clips=clips, frames=frames, height=s.height, width=s.width, seed=seed, path=path
        )

    def write_clips(self) -> None:
        """Recordings: rooms to train on, the same of the other domain, and both held out."""
        s, folder = self.size, self.out / "clips"
        sets = {
            "rooms": [self.rooms("rooms", s.train, 1, s.frames, ROOMS)],
            "other": [self.rooms("other", s.other, 2, s.frames, OTHER)],
            "held": [
                self.rooms("near", s.held, 3, s.window, ROOMS),
                self.rooms("far", s.held, 4, s.window, OTHER),
            ],
        }
        for name, members in sets.items():
            if (folder / name / "clips.yaml").is_file():
                continue
            write_rooms(members, folder / name, self.device)
            self.say(f"{sum(m.clips for m in members)} clips written to {folder / name}")

    def annotate(self) -> None:
        for name in ("rooms", "other"):
            index = self.out / "clips" / name / "clips.yaml"
            words = ("--set", f"source.index={index}", "--out", self.out / "data" / name)
            workers = ("--workers", self.asked.workers)
            text = self.command(f"annotate-{name}", "annotate", "rgbd", *words, *workers)
            self.say(text.splitlines()[0])

    def parts(self) -> None:
        """The networks that encode, as a release lays them out."""
        folder, s = self.out / "parts", self.size
        if (folder / "config.yaml").is_file():
            return
        height, width = s.picture
        path = {"reach": 1.5, "fov_deg": (38.0, 95.0)}
        rooms = Rooms(
            name="codec", clips=s.codec_rooms, frames=33, height=height, width=width, seed=9, path=path
        )
        train_codec(s.codec, rooms, folder / "vae", self.device, self.say)
        write_text_encoder(folder / "text_encoder", width=int(str(s.model["text_width"])))
        (folder / "config.yaml").write_text("text_encoder:\n  chi_prompt: ['Say: ']\n", encoding="utf-8")

    def encode(self) -> None:
        s = self.size
        keys = (f"height={s.picture[0]}", f"width={s.picture[1]}", f"frames={s.window}", "stride=8")
        for name in ("rooms", "other"):
            words = [w for key in keys for w in ("--set", key)]
            where = (self.out / "data" / name, "--out", self.out / "encoded" / name)
            text = self.command(
                f"encode-{name}", "encode", *where, "--weights", self.out / "parts", *words, "--workers", 0
            )
            self.say(text.splitlines()[0])

    # --- training -----------------------------------------------------------------------------

    def weights(self, name: str) -> Path:
        """What a training wrote last."""
        return sorted((self.out / "train" / name / "weights").glob("step-????????.safetensors"))[-1]

    def training(self, name: str, recipe: str, *keys: str, data: str = "rooms") -> tuple[object, ...]:
        s = self.size
        common = [
            f"data.batch={s.batch}",
            f"data.held_out={s.held_out}",
            "data.workers=2" if self.device.type == "cuda" else "data.workers=0",
            "parallel.context=1",
            "parallel.recompute=nothing",
            "optimiser.warmup_steps=50" if s.batch > 1 else "optimiser.warmup_steps=0",
            "optimiser.decay_from=0.5",
            "checkpoint.every=100000",
            "validation.every=100000",
            "log.every=50" if s.batch > 1 else "log.every=1",
            f"steps={s.steps[name.split('-')[0]]}",
        ]
        if data == "other" and s.held_out == 1:  # too few to hold one out
            common += ["data.held_out=0", "validation.every=0"]
        if recipe in ("ode_init", "consistency_init", "self_forcing"):
            common += [f"student.frames={(s.window - 1) // 8 + 1}", f"optimiser.lr={s.student_lr}"]
        else:
            common += [f"flow_matching.shift={s.shift}"]
        if recipe.startswith("stage"):
            common += [f"model.{k}={v}" for k, v in s.model.items()]
            common += [f"optimiser.lr={s.lr}"]
        words = [w for key in (*common, *keys) for w in ("--set", key)]
        where = ("--data", self.out / "encoded" / data, "--out", self.out / "train" / name)
        return (f"train-{name}", "train", recipe, *where, "--resume", *words)

    def train(self) -> None:
        """The stages; the third once for every control."""
        depth = int(str(self.size.model["depth"]))
        new = ("start.weights=null", "start.grow=false")
        self.train_missing(
            self.training("stage1", "stage1", *new, f"model.softmax_every={depth + 1}"),
        )
        self.train_missing(self.training("stage2", "stage2", f"start.weights={self.weights('stage1')}"))
        jobs = []
        for control in CONTROLS:
            cameras = "keep" if control == "none" else "from_main"
            keys = (f"data.cameras={control}", f"start.cameras={cameras}")
            start = f"start.weights={self.weights('stage2')}"
            jobs.append(self.training(f"stage3-{control}", "stage3", start, *keys))
        self.train_missing(*jobs)
        best = f"start.weights={self.weights('stage3-both')}"
        lora = ("lora.rank=16", "lora.alpha=16", "optimiser.lr=0.001")
        self.train_missing(
            self.training("stage4", "stage4", best),
            self.training("lora", "finetune_lora", best, *lora, data="other"),
        )

    def students(self) -> None:
        """Both roads from the chunk-causal teacher to four steps."""
        s, teacher, paths = self.size, self.weights("stage4"), self.out / "paths"
        asked = (f"student.frames={(s.window - 1) // 8 + 1}", f"shift={s.shift}", "guidance=1")
        words = [w for key in (*asked, f"steps={4 * s.sampling_steps // 2}") for w in ("--set", key)]
        where = (self.out / "encoded" / "rooms", "--out", paths, "--weights", teacher)
        self.command("trajectories", "trajectories", *where, *words)
        start = f"start.weights={teacher}"
        steps = ("consistency_init.guidance=1", f"consistency_init.shift={s.shift}")
        self.train_missing(
            self.training("ode", "ode_init", start, f"ode_init.trajectories={paths}"),
            self.training("consistency", "consistency_init", start, *steps),
        )
        real = f"self_forcing.real={self.weights('stage3-both')}"
        judged = (real, "self_forcing.guidance=1", f"self_forcing.fake_lr={s.student_lr / 2}")
        self.train_missing(
            *(
                self.training(
                    f"forced-{road}", "self_forcing", f"start.weights={self.weights(road)}", *judged
                )
                for road in ("ode", "consistency")
            )
        )

    def train_missing(self, *jobs: tuple[Any, ...]) -> None:
        left = [job for job in jobs if not (self.out / "train" / str(job[0])[6:] / "weights").is_dir()]
        self.together(left)

    # --- samples ------------------------------------------------------------------------------

    def manifests(self) -> dict[str, list[str]]:
        """What is to be made of each held-out set, and the ids."""
        names = {word: [f"{word}_{n:04d}" for n in range(self.size.held)] for word in ("near", "far")}
        for word, ids in names.items():
            write_manifest(self.out / f"{word}.jsonl", self.out / "clips" / "held", ids)
        return names

    def generation(self, name: str, weights: Path, word: str, *further: object) -> tuple[object, ...]:
        parts, s = self.out / "parts", self.size
        where = ("--manifest", self.out / f"{word}.jsonl", "--out", self.out / "videos" / name)
        networks = ("--autoencoder", parts / "vae", "--text-encoder", parts / "text_encoder")
        kept = (
            "--no-refiner",
            "--resolution",
            f"{s.picture[1]}x{s.picture[0]}",
            "--max-turn",
            1000,
            "--workers",
            0,
        )
        return (
            f"generate-{name}", "generate", *where, "--weights", weights, *networks, *kept, *further
        )  # fmt: skip

    def generate(self) -> dict[str, str]:
        """Videos of every network; which held-out set each followed."""
        s = self.size
        steps = ("--steps", s.sampling_steps, "--guidance", 1, "--shift", s.shift)
        causal = ("--mode", "chunk-causal", *steps)
        four = ("--mode", "distilled", "--times", "1000,967,908,764,0")
        lora = sorted((self.out / "train" / "lora" / "weights").glob("lora-*"))[-1]
        both = self.weights("stage3-both")
        jobs = {
            "stage1": (self.weights("stage1"), "near", steps),
            "stage2": (self.weights("stage2"), "near", steps),
            **{f"stage3-{c}": (self.weights(f"stage3-{c}"), "near", steps) for c in CONTROLS},
            "stage4": (self.weights("stage4"), "near", causal),
            "stage4-four-steps": (self.weights("stage4"), "near", four),
            **{name: (self.weights(name), "near", four) for name in STUDENTS},
            "far-before": (both, "far", steps),
            "far-lora": (both, "far", (*steps, "--lora", lora)),
        }
        self.together([self.generation(name, *job[:2], *job[2]) for name, job in jobs.items()])
        return {name: job[1] for name, job in jobs.items()}

    def evaluate(self, made: dict[str, str], names: dict[str, list[str]]) -> None:
        clips, measured = self.out / "clips" / "held", self.out / "measured"
        for word, ids in names.items():  # what the measurement itself errs, on the true videos
            true = self.out / "videos" / f"true-{word}"
            true.mkdir(parents=True, exist_ok=True)
            for name in ids:
                (true / f"{name}.mp4").unlink(missing_ok=True)
                os.link(clips / name / "rgb.mp4", true / f"{name}.mp4")
            measure_cameras(true, ids, clips, measured / f"true-{word}", self.device)
        for name, word in made.items():
            measure_cameras(self.out / "videos" / name, names[word], clips, measured / name, self.device)
        first = {word: next(n for n, w in made.items() if w == word) for word in names}
        for name, word in {**{f"true-{w}": w for w in names}, **made}.items():
            asked = self.out / "videos" / (first[word] if name.startswith("true-") else name)
            text = self.command(
                f"evaluate-{name}", "evaluate", measured / name, "--videos", asked, "--format", "json"
            )
            self.rows[name] = Scores(found=means_of(json.loads(text)))
        for name in self.rows:
            self.rows[name].loss = self.held_out_loss("lora" if name == "far-lora" else name)

    def held_out_loss(self, name: str) -> float | None:
        path = self.out / "train" / name / "metrics.csv"
        if not path.is_file():
            return None
        with path.open(newline="", encoding="utf-8") as file:
            found = [row["validation_loss"] for row in csv.DictReader(file) if row["validation_loss"]]
        return float(found[-1]) if found else None

    # --- the whole ----------------------------------------------------------------------------

    def run(self) -> None:
        self.write_clips()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:  # processors annotate while the device trains
            annotated = pool.submit(self.annotate)
            self.parts()
            annotated.result()
        self.encode()
        self.train()
        self.students()
        names = self.manifests()
        made = self.generate()
        self.evaluate(made, names)
        text = self.table()
        print(text)
        (self.out / "table.md").write_text(text + "\n", encoding="utf-8")
        times = {name: round(seconds, 1) for name, seconds in self.times}
        (self.out / "times.json").write_text(json.dumps(times, indent=1), encoding="utf-8")

    def table(self) -> str:
        lines = [
            "| network | held-out loss | rotation RMSE deg | RotErr deg | TransErr m | CamMC | clips |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, scores in self.rows.items():
            loss = "" if scores.loss is None else f"{scores.loss:.4f}"
            found = " | ".join(f"{scores.found.get(key, float('nan')):.3f}" for key in KEYS)
            lines.append(
                f"| {TITLES.get(name, name)} | {loss} | {found} | {scores.found.get('clips', 0):.0f} |"
            )
        return "\n".join(lines)


KEYS = ("rotation_rmse_deg", "rot_err_deg", "trans_err_m", "cam_mc")
"""The first after the rotation that fits best; the others after a similarity of the positions, as the paper has them,
which a path of half a metre determines badly."""
TITLES = {
    "true-near": "true videos (what the measurement errs)",
    "true-far": "true videos of the other domain",
    "stage1": "stage 1: GDN, no cameras",
    "stage2": "stage 2: hybrid, no cameras",
    **{f"stage3-{c}": f"stage 3: cameras {n}" for c, n in NAMES.items()},
    "stage4": "stage 4: chunk-causal",
    "stage4-four-steps": "stage 4 asked in four steps, as a student is",
    "ode": "student: regression onto trajectories",
    "consistency": "student: consistency",
    "forced-ode": "student: regression, then self-forcing",
    "forced-consistency": "student: consistency, then self-forcing",
    "far-before": "stage 3 (both) on the other domain",
    "far-lora": "the same with the LoRA trained there",
}


def means_of(evaluation: dict) -> dict[str, float]:
    """Means over clips of an evaluation's JSON."""
    means = evaluation["means"]
    found = {key: means[key]["mean"] for key in KEYS if key in means}
    return {**found, "clips": max((m["num_clips"] for m in means.values()), default=0)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    asked = parser.parse_args()
    Road(SIZES[asked.size], asked).run()


if __name__ == "__main__":
    main()
