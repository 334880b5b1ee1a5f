"""The tidy comparison: its columns are what they say, also for a solver that was only registered."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch

import solvers.registry
from maha_opt.text import novel
from maha_opt.validation import Difficulty, compare, confidence
from models.text_problems import Recipe, problems_of
from solvers import AffineVI, Box
from solvers.prox import prox

SMALL = {"seeds": 2, "covered": 8, "repeats": 1}


@pytest.fixture(scope="module")
def table():
    problems = {
        "convex": Difficulty(problems=8, condition=5.0),
        "game": Difficulty(problems=8, condition=5.0, coupling=0.5, feasible="box"),
    }
    return compare(problems, ["pivot", "projected_gradient", "best_response:damping=0.3"], steps=[4, 40], **SMALL)


def test_there_is_a_row_for_each_problem_seed_solver_gradient_and_number_of_steps(table):
    keys = ["problem", "seed", "solver", "gradient", "steps"]
    assert not table.duplicated(keys).any()
    assert len(table) == 2 * 2 * (1 + 1 + 2 * 3 * 2)
    assert set(table["solver"]) == {"cvxpylayers", "pivot", "projected_gradient", "best_response:damping=0.3"}
    assert set(table["status"]) == {"ok"}
    assert set(table["difficulty_coupling"]) == {0.0, 0.5}


def test_exact_solvers_recover_weights_objective_support_and_gradients(table):
    pivot = table[table["solver"] == "pivot"]
    assert pivot["error_weights_max"].max() < 1e-6  # the reference's own accuracy
    assert (pivot["support_recovered"] == 1).all()
    assert pivot["error_gradient_q"].max() < 1e-5
    assert pivot["cosine_gradient_q"].min() > 1 - 1e-9
    assert pivot[pivot["problem"] == "convex"]["objective_gap"].abs().max() < 1e-8
    assert pivot[pivot["problem"] == "game"]["objective_gap"].isna().all()


def test_more_steps_bring_weights_objective_and_gradients_nearer(table):
    unrolled = table[(table["solver"] == "projected_gradient") & (table["gradient"] == "unrolled")]
    few, many = (unrolled[unrolled["steps"] == steps] for steps in (4, 40))
    for column in ("error_weights_mean", "error_gradient_q", "exploitability"):
        assert many[column].max() < few[column].min()
    assert (few["objective_gap"].dropna() > 0).all()


def test_a_problem_of_the_users_own_is_compared_as_it_is():
    mine = AffineVI(torch.eye(2).double(), torch.tensor([[-0.25, -2.0]]).double(), Box())
    own = compare({"mine": mine}, ["pivot"], **SMALL)
    assert (own["error_weights_max"].dropna() < 1e-6).all()
    assert len(own) == 4


def test_problems_of_a_text_are_compared_like_any_other():
    recipe = Recipe(problems=4, scales=3)
    sources = {kind: lambda seed, kind=kind: problems_of(novel(), seed, recipe)[kind] for kind in ("convex", "nash")}
    table = compare(sources, ["pivot"], seeds=2, covered=4, repeats=1)
    assert table["problem"].tolist() == ["convex"] * 4 + ["nash"] * 4
    assert table["error_weights_max"].max() < 1e-6  # the reference's own accuracy


def test_a_solver_that_was_only_registered_takes_part(monkeypatch):
    @dataclass(frozen=True)
    class Guess:
        gradients, to_tolerance = (), False

        def check_set(self, feasible):
            pass

        def __call__(self, problem, tol, max_iter):
            return prox(problem, problem.q), torch.zeros(problem.batch, dtype=torch.long)

    monkeypatch.setitem(solvers.registry._SOLVERS, "guess", Guess)
    assert "guess" in set(compare(Difficulty(problems=4), seeds=1, steps=[2], covered=2, repeats=1)["solver"])


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"solvers": []}, ValueError, "solvers"),
        ({"solvers": ["nobody"]}, ValueError, "nobody"),
        ({"gradients": ["guessed"]}, ValueError, "gradients"),
        ({"seeds": [1, 1]}, ValueError, "seeds"),
        ({"problems": {}}, ValueError, "problems"),
        ({"problems": {"x": 3}}, TypeError, "'x'"),
        ({"problems": {"x": AffineVI(torch.eye(2), torch.ones(2))}}, ValueError, "one batch dimension"),
    ],
)
def test_what_is_of_no_use_is_named_before_anything_is_solved(change, error, word):
    with pytest.raises(error, match=word):
        compare(**{"problems": Difficulty(problems=2), **change})


def test_the_confidence_interval_of_a_mean_is_that_of_the_normal_law():
    sample = np.random.default_rng(0).normal(3.0, 1.0, 400)
    table = pd.DataFrame({"solver": "x", "seed": range(400), "error": sample})
    row = confidence(table, ["solver"], ["error"], statistic="mean").iloc[0]
    half = 1.96 * sample.std() / 20
    assert row["value"] == pytest.approx(sample.mean())
    assert row["low"] == pytest.approx(sample.mean() - half, abs=0.1 * half)  # 2000 resamples: 5 % of the half width
    assert row["high"] == pytest.approx(sample.mean() + half, abs=0.1 * half)


def test_rows_of_one_seed_count_once_and_one_seed_alone_has_no_interval():
    table = pd.DataFrame(
        {"solver": "x", "seed": [0, 0, 1, 1], "error": [1.0, 3.0, 10.0, 30.0], "steps": [1, 1, 1, None]}
    )
    row = confidence(table, ["solver"], ["error"], statistic="mean").iloc[0]
    assert (row["value"], row["seeds"]) == (11.0, 2)
    alone = confidence(table[:2], ["solver"], ["error"]).iloc[0]
    assert alone["value"] == 2.0
    assert np.isnan(alone["low"])
    with pytest.raises(ValueError, match="statistic"):
        confidence(table, ["solver"], ["error"], statistic="mode")
    with pytest.raises(ValueError, match="nothing"):
        confidence(table, ["nothing"], ["error"])
