"""Normal equations of stacked clips, points eliminated: as `Normal`, in few large operations."""

from __future__ import annotations

import torch
from torch import Tensor

from ..normal import BandFactor, Linear, divide_by_root, invert3
from ..problem import State
from .cyclic import CyclicFactor
from .groups import Groups, PairGroups
from .stack import Stack

_FRAME_CHUNK, _POINT_CHUNK, _CLIP_CHUNK = 16, 8, 256  # rows that are summed at a time
Place = tuple[Tensor, Tensor, Tensor, Tensor]
"""Numbers of pairs of frames, the block of the first frame, its place in that, and the second's in its own."""


class Layout:
    """Index structure of a stack, computed once: which observations belong to each frame, point, piece of a track, and
    pair of frames of the band.

    Attributes:
        frames, points, pieces: sums over the observations of each.
        piece: (N,) piece of each observation; `point_of_piece`: (pieces,) point of each.
        pairs: sums over observations of one piece in two frames (or one, twice), earlier frame first.
        inside, across: of those sums, which lie in one block and which in two, and where.
        neighbours: for 0, 1 and 2 frames apart: the first frames of such pairs inside a block and across, and where.
        clips: sums over the pieces of each clip.
        exact: no track was cut: the band is the whole system.
    """

    def __init__(self, stack: Stack) -> None:
        problem, m = stack.problem, stack.block
        frame, point, num_frames = problem.frame, problem.point, problem.num_frames
        self.frames = Groups(frame, num_frames, _FRAME_CHUNK)
        self.points = Groups(point, problem.num_points, _POINT_CHUNK)
        order = torch.arange(len(frame), device=frame.device)
        new_point = torch.ones_like(frame, dtype=torch.bool)
        new_point[1:] = point[1:] != point[:-1]
        first = torch.cummax(torch.where(new_point, order, torch.zeros_like(order)), 0)[0]
        # A piece spans at most `m` frames beyond its first, so that its frames lie in one block or two neighbours.
        place = (frame - frame[first]) // (m + 1)
        new_piece = new_point.clone()
        new_piece[1:] |= (place[1:] != place[:-1]) & ~stack.exact[_clip(stack)][1:]
        self.exact = bool((new_piece == new_point).all())
        self.piece = torch.cumsum(new_piece.long(), 0) - 1
        starts = torch.nonzero(new_piece)[:, 0]
        self.point_of_piece = point[starts]
        self.pieces = self.points if self.exact else Groups(self.piece, len(starts), _POINT_CHUNK)
        self.clips = Groups(stack.clip_of_point[self.point_of_piece], stack.size, _CLIP_CHUNK)
        self._pair(stack, torch.cat([starts[1:], starts.new_tensor([len(frame)])]))

    def _pair(self, stack: Stack, ends: Tensor) -> None:
        frame, m, num_frames = stack.problem.frame, stack.block, stack.problem.num_frames
        order = torch.arange(len(frame), device=frame.device)
        count = ends[self.piece] - order
        first = torch.repeat_interleave(order, count)
        begin = torch.cumsum(count, 0) - count
        second = first + torch.arange(len(first), device=frame.device) - begin[first]
        key, group = torch.unique(frame[first] * num_frames + frame[second], return_inverse=True)
        self.pairs = PairGroups(first, second, group, len(key), len(frame))
        self.inside, self.across = _places(key // num_frames, key % num_frames, m)
        frames = torch.arange(num_frames, device=frame.device)
        self.neighbours = [_places(frames[: num_frames - k], frames[k:], m) for k in range(3)]


def _places(i: Tensor, j: Tensor, m: int) -> tuple[Place, Place]:
    """Of pairs of frames (M,), those inside a block of `m` frames, and those across two neighbours."""

    def chosen(blocks: int) -> Place:
        which = torch.nonzero(j // m - i // m == blocks)[:, 0]
        return which, i[which] // m, i[which] % m, j[which] % m

    return chosen(0), chosen(1)


def _clip(stack: Stack) -> Tensor:
    assert stack.problem.clip is not None
    return stack.problem.clip


class BatchedNormal:
    """Normal equations of one linearisation of stacked clips.

    Cameras are (B, places, D), lenses (B, G), points (P, 3).
    """

    def __init__(self, stack: Stack, layout: Layout, linear: Linear, state: State) -> None:
        self.stack, self.layout = stack, layout
        jc, jp, jg, r = linear.jc, linear.jp, linear.jg, linear.r
        self.num_lens, self.dof = jg.shape[2], jc.shape[2]
        shape = stack.size, stack.places
        columns = torch.cat([jc, jg, r[:, :, None]], 2)
        # Everything that belongs to a frame is in the products of its columns with each other.
        of_frame = layout.frames.products(columns, columns).reshape(*shape, columns.shape[2], -1)
        lens = slice(self.dof, self.dof + self.num_lens)
        self.hcc = of_frame[:, :, : self.dof, : self.dof]
        self.hcg = of_frame[:, :, : self.dof, lens]
        self.gc = of_frame[:, :, : self.dof, -1].clone()
        self.hgg = of_frame[:, :, lens, lens].sum(1)
        self.gg = of_frame[:, :, lens, -1].sum(1)
        self._of_points = torch.cat([jp, jg, r[:, :, None]], 2)
        self.jp = jp
        of_point = layout.points.products(jp, self._of_points)
        self.hpp, self.hpg, self.gp = of_point[:, :, :3], of_point[:, :, 3:-1], of_point[:, :, -1]
        # Sums and products that belong together are float64 of the same derivatives, whatever these are rounded to:
        # else the system is not that of any cameras, and steps along its weak directions go astray.
        # (N, 3, D): how each observation couples its point to its frame
        self.wt = jp.double().transpose(1, 2) @ jc.double()
        self._add_priors(state)

    def _add_priors(self, state: State) -> None:
        stack = self.stack
        gradient, number = self.gc.reshape(-1, self.dof), stack.problem.num_frames
        # Of each column, what its priors couple frames with: (3, F), frame f with f, f + 1 and f + 2.
        self.prior_bands: dict[int, Tensor] = {}
        for column, (index, coefficient, residual) in stack.priors.terms(state):
            if column not in self.prior_bands:
                self.prior_bands[column] = gradient.new_zeros(3, number)
            band = self.prior_bands[column]
            for a in range(index.shape[1]):
                # A frame is there once in each column of `index`.
                gradient[:, column].index_add_(0, index[:, a], coefficient[:, a] * residual)
                for b in range(a, index.shape[1]):
                    band[b - a].index_add_(0, index[:, a], coefficient[:, a] * coefficient[:, b])
        self.gc = gradient.reshape(self.gc.shape)
        free = stack.priors.free
        sigma = stack.priors.lens_sigma[:, free]
        self.hgg = self.hgg + torch.diag_embed(1 / sigma**2)
        self.gg = self.gg + state.lens[:, free] / sigma**2

    def damp(self, damping: Tensor) -> None:
        """Levenberg-Marquardt damping (B,); then factorises the band and inverts the point blocks."""
        stack, layout = self.stack, self.layout
        diag_c = torch.diagonal(self.hcc, dim1=2, dim2=3)
        scale_c = torch.maximum(diag_c, 1e-8 * diag_c.amax((1, 2), keepdim=True).clamp_min(1e-12))
        least = 1e-9 * diag_c.amax(1, keepdim=True).clamp_min(1e-9)
        self.damp_c = damping[:, None, None] * scale_c + least
        self.damp_c = torch.where(stack.fixed, torch.full_like(self.damp_c, 1e14), self.damp_c)
        diag_p = torch.diagonal(self.hpp, dim1=1, dim2=2)
        of_point = damping[stack.clip_of_point][:, None]
        self.damp_p = of_point * diag_p + 1e-9 * diag_p.amax(1, keepdim=True).clamp_min(1e-9)
        self.hpp_inv = invert3(self.hpp + torch.diag_embed(self.damp_p))
        # Band: tracks cut into pieces, each piece with its own point block. Pieces share the damping.
        hpp, pg, damp = self.hpp, self.hpg, self.damp_p
        if not layout.exact:
            of_piece = layout.pieces.products(self.jp, self._of_points)
            hpp, pg = of_piece[:, :, :3], of_piece[:, :, 3:-1]
            damp = self.damp_p[layout.point_of_piece]
        hpp = hpp + torch.diag_embed(damp)
        root = divide_by_root(self.wt, hpp, layout.piece)
        self.diagonal, self.upper = self._band(root.to(self.jp.dtype))
        self.factor = CyclicFactor(self.diagonal, self.upper)
        if self.num_lens:
            self._border(hpp, pg)

    def _band(self, root: Tensor) -> tuple[Tensor, Tensor]:
        """Diagonal (B, blocks, m D, m D) and upper (B, blocks - 1, m D, m D) blocks of the damped camera system."""
        stack, layout, m, dof = self.stack, self.layout, self.stack.block, self.dof
        removed = layout.pairs.products(root)
        blocks = stack.size * stack.places // m
        diagonal = removed.new_zeros(blocks, m, dof, m, dof)
        upper = torch.zeros_like(diagonal)
        which, block, i, j = layout.inside
        diagonal[block, j, :, i, :] = -removed[which].transpose(1, 2)
        diagonal[block, i, :, j, :] = -removed[which]
        which, block, i, j = layout.across
        upper[block, i, :, j, :] = -removed[which]
        own = self.hcc + torch.diag_embed(self.damp_c)
        frame = torch.arange(stack.size * stack.places, device=root.device)
        diagonal[frame // m, frame % m, :, frame % m, :] += own.reshape(-1, dof, dof)
        for column, band in self.prior_bands.items():
            for apart, (inside, across) in enumerate(layout.neighbours):
                which, block, i, j = inside
                diagonal[block, i, column, j, column] += band[apart][which]
                if apart:
                    diagonal[block, j, column, i, column] += band[apart][which]
                    which, block, i, j = across
                    upper[block, i, column, j, column] += band[apart][which]
        size = (stack.size, -1, m * dof, m * dof)
        return diagonal.reshape(size), upper.reshape(size)[:, :-1]

    def _border(self, hpp: Tensor, pg: Tensor) -> None:
        """The lens, eliminated last."""
        layout, shape = self.layout, (self.stack.size, self.stack.places, self.dof, self.num_lens)
        along = invert3(hpp) @ pg
        spread = layout.frames.sum(self.wt.transpose(1, 2) @ along[layout.piece]).reshape(shape)
        hcg = torch.where(self.stack.fixed[..., None], torch.zeros_like(self.hcg), self.hcg - spread)
        self.border = hcg.reshape(*self.diagonal.shape[:3], self.num_lens)
        self.border_solved = self.factor.solve(self.border)
        hgg = self.hgg - layout.clips.sum(pg.transpose(1, 2) @ along)
        inner = (self.border.transpose(-1, -2) @ self.border_solved).sum(1)
        small = 1e-12 * torch.diag_embed(torch.diagonal(self.hgg, dim1=1, dim2=2))
        self.border_schur = torch.linalg.inv_ex(hgg - inner + small)[0]

    def precondition(self, c: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Solve the band system for right-hand sides c (B, places, D), g (B, G)."""
        y = self.factor.solve(c.reshape(*self.diagonal.shape[:3], 1))
        if self.num_lens:
            inner = (self.border.transpose(-1, -2) @ y).sum(1)
            solved = self.border_schur @ (g[:, :, None] - inner)
            y = y - self.border_solved @ solved[:, None]
            g = solved[:, :, 0]
        return y.reshape(c.shape), g

    def _to_points(self, c: Tensor) -> Tensor:
        """(P, 3) of camera steps (B, places, D)."""
        of_frame = c.reshape(-1, self.dof)[self.stack.problem.frame]
        return self.layout.points.sum((self.wt * of_frame[:, None]).sum(2))

    def _to_cameras(self, z: Tensor) -> Tensor:
        """(B, places, D) of point steps (P, 3)."""
        of_point = z[self.stack.problem.point]
        return self.layout.frames.sum((self.wt * of_point[:, :, None]).sum(1)).reshape(self.gc.shape)

    def _along_lens(self, g: Tensor) -> Tensor:
        """(P, 3) of lens steps (B, G)."""
        return (self.hpg * g[self.stack.clip_of_point][:, None]).sum(2)

    def _to_lens(self, z: Tensor) -> Tensor:
        """(B, G) of point steps (P, 3)."""
        return self.stack.total_of_points((self.hpg * z[:, :, None]).sum(1))

    def _priors_times(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for column, whole in self.prior_bands.items():
            band, value = whole.reshape(3, *x.shape[:2]), x[:, :, column]
            of_column = band[0] * value
            for apart in (1, 2):
                of_column[:, :-apart] += band[apart, :, :-apart] * value[:, apart:]
                of_column[:, apart:] += band[apart, :, :-apart] * value[:, :-apart]
            out[:, :, column] = of_column
        return out

    def times(self, c: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Damped Schur complement times (c, g), without forming it."""
        z = (self.hpp_inv * (self._to_points(c) + self._along_lens(g))[:, None]).sum(2)
        out = (self.hcc * c[:, :, None]).sum(3) + self.damp_c * c - self._to_cameras(z)
        out = out + (self.hcg * g[:, None, None]).sum(3) + self._priors_times(c)
        out_g = (self.hgg * g[:, None]).sum(2) + (self.hcg * c[..., None]).sum((1, 2)) - self._to_lens(z)
        return torch.where(self.stack.fixed, self.damp_c * c, out), out_g

    def step(self, tolerance: float, max_iterations: int) -> tuple[Tensor, Tensor, Tensor]:
        """Gauss-Newton step: camera (B, places, D), lens (B, G), points (P, 3)."""
        zp = (self.hpp_inv * self.gp[:, None]).sum(2)
        bc = self._to_cameras(zp) - self.gc
        bc = torch.where(self.stack.fixed, torch.zeros_like(bc), bc)
        bg = self._to_lens(zp) - self.gg
        xc, xg = self.precondition(bc, bg)
        # A band of rounded products is not the whole system either.
        if not self.layout.exact or self.jp.dtype != torch.float64:
            xc, xg = self._conjugate_gradients((bc, bg), (xc, xg), tolerance, max_iterations)
        back = self._to_points(xc) + self._along_lens(xg)
        return xc, xg, -(self.hpp_inv * (self.gp + back)[:, None]).sum(2)

    def _conjugate_gradients(
        self, b: tuple[Tensor, Tensor], x: tuple[Tensor, Tensor], tolerance: float, max_iterations: int
    ) -> tuple[Tensor, Tensor]:
        """The solution of every clip from `x` = preconditioned `b`; a clip that is there waits for the others."""

        def dot(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> Tensor:
            return (p[0] * q[0]).sum((1, 2)) + (p[1] * q[1]).sum(1)

        def add(p: tuple[Tensor, Tensor], factor: Tensor, q: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return p[0] + factor[:, None, None] * q[0], p[1] + factor[:, None] * q[1]

        start = dot(b, x)
        r = add(b, -torch.ones_like(start), self.times(*x))
        z = self.precondition(*r)
        d, rho = z, dot(r, z)
        for _ in range(max_iterations):
            # Also where a system failed and this is no number.
            waiting = ~(rho > tolerance**2 * start)
            if bool(waiting.all()):
                break
            a = self.times(*d)
            zero = torch.zeros_like(rho)
            alpha = torch.where(waiting, zero, rho / dot(d, a))
            x, r = add(x, alpha, d), add(r, -alpha, a)
            z = self.precondition(*r)
            following = torch.where(waiting, rho, dot(r, z))
            d = add(z, torch.where(waiting, zero, following / rho), d)
            rho = following
        return x

    def covariance(self) -> Tensor:
        """(places, D, D) marginal covariance of the cameras of a stack of one clip from the band (lens held fixed)."""
        m = self.stack.block
        band = BandFactor(self.diagonal[0], self.upper[0])
        blocks = band.inverse_diagonal().reshape(-1, m, self.dof, m, self.dof)
        i = torch.arange(m, device=blocks.device)
        return blocks[:, i, :, i, :].permute(1, 0, 2, 3).reshape(-1, self.dof, self.dof)
