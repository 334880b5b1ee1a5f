"""Projected best response: every player answers the others, all at once (Jacobi) or in turn (Gauss-Seidel)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from solvers.iterate import State, check_unroll, iterate
from solvers.linear import aligned
from solvers.prox import prox
from solvers.sets import FeasibleSet
from solvers.standard_form import StandardForm
from solvers.sums import ordered_sum


@dataclass(frozen=True)
class BestResponse:
    """Every player answers the others, until nobody moves; damped.

    The best response is ``BR_i(w) = argmin_{v_i} ½M_ii v_i² + (q_i + Σ_{j≠i} M_ij w_j) v_i + λ_i|v_i|``.
    Jacobi: ``w ← (1−η)w + η BR(w)``, on every set; where the set has a sum the players pay its common price, so that
    the replies are feasible together. Gauss-Seidel: players answer in turn, on sets without a sum.

    Undamped Jacobi (η = 1) converges if the spectral radius of ``I − D⁻¹M`` is below 1 and may diverge otherwise. The
    default damping is ``2/(1+ρ)`` with ``ρ = ‖D⁻¹M‖_∞`` for symmetric ``M`` (each step then descends), and
    ``min(1, μ/ℓ²)`` otherwise, ``μ`` the strong monotonicity and ``ℓ`` the Lipschitz constant in the metric of
    ``D = diag(M)``.

    Attributes:
        unroll: A fixed number of rounds; ``None`` iterates to the tolerance.
        damping: ``η`` in (0, 1], or ``None`` for the default above.
        sweep: ``"jacobi"`` or ``"gauss_seidel"``.
    """

    gradients: ClassVar[tuple[str, ...]] = ("implicit", "unrolled", "one_step")
    default_max_iter: ClassVar[int] = 20_000
    unroll: int | None = None
    damping: float | None = None
    sweep: Literal["jacobi", "gauss_seidel"] = "jacobi"

    def __post_init__(self) -> None:
        check_unroll(self.unroll)
        if self.damping is not None and not 0 < self.damping <= 1:
            raise ValueError(f"damping must be in (0, 1], but got {self.damping}.")
        if self.sweep not in ("jacobi", "gauss_seidel"):
            raise ValueError(f"sweep must be 'jacobi' or 'gauss_seidel', but got {self.sweep!r}.")

    @property
    def to_tolerance(self) -> bool:
        """A fixed number of iterations promises nothing."""
        return self.unroll is None

    def check_set(self, feasible: FeasibleSet) -> None:
        """Jacobi takes every set, Gauss-Seidel those without a sum."""
        if self.sweep == "gauss_seidel" and feasible.total is not None:
            raise ValueError(
                f"best_response with sweep='gauss_seidel' takes sets without a sum (Box, NonNegative, Free), "
                f"but got {feasible}; use sweep='jacobi'."
            )

    def __call__(self, problem: StandardForm, tol: float, max_iter: int | None) -> tuple[Tensor, Tensor]:
        """Weights ``(L, B)`` and the number of rounds ``(B,)``."""
        return iterate(
            self,
            problem,
            steps=self.unroll,
            tol=tol,
            max_iter=self.default_max_iter if max_iter is None else max_iter,
        )

    def start(self, problem: StandardForm) -> State:
        """The projection of 0, and the damping."""
        return prox(problem, torch.zeros_like(problem.q), 1 / curvature(problem)), self.damping_of(problem)

    def step(self, problem: StandardForm, state: State) -> State:
        """One round."""
        return (self._sequential if self.sweep == "gauss_seidel" else self._simultaneous)(problem, state)

    def one_step(self, problem: StandardForm, w: Tensor) -> Tensor:
        """One round from ``w``, differentiable."""
        return self.step(problem, (w, self.damping_of(problem)))[0]

    def damping_of(self, problem: StandardForm) -> Tensor:
        """``η`` per item, ``(B,)``; a hyper-parameter, so no gradient flows through it."""
        with torch.no_grad():
            return self._default_damping(problem.detach())

    def _simultaneous(self, problem: StandardForm, state: State) -> State:
        w, damping = state
        step = 1 / curvature(problem)
        reply = prox(problem, w - step * problem.operator(w), step)
        return w + damping * (reply - w), damping

    def _sequential(self, problem: StandardForm, state: State) -> State:
        w, damping = state
        step = 1 / curvature(problem)
        rows = list(w.unbind(0))
        for i in range(problem.size):
            slope = ordered_sum(problem.M[i] * torch.stack(rows)) + problem.q[i]
            reply = prox(problem.coordinate(i), (rows[i] - step[i] * slope).unsqueeze(0), step[i : i + 1])[0]
            rows[i] = rows[i] + damping * (reply - rows[i])
        return torch.stack(rows), damping

    def _default_damping(self, problem: StandardForm) -> Tensor:
        one = torch.ones_like(problem.q[0])
        if self.damping is not None or self.sweep == "gauss_seidel":
            return one * (self.damping or 1.0)
        root = curvature(problem).sqrt()
        A = problem.M / (root.unsqueeze(0) * root.unsqueeze(1))
        rho = ordered_sum(A.abs(), 1).amax(0)
        descending = 2 / (1 + rho.clamp_min(1.0))
        if problem.symmetric is True:
            return descending
        S = (0.5 * (A + A.transpose(0, 1))).movedim(-1, 0)
        S = S + torch.diag_embed((problem.diagonal() == 0).to(S.dtype).T)  # coordinates that do not exist
        mu = torch.linalg.eigvalsh(aligned(S))[..., 0].clamp_min(1e-12)
        ell = torch.minimum(ordered_sum((A * A).flatten(0, 1)).sqrt(), (rho * ordered_sum(A.abs()).amax(0)).sqrt())
        contracting = (mu / (ell * ell)).clamp_max(1.0)
        return torch.where(problem.is_symmetric(), descending, contracting)


def curvature(problem: StandardForm) -> Tensor:
    """``D = diag(M)``, and 1 for coordinates that have no curvature of their own."""
    own = problem.diagonal()
    return torch.where(own > 0, own, 1.0)
