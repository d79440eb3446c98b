"""Both reports in headless Chromium: drawn, without console errors, without a single network request."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from theodolite.dataset.report.truth import Truth
from theodolite.dataset.report.write import write_report
from theodolite.dataset.rows import Row

CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)


def browse(page: Path, folder: Path, *, size: tuple[int, int]) -> tuple[np.ndarray, str, list[str]]:
    """Screenshot as BGR image, the browser's log, and the URLs of all requests it made for the page."""
    assert CHROMIUM is not None
    netlog = folder / "net.json"
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--no-default-browser-check",
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={netlog}",
        "--net-log-capture-mode=Everything",
        f"--screenshot={folder / 'shot.png'}",
        f"--window-size={size[0]},{size[1]}",
        page.resolve().as_uri(),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    image = cv2.imread(str(folder / "shot.png"))
    assert image is not None
    log = json.loads(netlog.read_text())
    start = next(v for k, v in log["constants"]["logEventTypes"].items() if k == "URL_REQUEST_START_JOB")
    urls = [e["params"]["url"] for e in log["events"] if e["type"] == start and "url" in e.get("params", {})]
    console = "\n".join(line for line in result.stderr.splitlines() if "CONSOLE" in line)
    return image, console, urls


def check(page: Path, folder: Path, *, size: tuple[int, int]) -> np.ndarray:
    """The page as the browser draws it, once it is known to be complete, silent and without requests."""
    folder.mkdir()
    image, console, urls = browse(page, folder, size=size)
    assert console == ""
    foreign = [u for u in urls if not u.startswith(("file:", "data:", "chrome:", "chrome-extension:"))]
    assert [
        u for u in foreign if "google" not in u and "gvt1" not in u
    ] == []  # the browser's own start-up calls
    assert image.shape == (size[1], size[0], 3)
    colours = image.reshape(-1, 3).astype(np.int32) @ [1, 256, 65536]
    assert len(np.unique(colours)) > 20
    return image


def num_pixels(image: np.ndarray, bgr: tuple[int, int, int]) -> int:
    return int((np.abs(image.astype(np.int16) - bgr).max(axis=2) < 30).sum())


BLUE = (184, 104, 22)
"""Of the page's lines."""
RED = (0, 0, 220)
"""Of the thumbnails below."""


def thumbnail(_row: Row) -> bytes:
    return cv2.imencode(".jpg", np.full((90, 160, 3), RED, np.uint8))[1].tobytes()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_report_of_a_dataset_in_a_browser(
    tmp_path: Path, make_row: Callable[..., Row], make_rejected: Callable[..., Row], make_dataset: Callable
) -> None:
    rows = [make_row(i, frames=161) for i in range(8)] + [make_rejected(90), make_rejected(91)]
    dataset = make_dataset(tmp_path / "out", {"a": rows})
    page = write_report(dataset, thumbnail=thumbnail, max_clips=6)
    text = page.read_text()
    for heading in (
        "Rejected and failed",
        "Distributions",
        "Worst accepted clips",
        "Best accepted clips",
        "Rejected and failed clips",
    ):
        assert f"<h2>{heading}</h2>" in text
    assert (
        text.index("Worst accepted") < text.index("Best accepted") < text.index("Rejected and failed clips")
    )
    assert text.count('<section class="clip"') == 6
    image = check(page, tmp_path / "dataset", size=(1200, 2600))
    assert num_pixels(image, BLUE) > 3000  # bars of the histograms and lines of the first clips
    assert num_pixels(image, RED) > 0.5 * 90 * 160


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_report_of_a_clip_in_a_browser(
    tmp_path: Path, make_row: Callable[..., Row], make_rejected: Callable[..., Row], make_dataset: Callable
) -> None:
    row = make_row(0, frames=161)
    dataset = make_dataset(tmp_path / "out", {"a": [row, make_row(1), make_rejected(2)]})
    truth = {"clip_0000": Truth(camera_to_world=row.camera_to_world.astype(float), focal_px=row.focal_px)}
    page = write_report(
        dataset, tmp_path / "clip.html", clip_ids=["clip_0000"], truth=truth, thumbnail=thumbnail
    )
    text = page.read_text()
    assert "clip_0001" not in text
    assert "Distributions" not in text
    for chart in ("from above", "Focal length", "Scale", "Reprojection error", "Position uncertainty"):
        assert chart in text
    image = check(page, tmp_path / "clip", size=(1200, 1600))
    assert num_pixels(image, BLUE) > 300
    assert num_pixels(image, RED) > 0.9 * 90 * 160
    with pytest.raises(ValueError, match="no clip 'nope' among 3"):
        write_report(dataset, tmp_path / "x.html", clip_ids=["nope"])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_filters_and_sorts(
    tmp_path: Path, make_row: Callable[..., Row], make_rejected: Callable[..., Row], make_dataset: Callable
) -> None:
    assert CHROMIUM is not None
    rows = [make_row(i, frames=3, reprojection_rms_px=px) for i, px in enumerate([0.3, 0.9, 0.6] + [0.1] * 6)]
    page = write_report(make_dataset(tmp_path / "out", {"a": [*rows, make_rejected(20)]}))
    acts = """<script>
    const shown=s=>[...document.querySelectorAll(s)].filter(e=>!e.hidden).map(e=>e.dataset.clip).join(' ');
    const set=(e,v,k)=>{e.value=v;e.dispatchEvent(new Event(k))};const out=[];
    set(document.getElementById('sort'),'px:down','change');out.push(shown('section'));
    document.querySelector('th[data-sort=px]').click();document.querySelector('th[data-sort=px]').click();
    out.push(shown('.listing tbody tr'));
    set(document.getElementById('q'),'unreadable','input');out.push(shown('section'),shown('.listing tbody tr'));
    set(document.getElementById('q'),'','input');document.querySelector('input[value=accepted]').click();
    out.push(shown('section'),document.getElementById('count').textContent);
    document.title=out.join(';');</script></body>"""
    page.write_text(page.read_text().replace("</body>", acts))
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    dom = subprocess.run(
        [*command, profile, "--dump-dom", page.resolve().as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    by_px, listed, found, rows_found, failed, count = dom.split("<title>")[1].split("</title>")[0].split(";")
    assert by_px.startswith("clip_0001 clip_0002 clip_0000 ")
    assert by_px.endswith(" clip_0020")  # without a value
    assert listed.startswith("clip_0001 clip_0002 clip_0000 ")
    assert (found, rows_found, failed) == ("clip_0020",) * 3
    assert count == "1 of 10 clips below"
