r"""The exact solver: block principal pivoting, safeguarded by path following.

One block pivot guesses the linear piece of every coordinate, solves the linear system that the pieces imply, and reads
the next guess off the natural map of its solution::

    pieces → w (a linear solve) → x = w − γ(Mw + q) → pieces of prox(x),

which is a semismooth Newton step on ``w = prox(w − γ(Mw + q))``, for any step ``γ > 0``. One or two steps solve most
problems; an item leaves the batch as soon as it is solved. Newton's method may cycle, so whatever is left, or was
solved less accurately than rounding allows, is followed along a path that ends in the solution (`solvers.homotopy`),
in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from solvers.active import active_set
from solvers.homotopy import follow_path
from solvers.kkt import solve_kkt
from solvers.linear import solve_pieces
from solvers.monotone import is_monotone, is_strongly_monotone
from solvers.natural import natural_map, power_of_two, reach, relative_residual, tolerance_of
from solvers.prox import Pieces, clamp, pieces, prox, shrink
from solvers.sets import FeasibleSet
from solvers.standard_form import StandardForm
from solvers.sums import ordered_sum
from solvers.units import in_natural_units

PROXIMAL_STEPS = 30
PROXIMAL_LEAST = 1e-8
RESTARTS = 3


@dataclass(frozen=True)
class Pivot:
    """Exact on every set: batched principal pivoting, with a safeguard that always ends; the default.

    Ends after finitely many pivots on every problem with ``½(M + Mᵀ)`` positive definite. Where ``M`` is only monotone
    (a rank-deficient Gram matrix without a ridge, a linear program) it solves a short sequence of regularised problems
    (proximal point method, Rockafellar 1976) and returns one of the solutions.

    Attributes:
        block_pivots: Newton steps before the safeguard takes over.
    """

    gradients: ClassVar[tuple[str, ...]] = ("implicit",)
    to_tolerance: bool = field(default=True, init=False, repr=False)
    block_pivots: int = 8

    def __post_init__(self) -> None:
        if self.block_pivots < 1:
            raise ValueError(f"block_pivots must be at least 1, but got {self.block_pivots}.")

    def check_set(self, feasible: FeasibleSet) -> None:
        """Takes every set."""

    def __call__(self, problem: StandardForm, tol: float, max_iter: int | None) -> tuple[Tensor, Tensor]:
        """Weights ``(L, B)`` and the number of linear solves ``(B,)``; ``max_iter`` bounds each path."""
        del tol  # exact: as accurate as rounding allows
        max_pivots = 50 * (problem.size + 1) if max_iter is None else max_iter
        scaled, factor = in_natural_units(_untouched_settled(problem))
        w, iterations, left, multiplier = _block_pivot(scaled, min(self.block_pivots, max_pivots))
        if left.numel():
            hard = scaled.select(left).to(torch.float64)
            guess, rounding = (w[:, left].double(), multiplier.double()), torch.finfo(w.dtype).eps
            found, pivots = _safeguarded(hard, *guess, max_pivots, rounding)
            w[:, left] = found.to(w.dtype)
            iterations[left] += pivots
        return clamp(problem, w * factor).add_(0.0), iterations  # no -0.0


def _untouched_settled(problem: StandardForm) -> StandardForm:
    """Coordinates that ``M`` does not touch, given a problem ``½μ(w_i − v_i)²``, where ``v`` is their solution.

    Without a sum such a coordinate minimises ``q_i w_i + λ_i|w_i|`` alone: at a bound, or as near to 0 as it can be.
    """
    if problem.total is not None:
        return problem
    touched = (problem.M != 0).any(1) | (problem.M != 0).any(0)
    if bool(touched.all()):
        return problem
    lower, upper, l1 = problem.bounds_and_l1()
    v = torch.where(-problem.q > l1, upper, torch.where(problem.q > l1, lower, 0.0))
    v = clamp(problem, v.where(v.isfinite(), 0.0))  # without a bound there it has none
    unit = power_of_two(problem.M.abs().amax((0, 1)))
    M = problem.M + torch.diag_embed((unit * ~touched).T).movedim(0, -1)
    l1 = None if problem.l1 is None else problem.l1.where(touched, 0.0)
    return replace(problem, M=M, q=problem.q.where(touched, -unit * v), l1=l1)


def _jacobi_step(problem: StandardForm) -> Tensor:
    """``D⁻¹``, and 1 where the diagonal is not positive."""
    diagonal = problem.diagonal()
    return torch.where(diagonal > 0, diagonal, 1.0).reciprocal()


def _block_pivot(problem: StandardForm, max_pivots: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Newton steps on the whole batch: weights, number of steps, the items left and their multipliers of the sum."""
    everyone = problem
    active = torch.arange(problem.batch, device=problem.q.device)
    final, iterations, price = problem.q, torch.ones_like(active), problem.q[0]
    rounding = 8 * (problem.size + 4) * torch.finfo(problem.q.dtype).eps
    x, step, sizes = _start(problem)
    for k in range(max_pivots):
        on = pieces(problem, x, step)
        w, price, g, weight, force = _newton_step(problem, on, sizes)
        if problem.total is None:
            solved = relative_residual(problem, w) <= rounding  # False for NaN
        else:
            solved = _step_residual(problem, on, w, price, g, weight / force) <= rounding * weight
        if k == 0:
            final = w
        else:
            final.index_copy_(1, active, w)
            iterations[active] = k + 1
        rest = (~solved).nonzero().squeeze(1)
        active, price = active.index_select(0, rest), price.index_select(0, rest)
        if rest.numel() == 0:
            break
        x = torch.addcmul(w, step, g, value=-1)
        if rest.numel() < solved.numel():
            problem = problem.select(rest)
            x, step, sizes = (data.index_select(-1, rest) for data in (x, step, sizes))
        if k == 0:
            x = _descend(problem, x, step, 2)
    return clamp(everyone, final), iterations, active, price


def _start(problem: StandardForm) -> tuple[Tensor, Tensor, Tensor]:
    """Where to read the first pieces off, the step ``γ``, and sizes of a weight and a force: (L, B), (B,), (2, B).

    ``1/γ`` is the mean eigenvalue of ``M`` along the set (or 1 % of ``max |M_ij|``, if that is more). Along a fixed
    sum the direction ``1`` is left out of it, ``(tr M − 1ᵀM1 / L) / (L − 1)``: where scales are much alike, that
    direction has most of the trace and none of the curvature that matters.
    """
    L = problem.size
    largest, magnitude = problem.M.abs().amax((0, 1)), problem.q.abs().amax(0)
    largest = largest + (largest == 0)
    trace, force = ordered_sum(problem.diagonal()), problem.q
    if problem.total is None or L == 1:
        mean = trace / L
    else:
        rows = ordered_sum(problem.M, 1)
        mean = torch.sub(trace, ordered_sum(rows), alpha=1 / L) / (L - 1)
        force = torch.addcmul(force, rows, problem.total / L)  # where everyone has total / L
    step = torch.maximum(mean, 0.01 * largest).reciprocal()
    x = _descend(problem, -step * force, step, 1)
    weight = magnitude / largest
    if problem.total is not None:
        weight = torch.minimum(weight, reach(problem))
    return x, step, torch.stack((weight, magnitude)) + torch.finfo(step.dtype).tiny


def _descend(problem: StandardForm, x: Tensor, step: Tensor, times: int) -> Tensor:
    """The point ``x = w − γ(Mw + q)`` after some steps ``w ← prox(x)`` of the projected gradient method.

    They cost little and bring Newton's method near enough: two after its first step halve those who need a third.
    Between all of its steps they could make it cycle.
    """
    for _ in range(times):
        w = prox(problem, x, step)
        x = torch.addcmul(w, step, problem.operator(w), value=-1)
    return x


def _newton_step(problem: StandardForm, on: Pieces, sizes: Tensor) -> tuple[Tensor, ...]:
    """The solution ``w`` on the given pieces, the price of the sum, ``Mw + q``, and the sizes of a weight and a force.

    The sizes are ``‖w‖_∞`` and ``‖|M||w|‖_∞``, added to the given ones.
    """
    force, missing = problem.q, problem.total
    if on.held is not None:
        force = problem.operator(on.held)
        missing = None if missing is None else missing - ordered_sum(on.held)
    if on.slope is not None:
        force = force + on.slope
    simplex = problem.nonnegative and problem.equality  # slopes are small, see in_natural_units, and one is free
    w, price = solve_pieces(problem.M, on.free, -force, missing, on.tight, easy=simplex)
    w = w if on.held is None else on.held + w
    price = torch.zeros_like(w[0]) if price is None else price
    products = problem.M * w
    weight, force = sizes.unbind()
    weight, force = weight + w.abs().amax(0), force + ordered_sum(products.abs(), 1).amax(0)
    return w, price, ordered_sum(products, 1) + problem.q, weight, force


def _step_residual(problem: StandardForm, on: Pieces, w: Tensor, price: Tensor, g: Tensor, step: Tensor) -> Tensor:
    """``‖w − prox(w − γg)‖_∞``, ``(B,)``; where the price is known, without looking for it again."""
    if problem.total is not None and not problem.nonnegative:
        return (w - prox(problem, w - step * g, step)).abs().amax(0)  # a vertex has no price of its own
    l1 = None if problem.l1 is None else step * problem.l1
    residual = (w - shrink(problem, torch.addcmul(w, step, g + price, value=-1), l1)).abs().amax(0)
    if problem.total is None:
        return residual
    excess = ordered_sum(w) - problem.total
    if on.tight is None:
        return torch.maximum(residual, excess.abs())
    return torch.maximum(residual, torch.where(on.tight, torch.maximum(excess.abs(), -step * price), excess))


def _safeguarded(
    problem: StandardForm, guess: Tensor, multiplier: Tensor, max_pivots: int, rounding: float
) -> tuple[Tensor, Tensor]:
    """Path following where ``M`` is definite, the proximal point method around it where it is singular.

    ``rounding`` is that of the type in which the data were given.
    """
    step = _jacobi_step(problem)
    plain = prox(problem, -step * problem.q, step)
    sound = guess.isfinite().all(0) & multiplier.isfinite()
    w, pivots = torch.where(sound, guess, plain), torch.zeros_like(plain[0], dtype=torch.long)
    multiplier = torch.where(sound, multiplier, 0.0)
    definite, monotone = is_strongly_monotone(problem), is_monotone(problem, rounding)

    def improve(items: Tensor, method: Callable[[StandardForm, Tensor], tuple[Tensor, Tensor]]) -> None:
        """Lets a method try what is left of some items, and keeps what is better."""
        left = (items & ~_is_solved(problem, w)).nonzero()[:, 0]
        if left.numel():
            sub = problem.select(left)
            found, more = method(sub, left)
            better = relative_residual(sub, found) < relative_residual(sub, w[:, left]).nan_to_num(torch.inf)
            w[:, left] = torch.where(better, found, w[:, left])
            pivots[left] += more

    improve(definite, lambda sub, left: follow_path(sub, w[:, left], multiplier[left], max_pivots))
    improve(monotone, lambda sub, left: _proximal_point(sub, plain[:, left], max_pivots, rounding))
    for seed in range(RESTARTS):  # other paths, in case rounding lost this one; few where nothing says that they end
        few = max_pivots if seed else min(max_pivots, 4 * (problem.size + 1))
        improve(
            definite if seed else ~definite,
            lambda sub, left, seed=seed, few=few: follow_path(sub, plain[:, left], 0.0 * multiplier[left], few, seed),
        )
    return _polished(problem, w), pivots


def _polished(problem: StandardForm, w: Tensor) -> Tensor:
    """``w`` after a Newton step on its own pieces, ``(L, B)``, wherever that leaves a smaller residual.

    The proximal point method stops as soon as slopes are right, where flat directions may leave weights less so.
    """
    there = natural_map(problem, w, 0.0)
    on, active = there.on, active_set(problem, w, there, torch.ones_like(w[0], dtype=torch.bool))
    held = torch.zeros_like(w) if on.held is None else on.held
    start = torch.where(active.free, w, held)
    slope = problem.operator(start) if on.slope is None else problem.operator(start) + on.slope
    missing = torch.zeros_like(w[0]) if problem.total is None else problem.total - ordered_sum(start)
    found = solve_kkt(problem.M, active.stiffness, active.free, active.tight, -slope, missing)
    after = clamp(problem, start + found.x)
    return torch.where(relative_residual(problem, after) <= relative_residual(problem, w), after, w)


def _is_solved(problem: StandardForm, w: Tensor) -> Tensor:
    """Whether the residual is what rounding leaves, ``(B,)`` bool."""
    return relative_residual(problem, w) <= tolerance_of(problem, 1e-12)


def _proximal_point(problem: StandardForm, start: Tensor, max_pivots: int, rounding: float) -> tuple[Tensor, Tensor]:
    """``w ← solution with (M + ρI, q − ρw)``, which converges to a solution of a monotone problem if there is one.

    In units in which weights are about 1, ``ρ`` falls from a tenth of the largest slope: where the set decides and not
    ``M``, a step then goes as far as the set does and no further, where rounding would lose what is small. It stays
    above what ``rounding`` of the data may have made of zero eigenvalues.
    """
    largest, slope = problem.M.abs().amax((0, 1)), problem.q.abs().amax(0)
    least = max(PROXIMAL_LEAST, 32 * problem.size * rounding) * torch.where(largest > 0, largest, slope)
    rho = torch.maximum(0.1 * slope, 1e-3 * largest)
    rho = torch.maximum(rho, least).where(rho > 0, 1.0)
    eye = torch.eye(problem.size, dtype=rho.dtype, device=rho.device).unsqueeze(-1)
    w, pivots = start.clone(), torch.zeros_like(start[0], dtype=torch.long)
    active = torch.arange(problem.batch, device=w.device)
    for _ in range(PROXIMAL_STEPS):
        sub, before, ridge = problem.select(active), w[:, active], rho[active]
        regular = replace(sub, M=sub.M + ridge * eye, q=sub.q - ridge * before)
        after, more = _solved_regular(regular, before, max_pivots)
        w[:, active] = after
        pivots[active] += more
        rho[active] = torch.maximum(0.3 * ridge, least[active])
        active = active[~_is_solved(sub, after)]  # what is solved stays as it is, whatever its neighbours need
        if active.numel() == 0:
            break
    return w, pivots


def _solved_regular(problem: StandardForm, guess: Tensor, max_pivots: int) -> tuple[Tensor, Tensor]:
    """Newton's method, and path following where it does not end, for a definite ``M``."""
    w, iterations, left, multiplier = _block_pivot(problem, 8)
    if left.numel():
        start = torch.where(multiplier.isfinite(), multiplier, 0.0)
        w[:, left], more = follow_path(problem.select(left), guess[:, left], start, max_pivots)
        iterations[left] += more
    return w, iterations
