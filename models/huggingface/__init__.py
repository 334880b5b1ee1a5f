"""MAHA as a citizen of Hugging Face `transformers`: importing this registers it with the Auto classes.

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

__all__ = [
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
