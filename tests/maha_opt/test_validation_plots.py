"""The pictures of the studies: what is drawn is where the numbers say, and every axis has a name."""

import numpy as np
import pytest
import torch

mpl = pytest.importorskip("matplotlib")
mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from maha_opt.plots import (  # noqa: E402
    convergence_curves,
    gradient_error_against_iterations,
    save_convergence,
    simplex_of_three,
    solution_path_curves,
    two_player_game,
)
from maha_opt.validation import Difficulty, compare, convergence, solution_path  # noqa: E402
from solvers import AffineVI, Box, Free, Simplex, solve  # noqa: E402

EYE = torch.eye(3, dtype=torch.float64)
M = torch.tensor([[1.0, 1.3], [-1.3, 1.0]], dtype=torch.float64)
SQUARE = AffineVI(M, torch.tensor([-1.1, 0.3], dtype=torch.float64), Box())


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def found():
    problems = {"a": Difficulty(problems=1), "b": Difficulty(problems=1, coupling=3.0, feasible="box")}
    return convergence(problems, ["best_response:damping=1", "projected_gradient"], seeds=4, iterations=100)


def is_named(ax):
    return all((ax.get_xlabel(), ax.get_ylabel(), ax.get_title()))


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def lines(ax):
    return {line.get_label(): np.column_stack(line.get_data()).astype(float) for line in ax.lines}


def test_convergence_curves_are_the_medians_and_say_the_rates(found):
    ax = convergence_curves(found, "a")
    assert is_named(ax)
    own = found.errors[(found.errors["problem"] == "a") & (found.errors["solver"] == "projected_gradient")]
    median = own.groupby("iteration")["error"].median().clip(1e-14)
    label = next(label for label in lines(ax) if label.startswith("projected gradient"))
    assert lines(ax)[label] == pytest.approx(np.column_stack([median.index, median]))
    assert "≈" in label
    assert any("4 of 4 diverge" in label for label in labels(convergence_curves(found, "b")))
    with pytest.raises(ValueError, match="'a', 'b'"):
        convergence_curves(found)


def test_all_problems_go_into_one_file(found, tmp_path):
    save_convergence(found, tmp_path / "all.png")
    pixels = plt.imread(tmp_path / "all.png")
    assert pixels.shape[1] > 1500
    assert not plt.get_fignums()


@pytest.mark.parametrize("coupling", [0.0, 1.0])
def test_the_simplex_has_the_solution_where_it_is(coupling):
    many = Difficulty(scales=3, problems=1, coupling=coupling)(0)
    problem = AffineVI(many.M[0], many.q[0])
    ax = simplex_of_three(problem, ["projected_gradient"], steps=200)
    assert is_named(ax)
    w = solve(problem).weights.numpy()
    star = lines(ax)["equilibrium" if coupling else "minimum"]
    assert star[0] == pytest.approx([w[1] + w[2] / 2, w[2] * 0.75**0.5])
    assert lines(ax)["projected gradient"][-1] == pytest.approx(star[0], abs=1e-6)  # after 200 steps, condition 10


def test_best_response_curves_cross_at_the_equilibrium_and_answer_the_other_player():
    ax = two_player_game(SQUARE)
    assert is_named(ax)
    drawn = lines(ax)
    first = drawn["what player 1 answers"]
    assert first[:, 0] == pytest.approx(np.clip(1.1 - 1.3 * first[:, 1], 0, 1), abs=1e-12)
    w = solve(SQUARE).weights.numpy()
    assert drawn["equilibrium"][0] == pytest.approx(w)
    assert np.abs(first - w).sum(1).min() < 0.005  # half a step of the curve


def test_a_path_is_drawn_through_its_breakpoints():
    path = solution_path(AffineVI(EYE, torch.tensor([-3.0, 0.5, -1.0]).double(), Free()), 4.0)
    ax = solution_path_curves(path, ["fine", "middle", "coarse"])
    assert is_named(ax)
    assert lines(ax)["fine"] == pytest.approx(np.column_stack([4 * path.t, path.weights[:, 0]]))
    assert "3 breakpoints" in ax.get_title()
    with pytest.raises(ValueError, match="names"):
        solution_path_curves(path, ["one"])


def test_gradient_errors_are_drawn_for_each_solver_and_mode():
    table = compare(Difficulty(problems=4), ["projected_gradient"], steps=[2, 8, 32], seeds=2, covered=4, repeats=1)
    ax = gradient_error_against_iterations(table)
    assert is_named(ax)
    assert labels(ax) == ["projected gradient", "implicit", "unrolled", "one step"]
    unrolled = next(line for line in ax.lines if line.get_linestyle() == "--")
    assert list(unrolled.get_xdata()) == [2, 8, 32]
    own = table[(table["gradient"] == "unrolled") & (table["steps"] == 8)]["error_gradient_q"]
    assert unrolled.get_ydata()[1] == pytest.approx(np.exp(np.log(own).mean()))
    with pytest.raises(ValueError, match="nothing to draw"):
        gradient_error_against_iterations(table[table["steps"].isna()])


def test_problems_that_do_not_fit_a_picture_are_refused():
    with pytest.raises(ValueError, match="3 scales"):
        simplex_of_three(AffineVI(torch.eye(2), torch.ones(2), Simplex()))
    with pytest.raises(ValueError, match="2 players"):
        two_player_game(AffineVI(EYE, torch.ones(3).double(), Box()))
