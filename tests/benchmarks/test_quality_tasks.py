"""The tasks of memory of `benchmarks.quality` ask what they say they ask."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers", reason="Hugging Face transformers is not installed: pip install 'maha-opt[train]'")

from benchmarks.quality.memory import DISTANCES, LEAD, VOCABULARY, associative_recall, judge, selective_copy
from models.heads import IGNORED


def lead(row):
    """How much noise a row begins with; no key and no value is token 0."""
    return next(place for place, token in enumerate(row) if token)


@pytest.mark.parametrize("seed", range(3))
def test_every_value_that_is_asked_for_is_the_one_its_key_came_with(seed):
    pairs, length = 5, 48
    made = associative_recall(40, length, pairs, torch.Generator().manual_seed(seed))
    assert made.tokens.shape == made.labels.shape == (40, length)
    leads = [lead(row) for row in made.tokens.tolist()]
    assert max(leads) < LEAD
    assert len(set(leads)) > 5  # of 16; 40 rows with so few have a chance below 1e-15
    for noise, row, wanted in zip(leads, made.tokens.tolist(), made.labels.tolist(), strict=True):
        assert set(wanted[:noise]) <= {IGNORED}
        row, wanted = row[noise:], wanted[noise:]
        told = dict(zip(row[: 2 * pairs : 2], row[1 : 2 * pairs : 2], strict=True))
        assert len(told) == pairs
        assert all(0 < key < VOCABULARY // 2 <= value < VOCABULARY for key, value in told.items())
        places = [place for place, value in enumerate(wanted) if value != IGNORED]
        assert places == list(range(2 * pairs + 1, length - noise, 2))
        assert all(wanted[place] == row[place] == told[row[place - 1]] for place in places)


def test_the_distance_of_a_question_is_that_to_the_last_place_of_its_key():
    pairs, length = 4, 40
    made = associative_recall(10, length, pairs, torch.Generator().manual_seed(0))
    for row, ago in zip(made.tokens.tolist(), made.ago.tolist(), strict=True):
        keys = range(lead(row), length - 1, 2)
        assert not any(far for place, far in enumerate(ago) if place - 1 not in keys)
        for key in keys:
            place = key + 1
            before = [other for other in keys if other < key and row[other] == row[key]]
            assert ago[place] == (place - 1 - before[-1] if before else 0)


def test_what_stands_among_the_noise_is_said_again_in_its_order():
    made = selective_copy(20, 30, 6, torch.Generator().manual_seed(0))
    for row, wanted, ago in zip(made.tokens.tolist(), made.labels.tolist(), made.ago.tolist(), strict=True):
        noted = [token for token in row[:-7] if token > 0]
        assert row[-7] == 1
        assert noted == row[-6:] == wanted[-6:]
        assert set(wanted[:-6]) == {IGNORED}
        assert [row[place - far] for place, far in enumerate(ago) if far] == noted


def test_a_model_that_sees_so_far_is_right_so_far():
    """Judged by a model that repeats what a key came with within 64 tokens, and says nothing of the others."""
    made = associative_recall(20, 512, 40, torch.Generator().manual_seed(0))
    within = (made.ago > 0) & (made.ago <= DISTANCES[1])
    next_token = torch.where(within, made.tokens, 0)[:, 1:]

    class Near(torch.nn.Linear):
        def forward(self, input_ids, **kwargs):
            rows = (made.tokens[:, None] == input_ids).all(2).int().argmax(0)
            guessed = torch.nn.functional.pad(next_token[rows], (0, 1))
            return SimpleNamespace(logits=torch.nn.functional.one_hot(guessed, VOCABULARY).double())

    found = judge(Near(1, 1), made)
    assert found["test_by_distance"] == [1.0, 0.0, 0.0, None]
    asked = made.labels != IGNORED
    assert found["test_accuracy"] == pytest.approx(int((within & asked).sum()) / int(asked.sum()), abs=1e-12)


def test_lengths_without_room_are_refused():
    with pytest.raises(ValueError, match=r"even and above 2·pairs \+ 16 = 26, but got 26"):
        associative_recall(1, 26, 5, torch.Generator())
    with pytest.raises(ValueError, match="below 160, the number of keys, but got 160"):
        associative_recall(1, 4096, 160, torch.Generator())
    with pytest.raises(ValueError, match=r"at least 3·kept \+ 1 = 16, but got 15"):
        selective_copy(1, 15, 5, torch.Generator())
