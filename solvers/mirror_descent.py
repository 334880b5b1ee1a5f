"""Entropic mirror descent on the simplex."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from solvers.iterate import State, check_unroll, iterate
from solvers.sets import FeasibleSet
from solvers.standard_form import StandardForm
from solvers.sums import ordered_sum


@dataclass(frozen=True)
class MirrorDescent:
    """Entropic mirror descent, mirror prox for games; simplex only.

    Multiplicative steps ``w ∝ w exp(−γ(Mw + q))`` with ``γ = 1/max|M_ij|``, the smoothness relative to the entropy.
    Where ``M`` is not symmetric the slope is taken at a trial point (mirror prox, Nemirovski 2004). Weights stay
    positive and approach 0 geometrically; all gradients are smooth.

    Attributes:
        unroll: A fixed number of iterations; ``None`` iterates to the tolerance.
    """

    gradients: ClassVar[tuple[str, ...]] = ("implicit", "unrolled", "one_step")
    default_max_iter: ClassVar[int] = 20_000
    unroll: int | None = None

    def __post_init__(self) -> None:
        check_unroll(self.unroll)

    @property
    def to_tolerance(self) -> bool:
        """A fixed number of iterations promises nothing."""
        return self.unroll is None

    def check_set(self, feasible: FeasibleSet) -> None:
        """Takes the simplex, of any total and with any mask."""
        require_simplex("mirror_descent", feasible)

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
        """The uniform weights."""
        exists = torch.ones_like(problem.q) if problem.exists is None else problem.exists.to(problem.q.dtype)
        return _on_simplex(problem, exists.log())

    def one_step(self, problem: StandardForm, w: Tensor) -> Tensor:
        """One step from ``w``, differentiable."""
        return self.step(problem, (w, (w / problem.required_total).log()))[0]

    def step(self, problem: StandardForm, state: State) -> State:
        """One multiplicative step, or a trial and a step for a game."""
        w, log_w = state
        gamma = step_size(problem)
        trial = _on_simplex(problem, log_w - gamma * problem.operator(w))
        symmetric = problem.is_symmetric() if problem.symmetric is None else problem.symmetric
        if symmetric is True:
            return trial
        corrected = _on_simplex(problem, log_w - gamma * problem.operator(trial[0]))
        if symmetric is False:
            return corrected
        return torch.where(symmetric, trial[0], corrected[0]), torch.where(symmetric, trial[1], corrected[1])


def step_size(problem: StandardForm) -> Tensor:
    """``γ = 1/(total · max|M_ij|)``, ``(B,)``."""
    largest = problem.M.abs().amax((0, 1))
    return 1 / (problem.required_total * torch.where(largest > 0, largest, 1.0))


def _on_simplex(problem: StandardForm, logits: Tensor) -> State:
    logits = logits - logits.detach().amax(0)  # a constant in log_w
    log_w = logits - ordered_sum(logits.exp()).log()
    return problem.required_total * log_w.exp(), log_w


def require_simplex(solver: str, feasible: FeasibleSet) -> None:
    """Raises ValueError unless the set is ``{w ≥ 0, sum(w) = total}``."""
    plain = not isinstance(feasible.lower, Tensor) and not isinstance(feasible.upper, Tensor)
    if (
        feasible.total is None
        or not feasible.equality
        or not plain
        or (feasible.lower, feasible.upper) != (0.0, torch.inf)
    ):
        raise ValueError(f"{solver} takes the Simplex only, but got {feasible}; use pivot or projected_gradient.")
