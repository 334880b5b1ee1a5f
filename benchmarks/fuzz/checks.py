"""What is wrong with an answer: the status, the weights, the gradients, each against what is known."""

from __future__ import annotations

import numpy as np

from benchmarks.fuzz.adjoint import NAMES, adjoint
from benchmarks.fuzz.ask import SOLVED, Answer, ask
from benchmarks.fuzz.batches import Array, Batch, Exact, Truth, exact
from benchmarks.fuzz.certificate import certify
from benchmarks.fuzz.enumeration import MOST_COORDINATES, enumerate_solution
from benchmarks.fuzz.findings import Findings
from benchmarks.fuzz.pieces import TIE, Pieces, enumerate_pieces, locate
from benchmarks.fuzz.singular import singular_faults
from solvers import Status

WEIGHTS = {np.float64: 1e-6, np.float32: 1e-3}
"""Relative violation that a converged answer may have: a hundred to a thousand times what the solvers promise."""
GRADIENTS = {np.float64: 1e-6, np.float32: 1e-2}
STABLE = 30  # roundings, times L + 4 and the condition, that a backward stable solution may be off by
EXCUSED_ERROR = 1000  # roundings of a force, over the least eigenvalue, by which unique weights may differ
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
            _judge_gradients(batch.select(items), problem.select(items), answer.select(items), items, findings)
    return right


def compare_with_enumeration(batch: Batch, answer: Answer, most: int, findings: Findings) -> None:
    """Compares a few small problems with a unique solution to the one that trying all pieces finds."""
    if batch.size > MOST_COORDINATES:
        return
    items = np.flatnonzero((answer.status == SOLVED) & (batch.least > 0))[:most]
    problem = exact(batch.select(items))
    w = answer.weights[items].astype(np.longdouble) / batch.weight_unit[items]
    sizes = certify(problem, w, 1e-6)
    rounding = (batch.size + 4) * problem.eps * sizes.force_size / batch.least[items]
    allowed = WEIGHTS[answer.weights.dtype.type] * sizes.weight_size + EXCUSED_ERROR * rounding
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
    masked = np.zeros(len(w), bool) if batch.mask is None else (w * ~problem.exists != 0).any(1)
    findings.blame("weights: a masked coordinate is not 0", solved & masked)
    finite = np.isfinite(answer.weights).all(1)
    findings.blame("weights: NaN of an item that is not faulty", ~finite & (batch.truth <= Truth.UNBOUNDED))
    return solved & ~wrong & (batch.truth <= Truth.OPEN)


def _judge_unsolved_gradients(batch: Batch, answer: Answer, findings: Findings) -> None:
    """An item without an answer passes no gradient on, and no item a NaN."""
    unsolved = answer.status != SOLVED
    for name, gradient in answer.gradients.items():
        flat = gradient.reshape(batch.count, -1)
        finite = np.isfinite(flat).all(1)
        findings.blame(f"gradient: {name} not finite", ~finite)
        findings.blame(f"gradient: {name} of an unsolved item is not zero", unsolved & finite & (flat != 0).any(1))


def _judge_gradients(batch: Batch, problem: Exact, answer: Answer, items: Array, findings: Findings) -> None:
    """Compares with every adjacent piece in turn; who is right on one of them is right."""
    w = answer.weights.astype(np.longdouble) / batch.weight_unit
    certificate = certify(problem, w, 4 * TIE * problem.eps)
    position = locate(problem, w, certificate)
    pieces = enumerate_pieces(problem, position)
    reference = adjoint(problem, w, pieces)
    L = batch.size
    rounding = STABLE * (L + 4) * problem.eps * reference.condition
    case_items = pieces.item
    hard = np.zeros(batch.count, bool)
    hard[case_items[rounding > 0.1]] = True
    hard |= _may_have_other_pieces(problem, w, reference.condition, pieces)
    tried = np.isin(np.arange(batch.count), case_items)
    error = np.full(len(case_items), 0.0)
    rtol = GRADIENTS[answer.weights.dtype.type]
    for name, right, size in ((name, reference.gradients[name], reference.sizes[name]) for name in NAMES):
        if name not in answer.gradients:
            continue
        got, exempt = _in_units(batch, answer, name), None
        got, right = got[case_items], right
        if name == "l1":
            exempt = (problem.l1 == 0) & _at_zero(problem, w)
        if name in ("lower", "upper") and {"lower", "upper"} <= answer.gradients.keys():
            pinned = (problem.lower == problem.upper)[case_items]  # which of the two moves it, is anyone's choice
            both = sum(_in_units(batch, answer, bound)[case_items] for bound in ("lower", "upper"))
            got = np.where(pinned, both, got)
            right = np.where(pinned, reference.gradients["lower"] + reference.gradients["upper"], right)
        elif name in ("lower", "upper"):
            exempt = problem.lower == problem.upper
        if exempt is not None:
            got = np.where(exempt[case_items], right, got)
        off = abs(got - right).reshape(len(case_items), -1).max(1)
        allowed = rtol * abs(right).reshape(len(case_items), -1).max(1) + rounding * size
        tiny = np.finfo(answer.weights.dtype).tiny
        error = np.maximum(error, np.where(off > 0, off / np.maximum(allowed, np.maximum(tiny * size, 1e-300)), 0))
    best = np.full(batch.count, np.inf)
    np.minimum.at(best, case_items, np.where(np.isfinite(error), error, np.inf))
    wrong = tried & ~hard & ~(best <= 1)
    findings.counts["gradients checked"] += int((tried & ~hard).sum())
    findings.counts["gradients with ties checked"] += int((tried & ~hard & (position.open.sum(1) > 0)).sum())
    findings.counts["gradients beyond the dtype"] += int(hard.sum())
    findings.counts["gradients with too many ties"] += int((~tried).sum())
    _blame_unless_warned(batch, answer, "gradient: wrong", wrong, best, items, findings)
    plain = np.flatnonzero(reference.condition > 1e13)
    if len(plain):
        only = pieces.select(plain)
        single = np.bincount(case_items, minlength=batch.count)[only.item] == 1
        silent = singular_faults(batch, problem, answer, only.select(np.flatnonzero(single)), findings)
        _blame_unless_warned(batch, answer, "gradient: singular and silent", silent > 0, silent, items, findings)


def _at_zero(problem: Exact, w: Array) -> Array:
    """Whether a weight is 0 within a tie, so that without an L1 weight its sign is anyone's guess."""
    return abs(w) <= 4 * TIE * problem.eps * abs(w).max(1, keepdims=True)


def _may_have_other_pieces(problem: Exact, w: Array, condition: Array, pieces: Pieces) -> Array:
    """Items so ill conditioned that what rounding does to the weights may put them on other pieces."""
    worst = np.zeros(len(w), np.longdouble)
    np.maximum.at(worst, pieces.item, condition)
    width = np.minimum(10 * problem.eps * worst, 1.0)
    certificate = certify(problem, w, 4 * TIE * problem.eps)
    near = locate(problem, w, certificate, width)
    plain = locate(problem, w, certificate)
    return (near.open != plain.open).any(1) | (near.tight_open != plain.tight_open) | near.narrow


def _in_units(batch: Batch, answer: Answer, name: str) -> Array:
    """A gradient in the units that the oracle works in."""
    weight, force = batch.weight_unit, batch.force_unit
    unit = {
        "M": force[:, :, None] / weight[:, None, :],
        "q": force,
        "l1": force,
        "lower": weight,
        "upper": weight,
        "total": weight[:, 0],
    }[name]
    return answer.gradients[name].astype(np.longdouble) * unit


def _blame_unless_warned(
    batch: Batch, answer: Answer, kind: str, wrong: Array, detail: Array, items: Array, findings: Findings
) -> None:
    """Blames items for a gradient, but not those that are warned of, each asked by itself."""
    suspects = np.flatnonzero(wrong)
    if answer.warned:
        asked, unasked = suspects[:50], suspects[50:]
        silent = [k for k in asked if not ask(batch.select(np.array([k]))).warned]
        findings.counts[f"{kind}, and warned of"] += len(suspects) - len(silent)
        suspects = np.array(silent, int)
        findings.counts["warned of in a batch, not asked alone"] += len(unasked)
    blamed = np.zeros(batch.count, bool)
    blamed[suspects] = True
    findings.blame(kind, blamed, detail, items)
