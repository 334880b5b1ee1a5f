"""The command line: what it prints, what it leaves behind, and how it ends."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import solvers.registry
from maha_opt import available_sets, cli
from maha_opt.cli.app import _one_line
from maha_opt.cli.studies import SetName
from maha_opt.interrupts import prompt_interrupts
from maha_opt.run_folder import COLUMNS
from maha_opt.text import TextError, novel
from models.text_problems import Recipe, batches, check_length, scale_outputs
from solvers import available_solvers, solve

SMALL = [
    "--seeds",
    "2",
    "--problems",
    "20",
    "--reference",
    "6",
    "--scales",
    "3",
    "--unroll",
    "4,30",
    "--max-iter",
    "50",
]
ROOT = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


def read(folder):
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "new" / "folder"
    result = invoke("compare", *SMALL, "--solvers", "pivot,projected_gradient,softmax", "--output", folder)
    return result, folder


@pytest.fixture
def broken(monkeypatch):
    """Makes a solver raise."""

    def install(name, error):
        def refuse(self, *args):
            raise error

        kind = type(name, (solvers.registry._SOLVERS[name],), {"__call__": refuse})
        monkeypatch.setitem(solvers.registry._SOLVERS, name, kind)

    return install


def test_help_names_the_commands_and_the_options():
    assert "compare" in invoke("--help").output
    words = invoke("compare", "--help").output
    options = ("text", "solvers", "seeds", "scales", "problems", "device", "dtype", "output", "unroll", "reference")
    for option in options:
        assert f"--{option}" in words


def test_every_solver_is_listed_with_a_line():
    lines = invoke("solvers").output.splitlines()
    assert [line.split()[0] for line in lines] == list(available_solvers())
    assert all(len(line.split()) > 3 for line in lines)


def test_the_names_of_sets_are_those_of_the_package():
    assert tuple(name.value for name in SetName) == available_sets()


def test_a_run_prints_a_table_and_writes_everything(finished):
    result, folder = finished
    assert result.exit_code == 0, result.output
    for words in (
        "convex on simplex",
        "nash on box",
        "pivot",
        "after 30 steps",
        "speed-",
        "not run: softmax",
        "Complete.",
    ):
        assert words in result.output
    rows, described = read(folder)
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(described["cells"]) == 2 * 2 * 6
    exact = [float(row["error_weights_max"]) for row in rows if row["solver"] == "pivot"]
    assert len(exact) == 4
    assert max(exact) <= 1e-7
    assert {row["status"] for row in rows} == {"ok", "not run"}
    assert described["complete"] is True
    assert described["settings"]["scales"] == 3
    assert described["machine"]["device"] == "cpu"
    assert described["versions"]["torch"] == torch.__version__.partition("+")[0] or described["versions"]["torch"]
    assert (folder / "accuracy.png").stat().st_size > 10_000
    assert not list(folder.glob("*.partial"))


def test_the_table_fits_into_80_columns(finished, tmp_path):
    result = CliRunner().invoke(
        cli.app, ["compare", *SMALL, "--output", str(tmp_path)], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}
    )
    assert result.exit_code == 0, result.output
    table = [line for line in result.output.splitlines() if line.startswith(("pivot", "projected", "  after"))]
    assert len(table) > 10
    assert "…" not in result.output


def test_the_results_of_another_run_are_not_touched(finished):
    _, folder = finished
    before = (folder / "results.csv").read_bytes()
    result = invoke("compare", *SMALL, "--solvers", "pivot", "--output", folder)
    assert result.exit_code == 1
    assert "already holds" in result.output
    assert (folder / "results.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--solvers", "pivot,pivott"], "'pivott'"),
        (["--solvers", "pivot:speed=3"], "speed"),
        (["--solvers", " , "], "--solvers"),
        (["--unroll", "5,some"], "--unroll"),
        (["--unroll", "0"], "--unroll"),
        (["--device", "abacus"], "--device abacus"),
        (["--text", "missing.txt"], "missing.txt"),
    ],
)
def test_a_useless_option_ends_in_one_line_that_names_it(tmp_path, arguments, words):
    result = invoke("compare", *SMALL, *arguments, "--output", tmp_path / "run")
    assert result.exit_code == 1
    assert len(result.output.strip().splitlines()) == 1
    assert result.output.startswith("Error: ")
    assert words in result.output
    assert not (tmp_path / "run").exists()


def test_a_text_of_ones_own(tmp_path):
    text, folder = tmp_path / "own [1].txt", tmp_path / "run"
    text.write_text("To be, or not to be, that is the question. " * 3)
    result = invoke("compare", *SMALL, "--solvers", "pivot", "--text", text, "--output", folder)
    assert result.exit_code == 0, result.output
    assert read(folder)[1]["settings"]["text_bytes"] == 129
    text.write_text("To be")
    result = invoke("compare", *SMALL, "--solvers", "pivot", "--text", text, "--output", tmp_path / "other")
    assert result.exit_code == 1
    assert "5 bytes" in result.output


def test_single_precision_and_other_sets(tmp_path):
    options = ["--dtype", "float32", "--convex-set", "budget", "--nash-set", "capped_simplex", "--solvers", "pivot"]
    result = invoke("compare", *SMALL, *options, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    errors = [float(row["error_weights_max"]) for row in read(tmp_path)[0] if row["solver"] == "pivot"]
    assert 1e-10 < max(errors) < 1e-4


def test_a_crashed_cell_is_told_and_ends_in_a_failure(tmp_path, broken):
    broken("scipy", ArithmeticError("out of [ink]"))
    result = invoke("compare", *SMALL, "--solvers", "scipy,pivot", "--output", tmp_path)
    assert result.exit_code == 1
    assert "failed: scipy on 2 of 2 batches: ArithmeticError: out of [ink]" in result.output
    assert "4 of 12 cells failed." in result.output
    rows, described = read(tmp_path)
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"] * 4
    assert described["complete"] is True
    assert "out of [ink]" in described["cells"][1]["traceback"]


def test_an_interrupted_run_leaves_what_it_has(tmp_path, broken):
    broken("scipy", KeyboardInterrupt())
    result = invoke("compare", *SMALL, "--solvers", "pivot,scipy", "--output", tmp_path)
    assert result.exit_code == 130
    rows, described = read(tmp_path)
    assert [row["solver"] for row in rows] == ["cvxpylayers", "pivot"]
    assert described["complete"] is False
    assert "Interrupted after 2 of 12 cells" in described["message"]
    assert "pivot" in result.output
    assert (tmp_path / "accuracy.png").exists()


def test_an_error_outside_the_solvers_ends_in_a_line_and_says_where(tmp_path, monkeypatch):
    def stumble(*args):
        return [][0]

    monkeypatch.setattr("models.text_problems.convex_problem", lambda *args, **kwargs: stumble())
    result = invoke("compare", *SMALL, "--solvers", "pivot", "--output", tmp_path)
    assert result.exit_code == 1
    assert "IndexError: list index out of range (test_cli.py, line" in result.output
    _, described = read(tmp_path)
    assert described["complete"] is False
    assert "Traceback" in described["message"]


def test_without_matplotlib_only_the_picture_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "maha_opt.plots", None)
    result = invoke("compare", *SMALL, "--solvers", "pivot", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert "pip install 'maha-opt[study]'" in result.output
    assert len(read(tmp_path)[0]) == 8
    assert not (tmp_path / "accuracy.png").exists()


@pytest.fixture
def interruptible():
    """Processes that are started take SIGINT, also where a shell runs the tests in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_in_the_middle_of_a_real_run(tmp_path, interruptible):
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "maha_opt.cli",
        "compare",
        "--seeds",
        "100000",
        "--problems",
        "20",
        "--output",
        folder,
    ]
    with subprocess.Popen(command, env=ONE_THREAD, cwd=tmp_path, stdout=-1, stderr=subprocess.STDOUT) as process:
        while not (folder / "results.csv").exists() or len(read_rows(folder)) < 3:
            assert process.poll() is None, process.communicate()[0].decode()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output = process.communicate()[0].decode()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "Interrupted after" in output
    rows, described = read(folder)
    assert len(rows) == len(described["cells"]) >= 3
    assert rows[-1]["status"] == "ok"
    assert described["complete"] is False


def read_rows(folder):
    return (folder / "results.csv").read_text(encoding="utf-8").splitlines()[1:]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the C library")
def test_an_interrupt_arrives_although_a_library_has_taken_the_signal(tmp_path, interruptible):
    code = """
import ctypes, os, signal, time
from maha_opt.interrupts import prompt_interrupts
lost = []
taken = ctypes.CFUNCTYPE(None, ctypes.c_int)(lost.append)
try:
    with prompt_interrupts():
        ctypes.CDLL(None).signal(int(signal.SIGINT), taken)
        os.kill(os.getpid(), signal.SIGINT)
        while not lost:
            time.sleep(0.05)
except KeyboardInterrupt:
    print("arrived")
"""
    done = subprocess.run([sys.executable, "-c", code], env=ONE_THREAD, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["arrived"], done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_interrupts_are_left_alone_outside_the_main_thread_and_afterwards():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with prompt_interrupts():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    seen = []

    def elsewhere():
        with prompt_interrupts():
            seen.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert "interrupts" not in {thread.name for thread in threading.enumerate()}


def test_scale_outputs_depend_on_the_seed_alone():
    text = novel()
    recipe = Recipe(problems=70, scales=3)
    first, again, other = scale_outputs(text, 0, recipe), scale_outputs(text, 0, recipe), scale_outputs(text, 1, recipe)
    assert first.Y.shape == (70, 3, first.target.shape[-1])
    torch.testing.assert_close(first.Y, again.Y, atol=0, rtol=0)
    assert not torch.equal(first.Y, other.Y)
    single = scale_outputs(text, 0, Recipe(problems=70, scales=3, dtype=torch.float32))
    assert single.Y.dtype == torch.float32
    torch.testing.assert_close(single.Y.double(), first.Y, atol=1e-5, rtol=1e-4)
    assert torch.equal(single.available, first.available)
    assert bool(first.available[:, 0].all())


def test_problems_are_not_trivial():
    for batch in batches(novel(), 2, Recipe(problems=200)):
        solution = solve(batch.problem, on_failure="raise")
        support = (solution.weights > 1e-6).sum(-1)
        assert len(support.unique()) >= 3, batch.kind
        symmetric = torch.allclose(batch.problem.M, batch.problem.M.mT)
        assert symmetric == (batch.kind == "convex")


def test_a_text_must_hold_a_cell_of_every_scale():
    check_length(b"x" * 16, 4)
    with pytest.raises(TextError, match="at least 16"):
        check_length(b"x" * 15, 4)
    assert scale_outputs(b"0123456789abcdef", 0, Recipe(problems=5, scales=4)).Y.shape[0] == 5


def test_messages_with_brackets_are_printed_as_they_are(capsys):
    Console().print(f"Error: {_one_line(ValueError('a [bold] word'))}")
    assert "a [bold] word" in capsys.readouterr().out
