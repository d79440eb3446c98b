"""Keyframes: a few frames a second that a sequence network sees in large windows, brought into one gauge.

Frames go by once, in order. Every window of keyframes is handed to the network as soon as its last frame is there, so
images are held for the windows in flight and for the one spread window only, and memory on the device does not grow
with the clip. What is kept of a window is small: poses, focal lengths, and depth and confidence at half size.

Windows overlap, by half unless a recipe says less; one more window holds frames from all over the clip, which a network
without frame order takes like any other and which closes the loop over the whole clip at once. `align` brings all of
them together. What the windows then still disagree about is the uncertainty.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...dataset.arrays import I64
from ..frames.base import ClipFrames
from ..networks.images import upload
from ..networks.lane import lane, next_turn, taken_over, uploading
from ..reporting import counted
from ..sources.clip import ClipRef, ClipRejection
from .base import SequenceGeometryResult
from .config import KeyframesConfig
from .join import join_windows
from .window_maps import KeptWindow, WindowNetwork, keep_window

WINDOWS_IN_FLIGHT = 2
"""Windows handed over and not yet done; with more, a fast decoder would fill the memory."""


def choose_keyframes(num_frames: int, fps: float, keyframe_fps: float) -> I64:
    """Clip frames of the keyframes: evenly spread, first and last frame included.

    Args:
        num_frames: F >= 1. fps: of the clip.
        keyframe_fps: wanted; at most every frame is a keyframe.
    """
    step = max(1.0, fps / keyframe_fps)
    count = max(2, round((num_frames - 1) / step) + 1)
    return np.unique(np.round(np.linspace(0, num_frames - 1, count)).astype(np.int64))


def plan_windows(num_keyframes: int, config: KeyframesConfig) -> list[I64]:
    """Keyframe numbers of each window: one for short clips, else overlapping ones and the spread one, last.

    All are equally long; their starts are spread evenly, `step` apart at most, so that the last ends with the clip.
    """
    if num_keyframes <= max(config.max_one_pass, config.window):
        return [np.arange(num_keyframes)]
    last = num_keyframes - config.window
    starts = np.round(np.linspace(0, last, -(-last // config.step) + 1)).astype(int)
    windows = [np.arange(s, s + config.window) for s in starts]
    if config.spread_window:
        windows.append(np.unique(np.round(np.linspace(0, num_keyframes - 1, config.window)).astype(np.int64)))
    return windows


class KeyframeStream:
    """Takes a clip's frames one by one and ends with its geometry.

    Args:
        network: what sees the windows.
        config: which frames and windows.
        clip: for messages.
        frames: sizes and timing; not iterated here.
    """

    watches = True

    def __init__(
        self, network: WindowNetwork, config: KeyframesConfig, clip: ClipRef, frames: ClipFrames
    ) -> None:
        self.network, self.config, self.clip = network, config, clip
        self.height, self.width, self.num_frames = frames.height, frames.width, len(frames)
        self.keyframes = choose_keyframes(len(frames), frames.timing.fps, config.fps)
        self.windows = plan_windows(len(self.keyframes), config)
        self.size = network.input_size(frames.height, frames.width)
        self.provenance = network.provenance
        self.busy_s = 0.0
        self._turn = next_turn()
        self._due = [int(w[-1]) for w in self.windows]
        self._users = np.bincount(np.concatenate(self.windows), minlength=len(self.keyframes))
        self._images: dict[int, Tensor] = {}
        self._number = {int(f): i for i, f in enumerate(self.keyframes)}
        self._pending: list[Future[KeptWindow]] = []
        self._room = threading.Semaphore(WINDOWS_IN_FLIGHT)

    @property
    def depth_frames(self) -> I64:
        """The keyframes."""
        return self.keyframes

    def add(self, frame: int, rgb: NDArray[np.uint8]) -> None:
        """Take clip frame `frame`, (height, width, 3) uint8 RGB; waits while too many windows are in flight.

        Raises:
            Exception: what a window's network raised.
        """
        number = self._number.get(frame)
        if number is None:
            return
        with uploading(self.network.device):
            self._images[number] = upload(rgb, self.network.device, self.size)
        for window, due in zip(self.windows, self._due, strict=True):
            if due == number:
                self._hand_over(window)

    def _hand_over(self, window: I64) -> None:
        for done in [p for p in self._pending if p.done()]:
            done.result()  # an error ends the clip now, not after its last frame
        self._room.acquire()
        with uploading(self.network.device, wait=True):
            images = torch.stack([self._images[int(i)] for i in window])
        self._users[window] -= 1
        for i in window:
            if self._users[i] == 0:
                del self._images[int(i)]
        frame = self.keyframes[window]

        def work() -> KeptWindow:
            start = time.perf_counter()
            try:
                raw = self.network.predict(taken_over(images), frame)
                return keep_window(raw, frame, self.config, height=self.height, width=self.width)
            finally:
                self.busy_s += time.perf_counter() - start
                self._room.release()

        self._pending.append(lane(str(self.network.device)).submit(self._turn, work))

    def close(self) -> None:
        """End: nothing that waits is started, and what the windows said is let go, joined as it is or not at all."""
        for pending in self._pending:
            pending.cancel()
        self._pending.clear()
        self._images.clear()

    def finish(self) -> SequenceGeometryResult:
        """The clip's geometry, in the unit of the best connected windows; waits for the network.

        Raises:
            ClipRejection: `geometry_not_finite`, `keyframes_disconnected`, `too_few_keyframes`.
        """
        waited_for = (pending.result() for pending in self._pending)
        kept = list(
            counted(self.clip.clip_id, "geometry", waited_for, len(self._pending), "windows of the network")
        )
        if len(kept) != len(self.windows):
            raise ClipRejection(
                "too_few_keyframes",
                f"clip {self.clip.clip_id}: {len(self._number)} keyframes are wanted, but the media ended before the"
                " last of them",
            )
        return join_windows(kept, self.config, self.network.name, self.clip, num_frames=self.num_frames)
