"""A short run of the fuzzer, and its bookkeeping."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks.fuzz import report
from benchmarks.fuzz.__main__ import cells, run
from benchmarks.fuzz.cells import DTYPES, Cell
from benchmarks.fuzz.families import FAMILIES
from benchmarks.fuzz.findings import Findings
from benchmarks.fuzz.reproduce import write_reproductions

WIDER = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_short_run_finds_nothing_wrong(dtype, tmp_path):
    """Every family once; a long run is for `python -m benchmarks.fuzz`."""
    if dtype == "float64" and not WIDER:
        pytest.skip("long double is no wider than float64 here")
    chosen = itertools.islice(cells(0, dtype, 40, list(FAMILIES)), len(FAMILIES))
    results = run(chosen, 10**9, tmp_path)
    _, failures, count = report.total_of(results)
    assert count > 150
    assert not failures, f"{dict(failures)}, see {tmp_path}/failures"


def test_a_cell_is_the_same_problems_again():
    cell = Cell(5, 3, "float32", 30, "rank deficient")
    a, b = cell.batch(), cell.batch()
    assert torch.equal(a.M, b.M)
    assert torch.equal(a.cotangent, b.cotangent)


def test_a_run_goes_on_from_where_it_was(tmp_path):
    def some():
        return itertools.islice(cells(0, "float64", 4, ["ties"]), 2)

    first = run(some(), 10**9, tmp_path)
    path = tmp_path / "float64.jsonl"
    with path.open("a") as file:
        file.write('{"cell": {"seed": 0')  # a line cut short
    before = path.read_text()
    assert run(some(), 10**9, tmp_path) == first
    assert path.read_text() == before
    assert len(run(itertools.islice(cells(0, "float64", 4, ["ties"]), 3), 10**9, tmp_path)) == 3
    assert len(report.read(path)) == 3


@pytest.mark.parametrize("family", ["conditioned", "ties", "spoiled"])
def test_a_reproduction_runs_by_itself(family, tmp_path):
    cell = Cell(0, 0, "float32", 6, family)
    batch = cell.batch()
    findings = Findings(batch)
    findings.note("company: made up", 0, "1")
    write_reproductions(cell, findings, tmp_path)
    (script,) = tmp_path.glob("*.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0 or "ValueError" in done.stderr, done.stderr
