"""`solve`: any solver, any gradient, one certified answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from solvers.gradients import attach_implicit_gradient
from solvers.natural import natural_map
from solvers.opaque import ConvergenceError, inspect, judge, run
from solvers.problem import AffineVI
from solvers.registry import Differentiable, Solver, make_solver
from solvers.standard_form import StandardForm, is_tracing

__all__ = ["ConvergenceError", "Solution", "solve"]

DEFAULT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
GRADIENTS = ("implicit", "unrolled", "one_step")
ON_FAILURE = ("raise", "warn", "ignore")


@dataclass(frozen=True, eq=False)
class Solution:
    """What `solve` returns.

    Attributes:
        weights: ``(*batch, L)``, in the dtype of ``q``; differentiable as asked. NaN for items with faulty data.
        residual: ``(*batch,)``, the natural residual, measured after the solve and independently of the solver.
        tolerance: ``(*batch,)``, what the residual had to stay under: ``tol`` relative to the size of the problem, see
            `solvers.natural.natural_map`.
        converged: ``(*batch,)`` bool, ``residual ≤ tolerance``.
        iterations: ``(*batch,)`` int; linear solves for ``pivot``, 0 for solvers that do not iterate or do not say.
        solver: The flag of the solver.
        gradient: The flag of the gradient.
    """

    weights: Tensor
    residual: Tensor
    tolerance: Tensor
    converged: Tensor
    iterations: Tensor
    solver: str
    gradient: str


def solve(
    problem: AffineVI,
    solver: str = "pivot",
    gradient: str = "implicit",
    tol: float | None = None,
    max_iter: int | None = None,
    on_failure: Literal["raise", "warn", "ignore"] = "warn",
    *,
    check_monotone: bool = False,
    **options: object,
) -> Solution:
    """Solves every problem of a batch.

    >>> import torch
    >>> from solvers import AffineVI, Simplex, solve
    >>> q = torch.tensor([-0.6, -0.4, 0.0, 1.0], requires_grad=True)
    >>> solution = solve(AffineVI(torch.eye(4), q, feasible=Simplex()))
    >>> solution.weights
    tensor([0.6000, 0.4000, 0.0000, 0.0000], grad_fn=...)
    >>> bool(solution.converged)
    True

    Args:
        problem: The problems.
        solver: One of `available_solvers`.
        gradient: ``"implicit"`` differentiates the solution through its optimality conditions, whatever solver found
            it. ``"unrolled"`` differentiates the iterations. ``"one_step"`` differentiates one more step from the
            answer as if it had no history (Bolte, Pauwels and Vaiter 2023). ``cvxpylayers``, ``softmax`` and ``mean``
            carry their own derivative and take ``"implicit"`` only; ``scipy`` returns weights without a gradient.
        tol: Relative tolerance of the natural residual; 1e-9 in float64 and 1e-5 in float32 if omitted, or
            what the solver can reach (1e-8 for ``cvxpylayers``, 1e-6 for ``scipy``).
        max_iter: Bound on the iterations; the solver's own default if omitted.
        on_failure: What to do about items with faulty data or an answer above its tolerance: ``"raise"`` ValueError or
            `ConvergenceError`; ``"warn"`` and return NaN or the unconverged answer, with ``converged=False``;
            ``"ignore"``: the same without a word. The other items are solved all the same. If every item's data is
            faulty, ``"warn"`` raises too. An answer after a fixed number of iterations (``unroll=K``) and the
            heuristics ``softmax`` and ``mean`` report ``converged`` but never fail.
        check_monotone: Whether an ``M`` whose symmetric part has a negative eigenvalue is a fault. Costs an eigenvalue
            decomposition per item.
        options: Options of the solver, such as ``unroll=K`` (a fixed number of iterations), ``damping`` and ``sweep``
            for ``best_response``, ``temperature`` for ``softmax``.

    Raises:
        ValueError: For an unknown flag, a set that the solver does not take, or faulty data (see ``on_failure``).
        TypeError: For an option that the solver does not have.
        ConvergenceError: For an answer above its tolerance with ``on_failure="raise"``.
        RuntimeError: For a solver that ``torch.compile`` or ``torch.func.vmap`` cannot go through.
    """
    if on_failure not in ON_FAILURE:
        raise ValueError(f"on_failure must be one of {ON_FAILURE}, but got {on_failure!r}.")
    if tol is not None and not tol > 0:
        raise ValueError(f"tol must be positive, but got {tol}.")
    if max_iter is not None and not (isinstance(max_iter, int) and max_iter >= 1):
        raise ValueError(f"max_iter must be a whole number, at least 1, but got {max_iter!r}.")
    method = make_solver(solver, options)
    _check_gradient(solver, method, gradient)
    method.check_set(problem.feasible)

    standard = problem.standard()
    if tol is None:
        tol = max(DEFAULT_TOLERANCE[standard.q.dtype], getattr(method, "accuracy", 0.0))
    batch_shape = list(problem.batch_shape)
    data = standard.detach()
    good = inspect(data, problem.feasible.is_fixed, batch_shape, on_failure, check_monotone)
    healthy = standard
    if good is not None:
        healthy = _replace_faulty(standard, good)
        data = healthy.detach()
    if gradient == "unrolled" or "own" in method.gradients:
        if is_tracing(standard) and method.to_tolerance:
            raise RuntimeError(
                f"torch.compile and torch.func.vmap cannot go through {solver!r} here: its number of steps depends on "
                "the data; use gradient='implicit' with one of our solvers, or a fixed number of iterations, unroll=K."
            )
        w, iterations = method(healthy, tol, max_iter)
    else:
        w, iterations = run(data, solver, options, tol, max_iter)
        if gradient == "one_step":
            w = cast(Differentiable, method).one_step(healthy, w)
    with torch.no_grad():
        found = natural_map(data, w.detach(), tol)
    if gradient == "implicit" and "implicit" in method.gradients:
        w = attach_implicit_gradient(healthy, w, found.on)
    residual, tolerance = found.residual, found.tolerance
    converged = judge(residual, tolerance, tol, batch_shape, on_failure if method.to_tolerance else "ignore")
    if good is not None:
        w, residual, converged = (
            torch.where(good, w, torch.nan),
            torch.where(good, residual, torch.nan),
            converged & good,
        )
    return Solution(
        weights=problem.from_standard(w).to(problem.q.dtype),
        residual=problem.from_standard(residual),
        tolerance=problem.from_standard(tolerance),
        converged=problem.from_standard(converged),
        iterations=problem.from_standard(iterations),
        solver=solver,
        gradient=gradient,
    )


def _check_gradient(name: str, method: Solver, gradient: str) -> None:
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {GRADIENTS}, but got {gradient!r}.")
    allowed = tuple(flag for flag in method.gradients if flag in GRADIENTS) or ("implicit",)
    if gradient not in allowed:
        raise ValueError(f"solver {name!r} takes gradient={' or '.join(map(repr, allowed))}, but got {gradient!r}.")


def _replace_faulty(problem: StandardForm, good: Tensor) -> StandardForm:
    """The problem with every faulty item replaced by a trivial one, so that it cannot spoil its neighbours."""
    eye = torch.eye(problem.size, dtype=problem.q.dtype, device=problem.q.device).unsqueeze(-1)
    trivial = {"M": eye, "q": 0.0, "lower": 0.0, "upper": torch.inf, "l1": 0.0, "total": 1.0, "exists": True}
    present = {name: value for name, value in trivial.items() if getattr(problem, name) is not None}
    return replace(
        problem,
        linear_l1=None,
        **{name: torch.where(good, getattr(problem, name), value) for name, value in present.items()},
    )
