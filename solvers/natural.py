r"""The natural map ``w ↦ prox(w − (Mw + q))``: its fixed points are the solutions.

What it says about given weights is all that a certificate and a gradient need to know of them, so it is taken once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from solvers.prox import Pieces, Thresholds, prox_on
from solvers.standard_form import StandardForm
from solvers.sums import ordered_sum

TIE = 1e3
"""Width of a tie, in roundings of the largest weight or force."""


class NaturalMap(NamedTuple):
    """What the natural map says about weights ``w``.

    Attributes:
        residual: ``(B,)``, the natural residual ``‖w − prox(w − (Mw + q))‖_∞``.
        tolerance: ``(B,)``, what it may be.
        on: The linear pieces of the map, where a coordinate that ties with a threshold counts as held and a budget that
            is just spent as tight.
    """

    residual: Tensor
    tolerance: Tensor
    on: Pieces


def natural_map(problem: StandardForm, w: Tensor, tol: float) -> NaturalMap:
    """The natural residual of ``w``, ``(L, B)``, what it may be for a relative tolerance ``tol``, and the pieces.

    The tolerance is ``tol · min(a, b) + 16(L + 4) ε max(‖w‖_∞, b)``, with the machine epsilon ``ε`` and the sizes of
    a weight, ``a = max(‖w‖_∞, ‖q‖_∞ / max|M_ij|)``, and of a force, ``b = ‖|M||w| + |q| + λ‖_∞``. The residual is a
    length of ``w`` at a bound and a length of ``Mw + q`` inside, hence the smaller of the two; the last term is what
    rounding alone puts into it.
    """
    residual, tolerance, thresholds, largest = _measured(problem, w, tol)
    return NaturalMap(residual, tolerance, thresholds.pieces(TIE * torch.finfo(w.dtype).eps * largest))


def residual_and_tolerance(problem: StandardForm, w: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    """The first two of `natural_map`, each ``(B,)``."""
    residual, tolerance, _, _ = _measured(problem, w, tol)
    return residual, tolerance


def _measured(problem: StandardForm, w: Tensor, tol: float) -> tuple[Tensor, Tensor, Thresholds, Tensor]:
    """Residual and tolerance, the thresholds of the map, and the largest weight or force, ``(B,)``."""
    products = problem.M * w
    x = w - (ordered_sum(products, 1) + problem.q)
    thresholds = Thresholds(problem, x)
    residual = (w - prox_on(problem, thresholds.pieces(), x)).abs().amax(0)

    magnitude = problem.q.abs()
    forces = ordered_sum(products.abs(), 1) + magnitude
    if problem.l1 is not None:
        forces = forces + problem.l1
    size, b = w.abs().amax(0), forces.amax(0)
    a = torch.fmax(size, magnitude.amax(0) / problem.M.abs().amax((0, 1)))  # 0/0 leaves ‖w‖
    largest = torch.maximum(size, b)
    tolerance = tol * torch.minimum(a, b) + 16 * (problem.size + 4) * torch.finfo(w.dtype).eps * largest
    return residual, tolerance, thresholds, largest
