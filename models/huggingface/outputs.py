"""What the Hugging Face classes return."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils.generic import ModelOutput

from models.huggingface.cache import MAHACache

__all__ = ["MAHAModelOutput", "MAHASequenceToSequenceOutput", "MAHATaskOutput"]


@dataclass
class MAHAModelOutput(ModelOutput):
    """What a bare transformer makes of (batch, n) tokens.

    Attributes:
        last_hidden_state: (batch, n, d_model).
        past_key_values: the cache, if wanted.
        hidden_states: if wanted, the embeddings and what every block makes of them, the last as above.
        attentions: if wanted, for each block (batch, heads, n, n), see `models.inspection.BlockRecord.token_attention`.
        cross_attentions: with them, in a decoder, for each block (batch, heads, n, m).
        aux_loss: with gradients, the auxiliary loss, a scalar.
    """

    last_hidden_state: Tensor | None = None
    past_key_values: MAHACache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    aux_loss: Tensor | None = None


@dataclass
class MAHATaskOutput(ModelOutput):
    """What the task models return; with gradients, `loss` contains `config.aux_weight` times `aux_loss`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: MAHACache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    aux_loss: Tensor | None = None


@dataclass
class MAHASequenceToSequenceOutput(ModelOutput):
    """The same of an encoder-decoder."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: MAHACache | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    aux_loss: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
