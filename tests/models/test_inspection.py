"""Looking inside a transformer: what is recorded is what the model does."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maha import VARIANTS, VOCAB, build
from torch import nn

from maha_opt.aggregation_base import Aggregation
from models import BlockRecord, HierarchicalDecomposition, MultiscaleAttention, inspect_transformer
from models.inspection import MAX_TOKENS, ablated, attention_probabilities, fusion_problems
from models.text_problems import TrainedProblems
from solvers import solve

ROUNDING = 1e-12
"""Of float64: sums of at most some hundred terms of order one."""

variants = pytest.mark.parametrize("variant", VARIANTS)
modes = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


@pytest.fixture
def caught(monkeypatch):
    """What every aggregation returns, in the order of the calls."""
    returned, original = [], Aggregation.with_objective

    def spy(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        returned.append(result[0].solution)
        return result

    monkeypatch.setattr(Aggregation, "with_objective", spy)
    return returned


def ids(batch, n, seed=1):
    return torch.randint(VOCAB, (batch, n), generator=torch.Generator().manual_seed(seed))


@st.composite
def attentions(draw):
    """An attention with random options, its input and the lengths of its rows."""
    causal = draw(st.booleans())
    num_scales, r = draw(st.integers(1, 4)), draw(st.integers(2, 3))
    fine = draw(st.booleans())
    least = 1 if not causal else max(1, r - 1) if fine else 2 * r ** (num_scales - 1) - 1
    torch.manual_seed(draw(st.integers(0, 100)))
    module = MultiscaleAttention(
        8,
        2,
        num_scales,
        HierarchicalDecomposition(8, num_scales, r, causal=causal),
        causal=causal,
        attention=draw(st.sampled_from(["windowed", "full"])),
        window=least + draw(st.integers(0, 6)),
        coarsest_window=draw(st.sampled_from([None, 1, 2, 5])),
        query_resolution="fine" if fine else "coarse",
        projections=draw(st.sampled_from(["scale", "shared"])),
        rotary_base=draw(st.sampled_from([None, 100.0])),
    ).double()
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.6)
    n = draw(st.integers(1, 60))
    lengths = torch.tensor(draw(st.lists(st.integers(0, n), min_size=3, max_size=3)))
    return module, torch.randn(3, n, 8, dtype=torch.float64), draw(st.sampled_from([None, lengths]))


def who_sees_whom(module, scale, queries, cells, length):
    """By the definition, pair by pair."""
    stride = module.decomposition.compression_ratio**scale
    fine, causal = module.query_resolution == "fine", module.causal
    coarsest = scale == module.num_scales - 1
    window = None if module.attention == "full" else module.coarsest_window if coarsest else module.window
    exist = length // stride if causal else math.ceil(length / stride)
    seen = torch.zeros(queries, cells, dtype=torch.bool)
    for query in range(length if fine else exist):
        own = query if not fine else (query + 1) // stride - 1 if causal else query // stride
        for cell in range(exist if own >= 0 else 0):
            reach = math.inf if window is None else window - 1 if causal else window // 2
            seen[query, cell] = abs(cell - own) <= reach and (cell <= own or not causal)
    return seen


@settings(max_examples=60)
@given(attentions())
def test_probabilities_times_values_are_the_answers_and_rows_sum_to_one(drawn):
    module, x, lengths = drawn
    values = module.decomposition.pyramid(module.value(x), lengths)
    maps = attention_probabilities(module, x, lengths)
    for scale, (p, v, answer) in enumerate(zip(maps, values, module.answers(x, lengths), strict=True)):
        made = torch.einsum("bhqk,bkhc->bqhc", p, v.unflatten(2, (2, -1))).flatten(2)
        for row, length in enumerate([x.shape[1]] * 3 if lengths is None else lengths.tolist()):
            seen = who_sees_whom(module, scale, *p.shape[2:], length)
            assert torch.equal(p[row] > 0, seen.expand_as(p[row]))
            there = seen.any(1)
            torch.testing.assert_close(p[row].sum(2), there.double().expand(2, -1), rtol=0, atol=ROUNDING)
            torch.testing.assert_close(made[row, there], answer[row, there], rtol=0, atol=ROUNDING)


@variants
@modes
def test_weights_are_what_the_aggregation_returns(variant, causal, caught):
    model = build(variant, causal=causal).double()
    x = ids(2, 41)
    model(x)
    records = inspect_transformer(model, x)
    assert len(records) == 2
    # The first two are of the plain run, two more of the run that was recorded.
    for record, solution in zip(records, caught[:2], strict=True):
        assert isinstance(record, BlockRecord)
        weights = solution.weights if solution.weights.ndim == 4 else solution.weights[:, :, None]
        residual = solution.residual if solution.weights.ndim == 4 else solution.residual[:, :, None]
        there = record.available[:, :, None].expand_as(weights)
        assert torch.equal(record.weights[there], weights[there])
        assert record.weights[~there].isnan().all()
        assert (weights[~there] == 0).all()
        assert torch.equal(record.residual, residual)
        r = model.layers[0].attention.decomposition.compression_ratio
        assert record.strides == tuple(r**scale for scale in range(len(record.strides)))
        expected = [[not causal or t + 1 >= stride for stride in record.strides] for t in range(41)]
        assert record.available.tolist() == [expected] * 2


@pytest.mark.parametrize("granularity", ["sequence", "head"])
def test_weights_of_a_whole_sequence_stand_at_each_of_its_tokens(granularity, caught):
    model = build(causal=False, granularity=granularity).double()
    record = inspect_transformer(model, ids(2, 13))[0]
    weights = caught[0].weights
    assert record.weights.shape == (2, 13, 2 if granularity == "head" else 1, 3)
    assert record.residual.shape == record.weights.shape[:3]
    for t in range(13):
        assert torch.equal(record.weights[:, t].reshape(weights.shape), weights)


@modes
@pytest.mark.parametrize("variant", ["default", "nash", "fine, shared, nash per head, learned positions"])
def test_padding_changes_nothing_and_is_marked(variant, causal):
    model = build(variant, causal=causal, max_len=32).double()
    n, rows = 29, [(3, 21), (0, 29), (14, 1)]
    x, mask = ids(3, n + 5), torch.zeros(3, n + 5, dtype=torch.bool)  # more columns than max_len
    for row, (start, length) in enumerate(rows):
        mask[row, start : start + length] = True
    records = inspect_transformer(model, x, mask)
    for row, (start, length) in enumerate(rows):
        alone = inspect_transformer(model, x[row : row + 1, start : start + length])
        for record, other in zip(records, alone, strict=True):
            assert torch.equal(record.available[row].any(1), mask[row])
            assert torch.equal(record.weights[row].isnan().all(2).any(1), ~mask[row])
            assert torch.equal(record.residual[row].isnan().any(1), ~mask[row])
            inside = slice(start, start + length)
            assert torch.equal(record.available[row, inside], other.available[0])
            torch.testing.assert_close(
                record.weights[row, inside], other.weights[0], rtol=0, atol=1e-10, equal_nan=True
            )  # rounding, times what a solve makes of it
            for p, q in zip(record.attention, other.attention, strict=True):
                torch.testing.assert_close(p[row, :, : q.shape[2], : q.shape[3]], q[0], rtol=0, atol=1e-10)
                assert (p[row, :, q.shape[2] :] == 0).all()
                assert (p[row, :, :, q.shape[3] :] == 0).all()


@modes
@pytest.mark.parametrize("granularity", ["token", "token_head", "sequence", "head"])
def test_the_problems_of_a_model_are_those_whose_weights_it_uses(granularity, causal):
    if causal and granularity in ("sequence", "head"):
        pytest.skip("refused: they would tell a token of those after it")
    transformer = build(causal=causal, granularity=granularity)
    x, mask = ids(3, 21), torch.ones(3, 21, dtype=torch.bool)
    mask[1, 13:], mask[2, :4] = False, False
    records = inspect_transformer(transformer, x, mask)
    for record, problem in zip(records, fusion_problems(transformer, x, mask), strict=True):
        weights = record.weights[mask]  # a token after the other, as the problems are
        if granularity in ("sequence", "head"):
            weights = torch.stack([record.weights[row][mask[row]][-1] for row in range(3)])
        weights = weights.flatten(0, 1)
        assert problem.q.shape == weights.shape
        assert not problem.M.requires_grad
        assert torch.equal(solve(problem).weights, weights.nan_to_num(0.0))


def test_a_seed_chooses_passages_and_tokens_of_a_trained_model():
    transformer, text = build(), ids(1, 500)[0]
    source = TrainedProblems(transformer, text, block=1, problems=70)
    first, again, other = source(0), source(0), source(1)
    assert first.q.shape == (70, 3)
    assert first.q.dtype == torch.float64
    assert torch.equal(first.q, again.q)
    assert not torch.equal(first.q, other.q)
    assert bool(solve(first).converged.all())
    assert source.about == "ConvexAggregation: 3 scales"


@modes
@pytest.mark.parametrize("variant", ["default", "fine queries"])
def test_how_far_and_how_widely_queries_look(variant, causal):
    x = ids(1, 30)
    record = inspect_transformer(build(variant, causal=causal), x)[0]
    fine = record.query_resolution == "fine"
    for p, stride, far, wide in zip(
        record.attention, record.strides, record.distances(), record.entropies(), strict=True
    ):
        for query, row in enumerate(p[0, 1].tolist()):
            if not sum(row):
                assert far[0, 1, query].isnan()
                assert wide[0, 1, query].isnan()
                continue
            here = query if fine else query * stride + (stride - 1) / 2
            apart = sum(q * abs(cell * stride + (stride - 1) / 2 - here) for cell, q in enumerate(row))
            assert far[0, 1, query].item() == pytest.approx(apart, rel=1e-5, abs=1e-6)  # float32
            bits = -sum(q * math.log2(q) for q in row if q)
            assert wide[0, 1, query].item() == pytest.approx(bits, rel=1e-4, abs=1e-6)


@modes
@pytest.mark.parametrize("variant", ["default", "nash", "fine queries", "budget that learns"])
def test_a_scale_that_is_absent_gets_no_weight_wherever_there_is_another(variant, causal):
    model, x = build(variant, causal=causal), ids(2, 25)
    own, before = inspect_transformer(model, x), model(x)[0]
    with ablated(model, 1, blocks=[1]):
        first, second = inspect_transformer(model, x)
        assert torch.equal(first.weights.nan_to_num(), own[0].weights.nan_to_num())
        assert not second.available[..., 1].any()
        assert second.weights[..., 1].isnan().all()
        changed = model(x)[0]
    assert not torch.equal(changed, before)
    with ablated(model, 0):
        lone = ~own[0].available[0, :, 1:].any(1)
        assert torch.equal(inspect_transformer(model, x)[0].available[0, :, 0], lone)
        assert lone.tolist() == [causal and t == 0 for t in range(25)]  # cells of two tokens
    assert torch.equal(model(x)[0], before)


def test_steps_do_without_an_absent_scale_as_a_pass_does():
    model, x = build("default").double(), ids(2, 20)
    with ablated(model, 2):
        whole = model(x)[0]
        _, state = model.prefill(x[:, :19])
        torch.testing.assert_close(model.step(x[:, 19], state), whole[:, 19], rtol=0, atol=1e-10)


def test_a_swapped_scale_says_what_it_says_of_the_next_passage():
    model, x = build("fine queries"), ids(3, 25)
    same = x[:1].expand(3, -1)
    before, alike = model(x)[0], model(same)[0]
    with ablated(model, 2, "swapped"):
        assert torch.equal(model(same)[0], alike)  # passages that are the same have nothing to swap
        changed = model(x)[0]
        with pytest.raises(ValueError, match="at least two passages"):
            model(x[:1])
    assert torch.equal(changed[:, :2], before[:, :2])  # before there is a coarse cell
    assert not torch.isclose(changed[:, 4:], before[:, 4:]).all(2).any()
    assert torch.equal(model(x)[0], before)


@pytest.mark.parametrize(
    ("arguments", "word"), [((3,), "scale must"), ((0, "absent", [2]), "blocks must"), ((0, "gone"), "how must")]
)
def test_what_cannot_be_ablated_is_refused_in_words(arguments, word):
    with pytest.raises(ValueError, match=word), ablated(build(), *arguments):
        pass


def test_the_model_is_left_as_it_was():
    model = build("default")
    model.train()
    model.layers[0].eval()
    before = [module.training for module in model.modules()]
    record = inspect_transformer(model, ids(1, 20))[0]
    assert [module.training for module in model.modules()] == before
    assert not record.weights.requires_grad
    assert not any(p.requires_grad for p in record.attention)
    assert not any(block.aggregation._forward_pre_hooks for block in model.layers)
    with pytest.raises(ValueError, match="max_len is 300"):
        inspect_transformer(model, ids(1, 301))
    assert [module.training for module in model.modules()] == before
    assert not any(block.aggregation._forward_pre_hooks for block in model.layers)


def test_dropout_does_not_act():
    model = build("default")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    expected = inspect_transformer(model, ids(1, 20))
    model.train()
    for record, other in zip(inspect_transformer(model, ids(1, 20)), expected, strict=True):
        torch.testing.assert_close(record.weights, other.weights, rtol=0, atol=0, equal_nan=True)


def test_a_decoder_with_a_memory_and_given_embeddings():
    model = build("default", cross_attention=True).double()
    memory = torch.randn(2, 7, 16, dtype=torch.float64)
    by_ids = inspect_transformer(model, ids(2, 11), memory=memory)
    by_embeddings = inspect_transformer(model, model.token_emb(ids(2, 11)), memory=memory)
    for record, other in zip(by_ids, by_embeddings, strict=True):
        assert torch.equal(record.attention[1], other.attention[1])


def test_sequences_that_are_too_long_are_refused_in_words():
    with pytest.raises(ValueError, match=f"at most {MAX_TOKENS} tokens, but has {MAX_TOKENS + 1}"):
        inspect_transformer(build(max_len=8192), ids(1, MAX_TOKENS + 1))
