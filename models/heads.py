"""What stands on top of a transformer for a task, and the losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

__all__ = [
    "PROBLEM_TYPES",
    "ClassificationHead",
    "MaskedLanguageHead",
    "classification_loss",
    "counted_labels",
    "token_loss",
]

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
"""What labels of a sequence may be, in the words of Hugging Face."""

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


def token_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    shift: bool = False,
    count: Tensor | int | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy in nats over the labels that are not -100; zero if none counts.

    Args:
        logits: (batch, n, vocab_size); computed in at least float32.
        labels: (batch, n) integer.
        shift: whether the label of a token is that of the next column, as in a causal language model.
        count: divides the sum in place of the number of labels that count here: that of a larger batch, of which this
            is a part, so that the losses of the parts add up to its mean.
        smoothing: ε in [0, 1): the target is the label with weight 1 − ε and every token with ε / vocab_size
            (Szegedy et al. 2016).

    Raises:
        ValueError: labels have another shape, or `smoothing` is out of its range.
        TypeError: labels are not integer.
    """
    _check_smoothing(smoothing)
    if labels.shape != logits.shape[:2]:
        raise ValueError(f"labels must have shape {tuple(logits.shape[:2])}, but got {tuple(labels.shape)}.")
    _check_integer(labels, "tokens")
    if count is None:
        count = counted_labels(labels, shift=shift).clamp(min=1)
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    logits = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    targets = labels.flatten().long()
    total = cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)
    return total / count


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    problem_type: str | None = None,
    *,
    count: Tensor | int | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """The loss of a classifier or a regression of whole sequences, as the sequence classifiers of Hugging Face have it.

    Args:
        logits: (batch, scores); computed in at least float32.
        labels: by `problem_type`: for "regression" (batch, scores) numbers, or (batch,) where there is one score, whose
            mean squared error it is; for "single_label_classification" (batch,) integer classes, -100 where they do not
            count, whose mean cross-entropy it is; for "multi_label_classification" (batch, scores) of 0 and 1, or
            between, whose mean binary cross-entropy it is.
        problem_type: one of `PROBLEM_TYPES`; None: a regression where there is one score, else one class where labels
            are integer, and several where they are not.
        count: as in `token_loss`; where there are several labels in a row, each of them counts.
        smoothing: as in `token_loss`; for single classes only.

    Raises:
        ValueError: labels have another shape, there is no such problem, or it takes no `smoothing`.
        TypeError: classes are not integer.
    """
    _check_smoothing(smoothing)
    rows, scores = logits.shape
    if problem_type is None:
        several = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
        problem_type = "regression" if scores == 1 else several
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, but got {problem_type!r}.")
    single = problem_type == "single_label_classification"
    if smoothing and not single:
        raise ValueError(f"smoothing needs single classes, but problem_type is {problem_type!r}.")
    if single:
        _check_shape(labels, (rows,), problem_type, (rows, 1))
        _check_integer(labels, "classes")
    else:
        _check_shape(labels, (rows, scores), problem_type, *([(rows,)] if scores == 1 else []))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if single:
        count = counted_labels(labels).clamp(min=1) if count is None else count
        classes = labels.reshape(rows).long()
        total = cross_entropy(logits, classes, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)
        return total / count
    loss = mse_loss if problem_type == "regression" else binary_cross_entropy_with_logits
    targets = labels.reshape(rows, scores).to(logits.dtype)
    return loss(logits, targets, reduction="sum") / (targets.numel() if count is None else count)


def _check_smoothing(smoothing: float) -> None:
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be in [0, 1), but got {smoothing}.")


def _check_shape(labels: Tensor, wanted: tuple[int, ...], problem_type: str, *others: tuple[int, ...]) -> None:
    if labels.shape not in (wanted, *others):
        raise ValueError(
            f"labels must have shape {wanted} where problem_type is {problem_type!r}, but got {tuple(labels.shape)}."
        )


def _check_integer(labels: Tensor, what: str) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integer {what}, but got {labels.dtype}.")
