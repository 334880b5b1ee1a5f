"""Checkpoints of a run: the newest that is whole, and what to say when one cannot be written."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import Trainer

__all__ = [
    "CheckpointError",
    "SafeTrainer",
    "checkpoints",
    "has_weights",
    "is_whole",
    "last_whole_checkpoint",
    "step_of",
]

PREFIX = "checkpoint-"


class CheckpointError(OSError):
    """A checkpoint could not be written, or there is none to go on from; the message says what is left."""


class SafeTrainer(Trainer):
    """The trainer of `transformers`, which here clears away a checkpoint that it could not finish.

    Labels are smoothed by the model, which knows where they stand, and only where it learns: an evaluated loss is that
    of the labels themselves, as `bits per byte` has to be.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.label_smoother = None

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """The loss of the model, of smoothed labels while it learns."""
        if self.args.label_smoothing_factor and model.training:
            inputs = {**inputs, "smoothing": self.args.label_smoothing_factor}
        return super().compute_loss(model, inputs, *arguments, **options)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder, name = Path(self.args.output_dir or "."), f"{PREFIX}{self.state.global_step}"
        try:
            with _in_words(folder, name):
                super()._save_checkpoint(model, trial)
        except CheckpointError:
            shutil.rmtree(folder / name, ignore_errors=True)
            raise

    def save_to(self, folder: Path) -> None:
        """Saves the model that the run ends with.

        Raises:
            CheckpointError: It cannot be written.
        """
        with _in_words(folder, "The model"):
            self.save_model(str(folder))


@contextmanager
def _in_words(folder: Path, name: str) -> Iterator[None]:
    """Says what is left of a run where something could not be written to its folder."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save and safetensors have errors of their own
        others = [path for path in checkpoints(folder) if path.name != name and is_whole(path)]
        left = f"the last whole one is {others[-1].name}" if others else "there is no whole one before it"
        raise CheckpointError(
            f"{name} could not be written to {folder} ({' '.join(str(error).split())}); {left}. Make room and go on "
            "with --resume."
        ) from error


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, whole or not, the oldest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step of the optimizer after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run that can be gone on from; None if there is none.

    One that was being written when the run was killed lacks its last file, or has one that breaks off.
    """
    return next((path for path in reversed(checkpoints(folder)) if is_whole(path)), None)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint can be gone on from."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))  # it is written last
        for name in ("optimizer.pt", "scheduler.pt"):  # archives, whose directory stands at their end
            with zipfile.ZipFile(checkpoint / name) as archive:
                archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return has_weights(checkpoint)


def has_weights(checkpoint: Path) -> bool:
    """Whether a folder holds a model, written to its end."""
    files = list(checkpoint.glob("*.safetensors"))
    try:
        for weights in files:
            with safe_open(weights, framework="pt") as file:  # checks the header against the size
                file.keys()
    except (OSError, SafetensorError):
        return False
    return bool(files) and (checkpoint / "config.json").is_file()
