"""What the layers cost: the formulas are what torch counts, windows save what they promise, nothing is quadratic."""

from itertools import product

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from models import HierarchicalDecomposition, MAHABlock, MultiscaleAttention, scales_for
from models.cost import MixerShape, full_attention_cost, maha_cost

LENGTHS = [1, 3, 31, 64, 100, 257]
SHAPES = [
    {"attention": attention, "query_resolution": queries, "projections": projections, "causal": causal}
    for attention, queries, projections, causal in product(
        ["windowed", "full"], ["coarse", "fine"], ["scale", "shared"], [False, True]
    )
]


def counts(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return {str(operation): count for operation, count in counter.get_flop_counts().get("Global", {}).items()}


def build(d_model, num_heads, shape):
    options = vars(shape) | {}
    return MAHABlock(options.pop("d_model"), num_heads, 1, 0.0, **options)


def attention_on_meta(n, shape):
    with torch.device("meta"):
        return build(shape.d_model, 4, shape).attention, torch.empty(1, n, shape.d_model)


@pytest.mark.parametrize("options", SHAPES, ids=lambda options: " ".join(map(str, options.values())))
@pytest.mark.parametrize("more", [{}, {"dense": True, "decomposition_kernel": 6, "compression_ratio": 3}], ids=str)
def test_attention_costs_what_torch_counts(options, more):
    # 17 covers the gap of causal coarse queries; some of these lengths have more than 7 cells at the coarsest scale.
    shape = MixerShape(16, num_scales=3, window=17, coarsest_window=7, **options, **more)
    for n in LENGTHS:
        layer, x = attention_on_meta(n, shape)
        seen, cost = counts(lambda layer=layer, x=x: layer(x)), maha_cost(n, shape)
        assert sum(seen.values()) == cost.attention
        assert seen.get("aten.bmm", 0) == cost.scores


@pytest.mark.parametrize("strategy", ["convex", "nash"])
@pytest.mark.parametrize("options", [SHAPES[0], SHAPES[7], {**SHAPES[0], "dense": True, "gating": False}], ids=str)
def test_the_whole_mixer_costs_what_torch_counts(strategy, options):
    # On the CPU the counter does not see the fused kernel, but its parts.
    shape = MixerShape(8, num_scales=3, aggregation_strategy=strategy, window=9, coarsest_window=4, **options)
    block = build(8, 2, shape)
    for n in (1, 20, 37):
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            seen = counts(lambda n=n: block(torch.randn(1, n, 8)))
        feed_forward = 2 * n * 8 * 2
        assert sum(seen.values()) - feed_forward == maha_cost(n, shape).mixer


def test_backward_costs_twice_as_much_again():
    layer, x = attention_on_meta(100, MixerShape(16, num_scales=3, window=17, coarsest_window=7))
    both = counts(lambda: layer(x.requires_grad_())[0].sum().backward())
    assert sum(both.values()) == 3 * sum(counts(lambda: layer(x)).values())


def test_what_a_causal_kernel_skips_is_counted_pair_by_pair():
    d = 8
    assert full_attention_cost(5, d, skipped=True).scores == 4 * d * sum(range(1, 6))
    shape = MixerShape(d, num_scales=2, compression_ratio=2, attention="full", causal=True)
    pairs = sum(range(1, 10)) + sum(range(1, 5))  # nine tokens make four cells
    assert maha_cost(9, shape, skipped=True).scores == 4 * d * pairs
    bidirectional = MixerShape(d, num_scales=2, attention="full")
    assert maha_cost(9, bidirectional, skipped=True) == maha_cost(9, bidirectional)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("d_model", [256, 768, 4096])
@pytest.mark.parametrize(("scales", "ratio", "queries"), [(4, 2, "coarse"), (3, 4, "coarse"), (3, 4, "fine")], ids=str)
def test_scores_at_4096_tokens_are_81_per_cent_below_full_attention(d_model, causal, scales, ratio, queries):
    shape = MixerShape(d_model, scales, ratio, causal=causal, query_resolution=queries)
    assert maha_cost(4096, shape).scores < (1 - 0.81) * full_attention_cost(4096, d_model).scores


def test_attention_with_its_projections_is_81_per_cent_below_where_the_projections_are_few():
    def saved(d_model, causal):
        shape = MixerShape(d_model, 3, 4, projections="shared", causal=causal)
        return 1 - maha_cost(4096, shape).attention / full_attention_cost(4096, d_model).attention

    assert min(saved(256, causal=False), saved(256, causal=True)) > 0.81
    # At 768 channels the projections, which no window spares, are a fifth of full attention: 73 per cent are left.
    assert 0.70 < saved(768, causal=False) < 0.81


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("scales", "ratio"), [(4, 2), (3, 4)])
@pytest.mark.parametrize("queries", ["coarse", "fine"])
def test_from_4k_to_64k_the_cost_grows_as_the_length(causal, scales, ratio, queries):
    shape = MixerShape(768, scales, ratio, causal=causal, query_resolution=queries)
    small, middle, large = (maha_cost(n, shape) for n in (4096, 8192, 65536))
    assert 15.9 < large.attention / small.attention < 16.8
    assert 15.9 < large.mixer / small.mixer < 16.8
    # Of the scores alone: from where every scale has blocks. At 4,096 tokens 256 causal cells (r = 4) need none yet.
    assert 7.9 < large.scores / middle.scores < 8.1
    assert 15.9 < large.scores / small.scores < 16 * 1.21
    full = full_attention_cost(65536, 768).scores / full_attention_cost(4096, 768).scores
    assert full == 256


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("queries", ["coarse", "fine"])
def test_no_tensor_grows_faster_than_the_sequence(causal, queries):
    def largest(n):
        layer, x = attention_on_meta(n, MixerShape(64, 3, 4, causal=causal, query_resolution=queries))
        with LargestTensor() as seen:
            layer(x.requires_grad_())[0].sum().backward()
        return seen.numel

    n = 16384
    # Scores of 4 heads over three blocks of half a coarsest window, and no more.
    assert largest(n) <= 4 * 3 * 128 * n
    assert largest(4 * n) <= 4.1 * largest(n)


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_scales_for_gives_the_fewest_scales_that_bring_the_length_down(ratio):
    for max_len in [1, 2, 255, 256, 257, 1024, 4096, 65536, 100_003]:
        scales = scales_for(max_len, ratio, coarsest=256)
        assert -(-max_len // ratio ** (scales - 1)) <= 256
        assert scales == 1 or -(-max_len // ratio ** (scales - 2)) > 256


def test_with_scales_for_the_length_the_coarsest_scale_sees_everything_at_a_linear_cost():
    def cost(n):
        shape = MixerShape(64, scales_for(n, 4), 4, coarsest_window=None, query_resolution="fine", causal=True)
        layer, x = attention_on_meta(n, shape)
        assert sum(counts(lambda: layer(x)).values()) == maha_cost(n, shape).attention
        return maha_cost(n, shape).scores

    # n·log n where every token asks: one more scale for four times the tokens.
    assert cost(65536) / cost(4096) < 16 * 5 / 3 * 1.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "max_len must be at least 1, but got 0"),
        ((10, 1), "compression_ratio must be at least 2, but got 1"),
        ((10, 2, 0), "coarsest must be at least 1, but got 0"),
    ],
)
def test_scales_for_nothing_is_refused_in_words(arguments, message):
    with pytest.raises(ValueError, match=message):
        scales_for(*arguments)


def test_a_decomposition_alone_can_be_counted_too():
    with torch.device("meta"):
        cells = HierarchicalDecomposition(8, 3, 2, dense=True)
        layer = MultiscaleAttention(8, 2, 3, cells)
        x = torch.empty(1, 10, 8)
    streams = 2  # of tokens and of values
    assert maha_cost(10, MixerShape(8, 3, dense=True)).decomposition == streams * sum(counts(lambda: cells(x)).values())
    assert sum(counts(lambda: layer(x)).values()) == maha_cost(10, MixerShape(8, 3, dense=True)).attention
