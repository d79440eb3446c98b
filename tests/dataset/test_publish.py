"""Nothing leaves that must not: stand-ins, unknown licences, private media; the rest arrives whole, with a
card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import theodolite.dataset
import yaml
from theodolite.dataset.licences import allows_commercial_use, find_licence, known_licences
from theodolite.dataset.media.read import read_frames
from theodolite.dataset.publish import publish, stage_publication
from theodolite.dataset.rows import Row
from theodolite.dataset.validate import validate_dataset
from theodolite.recipes.cli import app
from typer.testing import CliRunner

from ..typed import known

DETAIL = ("clip 3: /mnt/private/a/9.mp4: moov atom missing, 1/2 of it",)
FREE = {"weights": (), "weight_licences": ()}


@pytest.fixture
def out(
    tmp_path: Path, make_row: Callable[..., Row], make_rejected: Callable[..., Row], make_dataset: Callable
) -> Path:
    (tmp_path / "media" / "videos").mkdir(parents=True)
    (tmp_path / "media" / "videos" / "0.mp4").write_bytes(b"pictures")
    closed = {"data_redistributable": False, "media": "/mnt/private/clips/1.mp4", "source": "other"}
    shards = {
        "a": [make_row(0), make_rejected(3, error="File /mnt/private/x.py", reason_details=DETAIL)],
        "b": [make_row(1, **closed, **FREE)],
        "c": [
            make_row(
                2, data_licence="CC-BY-NC-4.0", source="other", media="https://example.org/2.mp4", **FREE
            )
        ],
    }
    for name, rows in shards.items():
        make_dataset(tmp_path / "out", {name: rows})
    return tmp_path / "out"


def test_staged_dataset_is_whole_valid_and_without_local_paths(out: Path, tmp_path: Path) -> None:
    result = stage_publication(out, tmp_path / "pub", media_root=tmp_path / "media", name="My cameras")
    assert (result.num_clips, result.left_out, result.num_media) == (4, 0, 1)
    assert validate_dataset(tmp_path / "pub") == (4, [])
    clips = theodolite.dataset.open(tmp_path / "pub")
    media = {r.clip_id: r.media for r in clips.rows()}
    assert media["clip_0000"] == "media/source=demo/clip_0000.mp4"
    assert (tmp_path / "pub" / media["clip_0000"]).read_bytes() == b"pictures"
    assert media["clip_0001"] == "other:original 1.mp4"
    assert media["clip_0002"] == "https://example.org/2.mp4"
    assert clips.row("clip_0003").reason_details == ("clip 3: 9.mp4: moov atom missing, 1/2 of it",)
    original = theodolite.dataset.open(out).row("clip_0002")
    np.testing.assert_array_equal(clips.row("clip_0002").camera_to_world, original.camera_to_world)
    everything = b"".join(p.read_bytes() for p in (tmp_path / "pub").rglob("*") if p.is_file())
    assert b"/mnt/private" not in everything
    with pytest.raises(ValueError, match="is not empty"):
        stage_publication(out, tmp_path / "pub")


def test_folders_of_images_stay_where_they_are_and_are_told(
    tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    row = make_row(0, media_kind="images", media="stills")
    data = make_dataset(tmp_path / "out", {"a": [row]})
    result = stage_publication(data, tmp_path / "pub", media_root=tmp_path, repository="owner/My-cams")
    assert (result.num_media, result.num_folders) == (0, 1)
    card = (tmp_path / "pub" / "README.md").read_text()
    assert "# My-cams\n" in card
    assert card.count('"owner/My-cams"') == 2
    assert "OWNER/NAME" not in card
    with pytest.raises(ValueError, match=r"its media is not part of this dataset: demo:original 0\.mp4"):
        read_frames(theodolite.dataset.open(tmp_path / "pub").row("clip_0000"), tmp_path / "pub")


def test_card_states_counts_licences_quality_and_loads(out: Path, tmp_path: Path) -> None:
    stage_publication(out, tmp_path / "pub", name="My cameras")
    card = (tmp_path / "pub" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["configs"][0]["data_files"][0]["path"] == "data/**/*.parquet"
    assert front["size_categories"] == ["n<1K"]
    assert "# My cameras" in card
    assert "| demo | 1 | 1 | 0.00 |" in card
    assert "| other | 2 | 0 | 0.00 |" in card
    assert "| unreadable_video | 1 |" in card
    assert "| CC-BY-NC-4.0 | 1 | 1 | 1 | no |" in card
    assert "| CC-BY-4.0 | 3 | 2 | 0 | yes |" in card
    accepted = theodolite.dataset.open(out).to_pandas(["reprojection_rms_px"]).dropna()
    assert f"reprojection error, px | {accepted.reprojection_rms_px.min():.2f}"[:-1] in card
    assert "| `camera_to_world` |" in card


def test_commercial_filter_looks_at_data_and_weights(out: Path, tmp_path: Path) -> None:
    staged = ["publish", str(out), "me/cams", "--staging", str(tmp_path / "pub")]
    done = CliRunner().invoke(app, [*staged, "--for", "commercial-use", "--dry-run"])
    assert done.exit_code == 0
    assert done.stdout.startswith("2 clips, 2 left out (no commercial use), 0 media files: staged in")
    ids = {r.clip_id for r in theodolite.dataset.open(tmp_path / "pub").rows()}
    assert ids == {"clip_0001", "clip_0003"}  # 0 has non-commercial weights, 2 non-commercial data
    assert "allow commercial use" in (tmp_path / "pub" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stand_in": True}, "no_stand_in"),
        ({"data_licence": "unknown"}, "licence_present.*--set source.data_licence=NAME"),
        ({"data_licence": "See website"}, "'See website' of data .1 clips, e.g. clip_0000"),
        ({"weight_licences": ("custom",)}, "'custom' of weights .*; that of weights is written by .* anew"),
        ({"camera_to_world": np.tile(np.diag([2.0, 1, 1, 1]), (33, 1, 1)), "path_length_m": 0.0}, "rigid"),
    ],
)
def test_refusals(
    tmp_path: Path,
    make_row: Callable[..., Row],
    make_dataset: Callable,
    changes: dict[str, Any],
    message: str,
) -> None:
    bad = make_dataset(tmp_path / "bad", {"a": [make_row(0, **changes)]})
    with pytest.raises(ValueError, match=message):
        stage_publication(bad, tmp_path / "pub")
    assert not (tmp_path / "pub").exists()


def test_what_is_said_of_an_unknown_licence_helps(
    tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    """Weights have no `data_licence`; of data and weights both are said."""
    for name, changes, said, unsaid in (
        ("weights", {"weight_licences": ("custom",)}, "that of weights", "data_licence"),
        ("data", {"data_licence": "custom"}, "source.data_licence=NAME", "that of weights"),
    ):
        path = make_dataset(tmp_path / name, {"a": [make_row(0, **changes)]})
        with pytest.raises(ValueError, match=said) as caught:
            stage_publication(path, tmp_path / "pub")
        assert unsaid not in str(caught.value)
    both = make_dataset(
        tmp_path / "both", {"a": [make_row(0, data_licence="custom", weight_licences=("custom",))]}
    )
    with pytest.raises(
        ValueError, match=r"'custom' of data .*'custom' of weights .*data_licence.*that of weights"
    ):
        stage_publication(both, tmp_path / "pub")


def test_licences_of_weights_as_earlier_versions_wrote_them(
    tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    older = "CC BY-NC 4.0 (non-commercial)", "MIT (as third parties quote the model card)"
    assert [known(find_licence(name)).name for name in older] == ["CC-BY-NC-4.0", "MIT"]
    assert find_licence("MIT (non-commercial)") is None  # what nobody wrote is not guessed
    row = make_row(0, weights=("a@0", "b@0"), weight_licences=older)
    staged = stage_publication(make_dataset(tmp_path / "o", {"a": [row]}), tmp_path / "pub")
    assert staged.num_clips == 1
    row = replace(row, weights=("b@0",), weight_licences=older[1:])
    assert allows_commercial_use("MIT", row.weight_licences)
    assert not allows_commercial_use("MIT", older)


def test_nothing_allowed_is_an_error(
    tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    closed = make_dataset(tmp_path / "o", {"a": [make_row(0)]})
    with pytest.raises(ValueError, match="allow commercial use; nothing to publish"):
        stage_publication(closed, tmp_path / "pub", use="commercial")


class _Hub:
    """Stands for the hub client: records calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return f"hub:{repo_id}"

    def upload_folder(self, **options: Any) -> None:
        files = sorted(
            str(p.relative_to(options["folder_path"])) for p in Path(options["folder_path"]).rglob("*.*")
        )
        self.calls.append(("upload_folder", {**options, "files": files}))


class _OldHub(_Hub):
    def upload_large_folder(self, **options: Any) -> None:
        self.calls.append(("upload_large_folder", options))


def test_upload_uses_the_clients_resumable_upload(out: Path, tmp_path: Path) -> None:
    hub = _Hub()
    publication, url = publish(out, "me/cams", tmp_path / "pub", api=hub)
    assert url == "hub:me/cams"
    assert publication.num_clips == 4
    (create, upload) = hub.calls
    assert create == (
        "create_repo",
        {"repo_id": "me/cams", "repo_type": "dataset", "private": True, "exist_ok": True},
    )
    assert upload[0] == "upload_folder"
    assert {"README.md", "dataset.json"} < set(upload[1]["files"])
    assert 'theodolite.dataset.open("me/cams")' in (tmp_path / "pub" / "README.md").read_text()
    old = _OldHub()
    publish(out, "me/cams", tmp_path / "pub2", api=old)
    assert old.calls[1][0] == "upload_large_folder"
    with pytest.raises(ValueError, match="expected owner/name"):
        publish(out, "cams", tmp_path / "pub3", api=hub)


@pytest.mark.parametrize("name", ["cams", "../../etc/x", "me/cams/more", "me/", "me/\x1b[31mred", "m e/cams"])
def test_a_name_that_is_no_repository_is_refused_before_anything_is_staged(
    out: Path, tmp_path: Path, name: str
) -> None:
    for more in (["--dry-run"], []):
        words = ["publish", str(out), name, "--staging", str(tmp_path / "pub"), *more]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2
        assert "expected owner/name" in done.output
        assert "\x1b" not in done.output
    assert not (tmp_path / "pub").exists()


def test_a_failed_upload_goes_on_with_the_same_call(
    out: Path, tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    class Away(_Hub):
        def upload_folder(self, **options: Any) -> None:
            raise ConnectionError("away")

    staging = tmp_path / "pub"
    with pytest.raises(ConnectionError):
        publish(out, "me/cams", staging, api=Away())
    files = {p: p.stat().st_mtime_ns for p in staging.rglob("*") if p.is_file()}
    hub = _Hub()
    publication, _url = publish(out, "me/cams", staging, api=hub)
    assert publication.num_clips == 4
    assert {p: p.stat().st_mtime_ns for p in staging.rglob("*") if p.is_file()} == files, (
        "nothing is staged again"
    )
    assert hub.calls[1][0] == "upload_folder"
    choices: list[dict[str, Any]] = [{"repo_id": "me/others"}, {"use": "commercial"}]
    for other in choices:
        with pytest.raises(ValueError, match="is not empty"):
            publish(out, **({"repo_id": "me/cams", "staging": staging, "api": hub} | other))
    make_dataset(out, {"z": [make_row(9)]})
    with pytest.raises(ValueError, match="is not empty"):
        publish(out, "me/cams", staging, api=hub)


def test_licence_table() -> None:
    assert len({x.name.lower() for x in known_licences()}) == len(known_licences())
    assert find_licence("cc-by-4.0") == find_licence("CC-BY-4.0 ") == find_licence("CC BY 4.0") is not None
    assert known(find_licence("CC BY-NC 4.0")).commercial is False
    assert find_licence("whatever") is None
    assert allows_commercial_use("MIT", ["Apache-2.0"])
    assert not allows_commercial_use("MIT", ["CC-BY-NC-4.0"])
    assert not allows_commercial_use("whatever", [])
