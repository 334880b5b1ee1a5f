"""The aggregation modules: what holds for every granularity, set and type of data."""

import copy
import warnings

import pytest
import torch
from layers import BATCH, BOTH, EVERY_GRANULARITY, EVERY_KIND, FOR_TOKENS, HEADS, SETS, D, L, N, data, layer
from torch import nn
from torch.testing import assert_close

from maha_opt import ConvexAggregation, GateAggregation, NashAggregation
from solvers import Box, Budget, solve

# Shapes and what the output is


@EVERY_KIND
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


@EVERY_GRANULARITY
@pytest.mark.parametrize("normalise", [False, True])
def test_a_residual_target_starts_with_the_plain_mean_and_learns_from_there(granularity, normalise):
    fuse = layer(granularity=granularity, target="residual", normalise=normalise).double()
    Y, available, inputs = data(dtype=torch.float64)
    fuse_mean = layer(granularity=granularity, target="consensus", normalise=normalise).double()
    output, _ = fuse(Y, available, inputs)
    assert_close(output, fuse_mean(Y, available).output)  # two ways to sum up the same scores
    (output * torch.randn(output.shape, dtype=torch.float64)).sum().backward()
    assert bool(fuse.target.weight.grad.abs().max() > 1e-3)


@EVERY_GRANULARITY
def test_a_residual_target_is_the_mean_of_the_scales_that_exist_and_a_map_of_the_input(granularity):
    fuse = layer(granularity=granularity, target="residual").double()
    nn.init.normal_(fuse.target.weight)
    Y, _, inputs = data(dtype=torch.float64)
    available = torch.tensor([True, False, True]).expand(Y.shape[:3])
    plain = layer(granularity=granularity, target="linear").double()
    plain.target = nn.Identity()
    beside = Y[:, :, [0, 2]].mean(2) + fuse.target(inputs)
    assert_close(fuse(Y, available, inputs).output, plain(Y, available, beside).output)
    _, objective = fuse.with_objective(Y, available, inputs)
    assert_close(objective, plain.with_objective(Y, available, beside)[1])


@FOR_TOKENS
def test_a_gate_is_the_softmax_of_scores_of_the_input_and_solved_exactly_their_projection(granularity):
    Y, available, inputs = data()
    made = layer(GateAggregation, granularity=granularity)
    scores = made.scores(inputs)
    if granularity == "token_head":
        scores, available_of = scores.unflatten(-1, (HEADS, L)), available.unsqueeze(2)
    else:
        available_of = available
    w = made(Y, available, inputs).solution.weights
    assert_close(w, scores.masked_fill(~available_of, -torch.inf).softmax(-1))
    made.solver = "pivot"
    w = made(Y, available, inputs).solution.weights
    assert_close(w, made(1e3 * Y, available, inputs).solution.weights, rtol=0, atol=0)  # the scales do not enter
    # The projection on the simplex: w − s is the same for all scales of positive weight, and no less elsewhere.
    away = (w - scores).masked_fill(~available_of, torch.inf)
    least = away.amin(-1, keepdim=True)
    rounding = 1e-5  # float32, numbers of order one
    assert (w >= 0).all()
    assert_close(w.sum(-1), torch.ones(w.shape[:-1]))
    assert ((w == 0) | ((away - least).abs() < rounding)).all()


@BOTH
@EVERY_GRANULARITY
def test_normalised_problems_do_not_see_the_size_of_a_scale_but_the_fusion_adds_up_what_is_there(kind, granularity):
    Y, available, inputs = data()
    made = layer(kind, granularity=granularity, normalise=True)
    factors = torch.tensor([1.0, 0.01, 100.0])[:, None]
    if granularity in ("token_head", "head"):  # also where the heads of a scale differ in size
        factors = factors * torch.tensor([1.0, 5.0]).repeat_interleave(D // HEADS)
    solution = made(Y, available, inputs).solution
    other, scaled = made(Y * factors, available, inputs)
    assert_close(scaled.weights, solution.weights, rtol=0, atol=1e-4)  # float32, and the smallest square
    if granularity == "token":
        exists = available.unsqueeze(-1)
        expected = (scaled.weights.unsqueeze(-1) * (Y * factors).masked_fill(~exists, 0.0)).sum(2)
        assert_close(other, expected)


@EVERY_KIND
@EVERY_GRANULARITY
@pytest.mark.parametrize("normalise", [False, True])
def test_the_problems_that_are_posed_are_those_that_are_solved(kind, granularity, normalise):
    fuse = layer(kind, granularity=granularity, normalise=normalise, solver="pivot")
    Y, available, inputs = data()
    mask = torch.tensor([[True] * N, [True] * (N - 2) + [False] * 2])
    problem, solution = fuse.problem(Y, available, inputs, mask), fuse(Y, available, inputs, mask).solution
    assert problem.batch_shape == solution.weights.shape[:-1]
    assert torch.equal(solve(problem).weights, solution.weights)


def test_tokens_that_share_a_gate_share_their_mean_scores():
    Y, _, inputs = data()
    mask = torch.tensor([[True] * N, [True] * 2 + [False] * (N - 2)])
    made = layer(GateAggregation, granularity="sequence")
    scores = torch.stack([made.scores(inputs[0]).mean(0), made.scores(inputs[1, :2]).mean(0)])
    assert_close(made(Y, None, inputs, mask).solution.weights, scores.softmax(-1))


def test_a_gate_needs_the_input_of_its_block():
    with pytest.raises(ValueError, match="inputs must be given"):
        layer(GateAggregation)(data()[0])


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


@pytest.mark.parametrize(
    ("kind", "granularity"),
    [
        (ConvexAggregation, "token_head"),
        (NashAggregation, "sequence"),
        pytest.param(ConvexAggregation, "sequence", marks=pytest.mark.slow),
        pytest.param(NashAggregation, "token_head", marks=pytest.mark.slow),
    ],
)
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
