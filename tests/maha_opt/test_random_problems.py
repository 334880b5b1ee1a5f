"""Random problems: their planted solutions are solutions, and their difficulty is what its name says."""

import pytest
import torch

from maha_opt import available_sets
from maha_opt.validation import Difficulty
from solvers import feasibility_violation, natural_residual, solve

CASES = [(name, coupling, price) for name in available_sets() for coupling in (0.0, 2.0) for price in (0.0, 0.3)]


@pytest.mark.parametrize(("name", "coupling", "price"), CASES)
def test_the_planted_weights_are_the_solution(name, coupling, price):
    problem, w = Difficulty(scales=5, feasible=name, coupling=coupling, price=price).planted(seed=3)
    assert natural_residual(problem, w).max() < 1e-14  # rounding of numbers of size 1
    assert feasibility_violation(problem, w).max() < 1e-15
    assert (solve(problem, on_failure="raise").weights - w).abs().max() < 1e-12  # condition 10


def test_the_matrix_has_the_condition_and_the_coupling_that_were_asked_for():
    M = Difficulty(scales=6, condition=50.0, coupling=0.7)(seed=1).M
    S, K = 0.5 * (M + M.mT), 0.5 * (M - M.mT)
    assert torch.linalg.cond(S).sub(50).abs().max() < 1e-9
    assert torch.linalg.matrix_norm(S, 2).sub(1).abs().max() < 1e-12
    assert torch.linalg.matrix_norm(K, 2).sub(0.7).abs().max() < 1e-12


def test_the_nearest_tie_is_as_far_as_was_asked_for():
    problem, w = Difficulty(scales=5, feasible="nonnegative", tie_distance=0.01).planted(seed=0)
    force = (problem.M @ w.unsqueeze(-1)).squeeze(-1) + problem.q
    slack = torch.maximum(w, force)  # one of the two is 0
    assert (slack.amin(-1) - 0.01).abs().max() < 1e-14


def test_a_seed_gives_the_same_problems_every_time_and_another_seed_others():
    one, again, other = (Difficulty(coupling=1.0)(seed) for seed in (4, 4, 5))
    assert torch.equal(one.M, again.M)
    assert torch.equal(one.q, again.q)
    assert not torch.equal(one.M, other.M)


@pytest.mark.parametrize(
    ("name", "value"),
    [("scales", 0), ("condition", 0.5), ("coupling", -1.0), ("tie_distance", 0.3), ("active", 0.0), ("feasible", "x"),
     ("price", float("nan")), ("problems", 0)],
)  # fmt: skip
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        Difficulty(**{name: value})


@pytest.mark.parametrize("name", available_sets())
def test_one_scale_is_enough(name):
    problem, w = Difficulty(scales=1, feasible=name).planted(seed=0)
    assert natural_residual(problem, w).max() < 1e-14
