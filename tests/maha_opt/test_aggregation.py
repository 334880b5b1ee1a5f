"""The aggregation modules: what holds for every granularity, set, solver and gradient."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from maha_opt import ConvexAggregation, NashAggregation, make_set
from maha_opt.aggregation_base import GRANULARITIES
from solvers import Box, Budget, Simplex

BATCH, N, L, D, HEADS = 2, 5, 3, 8, 2
BOTH = pytest.mark.parametrize("kind", [ConvexAggregation, NashAggregation])
EVERY_GRANULARITY = pytest.mark.parametrize("granularity", GRANULARITIES)
FOR_TOKENS = pytest.mark.parametrize("granularity", ["token", "token_head"])
SETS = {
    "simplex": {},
    "capped_simplex": {"cap": 0.5},
    "box": {"lower": -0.5, "upper": 1.0},
    "budget": {"total": 0.8, "learn_total": True},
    "nonnegative": {},
    "sum_to": {"total": -1.0, "learn_total": True},
    "free": {},
}


def layer(kind=ConvexAggregation, seed=0, **options):
    torch.manual_seed(seed)
    made = kind(L, D, **{"num_heads": HEADS, "on_failure": "raise", **options})
    if isinstance(made, NashAggregation):
        nn.init.normal_(made.raw_coupling, std=0.3)
    return made


def data(n=N, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    Y = torch.randn(BATCH, n, L, D, generator=generator).to(dtype)
    inputs = torch.randn(BATCH, n, D, generator=generator).to(dtype)
    available = torch.rand(BATCH, n, L, generator=generator) > 0.3
    available[..., 0] = True
    return Y, available, inputs


# Shapes and what the output is


@BOTH
@pytest.mark.parametrize(
    ("granularity", "shape"),
    [
        ("token", (BATCH, N, L)),
        ("token_head", (BATCH, N, HEADS, L)),
        ("sequence", (BATCH, L)),
        ("head", (BATCH, HEADS, L)),
    ],
)
def test_weights_have_the_shape_of_the_granularity_and_fuse_the_scales(kind, granularity, shape):
    Y, available, inputs = data()
    output, solution = layer(kind, granularity=granularity)(Y, available, inputs)
    assert solution.weights.shape == shape
    w = solution.weights
    if granularity in ("sequence", "head"):
        w = w.unsqueeze(1)
    if granularity in ("token", "sequence"):
        w = w.unsqueeze(-2)
    w = w.expand(BATCH, N, -1, L).repeat_interleave(D // w.expand(BATCH, N, -1, L).shape[2], dim=2)
    cleared = Y.masked_fill(~available.unsqueeze(-1), 0.0)
    assert_close(output, torch.einsum("bndl,bnld->bnd", w, cleared))


@EVERY_GRANULARITY
def test_consensus_gives_the_plain_mean_for_any_data(granularity):
    Y, _, _ = data()
    output, _ = layer(granularity=granularity, target="consensus")(1e3 * Y)
    assert_close(output, 1e3 * Y.mean(2), rtol=1e-4, atol=1e-2)


@BOTH
@EVERY_GRANULARITY
@pytest.mark.parametrize("feasible", SETS)
def test_every_set_keeps_its_promise(kind, granularity, feasible):
    Y, available, inputs = data()
    made = layer(kind, granularity=granularity, feasible=feasible, feasible_options=SETS[feasible], prices="learned")
    w = made(Y, available, inputs).solution.weights
    if feasible not in ("sum_to", "free"):
        assert (w >= (-0.5 if feasible == "box" else 0)).all()
    if feasible == "capped_simplex":  # lifted to 1 where one scale exists
        assert (w <= 0.5 + 1e-5).logical_or((w - 1).abs() < 1e-5).all()
    if feasible in ("simplex", "capped_simplex", "sum_to"):
        assert_close(w.sum(-1), torch.full(w.shape[:-1], -1.0 if feasible == "sum_to" else 1.0))
    if feasible == "budget":
        assert (w.sum(-1) <= 0.8 + 1e-5).all()


def test_a_set_may_be_given_by_itself_or_by_a_function_or_a_module_of_the_mask():
    Y, available, inputs = data()

    class LearnedBox(nn.Module):
        def __init__(self):
            super().__init__()
            self.upper = nn.Parameter(torch.tensor(0.3))

        def forward(self, mask):
            return Box(0.0, self.upper, mask=mask)

    named = layer(feasible="budget", feasible_options={"total": 0.7})(Y, available, inputs).output
    for feasible in (Budget(0.7), lambda mask: Budget(0.7, mask=mask), lambda mask: Budget(0.7)):
        assert_close(layer(feasible=feasible)(Y, available, inputs).output, named)
    made = layer(NashAggregation, feasible=LearnedBox())
    made(Y, available).output.sum().backward()
    assert "feasible.upper" in made.state_dict()
    assert made.feasible.upper.grad != 0


# Scales that do not exist, padding, order of the scales, causality


@BOTH
@EVERY_GRANULARITY
def test_scales_that_do_not_exist_have_no_weight_and_no_influence_even_if_they_hold_nan(kind, granularity):
    Y, available, inputs = data()
    available[:, :, 1] = False
    made = layer(kind, granularity=granularity)
    output, solution = made(Y, available, inputs)
    assert (solution.weights[..., 1] == 0).all()
    poisoned = Y.masked_fill(~available.unsqueeze(-1), torch.nan).requires_grad_()
    again = made(poisoned, available, inputs).output
    assert torch.equal(again, output)
    again.sum().backward()
    assert poisoned.grad.isfinite().all()
    assert (poisoned.grad[~available] == 0).all()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


@BOTH
@EVERY_GRANULARITY
def test_padding_has_no_influence_even_if_it_holds_nan(kind, granularity):
    Y, available, inputs = data()
    available[:, :, 2] = True
    mask = torch.tensor([[True] * 5, [False, True, True, False, True]])
    made = layer(kind, granularity=granularity, prices="learned")
    poisoned = Y.masked_fill(~mask[..., None, None], torch.nan).requires_grad_()
    holes = inputs.masked_fill(~mask.unsqueeze(-1), torch.nan).requires_grad_()
    available[~mask] = False  # nothing exists there
    output, solution = made(poisoned, available, holes, mask)
    assert solution.converged.all()
    assert (output[~mask] == 0).all()
    alone = made(Y[1:, mask[1]], available[1:, mask[1]], inputs[1:, mask[1]]).output
    assert_close(output[1:, mask[1]], alone)
    output.sum().backward()
    for tensor in (poisoned, holes, *made.parameters()):
        assert tensor.grad is None or tensor.grad.isfinite().all()


@BOTH
@EVERY_GRANULARITY
def test_a_row_of_padding_alone_is_no_fault(kind, granularity):
    Y, available, inputs = data()
    mask = torch.tensor([[True] * 5, [False] * 5])
    for exists in (available, available & mask.unsqueeze(-1), None):
        output, solution = layer(kind, granularity=granularity)(Y, exists, inputs, mask)
        assert (output[1] == 0).all()
        assert solution.weights.isfinite().all()


@BOTH
@EVERY_GRANULARITY
def test_permuting_the_scales_permutes_the_weights(kind, granularity):
    Y, available, inputs = data()
    order = torch.tensor([2, 0, 1])
    made = layer(kind, granularity=granularity, prices=[0.0, 0.1, 0.3])
    output, solution = made(Y, available, inputs)
    moved = copy.deepcopy(made)
    moved.prices = made.prices[order]
    if kind is NashAggregation:
        moved.raw_coupling.data = made.raw_coupling.data[order][:, order]
    permuted = moved(Y[:, :, order], available[:, :, order], inputs)
    assert_close(permuted.output, output)
    assert_close(permuted.solution.weights, solution.weights[..., order])


@BOTH
@FOR_TOKENS
@pytest.mark.parametrize("n", [1, 17, 300])
def test_tokens_from_p_on_leave_the_outputs_before_p_as_they_are_to_the_bit(kind, granularity, n):
    Y, available, inputs = data(n)
    made = layer(kind, granularity=granularity, causal=True, prices="learned")
    before = made(Y, available, inputs).output
    other, other_available, other_inputs = data(n, seed=7)
    for p in {0, 1, n // 2, n - 1}:
        changed = made(
            torch.cat([Y[:, :p], 10 * other[:, p:]], 1),
            torch.cat([available[:, :p], other_available[:, p:]], 1),
            torch.cat([inputs[:, :p], other_inputs[:, p:]], 1),
        )
        assert torch.equal(changed.output[:, :p], before[:, :p])
        prefix = made(Y[:, :p], available[:, :p], inputs[:, :p]).output
        assert_close(prefix, before[:, :p], atol=1e-5, rtol=1e-5)


@FOR_TOKENS
def test_no_gradient_comes_from_tokens_after(granularity):
    Y, available, inputs = data()
    Y, inputs = Y.requires_grad_(), inputs.requires_grad_()
    layer(granularity=granularity, causal=True)(Y, available, inputs).output[:, :2].sum().backward()
    assert (Y.grad[:, 2:] == 0).all()
    assert (inputs.grad[:, 2:] == 0).all()


@BOTH
@pytest.mark.parametrize("granularity", ["sequence", "head"])
def test_a_causal_model_refuses_what_would_tell_of_the_future(kind, granularity):
    with pytest.raises(ValueError, match="causal"):
        layer(kind, granularity=granularity, causal=True)


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
    made.solver, made.gradient, made.solver_options = "pivot", "implicit", {"unroll": 3}
    with pytest.raises(TypeError, match="unroll"):
        made(Y, available, inputs)


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
    made.gradient = "unrolled"  # no typo: the solver may be assigned next
    with pytest.raises(ValueError, match="'pivot' takes gradient='implicit'"):
        made(*data())


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


# Types, compilers, faults


@BOTH
@EVERY_GRANULARITY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_solved_in_float32_and_returned_as_it_came(kind, granularity, dtype):
    Y, available, inputs = data()
    made = layer(kind, granularity=granularity, prices="learned")
    exact = made(Y, available, inputs).output
    half = copy.deepcopy(made).to(dtype)
    own = Y.to(dtype).requires_grad_()
    output, solution = half(own, available, inputs.to(dtype))
    output.sum().backward()
    assert output.dtype == own.grad.dtype == dtype
    assert solution.weights.dtype == torch.float32
    assert_close(output.float(), exact, atol=0.1, rtol=0.1)
    with torch.autocast("cpu", dtype=dtype):
        output, solution = made(Y, available, inputs)
        assert output.dtype == solution.weights.dtype == torch.float32
        assert_close(output, exact, atol=0.1, rtol=0.1)
        assert made(Y.to(dtype), available, inputs).output.dtype == dtype


@BOTH
def test_zero_data_give_zero_and_finite_gradients(kind):
    _, available, inputs = data()
    Y = torch.zeros(BATCH, N, L, D, requires_grad=True)
    made = layer(kind, prices="learned")
    output, solution = made(Y, available, inputs)
    output.sum().backward()
    assert (output == 0).all()
    assert solution.converged.all()
    assert Y.grad.isfinite().all()


@BOTH
@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_scaling_the_outputs_leaves_the_weights(kind, factor):
    Y, available, inputs = data()
    made = layer(kind, prices=[0.0, 0.1, 0.2])
    if kind is ConvexAggregation:
        made.target.bias.data.zero_()
    before = made(Y, available, inputs).solution.weights
    after = made(factor * Y, available, factor * inputs).solution.weights
    assert_close(after, before, atol=1e-4, rtol=0)


@BOTH
@EVERY_GRANULARITY
def test_torch_compile_gives_the_same_output_and_gradient(kind, granularity):
    Y, available, inputs = data()
    made = layer(kind, granularity=granularity, prices="learned")
    results = []
    for module in (made, torch.compile(made, fullgraph=True, backend="aot_eager")):
        own = Y.clone().requires_grad_()
        output = module(own, available, inputs, torch.ones(BATCH, N, dtype=torch.bool)).output
        output.square().sum().backward()
        results.append((output.detach(), own.grad))
    assert_close(results[1], results[0])
    torch.compiler.reset()


def test_an_empty_batch_gives_an_empty_output():
    output, solution = layer()(torch.zeros(0, N, L, D), inputs=torch.zeros(0, N, D))
    assert output.shape == (0, N, D)
    assert solution.weights.shape == (0, N, L)


@BOTH
def test_a_token_with_faulty_data_is_reported_and_spoils_no_other(kind):
    Y, _, inputs = data()
    faulty = Y.clone()
    faulty[1, 2, 0, 0] = torch.nan
    made = layer(kind)
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        made(faulty, None, inputs)
    made.on_failure = "warn"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        output, solution = made(faulty, None, inputs)
    assert caught
    assert not solution.converged[1, 2]
    others = torch.ones(BATCH, N, dtype=torch.bool)
    others[1, 2] = False
    assert torch.equal(output[others], made(Y, None, inputs).output[others])


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
