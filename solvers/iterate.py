"""The one loop of the approximate solvers: a fixed number of steps, or until every item carries its certificate."""

from __future__ import annotations

from numbers import Integral
from typing import Protocol

import torch
from torch import Tensor

from solvers.natural import relative_residual, tolerance_of
from solvers.standard_form import StandardForm, is_tracing

State = tuple[Tensor, ...]
"""What an iteration carries on, each tensor with the batch last; the weights ``(L, B)`` come first."""


class Iterative(Protocol):
    """What an approximate solver is made of; one that has these two can be watched at work, see `trajectory`."""

    def start(self, problem: StandardForm) -> State:
        """Where the iteration starts."""
        ...

    def step(self, problem: StandardForm, state: State) -> State:
        """The next state; treats the items of a batch independently."""
        ...


CHECK_EVERY = 8
"""Steps between two looks at the certificate, which costs about as much as a step."""


def check_unroll(unroll: int | None) -> None:
    """Raises ValueError unless ``unroll`` is a number of iterations or None."""
    if unroll is not None and (not isinstance(unroll, Integral) or int(unroll) < 1):
        raise ValueError(f"unroll must be a whole number of iterations, at least 1, but got {unroll}.")


def iterate(
    method: Iterative,
    problem: StandardForm,
    *,
    steps: int | None,
    tol: float,
    max_iter: int,
) -> tuple[Tensor, Tensor]:
    """Applies the steps of a method over and over.

    Args:
        method: Where to start, and one iteration.
        problem: The problem.
        steps: A fixed number of iterations, or ``None`` for as many as the tolerance asks.
        tol: Relative tolerance of the natural residual (see `solvers.natural.natural_map`).
        max_iter: Bound on the number of iterations.

    Returns:
        Weights ``(L, B)`` and the number of iterations ``(B,)``. An item that meets its tolerance leaves the batch, so
        that its neighbours change neither its digits nor its cost. Differentiable if the steps are.
    """
    if not is_tracing(problem):
        problem = problem.with_known_symmetry()
    state = method.start(problem)
    if steps is not None:
        for _ in range(steps):
            state = method.step(problem, state)
        return state[0], torch.full_like(state[0][0], steps, dtype=torch.long)

    everyone = torch.arange(problem.batch, device=problem.q.device)
    active, finished, weights, counts = everyone, [], [], []
    for k in range(1, max_iter + 1):
        if active.numel() == 0:
            break
        state = method.step(problem, state)
        if k % CHECK_EVERY and k < max_iter:
            continue
        with torch.no_grad():
            leaving = (relative_residual(problem, state[0]) <= tolerance_of(problem, tol)) | (k == max_iter)
            gone, rest = leaving.nonzero()[:, 0], (~leaving).nonzero()[:, 0]
        if gone.numel():
            finished.append(active[gone])
            weights.append(state[0][:, gone])
            counts.append(torch.full_like(gone, k))
            active, problem = active[rest], problem.select(rest)
            state = tuple(tensor.index_select(-1, rest) for tensor in state)
    if not finished:
        return state[0], torch.zeros_like(everyone)
    order = torch.cat(finished).argsort()
    return torch.cat(weights, 1)[:, order], torch.cat(counts)[order]


def trajectory(method: Iterative, problem: StandardForm, steps: int) -> Tensor:
    """The weights before the first step and after each of ``steps`` steps, ``(steps + 1, L, B)``."""
    problem = problem.with_known_symmetry()
    state = method.start(problem)
    weights = [state[0]]
    for _ in range(steps):
        state = method.step(problem, state)
        weights.append(state[0])
    return torch.stack(weights)
