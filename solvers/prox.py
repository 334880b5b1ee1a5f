r"""The proximal map of ``γλ|·|`` on the feasible set, and the linear pieces that it is made of.

For a point ``x`` and steps ``γ_i > 0``::

    prox(x) = argmin_{v ∈ C} Σ_i (v_i − x_i)² / (2γ_i) + λ_i |v_i|
            = S(x − γν),   S_i(z) = clamp(soft(z_i, γ_iλ_i), lower_i, upper_i),

where the price ``ν`` of the sum is the root of the decreasing, piecewise linear ``φ(ν) = Σ_i S_i(x_i − γ_iν) − total``
(0 without a sum, or where a budget is slack). Coordinate i changes its linear piece where ``z_i`` passes a threshold
``θ``, and ``z_i ≤ θ`` exactly if ``φ((x_i − θ)/γ_i) ≥ 0``. So the pieces follow from evaluating ``φ`` at each
coordinate's own thresholds; nothing is sorted and no root is searched. (Our derivation; for the simplex it is the
threshold rule of Held, Wolfe and Crowder, 1974.)
"""

from __future__ import annotations

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


def pieces(problem: StandardForm, x: Tensor, step: Tensor | None = None) -> Pieces:
    """The linear pieces on which ``prox(x)`` lies.

    Args:
        problem: The problem; only its set and ``l1`` are used.
        x: ``(L, B)``.
        step: The steps ``γ``, positive, ``(L, B)``, or ``(B,)`` where all coordinates take the same; 1 if omitted.
    """
    return Thresholds(problem, x, step).pieces()


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
    rate = inside = on.free.to(x.dtype)  # how fast z falls with the price, up to a factor per item
    if step is not None and step.ndim == 2:
        rate = step * inside
    z = x
    if on.slope is not None:
        z = z - (on.slope if step is None else step * on.slope)
    z = z * inside if on.held is None else torch.where(on.free, z, on.held)
    if problem.total is not None:
        per_price = ordered_sum(rate)
        if not (problem.nonnegative and problem.equality):
            per_price = per_price + (per_price == 0)  # without a free coordinate the price moves nothing
        price = (ordered_sum(z) - problem.total) / per_price
        z = torch.addcmul(z, rate, price if on.tight is None else price * on.tight, value=-1)
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


class Thresholds:
    """Where ``z = x − γν`` lies among the thresholds of its pieces.

    The sums at the thresholds are the dear part and are taken once; the pieces can then be read off as often as wanted.

    Args:
        problem: The problem; only its set and ``l1`` are used.
        x: ``(L, B)``.
        step: As in `pieces`.
    """

    def __init__(self, problem: StandardForm, x: Tensor, step: Tensor | None = None) -> None:
        self.problem, self.x = problem, x
        self.l1 = l1 = problem.l1 if problem.l1 is None or step is None else problem.l1 * step
        low, high = problem.lower, problem.upper
        self.theta: dict[str, Tensor | None] = {"lower": None} if problem.nonnegative else {}  # None: all are 0
        if low is not None:
            self.theta["lower"] = low if l1 is None else low + torch.where(low >= 0, l1, -l1)
        if high is not None:
            self.theta["upper"] = high if l1 is None else high + torch.where(high <= 0, -l1, l1)
        if l1 is not None:
            self.theta |= {"kink from above": l1, "kink from below": -l1}
        self.sums: dict[str, Tensor] = {}
        self.spent: Tensor | None = None
        if problem.total is not None:
            with torch.no_grad():  # only compared
                self._take_sums(step if step is not None and step.ndim == 2 else None)

    def _take_sums(self, step: Tensor | None) -> None:
        """``Σ S(x − γν)`` at the price that brings each coordinate to its threshold, and at the price 0 of a budget."""
        problem, x = self.problem, self.x
        rates = None if step is None else step.unsqueeze(1) / step
        apart = x.unsqueeze(1) - (x if rates is None else rates * x)
        for name, theta in self.theta.items():
            z = apart if theta is None else apart + (theta if rates is None else rates * theta)
            self.sums[name] = ordered_sum(shrink(problem, z, self.l1))
        if not problem.equality:
            self.spent = ordered_sum(shrink(problem, x, self.l1))

    def pieces(self, slack: Tensor | None = None) -> Pieces:
        """The linear pieces on which ``prox(x)`` lies.

        Args:
            slack: ``(B,)``, width of a tie: a coordinate so near to a threshold counts as held, and a budget as tight.
        """
        problem, l1 = self.problem, self.l1
        tight = None if self.spent is None else self.spent >= _moved(problem.required_total, slack, -1)
        at_lower = at_upper = held = slope = None
        free = self._inside("lower", slack, tight) if "lower" in self.theta else self.x == self.x  # not NaN
        if problem.lower is not None:
            at_lower = ~free
            held = problem.lower.masked_fill(free, 0.0)
        if problem.upper is not None:
            at_upper = free & ~self._inside("upper", slack, tight, side=-1)
            free = free & ~at_upper
            held = torch.where(at_upper, problem.upper, 0.0 if held is None else held)
        if problem.l1 is not None and l1 is not None:
            positive = self._inside("kink from above", slack, tight)
            negative = self._inside("kink from below", slack, tight, side=-1)
            free = free & (positive | negative | (l1 == 0))
            slope = torch.where(positive, problem.l1, -problem.l1) * free
        return Pieces(free, held, slope, tight, at_lower, at_upper)

    def _inside(self, name: str, slack: Tensor | None, tight: Tensor | None, side: int = 1) -> Tensor:
        """Whether ``z`` is above its threshold (side 1) or below it (side −1) by more than ``slack``; not if NaN."""
        total = self.problem.total
        shared = alone = self.x
        if total is not None:
            sums, limit = self.sums[name], _moved(total, slack, -side)
            shared = sums < limit if side > 0 else sums > limit
        if total is None or tight is not None:
            theta = self.theta[name]
            edge = _moved(torch.zeros_like(self.x[0]) if theta is None else theta, slack, side)
            alone = self.x > edge if side > 0 else self.x < edge
        if total is None:
            return alone
        return shared if tight is None else torch.where(tight, shared, alone)


def _moved(x: Tensor, slack: Tensor | None, side: int) -> Tensor:
    return x if slack is None else torch.add(x, slack, alpha=side)


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
