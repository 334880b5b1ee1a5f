"""Sampling: what is drawn, how rows end, and that padding, batches and the cache change nothing."""

import math

import pytest
import torch
from causality import random_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import Decoder, generate
from models.generation import evaluating, sample_tokens

V = 7


class Chain:
    """A first-order chain: the logits of the next token are a row of a table. Counts its steps."""

    def __init__(self, table, max_len=None):
        self.table, self.steps = table, 0
        if max_len is not None:
            self.max_len = max_len

    def prefill(self, input_ids, attention_mask):
        n = input_ids.shape[1]
        columns = torch.arange(n).expand(input_ids.shape)
        last = columns[:, -1] if attention_mask is None else torch.where(attention_mask, columns, -1).amax(dim=1)
        return self.table[input_ids.gather(1, last[:, None])[:, 0]], 0

    def step(self, token_ids, cache):
        assert ((token_ids >= 0) & (token_ids < len(self.table))).all()
        self.steps += 1
        return self.table[token_ids], cache + 1


def counting(vocab=V):
    """The likeliest next token is the next number, modulo the vocabulary."""
    return Chain(torch.eye(vocab).roll(1, dims=1) * 10)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def frequencies(logits, count=20_000, **options):
    tokens = sample_tokens(logits.expand(count, -1), generator=seeded(), **options)
    return torch.bincount(tokens, minlength=logits.shape[-1]) / count


def assert_close_to_probabilities(frequency, p, count=20_000):
    assert (
        (frequency - p).abs() <= 5 * (p * (1 - p) / count).sqrt()
    ).all()  # five standard deviations, and exact zeros


LOGITS = torch.tensor([0.3, 2.0, -1.0, 1.1, 0.2, -3.0, 1.0])

# ---- one token


def test_greedy_takes_the_first_of_the_likeliest():
    assert sample_tokens(torch.tensor([[1.0, 3.0, 3.0], [5.0, 3.0, 0.0]]), do_sample=False).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax_of_the_logits_over_the_temperature(temperature):
    p = (LOGITS / temperature).softmax(0)
    assert_close_to_probabilities(frequencies(LOGITS, temperature=temperature), p)


@pytest.mark.parametrize("k", [1, 2, 4, 7, 100])
def test_top_k_draws_from_the_k_likeliest_in_proportion(k):
    p = LOGITS.softmax(0)
    kept = torch.where(p >= p.sort(descending=True).values[min(k, V) - 1], p, 0)
    assert_close_to_probabilities(frequencies(LOGITS, top_k=k), kept / kept.sum())


@pytest.mark.parametrize("top_p", [1e-6, 0.5, 0.9, 1.0])
def test_top_p_draws_from_the_smallest_set_that_has_the_probability(top_p):
    p, order = LOGITS.softmax(0).sort(descending=True)
    size = next(i for i in range(1, V + 1) if p[:i].sum() >= top_p - 1e-6)
    kept = torch.zeros(V)
    kept[order[:size]] = p[:size]
    assert_close_to_probabilities(frequencies(LOGITS, top_p=top_p), kept / kept.sum())


def test_top_p_looks_at_what_top_k_has_left():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # Of the first two the likeliest has 4/7 > 0.5; of all four it would have 0.4.
    assert frequencies(logits, top_k=2, top_p=0.5).tolist() == [1, 0, 0, 0]
    assert_close_to_probabilities(frequencies(logits, top_k=3, top_p=0.5), torch.tensor([4 / 7, 3 / 7, 0, 0]))


def test_top_k_keeps_k_of_equally_likely_tokens():
    assert frequencies(torch.zeros(V), top_k=3).nonzero().flatten().tolist() == [0, 1, 2]


@settings(max_examples=60)
@given(
    logits=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=9),
    top_k=st.none() | st.integers(1, 10),
    top_p=st.none() | st.floats(0.01, 1.0),
    temperature=st.floats(0.01, 50.0),
)
def test_what_is_drawn_is_among_the_kept(logits, top_k, top_p, temperature):
    z = torch.tensor(logits, dtype=torch.float64)
    drawn = sample_tokens(
        z.expand(64, -1), top_k=top_k, top_p=top_p, temperature=temperature, generator=seeded()
    ).unique()
    z = z / temperature
    likelier = (z[drawn, None] < z).sum(dim=1)
    if top_k is not None:
        assert (likelier < top_k).all()
        z = torch.where(z >= z.sort(descending=True).values[min(top_k, len(z)) - 1], z, -math.inf)
    p = z.softmax(0)
    if top_p is not None:
        before = (p * (z[drawn, None] < z)).sum(dim=1)
        assert (before < top_p + 1e-9).all()


def test_excluded_tokens_are_never_drawn_and_small_temperatures_do_not_overflow():
    logits = torch.tensor([[1.0, -math.inf, 0.5]]).expand(1000, -1)
    assert set(sample_tokens(logits, generator=seeded()).tolist()) == {0, 2}
    assert set(sample_tokens(logits, temperature=1e-42, generator=seeded()).tolist()) == {0}
    assert set(sample_tokens(1e4 * logits.half(), temperature=0.1, generator=seeded()).tolist()) == {0}


def test_rows_are_drawn_from_their_own_logits():
    logits = torch.full((5, V), -math.inf)
    logits[torch.arange(5), torch.tensor([3, 0, 6, 2, 2])] = 0
    for options in ({}, {"top_k": 2}, {"top_p": 0.9}, {"do_sample": False}):
        assert sample_tokens(logits, **options).tolist() == [3, 0, 6, 2, 2]


# ---- sequences


def test_prompts_come_first_as_they_were_given_then_the_new_tokens():
    ids = torch.tensor([[0, 3, 4], [6, 6, 1]])
    assert generate(counting(), ids, max_new_tokens=2).tolist() == [[0, 3, 4, 5, 6], [6, 6, 1, 2, 3]]


def test_a_prompt_padded_on_the_right_continues_its_last_real_token():
    ids = torch.tensor([[2, 0, 0], [1, 2, 3]])
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    assert generate(counting(), ids, mask, max_new_tokens=2).tolist() == [[2, 0, 0, 3, 4], [1, 2, 3, 4, 5]]


@pytest.mark.parametrize(("pad", "filling"), [(None, 6), (0, 0), (-100, -100), (V + 5, V + 5)])
def test_a_row_that_has_ended_is_filled_and_the_others_go_on(pad, filling):
    """The filling need not be a token: it is never read."""
    ids = torch.tensor([[5], [3]])
    out = generate(counting(), ids, max_new_tokens=4, eos_token_id=6, pad_token_id=pad)
    assert out.tolist() == [[5, 6, filling, filling], [3, 4, 5, 6]]


def test_it_stops_when_every_row_has_ended():
    model = counting()
    assert generate(model, torch.tensor([[5], [4]]), max_new_tokens=100, eos_token_id=6).shape == (2, 3)
    assert model.steps == 1
    assert generate(model, torch.tensor([[5]]), max_new_tokens=100, eos_token_id=6).shape == (1, 2)
    assert model.steps == 1


def test_no_step_is_made_that_nobody_reads():
    model = counting()
    generate(model, torch.tensor([[5]]), max_new_tokens=4)
    assert model.steps == 3


def test_an_end_inside_the_prompt_ends_nothing():
    assert generate(counting(), torch.tensor([[6, 1]]), max_new_tokens=2, eos_token_id=6).tolist() == [[6, 1, 2, 3]]


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.9}], ids=["all", "top_k", "top_p"])
def test_the_same_seed_gives_the_same_tokens_and_the_global_state_is_left_alone(options):
    model, ids = Chain(torch.randn(V, V, generator=seeded())), torch.zeros(3, 1, dtype=torch.int64)
    state = torch.get_rng_state()
    runs = [
        generate(model, ids, max_new_tokens=30, do_sample=True, generator=seeded(seed), **options).tolist()
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(state, torch.get_rng_state())
    again = [generate(model, ids, max_new_tokens=30, do_sample=True, **options).tolist() for _ in range(2)]
    assert again[0] != again[1]


def test_rows_that_end_do_not_change_what_the_others_draw():
    table = torch.randn(V, V, generator=seeded())
    ids = torch.zeros(4, 1, dtype=torch.int64)
    free = generate(Chain(table), ids, max_new_tokens=20, do_sample=True, generator=seeded())
    ended = generate(
        Chain(table), ids, max_new_tokens=20, do_sample=True, generator=seeded(), eos_token_id=3, pad_token_id=-1
    )
    for row, expected in zip(ended.tolist(), free.tolist(), strict=True):
        end = expected.index(3) + 1 if 3 in expected else len(expected)
        assert row[:end] == expected[: min(end, len(row))]
        assert all(token == -1 for token in row[end:])


def test_sampled_pairs_follow_the_chain():
    table = torch.randn(3, 3, generator=seeded())
    out = generate(
        Chain(table), torch.zeros(400, 1, dtype=torch.int64), max_new_tokens=100, do_sample=True, generator=seeded()
    )
    counts = torch.zeros(3, 3).index_put_(
        (out[:, :-1].flatten(), out[:, 1:].flatten()), torch.ones(400 * 100), accumulate=True
    )
    for frequency, p, count in zip(counts, table.softmax(dim=1), counts.sum(dim=1), strict=True):
        assert_close_to_probabilities(frequency / count, p, count)


# ---- with a model of this package


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return Decoder(V, 30, 2, 8, 2, num_layers=2).eval()


def without_cache(model, ids, count):
    for _ in range(count):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(dim=2)], dim=1)
    return ids


@pytest.mark.parametrize("side", ["left", "right", "holes"])
def test_a_padded_batch_continues_each_prompt_as_alone_and_without_a_cache(decoder, side):
    lengths, width = [1, 4, 10, 12], 12
    rows = [random_ids(1, m, V, seed=m) for m in lengths]
    ids, mask = random_ids(4, width, V, seed=99), torch.zeros(4, width, dtype=torch.bool)
    for i, (row, m) in enumerate(zip(rows, lengths, strict=True)):
        places = {"left": range(width - m, width), "right": range(m), "holes": range(0, width, width // m)[:m]}
        ids[i, list(places[side])], mask[i, list(places[side])] = row[0], True
    together = decoder.generate(ids, mask, max_new_tokens=18)
    assert torch.equal(together[:, :width], ids)
    for i, row in enumerate(rows):
        alone = decoder.generate(row, max_new_tokens=18)
        assert torch.equal(alone, without_cache(decoder, row, 18))
        assert torch.equal(together[i, width:], alone[0, row.shape[1] :])


def test_dropout_is_off_meanwhile_and_every_mode_is_put_back(decoder):
    ids = random_ids(1, 5, V)
    expected = generate(decoder, ids, max_new_tokens=20)
    decoder.train()
    decoder.blocks[0].eval()
    modes = [part.training for part in decoder.modules()]
    assert torch.equal(generate(decoder, ids, max_new_tokens=20), expected)
    assert [part.training for part in decoder.modules()] == modes
    with pytest.raises(ZeroDivisionError), evaluating(decoder):
        1 / sum(part.training for part in decoder.modules())
    assert [part.training for part in decoder.modules()] == modes


def test_one_can_train_on_what_was_generated(decoder):
    """Tensors made in inference mode cannot be saved for a backward pass."""
    out = generate(decoder, random_ids(2, 3, V), max_new_tokens=5, do_sample=True)
    assert not out.is_inference()
    decoder(out).sum().backward()
    assert decoder.embedding.weight.grad is not None


def test_nothing_is_recorded_for_a_backward_pass(decoder):
    class Spy(nn.Module):
        def prefill(self, input_ids, attention_mask):
            assert torch.is_inference_mode_enabled()
            return decoder.prefill(input_ids, attention_mask)

        step = decoder.step

    generate(Spy(), random_ids(2, 3, V), max_new_tokens=2)


@pytest.mark.parametrize("batch", [0, 1])
def test_any_batch_and_type_of_ids_work(decoder, batch):
    for ids in (random_ids(batch, 3, V), random_ids(batch, 3, V).int()):
        for options in ({}, {"do_sample": True, "top_k": 2}, {"eos_token_id": 1}):
            out = generate(decoder, ids, torch.ones_like(ids), max_new_tokens=4, **options)
            assert out.dtype == ids.dtype
            assert out.shape[0] == batch
            assert torch.equal(out[:, :3], ids)


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_sample": True, "temperature": 0.0}, "temperature must be positive, but got 0.0"),
        ({"do_sample": True, "temperature": -1.0}, "temperature must be positive"),
        ({"do_sample": True, "temperature": math.nan}, "temperature must be positive"),
        ({"do_sample": True, "top_k": 0}, "top_k must be at least 1, but got 0"),
        ({"do_sample": True, "top_p": 0.0}, r"top_p must be in \(0, 1\], but got 0.0"),
        ({"do_sample": True, "top_p": 1.1}, r"top_p must be in \(0, 1\]"),
        ({"temperature": 0.7}, "need do_sample=True"),
        ({"top_k": 3}, "need do_sample=True"),
        ({"top_p": 0.9}, "need do_sample=True"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, but got 0"),
    ],
)
def test_a_bad_option_is_named_before_the_model_runs(options, message):
    with pytest.raises(ValueError, match=message):
        generate(None, torch.zeros(1, 2, dtype=torch.int64), **{"max_new_tokens": 3} | options)


def test_more_tokens_than_the_model_reads_are_refused_before_it_runs():
    table = counting().table
    ids, mask = torch.zeros(2, 4, dtype=torch.int64), torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    assert generate(Chain(table, max_len=7), ids, mask, max_new_tokens=4).shape == (2, 8)  # padding does not count
    with pytest.raises(ValueError, match="max_new_tokens must be at most 4, but got 5: the model reads 7 tokens"):
        generate(Chain(table, max_len=7), ids, mask, max_new_tokens=5)
    assert generate(Chain(table), ids, mask, max_new_tokens=5).shape == (2, 9)


def test_a_bad_prompt_is_named():
    ids = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="input_ids must have shape"):
        generate(counting(), ids[0], max_new_tokens=1)
    with pytest.raises(TypeError, match="input_ids must be int64 or int32"):
        generate(counting(), ids.float(), max_new_tokens=1)
    with pytest.raises(ValueError, match="attention_mask must have shape"):
        generate(counting(), ids, torch.ones(2, 4, dtype=torch.bool), max_new_tokens=1)
    with pytest.raises(TypeError, match="attention_mask must be boolean or 0/1"):
        generate(counting(), ids, torch.ones(2, 3), max_new_tokens=1)
    with pytest.raises(ValueError, match="row 1 of attention_mask has none"):
        generate(counting(), ids, torch.tensor([[1, 1, 1], [0, 0, 0]]), max_new_tokens=1)
    with pytest.raises(ValueError, match="logits must have shape"):
        sample_tokens(torch.zeros(3))
