"""Douglas-Rachford splitting as a solver for `solvers.solve`: all that one needs, in one file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from solvers import FeasibleSet, StandardForm, register_solver
from solvers.iterate import State, iterate
from solvers.projected_gradient import lipschitz
from solvers.prox import prox


@dataclass(frozen=True)
class DouglasRachford:
    """Douglas-Rachford splitting: a proximal step and a linear solve in turn; games too.

    Let h be the L1 term together with the set. One step is

        w = prox_γh(z),   u = (I + γM)⁻¹ (2w − z − γq),   z ← z + u − w.

    It converges for every monotone M and every γ > 0 (Lions and Mercier 1979): there is no step size to get wrong.

    Attributes:
        unroll: A fixed number of steps; None goes on to the tolerance.
        gamma: The step γ, in units of 1/‖M‖.
    """

    gradients: ClassVar[tuple[str, ...]] = ("implicit", "unrolled")
    unroll: int | None = None
    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"gamma must be positive, but got {self.gamma}.")

    @property
    def to_tolerance(self) -> bool:
        """A fixed number of steps promises nothing."""
        return self.unroll is None

    def check_set(self, feasible: FeasibleSet) -> None:
        """Takes every set."""

    def __call__(self, problem: StandardForm, tol: float, max_iter: int | None) -> tuple[Tensor, Tensor]:
        """Weights (L, B) and the number of steps (B,)."""
        return iterate(self, problem, steps=self.unroll, tol=tol, max_iter=max_iter or 20_000)

    def start(self, problem: StandardForm) -> State:
        """The weights, then what else a step needs: z, γ and (I + γM)⁻¹; each with the batch last."""
        gamma = self.gamma / lipschitz(problem)
        eye = torch.eye(problem.size, dtype=problem.q.dtype, device=problem.q.device)
        inverse = torch.linalg.inv(eye + (gamma * problem.M).movedim(-1, 0)).movedim(0, -1)
        z = torch.zeros_like(problem.q)
        return prox(problem, z, gamma), z, gamma, inverse

    def step(self, problem: StandardForm, state: State) -> State:
        """One step on every item of the batch."""
        w, z, gamma, inverse = state
        u = (inverse * (2 * w - z - gamma * problem.q)).sum(1)
        z = z + u - w
        return prox(problem, z, gamma), z, gamma, inverse


register_solver("douglas_rachford", DouglasRachford)
