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
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from models.huggingface.base import MAHAModel, MAHAPreTrainedModel
from models.huggingface.cache import MAHACache, MAHACacheLayer
from models.huggingface.conditional import MAHAForConditionalGeneration
from models.huggingface.configuration import MAHAConfig
from models.huggingface.modeling import MAHAForCausalLM, MAHAForMaskedLM, MAHAForSequenceClassification
from models.huggingface.tree import (
    HierarchicalDecoderConfig,
    HierarchicalDecoderForCausalLM,
    HierarchicalDecoderModel,
)

__all__ = [
    "HierarchicalDecoderConfig",
    "HierarchicalDecoderForCausalLM",
    "HierarchicalDecoderModel",
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
AutoModel.register(HierarchicalDecoderConfig, HierarchicalDecoderModel)
AutoModelForCausalLM.register(HierarchicalDecoderConfig, HierarchicalDecoderForCausalLM)

# By these names `Trainer` knows, where it smoothes labels itself, that they are those of the next column.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[MAHAConfig.model_type] = MAHAForCausalLM.__name__
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[HierarchicalDecoderConfig.model_type] = HierarchicalDecoderForCausalLM.__name__
