"""Sweeps: killed and gone on with, on a cluster or in one process, the table is the same."""

import json
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from maha_opt import cli
from maha_opt.run_folder import FolderError
from maha_opt.validation import Difficulty, compare, grid, sweep
from maha_opt.validation.sweep_folder import cells_of

ROOT = Path(__file__).parents[2]
MODULE = import_module("maha_opt.validation.sweep")  # the function has its name
TIMES = ["seconds_per_problem", "repeats", "speed_up"]
SMALL = {"solvers": ["pivot", "best_response"], "gradients": ["implicit"], "steps": [5], "covered": 2}
PROBLEMS = grid(condition=[10.0, 100.0], problems=[4])
WORDS = [
    *("sweep", "--solvers", "pivot,best_response", "--gradients", "implicit", "--steps", "5", "--problems", "4"),
    *("--reference", "2", "--max-iter", "50", "--condition", "10,100", "--coupling", "0", "--feasible", "simplex"),
]


KILLED = """
import os, signal, sys
from importlib import import_module
from maha_opt import cli
from maha_opt.validation.sweep_folder import SweepFolder
add = SweepFolder.add
def add_until_killed(place, number, table):
    if number == 3:
        (place.path / "cells" / "000003.parquet.partial").write_bytes(b"the beginning of it")
        os.kill(os.getpid(), signal.SIGKILL)
    add(place, number, table)
SweepFolder.add = add_until_killed
import_module("maha_opt.validation.sweep").revision = lambda: "the same"
cli.app(sys.argv[1:])
"""
"""A command that is killed as it writes its fourth cell; by itself, so that it is there on any machine."""


def same(table, other):
    pd.testing.assert_frame_equal(table.drop(columns=TIMES), other.drop(columns=TIMES), check_exact=True)


def fails_on_seed_1(seed):
    if seed == 1:
        raise ArithmeticError("no problems today")
    return Difficulty(problems=4)(seed)


@pytest.fixture(scope="module", autouse=True)
def one_revision():
    """Whatever is committed while the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "revision", lambda: "the same")
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "unbroken"
    return sweep(folder, PROBLEMS, seeds=2, jobs=1, **SMALL), folder


def test_a_sweep_gives_what_one_comparison_of_everything_gives(unbroken):
    table, folder = unbroken
    same(table, compare(PROBLEMS, seeds=2, repeats=1, **SMALL))
    same(table, pd.read_parquet(folder / "results.parquet"))
    assert set(table["status"]) == {"ok"}
    assert not list(folder.rglob("*.partial"))


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_dask_workers_give_the_table_of_one_process(unbroken, tmp_path, jobs):
    pytest.importorskip("distributed")
    import dask

    with dask.config.set({"distributed.comm.timeouts.connect": "1h"}):
        same(unbroken[0], sweep(tmp_path / "dask", PROBLEMS, seeds=2, engine="dask", jobs=jobs, **SMALL))


def test_a_sweep_killed_in_the_middle_goes_on_and_repeats_nothing(tmp_path):
    folder, total = tmp_path / "killed", 8
    words = [*WORDS, "--seeds", "4", "--jobs", "1", "--output", str(folder)]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = {file: file.stat().st_mtime_ns for file in folder.glob("cells/*.parquet")}
    assert len(before) == 3 < total
    assert not (folder / "results.parquet").exists()
    for place in (folder, tmp_path / "unbroken"):
        result = CliRunner().invoke(cli.app, [*WORDS, "--seeds", "4", "--jobs", "1", "--output", str(place)])
        assert result.exit_code == 0, result.output
    assert {file: file.stat().st_mtime_ns for file in before} == before
    gone_on, whole = (pd.read_parquet(place / "results.parquet") for place in (folder, tmp_path / "unbroken"))
    assert len(gone_on[["problem", "seed"]].drop_duplicates()) == total
    same(gone_on, whole)


def test_a_failed_cell_is_recorded_and_stops_no_other(tmp_path):
    table = sweep(tmp_path, {"shaky": fails_on_seed_1}, seeds=3, jobs=1, **SMALL)
    failed = table[table["status"] == "failed"]
    assert failed["seed"].tolist() == [1]
    assert failed["reason"].tolist() == ["ArithmeticError: no problems today"]
    assert "fails_on_seed_1" in failed["traceback"].item()
    assert set(table[table["status"] == "ok"]["seed"]) == {0, 2}
    same(table, sweep(tmp_path, {"shaky": fails_on_seed_1}, seeds=3, jobs=1, **SMALL))


def test_a_finished_sweep_computes_nothing_again(unbroken, monkeypatch):
    def refuse(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(MODULE, "_run", refuse)
    calls = []
    table = sweep(
        unbroken[1], PROBLEMS, seeds=2, jobs=1, progress=lambda done, total: calls.append((done, total)), **SMALL
    )
    same(table, unbroken[0])
    assert calls == [(4, 4)]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seeds": 3}, "seeds ([0, 1] there, [0, 1, 2] here)"),
        ({"covered": 3}, "settings.covered (2 there, 3 here)"),
        ({"problems": grid(condition=[10.0, 99.0], problems=[4])}, "problems.condition 99"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_in_words(unbroken, changed, words):
    arguments = {"problems": PROBLEMS, "seeds": 2, **SMALL, **changed}
    with pytest.raises(FolderError) as error:
        sweep(unbroken[1], jobs=1, **arguments)
    assert words in str(error.value)


def test_another_revision_in_the_same_folder_is_refused(unbroken, monkeypatch):
    monkeypatch.setattr(MODULE, "revision", lambda: "another")
    with pytest.raises(FolderError, match="revision"):
        sweep(unbroken[1], PROBLEMS, seeds=2, jobs=1, **SMALL)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(FolderError, match="already holds something else"):
        sweep(tmp_path, PROBLEMS, **SMALL)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_the_sweep_was_stands_beside_it(unbroken):
    described = json.loads((unbroken[1] / "sweep.json").read_text(encoding="utf-8"))
    assert described["seeds"] == [0, 1]
    assert described["cells"] == 4
    assert Difficulty(**described["problems"]["condition 100"]) == PROBLEMS["condition 100"]
    assert described["versions"]["torch"]
    assert described["settings"]["solvers"] == SMALL["solvers"]
    assert "revision" in described
    assert len(cells_of(unbroken[1])) == len(unbroken[0])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"engine": "ray"}, "engine must be 'local', 'dask' or 'dask://HOST:PORT', but got 'ray'"),
        ({"covered": 0}, "covered must be at least 1"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"solvers": ["pivto"]}, "solver must be one of"),
        ({"gradients": ["exact"]}, "gradients must be among"),
    ],
)
def test_wrong_arguments_are_refused_before_the_folder_is_made(tmp_path, wrong, words):
    with pytest.raises(ValueError, match=words):
        sweep(tmp_path / "new", PROBLEMS, **{**SMALL, **wrong})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--condition", "10,ten", "--condition must be distinct values"),
        ("--scales", "4,4", "--scales must be distinct values"),
        ("--tie-distance", "0.5", "tie_distance must be at least 0"),
        ("--feasible", "circle", "feasible must be one of"),
    ],
)
def test_the_command_refuses_what_makes_no_problem(tmp_path, option, value, words):
    result = CliRunner().invoke(cli.app, [*WORDS, option, value, "--output", str(tmp_path / "new")])
    assert result.exit_code == 1
    assert words in result.output
    assert not (tmp_path / "new").exists()
