"""`generate` of `transformers` for models that read only so many tokens: it ends there, and keeps what it has."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, StoppingCriteria, StoppingCriteriaList

__all__ = ["WithinLength"]


class _LastColumn(StoppingCriteria):
    """Ends a text of so many columns, and remembers that it did."""

    def __init__(self, columns: int) -> None:
        self.columns, self.reached = columns, False

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        del scores, kwargs
        full = input_ids.shape[1] >= self.columns
        self.reached |= full
        return torch.full((input_ids.shape[0],), full, device=input_ids.device, dtype=torch.bool)


class WithinLength(GenerationMixin):
    """Text generation up to the length of the model.

    A model that reads `config.max_position_embeddings` tokens can write one more; the longest row of a batch ends it.
    """

    config: PreTrainedConfig

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Any = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        """See `transformers.GenerationMixin`; warns where the model's length ends the text before the caller would.

        Attentions (`output_attentions=True`) are made of the text itself, which is then read anew for every token.

        Raises:
            ValueError: attentions are wanted together with `use_cache=True`; or as there.
        """
        prompt = self._prompt_columns(inputs, options)
        last = _LastColumn(self._most_columns(prompt, options))
        chosen = self.generation_config if generation_config is None else generation_config
        attend = options.get("output_attentions")
        attend = chosen.output_attentions if attend is None else attend
        if (attend or self.config.output_attentions) and options.setdefault("use_cache", False):
            raise ValueError("output_attentions needs use_cache=False: a cache does not hold the text.")
        criteria = StoppingCriteriaList([*(stopping_criteria or []), last])
        made = cast(Any, super()).generate(inputs, generation_config, logits_processor, criteria, *arguments, **options)
        new, length = options.get("max_new_tokens", chosen.max_new_tokens), options.get("max_length", chosen.max_length)
        asked = length if new is None else prompt + new
        if last.reached and asked is not None and asked > last.columns:
            warnings.warn(
                f"the text ends where the model does, which reads {self.config.max_position_embeddings} tokens: "
                "max_new_tokens or max_length asks for more.",
                stacklevel=2,
            )
        return made

    def _prompt_columns(self, inputs: Tensor | None, options: dict[str, Any]) -> int:
        """Columns of the text before anything is written, as `generate` counts them: embeddings are not counted."""
        coded = self.config.is_encoder_decoder
        ids = options.get("decoder_input_ids") if coded else options.get("input_ids", inputs)
        if ids is not None:
            return ids.shape[-1]
        return 0 if not coded and options.get("inputs_embeds") is not None else 1  # a start token

    def _most_columns(self, prompt: int, options: dict[str, Any]) -> int:
        """How many columns a text may have: a token more than the model reads, and the padding of the longest row."""
        most = int(self.config.max_position_embeddings) + 1
        coded = self.config.is_encoder_decoder
        mask = options.get("decoder_attention_mask" if coded else "attention_mask")
        if mask is not None:
            most += mask.shape[1] - int(mask.sum(dim=1).max())
        if prompt == 0:
            most -= options["inputs_embeds"].shape[1]
        return most
