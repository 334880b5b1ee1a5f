"""How the errors of the approximate solvers fall: fitted rates beside the theoretical ones, over seeds."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# The types that pyright infers for pandas, which has none of its own, are unions of everything.

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from maha_opt.contenders import Contender
from maha_opt.validation.rates import largest_damping, theoretical_rate
from maha_opt.validation.sources import Source, Sources, batch_of, named, seeds_of
from solvers import AffineVI, FeasibleSet, solve
from solvers.best_response import BestResponse
from solvers.iterate import Iterative, trajectory
from solvers.standard_form import TENSORS, StandardForm

SOLVERS = (
    "projected_gradient:accelerate=0",
    "projected_gradient",
    "best_response:damping=1",
    "best_response",
    "best_response:sweep=gauss_seidel",
    "mirror_descent",
)
"""Those that take part unless others are named: also plain projected gradient, and undamped best response."""

FLOOR = 1e-11
"""Errors below this, relative to the largest weight, are rounding."""

FEWEST = 6
"""Iterations between two errors, at least, for a rate to be fitted."""

NO_PROGRESS, TRAVELLED = 0.99, 20.0
"""A method diverges if the largest error of the last quarter is not below this times that of the quarter before, though
it has travelled so many times its error in the meantime (three turns around the solution); else it is undecided."""


@dataclass(frozen=True)
class Convergence:
    """What `convergence` found.

    Attributes:
        errors: One row for each ``problem``, ``solver``, ``seed``, ``item`` and recorded ``iteration``, with ``error =
            ‖w_k − w*‖₂``.
        rates: One row for each ``problem``, ``solver``, ``seed`` and ``item``: the ``fitted`` rate (error after one
            more step over error before; NaN where it ended before one could be fitted), the ``theoretical`` one and its
            ``theory`` ("rate", what the error falls by in the end; "guide", see `rates`; "none"), ``iterations`` down
            to the accuracy of rounding (NaN if it did not get there), ``status`` ("converged", "converging",
            "diverged", or "undecided": no nearer, but hardly moved), and ``advice``, what would have helped one that
            diverged.
        skipped: Why a solver did not take a problem, one row for each ``problem`` and ``solver``, with the ``reason``.
    """

    errors: pd.DataFrame
    rates: pd.DataFrame
    skipped: pd.DataFrame


def convergence(
    problems: Sources,
    solvers: Iterable[str] = SOLVERS,
    seeds: int | Iterable[int] = 8,
    *,
    iterations: int = 600,
    recorded: int = 100,
) -> Convergence:
    """Watches every approximate solver at work, and holds its errors against the exact weights.

    The rate is fitted by least squares to the logarithm of the error, over the second half of the iterations before
    rounding takes over: by then the active set has settled, and the slowest direction is left.

    >>> from maha_opt.validation import Difficulty
    >>> found = convergence(Difficulty(feasible="free", problems=1), ["projected_gradient:accelerate=0"], seeds=1)
    >>> bool((found.rates["fitted"] - found.rates["theoretical"]).abs().max() < 1e-3)
    True

    Args:
        problems: Sources by their names: problems with one batch dimension, or functions from a seed to such.
        solvers: Flags with options, as in ``best_response:damping=0.5``; those with `solvers.iterate.Iterative` parts.
        seeds: The seeds, or their number.
        iterations: How many to do, always; at least 16.
        recorded: How many of them stay in the table, about, evenly spaced in their logarithm.

    Raises:
        ValueError: If a solver, option, seed or number is of no use, or a problem does not come in float64.
        TypeError: If a source is neither problems nor a function.
        ConvergenceError: If the exact solver fails.
    """
    contenders = [Contender.parse(solver) for solver in solvers]
    for contender in contenders:
        if not (hasattr(contender.make(), "start") and hasattr(contender.make(), "step")):
            raise ValueError(f"solvers must be iterative ones, with a start and a step, but got {contender.label!r}.")
    if iterations < 16:
        raise ValueError(f"iterations must be at least 16, but got {iterations}.")
    chosen = seeds_of(seeds)
    kept = np.unique(np.r_[0, np.geomspace(1, iterations, recorded).round().astype(int)])
    errors, rates, skipped = [], [], []
    for name, source in named(problems).items():
        watched = _Watched.of(name, source, chosen)
        for contender in contenders:
            label = {"problem": name, "solver": contender.label}
            if reason := contender.why_not(watched.feasible):
                skipped.append({**label, "reason": reason})
                continue
            curves, moved = watched.errors(contender, iterations)
            errors.append(_curve_table(label, watched, curves, kept))
            rates.append(_rate_table(label, watched, contender, curves, moved))
    return Convergence(_joined(errors), _joined(rates), pd.DataFrame(skipped, columns=["problem", "solver", "reason"]))


@dataclass(frozen=True)
class _Watched:
    """The problems of a source, those of all seeds in one batch.

    Attributes:
        problem: ``B`` problems.
        exact: ``(L, B)``, their solutions.
        feasible: The set of one seed's.
        seed: ``(B,)``, the seed of each.
        item: ``(B,)``, the place of each among those of its seed.
    """

    problem: StandardForm
    exact: Tensor
    feasible: FeasibleSet
    seed: np.ndarray
    item: np.ndarray

    @classmethod
    def of(cls, name: str, source: Source, seeds: list[int]) -> _Watched:
        seeds = seeds[:1] if isinstance(source, AffineVI) else seeds  # given problems are the same for every seed
        batches = [batch_of(name, source, seed).problem for seed in seeds]
        if wrong := [batch.q.dtype for batch in batches if batch.q.dtype != torch.float64]:
            raise ValueError(f"problems[{name!r}] must be in float64 for rates to be told, but is in {wrong[0]}.")
        with torch.no_grad():
            exact = torch.cat([solve(batch, on_failure="raise").weights for batch in batches]).T
        forms = [batch.standard().detach() for batch in batches]
        joined = {
            field: None if getattr(forms[0], field) is None else torch.cat([getattr(form, field) for form in forms], -1)
            for field in TENSORS
        }
        sizes = [form.batch for form in forms]
        item = np.concatenate([np.arange(size) for size in sizes])
        problem = replace(forms[0], **joined)
        return cls(problem, exact, batches[0].feasible, np.repeat(seeds, sizes), item)

    def errors(self, contender: Contender, iterations: int) -> tuple[np.ndarray, np.ndarray]:
        """``‖w_k − w*‖₂``, infinite where numbers have run over, and ``‖w_k+1 − w_k‖₂``; the iterations first."""
        with torch.no_grad():
            path = trajectory(cast(Iterative, contender.make()), self.problem, iterations)
            lengths = (torch.linalg.vector_norm(part, dim=1) for part in (path - self.exact, path.diff(dim=0)))
            distance, moved = (length.nan_to_num(torch.inf, torch.inf).numpy() for length in lengths)
        return distance, moved


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _curve_table(label: dict[str, str], watched: _Watched, curves: np.ndarray, kept: np.ndarray) -> pd.DataFrame:
    columns = {
        "seed": np.tile(watched.seed, len(kept)),
        "item": np.tile(watched.item, len(kept)),
        "iteration": np.repeat(kept, curves.shape[1]),
        "error": curves[kept].ravel(),
    }
    return pd.DataFrame({**label, **columns})


def _rate_table(
    label: dict[str, str], watched: _Watched, contender: Contender, curves: np.ndarray, moved: np.ndarray
) -> pd.DataFrame:
    method, exact, B = contender.make(), watched.exact, watched.exact.shape[1]
    theory = theoretical_rate(method, watched.problem, exact)
    theoretical, kind = (np.full(B, np.nan), "none") if theory is None else (theory[0].numpy(), theory[1])
    floors = FLOOR * exact.abs().amax(0).clamp_min(1e-300).numpy()
    judged = [judge(*each) for each in zip(curves.T, moved.T, floors, strict=True)]
    table = pd.DataFrame(judged, columns=["fitted", "iterations", "status"])
    table = table.assign(**label, seed=watched.seed, item=watched.item, theoretical=theoretical, theory=kind, advice="")
    lost = table["status"] == "diverged"
    if lost.any():
        table.loc[lost, "advice"] = np.array(_advice(method, watched), dtype=object)[lost]
    return table[list(RATE_COLUMNS)]


RATE_COLUMNS = (
    "problem", "solver", "seed", "item", "fitted", "theoretical", "theory", "iterations", "status", "advice",
)  # fmt: skip


def judge(curve: np.ndarray, moved: np.ndarray, floor: float) -> tuple[float, float, str]:
    """What a curve of errors says of a method.

    Args:
        curve: ``(iterations + 1,)``, the errors.
        moved: ``(iterations,)``, how far each step went.
        floor: Below it errors are rounding.

    Returns:
        The fitted rate, the iterations down to the floor, and the status, as in `Convergence.rates`.
    """
    above = np.flatnonzero(curve > floor)
    if not len(above):
        return np.nan, 0.0, "converged"
    last = int(above[-1])
    status, reached = "converged", float(last + 1)
    if last == len(curve) - 1:
        quarter = len(curve) // 4
        before, after = curve[-2 * quarter : -quarter].max(), curve[-quarter:].max()
        status, reached = "converging", np.nan
        if not after < NO_PROGRESS * before:
            far = not np.isfinite(after) or (moved / curve[:-1])[-quarter:].sum() >= TRAVELLED
            status = "diverged" if far else "undecided"
    usable = above[np.isfinite(curve[above])]
    window = usable[usable >= usable[-1] // 2]
    if len(window) < FEWEST:
        window = usable[1:]  # it ends fast: all but the start
    if len(window) < FEWEST:
        return np.nan, reached, status
    return float(np.exp(np.polyfit(window, np.log(curve[window]), 1)[0])), reached, status


def _advice(method: object, watched: _Watched) -> list[str]:
    """What would make a method converge, problem by problem."""
    if not isinstance(method, BestResponse):
        return ["more iterations, or solver='pivot'"] * watched.problem.batch
    defaults = BestResponse().damping_of(watched.problem).tolist()
    if method.sweep == "gauss_seidel":
        return [f"sweep='jacobi', whose default damping is {eta:.2g}" for eta in defaults]
    bounds = largest_damping(watched.problem, watched.exact).tolist()
    return [f"damping below {bound:.2g}; the default is {eta:.2g}" for bound, eta in zip(bounds, defaults, strict=True)]
