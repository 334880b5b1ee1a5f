"""A model from the folder of a run, or from any folder that `save_pretrained` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

import models.huggingface as ours
from models.training.checkpoints import checkpoints, has_weights
from models.training.settings import SETTINGS_FILE, Settings
from models.transformer import MAHATransformer

__all__ = ["Loaded", "load", "model_folder", "transformer_of"]


class Loaded(NamedTuple):
    """What a folder holds.

    Attributes:
        model: In evaluation mode and float32.
        tokenizer: Its own.
        settings: Of the run that made it; None if it was made otherwise.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: Settings | None


def load(run: Path, device: str = "cpu") -> Loaded:
    """Loads the model of a run; from its newest checkpoint where the run has not come to its end.

    Args:
        run: The folder.
        device: Where to put the model.

    Raises:
        ValueError: There is no model in it, or not one of ours, or it lacks weights or a tokenizer.
    """
    folder = model_folder(run)
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{folder / 'config.json'} is not JSON.") from None
    (name, *_) = (config.get("architectures") if isinstance(config, dict) else None) or [None]
    if name not in ours.__all__:
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise ValueError(f"{folder} holds a model of type {kind!r}, of the class {name}, which is not one of ours.")
    with _quiet():
        model, info = getattr(ours, name).from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    if info["missing_keys"]:  # they would be drawn at random
        raise ValueError(f"{folder} lacks weights of its model, such as {min(info['missing_keys'])}.")
    settings = Settings.load(run) if (run / SETTINGS_FILE).is_file() else None
    return Loaded(model.to(device).eval(), _tokenizer(folder, run), settings)


def model_folder(run: Path) -> Path:
    """The folder with the model: that of the run itself, or else of its newest checkpoint that has one.

    Raises:
        ValueError: There is neither.
    """
    if not run.is_dir():
        raise ValueError(
            f"There is no folder {run}." if not run.exists() else f"{run} is a file, not a model's folder."
        )
    if (run / "config.json").exists():
        return run
    found = next((path for path in reversed(checkpoints(run)) if has_weights(path)), None)
    if found is None:
        raise ValueError(
            f"{run} is not a model: it has no config.json, as save_pretrained writes it, and no checkpoint-N that has."
        )
    return found


def transformer_of(run: Path, model: PreTrainedModel) -> MAHATransformer:
    """The transformer in a model; of an encoder-decoder it is the encoder, which reads.

    Raises:
        ValueError: It has no scales, or only one.
    """
    transformer = next((module for module in model.modules() if isinstance(module, MAHATransformer)), None)
    if transformer is None:
        raise ValueError(f"{run} holds a model of type {model.config.model_type!r}: only 'maha' has scales to look at.")
    if model.config.num_scales == 1:
        raise ValueError(f"{run} holds a model with one scale only: its weights are 1 everywhere.")
    return transformer


def _tokenizer(folder: Path, run: Path) -> PreTrainedTokenizerBase:
    for place in dict.fromkeys((folder, run)):
        with _quiet(), suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # ways to say there is none
            return AutoTokenizer.from_pretrained(place, local_files_only=True)
    raise ValueError(f"{folder} has no tokenizer: save it there too, with tokenizer.save_pretrained.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and reports of `transformers` within it."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
