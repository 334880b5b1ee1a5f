"""Arguments of the trainer: read as the scripts of `transformers` read theirs, and checked for their types."""

import pytest
from small import settings

from maha_opt.commands.train import refuse_unused
from models.huggingface import MAHAConfig
from models.training.arguments import check_arguments, read_arguments
from models.training.runs import train


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("fp16=yes", True),
        ("bf16=false", False),
        ("max_grad_norm=0.5", 0.5),
        ("learning_rate=1", 1.0),
        ("dataloader_num_workers=2", 2),
        ("save_total_limit=None", None),
        ("report_to=none", "none"),
        ("report_to=tensorboard,wandb", ["tensorboard", "wandb"]),
        ("label_names=a,b", ["a", "b"]),
        ("lr_scheduler_type=linear", "linear"),
        ('lr_scheduler_kwargs={"num_cycles": 2}', {"num_cycles": 2}),
        ("run_name=x=y", "x=y"),
    ],
)
def test_a_value_has_the_type_of_its_argument(word, value):
    (found,) = read_arguments([word], "--trainer").values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("fp16=maybe", "--trainer fp16=maybe: .*got maybe"),
        ("max_grad_norm=high", "max_grad_norm.*invalid float value: 'high'"),
        ("dataloader_num_workers=2.5", "invalid int value: '2.5'"),
        ("lr_scheduler_type=bend", "invalid choice: 'bend'"),
        ("lr_scheduler_kwargs={cycles: 2}", "lr_scheduler_kwargs must be a JSON object"),
        ("lr_scheduler_kwargs=3", "lr_scheduler_kwargs must be of type dict"),
        ("adam_beta1=", "invalid float value: ''"),
        ("fp17=true", "no argument 'fp17'. Is it 'fp16'?"),
        ("no_logging_nan_inf_filter=true", "no argument 'no_logging_nan_inf_filter'"),
        ("fp16", "--trainer must read name=value, but got 'fp16'"),
    ],
)
def test_what_is_no_value_is_refused_in_words(word, words):
    with pytest.raises(ValueError, match=words):
        read_arguments([word], "--trainer")


@pytest.mark.parametrize(
    "wrong", [{"fp16": "maybe"}, {"max_grad_norm": "high"}, {"save_total_limit": 2.5}, {"colour": 1}]
)
def test_settings_are_checked_before_anything_is_written(wrong, tmp_path):
    with pytest.raises(ValueError, match=f"TrainingArguments.*{min(wrong)}"):
        train(settings(trainer=wrong), tmp_path / "run", say=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_what_may_be_given_from_python_passes():
    check_arguments({"learning_rate": 1, "save_total_limit": None, "optim": "sgd", "lr_scheduler_kwargs": {"a": 1}})


@pytest.mark.parametrize(
    "wrong",
    [{"norm_first": "maybe"}, {"d_model": "wide"}, {"window": 2.5}, {"solver_options": 3}, {"prices": [0.1, "x"]}],
)
def test_options_of_a_model_are_checked_for_their_types(wrong):
    with pytest.raises(TypeError, match=f"{min(wrong)} must be of type"):
        MAHAConfig(**wrong)


def test_what_the_model_takes_passes():
    MAHAConfig(prices=[0, 0.1], ridge=1, eos_token_id=[1, 2], solver_options={"unroll": 2}, solver="projected_gradient")


@pytest.mark.parametrize("model", ["plain", "window", "window-conv", "tree"])
def test_a_model_without_scales_refuses_what_only_scales_have_a_use_for(model):
    for name in ("solver", "strategy", "scales", "prices"):
        with pytest.raises(ValueError, match=f"--model {model} has no scales to fuse, and no use for --{name}"):
            refuse_unused(model, ["context", name], {})
    with pytest.raises(ValueError, match=f"--model {model} has no use for --option ridge"):
        refuse_unused(model, [], {"ridge": 0.1})
    refuse_unused(model, ["context", "window", "levels"], {"positions": "rotary"})
    refuse_unused("maha", ["solver"], {"ridge": 0.1})


def test_the_tree_refuses_options_of_the_other_models():
    with pytest.raises(ValueError, match="--model tree has no use for --option conv_kernel"):
        refuse_unused("tree", [], {"conv_kernel": 3})
