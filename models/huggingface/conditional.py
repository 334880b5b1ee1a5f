"""From one sequence to another, as a class of `transformers`."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.utils.generic import ModelOutput

from models.heads import counted_labels, token_loss
from models.huggingface.base import MAHAModel, MAHAPreTrainedModel, changed
from models.huggingface.cache import MAHACache
from models.huggingface.configuration import MAHAConfig
from models.huggingface.losses import finished, share_of
from models.huggingface.modeling import check_past
from models.huggingface.outputs import MAHASequenceToSequenceOutput
from models.huggingface.writing import WithinLength

__all__ = ["MAHAForConditionalGeneration"]


class MAHAForConditionalGeneration(MAHAPreTrainedModel, WithinLength, GenerationMixin):
    """From one sequence to another; encoder and decoder share the vocabulary and its embedding."""

    base_model_prefix = ""
    _tied_weights_keys = {  # noqa: RUF012
        "lm_head.weight": "encoder.transformer.token_emb.weight",
        "decoder.transformer.token_emb.weight": "encoder.transformer.token_emb.weight",
    }

    def __init__(self, config: MAHAConfig) -> None:
        super().__init__(changed(config, is_encoder_decoder=True))
        one = changed(cast(MAHAConfig, self.config), is_encoder_decoder=False)
        self.encoder = MAHAModel(changed(one, causal=False, cross_attention=False))
        self.decoder = MAHAModel(changed(one, causal=True, cross_attention=True))
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the tokens."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding of the tokens; that of the decoder too, where they are tied."""
        self.encoder.set_input_embeddings(value)
        if self.config.tie_word_embeddings:
            self.decoder.set_input_embeddings(value)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *arguments: Any, **options: Any) -> Any:
        """See `transformers.PreTrainedModel`; where they are not tied, the decoder's embedding is resized by itself."""
        if not self.config.tie_word_embeddings:
            self.decoder.resize_token_embeddings(new_num_tokens, *arguments, **options)
        embedding = super().resize_token_embeddings(new_num_tokens, *arguments, **options)
        for part in (self.encoder, self.decoder):
            part.config.vocab_size = self.config.vocab_size
        return embedding

    def get_encoder(self, modality: str | None = None) -> MAHAModel:
        """What reads."""
        del modality
        return self.encoder

    def get_decoder(self) -> MAHAModel:
        """What writes."""
        return self.decoder

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """What the decoder reads to write `labels` (batch, n): the start token, then the labels but for the last.

        Raises:
            ValueError: the configuration has no `decoder_start_token_id`, or no `pad_token_id` where labels are -100.
        """
        start = self.config.decoder_start_token_id
        if start is None:
            raise ValueError("config.decoder_start_token_id must be set to make decoder_input_ids of labels.")
        shifted = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
        ignored = shifted == -100
        if self.config.pad_token_id is None and bool(ignored.any()):
            raise ValueError("config.pad_token_id must be set where labels hold -100.")
        return shifted if self.config.pad_token_id is None else shifted.masked_fill(ignored, self.config.pad_token_id)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        encoder_outputs: ModelOutput | tuple[Tensor, ...] | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        past_key_values: MAHACache | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        smoothing: float = 0.0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> MAHASequenceToSequenceOutput | tuple[Any, ...]:
        """Scores of the token after each of the decoder's.

        Args:
            input_ids: (batch, m), what is read.
            attention_mask: (batch, m), of these.
            decoder_input_ids: (batch, n), what was written; made of `labels` if omitted.
            decoder_attention_mask: (batch, n), of these.
            labels: (batch, n), what is to be written; -100 where it does not count.
            encoder_outputs: what the encoder made of `input_ids` already, in place of these.
            inputs_embeds: (batch, m, d_model), in place of `input_ids`.
            decoder_inputs_embeds: (batch, n, d_model), in place of `decoder_input_ids`.
            past_key_values: of the decoder, see `MAHAModel`.
            use_cache: See there.
            num_items_in_batch: number of labels of the whole batch, see `MAHAForMaskedLM`.
            smoothing: of labels in the loss, see `models.heads.token_loss`.
            output_hidden_states: whether to return those of all layers of both; see `MAHAModel`.
            output_attentions: likewise, with those of the decoder to what is read.
            return_dict: See there.

        Raises:
            ValueError: there is nothing to write, what is read is given twice, or as `MAHAModel` and
                `models.heads.token_loss`.
            TypeError: likewise.
        """
        check_past(labels, past_key_values)
        wanted = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        if encoder_outputs is not None and not (input_ids is None and inputs_embeds is None):
            raise ValueError("encoder_outputs stand for what was read: input_ids and inputs_embeds must be None.")
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, inputs_embeds, return_dict=True, **wanted)
        assert encoder_outputs is not None
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if labels is None:
                raise ValueError("give decoder_input_ids or decoder_inputs_embeds, or labels to make them of.")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        output = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            decoder_inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            encoder_hidden_states=encoder_outputs[0],
            encoder_attention_mask=attention_mask,
            return_dict=True,
            **wanted,
        )
        logits = self.lm_head(output.last_hidden_state)
        loss, share = None, 1.0
        if labels is not None:
            loss = token_loss(logits, labels, count=num_items_in_batch, smoothing=smoothing)
            share = share_of(counted_labels(labels), num_items_in_batch)
        aux_loss, encoder_loss = output.aux_loss, getattr(encoder_outputs, "aux_loss", None)
        if aux_loss is not None and encoder_loss is not None:
            aux_loss = 0.5 * (aux_loss + encoder_loss)
        result = MAHASequenceToSequenceOutput(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            decoder_hidden_states=output.hidden_states,
            decoder_attentions=output.attentions,
            cross_attentions=output.cross_attentions,
            aux_loss=aux_loss,
            encoder_last_hidden_state=encoder_outputs[0],
            encoder_hidden_states=getattr(encoder_outputs, "hidden_states", None),
            encoder_attentions=getattr(encoder_outputs, "attentions", None),
        )
        return finished(self, result, share, return_dict)
