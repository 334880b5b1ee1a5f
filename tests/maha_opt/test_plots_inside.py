"""Pictures of what happens inside a model: they show the numbers that they are given."""

import numpy as np
import pytest

mpl = pytest.importorskip("matplotlib")
mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.collections import PolyCollection  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from maha_opt.plots import attention_maps, scale_use, weights_over_text  # noqa: E402
from maha_opt.plots.inside import _page, kinds_of_tokens  # noqa: E402

STRIDES = (1, 2, 4)
TOKENS = list('He said: "$5, $6!"\n')
N = len(TOKENS)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def weights(blocks=2, tokens=N, seed=0):
    """On the simplex; as in a causal model, coarse scales are missing at first."""
    w = np.random.default_rng(seed).dirichlet(np.ones(len(STRIDES)), size=(blocks, tokens))
    for scale, stride in enumerate(STRIDES):
        w[:, : stride - 1, scale] = np.nan
    return w


def maps(blocks=2, heads=2, n=10, fine=False):
    rng = np.random.default_rng(1)
    return [
        [np.tril(rng.random((heads, n if fine else n // stride, n // stride))) for stride in STRIDES]
        for _ in range(blocks)
    ]


def bars(axis):
    """Vertices of the bars of each scale: the first collection marks tokens without weights."""
    return [
        [path.vertices[:4] for path in collection.get_paths()]
        for collection in axis.collections
        if isinstance(collection, PolyCollection) and collection.get_hatch() is None
    ][1:]


def words(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_bars_under_the_text_are_as_high_as_the_weights():
    w = weights()
    axes = weights_over_text(w, TOKENS, STRIDES, line=8)
    assert len(axes) == 2
    for axis, own in zip(axes, w, strict=True):
        for scale, drawn in enumerate(bars(axis)):
            heights = [np.ptp(vertices[:, 1]) for vertices in drawn]
            expected = own[:, scale][~np.isnan(own[:, scale])]
            # The bars of a line fill 0.42 of it.
            np.testing.assert_allclose(heights, 0.42 * expected / np.nansum(w, axis=2).max(), atol=1e-12)


def test_the_text_can_be_read_and_dollars_are_no_formulas():
    axis = weights_over_text(weights(1), TOKENS, STRIDES)[0]
    assert "".join(text.get_text() for text in axis.texts) == 'Hesaid:"$5,$6!"¶'
    assert not any(text.get_parse_math() for text in axis.texts)
    axis.figure.canvas.draw()
    assert axis.get_ylabel()
    assert axis.get_xlabel()
    assert axis.get_title(loc="left").startswith("block 1: a token reads cells of")
    assert words(axis.figure) == ["single tokens", "cells of 2 tokens", "cells of 4 tokens"]


def test_lines_break_between_words_and_inside_of_one_that_is_too_long():
    page = _page(["ab", "c", " ", "def", "ghijklmn", " x", ""], 6)
    assert page == [(0, 0, 2), (0, 2, 1), (0, 3, 1), (1, 0, 3), (2, 0, 6), (3, 0, 2), (3, 2, 1)]


def test_a_caption_tells_the_mean_cell():
    w = np.zeros((1, 3, 3))
    w[..., 2] = 1
    assert "cells of 4.0 tokens" in weights_over_text(w, list("abc"), STRIDES)[0].get_title(loc="left")
    w[..., 0] = -1  # a set may allow negative weights; they count as much
    assert "cells of 2.0 tokens" in weights_over_text(w, list("abc"), STRIDES)[0].get_title(loc="left")
    assert "no scale is used" in weights_over_text(0 * w, list("abc"), STRIDES)[0].get_title(loc="left")


def test_negative_weights_are_hatched_and_explained():
    w = weights(1)
    w[0, 5, 0] *= -1
    axis = weights_over_text(w, TOKENS, STRIDES)[0]
    hatched = [len(collection.get_paths()) for collection in axis.collections if collection.get_hatch()]
    assert hatched == [1, 0, 0]
    assert words(axis.figure)[-1] == "negative"


def test_tokens_without_any_weight_are_grey():
    w = weights(1)
    w[0, :3] = np.nan
    axis = weights_over_text(w, TOKENS, STRIDES)[0]
    assert len(axis.collections[0].get_paths()) == 3


def test_kinds_partition_the_tokens_and_bars_are_their_means():
    kinds = np.array(kinds_of_tokens(TOKENS))
    assert list(kinds[:4]) == ["word start", "inside a word", "space", "word start"]
    assert kinds_of_tokens([" it", "'", "s", "", "\n"]) == [
        "word start", "punctuation", "word start", "punctuation", "space",
    ]  # fmt: skip
    w = weights()
    axes = scale_use(w, TOKENS, STRIDES, blocks=[3, 7])
    assert [axis.get_title(loc="left") for axis in axes] == ["block 3", "block 7"]
    for axis, own in zip(axes, w, strict=True):
        heights = [bar.get_height() for bar in axis.patches]
        expected = []
        for scale in range(3):
            for kind in ("all", "word start", "inside a word", "space", "punctuation"):
                expected.append(np.nanmean(own[np.full(len(kinds), kind == "all") | (kinds == kind), scale]))
        np.testing.assert_allclose(heights, expected, atol=1e-12)
        labels = [label.get_text() for label in axis.get_xticklabels()]
        assert labels[0] == f"all\n{len(TOKENS)}"
        assert sum(int(label.split("\n")[1]) for label in labels[1:]) == len(TOKENS)
        assert axis.get_xlabel()
    assert axes[0].get_ylabel()


@pytest.mark.parametrize("blocks", [1, 3, 4])
def test_there_are_as_many_panels_as_blocks(blocks):
    axes = scale_use(weights(blocks), TOKENS, STRIDES)
    assert axes[0].figure.axes == axes
    assert len(axes) == blocks


@pytest.mark.parametrize("fine", [False, True])
def test_cells_of_attention_maps_are_as_wide_as_their_tokens(fine):
    drawn = maps(fine=fine)
    axes = attention_maps(drawn, STRIDES, "fine" if fine else "coarse")
    assert len(axes) == 6
    for index, axis in enumerate(axes):
        block, scale = divmod(index, 3)
        stride, image = STRIDES[scale], axis.images[0]
        cells = 10 // stride
        assert image.get_extent() == [0, cells * stride, 10 if fine else cells * stride, 0]
        expected = drawn[block][scale].mean(0)
        np.testing.assert_array_equal(image.get_array().filled(0), expected)
        np.testing.assert_array_equal(image.get_array().mask, expected == 0)
        assert axis.get_xlim() == (0, 10)
        assert axis.get_ylim() == (10, 0)
    assert axes[0].get_ylabel() == "query (token)"
    assert axes[-1].get_xlabel() == "key (token)"
    assert axes[4].get_title() == "block 2, cells of 2 tokens"


def test_one_head_alone():
    drawn = maps(blocks=1)
    axes = attention_maps(drawn, STRIDES, "coarse", head=1)
    np.testing.assert_array_equal(axes[0].images[0].get_array().filled(0), drawn[0][0][1])
    assert "head 1" in axes[0].figure.axes[-1].get_ylabel()
    with pytest.raises(ValueError, match="head must be from 0 to 1, but got 2"):
        attention_maps(drawn, STRIDES, "coarse", head=2)


def test_a_scale_without_cells_is_an_empty_map():
    axes = attention_maps(maps(n=3), STRIDES, "coarse")
    assert [len(axis.images) for axis in axes] == [1, 1, 0] * 2


def test_figures_of_ones_own_need_no_pyplot(tmp_path):
    for name, draw in {
        "weights": lambda figure: weights_over_text(weights(), TOKENS, STRIDES, figure=figure),
        "scales": lambda figure: scale_use(weights(), TOKENS, STRIDES, figure=figure),
        "maps": lambda figure: attention_maps(maps(), STRIDES, "coarse", figure=figure),
    }.items():
        figure = Figure()
        axes = draw(figure)
        assert all(axis.figure is figure for axis in axes)
        path = tmp_path / f"{name}.png"
        figure.savefig(path)
        pixels = plt.imread(path)[..., :3]
        assert 0.02 < (pixels.mean(-1) < 0.95).mean() < 0.9
    assert not plt.get_fignums()
    parts = plt.figure().subfigures(1, 2)
    assert weights_over_text(weights(1), TOKENS, STRIDES, figure=parts[0])[0].figure is parts[0]


def test_wrong_shapes_are_refused_in_words():
    for draw in (weights_over_text, scale_use):
        with pytest.raises(
            ValueError, match=r"shape \(blocks, 19, 3\), for 19 tokens and 3 strides, but got \(2, 18, 3\)"
        ):
            draw(weights(tokens=18), TOKENS, STRIDES)
        with pytest.raises(ValueError, match="at least one token"):
            draw(np.zeros((1, 0, 3)), [], STRIDES)
        with pytest.raises(ValueError, match="blocks must name 2 blocks, but names 1"):
            draw(weights(), TOKENS, STRIDES, blocks=[1])
    with pytest.raises(ValueError, match=r"each of 2 strides for every block, but holds \[3, 3\]"):
        attention_maps(maps(), STRIDES[:2], "coarse")
    with pytest.raises(ValueError, match=r"\(heads, queries, cells\) or \(queries, cells\), but got \(1, 2, 3, 3\)"):
        attention_maps([[np.zeros((1, 2, 3, 3))]], [1], "fine")
    with pytest.raises(ValueError, match="query_resolution must be"):
        attention_maps(maps(), STRIDES, "medium")
