"""Whether gradients are those of one of the pieces on which the weights may lie."""

from __future__ import annotations

import numpy as np

from benchmarks.fuzz.adjoint import NAMES, adjoint
from benchmarks.fuzz.ask import Answer, ask
from benchmarks.fuzz.batches import Array, Batch, Exact
from benchmarks.fuzz.certificate import certify
from benchmarks.fuzz.findings import Findings
from benchmarks.fuzz.pieces import Pieces, enumerate_pieces, locate
from benchmarks.fuzz.singular import singular_faults
from benchmarks.fuzz.tolerances import ANSWER, GRADIENTS, STABLE, TIE

SINGULAR = 1e13  # condition from which on the rank is looked at
ASKED_ALONE = 50  # items of a batch that was warned of


def judge_gradients(batch: Batch, problem: Exact, answer: Answer, items: Array, findings: Findings) -> None:
    """Compares the gradients of solved items with every adjacent piece; who is right on one of them is right.

    Args:
        batch: Solved items.
        problem: The same.
        answer: The same.
        items: Which items of the batch that ``findings`` is about they are.
        findings: What is found.
    """
    error, tried, hard, pieces, condition = _errors(batch, problem, answer, 0.0)
    wrong = np.flatnonzero(tried & ~hard & ~(error <= 1))
    if len(wrong):  # or right for weights as near as the solver can tell
        width = ANSWER[answer.weights.dtype.type]
        again, near, unsure, _, _ = _errors(batch.select(wrong), problem.select(wrong), answer.select(wrong), width)
        error[wrong] = np.where(near & (unsure | (again <= 1)), 0, error[wrong])
        findings.counts["gradients right within the tolerance of weights"] += int((error[wrong] == 0).sum())
    findings.counts["gradients checked"] += int((tried & ~hard).sum())
    with_ties = np.bincount(pieces.item, minlength=batch.count) > 1
    findings.counts["gradients with ties checked"] += int((tried & ~hard & with_ties).sum())
    findings.counts["gradients beyond the dtype"] += int(hard.sum())
    findings.counts["gradients with too many ties"] += int((~tried).sum())
    _blame_unless_warned(batch, answer, "gradient: wrong", tried & ~hard & ~(error <= 1), error, items, findings)
    plain = np.flatnonzero((condition > SINGULAR) & ~with_ties[pieces.item])
    if len(plain):
        faults = singular_faults(batch, problem, answer, pieces.select(plain), findings)
        _blame_unless_warned(batch, answer, "gradient: singular and silent", faults > 0, faults, items, findings)


def _errors(batch: Batch, problem: Exact, answer: Answer, width: float) -> tuple[Array, Array, Array, Pieces, Array]:
    """The least error over the adjacent pieces, relative to what it may be.

    Returns:
        Errors ``(B,)``; which items have few enough ties to try, and which are too ill conditioned to tell, ``(B,)``
        bool; the pieces that were tried, and the conditions there.
    """
    B, L = batch.count, batch.size
    w = answer.weights.astype(np.longdouble) / batch.weight_unit
    certificate = certify(problem, w, max(4 * TIE * problem.eps, width))
    position = locate(problem, w, certificate, width)
    pieces = enumerate_pieces(problem, position)
    case = pieces.item
    reference = adjoint(problem, w, pieces)
    rounding = STABLE * (L + 4) * problem.eps * reference.condition
    hard = np.zeros(B, bool)
    hard[case[rounding > 0.1]] = True
    worst = np.zeros(B, np.longdouble)
    np.maximum.at(worst, case, reference.condition)
    near = locate(problem, w, certificate, np.clip(10 * problem.eps * worst, width, 1))  # where rounding may put them
    hard |= (near.open != position.open).any(1) | (near.tight_open != position.tight_open) | near.narrow
    relative, tiny = GRADIENTS[answer.weights.dtype.type], np.finfo(answer.weights.dtype).tiny
    error = np.zeros(len(case))
    for name in NAMES:
        if name not in answer.gradients:
            continue
        got, right = _comparable(batch, problem, answer, w, name, reference.gradients, case)
        off, size = (abs(x).max(tuple(range(1, x.ndim)), initial=0) for x in (got - right, right))
        allowed = relative * size + (rounding + tiny) * reference.sizes[name] + 1e-300
        error = np.maximum(error, np.where(np.isfinite(off), off / allowed, np.inf))
    best = np.full(B, np.inf)
    np.minimum.at(best, case, error)
    return best, np.isin(np.arange(B), case), hard, pieces, reference.condition


def _comparable(
    batch: Batch, problem: Exact, answer: Answer, w: Array, name: str, reference: dict[str, Array], case: Array
) -> tuple[Array, Array]:
    """What was returned and what is right, per case, in the oracle's units; where anything is right, the same."""
    got, right = in_units(batch, name, answer.gradients[name])[case], reference[name]
    pinned = problem.lower == problem.upper  # which of the two bounds moves it, is anyone's choice
    if name in ("lower", "upper") and {"lower", "upper"} <= answer.gradients.keys():
        both = sum(in_units(batch, bound, answer.gradients[bound])[case] for bound in ("lower", "upper"))
        got = np.where(pinned[case], both, got)
        right = np.where(pinned[case], reference["lower"] + reference["upper"], right)
    elif name in ("lower", "upper"):
        got = np.where(pinned[case], right, got)
    if name == "l1":  # the sign of a weight that is 0 within a tie, without an L1 weight that holds it there
        at_zero = abs(w) <= 4 * TIE * problem.eps * abs(w).max(1, keepdims=True)
        got = np.where(((problem.l1 == 0) & at_zero)[case], right, got)
    return got, right


def in_units(batch: Batch, name: str, gradient: Array) -> Array:
    """A gradient in the units that the oracle works in."""
    weight, force = batch.weight_unit, batch.force_unit
    unit = {"M": force[:, :, None] / weight[:, None, :], "q": force, "l1": force, "total": weight[:, 0]}
    return gradient.astype(np.longdouble) * unit.get(name, weight)


def _blame_unless_warned(
    batch: Batch, answer: Answer, kind: str, wrong: Array, detail: Array, items: Array, findings: Findings
) -> None:
    """Blames items for a gradient, but not those that are warned of, each asked by itself."""
    suspects = np.flatnonzero(wrong)
    if answer.warned:
        asked, unasked = suspects[:ASKED_ALONE], suspects[ASKED_ALONE:]
        silent = [k for k in asked if not ask(batch.select(np.array([k]))).warned]
        findings.counts[f"{kind}, and warned of"] += len(asked) - len(silent)
        findings.counts[f"{kind}, warned of in a batch, not asked alone"] += len(unasked)
        suspects = np.array(silent, int)
    blamed = np.zeros(batch.count, bool)
    blamed[suspects] = True
    findings.blame(kind, blamed, detail, items)
