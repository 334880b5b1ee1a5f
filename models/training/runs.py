"""A run of training, from its settings to a model in a folder; `transformers.Trainer` does the work."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PrinterCallback, TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from maha_opt.run_folder import sole_writer
from models.training.arguments import check_arguments
from models.training.checkpoints import CheckpointError, SafeTrainer, checkpoints, last_whole_checkpoint, step_of
from models.training.curves import CurveWriter
from models.training.presets import make_config
from models.training.settings import SETTINGS_FILE, Settings
from models.training.tasks import Task, make_task
from models.training.tokens import make_tokenizer

__all__ = ["Finished", "make_model", "resume", "train"]


@dataclass(frozen=True)
class Finished:
    """A run that has come to its end.

    Attributes:
        folder: Where the model, its tokenizer and the curve are.
        model: It.
        metrics: Of the last evaluation: `eval_loss` in nats per token, and others.
        history: What the trainer logged, see `models.training.curves.curve`.
        parameters: How many the model has.
        bytes_per_token: Of the text that it was judged by; None: it does not guess a text token by token.
        main: Whether this process is the one that speaks for all.
    """

    folder: Path
    model: PreTrainedModel
    metrics: dict[str, float]
    history: list[dict[str, Any]]
    parameters: int
    bytes_per_token: float | None
    main: bool


def train(
    settings: Settings,
    folder: Path,
    *,
    say: Callable[[str], None] = print,
    bar: bool = False,
    task: Task | None = None,
    start: PreTrainedModel | None = None,
    **tokens: Any,
) -> Finished:
    """Trains a model from its first weights, or from those that it has learned elsewhere.

    Args:
        settings: What to do; they are written to the folder.
        folder: New, or empty.
        say: Takes lines of words about how it goes.
        bar: Whether to show a progress bar, rather than say a line at every step that is logged.
        task: Rows of the caller's own, in place of what the settings name; such a run cannot be resumed.
        start: A model to go on from, which learns in place. What the settings and `tokens` say of the model is then for
            the record only. None: a new one.
        tokens: Their `vocab_size` and special tokens, in place of the tokenizer's.

    Raises:
        ValueError, TypeError: A setting is of no use.
        TextError: The data cannot be used.
        CheckpointError: The folder holds a run already, or a checkpoint cannot be written.
        FolderError: Another run is writing to the folder.
    """
    _refuse_taken(folder)
    return _run(settings, folder, None, _held(folder), say, bar, task, start, **tokens)


def resume(folder: Path, *, say: Callable[[str], None] = print, bar: bool = False) -> Finished:
    """Goes on with a run from its last whole checkpoint, as if it had never stopped.

    Args:
        folder: Of the run.
        say: See `train`.
        bar: See `train`.

    Raises:
        FileNotFoundError: It is not the folder of a run.
        CheckpointError: There is no whole checkpoint in it, or one cannot be written.
        FolderError: Another run is writing to the folder.
    """
    settings = Settings.load(folder)
    with _held(folder):
        checkpoint = last_whole_checkpoint(folder)
        if checkpoint is None:
            raise CheckpointError(f"{folder} has no whole checkpoint to go on from: remove it and train anew.")
        say(f"Going on from {checkpoint.name}.")
        return _run(settings, folder, checkpoint, nullcontext(), say, bar)


def _is_first() -> bool:
    """Whether this is the process, of those that a launcher started, that writes to the folder."""
    return os.environ.get("RANK", "0") == "0"


def _held(folder: Path) -> AbstractContextManager[None]:
    return sole_writer(folder) if _is_first() else nullcontext()


def _refuse_taken(folder: Path) -> None:
    if _is_first() and ((folder / SETTINGS_FILE).exists() or checkpoints(folder)):
        raise CheckpointError(f"{folder} holds a run already: go on with --resume, or name another folder.")


def make_model(settings: Settings, task: Task, **tokens: Any) -> PreTrainedModel:
    """The model of a run with its first weights, which its seed sets.

    Args:
        settings: Of the run.
        task: Of the run.
        tokens: Number of tokens and the special ones, by the names that configurations give them.
    """
    set_seed(settings.seed)
    options = {**settings.options, **task.options, **tokens}
    sizes = {"context": settings.context, "window": settings.window, "levels": settings.levels}
    try:
        return task.model_class(make_config(settings.model, **sizes, **options))
    except TypeError as error:
        raise ValueError(f"The model cannot be made: {error}") from None


def _run(
    settings: Settings,
    folder: Path,
    checkpoint: Path | None,
    held: AbstractContextManager[None],
    say: Callable[[str], None],
    bar: bool,
    task: Task | None = None,
    start: PreTrainedModel | None = None,
    **tokens: Any,
) -> Finished:
    tokenizer = make_tokenizer(settings.tokenizer)
    task = make_task(settings, tokenizer) if task is None else task
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    made = {"vocab_size": len(tokenizer), **special, **tokens}
    if checkpoint is not None:  # of whatever options it was made with, whatever they are by default today
        model = task.model_class.from_pretrained(checkpoint)
    else:
        model = make_model(settings, task, **made) if start is None else start
    parameters = model.num_parameters()
    arguments = _arguments(settings, folder, bar)
    with held:
        if checkpoint is None:
            _refuse_taken(folder)  # by a run that has come in between
        callback = CurveWriter(folder, (lambda line: None) if bar else say, task.bytes_per_token)
        trainer = SafeTrainer(
            model,
            arguments,
            data_collator=cast(Any, task.collator),
            train_dataset=task.train,
            eval_dataset=task.validation,
            processing_class=tokenizer,
            compute_metrics=task.metrics,
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)
        main = trainer.is_world_process_zero()
        if main:
            settings.save(folder)
            say(
                f"{type(model).__name__}: {parameters:,} parameters; {len(cast(Any, task.train)):,} rows to learn from."
            )
        if checkpoint is not None and step_of(checkpoint) >= settings.steps:  # the trainer would take one step too many
            trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        else:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        last = trainer.state.log_history[-1] if trainer.state.log_history else {}
        evaluated = next((entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry), {})
        metrics = evaluated if evaluated.get("step") == last.get("step") else trainer.evaluate()
        trainer.save_to(folder)
        return Finished(folder, model, metrics, trainer.state.log_history, parameters, task.bytes_per_token, main)


def _arguments(settings: Settings, folder: Path, bar: bool) -> TrainingArguments:
    ours: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.batch,
        "per_device_eval_batch_size": settings.batch,
        "gradient_accumulation_steps": settings.accumulate,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(settings.warmup * settings.steps),
        "weight_decay": settings.weight_decay,
        "logging_steps": settings.log_every,
        "logging_nan_inf_filter": False,  # a loss that is not a number is to be seen
        "eval_strategy": "steps",
        "eval_steps": settings.evaluate_every,
        "prediction_loss_only": settings.task != "classify",
        "save_steps": settings.save_every,
        "save_total_limit": settings.keep,
        "seed": settings.seed,
        "bf16": settings.precision == "bf16",
        "fp16": settings.precision == "fp16",
        "use_cpu": settings.device == "cpu",
        "dataloader_pin_memory": settings.device != "cpu" and torch.cuda.is_available(),
        "disable_tqdm": not bar,
        "report_to": "tensorboard" if find_spec("tensorboard") else "none",
    }
    check_arguments(settings.trainer)
    return TrainingArguments(**ours | settings.trainer)
