"""The page on quality says what stands in the results file."""

import json
from dataclasses import asdict

import pytest

pytest.importorskip("transformers", reason="Hugging Face transformers is not installed: pip install 'maha-opt[train]'")

from benchmarks.quality.experiments import EXPERIMENTS, Cell
from benchmarks.quality.speed import read_speeds
from benchmarks.quality.table import against, markdown

MEASURED = {
    "test_by_position": [3.0, 2.9, 2.8, 2.7, 2.6],
    "parameters": 1234,
    "flops_per_token": 2e6,
    "test_exact": 2.25,
    "test_accuracy": 0.75,
    "tfidf_accuracy": 0.8,
    "bleu": 1.5,
    "chrf": 20.0,
}
RECALLED = {"test_accuracy": 0.75, "test_by_distance": [0.9, 0.4, None, None]}
RECALLED = dict.fromkeys(("64", "256", "1024"), RECALLED)
RECALLED["4096"] = {"test_accuracy": 0.5, "test_by_distance": [0.9, 0.4, 0.2, None]}


def record(cell, test):
    about = {"key": cell.key(), **asdict(cell), "rate": 1e-3, "date": "2026-01-02T00:00", "versions": {"torch": "2"}}
    lengths = RECALLED if cell.experiment in ("recall", "copy") else {}
    return about | {"revision": "0123456789"} | MEASURED | lengths | {"test": test}


def rows(page):
    return {line.split(" | ")[0].removeprefix("| "): line for line in page.splitlines() if line.startswith("| ")}


def test_every_experiment_has_its_table(tmp_path):
    seconds = {"books: plain": [[2.0, 1.0], [4.0, 2.0]], "books: convex": [[1.0, 2.0], [2.0, 8.0]]}
    (tmp_path / "speed.json").write_text(json.dumps({"seconds": seconds}))
    records = [record(cell, 2.5) for make in EXPERIMENTS.values() for cell in make() if cell.seed == 0]
    page = markdown(records, read_speeds(tmp_path / "speed.json"))
    assert page.count("### ") == len(EXPERIMENTS) - 1  # the tuning has none
    for line in (
        "2,400 steps of 1 row; each at its own rate.",
        "| MAHA, convex | 2.500 | 2.900 | 2.600 | +0.000 | 1 | 1,234 | 0.001 | 2.00 | 683 (2.00) | 205 (0.38) |",
        "| MAHA, nash | 2.500 | 2.900 | 2.600 | +0.000 | 1 | 1,234 | 0.001 | 2.00 |  |  |",
        "| mirror_descent, 10 steps | 2.500 | 2.250 | +0.000 | 1 |  |  |",
        "| without gating | 2.500 | +0.000 | 1 |",
        "| sinusoidal | 2.500 | +0.000 | 1 |",
        "| MAHA, convex | 0.750 | 1 | 1,234 |",
        "| logistic regression on TF-IDF | 0.800 |  |  |",
        "| plain transformer, full attention | 1.5 | 20.0 | 1 | 1,234 |",
        "1,000 steps of 64 rows at first, fewer and of fewer rows at each longer length; rate 0.001.",
        "| 256 | MAHA, convex | 0.750 | 0.900 | 0.400 |  |  | 1 | 1,234 |",
        "| 4,096 | sliding window of 64, same convolutions | 0.500 | 0.900 | 0.400 | 0.200 |  | 1 | 1,234 |",
    ):
        assert line in page.splitlines()


def test_differences_are_between_models_of_the_same_seeds():
    cells = [cell for cell in EXPERIMENTS["books"]() if cell.name in ("convex", "mean")]
    values = {("convex", 0): 2.0, ("convex", 1): 3.0, ("mean", 0): 1.9, ("mean", 1): 2.7, ("mean", 2): 9.0}
    records = [record(cell, values[cell.name, cell.seed]) for cell in cells if (cell.name, cell.seed) in values]
    found = rows(markdown(records, {}))
    assert "2.500 ± 0.707 |" in found["MAHA, convex"]
    assert "+0.200 ± 0.141 |" in found["MAHA, convex"]  # of 0.1 and 0.3
    assert against(records, []) == ""


def test_cells_of_other_settings_are_left_out():
    current = next(cell for cell in EXPERIMENTS["books"]() if cell.name == "mean")
    old = Cell("books", "mean", "maha", steps=7)
    page = markdown([record(current, 2.5), record(old, 9.5)], {})
    assert "2.500" in page
    assert "9.5" not in page
