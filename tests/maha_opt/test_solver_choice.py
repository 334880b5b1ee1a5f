"""A solver is swapped at any time, and checked when it is chosen: flags, objects, options, gradients, sets."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from layers import BOTH, EVERY_KIND, SETS, D, L, data, layer
from torch import nn

from maha_opt import ConvexAggregation, GateAggregation, NashAggregation
from maha_opt.switching import HasFusions, set_solver, solver_config, solver_within
from solvers import Simplex, available_solvers
from solvers.best_response import BestResponse
from solvers.pivot import Pivot
from solvers.projected_gradient import ProjectedGradient

OPTIONS = {
    "pivot": {"block_pivots": 3},
    "cvxpylayers": {"eps": 1e-8},
    "best_response": {"unroll": 3, "damping": 0.5},
    "projected_gradient": {"unroll": 3},
    "mirror_descent": {"unroll": 3},
    "scipy": {},
    "softmax": {"temperature": 2.0},
    "mean": {},
}
FLAGS = pytest.mark.parametrize("flag", list(OPTIONS))


def state(made):
    return made.solver, made.gradient, dict(made.solver_options), made.on_failure


def test_every_flag_is_tried():
    assert set(OPTIONS) <= set(available_solvers())


# Swapping


@FLAGS
@EVERY_KIND
def test_any_solver_is_assigned_to_a_layer_with_options_of_any_other(kind, flag):
    Y, available, inputs = data(n=2)
    for former, options in OPTIONS.items():
        made = layer(kind, solver=former, solver_options=options, feasible="simplex", on_failure="ignore")
        made.solver = flag
        fresh = layer(kind, solver=flag, solver_options=made.solver_options, feasible="simplex", on_failure="ignore")
        assert made.solver == flag
        if former in ("pivot", "best_response") and flag in ("pivot", "softmax", "mean"):  # some: the reference is slow
            found, expected = (each(Y, available, inputs).solution.weights for each in (made, fresh))
            assert torch.equal(found, expected)


@BOTH
def test_an_assigned_solver_keeps_what_it_has_too_and_drops_the_rest(kind):
    options = {"unroll": 7, "damping": 0.5, "tol": 1e-3}
    made = layer(kind, solver="best_response", gradient="unrolled", solver_options=options, feasible="simplex")
    made.solver = "projected_gradient"
    assert state(made) == ("projected_gradient", "unrolled", {"unroll": 7, "tol": 1e-3}, "raise")
    made.solver = "pivot"
    assert state(made) == ("pivot", "implicit", {"tol": 1e-3}, "raise")
    made.solver = "best_response"
    assert state(made) == ("best_response", "implicit", {"tol": 1e-3}, "raise")


@BOTH
def test_set_solver_drops_all_options_of_the_former(kind):
    made = layer(kind, solver="best_response", gradient="unrolled", solver_options={"unroll": 7, "tol": 1e-3})
    made.set_solver("projected_gradient")
    assert state(made) == ("projected_gradient", "unrolled", {}, "raise")  # what was said of the gradient still holds
    made.set_solver("pivot", on_failure="warn", tol=1e-4)
    assert state(made) == ("pivot", "implicit", {"tol": 1e-4}, "warn")


def test_the_state_dict_says_nothing_of_the_solver_and_copies_do():
    made = layer(NashAggregation, solver="best_response", solver_options={"damping": 0.5})
    before = made.state_dict()
    made.set_solver("projected_gradient", "unrolled", unroll=4)
    assert list(made.state_dict()) == list(before)
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert state(copied) == state(made)
    copied.set_solver("pivot")
    assert made.solver == "projected_gradient"


# What is refused, and when

REFUSED = [
    (ValueError, "solver must be", {"solver": "pivto"}),
    (ValueError, "gradient must be", {"solver": "pivot", "gradient": "implict"}),
    (ValueError, "takes gradient='implicit'", {"solver": "pivot", "gradient": "unrolled"}),
    (ValueError, "takes gradient='implicit'", {"solver": "softmax", "gradient": "one_step"}),
    (ValueError, "on_failure must be", {"solver": "pivot", "on_failure": "stop"}),
    (TypeError, "does not take unrol;", {"solver": "projected_gradient", "unrol": 3}),
    (TypeError, "does not take unroll;", {"solver": "pivot", "unroll": 3}),
    (ValueError, "unroll", {"solver": "projected_gradient", "unroll": 0}),
    (ValueError, "temperature", {"solver": "softmax", "temperature": -1.0}),
    (ValueError, "tol must be positive", {"solver": "pivot", "tol": 0.0}),
    (ValueError, "tol must be positive", {"solver": "pivot", "tol": "small"}),
    (ValueError, "max_iter must be", {"solver": "pivot", "max_iter": 2.5}),
    (ValueError, "max_iter must be", {"solver": "pivot", "max_iter": True}),
    (ValueError, "takes sets without a sum", {"solver": "best_response", "sweep": "gauss_seidel"}),
    (TypeError, "solver must be a flag", {"solver": 3}),
    (TypeError, "solver must be a flag", {"solver": Pivot}),
    (TypeError, "options already", {"solver": Pivot(), "block_pivots": 3}),
    (TypeError, "requires a gradient", {"solver": "softmax", "temperature": torch.ones((), requires_grad=True)}),
]


@BOTH
@pytest.mark.parametrize(("error", "words", "arguments"), REFUSED)
def test_what_is_of_no_use_is_refused_when_it_is_said_and_changes_nothing(kind, error, words, arguments):
    made = layer(kind, feasible="simplex", solver="projected_gradient", gradient="one_step")
    before = state(made)
    with pytest.raises(error, match=words):
        made.set_solver(**arguments)
    assert state(made) == before
    named = {name: arguments[name] for name in ("solver", "gradient", "on_failure") if name in arguments}
    options = {name: value for name, value in arguments.items() if name not in named}
    with pytest.raises(error, match=words):
        layer(kind, feasible="simplex", solver_options=options, **named)


@pytest.mark.parametrize("solver", ["softmax", "mirror_descent"])
@pytest.mark.parametrize("feasible", ["box", "budget", "capped_simplex", "free", "nonnegative", "sum_to"])
def test_a_set_that_the_solver_does_not_take_is_refused_when_it_is_chosen(solver, feasible):
    made = layer(feasible=feasible, feasible_options=SETS[feasible])
    with pytest.raises(ValueError, match=f"{solver} takes the Simplex only"):
        made.set_solver(solver)
    with pytest.raises(ValueError, match=f"{solver} takes the Simplex only"):
        made.solver = solver
    with pytest.raises(ValueError, match=f"{solver} takes the Simplex only"):
        layer(solver=solver, feasible=feasible, feasible_options=SETS[feasible])
    assert made.solver == "pivot"


def test_a_set_that_a_function_makes_is_looked_at_when_it_has_made_one():
    made = layer(feasible=lambda mask: Simplex(mask=mask))
    made.set_solver("softmax")
    Y, available, inputs = data()
    assert made(Y, available, inputs).solution.solver == "softmax"


def test_attributes_are_checked_when_they_are_assigned():
    made = layer()
    for name, value, error in (
        ("gradient", "unrolled", ValueError),
        ("solver_options", {"unroll": 3}, TypeError),
        ("solver_options", {"on_failure": "ignore"}, TypeError),
        ("on_failure", "stop", ValueError),
        ("solver", None, TypeError),
    ):
        before = state(made)
        with pytest.raises(error):
            setattr(made, name, value)
        assert state(made) == before
    with pytest.raises(TypeError):
        made.solver_options["unroll"] = 3  # to be assigned as a whole, or nobody would check it
    made.solver_options = None
    assert made.solver_options == {}


# Numbers and objects


@pytest.mark.parametrize("three", [3, np.int64(3), torch.tensor(3)], ids=["int", "numpy", "tensor"])
def test_numbers_of_numpy_and_tensors_are_numbers(three):
    made = layer(solver="projected_gradient", gradient="unrolled", solver_options={"unroll": three})
    assert type(made.solver_options["unroll"]) is int
    made.set_solver("projected_gradient", unroll=three, max_iter=three, tol=torch.tensor(0.5))
    assert made.solver_options == {"unroll": 3, "max_iter": 3, "tol": 0.5}
    assert (made(*data()).solution.iterations == 3).all()


@BOTH
def test_a_solver_object_is_its_flag_with_its_options(kind):
    Y, available, inputs = data()
    named = layer(kind, solver="projected_gradient", gradient="unrolled", solver_options={"unroll": 4})
    for made in (
        layer(kind, solver=ProjectedGradient(unroll=4), gradient="unrolled"),
        layer(kind, gradient="implicit"),
    ):
        made.set_solver(ProjectedGradient(unroll=4), "unrolled", tol=1e-3)
        assert state(made) == ("projected_gradient", "unrolled", {"unroll": 4, "tol": 1e-3}, "raise")
        assert torch.equal(made(Y, available, inputs).output, named(Y, available, inputs).output)
    made.solver = BestResponse(damping=np.float64(0.25))
    assert state(made) == ("best_response", "unrolled", {"damping": 0.25, "tol": 1e-3}, "raise")


@dataclasses.dataclass(frozen=True)
class MyPivot(Pivot):
    """A solver of the user's own that nobody registered."""


@BOTH
def test_a_solver_object_without_a_flag_solves_but_cannot_be_written_down(kind):
    Y, available, inputs = data()
    made = layer(kind)
    exact = made(Y, available, inputs)
    made.set_solver(MyPivot(block_pivots=2))
    assert made.solver == MyPivot(block_pivots=2)
    torch.testing.assert_close(made(Y, available, inputs).solution.weights, exact.solution.weights)
    with pytest.raises(ValueError, match="no flag"):
        solver_config(made)


# Whole models


class Two(HasFusions, nn.Module):
    """Two fusions, one of which takes fewer solvers."""

    def __init__(self):
        super().__init__()
        self.first = ConvexAggregation(L, D)
        self.second = NashAggregation(L, D, solver="best_response", solver_options={"damping": 0.5})


def test_all_fusions_of_a_model_get_a_solver_or_none_does():
    model = Two()
    before = state(model.first), state(model.second)
    with pytest.raises(ValueError, match="softmax takes the Simplex only"):  # the second has a box
        model.set_solver("softmax")
    assert (state(model.first), state(model.second)) == before
    with pytest.raises(ValueError, match="one solver for all fusions"):
        solver_config(model)
    model.set_solver("projected_gradient", "unrolled", unroll=np.int32(5), on_failure="ignore")
    assert solver_config(model) == {
        "solver": "projected_gradient",
        "gradient": "unrolled",
        "solver_options": {"unroll": 5},
        "on_failure": "ignore",
    }
    with pytest.raises(ValueError, match="Linear has no fusion"):
        set_solver(nn.Linear(2, 2), "pivot")
    assert solver_config(nn.Linear(2, 2)) == {}


def test_a_solver_for_a_while_is_gone_afterwards_whatever_happens():
    model = Two()
    before = state(model.first), state(model.second)
    with solver_within(model, "projected_gradient", "unrolled", unroll=2):
        assert model.second.solver_options == {"unroll": 2}
    with solver_within(model, "pivot", "implicit", on_failure="ignore"):
        assert {model.first.on_failure, model.second.on_failure} == {"ignore"}
    assert (state(model.first), state(model.second)) == before
    with pytest.raises(ValueError, match="Simplex only"), solver_within(model, "softmax", "implicit"):
        raise AssertionError("unreachable")
    assert (state(model.first), state(model.second)) == before


def test_a_layer_is_made_on_the_meta_device_with_its_solver():
    with torch.device("meta"):
        for kind in (ConvexAggregation, NashAggregation, GateAggregation):
            made = kind(L, D, solver="projected_gradient", feasible="budget", feasible_options=SETS["budget"])
            made.set_solver("best_response", "one_step")
            assert made.solver == "best_response"
