r"""The exact solver: block principal pivoting, safeguarded by path following.

One block pivot guesses the linear piece of every coordinate, solves the linear system that the pieces imply, and reads
the next guess off the natural map of its solution,

    pieces → w (a linear solve) → x = w − D⁻¹(Mw + q), D = diag(M) → pieces of prox(x),

which is a semismooth Newton step on ``w = prox(w − D⁻¹(Mw + q))``. Two or three steps solve most problems; an item leaves
the batch as soon as it is solved. Newton's method may cycle, so whatever is left, or was solved less accurately than
rounding allows, is followed along a path that ends in the solution (`solvers.homotopy`), in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from solvers.homotopy import follow_path
from solvers.linear import solve_pieces
from solvers.prox import clamp, pieces, prox, prox_on
from solvers.sets import FeasibleSet
from solvers.standard_form import StandardForm


@dataclass(frozen=True)
class Pivot:
    """Exact solver for every set and every ``L``; the default.

    Ends after finitely many pivots on every problem with ``½(M + Mᵀ)`` positive definite. Where ``M`` is only monotone
    (a rank-deficient Gram matrix without a ridge, a linear program) it solves a short sequence of regularised problems
    (proximal point method, Rockafellar 1976) and returns one of the solutions.

    Attributes:
        block_pivots: Newton steps before the safeguard takes over.
    """

    gradients: ClassVar[tuple[str, ...]] = ("implicit",)
    to_tolerance: ClassVar[bool] = True
    block_pivots: int = 8

    def check_set(self, feasible: FeasibleSet) -> None:
        """Takes every set."""

    def __call__(self, problem: StandardForm, tol: float, max_iter: int | None) -> tuple[Tensor, Tensor]:
        """Weights ``(L, B)`` and the number of linear solves ``(B,)``; ``max_iter`` bounds each stage of the safeguard."""
        del tol  # exact: as accurate as rounding allows
        max_pivots = 50 * (problem.size + 1) if max_iter is None else max_iter
        problem = _normalised(problem)
        w, iterations, price, solved = _block_pivot(problem, min(self.block_pivots, max_pivots))
        if bool(solved.all()):
            return w, iterations
        left = (~solved).nonzero()[:, 0]
        hard = problem.select(left).to(torch.float64)
        found, pivots = _safeguarded(hard, w[:, left].double(), price[left].double(), max_pivots)
        w[:, left] = clamp(problem.select(left), found.to(w.dtype))
        iterations[left] += pivots
        return w, iterations


def _normalised(problem: StandardForm) -> StandardForm:
    """Divided by the power of two nearest to the mean of ``diag(M)``: the same solution, and no rounding."""
    mean = problem.diagonal().abs().mean(0)
    exponent = torch.frexp(mean).exponent
    return problem.scaled(torch.ldexp(torch.ones_like(mean), -exponent))


def _jacobi_step(problem: StandardForm) -> Tensor:
    """``D⁻¹``, and 1 where the diagonal is not positive."""
    diagonal = problem.diagonal()
    return torch.where(diagonal > 0, diagonal, 1.0).reciprocal()


def _block_pivot(problem: StandardForm, max_pivots: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Newton steps on the whole batch: weights, number of steps, prices of the sum, and which items are solved."""
    B, device = problem.batch, problem.q.device
    final_w, final_price = torch.zeros_like(problem.q), torch.zeros_like(problem.q[0])
    iterations = torch.zeros(B, dtype=torch.long, device=device)
    solved = torch.zeros(B, dtype=torch.bool, device=device)
    rounding = 32 * problem.size * torch.finfo(problem.q.dtype).eps

    active = torch.arange(B, device=device)
    step = _jacobi_step(problem)
    on = pieces(problem, -step * problem.q, step)
    for k in range(max_pivots):
        held = torch.where(on.free, 0.0, on.held)
        total = 0.0 if problem.total is None else problem.total - held.sum(0)
        tight = None if problem.total is None else on.tight
        moving, price = solve_pieces(problem.M, on.free, tight, -problem.operator(held) - on.slope, total)
        w = held + moving
        x = w - step * problem.operator(w)
        on = pieces(problem, x, step)
        residual = (w - prox_on(problem, on, x, step)).abs().amax(0)
        done = residual <= rounding * (w.abs().amax(0) + x.abs().amax(0))  # False for NaN
        if k == 0 and bool(done.all()):
            return clamp(problem, w), iterations + 1, final_price, done
        final_w[:, active], iterations[active] = w, k + 1
        if price is not None:
            final_price[active] = price
        solved[active] = done
        rest = (~done).nonzero()[:, 0]
        if rest.numel() == 0:
            break
        if rest.numel() < active.numel():
            active, problem, step = active[rest], problem.select(rest), step[:, rest]
            on = type(on)(*(field.index_select(-1, rest) for field in on))
    return final_w, iterations, final_price, solved


def _safeguarded(problem: StandardForm, guess: Tensor, price: Tensor, max_pivots: int) -> tuple[Tensor, Tensor]:
    """Path following, and the proximal point method around it where ``M`` turns out to be singular."""
    step = _jacobi_step(problem)
    guess = torch.where(guess.isfinite().all(0), guess, prox(problem, -step * problem.q, step))
    w, pivots = follow_path(problem, guess, price.nan_to_num(0.0, 0.0, 0.0), max_pivots)
    return w, pivots
