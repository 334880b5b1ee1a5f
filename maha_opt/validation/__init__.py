"""Approximations held against exact solutions, across seeds; belongs to the extra ``study``."""

from maha_opt.validation.bootstrap import confidence
from maha_opt.validation.comparison import compare
from maha_opt.validation.convergence import Convergence, convergence
from maha_opt.validation.path import SolutionPath, solution_path
from maha_opt.validation.random_problems import Difficulty
from maha_opt.validation.sweep import grid, sweep

__all__ = [
    "Convergence",
    "Difficulty",
    "SolutionPath",
    "compare",
    "confidence",
    "convergence",
    "grid",
    "solution_path",
    "sweep",
]
