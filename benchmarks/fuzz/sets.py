"""Random sets of every name, each with a point of its own that lies in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Rng = np.random.Generator

SIMPLICES = ("Simplex", "CappedSimplex", "Budget")
BOXES = ("Box", "Box half open", "Box pinned", "Box beside zero", "Box numbers", "NonNegative", "Free")
SUMS = ("SumTo", "Sum in a box", "Budget in a box", "Budget below", "Sum at a vertex")
SETS = (*SIMPLICES, *BOXES, *SUMS)
BOUNDED = (*SIMPLICES, "Box", "Box pinned", "Box beside zero", "Box numbers", "Sum in a box", "Budget in a box")
BOUNDED += ("Sum at a vertex",)
STEP = 0.125
"""Weights of a coarse set are multiples of this, so that they are exact in any dtype."""


@dataclass
class DrawnSet:
    """A set in units of about one, and a point in it.

    Attributes:
        lower: ``(B, L)``, like ``upper``; ``total`` is ``(B,)`` or ``None``.
        equality: Whether the sum is fixed.
        inside: ``(B, L)``, a point of the set, often on its boundary or at 0.
        tight: ``(B,)`` bool, whether the point spends the whole total.
    """

    lower: Array
    upper: Array
    total: Array | None
    equality: bool
    inside: Array
    tight: Array


def draw_set(rng: Rng, name: str, exists: Array, coarse: bool) -> DrawnSet:
    """Draws sets for the coordinates that exist, ``(B, L)`` bool.

    Args:
        rng: The generator.
        name: One of `SETS`.
        exists: Which coordinates exist.
        coarse: Whether all weights and bounds are to be multiples of `STEP`, so that ties are exact.
    """
    if name in SIMPLICES:
        return _simplex(rng, name, exists, coarse)
    lower, upper = _bounds(rng, name, exists.shape, coarse)
    inside = np.where(exists, _point(rng, lower, upper, coarse), 0.0)
    everyone = np.ones(len(exists), bool)
    if name in BOXES:
        return DrawnSet(lower, upper, None, True, inside, ~everyone)
    if name == "Sum at a vertex":
        inside = np.where(exists, upper, 0.0)
    total, tight = inside.sum(1), everyone
    if name.startswith("Budget"):
        tight = rng.random(len(exists)) < 0.6
        total = total + np.where(tight, 0.0, _positive(rng, total.shape, coarse))
    return DrawnSet(lower, upper, total, not name.startswith("Budget"), inside, tight)


def _simplex(rng: Rng, name: str, exists: Array, coarse: bool) -> DrawnSet:
    B, L = exists.shape
    if coarse:
        shares = exists / exists.sum(1, keepdims=True)
        inside = STEP * rng.multinomial(round(1 / STEP), shares)
    else:
        sparse = exists & (rng.random((B, L)) < 0.7)
        sparse = np.where(sparse.any(1, keepdims=True), sparse, exists)
        inside = rng.exponential(size=(B, L)) * sparse
        inside = inside / inside.sum(1, keepdims=True)
    total, tight, upper = np.ones(B), np.ones(B, bool), np.full((B, L), np.inf)
    if name == "CappedSimplex":
        room = rng.random(B) < 0.7  # else the largest is at its cap
        upper = np.repeat(inside.max(1, keepdims=True), L, 1)
        upper = upper + np.where(room[:, None], _positive(rng, (B, L), coarse), 0.0)
    if name == "Budget":
        tight = rng.random(B) < 0.6
        if rng.random() < 0.3:  # the same total for all, which may be a number
            inside = np.where(tight[:, None], inside, 0.5 * inside)
        else:
            total = total + np.where(tight, 0.0, _positive(rng, (B,), coarse))
    return DrawnSet(np.zeros((B, L)), upper, total, name != "Budget", inside, tight)


def _bounds(rng: Rng, name: str, shape: tuple[int, ...], coarse: bool) -> tuple[Array, Array]:
    infinite = np.full(shape, np.inf)
    if name == "NonNegative":
        return np.zeros(shape), infinite
    if name in ("SumTo", "Free"):
        return -infinite, infinite
    if name == "Box numbers":
        low = float(rng.choice([-1.0, -0.5, 0.0, 0.5]))
        return np.full(shape, low), np.full(shape, low + float(rng.choice([0.5, 1.0])))
    lower, upper = -_positive(rng, shape, coarse), _positive(rng, shape, coarse)
    if name == "Box beside zero":
        width = upper - lower
        lower = rng.choice([-1.0, 0.0, 1.0], (shape[0], 1)) * _positive(rng, shape, coarse)
        upper = lower + width
    if name in ("Box pinned", "Sum in a box", "Budget in a box"):
        upper = np.where(rng.random(shape) < 0.2, lower, upper)
    if name == "Box half open":
        lower = np.where(rng.random(shape) < 0.4, -np.inf, lower)
        upper = np.where(rng.random(shape) < 0.4, np.inf, upper)
    if name == "Budget below":
        lower = -infinite
    return lower, upper


def _point(rng: Rng, lower: Array, upper: Array, coarse: bool) -> Array:
    """A point between bounds; each coordinate at a bound, at 0 or inside."""
    low = np.where(np.isfinite(lower), lower, np.where(np.isfinite(upper), upper - 1.0, -0.5))
    high = np.where(np.isfinite(upper), upper, low + 1.0)
    inside = low + rng.random(low.shape) * (high - low)
    if coarse:
        inside = np.clip(np.round(inside / STEP) * STEP, low, high)
    where = rng.random(low.shape)
    inside = np.where((where < 0.2) & np.isfinite(lower), lower, inside)
    inside = np.where((where > 0.8) & np.isfinite(upper), upper, inside)
    at_zero = (where > 0.4) & (where < 0.55) & (lower <= 0) & (upper >= 0)
    return np.where(at_zero, 0.0, inside)


def _positive(rng: Rng, shape: tuple[int, ...], coarse: bool) -> Array:
    if coarse:
        return STEP * rng.integers(1, 9, shape)
    return rng.uniform(0.1, 1.0, shape)
