"""The aggregation modules: solvers and gradients behind flags, parameters, and what is refused."""

import io

import pytest
import torch
from layers import BATCH, BOTH, SETS, D, L, N, data, layer
from torch.testing import assert_close

from maha_opt import NashAggregation, make_set
from solvers import Simplex

# Solver and gradient behind flags


@BOTH
def test_the_solver_is_swapped_on_a_loaded_checkpoint_without_touching_its_state(kind):
    Y, _, inputs = data()
    options = {"feasible": "budget", "feasible_options": SETS["budget"], "prices": "learned"}
    saved = io.BytesIO()
    trained = layer(kind, **options)
    torch.save(trained.state_dict(), saved)
    saved.seek(0)
    loaded = layer(kind, seed=5, solver="projected_gradient", gradient="unrolled", **options)
    assert list(loaded.state_dict()) == list(trained.state_dict())
    loaded.load_state_dict(torch.load(saved))
    loaded.solver, loaded.gradient = "pivot", "implicit"
    exact = loaded(Y, None, inputs).output
    assert torch.equal(exact, trained(Y, None, inputs).output)
    loaded.on_failure = "ignore"
    for solver in ("cvxpylayers", "best_response", "projected_gradient"):
        loaded.solver = solver
        output, solution = loaded(Y, None, inputs)
        assert solution.solver == solver
        assert_close(output, exact, atol=1e-3, rtol=1e-3)
    for name, value in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_solver_options_and_tolerance_reach_the_solver():
    Y, available, inputs = data()
    made = layer(solver="best_response", gradient="unrolled", solver_options={"unroll": 3})
    assert (made(Y, available, inputs).solution.iterations == 3).all()
    made.solver_options = {"tol": 1e-2}
    loose = made(Y, available, inputs).solution.iterations
    made.solver_options = {"tol": 1e-5}
    assert (made(Y, available, inputs).solution.iterations >= loose).all()


def test_a_typo_is_refused_at_once_with_the_flags_that_there_are():
    made = layer()
    for name, value, offered in (
        ("solver", "pivto", "'pivot'"),
        ("gradient", "implict", "'one_step'"),
        ("on_failure", "stop", "'raise'"),
    ):
        with pytest.raises(ValueError, match=offered):
            setattr(made, name, value)
        with pytest.raises(ValueError, match=offered):
            layer(**{name: value})
    assert (made.solver, made.gradient, made.on_failure) == ("pivot", "implicit", "raise")


@BOTH
@pytest.mark.parametrize("gradient", ["unrolled", "one_step"])
def test_approximate_gradients_are_near_the_implicit_one_or_at_least_point_its_way(kind, gradient):
    Y, _, inputs = data()
    made = layer(kind, feasible="simplex", ridge=0.3)
    gradients = {}
    for flag in ("implicit", gradient):
        made.solver, made.gradient = "best_response", flag
        own = Y.clone().requires_grad_()
        made(own, None, inputs).output.square().sum().backward()
        gradients[flag] = own.grad
    if gradient == "unrolled":
        assert_close(gradients["unrolled"], gradients["implicit"], atol=1e-2, rtol=1e-2)
    assert torch.cosine_similarity(gradients[gradient].flatten(), gradients["implicit"].flatten(), dim=0) > 0.9


@BOTH
def test_double_precision_gradients_are_right_for_data_and_parameters(kind):
    made = layer(kind, granularity="token_head", feasible="budget", feasible_options=SETS["budget"], prices="learned")
    made = made.double()
    Y, available, inputs = data(n=2, dtype=torch.float64)
    names, parameters = zip(*made.named_parameters(), strict=True)

    def output(Y, inputs, *values):
        replaced = dict(zip(names, values, strict=True))
        return torch.func.functional_call(made, replaced, (Y, available[:, :2], inputs)).output

    parameters = [parameter.detach().requires_grad_() for parameter in parameters]
    assert torch.autograd.gradcheck(output, (Y.requires_grad_(), inputs.requires_grad_(), *parameters), fast_mode=True)


# Parameters


@BOTH
@pytest.mark.parametrize("solver", ["pivot", "cvxpylayers", "projected_gradient", "softmax", "mean", "scipy"])
def test_every_parameter_gets_a_gradient_whatever_the_solver(kind, solver):
    Y, _, inputs = data(n=2)
    feasible = "simplex" if solver == "softmax" else "budget"
    scarce = {} if solver == "softmax" else {"total": 0.2, "learn_total": True}
    made = layer(kind, solver=solver, feasible=feasible, feasible_options=scarce, prices="learned", on_failure="ignore")
    made(Y, None, inputs).output.square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if solver in ("pivot", "cvxpylayers", "projected_gradient"):
            assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("size", [1, 2])
@BOTH
def test_one_scale_and_one_channel_are_enough(kind, size):
    made = kind(size, 1, prices="learned", on_failure="raise")
    output, solution = made(torch.ones(1, 1, size, 1), inputs=torch.ones(1, 1, 1))
    output.sum().backward()
    assert solution.weights.shape == (1, 1, size)
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_the_coupling_is_antisymmetric_and_learns_from_its_start_at_zero():
    torch.manual_seed(0)
    made = NashAggregation(L, D, on_failure="raise")
    Y, _, _ = data()
    made(Y).output.square().sum().backward()
    assert (made.coupling == 0).all()
    assert made.raw_coupling.grad.abs().max() > 1e-3
    torch.optim.SGD(made.parameters(), lr=0.1).step()
    assert_close(made.coupling, -made.coupling.T)
    assert made.coupling.abs().max() > 0


def test_uniform_fixed_prices_on_the_simplex_change_nothing():
    Y, available, inputs = data()
    free = layer()(Y, available, inputs).solution.weights
    assert_close(layer(prices=[0.2] * L)(Y, available, inputs).solution.weights, free, atol=1e-5, rtol=0)
    assert (layer(prices=[0.2, 0.0, 0.0])(Y, available, inputs).solution.weights - free).abs().max() > 0.01


def test_training_lowers_a_loss_with_every_parameter_moving():
    Y, _, inputs = data(n=20)
    wanted = 0.2 * Y[:, :, 1]
    made = layer(feasible="budget", feasible_options=SETS["budget"], prices="learned")
    start = {name: parameter.detach().clone() for name, parameter in made.named_parameters()}
    optimizer = torch.optim.Adam(made.parameters(), lr=0.03)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (made(Y, None, inputs).output - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all((parameter != start[name]).any() for name, parameter in made.named_parameters())


# What is refused


@pytest.mark.parametrize(
    ("named", "options"),
    [
        ("num_heads", {"num_heads": 3}),
        ("granularity", {"granularity": "tokens"}),
        ("ridge", {"ridge": 0.0}),
        ("feasible", {"feasible": "simplx"}),
        ("cap", {"feasible": "capped_simplex"}),
        ("total", {"feasible": "capped_simplex", "feasible_options": {"cap": 0.2}}),
        ("lower", {"feasible": "box", "feasible_options": {"lower": 2.0}}),
        ("total", {"feasible": "simplex", "feasible_options": {"learn_total": True}}),
        ("total", {"feasible": "budget", "feasible_options": {"total": -1.0, "learn_total": True}}),
        ("feasible_options", {"feasible": Simplex(), "feasible_options": {"cap": 0.5}}),
        ("feasible", {"feasible": 3}),
        ("prices", {"prices": "learnt"}),
        ("prices", {"prices": torch.ones(2)}),
        ("prices", {"prices": [0.1, -0.1, 0.0]}),
        ("target", {"target": "mean"}),
    ],
)
def test_wrong_options_are_refused_by_name(named, options):
    with pytest.raises((TypeError, ValueError), match=named):
        layer(**options)


def test_wrong_input_is_refused_by_name():
    Y, available, inputs = data()
    made = layer()
    for error, named, arguments in (
        (ValueError, "Y", (Y[..., :2, :], None, inputs)),
        (ValueError, "Y", (Y[0], None, inputs)),
        (TypeError, "Y", (Y.long(), None, inputs)),
        (ValueError, "inputs", (Y,)),
        (ValueError, "inputs", (Y, None, inputs[:, :2])),
        (ValueError, "available", (Y, available[:1], inputs)),
        (TypeError, "available", (Y, available.float(), inputs)),
        (ValueError, "mask", (Y, None, inputs, torch.ones(BATCH, N + 1, dtype=torch.bool))),
    ):
        with pytest.raises(error, match=named):
            made(*arguments)
    with pytest.raises(ValueError, match="mask leaves no coordinate"):
        made(Y, torch.zeros_like(available), inputs)


def test_a_learned_total_starts_where_it_was_told_to():
    for total in (1e-4, 0.5, 30.0):
        assert_close(make_set("budget", {"total": total, "learn_total": True}).total.item(), total, rtol=1e-3, atol=0)
    assert make_set("sum_to", {"total": -2.0, "learn_total": True}).total.item() == -2.0
