r"""The exact reference: the problem as a cone program, solved and differentiated by cvxpylayers.

Symmetric ``M = SᵀS``:  ``min ½‖Sw‖² + qᵀw + ‖λ∘w‖₁`` over C.

Any monotone ``M``, with ``SᵀS = ½(M + Mᵀ)``: the gap program, convex because ``wᵀMw = ‖Sw‖²``. The support function
of C in ``gap(w) = wᵀ(Mw + q) + λ·|w| + max_{v ∈ C} −(Mw + q)·v − λ·|v|`` is replaced by its linear programming dual::

    min ‖Sw‖² + qᵀw + ‖λ∘w‖₁ + upper·α − lower·β + total·ν
    s.t. Mw + q + z + α − β + ν1 = 0,  |z| ≤ λ,  α, β ≥ 0,  ν ≥ 0 for a budget,  w ∈ C,

whose optimum is 0 and attained by the solution of the variational inequality.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from solvers.sets import FeasibleSet
from solvers.standard_form import StandardForm
from solvers.units import in_natural_units


@dataclass(frozen=True)
class CvxpyLayers:
    """The exact reference on every set: a cone program, one problem at a time.

    Solved by cvxpylayers in float64 on the CPU whatever comes in; slow, and independent of our own numerics.

    Attributes:
        eps: Tolerance of the cone solver (SCS).
        max_iters: Its bound on iterations.
        rho_x: Its proximal weight on the primal variables. At SCS's own 1e-6 the rounding of its linear solves ends up
            in the solution and from there, amplified, in the derivative.
    """

    gradients: ClassVar[tuple[str, ...]] = ("own",)
    to_tolerance: bool = field(default=True, init=False, repr=False)
    accuracy: ClassVar[float] = 1e-8
    one_at_a_time: ClassVar[bool] = True
    eps: float = 1e-12
    max_iters: int = 100_000
    rho_x: float = 1e-3

    def check_set(self, feasible: FeasibleSet) -> None:
        """Takes every set."""

    def __call__(self, problem: StandardForm, tol: float, max_iter: int | None) -> tuple[Tensor, Tensor]:
        """Weights ``(L, B)``, connected to the problem's tensors by their KKT derivative; iterations are not told."""
        del tol
        device, dtype = problem.q.device, problem.q.dtype
        args: dict[str, Any] = {
            "solve_method": "SCS",
            "eps": self.eps,
            "max_iters": self.max_iters if max_iter is None else max_iter,
            "rho_x": self.rho_x,
            "acceleration_lookback": 0,
            "n_jobs_forward": 1,
        }
        exact, factor = in_natural_units(problem.map_tensors(Tensor.cpu).to(torch.float64))
        w = torch.zeros_like(exact.q)
        for items, program in _by_program(exact):
            w = w.index_copy(1, items, _solve_group(exact.select(items), program, args))
        return (w * factor).to(device, dtype), torch.zeros(problem.batch, dtype=torch.long, device=device)


@dataclass(frozen=True)
class _Program:
    """What distinguishes one cone program from another: which coordinates and which bounds there are."""

    coordinates: tuple[int, ...]
    bounded_below: tuple[int, ...]
    bounded_above: tuple[int, ...]
    l1: bool
    total: bool
    equality: bool
    symmetric: bool


def _by_program(problem: StandardForm) -> list[tuple[Tensor, _Program]]:
    """The items of the batch, grouped by the program that they need."""
    lower, upper, _ = problem.bounds_and_l1()
    exists = torch.ones_like(lower, dtype=torch.bool) if problem.exists is None else problem.exists
    pattern = torch.cat((exists, lower.isfinite(), upper.isfinite(), problem.is_symmetric().unsqueeze(0)))
    kinds, which = pattern.unique(dim=1, return_inverse=True)
    groups = []
    for k in range(kinds.shape[1]):
        there, below, above = kinds[:-1, k].reshape(3, -1).unbind(0)
        program = _Program(
            coordinates=tuple(there.nonzero()[:, 0].tolist()),
            bounded_below=tuple(below[there].nonzero()[:, 0].tolist()),
            bounded_above=tuple(above[there].nonzero()[:, 0].tolist()),
            l1=problem.l1 is not None,
            total=problem.total is not None,
            equality=problem.equality,
            symmetric=bool(kinds[-1, k]),
        )
        groups.append(((which == k).nonzero()[:, 0], program))
    return groups


@lru_cache(maxsize=256)
def _layer(program: _Program) -> tuple[Any, tuple[str, ...]]:
    """The cvxpylayer of a program and the names of its parameters, in order."""
    import cvxpy as cp
    from cvxpylayers.torch import CvxpyLayer  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]

    L = len(program.coordinates)
    w = cp.Variable(L)
    parameters: dict[str, Any] = {"S": cp.Parameter((L, L)), "q": cp.Parameter(L)}
    quadratic = cp.sum_squares(parameters["S"] @ w)
    objective = (0.5 if program.symmetric else 1.0) * quadratic + parameters["q"] @ w
    constraints: list[Any] = []
    force: Any = 0.0  # z + α − β + ν1, the multipliers of the gap program
    if not program.symmetric:
        parameters["M"] = cp.Parameter((L, L))
    if program.l1:
        l1 = parameters["l1"] = cp.Parameter(L, nonneg=True)
        objective += cp.norm1(cp.multiply(l1, w))
        z = cp.Variable(L)
        force, limits = force + z, [z <= l1, z >= -l1]
        constraints += [] if program.symmetric else limits
    for name, bounded, sign in (("lower", program.bounded_below, -1), ("upper", program.bounded_above, 1)):
        if bounded:
            rows = list(bounded)
            bound = parameters[name] = cp.Parameter(len(rows))
            constraints.append(sign * w[rows] <= sign * bound)
            multiplier = cp.Variable(len(rows), nonneg=True)
            place = torch.eye(L, dtype=torch.float64)[:, rows].numpy()
            force = force + sign * (place @ multiplier)
            objective += 0.0 if program.symmetric else sign * (bound @ multiplier)
    if program.total:
        total = parameters["total"] = cp.Parameter(1)
        constraints.append(cp.sum(w) == total if program.equality else cp.sum(w) <= total)
        price = cp.Variable(1, nonneg=not program.equality)
        force = force + torch.ones(L, 1, dtype=torch.float64).numpy() @ price
        objective += 0.0 if program.symmetric else cp.sum(cp.multiply(total, price))
    if not program.symmetric:
        constraints.append(parameters["M"] @ w + parameters["q"] + force == 0)
    layer = CvxpyLayer(
        cp.Problem(cp.Minimize(objective), constraints), parameters=list(parameters.values()), variables=[w]
    )
    return layer, tuple(parameters)


def _solve_group(problem: StandardForm, program: _Program, args: dict[str, Any]) -> Tensor:
    """Weights ``(L, B)`` of items that share a program."""
    rows = torch.tensor(program.coordinates)
    there = problem.map_tensors(lambda tensor: tensor if tensor.ndim == 1 else tensor[rows])
    there = replace(there, M=there.M[:, rows], exists=None)
    M, q = there.M.movedim(-1, 0), there.q.T
    data = {"S": _factor(M), "M": M, "q": q}
    if there.l1 is not None:
        data["l1"] = there.l1.T
    lower, upper, _ = there.bounds_and_l1()
    data["lower"], data["upper"] = lower[list(program.bounded_below)].T, upper[list(program.bounded_above)].T
    if there.total is not None:
        data["total"] = there.total.unsqueeze(-1)
    import diffcp

    layer, names = _layer(program)

    def solve(q: Tensor) -> Tensor:
        values = [(data | {"q": q})[name] for name in names]
        differentiated = torch.is_grad_enabled() and any(value.requires_grad for value in values)
        derivative = {"mode": "dense", "n_jobs_backward": 1} if differentiated else {}
        try:
            with warnings.catch_warnings():  # the certificate judges inaccuracy
                warnings.filterwarnings("ignore", "Solved/Inaccurate")
                return layer(*values, solver_args=args | derivative)[0]
        except diffcp.SolverError as error:
            if "interrupted" in str(error):  # SCS has caught the user's Ctrl-C
                raise KeyboardInterrupt from None
            if problem.batch == 1:
                return q * torch.nan
        alone = [_solve_group(problem.select(torch.tensor([b])), program, args) for b in range(problem.batch)]
        return torch.cat(alone, 1)[rows].T  # one failure aborts cvxpylayers' batch: keep the others

    if program.symmetric and M.requires_grad:
        # The program sees ½(M + Mᵀ) only. As an inequality the problem also depends on the antisymmetric part of M,
        # which is 0 but has a derivative: it enters like the linear term ½(M − Mᵀ) w.
        with torch.no_grad():
            w = solve(q)
        q = q + (0.5 * (M - M.mT) @ w.unsqueeze(-1)).squeeze(-1)
    return torch.zeros_like(problem.q).index_copy(0, rows, solve(q).T)


def _factor(M: Tensor) -> Tensor:
    """``S`` with ``SᵀS = ½(M + Mᵀ)``."""
    symmetric = 0.5 * (M + M.mT)
    factor, info = torch.linalg.cholesky_ex(symmetric)
    if not bool((info > 0).any()):
        return factor.mT
    values, vectors = torch.linalg.eigh(symmetric)  # singular: any square root will do
    return values.clamp_min(0.0).sqrt().unsqueeze(-1) * vectors.mT
