"""Weights, `converged` and gradients do not depend on the unit of the scale outputs, and of the target with them."""

import pytest
import torch
from layers import BATCH, BOTH, EVERY_GRANULARITY, SETS, D, L, N, data, layer
from torch import nn
from torch.testing import assert_close

from maha_opt import ConvexAggregation, GateAggregation, NashAggregation, convex_problem, nash_problem
from solvers import Budget

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
POWERS = [2.0**-26, 2.0**-10, 2.0**10, 2.0**26]
SIZES = [1e-8, 1e-6, 1e-3, 10.0, 1e3, 1e8]
EXTREME = [1e-35, 1e-25, 1e-15, 1e15, 1e25, 1e35]
ROUNDING = {torch.float32: 2e-4, torch.float64: 1e-10}
"""Of a gradient through some tens of operations with condition numbers of about a hundred."""

LAYERS = {
    "convex": (ConvexAggregation, {}),
    "residual": (ConvexAggregation, {"target": "residual", "prices": "learned", "feasible": "budget"}),
    "consensus": (ConvexAggregation, {"target": "consensus", "prices": [0.3, 0.1, 0.0], "feasible": "nonnegative"}),
    "capped": (ConvexAggregation, {"feasible": "capped_simplex", "feasible_options": {"cap": 0.5}}),
    "nash": (NashAggregation, {}),
    "priced nash": (NashAggregation, {"prices": "learned", "feasible": "box", "feasible_options": SETS["box"]}),
    "nash budget": (NashAggregation, {"feasible": "budget", "feasible_options": SETS["budget"]}),
}
EVERY_LAYER = pytest.mark.parametrize("name", LAYERS)


def make(name, dtype, **changes):
    kind, options = LAYERS[name]
    made = layer(kind, **options | changes).to(dtype)
    if getattr(made, "target", None) is not None:
        nn.init.normal_(made.target.weight, std=0.5)
        nn.init.zeros_(made.target.bias)  # the target has the unit of the block's input
    return made


def unit_free(made, size, dtype, Y=None):
    """What a layer gives for data in other units, with gradients of the data times that unit."""
    made.zero_grad()
    own, available, inputs = data(dtype=dtype)
    Y = ((own if Y is None else Y) * size).requires_grad_()
    inputs = (inputs * size).requires_grad_()
    aggregated, objective = made.with_objective(Y, available, inputs)
    weights = aggregated.solution.weights
    (weights * torch.arange(1.0, L + 1, dtype=dtype)).square().sum().backward()
    found = {"weights": weights.detach(), "objective": objective.detach(), "Y": Y.grad * size}
    if inputs.grad is not None:
        found["inputs"] = inputs.grad * size
    for name, parameter in made.named_parameters():
        found[name] = parameter.grad * (size if name == "target.bias" else 1.0)
    return found, aggregated.solution.converged


def assert_unit_free(made, size, dtype, **arguments):
    exact, _ = unit_free(made, 1.0, dtype, **arguments)
    found, converged = unit_free(made, size, dtype, **arguments)
    assert converged.all()
    for name, value in exact.items():
        error = (found[name] - value).norm() / value.norm().clamp_min(1e-2)  # of numbers of order one
        assert error < ROUNDING[dtype], f"{name} is off by {error:.1e} of its length at size {size:g}"


# The problems


@DTYPES
@pytest.mark.parametrize("size", POWERS)
def test_a_power_of_two_changes_no_bit_of_the_problems_but_the_exponent(dtype, size):
    Y, available, t = data(dtype=dtype)
    prices = torch.tensor([0.0, 0.1, 0.2], dtype=dtype)
    coupling = torch.tensor([[0.0, 0.5, -1.0], [-0.5, 0.0, 2.0], [1.0, -2.0, 0.0]], dtype=dtype)
    for pose in (
        lambda s: convex_problem(s * Y, s * t, prices=prices, available=available),
        lambda s: convex_problem(s * Y, "consensus", prices=0.1),
        lambda s: nash_problem(s * Y, coupling, prices=prices, available=available),
    ):
        one, other = pose(1.0), pose(size)
        for name in ("M", "q", "l1"):
            assert torch.equal(getattr(other, name), size**2 * getattr(one, name)), name


@DTYPES
@pytest.mark.parametrize("size", SIZES)
def test_ridge_and_prices_are_relative_at_every_size(dtype, size):
    Y, _, t = data(dtype=dtype)
    problems = (convex_problem(size * Y, size * t, prices=0.1), nash_problem(size * Y, prices=0.1))
    for problem, one in zip(problems, (convex_problem(Y, t, prices=0.1), nash_problem(Y, prices=0.1)), strict=True):
        for name in ("M", "q", "l1"):  # sums of 8 products, each rounded
            expected = size**2 * getattr(one, name).double()
            rounding = 20 * torch.finfo(dtype).eps * expected.abs().max().item()
            assert_close(getattr(problem, name).double(), expected, rtol=0, atol=rounding)


# The layers


@DTYPES
@EVERY_LAYER
@pytest.mark.parametrize("size", [*POWERS, *SIZES])
def test_nothing_depends_on_the_unit_of_the_scale_outputs(name, size, dtype):
    assert_unit_free(make(name, dtype), size, dtype)


@DTYPES
@EVERY_GRANULARITY
@BOTH
def test_nothing_depends_on_it_in_any_granularity(kind, granularity, dtype):
    name = "convex" if kind is ConvexAggregation else "nash"
    made = make(name, dtype, granularity=granularity)
    for size in (1e-8, 1e-6, 1e3, 1e8):
        assert_unit_free(made, size, dtype)


@DTYPES
@pytest.mark.parametrize("gradient", ["unrolled", "one_step"])
@pytest.mark.parametrize("solver", ["projected_gradient", "best_response"])
@BOTH
def test_nothing_depends_on_it_in_any_mode(kind, solver, gradient, dtype):
    name = "convex" if kind is ConvexAggregation else "nash"
    options = {"unroll": 50} if gradient == "unrolled" else {}
    made = make(name, dtype, solver=solver, gradient=gradient, solver_options=options, ridge=0.3, on_failure="ignore")
    for size in (1e-8, 1e-6, 1e3, 1e8):
        exact, _ = unit_free(made, 1.0, dtype)
        found, _ = unit_free(made, size, dtype)
        for key, value in exact.items():
            loose = 1e-3 if dtype == torch.float32 else 1e-6  # where it stops depends on rounding
            assert (found[key] - value).norm() < loose * value.norm().clamp_min(1e-2), (key, size)


@EVERY_LAYER
@pytest.mark.parametrize("size", EXTREME)
def test_float32_is_enough_for_sizes_whose_squares_it_does_not_know(name, size):
    # The block's input is as small, and so is what its map adds up: float32 keeps 1e-38 normal.
    assert_unit_free(make(name, torch.float32), size, torch.float32)


@pytest.mark.parametrize("size", EXTREME)
def test_tokens_that_share_a_problem_share_its_unit(size):
    assert_unit_free(make("nash", torch.float32, granularity="sequence"), size, torch.float32)


@DTYPES
@BOTH
@pytest.mark.parametrize("size", [*POWERS, *SIZES, *EXTREME])
def test_normalised_problems_have_no_floor(kind, size, dtype):
    Y, available, inputs = data(dtype=dtype)
    made = layer(kind, normalise=True).to(dtype)
    one = made(Y, available, inputs).solution.weights
    other = made(size * Y, available, inputs).solution.weights
    assert torch.equal(one, other) if size in POWERS else (one - other).abs().max() < ROUNDING[dtype]


@DTYPES
def test_a_normalised_output_has_the_derivative_of_a_direction_at_every_size(dtype):
    made = make("nash", dtype, normalise=True)
    for size in (*SIZES, *EXTREME):
        Y = data(dtype=dtype)[0].mul(size).requires_grad_()
        made(Y).solution.weights.square().sum().backward()
        assert Y.grad.isfinite().all()
        gradient, Y = Y.grad.double(), Y.detach().double()
        along, length = (gradient * Y).sum(-1), gradient.norm(dim=-1) * Y.norm(dim=-1)
        assert (along.abs() <= 10 * ROUNDING[dtype] * length.clamp_min(1e-3)).all()  # of numbers of order one


def test_a_gate_does_not_read_the_scales_at_all():
    Y, available, inputs = data()
    made = layer(GateAggregation, normalise=True)
    one = made(Y, available, inputs).solution.weights
    for size in (0.0, *EXTREME):
        assert torch.equal(made(size * Y, available, inputs).solution.weights, one)


# Data without a size


@DTYPES
@EVERY_LAYER
@pytest.mark.parametrize("normalise", [False, True])
def test_zero_outputs_leave_everything_finite(name, normalise, dtype):
    made = make(name, dtype, normalise=normalise)
    for inputs_size in (0.0, 1.0):
        made.zero_grad()
        _, available, inputs = data(dtype=dtype)
        Y = torch.zeros(BATCH, N, L, D, dtype=dtype, requires_grad=True)
        aggregated, objective = made.with_objective(Y, available, inputs * inputs_size)
        (aggregated.output.sum() + objective + aggregated.solution.weights.square().sum()).backward()
        assert aggregated.solution.converged.all()
        assert -1e-6 <= objective <= 1  # a rounding of numbers of order one
        for value in (objective, aggregated.solution.weights, Y.grad, *(p.grad for p in made.parameters())):
            assert value.isfinite().all()


@DTYPES
@pytest.mark.parametrize("normalise", [False, True])
def test_one_zero_scale_leaves_the_others_what_they_are_at_every_size(normalise, dtype):
    Y = data(dtype=dtype)[0]
    Y[:, :, 1] = 0
    made = make("nash budget", dtype, normalise=normalise)
    for size in (1e-8, 1e-6, 1e8):
        assert_unit_free(made, size, dtype, Y=Y)


@EVERY_LAYER
def test_an_item_of_another_size_changes_no_bit_of_its_neighbours(name):
    made = make(name, torch.float32)
    Y, available, inputs = data()
    alone = made(Y[:1], available[:1], inputs[:1])
    sizes = torch.tensor([1.0, 1e-25])[:, None, None]
    beside = made(Y * sizes.unsqueeze(-1), available, inputs * sizes)
    assert torch.equal(beside.solution.weights[:1], alone.solution.weights)
    assert torch.equal(beside.output[:1], alone.output)


def test_padding_changes_no_bit_and_is_posed_once(monkeypatch):
    made = make("nash", torch.float32)
    Y, available, _ = data()
    mask = torch.tensor([[True] * N, [True] * 2 + [False] * (N - 2)])
    one = made(Y, available).output
    calls = []
    pose = made._problem
    monkeypatch.setattr(made, "_problem", lambda *arguments: calls.append(1) or pose(*arguments))
    assert torch.equal(made(Y, available, mask=mask).output[mask], one[mask])
    assert len(calls) == 1


@pytest.mark.parametrize("size", [1.0, 1e-25, 1e25])
def test_torch_compile_gives_what_eager_gives_at_every_size(size):
    made = make("convex", torch.float32)
    Y, available, inputs = data()
    compiled = torch.compile(made, fullgraph=True, backend="eager")
    found = compiled(size * Y, available, size * inputs).solution.weights
    assert_close(found, made(size * Y, available, size * inputs).solution.weights, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e-25, 1e25])
def test_vmap_gives_what_a_batch_gives_at_every_size(size):
    made = make("nash", torch.float32)
    Y = size * data()[0]
    found = torch.func.vmap(lambda y: made(y[None]).solution.weights[0])(Y)
    assert_close(found, made(Y).solution.weights, rtol=0, atol=1e-5)


@EVERY_GRANULARITY
@pytest.mark.parametrize("normalise", [False, True])
def test_no_data_at_all_is_no_fault(granularity, normalise):
    made = make("nash", torch.float32, granularity=granularity, normalise=normalise)
    for shape in ((0, N, L, D), (BATCH, 0, L, D)):
        output = made(torch.zeros(shape)).output
        assert output.shape == (*shape[:2], D)


def test_a_budget_in_a_unit_of_its_own_is_left_alone():
    Y, _, t = data(dtype=torch.float64)
    problem = convex_problem(1e-8 * Y, 1e-8 * t, feasible=Budget(1e-6))
    assert problem.feasible.total == 1e-6
