"""What a comparison takes and what it yields, one record each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from solvers import AffineVI


@dataclass(frozen=True)
class Batch:
    """Problems of one kind from one seed.

    Attributes:
        kind: What they are, such as "convex" or "nash".
        seed: The seed that they were made from; the cotangent of the gradients comes from it too.
        problem: The problems; one batch dimension.
    """

    kind: str
    seed: int
    problem: AffineVI


@dataclass(frozen=True)
class Cell:
    """One solver on one batch; None where there is nothing to measure.

    Attributes:
        kind: Kind of the problems.
        solver: `Contender.label`.
        gradient: How it is differentiated.
        steps: Fixed number of iterations; None: to the tolerance.
        seed: Seed of the batch.
        status: "ok", "not run" (see ``reason``) or "failed" (it crashed; see ``reason`` and ``traceback``).
        problems: Number of problems that it was given.
        covered: Number of them with a certified reference.
        smooth: Number of those that are away from a kink, where gradients are compared.
        error_weights_max: ``max |w − w*|`` over the covered items.
        error_weights_mean: Mean over these items of ``‖w − w*‖_∞``.
        objective_gap: Mean over the covered items of ``P(w) − P(w*)``, ``P(w) = ½wᵀMw + qᵀw + Σ λ_i|w_i|``; None for
            games.
        support_recovered: Share of the covered items in which the same weights are switched off, see `compare.OFF`.
        error_gradient_q: ``‖g − g*‖ / ‖g*‖`` over all smooth items together, for the gradient of ``q``.
        error_gradient_M: The same for ``M``.
        cosine_gradient_q: Cosine of the angle between ``g`` and ``g*``, likewise.
        cosine_gradient_M: The same for ``M``.
        residual: Largest relative natural residual, see `solvers.Solution`; NaN if there is one.
        exploitability: Largest exploitability.
        iterations: Mean number of iterations.
        unconverged: Number of problems above their tolerance.
        seconds_per_problem: Forward and backward pass.
        repeats: Number of calls that the time is the median of.
        speed_up: Time of the reference over that of this solver, per problem.
        reason: Why there is no measurement, in words.
        traceback: Of a crash.
    """

    kind: str
    solver: str
    gradient: str
    steps: int | None
    seed: int
    status: Literal["ok", "not run", "failed"] = "ok"
    problems: int = 0
    covered: int = 0
    smooth: int = 0
    error_weights_max: float | None = None
    error_weights_mean: float | None = None
    objective_gap: float | None = None
    support_recovered: float | None = None
    error_gradient_q: float | None = None
    error_gradient_M: float | None = None  # noqa: N815
    cosine_gradient_q: float | None = None
    cosine_gradient_M: float | None = None  # noqa: N815
    residual: float | None = None
    exploitability: float | None = None
    iterations: float | None = None
    unconverged: int | None = None
    seconds_per_problem: float | None = None
    repeats: int | None = None
    speed_up: float | None = None
    reason: str | None = None
    traceback: str | None = None
