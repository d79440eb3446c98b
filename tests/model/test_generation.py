"""The chain from image to frames: order, records, reports, and what is refused before anything runs."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from theodolite.model.autoencoder import to_pixels
from theodolite.model.generation_record import GenerationRecord, streaming_report
from theodolite.model.sampling import Mode, Sampling

from ..typed import known
from .chain_parts import HEIGHT, WIDTH, House, Pixels, generator, request

MODES = ("bidirectional", "chunk-causal", "distilled")


def video(chain, wanted, **more: Any) -> tuple[np.ndarray, GenerationRecord]:
    pieces: list[np.ndarray] = []
    record = chain.generate(wanted, on_frames=pieces.append, **more)
    return np.concatenate(pieces), record


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("refine", [True, False])
def test_every_mode_hands_out_every_frame(mode: Mode, refine: bool) -> None:
    house, heard = House(), []
    wanted = request(mode, refine=refine)
    frames, record = video(generator(residence=house), wanted, progress=lambda *step: heard.append(step))
    assert frames.shape == (49, HEIGHT, WIDTH, 3)
    assert frames.dtype == np.uint8
    assert (record.status, record.num_frames, record.num_frames_wanted) == ("complete", 49, 49)
    assert record.stand_in
    assert record.refined is refine
    assert record.seeds == ({"world_model": 42, "refiner": 42} if refine else {"world_model": 42})
    stages = ["text", "image", "denoising", *(["refining"] if refine else []), "decoding"]
    assert list(record.stages) == stages
    assert all(s.wall_s > 0 and s.calls > 0 for s in record.stages.values())
    assert ("Halver" in house.guests) is refine
    assert heard[-1][1] == heard[-1][2]
    json.dumps(record.as_json(), allow_nan=False)


def test_frames_can_be_iterated() -> None:
    record = GenerationRecord()
    stream = generator().stream(request(refine=False), record=record)
    assert len(next(stream)) == 25
    assert (record.status, record.num_frames) == ("running", 0)
    assert len(next(stream)) == 24
    assert record.num_frames == 25
    stream.close()
    assert (record.status, record.num_frames) == ("interrupted", 25)
    with pytest.raises(ValueError, match="prompt is empty"):  # at once, not with the first frame
        generator().stream(request(prompt=""))


def test_the_first_frame_is_the_image() -> None:
    frames, _ = video(generator(), request(refine=False))
    image = request().image.reshape(HEIGHT // 32, 32, WIDTH // 32, 32, 3).mean((1, 3))
    assert np.abs(frames[0, ::32, ::32].astype(float) - image).max() < 1.5


@pytest.mark.slow
def test_seeds_decide() -> None:
    chain = generator()
    first, again = video(chain, request())[0], video(chain, request())[0]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, video(chain, request(seed=7))[0])
    assert not np.array_equal(first, video(chain, request(prompt="a desert"))[0])


@pytest.mark.slow
def test_a_stream_hands_out_chunk_after_chunk() -> None:
    sizes: list[int] = []
    record = generator().generate(request(frames=97, refine=False), on_frames=lambda f: sizes.append(len(f)))
    assert sizes == [25, 24, 24, 24]
    assert record.streaming is not None
    assert record.streaming.chunks == 4
    assert record.streaming.real_time_factor > 0


@pytest.mark.slow
@pytest.mark.parametrize("refine", [True, False])
def test_chunks_made_ahead_are_the_same(refine: bool) -> None:
    plain, _ = video(generator(), request(frames=97, refine=refine))
    ahead, record = video(generator(residence=House()), request(frames=97, refine=refine, overlap=True))
    assert np.array_equal(plain, ahead)
    assert record.status == "complete"
    assert record.departures == {"overlap": {"published": False, "used": True}}
    assert record.stages["decoding"].calls == (3 if refine else 4)


def test_a_stream_that_works_ahead_ends_when_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = threading.active_count()
    stream = generator().stream(request(frames=97, refine=False, overlap=True))
    next(stream)
    stream.close()
    assert threading.active_count() == threads
    broken = generator()
    monkeypatch.setattr(broken.world_model, "forward_chunk", _breaks)
    with pytest.raises(RuntimeError, match="out of memory"):
        video(broken, request(overlap=True))
    assert threading.active_count() == threads


def _breaks(*_: Any, **__: Any) -> None:
    raise RuntimeError("out of memory")


@pytest.mark.slow
def test_a_warm_up_is_said_in_the_report() -> None:
    chain = generator()
    assert known(video(chain, request(refine=False))[1].streaming).warm_up_s is None
    took = chain.warm_up(request(frames=289, refine=False))
    assert chain.autoencoder.decoded == [4, 3] + [4, 3, 3, 3, 3, 3]  # six chunks of twelve
    _, record = video(chain, request(refine=False))
    assert record.streaming is not None
    assert record.streaming.warm_up_s == took
    assert record.streaming.time_to_first_chunk_s < took
    with pytest.raises(ValueError, match="of the distilled mode, not of bidirectional"):
        chain.warm_up(request("bidirectional"))


def test_a_refiner_may_hold_back() -> None:
    """Frames of chunks that wait for a whole block come with a later one, and the last ones at the end."""
    autoencoder = Pixels()
    chain = generator()
    chain.autoencoder = autoencoder
    frames, _ = video(chain, request(frames=73))
    assert len(frames) == 73
    assert autoencoder.decoded == [4, 6]


@pytest.mark.slow
def test_the_teachers_finished_chunks_are_shown_while_later_ones_are_made() -> None:
    """The same video as after the end, handed out in pieces between the steps."""
    wanted = request("chunk-causal", frames=97, refine=False)
    heard: list[tuple[str, int]] = []
    shown: list[int] = []

    def take(frames: np.ndarray) -> None:
        shown.append(len([stage for stage, _ in heard if stage == "denoising"]))

    chain = generator()
    chain.generate(wanted, on_frames=take, progress=lambda stage, done, total: heard.append((stage, done)))
    total = max(done for stage, done in heard if stage == "denoising")
    assert shown[0] < total
    assert shown == sorted(shown)
    whole = torch.cat(list(chain.autoencoder.decode(_teacher_latents(chain, wanted))), 1)
    frames, record = video(chain, wanted)
    assert np.array_equal(frames, to_pixels(whole).numpy())
    assert record.stages["decoding"].calls == len(shown)


def _teacher_latents(chain, wanted) -> torch.Tensor:
    """What the sampler gives for a request, asked directly."""
    seen: list[torch.Tensor] = []
    decode = chain.autoencoder.decode
    chain.autoencoder.decode = lambda latents: seen.append(latents) or decode(latents)
    video(chain, wanted)
    del chain.autoencoder.decode
    return seen[0]


def test_guidance_asks_for_the_empty_prompt_without_the_instruction() -> None:
    chain = generator()
    video(chain, request("bidirectional", refine=False))
    assert chain.text_encoder.asked == [("a street in the rain", True), ("", False)]
    chain = generator()
    video(chain, request("bidirectional", refine=False, guidance=1.0))
    assert chain.text_encoder.asked == [("a street in the rain", True)]


@pytest.mark.parametrize("ends", [KeyboardInterrupt, OSError])
def test_an_end_in_the_middle_is_recorded(ends: type[BaseException]) -> None:
    record, seen = GenerationRecord(), []

    def take(frames: np.ndarray) -> None:
        seen.append(len(frames))
        if len(seen) == 2:
            raise ends

    with pytest.raises(ends):
        generator().generate(request(frames=97, refine=False), on_frames=take, record=record)
    assert record.status == ("interrupted" if ends is KeyboardInterrupt else "failed")
    assert record.num_frames == 25  # the second chunk was not taken
    assert record.stages["decoding"].calls == 2


def test_departures_from_the_published_schedule() -> None:
    assert Sampling.published("bidirectional").departures() == {}
    changed = Sampling.published("bidirectional", steps=20, guidance_interval=(0.0, 0.5), shift=None)
    assert changed.departures() == {
        "steps": {"published": 60, "used": 20},
        "guidance_interval": {"published": (0.0, 1.0), "used": (0.0, 0.5)},
    }
    assert Sampling.published("distilled", graphs=True).departures() == {
        "graphs": {"published": False, "used": True}
    }


@pytest.mark.parametrize(
    ("mode", "changes", "named"),
    [
        ("distilled", {"steps": 8}, "steps is an option of bidirectional and chunk-causal, not of distilled"),
        ("distilled", {"guidance": 5.0}, "guidance is an option of"),
        ("bidirectional", {"window_chunks": 2}, "window chunks is an option of distilled"),
        ("bidirectional", {"chunk_interval": 0.5}, "option of chunk-causal"),
        ("bidirectional", {"steps": 0}, "steps"),
        ("bidirectional", {"shift": -1.0}, "shift"),
        ("bidirectional", {"guidance_interval": (0.5, 0.1)}, "first share is the smaller"),
        ("distilled", {"times": (1000.0, 500.0)}, "end in 0"),
        ("distilled", {"times": (500.0, 500.0, 0.0)}, "fall strictly"),
        ("distilled", {"times": (2000.0, 0.0)}, "from 1000 at most"),
        ("distilled", {"times": (float("nan"), 0.0)}, "fall strictly"),
    ],
)
def test_options_of_another_mode(mode: Mode, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Sampling.published(mode, **changes)


def test_requests_that_cannot_be() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        (dict(frames=48), "8 k"),
        (dict(frames=41), r"distilled makes 24 k \+ 1"),
        (dict(image=np.zeros((60, 96, 3), np.uint8)), "multiples of 32"),
        (dict(image=np.zeros((64, 96, 3))), "uint8"),
        (dict(seed=-1), "seed -1"),
        (dict(intrinsics_px=np.eye(3)[None]), "intrinsics"),
    ]
    for changes, named in cases:
        with pytest.raises(ValueError, match=named):
            request(**changes)


def test_parts_that_cannot() -> None:
    nothing: dict[str, Any] = dict(on_frames=lambda f: None)
    with pytest.raises(ValueError, match="no refiner"):
        generator(refiner=None).generate(request(), **nothing)
    chain = generator()
    chain.autoencoder.is_causal = False
    with pytest.raises(ValueError, match="causal video autoencoder"):
        chain.generate(request(), **nothing)
    with pytest.raises(ValueError, match="prompt is empty"):
        generator().generate(request(prompt=" \n"), **nothing)
    with pytest.raises(
        ValueError, match="the prompt has 60 tokens, the world model sees 50: shorten it by about 10"
    ):
        generator().generate(request(prompt="word " * 60), **nothing)
    with pytest.raises(ValueError, match="need a GPU"):
        generator().generate(request(graphs=True), **nothing)
    away = House()
    away.policy = "idle"
    with pytest.raises(ValueError, match="overlap needs all parts on the device"):
        generator(residence=away).generate(request(overlap=True), **nothing)
    chain.autoencoder.latent_channels = 128
    with pytest.raises(ValueError, match="not of one release"):
        type(chain)(chain.world_model, chain.autoencoder, chain.text_encoder)


def test_streaming_report() -> None:
    report = streaming_report([2.0, 3.0, 5.5], [25, 24, 24])
    # Due 2 s, 2 + 25/16 = 3.5625 s, 2 + 49/16 = 5.0625 s after the request.
    assert report.time_to_first_chunk_s == 2
    assert report.real_time_factor == pytest.approx(73 / 16 / 5.5)
    assert report.sustained_factor == pytest.approx(3 / 3.5)
    assert report.deadlines_met == 0.5
    assert report.latest_s == pytest.approx(5.5 - 5.0625)
    alone = streaming_report([2.0], [25])
    assert alone.deadlines_met is None
    assert alone.sustained_factor is None


def test_any_world_will_do() -> None:
    """Poses in map coordinates, 5,000 km from their origin: float32 would round them to half a metre there."""
    wanted = request(frames=25, refine=False)
    poses = wanted.camera_to_world.copy()
    poses[:, :3, 3] += [4_500_000.0, 600_000.0, 120.0]
    far = replace(wanted, camera_to_world=poses)
    assert np.abs(video(generator(), far)[0].astype(int) - video(generator(), wanted)[0]).max() <= 1


@pytest.mark.slow
def test_cameras_matter() -> None:
    still = request(camera_to_world=np.tile(np.eye(4), (49, 1, 1)), refine=False)
    chain = generator()
    assert not np.array_equal(video(chain, still)[0], video(chain, request(refine=False))[0])
    # Any world: the same path from elsewhere is the same video.
    moved = np.eye(4)
    moved[:3, 3] = 3, -2, 5
    wanted = request(refine=False)
    elsewhere = request(camera_to_world=moved @ wanted.camera_to_world, refine=False)
    a, b = video(chain, wanted)[0].astype(int), video(chain, elsewhere)[0].astype(int)
    assert np.abs(a - b).max() <= 1
    assert torch.is_grad_enabled()
