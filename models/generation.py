r"""Sampling from a causal language model, token by token.

A model takes part by two methods, `prefill` and `step` (`CachedModel`); nothing else of it is known here. With logits
`z` of the next token, temperature T, and the tokens sorted by falling `z`::

    p = softmax(z / T) over the first `top_k`,   kept = { i : p_1 + … + p_{i−1} < top_p },

and the next token is drawn from `p` restricted to the kept ones and normalised; without sampling it is `argmax z`.

Source: nucleus sampling, Holtzman et al. (2020); top-k sampling, Fan et al. (2018).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from models.columns import as_mask

if TYPE_CHECKING:
    from typing_extensions import Required

__all__ = ["CachedModel", "GenerationOptions", "evaluating", "generate", "sample_tokens"]

Cache = TypeVar("Cache")


class CachedModel(Protocol[Cache]):
    """A causal language model that remembers what it has read.

    One that can read only so many tokens says so in an attribute `max_len`, which `generate` looks for.
    """

    def prefill(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Cache]:
        """Reads prompts (batch, n), real where the mask (batch, n) is True: logits of each row's next token."""
        ...

    def step(self, token_ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Reads one more token of each row, (batch,): logits (batch, vocab) of the next one."""
        ...


class GenerationOptions(TypedDict, total=False):
    """The options of `generate`, which documents them."""

    max_new_tokens: Required[int]
    do_sample: bool
    temperature: float
    top_k: int | None
    top_p: float | None
    eos_token_id: int | None
    pad_token_id: int | None
    generator: torch.Generator | None


def generate(
    model: CachedModel[Cache],
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continues every prompt of a batch.

    A model that is an `nn.Module` is in evaluation mode meanwhile, without dropout; afterwards every part of it is in
    the mode that it was in. No gradient is recorded, but the tokens returned are ordinary ones, that one can train on.

    Args:
        model: what gives the logits.
        input_ids: (batch, n) integer, n ≥ 1; the prompts, padded to one length on either side.
        attention_mask: (batch, n) bool or 0/1, True where the token is real; None: everywhere. What stands elsewhere
            does not matter, and positions count real tokens only.
        max_new_tokens: how many tokens are appended at most, at least 1.
        do_sample: draw the tokens; False: take the most likely one. The next three need it.
        temperature: T > 0; below 1 sharpens, above 1 flattens.
        top_k: keep the k most likely tokens, k ≥ 1; of equally likely ones those that come first.
        top_p: keep the most likely tokens until they have collected this probability, in (0, 1].
        eos_token_id: a row ends with this token; None: no row ends early.
        pad_token_id: what a row that has ended is filled with; None: `eos_token_id`.
        generator: source of randomness, on the device of the logits; None: the global one. It is used in the same way
            whether rows have ended or not.

    Returns:
        (batch, n + new) of the type of `input_ids`: the prompts as they were given, followed by the new tokens (so the
        padding of a prompt that is padded on the right stays in the middle). `new` is `max_new_tokens`, or less where
        every row has ended before.

    Raises:
        ValueError: an argument is out of its range or has the wrong shape, a prompt is empty, or the prompts and
            `max_new_tokens` make more than the `max_len` tokens of the model.
        TypeError: `input_ids` is not integer, or `attention_mask` neither boolean nor integer.
    """
    mask = check_prompts(input_ids, attention_mask)
    _check_sampling(do_sample, temperature, top_k, top_p)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, but got {max_new_tokens}.")
    batch, n = input_ids.shape
    longest = n if mask is None or batch == 0 else int(mask.sum(dim=1).max())
    max_len: int | None = getattr(model, "max_len", None)
    if max_len is not None and longest + max_new_tokens > max_len:
        raise ValueError(
            f"max_new_tokens must be at most {max_len - longest}, but got {max_new_tokens}: the model reads {max_len} "
            f"tokens, and the longest prompt has {longest}."
        )
    filling = eos_token_id if pad_token_id is None else pad_token_id
    ended = torch.zeros(batch, dtype=torch.bool, device=input_ids.device)
    new: list[Tensor] = []
    with evaluating(model), torch.inference_mode():
        logits, cache = model.prefill(input_ids, mask)
        while True:
            tokens = sample_tokens(
                logits, do_sample=do_sample, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
            )
            new.append(tokens if filling is None else tokens.masked_fill(ended, filling))
            if eos_token_id is not None:
                ended = ended | (tokens == eos_token_id)
            if len(new) == max_new_tokens or (eos_token_id is not None and bool(ended.all())):
                break
            # A row that has ended goes on with what it drew, which is a token of the vocabulary; a pad may be none.
            logits, cache = model.step(tokens, cache)
    # Concatenated outside of inference mode, so that the result is no inference tensor.
    return torch.cat([input_ids, torch.stack(new, dim=1).to(input_ids.dtype)], dim=1)


def sample_tokens(
    logits: Tensor,
    *,
    do_sample: bool = True,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws one token of each row, or takes the most likely one.

    Args:
        logits: (batch, vocab) floating point; −inf excludes a token. Computed in float32 at least.
        do_sample: see `generate`, as for the others.
        temperature: T > 0.
        top_k: at least 1; more than there are tokens keeps all.
        top_p: in (0, 1].
        generator: source of randomness.

    Returns:
        (batch,) int64.

    Raises:
        ValueError: an argument is out of its range or has the wrong shape.
    """
    _check_sampling(do_sample, temperature, top_k, top_p)
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ValueError(f"logits must have shape (batch, vocab), but got {tuple(logits.shape)}.")
    if not do_sample:
        return logits.argmax(dim=1)
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    z = (z - z.amax(dim=1, keepdim=True)) / temperature  # the largest is 0, so that no temperature overflows
    if top_k is None and top_p is None:
        return torch.multinomial(z.softmax(dim=1), 1, generator=generator).squeeze(1)
    z, order = z.sort(dim=1, descending=True, stable=True)
    if top_k is not None:
        z = z.masked_fill(torch.arange(z.shape[1], device=z.device) >= top_k, -torch.inf)
    p = z.softmax(dim=1)
    if top_p is not None:
        collected_before = p.cumsum(dim=1) - p
        p = p.masked_fill(collected_before >= top_p, 0)
    drawn = torch.multinomial(p, 1, generator=generator)  # normalises p itself
    return order.gather(1, drawn).squeeze(1)


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Puts a module into evaluation mode, and every part of it back into the mode that it was in.

    What is not an `nn.Module` is left alone.
    """
    training = [part for part in model.modules() if part.training] if isinstance(model, nn.Module) else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def check_prompts(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
    """The mask as booleans, None if there is none; raises as `generate` does."""
    check_token_ids(input_ids)
    if attention_mask is None:
        return None
    mask = as_mask("attention_mask", attention_mask, input_ids.shape)
    empty = (~mask.any(dim=1)).nonzero()
    if len(empty):
        raise ValueError(f"every prompt must have a real token, but row {int(empty[0])} of attention_mask has none.")
    return mask


def check_token_ids(input_ids: Tensor) -> None:
    """Raises unless `input_ids` is (batch, n ≥ 1) (ValueError) and integer (TypeError)."""
    if input_ids.ndim != 2 or input_ids.shape[1] < 1:
        raise ValueError(f"input_ids must have shape (batch, n) with n at least 1, but got {tuple(input_ids.shape)}.")
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"input_ids must be int64 or int32, but got {input_ids.dtype}.")


def _check_sampling(do_sample: bool, temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, but got {temperature}: do_sample=False takes the likeliest.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, but got {top_k}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], but got {top_p}.")
    if not do_sample and (temperature != 1 or top_k is not None or top_p is not None):
        raise ValueError("temperature, top_k and top_p need do_sample=True: without it the likeliest token is taken.")
