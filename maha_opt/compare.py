"""The study behind ``maha-opt compare``: every solver on the same problems, against the exact reference.

A cell is one solver on one batch of problems. Cells come one at a time, so that nothing is lost when a run ends early;
one that crashes says so and does not stop the others.

- Errors are measured on the first items of the batch, which the reference (`cvxpylayers`, in float64) has solved and
  whose certificate has been checked. Gradients are compared where the solution map is smooth: at a kink two solvers may
  rightly return two different one-sided derivatives.
- Residual, exploitability and iterations are those of all items that the solver was given.
- A time is that of ``solve`` and of its backward pass together, after a first untimed call; the median of some calls.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from maha_opt.cells import Batch, Cell
from maha_opt.contenders import Contender
from solvers import AffineVI, FeasibleSet, Solution, exploitability, solve

__all__ = ["REFERENCE", "Batch", "Cell", "compare", "take"]

REFERENCE = Contender("cvxpylayers")
REFERENCE_TOLERANCE = 1e-7
"""Relative residual above which an answer of the reference is not used."""

OFF = 1e-4
"""A weight counts as switched off if it is smaller than this, relative to the largest of its problem."""

LONG_CALL = 0.5
"""Seconds after which a first call is the measurement itself, and no further repeats are begun."""


@dataclass(frozen=True)
class _Answer:
    """What one call returns: the solution, and the gradients of its weights times a cotangent."""

    solution: Solution
    gradient_q: Tensor | None
    gradient_M: Tensor | None  # noqa: N815


@dataclass(frozen=True)
class _Reference:
    """The first items, the reference's answers to them, and which of them may be used for what.

    Gradients smaller than ``least_gradient`` are rounding around zero, as where a set leaves no choice.
    """

    problem: AffineVI
    answer: _Answer
    certified: Tensor
    smooth: Tensor
    seconds_per_problem: float
    least_gradient: float


def compare(
    batches: Iterable[Batch],
    contenders: Iterable[Contender],
    *,
    covered: int = 64,
    repeats: int = 3,
    max_iter: int | None = None,
) -> Iterator[Cell]:
    """Measures every contender on every batch.

    Args:
        batches: The problems; each batch is drawn when its turn comes.
        contenders: Who takes part. The reference always does, first.
        covered: Number of problems of every batch that the reference solves; contenders that go through a batch item by
            item get these only.
        repeats: Timed calls, at most.
        max_iter: Bound on the iterations of the iterative solvers; None: their own.

    Yields:
        A cell as soon as it is finished: for each batch that of the reference, then the others in their order.
    """
    contenders = [contender for contender in contenders if contender != REFERENCE]
    for batch in batches:
        cotangent = torch.randn(batch.problem.q.shape, generator=torch.Generator().manual_seed(batch.seed))
        cotangent = cotangent.to(batch.problem.q)
        cell, reference = _measure_reference(batch, cotangent, covered, repeats)
        yield cell
        for contender in contenders:
            yield _measure(contender, batch, cotangent, reference, covered, repeats, max_iter)


def take(problem: AffineVI, items: Tensor | slice, dtype: torch.dtype | None = None) -> AffineVI:
    """Some problems of a batch, optionally in another floating point type; without gradients.

    Args:
        problem: The batch.
        items: What indexes its batch dimensions: of one dimension a slice or numbers, of any a bool mask.
        dtype: Floating point type of what is returned; None: that of the problem.
    """
    shape, C = problem.batch_shape, problem.feasible

    def part(value: Tensor, *trailing: int) -> Tensor:
        value = value.detach().expand(*shape, *trailing)[items]
        return value if dtype is None or value.dtype == torch.bool else value.to(dtype)

    def bound(value: Tensor | float, *trailing: int) -> Tensor | float:
        return part(value, *trailing) if isinstance(value, Tensor) else value

    L = problem.size
    feasible = FeasibleSet(
        bound(C.lower, L),
        bound(C.upper, L),
        None if C.total is None else bound(C.total),
        C.equality,
        None if C.mask is None else part(C.mask, L),
    )
    return AffineVI(part(problem.M, L, L), part(problem.q, L), feasible, bound(problem.l1, L), problem.symmetric)


def _measure_reference(batch: Batch, cotangent: Tensor, covered: int, repeats: int) -> tuple[Cell, _Reference | None]:
    cell = _empty_cell(REFERENCE, batch)
    try:
        problem = take(batch.problem, slice(covered), torch.float64)
        cotangent = cotangent[:covered].double()
        answer, seconds, calls = _timed(lambda: _call(REFERENCE, problem, cotangent), repeats, len(problem.q), True)
        certified = answer.solution.converged
        least = float(1e-6 * cotangent.norm() / problem.M.abs().max().clamp_min(1e-300))
        reference = _Reference(problem, answer, certified, certified & _is_smooth(problem, cotangent), seconds, least)
        cell = replace(cell, **_certificates(answer, problem), **_counts(reference))
    except Exception as error:
        return failed(cell, error), None
    return replace(cell, seconds_per_problem=seconds, repeats=calls, speed_up=1.0), reference


def _measure(
    contender: Contender,
    batch: Batch,
    cotangent: Tensor,
    reference: _Reference | None,
    covered: int,
    repeats: int,
    max_iter: int | None,
) -> Cell:
    cell = _empty_cell(contender, batch)
    if reason := contender.why_not(batch.problem.feasible):
        return replace(cell, status="not run", reason=reason)
    slow = contender.one_at_a_time
    limit = max_iter if contender.iterative else None
    try:
        items = slice(covered) if slow else slice(None)
        problem = take(batch.problem, items)
        count = len(problem.q)
        answer, seconds, calls = _timed(
            lambda: _call(contender, problem, cotangent[items], limit), repeats, count, must_repeat=slow
        )
        cell = replace(cell, **_certificates(answer, problem), seconds_per_problem=seconds, repeats=calls)
        if reference is not None:
            cell = replace(cell, **_counts(reference), **_errors(answer, reference))
            cell = replace(cell, speed_up=reference.seconds_per_problem / seconds)
    except Exception as error:  # whatever a solver raises is its result here, not the end of the study
        return failed(cell, error)
    return cell


def _call(contender: Contender, problem: AffineVI, cotangent: Tensor, max_iter: int | None = None) -> _Answer:
    """Solves and differentiates once, and waits until the device is done."""
    M, q = problem.M.detach().clone(), problem.q.detach().clone()
    differentiable = contender.differentiable
    if differentiable:
        M.requires_grad_()
        q.requires_grad_()
    problem = replace(problem, M=M, q=q)
    tol = REFERENCE_TOLERANCE if contender == REFERENCE and q.dtype == torch.float64 else None
    options: dict[str, Any] = dict(contender.options)
    solution = solve(problem, contender.solver, contender.gradient, tol, max_iter, "ignore", **options)
    gradients: list[Tensor | None] = [None, None]
    if differentiable and solution.weights.requires_grad:
        objective = (solution.weights * cotangent).sum()
        gradients = list(torch.autograd.grad(objective, (q, M), allow_unused=True))
    if differentiable:  # a solver that does not look at M or q, such as the mean, has the gradient 0
        gradients = [
            torch.zeros_like(tensor) if gradient is None else gradient
            for gradient, tensor in zip(gradients, (q, M), strict=True)
        ]
    if q.device.type != "cpu":
        torch.accelerator.synchronize(q.device)
    return _Answer(replace(solution, weights=solution.weights.detach()), *gradients)


def _timed(call: Callable[[], _Answer], repeats: int, problems: int, must_repeat: bool) -> tuple[_Answer, float, int]:
    """The answer of a first call, seconds per problem, and the number of calls that these are the median of."""

    def timed_call() -> tuple[_Answer, float]:
        start = time.perf_counter()
        answer = call()
        return answer, time.perf_counter() - start

    answer, first = timed_call()
    if first > LONG_CALL and not must_repeat:  # what is only done the first time does not weigh in a call that long
        return answer, first / problems, 1
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < LONG_CALL:
        seconds.append(timed_call()[1])
    return answer, median(seconds) / problems, len(seconds)


def _is_smooth(problem: AffineVI, direction: Tensor) -> Tensor:
    """Which items are away from a kink of the solution map ``q ↦ w``.

    The map is linear between its kinks, so the second difference along a line is zero unless there is one within reach.
    """
    scale = problem.q.abs().amax(-1, keepdim=True).clamp_min(1e-300)
    reach = 1e-6 * scale * direction
    ahead, here, behind = (
        solve(replace(problem, q=problem.q + shift), on_failure="ignore").weights for shift in (reach, 0.0, -reach)
    )
    bend = (ahead - 2 * here + behind).abs().amax(-1)
    return bend <= 1e-3 * (ahead - behind).abs().amax(-1) + 1e-12 * here.abs().amax(-1)


def _certificates(answer: _Answer, problem: AffineVI) -> dict[str, float | int]:
    solution = answer.solution
    return {
        "problems": len(problem.q),
        "residual": float(solution.residual.max()),
        "exploitability": float(exploitability(problem, solution.weights).max()),
        "iterations": float(solution.iterations.double().mean()),
        "unconverged": int((~solution.converged).sum()),
    }


def _counts(reference: _Reference) -> dict[str, int]:
    return {"covered": int(reference.certified.sum()), "smooth": int(reference.smooth.sum())}


def _errors(answer: _Answer, reference: _Reference) -> dict[str, float]:
    exact, n = reference.answer, len(reference.certified)
    errors: dict[str, float] = {}
    w, exact_w = answer.solution.weights[:n].double(), exact.solution.weights
    if bool(reference.certified.any()):
        difference = (w - exact_w)[reference.certified].abs().amax(-1)
        errors = {"error_weights_max": float(difference.max()), "error_weights_mean": float(difference.mean())}
        same = (_switched_off(w) == _switched_off(exact_w)).all(-1)
        errors["support_recovered"] = float(same[reference.certified].double().mean())
        if reference.problem.symmetric is not False:
            gap = _objective(reference.problem, w) - _objective(reference.problem, exact_w)
            convex = reference.certified & reference.problem.standard().is_symmetric()
            if bool(convex.any()):
                errors["objective_gap"] = float(gap[convex].mean())
    for name in ("gradient_q", "gradient_M"):
        own, true = getattr(answer, name), getattr(exact, name)[reference.smooth]
        if own is not None and len(true):
            own, size = own[:n].double()[reference.smooth], true.norm().clamp_min(reference.least_gradient)
            errors[f"error_{name}"] = float((own - true).norm() / size)
            if float(own.norm()) and float(true.norm()) >= reference.least_gradient:
                errors[f"cosine_{name}"] = float((own * true).sum() / (own.norm() * true.norm()))
    return errors


def _switched_off(w: Tensor) -> Tensor:
    return w.abs() <= OFF * w.abs().amax(-1, keepdim=True)


def _objective(problem: AffineVI, w: Tensor) -> Tensor:
    """``½wᵀMw + qᵀw + Σ λ_i|w_i|``, ``(B,)``."""
    products = (problem.M @ w.unsqueeze(-1)).squeeze(-1)
    return (0.5 * w * products + problem.q * w + problem.l1 * w.abs()).sum(-1)


def _empty_cell(contender: Contender, batch: Batch) -> Cell:
    return Cell(batch.kind, contender.label, contender.gradient, contender.steps, batch.seed)


def failed(cell: Cell, error: Exception) -> Cell:
    """The cell, saying how it crashed."""
    line = (str(error).strip() or "no message").splitlines()[0]
    text = "".join(traceback.format_exception(error))
    return replace(cell, status="failed", reason=f"{type(error).__name__}: {line}", traceback=text)
