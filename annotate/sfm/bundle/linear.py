"""The residuals of a bundle, linearised at a state."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .lens import LENS_DOF, bending
from .problem import FOCAL_COLUMN, GAIN_COLUMN, Problem, State, cauchy, lens_of, whitened_residuals

Residuals = tuple[Tensor, Tensor, Tensor, Tensor]
"""What `whitened_residuals` gives."""


@dataclass
class Linear:
    """Whitened, robustly weighted Jacobians and residuals at one state.

    Attributes:
        columns: (N, 3, D + G + 1): `jc`, `jg` and `r` side by side, for what is made of all of them.
        jp: (N, 3, 3) by points.
        dof: D, 7, or 8 where the depth of frames has a gain.
    """

    columns: Tensor
    jp: Tensor
    dof: int

    @property
    def jc(self) -> Tensor:
        """(N, 3, D) by cameras."""
        return self.columns[:, :, : self.dof]

    @property
    def jg(self) -> Tensor:
        """(N, 3, G) by the free numbers of the lens."""
        return self.columns[:, :, self.dof : -1]

    @property
    def r(self) -> Tensor:
        """(N, 3) residuals."""
        return self.columns[:, :, -1]

    def rounded(self, dtype: torch.dtype) -> Linear:
        """The same in another precision."""
        return replace(self, columns=self.columns.to(dtype), jp=self.jp.to(dtype))


@dataclass
class Seen:
    """The derivatives by points in the frames of their cameras, and what those by all else are made of."""

    by_point: Tensor  # (N, 3, 3) of u, v and log depth by camera-frame point, whitened and robustly weighted
    r: Tensor  # (N, 3) whitened, robustly weighted
    weight: Tensor  # (N,) robust weight of the reprojection
    p: Tensor  # (N, 3) camera-frame points
    u: Tensor  # (N,) fx X / Z, weighted
    v: Tensor  # (N,) fy Y / Z, weighted
    radial: Tensor  # (N,) factor by which the lens bends
    by_term: Tensor  # (2, N) its derivatives by k1 and k2
    per_px: Tensor  # (N,) residual of a pixel
    per_log: Tensor  # (N,) residual of a log depth of one


def see(problem: Problem, state: State, robust_scale: float, found: Residuals | None = None) -> Seen:
    """What the observations of a state say of points; `found`: its residuals, where they are known."""
    r_uv, r_d, behind, p = whitened_residuals(problem, state) if found is None else found
    _, w_uv = cauchy((r_uv * r_uv).sum(1), robust_scale)
    w_uv = torch.where(behind, torch.zeros_like(w_uv), w_uv)
    _, w_d = cauchy(r_d * r_d, robust_scale)
    w_d = torch.where(behind | torch.isinf(problem.sigma_log_depth), torch.zeros_like(w_d), w_d)
    iz = 1 / p[:, 2].clamp_min(1e-6)
    a, b = p[:, 0] * iz, p[:, 1] * iz
    of_lens = lens_of(problem, state)
    radial, slope, by_term = bending(problem.lens.model, a * a + b * b, of_lens[3], of_lens[4])
    root = w_uv.sqrt()
    su, sd = root / problem.sigma_px, w_d.sqrt() / problem.sigma_log_depth
    fu = state.log_focal.exp()[problem.frame] * su
    fv = fu * of_lens[2].exp()
    # d(u, v) / d(a, b) including the radial terms
    bent = 2 * slope * a * b
    ua, ub = fu * (radial + 2 * slope * a * a), fu * bent
    va, vb = fv * bent, fv * (radial + 2 * slope * b * b)
    zero = torch.zeros_like(iz)
    rows = [ua, ub, -(ua * a + ub * b), va, vb, -(va * a + vb * b), zero, zero, sd]
    by_point = (torch.stack(rows, 1) * iz[:, None]).reshape(-1, 3, 3)
    r = torch.cat([r_uv * root[:, None], (r_d * w_d.sqrt())[:, None]], 1)
    r = torch.where(behind[:, None], torch.zeros_like(r), r)
    return Seen(by_point, r, w_uv, p, fu * a, fv * b, radial, by_term, su, sd)


def linearise(
    problem: Problem, state: State, robust_scale: float, free_lens: Tensor
) -> tuple[Linear, Tensor]:
    """Derivatives and residuals at a state, and the robust weight (N,) of each reprojection.

    Args:
        free_lens: which numbers of the lens are free: (5,) bool, or their numbers.
    """
    seen = see(problem, state, robust_scale)
    dp, u, v, s = seen.by_point, seen.u, seen.v, seen.per_px
    dof = state.camera_dof
    free = torch.arange(LENS_DOF, device=free_lens.device)[free_lens].tolist()
    columns = dp.new_zeros(len(dp), 3, dof + len(free) + 1)
    # Left perturbation: d p = w x p + v
    columns[:, :, :3] = torch.linalg.cross(seen.p[:, None].expand_as(dp), dp)
    columns[:, :, 3:6] = dp
    columns[:, 0, FOCAL_COLUMN], columns[:, 1, FOCAL_COLUMN] = u * seen.radial, v * seen.radial
    if state.log_gain is not None:
        columns[:, 2, GAIN_COLUMN] = seen.per_log
    k1, k2 = seen.by_term
    by_lens = ((s, None), (None, s), (None, v * seen.radial), (u * k1, v * k1), (u * k2, v * k2))
    for place, number in enumerate(free, start=dof):
        for row, value in enumerate(by_lens[number]):
            if value is not None:
                columns[:, row, place] = value
    columns[:, :, -1] = seen.r
    return Linear(columns, dp @ state.rotation[problem.frame], dof), seen.weight
