"""The cells of a comparison over all seeds: one row per kind of problem and solver, and how fast errors fall."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

EXACT_ENOUGH = 1e-8
"""Errors below this are those of the reference itself."""


def worst(values: list[float]) -> float:
    """The largest; NaN if there is one."""
    return math.nan if any(math.isnan(value) for value in values) else max(values)


COMBINE: dict[str, Callable[[list[float]], float]] = {
    "problems": sum,
    "covered": sum,
    "smooth": sum,
    "error_weights_max": worst,
    "error_weights_mean": fmean,
    "error_gradient_q": worst,
    "error_gradient_M": worst,
    "residual": worst,
    "exploitability": worst,
    "iterations": fmean,
    "unconverged": sum,
    "seconds_per_problem": median,
    "speed_up": median,
}
"""How the seeds are combined."""


@dataclass(frozen=True)
class Row:
    """One solver on all seeds of one kind of problem.

    Attributes:
        kind: Kind of the problems.
        solver: Label of the contender.
        gradient: How it was differentiated.
        steps: Fixed number of iterations; None: to the tolerance.
        statuses: Of its cells.
        reasons: Why there is no measurement, each once.
        values: The columns of `COMBINE`; those without a measurement are missing.
    """

    kind: str
    solver: str
    gradient: str
    steps: int | None
    statuses: tuple[str, ...]
    reasons: tuple[str, ...]
    values: dict[str, float] = field(repr=False)

    @property
    def measured(self) -> bool:
        """Whether at least one cell has numbers."""
        return "ok" in self.statuses


def summarise(records: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows in the order in which their first cells came.

    Args:
        records: Cells as mappings, as `dataclasses.asdict` makes them, or rows of ``results.csv``.
    """
    groups: dict[tuple[str, str, str, int | None], list[Mapping[str, Any]]] = {}
    for record in records:
        steps = _number(record["steps"])
        key = (record["kind"], record["solver"], record["gradient"], None if steps is None else int(steps))
        groups.setdefault(key, []).append(record)
    rows = []
    for key, cells in groups.items():
        columns = {name: [_number(cell[name]) for cell in cells if cell["status"] == "ok"] for name in COMBINE}
        present = {name: [value for value in column if value is not None] for name, column in columns.items()}
        values = {name: COMBINE[name](column) for name, column in present.items() if column}
        reasons = tuple(dict.fromkeys(str(cell["reason"]) for cell in cells if cell["reason"]))
        rows.append(Row(*key, tuple(str(cell["status"]) for cell in cells), reasons, values))
    return rows


def read_csv(path: Path | str) -> list[dict[str, str]]:
    """The records of a ``results.csv``."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Rate:
    """How fast the errors of an unrolled solver fall: error after one more step over error before.

    A factor is the geometric mean over the steps between two numbers of them, for one seed; here are the least, the
    median and the largest over the seeds. Below 1 the errors fall.

    Attributes:
        kind: Kind of the problems.
        solver: Label of the contender.
        first: Number of steps from which this is measured.
        last: Number of steps up to which it is, at most: an error that is no larger than the reference's says nothing.
        seeds: Number of seeds.
        weights: Factors of the mean error of the weights.
        gradient: Factors of the error of the gradient of ``q``; None where it cannot be told.
    """

    kind: str
    solver: str
    first: int
    last: int
    seeds: int
    weights: tuple[float, float, float]
    gradient: tuple[float, float, float] | None


def rates(records: Iterable[Mapping[str, Any]]) -> list[Rate]:
    """The rates of every solver with at least two numbers of steps, from cells as mappings (see `summarise`)."""
    solvers: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for record in records:
        error = _number(record["error_weights_mean"])
        if _number(record["steps"]) is not None and error is not None and error > EXACT_ENOUGH:
            seeds = solvers.setdefault((record["kind"], record["solver"]), {})
            seeds.setdefault(str(record["seed"]), []).append(record)
    found = []
    for (kind, solver), seeds in solvers.items():
        ends = [(min(cells, key=_steps), max(cells, key=_steps)) for cells in seeds.values()]
        weights = [_factor(*pair, "error_weights_mean") for pair in ends]
        gradient = [_factor(*pair, "error_gradient_q") for pair in ends]
        if spread := _spread(weights):
            first, last = min(_steps(pair[0]) for pair in ends), max(_steps(pair[1]) for pair in ends)
            found.append(Rate(kind, solver, first, last, len(ends), spread, _spread(gradient)))
    return found


def _spread(factors: list[float | None]) -> tuple[float, float, float] | None:
    known = [factor for factor in factors if factor is not None]
    return (min(known), median(known), max(known)) if known else None


def _steps(record: Mapping[str, Any]) -> int:
    return int(_number(record["steps"]) or 0)


def _factor(first: Mapping[str, Any], last: Mapping[str, Any], column: str) -> float | None:
    steps, before, after = _steps(last) - _steps(first), _number(first[column]), _number(last[column])
    if not steps or before is None or after is None or not (0 < before < math.inf and 0 < after < math.inf):
        return None
    return (after / before) ** (1 / steps)


def _number(value: float | str | None) -> float | None:
    """A cell's number, also where it comes as text; None where there is none."""
    return None if value is None or value == "" else float(value)
