r"""Gradients of the solution map in extended precision, for given linear pieces.

With ``F`` the free coordinates and ``g`` the cotangent of the weights::

    M_FFᵀ y_F + ν 1 = g_F,   1ᵀ y_F = 0      (ν and the second row where the sum is tight),   y = 0 off F
    ∂q = −y,   ∂M = −y wᵀ,   ∂λ_i = −y_i sign(w_i),   ∂total = ν,   ∂bound_i = g_i − (Mᵀy)_i − ν

(differentiate the KKT system; Amos and Kolter 2017). Where no coordinate is free and the sum is tight, one is let go.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.fuzz.batches import Array, Exact
from benchmarks.fuzz.linear import inverse
from benchmarks.fuzz.pieces import Pieces

NAMES = ("M", "q", "l1", "lower", "upper", "total")


@dataclass(frozen=True)
class Adjoint:
    """Gradients of ``n`` cases, and how well they are determined.

    Attributes:
        gradients: ``name → (n, …)``, in the shapes of the data.
        sizes: ``name → (n,)``, size of the terms that each gradient is made of: the error of a stable method is a
            multiple of condition × rounding × this.
        condition: ``(n,)``, of the system, its rows and columns in one unit.
    """

    gradients: dict[str, Array]
    sizes: dict[str, Array]
    condition: Array


def adjoint(problem: Exact, w: Array, pieces: Pieces) -> Adjoint:
    """The gradients of ``g·w`` on the given pieces; ``w`` is ``(B, L)``, like everything of ``problem``."""
    M, g, w = problem.M[pieces.item], problem.cotangent[pieces.item], w[pieces.item]
    n, L = g.shape
    free = pieces.free.copy()
    let_go = np.flatnonzero(pieces.released >= 0)
    free[let_go, pieces.released[let_go]] = True
    A, unit = _bordered(M, free, pieces.tight)
    inverted, condition = inverse(A)
    rhs = np.concatenate([np.where(free, g, 0), np.zeros((n, 1))], 1)
    solution = (inverted * rhs[:, None, :]).sum(2)
    y, scaled_price = solution[:, :L] / unit[:, None], solution[:, L]
    price = np.where(pieces.tight, scaled_price, 0)
    pulled = (M * y[:, :, None]).sum(1)
    moved = g - pulled - price[:, None]
    size = np.maximum(abs(y).max(1), abs(scaled_price) / unit)
    size = np.maximum(size, np.where(free.any(1), abs(g * free).max(1) / unit, 0))
    forces = abs(g).max(1) + (abs(M) * abs(y)[:, :, None]).sum(1).max(1) + abs(price)
    gradients = {
        "q": -y,
        "M": -y[:, :, None] * w[:, None, :],
        "l1": -y * np.sign(w),
        "lower": np.where(pieces.at_lower & ~free, moved, 0),
        "upper": np.where(pieces.at_upper & ~free, moved, 0),
        "total": price,
    }
    sizes = {"q": size, "M": size * abs(w).max(1), "l1": size, "lower": forces, "upper": forces, "total": forces}
    return Adjoint(gradients, sizes, condition)


def _bordered(M: Array, free: Array, tight: Array) -> tuple[Array, Array]:
    """The matrix of ``(y · unit, ν)``, ``(n, L + 1, L + 1)``, identity off ``F``, and the unit, ``(n,)``."""
    n, L = free.shape
    inside = free[:, :, None] & free[:, None, :]
    core = np.where(inside, M.swapaxes(1, 2), 0)
    unit = abs(core).max((1, 2))
    unit = np.where(unit > 0, unit, 1)
    A = np.zeros((n, L + 1, L + 1), np.longdouble)
    A[:, :L, :L] = core / unit[:, None, None] + np.eye(L) * ~free[:, :, None]
    border = free & tight[:, None]
    A[:, :L, L], A[:, L, :L] = border, border
    A[:, L, L] = ~border.any(1)
    return A, unit
