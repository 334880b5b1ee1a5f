"""Which linear piece of the solution map each coordinate lies on, and which it may as well lie on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from benchmarks.fuzz.batches import Array, Exact
from benchmarks.fuzz.certificate import Certificate
from benchmarks.fuzz.tolerances import TIE

ROUNDED = 16
"""Roundings of the largest force within which ties cannot be told from what is nearly one."""

MOST_TIES = 3
"""Items with more ties than this have too many adjacent pieces to try."""


@dataclass(frozen=True)
class Pieces:
    """Pieces of ``n`` cases, each of one item.

    Attributes:
        item: ``(n,)``, the item that a case is of.
        free: ``(n, L)`` bool, strictly inside a linear piece.
        at_lower: ``(n, L)`` bool, held at the lower bound; ``at_upper`` at the upper one.
        tight: ``(n,)`` bool, whether the sum constrains.
        released: ``(n,)``, at a vertex whose sum is tight the coordinate that is let go, or −1.
    """

    item: Array
    free: Array
    at_lower: Array
    at_upper: Array
    tight: Array
    released: Array

    def select(self, cases: Array) -> Pieces:
        """The cases at the given indices."""
        return Pieces(*(value[cases] for value in vars(self).values()))


@dataclass(frozen=True)
class Position:
    """Where weights lie among the thresholds.

    Attributes:
        near_lower: ``(B, L)`` bool, within a tie of that bound; likewise ``near_upper`` and ``near_kink``.
        open: ``(B, L)`` bool, whether it is a tie between free and held.
        held: ``(B, L)`` bool, held, and not a tie.
        tight: ``(B,)`` bool, likewise for the sum; ``tight_open``.
        narrow: ``(B,)`` bool, whether some coordinate lies near two thresholds at once.
    """

    near_lower: Array
    near_upper: Array
    near_kink: Array
    open: Array
    held: Array
    tight: Array
    tight_open: Array
    narrow: Array


def locate(problem: Exact, w: Array, certificate: Certificate, width: Array | float = 0.0) -> Position:
    """Locates ``w``, with ties as wide as documented (taken four times as wide), or ``width``, relative, if more."""
    width = np.maximum(4 * TIE * problem.eps, width)
    slip = np.broadcast_to(width * np.maximum(certificate.weight_size, abs(w).max(1)), w.shape[:1])
    push = np.broadcast_to(width * certificate.force_size, slip.shape)
    rounding = ROUNDED * problem.eps * abs(problem.q).max(1)  # a common force added to ties makes or breaks them
    steepest = abs(problem.M).max((1, 2))
    push = np.maximum(push, rounding)
    slip = np.maximum(slip, np.where(steepest > 0, rounding / np.where(steepest > 0, steepest, 1), 0))
    sign_changes = (problem.l1 > 0) & (problem.lower < 0) & (problem.upper > 0)
    near_lower, near_upper = w <= problem.lower + slip[:, None], w >= problem.upper - slip[:, None]
    near_kink = sign_changes & (abs(w) <= slip[:, None])
    pinned = problem.lower == problem.upper
    edge_low = np.where(problem.lower >= 0, problem.l1, -problem.l1)
    edge_high = np.where(problem.upper > 0, problem.l1, -problem.l1)
    middle = certificate.force - certificate.price[:, None]
    push_ = push[:, None]
    firm_lower = near_lower & (edge_low - middle > push_)
    firm_upper = near_upper & (middle - edge_high > push_)
    firm_kink = near_kink & (problem.l1 - abs(middle) > push_)
    near = near_lower | near_upper | near_kink
    held = pinned | firm_lower | firm_upper | firm_kink
    count = near_lower.astype(int) + near_upper + near_kink
    narrow = ((count > 1) & ~pinned).any(1)
    B = len(w)
    tight, tight_open = np.zeros(B, bool), np.zeros(B, bool)
    if problem.total is not None:
        tight = np.ones(B, bool)
        if not problem.equality:
            near_total = problem.total - w.sum(1) <= slip * w.shape[1]
            tight = near_total & (certificate.least_price > push)  # at a vertex it may be slack as well
            tight_open = near_total & ~tight
    return Position(near_lower, near_upper, near_kink, near & ~held, held, tight, tight_open, narrow)


def enumerate_pieces(problem: Exact, position: Position) -> Pieces:
    """All cases of all items that have few enough ties: a tie is free or held, and a vertex lets any coordinate go."""
    ties = position.open.sum(1) + position.tight_open
    cases = []
    for n in range(MOST_TIES + 1):
        items = np.flatnonzero((ties == n) & ~position.narrow)
        for choice in product((False, True), repeat=n):
            if len(items):
                cases.append(_chosen(problem, position, items, np.array(choice, bool)))
    if not cases:
        empty = np.zeros((0, problem.q.shape[1]), bool)
        return Pieces(np.zeros(0, int), empty, empty, empty, np.zeros(0, bool), np.zeros(0, int))
    columns = zip(*(vars(case).values() for case in cases), strict=True)
    return Pieces(*(np.concatenate(column) for column in columns))


def _chosen(problem: Exact, position: Position, items: Array, choice: Array) -> Pieces:
    """The cases in which the k-th tie of each item is free where ``choice[k]``; a tied sum comes last."""
    is_open, exists = position.open[items], problem.exists[items]
    order = is_open.cumsum(1) - 1
    chosen = np.append(choice, False)[np.minimum(order, len(choice))] if len(choice) else np.zeros_like(is_open)
    free = exists & ~position.held[items] & (~is_open | chosen)
    tight_open = position.tight_open[items]
    tight = position.tight[items] | (tight_open & (choice[-1] if len(choice) else False))
    at_lower = ~free & exists & position.near_lower[items]
    at_upper = ~free & exists & position.near_upper[items] & ~at_lower
    pinned = ~exists | (problem.lower[items] == problem.upper[items])
    tight = tight & ~pinned.all(1)  # where nobody can move nobody is let go
    one = Pieces(items, free, at_lower, at_upper, tight, np.full(len(items), -1))
    stuck = tight & ~free.any(1)
    if not stuck.any():
        return one
    parts = [one.select(np.flatnonzero(~stuck))]
    for i in range(free.shape[1]):
        let_go = np.flatnonzero(stuck & exists[:, i])
        case = one.select(let_go)
        parts.append(Pieces(case.item, case.free, case.at_lower, case.at_upper, case.tight, np.full(len(let_go), i)))
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Pieces(*(np.concatenate(column) for column in columns))
