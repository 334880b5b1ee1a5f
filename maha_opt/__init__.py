"""Optimization as a layer: problems from scale outputs, aggregation modules, comparisons of solvers."""

from maha_opt.shadowing import require_our_packages

require_our_packages()

from maha_opt.aggregation import Aggregated, ConvexAggregation, NashAggregation  # noqa: E402
from maha_opt.problems import convex_problem, gram, nash_problem  # noqa: E402
from maha_opt.sets import available_sets, make_set  # noqa: E402

__all__ = [
    "Aggregated",
    "ConvexAggregation",
    "NashAggregation",
    "available_sets",
    "convex_problem",
    "gram",
    "make_set",
    "nash_problem",
]
