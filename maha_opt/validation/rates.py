r"""How fast the approximate solvers converge in theory: the spectral radius of one step at the solution.

Near a solution away from ties every step keeps the active set, and is there an affine map ``w ↦ w* + T(w − w*)``. Let
``F`` be the free coordinates and ``Π`` the orthogonal projector on the directions that the set leaves to them: ``F``,
less ``1_F`` where the sum is tight. ``M_Π = ΠMΠ``, ``γ`` is a solver's step, ``η`` a damping. Then ``T`` is

- projected gradient: ``Π − γ M_Π``, so the rate is ``1 − γμ = 1 − γℓ/κ`` with the least and the largest curvature
  ``μ`` and ``ℓ`` and the condition number ``κ`` of the active set (``γ ≤ 1/ℓ``);
- extragradient: ``Π − B + B²`` with ``B = γ M_Π``; its eigenvalues are complex;
- best response, all at once: ``Π − η A_Π`` with ``A = D^{-1/2} M D^{-1/2}``, ``D = diag(M)``, ``Π`` in the same metric;
- best response, in turn: ``(D + ηN)⁻¹((1 − η)D − ηU)`` on ``F``, where ``M = N + D + U`` from below to above; damped,
  either approaches the held values by the factor ``1 − η``;
- mirror descent: ``Π − B`` with ``B = γWMΠ``, ``W = diag(w) − wwᵀ/Σw``, and off ``F`` the factor
  ``exp(−γ(cost_i − price))``; mirror prox has ``Π − B + B²`` instead.

Accelerated projected gradient with restarts has no such map. Beside it stands ``1 − √(γμ)``, the rate of the best
constant momentum (Nesterov 2004, section 2.2): what it should be near to, or better than, not a bound.

Sources: for fixed active sets, e.g. Liang, Fadili and Peyré (2017), "Activity identification and local linear
convergence of forward–backward-type methods"; Young (1971) for the sweeps; the formulas for mirror descent are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from solvers.best_response import BestResponse, curvature
from solvers.mirror_descent import MirrorDescent
from solvers.mirror_descent import step_size as mirror_step
from solvers.natural import natural_map
from solvers.projected_gradient import EXTRAGRADIENT, ProjectedGradient, lipschitz
from solvers.prox import Pieces
from solvers.standard_form import StandardForm


def theoretical_rate(method: object, problem: StandardForm, w: Tensor) -> tuple[Tensor, str] | None:
    """The factor by which a step of a solver brings the error down in the end, and what that number is.

    Args:
        method: A solver, as `solvers.registry.make_solver` makes it.
        problem: The problems.
        w: ``(L, B)``, their solutions; ties count as held.

    Returns:
        ``(B,)``, 0 where no direction is left (the solver then ends after finitely many steps), and ``"rate"`` or
        ``"guide"``; None where theory is silent about this solver.
    """
    on = natural_map(problem, w, 0.0).on
    if isinstance(method, ProjectedGradient):
        rate = _projected_gradient(problem, on)
        symmetric = problem.is_symmetric()
        if method.accelerate and bool(symmetric.any()):
            return torch.where(symmetric & (rate > 0), 1 - (1 - rate).clamp_min(0).sqrt(), rate), "guide"
        return rate, "rate"
    if isinstance(method, BestResponse):
        return _best_response(method, problem, on), "rate"
    if isinstance(method, MirrorDescent):
        return _mirror_descent(problem, w, on), "rate"
    return None


def largest_damping(problem: StandardForm, w: Tensor) -> Tensor:
    """Below which damping ``η`` simultaneous best responses converge, ``(B,)``.

    ``|1 − ηλ| < 1`` for every eigenvalue ``λ`` of ``A_Π`` is ``η < min 2 Re λ / |λ|²``. On the active set this is
    necessary; on all coordinates as well it is enough for a convex program (each step then descends, since an active
    set has no larger eigenvalues). For a game it is enough near the solution.
    """
    on = natural_map(problem, w, 0.0).on
    everywhere = torch.ones_like(on.free) if problem.exists is None else problem.exists
    bounds = []
    for free in (on.free, everywhere):
        A, project = _in_own_metric(problem, on._replace(free=free))
        eigenvalues = torch.linalg.eigvals(project @ A @ project)
        bound = 2 * eigenvalues.real / eigenvalues.abs().square()
        there = eigenvalues.abs() > 1e-9 * eigenvalues.abs().amax(-1, keepdim=True)  # not those of other directions
        bounds.append(torch.where(there, bound, torch.inf).amin(-1))
    return torch.minimum(*bounds)


def _projected_gradient(problem: StandardForm, on: Pieces) -> Tensor:
    project = _projector(problem, on, torch.ones_like(problem.q))
    symmetric, gamma = problem.is_symmetric()[:, None, None], (1 / lipschitz(problem))[:, None, None]
    B = gamma * (project @ _batch_first(problem.M) @ project)
    shorter = EXTRAGRADIENT * B
    return _spectral_radius(project - torch.where(symmetric, B, shorter - shorter @ shorter))


def _best_response(method: BestResponse, problem: StandardForm, on: Pieces) -> Tensor:
    damping = method.damping_of(problem)
    eta, inside = damping[:, None, None], on.free.T.to(problem.q.dtype)
    if method.sweep == "jacobi":
        A, project = _in_own_metric(problem, on)
        T = project - eta * (project @ A @ project)
    else:
        M, D = _batch_first(problem.M), torch.diag_embed(curvature(problem).T)
        corner = inside.unsqueeze(-1) * inside.unsqueeze(-2)
        N, U = (M * corner).tril(-1), (M * corner).triu(1)
        T = corner * torch.linalg.solve(D + eta * N, (1 - eta) * D - eta * U)
    held = ~on.free if problem.exists is None else ~on.free & problem.exists
    return torch.maximum(_spectral_radius(T), (1 - damping) * held.any(0))


def _mirror_descent(problem: StandardForm, w: Tensor, on: Pieces) -> Tensor:
    gamma, free = mirror_step(problem), on.free
    project = _projector(problem, on, torch.ones_like(problem.q))
    v = (w * free).T
    W = torch.diag_embed(v) - v.unsqueeze(-1) * v.unsqueeze(-2) / v.sum(-1)[:, None, None]
    B = gamma[:, None, None] * (W @ _batch_first(problem.M) @ project)
    symmetric = problem.is_symmetric()[:, None, None]
    inner = _spectral_radius(project - torch.where(symmetric, B, B - B @ B))
    cost = problem.operator(w)
    price = (cost * free).sum(0) / free.sum(0)
    fading = torch.where(free, 0.0, (-gamma * (cost - price)).exp())
    if problem.exists is not None:
        fading = torch.where(problem.exists, fading, 0.0)
    return torch.maximum(inner, fading.amax(0))


def _in_own_metric(problem: StandardForm, on: Pieces) -> tuple[Tensor, Tensor]:
    """``A = D^{-1/2} M D^{-1/2}`` and its ``Π``; the sum ``1ᵀw`` is ``(D^{-1/2} 1)ᵀu`` for ``u = D^{1/2} w``."""
    root = curvature(problem).sqrt()
    return _batch_first(problem.M / (root.unsqueeze(0) * root.unsqueeze(1))), _projector(problem, on, 1 / root)


def _projector(problem: StandardForm, on: Pieces, normal: Tensor) -> Tensor:
    """``Π``, ``(B, L, L)``: the projector on the free coordinates, less ``normal_F`` where the sum is tight."""
    inside = on.free.T.to(problem.q.dtype)
    project = torch.diag_embed(inside)
    if problem.total is None:
        return project
    a = normal.T * inside
    a = a / torch.linalg.vector_norm(a, dim=-1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny)
    a = a if on.tight is None else a * on.tight.unsqueeze(-1)
    return project - a.unsqueeze(-1) * a.unsqueeze(-2)


def _spectral_radius(T: Tensor) -> Tensor:
    radius = torch.linalg.eigvals(T).abs().amax(-1)
    return torch.where(radius < 1e-7, 0.0, radius)  # rounding: √ε where an eigenvalue 0 is defective


def _batch_first(M: Tensor) -> Tensor:
    return M.movedim(-1, 0)
