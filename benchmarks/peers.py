"""The contenders: the solvers of this project and of its peers, each behind the same small face.

Every contender solves a batch of simplex programs in float64,

    min ½ wᵀMw + qᵀw   subject to   w ≥ 0, Σw = 1,   M (B, L, L), q (B, L),

and gives the gradients of a loss with respect to ``M`` and ``q`` from the cotangent of ``w``. Each is written as its
own documentation writes it, with its own defaults unless its description says otherwise. What a peer can prepare once
for a shape (canonicalised layers, compiled structures, constant constraint matrices) is prepared in ``build``, untimed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Solver(Protocol):
    """A solver that is ready for one shape; ``backward`` follows ``forward``."""

    def forward(self, M: Tensor, q: Tensor) -> Tensor:
        """Returns the weights, shape (B, L)."""
        ...

    def backward(self, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradients of ``M`` (B, L, L) and ``q`` (B, L)."""
        ...


@dataclass(frozen=True)
class Contender:
    """One row of the benchmark.

    Attributes:
        name: what the command line and the results file call it.
        description: what exactly is run.
        module: the package that it needs.
        install: how to get that package.
        build: ``(L, B, threads) -> Solver``; not timed.
        copies: about how many times the memory of ``M`` a call needs, measured at L = 64.
    """

    name: str
    description: str
    module: str
    install: str
    build: Callable[[int, int, int], Solver]
    copies: int

    def missing(self) -> str | None:
        """Returns why it cannot run here, or None if it can."""
        if importlib.util.find_spec(self.module) is None:
            return f"{self.module} is not installed: {self.install}"
        return None


class AutogradSolver:
    """Any differentiable function ``(M, q) -> weights``, with torch's autograd for the gradients."""

    def __init__(self, layer: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.layer = layer

    def forward(self, M: Tensor, q: Tensor) -> Tensor:
        """Solves with fresh leaves, so that gradients are recorded."""
        self.inputs = M.detach().requires_grad_(), q.detach().requires_grad_()
        self.weights = self.layer(*self.inputs)
        return self.weights

    def backward(self, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """Differentiates the last solve."""
        gradient_M, gradient_q = torch.autograd.grad(self.weights, self.inputs, cotangent)
        del self.weights, self.inputs  # what the graph holds must not weigh on the next contender
        return gradient_M, gradient_q


def _pivot(L: int, B: int, threads: int) -> Solver:
    from solvers import AffineVI, Simplex, solve

    def layer(M: Tensor, q: Tensor) -> Tensor:
        return solve(AffineVI(M, q, feasible=Simplex()), solver="pivot", gradient="implicit").weights

    return AutogradSolver(layer)


def _cvxpylayers(L: int, solver_args: dict[str, Any]) -> Solver:
    import cvxpy as cp
    from cvxpylayers.torch.cvxpylayer import CvxpyLayer

    factor, linear, weights = cp.Parameter((L, L)), cp.Parameter(L), cp.Variable(L)
    objective = cp.Minimize(0.5 * cp.sum_squares(factor @ weights) + linear @ weights)
    constraints: list[Any] = [weights >= 0, cp.sum(weights) == 1]
    program = cp.Problem(objective, constraints)
    layer = CvxpyLayer(program, parameters=[factor, linear], variables=[weights])

    def solve(M: Tensor, q: Tensor) -> Tensor:
        # A parameter inside quad_form is refused, so M goes in as M = SᵀS.
        return layer(torch.linalg.cholesky(M).mT, q, solver_args=solver_args)[0]

    return AutogradSolver(solve)


def _cvxpylayers_defaults(L: int, B: int, threads: int) -> Solver:
    return _cvxpylayers(L, {})


def _cvxpylayers_exact(L: int, B: int, threads: int) -> Solver:
    recipe = {"solve_method": "SCS", "eps": 1e-10, "max_iters": 100_000, "acceleration_lookback": 0, "mode": "dense"}
    return _cvxpylayers(L, {**recipe, "n_jobs_forward": threads, "n_jobs_backward": threads})


def _qpth(L: int, B: int, threads: int) -> Solver:
    from qpth.qp import QPFunction  # pyright: ignore[reportMissingImports]

    G, h = -torch.eye(L, dtype=torch.float64), torch.zeros(L, dtype=torch.float64)
    A, b = torch.ones(1, L, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    layer: Any = QPFunction(verbose=-1)  # -1 only silences its printed warnings
    return AutogradSolver(lambda M, q: layer(M, q, G, h, A, b))


class _ProxSolver(AutogradSolver):
    """QPLayer makes its gradients in torch's default dtype, which must be float64 to be fair to it."""

    def backward(self, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return super().backward(cotangent)
        finally:
            torch.set_default_dtype(default)


def _proxsuite(L: int, B: int, threads: int) -> Solver:
    from proxsuite.torch.qplayer import QPFunction  # pyright: ignore[reportMissingImports]

    G, lower = torch.eye(L, dtype=torch.float64), torch.zeros(L, dtype=torch.float64)
    upper = torch.full((L,), 1e20, dtype=torch.float64)
    A, b = torch.ones(1, L, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    # Where it may use threads it takes half of the machine's cores, and offers no other choice.
    layer: Any = QPFunction(omp_parallel=threads > 1)
    return _ProxSolver(lambda M, q: layer(M, q, A, b, G, lower, upper)[0])


class _MoreauStructure:
    """The simplex in Moreau's standard form: A w + s = b, first row zero cone, the others non-negative, in CSR."""

    def __init__(self, L: int, B: int) -> None:
        import moreau  # pyright: ignore[reportMissingImports]

        columns = np.arange(L)
        self.arguments = {
            "n": L,
            "m": L + 1,
            "P_row_offsets": np.arange(0, L * L + 1, L),
            "P_col_indices": np.tile(columns, L),
            "A_row_offsets": np.concatenate([[0], L + np.arange(L + 1)]),
            "A_col_indices": np.concatenate([columns, columns]),
        }
        self.cones = moreau.Cones(num_zero_cones=1, num_nonneg_cones=L)
        # Its own choice for small programs, and measured the fastest: the interior-point method takes 2 to 8 times as
        # long in every variant (qdldl, faer, direct cones) and is less accurate.
        self.settings = moreau.Settings(solver="active_set", device="cpu", batch_size=B, enable_grad=True)
        self.A = np.tile(np.concatenate([np.ones(L), -np.ones(L)]), (B, 1))
        self.b = np.tile(np.concatenate([[1.0], np.zeros(L)]), (B, 1))


class _MoreauSolver:
    """Moreau's numpy face, its fastest: no autograd graph; tensors and arrays share their memory."""

    def __init__(self, L: int, B: int) -> None:
        import moreau  # pyright: ignore[reportMissingImports]

        self.structure = _MoreauStructure(L, B)
        self.solver = moreau.CompiledSolver(
            **self.structure.arguments, cones=self.structure.cones, settings=self.structure.settings
        )

    def forward(self, M: Tensor, q: Tensor) -> Tensor:
        self.solver.setup(M.flatten(1).numpy(), self.structure.A)
        return torch.from_numpy(self.solver.solve(q.numpy(), self.structure.b).x)

    def backward(self, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        B, L = cotangent.shape
        gradients = self.solver.backward(cotangent.numpy())
        return torch.from_numpy(gradients["dP_values"]).view(B, L, L), torch.from_numpy(gradients["dq"])


def _moreau(L: int, B: int, threads: int) -> Solver:
    return _MoreauSolver(L, B)


def _moreau_torch(L: int, B: int, threads: int) -> Solver:
    import moreau.torch  # pyright: ignore[reportMissingImports]

    structure = _MoreauStructure(L, B)
    arguments = {name: torch.as_tensor(v) if name not in "nm" else v for name, v in structure.arguments.items()}
    solver_type: Any = moreau.torch.Solver
    solver = solver_type(**arguments, cones=structure.cones, settings=structure.settings)
    A, b = torch.from_numpy(structure.A), torch.from_numpy(structure.b)
    return AutogradSolver(lambda M, q: solver.solve(M.flatten(1), A, q, b).x)


_BENCH = 'pip install "maha-opt[bench]"'
_CVXPYLAYERS = ("cvxpylayers", "pip install cvxpylayers")
OURS = "pivot"
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(OURS, "solvers.solve, pivot, implicit gradient", "solvers", "pip install maha-opt", _pivot, 4),
        Contender("moreau", "Moreau called directly, numpy arrays, active set", "moreau", _BENCH, _moreau, 12),
        Contender(
            "moreau-torch", "Moreau called directly, torch autograd, active set", "moreau", _BENCH, _moreau_torch, 16
        ),
        Contender("qpth", "qpth, defaults", "qpth", "pip install --no-deps qpth", _qpth, 10),
        Contender("proxsuite", "proxsuite QPLayer, defaults", "proxsuite", _BENCH, _proxsuite, 16),
        Contender("cvxpylayers", "cvxpylayers, defaults", *_CVXPYLAYERS, _cvxpylayers_defaults, 24),
        Contender("cvxpylayers-exact", "cvxpylayers, SCS with eps 1e-10", *_CVXPYLAYERS, _cvxpylayers_exact, 24),
    )
}
