"""Convergence: fitted rates are those of theory, theory is that of the step itself, and divergence is said."""

import math

import numpy as np
import pytest
import torch

from maha_opt.contenders import Contender
from maha_opt.validation import Difficulty, convergence
from maha_opt.validation.convergence import judge
from maha_opt.validation.rates import theoretical_rate
from solvers import AffineVI, Box, Free

PLAIN = "projected_gradient:accelerate=0"
CASES = [
    (name, method, coupling)
    for name in ("free", "box", "simplex", "budget", "sum_to", "capped_simplex")
    for method in (PLAIN, "best_response", "best_response:damping=0.3", "best_response:sweep=gauss_seidel",
                   "mirror_descent")
    for coupling in (0.0, 0.4)
    if (method != "mirror_descent" or name == "simplex") and ("gauss" not in method or name in ("free", "box"))
]  # fmt: skip


def rotating_game(a):
    """Two players with ``M = [[1, a], [−a, 1]]``: undamped best responses turn by a right angle and grow by ``a``."""
    return AffineVI(torch.tensor([[[1.0, a], [-a, 1.0]]]).double(), torch.tensor([[1.0, -0.5]]).double(), Free())


@pytest.mark.parametrize(("name", "method", "coupling"), CASES)
def test_the_theoretical_rate_is_the_spectral_radius_of_the_step(name, method, coupling):
    problem, exact = Difficulty(feasible=name, coupling=coupling, problems=6, scales=5).planted(seed=2)
    standard, solver = problem.standard(), Contender.parse(method).make()
    state = solver.start(standard)
    rest = (exact.T.log(),) if method == "mirror_descent" else (exact.T, *state[1:])[1:]
    if method == PLAIN:
        rest = (exact.T, state[2])
    rate, kind = theoretical_rate(solver, standard, exact.T)
    assert kind == "rate"
    found = []
    for b in range(6):
        alone = standard.select(torch.tensor([b]))

        def step(w, alone=alone, b=b):
            if method == "mirror_descent":  # its state is log w; 1e-300 stands for 0
                w = w.clamp_min(1e-300)
                return solver.step(alone, (w.unsqueeze(1), w.log().unsqueeze(1)))[0][:, 0]
            own = tuple(tensor[..., b : b + 1] for tensor in rest)
            own = (w.unsqueeze(1), *own[1:]) if method == PLAIN else own
            return solver.step(alone, (w.unsqueeze(1), *own))[0][:, 0]

        w = exact[b]
        jacobian = torch.stack([(step(w + h) - step(w - h)) / 2e-6 for h in 1e-6 * torch.eye(5).double()], 1)
        if method == "mirror_descent":  # off the support a step down from 0 is none
            off = w == 0
            up = torch.stack([step(w + h) - w for h in 1e-6 * torch.eye(5).double()], 1) / 1e-6
            jacobian = torch.where(off.unsqueeze(0), up, jacobian)
            tangent = torch.eye(5).double() - torch.ones(5, 5).double() / 5
            jacobian = tangent @ jacobian @ tangent
        found.append(np.abs(np.linalg.eigvals(jacobian.numpy())).max())
    # central differences err by 1e-10/1e-6; one-sided ones and defective eigenvalues by more
    assert rate.numpy() == pytest.approx(np.array(found), abs=1e-4 if method == "mirror_descent" else 1e-5)


@pytest.fixture(scope="module")
def found():
    problems = {
        "interior": Difficulty(problems=1, feasible="free", condition=20.0),
        "active set": Difficulty(problems=1, condition=20.0),
        "game": Difficulty(problems=1, coupling=0.3, feasible="box"),
        "priced": Difficulty(problems=1, feasible="budget", price=0.2),
    }
    return convergence(problems, seeds=6)


def test_fitted_rates_are_the_theoretical_ones(found):
    exact = found.rates[(found.rates["theory"] == "rate") & (found.rates["status"] != "diverged")]
    assert len(exact) > 80
    gap = (exact["fitted"] - exact["theoretical"]).abs()
    assert gap.median() < 1e-3
    assert gap.max() < 0.03  # complex eigenvalues: a few turns in the window


def test_acceleration_is_about_as_fast_as_the_best_constant_momentum(found):
    guide = found.rates[found.rates["theory"] == "guide"]
    ratio = np.log(guide["fitted"]) / np.log(guide["theoretical"])
    assert len(guide) == 18
    assert 0.6 < ratio.min() <= ratio.max() < 1.6  # restarts come at whole steps: a factor, not an equality
    plain = found.rates[(found.rates["solver"] == PLAIN) & (found.rates["problem"] != "game")]
    assert (guide["fitted"].to_numpy() < plain["fitted"].to_numpy()).mean() > 0.9


def test_every_error_is_that_of_the_iterate(found):
    own = found.errors[(found.errors["problem"] == "interior") & (found.errors["solver"] == PLAIN)]
    curve = own[own["seed"] == 3].set_index("iteration")["error"]
    problem, w = Difficulty(problems=1, feasible="free", condition=20.0).planted(3)
    assert curve[0] == pytest.approx(float(w.norm()))  # it starts from 0
    M = problem.M[0]
    gamma = 1 / min(float(M.norm()), math.sqrt(float(M.abs().sum(0).max() * M.abs().sum(1).max())))
    error = -w[0]
    for _ in range(int(curve.index[5])):
        error = error - gamma * M @ error
    assert curve.iloc[5] == pytest.approx(float(error.norm()))


def test_solvers_that_do_not_take_a_set_are_skipped_with_a_reason(found):
    skipped = found.skipped.set_index(["problem", "solver"])["reason"]
    assert "takes the Simplex only" in skipped["interior", "mirror_descent"]
    assert len(skipped) == 5


def test_undamped_best_response_on_a_rotating_game_grows_as_the_formula_says_and_the_advice_helps():
    a = 2.0
    below, above = (f"best_response:damping={2 / (1 + a * a) + shift}" for shift in (-0.02, 0.02))
    rates = convergence(rotating_game(a), ["best_response:damping=1", below, above, "best_response"], 1).rates
    undamped, lower, upper, default = (rates.iloc[i] for i in range(4))
    assert undamped["fitted"] == pytest.approx(a, rel=1e-9)
    assert undamped["theoretical"] == pytest.approx(a, rel=1e-12)
    assert (undamped["status"], upper["status"]) == ("diverged", "diverged")
    assert undamped["advice"].startswith("damping below 0.4;")  # 2/(1 + a²)
    assert lower["status"] in ("converged", "converging")
    assert default["status"] == "converged"
    eta = 2 / (1 + a * a) - 0.02
    assert lower["fitted"] == pytest.approx(math.hypot(1 - eta, eta * a), rel=1e-6)
    assert not lower["advice"]


def test_the_advised_damping_makes_convex_programs_converge():
    problems = Difficulty(problems=8, condition=300.0)
    bad = convergence(problems, ["best_response:damping=1"], seeds=3).rates
    lost = bad[bad["status"] == "diverged"]
    assert len(lost)
    bounds = lost["advice"].str.extract(r"below ([\d.e-]+);")[0].astype(float)
    again = convergence(problems, [f"best_response:damping={0.95 * bounds.min()}"], seeds=3, iterations=4000).rates
    assert not (again["status"] == "diverged").any()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_advised_damping_makes_games_converge_too(seed):
    """Not proven for games, where it is enough near the solution only; seen on every seed that was tried."""
    game = Difficulty(problems=1, coupling=1.0, feasible="box")
    bad = convergence(game, ["best_response:damping=1"], seeds=[seed]).rates.iloc[0]
    assert bad["status"] == "diverged"
    bound = float(bad["advice"].split()[2].rstrip(";"))
    again = convergence(game, [f"best_response:damping={0.9 * bound}"], seeds=[seed], iterations=1500).rates.iloc[0]
    assert again["status"] in ("converged", "converging")
    assert again["fitted"] < 1


def test_curves_are_judged_by_what_they_do():
    k = np.arange(401)
    still, busy = np.full(400, 1e-6), np.ones(400)
    assert judge(0.9**k + 1e-13, busy, 1e-11)[2] == "converged"
    rate, reached, _ = judge(0.9**k + 1e-13, busy, 1e-11)
    assert rate == pytest.approx(0.9, abs=1e-3)  # 1e-13 bends the last errors by a hundredth
    assert reached == pytest.approx(math.log(1e-11) / math.log(0.9), abs=2)
    assert judge(0.99**k, still, 1e-11)[2] == "converging"
    assert judge(np.ones(401), busy, 1e-11)[2] == "diverged"
    assert judge(np.ones(401), still, 1e-11)[2] == "undecided"
    assert judge(np.where(k < 30, 10.0**k, np.inf), busy, 1e-11)[2] == "diverged"
    assert judge(np.zeros(401), still, 1e-11)[1:] == (0.0, "converged")
    assert math.isnan(judge(np.where(k < 3, 1.0, 0.0), busy, 1e-11)[0])


@pytest.mark.parametrize(
    ("change", "word"),
    [({"solvers": ["pivot"]}, "iterative"), ({"iterations": 3}, "iterations"), ({"seeds": 0}, "seeds"),
     ({"problems": AffineVI(torch.eye(2), torch.ones(1, 2), Box())}, "float64")],
)  # fmt: skip
def test_what_is_of_no_use_is_named(change, word):
    with pytest.raises(ValueError, match=word):
        convergence(**{"problems": rotating_game(1.0), **change})
