"""Losses of the Hugging Face classes in the parts of a batch, and the hierarchical decoder there."""

import pytest
import torch
from causality import random_ids

pytest.importorskip("transformers", reason="Hugging Face transformers is not installed: pip install 'maha-opt[hf]'")

from transformers import AutoModelForCausalLM

from models import (
    HierarchicalDecoderConfig,
    HierarchicalDecoderForCausalLM,
    MAHAConfig,
    MAHAForCausalLM,
    MAHAForConditionalGeneration,
    MAHAForMaskedLM,
    MAHAForSequenceClassification,
)

VOCAB, N = 23, 12
SMALL = {"d_model": 16, "num_heads": 2, "num_layers": 1, "d_ff": 16, "max_len": 32, "window": 9, "num_scales": 2}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
KINDS = (MAHAForCausalLM, MAHAForMaskedLM, MAHAForSequenceClassification, MAHAForConditionalGeneration)


def tree(**changes):
    torch.manual_seed(0)
    small = {"sequence_length": 32, "heads": 2, "d_model": 16, "levels": 2, "num_layers": 2, "drop_out": 0.0}
    return (
        HierarchicalDecoderForCausalLM(HierarchicalDecoderConfig(vocab_size=VOCAB, **small | changes)).double().eval()
    )


def make(kind):
    if kind is HierarchicalDecoderForCausalLM:
        return tree()
    torch.manual_seed(0)
    plain = {"dropout": 0.0, "classifier_dropout": 0.0, "aux_weight": 0.3}
    return kind(MAHAConfig(vocab_size=VOCAB, num_labels=3, **SMALL, **SPECIAL, **plain)).double().train()


def labels_of(model):
    if isinstance(model, MAHAForSequenceClassification):
        return torch.tensor([0, 2, 1, 1])
    labels = random_ids(4, N, VOCAB, seed=1)
    labels[0, 3:] = -100  # rows of different length
    labels[2, :5] = -100
    return labels


@pytest.mark.parametrize("kind", [*KINDS, HierarchicalDecoderForCausalLM])
def test_gradients_of_the_parts_of_a_batch_add_up_to_those_of_the_whole(kind):
    model = make(kind)
    ids, labels = random_ids(4, N, VOCAB, seed=2), labels_of(model)
    causal = "CausalLM" in kind.__name__
    count = (labels[:, 1:] if causal else labels).ne(-100).sum()

    def gradients(parts):
        model.zero_grad()
        # The auxiliary loss is a mean over tokens in each part; with rows of one length it adds up as the labels do.
        model.config.aux_weight = 0.3 if kind is MAHAForSequenceClassification else 0.0
        total = 0.0
        for rows in torch.arange(4).split(4 // parts):
            loss = model(ids[rows], labels=labels[rows], num_items_in_batch=count).loss
            loss.backward()
            total += float(loss.detach())
        return total, [weight.grad.clone() for weight in model.parameters()]

    (whole, expected), (sum_of_parts, found) = gradients(1), gradients(4)
    model.zero_grad()
    assert float(model(ids, labels=labels).loss.detach()) == pytest.approx(whole, rel=1e-12)
    assert sum_of_parts == pytest.approx(whole, rel=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)  # float64, summed in another order


def test_the_tree_is_saved_loaded_and_generates_what_the_plain_one_does(tmp_path):
    model = tree()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    ids = random_ids(3, N, VOCAB, seed=3)
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.decoder.head.weight is again.decoder.embedding.weight
    made = again.generate(ids, max_new_tokens=9, do_sample=False, pad_token_id=0)
    assert torch.equal(made, model.decoder.generate(ids, max_new_tokens=9))
    assert again.generate(ids, max_new_tokens=4, num_beams=3, pad_token_id=0).shape == (3, N + 4)


def test_the_first_weights_of_the_tree_are_those_of_the_plain_one():
    for tied in (True, False):
        model = tree(tie_word_embeddings=tied, d_model=64).decoder
        std = 64**-0.5 if tied else 1.0
        assert float(model.embedding.weight.detach().std()) == pytest.approx(std, rel=0.1)  # of 1,472 numbers
        assert (model.head.weight is model.embedding.weight) == tied
