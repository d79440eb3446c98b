"""`theodolite caption` and `theodolite score` as users run them: resumed, killed, joined, read and filtered."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import uuid
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from theodolite.annotate.frames import dover
from theodolite.dataset import extra
from theodolite.dataset.commit import hold_dataset
from theodolite.dataset.extra import extra_scores, extra_tables
from theodolite.dataset.index import refresh_index
from theodolite.dataset.reading import open_dataset
from theodolite.dataset.storage.paths import StorePath, as_path

from ..annotate.language.chat_server import SCENE, Chat, chatting, pictures_of
from ..support import Done, run_here
from ..train.encoded_clips import row_with_pictures, write_annotated
from ..typed import known

GOOD = '{"people": 2, "vehicles": 1, "animals": 0, "quality_pass": true}'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("annotated")
    rows = [row_with_pictures(root, n, frames=9, captions=None) for n in range(3)]
    rows.append(row_with_pictures(root, 3, verdict="rejected", reasons=("fov_x",), reason_details=("wide",)))
    return write_annotated(root, rows).parent


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "root") / "dataset"


@pytest.fixture
def chat():
    with chatting(Chat()) as chat:
        yield chat


def caption(dataset: Path, chat: Chat, *more: object, command: str = "caption") -> Done:
    return run_here(
        *(command, dataset, "--server", chat.url, "--model", "m", "--media-root", dataset.parent),
        *("--jobs", 1, "--pictures", 3, *more),
    )


@pytest.mark.slow
def test_captions_come_beside_the_rows_and_with_them(dataset: Path, chat: Chat) -> None:
    before = {p: p.read_bytes() for p in (dataset / "data").rglob("*.parquet")}
    said = caption(dataset, chat, "--limit", 1)
    assert (said.returncode, said.stdout.count("1 clips done")) == (0, 1), said
    assert len(pictures_of(chat.requests[0])) == 3
    said = caption(dataset, chat)
    assert "2 clips done, 1 were there" in said.stdout
    assert len(chat.requests) == 3
    assert "0 clips done, 3 were there" in caption(dataset, chat).stdout
    assert before == {p: p.read_bytes() for p in (dataset / "data").rglob("*.parquet")}
    rows = {row.clip_id: row.captions for row in open_dataset(dataset).rows()}
    assert rows == {f"clip_{n:04d}": {"scene": SCENE} for n in range(3)} | {"clip_0003": {"scene": "A room."}}
    assert open_dataset(dataset).row("clip_0001").captions == {"scene": SCENE}
    refresh_index(dataset)
    assert open_dataset(dataset).row("clip_0001").captions == {"scene": SCENE}
    subset = run_here("subset", dataset, "--where", "verdict = 'accepted'", "--out", dataset.parent / "some")
    assert subset.returncode == 0, subset
    assert open_dataset(dataset.parent / "some").row("clip_0002").captions == {"scene": SCENE}


def test_other_settings_need_another_name(dataset: Path, chat: Chat) -> None:
    caption(dataset, chat, "--limit", 1)
    said = caption(dataset, chat, "--longest-px", 200)
    assert said.returncode == 2
    assert "longest_px: 768 there, 200 now" in said.stderr
    assert caption(dataset, chat, "--longest-px", 200, "--name", "small").returncode == 0
    assert [t.name for t in extra_tables(dataset)] == ["scene", "small"]
    assert "3 clips, 1 done or left out, 2 to do" in caption(dataset, chat, "--dry-run").stdout


def test_a_problem_is_recorded_and_tried_again_when_asked(dataset: Path, chat: Chat) -> None:
    (dataset.parent / "1.mp4").rename(dataset.parent / "gone")
    chat.faults = ["400 too long"]
    said = caption(dataset, chat)
    assert said.returncode == 1
    assert "1 clips done" in said.stdout
    assert "clip_0000: the server refused it" in said.stdout
    assert "no such file" in said.stdout
    (dataset.parent / "gone").rename(dataset.parent / "1.mp4")
    assert "0 clips done, 3 were there" in caption(dataset, chat).stdout
    assert "2 clips done, 1 were there" in caption(dataset, chat, "--retry").stdout
    assert open_dataset(dataset).row("clip_0001").captions == {"scene": SCENE}


def test_a_server_that_goes_away_leaves_what_is_done(dataset: Path, chat: Chat) -> None:
    chat.faults = ["", "", "401"]
    said = caption(dataset, chat)
    assert said.returncode == 1
    assert "OPENAI_API_KEY" in said.stderr
    chat.faults = []
    assert "1 clips done, 2 were there" in caption(dataset, chat).stdout


@pytest.mark.slow
def test_scores_are_taken_by_filter_and_by_rows(dataset: Path, chat: Chat) -> None:
    chat.answer = lambda messages: GOOD if len(messages) > 1 else "Two people and a car."
    said = caption(dataset, chat, "--by", "vlm", command="score")
    assert said.returncode == 0, said
    assert len(chat.requests) == 6
    (scores,) = extra_scores(dataset)
    assert scores["vlm_entities"].to_pylist() == [3.0] * 3
    assert known(open_dataset(dataset).row("clip_0000").metrics)["vlm_quality"] == 1.0
    recipe = dataset.parent / "r.yaml"
    recipe.write_text(
        "schema_version: 1\nname: r\nmode: estimate\nsource: {kind: videos, name: demo, root: .}\n"
        "filters: {vlm_entities: [0, 10], vlm_quality: [0.5, 1.5]}\n"
    )
    said = run_here("filter", dataset, "--recipe", recipe)
    assert "3 kept" in said.stdout, said
    given = dataset.parent / "given.csv"
    given.write_text("clip_id,vlm_entities\nclip_0001,99\n")
    assert "2 kept" in run_here("filter", dataset, "--recipe", recipe, "--scores", given).stdout


def test_parts_are_joined_and_the_last_one_counts(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = extra.begin_table(dataset, "x", "scores", {"by": "test"})
    for n in range(20):
        rows = [{"clip_id": f"c{i}", "dover": float(n), "problem": None} for i in (n, 100)]
        table.write(rows)
    whole = table.read()
    table.join_parts()
    assert len(table.parts()) == 1
    assert table.read().sort_by("clip_id").equals(whole.sort_by("clip_id"))
    assert (
        dict(zip(*table.read().select(["clip_id", "dover"]).to_pydict().values(), strict=True))["c100"]
        == 19.0
    )
    # Killed after the joined part, before the old ones are gone: the same.
    table.write([{"clip_id": "c3", "dover": None, "problem": "no"}])
    assert "c3" not in table.done(problems=False)
    monkeypatch.setattr(extra, "ROWS_PER_PART", 7)
    for n in range(20):
        table.write([{"clip_id": f"c{n}", "dover": 50.0 + n, "problem": None}])
    monkeypatch.setattr(Path, "unlink", lambda *_a, **_k: None)
    before = table.read()
    table.join_parts()
    assert table.read().sort_by("clip_id").equals(before.sort_by("clip_id"))


def test_damaged_tables_say_so(dataset: Path, chat: Chat) -> None:
    caption(dataset, chat)
    (table,) = extra_tables(dataset)
    part = table.parts()[0]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 0xFF
    part.write_bytes(content)
    with pytest.raises(ValueError, match="makes its clips again"):
        list(open_dataset(dataset).rows())
    part.unlink()
    assert caption(dataset, chat).returncode == 0
    assert open_dataset(dataset).row("clip_0000").captions == {"scene": SCENE}
    (table.folder / "table.json").write_text(json.dumps({"format": "other"}))
    said = caption(dataset, chat)
    assert said.returncode == 2
    assert "table.json" in said.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "m"), "--server"),
        (("--server", "http://h/v1"), "--model"),
        (("--server", "http://h/v1", "--model", "m", "--runner", "other"), "leave out --server"),
        (("--model", "m", "--runner", "other"), "use server, transformers or vllm"),
        (("--model", "m", "--runner", "vllm"), "vllm serve"),
        (("--server", "h", "--model", "m"), "give http(s)://"),
        (("--server", "http://h/v1", "--model", "m", "--name", "a/b"), "table's name"),
    ],
)
def test_options_that_do_not_go_together(dataset: Path, arguments: tuple[str, ...], message: str) -> None:
    said = run_here("caption", dataset, *arguments)
    assert said.returncode == 2
    assert message in said.stderr


# --- DOVER ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_views_of_dover() -> None:
    frames = np.zeros((80, 230, 400, 3), np.uint8)
    frames[..., 0] = np.arange(80)[:, None, None]
    frames[..., 1] = (np.arange(400) % 256)[None, None]
    technical, aesthetic = dover.technical_view(frames), dover.aesthetic_view(frames)
    assert technical.shape == (3, 3, 32, 224, 224)
    assert aesthetic.shape == (1, 3, 32, 224, 224)
    # Red tells the frame: the clips begin in each third, go on by two, and start over at the end.
    red = (technical[:, 0, :, 0, 0] * 58.395 + 123.675).round().int()
    assert red[:, 0].tolist() == [0, 26, 52]
    assert red[2].tolist() == [(52 + 2 * i) % 80 for i in range(32)]
    # Green tells the column: seven patches of 32 from seven cells of 57.
    green = (technical[0, 1, 0, 0] * 57.12 + 116.28).round().int()
    assert green[[0, 31, 32]].tolist() == [12, 43, 69]
    assert dover.technical_view(np.zeros((10, 40, 60, 3), np.uint8)).shape == (3, 3, 32, 224, 224)


def test_fused_score_and_chunks() -> None:
    assert dover.fused(0.1107, -0.08285) == pytest.approx(0.5)
    assert dover.fused(0.1107 + 0.07355, -0.08285 + 0.03774) == pytest.approx(1 / (1 + np.exp(-1)))
    assert 0 <= dover.fused(-1e9, 0) < dover.fused(1e9, 0) <= 1
    assert dover.chunks(961, 16.0) == [range(80 * i, 80 * i + 80) for i in range(12)]
    assert dover.chunks(161, 16.0) == [range(80), range(80, 160)]
    assert dover.chunks(9, 16.0) == [range(9)]


@pytest.mark.slow
def test_dover_by_torchscript(dataset: Path, tmp_path: Path) -> None:
    class Mean(torch.nn.Module):
        def forward(self, technical: torch.Tensor, aesthetic: torch.Tensor):
            return technical.mean() * 0.01, aesthetic.mean() * 0.01

    torch.jit.script(Mean()).save(str(tmp_path / "d.pt"))
    arguments = ("score", dataset, "--by", "dover", "--media-root", dataset.parent, "--device", "cpu")
    said = run_here(*arguments, "--weights", tmp_path / "d.pt")
    assert said.returncode == 0, said
    (scores,) = extra_scores(dataset)
    assert all(0 < x < 1 for x in scores["dover"].to_pylist())
    torch.save({"state_dict": {}}, tmp_path / "w.pth")
    said = run_here(*arguments, "--weights", tmp_path / "w.pth")
    assert said.returncode == 2
    assert "authors' package" in said.stderr
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    assert "neither TorchScript" in run_here(*arguments, "--weights", tmp_path / "bad.pth").stderr
    assert "--weights" in run_here(*arguments).stderr
    assert (
        pq.ParquetFile(next((dataset / "extra/dover").glob("*.parquet"))).schema_arrow.names[0] == "clip_id"
    )


AUTHORS = """
import torch

def convnext_3d_tiny(pretrained=False, **kwargs):
    assert not pretrained, "would be fetched from the internet"
    return torch.nn.Conv3d(3, 768, 1)

class DOVER(torch.nn.Module):
    def __init__(self, backbone_size="divided", backbone_preserve_keys="fragments,resize", multi=False, layer=-1,
                 backbone={}, divide_head=False, vqa_head={}, var=False):
        super().__init__()
        print(backbone_size)
        for key, hypers in backbone.items():
            made = convnext_3d_tiny(pretrained=True) if hypers["type"] == "conv_tiny" else torch.nn.Conv3d(3, 768, 1)
            setattr(self, key + "_backbone", made)
            setattr(self, key + "_head", torch.nn.Conv3d(vqa_head["in_channels"], 1, 1))

    def forward(self, vclips, inference=True):
        self.eval()
        features = {k: getattr(self, k + "_backbone")(v[..., ::56, ::56]) for k, v in vclips.items()}
        scores = [getattr(self, k + "_head")(v) for k, v in features.items()]
        self.train()
        return scores
"""
"""The interface of the authors' package: constructor, names of weights, order of answers; not its networks."""


def test_dover_by_the_authors_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Built without ImageNet's weights; loaded strictly; asked for both views in an order that is known."""
    package = tmp_path / "dover/models"
    package.mkdir(parents=True)
    (tmp_path / "dover/__init__.py").touch()
    (package / "__init__.py").write_text("from .evaluator import DOVER")
    (package / "evaluator.py").write_text(AUTHORS)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("dover", "dover.models", "dover.models.evaluator"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    model = dover._build(importlib.import_module("dover.models"))
    for name, value in (("technical_head", 0.1107), ("aesthetic_head", -0.08285 + 0.03774)):
        torch.nn.init.zeros_(getattr(model, name).weight)
        torch.nn.init.constant_(getattr(model, name).bias, value)
    assert capsys.readouterr().out == ""
    torch.save({"state_dict": model.state_dict()}, tmp_path / "d.pth")
    network = dover.load_network(tmp_path / "d.pth", torch.device("cpu"))
    frames = np.zeros((80, 230, 230, 3), np.uint8)
    score = dover.score_chunk(frames, network, torch.device("cpu"))
    assert score == pytest.approx(1 / (1 + np.exp(-0.3896)), abs=1e-5)
    torch.save({"backbone.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: not DOVER's weights \(.*technical_backbone"):
        dover.load_network(tmp_path / "other.pth", torch.device("cpu"))
    for name in ("dover", "dover.models", "dover.models.evaluator"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.slow
def test_captions_lie_beside_rows_in_an_object_store(
    dataset: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun, gone on with, joined, and read with the rows; by one command at a time."""
    place = as_path(f"memory://{uuid.uuid4().hex}/run")
    assert isinstance(place, StorePath)
    for path in dataset.rglob("*"):
        if path.is_file():
            (place / path.relative_to(dataset).as_posix()).write_bytes(path.read_bytes())

    def said(*more: object) -> Done:
        options = ("--server", chat.url, "--model", "m", "--media-root", dataset.parent, "--pictures", 3)
        return run_here("caption", place, *options, "--jobs", 1, *more)

    first = said("--limit", 1)
    assert (first.returncode, first.stdout.count("1 clips done")) == (0, 1), first
    (table,) = extra_tables(place)
    assert [part.name for part in table.parts()] == ["part-00000000.parquet"]
    monkeypatch.setattr(extra, "_JOINED_FROM", 2)
    with hold_dataset(table.folder):
        assert "another run is writing here" in said().stderr
        assert len(chat.requests) == 1
    assert "2 clips done, 1 were there" in said().stdout
    assert len(table.parts()) == 1, "joined"
    rows = list(open_dataset(place).rows())
    assert [row.captions for row in rows] == [{"scene": SCENE}] * 3 + [{"scene": "A room."}]
    assert "0 clips done, 3 were there" in said().stdout
    assert len(chat.requests) == 3
    for name in place.objects():
        (place / name).unlink()


@pytest.mark.parametrize(
    "arguments",
    [
        ("filter", "DIR", "--out", "s3://bucket/kept"),
        ("export", "DIR", "--format", "tum", "--out", "gs://bucket/x"),
        ("report", "DIR", "--html", "s3://bucket/report.html"),
        ("encode", "DIR", "--out", "az://bucket/x"),
        ("evaluate", "--videos", "DIR", "--recovered", "s3://bucket/x"),
    ],
)
def test_commands_that_write_files_refuse_addresses_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """A folder of that name was made here."""
    monkeypatch.chdir(tmp_path)
    done = run_here(*arguments)
    address = arguments[-1]
    assert done.returncode == 2
    assert f"{address}: this command writes to a folder or file here" in done.stderr
    assert not list(tmp_path.iterdir())
