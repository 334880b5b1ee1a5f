"""The configuration of the Hugging Face classes: the arguments of `MAHATransformer`, by their names there."""

from __future__ import annotations

import inspect
import json
from functools import cache
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from maha_opt.solver_choice import as_flag
from models.aggregation import FusionOptions
from models.block import BlockOptions
from models.huggingface.types import check_type

__all__ = ["MAHAConfig", "StrictConfig"]

TRANSFORMER_ARGUMENTS = (
    "vocab_size",
    "max_len",
    "d_model",
    "num_heads",
    "num_layers",
    "d_ff",
    "num_scales",
    "aggregation_strategy",
    "dropout",
    "causal",
    "positions",
    "cross_attention",
)
FUSION_ARGUMENTS = tuple(FusionOptions.__annotations__)
BLOCK_ARGUMENTS = tuple(name for name in BlockOptions.__annotations__ if name not in FUSION_ARGUMENTS)

PLUMBING = {
    "attn_implementation",
    "auto_map",
    "dtype",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "quantization_config",
    "torch_dtype",
}
"""What `transformers` itself gives a configuration, or writes to its file, besides the fields."""


@strict
class StrictConfig(PreTrainedConfig):
    """A configuration that refuses what it does not know, which those of `transformers` keep without a word."""

    def __post_init__(self, **kwargs: Any) -> None:
        """Takes the rest of what the constructor was given.

        Raises:
            TypeError: there is no such option, or one cannot be saved.
        """
        if unknown := [name for name in kwargs if not self._is_known(name)]:
            raise TypeError(f"{type(self).__name__} has no option {unknown[0]!r}.")
        for name in ("feasible_options", "solver_options"):
            options = getattr(self, name, None)
            try:
                json.dumps(options)
            except TypeError:
                raise TypeError(f"{name} must hold what JSON can, to be saved, but got {options!r}.") from None
        super().__post_init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *arguments: Any, **kwargs: Any) -> Any:
        """See `transformers.PreTrainedConfig`.

        Raises:
            TypeError: there is no such option.
        """
        place = (pretrained_model_name_or_path, *arguments)
        if kwargs.pop("return_unused_kwargs", False):
            return super().from_pretrained(*place, return_unused_kwargs=True, **kwargs)
        config, unknown = super().from_pretrained(*place, return_unused_kwargs=True, **kwargs)
        if unknown:
            raise TypeError(f"{cls.__name__} has no option {min(unknown)!r}.")
        return config

    @classmethod
    def _is_known(cls, name: str) -> bool:
        return name in PLUMBING or name in cls.attribute_map or name.startswith("_")


@strict
class MAHAConfig(StrictConfig):
    """Everything that makes a MAHA model.

    Attributes:
        vocab_size: This and the following, up to `cross_attention`: see `models.MAHATransformer`.
        compression_ratio: This and the following, up to `norm_first`: see `models.MAHABlock`.
        target: This and the following, up to `on_failure`: see `models.aggregation.FusionOptions`; None: the default.
            A solver object becomes its flag and options.
        classifier_dropout: in the head of a classifier.
        aux_weight: of the auxiliary loss in the loss.
        use_cache: whether `generate` keeps a state over all scales rather than computing everything again.
        pad_token_id: This and the following: as everywhere in `transformers`.

    Raises:
        TypeError: there is no such option.
    """

    model_type = "maha"
    keys_to_ignore_at_inference = ["past_key_values", "aux_loss"]  # noqa: RUF012
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "intermediate_size": "d_ff",
        "max_position_embeddings": "max_len",
    }

    vocab_size: int = 256
    max_len: int = 512
    d_model: int = 768
    num_heads: int = 12
    num_layers: int = 12
    d_ff: int = 3072
    num_scales: int = 4
    aggregation_strategy: str = "convex"
    dropout: float | int = 0.1
    causal: bool = False
    positions: str = "rotary"
    cross_attention: bool = False
    compression_ratio: int = 2
    decomposition: str = "conv"
    decomposition_kernel: int | None = None
    dense: bool = False
    attention: str = "windowed"
    window: int = 128
    coarsest_window: int | None = 256
    query_resolution: str = "coarse"
    projections: str = "scale"
    conv_kernel: int = 3
    dilation: int = 2
    gating: bool = True
    norm_first: bool = True
    target: str | None = None
    granularity: str | None = None
    feasible: str | None = None
    feasible_options: dict[str, Any] | None = None
    prices: str | list[float | int] | None = None
    ridge: float | None = None
    normalise: bool | None = None
    solver: Any = None
    gradient: str | None = None
    solver_options: dict[str, Any] | None = None
    on_failure: str | None = None
    classifier_dropout: float | int = 0.1
    aux_weight: float | int = 0.0
    use_cache: bool = True
    is_encoder_decoder: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Writes a solver object as its flag and its options, and numbers of numpy as python's.

        Raises:
            TypeError: an option is not of its type; or there are options of the solver besides an object.
            ValueError: the class of the object is not registered.
        """
        for name, hint in _types().items():
            check_type(name, getattr(self, name), hint)
        if self.solver is not None or self.solver_options is not None:
            self.solver, self.solver_options = as_flag(self.solver, self.solver_options)
        super().__post_init__(**kwargs)

    def transformer_arguments(self) -> dict[str, Any]:
        """The arguments of `MAHATransformer`."""
        arguments = {name: getattr(self, name) for name in TRANSFORMER_ARGUMENTS + BLOCK_ARGUMENTS}
        chosen = {name: getattr(self, name) for name in FUSION_ARGUMENTS if getattr(self, name) is not None}
        return arguments | chosen


@cache
def _types() -> dict[str, Any]:
    """The types of the options, which `strict` does not look at where annotations are text."""
    hints = inspect.get_annotations(MAHAConfig, eval_str=True)
    return {name: hint for name, hint in hints.items() if name in MAHAConfig.__dataclass_fields__}
