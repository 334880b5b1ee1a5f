"""Multiscale attention: nothing leaks, padding does not matter, and the fast paths equal the definition."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from models import HierarchicalDecomposition, MultiscaleAttention
from models.rotary import middle_of_cell, rotate
from models.windows import _window_mask

D, HEADS = 8, 2
LENGTHS = [*range(1, 28), 29, 31, 37, 41]
OPTIONS = {
    f"{attention} {queries}{name}": {"attention": attention, "query_resolution": queries, **more}
    for attention, queries, (name, more) in itertools.product(
        ("windowed", "full"), ("coarse", "fine"), (("", {}), (" rotary", {"rotary_base": 100.0}))
    )
}
OPTIONS["windowed coarse everywhere"] = {"query_resolution": "coarse", "coarsest_window": 2}
OPTIONS["windowed fine everywhere"] = {"query_resolution": "fine", "coarsest_window": 3}
for queries in ("coarse", "fine"):
    OPTIONS[f"windowed {queries} shared"] = {
        "query_resolution": queries,
        "projections": "shared",
        "rotary_base": 100.0,
        "coarsest_window": None,
    }

options = pytest.mark.parametrize("option", OPTIONS)
both_modes = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def build(option="windowed coarse", causal=False, window=7, r=2, num_scales=3, dtype=torch.float64, **decomposition):
    torch.manual_seed(0)
    pyramid = HierarchicalDecomposition(D, num_scales, r, causal=causal, **decomposition)
    module = MultiscaleAttention(D, HEADS, num_scales, pyramid, causal=causal, window=window, **OPTIONS[option])
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.6)
    return module.to(dtype)


def tokens(batch, n, dtype=torch.float64, seed=1):
    return torch.randn(batch, n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def padded(x, left, right):
    """Puts rows into longer ones, among garbage, and says where they are."""
    n = x.shape[1]
    filling = 1e3 * tokens(x.shape[0], left + n + right, x.dtype, seed=7)
    filling[:, left : left + n] = x
    mask = torch.zeros(x.shape[0], left + n + right, dtype=torch.bool)
    mask[:, left : left + n] = True
    return filling, mask


def reference(module, x):
    """Scale outputs and availability of one row (n, d) without padding: every score is written out, then masked."""
    n, r = len(x), module.decomposition.compression_ratio
    shared = module.projections == "shared"

    def cells_of(stream):
        return [c[0] for c in module.decomposition(stream).cells]

    cells, values = cells_of(x[None]), cells_of(module.value(x[None]))
    if shared:
        all_queries, all_keys = cells_of(module.queries[0](x[None])), cells_of(module.keys[0](x[None]))
    y, available = x.new_zeros(n, module.num_scales, D), torch.ones(n, module.num_scales, dtype=torch.bool)
    for scale in range(module.num_scales):
        coarsest = scale == module.num_scales - 1
        window = None if module.attention == "full" else module.coarsest_window if coarsest else module.window
        stride = r**scale
        for t in range(n):
            own = (t + 1) // stride - 1 if module.causal else t // stride
            available[t, scale] = own >= 0
            if own < 0:
                continue
            first, last = 0, own if module.causal else len(cells[scale]) - 1
            if window is not None:
                reach = window - 1 if module.causal else window // 2
                first, last = max(first, own - reach), min(last, own + reach)
            fine = module.query_resolution == "fine"
            if shared:
                query, keys = all_queries[0][t] if fine else all_queries[scale][own], all_keys[scale]
            else:
                query = module.queries[scale](x[t] if fine else cells[scale][own])
                keys = module.keys[scale](cells[scale])
            if module.rotary_base is not None:
                middle = torch.arange(len(keys)) * stride + (stride - 1) / 2
                query = turn(query, torch.tensor(float(t)) if fine else middle[own], module.rotary_base)
                keys = torch.stack([turn(k, p, module.rotary_base) for k, p in zip(keys, middle, strict=True)])
            for channels in torch.arange(D).chunk(HEADS):
                scores = keys[first : last + 1, channels] @ query[channels] / math.sqrt(len(channels))
                y[t, scale, channels] = scores.softmax(0) @ values[scale][first : last + 1, channels]
    return y, available


def turn(x, position, base):
    """Rotary positions by complex numbers, one vector (d) at a time."""
    frequency = base ** (-torch.arange(D // HEADS // 2).double() / (D // HEADS // 2))
    turned = torch.complex(*x.view(HEADS, 2, -1).unbind(1)) * torch.polar(
        torch.tensor(1.0).double(), position * frequency
    )
    return torch.stack([turned.real, turned.imag], dim=1).flatten()


@options
@both_modes
@pytest.mark.parametrize("r", [2, 3])
def test_every_path_equals_a_reference_that_writes_all_scores_out(option, causal, r):
    module = build(option, causal, window=17 if r == 3 else 7, r=r)
    for n in {1, r - 1, r, r**2 - 1, r**2, r**2 + 1, 23}:
        x = tokens(2, n)
        with torch.no_grad():
            y, available = module(x)
            for row in range(2):
                expected_y, expected_available = reference(module, x[row])
                torch.testing.assert_close(y[row], expected_y)
                assert torch.equal(available[row], expected_available)


@both_modes
@settings(max_examples=25)
@given(window=st.integers(1, 9), n=st.integers(1, 30), fine=st.booleans())
def test_any_window_equals_the_reference_at_any_length(causal, window, n, fine):
    window = max(window, 1 if fine or not causal else 7)
    module = build("windowed fine" if fine else "windowed coarse", causal, window)
    x = tokens(1, n)
    with torch.no_grad():
        torch.testing.assert_close(module(x)[0][0], reference(module, x[0])[0])


@both_modes
@pytest.mark.parametrize("queries", ["coarse", "fine"])
def test_windowed_equals_full_where_the_window_covers_everything(causal, queries):
    for n in (1, 9, 20):
        windowed, full = (build(f"{kind} {queries}", causal, 2 * n + 5) for kind in ("windowed", "full"))
        torch.testing.assert_close(windowed(tokens(2, n))[0], full(tokens(2, n))[0])


@options
@pytest.mark.parametrize("decomposition", [{}, {"kernel_size": 4}, {"mode": "pool"}], ids=["conv", "overlap", "pool"])
def test_tokens_from_p_on_change_no_bit_before_p(option, decomposition):
    module = build(option, causal=True, dtype=torch.float32, **decomposition)
    for n in LENGTHS:
        # Row p of the second batch differs from p on. Equal batches, so that equal kernels round equally.
        x, other = tokens(1, n, torch.float32), 10 * tokens(1, n, torch.float32, seed=2)
        kept = torch.arange(n) < torch.arange(n + 1)[:, None]
        with torch.no_grad():
            y, available = module(x.repeat(n + 1, 1, 1))
            changed_y, changed_available = module(torch.where(kept[..., None], x, other))
        assert torch.equal(y[kept], changed_y[kept])
        assert torch.equal(available, changed_available)


@options
def test_the_gradient_of_what_comes_before_p_is_zero_from_p_on(option):
    module = build(option, causal=True, dtype=torch.float32, kernel_size=4)
    for n in LENGTHS:
        before = torch.arange(n) < torch.arange(n + 1)[:, None]
        x = tokens(1, n, torch.float32).repeat(n + 1, 1, 1).requires_grad_()
        y, _ = module(x)
        (gradient,) = torch.autograd.grad((y * tokens(1, n, torch.float32, seed=3)[:, :, None])[before].sum(), x)
        assert (gradient[~before] == 0).all()
        assert (gradient[before] != 0).any(dim=-1).all()


@options
def test_a_prefix_alone_gives_what_it_gives_in_a_longer_sequence(option):
    module = build(option, causal=True)
    x = tokens(2, 41)
    with torch.no_grad():
        long_y, long_available = module(x)
        for n in LENGTHS:
            y, available = module(x[:, :n])
            torch.testing.assert_close(y, long_y[:, :n], rtol=0, atol=1e-11)
            assert torch.equal(available, long_available[:, :n])


@options
@both_modes
def test_padding_on_either_side_moves_no_real_token(option, causal):
    module = build(option, causal, dtype=torch.float32)
    for n, left, right in [(1, 3, 0), (5, 0, 9), (8, 1, 0), (9, 2, 3), (13, 7, 1), (17, 0, 1)]:
        x = tokens(2, n, torch.float32)
        long, mask = padded(x, left, right)
        with torch.no_grad():
            y, available = module(x)
            long_y, long_available = module(long, mask)
        torch.testing.assert_close(long_y[:, left : left + n], y, rtol=0, atol=1e-5)
        assert torch.equal(long_available[:, left : left + n], available)
        assert (long_y[~mask] == 0).all()
        assert (long_available[~mask] == torch.tensor([True, False, False])).all()


@options
@both_modes
@settings(max_examples=12)
@given(mask=st.lists(st.lists(st.booleans(), min_size=19, max_size=19), min_size=1, max_size=3))
def test_rows_with_any_mask_equal_their_real_tokens_alone(option, causal, mask):
    module = build(option, causal)
    mask = torch.tensor(mask)
    x = tokens(len(mask), 19)
    with torch.no_grad():
        y, available = module(x, mask)
        for row, real in enumerate(mask):
            if real.any():
                alone_y, alone_available = module(x[row : row + 1, real])
                torch.testing.assert_close(y[row, real], alone_y[0])
                assert torch.equal(available[row, real], alone_available[0])
            assert (y[row, ~real] == 0).all()
            packed = torch.cat([x[row, real], x[row, ~real]])[None]
            torch.testing.assert_close(module(packed, lengths=real.sum()[None])[0][0, : real.sum()], y[row, real])


@options
@both_modes
def test_padding_gets_no_gradient_and_a_row_of_padding_spoils_nothing(option, causal):
    module = build(option, causal)
    x = tokens(3, 17).requires_grad_()
    mask = torch.arange(17) >= torch.tensor([[0], [9], [17]])
    y, available = module(x, mask)
    gradient, *weights = torch.autograd.grad(y.square().sum(), (x, *module.parameters()))
    assert y.isfinite().all()
    assert available.any(dim=-1).all()
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).any(dim=-1).all()
    assert all(g.isfinite().all() for g in weights)


@options
@both_modes
def test_gradients_reach_every_parameter(option, causal):
    module = build(option, causal)
    for n in (1, 3, 12):
        module.zero_grad()
        module(tokens(2, n))[0].square().sum().backward()
        for name, weight in module.named_parameters():
            assert weight.grad is not None, name  # even where a scale has no cell yet: DDP waits for all of them
            assert n < 12 or (weight.grad != 0).all(), name


@pytest.mark.parametrize("option", ["windowed coarse rotary", "windowed fine", "full fine"])
@both_modes
def test_gradients_are_those_of_finite_differences(option, causal):
    module = build(option, causal, window=8 if "coarse" in option else 3)
    mask = torch.arange(9) >= torch.tensor([[2], [0]])
    x = tokens(2, 9).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x, mask)[0], (x,), fast_mode=True)


@options
@both_modes
def test_float32_and_bfloat16_autocast_agree_with_float64(option, causal):
    module = build(option, causal)
    x = tokens(2, 19)
    expected = module(x)[0]
    module = module.float()
    single, _ = module(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = module(x.float())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), expected, rtol=0, atol=0.1 * expected.abs().max().item())
    half.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert module.bfloat16()(x.bfloat16())[0].dtype == torch.bfloat16


@options
@both_modes
def test_a_strided_input_and_an_empty_batch_work(option, causal):
    module = build(option, causal)
    x = tokens(2, 13)
    torch.testing.assert_close(module(x.transpose(1, 2).contiguous().transpose(1, 2))[0], module(x)[0])
    y, available = module(x[:0])
    assert y.shape == (0, 13, 3, D)
    assert available.shape == (0, 13, 3)


@both_modes
@pytest.mark.parametrize("queries", ["coarse", "fine"])
def test_windowed_attention_makes_no_n_by_n_tensor_and_uses_the_fused_kernel(causal, queries):
    n, largest = 1024, 0

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    module = build(f"windowed {queries}", causal, window=31, num_scales=5, dtype=torch.float32)
    # Without the quadratic path, attention that cannot run fused raises.
    with torch.no_grad(), Watch(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        module(tokens(1, n, torch.float32))
        module(tokens(1, n, torch.float32), torch.arange(n)[None] > 5)
    assert largest <= n * 3 * 16 * 5


@both_modes
def test_no_query_of_a_window_is_left_without_a_key(causal):
    # An empty softmax is NaN in some of torch's kernels.
    real = None if causal else torch.tensor([0, 3, 20])
    for window in range(1, 9):
        assert _window_mask(20, window, causal, real, torch.device("cpu")).any(dim=-1).all()


def test_rotary_scores_depend_on_distances_only():
    q, k = tokens(1, 1).view(1, 1, 1, D), tokens(1, 1, seed=2).view(1, 1, 1, D)
    positions = torch.arange(30)
    query, key = (rotate(x.expand(1, 30, 1, D), positions, 50.0)[0, :, 0] for x in (q, k))
    torch.testing.assert_close(query[20] @ key[13], query[9] @ key[2])
    cells = rotate(k.expand(1, 9, 1, D), middle_of_cell(torch.arange(9), 3), 50.0)[0, :, 0]  # cell j: token 3j + 1
    torch.testing.assert_close(cells, key[1:28:3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide d_model = 8, but got 3"),
        ({"num_scales": 4}, "num_scales must be that of decomposition_module, 3, but got 4"),
        ({"d_model": 16}, "d_model must be that of decomposition_module, 8, but got 16"),
        ({"causal": False}, "causal must be that of decomposition_module, True, but got False"),
        ({"attention": "sparse"}, 'attention must be "windowed" or "full", but got .sparse'),
        ({"projections": "none"}, 'projections must be "scale" or "shared", but got .none'),
        ({"query_resolution": "medium"}, 'query_resolution must be "coarse" or "fine", but got .medium'),
        ({"window": 6}, r"window must be at least 7 \(2·r.* up to 6 tokens old\), but got 6"),
        ({"window": 0, "query_resolution": "fine"}, "window must be at least 1 .*, but got 0"),
        ({"coarsest_window": 0}, "coarsest_window must be at least 1, but got 0"),
        ({"num_heads": 8, "rotary_base": 10.0}, "rotary_base needs an even number of channels per head, but got 1"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, message):
    pyramid = HierarchicalDecomposition(D, 3, 2, causal=True)
    arguments = {"d_model": D, "num_heads": HEADS, "num_scales": 3, "causal": True, **arguments}
    with pytest.raises(ValueError, match=message):
        MultiscaleAttention(decomposition_module=pyramid, **arguments)


def test_inputs_of_the_wrong_shape_are_refused_by_name():
    module = build()
    with pytest.raises(ValueError, match=r"x must have shape \(batch, n, 8\).* but got \(5, 8\)"):
        module(tokens(1, 5)[0])
    with pytest.raises(ValueError, match=r"mask must have shape \(1, 5\).* but got \(1, 6\)"):
        module(tokens(1, 5), torch.ones(1, 6).bool())
    with pytest.raises(TypeError, match="mask must be boolean"):
        module(tokens(1, 5), torch.ones(1, 5))
    with pytest.raises(ValueError, match=r"lengths must have shape \(1,\), but got \(2,\)"):
        module(tokens(1, 5), lengths=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="give one of them"):
        module(tokens(1, 5), torch.ones(1, 5).bool(), lengths=torch.tensor([5]))
