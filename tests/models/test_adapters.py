"""Other libraries look at modules: adapters, quantisation and hooks must see every weight that is used."""

import copy
import warnings

import accelerate
import peft
import pytest
import torch
from small_models import small_batch, small_model
from torch import nn
from transformers import Trainer, TrainingArguments

TASKS = ("causal", "masked", "classification", "seq2seq", "tree")
VARIANTS = (
    {},
    {"causal": True, "query_resolution": "fine", "positions": "learned", "dense": True},
    {"aggregation_strategy": "gate", "projections": "shared", "norm_first": False},
    {"target": "residual", "granularity": "token_head", "decomposition_kernel": 4},
)
CASES = [(task, {}) for task in TASKS] + [("base", options) for options in VARIANTS]


def output_of(model, task):
    return model(**small_batch(task))[0]


def linear_names(model):
    """All linear layers but those whose weight is tied to an embedding, which an adapter would change too."""
    tied = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m.weight not in tied]


@pytest.mark.parametrize(("task", "options"), CASES, ids=str)
def test_adapters_of_all_linear_layers_learn_and_merge_to_the_same_output(task, options):
    model = small_model(task, **options)
    before = output_of(model, task).detach()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=linear_names(model), lora_dropout=0.0))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:  # at zero an adapter does nothing
            nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(1))
    found = output_of(adapted, task)
    assert (found - before).abs().max() > 1e-2
    found.square().sum().backward()
    adapters = {name: weight for name, weight in adapted.named_parameters() if "lora_" in name}
    assert all(weight.grad is not None for weight in adapters.values())
    with torch.no_grad():
        merged = adapted.merge_and_unload()
        # Float32, whose sums are of 16 numbers of size 1.
        torch.testing.assert_close(output_of(merged, task), found.detach(), atol=1e-5, rtol=1e-5)


def test_a_trainer_trains_adapters_and_the_merged_model_writes_as_the_adapted_one(tmp_path):
    model = small_model("causal", tie_word_embeddings=False)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    rows = [{"input_ids": row, "labels": row} for row in (torch.arange(20) % 5 + 3).expand(32, 20)]
    arguments = TrainingArguments(
        tmp_path, max_steps=30, learning_rate=3e-2, per_device_train_batch_size=8, logging_steps=10, use_cpu=True,
        report_to=[], disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(adapted, arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    adapted.eval()
    prompt = (torch.arange(8) % 5 + 3)[None]
    with torch.no_grad():
        before, text = adapted(prompt).logits, adapted.generate(input_ids=prompt, max_new_tokens=8)
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(prompt).logits, before, atol=1e-5, rtol=1e-5)
    assert torch.equal(merged.generate(input_ids=prompt, max_new_tokens=8), text)


@pytest.mark.parametrize(("task", "options"), CASES, ids=str)
def test_the_quantised_model_says_nearly_the_same(task, options):
    model = small_model(task, **options)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch moves it to another package
        quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
        assert not any(type(module) is nn.Linear for module in quantised.modules())
        expected, found = output_of(model, task), output_of(quantised, task)
    assert (found - expected).norm() < 0.3 * expected.norm()  # eight bits in each of some layers


@pytest.mark.parametrize(("task", "options"), CASES, ids=str)
def test_hooks_of_every_module_that_owns_weights_run(task, options):
    model = small_model(task, **options)
    owners = {name: m for name, m in model.named_modules() if list(m.parameters(recurse=False))}
    called = set()
    for name, module in owners.items():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    output_of(model, task)
    assert not owners.keys() - called


@pytest.mark.parametrize("task", ["causal", "seq2seq"])
def test_hooks_of_every_module_that_owns_weights_run_in_a_cached_step(task):
    model = small_model(task, positions="learned", dense=True)
    part = model.decoder if task == "seq2seq" else model
    owners = {name: m for name, m in part.named_modules() if list(m.parameters(recurse=False))}
    calls = dict.fromkeys(owners, 0)
    inputs = {name: value for name, value in small_batch(task).items() if name != "decoder_input_ids"}

    def count(name):
        calls[name] += 1

    for name, module in owners.items():
        module.register_forward_hook(lambda *_, name=name: count(name))
    model.generate(**inputs, max_new_tokens=2, min_new_tokens=2)
    once = {name for name, number in calls.items() if number < 2}
    # What is read is turned into keys and values once for all steps.
    assert once <= {name for name in owners if name.endswith(("cross_attention.key", "cross_attention.value"))}


@pytest.mark.parametrize("task", ["causal", "masked"])
def test_offloaded_weights_are_found_by_the_hooks_that_load_them(task):
    model = small_model(task)
    with torch.no_grad():
        expected = output_of(model, task)
        # Every module that owns weights has them only while it runs.
        offloaded = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        assert all(weight.is_meta for weight in offloaded.parameters())
        torch.testing.assert_close(output_of(offloaded, task), expected)
