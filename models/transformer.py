"""The MAHA transformer: embedding, positions, blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maha_opt.aggregation import ZeroLinear
from maha_opt.switching import HasFusions
from models.aggregation import Strategy
from models.block import BlockOptions, BlockState, MAHABlock
from models.columns import as_mask, real_columns
from models.decomposition import Packing
from models.rotary import ROTARY_BASE

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["MAHATransformer", "TransformerState", "initialise"]

WEIGHT_GAIN = 0.02 * 768**0.5
"""Standard deviation of the first weights times √(inputs of a map, channels of an embedding): where that number is 768
it is 0.02, as in BERT and GPT-2."""


@dataclass
class TransformerState:
    """What a causal transformer remembers of the tokens that it has seen, for every block.

    Attributes:
        blocks: one for each layer.
    """

    blocks: list[BlockState]

    @property
    def lengths(self) -> Tensor:
        """(batch,) int64, number of tokens seen in each row."""
        return self.blocks[0].attention.lengths

    def map(self, function: Callable[[Tensor], Tensor]) -> TransformerState:
        """The same with a function applied to every tensor, such as `lambda x: x[rows]`."""
        return _map_tensors(self, function)


class MAHATransformer(HasFusions, nn.Module):
    """A stack of MAHA blocks: an encoder, or where causal a decoder.

    Args:
        vocab_size: number of different tokens.
        max_len: largest number of real tokens in a row.
        d_model: number of channels d.
        num_heads: number of heads; divides `d_model`.
        num_layers: number of blocks.
        d_ff: width of the feed-forward parts.
        num_scales: number of scales L.
        aggregation_strategy: "convex", "nash" or, for comparison, "gate".
        dropout: of the embeddings and of every branch.
        causal: whether no token sees those after it.
        positions: "rotary" (queries and keys are turned), "learned" (an embedding for each of `max_len`), or "none":
            the convolutions and windows still tell some of the order.
        cross_attention: whether the blocks attend to a memory too, as a decoder's do.
        options: see `MAHABlock`.

    Attributes:
        gradient_checkpointing: recompute each block in the backward pass rather than keep what it made; False at first.

    Raises:
        ValueError: an argument is out of its range; the message names it.
        TypeError: there is no such option.
    """

    def __init__(
        self,
        vocab_size: int,
        max_len: int = 512,
        d_model: int = 768,
        num_heads: int = 12,
        num_layers: int = 12,
        d_ff: int = 3072,
        num_scales: int = 4,
        aggregation_strategy: Strategy = "convex",
        dropout: float = 0.1,
        causal: bool = False,
        *,
        positions: Literal["rotary", "learned", "none"] = "rotary",
        cross_attention: bool = False,
        **options: Unpack[BlockOptions],
    ) -> None:
        super().__init__()
        for name, number in (("vocab_size", vocab_size), ("max_len", max_len), ("num_layers", num_layers)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, but got {number}.")
        if positions not in ("rotary", "learned", "none"):
            raise ValueError(f'positions must be "rotary", "learned" or "none", but got {positions!r}.')
        self.vocab_size = vocab_size
        self.max_len = max_len
        self.d_model = d_model
        self.causal = causal
        self.token_emb = nn.Embedding(vocab_size, d_model)
        self.pos_emb = nn.Embedding(max_len, d_model) if positions == "learned" else None
        self.emb_dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            MAHABlock(
                d_model,
                num_heads,
                d_ff,
                dropout,
                num_scales,
                aggregation_strategy=aggregation_strategy,
                causal=causal,
                rotary_base=ROTARY_BASE if positions == "rotary" else None,
                cross_attention=cross_attention,
                **options,
            )
            for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(d_model)
        self.gradient_checkpointing = False
        self.apply(initialise)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        layers: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What the model makes of every token.

        Args:
            x: (batch, n) integer tokens, n ≥ 1; or their embeddings (batch, n, d_model), floating point.
            mask: (batch, n) bool or 0/1, True where the token is real; None: all are. Padding may stand on either side:
                real tokens do not notice it.
            memory: (batch, m, d_model), what a model with `cross_attention` attends to.
            memory_mask: (batch, m) bool or 0/1, where the memory is real; None: everywhere.
            layers: a list, to which the embeddings and what every block makes of them are appended, (batch, n, d_model)
                each, the last one being the hidden states that are returned.

        Returns:
            The hidden states, (batch, n, d_model), zero at padding; and the auxiliary loss, a scalar, which is the
            mean over blocks of the objective that the aggregation is left with
            (`maha_opt.aggregation_base.Aggregation.with_objective`), that is, how much of what a block asks for no
            fusion of its scales can give. Adding a little of it to a loss teaches the scales to cover it.

        Raises:
            ValueError: an argument has the wrong shape, or there are more than `max_len` tokens in a row.
            TypeError: an argument has the wrong type.
        """
        packing, lengths, h = self._embedded(x, mask)
        objectives = []
        for layer in self.layers:
            if layers is not None:
                layers.append(_unpacked(h, packing))
            block = partial(layer, lengths=lengths, memory=memory, memory_mask=memory_mask)
            if self.gradient_checkpointing and self.training:
                h, objective = cast(tuple[Tensor, Tensor], checkpoint(block, h, use_reentrant=False))
            else:
                h, objective = block(h)
            objectives.append(objective)
        hidden = self._finished(h, packing, layers)
        return hidden, torch.stack(objectives).mean()

    @torch.no_grad()
    def prefill(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        layers: list[Tensor] | None = None,
    ) -> tuple[Tensor, TransformerState]:
        """`forward` of a causal model, without the auxiliary loss or gradients, and the state after it.

        Args:
            x: This and all others: see `forward`.
            mask: See there.
            memory: See there.
            memory_mask: See there.
            layers: See there.

        Raises:
            ValueError: the model is not causal; or as `forward`.
        """
        if not self.causal:
            raise ValueError("prefill needs causal=True: elsewhere every new token changes those before it.")
        packing, lengths, h = self._embedded(x, mask)
        if lengths is None:
            lengths = torch.full(h.shape[:1], h.shape[1], device=h.device)
        blocks = []
        for layer in self._blocks():
            if layers is not None:
                layers.append(_unpacked(h, packing))
            h, block = layer.prefill(h, lengths, self.max_len, memory=memory, memory_mask=memory_mask)
            blocks.append(block)
        return self._finished(h, packing, layers), TransformerState(blocks)

    @torch.no_grad()
    def step(
        self,
        x: Tensor,
        state: TransformerState,
        real: Tensor | None = None,
        *,
        layers: list[Tensor] | None = None,
    ) -> Tensor:
        """One more token for each row, in O(window): what `forward` makes of it.

        Args:
            x: (batch,) integer tokens, or their embeddings (batch, d_model).
            state: the state of the rows; changed in place.
            real: (batch,) bool or 0/1, False where a row gets no token; None: all do.
            layers: as in `forward`, (batch, d_model) each.

        Returns:
            (batch, d_model), zero where there was no token.

        Raises:
            ValueError: a row has `max_len` tokens already, or an argument has the wrong shape.
        """
        embedded = x.is_floating_point()
        rows = state.lengths.shape
        if x.shape != (*rows, self.d_model) if embedded else x.shape != rows:
            raise ValueError(f"x must be one token for each of {rows[0]} rows, but has shape {tuple(x.shape)}.")
        real = (
            torch.ones_like(state.lengths, dtype=torch.bool)
            if real is None
            else as_mask("real", real, state.lengths.shape)
        )
        if bool((real & (state.lengths >= self.max_len)).any()):
            raise ValueError(f"max_len is {self.max_len}: a row has that many tokens already.")
        h = x if embedded else self.token_emb(x)
        if self.pos_emb is not None:
            h = h + self.pos_emb(state.lengths.clamp(max=self.max_len - 1))
        h = self.emb_dropout(h)
        for layer, block in zip(self._blocks(), state.blocks, strict=True):
            if layers is not None:
                layers.append(h.masked_fill(~real[:, None], 0))
            h = layer.step(h, block, real)
        h = self.final_norm(h).masked_fill(~real[:, None], 0)
        if layers is not None:
            layers.append(h)
        return h

    def _blocks(self) -> Iterator[MAHABlock]:
        yield from self.layers  # pyright: ignore[reportReturnType]

    def _embedded(self, x: Tensor, mask: Tensor | None) -> tuple[Packing | None, Tensor | None, Tensor]:
        """How rows were packed, their lengths, and packed embeddings with their positions."""
        embedded = x.is_floating_point()
        if x.ndim != (3 if embedded else 2) or x.shape[1] < 1 or (embedded and x.shape[2] != self.d_model):
            needed = f"(batch, n, {self.d_model})" if embedded else "(batch, n)"
            raise ValueError(f"x must have shape {needed} with n at least 1, but got {tuple(x.shape)}.")
        packing, lengths = None, None
        if mask is not None:
            mask = as_mask("mask", mask, x.shape[:2])
            packing = Packing.from_mask(mask)
            x, lengths = packing.pack(x), packing.lengths
        n = x.shape[1]
        if n > self.max_len:
            longest = n if lengths is None or lengths.numel() == 0 else int(lengths.max())
            if longest > self.max_len:
                raise ValueError(f"the sequence has {longest} tokens, but max_len is {self.max_len}.")
            x, n = x[:, : self.max_len], self.max_len  # the rest is padding
        h = x if embedded else self.token_emb(x)
        if self.pos_emb is not None:
            h = h + self.pos_emb(torch.arange(n, device=h.device))
        return packing, lengths, self.emb_dropout(h)

    def _finished(self, h: Tensor, packing: Packing | None, layers: list[Tensor] | None) -> Tensor:
        h = _unpacked(self.final_norm(h), packing)
        if layers is not None:
            layers.append(h)
        return h


def _unpacked(h: Tensor, packing: Packing | None) -> Tensor:
    """Packed rows in their original order, zero at padding."""
    if packing is None:
        return h
    h = h.masked_fill(~real_columns(h.shape[1], packing.lengths)[..., None], 0)
    missing = packing.order.shape[1] - h.shape[1]
    return packing.unpack(nn.functional.pad(h, (0, 0, 0, missing)))


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Draws the first weights: σ = 0.55 / √(inputs) for linear maps, 0.55 / √(channels) for embeddings; biases are 0.

    With the σ = 0.02 of BERT and GPT-2, which have 768 channels, queries and keys of narrow models would be so small
    that attention starts uniform and long stays so. Other modules stay as they are.
    """
    if isinstance(module, ZeroLinear):
        module.reset_parameters()
    elif isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=WEIGHT_GAIN / module.weight.shape[1] ** 0.5)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A tree of dataclasses and lists with a function applied to every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list):
        return [_map_tensors(item, function) for item in value]
    if value is None:
        return None
    return replace(value, **{f.name: _map_tensors(getattr(value, f.name), function) for f in fields(value)})
