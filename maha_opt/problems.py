r"""From scale outputs to a problem: the convex aggregation and the Nash aggregation.

Scale outputs `Y` have rows `y_l ∈ R^d`, one for each scale, and `G = YYᵀ/d`.

- Convex: `min ½‖Σ_l w_l y_l − t‖²/d + Σ_l λ_l|w_l| + ½ρ‖w − w̄‖²`, so `M = G + ρI`, `q = −Yt/d − ρw̄`.
- Nash: player l chooses `w_l` and pays `½‖y_l − Σ_k (1 + a)_lk w_k y_k‖²/d + λ_l|w_l| + ½ρw_l²` with an antisymmetric
  `a`, so `M = (1 + a)∘G + ρI`, `q = −diag(G)`. Since `a∘G` is antisymmetric, `½(M + Mᵀ) = G + ρI` for every `a`: the
  game is strongly monotone and has one equilibrium.

Ridge and prices are relative to the mean square of the scale outputs, `p = trace(G)/(number of scales that exist)`:
`ρ = ridge · p` and `λ_l = prices_l · p`. So `Y` and `t` times a constant give the same weights, and the conditioning is
the same for data of every size. Where all outputs are zero there is no such unit, and `p` is 1: the ridge decides.

`M` and `q` are squares of the data, and have to be numbers of the type: in float32 that holds for outputs from 1e-16 to
1e18. The aggregation modules pose problems of other sizes in other units, see `maha_opt.aggregation_base.Aggregation`.

Source: the objective of the published MAHA layer is `target="consensus"`; the rest is our own derivation.

Everything is computed in at least float32, also under autocast, and is differentiable in all tensors.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from maha_opt.scale_outputs import (
    ScaleOutputs,
    check_shape,
    full_precision,
    gram,
    gram_and_scores_of,
    gram_of,
    real_part,
    token_mean,
)
from maha_opt.sets import restrict
from solvers import AffineVI, Box, FeasibleSet, Simplex

__all__ = ["convex_problem", "gram", "nash_problem"]

SIMPLEX = Simplex()
UNIT_BOX = Box(0.0, 1.0)


class Posed(NamedTuple):
    """Problems, and what they are relative to.

    Attributes:
        problem: The problems, of shape (...).
        power: (...), the mean square `p` of the scale outputs that exist.
    """

    problem: AffineVI
    power: Tensor


def convex_problem(
    Y: Tensor,
    target: Tensor | str,
    *,
    ridge: float = 1e-2,
    prior: Tensor | None = None,
    prices: Tensor | float = 0.0,
    feasible: FeasibleSet = SIMPLEX,
    available: Tensor | None = None,
    tokens: Tensor | None = None,
) -> AffineVI:
    """The convex aggregation, `min ½‖Σ_l w_l y_l − t‖²/d + Σ_l λ_l|w_l| + ½ρ‖w − w̄‖²` over the feasible set.

    `target="consensus"` is the published objective, `Σ_l ‖y_l − Σ_k w_k y_k‖²`: up to a constant and the factor
    `2·L·d` it is the above with the mean of the scales as `t`. Over the simplex the plain mean, `w = 1/L`, is its
    minimiser for any data. Over the simplex, prices that are the same for all scales change nothing either, because
    `Σ|w_l| = 1` is a constant: neither the weights nor any gradient.

    >>> from solvers import solve
    >>> Y = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> solve(convex_problem(Y, torch.tensor([3.0, 0.0]))).weights
    tensor([1., 0.])
    >>> solve(convex_problem(Y, "consensus")).weights
    tensor([0.5000, 0.5000])

    Args:
        Y: (..., L, d) scale outputs, floating point; with `tokens`, (..., n, L, d).
        target: (..., d) what the fused output shall be near, or "consensus".
        ridge: ≥ 0, in units of the mean square of the scale outputs; a positive one makes the solution unique.
        prior: (..., L) the weights `w̄` that the ridge draws to; None: equal weights of sum 1 over what exists.
        prices: ≥ 0, a number or (..., L), in units of the mean square of the scale outputs.
        feasible: The set of all weights that are allowed; scales that do not exist are masked out of it here.
        available: (..., L) bool, True where a scale exists; None: all do. What the others hold is ignored, even NaN.
        tokens: (..., n) bool, True for real tokens: one problem for all of them together, made of the mean of their
            Gram matrices and scores. A scale exists for it if it exists for one of them. None: a problem for each.

    Returns:
        Problems of shape (...), of the type of `Y`, float32 at least.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has the wrong shape or value; the message names it.
    """
    outputs = real_part(Y, available, tokens)
    return convex_from(outputs, target, ridge=ridge, prior=prior, prices=prices, feasible=feasible).problem


def convex_from(
    outputs: ScaleOutputs,
    target: Tensor | str,
    *,
    ridge: float,
    prior: Tensor | None = None,
    prices: Tensor | float,
    feasible: FeasibleSet,
) -> Posed:
    """`convex_problem` of scale outputs that have been checked and cleared."""
    _check_ridge(ridge)
    Y, available, tokens = outputs
    with full_precision(Y):
        count = _count(Y, available)
        if isinstance(target, Tensor):
            G, scores = gram_and_scores_of(Y, _real_target(Y, target, tokens))
            G, scores = token_mean(G, tokens, trailing=2), token_mean(scores, tokens, trailing=1)
        elif target == "consensus":
            G = token_mean(gram_of(Y), tokens, trailing=2)
            scores = G.sum(-1) / count
        else:
            raise ValueError(f'target must be a tensor or "consensus", but got {target!r}.')
        if prior is None:
            prior = count.reciprocal()
        else:
            check_shape("prior", prior, scores.shape)
        power = _power(G, count)
        unit = _nonzero(power)
        rho = ridge * unit
        problem = AffineVI(
            M=_plus_diagonal(G, rho),
            q=-scores - rho * prior.to(Y.dtype),
            feasible=restrict(feasible, available, Y.dtype),
            l1=_l1(prices, unit),
            symmetric=True,
        )
        return Posed(problem, power.squeeze(-1))


def nash_problem(
    Y: Tensor,
    coupling: Tensor | None = None,
    *,
    ridge: float = 1e-2,
    prices: Tensor | float = 0.0,
    feasible: FeasibleSet = UNIT_BOX,
    available: Tensor | None = None,
    tokens: Tensor | None = None,
    symmetric: bool | None = None,
) -> AffineVI:
    """The Nash aggregation: player l pays `½‖y_l − Σ_k (1 + a)_lk w_k y_k‖²/d + λ_l|w_l| + ½ρw_l²` and chooses `w_l`.

    Without a coupling it is a potential game, whose equilibrium minimises `½wᵀ(G + ρI)w − diag(G)·w + Σ λ_l|w_l|`. With
    `feasible=Simplex()` the players share the constraint, and the solution is the variational equilibrium.

    >>> from solvers import solve
    >>> Y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> solve(nash_problem(Y, ridge=1e-6)).weights  # players of the same output share the work
    tensor([0.5000, 0.5000, 1.0000])

    Args:
        Y: (..., L, d) scale outputs, floating point; with `tokens`, (..., n, L, d).
        coupling: (L, L) or (..., L, L), the antisymmetric `a`; None: zero. That it is antisymmetric is not checked
            here; `solve` looks at the game that it makes.
        ridge: ≥ 0, in units of the mean square of the scale outputs; a positive one makes the equilibrium unique.
        prices: ≥ 0, a number or (..., L), in units of the mean square of the scale outputs.
        feasible: The set of all weights that are allowed; scales that do not exist are masked out of it here.
        available: (..., L) bool, as in `convex_problem`.
        tokens: (..., n) bool, as in `convex_problem`.
        symmetric: Whether `M` is known to be symmetric or not; None: it is without a coupling, and with one every
            problem is asked.

    Returns:
        Problems of shape (...), of the type of `Y`, float32 at least.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has the wrong shape or value; the message names it.
    """
    outputs = real_part(Y, available, tokens)
    return nash_from(outputs, coupling, ridge=ridge, prices=prices, feasible=feasible, symmetric=symmetric).problem


def nash_from(
    outputs: ScaleOutputs,
    coupling: Tensor | None,
    *,
    ridge: float,
    prices: Tensor | float,
    feasible: FeasibleSet,
    symmetric: bool | None = None,
) -> Posed:
    """`nash_problem` of scale outputs that have been checked and cleared."""
    _check_ridge(ridge)
    Y, available, tokens = outputs
    with full_precision(Y):
        G = token_mean(gram_of(Y), tokens, trailing=2)
        M = G
        if coupling is not None:
            check_shape("coupling", coupling, G.shape)
            M = G + coupling.to(G.dtype) * G
        power = _power(G, _count(Y, available))
        unit = _nonzero(power)
        problem = AffineVI(
            M=_plus_diagonal(M, ridge * unit),
            q=-G.diagonal(dim1=-2, dim2=-1),
            feasible=restrict(feasible, available, Y.dtype),
            l1=_l1(prices, unit),
            symmetric=True if coupling is None else symmetric,
        )
        return Posed(problem, power.squeeze(-1))


def consensus(outputs: ScaleOutputs) -> Tensor:
    """The target that `"consensus"` names: the mean of the scales that exist, (..., d), or (..., n, d) with tokens."""
    Y, available, tokens = outputs
    with full_precision(Y):
        count = _count(Y, available)
        return Y.sum(-2) / (count if tokens is None else count.unsqueeze(-1))


def convex_objective(
    posed: Posed, outputs: ScaleOutputs, target: Tensor | str, weights: Tensor, *, ridge: float
) -> Tensor:
    """What `convex_from` minimises, at any weights (..., L), with equal weights as the prior: (...).

    In units of `p + ‖t‖²/d`, the mean square of the scale outputs and of the target. With `M`, `q` and `λ` of the
    problem it is `½wᵀMw + qᵀw + Σ λ_l|w_l| + ½ρ/(number of scales) + ½‖t‖²/d`: the outputs are not read again.

    Args:
        posed: what `convex_from` made of the next two.
        outputs: as it got them.
        target: likewise.
        weights: zero where a scale does not exist.
        ridge: as it got it.
    """
    Y, available, tokens = outputs
    problem, power = posed
    with full_precision(Y):
        count = _count(Y, available).squeeze(-1)
        rho = ridge * _nonzero(power)
        if isinstance(target, Tensor):
            size = token_mean(_real_target(Y, target, tokens).square().mean(-1), tokens, trailing=0)
        else:
            size = torch.where(power == 0, 0.0, (problem.M.sum((-2, -1)) - problem.size * rho) / count.square())
        products = (problem.M * weights.unsqueeze(-2)).sum(-1)
        value = (weights * (0.5 * products + problem.q)).sum(-1) + _priced(weights, problem) + 0.5 * rho / count
        value = torch.where(power == 0, 0.0, value)  # there ridge and prices have no unit in common with the target
        return (value + 0.5 * size) / _nonzero(power + size)


def nash_objective(
    posed: Posed, outputs: ScaleOutputs, coupling: Tensor | None, weights: Tensor, *, ridge: float
) -> Tensor:
    """What the players of `nash_from` pay, on average, at any weights (..., L): (...). In units of `p`.

    With `S = (1 + a) diag(w)` player l pays `½(G − 2GSᵀ + SGSᵀ)_ll` besides ridge and price, and `½(M + Mᵀ)` of the
    problem is `G + ρI`: the outputs are not read again.

    Args:
        posed: what `nash_from` made of the next two.
        outputs: as it got them.
        coupling: likewise.
        weights: zero where a scale does not exist.
        ridge: as it got it.
    """
    problem = posed.problem
    with full_precision(outputs.Y):
        count = _count(outputs.Y, outputs.available).squeeze(-1)
        power = _nonzero(posed.power)
        G = _plus_diagonal(0.5 * (problem.M + problem.M.mT), -ridge * power.unsqueeze(-1))
        shares = weights.unsqueeze(-2).expand(*weights.shape, weights.shape[-1])
        if coupling is not None:
            shares = shares * (1 + coupling.to(G.dtype))
        misfit = (shares * (shares.contiguous() @ G - 2 * G)).sum(-1) + G.diagonal(dim1=-2, dim2=-1)
        misfit = misfit if outputs.available is None else misfit * outputs.available
        own = _priced(weights, problem) + 0.5 * ridge * power * weights.square().sum(-1)
        return (0.5 * misfit.sum(-1) + own) / (count * power)


def _priced(weights: Tensor, problem: AffineVI) -> Tensor | float:
    """`Σ_l λ_l|w_l|`."""
    return (problem.l1 * weights.abs()).sum(-1) if isinstance(problem.l1, Tensor) else 0.0


def _real_target(Y: Tensor, target: Tensor, tokens: Tensor | None) -> Tensor:
    """The target, checked, of the type of `Y`, and zero where no token is real."""
    check_shape("target", target, (*Y.shape[:-2], Y.shape[-1]))
    target = target.to(Y.dtype)
    return target if tokens is None else torch.where(tokens.unsqueeze(-1), target, 0.0)


def _count(Y: Tensor, available: Tensor | None) -> Tensor:
    """Number of scales that exist, (..., 1) or (1,)."""
    if available is None:
        return Y.new_full((1,), Y.shape[-2])
    return available.sum(-1, keepdim=True).clamp(min=1).to(Y.dtype)


def _power(G: Tensor, count: Tensor) -> Tensor:
    """Mean square of the scale outputs that exist, (..., 1): the unit of ridge and prices."""
    return G.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) / count


def _nonzero(size: Tensor) -> Tensor:
    """The same with 1 for 0, which has no size to be relative to."""
    return torch.where(size == 0, 1.0, size)


def _check_ridge(ridge: float) -> None:
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge must be non-negative and finite, but got {ridge}.")


def _plus_diagonal(M: Tensor, rho: Tensor) -> Tensor:
    return M + torch.diag_embed(rho.expand(M.shape[:-1]))


def _l1(prices: Tensor | float, power: Tensor) -> Tensor | float:
    """λ, a number only where there is no price, which spares the solvers the term."""
    if not isinstance(prices, Tensor):
        if not 0 <= prices < math.inf:
            raise ValueError(f"prices must be non-negative and finite, but got {prices}.")
        return prices * power if prices else 0.0
    return prices.to(power.dtype) * power
