"""What ``maha-opt generate`` does, apart from reading its options."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maha_opt.contenders import Contender
from models.training.evaluation import solved_by, translate
from models.training.loading import load


@dataclass(frozen=True)
class Request:
    """The options of the command, as ``maha-opt generate --help`` describes them."""

    run: Path
    prompt: str | None
    tokens: int
    temperature: float
    top_k: int
    top_p: float
    beams: int
    count: int
    seed: int
    solver: str | None
    device: str


def run(request: Request, console: Console, errors: Console) -> int:
    """Continues a prompt, or translates it, and prints what comes.

    Returns:
        The exit code, 0.

    Raises:
        ValueError, OSError: An option or the model is of no use.
    """
    del errors
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model, tokenizer, _ = load(request.run, request.device)
    if not hasattr(model, "generate"):
        raise ValueError(f"{request.run} holds a {type(model).__name__}, which writes no text.")
    within = contextlib.nullcontext()
    if request.solver is not None:
        contender = Contender.parse(request.solver)
        options: dict[str, Any] = dict(contender.options)
        within = solved_by(model, contender.solver, **options)
    with within:
        texts = _texts(request, model, tokenizer)
    for number, text in enumerate(texts):
        if number:
            console.rule()
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    return 0


def _texts(request: Request, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the model writes."""
    prompt = sys.stdin.read() if request.prompt == "-" else request.prompt
    if model.config.is_encoder_decoder:
        if not prompt:
            raise ValueError("--prompt must say what to translate.")
        return translate(model, tokenizer, [prompt], beams=request.beams, most_tokens=request.tokens)
    ids = tokenizer(prompt or "\n", add_special_tokens=False, return_tensors="pt")["input_ids"]
    longest = int(model.config.max_position_embeddings)
    if ids.shape[1] + request.tokens > longest:
        raise ValueError(
            f"--prompt has {ids.shape[1]} tokens and --tokens asks for {request.tokens} more, but the model reads at "
            f"most {longest}."
        )
    options: dict[str, Any] = {"num_beams": request.beams, "do_sample": request.temperature > 0}
    if request.temperature > 0:
        options |= {"temperature": request.temperature, "top_k": request.top_k, "top_p": request.top_p}
    torch.manual_seed(request.seed)
    made = cast(Any, model).generate(
        ids.repeat(request.count, 1).to(model.device),
        attention_mask=torch.ones_like(ids).repeat(request.count, 1).to(model.device),
        max_new_tokens=request.tokens,
        **options,
    )
    return tokenizer.batch_decode(made, skip_special_tokens=True)
