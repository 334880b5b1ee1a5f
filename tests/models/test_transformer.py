"""The MAHA transformer: nothing leaks, padding does not matter, a step is the full pass, gradients reach everything."""

import copy
import math

import pytest
import torch
from causality import (
    assert_cached_equals_full,
    assert_no_gradient_leak,
    assert_no_leak,
    assert_padding_invariant,
    assert_prefix_stable,
    random_ids,
)
from maha import VARIANTS, VOCAB, build
from torch import nn

from models import CausalLanguageModel, EncoderDecoder, MAHATransformer
from solvers import available_solvers

variants = pytest.mark.parametrize("variant", VARIANTS)
both_modes = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
LENGTHS = [1, 2, 3, 5, 8, 13, 17, 31]
HEURISTIC_SETS = {"softmax": "simplex", "mean": "simplex", "mirror_descent": "simplex"}


def hidden(model):
    return lambda ids, mask=None: model(ids, mask)[0]


@pytest.mark.parametrize("d_model", [64, 256])
def test_first_weights_keep_their_gain_at_every_width(d_model):
    torch.manual_seed(0)
    model = MAHATransformer(VOCAB, d_model=d_model, num_heads=2, num_layers=1, max_len=50)
    maps = [module.weight for module in model.modules() if isinstance(module, (nn.Linear, nn.Embedding))]
    drawn = [weight for weight in maps if weight.any()]  # those of a fusion begin at 0
    assert len(drawn) > 10
    for weight in drawn:
        gain = weight.std() * weight.shape[1] ** 0.5
        assert abs(gain / (0.02 * 768**0.5) - 1) < 5 / (2 * weight.numel()) ** 0.5  # five standard errors


# --- Nothing leaks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tens", range(7))
def test_tokens_from_p_on_change_no_bit_before_p_at_every_length_up_to_seventy(tens):
    for n in range(10 * tens + 1, 10 * tens + 11):
        assert_no_leak(hidden(build()), n, VOCAB)
        assert_no_leak(hidden(build("nash", query_resolution="fine")), n, VOCAB, positions=sorted({0, n // 2, n - 1}))


@variants
def test_tokens_from_p_on_change_no_bit_before_p(variant):
    for n in LENGTHS:
        assert_no_leak(hidden(build(variant)), n, VOCAB)
    assert_no_leak(hidden(build(variant)), 257, VOCAB, positions=[1, 64, 127, 128, 250, 256])


@pytest.mark.parametrize("granularity", ["token", "token_head"])
@pytest.mark.parametrize("strategy", ["convex", "nash"])
@pytest.mark.parametrize("solver", available_solvers())
def test_no_solver_tells_a_token_of_those_after_it(solver, strategy, granularity):
    feasible = HEURISTIC_SETS.get(solver, "simplex" if strategy == "convex" else "box")
    model = build(aggregation_strategy=strategy, granularity=granularity, feasible=feasible, num_scales=3)
    slow = solver in ("cvxpylayers", "scipy")  # one problem at a time
    model.set_solver(solver, on_failure="ignore", **({} if slow else {"max_iter": 100}))
    for n in [6] if slow else [5, 17]:
        assert_no_leak(hidden(model), n, VOCAB, positions=[n // 2] if slow else range(n))


@pytest.mark.parametrize("num_scales", [4, 6])
def test_the_digits_of_a_token_do_not_depend_on_how_hard_its_neighbours_are_to_solve(num_scales):
    # A batch in which other items are solved earlier or later is summed at other places of torch's vectors.
    model = build(num_scales=num_scales, window=64, max_len=2000)
    assert_no_leak(hidden(model), 1500, VOCAB, positions=[1, 700, 1400])


@variants
def test_the_gradient_of_what_comes_before_p_is_zero_from_p_on(variant):
    model = build(variant)
    for n in (1, 2, 8, 9, 30):
        assert_no_gradient_leak(hidden(model), model.token_emb, random_ids(2, n, VOCAB))


@variants
def test_a_prefix_alone_gives_what_it_gives_in_a_longer_sequence(variant):
    model = build(variant).double()
    prefixes = [1, 2, 3, 4, 7, 8, 9, 12, 16, 17, 27, 31, 48, 69]
    assert_prefix_stable(hidden(model), random_ids(2, 70, VOCAB), prefixes, atol=1e-9, rtol=1e-9)  # solved to 1e-9


@pytest.mark.parametrize("granularity", ["sequence", "head"])
def test_granularities_that_would_leak_are_refused_in_words(granularity):
    with pytest.raises(ValueError, match=f"granularity='{granularity}' makes one set of weights of the whole sequence"):
        build(granularity=granularity)
    build(granularity=granularity, causal=False)


@pytest.mark.parametrize(
    "variant",
    ["default", *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS if name not in ("default",))],
)
def test_no_causal_model_predicts_random_tokens_better_than_the_entropy(variant):
    torch.manual_seed(0)
    model = CausalLanguageModel(build(variant)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(120):
        ids = random_ids(8, 48, VOCAB, seed=step)
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # The published code gets 2 nats below. The mean of 40 · 8 · 47 tokens is good to about 0.01 nats.
    assert sum(losses[-40:]) / 40 > math.log(VOCAB) - 0.02


# --- Padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "causal"),
    [
        *((variant, True) for variant in VARIANTS),
        *((variant, False) for variant in ("default", "as published")),
        *(pytest.param(v, False, marks=pytest.mark.slow) for v in VARIANTS if v not in ("default", "as published")),
    ],
)
def test_padding_on_either_side_moves_no_real_token(variant, causal):
    forward = hidden(build(variant, causal=causal))
    assert_padding_invariant(forward, [1, 4, 9, 17, 30], VOCAB, holes=True)
    assert_padding_invariant(forward, [7, 8], VOCAB, extra=40)


@both_modes
def test_padding_beyond_the_longest_row_counts_for_nothing(causal):
    model = build(causal=causal, max_len=12)
    ids = random_ids(2, 30, VOCAB)
    mask = (torch.arange(30) >= 18).expand(2, 30)
    torch.testing.assert_close(model(ids, mask)[0][:, 18:], model(ids[:, 18:])[0], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="13 tokens, but max_len is 12"):
        model(ids[:, :13])
    with pytest.raises(ValueError, match="13 tokens, but max_len is 12"):
        model(ids, (torch.arange(30) >= 17).expand(2, 30))


@both_modes
def test_a_row_of_padding_alone_spoils_nothing(causal):
    model = build(causal=causal)
    ids = random_ids(2, 9, VOCAB)
    mask = torch.tensor([[True], [False]]).expand(2, 9)
    y, aux_loss = model(ids, mask)
    assert y.isfinite().all()
    assert (y[1] == 0).all()
    alone, alone_loss = model(ids[:1])
    torch.testing.assert_close(y[:1], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(aux_loss, alone_loss, atol=1e-5, rtol=0)


# --- Cache ------------------------------------------------------------------------------------------------------------


@variants
@pytest.mark.parametrize("length", [7, *(pytest.param(length, marks=pytest.mark.slow) for length in (1, 8, 20))])
def test_the_cached_step_is_the_full_pass_for_every_split_of_the_prompt(variant, length):
    language = CausalLanguageModel(build(variant))
    assert_cached_equals_full(language, lambda ids: language(ids).logits, [length], 48, VOCAB)


@variants
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_the_cached_step_is_the_full_pass_for_prompts_of_different_lengths(variant, left):
    language = CausalLanguageModel(build(variant))
    assert_cached_equals_full(language, lambda ids: language(ids).logits, [1, 8, 13, 20], 45, VOCAB, left=left)


def test_a_long_text_step_by_step_is_the_full_pass_and_the_state_does_not_grow():
    model = build(max_len=2000)
    ids = random_ids(1, 300, VOCAB)
    with torch.no_grad():
        expected, _ = model(ids)
    _, state = model.prefill(ids[:, :3])
    sizes = [x.shape for x in _tensors(state)]
    for t in range(3, 300):
        torch.testing.assert_close(model.step(ids[:, t], state), expected[:, t], atol=1e-5, rtol=0)
    assert [x.shape for x in _tensors(state)] == sizes
    assert sum(x.numel() for x in _tensors(state)) < 2 * 16 * 3 * (4 * 9 + 16)  # layers, channels, scales, windows


def test_a_row_without_a_token_keeps_its_state():
    model = build()
    ids = random_ids(2, 20, VOCAB)
    _, state = model.prefill(ids[:, :9])
    expected = copy.deepcopy(state)
    for t in range(9, 20):
        y = model.step(ids[:, t], state, torch.tensor([True, False]))
        assert (y[1] == 0).all()
    torch.testing.assert_close(model.step(ids[:, 9], state)[1], model.step(ids[:, 9], expected)[1], atol=1e-6, rtol=0)
    assert state.lengths.tolist() == [21, 10]


def test_steps_beyond_the_maximum_and_steps_of_a_bidirectional_model_are_refused():
    model = build(max_len=5)
    _, state = model.prefill(random_ids(1, 5, VOCAB))
    with pytest.raises(ValueError, match="max_len is 5"):
        model.step(torch.tensor([1]), state)
    with pytest.raises(ValueError, match="one token for each of 1 rows"):
        model.step(torch.tensor([1, 2]), state)
    with pytest.raises(ValueError, match="causal=True"):
        build(causal=False).prefill(random_ids(1, 5, VOCAB))


# --- Gradients, types, solvers ----------------------------------------------------------------------------------------


@variants
@both_modes
def test_gradients_reach_every_parameter(variant, causal):
    model = build(variant, causal=causal)
    for n in (1, 5, 40):
        model.zero_grad()
        y, aux_loss = model(random_ids(3, n, VOCAB))
        (y * torch.randn_like(y)).sum().add(aux_loss).backward()
        for name, weight in model.named_parameters():
            assert weight.grad is not None, name  # DDP waits for all of them
            if n == 40:
                assert weight.grad.isfinite().all(), name
                assert (weight.grad != 0).any(), name


@pytest.mark.parametrize("variant", ["default", "nash", "fine queries"])
def test_the_auxiliary_loss_has_a_gradient_of_its_own_that_is_that_of_finite_differences(variant):
    model = build(variant).double()
    ids = random_ids(1, 14, VOCAB)
    weight = model.layers[1].attention.value.weight

    def value():
        return model(ids)[1]

    (gradient,) = torch.autograd.grad(value(), weight)
    direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = 1e-5
    with torch.no_grad():
        weight += step * direction
        above = value()
        weight -= 2 * step * direction
        below = value()
    assert (gradient * direction).sum().abs() > 1e-6  # never a constant
    # Central differences are good to step² ~ 1e-10 relative, the solve to 1e-9 / step.
    torch.testing.assert_close((gradient * direction).sum(), (above - below) / (2 * step), rtol=1e-4, atol=1e-7)


@both_modes
@pytest.mark.parametrize("variant", ["default", "nash", "as published"])
def test_half_precision_is_near_single_precision(variant, causal):
    model = build(variant, causal=causal)
    ids = random_ids(2, 40, VOCAB)
    expected, _ = model(ids)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, aux_loss = model(ids)
        (mixed.float().square().mean() + aux_loss).backward()
    half = model.bfloat16()(ids)[0]
    assert half.dtype == torch.bfloat16
    for y in (mixed, half):  # two layers of bfloat16, 8 bits, at outputs of order one
        assert (y.float() - expected).abs().mean() < 0.05
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("strategy", ["convex", "nash"])
def test_the_solver_is_swapped_on_a_loaded_checkpoint_without_touching_its_state(strategy):
    trained = build(aggregation_strategy=strategy, feasible="simplex", solver="pivot")
    checkpoint = trained.state_dict()
    loaded = build(aggregation_strategy=strategy, feasible="simplex", solver="mean", seed=5)
    loaded.load_state_dict(checkpoint)
    ids = random_ids(1, 12, VOCAB)
    expected = trained(ids)[0]
    for solver, options, tolerance in [
        ("pivot", {}, 0.0),
        ("cvxpylayers", {}, 1e-4),  # exact, but in float64
        ("projected_gradient", {"unroll": 300}, 1e-3),
    ]:
        loaded.set_solver(solver, on_failure="ignore", **options)
        torch.testing.assert_close(loaded(ids)[0], expected, atol=tolerance, rtol=0)
    loaded.set_solver("mean")
    assert (loaded(ids)[0] - expected).abs().max() > 1e-2  # the fusion matters
    assert all(torch.equal(value, checkpoint[name]) for name, value in loaded.state_dict().items())
    assert loaded.state_dict().keys() == checkpoint.keys()


@pytest.mark.parametrize("causal", [True, False])
def test_gradient_checkpointing_changes_no_gradient(causal):
    model = build(causal=causal).train()
    ids = random_ids(2, 20, VOCAB)
    mask = torch.arange(20) >= torch.tensor([[3], [0]])
    gradients = []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        y, aux_loss = model(ids, mask)
        (y.square().sum() + aux_loss).backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", ["default", pytest.param("nash", marks=pytest.mark.slow)])
def test_a_compiled_training_step_gives_eagers_numbers(variant, backend):
    small = {"num_layers": 1} if backend == "aot_eager" else {}
    results = []
    for compiled in (False, True):
        language = CausalLanguageModel(build(variant, **small)).train()
        step = torch.compile(language, fullgraph=True, backend=backend) if compiled else language
        ids = random_ids(2, 24, VOCAB)
        loss = step(ids, labels=ids).loss
        loss.backward()
        results.append([loss.detach(), *(weight.grad for weight in language.parameters())])
    torch.compiler.reset()
    for eager, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, eager, atol=1e-5, rtol=1e-4)  # fused kernels round in another order


def test_embeddings_may_be_given_in_place_of_tokens():
    model = build()
    ids = random_ids(2, 11, VOCAB)
    torch.testing.assert_close(model(model.token_emb(ids))[0], model(ids)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1, but got 0"),
        ({"max_len": 0}, "max_len must be at least 1, but got 0"),
        ({"num_layers": 0}, "num_layers must be at least 1, but got 0"),
        ({"positions": "absolute"}, 'positions must be "rotary", "learned" or "none"'),
        ({"aggregation_strategy": "mean"}, "strategy must be 'convex' or 'nash' or 'gate', but got .mean"),
        ({"num_heads": 3}, "num_heads must divide d_model = 16, but got 3"),
        ({"window": 3, "num_scales": 4, "causal": True}, "window must be at least 15"),
        ({"conv_kernel": 4}, "kernel_size must be odd where bidirectional, but got 4"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        MAHATransformer(**{"vocab_size": 9, "d_model": 16, "num_heads": 2, "num_layers": 1, "d_ff": 16, **arguments})


def test_unknown_options_are_refused_by_name():
    with pytest.raises(TypeError, match="windows"):
        build(windows=3)
    with pytest.raises(TypeError, match=r"target belongs to strategy=.convex"):
        build(aggregation_strategy="nash", target="linear")
    with pytest.raises(ValueError, match="takes no memory"):
        build()(random_ids(1, 3, VOCAB), memory=torch.zeros(1, 2, 16))
    with pytest.raises(ValueError, match="needs a memory"):
        build(cross_attention=True)(random_ids(1, 3, VOCAB))


def test_inputs_of_the_wrong_shape_or_type_are_refused_by_name():
    model = build()
    with pytest.raises(ValueError, match=r"x must have shape \(batch, n\) with n at least 1, but got \(3,\)"):
        model(torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"mask must have shape \(1, 4\), but got \(1, 5\)"):
        model(random_ids(1, 4, VOCAB), torch.ones(1, 5).bool())
    with pytest.raises(TypeError, match="mask must be boolean or 0/1"):
        model(random_ids(1, 4, VOCAB), torch.ones(1, 4))


# --- Encoder and decoder ----------------------------------------------------------------------------------------------


def seq2seq():
    return EncoderDecoder(build(causal=False), build(causal=True, cross_attention=True, seed=1)).eval()


def test_the_decoder_sees_all_that_is_read_and_nothing_that_is_to_be_written():
    model = seq2seq()
    read, written = random_ids(2, 13, VOCAB), random_ids(2, 20, VOCAB, seed=1)
    assert_no_leak(lambda ids: model(read[:1].expand(len(ids), -1), ids).logits, 20, VOCAB)
    assert_prefix_stable(lambda ids: model(read, ids).logits, written, atol=1e-5)
    logits = model(read, written).logits
    for column in (0, 12):
        changed = read.clone()
        changed[:, column] = (changed[:, column] + 1) % VOCAB
        assert (model(changed, written).logits != logits).any(dim=2).all()


def test_padding_of_what_is_read_or_written_moves_nothing():
    model = seq2seq()
    read, written = random_ids(1, 9, VOCAB), random_ids(1, 7, VOCAB, seed=1)
    expected = model(read, written).logits
    for left in (0, 4):
        place = slice(left, left + 9)
        padded, mask = random_ids(1, 13, VOCAB, seed=2), torch.zeros(1, 13, dtype=torch.int64)
        padded[:, place], mask[:, place] = read, 1
        torch.testing.assert_close(model(padded, written, mask).logits, expected, atol=1e-5, rtol=0)
    padded, mask = torch.cat([written[:, :3], written], 1), (torch.arange(10) >= 3)[None]
    torch.testing.assert_close(model(read, padded, None, mask).logits[:, 3:], expected, atol=1e-5, rtol=0)


def test_writing_step_by_step_is_the_full_pass():
    model = seq2seq()
    read, mask = random_ids(2, 11, VOCAB), torch.arange(11) >= torch.tensor([[4], [0]])
    start = torch.zeros(2, 1, dtype=torch.int64)
    written = model.generate(read, start, mask, max_new_tokens=20)
    logits = model(read, written, mask).logits
    assert torch.equal(logits[:, :-1].argmax(2), written[:, 1:])


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list):
        return [x for item in value for x in _tensors(item)]
    return [] if value is None else [x for item in vars(value).values() for x in _tensors(item)]
