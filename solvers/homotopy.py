r"""The safeguard of the exact solver: follow the solution from a problem that is solved to the one that is asked.

For a matrix with positive definite symmetric part the solution of the problem with bounds and L1 is a continuous,
piecewise linear function of ``q``. On the segment ``q(t) = q₀ + t d`` every combination of linear pieces holds on at
most one interval of ``t``, so following the segment ends after finitely many pivots, each of one coordinate into the
adjacent piece (the parametric principal pivoting of Cottle, Pang and Stone, *The Linear Complementarity Problem*,
section 4.5, for a staircase instead of a corner). ``q₀`` is chosen so that a given guess solves it.

A sum constraint comes second: the total of the solution with ``q + ν1`` falls monotonically in ``ν``, so its price is
found by following the segment in the direction ``±1`` until the total is met.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from solvers.linear import solve_linear, solve_pieces
from solvers.prox import clamp, prox
from solvers.standard_form import StandardForm
from solvers.sums import ordered_sum


def follow_path(
    problem: StandardForm, guess: Tensor, price: Tensor, max_pivots: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Solves each problem of the batch by path following, started where ``guess`` would be optimal.

    Args:
        problem: Problems with ``½(M + Mᵀ)`` positive definite and ``max |M_ij|`` of about 1.
        guess: ``(L, B)``, any finite weights.
        price: ``(B,)``, a guess of the price of the sum; ignored without one.
        max_pivots: Bound on the number of pivots in each of the two phases.
        seed: Chooses among the paths that end in the solution.

    Returns:
        Weights ``(L, B)`` and the number of pivots ``(B,)``. Where the bound was hit the weights are whatever was
        reached: the caller holds them against a certificate.
    """
    stairs = _staircases(problem)
    if problem.total is None:
        state, pivots = _follow(problem, stairs, guess, problem.q, None, max_pivots, seed)
        return _polish(problem, stairs, state, None), pivots
    if not problem.equality:  # a slack budget first: its price is 0
        price = torch.zeros_like(price)
    priced = problem.q + price
    state, pivots = _follow(problem, stairs, guess, priced, None, max_pivots, seed)
    w = _polish(problem, stairs, state, priced)
    excess = ordered_sum(w) - problem.total
    must_pay = torch.ones_like(excess, dtype=torch.bool) if problem.equality else excess > 0
    direction = torch.where(excess > 0, 1.0, -1.0) * must_pay
    state_paid, more = _follow(problem, stairs, state, priced, direction, max_pivots, seed)
    paid = _polish(problem, stairs, state_paid, None)
    return torch.where(must_pay, paid, w), pivots + more * must_pay


def _staircases(problem: StandardForm) -> Tensor:
    """Per coordinate the graph of ``λ∂|w| + N_[lower, upper](w)``, as a list of seven levels ``E``, ``(7, L, B)``.

    Its entries are a slope, a breakpoint, a slope, …, a slope. State ``s`` in 1 … 5 is a stair: for odd ``s`` the
    weight is held at the breakpoint ``E[s]`` and ``−(Mw + q)_i`` lies between the slopes ``E[s−1]`` and ``E[s+1]``; for
    even ``s`` the weight lies between the breakpoints ``E[s−1]`` and ``E[s+1]`` and ``−(Mw + q)_i`` is ``E[s]``.
    """
    low, high, l1 = problem.bounds_and_l1()
    inf = torch.full_like(low, torch.inf)
    kink = (l1 > 0) & (low < 0) & (high > 0)
    pinned = low >= high
    first_slope = torch.where(kink | (high <= 0), -l1, l1)
    return torch.stack(
        (
            -inf,
            low,
            torch.where(pinned, inf, first_slope),
            torch.where(kink, 0.0, high),
            torch.where(kink, l1, inf),
            torch.where(kink, high, inf),
            inf,
        )
    )


def _states_near(stairs: Tensor, w: Tensor, minus_g: Tensor) -> Tensor:
    """The stair nearest to the point ``(w, minus_g)``: the one on which ``w + minus_g`` lies."""
    z = w + minus_g
    state = torch.ones_like(w, dtype=torch.long)
    for s in range(1, 5):  # stair s ends where breakpoint + slope is passed
        state = torch.where(z > stairs[s] + stairs[s + 1], s + 1, state)
    finite = stairs.gather(0, (state | 1).unsqueeze(0).clamp(max=5))[0].isfinite()
    return torch.where((state % 2 == 1) & ~finite, 2, state)


def _follow(
    problem: StandardForm,
    stairs: Tensor,
    start: Tensor,
    target: Tensor,
    direction: Tensor | None,
    max_pivots: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Pivots along ``q(t) = q₀ + t d`` until t = 1, or with a ``direction`` until the total is met.

    Args:
        problem: The problem.
        stairs: Its staircases.
        start: ``(L, B)``: weights that guess the solution (floating point), or states that solve ``target`` (integer).
        target: ``(L, B)``: without a direction the ``q`` at t = 1, with one the ``q`` at t = 0.
        direction: ``(B,)``, the sign of ``d = ±1``; an item with 0 has nothing to do.
        max_pivots: Bound on the pivots.
        seed: See `follow_path`.
    """
    if direction is None:
        w = prox(problem.without_sum(), start)
        state = _states_near(stairs, w, -(ordered_sum(problem.M * w, 1) + target))
        origin = _solved_at(problem, stairs, state, w, target, seed)
        d = target - origin
    else:
        state, origin = start.clone(), target
        d = direction.expand_as(origin)
    pivots = torch.zeros_like(state[0])
    active = torch.arange(problem.batch, device=state.device)
    if direction is not None:
        active = active[direction != 0]
    t = torch.zeros_like(problem.q[0])
    for _ in range(max_pivots):
        if active.numel() == 0:
            break
        sub, E, s, time = problem.select(active), stairs[..., active], state[:, active], t[active]
        y, dy, w, dw = _line(sub, E, s, origin[:, active], d[:, active])
        lo, hi = E.gather(0, (s - 1).unsqueeze(0))[0], E.gather(0, (s + 1).unsqueeze(0))[0]
        reach = torch.where(dy > 0, (hi - y) / dy, torch.where(dy < 0, (lo - y) / dy, torch.inf))
        reach = torch.maximum(reach.nan_to_num(nan=torch.inf, posinf=torch.inf), time)
        until, which = reach.min(0)
        if direction is None:
            end = torch.ones_like(until)
        else:
            missing = sub.required_total - ordered_sum(w)
            met = missing.abs() <= 8 * torch.finfo(w.dtype).eps * (1 + sub.required_total.abs())
            rate = ordered_sum(dw)
            end = torch.where(met & (rate == 0), time, missing / torch.where(rate == 0, torch.inf, rate))
            end = torch.where((rate == 0) & ~met, torch.inf, end)
        done = (until >= end) | ~torch.isfinite(until)
        moved = s.scatter_add(0, which.unsqueeze(0), dy.gather(0, which.unsqueeze(0)).sign().long())
        state[:, active] = torch.where(done, s, moved.clamp(1, 5))
        t[active] = torch.where(done, end, until)
        pivots[active] += 1
        active = active[~done]
    return state, pivots


def _solved_at(problem: StandardForm, stairs: Tensor, state: Tensor, w: Tensor, q: Tensor, seed: int) -> Tensor:
    """A ``q₀`` near ``q`` whose solution lies strictly inside the stairs ``state``.

    The distances from the stairs' ends are drawn at random, so that on the way no two coordinates tie.
    """
    drawn = np.random.default_rng(seed).random((problem.size, 1))  # torch's own are refused inside vmap
    jitter = 0.5 + torch.from_numpy(drawn).to(w)
    value = stairs.gather(0, state.unsqueeze(0))[0]
    lo, hi = stairs.gather(0, (state - 1).unsqueeze(0))[0], stairs.gather(0, (state + 1).unsqueeze(0))[0]
    free = state % 2 == 0

    def inside(x: Tensor, scale: Tensor) -> Tensor:
        margin = torch.minimum(0.25 * (hi - lo), 0.1 * scale) * jitter
        return torch.maximum(torch.minimum(x, hi - margin), lo + margin)

    weight_scale = w.abs().amax(0) + problem.q.abs().amax(0)
    w = torch.where(free, inside(w, weight_scale), value)
    Mw = ordered_sum(problem.M * w, 1)
    slope_scale = Mw.abs().amax(0) + q.abs().amax(0)
    return torch.where(free, -value, -inside(-(Mw + q), slope_scale)) - Mw


def _free_held_slope(stairs: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which coordinates are free, the values of the others and the slopes of the free; each ``(L, B)``."""
    value = stairs.gather(0, state.unsqueeze(0))[0]
    free = state % 2 == 0
    return free, torch.where(free, 0.0, value), torch.where(free, value, 0.0)


def _line(problem: StandardForm, stairs: Tensor, state: Tensor, origin: Tensor, d: Tensor) -> tuple[Tensor, ...]:
    """On fixed stairs everything is linear in t: the moving coordinate ``y + t dy`` and the weights ``w + t dw``."""
    free, held, slope = _free_held_slope(stairs, state)
    eye = torch.eye(problem.size, dtype=origin.dtype, device=origin.device).unsqueeze(-1)
    A = torch.where(free.unsqueeze(1) & free.unsqueeze(0), problem.M, eye)
    constant = -(ordered_sum(problem.M * held, 1) + origin + slope)
    x, dw = solve_linear(A, torch.stack((constant, -d)) * free, eliminate=False).unbind()
    w = held + x
    y = torch.where(free, w, -(ordered_sum(problem.M * w, 1) + origin))
    dy = torch.where(free, dw, -(ordered_sum(problem.M * dw, 1) + d))
    return y, dy, w, dw


def _polish(problem: StandardForm, stairs: Tensor, state: Tensor, q: Tensor | None) -> Tensor:
    """The solution on the stairs ``state``, for another ``q`` without the sum, refined once.

    ``M`` is of size 1: the solver normalises it.
    """
    free, held, slope = _free_held_slope(stairs, state)
    with_sum = problem.total is not None and q is None
    q = problem.q if q is None else q
    w, price = held, torch.zeros_like(problem.q[0])
    for _ in range(2):
        rest = -(ordered_sum(problem.M * w, 1) + q + slope + price)
        missing = problem.required_total - ordered_sum(w) if with_sum else None
        dw, dprice = solve_pieces(problem.M, free, rest, missing, shift=1.0, eliminate=False)
        w = w + dw
        if dprice is not None:
            price = price + dprice
    return clamp(problem, w)
