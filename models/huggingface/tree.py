"""The hierarchical decoder as a citizen of `transformers`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from models.heads import token_loss
from models.hierarchical_decoder import HierarchicalDecoder

__all__ = ["HierarchicalDecoderConfig", "HierarchicalDecoderForCausalLM"]


@strict
class HierarchicalDecoderConfig(PreTrainedConfig):
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
class TreeOutput(ModelOutput):
    """Scores (batch, n, vocab_size), and the loss if there were labels."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class HierarchicalDecoderForCausalLM(PreTrainedModel, GenerationMixin):
    """Guesses the next token by tree attention.

    `generate` samples and searches with beams as `transformers` does, reading the whole text again for every token; the
    plain `decoder.generate` has a cache.
    """

    config_class = HierarchicalDecoderConfig
    _tied_weights_keys = {"decoder.head.weight": "decoder.embedding.weight"}  # noqa: RUF012
    _no_split_modules = ["DecoderBlock"]  # noqa: RUF012

    def __init__(self, config: HierarchicalDecoderConfig) -> None:
        super().__init__(config)
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

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> TreeOutput | tuple[Any, ...]:
        """Scores of the token after each.

        Args:
            input_ids: (batch, n) integer.
            attention_mask: (batch, n) 0/1 or bool, where the tokens are real.
            labels: (batch, n), `input_ids` themselves with -100 where they do not count: the shift is done here.
            num_items_in_batch: number of labels of the whole batch, see `MAHAForMaskedLM`.
            return_dict: whether to return an object with names rather than a tuple.
            kwargs: what else `transformers` hands around; not read.
        """
        del kwargs
        logits = self.decoder(input_ids, attention_mask)
        loss = None if labels is None else token_loss(logits, labels, shift=True, count=num_items_in_batch)
        output = TreeOutput(loss=loss, logits=logits)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()
