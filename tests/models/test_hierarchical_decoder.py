"""The hierarchical decoder: causal in truth, at any length, under any padding, with and without its cache."""

import io
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
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from models import Decoder, HierarchicalDecoder
from models.hierarchical_decoder import sinusoids
from models.tree_attention import TreeAttention

V, D, HEADS = 19, 8, 2
TREES = {  # sequence_length, levels, positions
    "even": (72, 3, "sinusoidal"),  # chunks of 9
    "rounded up": (70, 4, "sinusoidal"),  # chunks of 5, the last two empty
    "single tokens": (32, 5, "sinusoidal"),  # chunks of 1
    "no level": (70, 0, "sinusoidal"),
    "even, rotary": (72, 3, "rotary"),
    "rounded up, rotary": (70, 4, "rotary"),
}
trees = pytest.mark.parametrize("tree", TREES)


def build(tree="even", dtype=torch.float32, **options):
    torch.manual_seed(0)
    sequence_length, levels, positions = TREES[tree] if isinstance(tree, str) else (*tree, "sinusoidal")
    options = {"drop_out": 0.0, "positions": positions} | options
    return Decoder(V, sequence_length, HEADS, D, levels, **options).to(dtype).eval()


def reference(model, ids):
    """Hidden states of one row, token by token and head by head, every attention written out."""
    rotary = model.positions == "rotary"
    x = list(model.embedding(ids) * model.embedding_scale)
    if not rotary:
        x = [token + place for token, place in zip(x, sinusoids(torch.arange(len(ids)), D).double(), strict=True)]

    def turned(vector, position):
        """By its place in the whole row, as complex numbers."""
        half = len(vector) // 2
        angle = position * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        z = torch.complex(vector[:half], vector[half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((z.real, z.imag)) if rotary else vector

    def answer(attention, t, places):
        token, context = attention.norm(x[t]), attention.norm(torch.stack([x[place] for place in places]))
        parts = []
        for q, k, v in zip(
            *(w.weight.chunk(HEADS) for w in (attention.query, attention.key, attention.value)), strict=True
        ):
            keys = torch.stack([turned(k @ other, place) for other, place in zip(context, places, strict=True)])
            scores = keys @ turned(q @ token, t) / math.sqrt(D // HEADS)
            parts.append(scores.softmax(0) @ (context @ v.T))
        return attention.output(torch.cat(parts))

    for block in model.blocks:
        for tree in (block.attention1, block.attention2):
            c = tree.chunk
            x = [token + answer(tree.leaf, t, range(t // c * c, t + 1)) for t, token in enumerate(x)]
            for level, node in enumerate(tree.nodes):
                m = c * 2**level
                x = [
                    token + answer(node, t, range((t // m - 1) * m, t // m * m)) if t // m % 2 else token
                    for t, token in enumerate(x)
                ]
        x = [token + block.ffn(token) for token in x]
    return model.norm(torch.stack(x))


# ---- what it computes


@trees
def test_logits_are_those_of_a_reference_that_writes_every_attention_out(tree):
    model = build(tree, torch.float64)
    for n in (1, 2, 9, 10, 19, 32):
        ids = random_ids(2, n, V)
        with torch.no_grad():
            expected = torch.stack([model.head(reference(model, row)) for row in ids])
            torch.testing.assert_close(model(ids), expected)


def test_training_false_gives_probabilities_without_dropout_and_leaves_the_mode_alone():
    model = build(drop_out=0.5).train()
    model.dropout.eval()
    modes = [part.training for part in model.modules()]
    ids = random_ids(2, 20, V)
    p = model(ids, training=False)
    assert [part.training for part in model.modules()] == modes
    torch.testing.assert_close(p, model.eval()(ids).softmax(dim=2))
    torch.testing.assert_close(p.sum(dim=2), torch.ones(2, 20))


def test_dropout_acts_in_training_mode():
    model, ids = build(drop_out=0.5).train(), random_ids(1, 20, V)
    assert not torch.equal(model(ids), model(ids))


def test_positions_are_fixed_sinusoids():
    x = sinusoids(torch.arange(50), 7)
    for position in (0, 1, 49):
        for channel in range(7):
            angle = position / 10000 ** (channel // 2 * 2 / 7)
            assert x[position, channel] == pytest.approx(math.cos(angle) if channel % 2 else math.sin(angle), abs=1e-5)
    assert not any("pos" in name for name in build().state_dict())


def test_tied_weights_are_one_parameter():
    tied, free = build(tie_weights=True), build()
    assert tied.head.weight is tied.embedding.weight
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters()) == V * D
    ids = random_ids(1, 20, V)
    with torch.no_grad():
        expected = tied.double().head(reference(tied, ids[0]))
        torch.testing.assert_close(tied(ids)[0], expected)
    assert tied.embedding_scale == math.sqrt(D)
    assert 0.3 < expected.std() < 3  # logits of order one, as without


def test_decoder_is_the_hierarchical_decoder():
    assert Decoder is HierarchicalDecoder


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch_and_int32_work(batch):
    model, ids = build(), random_ids(batch, 20, V)
    mask = torch.ones_like(ids)
    assert model(ids).shape == (batch, 20, V)
    assert torch.equal(model(ids), model(ids.int()))
    torch.testing.assert_close(model(ids, mask), model(ids))
    assert model.prefill(ids, mask)[0].shape == (batch, V)


# ---- no leak


@trees
def test_no_token_reaches_an_output_before_it_at_any_length(tree):
    model = build(tree)
    for n in range(1, min(70, model.sequence_length) + 1):
        assert_no_leak(model, n, V)


def test_no_token_reaches_an_output_before_it_in_long_sequences():
    model = build((1000, 4), num_layers=2)  # chunks of 63
    for n in (499, 504, 505, 997, 1000):
        assert_no_leak(model, n, V, positions=[1, 62, 63, 64, 125, 126, 127, 251, 252, 253, 498])


@trees
def test_no_gradient_reaches_a_token_after_the_output(tree):
    model = build(tree)
    for n in (*range(1, 11), 31):
        assert_no_gradient_leak(model, model.embedding, random_ids(1, n, V))


@trees
def test_a_prefix_alone_gives_what_it_gives_in_a_longer_sequence(tree):
    model = build(tree, torch.float64)
    n = model.sequence_length
    assert_prefix_stable(model, random_ids(1, n, V), atol=1e-12, rtol=1e-12)
    assert_prefix_stable(model.float(), random_ids(1, n, V), range(1, n, 5))


def test_trained_on_random_tokens_it_does_not_beat_the_entropy_though_it_learns_what_it_may_see():
    vocab, n, batch = 8, 24, 32
    floor = math.log(vocab)

    def train(shift):
        torch.manual_seed(0)
        model = Decoder(vocab, n, 2, 16, 1, 0.0)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for step in range(70):
            ids = random_ids(batch, n + 1, vocab, seed=step)
            logits = model(ids[:, :-1])
            loss = cross_entropy(logits.flatten(0, 1), ids[:, shift : n + shift].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return sum(losses[-20:]) / 20

    # Fresh tokens at every step: the expected loss is at least the floor. 20 losses of 768 tokens each, whose spread
    # is below 0.2 nats a token near the uniform guess, so the mean is good to 0.2 / √15,000 = 0.0016.
    assert train(shift=1) > floor - 0.005
    assert train(shift=0) < 0.1 * floor  # the token that it reads: what a leak of one position would reach


# ---- the faults of the published decoder


@pytest.mark.parametrize("tree", [(40, 3), (37, 3), (33, 5), (13, 0)])
def test_every_token_sees_itself_and_every_token_before_it(tree):
    """The published mask is inverted: position i sees only those after it."""
    model, n = build(tree, torch.float64), tree[0]
    x = model._embed(random_ids(1, n, V), torch.arange(n)).detach().requires_grad_()
    y = model.blocks[0].attention1(x)
    for t in range(n):
        (gradient,) = torch.autograd.grad(y[0, t].square().sum(), x, retain_graph=True)
        assert torch.equal(gradient[0].abs().sum(dim=1) > 0, torch.arange(n) <= t)


def test_a_right_sibling_keeps_its_own_content():
    """The published right sibling becomes a mixture of the left one's values."""
    torch.manual_seed(0)
    tree = TreeAttention(D, HEADS, chunk=4, levels=3, dropout=0.0)
    x = torch.randn(2, 32, D)
    for node in tree.nodes:
        nn.init.zeros_(node.output.weight)
        nn.init.zeros_(node.output.bias)
    assert torch.equal(tree(x), tree._attend_leaves(x))  # siblings add to what is there, and do nothing else


def test_a_left_sibling_passes_unchanged():
    torch.manual_seed(0)
    tree = TreeAttention(D, HEADS, chunk=4, levels=3, dropout=0.0)
    x = torch.randn(2, 32, D)
    for level in range(3):
        y, m = tree._attend_siblings(x, level), 4 * 2**level
        same = (x == y).all(dim=2).all(dim=0)
        assert torch.equal(same, torch.arange(32) // m % 2 == 0)


def test_a_longer_sequence_is_refused_in_words():
    model = build((10, 2))
    with pytest.raises(ValueError, match=r"a row has 11 tokens, but .* sequence_length = 10"):
        model(random_ids(1, 11, V))
    with pytest.raises(ValueError, match="a row has 11 tokens"):
        model.prefill(random_ids(1, 11, V))
    _, cache = model.prefill(random_ids(1, 10, V))
    with pytest.raises(ValueError, match="a row has 11 tokens"):
        model.step(torch.zeros(1, dtype=torch.int64), cache)


def test_padding_does_not_count_as_length():
    model, ids = build((10, 2)), random_ids(2, 14, V)
    mask = torch.arange(14) >= torch.tensor([[4], [9]])
    torch.testing.assert_close(model(ids, mask)[0, 4:], model(ids[:1, 4:])[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(model(ids, mask)[1, 9:], model(ids[1:, 9:])[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.prefill(ids, mask)[0], model(ids, mask)[:, -1], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="a row has 11 tokens"):
        model(ids, torch.arange(14) >= 3 * torch.ones(2, 1))


def test_chunk_borders_follow_sequence_length_and_not_the_length():
    model = build((32, 2))
    assert model.chunk == 8
    x = torch.randn(1, 12, D)
    leaves = model.blocks[0].attention1._attend_leaves
    torch.testing.assert_close(leaves(x)[:, 8:], leaves(x[:, 8:]))


@pytest.mark.parametrize("sequence_length", [1, 2, 3, 7, 8, 9])
def test_more_levels_than_the_sequence_has_tokens_for_are_refused_in_words(sequence_length):
    most = int(math.log2(sequence_length))
    assert build((sequence_length, most))(random_ids(1, sequence_length, V)).isfinite().all()
    with pytest.raises(ValueError, match=f"levels must be from 0 to log2\\(sequence_length\\), here {most}"):
        build((sequence_length, most + 1))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1, but got 0"),
        ({"sequence_length": 0}, "sequence_length must be at least 1"),
        ({"heads": 3}, "heads must divide d_model = 8, but got 3"),
        ({"levels": -1}, "levels must be from 0"),
        ({"drop_out": 1.0}, "drop_out must be in"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"d_ff": 0}, "d_ff must be at least 1"),
        ({"positions": "learned"}, 'positions must be "sinusoidal" or "rotary", but got \'learned\''),
        ({"positions": "rotary", "heads": 8}, "need an even number of channels per head, but got 1"),
    ],
)
def test_a_bad_argument_is_named(changed, message):
    arguments = {"vocab_size": V, "sequence_length": 16, "heads": HEADS, "d_model": D, "levels": 2}
    with pytest.raises(ValueError, match=message):
        Decoder(**arguments | changed)


def test_a_bad_input_is_named():
    model, ids = build(), random_ids(2, 5, V)
    for bad in (ids[0], ids[:, :0]):
        with pytest.raises(ValueError, match="input_ids must have shape"):
            model(bad)
    with pytest.raises(TypeError, match=r"input_ids must be int64 or int32, but got torch\.float32"):
        model(ids.float())
    with pytest.raises(ValueError, match=r"attention_mask must have shape \(2, 5\)"):
        model(ids, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="attention_mask must be boolean or 0/1"):
        model(ids, torch.zeros(2, 5))  # an additive mask would be understood the wrong way round
    with pytest.raises(ValueError, match="row 1 of attention_mask has none"):
        model.prefill(ids, torch.tensor([[1] * 5, [0] * 5]))
    with pytest.raises(ValueError, match=r"token_ids must have shape \(2,\)"):
        model.step(ids[:, :1], model.prefill(ids)[1])


# ---- padding


@trees
def test_real_tokens_do_not_depend_on_padding(tree):
    assert_padding_invariant(build(tree, num_layers=2), [1, 2, 9, 10, 19, 31], V, extra=5, holes=True)


def test_no_gradient_reaches_padding():
    model, ids = build(), random_ids(3, 30, V - 1)
    mask = torch.arange(30) >= torch.tensor([[0], [9], [29]])
    ids[~mask] = V - 1
    (model(ids, mask) * mask[..., None]).square().sum().backward()
    assert (model.embedding.weight.grad[-1] == 0).all()
    assert (model.embedding.weight.grad[ids[mask]] != 0).any(dim=1).all()


def test_a_row_without_a_real_token_is_finite():
    assert build()(random_ids(1, 5, V), torch.zeros(1, 5, dtype=torch.bool)).isfinite().all()


# ---- cache


@trees
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_cached_steps_give_the_logits_of_the_full_pass(tree, left):
    """Every row passes chunk borders at another step than the others."""
    model = build(tree, num_layers=2)
    assert_cached_equals_full(model, model, [1, 2, 9, 10, 18], model.sequence_length, V, left=left)


def test_cached_equals_full_for_every_split():
    model = build((24, 3))
    for m in range(1, 25):
        assert_cached_equals_full(model, model, [m], min(m + 7, 24), V)  # chunks of 3: two borders at least


def test_the_cache_holds_sequence_length_tokens_for_each_attention():
    for tree in ((64, 3), (64, 6), (64, 0)):
        model = build(tree, num_layers=3)
        _, cache = model.prefill(random_ids(5, 7, V))
        assert cache.keys.shape == cache.values.shape == (6, 5, HEADS, 64, D // HEADS)
        assert cache.lengths.tolist() == [7] * 5


def test_no_gradient_is_recorded_by_the_cache():
    logits, cache = build().prefill(random_ids(1, 7, V))
    assert not logits.requires_grad
    assert not cache.keys.requires_grad


# ---- cost


def pairs_by_definition(n, chunk, levels):
    """Pairs of tokens whose score is computed; in a leaf the upper half is, too."""
    leaves = sum(min(chunk, n - start) ** 2 for start in range(0, n, chunk))
    spans = [(chunk * 2**level, start) for level in range(levels) for start in range(0, n, 2 * chunk * 2**level)]
    return leaves + sum(m * min(m, max(0, n - start - m)) for m, start in spans)


def linear_flops(n, chunk, levels, d, d_ff, vocab):
    projections = 4 * n
    for m in (chunk * 2**level for level in range(levels)):
        right = sum(t // m % 2 for t in range(n))
        left = sum(m for start in range(0, n, 2 * m) if n > start + m)
        projections += 2 * right + 2 * left
    return 2 * (2 * projections * d * d + 2 * n * d * d_ff + n * d * vocab)


def counted_flops(model, n):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, n, dtype=torch.int64, device="meta"))
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("sequence_length", "levels", "n"),
    [(1024, 3, 1024), (1024, 3, 700), (1024, 3, 65), (1000, 4, 997), (64, 6, 64), (512, 0, 300)],
)
def test_flops_are_those_of_the_formula(sequence_length, levels, n):
    d, vocab = 32, 10
    with torch.device("meta"):
        model = Decoder(vocab, sequence_length, 4, d, levels).eval()
    scores = 2 * 4 * d * pairs_by_definition(n, model.chunk, levels)  # two attentions; scores and values
    assert counted_flops(model, n) == scores + linear_flops(n, model.chunk, levels, d, 4 * d, vocab)


@pytest.mark.parametrize("levels", [0, 1, 3, 5])
def test_attention_costs_half_of_full_attention_and_as_much_as_causal_attention_needs(levels):
    n = 1024
    chunk = n // 2**levels
    assert 2 * pairs_by_definition(n, chunk, levels) == n * n + n * n // 2**levels
    skipped = n // chunk * chunk * (chunk - 1) // 2  # the upper halves of the leaves
    assert pairs_by_definition(n, chunk, levels) - skipped == n * (n + 1) // 2


# ---- training


def test_gradients_reach_every_parameter():
    model = build()
    model(random_ids(2, 72, V)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad != 0).any(), name


@trees
def test_every_parameter_has_a_gradient_at_any_length(tree):
    """Short batches never meet the upper levels; without a gradient there, distributed training would stop."""
    model = build(tree)
    for n in (1, 2, 9, 32):
        model.zero_grad()
        model(random_ids(2, n, V)).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    tree = TreeAttention(4, 2, chunk=2, levels=2, dropout=0.0).double()
    assert torch.autograd.gradcheck(tree, torch.randn(1, 7, 4, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_training_step_gives_the_numbers_of_eager(backend):
    model = build((16, 1))
    ids, mask = random_ids(2, 14, V), torch.arange(13) >= torch.tensor([[0], [4]])
    steps = []
    for forward in (model, torch.compile(model, fullgraph=True, backend=backend)):
        model.zero_grad()
        loss = cross_entropy(forward(ids[:, :-1], mask)[mask], ids[:, 1:][mask])
        loss.backward()
        steps.append((loss.detach(), [p.grad.clone() for p in model.parameters()]))
    torch.compiler.reset()
    torch.testing.assert_close(steps[0], steps[1], atol=1e-5, rtol=1e-4)  # float32, sums in another order


@pytest.mark.parametrize("how", ["autocast", "bfloat16"])
def test_half_precision_trains_and_generates(how):
    model = build(num_layers=2)
    ids = random_ids(2, 40, V)
    mask = torch.arange(40) >= torch.tensor([[0], [11]])
    expected = model(ids, mask)[mask]
    if how == "bfloat16":
        model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        logits = model(ids, mask)
        assert logits.dtype == torch.bfloat16
        # bfloat16 has 8 bits: roundings of 2^-8, some of them in a row, of logits of order one.
        torch.testing.assert_close(logits[mask].float(), expected, atol=0.1, rtol=0.1)
        logits.float().square().mean().backward()
        last, cache = model.prefill(ids[:, :-1], mask[:, :-1])
        assert cache.keys.dtype == torch.bfloat16
        last, cache = model.step(ids[:, -1], cache)
        torch.testing.assert_close(last.float(), logits[:, -1].float(), atol=0.1, rtol=0.1)
        assert model.generate(ids, mask, max_new_tokens=3, do_sample=True, top_p=0.9).shape == (2, 43)
    assert all(p.grad.isfinite().all() and (p.grad != 0).any() for p in model.parameters())


@pytest.mark.parametrize("options", [{}, {"tie_weights": True}], ids=["free", "tied"])
def test_a_saved_model_gives_the_same_bits(options):
    model, file = build(num_layers=2, **options), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    torch.manual_seed(1)
    other = Decoder(V, 72, HEADS, D, 3, num_layers=2, **options).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    ids = random_ids(2, 50, V)
    assert torch.equal(model(ids), other(ids))
