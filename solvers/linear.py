r"""Batches of small dense linear systems, coordinates first, and the optimality system of a set of linear pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from solvers.sums import ordered_sum

# Measured on CPU (float64, one thread): the elementwise elimination overtakes LAPACK's loop over the items at these
# sizes; above L = 8 LAPACK wins at every batch size.
ELIMINATE_UP_TO_SIZE = 8
ELIMINATE_FROM_BATCH = 512


def solve_linear(A: Tensor, b: Tensor, *, eliminate: bool | None = None) -> Tensor:
    """``A⁻¹ b`` for ``A`` of shape ``(L, L, B)`` and ``b`` of shape ``(L, R, B)``, differentiable any number of times.

    Large batches of tiny systems are eliminated elementwise over the batch, without pivoting, which is stable for the
    matrices of this package (their symmetric part is positive definite). All others go to LAPACK, with partial
    pivoting. ``eliminate`` chooses in place of the shape, for a part of a batch that is to be solved as the whole was.
    """
    if prefers_elimination(A) if eliminate is None else eliminate:
        return _eliminate(A, b)
    return torch.linalg.solve_ex(A.movedim(-1, 0), b.movedim(-1, 0)).result.movedim(0, -1).contiguous()


def prefers_elimination(A: Tensor) -> bool:
    """Whether a batch ``(L, L, B)`` of systems is better eliminated than left to LAPACK."""
    return A.shape[0] <= ELIMINATE_UP_TO_SIZE and A.shape[-1] >= ELIMINATE_FROM_BATCH


def _eliminate(A: Tensor, b: Tensor) -> Tensor:
    """Gauss-Jordan elimination of ``[A | b]``: step k turns column k into the k-th unit vector, which is dropped."""
    T = torch.cat((A, b), 1)
    for k, unit in enumerate(_identity(A.shape[0], A).unsqueeze(-1).unbind(0)):
        column, rest = T[:, :1], T[:, 1:]
        T = torch.addcmul(rest, column - unit, rest[k] / column[k], value=-1)
    return T


def _identity(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device).unsqueeze(-1)


def solve_pieces(
    M: Tensor,
    free: Tensor,
    rhs: Tensor,
    total: Tensor | float | None,
    tight: Tensor | None = None,
    *,
    shift: float = 0.0,
    eliminate: bool | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Solves ``M_FF x_F + ν 1 = rhs_F``, ``1ᵀ x_F = total``, with ``x = 0`` off ``F``.

    Args:
        M: ``(L, L, B)``.
        free: ``(L, B)`` bool, the coordinates ``F``.
        rhs: ``(L, B)``.
        total: ``(B,)`` or a number, or ``None`` for a problem without a sum: without ``ν`` and the second equation.
        tight: ``(B,)`` bool, where ``ν`` and the second equation exist; everywhere if omitted.
        shift: ``σ ≥ 0``: with a sum, solves with ``M + σ11ᵀ`` and ``rhs + σ total``, which has the same solution, more
            accurately where ``M_FF`` is nearly singular along ``1`` and less so where it is badly scaled.
        eliminate: As in `solve_linear`.

    Returns:
        ``x`` of shape ``(L, B)`` and ``ν`` of shape ``(B,)``, or ``None`` for a problem without a sum.
    """
    both, inside, eye = free.unsqueeze(1) & free.unsqueeze(0), free.to(M.dtype), _identity(M.shape[0], M)
    if total is None:
        A = torch.where(both, M, eye)
        return solve_linear(A, (rhs * inside).unsqueeze(1), eliminate=eliminate).squeeze(1), None
    if shift:
        sigma = shift if tight is None else shift * tight
        M, rhs = M + sigma, rhs + sigma * total
    A = torch.where(both, M, eye)
    x, per_price = solve_linear(A, torch.stack((rhs * inside, inside), 1), eliminate=eliminate).unbind(1)
    sum_per_price = ordered_sum(per_price)
    sum_per_price = sum_per_price + (sum_per_price == 0)  # without a free coordinate x = 0 at any price
    price = (ordered_sum(x) - total) / sum_per_price
    price = price if tight is None else price * tight
    x = x - price * per_price
    rest = (ordered_sum(x) - total) / sum_per_price  # what rounding left of the sum, which is large where rhs is
    rest = rest if tight is None else rest * tight
    return x - rest * per_price, price + rest
