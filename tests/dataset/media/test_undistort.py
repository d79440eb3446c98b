"""Undistorted pictures against those that a pinhole would have taken of the same pattern, by OpenCV's projections."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from theodolite.dataset.cameras.intrinsics import pixel_centres
from theodolite.dataset.cameras.lenses import bent
from theodolite.dataset.export import Exported, PictureOptions, export_dataset
from theodolite.dataset.formats.colmap import read_colmap
from theodolite.dataset.loading import Sampling, make_sample
from theodolite.dataset.media import undistort
from theodolite.dataset.media.undistort import ClipPictures
from theodolite.dataset.rows import Row

WIDTH, HEIGHT, FRAMES = 160, 120, 3
CENTRE = (84.5, 57.0)
Terms = tuple[float, float]
UNDISTORTED = PictureOptions(undistort=True)


def pattern(rays: NDArray) -> NDArray:
    """(..., 3) grey of rays (..., 2) = (X/Z, Y/Z), finer than a picture needs to tell a tenth of a pixel."""
    x, y = rays[..., 0], rays[..., 1]
    grey = 128 + 40 * np.sin(31 * x + 4 * y) + 40 * np.cos(27 * y - 5 * x) + 15 * np.sin(11 * x * y + 3 * x)
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, -1)


def seen_by(row: Row, frame: int) -> NDArray:
    """A frame of the pattern through the row's lens; rays by OpenCV's inverse."""
    (fx, fy), (cx, cy) = row.focal_px[frame], row.principal_point_px[frame]
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    terms = np.array([row.radial_k1 or 0.0, row.radial_k2 or 0.0, 0, 0])
    pixels = pixel_centres(row.height, row.width).reshape(-1, 1, 2)
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-10)
    if row.lens_model == "fisheye":
        rays = cv2.fisheye.undistortPoints(pixels, matrix, terms, criteria=stop)
    else:
        rays = cv2.undistortPoints(pixels, matrix, terms, criteria=stop)
    return pattern(rays.reshape(row.height, row.width, 2))


@pytest.fixture
def bent_row(make_row: Callable[..., Row], tmp_path: Path) -> Callable[..., Row]:
    """Makes a row and its folder of pictures."""

    def make(focal: float, terms: Terms, *, zoom: float = 1.0, number: int = 0, **changes: str) -> Row:
        focals = focal * np.linspace(1, zoom, FRAMES)[:, None] * [1.0, 1.01]
        row = make_row(
            number,
            frames=FRAMES,
            width=WIDTH,
            height=HEIGHT,
            media_kind="images",
            media=f"stills{number}",
            frame_index=np.arange(FRAMES),
            focal_px=focals,
            principal_point_px=np.tile(CENTRE, (FRAMES, 1)),
            radial_k1=terms[0],
            radial_k2=terms[1],
            **({"lens_model": "radial"} | changes),
        )
        folder = tmp_path / row.media
        folder.mkdir()
        for i in range(FRAMES):
            cv2.imwrite(str(folder / f"{i:03d}.png"), seen_by(row, i)[..., ::-1])
        return row

    return make


def shifts_px(shown: NDArray, wanted: NDArray, *, cell: int = 24) -> NDArray:
    """(n,) by how much cells of a picture lie off, by least squares over their slopes."""
    a, b = shown[..., 0].astype(float), wanted[..., 0].astype(float)
    dy, dx = np.gradient(b)
    found = []
    for y in range(0, len(a) - cell, cell):
        for x in range(0, a.shape[1] - cell, cell):
            part = np.s_[y : y + cell, x : x + cell]
            slopes = np.stack([dx[part].ravel(), dy[part].ravel()], 1)
            found.append(np.linalg.lstsq(slopes, (a - b)[part].ravel(), rcond=None)[0])
    return np.linalg.norm(found, axis=1)


@pytest.mark.parametrize(
    ("focal", "terms", "changes", "is_cropped"),
    [
        pytest.param(150, (-0.3, 0.0), {}, False, id="barrel"),
        pytest.param(150, (-0.25, 0.12), {"zoom": 1.3}, False, id="two terms and a zoom"),
        pytest.param(150, (0.2, 0.05), {"zoom": 1.3}, True, id="pincushion and a zoom"),
        pytest.param(90, (-0.3, 0.0), {}, True, id="a fold within the picture"),
        pytest.param(WIDTH / np.pi, (0.01, -0.002), {"lens_model": "fisheye"}, False, id="fisheye"),
    ],
)
def test_pictures_are_those_of_a_pinhole(
    bent_row: Callable[..., Row], tmp_path: Path, focal: float, terms: Terms, changes: dict, is_cropped: bool
) -> None:
    row = bent_row(focal, terms, **changes)
    pictures = ClipPictures(row, tmp_path, undistort=True)
    pinhole = pictures.row
    assert pictures.is_cropped == is_cropped
    left, top, right, bottom = pictures.crop
    assert (pinhole.width, pinhole.height) == (right - left, bottom - top)
    assert (pinhole.radial_k1, pinhole.radial_k2, pinhole.lens_model) == (None, None, "radial")
    np.testing.assert_array_equal(pinhole.focal_px, row.focal_px)
    np.testing.assert_allclose(pinhole.principal_point_px + [left, top], row.principal_point_px, atol=1e-5)
    shown = list(pictures.frames())
    assert len(shown) == FRAMES
    for i, rgb in enumerate(shown):
        # What interpolation (waves of five pixels) and OpenCV's steps of 1/32 px leave of a picture like this one.
        assert np.percentile(shifts_px(rgb, seen_by(pinhole, i)), 95) < 0.05
        assert shifts_px(rgb, seen_by(pinhole, i)).max() < 0.1
    straight = next(ClipPictures(row, tmp_path).frames())
    assert shifts_px(straight[:bottom, :right][top:, left:], seen_by(pinhole, 0)).max() > 0.3


def test_what_is_cut_off_is_in_proportion_and_no_more_than_needed(
    bent_row: Callable[..., Row], tmp_path: Path
) -> None:
    row = bent_row(150, (0.2, 0.0))
    left, top, right, bottom = ClipPictures(row, tmp_path, undistort=True).crop
    low = np.array([left, top]) / CENTRE
    high = (np.array([WIDTH, HEIGHT]) - [right, bottom]) / (np.array([WIDTH, HEIGHT]) - CENTRE)
    assert np.ptp([*low, *high]) < 0.04  # whole pixels, even sizes
    corners = np.array([[left, top], [right, top], [left, bottom], [right, bottom]], float)
    focal = row.focal_px[0]

    def room(grown: float) -> float:
        """How far the corners, moved outwards, stay within what the lens shows."""
        moved = CENTRE + grown * (corners - CENTRE)
        seen = bent((moved - CENTRE) / focal, 0.2, 0.0) * focal + CENTRE
        return float(min(seen.min(), (np.array([WIDTH, HEIGHT]) - seen).min()))

    assert room(1.0) >= -1.0  # a corner, half a pixel beyond the last centre
    assert room(1.05) < 0


def test_a_lens_that_does_not_bend_changes_nothing(bent_row: Callable[..., Row], tmp_path: Path) -> None:
    row = bent_row(150, (0.0, 0.0))
    pictures = ClipPictures(row, tmp_path, undistort=True)
    assert pictures.row is row
    for shown, given in zip(pictures.frames(), ClipPictures(row, tmp_path).frames(), strict=True):
        np.testing.assert_array_equal(shown, given)


@pytest.mark.slow
def test_exports_carry_undistorted_pictures_and_cameras_without_distortion(
    bent_row: Callable[..., Row], make_dataset: Callable, tmp_path: Path
) -> None:
    barrel, pincushion = bent_row(150, (-0.2, 0.04)), bent_row(150, (0.2, 0.05), number=1)
    data = make_dataset(tmp_path / "data", {"a": [barrel, pincushion]})

    def export(style: str) -> tuple[str, ...]:
        return export_dataset(
            data, tmp_path / style, format=style, media_root=tmp_path, pictures=UNDISTORTED
        ).notes

    assert any("of 1 clips the lens shows less than a pinhole" in note for note in export("colmap"))
    assert not any("not undistorted" in note for note in export("nerfstudio"))
    for row in (barrel, pincushion):
        pinhole = ClipPictures(row, tmp_path, undistort=True).row
        clip = read_colmap(tmp_path / "colmap" / row.clip_id)
        assert (clip.height, clip.width, clip.radial_k1) == (pinhole.height, pinhole.width, None)
        np.testing.assert_allclose(clip.principal_point_px, pinhole.principal_point_px)
        content = json.loads((tmp_path / "nerfstudio" / row.clip_id / "transforms.json").read_text())
        assert (content["k1"], content["k2"], content["w"]) == (0, 0, pinhole.width)
        image = cv2.imread(str(tmp_path / "colmap" / row.clip_id / "images" / "001.png"))
        assert image is not None
        assert shifts_px(image, seen_by(pinhole, 1)).max() < 0.1


def test_videos_are_undistorted_too(
    bent_row: Callable[..., Row], make_dataset: Callable, tmp_path: Path
) -> None:
    row = bent_row(150, (0.2, 0.05))
    data = make_dataset(tmp_path / "data", {"a": [row]})
    export_dataset(data, tmp_path / "web", format="webdataset", media_root=tmp_path, pictures=UNDISTORTED)
    pinhole = ClipPictures(row, tmp_path, undistort=True).row
    with tarfile.open(tmp_path / "web" / "shard-000000.tar") as tar:
        described = tar.extractfile(next(n for n in tar.getnames() if n.endswith(".json")))
        assert described is not None
        info = json.loads(described.read())
    assert (info["height"], info["width"], info["radial_k1"]) == (pinhole.height, pinhole.width, None)


def test_a_loader_gives_pictures_and_cameras_of_a_pinhole(
    bent_row: Callable[..., Row], tmp_path: Path
) -> None:
    row = bent_row(150, (0.2, 0.05), zoom=1.3)
    pinhole = ClipPictures(row, tmp_path, undistort=True).row
    sampling = Sampling(content="frames", media_root=tmp_path, num_frames=2, undistort=True)
    sample = make_sample(row, sampling, start=1)
    assert sample["size"].tolist() == [pinhole.height, pinhole.width]
    np.testing.assert_allclose(sample["intrinsics"][:, 2:], pinhole.principal_point_px[1:])
    np.testing.assert_allclose(sample["intrinsics"][:, :2], row.focal_px[1:])
    for i, rgb in enumerate(sample["frames"].permute(0, 2, 3, 1).numpy()):
        assert shifts_px(rgb, seen_by(pinhole, i + 1)).max() < 0.1
    given = make_sample(row, replace(sampling, undistort=False), start=1)["frames"]
    assert tuple(given.shape[2:]) == (HEIGHT, WIDTH)


def test_a_loader_gives_no_fisheye_under_the_cameras_of_a_pinhole(
    bent_row: Callable[..., Row], tmp_path: Path
) -> None:
    row = bent_row(WIDTH / np.pi, (0.0, 0.0), lens_model="fisheye")
    with pytest.raises(
        ValueError, match=r"clip clip_0000: seen through a fisheye; Sampling\(undistort=True\)"
    ):
        make_sample(row, Sampling())
    sample = make_sample(row, Sampling(content="frames", media_root=tmp_path, undistort=True))
    pinhole = ClipPictures(row, tmp_path, undistort=True).row
    assert shifts_px(sample["frames"][0].permute(1, 2, 0).numpy(), seen_by(pinhole, 0)).max() < 0.1


def test_a_fisheye_is_exported_undistorted_or_not_at_all(
    bent_row: Callable[..., Row], make_dataset: Callable, tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "data", {"a": [bent_row(WIDTH / np.pi, (0.0, 0.0), lens_model="fisheye")]})
    with pytest.raises(ValueError, match="seen through a fisheye"):
        export_dataset(data, tmp_path / "bent", format="colmap", media_root=tmp_path)
    export_dataset(data, tmp_path / "out", format="colmap", media_root=tmp_path, pictures=UNDISTORTED)
    clip = read_colmap(tmp_path / "out" / "clip_0000")
    assert (clip.radial_k1, clip.width, clip.height) == (None, WIDTH, HEIGHT)


@pytest.mark.slow
def test_a_fisheye_becomes_a_video_of_its_pinhole(
    bent_row: Callable[..., Row], make_dataset: Callable, tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "data", {"a": [bent_row(WIDTH / np.pi, (0.0, 0.0), lens_model="fisheye")]})
    out = tmp_path / "out"
    assert export_dataset(data, out, format="lerobot", media_root=tmp_path, pictures=UNDISTORTED) == Exported(
        1, ("pictures are undistorted, and so are the cameras",)
    )


def test_what_cannot_be_undistorted_is_said(
    bent_row: Callable[..., Row], make_row: Callable[..., Row], make_dataset: Callable, tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "data", {"a": [bent_row(150, (-0.2, 0.0))]})
    with pytest.raises(ValueError, match="tum carries no pictures to undistort: colmap, "):
        export_dataset(data, tmp_path / "x", format="tum", media_root=tmp_path, pictures=UNDISTORTED)
    with pytest.raises(ValueError, match="undistorting needs the pictures"):
        export_dataset(data, tmp_path / "x", format="colmap", pictures=UNDISTORTED)
    nothing = make_row(0, frames=FRAMES, radial_k1=-0.3, principal_point_px=np.full((FRAMES, 2), 1e5))
    with pytest.raises(ValueError, match="clip clip_0000: its lens shows nothing of the picture"):
        undistort.ClipPictures(nothing, tmp_path, undistort=True)
    assert not (tmp_path / "x").exists()
