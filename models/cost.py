r"""What a layer costs, in floating point operations: one formula for every count.

A multiplication with its addition counts as two operations, and matrix products alone are counted, as
`torch.utils.flop_counter` does: softmax, norms, depthwise convolutions, pooling, upsampling and the solver of the
fusion are elementwise. All counts are of the forward pass of one sequence of n tokens without padding; forward and
backward of attention together are three times as many.

With m_l cells of scale l and c_l queries for each (coarse: 1; fine: r^l), the scores and the sums over values take::

    4·d · c_l·m_l · m_l                                         without a window,
    4·d · c_l·⌈m_l/s⌉·s · 3s,    s = ⌈window/2⌉                 with one that is shorter than the scale,

because a block of s cells looks at three blocks of keys (`models.windows`): half as much again as the window itself.

Source: our own derivation; a test compares every number with torch's counter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["Cost", "MixerShape", "full_attention_cost", "maha_cost"]


class Cost(NamedTuple):
    """Operations of the parts of a layer, forward, for one sequence.

    Attributes:
        scores: scores and sums over values.
        projections: of queries, keys and values.
        decomposition: dense convolutions that make the cells; depthwise ones and pooling are elementwise.
        convolution: the dense dilated convolution in front; a depthwise one is elementwise.
        gating: its linear maps.
        fusion: target, Gram matrices, scores of the target and the weighted sum; the solver is elementwise.
        output: the projection behind.
    """

    scores: int = 0
    projections: int = 0
    decomposition: int = 0
    convolution: int = 0
    gating: int = 0
    fusion: int = 0
    output: int = 0

    @property
    def attention(self) -> int:
        """Scores and values, projections and decomposition: what `MultiscaleAttention` does. No output projection."""
        return self.scores + self.projections + self.decomposition

    @property
    def mixer(self) -> int:
        """Everything that stands in the place of a self-attention layer."""
        return sum(self)


@dataclass(frozen=True)
class MixerShape:
    """What the cost of a `MAHABlock` without its feed-forward part depends on, under the names of the block.

    The number of heads does not matter.
    """

    d_model: int
    num_scales: int = 4
    compression_ratio: int = 2
    aggregation_strategy: Literal["convex", "nash"] = "convex"
    causal: bool = False
    attention: Literal["windowed", "full"] = "windowed"
    window: int = 128
    coarsest_window: int | None = 256
    query_resolution: Literal["coarse", "fine"] = "coarse"
    projections: Literal["scale", "shared"] = "scale"
    dense: bool = False
    decomposition_kernel: int | None = None
    conv_kernel: int = 3
    gating: bool = True

    def cells(self, n: int, scale: int) -> int:
        """Number of cells of a scale."""
        stride = self.compression_ratio**scale
        return n // stride if self.causal else -(-n // stride)


def full_attention_cost(n: int, d_model: int, *, skipped: bool = False) -> Cost:
    """An attention layer with projections of queries, keys, values and output.

    Args:
        n: number of tokens.
        d_model: number of channels.
        skipped: count only the n(n + 1)/2 pairs that a causal kernel has to look at, of n².
    """
    square = 2 * n * d_model**2
    return Cost(scores=4 * d_model * _pairs(n, n, skipped), projections=3 * square, output=square)


def maha_cost(n: int, shape: MixerShape, *, skipped: bool = False) -> Cost:
    """A `MAHABlock` without its feed-forward part.

    Args:
        n: number of tokens.
        shape: of the block.
        skipped: where a scale has no window and is causal, count only the pairs that the kernel has to look at. Windows
            are counted as they are computed, masked pairs included, in any case.
    """
    d, r, scales = shape.d_model, shape.compression_ratio, range(shape.num_scales)
    square = 2 * d**2  # operations of one vector times a square matrix
    cells = [shape.cells(n, scale) for scale in scales]
    fine, own = shape.query_resolution == "fine", shape.projections == "scale"
    queries = sum(n if fine else m for m in cells)
    convex = shape.aggregation_strategy == "convex"
    coarser = sum(cells[1:])
    streams = 2 if own else 3
    overlap = (shape.decomposition_kernel or r) // r
    gated = [n] * (shape.num_scales - 1) if fine else [max(m - (r - 1) * shape.causal, 0) for m in cells[:-1]]
    gram, target = shape.num_scales**2, shape.num_scales if convex else 0
    # The objective of a game multiplies L×L matrices.
    small = 0 if convex else 2 * n * shape.num_scales**3
    return Cost(
        scores=sum(_scores(shape, cells[scale], r**scale if fine else 1, scale, skipped) for scale in scales),
        projections=square * (n + (queries + sum(cells) if own else 2 * n)),
        decomposition=square * streams * overlap * r * coarser if shape.dense else 0,
        convolution=square * shape.conv_kernel * n if shape.dense else 0,
        gating=2 * square * sum(gated) if shape.gating else 0,
        fusion=square * n * convex + 2 * n * d * (gram + target + shape.num_scales) + small,
        output=square * n,
    )


def _scores(shape: MixerShape, m: int, queries: int, scale: int, skipped: bool) -> int:
    """Scores and sums over values of one scale with m cells and so many queries for each of them."""
    window = shape.coarsest_window if scale == shape.num_scales - 1 else shape.window
    if shape.attention == "full" or window is None or m <= (window if shape.causal else window // 2 + 1):
        return 4 * shape.d_model * queries * _pairs(m, m, skipped and shape.causal)
    size = (window + 1) // 2
    return 4 * shape.d_model * queries * -(-m // size) * size * 3 * size


def _pairs(queries: int, keys: int, skipped: bool) -> int:
    return queries * (keys + 1) // 2 if skipped else queries * keys
