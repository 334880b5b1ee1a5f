"""MAHA as a citizen of Hugging Face transformers."""

import subprocess
import sys

import pytest
import torch
from causality import random_ids

pytest.importorskip("transformers", reason="Hugging Face transformers is not installed: pip install 'maha-opt[hf]'")

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    Trainer,
    TrainingArguments,
)

from models import (
    CausalLanguageModel,
    MAHACache,
    MAHAConfig,
    MAHAForCausalLM,
    MAHAForConditionalGeneration,
    MAHAForMaskedLM,
    MAHAForSequenceClassification,
    MAHAModel,
    MAHATransformer,
)

VOCAB = 23
TASKS = {
    "base": (MAHAModel, AutoModel),
    "causal": (MAHAForCausalLM, AutoModelForCausalLM),
    "masked": (MAHAForMaskedLM, AutoModelForMaskedLM),
    "classification": (MAHAForSequenceClassification, AutoModelForSequenceClassification),
    "seq2seq": (MAHAForConditionalGeneration, AutoModelForSeq2SeqLM),
}
tasks = pytest.mark.parametrize("task", TASKS)


def config(**overrides):
    options = {
        "vocab_size": VOCAB,
        "max_len": 64,
        "d_model": 16,
        "num_heads": 2,
        "num_layers": 2,
        "d_ff": 24,
        "num_scales": 3,
        "window": 9,
        "dropout": 0.0,
        "classifier_dropout": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 2,
    }
    return MAHAConfig(**{**options, **overrides})


def build(task, **overrides):
    torch.manual_seed(0)
    model = TASKS[task][0](config(**overrides)).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    return model


def batch(task, labels=False):
    ids = random_ids(2, 12, VOCAB)
    inputs = {"input_ids": ids, "attention_mask": (torch.arange(12) >= torch.tensor([[4], [0]])).long()}
    if task == "seq2seq":
        inputs["decoder_input_ids"] = random_ids(2, 7, VOCAB, seed=1)
    if labels:
        inputs["labels"] = {"classification": torch.tensor([0, 1]), "seq2seq": inputs.get("decoder_input_ids")}.get(
            task, ids
        )
    return inputs


@tasks
@pytest.mark.parametrize("strategy", ["convex", "nash"])
def test_saved_and_loaded_models_give_the_same_bits(task, strategy, tmp_path):
    model = build(task, aggregation_strategy=strategy, granularity="token_head", prices="learned")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded = TASKS[task][1].from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    with torch.no_grad():
        assert torch.equal(loaded(**batch(task))[0], model(**batch(task))[0])
    assert AutoConfig.from_pretrained(tmp_path).prices == "learned"


@tasks
def test_gradients_reach_every_parameter(task):
    model = build(task, aux_weight=0.1).train()
    if task == "base":
        model(**batch(task)).last_hidden_state.square().sum().backward()
    else:
        model(**batch(task, labels=True)).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_the_classes_are_the_layers_themselves():
    model = build("causal")
    plain = CausalLanguageModel(MAHATransformer(**model.config.transformer_arguments())).eval()
    plain.transformer.load_state_dict(model.model.transformer.state_dict())
    inputs = batch("causal", labels=True)
    theirs, ours = model(**inputs), plain(inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
    assert torch.equal(theirs.logits, ours.logits)
    assert torch.equal(theirs.loss, ours.loss)


@pytest.mark.parametrize("task", ["causal", "seq2seq"])
@pytest.mark.parametrize(
    "options", [{"do_sample": False}, {"num_beams": 3}, {"do_sample": True, "top_k": 5, "top_p": 0.9}], ids=str
)
def test_generation_with_the_cache_is_generation_without(task, options):
    model = build(task)
    inputs = {name: value for name, value in batch(task).items() if name != "decoder_input_ids"}
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        texts.append(model.generate(**inputs, max_new_tokens=20, use_cache=use_cache, **options))
    assert torch.equal(*texts)
    assert texts[0].shape[1] > 2


def test_a_cached_prefix_is_continued_by_several_tokens_at_once():
    model = build("causal")
    inputs = batch("causal")
    with torch.no_grad():
        expected = model(**inputs).logits
        first = model(inputs["input_ids"][:, :6], inputs["attention_mask"][:, :6], use_cache=True)
        assert isinstance(first.past_key_values, MAHACache)
        assert first.past_key_values.get_seq_length() == 6
        for mask in (inputs["attention_mask"], inputs["attention_mask"][:, 6:]):
            cache = MAHACache(2, 64)
            cache.set_transformer_state(first.past_key_values.transformer_state.map(torch.clone), 6)
            rest = model(inputs["input_ids"][:, 6:], mask, past_key_values=cache)
            torch.testing.assert_close(rest.logits, expected[:, 6:], atol=1e-5, rtol=0)
    assert cache.get_seq_length() == 12


def test_the_cache_does_what_its_framework_asks():
    model = build("causal")
    cache = model(**batch("causal"), use_cache=True).past_key_values
    before = cache.transformer_state.map(torch.clone)
    cache.reorder_cache(torch.tensor([1, 1]))
    assert torch.equal(cache.transformer_state.lengths, before.lengths[[1, 1]])
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3]))
    assert torch.equal(cache.transformer_state.blocks[1].attention.keys[0], before.blocks[1].attention.keys[0][[1, 1]])
    assert cache.get_max_length() == 64
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(3)
    cache.reset()
    assert cache.transformer_state is None
    assert cache.get_seq_length() == 0
    with pytest.raises(TypeError, match="past_key_values must be a MAHACache, but got DynamicCache"):
        model(**batch("causal"), past_key_values=DynamicCache())


def test_the_base_of_a_trained_model_serves_another_task(tmp_path):
    masked = build("masked")
    masked.save_pretrained(tmp_path)
    classifier = MAHAForSequenceClassification.from_pretrained(tmp_path, num_labels=3).eval()
    for name, weight in masked.model.state_dict().items():
        assert torch.equal(classifier.model.state_dict()[name], weight), name
    assert classifier(**batch("classification")).logits.shape == (2, 3)
    assert all(weight.isfinite().all() for weight in classifier.parameters())


def test_the_solver_is_swapped_by_the_configuration_and_on_a_loaded_model(tmp_path):
    model = build("causal")
    model.save_pretrained(tmp_path)
    swapped = MAHAForCausalLM.from_pretrained(tmp_path, solver="cvxpylayers").eval()
    assert swapped.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        expected = model(**batch("causal")).logits
        torch.testing.assert_close(swapped(**batch("causal")).logits, expected, atol=1e-4, rtol=0)
        model.model.transformer.set_solver("projected_gradient", unroll=300)
        torch.testing.assert_close(model(**batch("causal")).logits, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("task", ["causal", "masked"])
def test_vocabularies_can_grow(task):
    model = build(task)
    model.resize_token_embeddings(VOCAB + 7)
    assert model(**batch(task)).logits.shape == (2, 12, VOCAB + 7)


def test_labels_that_do_not_count_change_nothing():
    model = build("causal")
    inputs = batch("causal")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    loss = model(**inputs, labels=labels).loss
    other = dict(inputs, input_ids=torch.where(inputs["attention_mask"] == 0, 5, inputs["input_ids"]))
    torch.testing.assert_close(model(**other, labels=labels).loss, loss)
    assert model(**inputs, labels=torch.full_like(labels, -100)).loss == 0


def test_a_masked_language_model_must_not_be_causal():
    with pytest.raises(ValueError, match=r"needs config.causal=False"):
        MAHAForMaskedLM(config(causal=True))


def test_the_trainer_trains_with_gradient_checkpointing_and_mixed_precision(tmp_path):
    model = build("causal")
    rows = [{"input_ids": row, "labels": row} for row in (torch.arange(20) % 5 + 3).expand(32, 20)]
    arguments = TrainingArguments(
        tmp_path,
        max_steps=30,
        learning_rate=1e-2,
        per_device_train_batch_size=8,
        gradient_checkpointing=True,
        bf16=True,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=10,
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    assert model.model.transformer.gradient_checkpointing
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.3 * losses[0]  # a text of period five is learned at once


def test_models_imports_without_transformers_and_says_what_is_missing():
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from importlib import util; find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'transformers' else find(name, *rest)\n"
        "del sys.modules['transformers']\n"
        "import models\n"
        "assert 'transformers' not in sys.modules\n"
        "try:\n    models.MAHAConfig\nexcept ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "MAHAConfig needs Hugging Face transformers: pip install 'maha-opt[hf]'" in done.stdout


def test_importing_the_package_after_transformers_registers_it(tmp_path):
    build("causal").save_pretrained(tmp_path)
    code = (
        "from transformers import AutoModelForCausalLM\nimport models\n"
        f"print(type(AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "MAHAForCausalLM"
