"""What is passed to a Hugging Face class is used or refused."""

import copy

import pytest
import torch
from causality import random_ids

pytest.importorskip("transformers", reason="Hugging Face transformers is not installed: pip install 'maha-opt[hf]'")

from small_models import CLASSES, VOCAB, N, small_batch, small_config, small_model
from transformers import AutoModel, AutoModelForCausalLM

tasks = pytest.mark.parametrize("task", CLASSES)
WITH_LABELS = ("causal", "masked", "classification", "seq2seq", "tree")


@tasks
def test_an_unknown_argument_of_forward_is_refused(task):
    with pytest.raises(TypeError, match="unexpected keyword argument 'attention_msk'"):
        small_model(task)(**small_batch(task), attention_msk=torch.ones(2, N))


@tasks
def test_an_unknown_option_is_refused_by_configuration_and_model(task, tmp_path):
    model = small_model(task)
    with pytest.raises(TypeError, match=r"Config has no option 'num_scale'"):
        small_config(task, num_scale=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_scale'"):
        CLASSES[task](small_config(task), num_scale=3)
    model.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"Config has no option 'num_scale'"):
        type(model.config).from_pretrained(tmp_path, num_scale=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_scale'"):
        CLASSES[task].from_pretrained(tmp_path, num_scale=3)


@tasks
def test_a_configuration_stays_as_its_caller_made_it(task):
    config = small_config(task)
    before = copy.deepcopy(vars(config))
    models = [CLASSES[task](config) for _ in range(2)]
    assert vars(config) == before
    models[0].config.use_cache = "changed"
    assert config.use_cache == models[1].config.use_cache == before["use_cache"]
    if hasattr(models[0], "model"):  # within a model there is one configuration
        assert models[0].model.config is models[0].config


def test_two_classes_are_made_from_one_configuration():
    config = small_config()
    assert CLASSES["causal"](config).config.causal
    assert CLASSES["seq2seq"](config).config.is_encoder_decoder
    assert not CLASSES["masked"](config).config.causal


@pytest.mark.parametrize("task", ["causal", "seq2seq"])
@pytest.mark.parametrize("mode", [True, False])
def test_with_a_cache_every_parameter_gets_the_gradient_that_it_gets_without(task, mode):
    gradients = []
    for use_cache in (True, False):
        model = small_model(task, aux_weight=0.1).train(mode)
        output = model(**small_batch(task, labels=True), use_cache=use_cache)
        assert (output.past_key_values is not None) == use_cache
        output.loss.backward()
        gradients.append([weight.grad for weight in model.parameters()])
    assert all(g is not None for g in gradients[0])
    torch.testing.assert_close(*gradients)


def test_the_cache_that_training_returns_continues_the_text():
    model = small_model("causal")
    ids = random_ids(2, N, VOCAB)
    cache = model(ids[:, :8], use_cache=True).past_key_values
    with torch.no_grad():
        torch.testing.assert_close(model(ids[:, 8:], past_key_values=cache).logits, model(ids).logits[:, 8:])
    assert cache.get_seq_length() == N


def test_gradients_that_would_end_at_a_cache_are_refused():
    model = small_model("causal")
    ids = random_ids(2, N, VOCAB)
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values would stop the gradients of the loss"):
        model(ids, labels=ids, past_key_values=cache)
    with pytest.raises(ValueError, match="past_key_values would stop the gradients: train on the whole text"):
        model.train()(ids, past_key_values=cache)
    with torch.no_grad():
        assert model(ids, labels=ids, past_key_values=cache).loss.isfinite()


def test_a_model_that_is_not_causal_has_no_cache():
    with pytest.raises(ValueError, match=r"use_cache=True needs config\.causal=True"):
        small_model("base")(**small_batch("base"), use_cache=True)
    with pytest.raises(ValueError, match="use_cache=True is not to be had here"):
        small_model("tree")(**small_batch("tree"), use_cache=True)


# --- Positions --------------------------------------------------------------------------------------------------------


def test_positions_that_count_real_tokens_change_nothing_and_packed_texts_are_refused():
    model, inputs = small_model("causal"), small_batch("causal")
    counted = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        assert torch.equal(model(**inputs, position_ids=counted).logits, model(**inputs).logits)
        ids = inputs["input_ids"]
        assert torch.equal(model(ids, position_ids=torch.arange(N)[None]).logits, model(ids).logits)
        packed = torch.arange(N)[None] % 6
        with pytest.raises(ValueError, match=r"position_ids must count the real tokens of each row.*packed"):
            model(ids, position_ids=packed)
        with pytest.raises(ValueError, match=r"position_ids must have shape \(2, 12\)"):
            model(ids, position_ids=torch.arange(N))
        cache = model(ids[:, :6], use_cache=True).past_key_values
        with pytest.raises(ValueError, match="position_ids must count"):
            model(ids[:, 6:], past_key_values=cache, position_ids=torch.arange(6)[None])
        rest = model(ids[:, 6:], past_key_values=cache, position_ids=torch.arange(6, N)[None])
        torch.testing.assert_close(rest.logits, model(ids).logits[:, 6:])


def test_masks_that_do_not_fit_are_refused():
    model = small_model("causal")
    ids = random_ids(2, N, VOCAB)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="attention_mask must have shape"):
            model(ids[:, :2], past_key_values=cache, attention_mask=torch.ones(2, 5, dtype=torch.long))
        with pytest.raises(ValueError, match="memory_mask is given without a memory"):
            model(ids, encoder_attention_mask=torch.ones(2, 5, dtype=torch.long))


def test_what_is_read_is_given_once():
    model, inputs = small_model("seq2seq"), small_batch("seq2seq")
    encoded = model.encoder(inputs["input_ids"], inputs["attention_mask"])
    with pytest.raises(ValueError, match="encoder_outputs stand for what was read"):
        model(**inputs, encoder_outputs=encoded)
    rest = {name: inputs[name] for name in ("attention_mask", "decoder_input_ids")}
    assert torch.equal(model(**rest, encoder_outputs=encoded).logits, model(**inputs).logits)
    embedded = model.get_input_embeddings()(rest.pop("decoder_input_ids"))
    found = model(**rest, encoder_outputs=encoded, decoder_inputs_embeds=embedded)
    assert torch.equal(found.logits, model(**inputs).logits)


# --- Columns of scores ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["causal", "tree"])
def test_scores_of_chosen_columns_are_those_of_all_at_these(task):
    model, inputs = small_model(task), small_batch(task)
    logits = model(**inputs).logits
    assert torch.equal(model(**inputs, logits_to_keep=0).logits, logits)
    for chosen, columns in ((3, slice(-3, None)), (torch.tensor([5, 3, -1]), [5, 3, -1])):
        # A product of fewer rows is summed in another order.
        torch.testing.assert_close(model(**inputs, logits_to_keep=chosen).logits, logits[:, columns])
    with pytest.raises(ValueError, match="logits_to_keep must be 0 where there are labels"):
        model(**inputs, labels=inputs["input_ids"], logits_to_keep=3)
    with pytest.raises(ValueError, match="logits_to_keep must not be negative, but got -1"):
        model(**inputs, logits_to_keep=-1)
    with pytest.raises(ValueError, match=r"logits_to_keep must be a number, or \(columns,\) integer"):
        model(**inputs, logits_to_keep=torch.tensor(3.0))


# --- The tree ---------------------------------------------------------------------------------------------------------


def test_the_auto_classes_find_the_tree_and_share_its_weights(tmp_path):
    model, inputs = small_model("tree"), small_batch("tree")
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path).eval()
    assert type(base) is CLASSES["tree base"]
    hidden = base(**inputs).last_hidden_state
    assert torch.equal(model.decoder.head(hidden), model(**inputs).logits)
    base.save_pretrained(tmp_path / "base")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("task", ["causal", "masked", "seq2seq", "tree"])
def test_vocabularies_grow_and_shrink_and_are_saved(task, tied, tmp_path):
    model = small_model(task, tie_word_embeddings=tied)
    inputs = small_batch(task)
    expected = model(**inputs).logits
    model.resize_token_embeddings(VOCAB + 7)
    logits = model(**inputs).logits
    assert logits.shape[2] == VOCAB + 7
    torch.testing.assert_close(logits[..., :VOCAB], expected)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    model.save_pretrained(tmp_path)
    assert torch.equal(CLASSES[task].from_pretrained(tmp_path).eval()(**inputs).logits, logits)
    model.resize_token_embeddings(VOCAB)
    torch.testing.assert_close(model(**inputs).logits, expected)
