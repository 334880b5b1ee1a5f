"""Text to problems: those of a multiscale attention with random weights, fused in two ways, or of a trained model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from maha_opt.cells import Batch
from maha_opt.compare import take
from maha_opt.problems import convex_problem, nash_problem
from maha_opt.sets import make_set
from maha_opt.text import TextError
from models.attention import MultiscaleAttention
from models.decomposition import HierarchicalDecomposition
from models.inspection import fusion_problems
from models.transformer import MAHATransformer
from solvers import AffineVI, FeasibleSet

CHANNELS, HEADS, RATIO = 64, 4, 2
PASSAGE = 256
"""Tokens of a passage, unless so many scales need more."""

PER_PASSAGE = 64
"""Problems that are drawn from one passage, about."""

COUPLING = 0.5
"""Standard deviation of the entries of the players' coupling."""

SET_OPTIONS = {"capped_simplex": {"cap": 0.5}}
"""Of the sets that do not go without."""


class TokenOutputs(NamedTuple):
    """The answers of all scales at B tokens.

    Attributes:
        Y: (B, L, d).
        available: (B, L) bool, whether the scale has a complete cell before the token.
        target: (B, d), a random linear map of the token's embedding, in place of the one that a layer learns.
    """

    Y: Tensor
    available: Tensor
    target: Tensor


@dataclass(frozen=True)
class Recipe:
    """How problems are made of a text.

    Attributes:
        problems: Number of problems of each kind and seed.
        scales: L, at least 1; a cell of scale l is 2^l bytes.
        convex_set: Feasible set of the convex problems, a name that `make_set` takes.
        nash_set: Feasible set of the Nash problems.
        ridge: As in `maha_opt.problems`.
        price: L1 price of the finest scale, relative to the mean square of the scale outputs; each coarser scale costs
            half of the one before, as it does in attention.
        device: Where to compute.
        dtype: In which type.
    """

    problems: int = 1024
    scales: int = 4
    convex_set: str = "simplex"
    nash_set: str = "box"
    ridge: float = 1e-2
    price: float = 0.05
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float64

    @property
    def sets(self) -> tuple[str, str]:
        """The feasible sets of the convex and the Nash problems."""
        return self.convex_set, self.nash_set


def batches(text: bytes, seeds: int, recipe: Recipe) -> Iterator[Batch]:
    """A batch of convex and a batch of Nash problems for each seed, made when their turn comes."""
    for seed in range(seeds):
        for kind, problem in problems_of(text, seed, recipe).items():
            yield Batch(kind, seed, problem)


def problems_of(text: bytes, seed: int, recipe: Recipe) -> dict[str, AffineVI]:
    """The convex and the Nash problems of a seed."""
    Y, available, target = scale_outputs(text, seed, recipe)
    coupling = torch.randn(recipe.scales, recipe.scales, generator=torch.Generator().manual_seed(seed))
    coupling = COUPLING * (coupling - coupling.mT).to(Y) / 2**0.5
    cost = float(RATIO) ** -torch.arange(recipe.scales).to(Y)
    common = {"ridge": recipe.ridge, "prices": recipe.price * Y.square().mean() * cost, "available": available}
    return {
        "convex": convex_problem(Y, target, feasible=_set(recipe.convex_set), **common),
        "nash": nash_problem(Y, coupling, feasible=_set(recipe.nash_set), **common),
    }


def _set(name: str) -> FeasibleSet:
    return cast(FeasibleSet, make_set(name, SET_OPTIONS.get(name)))


@torch.no_grad()
def scale_outputs(text: bytes, seed: int, recipe: Recipe) -> TokenOutputs:
    """Causal multiscale attention with random weights over random passages of a text, at random tokens of theirs.

    The same seed gives the same weights, passages and tokens on every device and in every type.

    Args:
        text: Its bytes are the tokens.
        seed: Of all that is random.
        recipe: How many scales and problems, and where to compute.

    Raises:
        TextError: If the text is too short for the coarsest scale to exist.
    """
    scales = recipe.scales
    check_length(text, scales)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokens = _passages(_byte_tokens(text), -(-recipe.problems // PER_PASSAGE), max(PASSAGE, 2 * RATIO**scales))
        chosen = torch.randperm(tokens.numel())[: recipe.problems]
        embedding, target = nn.Embedding(256, CHANNELS), nn.Linear(CHANNELS, CHANNELS, bias=False)
        decomposition = HierarchicalDecomposition(CHANNELS, scales, RATIO, causal=True)
        attention = MultiscaleAttention(
            CHANNELS, HEADS, scales, decomposition, window=max(16, RATIO**scales), causal=True
        )
    for module in (embedding, target, attention):
        module.to(recipe.device, recipe.dtype)
    inputs = embedding(tokens.to(recipe.device))
    Y, available = attention(inputs)
    here = chosen.to(recipe.device)
    return TokenOutputs(Y.flatten(0, 1)[here], available.flatten(0, 1)[here], target(inputs.flatten(0, 1)[here]))


def check_length(text: bytes, scales: int) -> None:
    """Raises TextError unless the text holds two cells of the coarsest scale."""
    least = 2 * RATIO ** (scales - 1)
    if len(text) < least:
        raise TextError(
            f"The text has {len(text)} bytes, but {scales} scales take at least {least}: use fewer --scales."
        )


@dataclass(frozen=True)
class TrainedProblems:
    """What a block of a model solves at random tokens of a text: a source of problems for `maha_opt.validation`.

    Attributes:
        transformer: The model.
        tokens: (n,) integer, the text as its tokenizer has it.
        block: Of the model, from 0.
        problems: Number of problems of each seed; fewer where the block makes fewer of as many passages.
        dtype: In which type; the model computes in its own.
    """

    transformer: MAHATransformer
    tokens: Tensor
    block: int = 0
    problems: int = 1024
    dtype: torch.dtype = torch.float64

    @property
    def about(self) -> str:
        """What makes the problems, in words."""
        fusion = next(islice(self.transformer._blocks(), self.block, None)).aggregation.fusion
        return f"{type(fusion).__name__}: {fusion.num_scales} scales"

    def __call__(self, seed: int) -> AffineVI:
        """The problems of a seed, which chooses passages and tokens."""
        generator = torch.Generator().manual_seed(seed)
        count = -(-self.problems // PER_PASSAGE)
        passages = _passages(self.tokens, count, min(PASSAGE, self.transformer.max_len), generator)
        passages = passages.to(next(self.transformer.parameters()).device)
        problem = fusion_problems(self.transformer, passages)[self.block]
        chosen = torch.randperm(problem.batch_shape.numel(), generator=generator)[: self.problems]
        return take(problem, chosen.to(problem.q.device), self.dtype)


def _byte_tokens(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _passages(tokens: Tensor, count: int, length: int, generator: torch.Generator | None = None) -> Tensor:
    """Random passages (count, length) of a text, which may overlap; shorter where the text is."""
    length = min(length, len(tokens))
    starts = torch.randint(len(tokens) - length + 1, (count, 1), generator=generator)
    return tokens[starts + torch.arange(length)].long()
