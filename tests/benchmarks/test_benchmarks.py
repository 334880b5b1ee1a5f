import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the benchmarks are not part of the installed packages

from benchmarks import layers, layers_table, solvers, table  # noqa: E402
from benchmarks.layer_peers import LAYERS, LayerContender, published  # noqa: E402
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

HOUR = 3600.0  # a budget that no machine is too busy for
QUICK = Settings(threads=1, repeats=3, budget=HOUR, seed=0)


def softmax_contender(name, build=None, module="torch"):
    layer = AutogradSolver(lambda M, q: torch.softmax(-q - M.sum(-1), dim=-1))
    return Contender(name, "wrong on purpose", module, "pip install torch", build or (lambda L, B, threads: layer), 1)


@pytest.fixture
def command(monkeypatch):
    """Runs the command of a benchmark in this process, which is not pinned to some of the cores."""

    def run(module, *arguments, pinned="not pinned"):
        monkeypatch.setattr(layers if module in (layers, layers_table) else solvers, "limit_threads", lambda _: pinned)
        app = typer.Typer()
        app.command()(module.main)
        return CliRunner().invoke(app, arguments)

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


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


def test_run_goes_on_where_it_stopped(tmp_path, command):
    output = tmp_path / "results.json"
    run = ("--sizes", "2", "--repeats", "2", "--budget", str(HOUR), "--output", str(output))
    run += ("--contenders", "pivot,cvxpylayers-exact,qpth")
    line = [sys.executable, "-m", "benchmarks.solvers", *run, "--batches", "1,3"]
    first = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    results = json.loads(output.read_text())
    cells = results["cells"]
    assert [(cell["L"], cell["B"]) for cell in cells] == [(2, 1), (2, 3)]
    for cell in cells:
        ours, exact = cell["contenders"][OURS], cell["contenders"]["cvxpylayers-exact"]
        assert ours["error_weights"] < 1e-12
        assert ours["error_gradient"] < 1e-9
        assert exact["ratio"]["median"] > 0
        assert "rounds" in cell["contenders"]["qpth"] or "is not installed" in cell["contenders"]["qpth"]["not_run"]

    second = command(solvers, *run, "--batches", "3,1,2", pinned=results["settings"]["pinned"])
    assert second.exit_code == 0, second.output
    assert second.stdout.count("already there") == 2
    again = json.loads(output.read_text())["cells"]
    assert [(cell["L"], cell["B"]) for cell in again] == [(2, 1), (2, 2), (2, 3)]
    assert [cell for cell in again if cell["B"] != 2] == cells

    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    written = command(table, "--results", str(output), "--write", str(page))
    assert written.exit_code == 0, written.output
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


HASTE = layers.Settings(threads=1, clock="cpu", repeats=3, budget=HOUR, seed=0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("contender", LAYERS, ids=lambda contender: contender.name)
def test_every_layer_maps_a_sequence_to_one_and_a_causal_one_reads_no_future(contender, causal):
    if reason := contender.missing(causal):
        pytest.skip(reason)
    layer = contender.build(512, causal).double()
    x = torch.randn(1, 512, 256, dtype=torch.float64)
    with torch.no_grad():
        y, changed = layer(x), layer(torch.cat([x[:, :300], torch.randn_like(x[:, 300:])], dim=1))
    assert y.shape == x.shape
    moved = (y - changed)[:, :300].abs().max()
    assert (moved < 1e-12) if causal else (moved > 1e-9)  # solved to 1e-9; batches of other items round differently


def test_the_two_ways_to_write_attention_are_one_function():
    fused, written = (contender.build(9, True) for contender in LAYERS[:2])
    written.load_state_dict(fused.state_dict())
    x = torch.randn(2, 9, 256)
    torch.testing.assert_close(fused(x), written(x), atol=1e-5, rtol=0)


def test_memory_is_what_was_given_out_at_once():
    def call():
        kept = [torch.empty(1_000_000)]
        for _ in range(3):
            kept.clear()
            kept.append(torch.empty(1_000_000))
        torch.empty(500_000)

    assert layers.peak_memory(call) == pytest.approx(6.0, abs=0.1)  # of float32


def test_layers_run_goes_on_where_it_stopped_and_makes_its_table(tmp_path, command):
    output = tmp_path / "layers.json"
    run = ("--repeats", "2", "--threads", "1", "--clock", "cpu", "--output", str(output))
    run += ("--budget", str(HOUR), "--contenders", "sdpa,maha-r4-shared")
    first = command(layers, *run, "--lengths", "64", "--modes", "causal")
    assert first.exit_code == 0, first.output
    assert "give --published" in first.output
    cells = json.loads(output.read_text())["cells"]
    entry = cells[0]["contenders"]["maha-r4-shared"]
    assert entry["rounds"] == 2
    assert entry["forward_ms"]["median"] > 0
    assert entry["total_mb"] > entry["forward_mb"] > 0
    assert cells[0]["contenders"]["sdpa"]["total_ratio"]["median"] == 1
    second = command(layers, *run, "--lengths", "64")
    assert second.stdout.count("already there") == 1
    cells = json.loads(output.read_text())["cells"]
    assert [(cell["mode"], cell["n"]) for cell in cells] == [("bidirectional", 64), ("causal", 64)]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{layers_table.BEGIN}\nold\n{layers_table.END}\nafter\n")
    written = command(layers_table, "--results", str(output), "--write", str(page))
    assert written.exit_code == 0, written.output
    text = page.read_text()
    assert "old" not in text
    assert "**All lengths, causal**" in text
    assert str(ROOT) not in text + output.read_text()


def test_layers_that_fail_or_cannot_run_are_reported_in_words(tmp_path):
    def fail(n, causal):
        raise ZeroDivisionError("no such thing")

    contenders = [
        LAYERS[0],
        LayerContender("failing", "", fail),
        LayerContender("absent", "", fail, module="no_such_package", install="pip install it"),
        LayerContender("one-sided", "", fail, modes=("bidirectional",)),
        LayerContender("vast", "", fail, scores=10**12),
    ]
    entries = layers.run_cell(32, True, contenders, HASTE)["contenders"]
    assert entries["failing"] == {"not_run": "failed with ZeroDivisionError: no such thing"}
    assert entries["absent"] == {"not_run": "no_such_package is not installed: pip install it"}
    assert entries["one-sided"] == {"not_run": "it cannot be causal"}
    assert "GB of memory" in entries["vast"]["not_run"]
    assert entries["sdpa"]["rounds"] >= 1
    with pytest.raises(FileNotFoundError, match="no checkout of MAHA"):
        published(tmp_path)
