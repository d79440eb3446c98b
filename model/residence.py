"""Which part of the chain is on the GPU when: everything, only what is at work, or its blocks one after another.

Weights do not change while a chain runs. So a part goes to the device by a copy of its weights, and leaves it by
forgetting that copy: nothing is ever copied back, and weights that are mapped from a file stay mapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

Offload = Literal["none", "idle", "blocks"]
"""none: a part that was needed stays on the device; idle: it leaves when its work is done; blocks: so it does, and
large transformers come over block by block while they run."""

_PIN_AFTER = 8
"""Times that weights come before it pays to lock their pages."""
_ALIGNMENT = 256
"""Bytes; tensors in one buffer start at multiples of it."""


class Residence:
    """Lends the device to parts.

    Args:
        policy: see `Offload`.
        device: where parts work. On the CPU nothing is gained; blocks go through buffers there as on a GPU.
        resident_bytes: with `blocks`, weights of blocks that may stay on the device, for each part.
        pin: keep weights that come again and again in page-locked memory, which the GPU reads fastest; None: once they
            have come a few times, if the machine has the memory free, since locking pages takes longer than copying
            them. Otherwise blocks come through two small page-locked buffers.

    A part is a module; what it calls `streamed_blocks` may come block by block.
    """

    def __init__(
        self,
        policy: Offload = "none",
        device: torch.device | str = "cpu",
        *,
        resident_bytes: int = 0,
        pin: bool | None = None,
    ) -> None:
        if policy not in get_args(Offload):
            raise ValueError(f"offload {policy!r}: use {', '.join(get_args(Offload))}")
        self.policy: Offload = policy
        self.device = _numbered(device)
        self._resident_bytes, self._pin = resident_bytes, pin
        self._streams: dict[nn.Module, BlockStream] = {}
        self._staying: dict[nn.Module, _Lent] = {}
        self._working: dict[nn.Module, int] = {}
        self._visits: dict[nn.Module, int] = {}

    @property
    def resident_bytes(self) -> int:
        """Weights of blocks that may stay on the device while their part works (`memory.room_for_blocks`)."""
        return self._resident_bytes

    @resident_bytes.setter
    def resident_bytes(self, num_bytes: int) -> None:
        if num_bytes != self._resident_bytes:
            self._resident_bytes = num_bytes
            for stream in self._streams.values():
                stream.close()
            self._streams.clear()

    @contextmanager
    def on(self, *parts: nn.Module) -> Iterator[None]:
        """The parts are ready to work on the device inside, together; the same part may be asked for again inside.

        Raises:
            torch.cuda.OutOfMemoryError: the device has no room; `plan` says so before anything is loaded.
        """
        with ExitStack() as stack:
            for part in parts:
                stack.enter_context(self._one(part))
            yield

    @contextmanager
    def _one(self, part: nn.Module) -> Iterator[None]:
        if self._working.get(part):
            self._working[part] += 1
            try:
                yield
            finally:
                self._working[part] -= 1
            return
        lent = self._staying.get(part)
        if lent is None:
            lent = self._bring(part)
        self._working[part] = 1
        try:
            yield
        finally:
            self._working[part] = 0
            if self.policy == "none":
                self._staying[part] = lent
            else:
                lent.give_back()
                if part in self._streams:
                    self._streams[part].detach()

    def _bring(self, part: nn.Module) -> _Lent:
        blocks = cast(Any, part).streamed_blocks() if hasattr(part, "streamed_blocks") else []
        if self.policy != "blocks" or not blocks:
            self._make_quick(part)
            return _Lent(part, self.device)
        if part not in self._streams:
            self._streams[part] = BlockStream(
                blocks, self.device, resident_bytes=self._resident_bytes, pin=self._pin
            )
        lent = _Lent(part, self.device, leave=blocks)
        try:
            self._streams[part].attach()
        except BaseException:
            lent.give_back()
            self._streams[part].detach()
            raise
        return lent

    def _make_quick(self, part: nn.Module) -> None:
        """A part that comes again and again, as in a stream, waits in page-locked memory if there is room."""
        self._visits[part] = self._visits.get(part, 0) + 1
        if (
            self._visits[part] != _PIN_AFTER
            or self.policy == "none"
            or self.device.type != "cuda"
            or self._pin is False
        ):
            return
        held = {id(t): t for t in (*part.parameters(), *part.buffers()) if t.device.type == "cpu"}
        if not (self._pin or _has_room(sum(t.numel() * t.element_size() for t in held.values()))):
            return
        for tensor in held.values():
            if _is_plain(tensor) and not tensor.is_pinned():
                tensor.data = tensor.detach().pin_memory()

    def release(self) -> None:
        """Take everything from the device and forget page-locked copies; parts can be asked for again."""
        for lent in self._staying.values():
            lent.give_back()
        for stream in self._streams.values():
            stream.close()
        self._staying.clear()
        self._streams.clear()


class _Lent:
    """A module whose parameters and buffers are copies on the device until it is given back."""

    def __init__(self, module: nn.Module, device: torch.device, *, leave: Sequence[nn.Module] = ()) -> None:
        left = {inner for block in leave for inner in block.modules()}
        self._home: list[tuple[nn.Module, str, bool, Any]] = []
        moved: dict[int, Any] = {}
        try:
            for owner in module.modules():
                if owner not in left:
                    self._lend(owner, device, moved)
        except BaseException:
            self.give_back()
            raise

    def _lend(self, owner: nn.Module, device: torch.device, moved: dict[int, Any]) -> None:
        for is_buffer, table in ((False, owner._parameters), (True, owner._buffers)):
            for name, value in table.items():
                if value is None or value.device == device:
                    continue
                if id(value) not in moved:  # a tensor that two modules share stays one
                    copy = value.detach().to(device, non_blocking=True)
                    moved[id(value)] = copy if is_buffer else nn.Parameter(copy, requires_grad=False)
                self._home.append((owner, name, is_buffer, value))
                table[name] = moved[id(value)]

    def give_back(self) -> None:
        for owner, name, is_buffer, value in reversed(self._home):
            _put(owner, name, is_buffer, value)
        self._home.clear()


def _put(owner: nn.Module, name: str, is_buffer: bool, value: Any) -> None:
    (owner._buffers if is_buffer else owner._parameters)[name] = value


@dataclass(frozen=True)
class _Place:
    """Where a plain tensor of a block lies in the block's buffer."""

    start: int
    num_bytes: int
    dtype: torch.dtype
    shape: torch.Size


class BlockStream:
    """Blocks of equal rank that run one after another, whose weights come to the device just before.

    While one block works, the next one's weights are copied by another stream into the second of two buffers. After the
    last block the first one follows, so that repeated calls flow. The device holds two blocks and those that stay.

    Args:
        blocks: in the order in which they run, always all of them.
        device: where they run.
        resident_bytes: weights of the last blocks that may stay on the device between calls.
        pin: see `Residence`.
    Raises:
        ValueError: there are no blocks.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        device: torch.device | str,
        *,
        resident_bytes: int = 0,
        pin: bool | None = None,
    ) -> None:
        if not blocks:
            raise ValueError("no blocks to stream")
        self.device = _numbered(device)
        self._packed = [_Packed(block) for block in blocks]
        self._largest = max(p.num_bytes for p in self._packed)
        self._moving = _moving(self._packed, resident_bytes)
        self._cuda = self.device.type == "cuda"
        self._pin = self._cuda and pin is not False
        self._pin_after = 0 if pin else _PIN_AFTER
        self._room: bool | None = True if pin else None
        self._hooks: list[Any] = []
        self._lent: list[_Lent] = []
        self._slots: list[_Slot] = []
        self._jobs: dict[int, tuple[Future[None], _Slot]] = {}
        self._running: _Slot | None = None
        self._pool: ThreadPoolExecutor | None = None

    @property
    def device_bytes(self) -> int:
        """Bytes that the blocks take on the device while they stream."""
        staying = [p.num_bytes for i, p in enumerate(self._packed) if i not in self._moving]
        return sum(staying) + min(2, len(self._moving)) * self._largest

    def attach(self) -> None:
        """Make the blocks fetch their weights when they are called."""
        if self._hooks:
            return
        side = torch.cuda.Stream(self.device) if self._cuda else None
        count = min(2, len(self._moving))
        self._slots = [_Slot(self._largest, self.device, side) for _ in range(count)]
        self._pool = ThreadPoolExecutor(1, "blocks")
        for i, packed in enumerate(self._packed):
            if i in self._moving:
                self._hooks.append(packed.block.register_forward_pre_hook(self._before(i)))
                self._hooks.append(packed.block.register_forward_hook(self._after(i), always_call=True))
            else:
                self._lent.append(_Lent(packed.block, self.device))
        if self._moving:
            self._fetch(self._moving[0])

    def detach(self) -> None:
        """Let go of the device; the blocks are as before."""
        for hook in self._hooks:
            hook.remove()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        for slot in self._slots:
            slot.wait()  # the last fetch may still be under way: nothing may take the buffer's memory before
        for packed in self._packed:
            packed.restore()
            packed.forget()
        for lent in self._lent:
            lent.give_back()
        self._hooks, self._lent, self._slots, self._pool, self._running = [], [], [], None, None
        self._jobs.clear()

    def close(self) -> None:
        """`detach`, and forget page-locked copies."""
        self.detach()
        for packed in self._packed:
            packed.unpin()

    def _fetch(self, i: int) -> None:
        """Bring block i into the buffer that no block works with."""
        if i in self._jobs:
            return
        slot = next((s for s in self._slots if s is not self._running), self._slots[0])
        # A call that ended early may have left a block there that did not run.
        self._jobs = {k: job for k, job in self._jobs.items() if job[1] is not slot}
        assert self._pool is not None
        self._jobs[i] = self._pool.submit(self._bring, i, slot), slot

    def _bring(self, i: int, slot: _Slot) -> None:
        """On the fetching thread: fill a buffer, from page-locked memory once the block has come a few times."""
        packed = self._packed[i]
        packed.visits += 1
        if self._pin and packed.visits > self._pin_after and not packed.is_pinned:
            if self._room is None:
                self._room = _has_room(sum(self._packed[k].num_bytes for k in self._moving))
            if self._room:
                packed.pin()
        slot.fill(packed)

    def _before(self, i: int) -> Any:
        following = self._moving[(self._moving.index(i) + 1) % len(self._moving)]

        def hook(block: nn.Module, arguments: Any) -> None:
            self._fetch(i)
            job, slot = self._jobs.pop(i)
            job.result()
            slot.wait()
            self._packed[i].use(slot.buffer)
            self._running = slot
            if len(self._slots) > 1:
                self._fetch(following)

        return hook

    def _after(self, i: int) -> Any:
        def hook(block: nn.Module, arguments: Any, result: Any) -> None:
            self._packed[i].restore()
            if self._running is not None:
                self._running.done()

        return hook


def _numbered(device: torch.device | str) -> torch.device:
    """With its number: "cuda" is the current GPU, and no tensor says that it lies on "cuda"."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _moving(packed: Sequence[_Packed], resident_bytes: int) -> list[int]:
    """Numbers of the blocks that come and go; spread, so that copies and work alternate."""
    count = len(packed)
    size = max(p.num_bytes for p in packed)
    staying = min(count, resident_bytes // size) if size else count
    keep = {round((k + 0.5) * count / staying - 0.5) for k in range(staying)} if staying else set()
    return [i for i in range(count) if i not in keep]


def _has_room(num_bytes: int) -> bool:
    """Whether the machine has this much memory free and a quarter of it besides."""
    free = _free_memory()
    return free is not None and free > 1.25 * num_bytes


def _free_memory() -> int | None:
    """Bytes that programs may still take, what only caches files included; within the container's limit."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
            cached = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines()
            files = next((int(line.split()[1]) for line in cached if line.startswith("inactive_file ")), 0)
            found.append(int(limit) - used + files)
    except (OSError, ValueError, IndexError, StopIteration):
        pass  # another system, or no container
    return min(found, default=None)


class _Packed:
    """A block's tensors and where each lies in a buffer that holds them all.

    Tensors of a class of their own (quantised ones) are taken apart into the plain ones inside and put together again.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self._owners = [
            (owner, name, is_buffer, value)
            for owner in block.modules()
            for is_buffer, table in ((False, owner._parameters), (True, owner._buffers))
            for name, value in table.items()
            if value is not None
        ]
        self._plain = [t for *_, value in self._owners for t in _take_apart(value)]
        self._places: list[_Place] = []
        offset = 0
        for tensor in self._plain:
            size = tensor.numel() * tensor.element_size()
            self._places.append(_Place(offset, size, tensor.dtype, tensor.shape))
            offset += -(-size // _ALIGNMENT) * _ALIGNMENT
        self.num_bytes = offset
        self._ready: dict[int, list[Any]] = {}
        self.is_pinned = False
        self.visits = 0

    def pin(self) -> None:
        """Hold the weights in page-locked memory; the ones before are forgotten.

        Tensor by tensor: torch takes the next power of two of bytes for each.
        """
        if not self.is_pinned:
            self._replace([t.pin_memory() for t in self._plain])
            self.is_pinned = True

    def unpin(self) -> None:
        """Back to ordinary memory."""
        if self.is_pinned:
            self._replace([t.clone() for t in self._plain])
            self.is_pinned = False

    def _replace(self, plain: list[Tensor]) -> None:
        self._owners = [
            (*entry[:3], value) for entry, value in zip(self._owners, self._values(plain), strict=True)
        ]
        self._plain = plain
        self.restore()

    def write(self, buffer: Tensor) -> None:
        """Copy the weights into a buffer of `num_bytes`; without waiting where they are page-locked."""
        for tensor, place in zip(self._plain, self._places, strict=True):
            _view(buffer, place).copy_(tensor, non_blocking=self.is_pinned)

    def use(self, buffer: Tensor) -> None:
        """Make the block work with what lies in the buffer."""
        key = buffer.data_ptr()
        if key not in self._ready:
            self._ready[key] = self._values([_view(buffer, place) for place in self._places])
        for (owner, name, is_buffer, _), value in zip(self._owners, self._ready[key], strict=True):
            _put(owner, name, is_buffer, value)

    def restore(self) -> None:
        """Back to the weights at home."""
        for owner, name, is_buffer, value in self._owners:
            _put(owner, name, is_buffer, value)

    def forget(self) -> None:
        """Let go of the buffers."""
        self._ready.clear()

    def _values(self, plain: Sequence[Tensor]) -> list[Any]:
        """Parameters and buffers made of these plain tensors."""
        left = iter(plain)
        values = []
        for _, _, is_buffer, value in self._owners:
            new = _put_together(value, left)
            values.append(new if is_buffer else nn.Parameter(new, requires_grad=False))
        return values


def _view(buffer: Tensor, place: _Place) -> Tensor:
    return buffer[place.start : place.start + place.num_bytes].view(place.dtype).view(place.shape)


def _is_plain(value: Any) -> bool:
    return type(value) in (Tensor, nn.Parameter) or not hasattr(value, "__tensor_flatten__")


def _take_apart(value: Any) -> list[Tensor]:
    """The plain tensors inside, in a fixed order."""
    if _is_plain(value):
        return [value.detach().contiguous()]
    names, _ = value.__tensor_flatten__()
    return [t for name in names for t in _take_apart(getattr(value, name))]


def _put_together(like: Any, plain: Iterator[Tensor]) -> Any:
    """A tensor like another of the plain ones that `_take_apart` gives in that order."""
    if _is_plain(like):
        return next(plain)
    names, context = like.__tensor_flatten__()
    inner = {name: _put_together(getattr(like, name), plain) for name in names}
    kind: Any = type(like.data) if isinstance(like, nn.Parameter) else type(like)
    return kind.__tensor_unflatten__(inner, context, like.size(), like.stride())


class _Slot:
    """A buffer on the device for one block, filled by a stream of its own."""

    def __init__(self, num_bytes: int, device: torch.device, side: Any) -> None:
        self.buffer = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        self._side = side
        self._filled = torch.cuda.Event() if side is not None else None
        self._free = torch.cuda.Event() if side is not None else None
        self._stage: Tensor | None = None
        self.done()  # what had the buffer's memory before may still work with it

    def fill(self, packed: _Packed) -> None:
        """Bring a block's weights, after what worked with the last ones is done. On the fetching thread."""
        if self._side is None:
            packed.write(self.buffer)
            return
        assert self._filled is not None
        assert self._free is not None
        if packed.is_pinned:
            with torch.cuda.stream(self._side):
                self._side.wait_event(self._free)
                packed.write(self.buffer)
                self._filled.record(self._side)
            return
        # Through a page-locked buffer, which is read until the last copy is done.
        if self._stage is None:
            self._stage = torch.empty(len(self.buffer), dtype=torch.uint8, pin_memory=True)
        self._filled.synchronize()
        packed.write(self._stage)
        with torch.cuda.stream(self._side):
            self._side.wait_event(self._free)
            size = packed.num_bytes
            self.buffer[:size].copy_(self._stage[:size], non_blocking=True)
            self._filled.record(self._side)

    def wait(self) -> None:
        """Let the device's work wait until the buffer is filled."""
        if self._filled is not None:
            torch.cuda.current_stream(self.buffer.device).wait_event(self._filled)

    def done(self) -> None:
        """What works with the buffer has been given to the device."""
        if self._free is not None:
            self._free.record(torch.cuda.current_stream(self.buffer.device))
