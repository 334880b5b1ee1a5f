"""The published heuristics: weights that solve nothing. Their certificates say how far off they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from solvers.mirror_descent import require_simplex
from solvers.sets import FeasibleSet
from solvers.standard_form import StandardForm


@dataclass(frozen=True)
class Softmax:
    """Baseline: softmax of the scores ``−q``, no coupling; simplex only.

    ``w = total · softmax(−q / temperature)``.

    Attributes:
        temperature: > 0.
    """

    gradients: ClassVar[tuple[str, ...]] = ("own",)
    to_tolerance: bool = field(default=False, init=False, repr=False)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, but got {self.temperature}.")

    def check_set(self, feasible: FeasibleSet) -> None:
        """Takes the simplex."""
        require_simplex("softmax", feasible)

    def __call__(self, problem: StandardForm, tol: float, max_iter: int | None) -> tuple[Tensor, Tensor]:
        """Weights ``(L, B)`` after zero iterations."""
        del tol, max_iter
        scores = -problem.q / self.temperature
        if problem.exists is not None:
            scores = scores.masked_fill(~problem.exists, -torch.inf)
        return problem.required_total * scores.softmax(0), torch.zeros_like(scores[0], dtype=torch.long)


@dataclass(frozen=True)
class Mean:
    """Baseline: equal weights; sets with a total only.

    ``w_i = total / L`` over the coordinates that exist.
    """

    gradients: ClassVar[tuple[str, ...]] = ("own",)
    to_tolerance: bool = field(default=False, init=False, repr=False)

    def check_set(self, feasible: FeasibleSet) -> None:
        """Takes sets with a total."""
        if feasible.total is None:
            raise ValueError(
                f"mean takes sets with a total (Simplex, CappedSimplex, Budget, SumTo), but got {feasible}."
            )

    def __call__(self, problem: StandardForm, tol: float, max_iter: int | None) -> tuple[Tensor, Tensor]:
        """Weights ``(L, B)`` after zero iterations."""
        del tol, max_iter
        exists = torch.ones_like(problem.q) if problem.exists is None else problem.exists.to(problem.q.dtype)
        return problem.required_total * exists / exists.sum(0), torch.zeros_like(problem.q[0], dtype=torch.long)
