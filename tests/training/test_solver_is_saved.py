"""The solver that was chosen is in the configuration that is saved, and in the folder of a run."""

import json

import numpy as np
import pytest
import torch
from small import SMALL, settings

from maha_opt.aggregation_base import fusions_of
from models.huggingface import (
    MAHAConfig,
    MAHAForCausalLM,
    MAHAForConditionalGeneration,
    MAHAForMaskedLM,
    MAHAForSequenceClassification,
    MAHAModel,
)
from models.training.loading import load
from models.training.runs import resume, train
from models.training.settings import Settings
from solvers.pivot import Pivot
from solvers.projected_gradient import ProjectedGradient

TINY = {**SMALL, "vocab_size": 32, "max_len": 16, "window": 4}
CLASSES = (
    MAHAModel,
    MAHAForCausalLM,
    MAHAForMaskedLM,
    MAHAForSequenceClassification,
    MAHAForConditionalGeneration,
)


def choices(model):
    return [fusion.choice for fusion in fusions_of(model)]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("strategy", ["convex", "nash", "gate"])
def test_a_model_is_loaded_with_the_solver_that_it_was_saved_with(cls, strategy, tmp_path):
    model = cls(MAHAConfig(aggregation_strategy=strategy, **TINY)).eval()
    model.save_pretrained(tmp_path / "first")
    assert choices(cls.from_pretrained(tmp_path / "first")) == choices(model)
    model.set_solver("projected_gradient", "unrolled", unroll=np.int64(3), on_failure="ignore", tol=torch.tensor(1e-3))
    before = set(model.state_dict())
    model.save_pretrained(tmp_path / "second")
    loaded = cls.from_pretrained(tmp_path / "second").eval()
    assert choices(loaded) == choices(model)
    assert set(loaded.state_dict()) == before
    written = json.loads((tmp_path / "second" / "config.json").read_text())
    assert written["solver"] == "projected_gradient"
    assert written["solver_options"] == {"unroll": 3, "tol": pytest.approx(1e-3)}
    assert (written["gradient"], written["on_failure"]) == ("unrolled", "ignore")


def test_a_solver_that_was_swapped_on_the_inner_transformer_is_saved_too(tmp_path):
    model = MAHAForCausalLM(MAHAConfig(causal=True, **TINY))
    model.model.transformer.set_solver("best_response", damping=0.25)
    model.save_pretrained(tmp_path)
    assert choices(MAHAForCausalLM.from_pretrained(tmp_path)) == choices(model)


def test_a_configuration_writes_a_solver_object_as_its_flag_and_options(tmp_path):
    config = MAHAConfig(solver=ProjectedGradient(unroll=3), gradient="unrolled", **TINY)
    assert (config.solver, config.solver_options) == ("projected_gradient", {"unroll": 3})
    config.save_pretrained(tmp_path)
    assert MAHAConfig.from_pretrained(tmp_path).solver_options == {"unroll": 3}
    assert MAHAConfig(solver=Pivot(), solver_options={"tol": 1e-3}, **TINY).solver_options == {"tol": 1e-3}


def test_what_a_configuration_cannot_say_is_refused_in_words(tmp_path):
    class MyPivot(Pivot):
        """Nobody registered it."""

    with pytest.raises(ValueError, match="has no flag that a configuration could name"):
        MAHAConfig(solver=MyPivot(), **TINY)
    with pytest.raises(TypeError, match="solver must be a flag"):
        MAHAConfig(solver=3, **TINY)
    with pytest.raises(TypeError, match="options already"):
        MAHAConfig(solver=Pivot(), solver_options={"block_pivots": 2}, **TINY)
    model = MAHAModel(MAHAConfig(**TINY | {"num_layers": 2}))
    model.set_solver(MyPivot())
    with pytest.raises(ValueError, match="has no flag"):
        model.save_pretrained(tmp_path)
    model.set_solver("pivot")
    fusions_of(model)[0].solver = "projected_gradient"
    with pytest.raises(ValueError, match="one solver for all fusions"):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_run_keeps_the_solver_of_the_model_that_it_was_given_and_goes_on_with_it(finished, tmp_path):
    model = load(finished.folder).model
    model.set_solver("projected_gradient", "unrolled", unroll=4)
    brief = settings(steps=5, evaluate_every=5, save_every=5)
    done = train(brief, tmp_path / "run", say=lambda line: None, start=model)
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-5"):
        assert json.loads((folder / "config.json").read_text())["solver_options"] == {"unroll": 4}
    assert choices(load(tmp_path / "run").model) == choices(done.model)
    again = resume(tmp_path / "run", say=lambda line: None)
    assert choices(again.model) == choices(done.model)


def test_settings_write_a_solver_object_as_its_flag_and_refuse_what_cannot_be_written(tmp_path):
    one = settings(options={"solver": ProjectedGradient(unroll=3), "gradient": "unrolled"})
    assert (one.options["solver"], one.options["solver_options"]) == ("projected_gradient", {"unroll": 3})
    numpys = settings(options={"solver": "projected_gradient", "solver_options": {"unroll": np.int64(3)}})
    numpys.save(tmp_path)
    assert Settings.load(tmp_path).options["solver_options"] == {"unroll": 3}
    with pytest.raises(TypeError, match="options and trainer must hold what JSON can"):
        settings(trainer={"max_grad_norm": np.float32(1.0)})
