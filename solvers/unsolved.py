r"""The status of an answer: why weights that are not a solution are none.

Where slopes are the differences of terms much larger than the data, rounding may hide what is left of them. Such
weights are confirmed: the equations on their pieces, solved in float64 (`solvers.kkt`), have a solution that is near.

A monotone problem has no solution if its set holds a direction ``d`` without end along which the cost falls at a
constant rate: ``Md = 0`` and ``q·d + Σ λ_i|d_i| < 0``. (If ``w`` were a solution, ``w + d`` would contradict it, since
``dᵀMd = 0`` makes ``Mᵀd = −Md = 0``.) Solutions with ``M + ρI`` run along such a direction as ``ρ → 0``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from solvers.active import active_set
from solvers.checks import SINGULAR
from solvers.kkt import solve_kkt
from solvers.monotone import is_monotone
from solvers.natural import SUSPICIOUS, NaturalMap
from solvers.pivot import Pivot
from solvers.standard_form import StandardForm
from solvers.status import Status
from solvers.sums import ordered_sum
from solvers.units import in_natural_units

NEAR = 1e-2
"""How far from weights that are confirmed a solution may be, relative to the largest."""
RHO = 1e-8
"""The ridge of the problem whose solution shows the direction."""


def status_of(problem: StandardForm, w: Tensor, found: NaturalMap, check_monotone: bool) -> Tensor:
    """The `Status` of each item's weights, ``(B,)``, from what the natural map says about them.

    In a game, ``M`` not symmetric, a vanishing residual makes an equilibrium wherever every player's own cost is
    convex, ``M_ii ≥ 0``, monotone or not. Where ``M`` is symmetric it may make a maximum.
    """
    within = found.residual <= found.tolerance  # False for NaN
    if found.excess is not None:
        large = (within & (found.excess > SUSPICIOUS)).nonzero()[:, 0]
        within[large] = _is_confirmed(problem, w, found, found.excess, large)
    status = torch.where(within, Status.SOLVED.value, Status.ITERATION_LIMIT.value)
    if check_monotone:
        monotone = is_monotone(problem)
        if not bool(monotone.all()):
            game = ~problem.is_symmetric() & (problem.diagonal() >= 0).all(0)
            status = torch.where(monotone | (game & within), status, Status.NOT_MONOTONE.value)
    left = (status == Status.ITERATION_LIMIT).nonzero()[:, 0]
    if left.numel():
        status[left] = torch.where(_is_unbounded(problem.select(left)), Status.UNBOUNDED.value, status[left])
    return status


def _is_confirmed(problem: StandardForm, w: Tensor, found: NaturalMap, excess: Tensor, items: Tensor) -> Tensor:
    """Which of some items are solutions in float64 or have one on their pieces within `NEAR` of the largest weight."""
    active = active_set(problem, w, found, torch.ones_like(w[0], dtype=torch.bool))
    free, tight, _, _, d, _ = (tensor[..., items] for tensor in active)
    slope = None if found.on.slope is None else found.on.slope[:, items].double()
    sub, w = problem.select(items), w[:, items].double()
    exact = sub.to(torch.float64)
    g = exact.operator(w) if slope is None else exact.operator(w) + slope
    missing = torch.zeros_like(g[0]) if exact.total is None else exact.total - ordered_sum(w)
    step = solve_kkt(sub.M, d, free, tight, -g, missing)
    e = d.double().sqrt()
    data = exact.q.abs() if exact.l1 is None else exact.q.abs() + exact.l1
    small, size = SINGULAR * (data / e).amax(0), (g * free / e).abs().amax(0)
    common = ordered_sum(g * free) / ordered_sum(free).clamp_min(1) * tight  # −ν
    here = ((g - common) * free / e).abs().amax(0)
    rounding = 16 * (problem.size + 4) * torch.finfo(torch.float64).eps
    shown = (here <= small) & (rounding * excess[items] <= SINGULAR)  # float64 hides nothing of the slopes
    left = step.residual * size  # of them, when all that can be done is done
    return shown | ((left <= small) & ((e * step.x).abs().amax(0) <= NEAR * (e * w).abs().amax(0)))


def _is_unbounded(problem: StandardForm) -> Tensor:
    """Which items certainly have no solution since their cost falls without end, ``(B,)`` bool."""
    rounding = 32 * problem.size * torch.finfo(problem.q.dtype).eps
    problem = in_natural_units(problem)[0].to(torch.float64)
    lower, upper, l1 = problem.bounds_and_l1()
    none = torch.zeros_like(lower[0], dtype=torch.bool)
    if not bool((lower.isinf() | upper.isinf()).any()):
        return none
    eye = torch.eye(problem.size, dtype=lower.dtype, device=lower.device).unsqueeze(-1)
    w, _ = Pivot()(replace(problem, M=problem.M + RHO * eye), 0.0, None)
    largest = w.abs().amax(0)
    d = w / largest.where(largest > 0, 1.0)
    endless = (d.abs() > 1e-6) & torch.where(d > 0, upper.isinf(), lower.isinf())
    d = torch.where(endless, d, 0.0)
    rows = [problem.M * endless]
    if problem.total is not None:
        rows.append(endless.to(d.dtype).unsqueeze(0))
    A = torch.cat(rows).movedim(-1, 0)
    A = A.where(A.isfinite().flatten(1).all(1)[:, None, None], 0.0)
    _, values, right = torch.linalg.svd(A, full_matrices=True)
    kept = torch.zeros_like(right[..., 0])
    kept[:, : values.shape[1]] = (values > rounding * values[:, :1]).to(kept.dtype)
    basis = right * (1 - kept).unsqueeze(-1)  # of the null space, one vector a row
    null = (basis.mT @ (basis @ d.T.unsqueeze(-1))).squeeze(-1).T
    near = (null - d).abs().amax(0) <= 1e-3
    stays = torch.where(null > 0, upper.isinf(), lower.isinf()) | (null.abs() <= 1e-12)
    terms = torch.stack((problem.q * null, l1 * null.abs()))
    falls = terms.sum((0, 1)) < -1e-6 * terms.abs().sum((0, 1))
    return near & stays.all(0) & falls & (d != 0).any(0)
