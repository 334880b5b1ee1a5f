"""A model from the folder of a run, or from any folder that `save_pretrained` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import models.huggingface as ours
from models.training.checkpoints import last_whole_checkpoint
from models.training.settings import SETTINGS_FILE, Settings

__all__ = ["Loaded", "load"]


class Loaded(NamedTuple):
    """What a folder holds.

    Attributes:
        model: In evaluation mode.
        tokenizer: Its own.
        settings: Of the run that made it; None if it was made otherwise.
        folder: Where the model was found: the folder itself, or its last whole checkpoint.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: Settings | None
    folder: Path


def load(run: Path, device: str = "cpu") -> Loaded:
    """Loads the model of a run; from its last whole checkpoint where the run has not come to its end.

    Args:
        run: The folder.
        device: Where to put the model.

    Raises:
        FileNotFoundError: There is no model in it.
        ValueError: The model is not one of ours.
    """
    found = run if (run / "config.json").is_file() else last_whole_checkpoint(run) if run.is_dir() else None
    if found is None:
        raise FileNotFoundError(f"{run} holds no model: neither a config.json nor a whole checkpoint.")
    names = json.loads((found / "config.json").read_text(encoding="utf-8")).get("architectures") or ["none"]
    kind = getattr(ours, names[0], None)
    if kind is None:
        raise ValueError(f"{found} holds a model of the class {names[0]}, which is not one of ours.")
    settings = Settings.load(run) if (run / SETTINGS_FILE).is_file() else None
    model = kind.from_pretrained(found).to(device).eval()
    return Loaded(model, AutoTokenizer.from_pretrained(found), settings, found)
