"""COLMAP: opened by pycolmap, and what pycolmap writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from theodolite.dataset.cameras import transforms as cam
from theodolite.dataset.cameras.intrinsics import project
from theodolite.dataset.formats.base import CameraClip
from theodolite.dataset.formats.colmap import ColmapPoints, read_colmap, write_colmap

from .compared import assert_same_cameras


def _observations(clip: CameraClip) -> ColmapPoints:
    """Points in front of every camera with their exact projections."""
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(-1, 1, 40), rng.uniform(-0.6, 0.6, 40), rng.uniform(3, 6, 40)], axis=1)
    points = points + clip.camera_to_world[:, :3, 3].mean(0)
    pixels, z = project(points[None], clip.camera_to_world, clip.intrinsics)
    n = (pixels - clip.principal_point_px[:, None]) / clip.focal_px[:, None]
    r2 = (n**2).sum(-1, keepdims=True)
    bent = 1 + (clip.radial_k1 or 0) * r2 + (clip.radial_k2 or 0) * r2**2
    pixels = n * bent * clip.focal_px[:, None]
    pixels = pixels + clip.principal_point_px[:, None]
    frame, point = np.nonzero(z > 0.1)
    return ColmapPoints(points_world=points, frame=frame, point=point, xy_px=pixels[frame, point])


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(("k1", "k2"), [(None, None), (-0.05, None), (-0.25, 0.08)])
def test_colmap_opens_in_pycolmap_and_reprojects(
    tmp_path: Path, clip: CameraClip, binary: bool, k1: float | None, k2: float | None
) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    clip = replace(clip, radial_k1=k1, radial_k2=k2)
    points = _observations(clip)
    folder = write_colmap(clip, tmp_path, binary=binary, points=points)
    model = pycolmap.Reconstruction(str(folder))
    assert (model.num_images(), model.num_cameras(), model.num_points3D()) == (len(clip), len(clip), 40)
    checked = 0
    for i in range(len(clip)):
        image = model.images[i + 1]
        np.testing.assert_allclose(
            image.cam_from_world().matrix(), cam.world_to_camera(clip.camera_to_world)[i, :3], atol=1e-9
        )
        assert np.asarray(image.cam_from_world().rotation.quat)[3] >= 0  # pycolmap is scalar-last
        for observation in image.points2D:
            xyz = model.points3D[observation.point3D_id].xyz
            projected = model.cameras[i + 1].img_from_cam(image.cam_from_world() * xyz)
            assert np.abs(np.asarray(projected) - observation.xy).max() < 0.1
            checked += 1
    assert checked == len(points.frame)
    back = read_colmap(tmp_path)
    assert_same_cameras(back, clip, atol=1e-12)
    assert (back.radial_k1, back.radial_k2) == (k1, k2)


def test_our_reader_opens_what_pycolmap_writes(tmp_path: Path, clip: CameraClip) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    model = pycolmap.Reconstruction(str(write_colmap(clip, tmp_path / "ours", points=_observations(clip))))
    for kind in ("text", "binary"):
        (tmp_path / kind).mkdir()
        getattr(model, f"write_{kind}")(str(tmp_path / kind))
        assert_same_cameras(read_colmap(tmp_path / kind), clip, atol=1e-12)


def test_colmap_errors(tmp_path: Path, clip: CameraClip) -> None:
    with pytest.raises(ValueError, match=r"no cameras\.bin"):
        read_colmap(tmp_path)
    model = write_colmap(clip, tmp_path, binary=True)
    (model / "images.bin").write_bytes((model / "images.bin").read_bytes()[:200])
    with pytest.raises(ValueError, match="ends at byte 200"):
        read_colmap(tmp_path)
    model = write_colmap(clip, tmp_path / "t")
    text = (model / "cameras.txt").read_text()
    (model / "cameras.txt").write_text(text.replace("2 PINHOLE", "2 FISHEYE"))
    with pytest.raises(ValueError, match=r"cameras\.txt:3"):
        read_colmap(tmp_path / "t")


def test_frames_of_the_same_lens_share_a_colmap_camera(tmp_path: Path, clip: CameraClip) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    # A lens that does not zoom is stored in float32, and solved to a millionth.
    focal = clip.focal_px[:1] * (1 + 1e-6 * np.linspace(0, 1, 33)[:, None])
    still = replace(clip, focal_px=focal, radial_k1=-0.1)
    for binary in (False, True):
        folder = write_colmap(still, tmp_path / str(binary), binary=binary, points=_observations(still))
        model = pycolmap.Reconstruction(str(folder))
        assert (model.num_cameras(), model.num_images()) == (1, 33)
        assert max(point.error for point in model.points3D.values()) < 0.01
        assert_same_cameras(read_colmap(tmp_path / str(binary)), still, atol=1e-12)
    slow = replace(still, focal_px=clip.focal_px[:1] * (1 + 1e-4 * np.linspace(0, 1, 33)[:, None]))
    assert pycolmap.Reconstruction(str(write_colmap(slow, tmp_path / "slow"))).num_cameras() == 33
    # Of a row whose lens stays it is known, however far it wanders in a long clip.
    stays = replace(slow, constant_lens=True)
    assert pycolmap.Reconstruction(str(write_colmap(stays, tmp_path / "stays"))).num_cameras() == 1
    named = replace(still, image_names=tuple(f"a {i:02d} ü.png" for i in range(33)))
    with pytest.raises(ValueError, match="has a blank in its name"):
        write_colmap(named, tmp_path / "blank")
    model = pycolmap.Reconstruction(str(write_colmap(named, tmp_path / "binary", binary=True)))
    assert model.images[8].name == "a 07 ü.png"
