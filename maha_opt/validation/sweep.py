"""A comparison over many settings and seeds, on all cores or a cluster, that goes on after it was killed."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# The types that pyright infers for pandas, which has none of its own, are unions of everything.

from __future__ import annotations

import hashlib
import inspect
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import cloudpickle
import joblib
import pandas as pd
import torch

from maha_opt.cells import Cell
from maha_opt.compare import failed
from maha_opt.run_folder import machine, revision, sole_writer, versions
from maha_opt.validation.comparison import GRADIENTS, compare, parse_contenders, tabulated
from maha_opt.validation.engines import check_engine, parallel
from maha_opt.validation.random_problems import Difficulty
from maha_opt.validation.sources import Source, Sources, named, seeds_of, settings_of
from maha_opt.validation.sweep_folder import SweepFolder
from solvers import available_solvers, register_solver
from solvers.registry import registered


def grid(**settings: Sequence[float | str]) -> dict[str, Difficulty]:
    """Every combination of values of the fields of `Difficulty`, named by those that have several.

    >>> list(grid(condition=[10.0, 100.0], feasible=["simplex", "box"], problems=[8]))[:2]
    ['condition 10, feasible simplex', 'condition 10, feasible box']

    Raises:
        TypeError: If there is no such field.
        ValueError: If a field has no value, or a combination is of no use; the message names the field.
    """
    for name, values in settings.items():
        if not values:
            raise ValueError(f"{name} must have at least one value, but has none.")
    several = [name for name, values in settings.items() if len(values) > 1]
    found = {}
    for values in product(*settings.values()):
        chosen = dict(zip(settings, values, strict=True))
        title = ", ".join(f"{name} {_short(chosen[name])}" for name in several)
        found[title or "problem"] = Difficulty(**chosen)
    return found


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def sweep(
    folder: Path | str,
    problems: Sources,
    solvers: Iterable[str] | None = None,
    gradients: Sequence[str] = GRADIENTS,
    seeds: int | Iterable[int] = 8,
    *,
    steps: Sequence[int | None] = (5, 20, 80, None),
    covered: int = 16,
    repeats: int = 1,
    max_iter: int | None = None,
    engine: str = "local",
    jobs: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> pd.DataFrame:
    """`compare` over many problems and seeds, cell by cell; called again after whatever ended it, it goes on.

    A cell is one problem source and one seed, with all solvers, so that they share one reference and are timed side by
    side. Each is written to the folder at once when it is finished, and not computed again. One that fails is a row
    with the status "failed", and stops no other. Each is computed on one thread, so that its digits do not depend on
    the number of workers; times do.

    Args:
        folder: Where the results go: ``cells/``, one parquet file each; ``results.parquet``, all of them; and
            ``sweep.json``, the settings, seeds, versions and git revision.
        problems: As in `compare`; what is neither problems nor a `Difficulty` must be such that pickle takes it.
        solvers: This and the following as in `compare`. Solvers that you have registered yourself are sent along.
        gradients: See there.
        seeds: See there.
        steps: See there.
        covered: See there.
        repeats: See there.
        max_iter: See there.
        engine: "local", "dask" or "dask://HOST:PORT", see `maha_opt.validation.engines`.
        jobs: Number of workers; None: one for each core, or all of a running cluster.
        progress: Called with the number of finished cells and of all, at the start and after each.

    Returns:
        The table that `compare` would return for all of the problems and seeds; and failed cells.

    Raises:
        ValueError: If an argument is of no use; before anything is solved.
        TypeError: If a source is neither problems nor a function.
        FolderError: If the folder cannot be used, another run is writing to it, or it holds a sweep with other
            settings, seeds, versions or revision.
        OSError, RuntimeError: If a cluster is of no use, see `maha_opt.validation.engines.parallel`.
    """
    check_engine(engine)
    for name, number in (("covered", covered), ("repeats", repeats), ("max_iter", max_iter), ("jobs", jobs)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, but got {number}.")
    sources, chosen = named(problems), seeds_of(seeds)
    flags = list(available_solvers() if solvers is None else solvers)
    own = {contender.solver for contender in parse_contenders(flags, gradients, steps)}
    own = {flag: registered(flag) for flag in sorted(own) if not registered(flag).__module__.startswith("solvers.")}
    settings = {
        "solvers": flags,
        "gradients": list(gradients),
        "steps": list(steps),
        "covered": covered,
        "repeats": repeats,
        "max_iter": max_iter,
        "registered": {flag: _fingerprint(solver) for flag, solver in own.items()},
    }
    description = {
        "settings": settings,
        "problems": {name: settings_of(source) or {"hash": joblib.hash(source)} for name, source in sources.items()},
        "seeds": chosen,
        "versions": versions(),
        "revision": revision(),
        "machine": machine(torch.device("cpu")),
        "cells": len(sources) * len(chosen),
    }
    cells = [
        _Cell(name, source, seed, flags, tuple(gradients), tuple(steps), covered, repeats, max_iter)
        for (name, source), seed in product(sources.items(), chosen)
    ]
    report = progress or (lambda done, total: None)
    with sole_writer(Path(folder)):
        place = SweepFolder(Path(folder), description)
        done = place.finished()
        report(len(done), len(cells))
        if len(done) < len(cells):
            sent = _pickled(own)
            with parallel(engine, jobs) as workers:
                tasks = (
                    joblib.delayed(_run)(number, cell, sent) for number, cell in enumerate(cells) if number not in done
                )
                for count, (number, table) in enumerate(workers(tasks), start=len(done) + 1):
                    place.add(number, table)
                    report(count, len(cells))
        return place.collect()


@dataclass(frozen=True)
class _Cell:
    """One problem source and one seed, and what to do with them; the arguments of `compare`."""

    name: str
    source: Source
    seed: int
    solvers: list[str]
    gradients: tuple[str, ...]
    steps: tuple[int | None, ...]
    covered: int
    repeats: int
    max_iter: int | None

    def table(self) -> pd.DataFrame:
        problems = {self.name: self.source}
        try:
            return compare(
                problems, self.solvers, self.gradients, [self.seed],
                steps=self.steps, covered=self.covered, repeats=self.repeats, max_iter=self.max_iter,
            )  # fmt: skip
        except Exception as error:  # is the cell's result, not the end of the sweep
            return tabulated([failed(Cell(self.name, "", "", None, self.seed), error)], problems)


def _run(number: int, cell: _Cell, solvers: bytes) -> tuple[int, pd.DataFrame]:
    """What a worker does."""
    for flag, solver in pickle.loads(solvers).items():
        if flag not in available_solvers():
            register_solver(flag, solver)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a warning would say stands in the rows
            return number, cell.table()
    finally:
        torch.set_num_threads(threads)


def _pickled(solvers: Mapping[str, Callable[..., object]]) -> bytes:
    """Solvers with their code, so that workers need not find the file that they are in."""
    modules = {sys.modules[solver.__module__] for solver in solvers.values() if solver.__module__ != "__main__"}
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps(solvers)
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _fingerprint(solver: Callable[..., object]) -> str | None:
    """A hash of the file that a solver is in; None if there is none."""
    try:
        return hashlib.sha256(Path(inspect.getfile(solver)).read_bytes()).hexdigest()
    except (OSError, TypeError):
        return None
