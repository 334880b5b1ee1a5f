"""`maha-opt train`, `evaluate` and `generate`: what they say, write and refuse."""

import csv
import json
import re

import pytest
from small import SMALL_COMMAND
from typer.testing import CliRunner

from maha_opt import cli


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(word) for word in arguments], env={"COLUMNS": "100"})


def said(result):
    return " ".join(result.output.split())


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def figures(result):
    """The numbers of the table's first line for each solver."""
    lines = [line.split() for line in result.output.splitlines()]
    return {line[0]: line[1:] for line in lines if len(line) > 3 and re.fullmatch(r"[0-9.]+", line[1])}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = invoke("train", *SMALL_COMMAND, "--output", folder)
    assert result.exit_code == 0, result.output
    return folder, result


def test_train_says_how_it_goes_and_writes_a_model_and_a_curve(run):
    folder, result = run
    assert re.search(r"MAHAForCausalLM: [0-9,]+ parameters; 6,4[0-9]+ rows to learn from", result.output)
    assert "step 10 of 20, validation loss" in result.output
    assert re.search(r"Validation loss [0-9.]+ nats per token, perplexity [0-9.]+, [0-9.]+ bits per byte", said(result))
    assert "curve.csv, curve.png" in said(result)
    assert (folder / "curve.png").stat().st_size > 10_000
    assert (folder / "model.safetensors").exists()


def test_training_goes_on_by_one_option_and_repeats_nothing_of_a_finished_run(run):
    folder, _ = run
    before = (folder / "curve.csv").read_text(encoding="utf-8")
    result = invoke("train", "--resume", folder)
    assert result.exit_code == 0, result.output
    assert "Going on from checkpoint-20." in result.output
    assert (folder / "curve.csv").read_text(encoding="utf-8") == before


def test_evaluate_says_how_little_the_exact_reference_changes(run, tmp_path):
    folder, _ = run
    result = invoke(
        "evaluate", folder, "--rows", 1, "--solver", "cvxpylayers", "--solver", "projected_gradient:unroll=3",
        "--solver", "mean", "--output", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "1 rows of 64 tokens; 63 tokens are guessed." in result.output
    found = {row["solver"]: row for row in rows(tmp_path / "evaluation.csv")}
    assert list(found) == ["pivot", "cvxpylayers", "projected_gradient:unroll=3", "mean"]
    losses = {name: float(row["loss"]) for name, row in found.items()}
    assert abs(losses["cvxpylayers"] - losses["pivot"]) < 1e-5  # float32
    assert abs(losses["mean"] - losses["pivot"]) > 1e-5
    assert float(found["pivot"]["bits_per_byte"]) == pytest.approx(losses["pivot"] / 0.693147, rel=1e-5)
    content = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert content["outcomes"][0]["solver"] == "pivot"
    positions = rows(tmp_path / "by_position.csv")
    assert [int(row["position"]) for row in positions] == list(range(1, 64))
    mean = sum(float(row["pivot"]) for row in positions) / 63
    assert mean == pytest.approx(losses["pivot"], rel=1e-6)


def test_solvers_are_compared_on_the_problems_of_a_trained_model(run, tmp_path):
    folder, _ = run
    result = invoke(
        "compare", "--model", folder, "--seeds", 2, "--problems", 20, "--reference", 8, "--unroll", "5",
        "--solvers", "pivot,projected_gradient", "--output", tmp_path / "compare",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "block 1 of run, ConvexAggregation: 3 scales, 2 seeds, float64" in said(result)
    found = rows(tmp_path / "compare" / "results.csv")
    assert {row["kind"] for row in found} == {"block 1"}
    errors = {
        (row["solver"], row["steps"]): float(row["error_weights_max"]) for row in found if row["solver"] == "pivot"
    }
    assert max(errors.values()) < 1e-7  # what cvxpylayers is good for
    content = (tmp_path / "compare" / "results.json").read_text(encoding="utf-8")
    assert json.loads(content)["settings"]["model"] == "run"
    assert str(folder) not in content


def test_convergence_is_watched_on_the_problems_of_a_trained_model_and_on_difficulties_that_are_named(run, tmp_path):
    folder, _ = run
    result = invoke(
        "convergence", "--model", folder, "--condition", "10,100", "--feasible", "simplex", "--seeds", 2,
        "--iterations", 60, "--solvers", "projected_gradient:accelerate=false", "--output", tmp_path / "watched",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "watched" / "convergence.json").read_text(encoding="utf-8"))
    assert list(content["problems"]) == ["condition 10", "condition 100", "block 1"]
    assert content["problems"]["condition 100"]["condition"] == 100
    assert content["settings"]["model"] == "run"


def test_evaluate_takes_a_text_of_the_users_own(run, tmp_path):
    file = tmp_path / "own.txt"
    file.write_text("abc " * 40, encoding="utf-8")
    result = invoke("evaluate", run[0], "--text", file)
    assert result.exit_code == 0, result.output
    assert "2 rows of 64 tokens; 126 tokens are guessed." in result.output


def test_generate_continues_a_prompt_the_same_way_for_the_same_seed(run):
    ask = ("generate", run[0], "--prompt", "It is a truth", "--tokens", 20)
    first, again, other = invoke(*ask), invoke(*ask), invoke(*ask, "--seed", 1)
    assert first.exit_code == 0, first.output
    assert first.output.startswith("It is a truth")
    assert len(first.output.encode()) > len("It is a truth\n")
    assert first.output == again.output != other.output
    greedy = invoke(*ask, "--temperature", 0, "--solver", "projected_gradient")
    assert greedy.output == invoke(*ask, "--temperature", 0).output
    assert invoke(*ask, "--count", 3).output.count("It is a truth") == 3


@pytest.mark.parametrize("model", ["plain", "window-conv", "tree"])
def test_models_to_compare_with_are_trained_evaluated_and_continue_a_prompt(model, tmp_path):
    folder = tmp_path / "run"
    result = invoke("train", *SMALL_COMMAND, "--model", model, "--levels", 2, "--output", folder)
    assert result.exit_code == 0, result.output
    assert invoke("evaluate", folder, "--rows", 2).exit_code == 0
    assert invoke("generate", folder, "--prompt", "It", "--tokens", 5).output.startswith("It")


@pytest.mark.parametrize(
    "options",
    [
        ("--strategy", "nash", "--granularity", "token_head", "--prices", "learned"),
        ("--strategy", "gate"),
        ("--solver", "projected_gradient:unroll=5", "--gradient", "unrolled"),
        ("--prices", "0.1,0.05,0", "--option", "feasible=budget", "--projections", "scale"),
    ],
)
def test_fusions_and_solvers_are_chosen_by_flags(options, tmp_path):
    result = invoke("train", *SMALL_COMMAND, "--steps", 10, *options, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    wanted = {
        "nash": ("granularity", "token_head"),
        "gate": ("aggregation_strategy", "gate"),
        "projected_gradient:unroll=5": ("solver_options", {"unroll": 5}),
        "0.1,0.05,0": ("prices", [0.1, 0.05, 0.0]),
    }[options[1]]
    assert config[wanted[0]] == wanted[1]


def test_classifiers_and_translators(tmp_path):
    pairs = "\n".join(f"{word} film\t{label}" for word, label in [("good", "yes"), ("bad", "no")] * 20)
    (tmp_path / "table.tsv").write_text(pairs, encoding="utf-8")
    data = ("--text", tmp_path / "table.tsv", "--columns", "0,1", "--held-out", 0.25)
    for task, words in (("classify", "10 rows, 2 classes."), ("translate", "10 texts, 2 beams, scored by sacrebleu.")):
        folder = tmp_path / task
        result = invoke("train", "--task", task, *data, *SMALL_COMMAND, "--output", folder)
        assert result.exit_code == 0, result.output
        result = invoke("evaluate", folder, "--rows", 10, "--beams", 2, "--solver", "mean")
        assert result.exit_code == 0, result.output
        assert words in said(result)
    assert invoke("generate", tmp_path / "translate", "--prompt", "good film", "--tokens", 8).exit_code == 0
    assert "writes no text" in said(invoke("generate", tmp_path / "classify"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--text", "nowhere.txt"), "There is no file nowhere.txt"),
        (("train", "--solver", "magic"), "solver must be one of"),
        (("train", "--solver", "pivot:unroll"), "has no '='"),
        (("train", "--option", "colour=1"), "MAHAConfig has no option 'colour'"),
        (("train", "--option", "colour"), "--option must read name=value"),
        (("train", "--prices", "cheap"), "--prices must be 'learned' or numbers"),
        (("train", "--task", "classify"), "takes one table with two columns, text and label"),
        (("train", "--task", "masked", "--model", "tree"), "The tree is a causal language model"),
        (("train", "--granularity", "sequence"), "which tells every token of those after it"),
        (("train", "--queries", "middling"), "query_resolution must be"),
        (("train", "--save-every", 15), "save_every must be a multiple of log_every=10"),
        (("train", "--resume", "nowhere"), "is not the folder of a run"),
        (("evaluate", "nowhere"), "There is no folder nowhere"),
        (("generate", "nowhere"), "There is no folder nowhere"),
    ],
)
def test_options_of_no_use_are_refused_in_words(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert words in said(result)
    assert "bug" not in result.output
    assert not (tmp_path / "runs").exists()


def test_a_prompt_that_leaves_no_room_is_refused(run):
    assert "reads at most 64" in said(invoke("generate", run[0], "--prompt", "x" * 60, "--tokens", 5))
