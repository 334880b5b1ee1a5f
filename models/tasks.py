"""The MAHA transformer at work: masked and causal language models, classification, and sequence to sequence.

Plain torch modules for a plain training loop. `models.huggingface` has the same as citizens of that library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from maha_opt.switching import HasFusions
from models.columns import as_mask
from models.generation import GenerationOptions, evaluating, generate
from models.heads import ClassificationHead, MaskedLanguageHead, classification_loss, token_loss
from models.transformer import MAHATransformer, TransformerState, initialise

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["CausalLanguageModel", "EncoderDecoder", "MaskedLanguageModel", "SequenceClassifier", "TaskOutput"]


class TaskOutput(NamedTuple):
    """What a task model returns.

    Attributes:
        loss: a scalar, the loss of the task plus `aux_weight` times the auxiliary loss; None without labels.
        logits: scores, (batch, n, vocab_size) or (batch, num_labels).
        aux_loss: a scalar, the mean objective of the fusions, see `MAHATransformer`.
    """

    loss: Tensor | None
    logits: Tensor
    aux_loss: Tensor


class MaskedLanguageModel(HasFusions, nn.Module):
    """Guesses tokens that were hidden, as BERT does.

    Args:
        transformer: a bidirectional one.
        tie_weights: whether the scores share the weights of the embedding.
        aux_weight: of the auxiliary loss in the loss.

    Raises:
        ValueError: the transformer is causal.
    """

    def __init__(self, transformer: MAHATransformer, *, tie_weights: bool = True, aux_weight: float = 0.0) -> None:
        super().__init__()
        _require_causal(transformer, False, "a masked language model")
        self.transformer = transformer
        self.head = MaskedLanguageHead(transformer.d_model, transformer.vocab_size)
        self.head.apply(initialise)
        if tie_weights:
            self.head.decoder.weight = transformer.token_emb.weight
        self.aux_weight = aux_weight

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> TaskOutput:
        """Scores of every token.

        Args:
            input_ids: (batch, n) integer.
            attention_mask: (batch, n) bool or 0/1, True where the token is real; None: all are.
            labels: (batch, n) integer, the hidden tokens, and -100 where nothing was hidden.
        """
        hidden, aux_loss = self.transformer(input_ids, attention_mask)
        logits = self.head(hidden)
        loss = None if labels is None else token_loss(logits, labels) + self.aux_weight * aux_loss
        return TaskOutput(loss, logits, aux_loss)


class SequenceClassifier(HasFusions, nn.Module):
    """Classes of whole sequences, or a number for each.

    Args:
        transformer: any.
        num_labels: number of classes; 1 for a regression.
        dropout: in the head.
        aux_weight: of the auxiliary loss in the loss.
    """

    def __init__(
        self, transformer: MAHATransformer, num_labels: int = 2, dropout: float = 0.1, *, aux_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.head = ClassificationHead(transformer.d_model, num_labels, dropout)
        self.head.apply(initialise)
        self.aux_weight = aux_weight

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> TaskOutput:
        """Scores of every class.

        Args:
            input_ids: (batch, n) integer.
            attention_mask: (batch, n) bool or 0/1, True where the token is real; None: all are.
            labels: (batch,) integer classes; numbers where `num_labels` is 1; or (batch, num_labels) floating point,
                1 for every class that a row has; see `models.heads.classification_loss`.
        """
        hidden, aux_loss = self.transformer(input_ids, attention_mask)
        logits = self.head(
            hidden, None if attention_mask is None else as_mask("attention_mask", attention_mask, input_ids.shape)
        )
        loss = None if labels is None else classification_loss(logits, labels) + self.aux_weight * aux_loss
        return TaskOutput(loss, logits, aux_loss)


class CausalLanguageModel(HasFusions, nn.Module):
    """Guesses the next token, and so continues a text.

    Args:
        transformer: a causal one.
        tie_weights: whether the scores share the weights of the embedding.
        aux_weight: of the auxiliary loss in the loss.

    Raises:
        ValueError: the transformer is not causal.
    """

    def __init__(self, transformer: MAHATransformer, *, tie_weights: bool = True, aux_weight: float = 0.0) -> None:
        super().__init__()
        _require_causal(transformer, True, "a causal language model")
        self.transformer = transformer
        self.head = _language_head(transformer, tie_weights)
        self.aux_weight = aux_weight

    @property
    def max_len(self) -> int:
        """Largest number of real tokens in a row."""
        return self.transformer.max_len

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> TaskOutput:
        """Scores of the token after each.

        Args:
            input_ids: (batch, n) integer.
            attention_mask: (batch, n) bool or 0/1, True where the token is real; None: all are.
            labels: (batch, n) integer, `input_ids` with -100 where they do not count: the shift is done here.
        """
        hidden, aux_loss = self.transformer(input_ids, attention_mask)
        logits = self.head(hidden)
        loss = None if labels is None else token_loss(logits, labels, shift=True) + self.aux_weight * aux_loss
        return TaskOutput(loss, logits, aux_loss)

    def prefill(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, TransformerState]:
        """Scores (batch, vocab_size) of the token after each row, and the state after it."""
        hidden, state = self.transformer.prefill(input_ids, attention_mask)
        return self.head(_last_real(hidden, attention_mask)), state

    def step(self, token_ids: Tensor, cache: TransformerState) -> tuple[Tensor, TransformerState]:
        """One more token (batch,) for each row: scores (batch, vocab_size) of the one after it, in O(window)."""
        return self.head(self.transformer.step(token_ids, cache)), cache

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Unpack[GenerationOptions]
    ) -> Tensor:
        """Continues every row; see `models.generation.generate` for the options."""
        return generate(self, input_ids, attention_mask, **options)


class EncoderDecoder(HasFusions, nn.Module):
    """From one sequence to another, as in translation.

    Args:
        encoder: a bidirectional transformer.
        decoder: a causal one with `cross_attention`, of the same number of channels.
        tie_weights: whether the scores share the weights of the decoder's embedding.
        aux_weight: of the auxiliary loss in the loss.

    Raises:
        ValueError: the transformers are not such.
    """

    def __init__(
        self, encoder: MAHATransformer, decoder: MAHATransformer, *, tie_weights: bool = True, aux_weight: float = 0.0
    ) -> None:
        super().__init__()
        _require_causal(encoder, False, "an encoder")
        _require_causal(decoder, True, "a decoder")
        if encoder.d_model != decoder.d_model:
            raise ValueError(f"decoder must have the d_model of encoder, {encoder.d_model}, but has {decoder.d_model}.")
        self.encoder = encoder
        self.decoder = decoder
        self.head = _language_head(decoder, tie_weights)
        self.aux_weight = aux_weight

    def forward(
        self,
        input_ids: Tensor,
        decoder_input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> TaskOutput:
        """Scores of the token after each of the decoder's.

        Args:
            input_ids: (batch, m) integer, what is read.
            decoder_input_ids: (batch, n) integer, what was written so far, a start token first.
            attention_mask: (batch, m) bool or 0/1, where `input_ids` are real; None: everywhere.
            decoder_attention_mask: (batch, n), likewise of `decoder_input_ids`.
            labels: (batch, n) integer, the token that follows each of the decoder's; -100 where it does not count.
        """
        memory, encoder_loss = self.encoder(input_ids, attention_mask)
        hidden, decoder_loss = self.decoder(
            decoder_input_ids, decoder_attention_mask, memory=memory, memory_mask=attention_mask
        )
        logits, aux_loss = self.head(hidden), 0.5 * (encoder_loss + decoder_loss)
        loss = None if labels is None else token_loss(logits, labels) + self.aux_weight * aux_loss
        return TaskOutput(loss, logits, aux_loss)

    def generate(
        self,
        input_ids: Tensor,
        decoder_input_ids: Tensor,
        attention_mask: Tensor | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Tensor:
        """Writes on from the decoder's tokens, usually a start token (batch, 1), for what is read.

        See `models.generation.generate` for the options.
        """
        with evaluating(self):
            with torch.no_grad():
                memory, _ = self.encoder(input_ids, attention_mask)
            return generate(_Writing(self, memory, attention_mask), decoder_input_ids, **options)


class _Writing:
    """A decoder with its memory, as `generate` takes it."""

    def __init__(self, model: EncoderDecoder, memory: Tensor, memory_mask: Tensor | None) -> None:
        self.model, self.memory, self.memory_mask = model, memory, memory_mask
        self.max_len = model.decoder.max_len

    def prefill(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, TransformerState]:
        hidden, state = self.model.decoder.prefill(
            input_ids, attention_mask, memory=self.memory, memory_mask=self.memory_mask
        )
        return self.model.head(_last_real(hidden, attention_mask)), state

    def step(self, token_ids: Tensor, cache: TransformerState) -> tuple[Tensor, TransformerState]:
        return self.model.head(self.model.decoder.step(token_ids, cache)), cache


def _last_real(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The hidden state (batch, d_model) of the last real token of each row."""
    if mask is None:
        return hidden[:, -1]
    columns = torch.arange(hidden.shape[1], device=hidden.device)
    last = torch.where(mask.bool(), columns, 0).amax(dim=1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


def _language_head(transformer: MAHATransformer, tie_weights: bool) -> nn.Linear:
    head = nn.Linear(transformer.d_model, transformer.vocab_size, bias=False)
    initialise(head)
    if tie_weights:
        head.weight = transformer.token_emb.weight
    return head


def _require_causal(transformer: MAHATransformer, causal: bool, what: str) -> None:
    if transformer.causal != causal:
        raise ValueError(f"{what} needs a transformer with causal={causal}.")
