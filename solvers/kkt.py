r"""The linear system that holds on a set of linear pieces: solved with a certificate, singular or not.

Let ``F`` be the free coordinates. Where the sum is tight::

    [ M_FF  1 ] [ x_F ]   [ r_F ]
    [ 1ᵀ    0 ] [  ν  ] = [  s  ],     x = 0 off F;      elsewhere M_FF x_F = r_F and ν = 0.

``M_FF`` may be singular where this matrix is not: a Gram matrix of more scales than channels, a linear program. Where
it is singular too, the sum still holds exactly and the rest is solved by least squares, with the least norm, within the
directions that keep it: with ``P`` the projector onto ``{x_F : 1ᵀx_F = 0}`` (the identity where the sum is not tight)
and ``x⁰ = s 1_F/|F|``::

    x = x⁰ + (P M_FF P)⁺ P (r − M x⁰),     ν = mean_F (r − M x).

A pseudo-inverse of the whole matrix would add squares of numbers with different units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from solvers.linear import aligned, gauss_jordan, prefers_elimination
from solvers.sums import ordered_sum

SOUND_PIVOT = 1e-6
"""Elimination without pivoting is trusted while every pivot keeps so much of its diagonal entry."""
SOUND_RESIDUAL = 1e-12
"""… and every equation holds to so much of its largest term."""


class KKTSolution(NamedTuple):
    """A solution of the system of this module.

    Attributes:
        x: ``(L, B)``.
        multiplier: ``ν``, ``(B,)``; 0 where no sum is tight.
        residual: ``(B,)``, what is left of the equations relative to the right-hand side, measured after solving; it
            has no unit. Above rounding only where the matrix is singular, to rounding, and ``r`` outside its range.
    """

    x: Tensor
    multiplier: Tensor
    residual: Tensor


def solve_kkt(M: Tensor, d: Tensor, free: Tensor, tight: Tensor, r: Tensor, s: Tensor) -> KKTSolution:
    """Solves the system of this module for every item, in float64.

    Args:
        M: ``(L, L, B)``; float32 or float64. Its precision says which singular values count as 0.
        d: The stiffness, see `solvers.natural.stiffness`, of positive numbers: ``(L, B)``, or ``(B,)`` where all
            coordinates share their unit.
        free: ``(L, B)`` bool.
        tight: ``(B,)`` bool.
        r: ``(L, B)``; entries off ``F`` are ignored.
        s: ``(B,)``; ignored where the sum is not tight.
    """
    rounding = 8 * free.shape[0] * torch.finfo(M.dtype).eps
    system = _System(
        M.double(), d.double().sqrt().expand(r.shape), free, tight & free.any(0), r.double() * free, s.double()
    )
    if prefers_elimination(M):
        found, sound = system.eliminated()
    else:
        found, sound = system.factorised(rounding)
    rest = (~sound).nonzero()[:, 0]
    if rest.numel() and prefers_elimination(M):
        careful, still = system.select(rest).factorised(rounding)
        found = found.replaced(rest, careful)
        rest = rest[~still]
    if rest.numel():
        found = found.replaced(rest, system.select(rest).least_squares(rounding))
    return KKTSolution(found.x, found.multiplier, found.residual)


class _Found(NamedTuple):
    x: Tensor
    multiplier: Tensor
    residual: Tensor

    def replaced(self, items: Tensor, by: _Found) -> _Found:
        return _Found(*(ours.index_copy(-1, items, theirs) for ours, theirs in zip(self, by, strict=True)))


class _System(NamedTuple):
    """The data of the system; ``root = √d`` brings it to natural units, ``M/(root rootᵀ)`` and ``root∘x``."""

    M: Tensor
    root: Tensor
    free: Tensor
    tight: Tensor
    r: Tensor
    s: Tensor

    def select(self, items: Tensor) -> _System:
        return _System(*(tensor.index_select(-1, items) for tensor in self))

    def left(self, x: Tensor, multiplier: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is left of the equations, ``(L, B)`` and ``(B,)``, and the sizes of their terms, ``(L, B)``."""
        products = self.M * x
        terms = ordered_sum(products.abs(), 1) + multiplier.abs() + self.r.abs()
        of_rows = (self.r - ordered_sum(products, 1) - multiplier) * self.free
        return of_rows, (self.s - ordered_sum(x)) * self.tight, terms

    def relative(self, of_rows: Tensor, of_sum: Tensor) -> Tensor:
        """What is left of the equations relative to the right-hand side, ``(B,)``; inf for NaN."""
        size = (self.r / self.root).abs().amax(0)
        size = torch.maximum(size, self.root.amax(0) * self.s.abs() * self.tight)
        error = torch.maximum((of_rows / self.root).abs().amax(0), self.root.amin(0) * of_sum.abs())
        relative = torch.where(error == 0, 0.0, error / size)
        return relative.nan_to_num(torch.inf, torch.inf)

    def eliminated(self) -> tuple[_Found, Tensor]:
        """By elimination without pivoting and a Schur complement of ``M_FF``, and for which items that is sound.

        Where the sum is tight ``M + σ11ᵀ`` and ``r + σs`` have the same solution, and ``σ = max |M_ij|`` makes that
        matrix about as regular as the whole.
        """
        inside = self.free.to(self.M.dtype)
        sigma = self.M.abs().amax((0, 1)) * self.tight
        A = (self.M + sigma) * (inside.unsqueeze(1) * inside)
        A.diagonal(dim1=0, dim2=1).add_((1 - inside).T)
        own = A.diagonal(dim1=0, dim2=1).T.clone()
        (x, per_unit), pivots = gauss_jordan(A, torch.stack((self.r + sigma * self.s * inside, inside)))
        total = ordered_sum(per_unit)
        multiplier = torch.where(self.tight, (ordered_sum(x) - self.s) / total, 0.0)
        x = torch.addcmul(x, per_unit, multiplier, value=-1)
        excess = torch.where(self.tight, (ordered_sum(x) - self.s) / total, 0.0)  # what rounding left of the sum
        x, multiplier = torch.addcmul(x, per_unit, excess, value=-1), multiplier + excess
        of_rows, of_sum, terms = self.left(x, multiplier)
        sound = (pivots >= SOUND_PIVOT * own).all(0) & (own > 0).all(0)
        sound &= (of_rows.abs() <= SOUND_RESIDUAL * terms).all(0)
        natural = (self.r / (self.root * self.root)).abs().amax(0)  # where everything but one coordinate is held, x = 0
        sound &= of_sum.abs() <= SOUND_RESIDUAL * (ordered_sum(x.abs()) + natural)
        sound &= ~self.tight | (total.abs() > SOUND_PIVOT * ordered_sum(per_unit.abs()))  # the pivot of the sum
        return _Found(x, multiplier, self.relative(of_rows, of_sum)), sound

    def factorised(self, rounding: float) -> tuple[_Found, Tensor]:
        """By an LU factorisation with pivoting of the whole matrix, refined once, and where it is regular."""
        L, B = self.r.shape
        size = L + 1 + -(L + 1) % 4  # see `solvers.linear.aligned`
        inside = self.free.to(self.M.dtype)
        K = self.M.new_zeros((size, size, B))
        K[:L, :L] = self.M / self.root.unsqueeze(0) / self.root.unsqueeze(1) * (inside.unsqueeze(1) * inside)
        border = inside * self.tight * (self.root.amin(0) / self.root)  # of a common unit: 1
        K[:L, L], K[L, :L] = border, border
        diagonal = K.diagonal(dim1=0, dim2=1).T
        diagonal[:L] += 1 - inside
        diagonal[L] += ~self.tight
        diagonal[L + 1 :] += 1
        LU, pivots, _ = torch.linalg.lu_factor_ex(K.permute(2, 0, 1))
        diagonal = LU.diagonal(dim1=1, dim2=2).abs()
        regular = diagonal.amin(1) > rounding * diagonal.amax(1)  # False for NaN

        def solved(of_rows: Tensor, of_sum: Tensor) -> tuple[Tensor, Tensor]:
            last = (of_sum * self.root.amin(0)).unsqueeze(0)
            right = torch.cat((of_rows / self.root, last, of_rows.new_zeros((size - L - 1, B))))
            z = torch.linalg.lu_solve(LU, pivots, right.T.unsqueeze(-1)).squeeze(-1).T
            return z[:L] / self.root, z[L] * self.root.amin(0) * self.tight

        x, multiplier = solved(self.r, self.s * self.tight)
        of_rows, of_sum, _ = self.left(x, multiplier)
        more = solved(of_rows, of_sum)  # refined once
        x, multiplier = x + more[0], multiplier + more[1]
        of_rows, of_sum, _ = self.left(x, multiplier)
        return _Found(x, multiplier, self.relative(of_rows, of_sum)), regular

    def least_squares(self, rounding: float) -> _Found:
        """By the formula of this module, with singular values below ``rounding`` of the largest taken for 0."""
        inside = self.free.to(self.M.dtype)
        count = ordered_sum(inside).clamp_min(1.0)
        share = inside / count * self.tight
        x0 = share * self.s

        def projected(x: Tensor, dim: int = 0) -> Tensor:
            """``P x``, for vectors or, along a dimension, for matrices ``(L, L, B)``."""
            among, part = (inside, share) if x.ndim == 2 else (inside.unsqueeze(1 - dim), share.unsqueeze(1 - dim))
            x = x * among
            return x - part * ordered_sum(x, dim).unsqueeze(dim)

        A = projected(projected(self.M, 0), 1)
        parts = torch.linalg.svd(aligned(A.movedim(-1, 0), 0.0))
        U, sizes, Vh = (part.movedim(0, -1).contiguous() for part in parts)
        L = len(self.r)
        U, Vh = U[:L], Vh[:, :L]
        kept = sizes > rounding * sizes[:1]
        along = ordered_sum(U * projected(self.r - ordered_sum(self.M * x0, 1)).unsqueeze(1))
        along = torch.where(kept, along / sizes, 0.0)
        x = x0 + ordered_sum(Vh * along.unsqueeze(1))
        of_rows = (self.r - ordered_sum(self.M * x, 1)) * self.free
        multiplier = ordered_sum(of_rows) / count * self.tight
        of_rows, of_sum, _ = self.left(x, multiplier)
        return _Found(x, multiplier, self.relative(of_rows, of_sum))
