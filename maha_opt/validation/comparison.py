"""Every solver and every gradient against exact solutions, over seeds, as a tidy table."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# The types that pyright infers for pandas, which has none of its own, are unions of everything.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import pandas as pd

from maha_opt import compare as study
from maha_opt.cells import Cell
from maha_opt.contenders import Contender
from maha_opt.validation.sources import Source, Sources, batch_of, named, seeds_of, settings_of
from solvers import available_solvers

GRADIENTS = ("implicit", "unrolled", "one_step")

PANDAS = {"int": "int64", "float | None": "float64", "int | None": "Int64", "str | None": "object"}
TYPES = {field.name: PANDAS[field.type] for field in fields(Cell) if field.type in PANDAS}
"""Of the columns, also where all of a column is missing."""


def compare(
    problems: Sources,
    solvers: Iterable[str] | None = None,
    gradients: Sequence[str] = GRADIENTS,
    seeds: int | Iterable[int] = 8,
    *,
    steps: Sequence[int | None] = (5, 20, 80, None),
    covered: int = 16,
    repeats: int = 3,
    max_iter: int | None = None,
) -> pd.DataFrame:
    """Solves the same problems with every solver, and holds each against cvxpylayers.

    >>> from maha_opt.validation import Difficulty
    >>> table = compare(Difficulty(problems=4), ["pivot"], seeds=1)
    >>> table[["solver", "gradient", "status"]].to_numpy().tolist()
    [['cvxpylayers', 'implicit', 'ok'], ['pivot', 'implicit', 'ok']]
    >>> bool(table["error_weights_max"].max() < 1e-7)
    True

    Args:
        problems: Sources by their names: problems with one batch dimension, or functions from a seed to such.
        solvers: Flags with options, as in ``best_response:damping=0.5``; all solvers if omitted.
        gradients: Of those below, which ones; a solver takes part with those that it has.
        seeds: The seeds, or their number.
        steps: Numbers of iterations of the approximate solvers; None: to the tolerance, which is not unrolled.
        covered: Number of problems of each batch that the reference solves, on which errors are measured.
        repeats: Timed calls, at most.
        max_iter: Bound on the iterations where they run to the tolerance.

    Returns:
        One row for each problem source, seed, solver, gradient and number of steps, that of the reference first. Its
        columns are those of `maha_opt.cells.Cell` (``problem`` in place of its ``kind``, and ``solver`` without the
        gradient), and the named difficulty of random problems, as ``difficulty_condition`` and so on.

    Raises:
        ValueError: If a solver, option, gradient or seed is of no use; before anything is solved.
        TypeError: If a source is neither problems nor a function.
    """
    sources, chosen_seeds = named(problems), seeds_of(seeds)
    contenders = parse_contenders(available_solvers() if solvers is None else solvers, gradients, steps)
    methods = {contender.label: contender.method for contender in contenders} | {study.REFERENCE.label: "cvxpylayers"}
    batches = (batch_of(name, source, seed) for name, source in sources.items() for seed in chosen_seeds)
    cells = study.compare(batches, contenders, covered=covered, repeats=repeats, max_iter=max_iter)
    return tabulated((replace(cell, solver=methods[cell.solver]) for cell in cells), sources)


def tabulated(cells: Iterable[Cell], sources: Mapping[str, Source]) -> pd.DataFrame:
    """Cells as the table that `compare` returns."""
    table = pd.DataFrame([asdict(cell) for cell in cells]).astype(TYPES).rename(columns={"kind": "problem"})
    settings = pd.DataFrame([{"problem": name, **settings_of(source)} for name, source in sources.items()])
    settings = settings.rename(columns={name: f"difficulty_{name}" for name in settings.columns.drop("problem")})
    return table.merge(settings, on="problem", how="left")


PREFERRED = {False: ("implicit", "one_step", "unrolled"), True: ("unrolled", "implicit", "one_step")}
"""Which gradient stands for a solver, by whether its number of steps is fixed."""


def as_cells(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The table as the records that `maha_opt.summary` and `plots.accuracy_against_time` take: one for each solver.

    Of several gradients one stays: unrolled after a fixed number of steps, else implicit, where the solver has it.
    """
    table = table[table["solver"] != ""].rename(columns={"problem": "kind"})
    fixed = table["steps"].notna()
    rank = [PREFERRED[key].index(gradient) for key, gradient in zip(fixed, table["gradient"], strict=True)]
    rank = pd.Series(rank, table.index, dtype=int)
    best = rank.groupby([table["kind"], table["solver"], fixed]).transform("min")
    chosen = pd.DataFrame(table[rank == best])
    return chosen.astype(object).where(chosen.notna(), None).to_dict("records")


def parse_contenders(solvers: Iterable[str], gradients: Sequence[str], steps: Sequence[int | None]) -> list[Contender]:
    """Every solver with each of the gradients that it has, after each of the numbers of steps.

    Raises:
        ValueError: If a solver, option or gradient is of no use.
    """
    if unknown := [gradient for gradient in gradients if gradient not in GRADIENTS]:
        raise ValueError(f"gradients must be among {', '.join(GRADIENTS)}, but got {unknown[0]!r}.")
    methods = [Contender.parse(solver) for solver in solvers]
    if not methods:
        raise ValueError("solvers must name at least one solver, but is empty.")
    return list(dict.fromkeys(each for method in methods for each in _variants(method, gradients, steps)))


def _variants(method: Contender, gradients: Sequence[str], steps: Sequence[int | None]) -> Iterator[Contender]:
    """A solver with each of the gradients, after each of the numbers of steps; of its own, if it names one."""
    if not method.iterative:
        yield method
        return
    own = method.make().gradients
    # What stands with the flag itself holds.
    counts = steps if method.steps is None else [method.steps]
    options = tuple((name, value) for name, value in method.options if name != "unroll")
    for gradient in gradients if method.gradient == "implicit" else [method.gradient]:
        for count in counts:
            if gradient in own and not (count is None and gradient == "unrolled"):
                unroll = () if count is None else (("unroll", count),)
                yield replace(method, gradient=gradient, options=(*options, *unroll))
