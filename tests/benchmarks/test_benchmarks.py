import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the benchmarks are not part of the installed packages

from benchmarks import table  # noqa: E402
from benchmarks.peers import CONTENDERS, OURS, AutogradSolver, Contender  # noqa: E402
from benchmarks.reference import (  # noqa: E402
    Problems,
    find_support,
    natural_residual,
    random_problems,
    reference,
    solve_extended,
)
from benchmarks.solvers import Settings, load, run_cell  # noqa: E402

QUICK = Settings(threads=1, repeats=3, budget=30.0, seed=0)


def softmax_contender(name, build=None, module="torch"):
    layer = AutogradSolver(lambda M, q: torch.softmax(-q - M.sum(-1), dim=-1))
    return Contender(name, "wrong on purpose", module, "pip install torch", build or (lambda L, B, threads: layer), 1)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(("L", "B"), [(1, 3), (2, 16), (5, 16), (16, 4)])
def test_reference_agrees_with_cvxpylayers(L, B):
    problems = random_problems(L, B, seed=1)
    truth = reference(problems)
    assert len(truth.items) + truth.ties == B
    solver = CONTENDERS["cvxpylayers-exact"].build(L, B, 1)
    weights = solver.forward(problems.M, problems.q)
    assert truth.error_weights(weights) < 1e-8
    assert truth.error_gradient(*solver.backward(problems.cotangent)) < 1e-7


def test_reference_has_no_residual_and_full_range_of_supports():
    problems = random_problems(8, 64, seed=2)
    truth = reference(problems)
    assert len(truth.items) == 64
    assert natural_residual(problems, torch.from_numpy(truth.weights.astype(float))) < 1e-14
    sizes = (truth.weights > 0).sum(-1)
    assert sizes.min() <= 2
    assert sizes.max() >= 6


def test_reference_leaves_out_ties_in_words():
    # The second weight is exactly on the threshold.
    M, q = torch.eye(2, dtype=torch.float64).expand(3, 2, 2), torch.tensor([[-1.0, 0.0], [0.0, 0.0], [-3.0, 0.0]])
    truth = reference(Problems(M, q.double(), torch.ones(3, 2, dtype=torch.float64)))
    assert truth.ties == 1
    assert truth.items.tolist() == [1, 2]


def test_support_of_a_worked_example():
    # Projection of (0.6, 0.4, 0, -1) lowered a little in its third coordinate.
    assert find_support(np.eye(4), -np.array([0.6, 0.4, -0.1, -1.0])).tolist() == [True, True, False, False]


def test_extended_elimination_needs_pivots_and_is_precise():
    A = np.array([[0, 1, 2], [1, 0, 1], [3, 4, 1]], dtype=np.longdouble)
    x = np.array([1, -2, 3], dtype=np.longdouble) / 3
    assert np.abs(solve_extended(A, A @ x) - x).max() <= 4 * np.finfo(np.longdouble).eps


def test_a_wrong_solver_is_seen_and_a_failing_or_missing_or_slow_one_is_reported_in_words():
    def fail(L, B, threads):
        raise ZeroDivisionError("no such thing")

    contenders = [
        softmax_contender(OURS),
        softmax_contender("twin"),
        softmax_contender("failing", build=fail),
        softmax_contender("absent", module="no_such_package"),
    ]
    entries = run_cell(3, 20, contenders, QUICK)["contenders"]
    assert entries["twin"]["error_weights"] > 1e-2
    assert entries["twin"]["residual"] > 1e-2
    assert entries[OURS]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert entries["twin"]["ratio"]["median"] > 0
    assert entries["failing"] == {"not_run": "failed with ZeroDivisionError: no such thing"}
    assert entries["absent"] == {"not_run": "no_such_package is not installed: pip install torch"}

    hasty = Settings(threads=1, repeats=3, budget=1e-9, seed=0)
    assert "predicted" in run_cell(3, 20, contenders[:1], hasty)["contenders"][OURS]["not_run"]


def test_run_goes_on_where_it_stopped(tmp_path):
    output = tmp_path / "results.json"
    run = ("benchmarks.solvers", "--sizes", "2", "--repeats", "2", "--output", str(output))
    run += ("--contenders", "pivot,cvxpylayers-exact,qpth")
    first = command(*run, "--batches", "1,3")
    assert first.returncode == 0, first.stdout + first.stderr
    cells = json.loads(output.read_text())["cells"]
    assert [(cell["L"], cell["B"]) for cell in cells] == [(2, 1), (2, 3)]
    for cell in cells:
        ours, exact = cell["contenders"][OURS], cell["contenders"]["cvxpylayers-exact"]
        assert ours["error_weights"] < 1e-12
        assert ours["error_gradient"] < 1e-9
        assert exact["ratio"]["median"] > 1
        assert "rounds" in cell["contenders"]["qpth"] or "is not installed" in cell["contenders"]["qpth"]["not_run"]

    second = command(*run, "--batches", "3,1,2")
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("already there") == 2
    again = json.loads(output.read_text())["cells"]
    assert [(cell["L"], cell["B"]) for cell in again] == [(2, 1), (2, 2), (2, 3)]
    assert [cell for cell in again if cell["B"] != 2] == cells

    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    written = command("benchmarks.table", "--results", str(output), "--write", str(page))
    assert written.returncode == 0, written.stdout + written.stderr
    text = page.read_text()
    assert text.startswith(f"before\n{table.BEGIN}\n")
    assert text.endswith(f"\n{table.END}\nafter\n")
    assert "old" not in text
    assert "| L = 2 |" in text


def test_results_made_in_another_way_are_not_mixed(tmp_path):
    output = tmp_path / "results.json"
    head = {"settings": {"seed": 0}, "problem": "p", "machine": {"cpu": "c"}, "versions": {"torch": "1", "qpth": None}}
    output.write_text(json.dumps({**head, "cells": [1]}))
    newly_installed = {**head, "versions": {"torch": "1", "qpth": "2"}}
    assert load(output, newly_installed, fresh=False) == {**newly_installed, "cells": [1]}
    with pytest.raises(typer.BadParameter, match="other settings"):
        load(output, {**head, "settings": {"seed": 1}}, fresh=False)
    assert load(output, {**head, "settings": {"seed": 1}}, fresh=True)["cells"] == []


def test_table_shows_ratios_and_says_what_is_missing():
    def entry(factor):
        numbers = {"median": factor, "low": factor, "high": 2 * factor}
        parts = ("ratio", "forward_ms", "backward_ms", "total_ms")
        return {"rounds": 3, "error_weights": 1e-9, "error_gradient": 1e-8, **dict.fromkeys(parts, numbers)}

    cell = {"L": 4, "B": 1024, "date": "2026-01-02T00:00:00+00:00"}
    missing = {"not_run": "qpth is not installed: pip install qpth"}
    slow = {"not_run": "predicted 12 min a call"}
    cell["contenders"] = {
        OURS: entry(1.0),
        "moreau": entry(2.5),
        "cvxpylayers-exact": entry(1234.0),
        "qpth": missing,
        "proxsuite": slow,
    }
    results = {
        "settings": {"dtype": "float64", "threads": 1, "pinned": "pinned to 1 of 2 cores", "repeats": 3, "checked": 9},
        "machine": {"cpu": "a processor"},
        "versions": {"torch": "2", "qpth": None},
        "contenders": {name: contender.description for name, contender in CONTENDERS.items()},
        "cells": [cell],
    }
    text = table.markdown(results)
    assert "**2.5** (2.5 to 5)" in text
    assert "| **2.5** moreau, exact 1,234 |" in text
    assert "- qpth: qpth is not installed: pip install qpth" in text
    assert "- proxsuite: L = 4, B = 1,024 (predicted 12 min a call)" in text
    page = f"a\n{table.BEGIN}\n{table.END}\nb"
    assert table.replace(table.replace(page, "first"), "second") == f"a\n{table.BEGIN}\nsecond\n{table.END}\nb"
    with pytest.raises(ValueError, match="once each"):
        table.replace("no markers", "table")
