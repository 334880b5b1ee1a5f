"""Aggregation modules: the outputs of all scales, fused with weights that solve a problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from maha_opt.aggregation_base import Aggregated, Aggregation
from maha_opt.problems import convex_from, convex_objective, nash_from, nash_objective
from maha_opt.scale_outputs import ScaleOutputs, check_exact
from maha_opt.sets import SetLike, restrict
from solvers import AffineVI

__all__ = ["Aggregated", "ConvexAggregation", "GateAggregation", "NashAggregation"]

Granularity = Literal["token", "token_head", "sequence", "head"]
Prices = Tensor | Sequence[float] | Literal["learned"] | None


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
            answer is the plain mean for any data.
        num_heads: This and all others: see `Aggregation`.
        granularity: See there.
        causal: See there.
        feasible: See there.
        feasible_options: See there.
        prices: See there.
        ridge: See there.
        solver: See there.
        gradient: See there.
        solver_options: See there.
        on_failure: See there.

    Raises:
        TypeError: As `Aggregation`.
        ValueError: As `Aggregation`, or for an unknown `target`.
    """

    def __init__(
        self,
        num_scales: int,
        d_model: int,
        *,
        target: Literal["linear", "consensus"] = "linear",
        num_heads: int = 1,
        granularity: Granularity = "token",
        causal: bool = False,
        feasible: SetLike = "simplex",
        feasible_options: Mapping[str, object] | None = None,
        prices: Prices = None,
        ridge: float = 1e-2,
        solver: str = "pivot",
        gradient: str = "implicit",
        solver_options: Mapping[str, object] | None = None,
        on_failure: str = "warn",
    ) -> None:
        super().__init__(
            num_scales,
            d_model,
            num_heads=num_heads,
            granularity=granularity,
            causal=causal,
            feasible=feasible,
            feasible_options=feasible_options,
            prices=prices,
            ridge=ridge,
            solver=solver,
            gradient=gradient,
            solver_options=solver_options,
            on_failure=on_failure,
        )
        if target not in ("linear", "consensus"):
            raise ValueError(f"target must be 'linear' or 'consensus', but got {target!r}.")
        self.target = nn.Linear(d_model, d_model) if target == "linear" else None

    def _target(self, inputs: Tensor | None, mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
        if self.target is None:
            return None
        if inputs is None:
            raise ValueError("inputs must be given: target='linear' is a map of the block's input.")
        check_exact("inputs", inputs, shape)
        if mask is not None:  # NaN at padding would come back in the gradient of the map
            inputs = torch.where(mask.unsqueeze(-1), inputs, 0.0)
        return self._by_head(self.target(inputs))

    def _problem(self, outputs: ScaleOutputs, target: Tensor | None) -> AffineVI:
        goal = "consensus" if target is None else target
        return convex_from(outputs, goal, feasible=self._set(outputs), **self._terms(outputs))

    def _objective(self, problem: AffineVI, outputs: ScaleOutputs, target: Tensor | None, weights: Tensor) -> Tensor:
        goal = "consensus" if target is None else target
        return convex_objective(problem, outputs, goal, weights, ridge=self.ridge)


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
        num_heads: This and all others: see `Aggregation`. The heads share the coupling.
        granularity: See there.
        causal: See there.
        feasible: See there; by default every player chooses in [0, 1] on its own. With a shared constraint, such as
            "simplex" or "budget", the weights are the variational equilibrium.
        feasible_options: See there.
        prices: See there.
        ridge: See there.
        solver: See there.
        gradient: See there.
        solver_options: See there.
        on_failure: See there.

    Raises:
        TypeError: As `Aggregation`.
        ValueError: As `Aggregation`.
    """

    def __init__(
        self,
        num_scales: int,
        d_model: int,
        *,
        num_heads: int = 1,
        granularity: Granularity = "token",
        causal: bool = False,
        feasible: SetLike = "box",
        feasible_options: Mapping[str, object] | None = None,
        prices: Prices = None,
        ridge: float = 1e-2,
        solver: str = "pivot",
        gradient: str = "implicit",
        solver_options: Mapping[str, object] | None = None,
        on_failure: str = "warn",
    ) -> None:
        super().__init__(
            num_scales,
            d_model,
            num_heads=num_heads,
            granularity=granularity,
            causal=causal,
            feasible=feasible,
            feasible_options=feasible_options,
            prices=prices,
            ridge=ridge,
            solver=solver,
            gradient=gradient,
            solver_options=solver_options,
            on_failure=on_failure,
        )
        self.raw_coupling = nn.Parameter(torch.zeros(num_scales, num_scales))

    @property
    def coupling(self) -> Tensor:
        """The antisymmetric coupling `a = A − Aᵀ`, (L, L)."""
        return self.raw_coupling - self.raw_coupling.T

    def _problem(self, outputs: ScaleOutputs, target: Tensor | None) -> AffineVI:
        del target
        return nash_from(outputs, self.coupling, symmetric=False, feasible=self._set(outputs), **self._terms(outputs))

    def _objective(self, problem: AffineVI, outputs: ScaleOutputs, target: Tensor | None, weights: Tensor) -> Tensor:
        del target
        return nash_objective(problem, outputs, self.coupling, weights, ridge=self.ridge)


class GateAggregation(Aggregation):
    """Weights that follow scores of the block's input, `s = Wx + b`, whatever the scales say.

        w = softmax(s)                                     with `solver="softmax"`, the default,
        w = argmin ½‖w − s‖² + Σ_l λ_l|w_l|                with any other, over the feasible set.

    The former is the gate of a mixture of experts (Jacobs et al. 1991; Shazeer et al. 2017), the latter on the simplex
    its sparse counterpart, sparsemax (Martins and Astudillo 2016): the problem with `M = I`, `q = −s`. What the scales
    say does not enter, so this is the fusion that an optimization has to beat.

    >>> layer = GateAggregation(num_scales=3, d_model=8)
    >>> output, solution = layer(torch.randn(2, 5, 3, 8), inputs=torch.randn(2, 5, 8))
    >>> layer.solver = "pivot"  # now some of the weights are exactly zero

    Args:
        num_scales: Number of scales L.
        d_model: Number of channels.
        num_heads: This and all others: see `Aggregation`; prices are in units of the scores here.
        granularity: See there. The heads have scores of their own; tokens that share a problem share their mean scores.
        causal: See there.
        feasible: See there.
        feasible_options: See there.
        prices: See there.
        solver: See there.
        gradient: See there.
        solver_options: See there.
        on_failure: See there.

    Raises:
        TypeError: As `Aggregation`.
        ValueError: As `Aggregation`.
    """

    def __init__(
        self,
        num_scales: int,
        d_model: int,
        *,
        num_heads: int = 1,
        granularity: Granularity = "token",
        causal: bool = False,
        feasible: SetLike = "simplex",
        feasible_options: Mapping[str, object] | None = None,
        prices: Prices = None,
        solver: str = "softmax",
        gradient: str = "implicit",
        solver_options: Mapping[str, object] | None = None,
        on_failure: str = "warn",
    ) -> None:
        super().__init__(
            num_scales,
            d_model,
            num_heads=num_heads,
            granularity=granularity,
            causal=causal,
            feasible=feasible,
            feasible_options=feasible_options,
            prices=prices,
            solver=solver,
            gradient=gradient,
            solver_options=solver_options,
            on_failure=on_failure,
        )
        self.scores = nn.Linear(d_model, num_scales * (num_heads if self._per_head else 1))

    def _target(self, inputs: Tensor | None, mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
        if inputs is None:
            raise ValueError("inputs must be given: a gate reads the block's input.")
        check_exact("inputs", inputs, shape)
        if mask is not None:  # NaN at padding would come back in the gradient of the map
            inputs = torch.where(mask.unsqueeze(-1), inputs, 0.0)
        return self._by_head(self.scores(inputs))

    def _problem(self, outputs: ScaleOutputs, target: Tensor | None) -> AffineVI:
        scores = self._shared_scores(outputs, target)
        eye = torch.eye(self.num_scales, dtype=scores.dtype, device=scores.device)
        feasible = restrict(self._set(outputs), outputs.available, scores.dtype)
        return AffineVI(eye, -scores, feasible, l1=self._terms(outputs)["prices"], symmetric=True)

    def _objective(self, problem: AffineVI, outputs: ScaleOutputs, target: Tensor | None, weights: Tensor) -> Tensor:
        """`½‖w − s‖² + Σ_l λ_l|w_l|` over the scales that exist; scores are as large as weights, so it is relative."""
        away = (weights - self._shared_scores(outputs, target)).square() / 2 + problem.l1 * weights.abs()
        return (away if outputs.available is None else away * outputs.available).sum(-1)

    def _shared_scores(self, outputs: ScaleOutputs, scores: Tensor | None) -> Tensor:
        """The scores of each problem: the mean over the real tokens where these share one."""
        assert scores is not None
        scores = scores.to(outputs.Y.dtype)
        if outputs.tokens is None:
            return scores
        real = outputs.tokens.unsqueeze(-1).to(scores.dtype)
        return (scores * real).sum(-2) / real.sum(-2).clamp(min=1)
