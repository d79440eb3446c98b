"""Does a loader feed eight ranks? Encoded clips read by eight processes at once, from a cold disk.

    python benchmarks/loader_ranks.py --out FOLDER [--windows 64] [--frames 961] [--ranks 8] [--step-s 9]

The same random windows of real sizes (latents, text states, cameras) lie as our safetensors shards, read as a training
reads them (`train.feed.Feed`, every process a data-parallel rank), as WebDataset tars, each process with its share of
them, and as a Lance table, each process taking its rows of the same shuffled order. Every process makes an epoch of
batches of one clip and touches every byte; pages are dropped from memory before. Prints clips and GB a second of all
processes together, their processor time, and beside them what eight GPUs take at the step time that is given.
"""

from __future__ import annotations

import argparse
import importlib
import io
import multiprocessing
import os
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoded_storage import (
    CHANNELS,
    HEIGHT,
    TEXT,
    TOKENS,
    WIDTH,
    _fields,
    drop,
    write_safetensors,
    write_tars,
)
from theodolite.dataset.encoded import all_finite, open_encoded
from theodolite.train.feed import Feed, Place


def sizes(frames: int) -> int:
    """Bytes of a window."""
    return CHANNELS * ((frames - 1) // 8 + 1) * HEIGHT * WIDTH * 2 + TOKENS * TEXT * 2 + frames * (16 + 4) * 4


def read_ours(folder: Path, rank: int, ranks: int, windows: int) -> int:
    data = open_encoded(folder)
    feed = Feed(data, range(windows), Place(rank=rank, ranks=ranks), workers=0)
    count = 0
    for micro in feed:
        for samples in micro:
            count += len(samples.ids)  # reading has looked at every number
        if feed.taken >= windows:
            return count
    return count


def read_tars(folder: Path, rank: int, ranks: int, windows: int) -> int:
    webdataset: Any = importlib.import_module("webdataset")
    urls = sorted(str(p) for p in folder.glob("*.tar"))[rank::ranks]
    count = 0
    if not urls:  # fewer tars than ranks
        return count
    for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False):
        arrays = np.load(io.BytesIO(sample["npz"]))
        count += int(all(_finite(arrays[key]) for key in ("latents", "text")))
    return count


def write_lance(folder: Path, windows: int, frames: int, per_shard: int) -> None:
    import pyarrow as pa

    lance: Any = importlib.import_module("lance")
    names = ("latents", "text", "camera_to_world", "intrinsics")
    schema = pa.schema([(name, pa.large_binary()) for name in names])

    def batches() -> Any:
        for number in range(windows):
            fields = _fields(number, frames)
            yield pa.record_batch([pa.array([fields[n]], pa.large_binary()) for n in names], schema)

    lance.write_dataset(batches(), str(folder), schema=schema, max_rows_per_file=per_shard)


def read_lance(folder: Path, rank: int, ranks: int, windows: int) -> int:
    lance: Any = importlib.import_module("lance")
    data = lance.dataset(str(folder))
    count = 0
    for row in np.random.default_rng(0).permutation(windows)[rank::ranks].tolist():
        table = data.take([row])
        arrays = [np.frombuffer(table[k].chunk(0)[0].as_buffer(), np.uint8) for k in ("latents", "text")]
        count += int(all(_finite(a.copy()) for a in arrays))
    return count


def _finite(raw: np.ndarray) -> bool:
    return all_finite(torch.from_numpy(raw).view(torch.bfloat16))


KINDS: dict[str, tuple[Any, Any]] = {
    "safetensors shards (ours), shuffled": (write_safetensors, read_ours),
    "WebDataset tars, in order": (write_tars, read_tars),
    "Lance, shuffled": (write_lance, read_lance),
}


def _rank(read: Any, folder: Path, rank: int, ranks: int, windows: int, gate: Any, found: Any) -> None:
    torch.set_num_threads(1)
    gate.wait()
    count = read(folder, rank, ranks, windows)
    used = resource.getrusage(resource.RUSAGE_SELF)
    found.put((count, used.ru_utime + used.ru_stime))


def epoch(read: Any, folder: Path, ranks: int, windows: int) -> tuple[int, float, float]:
    """Clips, seconds of the slowest rank, seconds of processors beyond the start."""
    context = multiprocessing.get_context("fork")
    gate, found = context.Barrier(ranks + 1), context.Queue()
    processes = [
        context.Process(target=_rank, args=(read, folder, r, ranks, windows, gate, found))
        for r in range(ranks)
    ]
    for process in processes:
        process.start()
    gate.wait()
    start = time.perf_counter()
    results = [found.get() for _ in processes]
    wall = time.perf_counter() - start
    for process in processes:
        process.join()
    return sum(r[0] for r in results), wall, sum(r[1] for r in results)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--frames", type=int, default=961)
    parser.add_argument("--windows-per-shard", type=int, default=4)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--step-s", type=float, required=True, help="a training step of one clip a GPU")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    size = sizes(asked.frames)
    print(f"{asked.windows} windows of {size / 1e6:.1f} MB, {asked.ranks} processes, {os.cpu_count()} cores")
    print("| container | clips/s | GB/s | processor, s a clip |\n| --- | --- | --- | --- |")
    for name, (write, read) in KINDS.items():
        folder = asked.out / name.split()[0]
        shutil.rmtree(folder, ignore_errors=True)
        try:
            write(folder, asked.windows, asked.frames, asked.windows_per_shard)
        except ModuleNotFoundError as error:
            print(f"| {name} | not measured: {error} | | |", flush=True)
            continue
        drop(folder)
        clips, wall, busy = epoch(read, folder, asked.ranks, asked.windows)
        assert clips == asked.windows, (clips, asked.windows)
        print(
            f"| {name} | {clips / wall:.1f} | {clips * size / wall / 1e9:.2f} | {busy / clips:.3f} |",
            flush=True,
        )
        shutil.rmtree(folder)
    rate = asked.ranks / asked.step_s
    print(
        f"{asked.ranks} GPUs at {asked.step_s:g} s a step take {rate:.2f} clips/s, {rate * size / 1e9:.3f} GB/s"
    )


if __name__ == "__main__":
    main()
