"""The checks of causality themselves: they pass what is causal, and each finds the fault that it is for."""

import pytest
import torch
from causality import (
    assert_cached_equals_full,
    assert_no_gradient_leak,
    assert_no_leak,
    assert_padding_invariant,
    assert_prefix_stable,
    random_ids,
)
from torch import nn

V, D = 11, 4
torch.manual_seed(0)
EMBEDDING = nn.Embedding(V, D)


def running_sum(ids, mask=None):
    """Causal, and deaf to padding."""
    x = EMBEDDING(ids)
    return (x if mask is None else x * mask[..., None]).cumsum(dim=1)


def total(ids, mask=None):
    """Sees the future: every output knows all tokens."""
    x = EMBEDDING(ids)
    return x.cumsum(dim=1) + x.sum(dim=1, keepdim=True)


def half_sum(ids, mask=None):
    """Causal at any one length, but its chunks follow the length."""
    x = EMBEDDING(ids)
    half = (x.shape[1] + 1) // 2
    return torch.cat([x[:, :half].cumsum(dim=1), x[:, half:].cumsum(dim=1)], dim=1)


class Summing:
    """Caches the sum; `fault` is added to it in a step."""

    def __init__(self, fault=0.0):
        self.fault = fault

    def prefill(self, ids, mask):
        cache = running_sum(ids, mask)[:, -1]
        return cache, cache

    def step(self, token_ids, cache):
        cache = cache + EMBEDDING(token_ids) + self.fault
        return cache, cache


def test_a_causal_model_passes_every_check():
    for n in range(1, 9):
        assert_no_leak(running_sum, n, V)
        assert_no_gradient_leak(running_sum, EMBEDDING, random_ids(2, n, V))
        assert_prefix_stable(running_sum, random_ids(2, n, V))
    assert_padding_invariant(running_sum, [1, 4, 6], V, holes=True)
    for left in (True, False):
        assert_cached_equals_full(Summing(), running_sum, [1, 4, 6], 9, V, left=left)


def test_an_output_that_sees_the_future_is_found_in_values_and_gradients():
    with pytest.raises(AssertionError, match="output 0 changed with the tokens from 1 on"):
        assert_no_leak(total, 6, V)
    with pytest.raises(AssertionError, match="outputs before 1 have gradients"):
        assert_no_gradient_leak(total, EMBEDDING, random_ids(2, 6, V))


def test_an_output_that_does_not_see_its_own_token_is_found():
    def late(ids):
        x = EMBEDDING(ids)
        return x.cumsum(dim=1) - x

    with pytest.raises(AssertionError, match="does not see its own token"):
        assert_no_leak(lambda ids: 0 * EMBEDDING(ids), 4, V)
    with pytest.raises(AssertionError, match="no gradient at its own token"):
        assert_no_gradient_leak(late, EMBEDDING, random_ids(1, 4, V))


def test_chunks_that_follow_the_length_are_found():
    assert_no_leak(half_sum, 8, V)
    with pytest.raises(AssertionError, match="prefix"):
        assert_prefix_stable(half_sum, random_ids(1, 8, V))


def test_padding_that_is_not_ignored_is_found():
    with pytest.raises(AssertionError, match="padding on the left"):
        assert_padding_invariant(lambda ids, mask: running_sum(ids), [2, 4], V)


def test_a_wrong_step_is_found():
    with pytest.raises(AssertionError, match="after 1 steps"):
        assert_cached_equals_full(Summing(1e-3), running_sum, [2, 4], 6, V)
