"""Clips of one video against each other: what differs is found, and nobody else is accused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from theodolite.dataset.filters import Filters, apply_filters
from theodolite.dataset.reading import open_dataset
from theodolite.dataset.rows import Row
from theodolite.dataset.same_video import (
    LENS_DIFFERS,
    LENS_ZOOMS,
    SCALE_DIFFERS,
    SameVideo,
    check_videos,
    consensus,
    video_of,
)
from theodolite.dataset.store import prepare_output, write_part
from theodolite.recipes.cli import app
from typer.testing import CliRunner

HASH = "0" * 16
FRAMES, WIDTH, HEIGHT = 24, 1280, 720


def clip(
    clip_id: str,
    media: str,
    *,
    focal: float | np.ndarray = 1000.0,
    sigma: float = 0.01,
    start: int = 0,
    path_factor: float = 1.0,
    unit: float | None = None,
) -> Row:
    """An accepted clip; its path is a function of the source frame, so that clips that share frames agree."""
    frame = start + np.arange(FRAMES)
    poses: Any = np.tile(np.eye(4), (FRAMES, 1, 1))
    poses[:, :3, 3] = path_factor * np.stack([0.1 * frame, np.sin(0.2 * frame), 0 * frame], 1)
    focal_px = np.broadcast_to(np.asarray(focal, float), (FRAMES,))
    fov = 2 * np.arctan(WIDTH / 2 / focal_px)
    return Row(
        clip_id=clip_id,
        source="walks",
        original_id=clip_id,
        media_kind="video",
        media=media,
        mode="given_pose",
        data_licence="CC0-1.0",
        data_redistributable=True,
        stand_in=False,
        recipe_hash=HASH,
        package_version="0",
        verdict="accepted",
        height=HEIGHT,
        width=WIDTH,
        frame_index=frame.astype(np.int32),
        time_s=frame / 16,
        camera_to_world=poses,
        focal_px=np.repeat(focal_px[:, None], 2, 1),
        principal_point_px=np.tile([WIDTH / 2, HEIGHT / 2], (FRAMES, 1)),
        pose_source=np.full(FRAMES, "given"),
        focal_model="constant",
        log_focal_sigma=np.full(FRAMES, sigma),
        fov_x_min_rad=float(fov.min()),
        fov_x_max_rad=float(fov.max()),
        scale_source="none" if unit is None else "bridge",
        scale_sigma_log=0.04,
        given_metres_per_unit=unit,
    )


def found(folder: Path, rows: list[Row]) -> tuple[SameVideo, dict[str, list[str]]]:
    prepare_output(folder, recipe_hash=HASH)
    write_part(folder, rows, shard_id="000000-x", recipe_hash=HASH)
    result = check_videos(open_dataset(folder))
    table = result.table
    return result, dict(zip(table["clip_id"].to_pylist(), table["reasons"].to_pylist(), strict=True))


def test_a_change_of_lens_and_a_zoom_are_found(tmp_path: Path) -> None:
    rows = [clip(f"a{i}", "a.mp4", focal=1000 * f) for i, f in enumerate((1.0, 1.02, 0.99, 1.25))]
    rows += [clip("b0", "b.mp4"), clip("b1", "b.mp4", focal=np.geomspace(1000, 1300, FRAMES))]
    rows += [
        clip("c0", "c.mp4", focal=900.0),
        clip("c1", "c.mp4", focal=1100.0),
    ]  # nobody knows which is right
    rows += [clip("d", "d.mp4", focal=300.0)]  # alone in its video
    _, reasons = found(tmp_path, rows)
    assert reasons == {
        **{f"a{i}": [] for i in range(3)},
        "a3": [LENS_DIFFERS],
        "b0": [],
        "b1": [LENS_ZOOMS],
        "c0": [LENS_DIFFERS],
        "c1": [LENS_DIFFERS],
    }


def test_a_hundred_intact_pairs_are_not_accused(tmp_path: Path) -> None:
    """Focal lengths that err as they say they do, by one to three per cent, and units by four."""
    rng = np.random.default_rng(3)
    rows = []
    for pair in range(100):
        sigma = rng.uniform(0.005, 0.03)
        for side in "ab":
            focal = 1000 * np.exp(sigma * rng.standard_normal())
            unit = 2.5 * np.exp(0.04 * rng.standard_normal())
            rows.append(clip(f"{pair}{side}", f"{pair}.mp4", focal=focal, sigma=sigma, unit=unit))
    result, reasons = found(tmp_path, rows)
    assert result.num_pairs == 100
    assert not any(reasons.values())


def test_a_unit_or_a_path_of_another_length_is_found(tmp_path: Path) -> None:
    rows = [clip(f"a{i}", "a.mp4", unit=u) for i, u in enumerate((2.5, 2.6, 2.45, 3.6))]
    rows += [clip(f"b{i}", "b.mp4", start=12 * i, path_factor=f) for i, f in enumerate((1.0, 1.05, 1.8))]
    # Units of files of their own say nothing of each other, nor do paths without a common frame.
    rows += [clip("c0", "id_0000000_0001800.mp4", unit=1.0), clip("c1", "id_0001800_0003600.mp4", unit=9.0)]
    rows += [clip(f"d{i}", "d.mp4", start=100 * i, path_factor=1.0 + i) for i in range(2)]
    _, reasons = found(tmp_path, rows)
    accused = {clip_id for clip_id, words in reasons.items() if words == [SCALE_DIFFERS]}
    assert accused == {"a3", "b1", "b2"}
    assert {clip_id for clip_id, words in reasons.items() if words} == accused


@pytest.mark.parametrize(
    ("media", "video"),
    [
        ("a/b.mp4", "a/b.mp4"),
        ("x/--Rwt95Vkw0_0003750_0005550.mp4", "--Rwt95Vkw0"),
        ("z/00100100001_0008250_0010050_s000640.mp4", "00100100001"),
        ("000000008/000000008165.3.mp4", "000000008165"),
        ("group_0001/0a00f99d-1.mp4", "group_0001/0a00f99d-1.mp4"),
        ("b04f88d1f85a/color", "b04f88d1f85a/color"),
    ],
)
def test_the_video_behind_a_name(media: str, video: str) -> None:
    assert video_of(media) == video


def test_without_a_majority_all_differ_and_one_never_does() -> None:
    two, sigma = np.array([0.0, 0.5, 1.0, 1.5]), np.full(4, 0.01)
    assert consensus(two, sigma, 0.1)[2].all()
    assert not consensus(two[:1], sigma[:1], 0.1)[2].any()
    off, _, differs = consensus(np.array([0.0, 0.02, -0.01, 0.4]), sigma, 0.1)
    assert differs.tolist() == [False, False, False, True]
    assert off[3] == pytest.approx(0.4, abs=0.01)


def test_the_commands(tmp_path: Path) -> None:
    out = tmp_path / "found.parquet"
    rows = [clip(f"a{i}", "a.mp4", focal=1000.0 + 500 * (i == 2)) for i in range(3)]
    _, reasons = found(tmp_path / "run", rows)
    done = CliRunner().invoke(app, ["integrity", str(tmp_path / "run"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "1 videos with several clips (3 pairs): lens_differs_in_video 1" in done.stdout
    assert pq.read_table(out)["clip_id"].to_pylist() == ["a0", "a1", "a2"]
    judged = apply_filters(open_dataset(tmp_path / "run"), {"walks": Filters()}, against=reasons)
    assert judged.table["kept"].to_pylist() == [True, True, False]
    assert judged.table["filter_reasons"].to_pylist() == [[], [], [LENS_DIFFERS]]
    assert judged.sources[0].kept == 2
