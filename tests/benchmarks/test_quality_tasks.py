"""The tasks of memory of `benchmarks.quality` ask what they say they ask."""

import pytest
import torch

pytest.importorskip("transformers", reason="Hugging Face transformers is not installed: pip install 'maha-opt[train]'")

from benchmarks.quality.memory import VOCABULARY, associative_recall, selective_copy
from models.heads import IGNORED


@pytest.mark.parametrize("seed", range(3))
def test_every_value_that_is_asked_for_is_the_one_its_key_came_with(seed):
    pairs, length = 5, 32
    made = associative_recall(20, length, pairs, torch.Generator().manual_seed(seed))
    assert made.tokens.shape == made.labels.shape == (20, length)
    for row, wanted in zip(made.tokens.tolist(), made.labels.tolist(), strict=True):
        told = dict(zip(row[: 2 * pairs : 2], row[1 : 2 * pairs : 2], strict=True))
        assert len(told) == pairs
        assert all(0 < key < VOCABULARY // 2 <= value < VOCABULARY for key, value in told.items())
        places = [place for place, value in enumerate(wanted) if value != IGNORED]
        assert places == list(range(2 * pairs + 1, length, 2))
        assert all(wanted[place] == row[place] == told[row[place - 1]] for place in places)


def test_the_distance_of_a_question_is_that_to_the_last_place_of_its_key():
    pairs, length = 4, 40
    made = associative_recall(10, length, pairs, torch.Generator().manual_seed(0))
    for row, ago in zip(made.tokens.tolist(), made.ago.tolist(), strict=True):
        assert ago[::2] == [0] * (length // 2)
        for place in range(1, length, 2):
            before = [other for other in range(0, place - 1, 2) if row[other] == row[place - 1]]
            assert ago[place] == (place - 1 - before[-1] if before else 0)


def test_what_stands_among_the_noise_is_said_again_in_its_order():
    made = selective_copy(20, 30, 6, torch.Generator().manual_seed(0))
    for row, wanted, ago in zip(made.tokens.tolist(), made.labels.tolist(), made.ago.tolist(), strict=True):
        noted = [token for token in row[:-7] if token > 0]
        assert row[-7] == 1
        assert noted == row[-6:] == wanted[-6:]
        assert set(wanted[:-6]) == {IGNORED}
        assert [row[place - far] for place, far in enumerate(ago) if far] == noted


def test_lengths_without_room_are_refused():
    with pytest.raises(ValueError, match="even and above 2·pairs = 10, but got 10"):
        associative_recall(1, 10, 5, torch.Generator())
    with pytest.raises(ValueError, match="below 256, the number of keys, but got 256"):
        associative_recall(1, 4096, 256, torch.Generator())
    with pytest.raises(ValueError, match=r"at least 3·kept \+ 1 = 16, but got 15"):
        selective_copy(1, 15, 5, torch.Generator())
