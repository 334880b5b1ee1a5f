r"""Whether ``½(M + Mᵀ)`` is positive semidefinite along the directions that the set allows.

Pinned coordinates do not move, and on a fixed sum only directions of sum zero count. A Cholesky factorisation with a
rounding's ridge settles nearly all items, since it exists exactly if the matrix is definite; eigenvalues are taken for
the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from solvers.linear import aligned
from solvers.natural import balanced
from solvers.standard_form import StandardForm


def is_monotone(problem: StandardForm, eps: float | None = None) -> Tensor:
    """Which items have ``dᵀMd ≥ 0`` for all directions ``d`` of the set, up to rounding; ``(B,)`` bool, False for NaN.

    Rounding is ``32 L ε`` of the largest entry of ``M``, without a sum in units of the coordinates in which ``M`` is
    balanced (see `solvers.natural.stiffness`).

    Args:
        problem: The problem.
        eps: The machine epsilon of the type in which the data were given; that of their own type if omitted.
    """
    rounding = 32 * problem.size * (torch.finfo(problem.M.dtype).eps if eps is None else eps)
    M, moves = problem.M, _movable(problem)
    if moves is not None:
        M = M * (moves.unsqueeze(0) & moves.unsqueeze(1))
    fixed_sum = problem.total is not None and problem.equality
    definite = has_cholesky(M, moves, fixed_sum, 1 + rounding)
    rest = (~definite).nonzero()[:, 0]
    if rest.numel():
        alike = None if moves is None else moves[:, rest]
        definite[rest] = _no_negative_eigenvalue(M[..., rest], alike, fixed_sum, rounding)
    return definite


def is_strongly_monotone(problem: StandardForm) -> Tensor:
    """Which items are known to have ``dᵀMd > 0`` by a margin, 1e-9 of the diagonal; ``(B,)`` bool."""
    return has_cholesky(problem.M, None, problem.total is not None and problem.equality, 1 - 1e-9, definite=True)


def _movable(problem: StandardForm) -> Tensor | None:
    """The coordinates whose bounds differ, ``(L, B)`` bool; ``None`` for all."""
    if problem.lower is None or problem.upper is None:
        return None
    return problem.lower < problem.upper


def has_cholesky(
    M: Tensor, moves: Tensor | None, fixed_sum: bool, diagonal_times: float, *, definite: bool = False
) -> Tensor:
    """Whether ``½(M + Mᵀ)``, its diagonal times a number, has a Cholesky factor, ``(B,)`` bool; False for NaN and Inf.

    Along a fixed sum ``S + τ11ᵀ`` is tried: definite for a large ``τ`` if ``S`` is definite along it (Debreu 1952).
    Unless ``definite`` is asked for, rows and columns of zeros do not count (for small sizes).
    """
    S = 0.5 * (M + M.transpose(0, 1))
    L = S.shape[0]
    if fixed_sum:
        tau = L * S.diagonal(dim1=0, dim2=1).abs().amax(-1)
        S = S + (tau if moves is None else tau * (moves.unsqueeze(0) & moves.unsqueeze(1)))
    S.diagonal(dim1=0, dim2=1).mul_(diagonal_times)
    if L > 8:
        finite = S.isfinite().all(1).all(0)
        return (torch.linalg.cholesky_ex(aligned(S.movedim(-1, 0))).info == 0) & finite
    found = _positive_pivots(S, zeros=False)
    rest = () if definite else (~found).nonzero()[:, 0]
    if len(rest):
        found[rest] = _positive_pivots(S[..., rest], zeros=True)
    return found


def _positive_pivots(S: Tensor, *, zeros: bool) -> Tensor:
    """Whether elimination meets positive pivots only, or, with ``zeros``, zeros with nothing beside them; ``(B,)``."""
    pivots, sound = [], []
    for _ in range(S.shape[0]):  # S ← Schur complement of its first row and column
        pivot, column = S[0, 0], S[0, 1:]
        pivots.append(pivot)
        if zeros:
            sound.append((pivot != 0) | (column == 0).all(0))
            pivot = pivot.where(pivot != 0, 1.0)
        S = torch.addcmul(S[1:, 1:], column.unsqueeze(0), (column / pivot).unsqueeze(1), value=-1)
    stacked = torch.stack(pivots)
    positive = ((stacked >= 0 if zeros else stacked > 0) & (stacked < torch.inf)).all(0)
    return positive & torch.stack(sound).all(0) if zeros else positive


def _no_negative_eigenvalue(M: Tensor, moves: Tensor | None, fixed_sum: bool, rounding: float) -> Tensor:
    finite = M.isfinite().all(1).all(0)
    M = M.where(finite, 0.0)
    if fixed_sum:
        largest = M.abs().amax((0, 1))
        M = M / largest.where(largest > 0, 1.0)
    else:
        root = balanced(M).sqrt()
        root = root.where(root > 0, 1.0)
        M = M / root.unsqueeze(0) / root.unsqueeze(1)
    S = 0.5 * (M + M.transpose(0, 1))
    if fixed_sum:  # P S P with P = I − 11ᵀ/n
        inside = torch.ones_like(S[0]) if moves is None else moves.to(S.dtype)
        count = inside.sum(0).clamp_min(1.0)
        rows = S.sum(1) / count
        mean = rows.sum(0) / count
        S = S - rows.unsqueeze(0) * inside.unsqueeze(1) - rows.unsqueeze(1) * inside.unsqueeze(0)
        S = S + mean * inside.unsqueeze(0) * inside.unsqueeze(1)
    radius = S.abs().sum(1) - S.diagonal(dim1=0, dim2=1).T.abs()
    found = finite & ((S.diagonal(dim1=0, dim2=1).T - radius).amin(0) >= -rounding)  # Gershgorin's discs
    rest = (finite & ~found).nonzero()[:, 0]
    if rest.numel():  # in float64, since LAPACK's float32 may not converge
        S = aligned(S[..., rest].double().movedim(-1, 0))
        found[rest] = torch.linalg.eigvalsh(S)[..., 0] >= -rounding
    return found
