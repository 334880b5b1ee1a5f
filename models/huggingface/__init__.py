"""The models as citizens of Hugging Face `transformers`: importing this registers them with the Auto classes.

Needs the extra `hf`. The layers know nothing of it.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from models.huggingface.cache import MAHACache, MAHACacheLayer
from models.huggingface.configuration import MAHAConfig
from models.huggingface.modeling import (
    MAHAForCausalLM,
    MAHAForConditionalGeneration,
    MAHAForMaskedLM,
    MAHAForSequenceClassification,
    MAHAModel,
    MAHAPreTrainedModel,
)
from models.huggingface.tree import HierarchicalDecoderConfig, HierarchicalDecoderForCausalLM

__all__ = [
    "HierarchicalDecoderConfig",
    "HierarchicalDecoderForCausalLM",
    "MAHACache",
    "MAHACacheLayer",
    "MAHAConfig",
    "MAHAForCausalLM",
    "MAHAForConditionalGeneration",
    "MAHAForMaskedLM",
    "MAHAForSequenceClassification",
    "MAHAModel",
    "MAHAPreTrainedModel",
]

AutoConfig.register(MAHAConfig.model_type, MAHAConfig)
AutoModel.register(MAHAConfig, MAHAModel)
AutoModelForCausalLM.register(MAHAConfig, MAHAForCausalLM)
AutoModelForMaskedLM.register(MAHAConfig, MAHAForMaskedLM)
AutoModelForSequenceClassification.register(MAHAConfig, MAHAForSequenceClassification)
AutoModelForSeq2SeqLM.register(MAHAConfig, MAHAForConditionalGeneration)

AutoConfig.register(HierarchicalDecoderConfig.model_type, HierarchicalDecoderConfig)
AutoModelForCausalLM.register(HierarchicalDecoderConfig, HierarchicalDecoderForCausalLM)
