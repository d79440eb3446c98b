"""Decoders compared: CPU time, wall time, memory and wrong frames, each in a process of its own.

    python benchmarks/decode_bench.py VIDEO [VIDEO ...]

Reads the 16 fps clip of every video through `open_clip` with both back ends, and through decord's sparse
`get_batch`, whose frames are compared with PyAV's: a frame that fits a neighbour better is counted as wrong.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

METHODS = ("pyav, 1 thread", "pyav, 2 threads", "decord, contiguous", "decord, get_batch")


def clip(path: Path, **config):
    from theodolite.annotate.frames.base import DecodeConfig
    from theodolite.annotate.frames.open import open_clip
    from theodolite.annotate.sources.clip import ClipRef

    reference = ClipRef(clip_id="c", source="b", original_id="c", media_kind="video", media_path=path)
    return open_clip(reference, DecodeConfig(detect_cuts=False, min_frames=2, max_side_px=None, **config))


def measure(path: Path, method: str) -> dict:
    """One read; wall and CPU seconds include opening, not imports."""
    import av  # noqa: F401
    import decord

    frames = clip(path)  # imports, and the frame indices for get_batch
    index = frames.timing.frame_index
    start, before = time.perf_counter(), time.process_time()
    if method == "decord, get_batch":
        count = len(decord.VideoReader(str(path), num_threads=1).get_batch(index.tolist()).asnumpy())
    else:
        config = {"backend": "decord"} if method.startswith("decord") else {"threads": int(method.split()[1])}
        count = sum(1 for _ in clip(path, **config))
    return {
        "frames": count,
        "wall_s": time.perf_counter() - start,
        "cpu_s": time.process_time() - before,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "wrong": wrong(path, method, index),
    }


def wrong(path: Path, method: str, index: np.ndarray) -> int:
    """Frames that are closer to the source frame before or after than to the one asked for."""
    import decord

    small = {i: f[::4, ::4].astype(np.int16) for i, f in enumerate(clip(path, fps="native"))}
    if method == "decord, get_batch":
        read = decord.VideoReader(str(path), num_threads=1).get_batch(index.tolist()).asnumpy()
    else:
        config = {"backend": "decord"} if method.startswith("decord") else {}
        read = clip(path, **config)
    count = 0
    for i, frame in zip(index.tolist(), read, strict=True):
        near = [j for j in (i - 1, i, i + 1) if j in small]
        count += min(near, key=lambda j: np.abs(frame[::4, ::4] - small[j]).mean()) != i
    return count


def main() -> None:
    if sys.argv[1] == "--one":
        sys.stdout.write(json.dumps(measure(Path(sys.argv[2]), sys.argv[3])))
        return
    sys.stdout.write(
        f"{'video':<28} {'method':<20} {'frames':>6} {'wall s':>7} {'CPU s':>7} {'MiB':>5} {'wrong':>6}\n"
    )
    for path in sys.argv[1:]:
        for method in METHODS:
            done = subprocess.run(
                [sys.executable, __file__, "--one", path, method], capture_output=True, text=True, check=False
            )
            if done.returncode:
                sys.stdout.write(
                    f"{Path(path).name:<28} {method:<20} {done.stderr.strip().splitlines()[-1][:60]}\n"
                )
                continue
            r = json.loads(done.stdout)
            sys.stdout.write(
                f"{Path(path).name:<28} {method:<20} {r['frames']:>6} {r['wall_s']:>7.2f} {r['cpu_s']:>7.2f}"
                f" {r['peak_mib']:>5.0f} {r['wrong']:>6}\n"
            )


if __name__ == "__main__":
    main()
