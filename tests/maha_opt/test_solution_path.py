"""The path of exact weights along λ: right everywhere, and linear between its breakpoints."""

import numpy as np
import pytest
import torch

from maha_opt import available_sets
from maha_opt.validation import Difficulty, solution_path
from solvers import AffineVI, FeasibleSet, Free, solve

EYE = torch.eye(3, dtype=torch.float64)


def one(name, seed, coupling=0.0, scales=5):
    """A single problem without a batch dimension."""
    problem = Difficulty(scales=scales, feasible=name, coupling=coupling, problems=1)(seed)
    C = problem.feasible
    bounds = {bound: getattr(C, bound) for bound in ("lower", "upper", "total")}
    alone = {bound: value[0] if isinstance(value, torch.Tensor) else value for bound, value in bounds.items()}
    return AffineVI(problem.M[0], problem.q[0], FeasibleSet(**alone, equality=C.equality))


@pytest.mark.parametrize("coupling", [0.0, 1.0])
@pytest.mark.parametrize("name", available_sets())
def test_the_path_is_the_solution_on_a_fine_grid_and_bends_nowhere_else(name, coupling):
    problem = one(name, seed=1, coupling=coupling)
    l1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0], dtype=torch.float64)  # equal ones do nothing on the simplex
    path = solution_path(problem, l1)
    t = np.linspace(0, 1, 501)
    many = AffineVI(problem.M, problem.q, problem.feasible, torch.from_numpy(t).unsqueeze(-1) * l1)
    exact = solve(many, on_failure="raise").weights.numpy()
    assert np.abs(path.at(t) - exact).max() < 1e-9  # a breakpoint is known to 1e-13, slopes are below 100
    assert len(path.active) == len(path.t) - 1
    support = np.abs(exact) > 1e-12
    if name in ("simplex", "free", "nonnegative", "sum_to", "budget"):
        at = np.searchsorted(path.t, t).clip(1) - 1
        far = np.abs(t[:, None] - path.t).min(1) > 1e-6
        assert (path.active[at] == support)[far].all()  # free are exactly those that are not switched off


def test_breakpoints_of_soft_thresholding_are_the_entries_of_q():
    path = solution_path(AffineVI(EYE, torch.tensor([-3.0, 0.5, -1.0]).double(), Free()), 4.0)
    assert path.breakpoints == pytest.approx([0.125, 0.25, 0.75], abs=1e-12)
    assert path.at(0.5) == pytest.approx([1.0, 0.0, 0.0], abs=1e-12)
    assert path.active.tolist() == [[True] * 3, [True, False, True], [True, False, False], [False] * 3]


def test_each_breakpoint_is_a_bend():
    path = solution_path(one("free", seed=3), 2.0)
    slopes = np.diff(path.weights, axis=0) / np.diff(path.t)[:, None]
    assert len(path.breakpoints) >= 5  # each weight is switched off in the end
    assert (np.abs(np.diff(slopes, axis=0)).max(1) > 1e-6).all()


def test_equal_prices_change_nothing_on_the_simplex():
    path = solution_path(one("simplex", seed=0), 3.0)
    assert len(path.breakpoints) == 0
    assert path.weights[0] == pytest.approx(path.weights[1], abs=1e-14)


@pytest.mark.parametrize(
    ("l1", "word"), [(-1.0, "at least 0"), (0.0, "positive"), (torch.ones(2), "shape"), (float("nan"), "finite")]
)
def test_prices_that_are_none_are_named(l1, word):
    with pytest.raises(ValueError, match=word):
        solution_path(AffineVI(EYE, torch.ones(3).double(), Free()), l1)


def test_a_batch_is_refused_and_t_stays_on_the_path():
    with pytest.raises(ValueError, match="single"):
        solution_path(Difficulty(problems=2)(0), 1.0)
    with pytest.raises(ValueError, match="t must be"):
        solution_path(AffineVI(EYE, torch.ones(3).double(), Free()), 1.0).at(1.5)
