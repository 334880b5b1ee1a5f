"""The models that can be trained by name."""

import pytest
import torch
from small import SMALL
from transformers import AutoModelForCausalLM

from models.rotary import rotate
from models.training.presets import MODELS, make_config

CONTEXT, WINDOW = 48, 8


def make(model, **options):
    torch.manual_seed(0)
    config = make_config(
        model, context=CONTEXT, window=WINDOW, levels=2, vocab_size=50, **SMALL | {"dropout": 0.0} | options
    )
    return AutoModelForCausalLM.from_config(config).double().eval()


def reach(model):
    """How many tokens the last one sees, itself included, in a model of one layer."""
    ids = torch.randint(50, (1, CONTEXT), generator=torch.Generator().manual_seed(1))
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    model.model.transformer(embedded)[0][0, -1, 0].backward()  # not their sum, which a norm makes a constant
    seen = embedded.grad[0].abs().sum(-1) > 0
    return CONTEXT - int(seen.int().argmax())


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_causal_and_all_its_parameters_learn(name):
    model = make(name)
    ids = torch.randint(50, (2, CONTEXT), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[:, 20:] = (ids[:, 20:] + 1) % 50
    assert torch.equal(model(ids).logits[:, :20], model(changed).logits[:, :20])
    model(ids, labels=ids).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_plain_transformer_sees_everything_and_one_with_a_window_that():
    assert reach(make("plain")) == CONTEXT
    assert reach(make("window")) == WINDOW
    assert reach(make("window-conv")) == WINDOW + 4  # a convolution of 3 taps, 2 apart
    assert reach(make("maha")) > 3 * WINDOW


def test_a_transformer_of_one_scale_has_neither_a_fusion_nor_gates():
    for name in ("plain", "window"):
        names = " ".join(name for name, _ in make(name).named_parameters())
        assert "fusion" not in names
        assert "gating" not in names
        assert "convolution" not in names
    assert "convolution" in " ".join(name for name, _ in make("window-conv").named_parameters())


def test_a_plain_transformer_is_the_usual_one():
    """Pre-norm, rotary positions, GELU: written out here, with the model's own weights."""
    model = make("plain").model.transformer
    ids = torch.randint(50, (2, 17), generator=torch.Generator().manual_seed(2))
    block, d_head = model.layers[0], 16
    x = model.token_emb(ids)
    h = block.norm1(x)

    def heads(y):
        return y.unflatten(-1, (2, d_head)).transpose(1, 2)

    def turned(y):
        return rotate(y.transpose(1, 2), torch.arange(17), 10000.0).transpose(1, 2)

    attention = block.attention
    q, k, v = heads(attention.queries[0](h)), heads(attention.keys[0](h)), heads(attention.value(h))
    scores = turned(q) @ turned(k).mT / d_head**0.5
    scores = scores.masked_fill(~torch.ones(17, 17, dtype=torch.bool).tril(), -torch.inf)
    x = x + block.output((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    x = x + block.ffn(block.norm2(x))
    torch.testing.assert_close(model(ids)[0], model.final_norm(x), rtol=0, atol=1e-12)  # float64 rounding


def test_the_tree_turns_its_queries_and_keys_unless_told_otherwise():
    assert make("tree").decoder.positions == "rotary"
    assert make("tree", positions="sinusoidal").decoder.positions == "sinusoidal"


def test_unknown_models_and_options_are_named():
    with pytest.raises(ValueError, match=r"model must be one of maha, plain, .*, but got 'bert'"):
        make("bert")
    with pytest.raises(ValueError, match="no option 'colour'"):
        make("maha", colour=1)
