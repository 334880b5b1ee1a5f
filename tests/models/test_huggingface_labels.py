"""Labels of the Hugging Face classes: what they may be, whose loss it is, and how they are smoothed."""

import pytest
import torch
from causality import random_ids
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, log_softmax, mse_loss

pytest.importorskip("transformers", reason="Hugging Face transformers is not installed: pip install 'maha-opt[hf]'")

from small_models import VOCAB, N, small_batch, small_model
from transformers import Trainer, TrainingArguments

from models.training.checkpoints import SafeTrainer

SINGLE, SEVERAL, NUMBERS = "single_label_classification", "multi_label_classification", "regression"
ROWS = 4


def classifier(scores, problem_type):
    return small_model("classification", num_labels=scores, problem_type=problem_type)


def labels_of(problem_type, scores, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if problem_type == SINGLE:
        return torch.randint(scores, (ROWS,), generator=generator)
    numbers = torch.rand(ROWS, scores, generator=generator)
    return numbers.round() if problem_type == SEVERAL else numbers


ORACLES = {SINGLE: cross_entropy, SEVERAL: binary_cross_entropy_with_logits, NUMBERS: mse_loss}
PROBLEMS = [(SINGLE, 3), (SEVERAL, 1), (SEVERAL, 4), (NUMBERS, 1), (NUMBERS, 2)]


@pytest.mark.parametrize(("problem_type", "scores"), PROBLEMS)
def test_the_loss_is_that_of_the_problem_type(problem_type, scores):
    model, labels = classifier(scores, problem_type), labels_of(problem_type, scores)
    output = model(random_ids(ROWS, N, VOCAB), labels=labels)
    torch.testing.assert_close(output.loss, ORACLES[problem_type](output.logits, labels))
    assert model.config.problem_type == problem_type


@pytest.mark.parametrize(("problem_type", "scores"), [case for case in PROBLEMS if case != (SEVERAL, 1)])
def test_a_problem_type_that_is_not_named_follows_from_the_labels(problem_type, scores):
    model, labels = classifier(scores, None), labels_of(problem_type, scores)
    if (problem_type, scores) == (NUMBERS, 2):
        problem_type = SEVERAL  # as in transformers: several numbers that are not named a regression
    output = model(random_ids(ROWS, N, VOCAB), labels=labels)
    torch.testing.assert_close(output.loss, ORACLES[problem_type](output.logits, labels))
    assert model.config.problem_type is None


@pytest.mark.parametrize("kind", ["column", "half", "integer"])
def test_numbers_and_flags_may_come_in_other_types_and_a_column(kind):
    ids = random_ids(ROWS, N, VOCAB)
    one, several = classifier(1, NUMBERS), classifier(4, SEVERAL)
    numbers, flags = labels_of(NUMBERS, 1), labels_of(SEVERAL, 4)
    if kind == "column":
        assert torch.equal(one(ids, labels=numbers).loss, one(ids, labels=numbers[:, 0]).loss)
        three, classes = classifier(3, SINGLE), labels_of(SINGLE, 3)
        assert torch.equal(three(ids, labels=classes[:, None]).loss, three(ids, labels=classes.int()).loss)
        return
    changed = flags.half() if kind == "half" else flags.long()
    assert torch.equal(several(ids, labels=changed).loss, several(ids, labels=flags).loss)


def test_rows_without_a_class_do_not_count():
    model, ids = classifier(3, SINGLE), random_ids(ROWS, N, VOCAB)
    labels = torch.tensor([0, -100, 2, -100])
    torch.testing.assert_close(model(ids, labels=labels).loss, model(ids[::2], labels=labels[::2]).loss)
    assert model(ids, labels=torch.full((ROWS,), -100)).loss == 0


@pytest.mark.parametrize(
    ("problem_type", "scores", "labels", "error", "message"),
    [
        (SINGLE, 3, torch.zeros(ROWS, 3).long(), ValueError, r"labels must have shape \(4,\) where problem_type is 's"),
        (SINGLE, 3, torch.zeros(ROWS), TypeError, "labels must be integer classes, but got torch.float32"),
        (SEVERAL, 3, torch.zeros(ROWS), ValueError, r"labels must have shape \(4, 3\) where problem_type is 'multi"),
        (SEVERAL, 3, torch.zeros(ROWS, 2), ValueError, r"labels must have shape \(4, 3\)"),
        (NUMBERS, 2, torch.zeros(ROWS), ValueError, r"labels must have shape \(4, 2\) where problem_type is 'regre"),
        (NUMBERS, 1, torch.zeros(ROWS, 2), ValueError, r"labels must have shape \(4, 1\)"),
        (NUMBERS, 1, torch.zeros(1, ROWS), ValueError, r"labels must have shape \(4, 1\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(problem_type, scores, labels, error, message):
    with pytest.raises(error, match=message):
        classifier(scores, problem_type)(random_ids(ROWS, N, VOCAB), labels=labels)


@pytest.mark.parametrize("task", ["causal", "masked", "tree", "seq2seq"])
def test_labels_of_tokens_that_do_not_fit_are_refused(task):
    model, inputs = small_model(task), small_batch(task)
    n = 7 if task == "seq2seq" else N
    with pytest.raises(ValueError, match=rf"labels must have shape \(2, {n}\), but got \(2, {n + 1}\)"):
        model(**inputs, labels=torch.zeros(2, n + 1).long())
    with pytest.raises(TypeError, match="labels must be integer tokens"):
        model(**inputs, labels=torch.zeros(2, n))


@pytest.mark.parametrize("problem_type", [SINGLE, SEVERAL, NUMBERS])
def test_losses_of_the_parts_of_a_batch_add_up_in_every_problem(problem_type):
    model, ids, labels = classifier(3, problem_type), random_ids(ROWS, N, VOCAB), labels_of(problem_type, 3)
    count = labels.numel()  # as Trainer counts
    parts = sum(model(ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=count).loss for i in range(ROWS))
    torch.testing.assert_close(parts, model(ids, labels=labels).loss)


# --- Smoothing --------------------------------------------------------------------------------------------------------


def smoothed(logits, labels, part):
    """(1 − ε) of the label's loss and ε of the mean loss of all tokens, over the labels that count."""
    losses = -log_softmax(logits, -1)
    real = labels != -100
    own = losses.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return ((1 - part) * own + part * losses.mean(-1))[real].mean()


@pytest.mark.parametrize("task", ["causal", "masked", "seq2seq", "tree", "classification"])
def test_smoothed_labels_share_a_part_of_their_weight_with_all_others(task):
    model, inputs = small_model(task), small_batch(task, labels=True)
    if task != "classification":
        inputs["labels"] = inputs["labels"].clone()
        inputs["labels"][0, :5] = -100
    output = model(**inputs, smoothing=0.2)
    logits, labels = output.logits, inputs["labels"]
    if task in ("causal", "tree"):
        logits, labels = logits[:, :-1], labels[:, 1:]
    torch.testing.assert_close(output.loss, smoothed(logits, labels, 0.2))
    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\), but got 1"):
        model(**inputs, smoothing=1.0)


def test_only_single_classes_can_be_smoothed():
    with pytest.raises(ValueError, match="smoothing needs single classes"):
        classifier(2, NUMBERS)(random_ids(ROWS, N, VOCAB), labels=labels_of(NUMBERS, 2), smoothing=0.1)


def trainer_of(kind, model, folder, rows, **options):
    arguments = TrainingArguments(
        folder, label_smoothing_factor=0.2, per_device_eval_batch_size=4, per_device_train_batch_size=4, use_cpu=True,
        report_to=[], disable_tqdm=True, save_strategy="no", **options,
    )  # fmt: skip
    return kind(model, arguments, train_dataset=rows, eval_dataset=rows)


@pytest.mark.parametrize("task", ["causal", "tree", "masked"])
@pytest.mark.parametrize("kind", [Trainer, SafeTrainer])
def test_trainers_smooth_the_labels_of_the_next_column_where_these_count(task, kind, tmp_path):
    model, ids = small_model(task), random_ids(4, N, VOCAB)
    trainer = trainer_of(kind, model, tmp_path, [{"input_ids": row, "labels": row} for row in ids])
    batch, shift = {"input_ids": ids, "labels": ids}, task != "masked"
    logits, labels = (model(ids).logits[:, :-1], ids[:, 1:]) if shift else (model(ids).logits, ids)
    model.train()
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), smoothed(logits, labels, 0.2))
    part = trainer.compute_loss(model, dict(batch), num_items_in_batch=2 * labels.numel())
    torch.testing.assert_close(part, smoothed(logits, labels, 0.2) / 2)
    # Trainer judges by smoothed labels too; a run of ours, which reports bits per byte, by the labels themselves.
    judged = 0.2 if kind is Trainer else 0.0
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(smoothed(logits, labels, judged).detach()), rel=1e-5)


@pytest.mark.parametrize("kind", [Trainer, SafeTrainer])
def test_the_smoothed_loss_of_a_step_in_two_parts_is_that_of_the_whole(kind, tmp_path):
    ids = random_ids(8, N, VOCAB)
    rows = [{"input_ids": row, "labels": row} for row in ids]
    options = {"max_steps": 1, "gradient_accumulation_steps": 2, "logging_steps": 1}
    trainer = trainer_of(kind, small_model("causal"), tmp_path, rows, **options)
    trainer.train()
    expected = smoothed(small_model("causal")(ids).logits[:, :-1], ids[:, 1:], 0.2)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(expected.detach()), rel=1e-4)  # it is rounded
