"""Options and types: solver objects, ordinary numbers, sets of known classes, mixed types under autocast."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from problems import random_case

import solvers
from solvers import AffineVI, Box, FeasibleSet, NonNegative, Simplex, register_set, solve
from solvers.best_response import BestResponse
from solvers.mirror_descent import MirrorDescent
from solvers.pivot import Pivot
from solvers.projected_gradient import ProjectedGradient
from solvers.registry import make_solver, plain_number, recipe

D = torch.float64


@pytest.fixture
def problem():
    return random_case("Simplex", 4, 5, seed=0).problem()


@pytest.fixture
def own_registries(monkeypatch):
    monkeypatch.setattr(solvers.registry, "_SOLVERS", dict(solvers.registry._SOLVERS))
    monkeypatch.setattr(solvers.sets, "_KNOWN", set(solvers.sets._KNOWN))


OBJECTS = {
    "pivot": (Pivot(), {}),
    "pivot with an option": (Pivot(block_pivots=2), {"block_pivots": 2}),
    "best_response": (BestResponse(damping=0.25), {"damping": 0.25}),
    "best_response unrolled": (BestResponse(unroll=3), {"unroll": 3}),
    "projected_gradient": (ProjectedGradient(accelerate=False), {"accelerate": False}),
    "mirror_descent": (MirrorDescent(unroll=2), {"unroll": 2}),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_a_solver_object_is_its_flag_with_its_options(problem, name):
    solver, options = OBJECTS[name]
    flag = name.partition(" ")[0]
    ours, expected = solve(problem, solver, on_failure="ignore"), solve(problem, flag, on_failure="ignore", **options)
    for field in ("weights", "residual", "iterations", "status"):
        assert torch.equal(getattr(ours, field), getattr(expected, field)), field
    assert ours.solver == type(solver).__name__


@pytest.mark.parametrize("gradient", ["unrolled", "one_step", "implicit"])
def test_a_solver_object_takes_every_gradient_of_its_flag(problem, gradient):
    found = []
    for solver, options in ((BestResponse(unroll=5), {}), ("best_response", {"unroll": 5})):
        q = problem.q.clone().requires_grad_()
        w = solve(AffineVI(problem.M, q, symmetric=True), solver, gradient, on_failure="ignore", **options).weights
        found += torch.autograd.grad(w[:, 0].sum(), q)
    assert torch.equal(*found)


def test_what_is_neither_a_flag_nor_a_solver_is_refused(problem):
    for wrong in (Pivot, 3, None, lambda p: p, ["pivot"]):
        with pytest.raises(TypeError, match=r"solver must be a flag such as 'pivot' or a solver such as Pivot\(\)"):
            solve(problem, wrong)
    with pytest.raises(TypeError, match="BestResponse has its options already, but damping were given too"):
        solve(problem, BestResponse(), damping=0.5)
    with pytest.raises(ValueError, match="'Pivot' takes gradient='implicit', but got 'unrolled'"):
        solve(problem, Pivot(), "unrolled")


NUMBERS = {
    "numpy": (np.float64, np.int64),
    "single numpy": (np.float32, np.int32),
    "tensor": (lambda x: torch.tensor(x, dtype=D), torch.tensor),
    "tensor with a gradient": (lambda x: torch.tensor(x, dtype=D, requires_grad=True), torch.tensor),
}


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("as_object", [False, True], ids=["flag", "object"])
def test_numbers_of_numpy_and_tensors_without_dimensions_are_numbers(problem, kind, as_object):
    number, whole = NUMBERS[kind]
    for flag, cls, options in (
        ("best_response", BestResponse, {"damping": number(0.5)}),
        ("best_response", BestResponse, {"unroll": whole(5)}),
        ("projected_gradient", ProjectedGradient, {"unroll": whole(5)}),
        ("mirror_descent", MirrorDescent, {"unroll": whole(5)}),
        ("pivot", Pivot, {"block_pivots": whole(3)}),
        ("softmax", None, {"temperature": number(0.5)}),
    ):
        plain = {k: plain_number(v) for k, v in options.items()}
        assert all(type(v) in (int, float) for v in plain.values())
        expected = solve(problem, flag, on_failure="ignore", **plain)
        if not as_object:
            found = solve(problem, flag, on_failure="ignore", **options)
        elif cls is not None and not isinstance(next(iter(options.values())), torch.Tensor) and "unroll" not in options:
            found = solve(problem, cls(**options), on_failure="ignore")
        else:
            continue
        assert torch.equal(found.weights, expected.weights), options
    found = solve(problem, "projected_gradient", tol=number(0.25), max_iter=whole(9), on_failure="ignore")
    expected = solve(problem, "projected_gradient", tol=0.25, max_iter=9, on_failure="ignore")
    assert torch.equal(found.weights, expected.weights)
    assert torch.equal(found.tolerance, expected.tolerance)


def test_options_that_are_no_numbers_are_refused_by_name(problem):
    for options, message in (
        ({"tol": "1e-3"}, "tol must be positive, but got '1e-3'"),
        ({"tol": torch.tensor([1e-3, 1e-3])}, "tol must be positive"),
        ({"tol": -1.0}, "tol must be positive, but got -1.0"),
        ({"max_iter": 2.0}, "max_iter must be a whole number, at least 1, but got 2.0"),
        ({"max_iter": np.float64(2.0)}, "max_iter must be a whole number"),
        ({"solver": "best_response", "unroll": np.float64(2.5)}, "unroll must be a whole number"),
        ({"solver": "best_response", "damping": np.float64(1.5)}, r"damping must be in \(0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            solve(problem, **options)


def test_a_call_with_the_tensors_themselves_says_what_was_meant(problem):
    with pytest.raises(TypeError, match=r"problem must be an AffineVI, as in solve\(AffineVI\(M, q, Simplex\(\)\)\)"):
        solve(problem.M, problem.q, Simplex())
    with pytest.raises(TypeError, match=r"AffineVI\(M, q, .*but got a tensor of shape \(5, 4, 4\)"):
        solve(problem.M)
    with pytest.raises(TypeError, match="but got dict"):
        solve({"M": problem.M})


class Half(FeasibleSet):
    """w ≥ 0 and a constraint that no solver knows of."""


class StillASimplex(Simplex):
    """A subclass of a known set may add a constraint too."""


def test_a_set_of_an_unknown_class_is_refused(own_registries):
    for feasible in (Half(lower=0.0), StillASimplex()):
        name = type(feasible).__name__
        with pytest.raises(TypeError, match=rf"feasible is of the class {name}.*register_set.*from a function"):
            AffineVI(torch.eye(2), -torch.ones(2), feasible)
    register_set(Half)
    w = solve(AffineVI(torch.eye(2), -torch.ones(2), Half(lower=0.0))).weights
    assert torch.equal(w, solve(AffineVI(torch.eye(2), -torch.ones(2), NonNegative())).weights)
    with pytest.raises(TypeError, match="StillASimplex"):  # its class, not its parents', is asked
        AffineVI(torch.eye(2), -torch.ones(2), StillASimplex())


def test_a_registered_class_and_a_function_make_sets_that_every_solver_takes(own_registries):
    @register_set
    class AtMost(FeasibleSet):
        def __init__(self, cap):
            super().__init__(lower=0.0, upper=cap)

    def at_most(cap):
        return FeasibleSet(lower=0.0, upper=cap)

    for solver in ("pivot", "best_response", "projected_gradient", "scipy"):
        expected = solve(AffineVI(torch.eye(2), -torch.ones(2), Box(0.0, 0.5)), solver).weights
        for feasible in (AtMost(0.5), at_most(0.5)):
            assert torch.equal(solve(AffineVI(torch.eye(2), -torch.ones(2), feasible), solver).weights, expected)


@pytest.mark.parametrize("wrong", [int, Simplex(), "Simplex", dict], ids=str)
def test_register_set_takes_classes_of_sets_only(own_registries, wrong):
    with pytest.raises(TypeError, match="register_set takes a subclass of FeasibleSet"):
        register_set(wrong)


@dataclass(frozen=True)
class Constant:
    """The same weight for all."""

    gradients: ClassVar[tuple[str, ...]] = ("implicit",)
    value: float = 1.0
    to_tolerance: bool = False

    def check_set(self, feasible):
        """Takes every set."""

    def __call__(self, problem, tol, max_iter):
        return torch.full_like(problem.q, self.value), torch.zeros_like(problem.q[0], dtype=torch.long)


def test_a_flag_that_is_registered_anew_runs_the_new_solver(own_registries, problem):
    for value in (0.25, 0.75):
        solvers.registry._SOLVERS["constant"] = lambda value=value: Constant(value)
        w = solve(problem, "constant").weights
        assert torch.equal(w, torch.full_like(w, value))


def test_every_way_to_name_a_solver_runs_the_options_it_was_given(own_registries, problem):
    solvers.register_solver("constant", Constant)
    for value in (0.25, 0.75, 0.25):
        for solution in (solve(problem, "constant", value=value), solve(problem, Constant(value))):
            assert torch.equal(solution.weights, torch.full_like(solution.weights, value))


def test_a_recipe_makes_an_equal_solver_again():
    for solver in (Pivot(3), BestResponse(unroll=2, damping=0.5, sweep="gauss_seidel"), ProjectedGradient(None, False)):
        kind, options = recipe(solver, {})
        assert make_solver(kind, dict(options)) == solver
    assert recipe("pivot", {"block_pivots": 2}) == ("pivot", (("block_pivots", 2),))


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_mixed_types_promote_as_torch_promotes_them(low):
    eye, q = torch.eye(3), torch.tensor([-0.5, -0.25, 0.125])
    exact = solve(AffineVI(eye, q)).weights
    with torch.autocast("cpu", low):
        for M, b, l1, cap in (
            (eye, q.to(low), 0.0, 1.0),
            (eye.to(low), q, 0.0, 1.0),
            (eye, q.to(low), torch.zeros(3, dtype=low), torch.ones(3, dtype=low)),
            (eye.to(low), q.to(low), torch.zeros(3), torch.ones(3, dtype=low)),
        ):
            w = solve(AffineVI(M, b, FeasibleSet(0.0, cap, 1.0), l1=l1)).weights
            assert w.dtype == torch.float32
            torch.testing.assert_close(w, exact, rtol=0, atol=1e-6)  # the data are exact in every type
        same = solve(AffineVI(eye.to(low), q.to(low))).weights
        assert same.dtype == low
        leaf, half = eye.clone().requires_grad_(), q.to(low).requires_grad_()
        solve(AffineVI(leaf, half)).weights[0].backward()
    assert leaf.grad.dtype == torch.float32
    assert half.grad.dtype == low
    with pytest.raises(ValueError, match=r"M has dtype torch\.float32, but q has dtype"):
        AffineVI(eye, q.to(low))


def test_double_precision_beside_single_promotes_to_double_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        w = solve(AffineVI(torch.eye(2, dtype=D), torch.tensor([-0.5, -0.25]))).weights
    assert w.dtype == D
