r"""Attention at every scale of a sequence, brought back to the tokens.

At scale `l`, with cells `X_l = D_l(X)` of the tokens X and one value projection shared by all scales::

    Q_l = X_l W^Q_l,   K_l = X_l W^K_l,   V_l = D_l(X W^V),   Y_l = softmax(Q_l K_lᵀ / √d_head) V_l   (per head),

and token t reads the answer of its cell ("coarse" queries, as published). With "fine" queries `Q_l = X W^Q_l`: every
token asks the cells itself, and nothing is upsampled. With one projection "shared" by the scales, `Q_l = D_l(X W^Q)`
and `K_l = D_l(X W^K)`. The fusion of the `Y_l` is somebody else's work.

Source: the published MAHA attention ("full", "coarse", a projection per "scale"); causality, padding, windows, fine
queries and shared projections are our own derivation.

Cost in scores per token, at scale l, with n tokens and `window` w: full n/r^{2l} (coarse) or n/r^l (fine); windowed
1.5·w/r^l (coarse) or 1.5·w (fine). So windowed attention is linear in n; with `coarsest_window=None` the coarsest scale
is full, and the whole is linear only if the number of scales follows the *configured* length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from models.columns import columns_at, last_columns, real_columns
from models.decomposition import HierarchicalDecomposition, Packing, check_mask, check_tokens
from models.rotary import middle_of_cell, rotate
from models.upsampling import available_scales, group_tokens, stack_at_tokens, ungroup_tokens
from models.windows import attend_cells

__all__ = ["AttentionState", "MultiscaleAttention"]


@dataclass
class AttentionState:
    """What causal attention remembers of the tokens that it has seen; `MultiscaleAttention.step` brings it forward.

    Keys and values of scale l stand in a ring: cell j in slot `j mod slots_l`. A row has `lengths // r^l` cells.

    Attributes:
        lengths: (batch,) int64, number of tokens seen in each row.
        children: for each scale l ≥ 1, (batch, streams, kernel_size, d_model), the last cells of scale l − 1, of which
            the next cell is made; zero before the first.
        keys: for each scale, (batch, slots_l, heads, d_head).
        values: likewise.
        answers: (batch, L, d_model), what each scale last said; zero before its first cell.
    """

    lengths: Tensor
    children: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    answers: Tensor


class MultiscaleAttention(nn.Module):
    """Attention at each scale of a decomposition; returns the answers of all scales, token by token.

    Causal means: what comes out before token p does not depend on tokens from p on. A token then reads the last cell
    that is complete, and until there is one the scale is zero and marked as not available. Nothing depends on the
    current length, so a prefix alone gives what the same prefix gives in a longer sequence (to rounding).

    Heads are concatenated; no output projection is applied. Projections have no bias: a key bias would never get a
    gradient, as softmax does not see it.

    Args:
        d_model: number of channels d.
        num_heads: number of heads; divides `d_model`.
        num_scales: number of scales L, that of `decomposition_module`.
        decomposition_module: makes the cells, of tokens and of values alike.
        attention: "windowed" gives every scale a sliding window, and makes no n×n tensor; "full" lets every cell see
            all cells of its scale, as published.
        window: how many cells of its own scale a query sees. Causal: the last `window` complete ones, its own
            included. Bidirectional: its own and `window // 2` on either side. Ignored where `attention="full"`.
        coarsest_window: the window of the coarsest scale. The default, 256 cells, is everything in a sequence of up to
            `256·r^(L−1)` tokens (half of it where bidirectional), and keeps the cost linear beyond. None: no window,
            at a cost of n/r^{2(L−1)} scores per token.
        query_resolution: "coarse": a cell asks for all tokens that read it. In a causal model it is the last complete
            cell, so the question is up to `2r^l − 2` tokens old, and the finest window must cover that: `window` of at
            least `2·r^(L−1) − 1`. "fine": every token asks.
        projections: "scale": queries and keys of each scale have a projection of their own, as published; "shared": one
            for all scales, its outputs made coarser like the values. With fine queries the former costs L projections
            of every token, the latter one.
        causal: as the decomposition is.
        rotary_base: rotates queries and keys by their position (the middle of a cell, in tokens) with this base, for
            example 10000; None: positions are left to the caller.

    Raises:
        ValueError: an argument is out of its range or disagrees with the decomposition; the message names it.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_scales: int,
        decomposition_module: HierarchicalDecomposition,
        *,
        attention: Literal["windowed", "full"] = "windowed",
        window: int = 128,
        coarsest_window: int | None = 256,
        query_resolution: Literal["coarse", "fine"] = "coarse",
        projections: Literal["scale", "shared"] = "scale",
        causal: bool = False,
        rotary_base: float | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or d_model % num_heads:
            raise ValueError(f"num_heads must divide d_model = {d_model}, but got {num_heads}.")
        for name, own in (("d_model", d_model), ("num_scales", num_scales), ("causal", causal)):
            theirs = getattr(decomposition_module, name)
            if theirs != own:
                raise ValueError(f"{name} must be that of decomposition_module, {theirs}, but got {own}.")
        if attention not in ("windowed", "full"):
            raise ValueError(f'attention must be "windowed" or "full", but got {attention!r}.')
        if query_resolution not in ("coarse", "fine"):
            raise ValueError(f'query_resolution must be "coarse" or "fine", but got {query_resolution!r}.')
        if projections not in ("scale", "shared"):
            raise ValueError(f'projections must be "scale" or "shared", but got {projections!r}.')
        if rotary_base is not None and (d_model // num_heads) % 2:
            raise ValueError(f"rotary_base needs an even number of channels per head, but got {d_model // num_heads}.")
        if coarsest_window is not None and coarsest_window < 1:
            raise ValueError(f"coarsest_window must be at least 1, but got {coarsest_window}.")
        if attention == "windowed":
            _check_window(window, num_scales, decomposition_module.compression_ratio, query_resolution, causal)
        self.d_model = d_model
        self.num_heads = num_heads
        self.num_scales = num_scales
        self.decomposition = decomposition_module
        self.attention = attention
        self.window = window
        self.coarsest_window = coarsest_window
        self.query_resolution = query_resolution
        self.projections = projections
        self.causal = causal
        self.rotary_base = rotary_base
        count = num_scales if projections == "scale" else 1
        self.queries = nn.ModuleList(nn.Linear(d_model, d_model, bias=False) for _ in range(count))
        self.keys = nn.ModuleList(nn.Linear(d_model, d_model, bias=False) for _ in range(count))
        self.value = nn.Linear(d_model, d_model, bias=False)

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return (
            f"num_heads={self.num_heads}, attention={self.attention!r}, window={self.window}, "
            f"coarsest_window={self.coarsest_window}, query_resolution={self.query_resolution!r}, "
            f"projections={self.projections!r}, causal={self.causal}, rotary_base={self.rotary_base}"
        )

    def forward(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Answers of all scales.

        Args:
            x: (batch, n, d_model), n ≥ 1, floating point.
            mask: (batch, n) bool, True where the token is real; None: all are. Padding may stand anywhere; positions
                count real tokens only.
            lengths: (batch,) integer, in place of `mask`, where the real tokens of every row are known to stand in
                front: a model packs its rows once (`Packing`) and spares its layers the reordering.

        Returns:
            Scale outputs (batch, n, L, d_model), zero where the scale is not available and where the token is padding;
            and `available` (batch, n, L) bool. Scale 0 is always marked available, so that no set of scales is empty.

        Raises:
            ValueError: an argument has the wrong shape, or both `mask` and `lengths` are given.
            TypeError: `mask` is not boolean.
        """
        check_tokens(x, self.d_model)
        if mask is not None and lengths is not None:
            raise ValueError("mask and lengths both describe the padding: give one of them.")
        if mask is not None:
            check_mask(mask, x)
            packing = Packing.from_mask(mask)
            packed = packing.pack(x)
            y, available = self.upsample(self.answers(packed, packing.lengths), packed.shape[1], packing.lengths)
            return packing.unpack(y), packing.unpack(available)
        if lengths is not None and lengths.shape != x.shape[:1]:
            raise ValueError(f"lengths must have shape {tuple(x.shape[:1])}, but got {tuple(lengths.shape)}.")
        return self.upsample(self.answers(x, lengths), x.shape[1], lengths)

    def answers(self, x: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """What each scale says, of packed rows, without checks.

        Args:
            x: (batch, n, d_model).
            lengths: (batch,) integer, as in `forward`.

        Returns:
            For each scale, one answer per cell, (batch, n_l, d_model), where queries are coarse, and one per token,
            (batch, n, d_model), where they are fine. Those of cells and tokens that do not exist are finite.
        """
        return [self._attend(scale, q, k, v, lengths) for scale, (_, q, k, v) in enumerate(self._scales(x, lengths))]

    def upsample(self, answers: list[Tensor], n: int, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Answers of packed rows, as `answers` returns them, to what `forward` returns of packed rows."""
        r = self.decomposition.compression_ratio
        if self.query_resolution == "coarse":
            strides = [r**scale for scale in range(self.num_scales)]
            y = stack_at_tokens(answers, strides, n, causal=self.causal)
        else:
            y = torch.stack(answers, dim=2)
        if lengths is not None:
            y = y.masked_fill(~real_columns(n, lengths)[..., None, None], 0)
        ends = torch.full(y.shape[:1], n, device=y.device) if lengths is None else lengths
        return y, available_scales(n, self.num_scales, r, ends, causal=self.causal)

    def remember(self, x: Tensor, lengths: Tensor, max_len: int) -> tuple[list[Tensor], AttentionState]:
        """`answers` of packed rows, and the state after them. Causal only.

        Args:
            x: (batch, n, d_model).
            lengths: (batch,) integer, number of real tokens of each row.
            max_len: how many tokens a row may get.
        """
        r, taps = self.decomposition.compression_ratio, self.decomposition.kernel_size
        answers, held = [], []
        children, kept_keys, kept_values = [], [], []
        for scale, (cells, queries, keys, values) in enumerate(self._scales(x, lengths)):
            count, window = lengths // r**scale, self._window(scale)
            most = max(max_len // r**scale, 1)
            slots = most if window is None else min(window, most)
            # In slot s stands the last cell j < count with j mod slots = s.
            last = count[:, None] - 1
            cell = last - (last - torch.arange(slots, device=x.device)) % slots
            kept_keys.append(columns_at(keys, cell))
            kept_values.append(columns_at(values, cell))
            if scale + 1 < self.num_scales:
                children.append(torch.stack([last_columns(stream, count, taps) for stream in cells], 1))
            answers.append(self._attend(scale, queries, keys, values, lengths))
            held.append(last_columns(answers[-1], lengths if self.query_resolution == "fine" else count, 1)[:, 0])
        return answers, AttentionState(lengths.clone(), children, kept_keys, kept_values, torch.stack(held, 1))

    def step(self, x: Tensor, state: AttentionState, real: Tensor) -> tuple[Tensor, Tensor]:
        """One more token for each row, in O(window): what `forward` says of it.

        Args:
            x: (batch, d_model).
            state: the state of the rows; changed in place.
            real: (batch,) bool, False where a row gets no token. Its state stays, its answers mean nothing.

        Returns:
            Scale outputs (batch, L, d_model) and `available` (batch, L) bool.
        """
        r, fine = self.decomposition.compression_ratio, self.query_resolution == "fine"
        position = state.lengths[:, None]
        state.lengths = state.lengths + real
        tokens = cells = self._streams(x[:, None])
        complete = real
        for scale in range(self.num_scales):
            count = state.lengths // r**scale
            if scale:
                below = state.children[scale - 1]
                pushed = torch.cat([below[:, :, 1:], torch.stack(cells, 1)], dim=2)
                state.children[scale - 1] = torch.where(complete[:, None, None, None], pushed, below)
                cells = [self.decomposition.combine(children, scale)[:, None] for children in pushed.unbind(1)]
                complete = real & (state.lengths % r**scale == 0)
            middle = middle_of_cell(count[:, None] - 1, r**scale)
            queries, keys, values = self._project(scale, tokens, cells, position if fine else middle, middle)
            slot = (count[:, None] - 1) % state.keys[scale].shape[1]
            _write(state.keys[scale], slot, keys, complete)
            _write(state.values[scale], slot, values, complete)
            y = _attend_slots(queries, state.keys[scale], state.values[scale], count)
            renewed = real & (count > 0) if fine else complete
            state.answers[:, scale] = torch.where(renewed[:, None], y, state.answers[:, scale])
        strides = torch.tensor([r**scale for scale in range(self.num_scales)], device=x.device)
        return state.answers.clone(), (state.lengths[:, None] >= strides) | (strides == 1)

    def _streams(self, x: Tensor) -> list[Tensor]:
        """What is made coarser: the tokens and their values, or queries, keys and values; each (batch, n, d_model)."""
        if self.projections == "scale":
            return [x, self.value(x)]
        return [self.queries[0](x), self.keys[0](x), self.value(x)]

    def _scales(self, x: Tensor, lengths: Tensor | None) -> Iterator[tuple[list[Tensor], Tensor, Tensor, Tensor]]:
        """For each scale, the cells of every stream, and its queries, keys and values by head."""
        streams = self._streams(x)
        pyramids = [self.decomposition.pyramid(stream, lengths) for stream in streams]
        tokens = torch.arange(x.shape[1], device=x.device)
        for scale in range(self.num_scales):
            cells = [pyramid[scale] for pyramid in pyramids]
            stride = self.decomposition.compression_ratio**scale
            middle = middle_of_cell(torch.arange(cells[0].shape[1], device=x.device), stride)
            of_queries = tokens if self.query_resolution == "fine" else middle
            # Scale 0 of a pyramid is the stream itself, cleared of padding.
            yield (cells, *self._project(scale, [pyramid[0] for pyramid in pyramids], cells, of_queries, middle))

    def _project(
        self, scale: int, tokens: list[Tensor], cells: list[Tensor], of_queries: Tensor, of_cells: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the tokens or of the cells, and keys and values of the cells, by head and at their positions."""
        queries = (tokens if self.query_resolution == "fine" else cells)[0]
        if self.projections == "scale":
            queries, keys, values = self.queries[scale](queries), self.keys[scale](cells[0]), cells[1]
        else:
            _, keys, values = cells
        queries, keys, values = (y.unflatten(2, (self.num_heads, -1)) for y in (queries, keys, values))
        if self.rotary_base is not None:
            queries, keys = rotate(queries, of_queries, self.rotary_base), rotate(keys, of_cells, self.rotary_base)
        return queries, keys, values

    def _attend(self, scale: int, queries: Tensor, keys: Tensor, values: Tensor, lengths: Tensor | None) -> Tensor:
        """One scale's answers, as `answers` returns them."""
        stride, n = self.decomposition.compression_ratio**scale, queries.shape[1]
        fine, causal = self.query_resolution == "fine", self.causal
        queries = group_tokens(queries, stride, causal=causal) if fine else queries[:, :, None]
        # In packed rows padding comes last, where no causal query sees it.
        real_cells = None if lengths is None or causal else -(-lengths // stride)
        y = attend_cells(queries, keys, values, window=self._window(scale), causal=causal, real_cells=real_cells)
        y = y.flatten(3)
        return ungroup_tokens(y, n, causal=causal) if fine else y[:, :, 0]

    def _window(self, scale: int) -> int | None:
        if self.attention == "full":
            return None
        return self.coarsest_window if scale == self.num_scales - 1 else self.window


def _write(ring: Tensor, slot: Tensor, value: Tensor, where: Tensor) -> None:
    """Puts `value` (batch, 1, heads, d_head) into the slot (batch, 1) of each row, where it is said to."""
    index = slot[..., None, None].expand_as(value)
    ring.scatter_(1, index, torch.where(where[:, None, None, None], value, ring.gather(1, index)))


def _attend_slots(query: Tensor, keys: Tensor, values: Tensor, count: Tensor) -> Tensor:
    """Attention of one query (batch, 1, heads, d_head) over the first `count` slots of each row; (batch, d_model)."""
    seen = torch.arange(keys.shape[1], device=keys.device) < count.clamp(min=1)[:, None]  # a ring once filled stays so
    y = scaled_dot_product_attention(
        query.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=seen[:, None, None]
    )
    return y.transpose(1, 2).flatten(1)


def _check_window(window: int, num_scales: int, ratio: int, query_resolution: str, causal: bool) -> None:
    if not causal:
        needed, why = 1, ""
    elif query_resolution == "coarse":
        needed = 2 * ratio ** (num_scales - 1) - 1
        why = f" (2·r^(L−1) − 1: a causal coarse query is up to {needed - 1} tokens old)"
    else:
        needed = max(1, ratio - 1)
        why = " (r − 1: up to there the next coarser scale may be incomplete)"
    if window < needed:
        raise ValueError(f"window must be at least {needed}{why}, but got {window}.")
