"""Tasks of one sequence as classes of `transformers`: hidden tokens, classes, and the next token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from models.heads import ClassificationHead, MaskedLanguageHead, classification_loss, counted_labels, token_loss
from models.huggingface.base import MAHAModel, MAHAPreTrainedModel, ModelInputs, changed
from models.huggingface.cache import MAHACache
from models.huggingface.configuration import MAHAConfig
from models.huggingface.losses import finished, share_of
from models.huggingface.outputs import MAHATaskOutput
from models.huggingface.writing import WithinLength

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["MAHAForCausalLM", "MAHAForMaskedLM", "MAHAForSequenceClassification", "check_past", "chosen_columns"]


class MAHAForMaskedLM(MAHAPreTrainedModel):
    """Guesses tokens that were hidden, as BERT does."""

    _tied_weights_keys = {"head.decoder.weight": "model.transformer.token_emb.weight"}  # noqa: RUF012

    def __init__(self, config: MAHAConfig) -> None:
        super().__init__(config)
        if config.causal:
            raise ValueError("MAHAForMaskedLM needs config.causal=False: a hidden token is guessed from both sides.")
        self.model = MAHAModel.within(self)
        self.head = MaskedLanguageHead(config.d_model, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The map to scores of tokens."""
        return self.head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the map to scores of tokens."""
        self.head.decoder = cast(nn.Linear, new_embeddings)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        smoothing: float = 0.0,
        return_dict: bool | None = None,
        **inputs: Unpack[ModelInputs],
    ) -> MAHATaskOutput | tuple[Any, ...]:
        """Scores of every token.

        Args:
            input_ids: This and others that are not named: see `MAHAModel`.
            attention_mask: See there.
            labels: (batch, n) integer, the hidden tokens, and -100 where nothing was hidden.
            inputs_embeds: See there.
            num_items_in_batch: number of labels of the whole batch, where this is a part of one, as `Trainer` has it:
                with it the losses, and gradients, of the parts add up to those of the whole.
            smoothing: of labels in the loss, see `models.heads.token_loss`; not named after them, since `Trainer` would
                take it for one.
            return_dict: See there.
            inputs: See there.

        Raises:
            ValueError: as `MAHAModel` and `models.heads.token_loss`.
            TypeError: likewise, or there is no such argument.
        """
        output = self.model(input_ids, attention_mask, inputs_embeds, return_dict=True, **inputs)
        logits = self.head(output.last_hidden_state)
        loss, share = None, 1.0
        if labels is not None:
            loss = token_loss(logits, labels, count=num_items_in_batch, smoothing=smoothing)
            share = share_of(counted_labels(labels), num_items_in_batch)
        return finished(self, _task_output(loss, logits, output), share, return_dict)


class MAHAForSequenceClassification(MAHAPreTrainedModel):
    """Classes of whole sequences, or numbers, by `config.problem_type`."""

    def __init__(self, config: MAHAConfig) -> None:
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.model = MAHAModel.within(self)
        self.head = ClassificationHead(config.d_model, self.num_labels, config.classifier_dropout)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        smoothing: float = 0.0,
        return_dict: bool | None = None,
        **inputs: Unpack[ModelInputs],
    ) -> MAHATaskOutput | tuple[Any, ...]:
        """Scores (batch, num_labels) of every class, or numbers.

        Args:
            input_ids: This and others that are not named: see `MAHAModel`.
            attention_mask: See there.
            labels: classes or numbers, by `config.problem_type`, see `models.heads.classification_loss`.
            inputs_embeds: See there.
            num_items_in_batch: number of labels of the whole batch, see `MAHAForMaskedLM`.
            smoothing: of labels in the loss, where they are single classes.
            return_dict: See there.
            inputs: See there.

        Raises:
            ValueError: as `MAHAModel` and `models.heads.classification_loss`.
            TypeError: likewise, or there is no such argument.
        """
        output = self.model(input_ids, attention_mask, inputs_embeds, return_dict=True, **inputs)
        logits = self.head(output.last_hidden_state, attention_mask)
        loss, share = None, 1.0
        if labels is not None:
            problem, count = self.config.problem_type, num_items_in_batch
            loss = classification_loss(logits, labels, problem, count=count, smoothing=smoothing)
            share = share_of(counted_labels(labels), num_items_in_batch)
        return finished(self, _task_output(loss, logits, output), share, return_dict)


class MAHAForCausalLM(MAHAPreTrainedModel, WithinLength, GenerationMixin):
    """Guesses the next token; causal whatever its configuration said before."""

    _tied_weights_keys = {"lm_head.weight": "model.transformer.token_emb.weight"}  # noqa: RUF012

    def __init__(self, config: MAHAConfig) -> None:
        super().__init__(changed(config, causal=True))
        self.model = MAHAModel.within(self)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: MAHACache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        smoothing: float = 0.0,
        return_dict: bool | None = None,
        **inputs: Unpack[ModelInputs],
    ) -> MAHATaskOutput | tuple[Any, ...]:
        """Scores of the token after each.

        Args:
            input_ids: This and others that are not named: see `MAHAModel`.
            attention_mask: See there.
            labels: (batch, n), `input_ids` themselves with -100 where they do not count: the shift is done here.
            inputs_embeds: See there.
            past_key_values: See there.
            use_cache: See there.
            logits_to_keep: scores of the last so many columns only, 0: of all; or (columns,) integer, of these. Not
                with labels.
            num_items_in_batch: number of labels of the whole batch, see `MAHAForMaskedLM`.
            smoothing: of labels in the loss, see `models.heads.token_loss`.
            return_dict: See there.
            inputs: See there.

        Raises:
            ValueError: as `MAHAModel` and `models.heads.token_loss`; or `logits_to_keep` chooses no columns, or stands
                beside labels.
            TypeError: likewise, or there is no such argument.
        """
        check_past(labels, past_key_values)
        columns = chosen_columns(logits_to_keep, labels)
        output = self.model(
            input_ids, attention_mask, inputs_embeds, past_key_values, use_cache, return_dict=True, **inputs
        )
        logits = self.lm_head(output.last_hidden_state[:, columns])
        loss, share = None, 1.0
        if labels is not None:
            loss = token_loss(logits, labels, shift=True, count=num_items_in_batch, smoothing=smoothing)
            share = share_of(counted_labels(labels, shift=True), num_items_in_batch)
        return finished(self, _task_output(loss, logits, output), share, return_dict)


def chosen_columns(logits_to_keep: int | Tensor, labels: Tensor | None) -> slice | Tensor:
    """Which columns `logits_to_keep` means, as `MAHAForCausalLM.forward` says, which says too what is raised."""
    whole = isinstance(logits_to_keep, int) and logits_to_keep == 0
    if labels is not None and not whole:
        raise ValueError("logits_to_keep must be 0 where there are labels: the loss needs the scores of all columns.")
    if isinstance(logits_to_keep, Tensor):
        if logits_to_keep.ndim != 1 or logits_to_keep.dtype not in (torch.int64, torch.int32):
            kind = f"{tuple(logits_to_keep.shape)} of {logits_to_keep.dtype}"
            raise ValueError(f"logits_to_keep must be a number, or (columns,) integer, but has shape {kind}.")
        return logits_to_keep
    if logits_to_keep < 0:
        raise ValueError(f"logits_to_keep must not be negative, but got {logits_to_keep}.")
    return slice(None) if whole else slice(-logits_to_keep, None)


def check_past(labels: Tensor | None, cache: MAHACache | None) -> None:
    """Raises ValueError where a loss would have gradients of the head only, the rest being behind a cache."""
    if labels is not None and cache is not None and cache.get_seq_length() and torch.is_grad_enabled():
        raise ValueError("past_key_values would stop the gradients of the loss: give the whole text, or use no_grad.")


def _task_output(loss: Tensor | None, logits: Tensor, base: Any) -> MAHATaskOutput:
    shared = {name: base.get(name) for name in ("past_key_values", "hidden_states", "attentions", "cross_attentions")}
    return MAHATaskOutput(loss=loss, logits=logits, aux_loss=base.get("aux_loss"), **shared)
