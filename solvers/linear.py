r"""Batches of small dense linear systems, coordinates first, and the optimality system of a set of linear pieces."""

from __future__ import annotations

import torch
from torch import Tensor

# Measured on CPU (float64, one thread): the elementwise elimination overtakes LAPACK's loop over the items at these
# sizes; above L = 8 LAPACK wins at every batch size.
ELIMINATE_UP_TO_SIZE = 8
ELIMINATE_FROM_BATCH = 512


def solve_linear(A: Tensor, b: Tensor, *, pivoting: bool = False) -> Tensor:
    """``A⁻¹ b`` for ``A`` of shape ``(L, L, B)`` and ``b`` of shape ``(L, R, B)``, differentiable any number of times.

    Large batches of tiny systems are eliminated elementwise over the batch, without pivoting, which is stable for the
    matrices of this package (their symmetric part is positive definite); a pivot that is zero or not positive gives a
    zero component instead of an infinite one. All others go to LAPACK, with partial pivoting, which ``pivoting`` asks
    for at every size.
    """
    L, B = A.shape[0], A.shape[-1]
    if not pivoting and L <= ELIMINATE_UP_TO_SIZE and B >= ELIMINATE_FROM_BATCH:
        return _eliminate(A, b)
    return torch.linalg.solve_ex(A.movedim(-1, 0), b.movedim(-1, 0)).result.movedim(0, -1)


def _eliminate(A: Tensor, b: Tensor) -> Tensor:
    """Gauss-Jordan elimination: after step k, column k is the k-th unit vector and is dropped."""
    T = torch.cat((A, b), 1)
    unit = torch.eye(A.shape[0], dtype=A.dtype, device=A.device).unsqueeze(-1)
    for k in range(A.shape[0]):
        row = T[k, 1:] / T[k, 0]
        T = torch.addcmul(T[:, 1:], (T[:, 0] - unit[k]).unsqueeze(1), row.unsqueeze(0), value=-1)
    return T


def solve_pieces(
    M: Tensor, free: Tensor, tight: Tensor | None, rhs: Tensor, total: Tensor | float | None, *, pivoting: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Solves ``M_FF x_F + ν 1 = rhs_F``, ``1ᵀ x_F = total``, with ``x = 0`` off ``F``.

    Args:
        M: ``(L, L, B)``.
        free: ``(L, B)`` bool, the coordinates ``F``.
        tight: ``(B,)`` bool, where ``ν`` and the second equation exist; ``None`` for nowhere.
        rhs: ``(L, B)``.
        total: ``(B,)`` or a number; ignored where nothing is tight.
        pivoting: As in `solve_linear`.

    Returns:
        ``x`` of shape ``(L, B)`` and ``ν`` of shape ``(B,)``, or ``None`` for a problem without a sum.
    """
    eye = torch.eye(M.shape[0], dtype=M.dtype, device=M.device).unsqueeze(-1)
    A = torch.where(free.unsqueeze(1) & free.unsqueeze(0), M, eye)
    rhs = torch.where(free, rhs, 0.0)
    if tight is None:
        return solve_linear(A, rhs.unsqueeze(1), pivoting=pivoting).squeeze(1), None
    X = solve_linear(A, torch.stack((rhs, free.to(M.dtype)), 1), pivoting=pivoting)
    x, per_price = X[:, 0], X[:, 1]
    sum_per_price = per_price.sum(0)
    priced = tight & (sum_per_price != 0)  # without a free coordinate there is nothing to price
    price = torch.where(priced, (x.sum(0) - total) / torch.where(priced, sum_per_price, 1.0), 0.0)
    return x - price * per_price, price
