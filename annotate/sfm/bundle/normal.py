"""One step of the bundle: residuals linearised, points eliminated, cameras by a factorised band and conjugate
gradients.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import bsr_array, csr_array
from torch import Tensor

from .lens import bending
from .priors import Priors
from .problem import Problem, State, cauchy, lens_of, sum_by, whitened_residuals

Held = Literal["first", "poses", "centres"]
"""What stays where it is: the first frame, all frames, or the first frame and all translations."""
_FRAMES_AT_ONCE = 128
"""Frames whose derivatives are put together for their products; those of all frames would be held twice more."""


@dataclass
class Linear:
    """Whitened, robustly weighted Jacobians and residuals at one state, and what the solver derives from them."""

    jc: Tensor  # (N, 3, 7), or 8 where the depth of frames has a gain
    jp: Tensor  # (N, 3, 3)
    jg: Tensor  # (N, 3, G)
    r: Tensor  # (N, 3)


def linearise(
    problem: Problem, state: State, robust_scale: float, free_lens: Tensor
) -> tuple[Linear, Tensor]:
    """Derivatives and residuals at a state, and the robust weight (N,) of each reprojection.

    Args:
        free_lens: which numbers of the lens are free: (5,) bool, or their numbers.
    """
    r_uv, r_d, behind, p = whitened_residuals(problem, state)
    _, w_uv = cauchy((r_uv * r_uv).sum(1), robust_scale)
    w_uv = torch.where(behind, torch.zeros_like(w_uv), w_uv)
    _, w_d = cauchy(r_d * r_d, robust_scale)
    w_d = torch.where(behind | torch.isinf(problem.sigma_log_depth), torch.zeros_like(w_d), w_d)
    x, y, z = p[:, 0], p[:, 1], p[:, 2].clamp_min(1e-6)
    a, b = x / z, y / z
    focal, of_lens = state.log_focal[problem.frame].exp(), lens_of(problem, state)
    fy = focal * of_lens[2].exp()
    r2 = a * a + b * b
    radial, slope, by_term = bending(problem.lens.model, r2, of_lens[3], of_lens[4])
    # d(u, v) / d(a, b) including the radial terms
    ua, ub = focal * (radial + 2 * slope * a * a), focal * 2 * slope * a * b
    va, vb = fy * 2 * slope * a * b, fy * (radial + 2 * slope * b * b)
    iz = 1 / z
    zero = torch.zeros_like(z)
    du = torch.stack([ua * iz, ub * iz, -(ua * a + ub * b) * iz], 1)
    dv = torch.stack([va * iz, vb * iz, -(va * a + vb * b) * iz], 1)
    dd = torch.stack([zero, zero, iz], 1)
    su = (w_uv.sqrt() / problem.sigma_px)[:, None]
    sd = torch.where(torch.isinf(problem.sigma_log_depth), zero, w_d.sqrt() / problem.sigma_log_depth)[
        :, None
    ]
    dp = torch.stack([du * su, dv * su, dd * sd], 1)  # (N, 3, 3) by camera-frame point
    # Left perturbation: d p = -[p]x w + v
    cross = torch.stack([zero, p[:, 2], -p[:, 1], -p[:, 2], zero, p[:, 0], p[:, 1], -p[:, 0], zero], 1)
    jw = dp @ cross.reshape(-1, 3, 3)
    jf = torch.stack([focal * a * radial * su[:, 0], fy * b * radial * su[:, 0], zero], 1)
    columns = [jw, dp, jf[:, :, None]]
    if state.log_gain is not None:
        columns.append(torch.stack([zero, zero, sd[:, 0]], 1)[:, :, None])
    jc = torch.cat(columns, 2)
    jp = dp @ state.rotation[problem.frame]
    s = su[:, 0]
    lens = torch.stack(
        [
            torch.stack([s, zero, zero], 1),
            torch.stack([zero, s, zero], 1),
            torch.stack([zero, fy * b * radial * s, zero], 1),
            *(torch.stack([focal * a * term * s, fy * b * term * s, zero], 1) for term in by_term),
        ],
        2,
    )
    r = torch.cat([r_uv * w_uv.sqrt()[:, None], (r_d * w_d.sqrt())[:, None]], 1)
    r = torch.where(behind[:, None], torch.zeros_like(r), r)
    return Linear(jc, jp, lens[:, :, free_lens], r), w_uv


class Frames:
    """Which observations belong to each frame."""

    def __init__(self, problem: Problem) -> None:
        self.order = torch.argsort(problem.frame, stable=True)
        self.counts = torch.bincount(problem.frame, minlength=problem.num_frames).tolist()

    def products(self, *columns: Tensor) -> Tensor:
        """(F, K, K) sums over each frame's observations of `columns`, side by side (N, 3, K), transposed times
        themselves; some frames are gathered at a time."""
        found: list[Tensor] = []
        places = torch.split(self.order, self.counts)
        for first in range(0, len(places), _FRAMES_AT_ONCE):
            some = places[first : first + _FRAMES_AT_ONCE]
            chosen = torch.cat(some)
            rows = torch.cat([part[chosen] for part in columns], 2)
            rows = rows.reshape(-1, rows.shape[2])
            found += [part.T @ part for part in rows.split([3 * len(place) for place in some])]
        return torch.stack(found)


@dataclass
class Layout:
    """Index structure of a problem, computed once."""

    frames: Frames
    column: NDArray[np.int32]  # (N,) frame of each observation
    point_start: NDArray[np.int32]  # (P + 1,) observations of point p are those from point_start[p] on
    piece: Tensor  # (N,) number of the band-limited piece of its track
    piece_start: NDArray[np.int32]
    superblock: int  # frames per diagonal block
    num_blocks: int
    exact: bool  # no track was cut: the band is the whole system

    @property
    def num_pieces(self) -> int:
        return len(self.piece_start) - 1


def _starts(group: Tensor, size: int) -> NDArray[np.int32]:
    counts = torch.bincount(group, minlength=size)
    return np.concatenate([[0], torch.cumsum(counts, 0).numpy()]).astype(np.int32)


def layout_of(problem: Problem, band_frames: int) -> Layout:
    n, frames = len(problem.frame), problem.num_frames
    num_blocks = -(-frames // band_frames)
    # One or two blocks hold every pair of frames; more are cut to the band.
    m = -(-frames // num_blocks) if num_blocks <= 2 else band_frames
    new_point = torch.ones(n, dtype=torch.bool)
    new_point[1:] = problem.point[1:] != problem.point[:-1]
    new_piece = new_point.clone()
    if num_blocks > 2:
        order = torch.arange(n)
        first = torch.cummax(torch.where(new_point, order, torch.zeros_like(order)), 0)[0]
        # A piece spans at most `m` frames beyond its first, so that its frames lie in one block or two neighbours.
        place = (problem.frame - problem.frame[first]) // (m + 1)
        new_piece[1:] |= place[1:] != place[:-1]
    piece = torch.cumsum(new_piece.long(), 0) - 1
    return Layout(
        frames=Frames(problem),
        column=problem.frame.numpy().astype(np.int32),
        point_start=_starts(problem.point, problem.num_points),
        piece=piece,
        piece_start=_starts(piece, int(piece[-1]) + 1),
        superblock=m,
        num_blocks=num_blocks,
        exact=bool((new_piece == new_point).all()),
    )


def invert3(h: Tensor) -> Tensor:
    """Inverse of symmetric positive definite (..., 3, 3), in closed form: much faster than LAPACK in batches."""
    a, b, c, d, e, f = h[..., 0, 0], h[..., 0, 1], h[..., 0, 2], h[..., 1, 1], h[..., 1, 2], h[..., 2, 2]
    A, B, C = d * f - e * e, c * e - b * f, b * e - c * d
    det = (a * A + b * B + c * C).clamp_min(1e-300)
    inverse = torch.stack([A, B, C, B, a * f - c * c, b * c - a * e, C, b * c - a * e, a * d - b * b], -1)
    return (inverse / det[..., None]).reshape(*h.shape[:-2], 3, 3)


def divide_by_root(w: Tensor, h: Tensor, group: Tensor) -> Tensor:
    """(N, 3, 7) of w (N, 3, 7), each multiplied by the inverse Cholesky factor of its group's `h` (G, 3, 3).

    Sums of products of the result are those of `w` with the inverse of `h` between.
    """
    tiny = 1e-150
    l00 = h[:, 0, 0].clamp_min(tiny).sqrt()
    l10, l20 = h[:, 1, 0] / l00, h[:, 2, 0] / l00
    l11 = (h[:, 1, 1] - l10 * l10).clamp_min(tiny).sqrt()
    l21 = (h[:, 2, 1] - l20 * l10) / l11
    l22 = (h[:, 2, 2] - l20 * l20 - l21 * l21).clamp_min(tiny).sqrt()
    l00, l10, l11, l20, l21, l22 = torch.stack([l00, l10, l11, l20, l21, l22])[:, group, None]
    u0 = w[:, 0] / l00
    u1 = (w[:, 1] - l10 * u0) / l11
    return torch.stack([u0, u1, (w[:, 2] - l20 * u0 - l21 * u1) / l22], 1)


class BandFactor:
    """Cholesky factor of a symmetric block tridiagonal matrix, blocks of `size`; solves and inverts blocks."""

    def __init__(self, diagonal: Tensor, upper: Tensor) -> None:
        """`diagonal` (nb, size, size), `upper` (nb, size, size): block k of `upper` couples rows k, columns k+1."""
        self.factor: list[Tensor] = []
        self.coupling: list[Tensor] = []
        block = diagonal[0]
        for k in range(len(diagonal)):
            chol, info = torch.linalg.cholesky_ex(block)
            if int(info) != 0:
                raise FloatingPointError("the damped camera system is not positive definite")
            self.factor.append(chol)
            if k + 1 < len(diagonal):
                g = torch.linalg.solve_triangular(chol, upper[k], upper=False)
                self.coupling.append(g)
                block = diagonal[k + 1] - g.T @ g

    def solve(self, rhs: Tensor) -> Tensor:
        """Solve for (nb * size, columns)."""
        size = self.factor[0].shape[0]
        parts = list(rhs.reshape(len(self.factor), size, -1))
        for k, chol in enumerate(self.factor):
            if k:
                parts[k] = parts[k] - self.coupling[k - 1].T @ parts[k - 1]
            parts[k] = torch.linalg.solve_triangular(chol, parts[k], upper=False)
        for k in range(len(parts) - 1, -1, -1):
            if k + 1 < len(parts):
                parts[k] = parts[k] - self.coupling[k] @ parts[k + 1]
            parts[k] = torch.linalg.solve_triangular(self.factor[k].T, parts[k], upper=True)
        return torch.cat(parts, 0)

    def inverse_diagonal(self) -> Tensor:
        """Diagonal blocks (nb, size, size) of the inverse."""
        blocks: list[Tensor] = []
        following: Tensor | None = None
        for k in range(len(self.factor) - 1, -1, -1):
            inverse = torch.cholesky_inverse(self.factor[k])
            if following is not None:
                t = torch.linalg.solve_triangular(self.factor[k].T, self.coupling[k], upper=True)
                inverse = inverse + t @ following @ t.T
            blocks.append(inverse)
            following = inverse
        return torch.stack(blocks[::-1])


class Normal:
    """Normal equations of one linearisation, points eliminated."""

    def __init__(
        self,
        problem: Problem,
        layout: Layout,
        linear: Linear,
        state: State,
        priors: Priors,
        free: Tensor,
        *,
        hold: Held = "first",
    ) -> None:
        self.problem, self.layout = problem, layout
        frames, points = problem.num_frames, problem.num_points
        jc, jp, jg, r = linear.jc, linear.jp, linear.jg, linear.r
        self.num_lens, self.dof = jg.shape[2], jc.shape[2]
        # Everything that belongs to a frame is in the products of its columns with each other.
        of_frame = layout.frames.products(jc, jg, r[:, :, None])
        lens = slice(self.dof, self.dof + self.num_lens)
        self.hcc = of_frame[:, : self.dof, : self.dof]
        self.hcg = of_frame[:, : self.dof, lens]
        self.gc = of_frame[:, : self.dof, -1]
        self.hgg = of_frame[:, lens, lens].sum(0)
        self.gg = of_frame[:, lens, -1].sum(0)
        jpt = jp.transpose(1, 2)
        self.of_observation = jpt @ torch.cat([jp, jg, r[:, :, None]], 2)  # (N, 3, 3 + G + 1)
        of_point = sum_by(problem.point, self.of_observation, points)
        self.hpp, self.hpg, self.gp = of_point[:, :, :3], of_point[:, :, 3:-1], of_point[:, :, -1]
        self.wt = jpt @ jc  # (N, 3, D): how each observation couples its point to its frame
        self.coupling = self._sparse(self.wt, layout.point_start)
        self.coupling_t = self.coupling.T
        self.prior_terms = priors.terms(state)
        for column, (index, coefficient, residual) in self.prior_terms:
            finite = torch.nan_to_num(coefficient)
            self.gc[:, column].index_add_(0, index.reshape(-1), (finite * residual[:, None]).reshape(-1))
        sigma = priors.lens_sigma[free]
        self.hgg = self.hgg + torch.diag(1 / sigma**2)
        self.gg = self.gg + state.lens[free] / sigma**2
        # Gauge: the first frame does not move.
        self.fixed = torch.zeros(frames, self.dof, dtype=torch.bool)
        self.fixed[: frames if hold == "poses" else 1, :6] = True
        if hold == "centres":
            self.fixed[:, 3:6] = True

    def _sparse(self, blocks: Tensor, start: NDArray[np.int32]) -> bsr_array:
        """(3 G, D F) matrix of the blocks (N, 3, D); group g of rows holds the observations from start[g] on."""
        shape = 3 * (len(start) - 1), self.dof * self.problem.num_frames
        return bsr_array((blocks.numpy(), self.layout.column, start), shape=shape, blocksize=(3, self.dof))

    def _by_row(self, jacobian: Tensor, group: Tensor, size: int) -> csr_array:
        """(3 N, K size) matrix of a Jacobian (N, 3, K) by the unknowns of a group; `group` (N,) says of which."""
        number, _, each = jacobian.shape
        column = (each * group[:, None] + torch.arange(each)).int()[:, None].expand(-1, 3, -1)
        start = np.arange(3 * number + 1, dtype=np.int32) * each
        value = jacobian.reshape(-1).numpy()
        return csr_array((value, column.reshape(-1).numpy(), start), shape=(3 * number, each * size))

    def _to_points(self, c: Tensor) -> Tensor:
        """(P, 3) of camera steps (F, D)."""
        return torch.from_numpy(self.coupling @ c.reshape(-1).numpy()).reshape(-1, 3)

    def _to_cameras(self, z: Tensor) -> Tensor:
        """(F, D) of point steps (P, 3)."""
        return torch.from_numpy(self.coupling_t @ z.reshape(-1).numpy()).reshape(-1, self.dof)

    def _priors_times(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for column, (index, coefficient, _) in self.prior_terms:
            inner = (coefficient * x[index, column]).sum(1)
            out[:, column].index_add_(0, index.reshape(-1), (coefficient * inner[:, None]).reshape(-1))
        return out

    def damp(self, damping: float) -> None:
        """Levenberg-Marquardt damping; then factorises the band and inverts the point blocks."""
        problem, layout = self.problem, self.layout
        frames, m, nb = problem.num_frames, layout.superblock, layout.num_blocks
        diag_c = torch.diagonal(self.hcc, dim1=1, dim2=2)
        scale_c = diag_c.clamp_min(1e-8 * float(diag_c.max().clamp_min(1e-12)))
        self.damp_c = damping * scale_c + 1e-9 * diag_c.amax(0, keepdim=True).clamp_min(1e-9)
        self.damp_c = torch.where(self.fixed, torch.full_like(self.damp_c, 1e14), self.damp_c)
        diag_p = torch.diagonal(self.hpp, dim1=1, dim2=2)
        self.damp_p = damping * diag_p + 1e-9 * diag_p.amax(1, keepdim=True).clamp_min(1e-9)
        self.hpp_inv = invert3(self.hpp + torch.diag_embed(self.damp_p))
        # Band: tracks cut into pieces, each piece with its own point block. Pieces share the damping.
        if layout.exact:
            hpp, pg, damp = self.hpp, self.hpg, self.damp_p
        else:
            of_piece = sum_by(layout.piece, self.of_observation, layout.num_pieces)
            hpp, pg = of_piece[:, :, :3], of_piece[:, :, 3:-1]
            damp = self.damp_p[problem.point[layout.piece_start[:-1]]]
        hpp = hpp + torch.diag_embed(damp)
        root = self._sparse(divide_by_root(self.wt, hpp, layout.piece), layout.piece_start)
        removed = root.T @ root
        diagonal = self.hcc.new_zeros(nb, m, self.dof, m, self.dof)
        upper = torch.zeros_like(diagonal)
        row = torch.arange(frames).repeat_interleave(torch.from_numpy(np.diff(removed.indptr)).long())
        column = torch.from_numpy(removed.indices).long()
        block = row // m
        for into, apart in ((diagonal, 0), (upper, 1)):
            chosen = column // m - block == apart
            i, j = row[chosen] % m, column[chosen] % m
            into[block[chosen], i, :, j, :] = -torch.from_numpy(removed.data)[chosen]
        frame = torch.arange(frames)
        diagonal[frame // m, frame % m, :, frame % m, :] += self.hcc + torch.diag_embed(self.damp_c)
        for number, (index, coefficient, _) in self.prior_terms:
            # Every pair of a term's frames, in one write for each of the two bands.
            pairs = torch.cartesian_prod(*(torch.arange(index.shape[1]),) * 2).T
            fa, fb = (index[:, k].T.reshape(-1) for k in pairs)
            value = (coefficient[:, pairs[0]] * coefficient[:, pairs[1]]).T.reshape(-1)
            position = torch.tensor(number)
            for into, apart in ((diagonal, 0), (upper, 1)):
                chosen = fb // m - fa // m == apart
                where = (fa[chosen] // m, fa[chosen] % m, position, fb[chosen] % m, position)
                into.index_put_(where, value[chosen], accumulate=True)
        diagonal, upper = (x.reshape(nb, m * self.dof, m * self.dof) for x in (diagonal, upper))
        missing = nb * m - frames
        if missing:
            last = torch.arange((m - missing) * self.dof, m * self.dof)
            diagonal[-1, last, last] = 1.0
        self.padded = nb * m * self.dof
        self.band = BandFactor(diagonal, upper)
        if self.num_lens:
            along = invert3(hpp) @ pg
            cut = self._sparse(self.wt, layout.piece_start)
            spread = torch.from_numpy(cut.T @ along.reshape(-1, self.num_lens).numpy())
            hcg = self.hcg - spread.reshape(frames, self.dof, self.num_lens)
            hcg = torch.where(self.fixed[:, :, None], torch.zeros_like(hcg), hcg)
            self.border = self._pad(hcg.reshape(frames * self.dof, -1))
            self.border_solved = self.band.solve(self.border)
            hgg = self.hgg - (pg.transpose(1, 2) @ along).sum(0)
            self.border_schur = torch.linalg.inv(
                hgg - self.border.T @ self.border_solved + 1e-12 * torch.diag(torch.diagonal(self.hgg))
            )

    def _pad(self, x: Tensor) -> Tensor:
        if x.shape[0] == self.padded:
            return x
        return torch.cat([x, x.new_zeros(self.padded - x.shape[0], x.shape[1])], 0)

    def keep_band(self) -> None:
        """Let go of what only `step` needs: how every observation couples its point to its frame, twice."""
        del self.wt, self.coupling, self.coupling_t

    def precondition(self, c: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Solve the band system for right-hand sides c (F, D), g (G,)."""
        frames = self.problem.num_frames
        y = self.band.solve(self._pad(c.reshape(-1, 1)))
        if len(g):
            g = self.border_schur @ (g - (self.border.T @ y)[:, 0])
            y = y - self.border_solved @ g[:, None]
        return y[: frames * self.dof, 0].reshape(frames, self.dof), g

    def times(self, c: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Damped Schur complement times (c, g), without forming it."""
        z = (self.hpp_inv @ (self._to_points(c) + self.hpg @ g)[:, :, None])[:, :, 0]
        out_c = (self.hcc @ c[:, :, None])[:, :, 0] + self.damp_c * c - self._to_cameras(z) + self.hcg @ g
        out_c += self._priors_times(c)
        out_g = self.hgg @ g + torch.einsum("fig,fi->g", self.hcg, c) - torch.einsum("pig,pi->g", self.hpg, z)
        return torch.where(self.fixed, self.damp_c * c, out_c), out_g

    def step(self, tolerance: float, max_iterations: int) -> tuple[Tensor, Tensor, Tensor, int]:
        """Gauss-Newton step (camera (F, D), lens (G,), points (P, 3)) and the conjugate-gradient iterations used."""
        zp = (self.hpp_inv @ self.gp[:, :, None])[:, :, 0]
        bc = self._to_cameras(zp) - self.gc
        bc = torch.where(self.fixed, torch.zeros_like(bc), bc)
        bg = torch.einsum("pig,pi->g", self.hpg, zp) - self.gg
        xc, xg = self.precondition(bc, bg)
        used = 0
        if not self.layout.exact:
            ac, ag = self.times(xc, xg)
            rc, rg = bc - ac, bg - ag
            zc, zg = self.precondition(rc, rg)
            dc, dg = zc, zg
            rho = (rc * zc).sum() + (rg * zg).sum()
            b2c, b2g = self.precondition(bc, bg)
            start = (bc * b2c).sum() + (bg * b2g).sum()
            while used < max_iterations:
                used += 1
                if float(rho) <= tolerance**2 * float(start):
                    break
                ac, ag = self.times(dc, dg)
                alpha = rho / ((dc * ac).sum() + (dg * ag).sum())
                xc, xg = xc + alpha * dc, xg + alpha * dg
                rc, rg = rc - alpha * ac, rg - alpha * ag
                zc, zg = self.precondition(rc, rg)
                rho_next = (rc * zc).sum() + (rg * zg).sum()
                dc, dg = zc + rho_next / rho * dc, zg + rho_next / rho * dg
                rho = rho_next
        back = self._to_points(xc) + self.hpg @ xg
        xp = -(self.hpp_inv @ (self.gp + back)[:, :, None])[:, :, 0]
        return xc, xg, xp, used

    def answer(
        self,
        linear: Linear,
        residuals: Iterable[Tensor],
        of_cameras: Tensor,
        of_lens: Tensor,
        *,
        own: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """How the cameras would move if observations were off, by the band alone, as its covariance is.

        Args:
            linear: what the equations were made from.
            residuals: in the place of its residuals, of the first of K cases, a few (N, 3, k) at a time.
            of_cameras, of_lens: (F, D, K), (G, K) further forces, of priors.
            own: how many cases, the first ones, are compared with all; they do not share a chunk with others.
        Returns:
            (F, D, K) steps, and the products (own, K) of what the unknowns take up of the cases.
        """
        layout, frames = self.layout, self.problem.num_frames
        of_piece = sum_by(layout.piece, self.of_observation, layout.num_pieces)
        damp = self.damp_p[self.problem.point[layout.piece_start[:-1]]]
        hpp_inv = invert3(of_piece[:, :, :3] + torch.diag_embed(damp))
        to_points = self._by_row(linear.jp, layout.piece, layout.num_pieces)
        to_cameras = self._by_row(linear.jc, self.problem.frame, frames)
        to_lens = linear.jg.reshape(len(linear.r) * 3, self.num_lens)
        c, g = of_cameras.reshape(frames * self.dof, -1).clone(), of_lens.clone()
        taken = c.new_zeros(own, c.shape[1])
        # Of all cases this is the largest array; of the others a chunk at a time is enough.
        along_own = c.new_zeros(3 * layout.num_pieces, own)
        first = 0
        for r in residuals:
            these = slice(first, first + r.shape[2])
            first = these.stop
            rows = r.reshape(-1, r.shape[2]).numpy()
            on_points = torch.from_numpy(to_points.T @ rows)
            along = (hpp_inv @ on_points.reshape(-1, 3, r.shape[2])).reshape(on_points.shape)
            left = to_points @ along.numpy()
            left -= rows
            c[:, these] += torch.from_numpy(to_cameras.T @ left)
            g[:, these] += to_lens.T @ torch.from_numpy(left)
            if these.stop <= own:
                along_own[:, these] = along
            taken[:, these] = along_own.T @ on_points
            del rows, left, r  # as large as all derivatives: not beside those of the next chunk
        # Cases that came later were not there yet for those before.
        taken[:, :own] = taken[:, :own].triu() + taken[:, :own].triu(1).T
        c[self.fixed.reshape(-1)] = 0
        x = self.band.solve(self._pad(c))
        if self.num_lens:
            of_g = self.border_schur @ (g - self.border.T @ x)
            x = x - self.border_solved @ of_g
            taken += g[:, :own].T @ of_g
        x = x[: frames * self.dof]
        return x.reshape(frames, self.dof, -1), taken + c[:, :own].T @ x

    def covariance(self) -> Tensor:
        """(F, D, D) marginal covariance of the cameras from the band (lens held fixed)."""
        m, frames = self.layout.superblock, self.problem.num_frames
        blocks = self.band.inverse_diagonal().reshape(-1, m, self.dof, m, self.dof)
        i = torch.arange(m)
        return blocks[:, i, :, i, :].permute(1, 0, 2, 3).reshape(-1, self.dof, self.dof)[:frames]
