"""What can be wrong with the values of a problem, item by item."""

from __future__ import annotations

import math
import sys
import warnings

import torch
from torch import Tensor

from solvers.standard_form import StandardForm


def find_faults(problem: StandardForm, *, monotone: bool = False) -> list[tuple[str, Tensor]]:
    """Every kind of fault with the items that have it, each ``(message, (B,) bool)``.

    Args:
        problem: The problem.
        monotone: Whether to ask for ``½(M + Mᵀ)`` positive semidefinite as well, up to rounding.
    """
    l1 = problem.linear_l1 if problem.l1 is None else problem.l1
    faults = [("M holds NaN or Inf", ~problem.M.isfinite().flatten(0, 1).all(0))]
    if l1 is not None:
        faults.append(("l1 holds NaN or Inf", ~l1.isfinite().all(0)))
        faults.append(("l1 is negative", (l1 < 0).any(0)))
    if problem.linear_l1 is None or bool(problem.linear_l1.isfinite().all()):  # else it is not q's own fault
        faults.append(("q holds NaN or Inf", ~problem.q.isfinite().all(0)))
    if problem.exists is not None:
        faults.append(("mask leaves no coordinate", ~problem.exists.any(0)))
    lower, upper, _ = problem.bounds_and_l1()
    if problem.lower is not None or problem.upper is not None:
        faults.append(("lower or upper holds NaN", (lower.isnan() | upper.isnan()).any(0)))
        faults.append(("lower is above upper", (lower > upper).any(0)))
        faults.append(("lower is inf or upper is -inf", ((lower == torch.inf) | (upper == -torch.inf)).any(0)))
    if problem.total is not None:
        total = problem.total
        rounding = 1e2 * torch.finfo(total.dtype).eps
        least, most = lower.sum(0), upper.sum(0)
        faults.append(("total holds NaN or Inf", ~total.isfinite()))
        below = total < least - rounding * (total.abs() + lower.clamp(min=-1e30).abs().sum(0))
        faults.append(("total is below the sum of lower", below))
        if problem.equality:
            above = total > most + rounding * (total.abs() + upper.clamp(max=1e30).abs().sum(0))
            faults.append(("total is above the sum of upper", above))
    if monotone:
        faults.append(("M is not monotone: ½(M + Mᵀ) has a negative eigenvalue", ~is_monotone(problem)))
    return faults


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


def is_monotone(problem: StandardForm) -> Tensor:
    """Which items have ``½(M + Mᵀ)`` positive semidefinite up to rounding, ``(B,)`` bool; not those with NaN or Inf."""
    M = problem.M.movedim(-1, 0)
    finite = M.isfinite().flatten(1).all(1)
    M = torch.where(finite[:, None, None], M, 0.0)
    eigenvalues = torch.linalg.eigvalsh(0.5 * (M + M.mT))
    rounding = 32 * problem.size * torch.finfo(M.dtype).eps
    return finite & (eigenvalues[..., 0] >= -rounding * eigenvalues.abs().amax(-1))


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


def _frames_of_ours() -> int:
    """How many frames up the first one outside of this package is, so that a warning points at the user's line."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "solvers":
        frame, level = frame.f_back, level + 1
    return level
