"""The tasks: what a model is shown, how rows become a batch, and how it is judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    default_data_collator,
)

from maha_opt.text import TextError
from models.huggingface import (
    HierarchicalDecoderForCausalLM,
    MAHAForCausalLM,
    MAHAForConditionalGeneration,
    MAHAForMaskedLM,
    MAHAForSequenceClassification,
)
from models.training.settings import Settings
from models.training.texts import Parts, read_columns, read_parts
from models.training.tokens import TokenBlocks

__all__ = ["TASKS", "Rows", "Task", "make_task", "read_pairs", "read_texts"]


@dataclass(frozen=True)
class Task:
    """What `transformers.Trainer` needs to know of a task.

    Attributes:
        train: Rows to learn from.
        validation: Rows to judge by.
        model_class: Of the model.
        options: What the task asks of its configuration.
        collator: Makes a batch of rows.
        metrics: What there is to say besides the loss.
        bytes_per_token: Of the text that is judged by; None: not a text that is guessed token by token.
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    model_class: type[PreTrainedModel]
    options: dict[str, Any] = field(default_factory=dict)
    collator: Callable[[list[Any]], dict[str, Any]] = default_data_collator
    metrics: Callable[[Any], dict[str, float]] | None = None
    bytes_per_token: float | None = None


class Rows(Dataset[dict[str, Any]]):
    """Rows of a table, as tokens, in memory."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def make_task(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Task:
    """Reads the data of a run and says what is made of it.

    Args:
        settings: Of the run.
        tokenizer: Makes the tokens; that of "masked" is given a token for what is hidden if it has none.

    Raises:
        ValueError: There is no such task, or the model cannot do it.
        TextError: The data cannot be used.
    """
    if settings.task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, but got {settings.task!r}.")
    if settings.model == "tree" and settings.task != "language":
        raise ValueError(f"The tree is a causal language model and cannot {settings.task!r}.")
    return TASKS[settings.task](settings, tokenizer)


def _language(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Task:
    train, validation = _blocks(settings, tokenizer)
    kind = HierarchicalDecoderForCausalLM if settings.model == "tree" else MAHAForCausalLM
    return Task(train, validation, kind, bytes_per_token=validation.bytes_per_token)


def _masked(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Task:
    if tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
    train, validation = _blocks(settings, tokenizer)
    return Task(train, validation, MAHAForMaskedLM, collator=DataCollatorForLanguageModeling(tokenizer))


def _blocks(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> tuple[TokenBlocks, TokenBlocks]:
    parts = read_texts(settings)
    validation = TokenBlocks(tokenizer, parts.validation, settings.context)
    validation.tokens = validation.tokens[: settings.most_blocks]
    return TokenBlocks(tokenizer, parts.train, settings.context), validation


def _classify(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Task:
    (texts, labels), (held_texts, held_labels) = read_pairs(settings, ("text", "label"))
    names = sorted(set(labels))
    if unknown := set(held_labels) - set(names):
        raise TextError(f"The label {min(unknown)!r} is judged by but never learned from.")
    numbers = {name: number for number, name in enumerate(names)}

    def rows(texts: list[str], labels: list[str]) -> Rows:
        tokens = _tokens(tokenizer, texts, settings.context)
        return Rows([{"input_ids": t, "labels": numbers[label]} for t, label in zip(tokens, labels, strict=True)])

    options = {"id2label": dict(enumerate(names)), "label2id": numbers}
    return Task(
        rows(texts, labels),
        rows(held_texts, held_labels),
        MAHAForSequenceClassification,
        {"num_labels": len(names), "problem_type": "single_label_classification", **options},
        DataCollatorWithPadding(tokenizer),
        _accuracy,
    )


def _translate(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Task:
    pairs, held = read_pairs(settings, ("source", "target"))

    def rows(sources: list[str], targets: list[str]) -> Rows:
        both = (_tokens(tokenizer, texts, settings.context) for texts in (sources, targets))
        return Rows([{"input_ids": source, "labels": target} for source, target in zip(*both, strict=True)])

    train, validation = rows(*pairs), rows(*held)
    validation.rows = validation.rows[: settings.most_blocks]
    start = tokenizer.pad_token_id
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    return Task(train, validation, MAHAForConditionalGeneration, {"decoder_start_token_id": start}, collator)


def read_texts(settings: Settings) -> Parts:
    """The texts of a run.

    Raises:
        TextError: They cannot be used.
    """
    return read_parts(
        [Path(path) for path in settings.texts],
        [Path(path) for path in settings.validation],
        dataset=settings.dataset,
        column=settings.columns[0] if settings.columns else "text",
        held_out=settings.held_out,
    )


def read_pairs(settings: Settings, names: tuple[str, str]) -> tuple[list[list[str]], list[list[str]]]:
    """Two columns of the table of a run: to learn from and to judge by, which is the end of it if not named.

    Raises:
        TextError: The table cannot be used.
    """
    columns = settings.columns or names
    if len(columns) != 2 or len(settings.texts) != 1 or len(settings.validation) > 1 or settings.dataset is not None:
        raise TextError(f"The task {settings.task!r} takes one table with two columns, {names[0]} and {names[1]}.")
    train = read_columns(Path(settings.texts[0]), columns)
    if settings.validation:
        return train, read_columns(Path(settings.validation[0]), columns)
    cut = round(len(train[0]) * (1 - settings.held_out))
    if not 0 < cut < len(train[0]):
        raise TextError(f"{settings.texts[0]} has too few rows to hold some of them out.")
    return [column[:cut] for column in train], [column[cut:] for column in train]


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], context: int) -> list[list[int]]:
    return tokenizer(list(texts), truncation=True, max_length=context, return_attention_mask=False)["input_ids"]


def _accuracy(prediction: Any) -> dict[str, float]:
    scores = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float(np.mean(np.asarray(scores).argmax(-1) == prediction.label_ids))}


TASKS: dict[str, Callable[[Settings, PreTrainedTokenizerBase], Task]] = {
    "language": _language,
    "masked": _masked,
    "classify": _classify,
    "translate": _translate,
}
