"""The report in headless Chromium: drawn, without console errors, without a single network request."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from theodolite.dataset.report import write_report
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


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_report_in_a_browser(
    tmp_path: Path, make_row: Callable[..., Row], make_rejected: Callable[..., Row], make_dataset: Callable
) -> None:
    rows = [make_row(0, frames=161), make_row(1), make_rejected(2)]
    page = write_report(make_dataset(tmp_path / "out", {"a": rows}))
    image, console, urls = browse(page, tmp_path, size=(1200, 1600))
    assert console == ""
    foreign = [u for u in urls if not u.startswith(("file:", "data:", "chrome:", "chrome-extension:"))]
    assert [
        u for u in foreign if "google" not in u and "gvt1" not in u
    ] == []  # the browser's own start-up calls
    assert image.shape == (1600, 1200, 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20
    blue = (np.abs(image.astype(int) - [184, 104, 22]).max(axis=2) < 30).sum()  # the --a line colour, BGR
    assert blue > 300
