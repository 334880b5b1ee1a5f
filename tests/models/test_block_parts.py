"""The parts of a block: dilated convolution, cross-scale gating, aggregation under its published name, the block."""

import pytest
import torch
from torch import nn

from maha_opt import ConvexAggregation
from models import (
    CrossScaleGating,
    DilatedConvolution,
    HierarchicalDecomposition,
    MAHABlock,
    MultiscaleAttention,
    OptimizationDrivenAggregation,
)
from models.upsampling import upsample

D = 6
both_modes = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Dilated convolution ----------------------------------------------------------------------------------------------


@both_modes
@pytest.mark.parametrize("dense", [False, True], ids=["depthwise", "dense"])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (3, 2), (5, 3)])
def test_the_convolution_is_torchs(causal, dense, kernel_size, dilation):
    torch.manual_seed(0)
    ours = DilatedConvolution(D, kernel_size, dilation, causal=causal, dense=dense).double()
    nn.init.normal_(ours.bias)
    weight = ours.weight.permute(2, 1, 0) if dense else ours.weight.T[:, None]
    for n in (1, 2, 7, 30):
        x = randn(2, n, D)
        left = ours.span if causal else ours.span // 2
        padded = nn.functional.pad(x.mT, (left, ours.span - left))
        y = nn.functional.conv1d(padded, weight, ours.bias, dilation=dilation, groups=1 if dense else D)
        torch.testing.assert_close(ours(x), x + y.mT.relu())


@both_modes
def test_the_convolution_reads_nothing_of_padding(causal):
    torch.manual_seed(0)
    convolution = DilatedConvolution(D, causal=causal).double()
    x = randn(2, 9, D)
    padded = torch.cat([x, 1e3 * randn(2, 5, D, seed=1)], 1)
    torch.testing.assert_close(convolution(padded, torch.tensor([9, 9]))[:, :9], convolution(x))


def test_the_convolution_refuses_arguments_out_of_range():
    with pytest.raises(ValueError, match="kernel_size must be odd where bidirectional, but got 2"):
        DilatedConvolution(D, 2)
    with pytest.raises(ValueError, match="dilation must be at least 1, but got 0"):
        DilatedConvolution(D, dilation=0)
    DilatedConvolution(D, 2, causal=True)


# --- Gating -----------------------------------------------------------------------------------------------------------


@both_modes
@pytest.mark.parametrize("r", [2, 3])
def test_gating_blends_every_cell_with_the_coarser_one_that_it_reads(causal, r):
    torch.manual_seed(0)
    gating = CrossScaleGating(D, r, causal=causal).double()
    for m in range(1, 3 * r + 2):
        fine, coarse = randn(2, m, D), randn(2, m // r if causal else -(-m // r), D, seed=1)
        gated = gating(fine, coarse)
        for j in range(m):
            read = (j + 1) // r - 1 if causal else j // r
            if read < 0:
                assert torch.equal(gated[:, j], fine[:, j])
                continue
            z = torch.sigmoid(gating.gate_proj(torch.cat([fine[:, j], coarse[:, read]], dim=-1)))
            torch.testing.assert_close(gated[:, j], z * fine[:, j] + (1 - z) * coarse[:, read])


def test_gating_across_tokens_is_gating_of_cells_brought_to_the_tokens():
    torch.manual_seed(0)
    gating = CrossScaleGating(D, 2, causal=True).double()
    cells = [randn(1, n, D, seed=n) for n in (11, 5, 2)]
    gated = [gating(cells[0], cells[1]), gating(cells[1], cells[2]), cells[2]]
    expected, _ = upsample(gated, 2, causal=True)
    torch.testing.assert_close(gating.across(*upsample(cells, 2, causal=True)), expected)


def test_gating_refuses_scales_that_do_not_fit():
    with pytest.raises(ValueError, match=r"next_scale must have shape \(1, 3, 6\), but got \(1, 2, 6\)"):
        CrossScaleGating(D)(torch.zeros(1, 5, D), torch.zeros(1, 2, D))
    with pytest.raises(ValueError, match=r"current_scale must have shape \(1, 5, 6\), but got \(1, 5, 7\)"):
        CrossScaleGating(D)(torch.zeros(1, 5, 7), torch.zeros(1, 3, D))


# --- Aggregation ------------------------------------------------------------------------------------------------------


def test_the_published_name_is_the_aggregation_module():
    torch.manual_seed(0)
    named = OptimizationDrivenAggregation(3, D, "convex").double()
    module = ConvexAggregation(3, D).double()
    module.load_state_dict(named.fusion.state_dict())
    Y, inputs = randn(2, 5, 3, D), randn(2, 5, D, seed=1)
    fused, aux_loss = named(Y, inputs=inputs)
    torch.testing.assert_close(fused, module(Y, inputs=inputs).output)
    assert aux_loss.ndim == 0


@both_modes
def test_cells_of_each_scale_are_brought_to_the_tokens_as_published(causal):
    torch.manual_seed(0)
    aggregation = OptimizationDrivenAggregation(3, D, "nash", compression_ratio=2, causal=causal).double()
    cells = HierarchicalDecomposition(D, 3, 2, causal=causal).double()(randn(2, 9, D)).cells
    Y, available = upsample(cells, 2, causal=causal)
    torch.testing.assert_close(aggregation(cells), aggregation(Y, available))
    with pytest.raises(ValueError, match="available must not be given with cells"):
        aggregation(cells, available)


@pytest.mark.parametrize("granularity", ["token", "token_head", "sequence", "head"])
def test_the_auxiliary_loss_of_the_convex_strategy_is_its_objective_in_units_of_the_data(granularity):
    torch.manual_seed(0)
    layer = ConvexAggregation(3, D, num_heads=2, granularity=granularity, prices=[0.3, 0.1, 0.2], ridge=0.05).double()
    Y, inputs, mask = randn(2, 5, 3, D), randn(2, 5, D, seed=1), torch.arange(5) < torch.tensor([[5], [3]])
    (_, solution), objective = layer.with_objective(Y, inputs=inputs, mask=mask)
    heads = 2 if "head" in granularity else 1
    target = layer.target(inputs)
    values = []
    for row in range(2):
        real = int(mask[row].sum())
        for head in range(heads):
            part = slice(head * D // heads, (head + 1) * D // heads)
            w = solution.weights[row]
            if granularity == "token":
                groups = [(w[t], [t]) for t in range(real)]
            elif granularity == "token_head":
                groups = [(w[t, head], [t]) for t in range(real)]
            else:
                groups = [(w if granularity == "sequence" else w[head], list(range(real)))]
            for weights, tokens in groups:
                y, t = Y[row, tokens][:, :, part], target[row, tokens][:, part]
                p = y.square().mean(-1).mean(0).sum() / 3
                misfit = (torch.einsum("l,nld->nd", weights, y) - t).square().mean()
                price = 0.3 * weights[0] + 0.1 * weights[1] + 0.2 * weights[2]
                ridge = 0.5 * 0.05 * (weights - 1 / 3).square().sum()
                values.append((0.5 * misfit + p * (price + ridge)) / (p + t.square().mean()))
    torch.testing.assert_close(objective, torch.stack(values).mean())


def test_the_auxiliary_loss_of_the_nash_strategy_is_what_the_players_pay_on_average():
    torch.manual_seed(0)
    from maha_opt import NashAggregation

    layer = NashAggregation(3, D, prices=[0.3, 0.1, 0.2], ridge=0.05).double()
    nn.init.normal_(layer.raw_coupling)
    Y = randn(1, 4, 3, D)
    available = torch.tensor([[[True, True, True], [True, False, True], [True, False, False], [True, True, True]]])
    (_, solution), objective = layer.with_objective(Y, available)
    values = []
    for t in range(4):
        exists, w = available[0, t], solution.weights[0, t]
        y = Y[0, t] * exists[:, None]
        p = y.square().mean(-1).sum() / exists.sum()
        cover = ((1 + layer.coupling) * w) @ y
        price = p * torch.tensor([0.3, 0.1, 0.2]).double() * w.abs()
        cost = 0.5 * (y - cover).square().mean(-1) + price + 0.5 * 0.05 * p * w.square()
        values.append((cost * exists).sum() / exists.sum() / p)
    torch.testing.assert_close(objective, torch.stack(values).mean())


def test_the_objective_of_the_exact_solution_is_the_least():
    torch.manual_seed(0)
    layer = ConvexAggregation(4, D, ridge=0.05).double()
    Y, inputs = randn(1, 50, 4, D), randn(1, 50, D, seed=1)
    _, least = layer.with_objective(Y, inputs=inputs)
    for solver in ("mean", "softmax"):
        layer.solver = solver
        assert layer.with_objective(Y, inputs=inputs)[1] > least + 1e-3


# --- The block --------------------------------------------------------------------------------------------------------


@both_modes
def test_a_block_alone_takes_masks_and_gives_what_packed_rows_give(causal):
    torch.manual_seed(0)
    block = MAHABlock(8, 2, 16, 0.0, 3, causal=causal, window=9).double().eval()
    x, mask = randn(2, 14, 8), torch.arange(14) >= torch.tensor([[3], [0]])
    y, _ = block(x, mask)
    torch.testing.assert_close(y[:1, 3:], block(x[:1, 3:])[0])
    packed = torch.cat([x[:, 3:], x[:, :3]], 1)
    torch.testing.assert_close(block(packed, lengths=torch.tensor([11, 14]))[0][:1, :11], y[:1, 3:])
    with pytest.raises(ValueError, match="give one of them"):
        block(x, mask, lengths=torch.tensor([11, 14]))


def test_windowed_attention_of_a_long_sequence_makes_no_n_by_n_tensor():
    n, largest = 4096, 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    for options in ({}, {"query_resolution": "fine"}, {"projections": "shared", "causal": True}):
        pyramid = HierarchicalDecomposition(8, 4, 2, causal=options.get("causal", False))
        attention = MultiscaleAttention(8, 1, 4, pyramid, window=32, coarsest_window=32, **options)
        with torch.no_grad(), Watch():
            attention(torch.randn(1, n, 8))
    assert largest <= n * 8 * 16  # masks of n·(3/2)·window and outputs of L·n·d at most
