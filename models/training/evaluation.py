"""How good a model is: the loss of every token of a text, classes, translations; with one solver or another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from maha_opt.switching import solver_within
from models.generation import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Guesses", "bits_per_byte", "bleu_and_chrf", "guess", "scores", "solved_by", "translate"]

Collator = Callable[[list[Any]], dict[str, Any]]


def bits_per_byte(loss: float, bytes_per_token: float = 1.0) -> float:
    """A loss in nats per token in bits for each byte of the text."""
    return loss / math.log(2) / bytes_per_token


@dataclass(frozen=True)
class Guesses:
    """What a model makes of rows of tokens, each guessed from those before it in the row.

    Attributes:
        losses: (rows, n − 1) float64, nats, of every token but the first.
        best: (rows, n − 1) int64, the likeliest token.
    """

    losses: Tensor
    best: Tensor

    @property
    def loss(self) -> float:
        """Mean loss in nats per token."""
        return float(self.losses.mean())

    @property
    def perplexity(self) -> float:
        """Its exponential."""
        return math.exp(self.loss)

    def bits_per_byte(self, bytes_per_token: float = 1.0) -> float:
        """The mean loss in bits for each byte of the text."""
        return bits_per_byte(self.loss, bytes_per_token)

    def by_position(self, borders: list[int]) -> list[float]:
        """Mean loss in nats of the tokens at positions [a, b) of their row, for each pair of neighbours in `borders`.

        The first token of a row has position 0 and is not guessed.
        """
        position = torch.arange(1, self.losses.shape[1] + 1)
        return [float(self.losses[:, (position >= a) & (position < b)].mean()) for a, b in pairwise(borders)]


@torch.no_grad()
def guess(model: nn.Module, tokens: Tensor, batch: int = 8) -> Guesses:
    """Guesses every token of every row.

    Args:
        model: A causal language model that returns `logits`: one of `models` or of `transformers`.
        tokens: (rows, n) int64, n ≥ 2.
        batch: Rows at once.
    """
    device = next(model.parameters()).device
    losses, best = [], []
    with evaluating(model):
        for rows in tokens.split(batch):
            rows = rows.to(device)
            logits = model(rows).logits[:, :-1]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            losses.append(cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").double().cpu())
            best.append(logits.argmax(-1).cpu())
    return Guesses(torch.cat(losses), torch.cat(best))


@contextmanager
def solved_by(model: nn.Module, solver: str, *, on_failure: str | None = None, **options: object) -> Iterator[None]:
    """Within it, every fusion of a model is solved by another solver; afterwards by its own again.

    Within it the gradient is "implicit", the one that every solver takes: a model that learned through unrolled steps
    can be judged by an exact solver.
    """
    with solver_within(model, solver, "implicit", on_failure=on_failure, **options):
        yield


@torch.no_grad()
def scores(model: PreTrainedModel, rows: Sequence[dict[str, Any]], collator: Collator, batch: int = 32) -> Tensor:
    """Scores (rows, labels) of a classifier, on the CPU.

    Args:
        model: The classifier.
        rows: As a task has them.
        collator: Makes a batch of rows.
        batch: Rows at once.
    """
    found = []
    with evaluating(model):
        for start in range(0, len(rows), batch):
            inputs = collator([rows[index] for index in range(start, min(start + batch, len(rows)))])
            inputs = {name: value.to(model.device) for name, value in inputs.items() if name != "labels"}
            found.append(model(**inputs).logits.cpu())
    return torch.cat(found)


@torch.no_grad()
def translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    *,
    beams: int = 1,
    batch: int = 16,
    most_tokens: int = 256,
) -> list[str]:
    """What an encoder-decoder makes of some texts.

    Args:
        model: The encoder-decoder.
        tokenizer: Its own.
        sources: The texts.
        beams: Of the search; 1: the likeliest token every time.
        batch: Texts at once.
        most_tokens: Of a translation.
    """
    targets: list[str] = []
    longest = min(most_tokens, model.config.max_len)
    with evaluating(model):
        for start in range(0, len(sources), batch):
            inputs = tokenizer(
                list(sources[start : start + batch]),
                padding=True,
                truncation=True,
                max_length=model.config.max_len,
                return_tensors="pt",
            ).to(model.device)
            made = cast(Any, model).generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                num_beams=beams,
                do_sample=False,
                max_length=longest,
            )
            targets += tokenizer.batch_decode(made, skip_special_tokens=True)
    return targets


def bleu_and_chrf(targets: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Corpus scores of translations by sacrebleu (Post 2018)."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    found: dict[str, float] = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        found[name] = float(metric.corpus_score(list(targets), [list(references)]).score)
    return found
