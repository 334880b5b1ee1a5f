"""Thin classes of `transformers` over the layers of this package, which know nothing of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.utils.generic import ModelOutput

from models.convolution import DilatedConvolution
from models.decomposition import HierarchicalDecomposition
from models.heads import ClassificationHead, MaskedLanguageHead, classification_loss, counted_labels, token_loss
from models.huggingface.cache import MAHACache
from models.huggingface.configuration import MAHAConfig
from models.huggingface.solver import SavesSolver
from models.transformer import MAHATransformer, initialise

__all__ = [
    "MAHAForCausalLM",
    "MAHAForConditionalGeneration",
    "MAHAForMaskedLM",
    "MAHAForSequenceClassification",
    "MAHAModel",
    "MAHAPreTrainedModel",
]


@dataclass
class MAHAModelOutput(ModelOutput):
    """Hidden states (batch, n, d_model), the cache if wanted, and with gradients the auxiliary loss, a scalar."""

    last_hidden_state: Tensor | None = None
    past_key_values: MAHACache | None = None
    aux_loss: Tensor | None = None


@dataclass
class MAHATaskOutput(ModelOutput):
    """What the task models return; with gradients, `loss` contains `config.aux_weight` times `aux_loss`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: MAHACache | None = None
    aux_loss: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None


class MAHAPreTrainedModel(SavesSolver):
    """Loading, saving and first weights."""

    config_class = MAHAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True  # a cache that cannot be cropped: no assisted generation
    _no_split_modules = ["MAHABlock"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        initialise(module)
        if isinstance(module, (DilatedConvolution, HierarchicalDecomposition, nn.LayerNorm)):
            module.reset_parameters()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `MAHAModel` makes its own


class MAHAModel(MAHAPreTrainedModel):
    """The bare transformer: an encoder, or where `config.causal` a decoder with a cache."""

    def __init__(self, config: MAHAConfig) -> None:
        super().__init__(config)
        self.transformer = MAHATransformer(**config.transformer_arguments())
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the tokens."""
        return self.transformer.token_emb

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding of the tokens."""
        self.transformer.token_emb = cast(nn.Embedding, value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: MAHACache | None = None,
        use_cache: bool | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MAHAModelOutput | tuple[Any, ...]:
        """Hidden states of the given tokens.

        Args:
            input_ids: (batch, n) integer.
            attention_mask: (batch, n) 0/1 or bool; with a cache, of all columns so far or of the given ones.
            inputs_embeds: (batch, n, d_model), in place of `input_ids`.
            past_key_values: what `use_cache=True` returned before. Tokens that follow are taken one by one.
            use_cache: whether to return a cache, without gradients; None: only if one was given.
            encoder_hidden_states: (batch, m, d_model), where `config.cross_attention`.
            encoder_attention_mask: (batch, m), of these.
            return_dict: whether to return an object with names rather than a tuple.
            kwargs: what else `transformers` hands around; not read.

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds` are given, or as `MAHATransformer`.
            TypeError: `past_key_values` is not a `MAHACache`.
        """
        del kwargs
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds.")
        x = input_ids if inputs_embeds is None else inputs_embeds
        assert x is not None
        if past_key_values is not None and not isinstance(past_key_values, MAHACache):
            raise TypeError(f"past_key_values must be a MAHACache, but got {type(past_key_values).__name__}.")
        memory = {"memory": encoder_hidden_states, "memory_mask": encoder_attention_mask}
        aux_loss = None
        state = None if past_key_values is None else past_key_values.transformer_state
        if state is not None and past_key_values is not None:
            n = x.shape[1]
            real = None if attention_mask is None else attention_mask[:, -n:]
            steps = [self.transformer.step(x[:, i], state, None if real is None else real[:, i]) for i in range(n)]
            hidden = torch.stack(steps, dim=1)
            past_key_values.set_transformer_state(state, past_key_values.get_seq_length() + n)
        elif past_key_values is not None or (use_cache and self.config.causal):
            hidden, state = self.transformer.prefill(x, attention_mask, **memory)
            cache = (
                MAHACache(self.config.num_layers, self.config.max_len) if past_key_values is None else past_key_values
            )
            past_key_values = cache
            cache.set_transformer_state(state, x.shape[1])
        else:
            hidden, aux_loss = self.transformer(x, attention_mask, **memory)
            # Without gradients it is kept back: an evaluated loss is the task's own, and beams cannot repeat a scalar.
            aux_loss = aux_loss if torch.is_grad_enabled() else None
        output = MAHAModelOutput(last_hidden_state=hidden, past_key_values=past_key_values, aux_loss=aux_loss)
        return output if _wants_names(self, return_dict) else output.to_tuple()


class MAHAForMaskedLM(MAHAPreTrainedModel):
    """Guesses tokens that were hidden, as BERT does."""

    _tied_weights_keys = {"head.decoder.weight": "model.transformer.token_emb.weight"}  # noqa: RUF012

    def __init__(self, config: MAHAConfig) -> None:
        super().__init__(config)
        if config.causal:
            raise ValueError("MAHAForMaskedLM needs config.causal=False: a hidden token is guessed from both sides.")
        self.model = MAHAModel(config)
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
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MAHATaskOutput | tuple[Any, ...]:
        """Scores of every token; `labels` (batch, n) are the hidden tokens, and -100 where nothing was hidden.

        `num_items_in_batch` is the number of labels of the whole batch, where this is a part of one, as `Trainer` has
        it: with it the losses, and gradients, of the parts add up to those of the whole.
        """
        output = self.model(input_ids, attention_mask, inputs_embeds, return_dict=True, **kwargs)
        logits = self.head(output.last_hidden_state)
        loss = None if labels is None else token_loss(logits, labels, count=num_items_in_batch)
        share = _share(labels, num_items_in_batch)
        return _task_output(self, loss, logits, output, return_dict, share)


class MAHAForSequenceClassification(MAHAPreTrainedModel):
    """Classes of whole sequences, or where `config.num_labels` is 1 a number for each."""

    def __init__(self, config: MAHAConfig) -> None:
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.model = MAHAModel(config)
        self.head = ClassificationHead(config.d_model, self.num_labels, config.classifier_dropout)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MAHATaskOutput | tuple[Any, ...]:
        """Scores of every class; `labels` (batch,) are classes, or numbers where there is one score.

        `num_items_in_batch` is the number of rows of the whole batch, see `MAHAForMaskedLM`.
        """
        output = self.model(input_ids, attention_mask, inputs_embeds, return_dict=True, **kwargs)
        logits = self.head(output.last_hidden_state, attention_mask)
        loss = None if labels is None else classification_loss(logits, labels, count=num_items_in_batch)
        share = 1.0 if labels is None or num_items_in_batch is None else len(labels) / num_items_in_batch
        return _task_output(self, loss, logits, output, return_dict, share)


class MAHAForCausalLM(MAHAPreTrainedModel, GenerationMixin):
    """Guesses the next token; causal whatever its configuration said before."""

    _tied_weights_keys = {"lm_head.weight": "model.transformer.token_emb.weight"}  # noqa: RUF012

    def __init__(self, config: MAHAConfig) -> None:
        config.causal = True
        super().__init__(config)
        self.model = MAHAModel(config)
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
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MAHATaskOutput | tuple[Any, ...]:
        """Scores of the token after each.

        Args:
            input_ids: This and others that are not named: see `MAHAModel`.
            attention_mask: See there.
            labels: (batch, n), `input_ids` themselves with -100 where they do not count: the shift is done here.
            inputs_embeds: See there.
            past_key_values: See there.
            use_cache: See there.
            logits_to_keep: scores of the last so many columns only; 0: of all.
            num_items_in_batch: number of labels of the whole batch, see `MAHAForMaskedLM`.
            return_dict: See there.
            kwargs: See there.
        """
        output = self.model(
            input_ids, attention_mask, inputs_embeds, past_key_values, use_cache, return_dict=True, **kwargs
        )
        logits = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        loss = None if labels is None else token_loss(logits, labels, shift=True, count=num_items_in_batch)
        share = _share(labels, num_items_in_batch, shift=True)
        return _task_output(self, loss, logits, output, return_dict, share)


class MAHAForConditionalGeneration(MAHAPreTrainedModel, GenerationMixin):
    """From one sequence to another; encoder and decoder share the vocabulary and its embedding."""

    base_model_prefix = ""
    _tied_weights_keys = {  # noqa: RUF012
        "lm_head.weight": "encoder.transformer.token_emb.weight",
        "decoder.transformer.token_emb.weight": "encoder.transformer.token_emb.weight",
    }

    def __init__(self, config: MAHAConfig) -> None:
        config.is_encoder_decoder = True
        super().__init__(config)
        encoder, decoder = copy.deepcopy(config), copy.deepcopy(config)
        encoder.causal, encoder.cross_attention, encoder.is_encoder_decoder = False, False, False
        decoder.causal, decoder.cross_attention, decoder.is_encoder_decoder = True, True, False
        self.encoder = MAHAModel(encoder)
        self.decoder = MAHAModel(decoder)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the tokens."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding of the tokens, of encoder and decoder alike."""
        self.encoder.set_input_embeddings(value)
        self.decoder.set_input_embeddings(value)

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
        past_key_values: MAHACache | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MAHATaskOutput | tuple[Any, ...]:
        """Scores of the token after each of the decoder's.

        Args:
            input_ids: (batch, m), what is read.
            attention_mask: (batch, m), of these.
            decoder_input_ids: (batch, n), what was written; made of `labels` if omitted.
            decoder_attention_mask: (batch, n), of these.
            labels: (batch, n), what is to be written; -100 where it does not count.
            encoder_outputs: what the encoder made of `input_ids` already.
            inputs_embeds: in place of `input_ids`.
            past_key_values: of the decoder, see `MAHAModel`.
            use_cache: See there.
            num_items_in_batch: number of labels of the whole batch, see `MAHAForMaskedLM`.
            return_dict: See there.
            kwargs: See there.

        Raises:
            ValueError: there is nothing to write, or as `MAHAModel`.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, inputs_embeds, return_dict=True)
        assert encoder_outputs is not None
        memory = encoder_outputs[0]
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("give decoder_input_ids, or labels to make them of.")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        output = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            encoder_hidden_states=memory,
            encoder_attention_mask=attention_mask,
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(output.last_hidden_state)
        loss = None if labels is None else token_loss(logits, labels, count=num_items_in_batch)
        encoder_loss = getattr(encoder_outputs, "aux_loss", None)
        if output.aux_loss is not None and encoder_loss is not None:
            output.aux_loss = 0.5 * (output.aux_loss + encoder_loss)
        share = _share(labels, num_items_in_batch)
        return _task_output(self, loss, logits, output, return_dict, share, memory)


def _share(labels: Tensor | None, num_items_in_batch: Tensor | int | None, *, shift: bool = False) -> Tensor | float:
    """The part of the whole batch's labels that stand here."""
    if labels is None or num_items_in_batch is None:
        return 1.0
    return counted_labels(labels, shift=shift) / num_items_in_batch


def _task_output(
    model: MAHAPreTrainedModel,
    loss: Tensor | None,
    logits: Tensor,
    base: MAHAModelOutput,
    return_dict: bool | None,
    share: Tensor | float,
    memory: Tensor | None = None,
) -> MAHATaskOutput | tuple[Any, ...]:
    if loss is not None and base.aux_loss is not None:
        loss = loss + share * (model.config.aux_weight * base.aux_loss)
    output = MAHATaskOutput(
        loss=loss,
        logits=logits,
        past_key_values=base.past_key_values,
        aux_loss=base.aux_loss,
        encoder_last_hidden_state=memory,
    )
    return output if _wants_names(model, return_dict) else output.to_tuple()


def _wants_names(model: MAHAPreTrainedModel, return_dict: bool | None) -> bool:
    return bool(model.config.return_dict if return_dict is None else return_dict)
