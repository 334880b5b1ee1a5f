r"""The natural map ``w ↦ prox_γ(w − γ(Mw + q))``: for every step ``γ > 0`` its fixed points are the solutions.

Weights and ``Mw + q`` have different units, so the steps, in units of weights per slope, are taken from the data::

    b = |q| + λ + |M||w|                       the size of a slope,
    a = min(max(b / d, |w|), reach, common)    the size of a weight, with the stiffness d, the reach of the set and
                                               what all weights have in common (see `sizes_of`),
    γ = a / b

With a sum all coordinates share their unit and sizes are those of the item; without one every coordinate has its own.
What the map says about given weights is all that a certificate and a gradient need to know of them: taken once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from solvers.prox import Pieces, Thresholds, prox_on
from solvers.standard_form import StandardForm
from solvers.sums import ordered_sum

TIE = 1e2
"""Width of a tie, in roundings of the size of a weight."""
RUNAWAY = 1e3
"""How much larger than the data explain a slope may be before the residual is measured by the data alone."""
LEAST_PULL = 1e-3
"""How little of ``|q| + λ`` may be taken for what pulls at a weight."""
SUSPICIOUS = 30
"""How much larger than that a slope may be before the weights have to be confirmed, see `solvers.unsolved`."""
FAR = 1e10
"""The reach of a set explains weights, unless it is so many times what ``|q| + λ`` asks for that it stands for none."""


class NaturalMap(NamedTuple):
    """What the natural map says about weights ``w``.

    Attributes:
        residual: ``(B,)``, the relative natural residual, see `natural_map`.
        tolerance: What it may be, a number.
        on: The linear pieces of the map, where a coordinate that ties with a threshold counts as held and a budget that
            is just spent as tight.
        stiffness: ``d``, ``(B,)`` with a sum, ``(L, B)`` without.
        excess: ``(B,)``, how many times larger than the data explain the slopes are; ``None`` where no item's are.
    """

    residual: Tensor
    tolerance: float
    on: Pieces
    stiffness: Tensor
    excess: Tensor | None


class Sizes(NamedTuple):
    """How large weights and slopes are, ``(B,)`` with a sum, ``(L, B)`` without.

    Attributes:
        weight: ``a``, 0 where only 0 is possible.
        step: ``γ = a/b``, positive.
        slope: ``b``.
        stiffness: ``d``.
    """

    weight: Tensor
    step: Tensor
    slope: Tensor
    stiffness: Tensor


def natural_map(problem: StandardForm, w: Tensor, tol: float) -> NaturalMap:
    """The relative natural residual of ``w``, ``(L, B)``, what it may be for a tolerance ``tol``, and the pieces.

    The residual is ``max_i |w − prox_γ(w − γ(Mw + q))|_i / a_i``: relative to the size of a weight where a bound, the
    kink or the sum is missed, to the size of a slope where ``Mw + q`` is not what it should be; it has no unit. Where
    slopes are more than `RUNAWAY` times what the data explain, ``|q| + λ`` and what held coordinates, the reach and the
    total add, it is relative to that: weights that run away do not excuse themselves.

    The tolerance is ``tol + 16(L + 4)ε``: the machine epsilon ``ε`` times what rounding alone puts into the residual.
    """
    residual, thresholds, sizes, excess = _measured(problem, w)
    on = thresholds.pieces(TIE * torch.finfo(w.dtype).eps * sizes.weight)
    return NaturalMap(residual, tolerance_of(problem, tol), on, sizes.stiffness, excess)


def relative_residual(problem: StandardForm, w: Tensor) -> Tensor:
    """The residual of `natural_map`, ``(B,)``; NaN where ``w`` is not finite."""
    return _measured(problem, w)[0]


def tolerance_of(problem: StandardForm, tol: float) -> float:
    """What the residual may be, see `natural_map`."""
    return tol + 16 * (problem.size + 4) * torch.finfo(problem.q.dtype).eps


def without_common_slope(problem: StandardForm) -> Tensor:
    """``q``, less its smallest entry where the sum is fixed: the multiplier takes it up, and nothing large cancels."""
    if problem.total is None or not problem.equality:
        return problem.q
    q = problem.q if problem.exists is None else problem.q.where(problem.exists, torch.inf)
    least = q.amin(0)
    shifted = problem.q - least.where(least.isfinite(), 0.0)
    return shifted if problem.exists is None else shifted.where(problem.exists, 0.0)


def stiffness(problem: StandardForm) -> Tensor:
    """How much a slope changes per weight: ``max |M_ij|``, ``(B,)``, with a sum; without one ``d``, ``(L, B)``.

    There ``d_i = M_ii`` where ``|M_ij| ≤ 2√(M_ii M_jj)`` for all i, j (of positive semidefinite matrices all, without
    the 2). Elsewhere ``√d`` balances the rows of ``max(|M|, |Mᵀ|)`` to a largest entry of 1 (Ruiz 2001). 0 for a
    coordinate that M does not touch.
    """
    if problem.total is not None:
        return problem.M.abs().amax((0, 1))
    diagonal = problem.diagonal()
    root = diagonal.clamp_min(0.0).sqrt()
    magnitude = problem.M.abs()
    odd = (magnitude > 2 * root.unsqueeze(0) * root.unsqueeze(1)).any(1).any(0)
    if not bool(odd.any()):
        return diagonal
    d = diagonal.clone()
    items = odd.nonzero()[:, 0]
    d[:, items] = balanced(problem.M[..., items])
    return d


def balanced(M: Tensor) -> Tensor:
    """``d``, ``(L, B)``, such that ``max_j max(|M_ij|, |M_ji|)/√(d_i d_j)`` is about 1; 0 where row and column are.

    Of all that are so, one near ``|M_ii|``: multipliers of rows then have their own size beside the weights.
    """
    magnitude = M.abs()
    S = torch.maximum(magnitude, magnitude.transpose(0, 1))
    largest = S.amax((0, 1))
    S = S / largest.where(largest > 0, 1.0)
    own = S.diagonal(dim1=0, dim2=1).T.sqrt()
    lent = torch.where(own > 0, S / own, 0.0).amax(1)  # to a coordinate without a diagonal, by those that it touches
    e = own.where(own > 0, lent.where(lent > 0, 1.0))
    for _ in range(8):  # the distance from balance falls as 2^-k
        rows = (S / (e.unsqueeze(0) * e.unsqueeze(1))).amax(1)
        e = e * rows.sqrt().where(rows > 0, 1.0)
    return (e * e * largest).where(S.amax(1) > 0, 0.0)


def balance(d: Tensor) -> Tensor:
    """``e``, ``(L, B)``, such that ``d_i/e_i²`` is the same power of two for all i; 0 where ``d`` is.

    Ratios of ``e`` are those of ``√d``; in this form powers of two in ``d`` change no digit of them.
    """
    return (d / power_of_two(d.amax(0))).clamp_min(0.0).sqrt()


def power_of_two(x: Tensor) -> Tensor:
    """The power of two just below ``x``, 1 where ``x`` is not a positive number."""
    x = x.where((x > 0) & x.isfinite(), 1.0)
    return x / (2 * torch.frexp(x).mantissa)  # which is exact


def reach(problem: StandardForm) -> Tensor:
    """The largest ``|w|`` of the set, inf where there is none: ``(B,)`` with a sum, ``(L, B)`` without."""
    if problem.total is not None and problem.nonnegative:
        return problem.total.abs()
    lower, upper, _ = problem.bounds_and_l1()
    if problem.total is None:
        return torch.maximum(lower.abs(), upper.abs())
    spare = problem.total - ordered_sum(lower)  # what one coordinate may take beyond its lower bound
    high = torch.minimum(upper, lower + spare).nan_to_num(torch.inf)  # −inf + inf
    return torch.maximum(lower.abs(), high.abs()).amax(0)


def sizes_of(problem: StandardForm, w: Tensor, q: Tensor, slope: Tensor) -> Sizes:
    """The sizes at ``w``, from ``q`` and ``b`` of each coordinate, ``(L, B)``.

    Without a sum the sizes of all coordinates have to do with each other in units in which their stiffness is 1. There
    no weight is larger than the largest of those at hand and of what pulls at them, ``|q| − λ`` (but not less than
    `LEAST_PULL` of ``|q| + λ``), and rounding of one slope reaches the others.
    """
    d, most = stiffness(problem), reach(problem)
    pull = q.abs()
    if problem.l1 is not None:
        pull = torch.maximum(pull - problem.l1, LEAST_PULL * (pull + problem.l1))
    if problem.total is not None:
        slope, largest = slope.amax(0), w.abs().amax(0)
        common = torch.maximum(pull.amax(0) / d, torch.maximum(problem.total.abs(), largest))
    else:
        largest, e = w.abs(), balance(d)
        slope = slope + torch.finfo(w.dtype).eps * e * torch.where(d > 0, slope / e, 0.0).amax(0)
        common = torch.where(d > 0, torch.maximum(pull * e / d, e * largest), 0.0).amax(0) / e
    bound = torch.maximum(most, largest).where(most > 0, torch.inf)  # where all is pinned at 0, its natural size
    bound = torch.minimum(bound, common.where(common > 0, torch.inf))  # where nothing pulls and all is 0, likewise
    weight = torch.minimum(torch.maximum(slope / d, largest), bound)  # x/0 = inf
    weight = weight.where(slope > 0, largest)  # no slope anywhere: every weight of the set is a solution
    untouched = weight.isinf()  # by M, and without a bound
    weight = weight.where(~untouched, largest.where(largest > 0, slope))
    step = weight / slope
    usable = step.isfinite() & (step > 0)
    step = step.where(usable, (1 / d).where(d > 0, 1.0))
    return Sizes(weight, step, slope, d)


def _measured(problem: StandardForm, w: Tensor) -> tuple[Tensor, Thresholds, Sizes, Tensor | None]:
    """The relative residual, the thresholds of the map, the sizes, and the excess where there is one."""
    products = problem.M * w
    q = without_common_slope(problem)
    magnitude = products.abs()
    data = q.abs() if problem.l1 is None else q.abs() + problem.l1
    sizes = sizes_of(problem, w, q, data + ordered_sum(magnitude, 1))
    x = w - sizes.step * (ordered_sum(products, 1) + q)
    thresholds = Thresholds(problem, x, sizes.step)
    on = thresholds.pieces()
    distance = (w - prox_on(problem, on, x, sizes.step)).abs()
    relative = torch.where(distance == 0, 0.0, distance / sizes.weight)  # x/0 = inf: only 0 is possible
    excess = None
    if _may_have_run_away(problem, sizes, data):
        explained = data + ordered_sum(magnitude * ~on.free, 1)
        excess = _excess(problem, sizes, explained, w)
        hidden = torch.finfo(w.dtype).eps  # of a slope that much smaller than its terms nothing may be left
        relative = torch.where(excess > RUNAWAY, (relative + hidden) * (excess / RUNAWAY), relative)
        excess = excess if excess.ndim == 1 else excess.amax(0)
    return relative.amax(0), thresholds, sizes, excess


def _may_have_run_away(problem: StandardForm, sizes: Sizes, data: Tensor) -> bool:
    """Whether some slope is larger than ``|q| + λ`` and the total alone explain."""
    if problem.total is not None:
        data = data.amax(0) + sizes.stiffness * problem.total.abs()
    return bool((sizes.slope > SUSPICIOUS * data).any())


def _excess(problem: StandardForm, sizes: Sizes, explained: Tensor, w: Tensor) -> Tensor:
    """How many times larger than the data explain the slopes are, in the shape of the sizes.

    Without a sum one coordinate's data set others in motion: in units in which all have the stiffness 1, all slopes are
    as large as the largest.
    """
    d, most, largest = sizes.stiffness, reach(problem), w.abs()
    if problem.total is not None:
        explained, largest = explained.amax(0) + d * problem.total.abs(), largest.amax(0)
    bounded = torch.minimum(largest, most).where(most <= FAR * explained / d, 0.0)
    explained = torch.maximum(explained, (d * bounded).where(d > 0, 0.0))
    if problem.total is None:
        e = balance(d)
        explained = torch.maximum(explained, e * torch.where(d > 0, explained / e, 0.0).amax(0))
    return torch.where(explained > 0, sizes.slope / explained, 1.0)
