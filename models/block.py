"""One block of MAHA: convolution, decomposition, attention, gating, aggregation, projection, feed-forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from models.aggregation import FusionOptions, OptimizationDrivenAggregation, Strategy
from models.attention import AttentionState, MultiscaleAttention
from models.columns import real_columns
from models.convolution import DilatedConvolution
from models.cross_attention import CrossAttention, Memory
from models.decomposition import HierarchicalDecomposition, Packing, check_mask, check_tokens
from models.gating import CrossScaleGating

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["BlockOptions", "BlockState", "MAHABlock"]


class BlockOptions(FusionOptions, total=False):
    """Options of a `MAHABlock`, which documents them, beside those that every transformer has."""

    compression_ratio: int
    decomposition: Literal["conv", "pool"]
    decomposition_kernel: int | None
    dense: bool
    attention: Literal["windowed", "full"]
    window: int
    coarsest_window: int | None
    query_resolution: Literal["coarse", "fine"]
    projections: Literal["scale", "shared"]
    conv_kernel: int
    dilation: int
    gating: bool
    norm_first: bool


@dataclass
class BlockState:
    """What a causal block remembers of the tokens that it has seen.

    Attributes:
        attention: of the cells of all scales.
        inputs: (batch, span, d_model), the last inputs of the dilated convolution; None without one.
        memory: of a decoder's block, what it attends to besides; None otherwise.
    """

    attention: AttentionState
    inputs: Tensor | None
    memory: Memory | None


class MAHABlock(nn.Module):
    r"""A transformer block with the fusion of several scales in place of self-attention.

    In formulas::

        H = DilatedConv(x),   Y_l = Attention_l(H),   G_l = Gate(Y_l, Y_{l+1}),
        x ← x + W (Σ_l w_l G_l),   x ← x + FF(x),

    with `w` the solution of a convex program or a game for every token. In a decoder's block, attention to a memory
    stands before the feed-forward part.

    Source: section 4.4 of the MAHA paper, whose code leaves out the gating and the projection `W`.

    Args:
        d_model: number of channels d.
        num_heads: number of heads; divides `d_model`.
        d_ff: width of the feed-forward part.
        dropout: of the output of every branch, and inside the feed-forward part.
        num_scales: number of scales L.
        compression_ratio: r, tokens in a cell of the second scale.
        aggregation_strategy: "convex", "nash" or, for comparison, "gate".
        causal: whether no token sees those after it.
        decomposition: "conv" or "pool", see `HierarchicalDecomposition`.
        decomposition_kernel: its number of taps; None: r.
        dense: convolve across channels, as published; the default convolves each channel by itself. Dense convolutions
            alone cost more than all projections of an attention layer.
        attention: "windowed" or "full", see `MultiscaleAttention`.
        window: how many cells of its scale a query sees.
        coarsest_window: the same at the coarsest scale; None: all of them.
        query_resolution: "coarse" or "fine".
        projections: of queries and keys, one for each "scale" or one "shared".
        rotary_base: of rotary positions; None: none.
        conv_kernel: taps of the dilated convolution; 0: no convolution.
        dilation: tokens from tap to tap.
        gating: whether a scale listens to the next coarser one.
        norm_first: normalise what goes into a branch; False, as published: normalise the sum.
        cross_attention: whether the block attends to a memory too, as a decoder does.
        fusion: see `models.aggregation.FusionOptions`; by default a problem for every token, solved by `pivot`.

    Raises:
        ValueError: an argument is out of its range; the message names it.
        TypeError: there is no such option.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        dropout: float = 0.1,
        num_scales: int = 4,
        compression_ratio: int = 2,
        aggregation_strategy: Strategy = "convex",
        *,
        causal: bool = False,
        decomposition: Literal["conv", "pool"] = "conv",
        decomposition_kernel: int | None = None,
        dense: bool = False,
        attention: Literal["windowed", "full"] = "windowed",
        window: int = 128,
        coarsest_window: int | None = 256,
        query_resolution: Literal["coarse", "fine"] = "coarse",
        projections: Literal["scale", "shared"] = "scale",
        rotary_base: float | None = None,
        conv_kernel: int = 3,
        dilation: int = 2,
        gating: bool = True,
        norm_first: bool = True,
        cross_attention: bool = False,
        **fusion: Unpack[FusionOptions],
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.causal = causal
        self.norm_first = norm_first
        self.convolution = (
            DilatedConvolution(d_model, conv_kernel, dilation, causal=causal, dense=dense) if conv_kernel else None
        )
        pyramid = HierarchicalDecomposition(
            d_model,
            num_scales,
            compression_ratio,
            decomposition,
            causal=causal,
            dense=dense,
            kernel_size=decomposition_kernel,
        )
        self.attention = MultiscaleAttention(
            d_model,
            num_heads,
            num_scales,
            pyramid,
            attention=attention,
            window=window,
            coarsest_window=coarsest_window,
            query_resolution=query_resolution,
            projections=projections,
            causal=causal,
            rotary_base=rotary_base,
        )
        self.gating = CrossScaleGating(d_model, compression_ratio, causal=causal) if gating and num_scales > 1 else None
        self.aggregation = OptimizationDrivenAggregation(
            num_scales,
            d_model,
            aggregation_strategy,
            compression_ratio=compression_ratio,
            num_heads=num_heads,
            causal=causal,
            **fusion,
        )
        self.output = nn.Linear(d_model, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.cross_attention = CrossAttention(d_model, num_heads) if cross_attention else None
        self.cross_norm = nn.LayerNorm(d_model) if cross_attention else None
        self.ffn = nn.Sequential(nn.Linear(d_model, d_ff), nn.GELU(), nn.Dropout(dropout), nn.Linear(d_ff, d_model))
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The sequence, one block on.

        Args:
            x: (batch, n, d_model), n ≥ 1, floating point.
            mask: (batch, n) bool, True where the token is real; None: all are. Padding may stand anywhere.
            lengths: (batch,) integer, in place of `mask`, where the real tokens of every row stand in front.
            memory: (batch, m, d_model), what a block with `cross_attention` attends to.
            memory_mask: (batch, m) bool or 0/1, True where the memory is real; None: everywhere.

        Returns:
            As `x`, meaningless at padding; and the auxiliary loss of the aggregation, a scalar.

        Raises:
            ValueError: an argument has the wrong shape, or the memory is missing or not wanted.
            TypeError: `mask` is not boolean.
        """
        check_tokens(x, self.d_model)
        if mask is not None:
            if lengths is not None:
                raise ValueError("mask and lengths both describe the padding: give one of them.")
            check_mask(mask, x)
            packing = Packing.from_mask(mask)
            y, aux_loss = self(packing.pack(x), lengths=packing.lengths, memory=memory, memory_mask=memory_mask)
            return packing.unpack(y), aux_loss
        mixed, aux_loss = self.mix(self._before(self.norm1, x), lengths)
        x = self._after(self.norm1, x, mixed)
        return self._rest(x, self._remember_memory(memory, memory_mask)), aux_loss

    def mix(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What stands in the place of self-attention, from the convolution to the output projection, without checks.

        Args:
            x: (batch, n, d_model), n ≥ 1.
            lengths: (batch,) integer, as in `forward`.

        Returns:
            As `x`, meaningless at padding; and the auxiliary loss.
        """
        if self.convolution is not None:
            x = self.convolution(x, lengths)
        fused, aux_loss = self._fuse(x, self.attention.answers(x, lengths), lengths)
        return self.output(fused), aux_loss

    def prefill(
        self,
        x: Tensor,
        lengths: Tensor,
        max_len: int,
        *,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> tuple[Tensor, BlockState]:
        """`forward` of packed rows of a causal block, and the state after them, for rows of up to `max_len` tokens."""
        h = self._before(self.norm1, x)
        inputs = None
        if self.convolution is not None:
            inputs = self.convolution.remember(h, lengths)
            h = self.convolution(h, lengths)
        answers, state = self.attention.remember(h, lengths, max_len)
        x = self._after(self.norm1, x, self.output(self._fuse(h, answers, lengths)[0]))
        remembered = self._remember_memory(memory, memory_mask)
        return self._rest(x, remembered), BlockState(state, inputs, remembered)

    def step(self, x: Tensor, state: BlockState, real: Tensor) -> Tensor:
        """One more token for each row: what `forward` makes of it, in O(window).

        Args:
            x: (batch, d_model).
            state: the state of the rows; changed in place.
            real: (batch,) bool, False where a row gets no token.
        """
        h = self._before(self.norm1, x)
        if self.convolution is not None and state.inputs is not None:
            h, inputs = self.convolution.step(h, state.inputs)
            state.inputs = torch.where(real[:, None, None], inputs, state.inputs)
        scales, available = self.attention.step(h, state.attention, real)
        if self.gating is not None:
            scales = self.gating.across(scales, available)
        fused = self.aggregation.fusion(scales[:, None], available[:, None], inputs=h[:, None]).output
        x = self._after(self.norm1, x[:, None], self.output(fused))
        return self._rest(x, state.memory)[:, 0]

    def _fuse(self, h: Tensor, answers: list[Tensor], lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        n, coarse = h.shape[1], self.attention.query_resolution == "coarse"
        if self.gating is not None and coarse:
            answers = [*map(self.gating, answers, answers[1:]), answers[-1]]
        scales, exist = self.attention.upsample(answers, n, lengths)
        available = None if lengths is None and not self.causal else exist
        if self.gating is not None and not coarse:
            scales = self.gating.across(scales, available)
        mask = None if lengths is None else real_columns(n, lengths)
        return self.aggregation(scales, available, h, mask, cleared=True)

    def _rest(self, x: Tensor, memory: Memory | None) -> Tensor:
        """What follows the fusion, token by token."""
        if self.cross_attention is not None and self.cross_norm is not None and memory is not None:
            read = self.cross_attention(self._before(self.cross_norm, x), memory)
            x = self._after(self.cross_norm, x, read)
        return self._after(self.norm2, x, self.ffn(self._before(self.norm2, x)))

    def _remember_memory(self, memory: Tensor | None, mask: Tensor | None) -> Memory | None:
        if (memory is None) != (self.cross_attention is None):
            wanted = "needs a memory" if memory is None else "takes no memory"
            raise ValueError(f"memory does not fit: a block with cross_attention={memory is None} {wanted}.")
        if memory is None and mask is not None:
            raise ValueError("memory_mask is given without a memory.")
        return None if memory is None or self.cross_attention is None else self.cross_attention.remember(memory, mask)

    def _before(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return norm(x) if self.norm_first else x

    def _after(self, norm: nn.LayerNorm, x: Tensor, branch: Tensor) -> Tensor:
        x = x + self.dropout(branch)
        return x if self.norm_first else norm(x)
