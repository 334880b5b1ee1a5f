r"""Derivatives of a solution through its optimality conditions, whichever solver found it.

Let ``F`` be the coordinates strictly inside a linear piece, and let the sum be tight if it is an equality or an active
budget. On these pieces the solution satisfies the linear system::

    M_FF w_F + M_FN w_N + q_F + λ_F sign(w_F) + ν 1 = 0,   1ᵀ w = s      (the second only where the sum is tight),

so for a cotangent ``g`` of ``w`` solve ``M_FFᵀ y_F + ν 1 = g_F``, ``1ᵀ y_F = 0``, with ``y = 0`` off ``F``; then::

    ∂ℓ/∂q = −y,   ∂ℓ/∂M = −y wᵀ,   ∂ℓ/∂λ_i = −y_i sign(w_i),   ∂ℓ/∂s = ν,   ∂ℓ/∂bound_i = g_i − (Mᵀy)_i − ν

for a coordinate i held at that bound (Amos and Kolter 2017, and Agrawal et al. 2019, for the general case).

Where a multiplier and its slack are both zero the solution map has a kink. There a coordinate on a threshold counts as
held and a budget as active, which is the derivative of one of the adjacent pieces (as in sparsemax). Where no
coordinate is free and the sum is tight, the one is released that would rise first if the sum could grow, or, if none
can rise, the one that would fall first if it shrank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solvers.linear import solve_pieces
from solvers.prox import Pieces, leaving_prices
from solvers.standard_form import StandardForm
from solvers.sums import ordered_sum


def attach_implicit_gradient(problem: StandardForm, w: Tensor, on: Pieces) -> Tensor:
    """``w`` itself, now differentiable in every tensor of ``problem``, any number of times.

    Args:
        problem: The problem, its tensors connected to whatever requires gradients.
        w: ``(L, B)``, its solution; an item with NaN passes no gradient on.
        on: The pieces on which it lies, ties counted as held (see `natural_map`).
    """
    if problem.total is not None and not problem.nonnegative:
        with torch.no_grad():
            on = _with_one_free(problem, w, on)
    data = (problem.M, problem.q, problem.lower, problem.upper, problem.l1, problem.total)
    if torch.compiler.is_compiling() and not any(tensor is not None and tensor.requires_grad for tensor in data):
        return w  # where nothing asks for gradients, torch.compile mistakes the first argument for a context
    return _Implicit.apply(w, *data, on.free, on.tight, on.at_lower, on.at_upper)


class _Implicit(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Tensor:  # w, M, q, lower, upper, l1, total, free, tight, at_lower, at_upper
        return inputs[0].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, M, *_, total, free, tight, at_lower, at_upper = inputs
        ctx.has_total = total is not None
        ctx.save_for_backward(output, M, free, tight, at_lower, at_upper)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = cotangents
        w, M, free, tight, at_lower, at_upper = ctx.saved_tensors
        w = w.nan_to_num()
        y, price = solve_pieces(M.transpose(0, 1), free, g, 0.0 if ctx.has_total else None, tight)
        dq = -y
        dM = dq.unsqueeze(1) * w if ctx.needs_input_grad[1] else None
        d_lower = d_upper = None
        if any(ctx.needs_input_grad[3:5]):
            moved = g - ordered_sum(M * y.unsqueeze(1))
            if price is not None:
                moved = moved - price
            d_lower = torch.where(at_lower, moved, 0.0) if ctx.needs_input_grad[3] else None
            d_upper = torch.where(at_upper, moved, 0.0) if ctx.needs_input_grad[4] else None
        d_l1 = dq * w.sign() if ctx.needs_input_grad[5] else None
        return None, dM, dq, d_lower, d_upper, d_l1, price, None, None, None, None


def _with_one_free(problem: StandardForm, w: Tensor, on: Pieces) -> Pieces:
    """The pieces with at least one coordinate free wherever the sum is tight."""
    stuck = ~on.free.any(0) & (w == w).all(0)  # not those with NaN
    if on.tight is not None:
        stuck = stuck & on.tight
    rises, falls = leaving_prices(problem, w, on.held)
    can_rise = rises.isfinite().any(0)
    first = torch.where(can_rise, rises.argmax(0), falls.argmin(0))
    free = on.free | (stuck & (torch.arange(problem.size, device=w.device).unsqueeze(-1) == first))
    at_lower = None if on.at_lower is None else on.at_lower & ~free
    at_upper = None if on.at_upper is None else on.at_upper & ~free
    return on._replace(free=free, at_lower=at_lower, at_upper=at_upper)
