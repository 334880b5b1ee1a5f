r"""Derivatives of a solution through its optimality conditions, whichever solver found it.

Let ``F`` be the coordinates strictly inside a linear piece, and let the sum be tight if it is an equality or an active
budget. On these pieces the solution satisfies the linear system::

    M_FF w_F + M_FN w_N + q_F + λ_F sign(w_F) + ν 1 = 0,   1ᵀ w = s      (the second only where the sum is tight),

so for a cotangent ``g`` of ``w`` solve ``M_FFᵀ y_F + ν 1 = g_F``, ``1ᵀ y_F = 0``, with ``y = 0`` off ``F``; then::

    ∂ℓ/∂q = −y,   ∂ℓ/∂M = −y wᵀ,   ∂ℓ/∂λ_i = −y_i sign(w_i),   ∂ℓ/∂s = ν,   ∂ℓ/∂bound_i = g_i − (Mᵀy)_i − ν

for a coordinate i held at that bound (Amos and Kolter 2017, and Agrawal et al. 2019, for the general case). What is
done where the system is singular says `solvers.kkt`.

Where a multiplier and its slack are both zero the solution map has a kink. There a coordinate on a threshold counts as
held and a budget as active, which is the derivative of one of the adjacent pieces (as in sparsemax). Where no
coordinate is free and the sum is tight, the one is released that would rise first if the sum could grow, or, if none
can rise, the one that would fall first if it shrank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solvers.checks import report_gradient
from solvers.kkt import solve_kkt
from solvers.opaque import Active, inverse
from solvers.standard_form import StandardForm, transform_depth
from solvers.sums import ordered_sum


def attach_implicit_gradient(
    problem: StandardForm, w: Tensor, active: Active, batch_shape: list[int], on_failure: str
) -> Tensor:
    """``w`` itself, now differentiable in every tensor of ``problem``, backward and forward.

    In eager mode any number of times, and every backward pass measures the residual of its own linear system; under
    ``torch.compile`` and the transforms of ``torch.func`` as often as they are nested (three times under
    ``torch.compile``), and the residual is measured when the weights are computed.

    Args:
        problem: The problem, its tensors connected to whatever requires gradients.
        w: ``(L, B)``, its solution; an item with NaN passes no gradient on.
        active: The pieces on which it lies.
        batch_shape: The user's batch dimensions, for messages.
        on_failure: What to do about a backward system without a solution: ``"raise"``, ``"warn"`` or ``"ignore"``.
    """
    orders = transform_depth()
    if orders:
        return _refined(problem, w, active, orders, inverse(problem, active, batch_shape, on_failure))
    data = (problem.M, problem.q, problem.lower, problem.upper, problem.l1, problem.total)
    return _Implicit.apply(w, *data, active, (batch_shape, on_failure))  # pyright: ignore[reportReturnType]


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, *rest: Any) -> Tensor:  # M, q, lower, upper, l1, total, active, reporting
        *data, ctx.active, ctx.reporting = rest
        out = w.clone()
        ctx.save_for_backward(out, data[0])
        ctx.save_for_forward(out, data[0])
        return out

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        w, M = ctx.saved_tensors
        active: Active = ctx.active
        g = torch.where(active.passes, cotangents[0], 0.0)
        w = w.nan_to_num()
        y, multiplier = _Solve.apply(M.transpose(0, 1), g, torch.zeros_like(g[0]), active, ctx.reporting)
        dq = -y
        dM = dq.unsqueeze(1) * w if ctx.needs_input_grad[1] else None
        d_lower = d_upper = None
        if any(ctx.needs_input_grad[3:5]):
            moved = g - ordered_sum(M * y.unsqueeze(1)) - multiplier
            d_lower = torch.where(active.at_lower, moved, 0.0) if ctx.needs_input_grad[3] else None
            d_upper = torch.where(active.at_upper, moved, 0.0) if ctx.needs_input_grad[4] else None
        d_l1 = dq * w.sign() if ctx.needs_input_grad[5] else None
        d_total = multiplier if ctx.needs_input_grad[6] else None
        return None, dM, dq, d_lower, d_upper, d_l1, d_total, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        w, M = ctx.saved_tensors
        active: Active = ctx.active
        _, dM, dq, d_lower, d_upper, d_l1, d_total, *_ = tangents
        w = w.nan_to_num()
        zero = torch.zeros_like(w)
        held = zero if d_lower is None else torch.where(active.at_lower, d_lower, 0.0)
        held = held if d_upper is None else torch.where(active.at_upper, d_upper, held)
        rows = -ordered_sum(M * held, 1)
        rows = rows if dM is None else rows - ordered_sum(dM * w, 1)
        rows = rows if dq is None else rows - dq
        rows = rows if d_l1 is None else rows - d_l1 * w.sign()
        missing = (zero[0] if d_total is None else d_total) - ordered_sum(held)
        x, _ = _Solve.apply(M, rows, missing, active, ctx.reporting)
        return torch.where(active.passes, held + x, 0.0)


class _Solve(torch.autograd.Function):
    """The solution of `solve_kkt` and its multiplier, in the type of ``M``; linear in the right-hand side."""

    @staticmethod
    def forward(ctx: Any, M: Tensor, r: Tensor, s: Tensor, active: Active, reporting: Any) -> tuple[Tensor, Tensor]:
        found = solve_kkt(M, active.stiffness, active.free, active.tight, r, s)
        report_gradient(torch.where(active.passes, found.residual, 0.0), *reporting)
        x, multiplier = found.x.to(M.dtype), found.multiplier.to(M.dtype)
        ctx.active, ctx.reporting = active, reporting
        ctx.save_for_backward(M, x)
        ctx.save_for_forward(M, x)
        return x, multiplier

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        M, x = ctx.saved_tensors
        u, multiplier = _Solve.apply(M.transpose(0, 1), *cotangents, ctx.active, ctx.reporting)
        return -u.unsqueeze(1) * x, u, multiplier, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
        M, x = ctx.saved_tensors
        dM, dr, ds, *_ = tangents
        rows = torch.zeros_like(x) if dr is None else dr
        rows = rows if dM is None else rows - ordered_sum(dM * x, 1)
        return _Solve.apply(M, rows, torch.zeros_like(x[0]) if ds is None else ds, ctx.active, ctx.reporting)


def _refined(problem: StandardForm, w: Tensor, active: Active, orders: int, N: Tensor) -> Tensor:
    """``w``, connected to the data by Newton steps ``z ← z − N R(z)`` with a constant inverse ``N``, ``z = (w, ν)``.

    ``R`` is affine in ``z``, so ``k`` steps from constant weights have the derivatives of the solution up to order
    ``k``: the error of each step is that of the one before times ``1 − N ∂R/∂z``, which vanishes where ``N`` was taken.
    Made of plain operations, so that every transform goes through. Values stay those of ``w``.
    """
    fixed = w.nan_to_num().detach()
    z, multiplier = fixed, torch.zeros_like(fixed[0])
    for bound, at in ((problem.lower, active.at_lower), (problem.upper, active.at_upper)):
        if bound is not None:
            z = z + torch.where(at, _variation(bound), 0.0)
    for _ in range(orders):
        rows = ordered_sum(problem.M * z, 1) + problem.q + multiplier
        rows = rows if problem.l1 is None else rows + problem.l1 * fixed.sign()
        R = [_variation(rows)]
        if problem.total is not None:
            R.append(_variation(ordered_sum(z) - problem.total).unsqueeze(0))
        else:
            R.append(torch.zeros_like(rows[:1]))
        step = (N * torch.cat(R)).sum(1)
        z, multiplier = z - step[:-1], multiplier - step[-1]
    return w.detach() + torch.where(active.passes, _variation(z), 0.0)


def _variation(x: Tensor) -> Tensor:
    """0, with the derivatives of ``x``."""
    return torch.where(x.isfinite(), x - x.detach(), 0.0)
