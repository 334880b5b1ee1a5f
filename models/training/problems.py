"""A trained model as a source of problems, to hold solvers against each other where they will be used."""

from __future__ import annotations

from pathlib import Path

import torch

from maha_opt.text import novel
from models.text_problems import TrainedProblems
from models.training.loading import load, transformer_of

__all__ = ["trained_problems"]


def trained_problems(
    run: Path,
    text: bytes | None = None,
    *,
    problems: int = 1024,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> dict[str, TrainedProblems]:
    """What each block of a trained model solves as it reads a text: sources for `maha_opt.validation`.

    Args:
        run: Folder of a run, or any that holds a model of ours with its tokenizer.
        text: UTF-8; None: the novel that comes with the package.
        problems: Number of problems of each block and seed.
        device: Where to compute.
        dtype: Type of the problems; the model computes in float32.

    Returns:
        Sources by name: "block 1", …

    Raises:
        ValueError: There is no such model, it fuses no scales, or the text is empty for its tokenizer.
    """
    model, tokenizer, _ = load(run, str(device))
    transformer = transformer_of(run, model)
    words = (novel() if text is None else text).decode("utf-8")
    tokens = torch.tensor(tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)
    if not len(tokens):
        raise ValueError("The text is empty for the tokenizer of the model.")
    return {
        f"block {block + 1}": TrainedProblems(transformer, tokens, block, problems, dtype)
        for block in range(len(transformer.layers))
    }
