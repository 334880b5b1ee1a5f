r"""A decoder whose attention is a binary tree over the sequence.

The sequence is cut into `2^levels` leaf chunks of c = ⌈sequence_length / 2^levels⌉ tokens. Within a leaf, attention is
causal; then, level by level, neighbouring nodes of `m_l = c·2^l` tokens become siblings, and every token of the right
one asks all tokens of the left one, which lie in its past. With a residual stream x and Attend(x, context) the usual
attention of x to a context, both normalised::

    x ← x + Attend(x, its leaf up to x),
    x ← x + Attend(x, the left sibling)     for each x in a right sibling, l = 0 … levels − 1,

so a right sibling keeps its own content and a left one passes unchanged. A block is two such attentions and a
feed-forward part. Borders are counted from the first real token and follow `sequence_length`, never the current length.

Cost: at full length the scores of a tree attention are those of::

    Σ over leaves c²  +  Σ_l (n / 2m_l) m_l²   =   n² (1 + 2^−levels) / 2   pairs of tokens,

about half of full attention's n². It is not less than what causal attention needs, n (n + 1) / 2 pairs: every token
still meets every token before it, exactly once, in the leaf or at the one level where the two are siblings. What the
tree adds is depth (later levels see what earlier ones made), at the price of projections for every level. What it does
not do is make long sequences cheaper; `MultiscaleAttention` does.

Source: the published hierarchical attention decoder, for the tree, two attentions in a block, and the fixed sinusoidal
positions (Vaswani et al., 2017). Its mask is inverted, it drops the right sibling's content, and its chunks move with
the length. Normalisation before each branch, residuals inside the tree, rotary positions, padding and the cache are
ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from models.columns import as_mask
from models.decomposition import Packing
from models.generation import check_prompts, check_token_ids, evaluating, generate
from models.tree_attention import TreeAttention

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from models.generation import GenerationOptions

__all__ = ["DecoderCache", "HierarchicalDecoder"]


@dataclass
class DecoderCache:
    """What a decoder remembers of the tokens that it has read.

    A tree attention needs no more than the current leaf and, at each level, the left sibling of the current node:
    c + c + 2c + 4c + … = c·2^levels tokens in all, one after the other in one tensor.

    Attributes:
        keys: (attentions, batch, heads, c·2^levels, d_head); two attentions for each layer.
        values: the same.
        lengths: (batch,) int64, how many tokens each row has.
        longest: the largest of them, or more.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    longest: int


class HierarchicalDecoder(nn.Module):
    """A causal language model with tree attention; see the module for the formulas and the cost.

    With `c = 1` (`levels = log2(sequence_length)`) a leaf and a lowest sibling are single tokens, whose attention has
    nothing to choose from: the query and key of these two get gradients of zero.

    Args:
        vocab_size: number of tokens of the vocabulary.
        sequence_length: the largest number of real tokens in a row. It need not be a multiple of 2^levels: chunks are
            rounded up, and the last ones stay shorter or empty.
        heads: number of heads; divides `d_model`.
        d_model: number of channels d.
        levels: levels of the tree, 0 (plain causal attention) to log2(sequence_length).
        drop_out: dropout of the embedded tokens and of the output of every branch.
        num_layers: number of blocks; one, as published.
        d_ff: width of the feed-forward part; None: 4·d_model, as published.
        tie_weights: whether the logits share the weights of the embedding, which is then scaled by √d_model.
        positions: "sinusoidal", as published: fixed, and added to the embedding; or "rotary": every attention turns its
            queries and keys, so that scores depend on distances, which learns faster.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        vocab_size: int,
        sequence_length: int,
        heads: int,
        d_model: int,
        levels: int,
        drop_out: float = 0.1,
        *,
        num_layers: int = 1,
        d_ff: int | None = None,
        tie_weights: bool = False,
        positions: Literal["sinusoidal", "rotary"] = "sinusoidal",
    ) -> None:
        super().__init__()
        d_ff = 4 * d_model if d_ff is None else d_ff
        sizes = {"vocab_size": vocab_size, "sequence_length": sequence_length, "heads": heads, "d_model": d_model}
        for name, size in (sizes | {"num_layers": num_layers, "d_ff": d_ff}).items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, but got {size}.")
        if d_model % heads:
            raise ValueError(f"heads must divide d_model = {d_model}, but got {heads}.")
        most = sequence_length.bit_length() - 1
        if not 0 <= levels <= most:
            raise ValueError(
                f"levels must be from 0 to log2(sequence_length), here {most} with sequence_length = "
                f"{sequence_length}, but got {levels}: 2^levels chunks need a token each."
            )
        if not 0 <= drop_out < 1:
            raise ValueError(f"drop_out must be in [0, 1), but got {drop_out}.")
        if positions not in ("sinusoidal", "rotary"):
            raise ValueError(f'positions must be "sinusoidal" or "rotary", but got {positions!r}.')
        rotary = positions == "rotary"
        if rotary and d_model // heads % 2:
            raise ValueError(f"rotary positions need an even number of channels per head, but got {d_model // heads}.")
        self.vocab_size = vocab_size
        self.sequence_length = sequence_length
        self.heads = heads
        self.d_model = d_model
        self.levels = levels
        self.positions = positions
        self.chunk = -(-sequence_length // 2**levels)
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.dropout = nn.Dropout(drop_out)
        self.blocks = nn.ModuleList(
            DecoderBlock(d_model, heads, self.chunk, levels, d_ff, drop_out, rotary=rotary) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size)
        self.embedding_scale = math.sqrt(d_model) if tie_weights else 1.0
        if tie_weights:
            nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(d_model))
            self.head.weight = self.embedding.weight

    @property
    def max_len(self) -> int:
        """`sequence_length`, under the name by which `generate` looks for it."""
        return self.sequence_length

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, training: bool = True) -> Tensor:
        """Logits, or probabilities, of the token after each.

        Args:
            input_ids: (batch, n) integer, n ≥ 1.
            attention_mask: (batch, n) bool or 0/1, True where the token is real; None: everywhere. Padding may stand
                anywhere; positions and chunks count real tokens only.
            training: True: logits, with dropout as the module's mode says. False: probabilities, without dropout.

        Returns:
            (batch, n, vocab_size); meaningless where the token is padding.

        Raises:
            ValueError: an argument has the wrong shape, or a row has more than `sequence_length` real tokens.
            TypeError: an argument has the wrong type.
        """
        if not training:
            with evaluating(self):
                return self.forward(input_ids, attention_mask).softmax(dim=2)
        return self.head(self.hidden_states(input_ids, attention_mask)[-1])

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> list[Tensor]:
        """What goes into the first block and comes out of every one, (batch, n, d_model) each; the last normalised.

        Arguments and errors are those of `forward`; rows of padding mean nothing.
        """
        check_token_ids(input_ids)
        if attention_mask is None:
            self._check_length(input_ids.shape[1])
            return self._layer_outputs(input_ids)
        mask = as_mask("attention_mask", attention_mask, input_ids.shape)
        packing = Packing.from_mask(mask)
        if mask.shape[1] > self.sequence_length and len(mask):  # only then is it worth looking at the mask
            self._check_length(int(packing.lengths.max()))
        # In packed rows padding comes last: a real token, whose context lies before it, meets none.
        return [packing.unpack(x) for x in self._layer_outputs(packing.pack(input_ids))]

    @torch.no_grad()
    def prefill(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, DecoderCache]:
        """Reads prompts.

        Args:
            input_ids: as in `forward`.
            attention_mask: as in `forward`, with a real token in every row.

        Returns:
            Logits (batch, vocab_size) of the token after the last real one of each row, and the cache.

        Raises:
            ValueError: as in `forward`, or a prompt is empty.
            TypeError: as in `forward`.
        """
        mask = check_prompts(input_ids, attention_mask)
        batch, longest = input_ids.shape
        lengths = torch.full((batch,), longest, device=input_ids.device)
        if mask is not None:
            packing = Packing.from_mask(mask)
            lengths = packing.lengths
            longest = int(lengths.max()) if batch else longest
            input_ids = packing.pack(input_ids)[:, :longest]
        self._check_length(longest)
        x = self._embed(input_ids, torch.arange(longest, device=input_ids.device))
        keys, values = [], []
        for block in self._layers():
            for attention in (block.attention1, block.attention2):
                x, k, v = attention.prefill(x, lengths)
                keys.append(k)
                values.append(v)
            x = block.feed_forward(x)
        last = x[torch.arange(batch, device=x.device), lengths - 1]
        return self.head(self.norm(last)), DecoderCache(torch.stack(keys), torch.stack(values), lengths, longest)

    @torch.no_grad()
    def step(self, token_ids: Tensor, cache: DecoderCache) -> tuple[Tensor, DecoderCache]:
        """Reads one more token of each row; the cost does not depend on how many there are.

        Args:
            token_ids: (batch,) integer.
            cache: of `prefill` or of the last step; its tensors of keys and values are written to in place.

        Returns:
            Logits (batch, vocab_size) of the token after it, and the cache.

        Raises:
            ValueError: `token_ids` has the wrong shape, or a row has `sequence_length` tokens already.
        """
        if token_ids.shape != cache.lengths.shape:
            raise ValueError(
                f"token_ids must have shape {tuple(cache.lengths.shape)}, one token for each row, "
                f"but got {tuple(token_ids.shape)}."
            )
        self._check_length(cache.longest + 1)
        position = cache.lengths
        x = self._embed(token_ids, position)
        states = iter(zip(cache.keys, cache.values, strict=True))
        for block in self._layers():
            for attention in (block.attention1, block.attention2):
                x = attention.step(x, *next(states), position)
            x = block.feed_forward(x)
        return self.head(self.norm(x)), DecoderCache(cache.keys, cache.values, position + 1, cache.longest + 1)

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Unpack[GenerationOptions]
    ) -> Tensor:
        """Continues prompts; see `models.generation.generate`."""
        return generate(self, input_ids, attention_mask, **options)

    def _layers(self) -> Iterator[DecoderBlock]:
        yield from self.blocks  # pyright: ignore[reportReturnType]

    def _check_length(self, n: int) -> None:
        if n > self.sequence_length:
            raise ValueError(
                f"a row has {n} tokens, but this decoder reads at most sequence_length = {self.sequence_length}."
            )

    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        embedded = self.embedding(ids) * self.embedding_scale
        if self.positions == "sinusoidal":
            embedded = embedded + sinusoids(positions, self.d_model).to(embedded.dtype)
        return self.dropout(embedded)

    def _layer_outputs(self, ids: Tensor) -> list[Tensor]:
        outputs = [self._embed(ids, torch.arange(ids.shape[1], device=ids.device))]
        for block in self._layers():
            outputs.append(block(outputs[-1]))
        return [*outputs[:-1], self.norm(outputs[-1])]


class DecoderBlock(nn.Module):
    """Two tree attentions and a feed-forward part, each added to the residual stream."""

    def __init__(
        self, d_model: int, heads: int, chunk: int, levels: int, d_ff: int, dropout: float, *, rotary: bool = False
    ) -> None:
        super().__init__()
        self.attention1 = TreeAttention(d_model, heads, chunk, levels, dropout, rotary=rotary)
        self.attention2 = TreeAttention(d_model, heads, chunk, levels, dropout, rotary=rotary)
        self.ffn = nn.Sequential(
            nn.LayerNorm(d_model),
            nn.Linear(d_model, d_ff),
            nn.ReLU(),
            nn.Linear(d_ff, d_model),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n, d_model) to the same."""
        return self.feed_forward(self.attention2(self.attention1(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        """The part that looks at each token by itself, (..., d_model)."""
        return x + self.ffn(x)


def sinusoids(positions: Tensor, d_model: int) -> Tensor:
    """Fixed positions (Vaswani et al., 2017): channels 2i and 2i + 1 are sin and cos of position / 10000^(2i/d).

    Args:
        positions: (...) integer.
        d_model: number of channels d.

    Returns:
        (..., d_model) float32.
    """
    i = torch.arange(0, d_model, 2, device=positions.device, dtype=torch.float32)
    angle = positions[..., None] * 10000.0 ** (-i / d_model)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)[..., :d_model]
