"""Attention to the leaves and left siblings of a tree; `models.hierarchical_decoder` has the formulas."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from models.rotary import ROTARY_BASE, rotate

__all__ = ["TreeAttention"]


class TreeAttention(nn.Module):
    """Causal attention within leaves of `chunk` tokens, then from right to left siblings, level by level.

    Rotary positions are counted from the start of the leaf, or of the pair of siblings: only differences matter.
    """

    def __init__(
        self, d_model: int, heads: int, chunk: int, levels: int, dropout: float, *, rotary: bool = False
    ) -> None:
        super().__init__()
        self.chunk = chunk
        self.leaf = Attention(d_model, heads, dropout, rotary=rotary)
        self.nodes = nn.ModuleList(Attention(d_model, heads, dropout, rotary=rotary) for _ in range(levels))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n, d_model), any n, to the same."""
        return self._stream(x)[-1]

    def prefill(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`forward`, and the keys and values, (batch, heads, c·2^levels, d_head), that the tokens after `x` will need.

        Of a slot that no token has reached yet the content is arbitrary and finite; it is written before it is read.
        """
        stream = self._stream(x)
        keys, values = [], []
        for attention, before, (slots, period) in zip(self._attentions(), stream, self._spans(), strict=False):
            # The leaf, or the pair of siblings, that token `lengths` belongs to begins here.
            first = lengths // period * period
            index = first[:, None] + torch.arange(min(slots, x.shape[1]), device=x.device)
            index = index.clamp(max=x.shape[1] - 1)[..., None].expand(-1, -1, x.shape[2])
            own = attention.keys_values(before.gather(1, index), torch.arange(index.shape[1], device=x.device))
            for kept, tensor in zip((keys, values), own, strict=True):
                kept.append(pad(tensor, (0, 0, 0, slots - tensor.shape[2])))
        return stream[-1], torch.cat(keys, dim=2), torch.cat(values, dim=2)

    def step(self, x: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
        """One more token of each row, (batch, d_model), at `position` (batch,); writes its keys and values."""
        x, offset = x[:, None], 0
        for level, (attention, (slots, period)) in enumerate(zip(self._attentions(), self._spans(), strict=True)):
            k, v = keys[:, :, offset : offset + slots], values[:, :, offset : offset + slots]
            offset += slots
            place = position % period
            written = place < slots  # all of a leaf, and left siblings
            for kept, new in zip((k, v), attention.keys_values(x, place[:, None]), strict=True):
                _write(kept, place.clamp(max=slots - 1), new, written)
            if level == 0:
                seen = torch.arange(slots, device=x.device) <= place[:, None]
                x = x + attention.attend(x, k, v, place[:, None], mask=seen[:, None, None])
            else:
                x = torch.where(written[:, None, None], x, x + attention.attend(x, k, v, place[:, None]))
        return x[:, 0]

    def _attentions(self) -> list[Attention]:
        return [self.leaf, *self.nodes]  # pyright: ignore[reportReturnType]

    def _spans(self) -> list[tuple[int, int]]:
        """For the leaf and each level: how many tokens are remembered, and after how many tokens it starts anew."""
        nodes = [self.chunk * 2**level for level in range(len(self.nodes))]
        return [(self.chunk, self.chunk), *((m, 2 * m) for m in nodes)]

    def _stream(self, x: Tensor) -> list[Tensor]:
        """The residual stream before the leaves, before each level, and at the end."""
        stream = [x, self._attend_leaves(x)]
        for level in range(len(self.nodes)):
            stream.append(self._attend_siblings(stream[-1], level))
        return stream

    def _attend_leaves(self, x: Tensor) -> Tensor:
        whole, rest = _cut(x, self.chunk)
        whole = whole + self.leaf(whole, whole, causal=True)
        if rest.shape[1]:
            rest = rest + self.leaf(rest, rest, causal=True)
        return _join(whole, rest, x)

    def _attend_siblings(self, x: Tensor, level: int) -> Tensor:
        m = self.chunk * 2**level
        attention = self.nodes[level]
        whole, rest = _cut(x, 2 * m)
        left, right = whole[:, :m], whole[:, m:]
        # Also where there is no pair at all: so every parameter has a gradient, if only zero.
        whole = torch.cat([left, right + attention(right, left, first=m)], dim=1)
        if rest.shape[1] > m:
            left, right = rest[:, :m], rest[:, m:]
            rest = torch.cat([left, right + attention(right, left, first=m)], dim=1)
        return _join(whole, rest, x)


class Attention(nn.Module):
    """Multi-head attention of tokens to a context, both normalised first; a branch of a residual stream.

    Queries, keys and values have no bias: that of the keys would never get a gradient, as softmax does not see it.
    """

    def __init__(self, d_model: int, heads: int, dropout: float, *, rotary: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.rotary = rotary
        self.norm = nn.LayerNorm(d_model)
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: Tensor, *, first: int = 0, causal: bool = False) -> Tensor:
        """Answers (batch, n, d_model) to x (batch, n, d_model) from a context (batch, m, d_model).

        Positions are counted from the start of the context, where x begins at `first`.
        """
        seen = torch.arange(context.shape[1], device=x.device)
        positions = first + torch.arange(x.shape[1], device=x.device)
        return self.attend(x, *self.keys_values(context, seen), positions, causal=causal)

    def keys_values(self, context: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, heads, m, d_head) each; positions (m,) or (batch, m)."""
        context = self.norm(context)
        return self._placed(self.key(context), positions), self._split(self.value(context)).transpose(1, 2)

    def attend(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        positions: Tensor,
        *,
        causal: bool = False,
        mask: Tensor | None = None,
    ) -> Tensor:
        """`forward` with keys, values and the positions of x given; the mask is True where a key is seen."""
        queries = self._placed(self.query(self.norm(x)), positions)
        keys, values = keys.to(queries.dtype), values.to(queries.dtype)
        y = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal)
        return self.dropout(self.output(y.transpose(1, 2).flatten(2)))

    def _placed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Queries or keys, (batch, heads, n, d_head), turned by their positions if these are rotary."""
        x = self._split(x)
        return (rotate(x, positions, ROTARY_BASE) if self.rotary else x).transpose(1, 2)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1))


def _cut(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(batch, n, d) into its whole groups, (batch · groups, size, d), and what is left, (batch, fewer, d)."""
    batch, n, d = x.shape
    groups = n // size
    return x[:, : groups * size].reshape(batch * groups, size, d), x[:, groups * size :]


def _join(whole: Tensor, rest: Tensor, x: Tensor) -> Tensor:
    """The inverse of `_cut`, in the shape of `x`."""
    batch, n, d = x.shape
    return torch.cat([whole.reshape(batch, n - rest.shape[1], d), rest], dim=1)


def _write(kept: Tensor, slot: Tensor, new: Tensor, where: Tensor) -> None:
    """Puts `new` (batch, heads, 1, d) at a slot (batch,) of `kept` (batch, heads, slots, d), in the rows `where`."""
    rows = torch.arange(len(kept), device=kept.device)
    kept[rows, :, slot] = torch.where(where[:, None, None], new[:, :, 0].to(kept.dtype), kept[rows, :, slot])
