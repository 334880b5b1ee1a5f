"""`maha-opt convergence`: what it prints is what it writes."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from maha_opt import cli
from maha_opt.validation import Difficulty

ROOT = Path(__file__).parents[2]


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["convergence", *map(str, arguments)], env={"COLUMNS": "100"})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "new"
    return invoke("--seeds", 3, "--iterations", 200, "--output", folder), folder


def test_a_run_prints_rates_and_writes_everything(finished):
    result, folder = finished
    assert result.exit_code == 0, result.output
    for said in (
        "simplex, condition 300",
        "text, Nash on a box",
        "fitted",
        "theory",
        "damping below",
        "sweep='jacobi'",
    ):
        assert said in result.output
    rates, errors = (pd.read_parquet(folder / name) for name in ("rates.parquet", "errors.parquet"))
    assert set(rates["problem"]) == set(errors["problem"])
    assert rates["problem"].nunique() == 8
    assert set(rates["seed"]) == {0, 1, 2}
    row = rates[(rates["problem"] == "simplex, condition 10") & (rates["solver"] == "best_response")]
    assert f"{row['fitted'].median():.4f}" in result.output
    assert (folder / "convergence.png").stat().st_size > 50_000
    assert not list(folder.glob("*.partial"))


def test_what_is_written_beside_it_is_enough_to_run_it_again(finished):
    _, folder = finished
    text = (folder / "convergence.json").read_text(encoding="utf-8")
    content = json.loads(text)
    assert content["seeds"] == [0, 1, 2]
    assert Difficulty(**content["problems"]["simplex, condition 300"]).condition == 300
    assert content["versions"]["torch"]
    assert content["revision"] is None or len(content["revision"]) >= 40
    assert content["settings"]["iterations"] == 200
    assert str(ROOT) not in text
    assert str(folder) not in text


def test_results_are_not_written_over(finished):
    result = invoke("--seeds", 1, "--output", finished[1])
    assert result.exit_code == 1
    assert "already holds the results" in " ".join(result.output.split())


def test_a_solver_that_does_not_iterate_is_refused(tmp_path):
    result = invoke("--solvers", "pivot", "--output", tmp_path / "x")
    assert result.exit_code == 1
    assert "iterative" in result.output


def test_help_is_quick_because_it_needs_no_torch():
    code = "import sys; from typer.testing import CliRunner; from maha_opt import cli; "
    code += "CliRunner().invoke(cli.app, ['convergence', '--help']); "
    code += "print(sorted({'torch', 'models', 'pandas', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
