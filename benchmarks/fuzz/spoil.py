"""Items that have no answer: faulty, infeasible, unbounded, not monotone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.fuzz.batches import Array, Truth
from benchmarks.fuzz.sets import DrawnSet

Rng = np.random.Generator


def _players_free(C: DrawnSet, exists: Array) -> Array:
    """Whether the first coordinate can move."""
    return exists[:, 0] & (C.lower[:, 0] < C.upper[:, 0])


def _directions_free(C: DrawnSet, exists: Array) -> Array:
    """Whether the direction along which an indefinite matrix is concave is one of the set's."""
    if C.total is None:
        return _players_free(C, exists)
    if exists.shape[1] < 2:
        return np.zeros(len(exists), bool)
    room = (exists & (C.lower < C.upper))[:, :2].all(1)
    least = np.where(exists, C.lower, 0.0).sum(1)
    most = np.where(exists, C.upper, 0.0).sum(1)
    return room & (C.total > least + 1e-2) & ((C.total < most - 1e-2) | (not C.equality))


FREE_DIRECTIONS: dict[str, Callable[[DrawnSet, Array], Array]] = {
    "concave player": _players_free,
    "indefinite": _directions_free,
}


def unbounded(rng: Rng, M: Array, q: Array, l1: Array, C: DrawnSet, exists: Array) -> Array:
    """Makes the costs fall without end along one or two coordinates, in place; returns where that could be done.

    A coordinate that appears in no product and may grow, or fall; with a fixed sum, two that are copies of each other.
    """
    B, L = q.shape
    rows = np.arange(B)
    i, j = rng.integers(0, L, B), rng.integers(0, L, B)
    fall = 0.5 + rng.random(B)
    if C.total is not None and C.equality:
        done = (i != j) & exists[rows, i] & exists[rows, j]
        k = rows[done]
        M[k, :, j[done]] = M[k, :, i[done]]
        M[k, j[done], :] = M[k, i[done], :]
        q[k, i[done]] = q[k, j[done]] - (l1[k, i[done]] + l1[k, j[done]] + fall[done])
        return done
    up, down = np.isinf(C.upper[rows, i]), np.isinf(C.lower[rows, i])
    up = up & (C.total is None)  # a budget ends what grows
    done = (up | down) & exists[rows, i]
    k = rows[done]
    M[k, :, i[done]] = 0.0
    M[k, i[done], :] = 0.0
    q[k, i[done]] = (np.where(up, -1.0, 1.0) * (l1[rows, i] + fall))[done]
    return done


def spoil(rng: Rng, drawn: dict[str, Array], equality: bool, exists: Array, truth: Array, share: float) -> None:
    """Spoils a share of the items, in place: NaN and Inf, a negative L1, an empty set."""
    item = np.flatnonzero(rng.random(len(exists)) < (share if share < 1 else rng.choice([0.3, 1.0])))
    at = np.array([rng.choice(np.flatnonzero(exists[b])) for b in item], int)
    total = drawn["total"]
    for b, i in zip(item, at, strict=True):
        kind = rng.integers(0, 8)
        bad = rng.choice([np.nan, np.inf, -np.inf])
        truth[b] = Truth.FAULTY
        if kind == 0:
            drawn["M"][b, i, rng.choice(np.flatnonzero(exists[b]))] = bad
        elif kind == 1:
            drawn["q"][b, i] = bad
        elif kind == 2:
            drawn["l1"][b, i] = rng.choice([np.nan, np.inf, -0.5])
        elif kind == 3:
            drawn["lower"][b, i] = np.nan
        elif kind == 4 and total is not None:
            total[b] = bad
        else:
            truth[b] = Truth.INFEASIBLE
            _empty(rng, drawn, equality, exists[b], int(b), int(i))


def _empty(rng: Rng, drawn: dict[str, Array], equality: bool, exists: Array, b: int, i: int) -> None:
    """Leaves nothing of the set of item ``b``: a total out of reach, or a lower bound above the upper one."""
    total, by = drawn["total"], 10.0 ** rng.uniform(-1, 2)
    least, most = (np.where(exists, drawn[bound][b], 0.0).sum() for bound in ("lower", "upper"))
    if total is not None and np.isfinite(least) and rng.random() < 0.7:
        total[b] = least - by
    elif total is not None and equality and np.isfinite(most):
        total[b] = most + by
    else:
        drawn["lower"][b, i] = 1.0 + by
        drawn["upper"][b, i] = 1.0
