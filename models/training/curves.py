"""The curve of a run: a line for every step that was logged, written anew whenever there is one more."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from models.training.evaluation import bits_per_byte

__all__ = ["CURVE_FILE", "CurveWriter", "curve"]

CURVE_FILE = "curve.csv"
COLUMNS = {
    "step": "step",
    "epoch": "epoch",
    "loss": "train_loss",
    "grad_norm": "gradient_norm",
    "learning_rate": "learning_rate",
    "eval_loss": "validation_loss",
    "eval_accuracy": "validation_accuracy",
}
"""What `transformers` calls it, and what we do. Losses are in nats per token."""


class CurveWriter(TrainerCallback):
    """Writes `curve.csv` to the folder of a run, and says each line of it to a function.

    It is made of the trainer's own history, which is a part of every checkpoint: after a run is resumed, what came
    after the checkpoint stands there once.

    Args:
        folder: Of the run.
        say: Takes a line of words.
        bytes_per_token: Of the text that is judged by; None: there are no bits per byte.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], bytes_per_token: float | None) -> None:
        self.folder, self.say, self.bytes_per_token = folder, say, bytes_per_token

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Writes the curve down."""
        if not state.is_world_process_zero:
            return
        rows = curve(state.log_history)
        with (self.folder / CURVE_FILE).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(COLUMNS.values()))
            writer.writeheader()
            writer.writerows(rows)
        if logs and ("loss" in logs or "eval_loss" in logs):
            self.say(self._words(state, logs))

    def _words(self, state: TrainerState, logs: dict[str, float]) -> str:
        words = [f"step {state.global_step:>{len(str(state.max_steps))}} of {state.max_steps}"]
        if "loss" in logs:
            words.append(f"loss {logs['loss']:.3f}")
        if "eval_loss" in logs:
            words.append(f"validation loss {logs['eval_loss']:.3f}")
            if self.bytes_per_token is not None:
                words.append(f"{bits_per_byte(logs['eval_loss'], self.bytes_per_token):.3f} bits per byte")
        if "eval_accuracy" in logs:
            words.append(f"accuracy {logs['eval_accuracy']:.3f}")
        return ", ".join(words)


def curve(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The history of a trainer, one row for every step, in the columns of `curve.csv`."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in history:
        known = {ours: entry[theirs] for theirs, ours in COLUMNS.items() if theirs in entry}
        if len(known) > 2:  # more than the step and the epoch
            rows.setdefault(entry["step"], {}).update(known)
    return [rows[step] for step in sorted(rows)]
