"""What does not fit is refused by every operator and its twin alike; what values do wrong stays visible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from theodolite.kernels import (
    Shard,
    State,
    exclusive_prefix,
    frame_attention,
    frame_gdn,
    frame_gdn_reference,
    frame_gdn_shards,
    output_gate,
    output_gate_reference,
    rope_tables,
    short_conv,
    short_conv_reference,
    visible_frames,
    world_to_ray,
)

from ..typed import wrong
from .cases import call, make_case, run, tokens_of

FRAMES = 4
X = torch.zeros(1, FRAMES, 3, 8)
WEIGHT = torch.zeros(8, 1, 4)
HEADS = torch.zeros(1, 2, FRAMES, 3, 8)


def gdn(function: Callable = frame_gdn, **change: object) -> object:
    case = make_case(frames=FRAMES, head_size=8)
    return call(function, tokens_of(case), **change)


def shards(**change: Any) -> object:
    case = make_case(frames=FRAMES, head_size=8)
    shard = Shard(*(getattr(case, n).detach() for n in ("q", "k", "v", "beta", "decay")), rope=case.rope)
    return frame_gdn_shards([Shard(**vars(shard) | change)])


def shard_of(heads: int) -> Shard:
    q, k, v = (torch.zeros(1, 2, 3, heads, 8) for _ in range(3))
    return Shard(q, k, v, torch.zeros(1, 2, 3, heads), torch.zeros(1, 2, heads))


TAKE_CHUNKS = {
    "frame_gdn": gdn,
    "frame_gdn_reference": lambda **kw: gdn(frame_gdn_reference, **kw),
    "frame_gdn_shards": shards,
    "short_conv": lambda **kw: short_conv(X, WEIGHT, **kw),
    "short_conv_reference": lambda **kw: short_conv_reference(X, WEIGHT, **kw),
    "frame_attention": lambda **kw: frame_attention(HEADS, HEADS, HEADS, **kw),
    "frame_attention(reference)": lambda **kw: frame_attention(
        HEADS, HEADS, HEADS, backend="reference", **kw
    ),
    "visible_frames": lambda **kw: visible_frames(FRAMES, **kw),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TAKE_CHUNKS)
@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ((0, -6, 7), "must increase"),
        ((0, 2, 1), "must increase"),
        ((0, 2, 2), "must increase"),
        ((-1, 2), "frames 0 to 3"),
        ((0, FRAMES), "frames 0 to 3"),
        ((0, 1.5), "whole frame numbers"),
        (3, "whole frame numbers"),
    ],
)
def test_chunks_out_of_order_or_outside_are_refused(name: str, starts: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TAKE_CHUNKS[name](chunk_starts=starts)


@pytest.mark.parametrize("name", TAKE_CHUNKS)
@pytest.mark.parametrize("starts", [None, (), (0,), (0, 1, FRAMES - 1), [0, 2]])
def test_chunks_that_fit_are_taken(name: str, starts: object) -> None:
    TAKE_CHUNKS[name](chunk_starts=starts)


SMALL = torch.zeros(1, 3, 2)
NOTHING = torch.zeros(1, 0, 3, 2, 8)
WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "gdn whole numbers": (lambda: gdn(q=torch.zeros(1, FRAMES, 21, 2, 8, dtype=torch.int64)), "q holds torch.int64"),
    "gdn nothing": (lambda: gdn(q=NOTHING, k=NOTHING, v=NOTHING), "holds nothing"),
    "gdn elsewhere": (lambda: gdn(decay=torch.zeros(1, FRAMES, 2, device="meta")), "decay is on meta"),
    "gdn weight": (lambda: gdn(k_weight=torch.ones(15)), "k_weight is .15.*16 values"),
    "gdn backend": (lambda: gdn(backend="tritn"), "backend 'tritn'"),
    "gdn state": (
        lambda: gdn(initial=State(torch.zeros(1, 2, 8, 8, dtype=torch.int32), torch.zeros(1, 2, 8))),
        "initial.kv holds",
    ),
    "twin shape": (lambda: gdn(frame_gdn_reference, beta=torch.zeros(1, FRAMES, 1, 2)), "beta is"),
    "no shards": (lambda: frame_gdn_shards([]), "at least one"),
    "unlike shards": (
        lambda: frame_gdn_shards(
            [shard_of(heads) for heads in (2, 4)],
        ),
        "shard 1: k is",
    ),
    "no composites": (lambda: exclusive_prefix([]), "at least one"),
    "conv whole numbers": (lambda: short_conv(X.int(), WEIGHT), "x holds torch.int32"),
    "conv nothing": (lambda: short_conv(X[:, :0], WEIGHT), "holds nothing"),
    "conv no taps": (lambda: short_conv(X, WEIGHT[:, :, :0]), "holds nothing"),
    "conv backend": (lambda: short_conv(X, WEIGHT, backend=wrong("cuda")), "backend 'cuda'"),
    "conv before elsewhere": (lambda: short_conv(X, WEIGHT, before=X[:, :3].to("meta")), "before is on meta"),
    "gate whole numbers": (lambda: output_gate(SMALL, None, SMALL.int()), "gate holds"),
    "gate nothing": (lambda: output_gate(SMALL[:0], None, SMALL[:0]), "holds nothing"),
    "gate camera": (lambda: output_gate_reference(SMALL, SMALL[..., :1], SMALL), "camera is"),
    "gate elsewhere": (lambda: output_gate(SMALL, None, SMALL.to("meta")), "gate is on meta"),
    "attention backend": (lambda: frame_attention(HEADS, HEADS, HEADS, backend=wrong("triton")), "backend 'triton'"),
    "attention types": (lambda: frame_attention(HEADS, HEADS.double(), HEADS), "give one type"),
    "attention window": (lambda: frame_attention(HEADS, HEADS, HEADS, window_chunks=-1), "window_chunks"),
    "attention sink": (lambda: visible_frames(4, (0, 2), sink_chunks=-1), "sink_chunks"),
    "rope sizes": (lambda: rope_tables(0, 3, 7, 24), "none may be 0"),
    "rope head": (lambda: rope_tables(2, 3, 7, 23), "multiple of 2"),
    "rope frames": (lambda: rope_tables(torch.zeros(2, 2), 3, 7, 24), r"\(T,\)"),
    "rays shape": (lambda: world_to_ray(torch.eye(4)[None], torch.ones(1, 4), 3, 7), "B, T"),
    "rays intrinsics": (lambda: world_to_ray(torch.eye(4)[None, None], torch.ones(1, 1, 3, 3), 3, 7), "B, T"),
    "rays choice": (
        lambda: world_to_ray(torch.eye(4)[None, None], torch.ones(1, 1, 4), 3, 7, degenerate=wrong("x")),
        "'x'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_by_name(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_kernels_on_a_cpu_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"needs CUDA tensors|not installed"):
        gdn(backend="triton")


def degenerate(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Poses (1, 3, 4, 4) and intrinsics (1, 3, 4) of which frame 1 is no camera."""
    pose, lens = torch.eye(4).repeat(1, 3, 1, 1), torch.tensor([4.0, 4.0, 3.5, 1.5]).repeat(1, 3, 1)
    match kind:
        case "no focal length":
            lens[0, 1, :2] = 0
        case "infinite focal length":
            lens[0, 1, 0] = torch.inf
            lens[0, 1, 2] = torch.inf
        case "NaN pose":
            pose[0, 1] = torch.nan
        case "infinite centre":
            pose[0, 1, 0, 3] = torch.inf
        case "no rotation":
            pose[0, 1, :3, :3] = 0
        case "a scale in the rotation":
            pose[0, 1, :3, :3] *= 1.2
        case "a mirror":
            pose[0, 1, 0, 0] = -1
        case "focal lengths below zero":
            lens[0, 1, :2] *= -1
    return pose, lens


@pytest.mark.parametrize(
    "kind",
    [
        "no focal length",
        "infinite focal length",
        "focal lengths below zero",
        "NaN pose",
        "infinite centre",
        "no rotation",
        "a scale in the rotation",
        "a mirror",
    ],
)
def test_degenerate_camera_is_refused_or_said(kind: str) -> None:
    pose, lens = degenerate(kind)
    with pytest.raises(ValueError, match="batch 0, frame 1 gives token"):
        world_to_ray(pose, lens, 3, 7)
    wrong = world_to_ray(pose, lens, 3, 7, degenerate="nan")
    assert wrong[0, 1].isnan().any(-1).any(-1).any()
    assert wrong[0, [0, 2]].isfinite().all()
    # As NVlabs/Sana trains, where that is asked for.
    same = world_to_ray(pose, lens, 3, 7, degenerate="identity")
    nan = wrong[0, 1].isnan().flatten(1).all(1)
    assert torch.equal(same[0, 1][nan], torch.eye(3, 4).expand(int(nan.sum()), 3, 4))
    whole = world_to_ray(pose[:, :1], lens[:, :1], 3, 7)
    assert torch.equal(same[:, :1], whole)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.triton)])
def test_degenerate_camera_reaches_the_output(backend, device: torch.device) -> None:
    """The kernels must not lose a NaN in a maximum: both say it in the same frames."""
    case = make_case(branch="camera", frames=3, heads=1, bidirectional=False, device=device)
    assert case.rays is not None
    case.rays = case.rays.clone()
    case.rays[0, 1, 4] = torch.nan
    finite = run(case, backend).out.isfinite().flatten(2).all(2)
    assert finite.tolist() == [[True, False, False]]
