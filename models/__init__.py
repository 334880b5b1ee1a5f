"""Language models over several scales: the MAHA transformer, a decoder whose attention is a tree, and sampling.

The names that need Hugging Face `transformers` are imported when they are first used, which also registers them with
its Auto classes; `import models.huggingface` does so too.
"""

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from models.aggregation import OptimizationDrivenAggregation
from models.attention import MultiscaleAttention
from models.block import MAHABlock
from models.convolution import DilatedConvolution
from models.decomposition import HierarchicalDecomposition, scales_for
from models.gating import CrossScaleGating
from models.generation import generate
from models.hierarchical_decoder import HierarchicalDecoder
from models.hierarchical_decoder import HierarchicalDecoder as Decoder
from models.inspection import BlockRecord, inspect_transformer
from models.tasks import CausalLanguageModel, EncoderDecoder, MaskedLanguageModel, SequenceClassifier
from models.transformer import MAHATransformer

if TYPE_CHECKING:
    from models.huggingface import (
        HierarchicalDecoderConfig,
        HierarchicalDecoderForCausalLM,
        HierarchicalDecoderModel,
        MAHACache,
        MAHAConfig,
        MAHAForCausalLM,
        MAHAForConditionalGeneration,
        MAHAForMaskedLM,
        MAHAForSequenceClassification,
        MAHAModel,
    )

__all__ = [
    "BlockRecord",
    "CausalLanguageModel",
    "CrossScaleGating",
    "Decoder",
    "DilatedConvolution",
    "EncoderDecoder",
    "HierarchicalDecoder",
    "HierarchicalDecoderConfig",
    "HierarchicalDecoderForCausalLM",
    "HierarchicalDecoderModel",
    "HierarchicalDecomposition",
    "MAHABlock",
    "MAHACache",
    "MAHAConfig",
    "MAHAForCausalLM",
    "MAHAForConditionalGeneration",
    "MAHAForMaskedLM",
    "MAHAForSequenceClassification",
    "MAHAModel",
    "MAHATransformer",
    "MaskedLanguageModel",
    "MultiscaleAttention",
    "OptimizationDrivenAggregation",
    "SequenceClassifier",
    "generate",
    "inspect_transformer",
    "scales_for",
]

_HUGGING_FACE = (
    "HierarchicalDecoderConfig",
    "HierarchicalDecoderForCausalLM",
    "HierarchicalDecoderModel",
    "MAHACache",
    "MAHAConfig",
    "MAHAForCausalLM",
    "MAHAForConditionalGeneration",
    "MAHAForMaskedLM",
    "MAHAForSequenceClassification",
    "MAHAModel",
)


def __getattr__(name: str) -> object:
    if name not in _HUGGING_FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if find_spec("transformers") is None:
        raise ImportError(f"{name} needs Hugging Face transformers: pip install 'maha-opt[hf]'.")
    from models import huggingface

    return getattr(huggingface, name)


if "transformers" in sys.modules:  # whoever has it wants its Auto classes to know MAHA
    import models.huggingface  # noqa: F401
