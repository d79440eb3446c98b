"""Networks without upstream: layouts, strictness, numeric rules, focal and shift."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from theodolite.annotate.geometry.base import Provenance
from theodolite.annotate.geometry.config import MoGe2Config
from theodolite.annotate.geometry.moge2 import MoGe2Network, MoGe2Stream
from theodolite.annotate.geometry.pi3x import Pi3XNetwork
from theodolite.annotate.networks import conv, vit
from theodolite.annotate.networks.checkpoint import fill_stand_in, layout_digest, load_moge2, load_strict
from theodolite.annotate.networks.conditioning import Conditions
from theodolite.annotate.networks.focal import focal_and_shift
from theodolite.annotate.networks.fused.reference import rope_table, rotate
from theodolite.annotate.networks.moge2 import MoGe2, MoGe2Size
from theodolite.annotate.networks.pi3x import NotFinite, Pi3X, Pi3XSize, nearest_rotation
from theodolite.annotate.sources.clip import ClipRef, ClipRejection

from ...typed import known
from ..unseen import UnseenFrames

TINY = Pi3XSize(width=128, encoder_depth=1, decoder_depth=4, head_depth=1, camera_width=64)


@pytest.fixture(scope="module")
def tiny() -> Pi3X:
    network = Pi3X(TINY)
    fill_stand_in(network, 0)
    return network


def tiny_moge2() -> MoGe2:
    size = MoGe2Size.released("vits-normal")
    network = MoGe2(dataclasses.replace(size, depth=2, layers=(0, 1)))
    fill_stand_in(network, 0)
    return network


# Digests of `name shape` lines that were equal to upstream's state dicts when they were pinned (test_parity).
LAYOUTS = {
    "pi3x": (1_360_032_433, 1873, "79ccb0b343c21dd60ed6f0262d7b5e7ebf91860bb2578583f0e352df8d8218e1"),
    "vitl": (326_209_221, 483, "e16ef4cfc77e734f71dc6d76fe1702d5e34e1a7fadfbb1e238ecdbf146442638"),
    "vitl-normal": (330_901_544, 521, "887601f47312ee89a5d7ffbead1de563d382d241975f273d8f1fa83b27dd22f7"),
    "vitb-normal": (104_743_592, 337, "cb9409016ea622f83c99db534eb488dd7e076f846c2c840de792200ef7f49f81"),
    "vits-normal": (35_103_656, 337, "1d8b925135c0369b2025ecaa99af4dab26fd7070a1d7a0f24e500cc525fcb580"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_full_size_layout(name):
    num_values, num_tensors, digest = LAYOUTS[name]
    with torch.device("meta"):
        network = Pi3X() if name == "pi3x" else MoGe2(MoGe2Size.released(name))
    assert sum(p.numel() for p in network.parameters()) == num_values
    assert len(network.state_dict()) == num_tensors
    assert layout_digest(network) == digest


@pytest.mark.slow
def test_conditioning_parts_change_nothing_when_unused(tiny):
    plain = Pi3X(TINY, conditioning=False)
    load_strict(plain, {k: v for k, v in tiny.state_dict().items() if k in plain.state_dict()}, origin="x")
    images = torch.rand(1, 2, 3, 28, 42)
    a, b = tiny(images), plain(images)
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_frames_are_interchangeable(tiny):
    images = torch.rand(1, 3, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    order = [2, 0, 1]
    a, b = tiny(images), tiny(images[:, order])
    torch.testing.assert_close(b["camera_poses"], a["camera_poses"][:, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b["metric"], a["metric"], rtol=1e-4, atol=1e-5)


def test_outputs_are_consistent_and_selectable(tiny):
    images = (torch.rand(1, 2, 3, 28, 42) * 255).to(torch.uint8)
    full = tiny(images)
    pose = full["camera_poses"]
    world = torch.einsum("bnij,bnhwj->bnhwi", pose[..., :3, :3], full["local_points"])
    torch.testing.assert_close(full["points"], world + pose[:, :, None, None, :3, 3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pose[..., :3, :3] @ pose[..., :3, :3].mT, torch.eye(3).expand(1, 2, 3, 3))
    assert bool((torch.linalg.det(pose[..., :3, :3]) > 0.99).all())
    part = tiny(images, outputs=("camera_poses", "metric"), chunk=1)
    assert set(part) == {"camera_poses", "metric"}
    torch.testing.assert_close(part["camera_poses"], pose, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="unknown outputs"):
        tiny(images, outputs=("depth",))
    with pytest.raises(ValueError, match="multiples of 14"):
        tiny(torch.rand(1, 2, 3, 30, 42))


def test_a_single_pose_conditions_nothing(tiny):
    images = torch.rand(1, 2, 3, 28, 28)
    pose = torch.eye(4).repeat(1, 2, 1, 1)
    pose[:, 1, 0, 3] = 1.0
    one = Conditions(camera_to_world=pose, pose_frames=torch.tensor([[True, False]]))
    both = Conditions(camera_to_world=pose)
    free = tiny(images)["metric"]
    assert torch.equal(tiny(images, one)["metric"], free)
    assert not torch.allclose(tiny(images, both)["metric"], free, rtol=1e-4)


@pytest.mark.slow
def test_half_precision_stays_close(tiny):
    images = torch.rand(1, 2, 3, 28, 42, generator=torch.Generator().manual_seed(2))
    exact = tiny(images)
    half = Pi3X(TINY)
    half.load_state_dict(tiny.state_dict())
    half.to_half()
    types = {name: p.dtype for name, p in half.decoder[0].named_parameters()}
    assert types["attn.qkv.weight"] == torch.bfloat16
    assert types["norm1.weight"] == torch.float32
    found = half(images)
    for name in ("local_points", "rays", "camera_poses", "metric"):
        error = float((found[name] - exact[name]).norm() / exact[name].norm())
        assert error < 0.05, (name, error)  # a few roundings of 2^-9, amplified by random weights


@pytest.mark.parametrize(("rule", "expected"), [("size_antialiased", "size"), ("scale_plus_tenth", "scale")])
def test_position_table_rules(rule, expected):
    table = torch.randn(1, 1 + 37 * 37, 2, generator=torch.Generator().manual_seed(0))
    found = vit.resample_positions(table, 27, 48, rule)
    grid = table[:, 1:].reshape(1, 37, 37, 2).permute(0, 3, 1, 2)
    if expected == "size":
        wanted = F.interpolate(grid, size=(27, 48), mode="bicubic", antialias=True)
    else:
        # The factor itself places the samples: source = (i + 0.5) / ((27 + 0.1) / 37) - 0.5, not with 37 / 27.
        wanted = F.interpolate(grid, scale_factor=(27.1 / 37, 48.1 / 37), mode="bicubic")
        naive = F.interpolate(grid, size=(27, 48), mode="bicubic")
        assert float((wanted - naive).abs().max()) > 1e-2
    assert torch.equal(found[:, 1:], wanted.flatten(2).transpose(1, 2))
    assert vit.resample_positions(table, 37, 37, rule) is not None
    assert torch.equal(vit.resample_positions(table, 37, 37, rule), table)


def test_rope_follows_the_formula():
    table = rope_table(3, 4, 5, torch.float32, torch.device("cpu"))
    x = torch.randn(1, 17, 1, 64, generator=torch.Generator().manual_seed(3))
    found = rotate(x, table)
    assert torch.equal(found[0, :5], x[0, :5])  # special tokens stand at (0, 0)
    token, row, column, k = 5 + 2 * 4 + 1, 3, 2, 7
    for start, place in ((0, row), (32, column)):
        angle = torch.tensor(place * 100.0 ** (-2 * k / 32))
        a, b = x[0, token, 0, start + k], x[0, token, 0, start + k + 16]
        torch.testing.assert_close(found[0, token, 0, start + k], a * angle.cos() - b * angle.sin())
        torch.testing.assert_close(found[0, token, 0, start + k + 16], b * angle.cos() + a * angle.sin())
    rounded = rope_table(47, 47, 5, torch.bfloat16, torch.device("cpu"))
    exact = rope_table(47, 47, 5, torch.float32, torch.device("cpu"))
    assert (
        0.01 < float((rounded - exact).abs().max()) < 0.13
    )  # bf16 angles up to 47 rad are off by up to 0.125


def test_score_bound_holds():
    attn = vit.Attention(128, qk_norm=True)
    assert attn.q_norm is not None
    attn.q_norm.weight.data.uniform_(0.5, 2)
    attn.q_norm.bias.data.normal_()
    q = attn.q_norm(torch.randn(500, 64) ** 3)
    k = known(attn.k_norm)(torch.randn(500, 64))
    assert attn.score_bound is not None
    assert float((q @ k.T / 8).abs().max()) <= attn.score_bound
    assert vit.Attention(128).score_bound is None


def test_upsampling_convolution_equals_its_two_steps():
    layer = torch.nn.Conv2d(5, 3, 3)
    x = torch.randn(2, 5, 6, 7)
    up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    expected = layer(F.pad(up, (1, 1, 1, 1), mode="replicate"))
    assert layer.bias is not None
    found = conv.interleave(conv.upsample_phases(layer.weight, x)) + layer.bias[:, None, None]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_nearest_rotation_undoes_scale_and_reflection():
    m = torch.randn(50, 3, 3, generator=torch.Generator().manual_seed(4))
    r = nearest_rotation(m)
    torch.testing.assert_close(torch.linalg.det(r), torch.ones(50))
    torch.testing.assert_close(
        nearest_rotation(r * torch.tensor([1.0, 2.0, 3.0])[:, None]), r, rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_strict_loading_names_the_tensor(tiny):
    state = dict(tiny.state_dict())
    del state["register_token"]
    with pytest.raises(ValueError, match=r"file\.x does not fit Pi3X: missing register_token"):
        load_strict(Pi3X(TINY), state, origin="file.x")
    state = {**tiny.state_dict(), "extra.weight": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"unexpected extra\.weight"):
        load_strict(Pi3X(TINY), state, origin="file.x")
    state = {**tiny.state_dict(), "metric_head.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"metric_head\.bias has shape \(3,\), expected \(1,\)"):
        load_strict(Pi3X(TINY), state, origin="file.x")
    state = {**tiny.state_dict(), "metric_head.bias": torch.full((1,), float("nan"))}
    with pytest.raises(ValueError, match=r"metric_head\.bias holds NaN"):
        load_strict(Pi3X(TINY), state, origin="file.x")


def model_config() -> dict:
    dims = [384, 256, 128, 64, 32]
    common = {
        "resamplers": ["conv_transpose"] * 3 + ["bilinear"],
        "res_block_in_norm": "none",
        "res_block_hidden_norm": "none",
        "dim_res_blocks": dims,
    }
    head = {"dim_in": dims, "num_res_blocks": [0, 1, 1, 1, 0], **common}
    return {
        "encoder": {"backbone": "dinov2_vits14", "intermediate_layers": [5, 11], "dim_out": 384},
        "neck": {"dim_in": [386, 2, 2, 2, 2], "dim_out": None, "num_res_blocks": [0, 1, 1, 1, 0], **common},
        "points_head": {**head, "dim_out": [None] * 4 + [3]},
        "mask_head": {**head, "dim_out": [None] * 4 + [1]},
        "normal_head": {**head, "dim_out": [None] * 4 + [3]},
        "scale_head": {"dims": [384, 384, 384, 1]},
        "remap_output": "exp",
        "num_tokens_range": [1200, 3600],
    }


@pytest.mark.slow
def test_moge2_checkpoint_round_trip(tmp_path):
    config = model_config()
    assert MoGe2Size.from_checkpoint(config) == MoGe2Size.released("vits-normal")
    network = MoGe2(MoGe2Size.released("vits-normal"))
    state = {**network.state_dict(), "refiner.x": torch.zeros(1)}
    torch.save({"model_config": config, "model": state}, tmp_path / "model.pt")
    loaded = load_moge2(tmp_path / "model.pt")
    first, second = (n.scale_head[0].get_parameter("weight") for n in (loaded, network))
    assert torch.equal(first, second)
    for change, message in (
        ({"remap_output": "sinh"}, "remap_output 'sinh'"),
        ({"encoder": {**config["encoder"], "backbone": "convnext"}}, "convnext"),
        ({"neck": {**config["neck"], "res_block_in_norm": "layer_norm"}}, "res_block_in_norm"),
    ):
        with pytest.raises(ValueError, match=message):
            MoGe2Size.from_checkpoint({**config, **change})


def pinhole_map(fov_deg: float, shift: float, noise: float, seed: int, height=90, width=160):
    """A wavy wall seen through a pinhole, with `shift` taken off its depth; focal in half diagonals."""
    g = torch.Generator().manual_seed(seed)
    u, v = conv.view_plane(width, height, width / height, torch.zeros(1))[0]
    focal = (width / (width**2 + height**2) ** 0.5) / torch.tan(torch.deg2rad(torch.tensor(fov_deg)) / 2)
    z = 4 + torch.sin(5 * u) + 0.5 * torch.cos(9 * v) + 0.8 * u
    z = z * torch.exp(noise * torch.randn(z.shape, generator=g))
    return torch.stack([u * z / focal, v * z / focal, z - shift], dim=-1), float(focal)


def test_focal_and_shift_are_exact_without_noise():
    cases = [(25.0, 0.4), (60.0, -0.7), (90.0, 0.9), (115.0, 0.0)]
    maps = [pinhole_map(f, s, 0.0, 0) for f, s in cases]
    points = torch.stack([m[0] for m in maps])
    focal, shift = focal_and_shift(points, torch.ones(points.shape[:3], dtype=torch.bool))
    torch.testing.assert_close(focal, torch.tensor([m[1] for m in maps]), rtol=1e-4, atol=0)
    torch.testing.assert_close(shift, torch.tensor([s for _, s in cases]), rtol=0, atol=1e-4)


def test_focal_and_shift_reach_the_minimum_that_scipy_finds():
    from scipy.optimize import least_squares

    points, _ = pinhole_map(50.0, 0.5, 0.03, 1)
    valid = torch.ones(90, 160, dtype=torch.bool)
    valid[:20] = False
    dirty = points.clone()
    dirty[:20] = float("nan")  # sky must not reach the sums
    focal, shift = focal_and_shift(dirty[None], valid[None])
    rows = torch.arange(64) * 90 // 64
    columns = torch.arange(64) * 160 // 64
    p = points[rows][:, columns][valid[rows][:, columns]].double().numpy()
    uv = conv.view_plane(160, 90, 160 / 90, torch.zeros(1))[0].permute(1, 2, 0)
    uv = uv[rows][:, columns][valid[rows][:, columns]].double().numpy()

    def residual(s):
        q = p[:, :2] / (p[:, 2:] + s)
        return ((q * uv).sum() / (q * q).sum() * q - uv).ravel()

    best = least_squares(residual, 0.0, method="lm", ftol=1e-14, xtol=1e-14).x[0]
    q = p[:, :2] / (p[:, 2:] + best)
    assert float(shift[0]) == pytest.approx(best, abs=1e-4)
    assert float(focal[0]) == pytest.approx((q * uv).sum() / (q * q).sum(), rel=1e-4)


def test_known_and_pooled_focal():
    maps = [pinhole_map(25.0, s, 0.02, i) for i, s in enumerate((0.2, -0.4, 0.6))]
    points = torch.stack([m[0] for m in maps])
    valid = torch.ones(points.shape[:3], dtype=torch.bool)
    known = torch.full((3,), maps[0][1])
    focal, shift = focal_and_shift(points, valid, focal=known)
    assert torch.equal(focal, known)
    torch.testing.assert_close(shift, torch.tensor([0.2, -0.4, 0.6]), rtol=0, atol=0.1)
    pooled, _ = focal_and_shift(points, valid, pooled=True)
    assert float(pooled.std()) < 1e-6
    none, zero = focal_and_shift(points, torch.zeros_like(valid))
    assert none.tolist() == [1, 1, 1]
    assert zero.tolist() == [0, 0, 0]


@pytest.mark.slow
def test_moge2_infer_geometry():
    network = tiny_moge2()
    image = torch.rand(2, 3, 60, 100, generator=torch.Generator().manual_seed(0))
    out = network.infer(image, num_tokens=40, fov_x_deg=60.0, apply_mask=False)
    fx = out["intrinsics"][0, 0, 0]
    torch.testing.assert_close(fx, 0.5 / torch.tan(torch.deg2rad(torch.tensor(30.0))))
    torch.testing.assert_close(out["intrinsics"][0, 1, 1] * 60, fx * 100)  # square pixels
    x = (10.5 / 100 - 0.5) / fx * out["depth_m"][1, 7, 10]
    torch.testing.assert_close(out["points_m"][1, 7, 10, 0], x)
    masked = network.infer(image, num_tokens=40, fov_x_deg=60.0, outputs=("depth",))
    assert set(masked) == {"depth_m", "intrinsics", "valid", "metric_scale"}
    assert bool(masked["depth_m"][~masked["valid"]].isinf().all())
    torch.testing.assert_close(masked["depth_m"][masked["valid"]], out["depth_m"][masked["valid"]])


IMAGES = torch.full((1, 2, 3, 28, 42), 0.5)
DEPTH, MASK = torch.ones(1, 2, 28, 42), torch.ones(1, 2, dtype=torch.bool)
LENS = torch.tensor([[36.0, 0, 21], [0, 36, 14], [0, 0, 1]]).expand(1, 2, 3, 3)
POSE = torch.eye(4).expand(1, 2, 4, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"depth": DEPTH.transpose(2, 3)}, "depth is .1, 2, 42, 28."),
        ({"depth": DEPTH[..., :14]}, "depth is"),
        ({"depth": DEPTH[:, :1]}, "depth is"),
        ({"depth": DEPTH[0]}, "depth is"),
        ({"depth": DEPTH.int()}, "depth holds torch.int32"),
        ({"depth": DEPTH.to("meta")}, "on meta"),
        ({"intrinsics": LENS[:, :1]}, "intrinsics is"),
        ({"intrinsics": 0 * LENS}, "window 0, frame 0: intrinsics"),
        ({"intrinsics": LENS * torch.nan}, "frame 0: intrinsics"),
        (
            {"intrinsics": LENS / LENS.new_tensor([42, 28, 1])[:, None]},
            "0.857 px in an image of 42x28 .* normalised",
        ),
        ({"rays": torch.ones(1, 2, 28, 42)}, "rays is"),
        ({"rays": -torch.ones(1, 2, 28, 42, 3)}, "look backwards"),
        ({"rays": torch.ones(1, 2, 28, 42, 3), "intrinsics": LENS}, "one of them"),
        ({"camera_to_world": POSE[..., :3, :]}, "camera_to_world is"),
        ({"camera_to_world": 2 * POSE}, "no rotation"),
        ({"camera_to_world": (POSE + torch.eye(4).roll(1, 1)).mT}, "no rotation"),
        ({"camera_to_world": POSE * torch.nan}, "no rotation"),
        ({"depth": DEPTH, "depth_frames": MASK[:, :1]}, "frame masks"),
        ({"depth": DEPTH, "depth_frames": MASK.float()}, "frame masks"),
        ({"depth_frames": MASK}, "absent"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(tiny, given, message):
    with pytest.raises(ValueError, match=message):
        tiny(IMAGES, Conditions(**given), outputs=("camera_poses",))


def test_unused_frames_and_unknown_pixels_may_hold_anything(tiny):
    only = torch.tensor([[True, False]])
    pose, lens, depth = POSE.clone(), LENS.clone(), DEPTH.clone()
    pose[0, 1], lens[0, 1], depth[0, 0, :5] = torch.nan, 0, torch.nan
    zero = torch.where(depth.isfinite(), depth, 0.0)
    found = [
        tiny(
            IMAGES,
            Conditions(depth=d, intrinsics=lens, ray_frames=only, camera_to_world=pose, pose_frames=only),
            outputs=("camera_poses",),
        )["camera_poses"]
        for d in (depth, zero)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("images", "kw", "message"),
    [
        (IMAGES[0], {}, "multiples of 14"),
        (IMAGES[..., :20], {}, "multiples of 14"),
        (IMAGES[:, :0], {}, "hold nothing"),
        (IMAGES.int(), {}, "hold torch.int32"),
        (IMAGES, {"outputs": ("deth",)}, "unknown outputs .'deth'."),
        (IMAGES, {"outputs": "conf"}, "unknown outputs"),
        (IMAGES, {"outputs": ()}, "name some of"),
        (IMAGES, {"chunk": 0}, "chunk is 0"),
        (IMAGES, {"chunk": 1.5}, "chunk is 1.5"),
        (255 * IMAGES, {}, r"hold values from .*; give uint8, or floating numbers in \[0, 1\]"),
        (IMAGES * torch.nan, {}, "hold values from nan"),
    ],
)
def test_pi3x_refuses_what_does_not_fit(tiny, images, kw, message):
    with pytest.raises(ValueError, match=message):
        tiny(images, **kw)


@pytest.mark.slow
def test_output_that_is_no_number_is_said_and_rejects_the_clip():
    network = Pi3X(TINY, conditioning=False)
    fill_stand_in(network, 0)
    network.metric_head.bias.fill_(torch.nan)
    with pytest.raises(NotFinite, match="camera_poses and metric"):
        network(IMAGES, outputs=("camera_poses", "metric"))
    network.camera_head.fc_rot.bias[1] = torch.nan  # ends in an SVD
    with pytest.raises(NotFinite, match="camera_poses"):
        network(IMAGES, outputs=("camera_poses",))
    whole = Pi3XNetwork(
        network, torch.device("cpu"), max_pixels=2000, provenance=Provenance(("x",), ("x",), True)
    )
    with pytest.raises(ClipRejection, match="geometry_not_finite: clip frames 3 to 9"):
        whole.predict(torch.zeros(2, 3, 28, 42, dtype=torch.uint8), np.array([3, 9]))
    # Half precision is given up once, and then the same holds.
    whole.network.head_dtype = torch.float16
    with pytest.raises(ClipRejection, match="geometry_not_finite"):
        whole.predict(torch.zeros(2, 3, 28, 42, dtype=torch.uint8), np.array([3, 9]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "kw", "message"),
    [
        (IMAGES, {}, r"\(B, 3, H, W\)"),
        (IMAGES[0, :, :1], {}, r"\(B, 3, H, W\)"),
        (IMAGES[0].int(), {}, "hold torch.int32"),
        (255 * IMAGES[0], {}, "hold values from"),
        (IMAGES[0] * torch.nan, {}, "hold values from nan"),
        (IMAGES[0], {"outputs": ()}, "this network gives points"),
        (IMAGES[0], {"outputs": ("deth",)}, "unknown outputs .'deth'."),
        (IMAGES[0], {"resolution_level": 10}, "resolution_level is 10"),
        (IMAGES[0], {"resolution_level": -1}, "resolution_level is -1"),
        (IMAGES[0], {"num_tokens": 0}, "num_tokens is 0"),
        (IMAGES[0], {"num_tokens": 40, "fov_x_deg": 180.0}, "between 0 and 180"),
        (IMAGES[0], {"num_tokens": 40, "fov_x_deg": torch.tensor([50.0, 50.0, 50.0])}, "fov_x_deg"),
        (IMAGES[0], {"num_tokens": 40, "fov_x_deg": float("nan")}, "fov_x_deg"),
    ],
)
def test_moge2_refuses_what_does_not_fit(image, kw, message):
    with pytest.raises(ValueError, match=message):
        tiny_moge2().infer(image, **kw)


@pytest.mark.slow
def test_moge2_says_which_outputs_it_has():
    size = MoGe2Size.released("vits-normal")
    heads = tuple(h for h in size.heads if h[0] != "normal_head")
    network = MoGe2(dataclasses.replace(size, depth=2, layers=(0, 1), heads=heads))
    fill_stand_in(network, 0)
    assert "normal" not in network.infer(IMAGES[0], num_tokens=12)
    with pytest.raises(ValueError, match="this network gives points, depth"):
        network.infer(IMAGES[0], num_tokens=12, outputs=("normal",))
    byte = network((IMAGES[0] * 255).byte(), 12)
    assert torch.equal(byte["points"], network((IMAGES[0] * 255).byte().float() / 255, 12)["points"])


@pytest.mark.slow
@pytest.mark.parametrize("part", ["metric_scale", "mask", "points"])
def test_metric_depth_that_is_no_number_rejects_the_clip(part, monkeypatch):
    network = tiny_moge2()
    whole = MoGe2Network(network, torch.device("cpu"), level=0, provenance=Provenance(("x",), ("x",), True))
    whole.num_tokens = 12
    raw = network((IMAGES[0] * 255).byte(), 12)
    raw[part] = raw[part] * torch.nan
    monkeypatch.setattr(network, "forward", lambda *_, **__: raw)
    clip = ClipRef(clip_id="c", source="s", original_id="c", media_kind="video", media_path=Path("c.mp4"))
    stream = MoGe2Stream(whole, MoGe2Config(batch=2), clip, UnseenFrames.of(2, 28, 42), [0, 1])
    for number in (0, 1):
        stream.add(number, np.full((28, 42, 3), 127, np.uint8))
    with pytest.raises(ClipRejection, match="geometry_not_finite: clip c: MoGe-2"):
        stream.finish(None)
