"""Checkpoints of a run: the newest that is whole, and what to say when one cannot be written."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import Trainer

__all__ = ["CheckpointError", "SafeTrainer", "checkpoints", "last_whole_checkpoint"]

PREFIX = "checkpoint-"


class CheckpointError(OSError):
    """A checkpoint could not be written, or there is none to go on from; the message says what is left."""


class SafeTrainer(Trainer):
    """The trainer of `transformers`, which here clears away a checkpoint that it could not finish."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save and safetensors have their own errors
            folder = Path(self.args.output_dir or ".")
            partial = folder / f"{PREFIX}{self.state.global_step}"
            shutil.rmtree(partial, ignore_errors=True)
            whole = last_whole_checkpoint(folder)
            left = "there is none before it" if whole is None else f"the last whole one is {whole.name}"
            raise CheckpointError(
                f"{partial.name} could not be written to {folder} ({' '.join(str(error).split())}); {left}. "
                "Make room and go on with --resume."
            ) from error


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, whole or not, the oldest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run that can be gone on from; None if there is none.

    One that was being written when the run was killed lacks its last file, or has one that breaks off.
    """
    return next((path for path in reversed(checkpoints(folder)) if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))  # it is written last
        for weights in checkpoint.glob("*.safetensors"):
            with safe_open(weights, framework="pt") as file:  # checks the header against the size
                file.keys()
        for name in ("optimizer.pt", "scheduler.pt"):  # archives, whose directory stands at their end
            with zipfile.ZipFile(checkpoint / name) as archive:
                archive.namelist()
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile):
        return False
    return any(checkpoint.glob("*.safetensors"))
