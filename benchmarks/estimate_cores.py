"""Processor time of one clip in `mode: estimate` by stage, beside networks and tracker: needs no GPU.

    python benchmarks/estimate_gpu.py render --media CLIP.mp4 --render 5,16,161
    python benchmarks/estimate_cores.py --media CLIP.mp4 --render 5,16,161 [--answers DIR]

The thread that takes the clip through its stages is counted, with `annotate_clip` as the command runs it. Networks are
simulated in a thread of their own; OpenCV stands for the tracker of a GPU: neither is counted, nor what a GPU does of
uploads. What their kernels cost to launch and what processes cost each other is not seen here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from theodolite.annotate import pipeline
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.frames.cuts import CutDetector
from theodolite.annotate.frames.decoded import DecodedFrames
from theodolite.annotate.frames.integrity import IntegrityMeter
from theodolite.annotate.geometry import moge2, windows
from theodolite.annotate.geometry.estimators import Estimators
from theodolite.annotate.geometry.moge2 import MoGe2Stream
from theodolite.annotate.geometry.pi3x import image_size
from theodolite.annotate.geometry.window_maps import RawWindow
from theodolite.annotate.geometry.windows import KeyframeStream
from theodolite.annotate.place import Here
from theodolite.annotate.sfm import focal_model, keyframes, lean, registration
from theodolite.annotate.sources.clip import ClipRef
from theodolite.annotate.tracks import measure
from theodolite.annotate.tracks.descriptors import nearest_features
from theodolite.annotate.tracks.opencv import OpenCVTracker
from theodolite.annotate.tracks.overlay import OverlayFinder
from theodolite.annotate.tracks.records import MATCHED_GAPS
from theodolite.annotate.tracks.tracker import Seen

sys.path.insert(0, str(Path(__file__).parent))
import paced

NOT_COUNTED = "tracker"
PARTS: dict[str, list[tuple[Any, str]]] = {
    NOT_COUNTED: [(OpenCVTracker, "add"), (OpenCVTracker, "finish")],
    "opening the file": [(pipeline, "open_clip")],
    "cuts": [(CutDetector, "update"), (CutDetector, "finish")],
    "integrity": [(IntegrityMeter, "add")],
    "overlay": [(OverlayFinder, "add"), (OverlayFinder, "find")],
    "grey images": [(measure, "gray_of"), (measure, "normalised_gray")],
    "tracks to arrays": [(measure, "measurements")],
    "windows joined": [(windows, "join_windows")],
    "metric images solved": [(MoGe2Stream, "finish")],
    "scale": [(pipeline, "estimate_scale")],
    "start verified": [(pipeline, "verify_keyframes")],
    "matches of keyframes": [(keyframes, "match_keyframes")],
    "depth of tracks": [(keyframes, "sample_depth")],
    "bundles of keyframes": [(keyframes, "solve_bundle")],
    "frames between placed": [(registration, "resect")],
    "bundle of all frames": [(registration, "solve_bundle")],
    "other focal models, last step": [(focal_model, "solve_bundle")],
    "rays heard": [(lean, "expected_response"), (lean, "solve_bundle")],
    "covariance": [(registration, "_with_optimum")],
    "shared errors": [(registration, "shared_errors")],
    "what moves": [(registration, "shares_by_frame")],
    "rest of the solver": [(pipeline, "solve_cameras")],
}


class Clock:
    """Processor time of this thread by part; of parts inside each other, each has its own."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._inner = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens inside belongs to it."""
        start = time.thread_time()
        self._inner.append(0.0)
        try:
            yield
        finally:
            took = time.thread_time() - start
            self.spent[name] = self.spent.get(name, 0.0) + took - self._inner.pop()
            self._inner[-1] += took

    def around(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same work, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return work(*args, **kwargs)

        return timed


def decoded(clock: Clock, frames: Callable[[DecodedFrames], Iterator[np.ndarray]]) -> Callable[..., Any]:
    """The frames of a clip; getting the next one is timed."""

    def timed(self: DecodedFrames) -> Iterator[np.ndarray]:
        found = frames(self)
        while True:
            with clock.part("decoding"):
                rgb = next(found, None)
            if rgb is None:
                return
            yield rgb

    return timed


class Tracker(OpenCVTracker):
    """Gives the nearest features of neighbouring keyframes as well, as that of a GPU does."""

    def finish(self) -> Seen:
        seen = super().finish()
        for b, feature in enumerate(seen.features):
            for a in (b - gap for gap in MATCHED_GAPS if b >= gap):
                seen.nearest[a, b] = nearest_features(seen.features[a], feature, _tracks_config)
        return seen


PARTS[NOT_COUNTED].append((Tracker, "finish"))
_tracks_config = AnnotateConfig().tracks


class Simulated:
    """A network that answers what its clip deserves and costs the thread of the clip nothing."""

    name, device = "simulated", torch.device("cpu")

    def __init__(self, network: Any, size: tuple[int, int], answers: Path | None) -> None:
        self.network, self.size, self.answers = network, size, answers
        self.provenance = network.provenance

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return self.size

    def predict(self, images: torch.Tensor, frame: Any) -> Any:
        found = paced.answer(self.network, frame, self.answers)
        return paced.as_large(found, torch.zeros(1, 1, *self.size)) if isinstance(found, RawWindow) else found


class Started:
    """Estimators around one simulated network."""

    name = "simulated"

    def __init__(self, network: Simulated, config: Any) -> None:
        self.network, self.config = network, config

    def start(self, clip: ClipRef, frames: Any, *rest: Any) -> Any:
        stream: Any = MoGe2Stream if rest else KeyframeStream
        return stream(self.network, self.config, clip, frames, *rest)


def copied(rgb: np.ndarray, device: torch.device, size: tuple[int, int] | None) -> torch.Tensor:
    """As much of an upload as the processor does: one copy, into pinned memory."""
    torch.from_numpy(np.ascontiguousarray(rgb)).clone()
    return torch.zeros(1)


def main() -> None:
    """Annotate the clip once and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--media", type=Path, required=True)
    parser.add_argument("--render", default="5,16,161", help="seed, fps and frames of what the media shows")
    parser.add_argument("--answers", type=Path, help="folder that keeps what the simulated networks say")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    seed, fps, num_frames = args.render.split(",")
    rendered = paced.bench_clip(int(seed), float(fps), int(num_frames))
    pi3x, metric = paced._simulated(rendered.model_dump_json())
    config = AnnotateConfig.model_validate({"geometry": {"sequence": "pi3x", "anchor": "moge2"}})
    geometry, size = (
        config.geometry,
        image_size(rendered.height, rendered.width, config.geometry.pi3x.max_pixels),
    )
    estimators: Any = (Started(Simulated(pi3x, size, args.answers), geometry.keyframes),
                       Started(Simulated(metric, size, args.answers), geometry.moge2))  # fmt: skip
    clip = ClipRef(
        clip_id="c", source="bench", original_id="c", media_kind="video", media_path=args.media,
        max_frames=int(num_frames),
    )  # fmt: skip
    clock = Clock()
    with ExitStack() as patched:
        for name, places in PARTS.items():
            for owner, of in places:
                patched.enter_context(patch.object(owner, of, clock.around(name, getattr(owner, of))))
        patched.enter_context(patch.object(DecodedFrames, "__iter__", decoded(clock, DecodedFrames.__iter__)))
        for module in (windows, moge2):
            patched.enter_context(patch.object(module, "upload", copied))
        patched.enter_context(patch.object(pipeline, "tracker_of", lambda _: Tracker))
        with clock.part("all else"):
            row = pipeline.annotate_clip(
                clip, config, mode="estimate", recipe_hash="0" * 16, place=Here(),
                estimators=Estimators(sequence=estimators[0], anchor=estimators[1]),
            )  # fmt: skip
    print(
        f"{row.verdict} {', '.join(row.reasons)} {row.error or ''}\n\n| stage | seconds of a core |\n| --- | --- |"
    )
    clock.spent.pop(NOT_COUNTED, None)
    for name, spent in sorted(clock.spent.items(), key=lambda x: -x[1]):
        print(f"| {name} | {spent:.2f} |")
    print(f"| together | {sum(clock.spent.values()):.2f} |")


if __name__ == "__main__":
    main()
