"""The decomposition and the way back: what a cell sees, at any length and under any padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import HierarchicalDecomposition
from models.decomposition import Packing
from models.upsampling import group_tokens, ungroup_tokens, upsample

D = 3
KINDS = {
    "depthwise": {},
    "overlapping": {"kernel_size": 2},  # times r
    "wide": {"kernel_size": 3},  # times r
    "dense": {"dense": True},
    "dense and overlapping": {"dense": True, "kernel_size": 2},
    "pooling": {"mode": "pool"},
}
LENGTHS = [*range(1, 28), 29, 31, 37, 41]

kinds = pytest.mark.parametrize("kind", KINDS)
both_modes = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def decomposition(kind="depthwise", causal=False, r=2, num_scales=4, dtype=torch.float64):
    options = dict(KINDS[kind])
    if "kernel_size" in options:
        options["kernel_size"] *= r
    torch.manual_seed(0)
    module = HierarchicalDecomposition(D, num_scales, r, causal=causal, **options)
    for weight in module.parameters():
        nn.init.normal_(weight)
    return module.to(dtype)


def tokens(batch, n, dtype=torch.float64, seed=1):
    return torch.randn(batch, n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def reference_cells(module, x):
    """The cells of one row (n, d) of real tokens, one at a time, from the definition."""
    r, n = module.compression_ratio, len(x)
    scales, below = [x], list(x)
    for scale in range(1, module.num_scales):
        stride = r**scale
        if module.mode == "pool":
            chunks = [x[i : i + stride] for i in range(0, n, stride)]
            scales.append([c.mean(dim=0) for c in chunks if len(c) == stride or not module.causal])
            continue
        overlap = module.kernel_size - r
        reach_back = overlap if module.causal else overlap // (2 * r) * r
        taps = module.weights[scale - 1].flatten(0, 1)
        count = n // stride if module.causal else -(-n // stride)
        cells = []
        for j in range(count):
            total = torch.zeros(D, dtype=x.dtype)
            for i, tap in enumerate(taps):
                k = j * r - reach_back + i
                if 0 <= k < len(below):
                    total = total + (below[k] @ tap if module.dense else below[k] * tap)
            cells.append(total)
        below = cells
        scales.append([c * stride / min(stride, n - j * stride) for j, c in enumerate(cells)])
    return [torch.stack(list(c)) if len(c) else torch.zeros(0, D, dtype=x.dtype) for c in scales]


@kinds
@both_modes
@pytest.mark.parametrize("r", [2, 3])
def test_every_cell_is_what_its_definition_says_at_every_length(kind, causal, r):
    module = decomposition(kind, causal, r, num_scales=3)
    for n in range(1, 2 * r**2 + 3):
        x = tokens(2, n)
        scales = module(x)
        for row in range(2):
            for cells, mask, expected in zip(scales.cells, scales.masks, reference_cells(module, x[row]), strict=True):
                torch.testing.assert_close(cells[row], expected)
                assert mask.all()


def test_scale_zero_is_the_input_itself():
    x = tokens(2, 5)
    assert decomposition()(x).cells[0] is x


@both_modes
def test_an_untrained_convolution_is_average_pooling(causal):
    x = tokens(2, 13)
    pool = HierarchicalDecomposition(D, 3, 2, "pool", causal=causal)
    for dense in (False, True):
        conv = HierarchicalDecomposition(D, 3, 2, causal=causal, dense=dense).double()
        for a, b in zip(conv(x).cells, pool(x).cells, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("r", [2, 3, 4])
def test_a_last_cell_that_is_incomplete_is_emitted_unless_causal(r):
    for scale in (1, 2, 3):
        for n in (1, r**scale - 1, r**scale, r**scale + 1):
            x = tokens(1, n)
            assert decomposition(r=r)(x).cells[scale].shape == (1, -(-n // r**scale), D)
            assert decomposition(r=r, causal=True)(x).cells[scale].shape == (1, n // r**scale, D)


@kinds
def test_a_causal_cell_sees_only_tokens_before_its_end(kind):
    module = decomposition(kind, causal=True, dtype=torch.float32)
    for n in LENGTHS:
        # Row p differs from p on.
        x, other = tokens(1, n, torch.float32), tokens(1, n, torch.float32, seed=2)
        kept = torch.arange(n) < torch.arange(n + 1)[:, None]
        changed = torch.where(kept[..., None], x, other)
        for scale, (a, b) in enumerate(zip(module(x.expand(n + 1, -1, -1)).cells, module(changed).cells, strict=True)):
            ends = (torch.arange(a.shape[1]) + 1) * 2**scale
            unchanged = ends <= torch.arange(n + 1)[:, None]
            assert torch.equal(a[unchanged], b[unchanged])


@kinds
def test_the_gradient_of_a_causal_cell_ends_where_the_cell_ends(kind):
    module = decomposition(kind, causal=True)
    for n in LENGTHS:
        x = tokens(1, n).requires_grad_()
        for scale, cells in enumerate(module(x).cells):
            for j in {0, cells.shape[1] // 2, cells.shape[1] - 1} & set(range(cells.shape[1])):
                (gradient,) = torch.autograd.grad(cells[0, j].sum(), x, retain_graph=True)
                assert (gradient[0, (j + 1) * 2**scale :] == 0).all()
                assert (gradient[0, j * 2**scale : (j + 1) * 2**scale] != 0).all()


@kinds
def test_a_prefix_alone_gives_the_cells_that_it_gives_in_a_longer_sequence(kind):
    module = decomposition(kind, causal=True)
    x = tokens(2, 41)
    long = module(x).cells
    for n in LENGTHS:
        for a, b in zip(module(x[:, :n]).cells, long, strict=True):
            torch.testing.assert_close(a, b[:, : a.shape[1]], rtol=0, atol=1e-12)


@kinds
@both_modes
@settings(max_examples=15)
@given(mask=st.lists(st.lists(st.booleans(), min_size=11, max_size=11), min_size=1, max_size=3))
def test_padding_anywhere_enters_no_cell(kind, causal, mask):
    module = decomposition(kind, causal)
    mask = torch.tensor(mask)
    x = tokens(len(mask), 11).masked_fill(~mask[..., None], float("nan"))  # to be noticed if it is read
    scales = module(x, mask)
    assert scales.packing is not None
    for row, real in enumerate(mask):
        assert scales.packing.lengths[row] == real.sum()
        alone = reference_cells(module, x[row][real])
        for cells, exists, expected in zip(scales.cells, scales.masks, alone, strict=True):
            count = len(expected)
            assert exists[row].tolist() == [j < count for j in range(exists.shape[1])]
            torch.testing.assert_close(cells[row, :count], expected)
            assert (cells[row, count:] == 0).all()


def test_packing_brings_real_tokens_to_the_front_in_their_order_and_back():
    mask = torch.tensor([[0, 0, 1, 1, 0], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0]]).bool()
    x = tokens(3, 5)
    packing = Packing.from_mask(mask)
    assert packing.lengths.tolist() == [2, 3, 0]
    assert torch.equal(packing.pack(x)[1, :3], x[1, [0, 2, 4]])
    assert torch.equal(packing.unpack(packing.pack(x)), x)


@both_modes
@settings(max_examples=60)
@given(n=st.integers(1, 50), stride=st.sampled_from([1, 2, 3, 4, 8, 16, 27]))
def test_tokens_are_grouped_by_the_cell_that_they_read(causal, n, stride):
    t = torch.arange(n)
    reads = (t + 1) // stride - 1 if causal else t // stride
    groups = group_tokens(t[None, :, None] + 1.0, stride, causal=causal)  # plus one: zero is empty
    for cell in range(groups.shape[1]):
        assert [int(v) for v in groups[0, cell, :, 0] if v > 0] == [int(v) + 1 for v in t[reads == cell]]
    back = ungroup_tokens(groups, n, causal=causal)[0, :, 0]
    assert torch.equal(back, torch.where(reads >= 0, t + 1.0, 0.0))


@both_modes
@settings(max_examples=60)
@given(n=st.integers(1, 50), r=st.integers(2, 4), left=st.integers(0, 5), right=st.integers(0, 5))
def test_upsampling_reads_the_nearest_cell_and_marks_what_does_not_exist(causal, n, r, left, right):
    x = torch.arange(1.0, n + 1)[None, :, None]
    mask = torch.arange(n + left + right)
    mask = ((mask >= left) & (mask < left + n))[None]
    module = HierarchicalDecomposition(1, 3, r, "pool", causal=causal)
    scales = module(nn.functional.pad(x, (0, 0, left, right)), mask)
    y, available = upsample(scales.cells, r, causal=causal, packing=scales.packing)
    assert y.shape == (1, left + n + right, 3, 1)
    assert (y[~mask] == 0).all()
    assert available[~mask].tolist() == [[True, False, False]] * (left + right)
    for t in range(n):
        for scale in range(3):
            cell = (t + 1) // r**scale - 1 if causal else t // r**scale
            expected = scales.cells[scale][0, cell, 0] if cell >= 0 else torch.tensor(0.0)
            assert y[0, left + t, scale, 0] == expected
            assert available[0, left + t, scale] == (cell >= 0)


@kinds
@both_modes
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9])
def test_every_weight_gets_a_gradient_tensor_at_every_length(kind, causal, n):
    module = decomposition(kind, causal)
    y, _ = upsample(module(tokens(2, n)).cells, 2, causal=causal)
    if any(True for _ in module.parameters()):
        y.sum().backward()
    for weight in module.parameters():
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
        assert n < 8 or (weight.grad != 0).any()


@kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_cells_have_the_type_of_the_input_and_its_accuracy(kind, dtype):
    module = decomposition(kind)
    expected = module(tokens(2, 13)).cells
    cells = module.to(dtype)(tokens(2, 13, dtype)).cells
    assert {c.dtype for c in cells} == {dtype}
    for a, b in zip(cells, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=200 * torch.finfo(dtype).eps)


def test_an_empty_batch_gives_empty_cells():
    assert [c.shape for c in decomposition()(tokens(0, 5)).cells] == [(0, 5, D), (0, 3, D), (0, 2, D), (0, 1, D)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_model": 0}, "d_model must be at least 1, but got 0"),
        ({"num_scales": 0}, "num_scales must be at least 1, but got 0"),
        ({"compression_ratio": 1}, "compression_ratio must be at least 2, but got 1"),
        ({"mode": "max"}, "mode must be .* but got 'max'"),
        ({"mode": "pool", "dense": True}, "dense=True needs mode"),
        ({"mode": "pool", "kernel_size": 4}, "kernel_size must be compression_ratio = 2"),
        ({"kernel_size": 3}, "kernel_size must be a positive multiple of compression_ratio = 2, but got 3"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalDecomposition(**{"d_model": D, **arguments})


def test_inputs_of_the_wrong_shape_are_refused_by_name():
    module = decomposition()
    with pytest.raises(ValueError, match=r"x must have shape \(batch, n, 3\).* but got \(2, 5, 4\)"):
        module(torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match="n at least 1"):
        module(torch.zeros(2, 0, D))
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 5\).* but got \(2, 4\)"):
        module(tokens(2, 5), torch.ones(2, 4).bool())
    with pytest.raises(TypeError, match=r"mask must be boolean.* torch.int64"):
        module(tokens(2, 5), torch.ones(2, 5).long())
    with pytest.raises(ValueError, match=r"cells\[1\] must have shape \(2, 3, 3\), but got \(2, 2, 3\)"):
        upsample([tokens(2, 5), tokens(2, 2)], 2)
    with pytest.raises(ValueError, match="cells must hold at least one scale"):
        upsample([], 2)
