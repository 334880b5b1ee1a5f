"""Every option that a configuration takes is there again after saving and loading, and acts as before."""

import math

import pytest
import torch

pytest.importorskip("transformers", reason="Hugging Face transformers is not installed: pip install 'maha-opt[hf]'")

from small_models import CLASSES, small_batch, small_config, small_model
from transformers import AutoConfig, AutoModel

from maha_opt.aggregation_base import fusions_of
from models import MAHAConfig, MAHAForCausalLM
from models.huggingface.configuration import BLOCK_ARGUMENTS, FUSION_ARGUMENTS, TRANSFORMER_ARGUMENTS

OPTIONS = [
    {"prices": [0.0, 0.1, 0.2]},
    {"prices": [0, 1, 2]},
    {"prices": "learned"},
    {"aggregation_strategy": "nash", "prices": [0.1, 0.0, 0.0], "ridge": 0.5, "normalise": True},
    {"aggregation_strategy": "gate", "solver": "pivot"},
    {"target": "residual", "granularity": "token_head", "normalise": True},
    {"target": "consensus", "granularity": "head", "causal": False},
    {"granularity": "sequence"},
    {"feasible": "capped_simplex", "feasible_options": {"cap": 0.5}},
    {"feasible": "box", "feasible_options": {"lower": -1.0, "upper": math.inf}},
    {"feasible": "budget", "feasible_options": {"total": 2.0}},
    {"feasible": "budget", "feasible_options": {"total": 2.0, "learn_total": True}},
    {"feasible": "sum_to", "feasible_options": {"total": -1.0, "learn_total": True}},
    {"feasible": "nonnegative"},
    {"feasible": "free"},
    {"solver": "projected_gradient", "gradient": "unrolled", "solver_options": {"unroll": 7}, "on_failure": "ignore"},
    {"solver": "pivot", "solver_options": {"tol": 1e-4, "max_iter": 50}, "on_failure": "raise"},
    {"compression_ratio": 3, "window": 17, "num_scales": 2},
    {"decomposition": "pool", "gating": False},
    {"decomposition_kernel": 4, "dense": True},
    {"attention": "full", "positions": "learned", "norm_first": False},
    {"coarsest_window": None, "query_resolution": "fine", "projections": "shared"},
    {"conv_kernel": 0, "positions": "none"},
    {"conv_kernel": 5, "dilation": 3, "causal": True},
    {"dropout": 0.3, "classifier_dropout": 0.2, "aux_weight": 0.5, "tie_word_embeddings": False, "use_cache": False},
    {"num_heads": 4, "num_layers": 1, "d_ff": 8, "d_model": 8, "max_len": 20, "vocab_size": 40},
    {"num_labels": 5, "problem_type": "multi_label_classification"},
]  # fmt: skip


def test_the_table_holds_every_option():
    written = {name for options in OPTIONS for name in options} | {"cross_attention"}  # of encoder-decoders, below
    assert written >= {*TRANSFORMER_ARGUMENTS, *BLOCK_ARGUMENTS, *FUSION_ARGUMENTS}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_option_is_there_again_and_acts_as_before(options, tmp_path):
    model, inputs = small_model("base", **options), small_batch("base")
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for name, value in options.items():
        assert getattr(loaded.config, name) == value, name
    again = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert again == model.config.to_dict() | {"dtype": "float32", "_name_or_path": again["_name_or_path"]}
    assert repr(loaded.transformer) == repr(model.transformer)
    for fusion, before in zip(fusions_of(loaded), fusions_of(model), strict=True):
        for name in ("solver", "gradient", "solver_options", "on_failure", "ridge", "normalise"):
            assert getattr(fusion, name) == getattr(before, name), name
    assert loaded.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs)[0], model(**inputs)[0])


@pytest.mark.parametrize("task", CLASSES)
def test_every_class_loads_what_it_saved(task, tmp_path):
    options = {} if "tree" in task else {"prices": [0.0, 0.1, 0.2]}
    model = small_model(task, **options)
    model.save_pretrained(tmp_path)
    loaded, info = CLASSES[task].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(**small_batch(task))[0], model(**small_batch(task))[0])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_model_of_every_option_is_made_on_the_meta_device(options):
    with torch.device("meta"):
        model = CLASSES["base"](small_config("base", **options))
    assert all(x.is_meta for x in (*model.parameters(), *model.buffers()))
    assert "MAHATransformer" in repr(model)


@pytest.mark.parametrize(
    "options",
    [
        {"prices": [0.0, 0.1, 0.2]},
        {"prices": "learned"},
        {"aggregation_strategy": "nash"},
        {"feasible": "budget", "feasible_options": {"total": 2.0, "learn_total": True}},
        {"feasible": "sum_to", "feasible_options": {"total": 2.0, "learn_total": True}},
        {"target": "residual"},
        {"num_scales": 4, "window": 15, "dense": True},
        {"num_scales": 4, "window": 15},
        {"positions": "learned"},
    ],
    ids=str,
)
def test_what_a_checkpoint_lacks_starts_where_a_new_model_does(options, tmp_path):
    shared = {"dense": True} if options.get("dense") else {}
    old = small_model("causal", **shared)
    with torch.no_grad():
        for weight in old.parameters():
            weight.fill_(0.5)
    old.save_pretrained(tmp_path)
    loaded = MAHAForCausalLM.from_pretrained(tmp_path, **options)
    fresh, saved = CLASSES["causal"](small_config(**shared | options)), old.state_dict()
    for name, value in loaded.state_dict().items():
        if name in saved and saved[name].shape == value.shape:
            assert torch.equal(value, saved[name]), name
        elif any(word in name for word in ("prices", "coupling", "total", "weights", "norm", "target", "bias")):
            assert torch.equal(value, fresh.state_dict()[name]), name  # not drawn
        else:
            assert value.std() == pytest.approx(float(fresh.state_dict()[name].std()), rel=0.3), name


def test_options_that_cannot_be_saved_are_refused_at_once():
    with pytest.raises(TypeError, match="feasible_options must hold what JSON can"):
        small_config(feasible="box", feasible_options={"lower": torch.zeros(3)})
    with pytest.raises(TypeError, match="solver_options must hold what JSON can"):
        MAHAConfig(solver_options={"start": print})
