"""What stands on top of a transformer for a task, and the losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

__all__ = ["ClassificationHead", "MaskedLanguageHead", "classification_loss", "counted_labels", "token_loss"]

IGNORED = -100
"""A label that does not count, as in torch and in Hugging Face."""


class MaskedLanguageHead(nn.Module):
    """The head of BERT: a map, GELU, a norm, and scores of every token.

    Args:
        d_model: number of channels.
        vocab_size: number of different tokens.
    """

    def __init__(self, d_model: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.decoder = nn.Linear(d_model, vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, d_model) to scores (…, vocab_size)."""
        return self.decoder(self.norm(nn.functional.gelu(self.dense(hidden))))


class ClassificationHead(nn.Module):
    """Scores of classes from the mean of the real tokens, by way of a map and tanh.

    Args:
        d_model: number of channels.
        num_labels: number of classes; 1 for a regression.
        dropout: of the mean and of what the map makes of it.
    """

    def __init__(self, d_model: int, num_labels: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.dense = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, num_labels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states (batch, n, d_model), with a mask (batch, n) of the real tokens, to scores (batch, labels)."""
        if mask is None:
            pooled = hidden.mean(dim=1)
        else:
            real = mask.to(hidden.dtype).unsqueeze(-1)
            pooled = (hidden * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
        return self.out_proj(self.dropout(torch.tanh(self.dense(self.dropout(pooled)))))


def counted_labels(labels: Tensor, *, shift: bool = False) -> Tensor:
    """How many labels count, a scalar: those that are not -100; without the first column where they are shifted."""
    return (labels[:, 1:] if shift else labels).ne(IGNORED).sum()


def token_loss(logits: Tensor, labels: Tensor, *, shift: bool = False, count: Tensor | int | None = None) -> Tensor:
    """Mean cross-entropy in nats over the labels that are not -100; zero if none counts.

    Args:
        logits: (batch, n, vocab_size); computed in at least float32.
        labels: (batch, n) integer.
        shift: whether the label of a token is that of the next column, as in a causal language model.
        count: divides the sum in place of the number of labels that count here: that of a larger batch, of which this
            is a part, so that the losses of the parts add up to its mean.
    """
    if count is None:
        count = counted_labels(labels, shift=shift).clamp(min=1)
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    logits = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum") / count


def classification_loss(logits: Tensor, labels: Tensor, *, count: Tensor | int | None = None) -> Tensor:
    """Mean cross-entropy of classes (batch, labels) against (batch,) integers; mean squared error where there is one.

    `count` is as in `token_loss`, in rows.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    count = len(labels) if count is None else count
    if logits.shape[1] == 1:
        return mse_loss(logits[:, 0], labels.to(logits.dtype), reduction="sum") / count
    return cross_entropy(logits, labels, reduction="sum") / count
