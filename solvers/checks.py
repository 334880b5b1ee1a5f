"""What can be wrong with the values of a problem, item by item."""

from __future__ import annotations

import math
import sys
import warnings

import torch
from torch import Tensor

from solvers.standard_form import StandardForm
from solvers.status import Status

SINGULAR = 1e-6
"""The relative residual above which the linear system of a gradient counts as unsolved."""


class ConvergenceError(RuntimeError):
    """An answer, or a gradient, is none, and the caller asked to be stopped by that."""


def find_faults(problem: StandardForm) -> list[tuple[str, Tensor, Status]]:
    """Every kind of fault with the items that have it, each ``(message, (B,) bool, status)``."""
    l1 = problem.linear_l1 if problem.l1 is None else problem.l1
    faulty, infeasible = Status.FAULTY_DATA, Status.INFEASIBLE
    faults = [("M holds NaN or Inf", ~problem.M.isfinite().flatten(0, 1).all(0), faulty)]
    if l1 is not None:
        faults.append(("l1 holds NaN or Inf", ~l1.isfinite().all(0), faulty))
        faults.append(("l1 is negative", (l1 < 0).any(0), faulty))
    if problem.linear_l1 is None or bool(problem.linear_l1.isfinite().all()):  # else it is not q's own fault
        faults.append(("q holds NaN or Inf", ~problem.q.isfinite().all(0), faulty))
    lower, upper, _ = problem.bounds_and_l1()
    if problem.lower is not None or problem.upper is not None:
        faults.append(("lower or upper holds NaN", (lower.isnan() | upper.isnan()).any(0), faulty))
        faults.append(("the set is empty: lower is above upper", (lower > upper).any(0), infeasible))
        endless = ((lower == torch.inf) | (upper == -torch.inf)).any(0)
        faults.append(("the set is empty: lower is inf or upper is -inf", endless, infeasible))
    if problem.total is not None:
        total = problem.total
        faults.append(("total holds NaN or Inf", ~total.isfinite(), faulty))
        below, above = out_of_reach(problem)
        if problem.exists is not None:
            nobody = ~problem.exists.any(0) & (below | above)
            faults.append(("the set is empty: mask leaves no coordinate", nobody, infeasible))
            below, above = below & ~nobody, above & ~nobody
        faults.append(("the set is empty: total is below the sum of lower", below, infeasible))
        if problem.equality:
            faults.append(("the set is empty: total is above the sum of upper", above, infeasible))
    return faults


def out_of_reach(problem: StandardForm) -> tuple[Tensor, Tensor]:
    """Where the total is below what the lower bounds sum to, and above the upper, beyond rounding; ``(B,)`` bool."""
    total, (lower, upper, _) = problem.required_total, problem.bounds_and_l1()
    rounding = 1e2 * torch.finfo(total.dtype).eps
    below = total < lower.sum(0) - rounding * (total.abs() + lower.clamp(min=-1e30).abs().sum(0))
    above = total > upper.sum(0) + rounding * (total.abs() + upper.clamp(max=1e30).abs().sum(0))
    return below, above & problem.equality


def looks_sound(problem: StandardForm, fixed_set: bool) -> bool:
    """A quick look at the whole batch: True only if `find_faults` would find nothing.

    Args:
        problem: The problem.
        fixed_set: Whether the set is known to be sound.
    """
    if not math.isfinite(float(problem.M.sum() + problem.q.sum())):  # NaN and Inf survive a sum
        return False
    if fixed_set and problem.l1 is None and problem.linear_l1 is None:
        return True
    sound = torch.ones((), dtype=torch.bool, device=problem.q.device)
    for l1 in (problem.l1, problem.linear_l1):
        if l1 is not None:
            sound = sound & l1.sum().isfinite() & (l1 >= 0).all()
    if fixed_set:
        return bool(sound)
    lower, upper, _ = problem.bounds_and_l1()
    sound = sound & ((lower <= upper) & (lower < torch.inf) & (upper > -torch.inf)).all()
    if problem.exists is not None:
        sound = sound & problem.exists.any(0).all()
    if problem.total is not None:
        total = problem.total
        reached = (lower.sum(0) <= total) & ((upper.sum(0) >= total) if problem.equality else True)
        sound = sound & total.sum().isfinite() & reached.all()
    return bool(sound)


def report(messages: list[tuple[str, Tensor]], batch_shape: list[int], on_failure: str, error: type[Exception]) -> None:
    """Raises or warns about the items that ``messages`` point at, naming the first offending batch index of each.

    Args:
        messages: As from `find_faults`.
        batch_shape: The user's batch dimensions.
        on_failure: ``"raise"``, ``"warn"`` or ``"ignore"``.
        error: What to raise.
    """
    if on_failure == "ignore":
        return
    found = []
    for message, items in messages:
        count = int(items.sum())
        if count:
            first = int(items.nonzero()[0, 0])
            if len(batch_shape) > 1 and math.prod(batch_shape) == items.numel():
                index: object = tuple(int(i) for i in torch.unravel_index(torch.tensor(first), tuple(batch_shape)))
            else:
                index = first
            found.append(
                message + (f" at batch index {index}" if batch_shape else "") + f" ({count} of {items.numel()})"
            )
    if not found:
        return
    if on_failure == "raise":
        raise error("; ".join(found) + ".")
    warnings.warn("; ".join(found) + ".", stacklevel=_frames_of_ours())


def report_failures(status: Tensor, residual: Tensor, tol: float, batch_shape: list[int], on_failure: str) -> None:
    """Raises `ConvergenceError` or warns about the items whose `Status`, ``(B,)``, is not solved.

    Args:
        status: The status of each item.
        residual: Its relative residual.
        tol: What was asked for.
        batch_shape: The user's batch dimensions.
        on_failure: ``"raise"``, ``"warn"`` or ``"ignore"``.
    """
    if on_failure == "ignore" or bool((status == Status.SOLVED).all()):
        return
    messages = []
    for kind in (Status.ITERATION_LIMIT, Status.UNBOUNDED, Status.NOT_MONOTONE):
        items = status == kind
        if bool(items.any()):
            message = kind.message
            if kind == Status.ITERATION_LIMIT:
                message = f"not solved to tol={tol:g}, residual up to {float(residual[items].max()):.1e}"
            messages.append((message, items))
    report(messages, batch_shape, on_failure, ConvergenceError)


def report_gradient(residual: Tensor, batch_shape: list[int], on_failure: str) -> None:
    """Raises `ConvergenceError` or warns about the items whose gradient solves its linear system to no more than this.

    Args:
        residual: ``(B,)``, relative, see `solvers.kkt.KKTSolution`.
        batch_shape: The user's batch dimensions.
        on_failure: ``"raise"``, ``"warn"`` or ``"ignore"``.
    """
    if on_failure == "ignore":
        return
    unsolved = residual > SINGULAR
    if bool(unsolved.any()):
        message = (
            "the weights are not differentiable: the active equations depend on each other, so the gradient is their "
            f"least-squares solution of least norm, residual up to {float(residual.max()):.1e}"
        )
        report([(message, unsolved)], batch_shape, on_failure, ConvergenceError)


def _frames_of_ours() -> int:
    """How many frames up the first one outside of this package and of torch is: a warning points at the user's line."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("solvers", "torch"):
        frame, level = frame.f_back, level + 1
    return level
