"""A solver in one file with one registration takes part everywhere, with nothing else touched."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import solvers.registry
from maha_opt import ConvexAggregation, NashAggregation, cli, plugins
from maha_opt.validation import Difficulty, compare, convergence, sweep
from solvers import AffineVI, solve

ROOT = Path(__file__).parents[2]

FILE = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

from solvers import register_solver
from solvers.iterate import iterate
from solvers.projected_gradient import lipschitz
from solvers.prox import prox


@dataclass(frozen=True)
class Extragradient:
    """Two projected gradient steps from one point, the slope of the second taken at the first."""

    gradients: ClassVar[tuple[str, ...]] = ("implicit", "unrolled")
    unroll: int | None = None
    shorter: float = 0.7

    @property
    def to_tolerance(self):
        return self.unroll is None

    def check_set(self, feasible):
        pass

    def __call__(self, problem, tol, max_iter):
        return iterate(self, problem, steps=self.unroll, tol=tol, max_iter=max_iter or 20_000)

    def start(self, problem):
        return (prox(problem, torch.zeros_like(problem.q)),)

    def step(self, problem, state):
        (w,) = state
        gamma = self.shorter / lipschitz(problem)
        ahead = prox(problem, w - gamma * problem.operator(w), gamma.expand_as(w))
        return (prox(problem, w - gamma * problem.operator(ahead), gamma.expand_as(w)),)


register_solver("extra", Extragradient)
'''
NAME = "one_file_solver"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugin") / f"{NAME}.py"
    path.write_text(FILE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def extra(file):
    """The solver in this process."""
    plugins.load(str(file))
    yield "extra"
    del solvers.registry._SOLVERS["extra"], sys.modules[NAME]


@pytest.fixture
def command(file, monkeypatch):
    """Runs the command line with the plugin in this process, which then forgets the solver."""
    monkeypatch.setattr(solvers.registry, "_SOLVERS", dict(solvers.registry._SOLVERS))
    solvers.registry._SOLVERS.pop("extra", None)
    monkeypatch.delitem(sys.modules, NAME, raising=False)

    def run(*words, plugin=file):
        return CliRunner().invoke(cli.app, ["--plugin", str(plugin), *map(str, words)], env={"COLUMNS": "120"})

    yield run
    monkeypatch.delitem(sys.modules, NAME, raising=False)


def test_it_appears_in_compare_unnamed_with_its_gradients(extra):
    table = compare({"game": Difficulty(coupling=1.0, feasible="box", problems=4)}, seeds=1, steps=[200], covered=2)
    own = table[table["solver"] == extra]
    assert sorted(own["gradient"]) == ["implicit", "unrolled"]
    assert own["error_weights_max"].max() < 1e-3


def test_it_can_be_watched_converging(extra):
    rates = convergence(Difficulty(problems=2), [extra], seeds=1).rates
    assert set(rates["status"]) <= {"converged", "converging"}


@pytest.mark.parametrize("kind", [ConvexAggregation, NashAggregation])
def test_it_fuses_scales_and_is_swapped_in_like_any_other(extra, kind):
    torch.manual_seed(0)
    fuse, Y = kind(3, 8, prices="learned").double(), torch.randn(2, 5, 3, 8, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(2, 5, 8, dtype=torch.float64)
    exact = fuse(Y, inputs=inputs)
    fuse.solver = extra
    found = fuse(Y, inputs=inputs)
    assert bool(found.solution.converged.all())
    torch.testing.assert_close(found.output, exact.output, atol=1e-6, rtol=0)
    found.output.sum().backward()
    assert all(parameter.grad is not None for parameter in fuse.parameters())


def test_a_solver_without_a_gradient_leaves_no_parameter_without_one(monkeypatch):
    class Uniform:
        """The same for everyone; carries no gradient."""

        gradients = ()
        to_tolerance = False

        def check_set(self, feasible):
            pass

        def __call__(self, problem, tol, max_iter):
            return torch.full_like(problem.q, 1 / problem.size), torch.zeros_like(problem.q[0], dtype=torch.long)

    monkeypatch.setitem(solvers.registry._SOLVERS, "uniform", Uniform)
    fuse = ConvexAggregation(3, 8, prices="learned", solver="uniform")
    fuse(torch.randn(2, 5, 3, 8), inputs=torch.randn(2, 5, 8)).output.sum().backward()
    assert all(parameter.grad is not None for parameter in fuse.parameters())


@pytest.mark.slow
def test_the_workers_of_a_sweep_get_it_though_they_cannot_find_its_file(extra, file, tmp_path):
    hidden = file.rename(file.with_suffix(".txt"))
    try:
        options = {"gradients": ["implicit"], "steps": [None], "covered": 2}
        table = sweep(tmp_path, Difficulty(problems=4), [extra], seeds=2, jobs=2, **options)
    finally:
        hidden.rename(file)
    assert set(table["status"]) == {"ok"}
    assert table[table["solver"] == extra]["seed"].tolist() == [0, 1]


def test_it_appears_in_the_list_of_the_command_line_with_its_line(file):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    line = [sys.executable, "-m", "maha_opt.cli", "--plugin", str(file), "solvers"]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert "extra" in done.stdout, done.stderr
    assert "Two projected gradient steps from one point" in done.stdout


def test_compare_of_the_command_line_takes_it(command, tmp_path):
    words = [
        "--seeds",
        "1",
        "--problems",
        "6",
        "--reference",
        "2",
        "--scales",
        "3",
        "--unroll",
        "4",
        "--max-iter",
        "500",
        "--solvers",
        "pivot,extra",
    ]
    done = command("compare", *words, "--output", tmp_path / "run")
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "run" / "results.csv")
    assert set(table[table["solver"] == "extra"]["status"]) == {"ok"}
    assert "\nextra" in done.stdout


def test_sweep_of_the_command_line_takes_it_with_options(command, tmp_path):
    words = "--seeds 2 --jobs 1 --problems 4 --reference 2 --steps 5 --condition 10 --coupling 0 --feasible simplex"
    chosen = ("--solvers", "extra:shorter=0.5", "--output", tmp_path / "run")
    done = command("sweep", *words.split(), *chosen)
    assert done.exit_code == 0, done.output
    table = pd.read_parquet(tmp_path / "run" / "results.parquet")
    own = table[table["solver"] == "extra:shorter=0.5"]
    assert len(own) == 2 * 3  # implicit to the tolerance and after 5 steps, and unrolled
    assert set(own["status"]) == {"ok"}


def test_a_plugin_that_is_not_there_is_refused_in_words(command, tmp_path):
    done = command("solvers", plugin=tmp_path / "nothing.py")
    assert done.exit_code == 1
    assert "cannot be imported" in done.output


def test_without_the_plugin_it_is_not_there():
    with pytest.raises(ValueError, match="solver must be one of"):
        solve(AffineVI(torch.eye(2), torch.zeros(2)), "nobody")
