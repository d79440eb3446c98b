"""In which container should encoded clips lie? Random windows and whole epochs, from a cold disk.

    python benchmarks/encoded_storage.py --out FOLDER [--windows 48] [--frames 161] [--windows-per-shard 8]

Random windows of the real sizes (latents, text states, cameras) as our safetensors shards, as one file each, as an
uncompressed Arrow file of rows, and as WebDataset tars of npz. Before every measurement the files' pages are dropped
from memory, if the system does that. What is read is touched whole. A random read is a single window in a fresh order;
of tars, which cannot jump, the first sample of the shard that holds it counts as none. Prints a table: MB a second of
latents, and milliseconds a window.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from theodolite.dataset.encoded import (
    EncodedClip,
    Encoding,
    Window,
    begin,
    open_encoded,
    window_id,
    write_shard,
)

CHANNELS, HEIGHT, WIDTH, TOKENS, TEXT = 128, 22, 40, 300, 2304


def encoding() -> Encoding:
    return Encoding(
        height=32 * HEIGHT, width=32 * WIDTH, fit="cover", fps=16.0, temporal_stride=8, spatial_stride=32,
        latent_channels=CHANNELS, text_width=TEXT, text_tokens=TOKENS, autoencoder="random", text_encoder="random",
        stand_in=True,
    )  # fmt: skip


def clip(number: int, frames: int) -> EncodedClip:
    """Random numbers: nothing compresses, as in latents."""
    generator = torch.Generator().manual_seed(number)
    window = Window(
        id=window_id(f"clip{number:06d}", 0), clip_id=f"clip{number:06d}", first_frame=0, num_frames=frames,
        caption="random", cameras=True, data_licence="CC0-1.0", stand_in=True,
    )  # fmt: skip
    latent = (frames - 1) // 8 + 1
    return EncodedClip(
        window,
        torch.randn(CHANNELS, latent, HEIGHT, WIDTH, generator=generator).bfloat16(),
        torch.randn(TOKENS, TEXT, generator=generator).bfloat16(),
        torch.ones(TOKENS, dtype=torch.bool),
        torch.eye(4).repeat(frames, 1, 1),
        torch.rand(frames, 4, generator=generator) + 100,
    )


def drop(folder: Path) -> None:
    """Pages of a folder's files out of memory."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def touched(*arrays: torch.Tensor | np.ndarray | memoryview) -> int:
    """Read every byte."""
    total = 0
    for x in arrays:
        if isinstance(x, torch.Tensor):
            x = x.contiguous().view(torch.uint8).numpy()
        total += (
            int(np.frombuffer(x, np.uint8)[::4096].sum())
            if not isinstance(x, np.ndarray)
            else int(x.sum() > 0)
        )
    return total


def write_safetensors(folder: Path, windows: int, frames: int, per_shard: int) -> None:
    begin(folder, encoding(), (torch.zeros(TOKENS, TEXT), torch.ones(TOKENS, dtype=torch.bool)))
    for first in range(0, windows, per_shard):
        write_shard(folder, [clip(n, frames) for n in range(first, min(first + per_shard, windows))])


def read_safetensors(folder: Path) -> tuple[int, Callable[[int], object]]:
    data = open_encoded(folder)

    def read(index: int) -> object:
        found = data.read(index)
        return touched(found.latents, found.text)

    return len(data), read


def _fields(number: int, frames: int) -> dict[str, bytes]:
    c = clip(number, frames)
    assert c.camera_to_world is not None
    assert c.intrinsics_px is not None
    return {
        "latents": c.latents.contiguous().view(torch.uint8).numpy().tobytes(),
        "text": c.text.view(torch.uint8).numpy().tobytes(),
        "camera_to_world": c.camera_to_world.numpy().tobytes(),
        "intrinsics": c.intrinsics_px.numpy().tobytes(),
    }


def write_arrow(folder: Path, windows: int, frames: int, per_shard: int) -> None:
    folder.mkdir(parents=True)
    schema = pa.schema([(k, pa.large_binary()) for k in ("latents", "text", "camera_to_world", "intrinsics")])
    with pa.OSFile(str(folder / "all.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for number in range(windows):
            fields = _fields(number, frames)
            writer.write(
                pa.record_batch([pa.array([fields[k]], pa.large_binary()) for k in schema.names], schema)
            )


def read_arrow(folder: Path) -> tuple[int, Callable[[int], object]]:
    file = pa.ipc.open_file(pa.memory_map(str(folder / "all.arrow")))

    def read(index: int) -> object:
        batch = file.get_batch(index)
        arrays = [np.frombuffer(batch[k][0].as_buffer(), np.uint8) for k in ("latents", "text")]
        copies = [torch.from_numpy(a.copy()).view(torch.bfloat16) for a in arrays]  # as a batch needs them
        return [bool(x.isfinite().all()) for x in copies]

    return file.num_record_batches, read


def write_tars(folder: Path, windows: int, frames: int, per_shard: int) -> None:
    folder.mkdir(parents=True)
    for first in range(0, windows, per_shard):
        with tarfile.open(folder / f"shard-{first:06d}.tar", "w") as tar:
            for number in range(first, min(first + per_shard, windows)):
                buffer = io.BytesIO()
                fields = _fields(number, frames)
                arrays: dict[str, Any] = {k: np.frombuffer(v, np.uint8) for k, v in fields.items()}
                np.savez(buffer, **arrays)
                for suffix, content in (
                    ("json", json.dumps({"id": number}).encode()),
                    ("npz", buffer.getvalue()),
                ):
                    info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def epoch_of_tars(folder: Path) -> int:
    from webdataset.compat import WebDataset

    urls = sorted(str(p) for p in folder.glob("*.tar"))
    count = 0
    for sample in WebDataset(urls, shardshuffle=False, empty_check=False):
        arrays = np.load(io.BytesIO(sample["npz"]))
        for key in ("latents", "text"):
            torch.from_numpy(arrays[key]).view(torch.bfloat16).isfinite().all()
        count += 1
    return count


def epoch(read: Callable[[int], object], order: list[int]) -> None:
    for index in order:
        read(index)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=48)
    parser.add_argument("--frames", type=int, default=161)
    parser.add_argument("--windows-per-shard", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    size = CHANNELS * ((asked.frames - 1) // 8 + 1) * HEIGHT * WIDTH * 2 + TOKENS * TEXT * 2
    print(
        f"{asked.windows} windows of {size / 1e6:.1f} MB, {asked.windows_per_shard} a shard; median of {asked.repeats}"
    )
    print("| container | in order, MB/s | random, MB/s | random, ms a window | processor, ms a window |")
    print("| --- | --- | --- | --- | --- |")
    kinds = {
        "safetensors shards (ours)": (write_safetensors, read_safetensors, asked.windows_per_shard),
        "safetensors, a file each": (write_safetensors, read_safetensors, 1),
        "Arrow file, mapped": (write_arrow, read_arrow, 1),
        "WebDataset tars of npz": (write_tars, None, asked.windows_per_shard),
    }
    for name, (write, opened, per_shard) in kinds.items():
        folder = asked.out / name.replace(" ", "-").replace(",", "")
        shutil.rmtree(folder, ignore_errors=True)
        write(folder, asked.windows, asked.frames, per_shard)
        ordered, jumping, busy = [], [], []
        for repeat in range(asked.repeats):
            for target, order in (
                (ordered, list(range(asked.windows))),
                (jumping, np.random.default_rng(repeat).permutation(asked.windows).tolist()),
            ):
                if opened is None and target is jumping:
                    continue
                drop(folder)
                wall, cpu = time.perf_counter(), time.process_time()
                if opened is None:
                    assert epoch_of_tars(folder) == asked.windows
                else:
                    epoch(opened(folder)[1], order)
                target.append(time.perf_counter() - wall)
                busy.append(time.process_time() - cpu)
        total = asked.windows * size / 1e6
        random = statistics.median(jumping) if jumping else float("nan")
        print(
            f"| {name} | {total / statistics.median(ordered):.0f} | {total / random:.0f} | "
            f"{1e3 * random / asked.windows:.1f} | {1e3 * statistics.median(busy) / asked.windows:.1f} |",
            flush=True,
        )
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
