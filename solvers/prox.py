r"""The proximal map of ``γλ|·|`` on the feasible set, and the linear pieces that it is made of.

For a point ``x`` and steps ``γ_i > 0``,

    prox(x) = argmin_{v ∈ C} Σ_i (v_i − x_i)² / (2γ_i) + λ_i |v_i|
            = S(x − γν),   S_i(z) = clamp(soft(z_i, γ_iλ_i), lower_i, upper_i),

where the price ``ν`` of the sum is the root of the decreasing, piecewise linear ``φ(ν) = Σ_i S_i(x_i − γ_iν) − total``
(0 without a sum, or where a budget is slack). Coordinate i changes its linear piece where ``z_i`` passes a threshold
``θ``, and ``z_i ≤ θ`` exactly if ``φ((x_i − θ)/γ_i) ≥ 0``. So the pieces follow from evaluating ``φ`` at each
coordinate's own thresholds; nothing is sorted and no root is searched. (Our derivation; for the simplex it is the
threshold rule of Held, Wolfe and Crowder, 1974.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from solvers.standard_form import StandardForm
from solvers.sums import ordered_sum


class Pieces(NamedTuple):
    """The linear piece on which each coordinate lies.

    Attributes:
        free: ``(L, B)`` bool, strictly inside a linear piece: not at a bound, not at the kink of ``|·|``.
        held: ``(L, B)``, the value of the coordinates that are not free, 0 elsewhere; ``None`` where all are held at 0.
        slope: ``(L, B)``, ``λ_i sign(w_i)`` of the free coordinates, 0 elsewhere; ``None`` without an L1 term.
        tight: ``(B,)`` bool, whether a budget constrains; ``None`` without a sum, and for an equality, which always
            does.
        at_lower: ``(L, B)`` bool, held at the lower bound; ``None`` where there is none.
        at_upper: ``(L, B)`` bool, held at the upper bound and not at the lower as well; ``None`` where there is none.
    """

    free: Tensor
    held: Tensor | None
    slope: Tensor | None
    tight: Tensor | None
    at_lower: Tensor | None
    at_upper: Tensor | None


def pieces(problem: StandardForm, x: Tensor, step: Tensor | None = None, slack: Tensor | None = None) -> Pieces:
    """The linear pieces on which ``prox(x)`` lies.

    Args:
        problem: The problem; only its set and ``l1`` are used.
        x: ``(L, B)``.
        step: The steps ``γ``, positive, ``(L, B)``, or ``(B,)`` where all coordinates take the same; 1 if omitted.
        slack: ``(B,)``, width of a tie: a coordinate so near to a threshold counts as held, and a budget as tight.
    """
    l1 = problem.l1 if problem.l1 is None or step is None else problem.l1 * step
    below, above, tight = _comparisons(problem, x, step, l1, slack)
    at_lower = at_upper = held = slope = None
    if problem.nonnegative:
        at_lower = below(torch.zeros_like(x))
        free = ~at_lower
    else:
        free = torch.ones_like(x, dtype=torch.bool)
    if problem.lower is not None:
        low = problem.lower
        at_lower = below(low if l1 is None else low + torch.where(low >= 0, l1, -l1))
        free = ~at_lower
        held = low.masked_fill(free, 0.0)
    if problem.upper is not None:
        high = problem.upper
        at_upper = above(high if l1 is None else high + torch.where(high <= 0, -l1, l1)) & free
        free = free & ~at_upper
        held = torch.where(at_upper, high, 0.0 if held is None else held)
    if problem.l1 is not None and l1 is not None:
        below_plus = below(l1)
        free = free & ~(below_plus & above(-l1) & (l1 > 0))
        slope = torch.where(below_plus, -problem.l1, problem.l1) * free
    return Pieces(free, held, slope, tight, at_lower, at_upper)


def prox(problem: StandardForm, x: Tensor, step: Tensor | None = None) -> Tensor:
    """The proximal map; differentiable in ``x``, ``step``, ``l1``, the bounds and the total.

    Args:
        problem: The problem; only its set and ``l1`` are used.
        x: ``(L, B)``.
        step: The steps ``γ``, positive, ``(L, B)``, or ``(B,)`` where all coordinates take the same; 1 if omitted.
    """
    return prox_on(problem, pieces(problem, x, step), x, step)


def prox_on(problem: StandardForm, on: Pieces, x: Tensor, step: Tensor | None = None) -> Tensor:
    """``prox(x)`` where its pieces are known already."""
    gamma = on.free.to(x.dtype) if step is None else step * on.free  # the steps of the free coordinates
    z = x if on.slope is None else x - gamma * on.slope
    z = z * on.free if on.held is None else torch.where(on.free, z, on.held)
    if problem.total is not None:
        per_price = ordered_sum(gamma)
        per_price = per_price + (per_price == 0)  # without a free coordinate the price moves nothing
        price = (ordered_sum(z) - problem.total) / per_price
        z = z - gamma * (price if on.tight is None else price * on.tight)
    return clamp(problem, z)  # rounding may leave a free coordinate an ulp outside


def leaving_prices(problem: StandardForm, w: Tensor, held: Tensor | None) -> tuple[Tensor, Tensor]:
    """The prices of the sum below which each held coordinate rises and above which it falls, each ``(L, B)``.

    Args:
        problem: The problem.
        w: ``(L, B)``, where ``Mw + q`` is taken.
        held: ``(L, B)``, the values at which the coordinates are held; 0 if ``None``.

    Returns:
        Both prices; what cannot rise has −inf, what cannot fall inf.
    """
    held = torch.zeros_like(w) if held is None else held
    lower, upper, l1 = problem.bounds_and_l1()
    force = -problem.operator(w)
    rises = torch.where(held < upper, force - torch.where(held >= 0, l1, -l1), -torch.inf)
    falls = torch.where(held > lower, force - torch.where(held > 0, l1, -l1), torch.inf)
    return rises, falls


def _comparisons(
    problem: StandardForm, x: Tensor, step: Tensor | None, l1: Tensor | None, slack: Tensor | None
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor | None]:
    """``below(θ)``: is ``z ≤ θ``; ``above(θ)``: is ``z ≥ θ``; and whether a budget is tight, for ``z = x − γν``."""

    def at_most(value: Tensor, bound: Tensor) -> Tensor:
        return value <= (bound if slack is None else bound + slack)

    def at_least(value: Tensor, bound: Tensor) -> Tensor:
        return value >= (bound if slack is None else bound - slack)

    total = problem.total
    if total is None:
        return (lambda theta: at_most(x, theta)), (lambda theta: at_least(x, theta)), None
    weights = step if step is not None and step.ndim == 2 else None

    with torch.no_grad():  # only compared
        rates = 1.0 if weights is None else weights.unsqueeze(1) / weights
        apart = x.unsqueeze(1) - (x if weights is None else rates * x)

    def sum_at(theta: Tensor) -> Tensor:
        """``Σ S(x − γν)`` at the price that brings each coordinate to its ``θ``."""
        with torch.no_grad():
            return ordered_sum(shrink(problem, apart + rates * theta, l1))

    if problem.equality:
        return (lambda theta: at_least(sum_at(theta), total)), (lambda theta: at_most(sum_at(theta), total)), None
    tight = at_least(ordered_sum(shrink(problem, x, l1)), total)
    return (
        lambda theta: torch.where(tight, at_least(sum_at(theta), total), at_most(x, theta)),
        lambda theta: torch.where(tight, at_most(sum_at(theta), total), at_least(x, theta)),
        tight,
    )


def shrink(problem: StandardForm, z: Tensor, threshold: Tensor | None) -> Tensor:
    """``S(z) = clamp(soft(z, threshold), lower, upper)``, with ``z`` of shape ``(L, B)`` or ``(L, K, B)``."""
    if threshold is not None:
        threshold = threshold if z.ndim == 2 else threshold.unsqueeze(1)
        z = z - z.clamp(-threshold, threshold)
    return clamp(problem, z)


def clamp(problem: StandardForm, z: Tensor) -> Tensor:
    """``z`` of shape ``(L, B)`` or ``(L, K, B)`` brought between the bounds."""
    lower, upper = problem.lower, problem.upper
    if problem.nonnegative:
        return z.clamp_min(0.0)
    if lower is None and upper is None:
        return z
    if z.ndim == 3:
        lower, upper = (bound if bound is None else bound.unsqueeze(1) for bound in (lower, upper))
    return z.clamp(lower, upper)
