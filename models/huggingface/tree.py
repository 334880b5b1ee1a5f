"""The hierarchical decoder as a citizen of `transformers`."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, cast

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils.generic import ModelOutput

from models.heads import token_loss
from models.hierarchical_decoder import HierarchicalDecoder
from models.huggingface.configuration import StrictConfig
from models.huggingface.modeling import chosen_columns
from models.huggingface.writing import WithinLength

__all__ = ["HierarchicalDecoderConfig", "HierarchicalDecoderForCausalLM", "HierarchicalDecoderModel"]


@strict
class HierarchicalDecoderConfig(StrictConfig):
    """Everything that makes a hierarchical decoder: the arguments of `models.HierarchicalDecoder`, by their names."""

    model_type = "hierarchical_decoder"
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_attention_heads": "heads",
        "num_hidden_layers": "num_layers",
        "intermediate_size": "d_ff",
        "max_position_embeddings": "sequence_length",
    }

    vocab_size: int = 256
    sequence_length: int = 1024
    heads: int = 4
    d_model: int = 128
    levels: int = 3
    drop_out: float | int = 0.1
    num_layers: int = 1
    d_ff: int | None = None
    positions: str = "sinusoidal"
    use_cache: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True


@dataclass
class TreeModelOutput(ModelOutput):
    """Hidden states (batch, n, d_model); of all layers, if wanted, the last as these."""

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class TreeOutput(ModelOutput):
    """Scores (batch, n, vocab_size), the loss if there were labels, and hidden states of all layers if wanted."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class HierarchicalDecoderPreTrainedModel(PreTrainedModel):
    """The decoder, and its first weights. A model has a configuration of its own: that of the caller stays as it is."""

    config_class = HierarchicalDecoderConfig
    accepts_loss_kwargs = True  # `num_items_in_batch`
    _tied_weights_keys = {"decoder.head.weight": "decoder.embedding.weight"}  # noqa: RUF012
    _no_split_modules = ["DecoderBlock"]  # noqa: RUF012

    def __init__(self, config: HierarchicalDecoderConfig) -> None:
        super().__init__(copy.deepcopy(config))
        self.decoder = HierarchicalDecoder(
            config.vocab_size,
            config.sequence_length,
            config.heads,
            config.d_model,
            config.levels,
            config.drop_out,
            num_layers=config.num_layers,
            d_ff=config.d_ff,
            tie_weights=config.tie_word_embeddings,
            positions=cast(Any, config.positions),
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        tied = self.config.tie_word_embeddings
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=1 / math.sqrt(self.config.d_model) if tied else 1.0)
        elif isinstance(module, (nn.Linear, nn.LayerNorm)) and not (tied and module is self.decoder.head):
            module.reset_parameters()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the tokens."""
        return self.decoder.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding of the tokens."""
        self.decoder.embedding = cast(nn.Embedding, value)

    def get_output_embeddings(self) -> nn.Module:
        """The map to scores of tokens."""
        return self.decoder.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the map to scores of tokens."""
        self.decoder.head = cast(nn.Linear, new_embeddings)

    def _read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        output_hidden_states: bool | None,
        output_attentions: bool | None,
        use_cache: bool | None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Hidden states, and those of all layers if wanted; raises where more is wanted than there is."""
        if self.config.output_attentions if output_attentions is None else output_attentions:
            raise ValueError("output_attentions is not to be had: a tree attention is many softmaxes, not one map.")
        if use_cache:
            raise ValueError(
                "use_cache=True is not to be had here: the plain `decoder` has prefill, step and generate."
            )
        states = self.decoder.hidden_states(input_ids, attention_mask)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return states[-1], tuple(states) if wanted else None

    def _finished(self, output: ModelOutput, return_dict: bool | None) -> Any:
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class HierarchicalDecoderModel(HierarchicalDecoderPreTrainedModel):
    """What the decoder makes of every token, before the scores."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> TreeModelOutput | tuple[Any, ...]:
        """Hidden states of the tokens; arguments as those of `HierarchicalDecoderForCausalLM`."""
        hidden, states = self._read(input_ids, attention_mask, output_hidden_states, output_attentions, use_cache)
        return self._finished(TreeModelOutput(hidden, states), return_dict)


class HierarchicalDecoderForCausalLM(HierarchicalDecoderPreTrainedModel, WithinLength, GenerationMixin):
    """Guesses the next token by tree attention.

    `generate` samples and searches with beams as `transformers` does, reading the whole text again for every token; the
    plain `decoder.generate` has a cache.
    """

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        smoothing: float = 0.0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> TreeOutput | tuple[Any, ...]:
        """Scores of the token after each.

        Args:
            input_ids: (batch, n) integer.
            attention_mask: (batch, n) 0/1 or bool, where the tokens are real.
            labels: (batch, n), `input_ids` themselves with -100 where they do not count: the shift is done here.
            logits_to_keep: see `MAHAForCausalLM`.
            num_items_in_batch: number of labels of the whole batch, see `MAHAForMaskedLM`.
            smoothing: of labels in the loss, see `models.heads.token_loss`.
            output_hidden_states: whether to return those of all layers; None: as the configuration says.
            output_attentions: refused: a tree attention is not one map.
            use_cache: refused: there is no cache here.
            return_dict: whether to return an object with names rather than a tuple.

        Raises:
            ValueError: what is refused is wanted, or as `HierarchicalDecoder` and `models.heads.token_loss`.
            TypeError: likewise, or there is no such argument.
        """
        columns = chosen_columns(logits_to_keep, labels)
        hidden, states = self._read(input_ids, attention_mask, output_hidden_states, output_attentions, use_cache)
        logits = self.decoder.head(hidden[:, columns])
        loss = None
        if labels is not None:
            loss = token_loss(logits, labels, shift=True, count=num_items_in_batch, smoothing=smoothing)
        return self._finished(TreeOutput(loss, logits, states), return_dict)
