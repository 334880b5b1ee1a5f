"""Models of equal size: as wide in their feed-forward part as gives all the same number of parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.quality.experiments import FUSIONS, SCALES
from models.training.presets import make_config
from models.training.settings import Settings

__all__ = ["as_large_as_convex"]

Maker = Callable[[Any], PreTrainedModel]


def as_large_as_convex(settings: Settings, sizes: dict[str, Any], d_ff: int, make: Maker, vocab_size: int) -> Settings:
    """The settings of a run with the `d_ff` that gives its model as many parameters as the convex MAHA model has.

    Args:
        settings: Of the run.
        sizes: Options of the convex model besides its scales and fusion.
        d_ff: Of the convex model.
        make: Makes a model of a configuration.
        vocab_size: Number of tokens.
    """

    def parameters(model: str, options: dict[str, Any]) -> int:
        config = make_config(
            model,
            context=settings.context,
            window=settings.window,
            levels=settings.levels,
            vocab_size=vocab_size,
            **options,
        )
        with torch.device("meta"):
            return make(config).num_parameters()

    def own(width: int) -> int:
        return parameters(settings.model, settings.options | {"d_ff": width})

    wanted = parameters("maha", sizes | SCALES | FUSIONS["convex"] | {"d_ff": d_ff})
    missing, each = wanted - own(d_ff), own(d_ff + 1) - own(d_ff)
    return replace(settings, options=settings.options | {"d_ff": d_ff + round(missing / each)})
