r"""Batches of small dense linear systems, coordinates first, and the optimality system of a set of linear pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from solvers.sums import ordered_sum

ELIMINATE_UP_TO_SIZE = 8
"""Up to this size systems are eliminated elementwise over the batch, which overtakes LAPACK's loop over the items from
some hundred items on (CPU, one thread) and costs little more for one. The number of items does not decide: the digits
of an item would depend on its company."""


def solve_linear(A: Tensor, b: Tensor, *, eliminate: bool | None = None) -> Tensor:
    """``A⁻¹ b`` for ``A`` of shape ``(L, L, B)`` and R right-hand sides ``b``, ``(R, L, B)``; in the shape of ``b``.

    Small systems are eliminated elementwise over the batch, without pivoting, which is stable for the matrices of this
    package (their symmetric part is positive definite). All others go to LAPACK, with partial pivoting; so does
    everything that is to be differentiated, any number of times. ``eliminate`` chooses in place of the size.
    """
    differentiated = torch.is_grad_enabled() and (A.requires_grad or b.requires_grad)
    if (prefers_elimination(A) if eliminate is None else eliminate) and not differentiated:
        return gauss_jordan(A, b)[0]
    A, b = aligned(A.permute(2, 0, 1)), b.permute(2, 1, 0)
    L = b.shape[1]
    b = torch.nn.functional.pad(b, (0, 0, 0, A.shape[1] - L))
    return torch.linalg.solve_ex(A, b).result[:, :L].permute(2, 1, 0).contiguous()


def aligned(A: Tensor, diagonal: float = 1.0) -> Tensor:
    """Matrices ``(B, L, L)`` enlarged to a multiple of four by rows and columns of ``diagonal`` times the identity.

    LAPACK's digits depend on where in memory a matrix begins, so an item's would on its place in the batch.
    """
    L = A.shape[-1]
    more = -L % 4
    A = torch.nn.functional.pad(A, (0, more, 0, more))
    if more and diagonal:
        A.diagonal(dim1=-2, dim2=-1)[..., L:] += diagonal
    return A


def prefers_elimination(A: Tensor) -> bool:
    """Whether systems ``(L, L, B)`` are better eliminated than left to LAPACK."""
    return A.shape[0] <= ELIMINATE_UP_TO_SIZE


def gauss_jordan(A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``A⁻¹ b`` and the pivots ``(L, B)``: Gauss-Jordan elimination of ``[A | b]`` without pivoting, elementwise.

    Columns come first, so that what is left of the matrix stays contiguous.
    """
    T = torch.cat((A.transpose(0, 1).contiguous(), b))  # cat is slow with a transposed part
    L = A.shape[0]
    pivots = []
    for k, column in enumerate(T.unbind()[:L]):
        rest = T[k + 1 :]
        pivot_row = rest.select(1, k)
        pivots.append(column[k])
        row = pivot_row / column[k]
        rest.addcmul_(row.unsqueeze(1), column, value=-1)
        pivot_row.copy_(row)
    return T[L:], torch.stack(pivots)


def solve_pieces(
    M: Tensor,
    free: Tensor,
    rhs: Tensor,
    total: Tensor | float | None,
    tight: Tensor | None = None,
    *,
    shift: float = 0.0,
    easy: bool = False,
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
        easy: Whether every ``F`` is known to have a member and ``rhs`` not to be large, so that the price need not be
            taken in two steps for the sum to be exact.
        eliminate: As in `solve_linear`.

    Returns:
        ``x`` of shape ``(L, B)`` and ``ν`` of shape ``(B,)``, or ``None`` for a problem without a sum.
    """
    inside = free.to(M.dtype)
    if total is None:
        return solve_linear(_restricted(M, inside), (rhs * inside).unsqueeze(0), eliminate=eliminate).squeeze(0), None
    if shift:
        sigma = shift if tight is None else shift * tight
        M, rhs = M + sigma, rhs + sigma * total
    b = torch.stack((rhs * inside, inside))
    x, per_price = solve_linear(_restricted(M, inside), b, eliminate=eliminate).unbind()
    sum_per_price = ordered_sum(per_price)
    if not easy:
        sum_per_price = sum_per_price + (sum_per_price == 0)  # without a free coordinate x = 0 at any price

    def without_excess(x: Tensor) -> tuple[Tensor, Tensor]:
        price = (ordered_sum(x) - total) / sum_per_price
        price = price if tight is None else price * tight
        return torch.addcmul(x, per_price, price, value=-1), price

    x, price = without_excess(x)
    if not easy:  # take what rounding left of the sum
        x, more = without_excess(x)
        price = price + more
    return x, price


def _restricted(M: Tensor, inside: Tensor) -> Tensor:
    """``M`` with the rows and columns where ``inside`` is 0, not 1, made those of the identity."""
    A = M * (inside.unsqueeze(1) * inside)
    A.diagonal(dim1=0, dim2=1).add_((1 - inside).T)
    return A
