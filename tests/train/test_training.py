"""Steps, checkpoints and faults of a training on one rank: what is continued is continued exactly."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from theodolite.dataset.encoded import open_encoded
from theodolite.model.checkpoint import load_world_model
from theodolite.model.lora import merge_lora
from theodolite.train.feed import BadClip, Feed, Place, hold_out
from theodolite.train.guard import Diverged, Guard
from theodolite.train.parallel import Ranks, reduce_gradients
from theodolite.train.recipe import GuardConfig, TrainRecipe, changed_keys
from theodolite.train.start import load_beside, start_model
from theodolite.train.state import checkpoints
from theodolite.train.training import Training

sys.path.insert(0, str(Path(__file__).parent))
from encoded_clips import MODEL, encoded_clip, write_encoded

SMALL = MODEL.model_copy(update={"depth": 2, "softmax_every": 2})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoded(tmp_path_factory.mktemp("encoded") / "data", 6)


def recipe(**changes: Any) -> TrainRecipe:
    content: dict[str, Any] = dict(
        schema_version=1,
        name="x",
        model=SMALL,
        data=dict(held_out=1, workers=0),
        optimiser=dict(lr=1e-3),
        steps=4,
        parallel=dict(recompute="nothing"),
    )
    return TrainRecipe(**{**content, **changes})


def training(recipe: TrainRecipe, data: Path, out: Path) -> Training:
    found = Training(recipe, start_model(recipe), open_encoded(data), out)
    found.place(torch.device("cpu"), Ranks())
    return found


def run(training: Training, steps: int) -> list[float]:
    losses = []
    for micro in training.feed():
        losses.append(training.take_step(micro).loss)
        if training.step == steps:
            return losses
    raise AssertionError


def same(a: Training, b: Training) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))


@pytest.mark.slow
def test_a_resumed_run_is_the_run_that_was_not_stopped(data: Path, tmp_path: Path) -> None:
    """Weights, optimiser, average, guard, order of clips and noise: bit for bit, also with another accumulation."""
    whole = training(recipe(ema=0.5), data, tmp_path / "whole")
    losses = run(whole, 4)
    first = training(recipe(ema=0.5), data, tmp_path / "parts")
    assert run(first, 2) == losses[:2]
    first.save()
    second = training(recipe(ema=0.5), data, tmp_path / "parts")
    second.restore(checkpoints(tmp_path / "parts" / "checkpoints")[-1])
    assert run(second, 4) == losses[2:]
    assert same(whole, second)
    assert whole.average is not None
    assert second.average is not None
    assert all(torch.equal(w, second.average.weights[n]) for n, w in whole.average.weights.items())
    assert whole.guard.state() == second.guard.state()


@pytest.mark.slow
def test_checkpoints_are_whole_or_not_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ = training(recipe(checkpoint=dict(keep=1)), data, tmp_path)
    run(run_, 1)
    first = run_.save()

    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    run_.step = 2
    with monkeypatch.context() as patch:
        patch.setattr("torch.distributed.checkpoint.state_dict_saver.save", full)
        with pytest.raises(OSError, match=r"step 2 cannot be written \(No space left.* kept"):
            run_.save()
    assert checkpoints(tmp_path / "checkpoints") == [first]
    assert list((tmp_path / "checkpoints").iterdir()) == [first]
    (tmp_path / "checkpoints" / ".tmp-step-00000009").mkdir()  # what a kill leaves
    with monkeypatch.context() as patch:  # killed while it removes the first one
        patch.setattr("theodolite.train.state.shutil.rmtree", lambda *path, **named: full())
        with pytest.raises(OSError, match="No space"):
            run_.save()
    second = checkpoints(tmp_path / "checkpoints")[-1]
    assert checkpoints(tmp_path / "checkpoints") == [second]  # of the first nothing bears the name
    run_.step = 3
    second = run_.save()
    assert list((tmp_path / "checkpoints").iterdir()) == [second]
    whole = json.loads((second / "progress.json").read_text())
    del whole["seal"]  # as earlier versions wrote it: what is wrong is told without a digest, too
    for change, why in (
        ({"step": "two"}, "its step is 'two'"),
        ({"step": None}, "its step is None"),
        ({"guard": 5}, "is damaged"),
        ({"guard": {}}, "lacks 'norms'"),
    ):
        (second / "progress.json").write_text(json.dumps({**whole, **change}))
        with pytest.raises(ValueError, match=rf"step-00000003/progress\.json: {why}"):
            training(recipe(), data, tmp_path).restore(second)
    (second / "progress.json").write_text(json.dumps(whole))
    (second / "__0_0.distcp").write_bytes(b"noise")
    with pytest.raises(
        ValueError,
        match=r"__0_0\.distcp: tensor \S+; .*damaged, [^\n]*; without that folder --resume goes on",
    ):
        training(recipe(), data, tmp_path).restore(second)
    other = training(recipe(), data, tmp_path)
    other.windows.reverse()
    with pytest.raises(ValueError, match=r"was written with clips \w+, now \w+: clips would differ"):
        other.restore(second)


@pytest.mark.slow
def test_a_step_that_is_not_finite_changes_nothing_and_names_its_clips(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ = training(recipe(guard=dict(patience=2)), data, tmp_path)
    before = [p.clone() for p in run_.model.parameters()]
    monkeypatch.setattr(run_, "loss", lambda model, *rest: next(model.parameters()).sum() * math.nan)
    (micro,) = (m for m, _ in zip(run_.feed(), range(1), strict=False))
    report = run_.take_step(micro)
    assert report.skipped == "its loss is nan"
    assert all(torch.equal(p, q) for p, q in zip(before, run_.model.parameters(), strict=True))
    noted = json.loads((tmp_path / "faults" / "step-00000001-rank-0.json").read_text())
    assert noted["windows"] == list(micro[0].ids)
    with pytest.raises(Diverged, match="2 steps in a row"):
        run_.take_step(micro)


def test_spikes_are_skipped_once_the_usual_is_known() -> None:
    guard = Guard(GuardConfig(spike=10, window=4, patience=3))
    assert guard.judge(1.0, 500.0) is None  # nothing is usual yet
    assert [guard.judge(1.0, 1.0) for _ in range(4)] == [None] * 4
    assert guard.judge(1.0, 11.0) == "its gradient's norm is 11, usual is 1"
    again = Guard(GuardConfig(spike=10, window=4, patience=3))
    again.restore(guard.state())
    assert again.judge(math.inf, 1.0) == "its loss is inf"
    with pytest.raises(Diverged):
        again.judge(1.0, math.nan)


def order(feed: Feed, steps: int) -> list[str]:
    found = [[s.ids for s in micro] for micro, _ in zip(feed, range(steps), strict=False)]
    return [name for micro in found for ids in micro for name in ids]


def test_any_number_of_ranks_takes_the_same_clips(data: Path) -> None:
    clips = open_encoded(data)
    windows = list(range(len(clips)))
    alone = order(Feed(clips, windows, Place(batch=4)), 3)
    assert sorted(alone[:6]) == [w.id for w in clips.windows]
    assert alone[:6] != alone[6:12]
    ranks = [order(Feed(clips, windows, Place(rank=r, ranks=2, batch=2)), 3) for r in range(2)]
    together = [name for i in range(0, 6, 2) for rank in ranks for name in rank[i : i + 2]]
    assert together == alone
    accumulated = [order(Feed(clips, windows, Place(rank=r, ranks=2, accumulate=2)), 3) for r in range(2)]
    assert sorted(accumulated[0][:2] + accumulated[1][:2]) == sorted(alone[:4])


def test_a_broken_window_ends_the_run_or_is_replaced_and_named(tmp_path: Path) -> None:
    folder = write_encoded(tmp_path / "e", 4, per_shard=1)
    clips = open_encoded(folder)
    clips._shards[clips.windows[2].id].unlink()
    windows = list(range(4))
    with pytest.raises(BadClip, match=r"clip_0002_w000000.*cannot be read"):
        order(Feed(clips, windows, Place(batch=4)), 1)
    feed = Feed(clips, windows, Place(batch=4), max_faults=3)
    assert len(order(feed, 3)) == 12
    assert list(feed.faults) == ["clip_0002_w000000"]
    with pytest.raises(BadClip, match="max_bad_clips"):
        order(Feed(clips, windows, Place(batch=4), max_faults=0), 1)


def test_a_broken_window_of_one_rank_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ended alone would leave the others waiting for it."""
    folder = write_encoded(tmp_path / "e", 3, per_shard=1)
    run_ = training(recipe(validation=dict(every=0)), folder, tmp_path)
    for window in run_.windows:
        run_.data._shards[run_.data.windows[window].id].unlink()
    (micro,) = (m for m, _ in zip(run_.feed(), range(1), strict=False))  # not yet
    with pytest.raises(BadClip, match=r"\d windows cannot be read: window clip_"):
        run_.take_step(micro)
    ranks = Ranks(rank=0, world=2)
    monkeypatch.setattr("theodolite.train.parallel.dist.all_reduce", lambda tensor, op: tensor.fill_(1))
    monkeypatch.setattr(
        "theodolite.train.parallel.dist.all_gather_object", lambda texts, mine: texts.__setitem__(1, "broken")
    )
    assert ranks.told(None, torch.device("cpu")) == ["broken"]


def test_held_out_clips_do_not_hang_on_what_else_there_is(data: Path, tmp_path: Path) -> None:
    clips = open_encoded(data)
    train, held = hold_out(clips, 2, seed=1)
    assert sorted(train + held) == list(range(6))
    fewer = open_encoded(write_encoded(tmp_path / "e", 5))
    assert {fewer.windows[i].id for i in hold_out(fewer, 2, seed=1)[1]} & {clips.windows[i].id for i in held}
    with pytest.raises(ValueError, match="nothing is left"):
        hold_out(clips, 6, seed=1)


@pytest.mark.slow
def test_exported_weights_are_the_trained_ones(data: Path, tmp_path: Path) -> None:
    run_ = training(recipe(), data, tmp_path)
    run(run_, 1)
    (path,) = run_.export()
    model, _ = load_world_model(path)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), run_.model.parameters(), strict=True))
    # Options that no shape tells are the recipe's, and go with the weights.
    own = SMALL.model_copy(update={"softmax_scale": 0.5, "softmax_bfloat16": False})
    changed = training(recipe(model=own, start=dict(weights=str(path))), data, tmp_path / "own")
    (kept,) = changed.export()
    assert changed.model.config == load_world_model(kept)[0].config == own
    assert start_model(recipe(model=None, start=dict(weights=str(kept)))).model.config == own
    with pytest.raises(ValueError, match=r"softmax_scale 0\.5, the recipe None; softmax_bfloat16 False"):
        start_model(recipe(start=dict(weights=str(kept))))
    with pytest.raises(ValueError, match=r"as its real score: softmax_scale 0\.5, the student's None"):
        load_beside(str(kept), "real score", SMALL)
    assert load_beside(str(path), "real score", own).config == own
    tuned = training(
        recipe(model=None, start=dict(weights=str(path)), lora=dict(rank=2, alpha=4)), data, tmp_path / "l"
    )
    run(tuned, 2)
    (lora,) = tuned.export()
    clip = encoded_clip(0)
    given = (clip.latents[None].float(), torch.tensor([300]), clip.text[None])
    with torch.no_grad():
        expected = tuned.model.eval()(*given)
        merge_lora(model, lora.parent)
        torch.testing.assert_close(model.eval()(*given), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": None}, "give sizes, or start.weights"),
        ({"start": {"grow": True}}, "grow from nothing"),
        ({"lora": {}}, "name start.weights"),
        ({"data": {"held_out": 0}}, "hold clips out"),
        ({"steps": 0}, "greater than 0"),
        (
            {"start": {"weights": "a", "cameras": "from_main"}, "data": {"cameras": "none"}},
            "nothing would read them",
        ),
        ({"flow_matching": {"chunks": {"same": 0.5}}}, "must sum to 1"),
        ({"optimiser": {"lr": math.inf}}, "finite number"),
        ({"flow_matching": {"shift": math.inf}}, "finite number"),
        ({"optimiser": {"betas": (0.9, 1.0)}}, "less than 1"),
        ({"validation": {"levels": ()}}, "at least 1 item"),
        ({"seed": 2**63}, "less than 9223372036854775808"),
        ({"precision": "bf16", "parallel": {"sharding": "replicate"}}, "float32: use fsdp"),
    ],
)
def test_contradictions_are_told_together(changes: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        recipe(**changes)


def test_a_recipe_may_leave_gradients_as_they_are() -> None:
    endless = recipe(optimiser=dict(clip_norm=math.inf))
    assert (
        TrainRecipe.model_validate(yaml.safe_load(yaml.safe_dump(endless.model_dump(mode="json")))) == endless
    )


def test_broken_held_out_windows_are_known_before_the_first_step(tmp_path: Path) -> None:
    """They are read hours later: until the recipe says otherwise they end the run, else they are left out, counted."""
    clips = open_encoded(write_encoded(tmp_path / "e", 6, per_shard=1))
    _, held = hold_out(clips, 2, seed=3407)
    name = clips.windows[held[0]].id
    clips._shards[name].unlink()

    def begun(**data: Any) -> Training:
        r = recipe(data=dict(held_out=2, workers=0, **data))
        return Training(r, start_model(r), clips, tmp_path)

    with pytest.raises(
        BadClip, match=rf"a held-out window cannot be read: window {name}: .*on_bad_clip: skip"
    ):
        begun().check_held_out()
    skipping = begun(on_bad_clip="skip")
    skipping.check_held_out()
    assert (skipping.held_out, list(skipping.feed_faults)) == (held[1:], [name])
    clips._shards[clips.windows[held[1]].id].unlink()
    clips._open.clear()
    with pytest.raises(BadClip, match="none of the 2 held-out windows can be read"):
        begun(on_bad_clip="skip").check_held_out()


def test_held_out_windows_that_another_rank_cannot_read_are_left_out_on_all(tmp_path: Path) -> None:
    """A rank with one more of them would wait for the others at the end of the list, for ever."""
    clips = open_encoded(write_encoded(tmp_path / "e", 6, per_shard=1))
    r = recipe(data=dict(held_out=2, workers=0, on_bad_clip="skip"))
    found = Training(r, start_model(r), clips, tmp_path)
    first, second = found.held_out
    lost = {clips.windows[first].id: "its shard is not there"}

    class Pair(Ranks):
        def told(self, text: str | None, device: torch.device) -> list[str]:
            return [*([text] if text else []), json.dumps(lost)]

    found.ranks = Pair()
    found.share_held_out()
    assert (found.held_out, found.feed_faults) == ([second], lost)
    lost[clips.windows[second].id] = "nor is its"
    with pytest.raises(BadClip, match="none of the 1 held-out windows can be read"):
        found.share_held_out()


def test_weights_that_no_rank_used_have_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros in its place would let the optimiser decay them, which one rank does not."""

    def other_rank_has_the_second(tensor: torch.Tensor, op: object = None) -> None:
        if op is not None:
            tensor[1] = 1.0

    monkeypatch.setattr("theodolite.train.parallel.dist.all_reduce", other_rank_has_the_second)
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    weights[0].grad = torch.full((2,), 4.0)
    reduce_gradients(weights, 2)
    assert [None if w.grad is None else w.grad.tolist() for w in weights] == [[2, 2], [0, 0], None]


@pytest.mark.parametrize(
    ("encoded", "changes", "why"),
    [
        ({"stand_in": True}, {}, "stand-in networks"),
        ({"latent_channels": 12}, {}, "latents of 12 channels, the network 8"),
        (
            {},
            {"parallel": {"context": 2}, "flow_matching": {"chunks": {"size": 3}}},
            "1 chunks, for 2 context",
        ),
        (
            {},
            {"parallel": {"context": 2}},
            r"parallel\.context: 5 latent frames over 2 context-parallel ranks",
        ),
    ],
)
def test_data_that_do_not_fit_are_told(encoded: dict, changes: dict, why: str, tmp_path: Path) -> None:
    folder = write_encoded(tmp_path / "e", 2, **encoded)
    r = recipe(**changes)
    with pytest.raises(ValueError, match=why):
        Training(r, start_model(r), open_encoded(folder), tmp_path)


def test_a_clip_shorter_than_a_chunk_is_a_chunk(tmp_path: Path) -> None:
    folder = write_encoded(tmp_path / "e", 2, frames=9)
    r = recipe(flow_matching=dict(chunks=dict(size=3)))
    Training(r, start_model(r), open_encoded(folder), tmp_path)


def test_changes_of_a_recipe_are_named() -> None:
    a, b = recipe().model_dump(mode="json"), recipe(optimiser=dict(lr=2e-3)).model_dump(mode="json")
    assert changed_keys(a, b) == ["optimiser.lr: 0.001 -> 0.002"]


@pytest.mark.slow
def test_bfloat16_through_fsdp_and_lora_is_near_float32(data: Path, tmp_path: Path) -> None:
    """Every block gets its inputs in the type in which it computes, whatever wraps it."""
    exact = training(recipe(), data, tmp_path)
    (loss,) = run(exact, 1)
    weights = exact.export()[0]
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        sharded = training(recipe(precision="bf16", parallel=dict(sharding="fsdp")), data, tmp_path)
        assert sharded.sharded
        assert run(sharded, 1) == [pytest.approx(loss, rel=0.02)]
    finally:
        torch.distributed.destroy_process_group()
    content: dict[str, Any] = dict(model=None, start=dict(weights=str(weights)), steps=1)
    (near,) = run(training(recipe(**content, precision="bf16", lora=dict(rank=2)), data, tmp_path / "l"), 1)
    (plain,) = run(training(recipe(**content), data, tmp_path / "f"), 1)
    assert near == pytest.approx(plain, rel=0.02)
