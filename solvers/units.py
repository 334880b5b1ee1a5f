r"""The same problem in units in which its data are of size 1, by powers of two: nothing is rounded.

A solution does not depend on units, so neither may the numbers that a solver compares. With weights ``w = w'/e``::

    M' = M/(e eᵀ),   q' = q/e,   λ' = λ/e,   bounds' = e·bounds,   total' = e·total,

and ``(M', q', λ')`` may be multiplied by any positive number. With a sum ``e`` is one number for all coordinates;
without one it balances ``M``, ``e_i = √d_i`` (see `solvers.natural.stiffness`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from solvers.natural import balance, power_of_two, stiffness, without_common_slope
from solvers.standard_form import StandardForm


def in_natural_units(problem: StandardForm) -> tuple[StandardForm, Tensor]:
    """The problem with ``max |M'|`` and weights of about 1, and the factor ``1/e`` that brings its weights back.

    The factor is ``(B,)`` with a sum and ``(L, B)`` without. Along a fixed sum ``q'`` is less its smallest entry.
    """
    known = problem.detach()  # units are constants
    d, q = stiffness(known), without_common_slope(known)
    data = q.abs() if known.l1 is None else q.abs() + known.l1
    problem = replace(problem, q=problem.q + (q - known.q))
    if known.total is None:
        root = balance(d)
        e = power_of_two(root.where(root > 0, 1.0))
        problem = _times_e(problem, e)
        size = (data / e).amax(0) / power_of_two(d.amax(0))  # M' is about that, so this is a weight
    else:
        size = torch.where(known.total == 0, data.amax(0) / d, known.total.abs()).where(d > 0, 0.0)
        e = None
    size = size.where((size > 0) & size.isfinite(), _largest_bound(problem.detach()))  # M and q alone say nothing
    if known.total is not None:
        size = size.where(size > 0, known.total.abs())
    size = power_of_two(size)
    problem = _times_weights(problem, 1 / size)
    problem = problem.scaled(1 / power_of_two(problem.M.detach().abs().amax((0, 1))))
    return problem, size if e is None else size / e


def _largest_bound(problem: StandardForm) -> Tensor:
    lower, upper, _ = problem.bounds_and_l1()
    bounds = torch.stack((lower.abs(), upper.abs()))
    return torch.where(bounds.isfinite(), bounds, 0.0).amax((0, 1))


def _times_e(problem: StandardForm, e: Tensor) -> StandardForm:
    """In units ``w' = e∘w``, without a sum."""
    return replace(
        problem,
        M=problem.M / e.unsqueeze(0) / e.unsqueeze(1),
        q=problem.q / e,
        l1=None if problem.l1 is None else problem.l1 / e,
        lower=None if problem.lower is None else problem.lower * e,
        upper=None if problem.upper is None else problem.upper * e,
    )


def _times_weights(problem: StandardForm, factor: Tensor) -> StandardForm:
    """Bounds, total, ``q`` and ``l1`` times ``factor``, ``(B,)``: weights in another unit, and slopes with them."""

    def times(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor * factor

    return replace(
        problem,
        q=problem.q * factor,
        l1=times(problem.l1),
        lower=times(problem.lower),
        upper=times(problem.upper),
        total=times(problem.total),
    )
