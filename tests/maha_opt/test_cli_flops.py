"""`maha-opt flops`: the counter and the formulas agree, and what is printed is what is written."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from maha_opt import cli
from maha_opt.commands import flops

ROOT = Path(__file__).parents[2]
SMALL = ["--lengths", "100,257", "--d-model", "16", "--scales", "3", "--window", "17", "--coarsest-window", "7"]


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["flops", *map(str, arguments)], env={"COLUMNS": "120"})


@pytest.mark.parametrize("more", [(), ("--causal",), ("--ratio", "3", "--queries", "fine", "--projections", "shared")])
def test_counter_and_formula_agree_and_everything_is_written(tmp_path, more):
    result = invoke(*SMALL, *more, "--output", tmp_path / "new")
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "new" / "flops.json").read_text(encoding="utf-8"))
    rows = content["rows"]
    assert {row["length"] for row in rows} == {100, 257}
    assert {row["d_model"] for row in rows} == {16, 4096}
    assert all(row["agrees"] is not False for row in rows)
    assert sum(row["agrees"] is True for row in rows) >= 2 * 2 * 3
    assert any("half skipped" in row["layer"] for row in rows) == ("--causal" in more)
    with (tmp_path / "new" / "flops.csv").open(encoding="utf-8", newline="") as file:
        assert [row["scores"] for row in csv.DictReader(file)] == [str(row["scores"]) for row in rows]
    assert "give the same in all" in " ".join(result.output.split())
    assert str(ROOT) not in (tmp_path / "new" / "flops.json").read_text(encoding="utf-8")


def test_a_count_that_is_not_the_formulas_is_said_and_fails(monkeypatch):
    monkeypatch.setattr(flops, "count_full", lambda n, d_model, heads: flops.Counted(1, 2, 3))
    result = invoke(*SMALL, "--queries", "coarse", "--projections", "shared")
    assert result.exit_code == 1
    assert "DISAGREE: full attention at 100 tokens" in " ".join(result.output.split())


def test_a_counter_that_does_not_see_attention_is_refused(monkeypatch):
    monkeypatch.setattr(flops, "count_flops", lambda function: {})
    result = invoke(*SMALL)
    assert result.exit_code == 1
    assert "of no use here" in result.output


@pytest.mark.parametrize("lengths", ["", "0", "-1k", "1.5k", "a"])
def test_lengths_that_are_none_are_refused_by_name(lengths):
    result = invoke("--lengths", lengths)
    assert result.exit_code == 1
    assert "--lengths must be positive integers" in result.output


def test_an_option_that_the_layer_refuses_is_said_in_its_words():
    result = invoke("--lengths", "100", "--d-model", "10", "--heads", "3")
    assert result.exit_code == 1
    assert "--heads must divide --d-model = 10, but got 3" in result.output
    result = invoke(*SMALL, "--causal", "--window", "3", "--ratio", "4", "--scales", "4")
    assert result.exit_code == 1
    assert "window must be at least" in result.output


def test_the_solver_is_counted_on_real_problems():
    few, many = (flops.solver_operations(flops.MixerShape(16, num_scales=scales)) for scales in (2, 6))
    assert 10 < few < many < 100_000


def test_help_is_quick_because_it_needs_no_torch():
    code = "import sys; from typer.testing import CliRunner; from maha_opt import cli; "
    code += "CliRunner().invoke(cli.app, ['flops', '--help']); print(sorted({'torch', 'models'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_numbers_know_k():
    assert flops.numbers("1k, 4096,64K", "--lengths") == [1024, 4096, 65536]
