"""Frame-wise GDN: the twin against independent formulas, the kernels against the twin."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from theodolite.kernels import State, frame_gdn, key_scale, rope_tables, world_to_ray
from theodolite.kernels.frame_gdn.arguments import ScanOptions, Tokens
from theodolite.kernels.frame_gdn.op import _forward_op
from theodolite.kernels.frame_gdn.reference import frame_products, prepare, ray_matrices

from .cases import call, errors_against_twin, in_float64, make_case, outputs, relative, run, tokens_of

# float32: a few units in the last place of long sums; bfloat16: operands of products carry 8 bits.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SMALL = {"height": 3, "width": 7, "head_size": 24}


def token_by_token(case) -> torch.Tensor:
    """Plain-branch causal output by the delta rule on whole frames, straight from the equations."""
    q, k, v = case.q, case.k, case.v
    b, t, _, h, d = q.shape
    out = torch.zeros_like(v)
    for i in range(b):
        for j in range(h):
            state = torch.zeros(d, d, dtype=q.dtype)
            for f in range(t):
                keys, values = k[i, f, :, j].T, v[i, f, :, j].T
                state = case.decay[i, f, j] * state
                state = state + ((values - state @ keys) * case.beta[i, f, :, j]) @ keys.T
                out[i, f, :, j] = (state @ q[i, f, :, j].T).T
    return out


@pytest.mark.slow
def test_twin_is_the_gated_delta_rule() -> None:
    case = in_float64(make_case(branch="plain", bidirectional=False))
    assert relative(run(case, "reference").out, token_by_token(case)) < 1e-12


def test_reverse_scan_is_the_causal_scan_of_shifted_flipped_input() -> None:
    """NVlabs/Sana defines the reverse direction so: flip time, shift k, v, beta by a frame (zeros), decay (one)."""
    case = in_float64(make_case(branch="plain", frames=5))
    both = run(case, "reference").out
    options = ScanOptions(bidirectional=False, normalise=False)
    causal = frame_gdn(Tokens(case.q, case.k, case.v, case.beta, case.decay), options).out

    def shifted(x: torch.Tensor, fill: float) -> torch.Tensor:
        return torch.cat([torch.full_like(x[:, :1], fill), x.flip(1)[:, :-1]], dim=1)

    flipped = Tokens(
        case.q.flip(1),
        shifted(case.k, 0),
        shifted(case.v, 0),
        shifted(case.beta, 0),
        shifted(case.decay, 1),
    )
    reverse = frame_gdn(flipped, options).out.flip(1)
    assert relative(both, causal + reverse) < 1e-12


def test_chunk_causal_sees_earlier_frames_and_its_own_chunk_only() -> None:
    case = in_float64(make_case(frames=5, chunk_starts=(0, 2, 4)))
    influence = torch.zeros(5, 5, dtype=torch.bool)
    for reader in range(5):
        result = run(case, "reference").out
        (grad,) = torch.autograd.grad(result[:, reader].square().sum(), case.v)
        influence[reader] = grad.abs().sum(dim=(0, 2, 3, 4)) > 0
    chunk = torch.tensor([0, 0, 1, 1, 2])
    assert torch.equal(influence, chunk[None, :] <= chunk[:, None])


def test_frames_fed_one_chunk_at_a_time_equal_the_whole() -> None:
    """Streaming: the state after one chunk starts the next; the reverse scan stays in its chunk."""
    case = in_float64(make_case(frames=6, chunk_starts=(0, 2, 5)))
    whole = run(case, "reference")
    state: State | None = None
    pieces = []
    for a, b in ((0, 2), (2, 5), (5, 6)):
        assert case.rope is not None
        tokens = Tokens(
            *(x[:, a:b] for x in (case.q, case.k, case.v, case.beta, case.decay)),
            q_weight=case.q_weight,
            k_weight=case.k_weight,
            rope=case.rope[:, a:b],
        )
        piece = frame_gdn(tokens, ScanOptions(key_scale=case.options["key_scale"]), initial=state)
        state = piece.final
        pieces.append(piece.out)
    assert relative(torch.cat(pieces, dim=1), whole.out) < 1e-12
    assert state is not None
    assert relative(state.kv, whole.final.kv) < 1e-12


def test_rope_rotates_by_relative_position() -> None:
    """Shifting all frames by the same number changes no product of query and key."""
    head_size, (height, width) = 24, (2, 3)
    x = torch.randn(2, 1, 2, height * width, 1, head_size, dtype=torch.float64)
    from theodolite.kernels.frame_gdn.reference import rotate

    def products(start: int) -> torch.Tensor:
        rope = rope_tables(torch.arange(start, start + 2), height, width, head_size)
        q, k = rotate(x[0], rope).flatten(1, 2), rotate(x[1], rope).flatten(1, 2)
        return torch.einsum("bnhd,bmhd->bnm", q, k)

    assert relative(products(5), products(0)) < 1e-12


def test_rays_are_rigid_and_look_along_the_pixel() -> None:
    case = make_case(branch="camera")
    assert case.rays is not None
    matrix, inverse = ray_matrices(case.rays.double())
    eye = torch.eye(4, dtype=torch.float64)
    assert (matrix @ inverse - eye).abs().max() < 1e-5  # float32 rays
    pose = torch.eye(4, dtype=torch.float64)[None, None]
    pose[..., :3, 3] = torch.tensor([1.0, 2.0, 3.0])
    rays = world_to_ray(pose, torch.tensor([[[4.0, 4.0, 2.0, 1.0]]], dtype=torch.float64), 3, 5)
    point = torch.tensor([(4 - 2) / 4, (2 - 1) / 4, 1.0], dtype=torch.float64) * 2 + pose[0, 0, :3, 3]
    seen = rays[0, 0, 2 * 5 + 4] @ torch.cat([point, torch.ones(1, dtype=torch.float64)])
    assert seen[:2].abs().max() < 1e-12
    assert seen[2] > 0


def transition_norms(case, key: torch.Tensor) -> torch.Tensor:
    """Spectral norms (B, T, H) of g (I - P), keys already scaled."""
    p, _ = frame_products(key, case.v, case.beta)
    step = torch.eye(p.shape[-1], dtype=p.dtype) - p
    return case.decay * torch.linalg.matrix_norm(step, ord=2)


@pytest.mark.parametrize("kind", ["random", "one direction", "two directions"])
def test_transition_never_expands_while_each_head_keeps_its_share(kind: str) -> None:
    """|M_t| <= g_t for any keys of squared length at most D a token and head, at any beta in [0, 1]."""
    case = in_float64(make_case(branch="plain", beta=1.0, frames=4))
    d, s = case.k.shape[-1], case.k.shape[2]
    k = torch.randn(case.k.shape, dtype=torch.float64)
    if kind != "random":
        k = torch.zeros_like(k)
        k[..., 0] = 1
        if kind == "two directions":
            k[:, :, ::2, :, 1] = 0.1
    k = torch.nn.functional.normalize(k, dim=-1) * d**0.5 * key_scale(d, s)
    norms = transition_norms(case, k).detach()
    assert (norms <= case.decay * (1 + 1e-9)).all()
    # The bound is met: without the S in the scale the same keys blow up.
    if kind == "one direction":
        assert transition_norms(case, k * s**0.5).min() > 5


@pytest.mark.parametrize("share", [1.0, 2.0, 2.5, 4.0])
def test_transition_expands_beyond_twice_the_share_of_a_head(share: float) -> None:
    """RMSNorm runs over all heads together: where one head's keys, all in one direction, take `share` times
    the norm of an even split, P has that eigenvalue and |I - P| is |1 - share|: above 1 beyond a share of 2."""
    case = in_float64(make_case(beta=1.0, decay=1.0, frames=1, heads=4, height=2, width=2))
    d, s = case.k.shape[-1], case.k.shape[2]
    k = torch.zeros_like(case.k)
    k[..., 0, 0] = share**0.5
    k[..., 1:, 1] = ((4 - share) / 3) ** 0.5
    ready = prepare(
        case.q, k, case.v, case.beta, q_weight=None, k_weight=torch.ones(4 * d, dtype=torch.float64),
        rope=None, rays=None, key_scale=key_scale(d, s), norm_eps=1e-9,
    )  # fmt: skip
    norms = transition_norms(case, ready.key).detach()[0, 0]
    assert float(norms[0]) == pytest.approx(max(1.0, share - 1), rel=1e-6)
    assert (norms[1:] <= 1 + 1e-6).all()


def test_rays_discount_keeps_stretched_keys_contracting() -> None:
    """Beta divided by the mean stretch: the trace of P does not grow beyond that of the keys before the rays."""
    case = in_float64(make_case(branch="camera", beta=1.0))
    assert case.rays is not None
    case.rays[..., 3] *= 30
    ready = prepare(
        case.q, case.k, case.v, case.beta, q_weight=None, k_weight=case.k_weight, rope=case.rope,
        rays=case.rays, key_scale=case.options["key_scale"], norm_eps=1e-5,
    )  # fmt: skip
    stretch = ready.key.square().sum(-1) / ready.plain_key.square().sum(-1)
    assert stretch.max() > 10
    assert ((ready.beta * stretch).mean(2) <= 1 + 1e-9).all()


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize(
    "kw",
    [
        {"branch": "plain", "heads": 1},
        {"branch": "plain", "batch": 2, "frames": 1, "bidirectional": False},
        pytest.param({"branch": "main"}, marks=pytest.mark.thorough),
        {"branch": "main", "bidirectional": False, "initial": True, "frames": 2, "beta": 1.0, "decay": 1.0},
        {"branch": "main", "frames": 4, "chunk_starts": (0, 1, 3), "initial": True, "strided": True},
        pytest.param({"branch": "main", "beta": 0.0}, marks=pytest.mark.thorough),
        pytest.param(
            {"branch": "main", "beta": 1.0, "decay": 1.0, "strided": True}, marks=pytest.mark.thorough
        ),
        pytest.param({"branch": "main", "decay": 0.0}, marks=pytest.mark.thorough),
        {"branch": "main", "height": 1, "width": 1, "frames": 2},
        pytest.param({"branch": "camera"}, marks=pytest.mark.thorough),
        {"branch": "camera", "chunk_starts": (0, 2), "initial": True, "strided": True},
        {"branch": "camera", "bidirectional": False, "batch": 2, "frames": 1},
    ],
    ids=str,
)
def test_kernels_equal_the_twin(kw: dict, device: torch.device) -> None:
    errors = errors_against_twin(make_case(**{**SMALL, **kw}, device=device))
    assert all(e < TOLERANCE[torch.float32] for e in errors.values()), errors


@pytest.mark.triton
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_size", [112, 40])
@pytest.mark.parametrize(("tokens", "frames"), [(1, 2), (63, 121), (880, 2), (881, 1)])
@pytest.mark.parametrize("branch", ["main", "camera"])
def test_kernels_equal_the_twin_at_odd_sizes(
    branch: str, tokens: int, frames: int, head_size: int, dtype: torch.dtype, device: torch.device
) -> None:
    # Many heads, so that no decay gradient of near zero (a sum of both signs) stands alone in a norm.
    case = make_case(
        branch=branch, height=1, width=tokens, frames=frames, heads=12, head_size=head_size, dtype=dtype,
        device=device, initial=True, strided=True, chunk_starts=(0, frames // 2) if frames > 1 else None,
    )  # fmt: skip
    errors = errors_against_twin(case)
    assert all(e < TOLERANCE[dtype] for e in errors.values()), errors


@pytest.mark.slow
@pytest.mark.triton
def test_query_gradient_where_the_normaliser_is_as_small_as_eps(device: torch.device) -> None:
    """There the output does depend on the query's length: the path that corrects for it must run."""
    case = make_case(frames=2, heads=1, device=device)
    case.options["eps"] = 5.0
    errors = errors_against_twin(case)
    assert all(e < TOLERANCE[torch.float32] for e in errors.values()), errors


@pytest.mark.triton
@pytest.mark.gpu
@pytest.mark.parametrize("hopper", [True, False])
@pytest.mark.parametrize(
    "kw",
    [
        {},
        {"bidirectional": False, "initial": True},
        {"batch": 2, "chunk_starts": (0, 2), "strided": True},
        {"beta": 0.0},
        {"beta": 1.0, "decay": 1.0},
        {"head_size": 120, "heads": 3},
    ],
    ids=str,
)
def test_both_paths_of_the_main_branch(
    kw: dict, hopper: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hopper's own kernels and the Triton ones that every other device takes."""
    from theodolite.kernels.frame_gdn import tensors

    monkeypatch.setattr(tensors, "USE_HOPPER", hopper)
    sizes = {"height": 9, "width": 15, "heads": 12, "head_size": 112, "frames": 4, "dtype": torch.bfloat16}
    errors = errors_against_twin(make_case(**{**sizes, **kw}, device=device))
    assert all(e < TOLERANCE[torch.bfloat16] for e in errors.values()), errors


@pytest.mark.triton
@pytest.mark.gpu
@pytest.mark.parametrize("eps", [1e-3, 5.0])
def test_eps_that_matters_reaches_the_output_in_bfloat16(eps: float, device: torch.device) -> None:
    """The Hopper kernels divide without eps and put it in afterwards, where it changes the output."""
    case = make_case(height=9, width=15, heads=12, head_size=112, dtype=torch.bfloat16, device=device)
    case.options["eps"] = eps
    errors = errors_against_twin(case)
    assert all(e < TOLERANCE[torch.bfloat16] for e in errors.values()), errors


@pytest.mark.slow
@pytest.mark.triton
def test_operator_registration_holds(device: torch.device) -> None:
    """Schema, fake implementation and autograd registration agree with what the kernels return."""
    case = make_case(frames=2, height=1, width=3, head_size=16, heads=1, device=device)
    assert case.rope is not None
    keep = torch.ones(2, device=device)
    arguments = (
        case.q, case.k, case.v, case.beta, case.decay, case.q_weight, case.k_weight, case.rope.float(),
        None, keep, None, None, None, None, True, 0.1, 1e-5, 1e-8,
    )  # fmt: skip
    torch.library.opcheck(
        _forward_op, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "compiler"), [("cpu", "eager"), pytest.param("cuda", "inductor", marks=pytest.mark.gpu)]
)
def test_compiles_without_graph_breaks(kind: str, compiler: str) -> None:
    case = make_case(device=torch.device(kind))
    options = ScanOptions(**case.options)

    def block(v: torch.Tensor) -> torch.Tensor:
        tokens = Tokens(
            case.q, case.k, v, case.beta, case.decay, case.q_weight, case.k_weight, case.rope, case.rays
        )
        return frame_gdn(tokens, options).out * 2

    v = case.v
    expected = block(v)
    (truth,) = torch.autograd.grad(expected.square().sum(), v)
    compiled = torch.compile(block, fullgraph=True, backend=compiler)(v)
    (grad,) = torch.autograd.grad(compiled.square().sum(), v)
    assert relative(compiled, expected) < 1e-6
    assert relative(grad, truth) < 1e-6


def test_cpu_takes_the_twin_and_float64() -> None:
    case = in_float64(make_case())
    assert torch.equal(run(case, "auto").out, run(case, "reference").out)
    low = make_case(dtype=torch.bfloat16)
    assert run(low, "auto").out.dtype == torch.bfloat16
    assert relative(run(low, "auto").out, run(in_float64(low), "reference").out) < 4e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": torch.zeros(1, 3, 21, 3)}, "beta is"),
        ({"q": torch.zeros(1, 3, 21, 2, 24, dtype=torch.float16)}, "q holds torch.float16"),
        ({"decay": torch.zeros(1, 3)}, "decay is"),
        ({"rope": torch.zeros(2, 3, 21, 8)}, "rope is"),
        ({"rays": torch.zeros(1, 3, 21, 3, 4)}, "normalise=False"),
        ({"initial": State(torch.zeros(1, 2, 24, 24))}, "initial.z"),
        ({"bidirectional": False, "chunk_starts": (0,)}, "reverse scan"),
    ],
)
def test_wrong_shapes_are_named(change: dict, message: str) -> None:
    case = make_case()
    with pytest.raises(ValueError, match=message):
        call(frame_gdn, replace(tokens_of(case), q_weight=None, k_weight=None), **change)


def test_state_size_does_not_depend_on_history() -> None:
    sizes = {
        frames: [x.numel() for n, x in outputs(run(make_case(frames=frames), "auto")).items() if n != "out"]
        for frames in (1, 7)
    }
    assert sizes[1] == sizes[7]
