"""Laws of the camera vocabulary, with scipy as the outside oracle; every law also runs on torch tensors."""

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.spatial.transform import Rotation
from theodolite.dataset.cameras import transforms as cam
from theodolite.dataset.cameras.alignment import umeyama
from theodolite.dataset.cameras.intrinsics import (
    camera_rays,
    crop_intrinsics,
    focal_from_fov,
    fov_from_focal,
    intrinsics_matrix,
    pixel_centres,
    project,
    resize_intrinsics,
    split_intrinsics,
    z_depth_from_ray_distance,
)
from theodolite.dataset.cameras.rotations import (
    canonical_quaternion,
    hat,
    orthonormalise,
    quaternion_wxyz_from_rotation,
    rotation_angle,
    rotation_from_quaternion_wxyz,
    so3_exp,
    so3_log,
)

FEW = settings(max_examples=40, deadline=None)


def _rotvec(seed: int, angle: float, batch: tuple[int, ...] = ()) -> np.ndarray:
    axis = np.random.default_rng(seed).normal(size=(*batch, 3))
    return angle * axis / np.linalg.norm(axis, axis=-1, keepdims=True)


ANGLES = st.one_of(
    st.sampled_from([0.0, 1e-12, 1e-9, 1e-7, 1e-4, 0.2999, 0.3001, np.pi - 1e-9, np.pi - 1e-5]),
    st.floats(0, 3.14),
)
SEEDS = st.integers(0, 2**31)


@pytest.mark.slow
@FEW
@given(seed=SEEDS, angle=ANGLES)
def test_so3_exp_is_scipys_and_log_inverts_it(seed: int, angle: float) -> None:
    v = _rotvec(seed, angle, (2, 3))
    r = so3_exp(v)
    np.testing.assert_allclose(
        r, Rotation.from_rotvec(v.reshape(-1, 3)).as_matrix().reshape(2, 3, 3, 3), atol=1e-14
    )
    # Near pi the log is conditioned like 1 / (pi - angle) only in its sign, not in its value.
    np.testing.assert_allclose(so3_log(r), v, atol=1e-9)
    np.testing.assert_allclose(rotation_angle(r), angle, atol=1e-9)


@FEW
@given(seed=SEEDS, angle=ANGLES)
def test_se3_exp_is_the_matrix_exponential(seed: int, angle: float) -> None:
    xi = np.concatenate([np.random.default_rng(seed + 1).normal(size=3), _rotvec(seed, angle)])
    generator = np.zeros((4, 4))
    generator[:3, :3], generator[:3, 3] = hat(xi[3:]), xi[:3]
    np.testing.assert_allclose(cam.se3_exp(xi), expm(generator), atol=1e-12)
    np.testing.assert_allclose(cam.se3_log(cam.se3_exp(xi)), xi, atol=1e-8)


@FEW
@given(seed=SEEDS)
def test_group_laws(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = cam.se3_exp(rng.normal(size=(3, 2, 6)))
    np.testing.assert_allclose(
        cam.compose(a, cam.se3_inverse(a)), np.broadcast_to(np.eye(4), (2, 4, 4)), atol=1e-13
    )
    np.testing.assert_allclose(
        cam.compose(cam.compose(a, b), c), cam.compose(a, cam.compose(b, c)), atol=1e-12
    )
    assert cam.rigid_error(cam.compose(a, b, c)).max() < 1e-13
    s = cam.se3_exp(rng.normal(size=6))
    points = rng.normal(size=(5, 3))
    np.testing.assert_allclose(
        cam.apply_transform(s @ s, points), cam.apply_transform(s, cam.apply_transform(s, points))
    )


@FEW
@given(seed=SEEDS, angle=st.one_of(ANGLES, st.just(np.pi)))
def test_quaternions_round_trip_with_positive_scalar(seed: int, angle: float) -> None:
    r = so3_exp(_rotvec(seed, angle))
    q = quaternion_wxyz_from_rotation(r)
    assert q[0] >= 0
    np.testing.assert_allclose(np.linalg.norm(q), 1, atol=1e-15)
    np.testing.assert_allclose(rotation_from_quaternion_wxyz(q), r, atol=1e-14)
    np.testing.assert_allclose(rotation_from_quaternion_wxyz(-3.0 * q), r, atol=1e-14)
    scipy_q = Rotation.from_matrix(r).as_quat(scalar_first=True)
    assert min(np.abs(scipy_q - q).max(), np.abs(scipy_q + q).max()) < 1e-9


def test_half_turns_have_one_quaternion() -> None:
    for diagonal in ([1, -1, -1], [-1, 1, -1], [-1, -1, 1]):
        q = quaternion_wxyz_from_rotation(np.diag(diagonal).astype(float))
        np.testing.assert_array_equal(q, [0, *[float(d == 1) for d in diagonal]])
    np.testing.assert_array_equal(canonical_quaternion(np.array([0.0, 0, -1, 0])), [0, 0, 1, 0])


def test_zero_quaternion_is_refused() -> None:
    with pytest.raises(ValueError, match="length zero"):
        rotation_from_quaternion_wxyz(np.zeros(4))


def test_orthonormalise_finds_the_nearest_rotation_and_never_a_reflection() -> None:
    rng = np.random.default_rng(0)
    r = so3_exp(rng.normal(size=(20, 3)))
    np.testing.assert_allclose(orthonormalise(r * 2.5), r, atol=1e-14)
    noisy = r + rng.normal(size=r.shape) * 0.3
    fixed = orthonormalise(noisy)
    np.testing.assert_allclose(np.linalg.det(fixed), 1)
    distance = np.linalg.norm(fixed - noisy, axis=(1, 2))
    for _ in range(50):
        other = fixed @ so3_exp(rng.normal(size=(20, 3)) * 0.05)
        assert np.all(np.linalg.norm(other - noisy, axis=(1, 2)) >= distance - 1e-12)
    with pytest.raises(ValueError, match="rank below 2"):
        orthonormalise(np.outer([1.0, 2, 3], [1, 0, 0]))


def test_torch_gives_numpys_numbers_and_finite_gradients_at_zero() -> None:
    rng = np.random.default_rng(3)
    xi = np.concatenate([rng.normal(size=(4, 7)), np.zeros((1, 7))])
    t = torch.tensor(xi, requires_grad=True)
    pairs = [
        (cam.se3_exp(t[:, :6]), cam.se3_exp(xi[:, :6])),
        (cam.se3_log(cam.se3_exp(t[:, :6])), xi[:, :6]),
        (cam.opengl_to_opencv(cam.se3_exp(t[:, :6])), cam.opengl_to_opencv(cam.se3_exp(xi[:, :6]))),
        (cam.rigid_error(2 * cam.se3_exp(t[:, :6])), cam.rigid_error(2 * cam.se3_exp(xi[:, :6]))),
        (orthonormalise(so3_exp(t[:, 3:6])), so3_exp(xi[:, 3:6])),
    ]
    for ours, reference in pairs:
        np.testing.assert_allclose(ours.detach().numpy(), reference, atol=1e-11)
    (gradient,) = torch.autograd.grad(cam.se3_log(cam.se3_exp(t[:, :6])).sum(), t)
    np.testing.assert_allclose(gradient[:, :6], 1.0, atol=1e-9)  # log(exp(x)) = x
    k = torch.tensor(intrinsics_matrix([500.0, 510.0], [320.0, 240.0]), dtype=torch.float32)
    pixels, depth = project(torch.tensor([[0.1, 0.2, 2.0]]), torch.eye(4), k)
    assert pixels.dtype == torch.float32
    np.testing.assert_allclose(pixels.numpy(), [[345.0, 291.0]], rtol=1e-6)
    back = camera_rays(k, pixels) * depth[:, None]
    np.testing.assert_allclose(back.numpy(), [[0.1, 0.2, 2.0]], rtol=1e-5)


@FEW
@given(seed=SEEDS)
def test_rays_and_projection_invert_each_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    c2w = cam.se3_exp(rng.normal(size=(3, 6)))
    k = intrinsics_matrix(rng.uniform(300, 900, (3, 2)), rng.uniform(200, 400, (3, 2)))
    pixels, depth = rng.uniform(0, 600, (3, 7, 2)), rng.uniform(0.5, 9, (3, 7))
    points = cam.apply_transform(c2w, camera_rays(k, pixels) * depth[..., None])
    again, z = project(points, c2w, k)
    np.testing.assert_allclose(again, pixels, atol=1e-8)
    np.testing.assert_allclose(z, depth, atol=1e-10)
    distance = np.linalg.norm(points - c2w[:, None, :3, 3], axis=-1)
    np.testing.assert_allclose(z_depth_from_ray_distance(distance, k, pixels), depth, atol=1e-10)


def test_points_behind_the_camera_have_no_pixel() -> None:
    pixels, z = project([[0.0, 0, -1], [0, 0, 1]], np.eye(4), intrinsics_matrix([500, 500], [320, 240]))
    assert np.isnan(pixels[0]).all()
    np.testing.assert_allclose(pixels[1], [320, 240])
    np.testing.assert_allclose(z, [-1, 1])


def test_resizing_and_cropping_move_the_same_world_point_to_the_same_image_place() -> None:
    k = intrinsics_matrix([900.0, 905.0], [641.0, 352.0])
    point = [[0.3, -0.2, 2.0]]
    (pixel,), _ = project(point, np.eye(4), k)
    small = resize_intrinsics(k, from_size=(720, 1280), to_size=(360, 480))
    (moved,), _ = project(point, np.eye(4), small)
    np.testing.assert_allclose(moved, pixel * [480 / 1280, 0.5])
    (cropped,), _ = project(point, np.eye(4), crop_intrinsics(k, top_px=8, left_px=100))
    np.testing.assert_allclose(cropped, pixel - [100, 8])
    np.testing.assert_allclose(pixel_centres(2, 3)[1, 2], [2.5, 1.5])
    with pytest.raises(ValueError, match="positive"):
        resize_intrinsics(k, from_size=(0, 3), to_size=(1, 1))


def test_field_of_view() -> None:
    np.testing.assert_allclose(np.rad2deg(fov_from_focal(640.0, 1280)), 90)
    np.testing.assert_allclose(focal_from_fov(fov_from_focal([500.0, 800], 720), 720), [500, 800])


def test_opengl_flip_keeps_the_camera_centre_and_turns_the_view_axis() -> None:
    c2w = cam.se3_exp(np.random.default_rng(1).normal(size=(4, 6)))
    gl = cam.opencv_to_opengl(c2w)
    np.testing.assert_array_equal(gl[:, :, [0, 3]], c2w[:, :, [0, 3]])
    np.testing.assert_array_equal(gl[:, :3, 2], -c2w[:, :3, 2])
    np.testing.assert_array_equal(cam.opengl_to_opencv(gl), c2w)
    np.testing.assert_allclose(np.linalg.det(gl[:, :3, :3]), 1)


def test_split_intrinsics_refuses_skew() -> None:
    k = intrinsics_matrix([[500.0, 501]], [[320.0, 240]])
    focal, centre = split_intrinsics(k)
    np.testing.assert_array_equal(np.concatenate([focal, centre], -1), [[500, 501, 320, 240]])
    k[0, 0, 1] = 1.0
    with pytest.raises(ValueError, match="skew"):
        split_intrinsics(k)


@pytest.mark.parametrize("method", ["slerp", "geodesic"])
def test_interpolation_stays_on_the_group_and_hits_its_knots(method: Literal["slerp", "geodesic"]) -> None:
    rng = np.random.default_rng(5)
    poses = cam.se3_exp(rng.normal(size=(6, 6)))
    t = np.cumsum(rng.uniform(0.1, 1, 6))
    query = np.sort(np.concatenate([t, rng.uniform(t[0], t[-1], 50)]))
    result = cam.interpolate_poses(t, poses, query, method=method)
    assert cam.rigid_error(result).max() < 1e-13
    np.testing.assert_array_equal(result[np.isin(query, t)], poses)
    middle = cam.interpolate_poses(t, poses, [(t[2] + t[3]) / 2], method=method)[0]
    to_a = rotation_angle(poses[2, :3, :3].T @ middle[:3, :3])
    to_b = rotation_angle(middle[:3, :3].T @ poses[3, :3, :3])
    np.testing.assert_allclose(to_a, to_b, atol=1e-12)
    if method == "slerp":
        np.testing.assert_allclose(middle[:3, 3], poses[2:4, :3, 3].mean(0))
    else:  # half a screw motion, done twice, is the whole
        half = cam.se3_inverse(poses[2]) @ middle
        np.testing.assert_allclose(poses[2] @ half @ half, poses[3], atol=1e-12)
    with pytest.raises(ValueError, match="not extrapolated"):
        cam.interpolate_poses(t, poses, [t[-1] + 0.1])
    with pytest.raises(ValueError, match="increase strictly"):
        cam.interpolate_poses(t[::-1], poses, query)


@pytest.mark.parametrize("with_scale", [False, True])
def test_umeyama_recovers_the_transform(with_scale: bool) -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(30, 3))
    truth = cam.se3_exp(rng.normal(size=6))
    truth[:3, :3] *= 2.0 if with_scale else 1.0
    fit = umeyama(x, cam.apply_transform(truth, x), with_scale=with_scale)
    np.testing.assert_allclose(fit.matrix, truth, atol=1e-12)
    planar = x * [1, 1, 0]
    fit = umeyama(planar, cam.apply_transform(truth, planar), with_scale=with_scale)
    np.testing.assert_allclose(fit.matrix, truth, atol=1e-12)
    poses = cam.se3_exp(rng.normal(size=(5, 6)))
    moved = fit.apply_to_poses(poses)
    assert cam.rigid_error(moved).max() < 1e-12
    np.testing.assert_allclose(moved[:, :3, 3], cam.apply_transform(truth, poses[:, :3, 3]))


def test_umeyama_refuses_degenerate_points() -> None:
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(10, 3))
    line = np.arange(10.0)[:, None] * [1, 2, 3] + 5
    for bad, message in [
        (np.full((10, 3), 4.2), "coincide"),
        (line, "line"),
        (cloud * np.nan, "finite"),
        (cloud[:2], "at least 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            umeyama(bad, cloud[: len(bad)], with_scale=True)
        with pytest.raises(ValueError, match=message):
            umeyama(cloud[: len(bad)], bad, with_scale=False)
    fit = umeyama(line, 2 * line, with_scale=True, allow_collinear=True)
    np.testing.assert_allclose(fit.scale, 2)
    with pytest.raises(ValueError, match="weights"):
        umeyama(cloud, cloud, with_scale=True, weights=-np.ones(10))


def test_shape_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"rotvec: expected shape \(\.\.\., 3\), found \(4,\)"):
        so3_exp(np.zeros(4))
    with pytest.raises(ValueError, match="camera_to_world"):
        cam.opengl_to_opencv(np.zeros((3, 4)))


def test_transform_helpers() -> None:
    poses = cam.se3_exp(np.random.default_rng(2).normal(size=(4, 6)))
    np.testing.assert_array_equal(cam.to_4x4(poses[:, :3]), poses)
    relative = cam.relative_to_first(poses)
    np.testing.assert_allclose(relative[0], np.eye(4), atol=1e-15)
    np.testing.assert_allclose(poses[0] @ relative, poses, atol=1e-14)
    np.testing.assert_allclose(
        cam.world_to_camera(poses) @ poses, np.broadcast_to(np.eye(4), (4, 4, 4)), atol=1e-14
    )
    broken = poses.copy()
    broken[1, 0, 0] += 0.1
    broken[2, 0, 3] = np.inf
    error = cam.rigid_error(broken)
    assert error[0] < 1e-14
    assert error[1] > 0.01
    assert np.isnan(error[2])
