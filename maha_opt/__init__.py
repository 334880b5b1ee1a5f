"""Optimization as a layer: problems from scale outputs, aggregation modules, comparisons of solvers.

Names are imported when they are first used: the command line must answer ``--help`` without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from maha_opt.shadowing import require_ours

if TYPE_CHECKING:
    from maha_opt.aggregation import Aggregated, ConvexAggregation, GateAggregation, NashAggregation
    from maha_opt.problems import convex_problem, gram, nash_problem
    from maha_opt.sets import available_sets, make_set

require_ours("solvers")  # `models` where it is needed, in `maha_opt.commands`: many a project has a folder of that name

_HOME = {
    "Aggregated": "aggregation",
    "ConvexAggregation": "aggregation",
    "GateAggregation": "aggregation",
    "NashAggregation": "aggregation",
    "available_sets": "sets",
    "convex_problem": "problems",
    "gram": "problems",
    "make_set": "sets",
    "nash_problem": "problems",
}

__all__ = [
    "Aggregated",
    "ConvexAggregation",
    "GateAggregation",
    "NashAggregation",
    "available_sets",
    "convex_problem",
    "gram",
    "make_set",
    "nash_problem",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *_HOME))
