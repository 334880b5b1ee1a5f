"""Projected (proximal) gradient: accelerated where ``M`` is symmetric, extragradient where it is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from solvers.iterate import State, check_unroll, iterate
from solvers.prox import prox
from solvers.sets import FeasibleSet
from solvers.standard_form import StandardForm
from solvers.sums import ordered_sum

EXTRAGRADIENT = 2**-0.5


@dataclass(frozen=True)
class ProjectedGradient:
    """Accelerated projected gradient; extragradient for games.

    Proximal steps ``w ← prox(v − γ(Mv + q))`` on every set. The step is ``γ = 1/‖M‖``, and
    ``1/(√2‖M‖)`` where ``M`` is not symmetric.

    Symmetric ``M``: Nesterov's momentum with restart whenever it points uphill (Beck and Teboulle 2009; O'Donoghue and
    Candès 2015). Others: the extragradient method, which takes the slope at a trial point (Korpelevich 1976).

    Attributes:
        unroll: A fixed number of iterations; ``None`` iterates to the tolerance.
        accelerate: Whether symmetric items get momentum.
    """

    gradients: ClassVar[tuple[str, ...]] = ("implicit", "unrolled", "one_step")
    default_max_iter: ClassVar[int] = 20_000
    unroll: int | None = None
    accelerate: bool = True

    def __post_init__(self) -> None:
        check_unroll(self.unroll)

    @property
    def to_tolerance(self) -> bool:
        """A fixed number of iterations promises nothing."""
        return self.unroll is None

    def check_set(self, feasible: FeasibleSet) -> None:
        """Takes every set."""

    def __call__(self, problem: StandardForm, tol: float, max_iter: int | None) -> tuple[Tensor, Tensor]:
        """Weights ``(L, B)`` and the number of iterations ``(B,)``."""
        return iterate(
            self,
            problem,
            steps=self.unroll,
            tol=tol,
            max_iter=self.default_max_iter if max_iter is None else max_iter,
        )

    def start(self, problem: StandardForm) -> State:
        """The projection of 0 twice, as if it had been reached at rest, and the age of the momentum."""
        w = prox(problem, torch.zeros_like(problem.q), (1 / lipschitz(problem)).expand_as(problem.q))
        return w, w, torch.ones_like(w[0])

    def one_step(self, problem: StandardForm, w: Tensor) -> Tensor:
        """One step from ``w`` without momentum, differentiable."""
        gamma = 1 / lipschitz(problem)
        return prox(problem, w - gamma * problem.operator(w), gamma.expand_as(w))

    def step(self, problem: StandardForm, state: State) -> State:
        """One proximal step with momentum, or a trial and a step for a game."""
        w, before, age = state
        gamma = 1 / lipschitz(problem)

        def proximal(v: Tensor) -> Tensor:
            return prox(problem, w_from - gamma * problem.operator(v), gamma.expand_as(v))

        symmetric = problem.is_symmetric() if problem.symmetric is None else problem.symmetric
        if symmetric is not True:  # the extragradient method needs γ < 1/‖M‖, strictly
            shorter = EXTRAGRADIENT * gamma
            gamma = shorter if symmetric is False else torch.where(symmetric, gamma, shorter)
        if symmetric is False:
            w_from = w
            return proximal(proximal(w)), w, age
        next_age = 0.5 * (1 + (1 + 4 * age * age).sqrt())
        momentum = (age - 1) / next_age if self.accelerate else torch.zeros_like(age)
        if symmetric is not True:
            momentum = torch.where(symmetric, momentum, 0.0)
        w_from = v = w + momentum * (w - before)
        w_next = proximal(v)
        if symmetric is not True:
            w_next = torch.where(symmetric, w_next, proximal(w_next))
        uphill = ordered_sum((v - w_next) * (w_next - w)) > 0
        return w_next, w, torch.where(uphill, 1.0, next_age)


def lipschitz(problem: StandardForm) -> Tensor:
    """An upper bound on the spectral norm ``‖M‖``, ``(B,)``: ``min(‖M‖_F, √(‖M‖_1 ‖M‖_∞))``; 1 where ``M = 0``."""
    magnitude = problem.M.abs()
    largest = magnitude.detach().amax((0, 1))
    unit = largest.where(largest > 0, 1.0)
    magnitude = magnitude / unit  # whose squares stay in the range of the type
    frobenius = _root(ordered_sum((magnitude * magnitude).flatten(0, 1)))
    rows_and_columns = _root(ordered_sum(magnitude).amax(0) * ordered_sum(magnitude, 1).amax(0))
    bound = torch.minimum(frobenius, rows_and_columns)
    return unit * torch.where(bound > 0, bound, 1.0)


def _root(x: Tensor) -> Tensor:
    """``√x`` with a derivative of 0 at 0."""
    return torch.where(x > 0, x.where(x > 0, 1.0).sqrt(), 0.0)
