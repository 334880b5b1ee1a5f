"""`solve`: any solver, any gradient, one certified answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from solvers.checks import ConvergenceError, out_of_reach
from solvers.gradients import attach_implicit_gradient
from solvers.natural import tolerance_of
from solvers.opaque import certify, inspect, run
from solvers.problem import AffineVI
from solvers.registry import Differentiable, Solver, make_solver, plain_number, recipe
from solvers.standard_form import StandardForm, is_tracing
from solvers.status import Status

__all__ = ["ConvergenceError", "Solution", "solve"]

DEFAULT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
GRADIENTS = ("implicit", "unrolled", "one_step")
ON_FAILURE = ("raise", "warn", "ignore")


@dataclass(frozen=True, eq=False)
class Solution:
    """What `solve` returns.

    Attributes:
        weights: ``(*batch, L)``, in the dtype of ``q``; differentiable as asked. An item that is not solved has the
            last iterate, or NaN where its data are faulty, and a gradient of zero.
        residual: ``(*batch,)``, the natural residual relative to the size of the problem, without a unit, measured
            after the solve and independently of the solver (see `solvers.natural.natural_map`; `natural_residual` has
            it in the units of the data). NaN where the data are faulty or the set is empty.
        tolerance: ``(*batch,)``, what the residual had to stay under: ``tol`` and what rounding adds.
        status: ``(*batch,)`` int64, the values of `Status`.
        iterations: ``(*batch,)`` int; linear solves for ``pivot``, 0 for solvers that do not iterate or do not say.
        solver: The flag of the solver, or the name of its class.
        gradient: The flag of the gradient.
    """

    weights: Tensor
    residual: Tensor
    tolerance: Tensor
    status: Tensor
    iterations: Tensor
    solver: str
    gradient: str

    @property
    def converged(self) -> Tensor:
        """``(*batch,)`` bool, whether the status is solved."""
        return self.status == Status.SOLVED.value


def solve(
    problem: AffineVI,
    solver: str | Solver = "pivot",
    gradient: str = "implicit",
    tol: float | None = None,
    max_iter: int | None = None,
    on_failure: Literal["raise", "warn", "ignore"] = "warn",
    *,
    check_monotone: bool = True,
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
        solver: One of `available_solvers`, or a solver: a frozen dataclass such as ``Pivot()``.
        gradient: ``"implicit"`` differentiates the solution through its optimality conditions, whatever solver found
            it. ``"unrolled"`` differentiates the iterations. ``"one_step"`` differentiates one more step from the
            answer as if it had no history (Bolte, Pauwels and Vaiter 2023). ``cvxpylayers``, ``softmax`` and ``mean``
            carry their own derivative and take ``"implicit"`` only; ``scipy`` returns weights without a gradient.
        tol: Tolerance of the relative natural residual; 1e-9 in float64 and 1e-5 in float32 if omitted, or
            what the solver can reach (1e-8 for ``cvxpylayers``, 1e-6 for ``scipy``).
        max_iter: Bound on the iterations; the solver's own default if omitted.
        on_failure: What to do about items that are not solved: ``"raise"`` ValueError (faulty data, an empty set) or
            `ConvergenceError`; ``"warn"``, with the reason and the first batch index; or ``"ignore"``. With the last
            two ``status`` and ``converged`` tell. The other items are solved all the same. If every item's data is
            faulty, ``"warn"`` raises too. An answer after a fixed number of iterations (``unroll=K``) and the
            heuristics ``softmax`` and ``mean`` report their status but never fail. A backward pass whose linear system
            has no solution does the same.
        check_monotone: Whether an ``M`` that is not monotone along the directions of the set is no problem to solve:
            its status is ``NOT_MONOTONE``, except in a game (``M`` not symmetric) whose players' own costs are convex,
            where a vanishing residual is an equilibrium. Without the check, which costs little, a stationary point of
            any ``M`` is called solved.
        options: Options of the solver, such as ``unroll=K`` (a fixed number of iterations), ``damping`` and ``sweep``
            for ``best_response``, ``temperature`` for ``softmax``.

    Raises:
        ValueError: For an unknown flag, a set that the solver does not take, or faulty data (see ``on_failure``).
        TypeError: If ``problem`` is not an `AffineVI`, ``solver`` neither a flag nor a solver, or for an option that
            the solver does not have.
        ConvergenceError: For an answer above its tolerance with ``on_failure="raise"``.
        RuntimeError: For a solver that ``torch.compile`` or ``torch.func.vmap`` cannot go through.
    """
    if not isinstance(problem, AffineVI):
        raise TypeError(
            f"problem must be an AffineVI, as in solve(AffineVI(M, q, Simplex())), but got {_kind(problem)}."
        )
    if on_failure not in ON_FAILURE:
        raise ValueError(f"on_failure must be one of {ON_FAILURE}, but got {on_failure!r}.")
    tol, max_iter = _checked_limits(tol, max_iter)
    kind, settings = recipe(solver, options)
    method = make_solver(kind, dict(settings)) if isinstance(solver, str) else solver
    name = solver if isinstance(solver, str) else type(solver).__name__
    _check_gradient(name, method, gradient)
    method.check_set(problem.feasible)

    standard = problem.standard()
    if tol is None:
        tol = max(DEFAULT_TOLERANCE[standard.q.dtype], getattr(method, "accuracy", 0.0))
    batch_shape = list(problem.batch_shape)
    data = standard.detach()
    of_data = inspect(data, problem.feasible.is_fixed, batch_shape, on_failure)
    healthy = standard
    if of_data is not None:
        healthy = _replace_unsound(standard, of_data == Status.SOLVED.value)
        data = healthy.detach()
    if gradient == "unrolled" or "own" in method.gradients:
        if is_tracing(standard) and method.to_tolerance:
            raise RuntimeError(
                f"torch.compile and torch.func.vmap cannot go through {name!r} here: its number of steps depends on "
                "the data; use gradient='implicit' with one of our solvers, or a fixed number of iterations, unroll=K."
            )
        w, iterations = method(healthy, tol, max_iter)
        w = torch.where(w.isfinite(), w, 0.0)  # a last iterate that has overflowed
    else:
        w, iterations = run(data, kind, settings, tol, max_iter)
        if gradient == "one_step":
            w = cast(Differentiable, method).one_step(healthy, w)
    failure = on_failure if method.to_tolerance else "ignore"
    found = certify(
        data, w, of_data, tol, batch_shape, failure, strict=method.to_tolerance, check_monotone=check_monotone
    )
    if gradient == "implicit" and "implicit" in method.gradients:
        w = attach_implicit_gradient(healthy, w, found.active, batch_shape, on_failure)
    elif method.to_tolerance:
        w = torch.where(found.active.passes, w, w.detach())
    residual = found.residual
    if of_data is not None:
        w = torch.where(of_data == Status.INFEASIBLE.value, _nearest(standard), w)
        w = torch.where(of_data == Status.FAULTY_DATA.value, torch.nan, w)
        residual = torch.where(of_data == Status.SOLVED.value, residual, torch.nan)
    tolerance = torch.full_like(residual, tolerance_of(standard, tol))
    return Solution(
        weights=problem.from_standard(w).to(problem.dtype),
        residual=problem.from_standard(residual),
        tolerance=problem.from_standard(tolerance),
        status=problem.from_standard(found.status),
        iterations=problem.from_standard(iterations),
        solver=name,
        gradient=gradient,
    )


def _checked_limits(tol: object, max_iter: object) -> tuple[float | None, int | None]:
    tol, max_iter = plain_number(tol), plain_number(max_iter)
    if tol is not None and not (isinstance(tol, (int, float)) and tol > 0):
        raise ValueError(f"tol must be positive, but got {tol!r}.")
    if max_iter is not None and not (isinstance(max_iter, int) and max_iter >= 1):
        raise ValueError(f"max_iter must be a whole number, at least 1, but got {max_iter!r}.")
    return tol, max_iter


def _kind(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _check_gradient(name: str, method: Solver, gradient: str) -> None:
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {GRADIENTS}, but got {gradient!r}.")
    allowed = tuple(flag for flag in method.gradients if flag in GRADIENTS) or ("implicit",)
    if gradient not in allowed:
        raise ValueError(f"solver {name!r} takes gradient={' or '.join(map(repr, allowed))}, but got {gradient!r}.")


def _replace_unsound(problem: StandardForm, sound: Tensor) -> StandardForm:
    """The problem with every unsound item replaced by a trivial one, so that it cannot spoil its neighbours."""
    eye = torch.eye(problem.size, dtype=problem.q.dtype, device=problem.q.device).unsqueeze(-1)
    trivial = {"M": eye, "q": 0.0, "lower": 0.0, "upper": torch.inf, "l1": 0.0, "total": 1.0, "exists": True}
    present = {name: value for name, value in trivial.items() if getattr(problem, name) is not None}
    return replace(
        problem,
        linear_l1=None,
        **{name: torch.where(sound, getattr(problem, name), value) for name, value in present.items()},
    )


def _nearest(problem: StandardForm) -> Tensor:
    """For an empty set: weights that miss its sum, or bounds that cross, by as little as can be; finite, ``(L, B)``."""
    lower, upper, _ = problem.detach().bounds_and_l1()
    w = torch.where(lower > upper, 0.5 * (lower + upper), torch.zeros_like(lower).clamp(lower, upper))
    if problem.total is not None:
        below, above = out_of_reach(problem.detach())
        w = torch.where(below, lower, torch.where(above, upper, w))
    return w.nan_to_num(0.0, 0.0, 0.0)
