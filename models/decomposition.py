r"""A sequence seen at several scales.

Scale 0 is the sequence of tokens. A cell of scale `l` stands for `r^l` consecutive tokens, `r` being the compression
ratio: cell `j` covers the tokens `j·r^l … (j+1)·r^l − 1`, counted from the first real token of its row. It is a linear
function of `r` cells (or a few more, where kernels overlap) of the scale below::

    cell_l[j] = Σ_i W_l[i] cell_{l−1}[j·r + i]

Source: the published MAHA decomposition (strided convolution or pooling); padding, causality and incomplete cells are
our own derivation.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

__all__ = ["HierarchicalDecomposition", "Packing", "Scales", "scales_for"]


class Packing(NamedTuple):
    """The order that brings the real tokens of every row to its front, and the way back.

    A row that is padded on the left is rolled by it; holes inside a row are closed as well, so that afterwards a row
    is described by its length alone.

    Attributes:
        order: (batch, n) int64, the column that each packed column is read from.
        inverse: (batch, n) int64, the packed column that each original column went to.
        lengths: (batch,) int64, the number of real tokens.
    """

    order: Tensor
    inverse: Tensor
    lengths: Tensor

    @classmethod
    def from_mask(cls, mask: Tensor) -> Packing:
        """Packing of a key padding mask (batch, n), bool, True where the token is real."""
        order = torch.argsort(mask.to(torch.uint8), dim=1, descending=True, stable=True)
        return cls(order, torch.argsort(order, dim=1), mask.sum(dim=1))

    def pack(self, x: Tensor) -> Tensor:
        """(batch, n, ...) in its original order, to the same with the real tokens first."""
        return _permute_columns(x, self.order)

    def unpack(self, x: Tensor) -> Tensor:
        """(batch, n, ...) in packed order, to the original order."""
        return _permute_columns(x, self.inverse)


class Scales(NamedTuple):
    """What a decomposition returns.

    Attributes:
        cells: for each scale l, (batch, n_l, d_model), in the type of the input.
        masks: for each scale l, (batch, n_l) bool, True where the cell exists; the others are zero.
        packing: how the tokens were moved before they were counted; None where no mask was given.
    """

    cells: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    packing: Packing | None


class HierarchicalDecomposition(nn.Module):
    """Turns tokens into cells at `num_scales` scales, each `compression_ratio` times shorter than the one before.

    Padded tokens enter no cell. Where the real tokens of a row end inside a cell:

    - bidirectional: the cell is emitted. What is missing counts as zero and the result is divided by the share of the
      cell that is there, so that pooling is the mean of the real tokens and a convolution keeps its scale.
    - causal: the cell is not emitted (its mask is False). A cell depends on tokens before its end only.

    The convolution has no bias, so that nothing stays nothing, and starts as average pooling.

    Args:
        d_model: number of channels d.
        num_scales: number of scales L, the tokens themselves included.
        compression_ratio: r, at least 2.
        mode: "conv" (strided convolution) or "pool" (mean of the tokens of the cell, no parameters).
        causal: whether a cell may depend on tokens before its end only.
        dense: convolve across channels, as published; the default convolves each channel by itself (depthwise).
        kernel_size: taps of the convolution, a multiple of r. Default r: cells do not overlap. Above r the kernel
            reaches into the cells before (causal: left padding of `kernel_size − r`), or to both sides.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        d_model: int,
        num_scales: int = 4,
        compression_ratio: int = 2,
        mode: Literal["conv", "pool"] = "conv",
        *,
        causal: bool = False,
        dense: bool = False,
        kernel_size: int | None = None,
    ) -> None:
        super().__init__()
        r = compression_ratio
        if d_model < 1:
            raise ValueError(f"d_model must be at least 1, but got {d_model}.")
        if num_scales < 1:
            raise ValueError(f"num_scales must be at least 1, but got {num_scales}.")
        if r < 2:
            raise ValueError(f"compression_ratio must be at least 2, but got {r}.")
        if mode not in ("conv", "pool"):
            raise ValueError(f'mode must be "conv" or "pool", but got {mode!r}.')
        if mode == "pool" and dense:
            raise ValueError('dense=True needs mode="conv": pooling has no weights.')
        if mode == "pool" and kernel_size not in (None, r):
            raise ValueError(f'kernel_size must be compression_ratio = {r} with mode="pool", but got {kernel_size}.')
        taps = r if kernel_size is None else kernel_size
        if taps < r or taps % r:
            raise ValueError(f"kernel_size must be a positive multiple of compression_ratio = {r}, but got {taps}.")
        self.d_model = d_model
        self.num_scales = num_scales
        self.compression_ratio = r
        self.mode = mode
        self.causal = causal
        self.dense = dense
        self.kernel_size = taps
        channels = (d_model, d_model) if dense else (d_model,)
        learned_scales = num_scales - 1 if mode == "conv" else 0
        # W_l as (kernel_size / r, r, d) or, from input to output channel, (kernel_size / r, r, d, d).
        self.weights = Taps(torch.empty(taps // r, r, *channels) for _ in range(learned_scales))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Makes every convolution the average of its taps."""
        for weight in self.weights:
            weight.copy_(average_of(weight))

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return (
            f"d_model={self.d_model}, num_scales={self.num_scales}, compression_ratio={self.compression_ratio}, "
            f"mode={self.mode!r}, causal={self.causal}, dense={self.dense}, kernel_size={self.kernel_size}"
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Scales:
        """Cells of every scale.

        Args:
            x: (batch, n, d_model), n ≥ 1, floating point.
            mask: (batch, n) bool, True where the token is real; None: all are. Any pattern is allowed; positions count
                real tokens only, so padding on the left rolls the row to its first real token.

        Returns:
            The cells, their masks, and how the tokens were moved. Scale 0 is `x` so moved, zero where padded. Scale l
            has n_l = ceil(n / r^l) cells, or floor(n / r^l) where causal (then n_l may be 0).

        Raises:
            ValueError: `x` or `mask` has the wrong shape.
            TypeError: `mask` is not boolean.
        """
        check_tokens(x, self.d_model)
        if mask is None:
            packing, lengths = None, None
        else:
            check_mask(mask, x)
            packing = Packing.from_mask(mask)
            x, lengths = packing.pack(x), packing.lengths
        masks = tuple(
            x.new_ones(x.shape[0], self.num_cells(x.shape[1], scale), dtype=torch.bool)
            if lengths is None
            else self.cell_mask(x.shape[1], scale, lengths)
            for scale in range(self.num_scales)
        )
        return Scales(self.pyramid(x, lengths), masks, packing)

    def pyramid(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        """The cells of every scale, for rows whose real tokens stand in front (no checks, no reordering).

        Args:
            x: (batch, n, d_model).
            lengths: (batch,) integer, number of real tokens of each row; None: all are.

        Returns:
            For each scale l, (batch, n_l, d_model); cells that do not exist are zero.
        """
        n, r = x.shape[1], self.compression_ratio
        sums = self._clear_missing(x, 0, n, lengths)
        scales = [sums]
        for scale in range(1, self.num_scales):
            sums = self._clear_missing(self.coarsen(sums, scale), scale, n, lengths)
            if self.causal:  # every cell is full
                scales.append(sums)
                continue
            # A cell that does not exist is zero, whatever it is divided by; clamping only avoids 0/0.
            filled = self._filled_share(x, scale, n, lengths).clamp(min=1 / r**scale)
            scales.append((sums / filled[..., None]).to(x.dtype))
        return tuple(scales)

    def coarsen(self, cells: Tensor, scale: int) -> Tensor:
        """One step up: cells of scale `scale − 1`, (batch, m, d), to those of `scale`; what is missing is zero.

        Written as products over blocks of r rather than `conv1d`: several times faster on a CPU when depthwise, and
        the result is contiguous, without which torch's attention falls back to its quadratic path.
        """
        batch, m, d = cells.shape
        r = self.compression_ratio
        num_cells = m // r if self.causal else -(-m // r)
        overlap = self.kernel_size // r - 1  # how many blocks beyond its own a cell reads
        before = overlap if self.causal else overlap // 2
        after = (num_cells + overlap - before) * r - m  # negative: the incomplete cell is cut off
        blocks = pad(cells.contiguous(), (0, 0, before * r, after)).view(batch, num_cells + overlap, r, d)
        if self.mode == "pool":
            return blocks.mean(dim=2)
        weight = self.weights(scale - 1)
        windows = [blocks[:, i : i + num_cells] for i in range(overlap + 1)]
        if self.dense:
            terms = [block.flatten(2) @ tap.flatten(0, 1) for block, tap in zip(windows, weight, strict=True)]
        else:
            terms = [(block * tap).sum(dim=2) for block, tap in zip(windows, weight, strict=True)]
        return torch.stack(terms).sum(dim=0).to(cells.dtype) if overlap else terms[0].to(cells.dtype)

    def combine(self, children: Tensor, scale: int) -> Tensor:
        """The causal cell of a scale that ends with its last child: (batch, kernel_size, d) to (batch, d)."""
        if self.mode == "pool":
            return children.mean(dim=1)
        weight = self.weights(scale - 1)
        if self.dense:
            return (children.flatten(1) @ weight.flatten(0, 2)).to(children.dtype)
        return (children * weight.flatten(0, 1)).sum(dim=1).to(children.dtype)

    def num_cells(self, n: int, scale: int) -> int:
        """Number of cells that `n` tokens have at a scale."""
        stride = self.compression_ratio**scale
        return n // stride if self.causal else -(-n // stride)

    def cell_mask(self, n: int, scale: int, lengths: Tensor) -> Tensor:
        """(batch, n_l) bool: which cells of a scale exist in rows with `lengths` (batch,) real tokens of n."""
        stride = self.compression_ratio**scale
        cells = torch.arange(self.num_cells(n, scale), device=lengths.device)
        deciding_token = (cells + 1) * stride - 1 if self.causal else cells * stride
        return deciding_token < lengths[:, None]

    def _filled_share(self, x: Tensor, scale: int, n: int, lengths: Tensor | None) -> Tensor:
        """(batch or 1, n_l): how much of each cell lies before the end of its row; at most 0 where nothing does."""
        stride = self.compression_ratio**scale
        first_token = torch.arange(self.num_cells(n, scale), device=x.device) * stride
        ends = torch.full((1,), n, device=x.device) if lengths is None else lengths
        counts = (ends[:, None] - first_token).clamp(max=stride)
        return counts.to(torch.promote_types(x.dtype, torch.float32)) / stride

    def _clear_missing(self, cells: Tensor, scale: int, n: int, lengths: Tensor | None) -> Tensor:
        if lengths is None:
            return cells
        return cells.masked_fill(~self.cell_mask(n, scale, lengths)[..., None], 0)


class Taps(nn.ParameterList):
    """The taps of all scales, handed out by a call, so that whoever hooks into a module (to load it, say) sees it."""

    __call__ = nn.Module.__call__  # that of the list refuses

    def forward(self, index: int) -> Tensor:
        return self[index]


def average_of(weight: Tensor) -> Tensor:
    """The weight, in the shape of one of `HierarchicalDecomposition`, with which a cell is the mean of its taps."""
    ones = torch.ones(weight.shape[-1], device=weight.device)
    return ((ones.diag() if weight.ndim == 4 else ones) / weight.shape[:2].numel()).expand_as(weight)


def scales_for(max_len: int, compression_ratio: int = 2, coarsest: int = 256) -> int:
    """The number of scales with which the coarsest of `max_len` tokens has at most `coarsest` cells.

    With it the coarsest scale sees everything, at a cost that is linear in the tokens. Pass the *configured* maximum
    length, never that of a batch: a prefix must mean the same alone and in a longer sequence. In a causal model with
    coarse queries the window has to grow along (at least `2·r^(L−1) − 1`); fine queries need no such thing.

    >>> scales_for(65536, compression_ratio=4)
    5
    >>> scales_for(256)
    1

    Args:
        max_len: largest number of tokens.
        compression_ratio: r, at least 2.
        coarsest: most cells of the coarsest scale, at least 1.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """
    for name, number, least in (("max_len", max_len, 1), ("compression_ratio", compression_ratio, 2)):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, but got {number}.")
    if coarsest < 1:
        raise ValueError(f"coarsest must be at least 1, but got {coarsest}.")
    num_scales, cells = 1, max_len
    while cells > coarsest:
        num_scales, cells = num_scales + 1, -(-cells // compression_ratio)
    return num_scales


def check_tokens(x: Tensor, d_model: int) -> None:
    """Raises ValueError unless `x` is (batch, n ≥ 1, d_model)."""
    if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] != d_model:
        raise ValueError(f"x must have shape (batch, n, {d_model}) with n at least 1, but got {tuple(x.shape)}.")


def check_mask(mask: Tensor, x: Tensor) -> None:
    """Raises unless `mask` is boolean (TypeError) and has the shape of `x` without channels (ValueError)."""
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, True where the token is real, but got {mask.dtype}: pass mask.bool().")
    if mask.shape != x.shape[:2]:
        raise ValueError(
            f"mask must have shape {tuple(x.shape[:2])}, as x without channels, but got {tuple(mask.shape)}."
        )


def _permute_columns(x: Tensor, columns: Tensor) -> Tensor:
    index = columns.reshape(*columns.shape, *(1 for _ in x.shape[2:]))
    return x.gather(1, index.expand_as(x))
