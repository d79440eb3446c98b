"""The report is one self-contained page with every chart; inspect names what matters."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pyarrow as pa
import pytest
from theodolite.dataset import svg
from theodolite.dataset.camera_files.match import Matching
from theodolite.dataset.camera_files.single import read_clip
from theodolite.dataset.cameras import transforms as cam
from theodolite.dataset.card import rejection_table
from theodolite.dataset.formats.trajectories import write_matrices
from theodolite.dataset.gates import GATE_MEANINGS, gate_margin
from theodolite.dataset.reading import open_dataset
from theodolite.dataset.report.inspect import inspect_text, row_of
from theodolite.dataset.report.pictures import pictures_from_media, thumbnail_from_media
from theodolite.dataset.report.truth import Truth, TruthByClip, truth_of_row
from theodolite.dataset.report.write import write_report
from theodolite.dataset.rows import Gate, Row

from ...support import run_here
from ...typed import known


@pytest.fixture
def out(
    tmp_path: Path, make_row: Callable[..., Row], make_rejected: Callable[..., Row], make_dataset: Callable
) -> Path:
    rows = [
        make_row(0),
        make_row(1, media_kind="images", media="frames"),
        make_rejected(2, error="Traceback <most recent>", reason_details=("moov <atom> missing",)),
        make_row(3, scale_model="step", metres_per_unit_frame=np.full(33, 2.5)),
    ]
    return make_dataset(tmp_path / "out", {"a": rows})


class _Check(HTMLParser):
    """Balanced tags, and nothing that a browser would load."""

    VOID = frozenset({"meta", "link", "img", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script" or not attrs  # inline, nothing to load
        self.urls += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def _truth(row: Row, scale: float = 1.0) -> Truth:
    poses = cam.se3_exp([1, 2, 3, 0.1, 0.2, 0.3]) @ row.camera_to_world.astype(np.float64)
    poses[:, :3, 3] *= scale
    poses[5] = np.nan
    return Truth(camera_to_world=poses, focal_px=row.focal_px * 1.02)


def test_report_is_one_page_with_all_charts(out: Path, make_row: Callable[..., Row]) -> None:
    page = write_report(out, truth={"clip_0000": _truth(make_row(0))}).read_text(encoding="utf-8")
    check = _Check()
    check.feed(page)
    assert check.stack == []
    assert {u for u in check.urls if not u.startswith("#")} == {"data:,"}
    assert not re.search(r"https?://|@import|url\(", page)
    sections = page.split('<section class="clip"')[1:]
    assert len(sections) == 4
    for title in (
        "from above",
        "from the side",
        "Focal length (smooth)",
        "Scale (constant",
        "Reprojection error",
    ):
        assert title in sections[0]
    assert sections[0].count("truth") >= 3
    assert "0.0000 m = 0.00 % of path" in sections[0]
    assert "1.0000 (1 is right)" in sections[0]
    assert "1.96 %" in sections[0]  # focal: 1 - 1 / 1.02
    assert "fov_x" in sections[0]
    assert "moov &lt;atom&gt; missing" in sections[2]
    assert "Traceback &lt;most recent&gt;" in sections[2]
    assert "unreadable_video" in page.split("<h2>Clips")[0]
    for drawing in re.findall(r"<svg.*?</svg>", page):
        ET.fromstring(drawing)  # well-formed
        assert "nan" not in drawing


def test_straight_path_with_truth_does_not_fail(
    tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    poses = np.tile(np.eye(4), (33, 1, 1))
    poses[:, 2, 3] = np.linspace(0, 3, 33)
    row = make_row(0, camera_to_world=poses, path_length_m=3.0)
    page = write_report(
        make_dataset(tmp_path, {"a": [row]}), truth={"clip_0000": Truth(camera_to_world=poses)}
    ).read_text()
    assert "lie on a line" in page
    with pytest.raises(ValueError, match="truth has 5 camera_to_world, the clip 33 frames"):
        write_report(tmp_path, truth={"clip_0000": Truth(camera_to_world=poses[:5])})


def test_large_dataset_shows_truth_worst_best_and_rejected(
    tmp_path: Path, make_row: Callable[..., Row], make_rejected: Callable[..., Row], make_dataset: Callable
) -> None:
    rows = [make_row(i, frames=3, reprojection_rms_px=0.1 * (i + 1)) for i in range(20)]
    make_dataset(tmp_path, {"a": [*rows, make_rejected(20)]})
    page = write_report(
        tmp_path, max_clips=7, truth={"clip_0010": Truth(camera_to_world=rows[10].camera_to_world)}
    ).read_text()
    shown = re.findall(r'id="(clip_\d+)"', page)
    assert shown == ["clip_0010", "clip_0019", "clip_0018", "clip_0000", "clip_0001", "clip_0020"]
    assert "6 of 21 clips in detail" in page


def test_thumbnails_come_from_local_media(out: Path, tmp_path: Path) -> None:
    (tmp_path / "media" / "frames").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "media" / "frames" / "0.png"), np.full((20, 40, 3), 128, np.uint8))
    page = write_report(
        out, tmp_path / "x" / "r.html", thumbnail=thumbnail_from_media(tmp_path / "media")
    ).read_text()
    assert page.count("data:image/jpeg;base64,") == 1  # the videos do not exist


def truths_from_files(rows: list[Row], paths: dict[str, Path], matching: Matching) -> TruthByClip:
    by_id = {row.clip_id: row for row in rows}

    def read(clip_id: str) -> Truth:
        path = paths[clip_id]
        return truth_of_row(by_id[clip_id], read_clip(path), matching=matching, path=path)

    return TruthByClip(by_id, read)


def test_truth_follows_source_frames(tmp_path: Path, make_row: Callable[..., Row]) -> None:
    row = make_row(0)
    poses = cam.se3_exp(np.random.default_rng(0).normal(size=(int(row.frame_index[-1]) + 1, 6)))
    write_matrices(tmp_path / "p.txt", poses)
    paths, matching = {"clip_0000": tmp_path / "p.txt"}, Matching(rows="source")
    truth = truths_from_files([row], paths, matching)["clip_0000"].camera_to_world
    np.testing.assert_allclose(known(truth), poses[row.frame_index], atol=1e-12)
    write_matrices(tmp_path / "p.txt", poses[:-1])
    broken = truths_from_files([row], paths, matching)["clip_0000"]
    assert broken.camera_to_world is None
    assert f"{len(poses) - 1} rows without times, but the clip has 33 frames" in (broken.problem or "")


def test_inspect(out: Path) -> None:
    text = inspect_text(out)
    assert "4 clips: 3 accepted, 1 failed" in text
    assert re.search(r"clip_0002 +demo +failed +0 .*unreadable_video", text)
    short = inspect_text(out, limit=1)
    assert "clip_0001" not in short
    assert "... and 3 more\n4 clips: 3 accepted, 1 failed" in short
    one = inspect_text(out, clip_id="clip_0000")
    assert re.search(r"metres_per_unit +2\.\d+ m", one)
    assert re.search(r"gate fov_x +1.3 in \[0.44, 2.09\] rad: pass", one)
    assert "moov <atom> missing" in inspect_text(out, clip_id="clip_0002")
    with pytest.raises(ValueError, match="no clip 'nope'"):
        inspect_text(out, clip_id="nope")
    with pytest.raises(ValueError, match="no clip 'clip_003' among 4; did you mean clip_0003"):
        inspect_text(out, clip_id="clip_003")
    many = Mock()
    many.row.side_effect = KeyError("no clip 'clip_00'")
    many.to_table.return_value = pa.table({"clip_id": [f"clip_{i:02d}" for i in range(6000)]})
    with pytest.raises(ValueError, match=r"^no clip .clip_00.$"):  # comparing with a million takes minutes
        row_of(many, "clip_00")


def test_a_reason_that_a_clip_has_twice_counts_once(
    make_rejected: Callable[..., Row], make_dataset: Callable, tmp_path: Path
) -> None:
    twice = ("scale_inconsistent", "scale_inconsistent")
    out = make_dataset(tmp_path / "a", {"a": [make_rejected(0, reasons=twice, reason_details=("x", "y"))]})
    assert inspect_text(out).count("scale_inconsistent") == 1
    head = write_report(out).read_text(encoding="utf-8").split("<h2>Clips")[0]
    assert "<td>scale_inconsistent</td><td class=n>1</td>" in head
    assert "scale_inconsistent | 1 | 1 |" in rejection_table(
        open_dataset(out).to_table(["source", "reasons"])
    )


def test_charts_survive_empty_constant_and_long_data() -> None:
    assert "no data" in svg.chart([svg.Line(x=[], y=[])], title="t", x_label="x", y_label="y")
    for y in (np.zeros(5), np.full(5, 1e6), np.array([np.nan, 1, np.nan, 2, 3])):
        ET.fromstring(svg.chart([svg.Line(x=np.arange(5), y=y)], title="a<b", x_label="x", y_label="y"))
    long = svg.chart([svg.Line(x=np.arange(10**5), y=np.arange(10**5))], title="t", x_label="x", y_label="y")
    assert len(long) < 30_000


def test_one_broken_truth_costs_its_overlay_and_is_named(
    out: Path, make_row: Callable[..., Row], tmp_path: Path
) -> None:
    row = make_row(0)
    write_matrices(tmp_path / "good.txt", row.camera_to_world)
    (tmp_path / "bad.txt").write_text("1 2 3\n")
    paths = {
        "clip_0000": tmp_path / "good.txt",
        "clip_0001": tmp_path / "bad.txt",
        "clip_0003": tmp_path / "gone.txt",
    }
    truth = truths_from_files([row, make_row(1), make_row(3)], paths, Matching(rows="clip"))
    sections = write_report(out, truth=truth).read_text().split('<section class="clip"')[1:]
    assert "0.0000 m = 0.00 % of path" in sections[0]
    assert f"{tmp_path / 'bad.txt'}: 3 entries in the first row" in sections[1]
    assert f"{tmp_path / 'gone.txt'}: no such file" in sections[3]
    assert all("Trajectory from behind" in sections[i] for i in (0, 1, 3))


def test_only_the_truth_of_clips_in_detail_is_read(
    tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    rows = [make_row(i, frames=3) for i in range(12)]
    make_dataset(tmp_path, {"a": rows})
    read: list[str] = []

    def truth(clip_id: str) -> Truth:
        read.append(clip_id)
        return Truth()

    write_report(tmp_path, max_clips=4, truth=TruthByClip([r.clip_id for r in rows], truth))
    assert len(read) == 4


def test_pages_of_few_and_of_many_clips(
    tmp_path: Path, make_row: Callable[..., Row], make_rejected: Callable[..., Row], make_dataset: Callable
) -> None:
    rows = [make_row(i) for i in range(11)]
    few = write_report(make_dataset(tmp_path / "few", {"a": rows[:3]})).read_text()
    assert few.index("<h2>Clips") < few.index("<h2>Distributions")
    assert "All clips" not in few
    one = write_report(make_dataset(tmp_path / "one", {"a": rows[:1]})).read_text()
    assert "Distributions" not in one
    assert 'id="q"' not in one
    odd = make_rejected(11, reasons=("odd<reason",), original_id="<b>")
    page = write_report(make_dataset(tmp_path / "many", {"a": [*rows, odd]}), max_clips=5).read_text()
    assert page.index("<h2>All clips") < page.index("<h2>Distributions") < page.index("<h2>Worst")
    listed = re.findall(r'<tr data-text="(clip_\d+)', page)
    assert listed == [f"clip_{i:04d}" for i in range(12)]
    assert page.count('<a href="#clip_') == 3  # the worst, the best, the rejected one
    assert "odd<reason" not in page
    for drawing in re.findall(r"<svg.*?</svg>", page):
        ET.fromstring(drawing)


def test_pictures_show_the_frames_of_the_row_with_their_field_of_view(
    tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    (tmp_path / "frames").mkdir()
    row = make_row(
        0, media_kind="images", media="frames", frame_index=np.arange(33), focal_px=np.full((33, 2), 640.0)
    )
    for i in range(20):  # the folder has lost its end since
        cv2.imwrite(str(tmp_path / "frames" / f"{i}.jpg"), np.full((72, 128, 3), 10 * i, np.uint8))
    shown = pictures_from_media(tmp_path)(row, [0, 8, 16, 24, 32])
    assert list(shown) == [0, 8, 16]
    grey = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE) for jpeg in shown.values()]
    assert [known(image).shape for image in grey] == [(124, 220)] * 3
    assert [round(float(np.mean(image)), -1) for image in grey if image is not None] == [0, 80, 160]
    page = write_report(
        make_dataset(tmp_path / "set", {"a": [row]}), pictures=pictures_from_media(tmp_path)
    ).read_text()
    assert page.count("data:image/jpeg;base64,") == 3
    assert page.count("90.0\N{DEGREE SIGN} x 58.7\N{DEGREE SIGN}") == 5
    assert page.count('class="fill wedge') == 5
    assert "No pictures" not in page
    assert (
        "No pictures"
        in write_report(tmp_path / "set", pictures=pictures_from_media(tmp_path / "gone")).read_text()
    )


def test_every_gate_has_a_meaning_and_a_margin(out: Path, make_row: Callable[..., Row]) -> None:
    from theodolite.annotate.verdict.gates import REASONS

    assert set(REASONS) <= set(GATE_MEANINGS)
    margins = [
        (Gate(name="g", value=v, lower=low, upper=high, passed=True), expected)
        for v, low, high, expected in (
            (3.0, None, 4.0, 0.25),
            (5.0, None, 4.0, -0.25),
            (5.0, 4.0, None, 0.25),
            (0.02, -0.1, 0.1, 0.8),
            (-0.15, -0.1, 0.1, -0.5),
            (0.0, 0.0, 4.0, 0.0),
            # Factors and lengths are measured in logs: a scene of 2.27 m is not close to either of 2 cm and 2 km.
            (2.27, 0.02, 2000.0, 0.8219),
            (0.04, 0.02, 2000.0, 0.1204),
            (1000.0, 0.02, 2000.0, 0.1204),
            (0.01, 0.02, 2000.0, -0.1204),
            (1.0, 0.8, 1.25, 1.0),
            (1.25, 0.8, 1.25, 0.0),
            (0.1, 0.0, None, 0.1),
            (None, 0.0, 1.0, None),
        )
    ]
    angle = Gate(name="fov", value=90.0, lower=30.0, upper=120.0, unit="deg", passed=True)
    assert gate_margin(angle) == pytest.approx(2 / 3)
    # What no length can be is out, and a number.
    nothing = gate_margin(Gate(name="scene_depth", value=0.0, lower=0.02, upper=2000.0, passed=False))
    assert nothing is not None
    assert np.isfinite(nothing)
    assert nothing < -1
    # Yes or no is never close.
    assert gate_margin(Gate(name="finite", value=1.0, lower=1.0, passed=True)) is None
    assert gate_margin(Gate(name="fisheye", value=0.0, upper=0.0, passed=True)) is None
    assert [gate_margin(gate) for gate, _ in margins] == [
        pytest.approx(m, abs=1e-4) if m is not None else None for _, m in margins
    ]
    page = write_report(out).read_text()
    assert "all 2 gates passed; closest: fov_x, margin 96 %" in page


def test_inspect_shows_values_without_brackets(
    tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    row = make_row(
        0,
        stage_wall_s={"decode": 0.12345678901, "bundle": 2.0},
        weights=("a@1", "b@2"),
        weight_licences=("MIT", "MIT"),
    )
    text = inspect_text(make_dataset(tmp_path / "out", {"a": [row]}), clip_id="clip_0000")
    assert re.search(r"stage_wall_s +(decode 0\.123457, bundle 2|bundle 2, decode 0\.123457) s\n", text)
    assert re.search(r"weights +a@1, b@2\n", text)


def test_a_report_takes_its_pictures_from_where_it_is_told(
    tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    out = make_dataset(tmp_path / "out", {"a": [make_row(0)]})
    done = run_here("report", out, "--media-root", tmp_path)
    assert done.returncode == 0
    assert f"pictures: from {tmp_path}\n" in done.stdout
    done = run_here("report", out, "--media-root", tmp_path / "gone")
    assert done.returncode == 2
    assert "gone: no such folder" in done.stderr


def test_inspect_says_why_there_is_no_confidence(
    tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    rows = [
        make_row(0, confidence=None, weights=(), weight_licences=()),
        make_row(1, confidence=0.7),
    ]
    out = make_dataset(tmp_path / "out", {"a": rows})
    assert re.search(r"confidence +none: no network took part", inspect_text(out, clip_id="clip_0000"))
    assert re.search(r"confidence +0\.7\n", inspect_text(out, clip_id="clip_0001"))
