"""The tasks of memory of `benchmarks.quality` ask what they say they ask."""

import pytest
import torch

pytest.importorskip("transformers", reason="Hugging Face transformers is not installed: pip install 'maha-opt[train]'")

from benchmarks.quality.recall import VOCABULARY, associative_recall, selective_copy
from models.heads import IGNORED


@pytest.mark.parametrize("seed", range(3))
def test_every_key_is_asked_once_and_its_value_is_the_one_it_came_with(seed):
    pairs, length = 5, 32
    tokens, labels = associative_recall(20, length, pairs, torch.Generator().manual_seed(seed))
    assert tokens.shape == labels.shape == (20, length)
    for row, wanted in zip(tokens.tolist(), labels.tolist(), strict=True):
        told = dict(zip(row[: 2 * pairs : 2], row[1 : 2 * pairs : 2], strict=True))
        assert len(told) == pairs
        assert all(0 < key < VOCABULARY // 2 <= value < VOCABULARY for key, value in told.items())
        places = [place for place, value in enumerate(wanted) if value != IGNORED]
        asked = {row[place - 1]: wanted[place] for place in places}
        assert asked == told
        assert min(places) > 2 * pairs
        assert all(row[place] == wanted[place] for place in places)


def test_what_stands_among_the_noise_is_said_again_in_its_order():
    tokens, labels = selective_copy(20, 30, 6, torch.Generator().manual_seed(0))
    for row, wanted in zip(tokens.tolist(), labels.tolist(), strict=True):
        noted = [token for token in row[:-7] if token > 0]
        assert row[-7] == 1
        assert noted == row[-6:] == wanted[-6:]
        assert set(wanted[:-6]) == {IGNORED}


def test_lengths_without_room_are_refused():
    with pytest.raises(ValueError, match="at least 4·pairs = 20, but got 19"):
        associative_recall(1, 19, 5, torch.Generator())
    with pytest.raises(ValueError, match=r"at least 3·kept \+ 1 = 16, but got 15"):
        selective_copy(1, 15, 5, torch.Generator())
