r"""How far weights are from a solution, in extended precision, weights and forces each in their own unit.

With ``f = −(Mw + q)``, ``w`` is a solution if ``f_i − ν ∈ T_i(w_i)`` for all i, where ``T_i`` is the staircase
``λ_i ∂|·| + N_[lower, upper]`` and ``ν`` the multiplier of the sum (0 without one or where a budget is slack, ``≥ 0``
for a budget). A weight may be off by ``t``: then ``f_i − ν`` may lie anywhere between the lowest value of ``T_i`` at
``w_i − t`` and its highest at ``w_i + t``. Each coordinate thus leaves an interval for ``ν``, and the violation is half
of the largest gap between two of them. (Our derivation; no code of the solvers is used.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.fuzz.batches import Array, Exact
from benchmarks.fuzz.tolerances import EXCUSED


@dataclass(frozen=True)
class Certificate:
    """What can be said of weights; arrays ``(B,)`` but for ``force``.

    Attributes:
        weight_violation: Violation of bounds and sum, relative to the size of the weights.
        force_violation: Violation of stationarity beyond what rounding of the weights explains, relative to the size of
            the data's forces.
        force: ``(B, L)``, ``−(Mw + q)``.
        price: A best multiplier of the sum, in the middle of all that are as good.
        least_price: The least of those.
        weight_size: Size of the weights.
        force_size: Size of the terms that a force is made of, for the width of ties.
    """

    weight_violation: Array
    force_violation: Array
    force: Array
    price: Array
    least_price: Array
    weight_size: Array
    force_size: Array


def certify(problem: Exact, w: Array, tolerance: float) -> Certificate:
    """Certifies ``w``, ``(B, L)`` in weight units, where weights may be off by ``tolerance`` of their size.

    Sizes are those of the data: an answer beyond ``problem.reach`` does not enlarge what it is measured by.
    """
    finite = np.asarray(np.isfinite(w).all(axis=1))
    w = np.where(finite[:, None], w, 0)
    magnitude = np.minimum(abs(w), problem.reach[:, None])
    products = abs(problem.M) * magnitude[:, None, :]
    steepest = abs(problem.M).max((1, 2))
    pushed = _pushed(problem)
    natural = np.where(steepest > 0, pushed / np.where(steepest > 0, steepest, 1), 0)
    total = np.zeros(len(w), np.longdouble) if problem.total is None else abs(problem.total)
    weight_size = np.maximum(magnitude.max(1), np.maximum(natural, total / problem.exists.sum(1).clip(1)))
    slip = tolerance * weight_size
    weight_violation = _weight_violation(problem, w) / np.where(weight_size > 0, weight_size, 1)

    force = -((problem.M * w[:, None, :]).sum(2) + problem.q)
    force_size = pushed + products.sum(2).max(1)
    low, high = staircase(problem, w, slip[:, None])
    gap_below = np.where(problem.exists, force - high, -np.inf).max(1)  # ν is at least this
    gap_above = np.where(problem.exists, force - low, np.inf).min(1)  # and at most this
    at_least, at_most = _prices(problem, w, slip)
    gap_below, gap_above = np.maximum(gap_below, at_least), np.minimum(gap_above, at_most)
    # ν itself is exact where it is fixed, so the whole of a gap to it counts
    halved = np.where(gap_below == at_least, 1, np.where(gap_above == at_most, 1, 0.5))
    violation = np.maximum((gap_below - gap_above) * halved, 0)

    held = (w <= problem.lower + slip[:, None]) | (w >= problem.upper - slip[:, None])
    imposed = np.where(held, magnitude, np.minimum(magnitude, np.maximum(natural, total)[:, None]))
    scale = pushed + _centred_products(problem, imposed)
    excused = EXCUSED * (problem.M.shape[1] + 4) * problem.eps * force_size
    excess = np.maximum(violation - excused, 0)
    force_violation = np.where(excess > 0, excess / np.where(scale > 0, scale, np.longdouble(1e-300)), 0)
    bad = ~finite
    return Certificate(
        np.where(bad, np.inf, weight_violation),
        np.where(bad, np.inf, force_violation),
        force,
        _middle(gap_below, gap_above, force_size),
        np.minimum(gap_below, gap_above),
        weight_size,
        force_size,
    )


def staircase(problem: Exact, w: Array, slip: Array | float) -> tuple[Array, Array]:
    """The lowest value of ``T_i`` at ``w_i − slip`` and the highest at ``w_i + slip``, each ``(B, L)``."""
    below = np.minimum(np.maximum(w - slip, problem.lower), problem.upper)
    above = np.maximum(np.minimum(w + slip, problem.upper), problem.lower)
    low = np.where(below > 0, problem.l1, -problem.l1)
    high = np.where(above < 0, -problem.l1, problem.l1)
    return np.where(below <= problem.lower, -np.inf, low), np.where(above >= problem.upper, np.inf, high)


def _prices(problem: Exact, w: Array, slip: Array) -> tuple[Array, Array]:
    """Which multipliers of the sum are allowed, from and to, each ``(B,)``."""
    nothing, infinite = np.zeros(len(w), np.longdouble), np.full(len(w), np.inf, np.longdouble)
    if problem.total is None:
        return nothing, nothing
    if problem.equality:
        return -infinite, infinite
    slack = problem.total - w.sum(1) > slip * w.shape[1]
    return nothing, np.where(slack, 0, infinite)


def _middle(low: Array, high: Array, size: Array) -> Array:
    """The middle of each interval; well inside it where one of its ends is infinite."""
    low = np.where(np.isfinite(low), low, np.where(np.isfinite(high), high - size, 0))
    high = np.where(np.isfinite(high), high, low + size)
    return 0.5 * (low + high)


def _weight_violation(problem: Exact, w: Array) -> Array:
    off = np.maximum(problem.lower - w, w - problem.upper).max(1)
    if problem.total is not None:
        excess = w.sum(1) - problem.total
        off = np.maximum(off, (abs(excess) if problem.equality else excess) / w.shape[1])
    return np.maximum(off, 0)


def _pushed(problem: Exact) -> Array:
    """``‖q‖ + ‖λ‖``; where the sum is fixed, of ``q`` up to a common force, which changes nothing."""
    q = problem.q
    if problem.total is not None and problem.equality:
        q = _centred(q, problem.exists)
    return abs(q).max(1) + problem.l1.max(1)


def _centred_products(problem: Exact, w: Array) -> Array:
    """``‖|M| w‖``; where the sum is fixed, of ``M`` with the middle of each row taken out, which acts as a force."""
    if problem.total is None or not problem.equality:
        return (abs(problem.M) * w[:, None, :]).sum(2).max(1)
    B, L = w.shape
    exists = np.broadcast_to(problem.exists[:, None, :], (B, L, L))
    centred = _centred(problem.M.reshape(B * L, L), exists.reshape(B * L, L)).reshape(B, L, L)
    middle = np.where(problem.exists, (problem.M - centred).max(2), 0)
    common = _centred(middle * problem.total[:, None], problem.exists)
    return (abs(centred) * w[:, None, :]).sum(2).max(1) + abs(common).max(1)


def _centred(x: Array, exists: Array) -> Array:
    low = np.where(exists, x, np.inf).min(1, keepdims=True)
    high = np.where(exists, x, -np.inf).max(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.where(exists, x - 0.5 * (low + high), 0)
