"""A second, independent oracle: scipy's SLSQP, one problem at a time, for tests and notebooks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from solvers.prox import clamp
from solvers.sets import FeasibleSet
from solvers.standard_form import StandardForm
from solvers.units import in_natural_units


@dataclass(frozen=True)
class Scipy:
    """A second, independent oracle on every set, one problem at a time; no gradient.

    SLSQP (Kraft 1988). Weights to about 1e-7 on well-scaled problems.

    Minimises ``½wᵀMw + qᵀw + λ·t`` with ``t ≥ |w|`` for a symmetric ``M``, and for others the gap program of
    `solvers.conic`, ``wᵀ(Mw + q) + λ·t + upper·α − lower·β + total·ν`` with the dual constraint
    ``Mw + q + z + α − β + ν1 = 0``.
    """

    gradients: ClassVar[tuple[str, ...]] = ()
    accuracy: ClassVar[float] = 1e-6
    one_at_a_time: ClassVar[bool] = True
    to_tolerance: bool = field(default=True, init=False, repr=False)

    def check_set(self, feasible: FeasibleSet) -> None:
        """Takes every set."""

    def __call__(self, problem: StandardForm, tol: float, max_iter: int | None) -> tuple[Tensor, Tensor]:
        """Weights ``(L, B)`` and the iterations that scipy reports ``(B,)``."""
        del tol
        scaled, factor = in_natural_units(problem.to(torch.float64))
        symmetric = problem.is_symmetric().tolist()
        w, iterations = torch.zeros_like(problem.q), torch.zeros(problem.batch, dtype=torch.long)
        for b in range(problem.batch):
            item = scaled.map_tensors(lambda tensor, b=b: tensor[..., b].cpu().to(torch.float64))
            solution, iterations[b] = _solve(item, symmetric[b], 1000 if max_iter is None else max_iter)
            w[:, b] = torch.from_numpy(solution).to(w)
        return clamp(problem, w * factor.to(w)), iterations.to(w.device)


def _solve(item: StandardForm, symmetric: bool, max_iter: int) -> tuple[np.ndarray, int]:
    """One problem, whose tensors have no batch dimension."""
    from scipy.optimize import minimize

    M, q = item.M.numpy(), item.q.numpy()
    L = len(q)
    lower, upper, l1 = (bound.numpy() for bound in item.bounds_and_l1())
    kinked = item.l1 is not None

    # Columns of the program: w, then t, then (for a game) z, α, β, ν; each a slice of x.
    sizes = {"w": L, "t": L * kinked}
    if not symmetric:
        sizes |= {"z": L * kinked, "alpha": L, "beta": L, "nu": int(item.total is not None)}
    ends = np.cumsum(list(sizes.values()))
    column = {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}
    n = int(ends[-1])

    def rows(count: int, **blocks: np.ndarray) -> np.ndarray:
        """``count`` rows of the program's matrix, with the given blocks filled in."""
        filled = np.zeros((count, n))
        for name, block in blocks.items():
            filled[:, column[name]] = block
        return filled

    linear, low, high = np.zeros(n), np.full(n, -np.inf), np.full(n, np.inf)
    linear[column["w"]], low[column["w"]], high[column["w"]] = q, lower, upper
    equal, equal_to, at_least = [], [], []  # rows of A x = b and of A x ≥ 0
    if kinked:
        linear[column["t"]] = l1
        for sign in (1.0, -1.0):
            at_least.append(rows(L, t=np.eye(L), w=sign * np.eye(L)))
    total = 0.0 if item.total is None else float(item.total)
    if not symmetric:
        for place, bound, sign in ((column["alpha"], upper, 1.0), (column["beta"], lower, -1.0)):
            finite = np.isfinite(bound)
            linear[place] = sign * np.where(finite, bound, 0.0)
            low[place], high[place] = 0.0, np.where(finite, np.inf, 0.0)
        dual = {"w": M, "alpha": np.eye(L), "beta": -np.eye(L)}
        if kinked:
            low[column["z"]], high[column["z"]] = -l1, l1
            dual["z"] = np.eye(L)
        if item.total is not None:
            linear[column["nu"]] = total
            low[column["nu"]] = -np.inf if item.equality else 0.0
            dual["nu"] = np.ones((L, 1))
        equal.append(rows(L, **dual))
        equal_to.append(-q)
    row = rows(1, w=np.ones((1, L)))
    if item.total is not None and item.equality:
        equal.append(row)
        equal_to.append(np.array([total]))
    P = M if symmetric else M + M.T

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        Pw = P @ x[:L]
        gradient = linear.copy()
        gradient[:L] += Pw
        return 0.5 * float(x[:L] @ Pw) + float(linear @ x), gradient

    constraints = []
    if equal:
        A, b = np.concatenate(equal), np.concatenate(equal_to)
        constraints.append({"type": "eq", "fun": lambda x: A @ x - b, "jac": lambda x: A})
    if at_least:
        C = np.concatenate(at_least)
        constraints.append({"type": "ineq", "fun": lambda x: C @ x, "jac": lambda x: C})
    if item.total is not None and not item.equality:
        constraints.append({"type": "ineq", "fun": lambda x: total - row @ x, "jac": lambda x: -row})
    start = np.clip(np.zeros(n), low, high)
    found = minimize(
        objective,
        start,
        jac=True,
        bounds=list(zip(low, high, strict=True)),
        constraints=constraints,
        method="SLSQP",
        options={"maxiter": max_iter, "ftol": 1e-16},
    )
    return np.clip(found.x[:L], lower, upper), int(found.nit)
