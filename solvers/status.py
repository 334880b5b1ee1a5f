"""What became of an item of a batch, as a number with a sentence."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """The values of `Solution.status`.

    >>> from solvers import Status
    >>> Status(3).name, Status.UNBOUNDED.message
    ('UNBOUNDED', 'the problem has no solution: along a direction of the set the cost falls without end')
    """

    SOLVED = 0
    ITERATION_LIMIT = 1
    INFEASIBLE = 2
    UNBOUNDED = 3
    NOT_MONOTONE = 4
    FAULTY_DATA = 5

    @property
    def message(self) -> str:
        """What it means, in a sentence."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.SOLVED: "the weights carry their certificate",
    Status.ITERATION_LIMIT: "the solver stopped above its tolerance; allow more iterations, or take solver='pivot'",
    Status.INFEASIBLE: "the set is empty: no weights meet all bounds and the sum",
    Status.UNBOUNDED: "the problem has no solution: along a direction of the set the cost falls without end",
    Status.NOT_MONOTONE: "½(M + Mᵀ) has a negative eigenvalue, so a stationary point need not be a solution",
    Status.FAULTY_DATA: "the data hold NaN, Inf or a negative L1 weight",
}
