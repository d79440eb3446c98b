"""Size and speed of 213k synthetic rows, beside the same content as JSONL + npz in WebDataset tars.

Real list lengths: 164,060 clips of 161 frames and 48,915 of 961. Prints a Markdown table.

    python benchmarks/dataset_storage.py --out FOLDER [--scale 1.0] [--rival-scale 0.1]

The rival is measured on its own share of the clips (its times grow with it) and extrapolated linearly, which
the table says; `--rival-scale 1` measures all of it. Queries run in processes of their own on one core;
processor time is what counts there, so that other load on the machine does not.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import theodolite.dataset
from theodolite.dataset.cameras import transforms as cam
from theodolite.dataset.cameras.rotations import so3_exp
from theodolite.dataset.index import write_index
from theodolite.dataset.rows import Gate, Row
from theodolite.dataset.store import list_parts, prepare_output, write_part

SHORT, LONG = (164_060, 161), (48_915, 961)
SOURCES = ("spatialvid", "dl3dv", "miradata", "sekai")
CLIPS_PER_PART, CLIPS_PER_TAR = 250, 1000
"""Tars as our own WebDataset export cuts them; `webdataset.ShardWriter` by default makes them up to 3 GB large."""
METRIC, THRESHOLD = "reprojection_rms_px", 0.3


def clip_lengths(scale: float) -> np.ndarray:
    """Frames of each clip, short ones first; `scale` is the share of all clips."""
    return np.concatenate([np.full(round(n * scale), f) for n, f in (SHORT, LONG)])


def synthetic_row(number: int, frames: int, rng: np.random.Generator) -> Row:
    """A plausible accepted or rejected row: smooth random-walk cameras, so that compression is not
    flattered."""
    step = rng.normal(size=(frames, 6)) * [0.02, 0.01, 0.03, 0.004, 0.006, 0.002]
    tangent = np.cumsum(np.cumsum(step, axis=0) * 0.05 + step, axis=0)
    poses = cam.transform(so3_exp(tangent[:, 3:]), tangent[:, :3])
    focal = 900 * np.exp(0.05 * np.cumsum(rng.normal(size=frames)) / np.sqrt(frames))
    index = np.round(np.arange(frames) * 29.97 / 16)
    n_scale = max(frames // 16, 4)
    error = float(rng.uniform(0.2, 1.5))
    accepted = number % 7 != 0
    return Row(
        clip_id=f"clip_{number:06d}",
        source=SOURCES[number * len(SOURCES) // 213_000 % len(SOURCES)],
        original_id=f"{rng.integers(1 << 60):016x}.mp4",
        media_kind="video",
        media=f"videos/{number // 5000:04d}/{number:06d}.mp4",
        mode="estimate",
        data_licence="CC-BY-NC-SA-4.0",
        data_redistributable=False,
        weights=("pi3x@4d965e94", "moge2@0a1b2c3d"),
        weight_licences=("CC-BY-NC-4.0", "MIT"),
        stand_in=False,
        recipe_hash="bench",
        package_version="0.1.0",
        annotate_wall_s=float(rng.uniform(20, 60)),
        stage_wall_s={"bundle": 12.5, "decode": 3.5},
        height=720,
        width=1280,
        source_fps=29.97,
        fps=16.0,
        frame_index=index.astype(np.int32),
        time_s=index / 29.97,
        camera_to_world=poses,
        focal_px=np.stack([focal, focal], axis=1),
        principal_point_px=np.tile([640.0, 360.0], (frames, 1)),
        pose_source=np.ones(frames, np.int8),
        focal_model="smooth",
        position_sigma_m=rng.uniform(0.001, 0.02, frames).astype(np.float32),
        rotation_sigma_rad=rng.uniform(0.0001, 0.002, frames).astype(np.float32),
        log_focal_sigma=rng.uniform(0.001, 0.01, frames).astype(np.float32),
        reprojection_px=rng.uniform(0.2, 1.5, frames).astype(np.float32),
        metres_per_unit=2.5,
        scale_model="constant",
        scale_frame=np.linspace(0, frames - 1, n_scale).astype(int),
        scale_value=(2.5 * np.exp(rng.normal(size=n_scale) * 0.05)).astype(np.float32),
        scale_mad_log=0.05,
        scale_p10=2.3,
        scale_p90=2.7,
        scale_cov=0.05,
        reprojection_rms_px=error,
        reprojection_median_px=error,
        num_tracks=3000,
        path_length_m=float(rng.uniform(0.5, 60)),
        fov_x_min_rad=1.1,
        fov_x_max_rad=1.3,
        gates=(Gate(name="fov_x", value=1.2, lower=0.43, upper=2.1, unit="rad", passed=True),),
        verdict="accepted" if accepted else "rejected",
        reasons=() if accepted else ("scale_inconsistent",),
        reason_details=() if accepted else ("MAD of log scale 0.4 exceeds 0.2",),
        captions={"scene": "A walk through a street with shops, people and parked cars on both sides."},
    )


def shards(scale: float, size: int) -> Iterator[tuple[str, list[Row]]]:
    """Shards of one source and up to `size` clips each, generated on the fly."""
    lengths = clip_lengths(scale)
    rng = np.random.default_rng(0)
    order = np.random.default_rng(1).permutation(len(lengths))
    pending: list[Row] = []
    shard = 0
    for number, i in enumerate(order):
        row = synthetic_row(number, int(lengths[i]), rng)
        if pending and (pending[0].source != row.source or len(pending) == size):
            yield f"{shard:06d}", pending
            pending, shard = [], shard + 1
        pending.append(row)
    if pending:
        yield f"{shard:06d}", pending


def write_ours(out: Path, scale: float) -> dict[str, float]:
    """Parquet dataset; the time of generating rows is not counted."""
    shutil.rmtree(out, ignore_errors=True)
    prepare_output(out, recipe_hash="bench")
    seconds, clips = 0.0, 0
    for shard_id, rows in shards(scale, CLIPS_PER_PART):
        start = time.process_time()
        write_part(out, rows, shard_id=shard_id, recipe_hash="bench")
        seconds += time.process_time() - start
        clips += len(rows)
    start = time.process_time()
    index = write_index(out)
    index_s = time.process_time() - start
    index_size = sum(p.stat().st_size for p in index.iterdir())
    size = index_size + sum(p.stat().st_size for p in list_parts(out))
    return {
        "write_s": seconds,
        "index_s": index_s,
        "bytes": size,
        "index_bytes": index_size,
        "clips": clips,
    }


def write_rival(out: Path, scale: float) -> dict[str, float]:
    """The same content as tars of `<id>.json` and `<id>.npz`, beside one JSONL index with all scalars."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    seconds, clips = 0.0, 0
    with (out / "index.jsonl").open("w") as index:
        for shard_id, rows in shards(scale, CLIPS_PER_TAR):
            start = time.process_time()
            with tarfile.open(out / f"{shard_id}.tar", "w") as tar:
                for row in rows:
                    scalars: dict[str, Any] = {"shard": shard_id}
                    arrays: dict[str, Any] = {}
                    for name, value in vars(row).items():
                        if isinstance(value, np.ndarray):
                            arrays[name] = value
                        elif name == "gates":
                            scalars[name] = [vars(g) for g in value]
                        else:
                            scalars[name] = value
                    text = json.dumps(scalars)
                    index.write(text + "\n")
                    stream = io.BytesIO()
                    np.savez(stream, **arrays)
                    for suffix, content in (("json", text.encode()), ("npz", stream.getvalue())):
                        member = tarfile.TarInfo(f"{row.clip_id}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
            seconds += time.process_time() - start
            clips += len(rows)
    return {"write_s": seconds, "bytes": sum(p.stat().st_size for p in out.iterdir()), "clips": clips}


# ------------------------------------------------------------------ queries, each run in a fresh process


def ours_counts(out: Path) -> int:
    return sum(theodolite.dataset.open(out).counts("source", "verdict").values())


def rival_counts(out: Path) -> int:
    with (out / "index.jsonl").open() as index:
        return sum(Counter((r["source"], r["verdict"]) for r in map(json.loads, index)).values())


def ours_select(out: Path) -> int:
    return theodolite.dataset.open(out).where(pc.field(METRIC) < THRESHOLD).to_table(["clip_id"]).num_rows


def rival_select(out: Path) -> int:
    with (out / "index.jsonl").open() as index:
        return sum(1 for r in map(json.loads, index) if r[METRIC] < THRESHOLD)


def ours_stream(out: Path) -> int:
    total = 0
    columns = ["camera_to_world", "focal_px", "principal_point_px", "time_s"]
    for batch in theodolite.dataset.open(out).batches(columns):
        for name in columns:
            total += batch.column(name).flatten().to_numpy(zero_copy_only=False).nbytes
    return total


def rival_stream(out: Path) -> int:
    total = 0
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".npz"):
                    stream = tar.extractfile(member)
                    assert stream is not None
                    with np.load(io.BytesIO(stream.read())) as data:
                        for name in ("camera_to_world", "focal_px", "principal_point_px", "time_s"):
                            value = data[name]
                            total += value[:, :3].nbytes if name == "camera_to_world" else value.nbytes
    return total


def ours_stream_plain(out: Path) -> int:
    """The ceiling: pyarrow's own reader, file by file and row group by row group, nothing else."""
    total = 0
    columns = ["camera_to_world", "focal_px", "principal_point_px", "time_s"]
    for file in sorted(map(str, out.glob("data/*/*.parquet"))):
        part = pq.ParquetFile(file)
        for group in range(part.num_row_groups):
            table = part.read_row_group(group, columns=columns, use_threads=False)
            total += sum(column.chunk(0).values.nbytes for column in table.columns)
    return total


def spread_ids(place: dict[str, Any], count: int) -> tuple[list[str], list[str]]:
    """Clips of `count` different files, and as many others of the same files."""
    by_file: dict[Any, list[str]] = {}
    for clip_id, file in place.items():
        by_file.setdefault(file, []).append(clip_id)
    rng = np.random.default_rng(0)
    files = [by_file[file] for file in sorted(by_file) if len(by_file[file]) > 1]
    chosen = [files[i] for i in rng.permutation(len(files))[:count]]
    pairs = [rng.choice(ids, 2, replace=False).tolist() for ids in chosen]
    return [a for a, _b in pairs], [b for _a, b in pairs]


def timed(read: Callable[[str], Any], ids: list[str]) -> float:
    """Median seconds of a read."""
    times = []
    for clip_id in ids:
        start = time.process_time()
        read(clip_id)
        times.append(time.process_time() - start)
    return statistics.median(times)


def ours_by_id(out: Path, count: int = 60) -> dict[str, float]:
    start = time.process_time()
    clips = theodolite.dataset.open(out)
    ids = clips.to_table(["clip_id"])["clip_id"].to_pylist()
    clips.row(ids[0])
    first = time.process_time() - start
    parts = clips.to_table(["index_part"])["index_part"].to_pylist()
    place = dict(zip(ids, parts, strict=True))
    opening, opened = spread_ids(place, count)
    return {"first_s": first, "opening_s": timed(clips.row, opening), "opened_s": timed(clips.row, opened)}


def rival_by_id(out: Path, count: int = 60) -> dict[str, float]:
    start = time.process_time()
    with (out / "index.jsonl").open() as index:
        shard_of = {r["clip_id"]: r["shard"] for r in map(json.loads, index)}
    tars: dict[str, tarfile.TarFile] = {}

    def scan(clip_id: str) -> dict[str, Any]:
        """A tar has no table of contents: headers are read one after the other until both members are found."""
        wanted, found = {f"{clip_id}.json", f"{clip_id}.npz"}, {}
        with tarfile.open(out / f"{shard_of[clip_id]}.tar") as tar:
            for member in tar:
                if member.name in wanted:
                    stream = tar.extractfile(member)
                    assert stream is not None
                    found[member.name[-4:]] = stream.read()
                    if len(found) == 2:
                        break
        return decode(found["json"], found[".npz"])

    def known(clip_id: str) -> dict[str, Any]:
        """The tar is open and all of its headers are in memory."""
        parts = [tars[shard_of[clip_id]].extractfile(f"{clip_id}.{suffix}") for suffix in ("json", "npz")]
        assert parts[0] is not None
        assert parts[1] is not None
        return decode(parts[0].read(), parts[1].read())

    def decode(text: bytes, arrays: bytes) -> dict[str, Any]:
        with np.load(io.BytesIO(arrays)) as data:
            return json.loads(text) | {name: data[name] for name in data.files}

    scan(next(iter(shard_of)))
    first = time.process_time() - start
    opening, opened = spread_ids(shard_of, count)
    opening_s = timed(scan, opening)
    with ExitStack() as stack:
        for shard in {shard_of[clip_id] for clip_id in opened}:
            tars[shard] = stack.enter_context(tarfile.open(out / f"{shard}.tar"))
            tars[shard].getmembers()
        return {"first_s": first, "opening_s": opening_s, "opened_s": timed(known, opened)}


QUERIES: dict[str, Callable[[Path], Any]] = {
    f.__name__: f
    for f in (
        *(ours_counts, ours_select, ours_stream, ours_stream_plain, ours_by_id),
        *(rival_counts, rival_select, rival_stream, rival_by_id),
    )
}


def run_query(name: str, out: Path) -> dict[str, Any]:
    """Result, seconds and peak memory of a query in a process of its own, second run (files in the page
    cache)."""
    command = [sys.executable, __file__, "--query", name, "--out", str(out)]
    outputs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(2)]
    return json.loads(outputs[-1])


def main() -> None:
    """One way of storing after the other, on the same rows: long, for each has to be written before it is read."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rival-scale", type=float, default=0.1)
    parser.add_argument("--keep", action="store_true", help="measure queries on what an earlier call wrote")
    parser.add_argument("--query", choices=sorted(QUERIES))
    arguments = parser.parse_args()
    if arguments.query:
        pa.set_cpu_count(1)
        pa.set_io_thread_count(2)
        start = time.process_time()
        result = QUERIES[arguments.query](arguments.out)
        seconds = time.process_time() - start
        # Not getrusage: its peak is inherited from the process that started this one.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peak = int(status["VmHWM"].split()[0])
        print(
            json.dumps(
                {
                    "result": result,
                    "seconds": seconds,
                    "peak_mib": peak / 1024,
                }
            )
        )
        return
    ours, rival = arguments.out / "parquet", arguments.out / "tars"
    summary = arguments.out / "written.json"
    if not (arguments.keep and summary.is_file()):
        written = write_ours(ours, arguments.scale), write_rival(rival, arguments.rival_scale)
        summary.write_text(json.dumps(written))
    a, b = json.loads(summary.read_text())
    grow = a["clips"] / b["clips"]
    assert run_query("ours_counts", ours)["result"] == a["clips"]
    measured = {name: run_query(name, ours if name.startswith("ours") else rival) for name in QUERIES}
    print(
        f"{a['clips']:.0f} clips; rival measured on {b['clips']:.0f}, times and size x {grow:.2f}; "
        f"{CLIPS_PER_PART} clips a part, {CLIPS_PER_TAR} a tar; processor seconds of one core, "
        "files in the page cache\n"
    )
    print("| | Parquet (ours) | JSONL + npz in tars | rival / ours |\n| --- | --- | --- | --- |")

    def line(label: str, x: float, y: float, unit: str) -> None:
        print(f"| {label} | {x:.3g} {unit} | {y:.3g} {unit} | {y / x:.3g} |")

    line("size", a["bytes"] / 1e9, b["bytes"] / 1e9 * grow, "GB")
    print(f"| of it the index | {a['index_bytes'] / 1e9:.3g} GB | | |")
    line("write", a["write_s"] + a["index_s"], b["write_s"] * grow, "s")
    print(f"| of it the index | {a['index_s']:.3g} s | | |")
    for key, label in (("counts", "(a) verdicts by source"), ("select", "(d) select by a metric")):
        x, y = measured[f"ours_{key}"], measured[f"rival_{key}"]
        line(label, x["seconds"], y["seconds"] * grow, "s")
        line(f"{label}, peak memory", x["peak_mib"], y["peak_mib"], "MiB")
    x, y = measured["ours_by_id"], measured["rival_by_id"]
    for key, label in (
        ("opening", "(b) one clip by id"),
        ("opened", "(b) one more clip of a file read before"),
    ):
        line(label, 1000 * x["result"][f"{key}_s"], 1000 * y["result"][f"{key}_s"], "ms")
    line("(b) the very first one, with the index", x["result"]["first_s"], y["result"]["first_s"] * grow, "s")
    x, y = measured["ours_stream"], measured["rival_stream"]
    line("(c) all cameras once", x["seconds"], y["seconds"] * grow, "s")
    rate_x, rate_y = x["result"] / x["seconds"] / 1e9, y["result"] / y["seconds"] / 1e9
    print(f"| (c) decoded | {rate_x:.2f} GB/s | {rate_y:.2f} GB/s | {rate_x / rate_y:.3g} times faster |")
    plain = measured["ours_stream_plain"]
    print(
        f"| (c) pyarrow alone on the same files | {plain['result'] / plain['seconds'] / 1e9:.2f} GB/s | | |"
    )
    line("(c) peak memory", x["peak_mib"], y["peak_mib"], "MiB")


if __name__ == "__main__":
    main()
