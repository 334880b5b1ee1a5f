r"""What a transformer does with a passage: the weights of its fusions, and who attends to whom at every scale.

The model runs as it always does; what goes into each fusion is caught on the way, and everything else follows from it.
At scale `l`, with the queries `Q_l`, keys `K_l` and values `V_l` of `models.attention`, the probabilities are::

    P_l = softmax(Q_l K_lᵀ / √d_head + mask_l),   so that   Y_l = P_l V_l   (per head),

`mask_l` being 0 where the window and causality let a query see a cell, and −∞ elsewhere. They are written out densely,
which the model itself never does, so this is for passages of some hundreds of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from maha_opt.compare import take
from models.attention import MultiscaleAttention
from models.block import MAHABlock
from models.columns import as_mask, real_columns
from models.cross_attention import Memory
from models.decomposition import Packing
from models.generation import evaluating
from models.transformer import MAHATransformer
from solvers import AffineVI

__all__ = [
    "MAX_TOKENS",
    "BlockRecord",
    "ablated",
    "attention_probabilities",
    "fusion_problems",
    "inspect_transformer",
]

MAX_TOKENS = 4096
"""Above this, the dense maps of a single head would take more than 64 MiB."""


@dataclass(frozen=True)
class BlockRecord:
    """What one block did with a batch of passages of n tokens.

    Weights stand in the order of the tokens as they were given. Attention counts real tokens only: row and column j of
    a map are about the cell of the tokens `j·stride … (j+1)·stride − 1` of these, or, where every token asks, the row
    is about token j.

    Attributes:
        weights: (batch, n, heads, L), in at least float32: of the fusion. `heads` is 1 where all heads share their
            weights; tokens that share theirs have the same. NaN where a scale is not available and at padding.
        available: (batch, n, L) bool, which scales exist for a token; False at padding.
        residual: (batch, n, heads), the relative natural residual, see `solvers.Solution`; NaN at padding.
        attention: for each scale, (batch, heads of the attention, queries, cells), in at least float32. Rows of queries
            that do not exist, and of tokens that read no cell yet, are zero; all others sum to 1.
        strides: for each scale, the tokens in a cell.
        query_resolution: whether the queries are cells ("coarse") or tokens ("fine").
        causal: whether a token reads the last complete cell rather than its own.
        cross_attention: (batch, heads, n, m), who attends to whom in a memory; zero at padding. None: there is none.
    """

    weights: Tensor
    available: Tensor
    residual: Tensor
    attention: tuple[Tensor, ...]
    strides: tuple[int, ...]
    query_resolution: Literal["coarse", "fine"]
    causal: bool = False
    cross_attention: Tensor | None = None

    def token_attention(self) -> Tensor:
        """Where the fused output of every token comes from, token by token: (batch, heads, n, n).

        With the weights w of the fusion, and c_l(t) the cell of scale l that token t reads (as a query: asks from)::

            A[t, s] = Σ_l w_l(t) P_l[c_l(t), c_l(s)] / (number of tokens in c_l(s)),

        as if cells averaged their tokens and no scale listened to another. Rows of real tokens sum to what the weights
        do, over the scales that they read; rows and columns of padding are zero.
        """
        packing = Packing.from_mask(self.available.any(2))
        m, n = self.attention[0].shape[3], self.weights.shape[1]
        weights = packing.pack(self.weights)[:, :m].nan_to_num(0.0).permute(3, 0, 2, 1)  # (L, batch, heads, m)
        token = torch.arange(m, device=weights.device)
        total = self.attention[0].new_zeros(())
        for y, w, stride in zip(self.attention, weights, self.strides, strict=True):
            if self.query_resolution == "coarse":
                row = (token + 1) // stride - 1 if self.causal else token // stride
                y = pad(y, (0, 0, 1, 0))[:, :, row + 1]  # row −1: no cell, nothing
            cells = torch.arange(y.shape[3], device=y.device) * stride
            inside = (packing.lengths[:, None] - cells).clamp(1, stride)
            y = (y / inside[:, None, None]).repeat_interleave(stride, dim=3)[..., :m]
            total = total + w[..., None] * pad(y, (0, m - y.shape[3]))
        for _ in range(2):  # columns, then rows
            total = packing.unpack(pad(total, (0, n - m)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).mT
        return total

    def distances(self) -> tuple[Tensor, ...]:
        """How far queries look: for each scale, (batch, heads, queries) in tokens, NaN where a query sees nothing.

        It is the mean over the cells, by their probabilities, of the distance between the middle of a cell and the
        query, which is a token or the middle of a cell itself.
        """
        return tuple(
            _where_seen(y, (y * self._apart(y, stride)).sum(3))
            for y, stride in zip(self.attention, self.strides, strict=True)
        )

    def entropies(self) -> tuple[Tensor, ...]:
        """How widely queries look: for each scale, (batch, heads, queries) in bits, NaN where a query sees nothing.

        It is the entropy of the probabilities of the cells; `2**entropy` says among how many cells a query as good as
        spreads its attention evenly.
        """
        return tuple(_where_seen(y, -torch.xlogy(y, y).sum(3) / math.log(2)) for y in self.attention)

    def _apart(self, y: Tensor, stride: int) -> Tensor:
        """Tokens between the middles of queries and cells, (queries, cells)."""
        own = 1 if self.query_resolution == "fine" else stride
        queries, cells = (
            torch.arange(count, dtype=y.dtype, device=y.device) * size + (size - 1) / 2
            for count, size in zip(y.shape[2:], (own, stride), strict=True)
        )
        return (queries[:, None] - cells).abs()


class _Fused(NamedTuple):
    """What went into the fusion of a block, in packed rows."""

    scales: Tensor
    available: Tensor | None
    inputs: Tensor
    mask: Tensor | None


class _Caught(NamedTuple):
    """What went into the fusions and the cross-attentions of all blocks, in packed rows."""

    fused: list[_Fused]
    crossed: list[tuple[Tensor, Memory]]


@torch.no_grad()
def inspect_transformer(
    transformer: MAHATransformer,
    x: Tensor,
    mask: Tensor | None = None,
    *,
    memory: Tensor | None = None,
    memory_mask: Tensor | None = None,
) -> list[BlockRecord]:
    """Runs a model once, in evaluation mode and without gradients, and records what every block did.

    Args:
        transformer: the model; in whichever mode it was, it is afterwards.
        x: (batch, n) integer tokens, or their embeddings (batch, n, d_model); n at most `MAX_TOKENS`.
        mask: (batch, n) bool or 0/1, True where the token is real; None: all are.
        memory: (batch, m, d_model), what a model with `cross_attention` attends to.
        memory_mask: (batch, m) bool or 0/1, where the memory is real; None: everywhere.

    Returns:
        A record for each block.

    Raises:
        ValueError: there are more than `MAX_TOKENS` tokens, or as `MAHATransformer`.
        TypeError: as `MAHATransformer`.
    """
    if x.ndim > 1 and x.shape[1] > MAX_TOKENS:
        raise ValueError(
            f"x must have at most {MAX_TOKENS} tokens, but has {x.shape[1]}: the attention of every token to every "
            "other is written out. Inspect a part of it."
        )
    with evaluating(transformer), _caught(transformer) as caught:
        transformer(x, mask, memory=memory, memory_mask=memory_mask)
        packing = None if mask is None else Packing.from_mask(as_mask("mask", mask, x.shape[:2]))
        records = [_record(*pair, packing) for pair in zip(transformer._blocks(), caught.fused, strict=True)]
        for number, (block, crossed) in enumerate(zip(transformer._blocks(), caught.crossed, strict=False)):
            assert block.cross_attention is not None
            seen = block.cross_attention.probabilities(*crossed).transpose(1, 2)
            if packing is not None:
                seen = seen.masked_fill(~real_columns(seen.shape[1], packing.lengths)[..., None, None], 0)
            seen = _as_given(seen, packing, 0.0).transpose(1, 2)
            records[number] = replace(records[number], cross_attention=seen)
        return records


@torch.no_grad()
def fusion_problems(transformer: MAHATransformer, x: Tensor, mask: Tensor | None = None) -> list[AffineVI]:
    """The problems that a model's fusions solve as it reads, for studies of solvers; see `maha_opt.validation`.

    Args:
        transformer: the model; in whichever mode it was, it is afterwards.
        x: (batch, n) integer tokens, or their embeddings (batch, n, d_model).
        mask: (batch, n) bool or 0/1, True where the token is real; None: all are.

    Returns:
        For each block the problems of its real tokens (and heads), or of its sequences (and heads) where tokens share
        theirs; one batch dimension, without gradients.

    Raises:
        ValueError: as `MAHATransformer`.
        TypeError: as `MAHATransformer`.
    """
    found = []
    with evaluating(transformer), _caught(transformer) as caught:
        transformer(x, mask)
        for block, fused in zip(transformer._blocks(), caught.fused, strict=True):
            fusion = block.aggregation.fusion
            problem = fusion.problem(fused.scales, fused.available, fused.inputs, fused.mask)
            real = torch.ones(problem.batch_shape, dtype=torch.bool, device=x.device)
            if fused.mask is not None:
                own = fused.mask.any(1) if fusion.granularity in ("sequence", "head") else fused.mask
                real &= own.reshape(own.shape + (1,) * (real.ndim - own.ndim))
            found.append(take(problem, real))
    return found


@torch.no_grad()
def attention_probabilities(
    attention: MultiscaleAttention, x: Tensor, lengths: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Who attends to whom: the probabilities P_l with which `attention.answers(x, lengths)` averages its values.

    Args:
        attention: the attention of a block.
        x: (batch, n, d_model), packed rows, what goes into the attention.
        lengths: (batch,) integer, number of real tokens of each row; None: all are.

    Returns:
        For each scale, as `BlockRecord.attention` says.
    """
    n, r = x.shape[1], attention.decomposition.compression_ratio
    ends = torch.full(x.shape[:1], n, device=x.device) if lengths is None else lengths
    maps = []
    # What a layer projects and how far it sees is asked of the layer; only the softmax is done again, in the open.
    for scale, (_, queries, keys, _) in enumerate(attention._scales(x, lengths)):
        dtype = torch.promote_types(queries.dtype, torch.float32)
        scores = torch.einsum("bqhc,bkhc->bhqk", queries.to(dtype), keys.to(dtype)) / queries.shape[3] ** 0.5
        seen = _seen(attention, scale, queries.shape[1], r**scale, keys.shape[1], ends)[:, None]
        # A softmax over nothing is NaN; those rows are cleared.
        maps.append(scores.masked_fill(~seen, -torch.inf).softmax(3).masked_fill(~seen, 0))
    return tuple(maps)


@contextmanager
def ablated(
    transformer: MAHATransformer,
    scale: int,
    how: Literal["absent", "swapped"] = "absent",
    blocks: Sequence[int] | None = None,
) -> Iterator[None]:
    """Within it, a scale of some blocks is missing, or talks of something else: what does the model need it for?

    Args:
        transformer: the model.
        scale: which one, from 0, the finest.
        how: "absent": fusions solve the problem in which the scale does not exist, but where a token has no other; the
            gates of the next finer scale still hear it. "swapped": each passage of a batch gets what the scale says of
            the next one, in full passes: as large and as varied as before, but about another text, for gates and
            fusion alike.
        blocks: in which blocks, from 0; None: in all.

    Raises:
        ValueError: there is no such scale, block or way; or, when the model runs, passages are to be swapped and there
            is one only, or padding.
    """
    layers = list(transformer._blocks())
    chosen = range(len(layers)) if blocks is None else sorted(set(blocks))
    if not all(0 <= block < len(layers) for block in chosen):
        raise ValueError(f"blocks must be from 0 to {len(layers) - 1}, but got {list(chosen)}.")
    if not 0 <= scale < layers[0].attention.num_scales:
        raise ValueError(f"scale must be from 0 to {layers[0].attention.num_scales - 1}, but got {scale}.")
    if how not in ("absent", "swapped"):
        raise ValueError(f'how must be "absent" or "swapped", but got {how!r}.')

    def drop(module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        del module
        outputs, available, *rest = arguments
        exist = outputs.new_ones(outputs.shape[:3], dtype=torch.bool) if available is None else available
        others = exist.clone()
        others[..., scale] = False
        kept = torch.where(others.any(-1, keepdim=True), others, exist)
        # The outputs of what was taken away are not zero.
        return (outputs, kept, *rest), options | ({"cleared": False} if "cleared" in options else {})

    def swap(attention: MultiscaleAttention) -> Callable[..., list[Tensor]]:
        answers_of = attention.answers

        def answers(x: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
            if lengths is not None or len(x) < 2:
                raise ValueError("x must hold at least two passages of one length to swap what a scale says of them.")
            return [y.roll(1, 0) if index == scale else y for index, y in enumerate(answers_of(x))]

        return answers

    with ExitStack() as stack:
        for block in (layers[index] for index in chosen):
            if how == "swapped":
                stack.callback(delattr, block.attention, "answers")
                setattr(block.attention, "answers", swap(block.attention))  # noqa: B010 - over the method
                continue
            for module in (block.aggregation, block.aggregation.fusion):  # a pass calls the former, a step the latter
                stack.callback(module.register_forward_pre_hook(drop, with_kwargs=True).remove)
        yield


def _where_seen(y: Tensor, values: Tensor) -> Tensor:
    """Values of queries, with NaN where a query sees no cell, or does not exist."""
    return values.masked_fill(~(y > 0).any(3), torch.nan)


def _seen(
    attention: MultiscaleAttention, scale: int, num_queries: int, stride: int, num_cells: int, ends: Tensor
) -> Tensor:
    """Which cells a query sees: (batch, queries, cells) bool, False throughout for queries that do not exist."""
    query = torch.arange(num_queries, device=ends.device)[:, None]
    cell = torch.arange(num_cells, device=ends.device)
    if attention.query_resolution == "coarse":
        own, asks = query, attention.decomposition.cell_mask(num_queries * stride, scale, ends)[:, :, None]
    else:  # a token asks beside the cell that it reads
        own = (query + 1) // stride - 1 if attention.causal else query // stride
        asks = query < ends[:, None, None]
    distance, window = cell - own, attention._window(scale)
    if attention.causal:
        near = (distance <= 0) & (True if window is None else distance > -window)
    else:
        near = torch.ones_like(distance, dtype=torch.bool) if window is None else distance.abs() <= window // 2
    exists = attention.decomposition.cell_mask(num_cells * stride, scale, ends)[:, None]
    return near & exists & asks


def _record(block: MAHABlock, fused: _Fused, packing: Packing | None) -> BlockRecord:
    attention, fusion = block.attention, block.aggregation.fusion
    batch, n, scales, _ = fused.scales.shape
    solution = fusion(fused.scales, fused.available, fused.inputs, fused.mask).solution
    weights, residual = solution.weights, solution.residual
    if fusion.granularity in ("sequence", "head"):  # one problem for all tokens
        weights, residual = (y[:, None].expand(batch, n, *y.shape[1:]) for y in (weights, residual))
    if fusion.granularity in ("token", "sequence"):  # one problem for all heads
        weights, residual = weights[:, :, None], residual[:, :, None]
    lengths = None if packing is None else packing.lengths
    ends = torch.full((batch,), n, device=weights.device) if lengths is None else lengths
    real = real_columns(n, ends)
    available = real[:, :, None].expand(batch, n, scales)
    if fused.available is not None:
        available = available & fused.available
    weights = weights.masked_fill(~available[:, :, None], torch.nan)
    residual = residual.masked_fill(~real[:, :, None], torch.nan)
    return BlockRecord(
        weights=_as_given(weights, packing, torch.nan),
        available=_as_given(available, packing, False),
        residual=_as_given(residual, packing, torch.nan),
        attention=attention_probabilities(attention, fused.inputs, lengths),
        strides=tuple(attention.decomposition.compression_ratio**scale for scale in range(scales)),
        query_resolution=attention.query_resolution,  # pyright: ignore[reportArgumentType]
        causal=attention.causal,
    )


def _as_given(y: Tensor, packing: Packing | None, missing: float) -> Tensor:
    """Packed rows (batch, n, ...) in the order of the tokens as they were given; columns that were cut are missing."""
    if packing is None:
        return y
    cut = packing.order.shape[1] - y.shape[1]
    return packing.unpack(pad(y, (*(0, 0) * (y.ndim - 2), 0, cut), value=missing))


@contextmanager
def _caught(transformer: MAHATransformer) -> Iterator[_Caught]:
    """Lists that grow by what goes into the fusion and the cross-attention of each block that runs within it."""
    caught = _Caught([], [])

    def catch(module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        del module, options
        caught.fused.append(_Fused(*arguments))

    def catch_crossed(module: Any, arguments: tuple[Any, ...]) -> None:
        del module
        caught.crossed.append(arguments)  # pyright: ignore[reportArgumentType]

    hooks = [block.aggregation.register_forward_pre_hook(catch, with_kwargs=True) for block in transformer._blocks()]
    crossing = [block.cross_attention for block in transformer._blocks() if block.cross_attention is not None]
    hooks += [cross.register_forward_pre_hook(catch_crossed) for cross in crossing]
    try:
        yield caught
    finally:
        for hook in hooks:
            hook.remove()
