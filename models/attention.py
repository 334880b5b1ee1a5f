r"""Attention at every scale of a sequence, brought back to the tokens.

At scale `l`, with cells `X_l = D_l(X)` of the tokens X and one value projection shared by all scales,

    Q_l = X_l W^Q_l,   K_l = X_l W^K_l,   V_l = D_l(X W^V),   Y_l = softmax(Q_l K_lᵀ / √d_head) V_l   (per head),

and token t reads the answer of its cell ("coarse" queries, as published). With "fine" queries `Q_l = X W^Q_l`: every
token asks the cells itself, and nothing is upsampled. The fusion of the `Y_l` is somebody else's work.

Source: the published MAHA attention ("full", "coarse"); causality, padding, windows and fine queries are our own
derivation.

Cost in scores per token, at scale l, with n tokens and `window` w: full n/r^{2l} (coarse) or n/r^l (fine); windowed
1.5·w/r^l (coarse) or 1.5·w (fine). The coarsest scale is full unless it has a window too, so the cost is linear in n
only if the number of scales follows the *configured* length, or with `coarsest_window`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from models.decomposition import HierarchicalDecomposition, Packing, check_mask, check_tokens
from models.upsampling import available_scales, group_tokens, ungroup_tokens

__all__ = ["MultiscaleAttention"]


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
        attention: "windowed" gives every scale but the coarsest a sliding window, and makes no n×n tensor; "full" lets
            every cell see all cells of its scale, as published.
        window: how many cells of its own scale a query sees. Causal: the last `window` complete ones, its own
            included. Bidirectional: its own and `window // 2` on either side. Ignored where `attention="full"`.
        query_resolution: "coarse": a cell asks for all tokens that read it. In a causal model it is the last complete
            cell, so the question is up to `2r^l − 2` tokens old, and the finest window must cover that: `window` of at
            least `2·r^(L−1) − 1`. "fine": every token asks.
        causal: as the decomposition is.
        coarsest_window: a window for the coarsest scale too, where `attention="windowed"`; None: it sees everything.
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
        query_resolution: Literal["coarse", "fine"] = "coarse",
        causal: bool = False,
        coarsest_window: int | None = None,
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
        self.query_resolution = query_resolution
        self.causal = causal
        self.coarsest_window = coarsest_window
        self.rotary_base = rotary_base
        self.queries = nn.ModuleList(nn.Linear(d_model, d_model, bias=False) for _ in range(num_scales))
        self.keys = nn.ModuleList(nn.Linear(d_model, d_model, bias=False) for _ in range(num_scales))
        self.value = nn.Linear(d_model, d_model, bias=False)

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
            y, available = self._forward_packed(packing.pack(x), packing.lengths)
            return packing.unpack(y), packing.unpack(available)
        if lengths is not None and lengths.shape != x.shape[:1]:
            raise ValueError(f"lengths must have shape {tuple(x.shape[:1])}, but got {tuple(lengths.shape)}.")
        return self._forward_packed(x, lengths)

    def _forward_packed(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, n, _ = x.shape
        cells = self.decomposition.pyramid(x, lengths)
        values = self.decomposition.pyramid(self.value(cells[0]), lengths)
        y = torch.stack(
            [self._attend(scale, cells[0], cells[scale], values[scale], lengths) for scale in range(self.num_scales)],
            dim=2,
        )
        ends = torch.full((batch,), n, device=x.device) if lengths is None else lengths
        available = available_scales(n, self.num_scales, self.decomposition.compression_ratio, ends, causal=self.causal)
        if lengths is not None:
            real = torch.arange(n, device=x.device) < lengths[:, None]
            y = y.masked_fill(~real[..., None, None], 0)
        return y, available

    def _attend(self, scale: int, tokens: Tensor, cells: Tensor, values: Tensor, lengths: Tensor | None) -> Tensor:
        """One scale's answers at the tokens, (batch, n, d_model)."""
        stride = self.decomposition.compression_ratio**scale
        keys = self._heads(self.keys[scale](cells), stride)
        if self.query_resolution == "fine":
            queries = self._heads(self.queries[scale](tokens), 1)
            queries = group_tokens(queries, stride, causal=self.causal)
        else:
            queries = self._heads(self.queries[scale](cells), stride)[:, :, None]
        window = self.coarsest_window if scale == self.num_scales - 1 else self.window
        if self.attention == "full":
            window = None
        # In packed rows padding comes last, where no causal query sees it.
        real_cells = None if lengths is None or self.causal else -(-lengths // stride)
        values = values.unflatten(2, (self.num_heads, -1))
        y = attend_cells(queries, keys, values, window=window, causal=self.causal, real_cells=real_cells).flatten(3)
        return ungroup_tokens(y.expand(-1, -1, stride, -1), tokens.shape[1], causal=self.causal)

    def _heads(self, x: Tensor, stride: int) -> Tensor:
        """(batch, m, d_model) to (batch, m, heads, d_head), rotated where positions are rotary."""
        x = x.unflatten(2, (self.num_heads, -1))
        return x if self.rotary_base is None else rotate(x, stride, self.rotary_base)


def attend_cells(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    window: int | None,
    causal: bool,
    real_cells: Tensor | None = None,
) -> Tensor:
    """Attention of queries that belong to cells, over the cells of one scale.

    Args:
        queries: (batch, m, c, heads, d_head), c queries for each of m cells.
        keys: (batch, m, heads, d_head).
        values: (batch, m, heads, d_head).
        window: as in `MultiscaleAttention`; None: everything.
        causal: queries of cell j see no cell after j.
        real_cells: (batch,) number of cells that exist in each row, for bidirectional attention; None: all.

    Returns:
        As `queries`. Queries of cells that do not exist get some finite answer.
    """
    m = keys.shape[1]
    if window is None or m <= (window if causal else window // 2 + 1):
        return _attend_all(queries, keys, values, causal, real_cells)
    return _attend_window(queries, keys, values, window, causal, real_cells)


def _attend_all(q: Tensor, k: Tensor, v: Tensor, causal: bool, real_cells: Tensor | None) -> Tensor:
    batch, m, c, heads, d_head = q.shape
    if causal:
        # One causal attention for each of the c queries of a cell: no mask is made and half of the scores are skipped.
        q = q.permute(0, 2, 3, 1, 4).reshape(batch * c, heads, m, d_head)
        k, v = (x[:, None].expand(-1, c, -1, -1, -1).reshape(batch * c, m, heads, d_head) for x in (k, v))
        y = scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        return y.reshape(batch, c, heads, m, d_head).permute(0, 3, 1, 2, 4)
    mask = None
    if real_cells is not None:  # a row without any token still sees one cell, which is zero, rather than none
        mask = (torch.arange(m, device=q.device) < real_cells.clamp(min=1)[:, None])[:, None, None]
    y = scaled_dot_product_attention(
        q.flatten(1, 2).transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
    )
    return y.transpose(1, 2).unflatten(1, (m, c))


def _attend_window(q: Tensor, k: Tensor, v: Tensor, window: int, causal: bool, real_cells: Tensor | None) -> Tensor:
    """Cuts the cells into blocks of half a window; three blocks of keys hold all that a block of queries may see.

    They are the block itself and, causal, the two before, or else the one before and the one after.
    """
    batch, m, c, heads, d_head = q.shape
    size = (window + 1) // 2
    blocks = -(-m // size)
    before = 2 if causal else 1
    end_padding = blocks * size - m

    def neighbourhoods(x: Tensor) -> Tensor:
        x = pad(x, (0, 0, 0, 0, before * size, end_padding + (2 - before) * size)).unflatten(1, (blocks + 2, size))
        x = torch.cat([x[:, i : i + blocks] for i in range(3)], dim=2)
        return x.flatten(0, 1).transpose(1, 2)  # (batch · blocks, heads, 3 · size, d_head)

    q = pad(q, (0, 0, 0, 0, 0, 0, 0, end_padding)).reshape(batch * blocks, size * c, heads, d_head)
    mask = _window_mask(m, window, causal, real_cells, q.device)  # (batch or 1, blocks, size, 3 · size)
    mask = mask[:, :, :, None].expand(batch, -1, -1, c, -1).reshape(batch * blocks, 1, size * c, 3 * size)
    y = scaled_dot_product_attention(q.transpose(1, 2), neighbourhoods(k), neighbourhoods(v), attn_mask=mask)
    return y.transpose(1, 2).reshape(batch, blocks * size, c, heads, d_head)[:, :m]


def _window_mask(m: int, window: int, causal: bool, real_cells: Tensor | None, device: torch.device) -> Tensor:
    """Who sees whom within the three blocks: (batch or 1, blocks, size, 3 · size) bool."""
    size = (window + 1) // 2
    query = torch.arange(size, device=device)[:, None]
    key = torch.arange(3 * size, device=device) - (2 if causal else 1) * size
    distance = key - query
    near = (distance <= 0) & (distance > -window) if causal else distance.abs() <= window // 2
    cell = torch.arange(0, m, size, device=device)[:, None] + key
    exists = (cell >= 0) & (cell < m) if real_cells is None else (cell >= 0) & (cell < real_cells[:, None, None])
    # A cell sees itself even where it does not exist, so that no softmax is empty; nobody reads its answer.
    return (near & exists.reshape(-1, cell.shape[0], 1, 3 * size)) | (distance == 0)


def rotate(x: Tensor, stride: int, base: float) -> Tensor:
    """Rotary positions (Su et al., 2021): turns pairs of channels by the position times a falling frequency.

    Args:
        x: (batch, m, heads, d_head), d_head even; computed in float32 at least, returned in its own type.
        stride: tokens in a cell; the position of cell j is its middle, `j·stride + (stride − 1)/2`.
        base: ratio of the highest to the lowest frequency, nearly.
    """
    half = x.shape[3] // 2
    dtype = torch.promote_types(x.dtype, torch.float32)
    position = torch.arange(x.shape[1], device=x.device, dtype=dtype) * stride + (stride - 1) / 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=dtype) / half)
    angle = (position[:, None] * frequency)[:, None]
    first, second = x.to(dtype).split(half, dim=3)
    turned = (first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin())
    return torch.cat(turned, dim=3).to(x.dtype)


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
