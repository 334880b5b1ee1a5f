"""Where a solution lies: what a gradient needs to know of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from solvers.natural import NaturalMap
from solvers.prox import Pieces, leaving_prices
from solvers.standard_form import StandardForm


class Active(NamedTuple):
    """The active set of a solution, and which items are to be differentiated.

    Attributes:
        free: ``(L, B)`` bool, strictly inside a linear piece; at least one coordinate wherever the sum is tight.
        tight: ``(B,)`` bool, where the sum constrains.
        at_lower: ``(L, B)`` bool, held at the lower bound.
        at_upper: ``(L, B)`` bool, held at the upper bound and not at the lower as well.
        stiffness: ``(L, B)``, see `solvers.natural.stiffness`, positive; with a sum the same for all coordinates.
        passes: ``(B,)`` bool, the items through which gradients pass.
    """

    free: Tensor
    tight: Tensor
    at_lower: Tensor
    at_upper: Tensor
    stiffness: Tensor
    passes: Tensor


def active_set(problem: StandardForm, w: Tensor, found: NaturalMap, passes: Tensor) -> Active:
    """The active set of ``w``, ``(L, B)``.

    Args:
        problem: The problem.
        w: Its solution.
        found: What the natural map says about it.
        passes: ``(B,)`` bool, the items through which gradients pass.
    """
    on, d = found.on, found.stiffness
    if problem.total is not None and not problem.nonnegative:
        on = _with_one_free(problem, w, on)
    largest = d if d.ndim == 1 else d.amax(0)
    d = d.where(d > 0, largest.where(largest > 0, 1.0))
    return Active(
        free=on.free,
        tight=torch.full_like(passes, problem.total is not None) if on.tight is None else on.tight,
        at_lower=torch.zeros_like(on.free) if on.at_lower is None else on.at_lower,
        at_upper=torch.zeros_like(on.free) if on.at_upper is None else on.at_upper,
        stiffness=d.expand_as(w),
        passes=passes,
    )


def _with_one_free(problem: StandardForm, w: Tensor, on: Pieces) -> Pieces:
    """The pieces with at least one coordinate free wherever the sum is tight."""
    stuck = ~on.free.any(0) & (w == w).all(0)  # not those with NaN
    if on.tight is not None:
        stuck = stuck & on.tight
    rises, falls = leaving_prices(problem, w, on.held)
    can_rise, can_fall = rises.isfinite().any(0), falls.isfinite().any(0)
    stuck = stuck & (can_rise | can_fall)
    first = torch.where(can_rise, rises.argmax(0), falls.argmin(0))
    free = on.free | (stuck & (torch.arange(problem.size, device=w.device).unsqueeze(-1) == first))
    at_lower = None if on.at_lower is None else on.at_lower & ~free
    at_upper = None if on.at_upper is None else on.at_upper & ~free
    return on._replace(free=free, at_lower=at_lower, at_upper=at_upper)
