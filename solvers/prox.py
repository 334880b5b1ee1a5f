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

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from solvers.standard_form import StandardForm


class Pieces(NamedTuple):
    """The linear piece on which each coordinate lies.

    Attributes:
        free: ``(L, B)`` bool, strictly inside a linear piece: not at a bound, not at the kink of ``|·|``.
        held: ``(L, B)``, the value of the coordinates that are not free, 0 elsewhere.
        slope: ``(L, B)``, ``λ_i sign(w_i)`` of the free coordinates, 0 elsewhere; ``None`` without an L1 term.
        tight: ``(B,)`` bool, whether the sum constrains; ``None`` without a sum.
        at_lower: ``(L, B)`` bool, held at the lower bound; ``None`` where there is none.
        at_upper: ``(L, B)`` bool, held at the upper bound and not also at the lower; ``None`` where there is none.
    """

    free: Tensor
    held: Tensor
    slope: Tensor | None
    tight: Tensor | None
    at_lower: Tensor | None
    at_upper: Tensor | None

    def select(self, items: Tensor) -> Pieces:
        """The pieces of some items of the batch."""
        return Pieces(*(None if field is None else field.index_select(-1, items) for field in self))


def pieces(problem: StandardForm, x: Tensor, step: Tensor | None = None, slack: Tensor | float = 0.0) -> Pieces:
    """The linear pieces on which ``prox(x)`` lies.

    Args:
        problem: The problem; only its set and ``l1`` are used.
        x: ``(L, B)``.
        step: The steps ``γ``, positive, ``(L, B)``, or ``(B,)`` where all coordinates take the same; 1 if omitted.
        slack: Width of a tie, ≥ 0: a coordinate so near to a threshold counts as held, and a budget as tight.
    """
    l1 = problem.l1 if problem.l1 is None or step is None else problem.l1 * step
    below, above, tight = _comparisons(problem, x, step, l1, slack)
    at_lower = at_upper = at_kink = slope = None
    held = torch.zeros_like(x)
    if problem.lower is not None:
        low = problem.lower
        at_lower = below(low if l1 is None else low + torch.where(low >= 0, l1, -l1))
        held = torch.where(at_lower, low, 0.0)
    if problem.upper is not None:
        high = problem.upper
        at_upper = above(high if l1 is None else high + torch.where(high <= 0, -l1, l1))
        at_upper = at_upper if at_lower is None else at_upper & ~at_lower
        held = torch.where(at_upper, high, held)
    if l1 is not None:
        below_plus = below(l1)
        at_kink = below_plus & above(-l1) & (l1 > 0)
    free = _none_of(at_lower, at_upper, at_kink, like=held)
    if problem.l1 is not None and l1 is not None:
        slope = torch.where(free, torch.where(below_plus, -problem.l1, problem.l1), 0.0)
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
    z = torch.where(on.free, x if on.slope is None else x - gamma * on.slope, on.held)
    if problem.total is not None and on.tight is not None:
        per_price = gamma.sum(0)
        priced = on.tight & (per_price > 0)
        price = (z.sum(0) - problem.total) / torch.where(priced, per_price, 1.0)
        z = z - gamma * torch.where(priced, price, 0.0)
    return clamp(problem, z)  # rounding may leave a free coordinate an ulp outside


def _none_of(*conditions: Tensor | None, like: Tensor) -> Tensor:
    present = [condition for condition in conditions if condition is not None]
    if not present:
        return torch.ones_like(like, dtype=torch.bool)
    return ~functools.reduce(torch.logical_or, present)


def leaving_prices(problem: StandardForm, w: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """The prices of the sum below which each held coordinate rises and above which it falls, each ``(L, B)``.

    Args:
        problem: The problem.
        w: ``(L, B)``, where ``Mw + q`` is taken.
        held: ``(L, B)``, the values at which the coordinates are held. What cannot rise has −inf, what cannot fall inf.
    """
    lower, upper, l1 = problem.bounds_and_l1()
    force = -problem.operator(w)
    rises = torch.where(held < upper, force - torch.where(held >= 0, l1, -l1), -torch.inf)
    falls = torch.where(held > lower, force - torch.where(held > 0, l1, -l1), torch.inf)
    return rises, falls


def _comparisons(
    problem: StandardForm, x: Tensor, step: Tensor | None, l1: Tensor | None, slack: Tensor | float
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor | None]:
    """``below(θ)``: is ``z ≤ θ``; ``above(θ)``: is ``z ≥ θ``; and whether the sum is tight, for ``z = x − γν``."""
    total = problem.total
    if total is None:
        return (lambda theta: x <= theta + slack, lambda theta: x >= theta - slack, None)

    weighted = step is not None and step.ndim == 2

    def excess(theta: Tensor) -> Tensor:
        """``φ`` at the price that brings each coordinate to its ``θ``; by ``γν`` where all have the same ``γ``."""
        with torch.no_grad():  # only compared with 0
            price = (x - theta) / step if weighted else x - theta
            z = x.unsqueeze(1) - (step.unsqueeze(1) * price if weighted else price)
            return shrink(problem, z, l1).sum(0) - total

    if problem.equality:
        return (
            lambda theta: excess(theta) >= -slack,
            lambda theta: excess(theta) <= slack,
            torch.ones_like(x[0], dtype=torch.bool),
        )
    tight = shrink(problem, x, l1).sum(0) - total >= -slack
    return (
        lambda theta: torch.where(tight, excess(theta) >= -slack, x <= theta + slack),
        lambda theta: torch.where(tight, excess(theta) <= slack, x >= theta - slack),
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
    if lower is None and upper is None:
        return z
    if z.ndim == 3:
        lower, upper = (bound if bound is None else bound.unsqueeze(1) for bound in (lower, upper))
    return z.clamp(lower, upper)
