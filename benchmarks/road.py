"""The road from clips to samples by the commands that a user types: does every joint hold, and what is learned?

    python benchmarks/road.py --size tiny --out runs/road      # every joint, on a CPU, in some minutes
    python benchmarks/road.py --size small --out runs/road --only clips --minutes 3.3 --workers 24   # no GPU
    python benchmarks/road.py --size small --out runs/road --minutes 7.3   # about 20 M parameters, one GPU

Rooms are rendered as recordings (`road_clips.py`), most with their cameras (recipe `posed`), some with depth and a lens
(`rgbd`); from there on everything is `theodolite`: annotate, encode, train (stage 1 to 4, the third with each camera
control, a LoRA on rooms of another domain, both roads to the four-step student), generate (a manifest of held-out
clips) and evaluate. The cameras of the videos are measured by direct alignment with the first picture, whose depth is
known; the released networks that `evaluate --videos` would ask are not here. Small are the autoencoder (LTX-2's
architecture with weights computed from such pictures, `road_codec.py`) and the text encoder (random, one caption).

What one step wrote is taken over by the next call with the same --out; --only clips makes the recordings and their
cameras alone, as many as its minutes are enough for. With --minutes the lengths of the later trainings are what time is
left for, by the second stage's seconds a step; what there is no time for is left out, the students first. Networks are
sampled as soon as they are there, beside the trainings that follow, each command on the GPU with the fewest; what fails
is told, and the rest goes on. Prints a table; leaves it, all commands with their times, and their output in --out.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from road_clips import (
    Rooms,
    first_frame_errors,
    keep_small,
    measure_cameras,
    pictures_of,
    remove_bare,
    verdicts_of,
    write_coded,
    write_index,
    write_manifest,
    write_paths,
    write_random,
    write_room,
    write_text_encoder,
)
from road_codec import make_codec
from road_commands import Commands, visible_gpus
from road_sizes import FEW_TRACKS, RECIPES, SIZES, Size, recordings
from road_students import students
from road_table import CONTROLS, Scores, held_out_loss, means_of, table_of
from road_times import COST, FOLLOWS, LAST_S, LEAST, LOGGED, PILOT_S, START_S, STARTS, last_step, step_seconds

STUDENTS = ("ode", "consistency", "forced-ode", "forced-consistency")


def _render(work: tuple[Rooms, int, Path], device: str) -> None:
    """One recording, in a process of its own."""
    torch.set_num_threads(1)
    rooms, number, folder = work
    write_room(rooms, number, folder, torch.device(device))


class Road:
    """The run: folders, commands, figures."""

    def __init__(self, size: Size, asked: argparse.Namespace) -> None:
        self.size, self.asked = size, asked
        self.out = asked.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.commands = Commands(self.out / "logs", here=size.together == 1, devices=visible_gpus())
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.start = time.perf_counter()
        self.rows: dict[str, Scores] = {}
        self.steps, self.cost = dict(size.steps), dict(COST)
        self.failed: list[str] = []
        self.clips_end: float | None = None
        self.psnr_db: float | None = None
        self.measuring, self.writing = threading.Lock(), threading.RLock()
        self.beside = concurrent.futures.ThreadPoolExecutor(size.together)
        self.sampling: list[concurrent.futures.Future[None]] = []

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.start:6.1f} s] {text}", flush=True)

    def command(self, name: str, *words: object, seconds: float | None = None) -> str:
        """Run `theodolite WORDS`; what it answers. It is asked to end after so many seconds, if they are given.

        Raises:
            RuntimeError: with the last lines that the command wrote.
        """
        if name.startswith("annotate") and self.clips_end is not None:
            seconds = max(1.0, self.clips_end - time.perf_counter())
        start = time.perf_counter()
        answer = self.commands.run(name, words, seconds)
        self.say(f"{name}: {time.perf_counter() - start:.1f} s")
        self.keep_table()
        return answer

    def together(self, jobs: Sequence[tuple[Any, ...]], seconds: float | None = None) -> None:
        """Several commands, as many at once as the size says; those that fail are told."""
        with concurrent.futures.ThreadPoolExecutor(self.size.together) as pool:
            found = {job[0]: pool.submit(self.command, *job, seconds=seconds) for job in jobs}
        for name, future in found.items():
            if (error := future.exception()) is not None:
                self.note(name, error)

    def note(self, name: str, error: BaseException) -> None:
        self.failed.append(f"{name}: {error}")
        self.say(f"FAILED {name}: {error}")

    # --- data ---------------------------------------------------------------------------------

    def write_clips(self, share: float = 1.0, sets: Sequence[str] = (*RECIPES, "held")) -> None:
        """Write the recordings that are not there, of those to train on the first `share`, one at least."""
        work = []
        for name, members in [(name, recordings(self.size)[name]) for name in sets]:
            folder = self.out / "clips" / name
            wanted = {r.name: r.clips if name == "held" else max(1, round(share * r.clips)) for r in members}
            work += [
                (rooms, number, folder)
                for rooms in members
                for number in range(wanted[rooms.name])
                if not (folder / rooms.ids()[number]).is_dir()
            ]
            if name in RECIPES:
                write_index([one for rooms in members for one in rooms.ids()], folder, RECIPES[name])
        if self.asked.workers > 1 and len(work) > 1:
            methods = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(self.asked.workers, mp_context=methods) as pool:
                jobs = [pool.submit(_render, one, self.asked.render) for one in work]
                seconds = None if self.clips_end is None else max(0.0, self.clips_end - time.perf_counter())
                for late in concurrent.futures.wait(jobs, seconds).not_done:
                    late.cancel()
            for job in jobs:
                if not job.cancelled():
                    job.result()
        else:
            for one in work:
                _render(one, self.asked.render)
        self.say(f"{len(work)} clips written")

    def annotate(self, share: float = 1.0) -> None:
        """Clips and their cameras, by the command; all sets at once where there are processors for it."""
        self.write_clips(share)
        s, jobs, all_workers = self.size, [], max(1, self.asked.workers)
        counts = {"rooms": s.train, "depth": s.depth, "other": s.other}
        for name, recipe in RECIPES.items():
            index = self.out / "clips" / name / "clips.yaml"
            words = ["--set", f"source.index={index}", "--out", self.out / "data" / name]
            if recipe == "posed":
                words += [word for key in FEW_TRACKS for word in ("--set", key)]
            workers = max(1, round(all_workers * counts[name] / sum(counts.values())))
            words += ["--limit", max(1, round(share * counts[name])), "--workers", workers]
            jobs.append((f"annotate-{name}", "annotate", recipe, *words))
        self.together(jobs)

    def clips(self, seconds: float | None) -> None:
        """Recordings and their cameras, a part after the other, until all are there or the time is over; then what is
        read no more is removed. Says in `clips.json` how many there are; another call may go on."""
        begun = time.perf_counter()
        self.clips_end = None if seconds is None else begun + seconds
        folders = {name: (self.out / "data" / name, self.out / "clips" / name) for name in RECIPES}
        for name, (data, clips) in folders.items():
            if RECIPES[name] == "rgbd":
                remove_bare(clips, verdicts_of(data))
        share = 0.0
        while share < 1 and (self.clips_end is None or time.perf_counter() < self.clips_end):
            share = min(1.0, share + self.asked.part)
            self.annotate(share)
        told: dict[str, object] = {"share": share}
        for name, (data, clips) in folders.items():
            verdicts = verdicts_of(data)
            keep_small(clips, verdicts)
            told[name] = dict(Counter(verdicts.values()))
        told["seconds"] = round(time.perf_counter() - begun, 1)
        self.say(f"clips: {told}")
        (self.out / "clips.json").write_text(json.dumps(told), encoding="utf-8")

    def left(self) -> float:
        """Seconds until the time is over."""
        return 60 * self.asked.minutes - (time.perf_counter() - self.start)

    def parts(self) -> None:
        """The networks that encode, as a release lays them out."""
        folder, s = self.out / "parts", self.size
        if (folder / "config.yaml").is_file():
            return
        height, width = s.picture
        path = {"turn": 1.2, "fov_deg": (62.0, 110.0), "zoom": 0.2}
        both = [
            Rooms(name="codec", clips=n, frames=33, height=height, width=width, seed=seed, path=path)
            for n, seed in ((s.codec_rooms, 9), (max(1, s.codec_rooms // 8), 10))
        ]
        torch.backends.cudnn.benchmark = True
        pool, held_out = (pictures_of(rooms, self.device) for rooms in both)
        self.psnr_db = make_codec(s.codec, pool, held_out, folder / "vae", self.say)
        del pool, held_out
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # others work on the same device from here on
        write_text_encoder(folder / "text_encoder", width=int(str(s.model["text_width"])))
        (folder / "config.yaml").write_text("text_encoder:\n  chi_prompt: ['Say: ']\n", encoding="utf-8")

    def encode(self) -> None:
        s = self.size
        keys = (
            f"height={s.picture[0]}",
            f"width={s.picture[1]}",
            f"frames={s.window}",
            f"stride={s.stride}",
        )
        words = [w for key in keys for w in ("--set", key)]
        parts = ("--weights", self.out / "parts", *words)
        workers = {"rooms": s.encoders, "depth": s.encoders // 8, "other": s.encoders // 4}
        jobs = []
        for name, count in workers.items():
            where = (self.out / "data" / name, "--out", self.out / "encoded" / name)
            jobs.append((f"encode-{name}", "encode", *where, *parts, "--workers", count))
        self.together(jobs)
        if not self.is_encoded("rooms"):
            raise RuntimeError("nothing to train on: " + "; ".join(self.failed))

    def encoded(self, name: str) -> list[Path]:
        """Folders to train on, of rooms, other ones, or random numbers."""
        names = [n for n in ("rooms", "depth") if self.is_encoded(n)] if name == "rooms" else [name]
        return [self.out / "encoded" / n for n in names]

    def is_encoded(self, name: str) -> bool:
        return any((self.out / "encoded" / name / "shards").glob("*.safetensors"))

    # --- training -----------------------------------------------------------------------------

    def weights(self, name: str) -> Path:
        """What a training wrote last.

        Raises:
            FileNotFoundError: it wrote none.
        """
        folder = self.out / "train" / name / "weights"
        if not (found := sorted(folder.glob("step-????????.safetensors"))):
            raise FileNotFoundError(f"{folder}: no weights; logs/train-{name}.log says why")
        return found[-1]

    def training(self, name: str, recipe: str, *keys: str, data: str = "rooms") -> tuple[object, ...]:
        s = self.size
        common = [
            f"data.batch={s.batch}",
            f"data.held_out={s.held_out}",
            f"data.workers={s.loaders}",
            "parallel.context=1",
            "parallel.recompute=nothing",
            "optimiser.warmup_steps=30" if s.batch > 1 else "optimiser.warmup_steps=0",
            "optimiser.decay_from=0.5",
            "checkpoint.every=100000",
            "validation.every=100000",
            f"log.every={LOGGED.get(recipe, 20) if s.batch > 1 else 1}",
            f"steps={self.steps[name.split('-')[0]]}",
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
        folders = [word for folder in self.encoded(data) for word in ("--data", folder)]
        where = (*folders, "--out", self.out / "train" / name)
        return (f"train-{name}", "train", recipe, *where, "--resume", *words)

    def train(self) -> None:
        """The stages; the third once for every control; each is sampled while the next one is trained."""
        depth = int(str(self.size.model["depth"]))
        new = ("start.weights=null", "start.grow=false")
        self.train_missing(
            self.training("stage1", "stage1", *new, f"model.softmax_every={depth + 1}"),
        )
        self.sample("stage1")
        self.train_missing(self.training("stage2", "stage2", f"start.weights={self.weights('stage1')}"))
        self.sample("stage2")
        self.fit_time(*COST)
        if self.asked.minutes is not None and not self.trained("stage3-both"):
            self.train_missing(*self.arms(), seconds=PILOT_S)
            self.measure_arms()
        self.train_missing(*self.arms())
        whole = self.fit_time("stage4", "ode", "forced")
        if not whole:
            self.fit_time("stage4")
        self.sample(*(f"stage3-{control}" for control in CONTROLS if self.trained(f"stage3-{control}")))
        self.sample("far-before")
        best = f"start.weights={self.weights('stage3-both')}"
        lora = ("lora.rank=16", "lora.alpha=16", "optimiser.lr=0.001")
        jobs = [self.training("stage4", "stage4", best)]
        if self.is_encoded("other"):
            jobs.append(self.training("lora", "finetune_lora", best, *lora, data="other"))
        self.train_missing(*jobs)
        self.sample("far-lora", "stage4", "stage4-four-steps")
        if whole:
            students(self)
        else:
            self.say("no time for the students")

    def arms(self) -> list[tuple[Any, ...]]:
        """The third stage with every camera control."""
        jobs, start = [], f"start.weights={self.weights('stage2')}"
        for control in CONTROLS:
            cameras = "keep" if control == "none" else "from_main"
            keys = (f"data.cameras={control}", f"start.cameras={cameras}")
            jobs.append(self.training(f"stage3-{control}", "stage3", start, *keys))
        return jobs

    def measure_arms(self) -> None:
        """What a step takes of trainings that run side by side, from their first minute; their lengths by that."""
        folders = [self.out / "train" / name for name in ("stage2", *(f"stage3-{c}" for c in CONTROLS))]
        alone, *found = (step_seconds(folder / "metrics.csv") for folder in folders)
        if alone is not None and (known := [s for s in found if s is not None]):
            self.cost["stage3"] = max(known) / alone
        self.fit_time(*COST)

    def fit_time(self, *phases: str) -> bool:
        """Shorten or lengthen the trainings of the phases that follow to come to the time that is left; whether there
        is enough of it."""
        if self.asked.minutes is None:
            return True
        step_s = step_seconds(self.out / "train" / "stage2" / "metrics.csv")
        assert step_s is not None
        left = self.left() - LAST_S - START_S * sum(STARTS.get(name, 1) for name in phases)
        wanted = step_s * sum(self.cost[name] * self.size.steps[name] for name in phases)
        factor = min(2.0, max(LEAST, left / wanted))
        for name in [n for n in self.steps if FOLLOWS.get(n, n) in phases]:
            self.steps[name] = max(5, round(factor * self.size.steps[name]))
        enough = left >= LEAST * wanted
        self.say(
            f"{', '.join(phases)}: {1e3 * step_s:.0f} ms a step alone; {left:.0f} s for steps: {factor:.2f} of those "
            "asked for" + ("" if enough else ", too few")
        )
        return enough

    def trained(self, name: str) -> bool:
        return (self.out / "train" / name / "weights").is_dir()

    def train_missing(self, *jobs: tuple[Any, ...], seconds: float | None = None) -> None:
        missing = [job for job in jobs if not self.trained(str(job[0]).removeprefix("train-"))]
        self.together(missing, seconds)

    # --- samples ------------------------------------------------------------------------------

    def manifests(self) -> None:
        """What is to be made of each held-out set."""
        names = {word: [f"{word}_{n:04d}" for n in range(self.size.held)] for word in ("near", "far")}
        for word, ids in names.items():
            write_manifest(self.out / f"{word}.jsonl", self.out / "clips" / "held", ids)
            write_paths(self.out / f"paths-{word}", self.out / "clips" / "held", ids)

    def generation(self, name: str, weights: Path, word: str, *further: object) -> tuple[Any, ...]:
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

    def asked_of(self, name: str) -> tuple[Path, str, tuple[object, ...]]:
        """Weights of a row of the table, the held-out set that it follows, and how it is sampled."""
        s = self.size
        steps = ("--steps", s.sampling_steps, "--guidance", 1, "--shift", s.shift)
        four = ("--mode", "distilled", "--times", "1000,967,908,764,0")
        if name == "stage4":
            return self.weights(name), "near", ("--mode", "chunk-causal", *steps)
        if name == "stage4-four-steps":
            return self.weights("stage4"), "near", four
        if name in STUDENTS:
            return self.weights(name), "near", four
        if name == "far-before":
            return self.weights("stage3-both"), "far", steps
        if name == "far-lora":
            lora = sorted((self.out / "train" / "lora" / "weights").glob("lora-*"))[-1]
            return self.weights("stage3-both"), "far", (*steps, "--lora", lora)
        return self.weights(name), "near", steps

    def sample(self, *names: str) -> None:
        """Generate, measure and evaluate networks, beside what comes next."""

        def run(name: str) -> None:
            try:
                weights, word, how = self.asked_of(name)
                if not (self.out / "videos" / name).is_dir():
                    self.command(*self.generation(name, weights, word, *how))
                self.evaluate(name, word, self.out / "videos" / name)
                self.rows[name].loss = held_out_loss(
                    self.out / "train" / ("lora" if name == "far-lora" else name) / "metrics.csv"
                )
                self.keep_table()
            except Exception as error:  # noqa: BLE001  (whatever it is, it is told and the road goes on)
                self.note(f"sample {name}", error)

        for name in names:
            if self.size.together == 1:
                run(name)
            else:
                self.sampling.append(self.beside.submit(run, name))

    def evaluate(self, name: str, word: str, videos: Path) -> None:
        """The row of some videos against the held-out paths."""
        clips, measured = self.out / "clips" / "held", self.out / "measured"
        ids = [f"{word}_{n:04d}" for n in range(self.size.held)]
        with self.measuring:
            measure_cameras(videos, ids, clips, measured / name, self.device)
        paths = self.out / f"paths-{word}"
        text = self.command(f"evaluate-{name}", "evaluate", measured / name, paths, "--format", "json")
        errors = first_frame_errors(measured / name, paths, ids)
        chance = first_frame_errors(measured / name, paths, ids, other=1) if len(ids) > 1 else []
        self.rows[name] = Scores(found=means_of(json.loads(text)), errors=errors, by_chance=chance)

    def true_videos(self) -> None:
        """What the measurement itself errs, on the true videos and on those that went through the autoencoder."""
        clips = self.out / "clips" / "held"
        for word in ("near", "far"):
            ids = [f"{word}_{n:04d}" for n in range(self.size.held)]
            true = self.out / "videos" / f"true-{word}"
            true.mkdir(parents=True, exist_ok=True)
            for name in ids:
                (true / f"{name}.mp4").unlink(missing_ok=True)
                os.link(clips / name / "rgb.mp4", true / f"{name}.mp4")
            self.evaluate(f"true-{word}", word, true)
            resting = first_frame_errors(None, self.out / f"paths-{word}", ids)
            self.rows[f"rest-{word}"] = Scores(errors=resting)
        names = [f"near_{n:04d}" for n in range(self.size.held)]
        coded = self.out / "videos" / "coded-near"
        write_coded(self.out / "parts" / "vae", clips, names, coded, self.size.picture, self.device)
        self.evaluate("coded-near", "near", coded)
        self.keep_table()

    # --- the whole ----------------------------------------------------------------------------

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.over("it was asked to end"))
        if self.asked.minutes is not None:
            timer = threading.Timer(self.left(), self.over, [f"{self.asked.minutes:g} minutes are over"])
            timer.daemon = True
            timer.start()
        try:
            self.begin()
            self.train()
        except Exception as error:  # noqa: BLE001  (told as every failure; what was measured is told all the same)
            self.note("the road", error)
        finally:
            for future in self.sampling:
                if (error := future.exception()) is not None:
                    self.note("true videos", error)
            self.tell()
        if self.failed:
            raise SystemExit(1)

    def begin(self) -> None:
        """Clips, networks that encode, encoded clips; beside them all kernels are compiled where there are some."""
        with concurrent.futures.ThreadPoolExecutor(2) as pool:  # processors work while the device does
            if self.asked.clips_s is not None or not (self.out / "clips.json").is_file():
                written = pool.submit(self.clips, self.asked.clips_s)
            else:
                written = pool.submit(self.write_clips, sets=("held",))
            compiled = pool.submit(self.compile) if self.device.type == "cuda" else None
            self.parts()
            written.result()
            self.manifests()
            self.encode()
            self.sample_true()
            if compiled is not None and (error := compiled.exception()) is not None:
                self.note("kernels", error)

    def over(self, why: str) -> None:
        """The end of the road before its end: what runs is ended, what is known is told."""
        self.failed.append(f"the road: {why}")
        self.tell()
        self.commands.end()
        os._exit(1)

    def compile(self) -> None:
        """A step of the third stage on random numbers of the clips' shape: what Triton compiles for it is kept for all
        that come after, which would each wait for most of a minute."""
        s, data = self.size, self.out / "encoded" / "random"
        if self.trained("stage3-kernels"):
            return
        write_random(data, s, windows=2 * s.batch)
        new = ("start.weights=null", "start.grow=false", "start.cameras=keep", "data.allow_stand_in=true")
        new = (*new, "steps=1", "validation.every=0", "data.held_out=0")
        name, *words = self.training("stage3-kernels", "stage3", *new, data="random")
        self.command(str(name), *words)

    def sample_true(self) -> None:
        if self.size.together == 1:
            self.true_videos()
        else:
            self.sampling.append(self.beside.submit(self.true_videos))

    def keep_table(self) -> None:
        """The table and the times as they are now: whatever ends the run, they are there."""
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        told = {"device": device, "steps": self.steps, "autoencoder_db": self.psnr_db}
        told["trained"] = {f.name: last for f in (self.out / "train").glob("*") if (last := last_step(f))}
        told |= {name: round(seconds, 1) for name, seconds in list(self.commands.times)}
        table = "\n".join([table_of(dict(self.rows)), *self.failed]) + "\n"
        with self.writing:
            (self.out / "table.md").write_text(table, encoding="utf-8")
            (self.out / "times.json").write_text(json.dumps(told, indent=1), encoding="utf-8")

    def tell(self) -> None:
        print(table_of(dict(self.rows)))
        for line in self.failed:
            print("FAILED", line.splitlines()[0])
        self.keep_table()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--minutes", type=float, help="that all may take; null: as many steps as the size says"
    )
    parser.add_argument(
        "--only", choices=("clips",), help="no more than clips; another call goes on with them"
    )
    parser.add_argument("--part", type=float, default=0.25, help="of the clips, made at a time")
    parser.add_argument("--clips-s", type=float, help="go on with clips for so long, before they are encoded")
    parser.add_argument("--render", default="cpu", help="where recordings are rendered: cpu, cuda")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    asked = parser.parse_args()
    road = Road(SIZES[asked.size], asked)
    if asked.only == "clips":
        road.clips(None if asked.minutes is None else 60 * asked.minutes)
    else:
        road.run()


if __name__ == "__main__":
    main()
