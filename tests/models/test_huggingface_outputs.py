"""Hidden states and attentions of the Hugging Face classes, and texts as long as the model."""

import itertools
import warnings

import pytest
import torch
from causality import random_ids

pytest.importorskip("transformers", reason="Hugging Face transformers is not installed: pip install 'maha-opt[hf]'")

from small_models import VOCAB, N, small_batch, small_model

from models import inspect_transformer

CHOICES = {"causal": (True, False), "query_resolution": ("coarse", "fine"), "granularity": ("token", "token_head")}
KINDS = [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]


@pytest.mark.parametrize("task", ["base", "causal", "masked", "classification", "tree", "tree base"])
def test_hidden_states_go_from_the_embeddings_to_what_the_head_reads(task):
    model, inputs = small_model(task), small_batch(task)
    output = model(**inputs, output_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert all(state.shape == (2, N, 16) and state.requires_grad for state in output.hidden_states)
    assert model(**inputs).hidden_states is None
    model.config.output_hidden_states = True
    states = model(**inputs).hidden_states
    assert all(map(torch.equal, states, output.hidden_states))
    if "tree" not in task:
        base = model if task == "base" else model.model
        real = inputs["attention_mask"].bool()
        assert torch.equal(states[0][real], model.get_input_embeddings()(inputs["input_ids"])[real])
        assert torch.equal(states[-1], base(**inputs).last_hidden_state)
        # The states between are those that go in and out of each block.
        block = base.transformer.layers[0]
        torch.testing.assert_close(block(states[0], real)[0][real], states[1][real])


def test_hidden_states_of_a_cached_text_are_those_of_the_whole():
    model, ids = small_model("causal"), random_ids(2, N, VOCAB)
    with torch.no_grad():
        whole = model(ids, output_hidden_states=True).hidden_states
        first = model(ids[:, :7], use_cache=True, output_hidden_states=True)
        rest = model(ids[:, 7:], past_key_values=first.past_key_values, output_hidden_states=True)
    for state, before, after in zip(whole, first.hidden_states, rest.hidden_states, strict=True):
        torch.testing.assert_close(torch.cat([before, after], 1), state, atol=1e-5, rtol=0)  # in other kernels


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_rows_of_attention_are_shares_and_look_where_they_may(options):
    model, inputs = small_model("base", **options), small_batch("base")
    attentions = model(**inputs, output_attentions=True).attentions
    real = inputs["attention_mask"].bool()
    for attention in attentions:
        assert attention.shape == (2, 2, N, N)
        total = real[:, None, :, None].to(attention).expand(2, 2, N, 1)
        torch.testing.assert_close(attention.sum(3, keepdim=True), total)  # the weights are on the simplex
        assert (attention >= 0).all()
        assert not attention.transpose(2, 3)[~real[:, None].expand(2, 2, N)].any()
        if options["causal"]:
            assert not attention.triu(1).any()


def test_attention_of_tokens_is_that_of_cells_by_hand():
    model = small_model("causal", num_scales=2)
    record = inspect_transformer(model.model.transformer, random_ids(1, 6, VOCAB))[0]
    (fine, coarse), weights = record.attention, record.weights.nan_to_num(0)
    expected = torch.zeros(2, 6, 6)
    for t, s in itertools.product(range(6), range(6)):
        expected[:, t, s] = weights[0, t, 0, 0] * fine[0, :, t, s]
        if t > 0:  # the last complete cell of two tokens
            expected[:, t, s] += weights[0, t, 0, 1] * coarse[0, :, (t + 1) // 2 - 1, s // 2] / 2
    torch.testing.assert_close(record.token_attention()[0], expected)


def test_an_encoder_decoder_tells_of_both_and_of_who_reads_what():
    model, inputs = small_model("seq2seq"), small_batch("seq2seq")
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert [len(x) for x in (output.encoder_hidden_states, output.decoder_hidden_states)] == [3, 3]
    assert [len(x) for x in (output.encoder_attentions, output.decoder_attentions)] == [2, 2]
    for crossed in output.cross_attentions:
        assert crossed.shape == (2, 2, 7, N)
        torch.testing.assert_close(crossed.sum(3), torch.ones(2, 2, 7))
        assert not crossed[0, :, :, :4].any()  # padding of what is read
    block = model.decoder.transformer.layers[1].cross_attention
    read = []
    block.register_forward_hook(lambda module, arguments, result: read.append((*arguments, result)))
    model(**inputs)
    _, memory, result = read[0]
    by_hand = (output.cross_attentions[1] @ memory.values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.output(by_hand), result)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("task", ["causal", "seq2seq", "tree"])
def test_generation_returns_hidden_states_and_attentions_of_every_step(task, beams):
    model = small_model(task)
    inputs = {name: value for name, value in small_batch(task).items() if name != "decoder_input_ids"}
    wanted = {"output_hidden_states": True, "output_attentions": task != "tree"}
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "num_beams": beams, "return_dict_in_generate": True}
    plain = model.generate(**inputs, **options, pad_token_id=0)
    output = model.generate(**inputs, **options, **wanted, pad_token_id=0)
    assert torch.equal(output.sequences, plain.sequences)
    prefix = "decoder_" if task == "seq2seq" else ""
    for name in ["hidden_states"] + ["attentions"] * (task != "tree"):
        steps = output[prefix + name]
        assert len(steps) == 3
        assert all(len(step) == (3 if name == "hidden_states" else 2) for step in steps)
    if task == "seq2seq":
        assert output.cross_attentions[2][1].shape == (2 * beams, 2, 3, N)
    if task != "tree":
        with pytest.raises(ValueError, match="output_attentions needs use_cache=False"):
            model.generate(**inputs, **options, **wanted, use_cache=True)
        told = small_model(task, output_attentions=True)  # the same by the configuration
        assert torch.equal(told.generate(**inputs, **options, pad_token_id=0).sequences, plain.sequences)


def test_attentions_that_are_not_to_be_had_are_refused():
    with pytest.raises(ValueError, match="output_attentions is not to be had"):
        small_model("tree")(**small_batch("tree"), output_attentions=True)
    model, ids = small_model("causal"), random_ids(2, N, VOCAB)
    with torch.no_grad():
        cache = model(ids, use_cache=True, output_attentions=True).past_key_values
        with pytest.raises(ValueError, match="output_attentions needs the text itself"):
            model(ids, past_key_values=cache, output_attentions=True)


# --- The end of the model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True}, {"use_cache": False}], ids=str)
@pytest.mark.parametrize("task", ["causal", "seq2seq", "tree"])
def test_a_text_that_comes_to_the_end_of_the_model_is_kept(task, options):
    if task == "tree" and "use_cache" in options:
        options = {}
    model = small_model(task)
    model.generation_config.eos_token_id = None
    inputs = {name: value for name, value in small_batch(task).items() if name != "decoder_input_ids"}
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="the text ends where the model does, which reads 32 tokens"):
        text = model.generate(**inputs, max_new_tokens=50, pad_token_id=0, **options)
    assert text.shape == (2, 33)  # the one after the last token that is read
    if not options:
        shorter = model.generate(**inputs, max_new_tokens=15, pad_token_id=0)
        assert torch.equal(text[:, : shorter.shape[1]], shorter)


def test_padding_does_not_count_and_nothing_is_said_where_the_text_fits():
    model = small_model("causal")
    model.generation_config.eos_token_id = None
    ids = random_ids(2, N, VOCAB)
    mask = (torch.arange(N) >= torch.tensor([[4], [3]])).long()  # 9 tokens at most
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.generate(ids, attention_mask=mask, max_new_tokens=24).shape == (2, N + 24)
    with pytest.warns(UserWarning, match="the text ends where the model does"):
        assert model.generate(ids, attention_mask=mask, max_length=40).shape == (2, N + 24)
    embedded = model.get_input_embeddings()(ids)
    with pytest.warns(UserWarning, match="the text ends where the model does"):
        assert model.generate(inputs_embeds=embedded, max_new_tokens=40).shape == (2, 33 - N)
