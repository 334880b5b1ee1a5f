"""Options that several commands read, and the exit codes that they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from maha_opt.contenders import Contender
from solvers import available_solvers

FAILED = 1
"""The exit code of a run in which a solver did."""

VARIANTS = {"best_response": ("best_response:sweep=gauss_seidel",)}
"""What 'all' means besides every flag."""

Value = TypeVar("Value")


def parse_list(option: str, text: str, kind: Callable[[str], Value]) -> list[Value]:
    """Reads values with commas between them.

    Raises:
        ValueError: If one is not of its kind, or comes twice, or there are none; the message names the option.
    """
    try:
        values = [kind(word.strip()) for word in text.split(",") if word.strip()]
    except ValueError:
        values = []
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{option} must be distinct values with commas between them, but got {text!r}.")
    return values


def parse_solvers(text: str) -> list[Contender]:
    """Reads ``--solvers``.

    Raises:
        ValueError: If one of them is unknown or does not take an option.
    """
    if text.strip() == "all":
        words = [word for flag in available_solvers() for word in (flag, *VARIANTS.get(flag, ()))]
        return [Contender.parse(word) for word in words]
    words = [word for word in text.split(",") if word.strip()]
    if not words:
        raise ValueError("--solvers names no solver; 'all' takes every one.")
    return [Contender.parse(word) for word in words]


def parse_steps(text: str) -> list[int]:
    """Reads ``--unroll``.

    Raises:
        ValueError: If it is not a list of positive integers.
    """
    try:
        steps = sorted({int(word) for word in text.split(",") if word.strip()})
    except ValueError:
        steps = [0]
    if steps and steps[0] < 1:
        raise ValueError(f"--unroll must be positive integers with commas between them, but got {text!r}.")
    return steps


def parse_device(text: str) -> torch.device:
    """Reads ``--device`` and tries it.

    Raises:
        ValueError: If there is no such device here.
    """
    try:
        device = torch.device(text)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0]
        raise ValueError(f"--device {text} cannot be used here: {line}") from None
    return device
