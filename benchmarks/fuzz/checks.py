"""What is wrong with an answer: the status, the weights, the gradients, each against what is known."""

from __future__ import annotations

import numpy as np

from benchmarks.fuzz.ask import SOLVED, Answer
from benchmarks.fuzz.batches import Array, Batch, Exact, Truth, exact
from benchmarks.fuzz.certificate import certify
from benchmarks.fuzz.enumeration import MOST_COORDINATES, enumerate_solution
from benchmarks.fuzz.findings import Findings
from benchmarks.fuzz.gradients import judge_gradients
from benchmarks.fuzz.tolerances import WEIGHTS, spread
from solvers import Status

ALLOWED = {
    Truth.SOLVABLE: {Status.SOLVED, Status.ITERATION_LIMIT},
    Truth.OPEN: {Status.SOLVED, Status.ITERATION_LIMIT, Status.NOT_MONOTONE, Status.UNBOUNDED},
    Truth.NOT_MONOTONE: {Status.NOT_MONOTONE, Status.UNBOUNDED, Status.ITERATION_LIMIT},
    Truth.UNBOUNDED: {Status.UNBOUNDED, Status.ITERATION_LIMIT, Status.NOT_MONOTONE},
    Truth.INFEASIBLE: {Status.INFEASIBLE},
    Truth.FAULTY: {Status.FAULTY_DATA},
}
"""What may be said; who has run out of iterations is counted, not blamed."""


def judge(batch: Batch, answer: Answer, findings: Findings) -> Array:
    """Checks everything about one answer; returns which items are solved, their weights right, ``(B,)`` bool."""
    problem = exact(batch)
    with np.errstate(invalid="ignore", over="ignore"):
        right = _judge_status_and_weights(batch, problem, answer, findings)
        _judge_unsolved_gradients(batch, answer, findings)
        items = np.flatnonzero(right)
        if len(items):
            judge_gradients(batch.select(items), problem.select(items), answer.select(items), items, findings)
    return right


def compare_with_enumeration(batch: Batch, answer: Answer, most: int, findings: Findings) -> None:
    """Compares a few small problems with a unique solution to the one that trying all pieces finds."""
    if batch.size > MOST_COORDINATES:
        return
    items = np.flatnonzero((answer.status == SOLVED) & (batch.least > 0))[:most]
    problem = exact(batch.select(items))
    w = answer.weights[items].astype(np.longdouble) / batch.weight_unit[items]
    sizes = certify(problem, w, 1e-6)
    dtype = answer.weights.dtype.type
    allowed = spread(dtype, batch.size, sizes.weight_size, sizes.force_size, batch.least[items])
    for k in range(len(items)):
        right, left = enumerate_solution(problem, k)
        off = float(abs(w[k] - right).max() / allowed[k])
        findings.counts["compared with enumeration"] += 1
        if off > 1 and left < 1e-9 * float(sizes.force_size[k]):
            findings.note("weights: not those of enumeration", int(items[k]), f"{off:.3g}")


def _judge_status_and_weights(batch: Batch, problem: Exact, answer: Answer, findings: Findings) -> Array:
    solved = answer.status == SOLVED
    findings.counts.update(f"status {Status(int(s)).name}" for s in answer.status)
    for truth in Truth:
        of_this = batch.truth == truth
        findings.counts[f"truth {truth.name}"] += int(of_this.sum())
        findings.counts[f"solved {truth.name}"] += int((of_this & solved).sum())
        limit = of_this & (answer.status == Status.ITERATION_LIMIT)
        findings.counts[f"iteration limit {truth.name}"] += int(limit.sum())
        odd = of_this & ~np.isin(answer.status, [int(s) for s in ALLOWED[truth]])
        for status in np.unique(answer.status[odd]):
            findings.blame(f"status: {truth.name} called {Status(int(status)).name}", odd & (answer.status == status))
    tolerance = WEIGHTS[answer.weights.dtype.type]
    w = answer.weights.astype(np.longdouble) / batch.weight_unit
    certificate = certify(problem, w, tolerance)
    off = np.maximum(certificate.weight_violation, certificate.force_violation)
    wrong = solved & ~(off <= tolerance)
    certain = wrong & (batch.truth <= Truth.OPEN)  # the others are blamed for their status
    findings.blame("weights: wrong but called solved", certain, off)
    masked = (np.where(problem.exists, 0, w) != 0).any(1)
    findings.blame("weights: a masked coordinate is not 0", solved & masked)
    finite = np.isfinite(answer.weights).all(1)
    findings.blame("weights: NaN of an item that is not faulty", ~finite & (batch.truth <= Truth.UNBOUNDED))
    return solved & ~wrong & (batch.truth <= Truth.OPEN)


def _judge_unsolved_gradients(batch: Batch, answer: Answer, findings: Findings) -> None:
    """An item without an answer passes no gradient on, and no item a NaN."""
    unsolved = answer.status != SOLVED
    for name, gradient in answer.gradients.items():
        flat = gradient.reshape(batch.count, -1)
        finite = np.asarray(np.isfinite(flat).all(1))
        findings.blame(f"gradient: {name} not finite", ~finite)
        findings.blame(f"gradient: {name} of an unsolved item is not zero", unsolved & finite & (flat != 0).any(1))
