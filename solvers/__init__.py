"""Affine variational inequalities with an L1 term: solved, certified and differentiated in batches."""

from solvers.certificates import duality_gap, exploitability, feasibility_violation, natural_residual
from solvers.interface import ConvergenceError, Solution, solve
from solvers.problem import AffineVI
from solvers.registry import Solver, available_solvers, register_solver
from solvers.sets import Box, Budget, CappedSimplex, FeasibleSet, Free, NonNegative, Simplex, SumTo, register_set
from solvers.standard_form import StandardForm
from solvers.status import Status

__all__ = [
    "AffineVI",
    "Box",
    "Budget",
    "CappedSimplex",
    "ConvergenceError",
    "FeasibleSet",
    "Free",
    "NonNegative",
    "Simplex",
    "Solution",
    "Solver",
    "StandardForm",
    "Status",
    "SumTo",
    "available_solvers",
    "duality_gap",
    "exploitability",
    "feasibility_violation",
    "natural_residual",
    "register_set",
    "register_solver",
    "solve",
]
