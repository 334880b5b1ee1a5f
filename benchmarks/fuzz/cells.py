"""One cell: a batch of problems that a seed and a number determine, asked, judged and asked again."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.fuzz.ask import ask
from benchmarks.fuzz.batches import Batch
from benchmarks.fuzz.checks import compare_with_enumeration, judge
from benchmarks.fuzz.families import FAMILIES, draw
from benchmarks.fuzz.findings import Findings
from benchmarks.fuzz.invariances import compare_transformed
from benchmarks.fuzz.neighbours import compare_company
from benchmarks.fuzz.reproduce import write_reproductions

DTYPES = {"float64": torch.float64, "float32": torch.float32}
ENUMERATED = 4  # problems of a cell
BATCHES = ((1.0, 0.7), (0.1, 0.2), (0.01, 0.1))
"""Shares of the largest batch, and how often: solvers take other ways through small batches."""


@dataclass(frozen=True)
class Cell:
    """What determines a cell.

    Attributes:
        seed: Seed of the run.
        number: Which cell of the run.
        dtype: ``"float64"`` or ``"float32"``.
        most: Problems in a batch, at most.
        family: Of `FAMILIES`.
    """

    seed: int
    number: int
    dtype: str
    most: int
    family: str

    def rng(self, what: int) -> np.random.Generator:
        """A generator of this cell; another for each ``what``."""
        return np.random.default_rng([self.seed, self.number, list(FAMILIES).index(self.family), self.most, what])

    def batch(self) -> Batch:
        """The problems."""
        rng = self.rng(0)
        shares, chances = zip(*BATCHES, strict=True)
        most = max(int(self.most * rng.choice(shares, p=chances)), 1)
        return draw(self.family, rng, DTYPES[self.dtype], most)


@dataclass(frozen=True)
class Result:
    """A line of the results file.

    Attributes:
        cell: What determines it.
        set_name: The set, ``size`` coordinates, ``count`` problems.
        counts: What was counted.
        failures: ``kind → number of items``.
        seconds: How long it took.
    """

    cell: Cell
    set_name: str
    size: int
    count: int
    counts: dict[str, int]
    failures: dict[str, int]
    seconds: float

    def line(self) -> dict[str, object]:
        """As it is written."""
        return asdict(self)

    @staticmethod
    def read(line: dict[str, object]) -> Result:
        """As it is read."""
        return Result(**(line | {"cell": Cell(**line["cell"])}))  # pyright: ignore


def run_cell(cell: Cell, folder: Path | None = None) -> Result:
    """Runs a cell; reproductions of its failures go to ``folder``."""
    start = time.perf_counter()
    batch = cell.batch()
    findings = Findings(batch)
    answer = ask(batch)
    if answer.error:
        findings.counts["all items refused"] += batch.count
        if not answer.documented:
            findings.note("exception", 0, answer.error)
    else:
        judge(batch, answer, findings)
        compare_with_enumeration(batch, answer, ENUMERATED, findings)
        compare_company(batch, answer, cell.rng(1), findings)
        compare_transformed(batch, answer, cell.rng(2), findings)
    if folder is not None:
        write_reproductions(cell, findings, folder)
    failures = Counter(failure.kind for failure in findings.failures)
    seconds = time.perf_counter() - start
    counts = {name: count for name, count in sorted(findings.counts.items()) if count}
    return Result(cell, batch.set_name, batch.size, batch.count, counts, dict(failures), seconds)
