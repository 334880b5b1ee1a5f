"""Aggregation modules: the outputs of all scales, fused with weights that solve a problem."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from maha_opt.aggregation_base import Aggregated, Aggregation, HeadOptions
from maha_opt.problems import Posed, consensus, convex_from, convex_objective, nash_from, nash_objective
from maha_opt.scale_outputs import ScaleOutputs
from maha_opt.sets import restrict
from solvers import AffineVI

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Aggregated", "ConvexAggregation", "GateAggregation", "NashAggregation"]


class ZeroLinear(nn.Linear):
    """A linear map that starts at zero; a model that draws first weights leaves it there."""

    def reset_parameters(self) -> None:
        """Sets it to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ConvexAggregation(Aggregation):
    """Weights that solve `min ½‖Σ_l w_l y_l − t‖²/d + Σ_l λ_l|w_l| + ½ρ‖w − w̄‖²` over the feasible set.

    `y_l` is what scale l says and `w̄` are equal weights; `maha_opt.problems.convex_problem` says more.

    >>> layer = ConvexAggregation(num_scales=3, d_model=8)
    >>> output, solution = layer(torch.randn(2, 5, 3, 8), inputs=torch.randn(2, 5, 8))
    >>> output.shape, solution.weights.shape
    (torch.Size([2, 5, 8]), torch.Size([2, 5, 3]))
    >>> layer.solver, layer.gradient = "projected_gradient", "one_step"  # at any time

    Args:
        num_scales: Number of scales L.
        d_model: Number of channels.
        target: "linear": t is a learned linear map of the block's input, which `forward` then needs. "consensus": t is
            the mean of the scales, which is the published objective `Σ_l ‖y_l − Σ_k w_k y_k‖²`; over the simplex its
            answer is the plain mean for any data. "residual": t is that mean plus the linear map, which starts at zero,
            so that training starts from the plain mean, where every scale gets a gradient.
        options: See `Aggregation`.

    Raises:
        TypeError: As `Aggregation`.
        ValueError: As `Aggregation`, or for an unknown `target`.
    """

    def __init__(
        self,
        num_scales: int,
        d_model: int,
        *,
        target: Literal["linear", "residual", "consensus"] = "linear",
        **options: Unpack[HeadOptions],
    ) -> None:
        super().__init__(num_scales, d_model, **options)
        if target not in ("linear", "residual", "consensus"):
            raise ValueError(f"target must be 'linear', 'residual' or 'consensus', but got {target!r}.")
        self.residual = target == "residual"
        linear = ZeroLinear if self.residual else nn.Linear
        self.target = None if target == "consensus" else linear(d_model, d_model)

    def _target(self, inputs: Tensor | None, mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
        if self.target is None:
            return None
        return self._mapped(self.target, inputs, mask, shape)

    def _problem(self, outputs: ScaleOutputs, target: Tensor | None) -> Posed:
        return convex_from(outputs, self._goal(outputs, target), feasible=self._set(outputs), **self._terms(outputs))

    def _objective(self, posed: Posed, outputs: ScaleOutputs, target: Tensor | None, weights: Tensor) -> Tensor:
        return convex_objective(posed, outputs, self._goal(outputs, target), weights, ridge=self.ridge)

    def _goal(self, outputs: ScaleOutputs, target: Tensor | None) -> Tensor | str:
        if target is None:
            return "consensus"
        return consensus(outputs) + target if self.residual else target


class NashAggregation(Aggregation):
    """Weights in the equilibrium of a game between the scales.

    Scale l chooses `w_l` and pays `½‖y_l − Σ_k (1 + a)_lk w_k y_k‖²/d + λ_l|w_l| + ½ρw_l²`: its own output is to be
    covered by what all contribute. The learned antisymmetric coupling `a = A − Aᵀ` lets k matter more to l than l to k;
    the game has exactly one equilibrium for every `a`. It starts at 0, a potential game, where its gradient is not 0.
    `maha_opt.problems.nash_problem` says more.

    >>> layer = NashAggregation(num_scales=3, d_model=8, prices="learned")
    >>> output, solution = layer(torch.randn(2, 5, 3, 8))
    >>> bool((solution.weights >= 0).all() and (solution.weights <= 1).all())
    True

    Args:
        num_scales: Number of scales L, the players.
        d_model: Number of channels.
        options: See `Aggregation`. Heads share the coupling. `feasible` is "box" unless named: every player chooses in
            [0, 1] on its own. With a shared constraint, such as "simplex" or "budget", the weights are the variational
            equilibrium.

    Raises:
        TypeError: As `Aggregation`.
        ValueError: As `Aggregation`.
    """

    def __init__(
        self,
        num_scales: int,
        d_model: int,
        **options: Unpack[HeadOptions],
    ) -> None:
        options.setdefault("feasible", "box")
        super().__init__(num_scales, d_model, **options)
        self.raw_coupling = nn.Parameter(torch.zeros(num_scales, num_scales))

    @property
    def coupling(self) -> Tensor:
        """The antisymmetric coupling `a = A − Aᵀ`, (L, L)."""
        return self.raw_coupling - self.raw_coupling.T

    def _problem(self, outputs: ScaleOutputs, target: Tensor | None) -> Posed:
        del target
        return nash_from(outputs, self.coupling, symmetric=False, feasible=self._set(outputs), **self._terms(outputs))

    def _objective(self, posed: Posed, outputs: ScaleOutputs, target: Tensor | None, weights: Tensor) -> Tensor:
        del target
        return nash_objective(posed, outputs, self.coupling, weights, ridge=self.ridge)


class GateAggregation(Aggregation):
    """Weights that follow scores of the block's input, `s = Wx + b`, whatever the scales say.

    They are::

        w = softmax(s)                         with solver="softmax", the default,
        w = argmin ½‖w − s‖² + Σ_l λ_l|w_l|    with any other, over the feasible set.

    The former is the gate of a mixture of experts (Jacobs et al. 1991; Shazeer et al. 2017), the latter on the simplex
    its sparse counterpart, sparsemax (Martins and Astudillo 2016): the problem with `M = I`, `q = −s`. What the scales
    say does not enter, so this is the fusion that an optimization has to beat.

    >>> layer = GateAggregation(num_scales=3, d_model=8)
    >>> output, solution = layer(torch.randn(2, 5, 3, 8), inputs=torch.randn(2, 5, 8))
    >>> layer.solver = "pivot"  # now some of the weights are exactly zero

    Args:
        num_scales: Number of scales L.
        d_model: Number of channels.
        options: See `Aggregation`; `solver` is "softmax" unless named. Prices are in units of the scores, and there is
            no `ridge`. Heads have scores of their own; tokens that share a problem share their mean scores.

    Raises:
        TypeError: As `Aggregation`.
        ValueError: As `Aggregation`.
    """

    reads_scales = False

    def __init__(
        self,
        num_scales: int,
        d_model: int,
        **options: Unpack[HeadOptions],
    ) -> None:
        if "ridge" in options:
            raise TypeError("ridge has no meaning for a gate, whose problem is strongly convex by itself.")
        options.setdefault("solver", "softmax")
        super().__init__(num_scales, d_model, **options)
        self.scores = nn.Linear(d_model, num_scales * (self.num_heads if self._per_head else 1))

    def _target(self, inputs: Tensor | None, mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
        return self._mapped(self.scores, inputs, mask, shape)

    def _problem(self, outputs: ScaleOutputs, target: Tensor | None) -> Posed:
        scores = self._shared_scores(outputs, target)
        eye = torch.eye(self.num_scales, dtype=scores.dtype, device=scores.device)
        feasible = restrict(self._set(outputs), outputs.available, scores.dtype)
        problem = AffineVI(eye, -scores, feasible, l1=self._terms(outputs)["prices"], symmetric=True)
        return Posed(problem, scores.new_ones(scores.shape[:-1]))

    def _objective(self, posed: Posed, outputs: ScaleOutputs, target: Tensor | None, weights: Tensor) -> Tensor:
        """`½‖w − s‖² + Σ_l λ_l|w_l|` over the scales that exist; scores are as large as weights, so it is relative."""
        away = (weights - self._shared_scores(outputs, target)).square() / 2 + posed.problem.l1 * weights.abs()
        return (away if outputs.available is None else away * outputs.available).sum(-1)

    def _shared_scores(self, outputs: ScaleOutputs, scores: Tensor | None) -> Tensor:
        """The scores of each problem: the mean over the real tokens where these share one."""
        assert scores is not None
        scores = scores.to(outputs.Y.dtype)
        if outputs.tokens is None:
            return scores
        real = outputs.tokens.unsqueeze(-1).to(scores.dtype)
        return (scores * real).sum(-2) / real.sum(-2).clamp(min=1)
