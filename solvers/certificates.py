r"""How good an answer is, measured without trusting the solver that made it.

All certificates are zero exactly at solutions. With ``g = Mw + q`` and ``h(w) = Σ λ_i|w_i|`` plus the indicator of C:

- natural residual ``‖w − prox_h(w − g)‖_∞``, for every problem (Facchinei and Pang 2003, section 1.5);
- duality gap, for symmetric ``M``: an upper bound on ``P(w) − min P`` with ``P(w) = ½wᵀMw + qᵀw + h(w)``;
- exploitability, for games: the most that one player gains by deviating alone;
- feasibility violation.

They are differentiable torch operations and compute in at least float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from solvers.checks import report
from solvers.monotone import is_monotone
from solvers.problem import AffineVI
from solvers.prox import clamp, leaving_prices, pieces, prox
from solvers.standard_form import StandardForm
from solvers.status import Status
from solvers.sums import ordered_sum


def natural_residual(problem: AffineVI, weights: Tensor) -> Tensor:
    """``‖w − prox(w − (Mw + q))‖_∞``, shape ``(*batch,)``.

    In the units of the data, of which it mixes two: weights at a bound, slopes inside. `Solution.residual` is relative
    to both.

    Args:
        problem: The problem.
        weights: ``(*batch, L)``.

    Raises:
        ValueError: If ``weights`` has another shape than ``(*batch, L)``.
    """
    standard, w = _standard(problem, weights)
    x = w - standard.operator(w)
    return problem.from_standard((w - prox(standard, x)).abs().amax(0))


def feasibility_violation(problem: AffineVI, weights: Tensor) -> Tensor:
    """The largest violation of a bound, of the mask or of the sum, shape ``(*batch,)``.

    Args:
        problem: The problem; only its set is used.
        weights: ``(*batch, L)``.

    Raises:
        ValueError: If ``weights`` has another shape than ``(*batch, L)``.
    """
    standard, w = _standard(problem, weights)
    violation = (w - clamp(standard, w)).abs().amax(0)
    if standard.total is not None:
        excess = ordered_sum(w) - standard.total
        violation = torch.maximum(violation, excess.abs() if standard.equality else excess.relu())
    return problem.from_standard(violation)


def exploitability(problem: AffineVI, weights: Tensor) -> Tensor:
    """``max_i [J_i(w) − min_{v_i} J_i(v_i, w_{−i})]``, shape ``(*batch,)``; ≥ 0, infinite where a gain has no end.

    Player i pays ``J_i(w) = ½M_ii w_i² + (q_i + Σ_{j≠i} M_ij w_j) w_i + λ_i|w_i|``, of any curvature ``M_ii``, and
    chooses ``w_i`` between its bounds. Feasible weights of exploitability zero are a Nash equilibrium, whether ``M`` is
    monotone or not. A sum constraint is shared by the players. Alone, nobody can deviate from an equality, so there the
    game is the one whose variational equilibria these are (Rosen 1965): everybody pays the common multiplier ``ν w_i``
    of the sum too, with the ``ν ≥ 0`` (any ``ν`` for an equality) that ``w − (Mw + q)`` implies, and deviates between
    its bounds. There zero is sufficient for a variational equilibrium, but necessary only where all ``M_ii ≥ 0``: a
    player of negative curvature would gain by deviations that the sum forbids.

    Args:
        problem: The problem.
        weights: ``(*batch, L)``.

    Raises:
        ValueError: If ``weights`` has another shape than ``(*batch, L)``.
    """
    standard, w = _standard(problem, weights)
    own = standard.diagonal()
    marginal = standard.operator(w) + _multiplier(standard, w)
    rest = marginal - own * w  # player i pays ½ own v² + rest v + λ|v|
    lower, upper, l1 = standard.bounds_and_l1()

    def cost(v: Tensor) -> Tensor:
        linear = rest + l1 * v.sign()  # what grows with v, where the square does not
        return torch.where(v.isinf(), _at_infinity(own, linear, v), 0.5 * own * v * v + linear * v)

    curved = own > 0
    curvature = torch.where(curved, own, 1.0)
    inside = prox(standard.without_sum(), -rest / curvature, curvature.reciprocal())
    # of a cost that is not strictly convex the least is at an end of the interval, or at the kink
    ends = torch.stack((cost(lower), cost(upper), cost(clamp(standard, torch.zeros_like(w))))).amin(0)
    gain = cost(w) - torch.where(curved, cost(inside), ends)
    return problem.from_standard(gain.amax(0).clamp_min(0.0))


def _at_infinity(own: Tensor, linear: Tensor, v: Tensor) -> Tensor:
    """The limit of ``½ own v² + linear v`` where ``v`` is infinite and ``own`` not positive."""
    grows = torch.where(own == 0, linear * v.sign(), -1.0)
    return torch.where(grows == 0, 0.0, grows * torch.inf)


def duality_gap(problem: AffineVI, weights: Tensor) -> Tensor:
    """Upper bound on ``P(w) − min P`` from a feasible dual point, shape ``(*batch,)``; for symmetric ``M`` only.

    The dual of ``min ½wᵀMw + qᵀw + h(w)`` is ``max_u −½uᵀMu − h*(−Mu − q)``. We take ``u = w``, or where that leaves
    the domain of ``h*`` (an unbounded side) ``u = w + M⁻¹e`` with the least ``e`` that brings it back; the multiplier
    of the sum inside ``h*`` is the one that ``w − (Mw + q)`` implies. Infinite where ``M`` is singular and no such
    ``u`` exists. For feasible ``w`` it is ≥ 0 up to rounding.

    Args:
        problem: The problem.
        weights: ``(*batch, L)``.

    Raises:
        ValueError: If ``weights`` has another shape than ``(*batch, L)``, or an ``M`` is not symmetric, or not positive
            semidefinite along the directions of the set: then ``½wᵀMw`` has no such dual.
    """
    standard, w = _standard(problem, weights)
    if not bool(standard.is_symmetric().all()):
        raise ValueError("duality_gap needs a symmetric M; for a game use exploitability.")
    convex = is_monotone(standard.detach())
    report([("duality_gap needs a convex problem, but " + Status.NOT_MONOTONE.message, ~convex)],
           list(problem.batch_shape), "raise", ValueError)  # fmt: skip
    inf = torch.inf
    lower, upper, l1 = standard.bounds_and_l1()
    multiplier = _multiplier(standard, w)

    slope = -(standard.operator(w) + multiplier)
    allowed = torch.minimum(
        torch.maximum(slope, torch.where(lower == -inf, -l1, -inf)), torch.where(upper == inf, l1, inf)
    )
    e = slope - allowed
    M = standard.M.movedim(-1, 0)
    if standard.exists is not None:  # e is 0 there: anything regular will do
        M = M + torch.diag_embed((~standard.exists).to(M.dtype).T)
    u = w + torch.linalg.solve_ex(M, e.T.unsqueeze(-1)).result.squeeze(-1).T
    u = torch.where((e == 0).all(0), w, u)

    corner = torch.where(allowed > 0, upper, lower)  # where max_v allowed·v − λ|v| is attained, if not at 0 …
    corner = torch.where(allowed.abs() <= l1, torch.zeros_like(w), corner)
    corner = torch.minimum(torch.maximum(corner, lower), upper)  # … or at the bound nearest to 0
    corner = torch.where(corner.isfinite(), corner, 0.0)
    conjugate = ordered_sum(allowed * corner - l1 * corner.abs())
    if standard.total is not None:
        conjugate = conjugate + multiplier * standard.total
    quadratic = 0.5 * ordered_sum(w * ordered_sum(standard.M * w, 1) + u * ordered_sum(standard.M * u, 1))
    gap = quadratic + ordered_sum(standard.q * w + l1 * w.abs()) + conjugate
    return problem.from_standard(torch.where(u.isfinite().all(0), gap, inf))


def _standard(problem: AffineVI, weights: Tensor) -> tuple[StandardForm, Tensor]:
    expected = (*problem.batch_shape, problem.size)
    if weights.shape != expected:
        raise ValueError(f"weights must have shape {tuple(expected)}, but have shape {tuple(weights.shape)}.")
    standard = problem.standard()
    return standard, weights.to(standard.q.dtype).reshape(-1, problem.size).T


def _multiplier(problem: StandardForm, w: Tensor) -> Tensor:
    """The multiplier ``ν`` of the sum that ``x = w − (Mw + q)`` implies, ``(B,)``: ``prox(x) = S(x − ν)``."""
    if problem.total is None:
        return torch.zeros_like(w[0])
    x = w - problem.operator(w)
    on = pieces(problem, x)
    z = x if on.slope is None else x - on.slope
    z = torch.where(on.free, z, 0.0 if on.held is None else on.held)
    count = ordered_sum(on.free)
    multiplier = (ordered_sum(z) - problem.total) / count.clamp_min(1)
    if not problem.nonnegative:
        multiplier = torch.where(count > 0, multiplier, _multiplier_at_vertex(problem, w, on.held))
    return multiplier if on.tight is None else multiplier * on.tight


def _multiplier_at_vertex(problem: StandardForm, w: Tensor, held: Tensor | None) -> Tensor:
    """A multiplier at which no coordinate wants to leave ``held``: the middle of the interval of such multipliers."""
    rises, falls = leaving_prices(problem, w, held)
    low, high = rises.amax(0), falls.amin(0)
    low = torch.where(low.isinf(), high, low)
    high = torch.where(high.isinf(), low, high)
    return torch.where(low.isinf(), 0.0, 0.5 * (low + high))
