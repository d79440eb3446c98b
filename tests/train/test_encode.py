"""Which windows a clip gives, what happens to its picture and cameras, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from theodolite.dataset.media.undistort import ClipPictures
from theodolite.train.encode import (
    EncodeOptions,
    Refused,
    bent_share,
    cameras_of,
    encode_window,
    load_encoders,
    picture_cut,
    windows_of,
)

from .encoded_clips import row_with_pictures

SMALL = EncodeOptions(height=64, width=96, frames=17)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def row(root: Path):
    return row_with_pictures(root, frames=44)


def test_windows_do_not_overlap_and_are_whole(row) -> None:
    assert [(w.first_frame, w.num_frames) for w in windows_of(row, SMALL)] == [(0, 17), (17, 17)]
    short = SMALL.model_copy(update={"shortest": 9})
    assert [(w.first_frame, w.num_frames) for w in windows_of(row, short)] == [(0, 17), (17, 17), (34, 9)]
    dense = SMALL.model_copy(update={"stride": 8})
    assert [w.first_frame for w in windows_of(row, dense)] == [0, 8, 16, 24]


@pytest.mark.parametrize(
    ("changes", "options", "why"),
    [
        ({"stand_in": True}, {}, "stand-in networks"),
        (
            {"verdict": "rejected", "reasons": ("fov_x",), "reason_details": ("wide",)},
            {},
            r"rejected \(fov_x\)",
        ),
        ({"fps": 30.0}, {}, "30 frames/s"),
        ({"scale_model": "none"}, {}, "not in metres"),
        ({"lens_model": "fisheye"}, {}, r"through a fisheye \(--set undistort=true"),
        (
            {"radial_k1": -0.4, "principal_point_px": np.full((44, 2), 5000, np.float32)},
            {"undistort": True},
            "clip clip_0000: its lens shows nothing",
        ),
        ({"captions": None}, {}, "has no caption"),
        ({}, {"caption": "action"}, "no caption 'action'"),
        ({}, {"frames": 161}, "44 frames, a window has 161"),
        ({}, {"height": 1024, "width": 64}, "^clip clip_0000: .*squeeze keeps"),
    ],
)
def test_refusals_say_why(row, changes: dict, options: dict, why: str) -> None:
    with pytest.raises(Refused, match=why):
        windows_of(
            replace(row, **changes), EncodeOptions(**{"height": 64, "width": 96, "frames": 17, **options})
        )


def test_what_a_lens_bends_is_measured_in_the_corners(row) -> None:
    from dataclasses import replace

    assert bent_share(row) == 0.0
    one = np.ones((row.num_frames, 2), np.float32)
    lens = {"height": 480, "width": 640, "focal_px": 500 * one, "principal_point_px": one * (320, 240)}
    # A corner is 0.8 focal lengths off the axis, which is half of the diagonal.
    assert bent_share(replace(row, radial_k1=-0.3, **lens)) == pytest.approx(0.3 * 0.64 / 2)
    both = replace(row, radial_k1=-0.3, radial_k2=0.3 / 0.64, **lens)
    assert bent_share(both) == pytest.approx(0.0, abs=1e-6)


def test_cameras_follow_window_and_picture(row) -> None:
    window = windows_of(row, SMALL)[1]
    cut = picture_cut((96, 160), SMALL)
    assert cut.resized == (64, 107)
    pose, lens = cameras_of(row, window, cut)
    assert torch.allclose(pose[0], torch.eye(4), atol=1e-6)
    expected = np.linalg.inv(row.camera_to_world[17].astype(np.float64)) @ row.camera_to_world[30]
    np.testing.assert_allclose(pose[13].numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(lens[0], [100 * 107 / 160, 110 * 64 / 96, 80 * 107 / 160 - 5, 32], rtol=1e-5)
    squeezed = SMALL.model_copy(update={"fit": "squeeze"})
    _, lens = cameras_of(row, window, picture_cut((96, 160), squeezed))
    np.testing.assert_allclose(lens[0], [60, 110 * 64 / 96, 48, 32], rtol=1e-5)


@pytest.mark.slow
def test_a_window_is_what_its_encoder_gives(row, root: Path) -> None:
    encoders = load_encoders("stand_in", device="cpu", dtype=torch.float32, text_tokens=10)
    first, second = windows_of(row, SMALL)
    clip = encode_window(row, second, encoders, SMALL, root)
    assert clip.latents.shape == (8, 3, 2, 3)
    assert clip.text.shape == (10, 16)
    other = encode_window(row, first, encoders, SMALL, root)
    assert not torch.allclose(clip.latents, other.latents)
    pixels = torch.empty(3, 17, 64, 96)
    from theodolite.dataset.media.read import iterate_frames

    cut = picture_cut((96, 160), SMALL)
    for i, image in enumerate(iterate_frames(row, root, positions=range(17, 34))):
        pixels[:, i] = torch.from_numpy(cut.apply(image)).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(clip.latents, encoders.autoencoder.encode(pixels)[0])


@pytest.mark.slow
def test_undistorted_windows_have_the_pictures_and_cameras_of_a_pinhole(row, root: Path) -> None:
    encoders = load_encoders("stand_in", device="cpu", dtype=torch.float32, text_tokens=10)
    bent = replace(row, radial_k1=0.15, lens_model="radial")
    options = SMALL.model_copy(update={"undistort": True})
    pictures = ClipPictures(bent, root, undistort=True)
    assert pictures.is_cropped
    window = windows_of(bent, options)[1]
    clip = encode_window(bent, window, encoders, options, root)
    cut = picture_cut((pictures.row.height, pictures.row.width), SMALL)
    pixels = torch.empty(3, 17, 64, 96)
    for i, image in enumerate(pictures.frames(positions=range(17, 34))):
        pixels[:, i] = torch.from_numpy(cut.apply(image)).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(clip.latents, encoders.autoencoder.encode(pixels)[0])
    assert clip.intrinsics_px is not None
    assert torch.equal(clip.intrinsics_px, cameras_of(pictures.row, window, cut)[1])
    assert not torch.equal(clip.latents, encode_window(bent, window, encoders, SMALL, root).latents)
