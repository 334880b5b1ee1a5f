"""A run whose model or loss was made with some option is evaluated, continued and resumed with it."""

import math
from dataclasses import replace

import pytest
import torch
from small import settings

from models.training.evaluation import guess
from models.training.loading import load
from models.training.presets import MODELS, make_config
from models.training.runs import resume, train
from models.training.tasks import make_task
from models.training.tokens import make_tokenizer

SHORT = {"steps": 4, "evaluate_every": 2, "save_every": 2, "log_every": 1, "most_blocks": 4, "num_layers": 1}


def short(**changes):
    options = {name: changes.pop(name) for name in list(changes) if name in ("prices", "feasible", "feasible_options")}
    return settings(**{n: v for n, v in SHORT.items() if n != "num_layers"} | {"options": options} | changes)


def judged(model, wanted):
    """Loss of the labels themselves, of the rows that a run is judged by."""
    blocks = make_task(wanted, make_tokenizer()).validation
    return guess(model, blocks.tokens).loss


@pytest.mark.parametrize(
    "changes",
    [
        {"prices": [0.0, 0.1, 0.2]},
        {"prices": "learned"},
        {"feasible": "budget", "feasible_options": {"total": 2.0, "learn_total": True}},
        {"trainer": {"label_smoothing_factor": 0.3}},
        {"trainer": {"label_smoothing_factor": 0.3}, "model": "tree"},
    ],
    ids=str,
)
def test_a_run_is_evaluated_and_goes_on_with_its_options(changes, tmp_path):
    wanted = short(**changes)
    done = train(wanted, tmp_path / "run", say=lambda line: None)
    loaded = load(tmp_path / "run").model
    for name, weight in done.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    # What is reported is the loss that an evaluation finds, smoothed labels or not.
    assert done.metrics["eval_loss"] == pytest.approx(judged(loaded, wanted), rel=1e-4)
    replace(wanted, steps=6).save(tmp_path / "run")
    again = resume(tmp_path / "run", say=lambda line: None)
    assert again.history[-1]["step"] == 6
    assert again.model.config.to_dict() == loaded.config.to_dict() | {
        "_name_or_path": again.model.config._name_or_path,
        "dtype": again.model.config.to_dict()["dtype"],
    }
    ids = torch.tensor([[70, 71, 72]])
    assert again.model.generate(ids, max_new_tokens=3, min_new_tokens=3).shape == (1, 6)


def test_smoothed_labels_are_learned_from(tmp_path):
    """A model of smoothed labels is less sure: it stays away from the loss that only certainty has."""
    losses = []
    for part in (0.0, 0.5):
        wanted = short(trainer={"label_smoothing_factor": part}, steps=2)
        done = train(wanted, tmp_path / str(part), say=lambda line: None)
        losses.append([entry["loss"] for entry in done.history if "loss" in entry])
    (plain, *_), (smooth, *_) = losses
    # Before it has learned, half of the smoothed loss is the plain one, and half the mean over all tokens, which is
    # above the entropy of equal guesses.
    tokens = len(make_tokenizer())
    assert smooth > 0.5 * plain + 0.5 * math.log(tokens)


@pytest.mark.parametrize("model", MODELS)
def test_an_unknown_option_of_a_model_is_refused(model):
    with pytest.raises(ValueError, match="MAHAConfig has no option 'num_scale'"):
        make_config(model, context=32, num_scale=3)
