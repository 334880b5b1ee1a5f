"""What causal models must hold, for any callable from token ids to one output per token.

A `forward` maps ids (batch, n) int64 to outputs (batch, n, ...) and, where padding is tested, takes a mask (batch, n)
bool, True where the token is real, as its second argument. Every assertion is a property; none knows the model.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "assert_cached_equals_full",
    "assert_no_gradient_leak",
    "assert_no_leak",
    "assert_padding_invariant",
    "assert_prefix_stable",
    "random_ids",
]


def random_ids(batch: int, n: int, vocab_size: int, seed: int = 0) -> Tensor:
    """(batch, n) int64, uniform over the vocabulary, the same for the same seed."""
    return torch.randint(vocab_size, (batch, n), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def assert_no_leak(
    forward: Callable[[Tensor], Tensor], n: int, vocab_size: int, positions: Iterable[int] | None = None, seed: int = 0
) -> None:
    """Changing every token from p on changes no bit of the outputs before p, and does change the output at p.

    Every p is one row of a batch (`positions`: all of them). The unchanged row is computed in a batch of the same size,
    so that equal kernels round equally and "no bit" can be demanded.
    """
    p = torch.tensor(list(range(n) if positions is None else positions))
    ids = random_ids(1, n, vocab_size, seed)
    other = (ids + torch.randint(1, vocab_size, (1, n), generator=torch.Generator().manual_seed(seed + 1))) % vocab_size
    before = torch.arange(n) < p[:, None]
    original = forward(ids.repeat(len(p), 1))
    changed = forward(torch.where(before, ids, other))
    assert original.isfinite().all(), f"length {n}: outputs are not finite"
    same = (original == changed).flatten(2).all(dim=2)
    leaks = (before & ~same).nonzero().tolist()
    assert not leaks, f"length {n}: output {leaks[0][1]} changed with the tokens from {p[leaks[0][0]]} on"
    deaf = p[same[torch.arange(len(p)), p]].tolist()
    assert not deaf, f"length {n}: output {deaf} does not see its own token"


def assert_no_gradient_leak(
    forward: Callable[[Tensor], Tensor], embedding: nn.Module, ids: Tensor, positions: Iterable[int] | None = None
) -> None:
    """The gradient of the outputs before p is exactly zero at the embeddings of all tokens from p on.

    Args:
        forward: as in the module docstring; looks the ids up in `embedding`, once.
        embedding: the module that maps ids to vectors.
        ids: (batch, n).
        positions: the p to test; all where None.
    """
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        found.append(leaf)
        return leaf

    handle = embedding.register_forward_hook(keep)
    try:
        outputs = forward(ids)
    finally:
        handle.remove()
    (embedded,) = found
    n = ids.shape[1]
    # Random cotangents: ones would vanish through a softmax or a normalisation.
    cotangent = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
    for p in range(1, n) if positions is None else positions:
        (gradient,) = torch.autograd.grad(outputs[:, :p], embedded, cotangent[:, :p], retain_graph=True)
        assert (gradient[:, p:] == 0).all(), f"length {n}: outputs before {p} have gradients at tokens from {p} on"
        assert (gradient[:, p - 1] != 0).any(), f"length {n}: output {p - 1} has no gradient at its own token"


@torch.no_grad()
def assert_prefix_stable(
    forward: Callable[[Tensor], Tensor],
    ids: Tensor,
    prefixes: Iterable[int] | None = None,
    *,
    atol: float = 2e-6,
    rtol: float = 2e-6,
) -> None:
    """A prefix alone gives what the same prefix gives inside `ids` (batch, n).

    This finds what changing tokens cannot: windows, chunks or numbers of scales that follow the current length. Other
    lengths take other kernels, which sum in another order: hence a tolerance, some roundings of float32 at outputs of
    order one. Pass tighter ones in float64.
    """
    n = ids.shape[1]
    whole = forward(ids)
    for m in range(1, n) if prefixes is None else prefixes:
        torch.testing.assert_close(
            forward(ids[:, :m]), whole[:, :m], atol=atol, rtol=rtol, msg=lambda text, m=m: f"prefix {m} of {n}: {text}"
        )


@torch.no_grad()
def assert_padding_invariant(
    forward: Callable[[Tensor, Tensor], Tensor],
    lengths: Iterable[int],
    vocab_size: int,
    *,
    extra: int = 3,
    atol: float = 1e-5,
    rtol: float = 0.0,
    holes: bool = False,
    seed: int = 0,
) -> None:
    """Outputs of real tokens are those of each row computed alone, wherever its padding stands and whatever it holds.

    One batch of rows with these `lengths` is padded to the longest and `extra` more: on the left, on the right, on both
    sides, and (`holes`) among the real tokens. It is filled in two ways, between which no bit may differ.
    """
    lengths = list(lengths)
    width = max(lengths) + extra
    rows = [random_ids(1, m, vocab_size, seed + i) for i, m in enumerate(lengths)]
    alone = [forward(row, torch.ones_like(row, dtype=torch.bool))[0] for row in rows]
    places = {"right": [range(m) for m in lengths], "left": [range(width - m, width) for m in lengths]}
    places["both sides"] = [range((width - m) // 2, (width - m) // 2 + m) for m in lengths]
    if holes:
        generator = torch.Generator().manual_seed(seed)
        places["holes"] = [torch.randperm(width, generator=generator)[:m].sort().values.tolist() for m in lengths]
    for side, columns in places.items():
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        ids = random_ids(len(rows), width, vocab_size, seed + 99)
        for i, column in enumerate(columns):
            mask[i, list(column)] = True
            ids[i, list(column)] = rows[i][0]
        outputs = forward(ids, mask)
        refilled = forward(torch.where(mask, ids, (ids + 1) % vocab_size), mask)
        assert torch.equal(outputs[mask], refilled[mask]), f"padding on the {side}: what it holds matters"
        for i, expected in enumerate(alone):
            torch.testing.assert_close(
                outputs[i, mask[i]],
                expected,
                atol=atol,
                rtol=rtol,
                msg=lambda text, i=i, side=side: f"padding on the {side}, row of {lengths[i]}: {text}",
            )


@torch.no_grad()
def assert_cached_equals_full(
    model: Any,
    forward: Callable[[Tensor], Tensor],
    lengths: Iterable[int],
    total: int,
    vocab_size: int,
    *,
    left: bool = True,
    atol: float = 1e-5,
    rtol: float = 0.0,
    seed: int = 0,
) -> None:
    """Logits of `model.prefill` and of every `model.step` after it are those of the full pass over each row alone.

    Args:
        model: has `prefill(ids, mask) -> (logits, cache)` and `step(token_ids, cache) -> (logits, cache)`.
        forward: logits (batch, n, vocab) of rows without padding.
        lengths: number of prompt tokens of each row; one row per length.
        total: the rows go on, token by token, until the longest has this many.
        vocab_size: ids are drawn below it.
        left: whether the prompts are padded on the left; on the right otherwise.
        atol: absolute tolerance.
        rtol: relative tolerance.
        seed: of the ids.
    """
    lengths = list(lengths)
    rows = random_ids(len(lengths), total, vocab_size, seed)
    expected = forward(rows)
    width = max(lengths)
    prompts = random_ids(len(lengths), width, vocab_size, seed + 1)
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for i, m in enumerate(lengths):
        place = slice(width - m, width) if left else slice(0, m)
        prompts[i, place], mask[i, place] = rows[i, :m], True
    index, here = torch.arange(len(lengths)), torch.tensor(lengths)
    logits, cache = model.prefill(prompts, None if mask.all() else mask)
    for step in range(total - width + 1):
        torch.testing.assert_close(
            logits,
            expected[index, here - 1],
            atol=atol,
            rtol=rtol,
            msg=lambda text, step=step: f"prompts of {lengths}, after {step} steps: {text}",
        )
        if step < total - width:
            logits, cache = model.step(rows[index, here], cache)
            here = here + 1
