"""Inside a model: which scales every token uses, how much each scale is used, and who attends to whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

LINE = 80
"""Characters in a line of text, like a printed one."""

LEAST_PROBABILITY = 1e-3
"""Smaller ones have the colour of this one."""

HATCH = "//////"

VISIBLE = {"\n": "¶", "\t": "→", "\r": "", "\x00": ""}
"""Characters that have no picture of their own, or none that stays in its place."""

KINDS = ("word start", "inside a word", "space", "punctuation")


def weights_over_text(
    weights: ArrayLike,
    tokens: Sequence[str],
    strides: Sequence[int],
    *,
    blocks: Sequence[int] | None = None,
    line: int = LINE,
    figure: Figure | SubFigure | None = None,
) -> list[Axes]:
    """Which scales each token uses: the text as on a page, and under every token a bar of the weights of its scales.

    A bar is divided by the absolute values of the weights, the finest scale at the bottom, and what is negative is
    hatched; the largest sum of a token in the picture fills its height. Grey: there is no weight, as at padding.

    Args:
        weights: (blocks, n, L) or, for one block, (n, L); NaN where a scale is not available.
        tokens: n texts; of a token that is only part of a character, the empty one.
        strides: L numbers, tokens in a cell of each scale.
        blocks: What the blocks are called; None: from 1 on.
        line: Characters in a line.
        figure: An empty figure, whose size is set; None: a new one.

    Returns:
        The axes, one for each block.

    Raises:
        ValueError: If a shape does not fit, or there is no token.
    """
    values, blocks = _checked_weights(weights, tokens, strides, blocks)
    cells = _page(tokens, line)
    rows = cells[-1].row + 1
    magnitudes = np.nan_to_num(np.abs(values))
    tops = np.cumsum(magnitudes, axis=2)
    highest = tops[:, :, -1].max()
    tops = tops / (highest if highest > 0 else 1.0)
    colours = _colours(len(strides))
    axes, figure = _panels(figure, (len(values), 1), (1.0 + 0.113 * line, 1.0 + len(values) * (0.5 + 0.43 * rows)))
    for axis, own, top, name in zip(axes, values, tops, blocks, strict=True):
        _write_text(axis, tokens, cells)
        nothing = np.isnan(own).all(1)
        _draw_bars(axis, cells, nothing * 0.0, nothing * 1.0, "0.88")
        bottoms = np.concatenate([np.zeros((len(top), 1)), top[:, :-1]], axis=1)
        for scale, colour in enumerate(colours):
            _draw_bars(axis, cells, bottoms[:, scale], top[:, scale], colour)
            negative = np.where(own[:, scale] < 0, top[:, scale], bottoms[:, scale])
            _draw_bars(axis, cells, bottoms[:, scale], negative, "none", hatch=HATCH)
        starts = [next(i for i, cell in enumerate(cells) if cell.row == row) for row in range(rows)]
        axis.set(xlim=(0, line), ylim=(rows, -0.1), ylabel="token")
        axis.set_yticks(np.arange(rows) + 0.25, [str(start) for start in starts])
        axis.set_title(f"block {name}: {_mean_cell(own, strides)}", loc="left", fontsize=10)
        axis.tick_params(length=0, labelsize=8)
        axis.spines[:].set_visible(False)
        axis.set_xticks([])
    axes[-1].set_xlabel("text, line by line; the bar under a token is divided as its weights are", fontsize=9)
    _legend(figure, strides, negative=bool((values < 0).any()))
    return axes


def scale_use(
    weights: ArrayLike,
    tokens: Sequence[str],
    strides: Sequence[int],
    *,
    blocks: Sequence[int] | None = None,
    figure: Figure | SubFigure | None = None,
) -> list[Axes]:
    """How much each scale is used: mean weights, of all tokens and of the tokens of a kind, a panel for each block.

    The line on a bar goes from the first to the third quartile of the tokens. A word is letters and digits; what
    is neither of a word nor white counts as punctuation.

    Args:
        weights: This and all others: see `weights_over_text`.
        tokens: See there.
        strides: See there.
        blocks: See there.
        figure: See there.

    Returns:
        The axes, one for each block.

    Raises:
        ValueError: If a shape does not fit, or there is no token.
    """
    values, blocks = _checked_weights(weights, tokens, strides, blocks)
    kinds = np.array(kinds_of_tokens(tokens))
    groups = {"all": np.ones(len(kinds), dtype=bool)}
    groups |= {kind: kinds == kind for kind in KINDS if (kinds == kind).any()}
    columns = min(3, len(values))
    shape = (-(-len(values) // columns), columns)
    axes, figure = _panels(figure, shape, (0.6 + 4.4 * columns, 0.9 + 2.7 * shape[0]), share=True)
    width = 0.8 / len(strides)
    for axis, own, name in zip(axes, values, blocks, strict=False):
        for scale, colour in enumerate(_colours(len(strides))):
            for place, chosen in enumerate(groups.values()):
                known = own[chosen, scale]
                known = known[~np.isnan(known)]
                if known.size:
                    x = place + (0.25 if place else 0) - 0.4 + width * (scale + 0.5)
                    axis.bar(x, known.mean(), 0.92 * width, color=colour)
                    axis.vlines(x, *np.percentile(known, (25, 75)), color="0.5", linewidth=1.0)
        axis.axhline(0, color="0.5", linewidth=0.8)
        axis.axvline(0.625, color="0.8", linewidth=0.8)
        labels = [f"{group}\n{chosen.sum()}" for group, chosen in groups.items()]
        axis.set_xticks([place + (0.25 if place else 0) for place in range(len(groups))], labels, fontsize=8)
        axis.set_title(f"block {name}", loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="x", length=0, labelbottom=True)
        axis.set_xlabel("kind of token, and how many there are", fontsize=9)
    for axis in axes[:: shape[1]]:
        axis.set_ylabel("weight (mean, quartiles)", fontsize=9)
    for axis in axes[len(values) :]:
        axis.remove()
    _legend(figure, strides)
    return axes[: len(values)]


def attention_maps(
    attention: Sequence[Sequence[ArrayLike]],
    strides: Sequence[int],
    query_resolution: Literal["coarse", "fine"],
    *,
    num_tokens: int | None = None,
    head: int | None = None,
    blocks: Sequence[int] | None = None,
    figure: Figure | SubFigure | None = None,
) -> list[Axes]:
    """Who attends to whom: a row of maps for each block, one for each scale, with cells drawn as wide as their tokens.

    Grey: not seen, because it lies outside of the window, or in the future of a causal model.

    Args:
        attention: Of each block and scale, (heads, queries, cells), or (queries, cells): probabilities.
        strides: L numbers, tokens in a cell of each scale.
        query_resolution: Whether queries are cells ("coarse") or tokens ("fine").
        num_tokens: How many tokens there are; None: as many as cells of the finest scale.
        head: Which head to draw, from 0; None: their mean.
        blocks: What the blocks are called; None: from 1 on.
        figure: An empty figure, whose size is set; None: a new one.

    Returns:
        The axes, one for each map, block by block.

    Raises:
        ValueError: If a shape does not fit, or there is no such head.
    """
    maps = [[_one_map(np.asarray(y, dtype=float), head) for y in block] for block in attention]
    if query_resolution not in ("coarse", "fine"):
        raise ValueError(f'query_resolution must be "coarse" or "fine", but got {query_resolution!r}.')
    if not maps or any(len(block) != len(strides) for block in maps) or not strides:
        raise ValueError(
            f"attention must hold a map for each of {len(strides)} strides for every block, but holds "
            f"{[len(block) for block in maps]}."
        )
    n = maps[0][0].shape[1] if num_tokens is None else num_tokens
    names = _checked_blocks(blocks, len(maps))
    axes, figure = _panels(figure, (len(maps), len(strides)), (1.6 + 2.5 * len(strides), 0.9 + 2.6 * len(maps)))
    colours = colormaps["magma_r"].with_extremes(bad="0.88", under=colormaps["magma_r"](0.0))
    norm = LogNorm(LEAST_PROBABILITY, 1.0)
    image = None
    for index, axis in enumerate(axes):
        block, scale = divmod(index, len(strides))
        y, stride = maps[block][scale], strides[scale]
        extent = (0, y.shape[1] * stride, y.shape[0] * (stride if query_resolution == "coarse" else 1), 0)
        if y.size:
            seen = np.ma.masked_equal(y, 0.0)
            image = axis.imshow(seen, colours, norm, extent=extent, interpolation="nearest", aspect="auto")
        axis.set(xlim=(0, n), ylim=(n, 0), box_aspect=1, facecolor="0.88")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        axis.yaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        axis.tick_params(labelsize=8)
        axis.set_title(f"block {names[block]}, {cell_name(stride)}", fontsize=9)
        if scale == 0:
            axis.set_ylabel("query (token)", fontsize=9)
        if block == len(maps) - 1:
            axis.set_xlabel("key (token)", fontsize=9)
    if image is not None:
        what = "mean over heads" if head is None else f"head {head}"
        bar = figure.colorbar(image, ax=axes, extend="min", shrink=min(1.0, 0.3 + 0.9 / len(maps)), aspect=30, pad=0.02)
        bar.set_label(f"probability of a cell, {what}; grey: not seen", fontsize=9)
    return axes


def kinds_of_tokens(tokens: Sequence[str]) -> list[str]:
    """Which of `KINDS` each token is, by its first character that is not white.

    >>> kinds_of_tokens(["O", "h", ",", " ", "n", "o"])
    ['word start', 'inside a word', 'punctuation', 'space', 'word start', 'inside a word']
    >>> kinds_of_tokens(["Oh", ",", " no"])
    ['word start', 'punctuation', 'word start']
    """
    kinds, inside = [], False
    for token in tokens:
        text = token.lstrip()
        if not text:
            kinds.append("space" if token else "punctuation")
        elif text[0].isalnum():
            kinds.append("inside a word" if inside and text == token else "word start")
        else:
            kinds.append("punctuation")
        inside = token[-1:].isalnum()
    return kinds


def cell_name(stride: int) -> str:
    """What the scale with cells of so many tokens is called."""
    return "single tokens" if stride == 1 else f"cells of {stride} tokens"


class _Place(NamedTuple):
    """Where a token stands on the page, in lines and characters."""

    row: int
    column: int
    width: int


def _page(tokens: Sequence[str], line: int) -> list[_Place]:
    """Places of tokens, in lines that are broken between words, and within a word only if no line can hold it."""
    places, row, column = [], 0, 0
    for word in _words(tokens):
        widths = [min(max(len(token), 1), line) for token in word]
        if column and line >= sum(widths) > line - column:
            row, column = row + 1, 0
        for width in widths:
            if column + width > line:
                row, column = row + 1, 0
            places.append(_Place(row, column, width))
            column += width
    return places


def _words(tokens: Sequence[str]) -> list[list[str]]:
    """The tokens, in runs with nothing white where they meet."""
    words: list[list[str]] = []
    for token in tokens:
        if words and not (words[-1][-1][-1:].isspace() or token[:1].isspace()):
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _write_text(axis: Axes, tokens: Sequence[str], places: Sequence[_Place]) -> None:
    for token, place in zip(tokens, places, strict=True):
        for offset, character in enumerate(token[: place.width]):
            if visible := VISIBLE.get(character, character).strip():
                axis.text(
                    place.column + offset + 0.5, place.row + 0.36, visible, ha="center", va="baseline",
                    family="monospace", fontsize=9, parse_math=False,
                )  # fmt: skip


def _draw_bars(
    axis: Axes,
    places: Sequence[_Place],
    bottoms: NDArray[np.floating],
    tops: NDArray[np.floating],
    colour: Any,
    hatch: str | None = None,
) -> None:
    """One bar under each token, between two heights from 0 to 1."""
    floor, height = 0.93, 0.42
    bars = []
    for place, bottom, top in zip(places, bottoms, tops, strict=True):
        left, right = place.column + 0.03, place.column + place.width - 0.03
        low, high = place.row + floor - height * bottom, place.row + floor - height * top
        if top > bottom:
            bars.append([(left, low), (right, low), (right, high), (left, high)])
    edge = None if hatch is None else "white"  # of which a hatch takes its colour
    axis.add_collection(
        PolyCollection(bars, facecolors=colour, edgecolors=edge, linewidths=0, hatch=hatch), autolim=False
    )


def _mean_cell(weights: NDArray[np.floating], strides: Sequence[int]) -> str:
    """A caption: how far tokens look, as the geometric mean of the cells weighted by the weights."""
    magnitudes = np.nan_to_num(np.abs(weights))
    total = magnitudes.sum()
    if not total > 0:
        return "no scale is used"
    return f"a token reads cells of {2 ** ((magnitudes * np.log2(strides)).sum() / total):.1f} tokens (geometric mean)"


def _colours(number: int) -> list[tuple[float, float, float, float]]:
    """From light, the finest scale, to dark, the coarsest."""
    return (
        [colormaps["viridis"](x) for x in np.linspace(0.93, 0.08, number)]
        if number > 1
        else [colormaps["viridis"](0.5)]
    )


def _legend(figure: Figure | SubFigure, strides: Sequence[int], *, negative: bool = False) -> None:
    handles = [
        Patch(color=colour, label=cell_name(stride))
        for stride, colour in zip(strides, _colours(len(strides)), strict=True)
    ]
    if negative:
        handles.append(Patch(facecolor="0.5", edgecolor="white", hatch=HATCH, linewidth=0, label="negative"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False, fontsize=9)


def _panels(
    figure: Figure | SubFigure | None, shape: tuple[int, int], size: tuple[float, float], *, share: bool = False
) -> tuple[list[Axes], Figure | SubFigure]:
    """A grid of axes, row by row, on a figure of its own if none is given."""
    if figure is None:
        import matplotlib.pyplot as plt

        figure = plt.figure()
    if isinstance(figure, Figure):
        figure.set_layout_engine("constrained")
        figure.set_size_inches(*size)
    return list(figure.subplots(*shape, squeeze=False, sharey=share).flat), figure


def _one_map(y: NDArray[np.floating], head: int | None) -> NDArray[np.floating]:
    if y.ndim not in (2, 3):
        raise ValueError(f"a map must have shape (heads, queries, cells) or (queries, cells), but got {y.shape}.")
    if y.ndim == 2:
        return y
    if head is None:
        return y.mean(axis=0)
    if not 0 <= head < len(y):
        raise ValueError(f"head must be from 0 to {len(y) - 1}, but got {head}.")
    return y[head]


def _checked_weights(
    weights: ArrayLike, tokens: Sequence[str], strides: Sequence[int], blocks: Sequence[int] | None
) -> tuple[NDArray[np.floating], list[int]]:
    values = np.asarray(weights, dtype=float)
    given = values.shape
    values = values[None] if values.ndim == 2 else values
    if not len(tokens):
        raise ValueError("tokens must hold at least one token, but is empty.")
    if values.ndim != 3 or values.shape[1:] != (len(tokens), len(strides)) or not values.size:
        raise ValueError(
            f"weights must have shape (blocks, {len(tokens)}, {len(strides)}), for {len(tokens)} tokens and "
            f"{len(strides)} strides, but got {given}."
        )
    return values, _checked_blocks(blocks, len(values))


def _checked_blocks(blocks: Sequence[int] | None, number: int) -> list[int]:
    names = list(range(1, number + 1)) if blocks is None else list(blocks)
    if len(names) != number:
        raise ValueError(f"blocks must name {number} blocks, but names {len(names)}.")
    return names
