"""Small Hugging Face models of every task, and inputs for them."""

import torch
from causality import random_ids

from models import (
    HierarchicalDecoderConfig,
    HierarchicalDecoderForCausalLM,
    HierarchicalDecoderModel,
    MAHAConfig,
    MAHAForCausalLM,
    MAHAForConditionalGeneration,
    MAHAForMaskedLM,
    MAHAForSequenceClassification,
    MAHAModel,
)

VOCAB, N = 23, 12
CLASSES = {
    "base": MAHAModel,
    "causal": MAHAForCausalLM,
    "masked": MAHAForMaskedLM,
    "classification": MAHAForSequenceClassification,
    "seq2seq": MAHAForConditionalGeneration,
    "tree": HierarchicalDecoderForCausalLM,
    "tree base": HierarchicalDecoderModel,
}


def small_config(task="causal", **changes):
    if "tree" in task:
        small = {"sequence_length": 32, "heads": 2, "d_model": 16, "levels": 2, "num_layers": 2, "drop_out": 0.0}
        return HierarchicalDecoderConfig(**{"vocab_size": VOCAB} | small | changes)
    small = {"max_len": 32, "d_model": 16, "num_heads": 2, "num_layers": 2, "d_ff": 24, "num_scales": 3, "window": 9}
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 2}
    plain = {"vocab_size": VOCAB, "dropout": 0.0, "classifier_dropout": 0.0}
    return MAHAConfig(**plain | small | special | changes)


def small_model(task, **changes):
    """A model whose weights of every kind are large enough to matter, in evaluation mode."""
    torch.manual_seed(0)
    model = CLASSES[task](small_config(task, **changes)).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    return model


def small_batch(task, labels=False):
    """Two rows, the first of which is padded on the left."""
    ids = random_ids(2, N, VOCAB)
    inputs = {"input_ids": ids, "attention_mask": (torch.arange(N) >= torch.tensor([[4], [0]])).long()}
    if task == "seq2seq":
        inputs["decoder_input_ids"] = random_ids(2, 7, VOCAB, seed=1)
    if labels:
        own = {"classification": torch.tensor([0, 1]), "seq2seq": inputs.get("decoder_input_ids")}
        inputs["labels"] = own.get(task, ids)
    return inputs
