"""Training processes that are killed at arbitrary moments and started again; run by `test_loading_kill.py`.

Every rank is a process of its own. It takes a step (writes what it got to its log), meets the other ranks, as
collectives make it, and rank 0 then and again saves the loader's state. Now and then a rank gets SIGKILL; the others
follow, as a launcher does it, and all start again from the file.

    python killed_training.py DATASET FOLDER SEED WHICH      prints one JSON object; WHICH: "some" or "all" set-ups
"""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

EPOCHS, NUM_CLIPS, NUM_FRAMES, LOADER_SEED = 2, 24, 9, 5


@dataclass(frozen=True)
class Setup:
    """One way to run: ranks, DataLoader workers of each, ranks that share a clip, kills on the way."""

    ranks: int
    workers: int
    context_parallel: int = 1
    kills: int = 3

    @property
    def name(self) -> str:
        return f"{self.ranks} ranks, {self.workers} workers, {self.context_parallel} share a clip"


# Every start of a rank with workers costs the start of a fork server, so these are killed less often.
SOME = [
    *(Setup(1, 0), Setup(2, 0), Setup(4, 0), Setup(4, 0, context_parallel=2)),
    Setup(1, 2, kills=1),
]
SETUPS = {"some": SOME, "all": [*SOME, Setup(2, 2, kills=1)]}


def train(setup: Setup, rank: int, dataset: str, folder: Path, save_every: int, barrier: Any) -> None:
    # In the ranks alone, whose fork server has it: the process that kills them has no use for it.
    import theodolite.dataset
    import torch
    from theodolite.dataset.loading import ClipStream, Ranks, Sampling
    from theodolite.dataset.store import write_atomically

    torch.set_num_threads(1)
    stream = ClipStream(
        theodolite.dataset.open(dataset),
        Sampling(num_frames=NUM_FRAMES),
        seed=LOADER_SEED,
        ranks=Ranks(rank, setup.ranks, setup.context_parallel),
        num_workers=setup.workers,
    )
    checkpoint, step = folder / "checkpoint.json", 0
    if checkpoint.is_file():
        saved = json.loads(checkpoint.read_text())
        step = saved["step"]
        stream.load_state_dict(saved["loader"])
    with (folder / f"rank{rank}.log").open("a", buffering=1) as log:
        while stream.position.epoch < EPOCHS:
            for sample in stream:
                log.write(json.dumps([step, sample["clip_id"], sample["frame_index"].tolist()]) + "\n")
                step += 1
                time.sleep(0.003)
                barrier.wait()
                if rank == 0 and step % save_every == 0:
                    state = {"step": step, "loader": stream.state_dict()}
                    write_atomically(checkpoint, json.dumps(state).encode())


def lines(log: Path) -> list[Any]:
    """Whole lines; the last one of a killed process may be cut short."""
    text = log.read_text() if log.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def run(setup: Setup, dataset: str, folder: Path, dice: random.Random) -> dict[str, Any]:
    """Run to the end through several kills; what each rank saw, and which kills there were."""
    folder.mkdir()
    context = multiprocessing.get_context("forkserver")
    save_every = dice.randint(1, 3)
    steps = EPOCHS * NUM_CLIPS * setup.context_parallel // setup.ranks
    kills = sorted(dice.sample(range(3 * steps // 4), setup.kills))
    num_killed = num_helpers = num_orphans = 0
    for kill_at in [*kills, None]:
        barrier = context.Barrier(setup.ranks)
        ranks = [
            context.Process(target=train, args=(setup, r, dataset, folder, save_every, barrier))
            for r in range(setup.ranks)
        ]
        for process in ranks:
            process.start()
        helpers: list[psutil.Process] = []
        if kill_at is not None:
            log = folder / f"rank{setup.ranks - 1}.log"
            while not any(line[0] >= kill_at for line in lines(log)):
                time.sleep(0.001)
                assert not any(p.exitcode for p in ranks), "a rank failed by itself"
            time.sleep(dice.uniform(0, 0.006))
            helpers = [h for p in ranks for h in children(p.pid)]
            dice.choice(ranks).kill()
            time.sleep(dice.uniform(0, 0.006))
            for process in ranks:
                process.kill()
        for process in ranks:
            process.join()
        codes = {p.exitcode for p in ranks}
        # On a busy machine this script may come too late, when a rank is done.
        assert codes <= ({0} if kill_at is None else {0, -signal.SIGKILL}), codes
        num_killed += -signal.SIGKILL in codes
        num_helpers += len(helpers)
        _ended, orphans = psutil.wait_procs(helpers, timeout=60)  # seconds, on a busy machine
        num_orphans += len(orphans)
        for process in orphans:
            process.kill()
    logs = [lines(folder / f"rank{r}.log") for r in range(setup.ranks)]
    return {
        "logs": logs,
        "kills": kills,
        "killed": num_killed,
        "orphans": num_orphans,
        "helpers": num_helpers,
    }


def children(pid: int | None) -> list[psutil.Process]:
    """Fork server, resource tracker and DataLoader workers of a rank."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def main() -> None:
    dataset, folder, seed, which = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    multiprocessing.get_context("forkserver").set_forkserver_preload(["theodolite.dataset.loading"])
    dice = random.Random(seed)
    print(json.dumps({s.name: run(s, dataset, folder / str(i), dice) for i, s in enumerate(SETUPS[which])}))


if __name__ == "__main__":
    main()
