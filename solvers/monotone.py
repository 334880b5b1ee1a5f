r"""Whether ``½(M + Mᵀ)`` is positive semidefinite along the directions that the set allows.

Pinned coordinates do not move, and on a fixed sum only directions of sum zero count. A Cholesky factorisation with a
rounding's ridge settles nearly all items, since it exists exactly if the matrix is definite; eigenvalues are taken for
the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from solvers.standard_form import StandardForm


def is_monotone(problem: StandardForm) -> Tensor:
    """Which items have ``dᵀMd ≥ 0`` for all directions ``d`` of the set, up to rounding; ``(B,)`` bool, False for NaN.

    Rounding is ``32 L ε`` of the largest eigenvalue, in units in which every ``M_ii`` is 1.
    """
    S = 0.5 * (problem.M + problem.M.transpose(0, 1))
    moves = _movable(problem)
    if moves is not None:
        S = S * (moves.unsqueeze(0) & moves.unsqueeze(1))
    fixed_sum = problem.total is not None and problem.equality
    definite = _has_cholesky(S, moves, fixed_sum)
    rest = (~definite).nonzero()[:, 0]
    if rest.numel():
        alike = None if moves is None else moves[:, rest]
        definite[rest] = _no_negative_eigenvalue(S[..., rest], alike, fixed_sum)
    return definite


def _movable(problem: StandardForm) -> Tensor | None:
    """The coordinates whose bounds differ, ``(L, B)`` bool; ``None`` for all."""
    if problem.lower is None or problem.upper is None:
        return None
    return problem.lower < problem.upper


def _rounding(S: Tensor) -> float:
    return 32 * S.shape[0] * torch.finfo(S.dtype).eps


def _has_cholesky(S: Tensor, moves: Tensor | None, fixed_sum: bool) -> Tensor:
    """Whether ``S``, with its diagonal raised by a rounding, has a Cholesky factor; False for NaN.

    Along a fixed sum ``S + τ11ᵀ`` is tried: definite for a large ``τ`` if ``S`` is definite along it (Debreu 1952).
    """
    L = S.shape[0]
    diagonal = S.diagonal(dim1=0, dim2=1).T
    if fixed_sum:
        tau = L * diagonal.abs().amax(0)
        S = S + (tau if moves is None else tau * (moves.unsqueeze(0) & moves.unsqueeze(1)))
    else:
        S = S.clone()
    S.diagonal(dim1=0, dim2=1).mul_(1 + _rounding(S))
    if L > 16:
        factorised = torch.linalg.cholesky_ex(S.movedim(-1, 0) + 0.0).info == 0
        return factorised & S.isfinite().all(1).all(0)
    found = torch.ones(S.shape[-1], dtype=torch.bool, device=S.device)
    for k in range(L):  # S ← Schur complement of its first row and column
        pivot, column = S[0, 0], S[0, 1:]
        found &= (pivot > 0) | ((pivot == 0) & (column == 0).all(0))
        rate = column / pivot.where(pivot > 0, 1.0)
        if k < L - 1:
            S = torch.addcmul(S[1:, 1:], column.unsqueeze(0), rate.unsqueeze(1), value=-1)
    return found


def _no_negative_eigenvalue(S: Tensor, moves: Tensor | None, fixed_sum: bool) -> Tensor:
    finite = S.isfinite().all(1).all(0)
    S = S.where(finite, 0.0)
    rounding = _rounding(S)
    if fixed_sum:  # P S P with P = I − 11ᵀ/n
        inside = torch.ones_like(S[0]) if moves is None else moves.to(S.dtype)
        count = inside.sum(0).clamp_min(1.0)
        rows = S.sum(1) / count
        mean = rows.sum(0) / count
        S = S - rows.unsqueeze(0) * inside.unsqueeze(1) - rows.unsqueeze(1) * inside.unsqueeze(0)
        S = S + mean * inside.unsqueeze(0) * inside.unsqueeze(1)
    else:
        root = S.diagonal(dim1=0, dim2=1).T.clamp_min(0.0).sqrt()
        root = root.where(root > 0, 1.0)
        S = S / (root.unsqueeze(0) * root.unsqueeze(1))
    eigenvalues = torch.linalg.eigvalsh(S.movedim(-1, 0))
    return finite & (eigenvalues[..., 0] >= -rounding * eigenvalues.abs().amax(-1))
