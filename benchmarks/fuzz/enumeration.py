"""The exact solution of small problems by trying all pieces: for each coordinate its bounds, the kink, both signs."""

from __future__ import annotations

from itertools import product

import numpy as np

from benchmarks.fuzz.batches import Array, Exact

MOST_COORDINATES = 4


def enumerate_solution(problem: Exact, b: int) -> tuple[Array, float]:
    """The point of item ``b`` that violates its optimality conditions least, ``(L,)``, and by how much.

    Violations of weights and forces are compared as they are, so both should be of about the same size.
    """
    M, q, l1, lower, upper = (getattr(problem, name)[b].astype(float) for name in ("M", "q", "l1", "lower", "upper"))
    total = None if problem.total is None else float(problem.total[b])
    L = len(q)
    pieces = [_pieces(*item) for item in zip(l1, lower, upper, strict=True)]
    sums = [False] if total is None else [True] if problem.equality else [False, True]
    best, least = np.zeros(L), np.inf
    for tight, chosen in product(sums, product(*pieces)):
        value, slope, w_low, w_high, f_low, f_high = (np.array(column) for column in zip(*chosen, strict=True))
        F = np.isnan(value)
        n = int(F.sum())
        w, price = np.where(F, 0.0, value), 0.0
        A, rhs = M[np.ix_(F, F)], -(M[F] @ w + q[F] + slope[F])
        if tight and total is not None and n:
            A = np.block([[A, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
            rhs = np.append(rhs, total - w.sum())
        if n:
            found = np.linalg.lstsq(A, rhs, rcond=None)[0]
            w[F] = found[:n]
            price = float(found[n]) if len(found) > n else 0.0
        force = -(M @ w + q)
        if tight and not n:
            low, high = (force - f_high).max(), (force - f_low).min()
            if not problem.equality:
                low, high = max(low, 0.0), max(high, 0.0)
            ends = [end for end in (low, high) if np.isfinite(end)]
            price = sum(ends) / len(ends) if ends else 0.0
        off = max((w_low - w).max(), (w - w_high).max())
        off = max(off, (f_low - force + price).max(), (force - price - f_high).max())
        if total is not None:
            excess = w.sum() - total
            off = max(off, abs(excess) if problem.equality or tight else excess, 0.0 if problem.equality else -price)
        if off < least:
            best, least = w, off
    return best, float(least)


def _pieces(l1: float, lower: float, upper: float) -> list[tuple[float, ...]]:
    """``(value or NaN, slope, least weight, greatest weight, least force, greatest force)`` of each piece."""
    inf, nan = np.inf, np.nan
    if lower == upper:
        return [(lower, 0.0, lower, lower, -inf, inf)]
    found = []
    if lower > -inf:
        found.append((lower, 0.0, lower, lower, -inf, l1 if lower >= 0 else -l1))
    if upper < inf:
        found.append((upper, 0.0, upper, upper, l1 if upper > 0 else -l1, inf))
    if lower < 0 < upper and l1 > 0:
        found.append((0.0, 0.0, 0.0, 0.0, -l1, l1))
    if lower < 0:
        found.append((nan, -l1, lower, min(upper, 0.0) if l1 > 0 else upper, -l1, -l1))
    if upper > 0 and not (lower < 0 and l1 == 0):
        found.append((nan, l1, max(lower, 0.0), upper, l1, l1))
    return found
