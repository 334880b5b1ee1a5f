"""Arguments of `transformers.TrainingArguments`, by their names: read from text, and checked for their types."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn, cast

from transformers import HfArgumentParser, TrainingArguments

from models.huggingface.types import check_type, kinds_of

__all__ = ["check_arguments", "read_arguments"]


class _Parser(HfArgumentParser):
    """The parser of `transformers`, which says what is wrong rather than ending the program."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def read_arguments(words: Sequence[str], option: str) -> dict[str, Any]:
    """Reads `name=value` words as the scripts of `transformers` do; lists have commas, dictionaries are JSON.

    Args:
        words: The words.
        option: Where they were given, for messages.

    Raises:
        ValueError: A word has no '=', there is no such argument, or the value is not of its type.
    """
    found: dict[str, Any] = {}
    parser = _Parser(cast(Any, TrainingArguments), allow_abbrev=False)
    for word in words:
        name, equals, text = (part.strip() for part in word.partition("="))
        if not equals:
            raise ValueError(f"{option} must read name=value, but got {word!r}.")
        try:
            _check_name(name)
            found[name] = _value(parser, name, text)
            check_arguments({name: found[name]})
        except ValueError as error:
            raise ValueError(f"{option} {word}: {error}") from None
    return found


def check_arguments(values: Mapping[str, Any]) -> None:
    """Checks names and types.

    Raises:
        ValueError: There is no such argument, or a value is not of its type; the message names it.
    """
    hints = typing.get_type_hints(TrainingArguments)
    for name, value in values.items():
        _check_name(name)
        try:
            check_type(name, value, hints[name])
        except TypeError as error:
            raise ValueError(f"transformers.TrainingArguments: {error}") from None


def _value(parser: _Parser, name: str, text: str) -> Any:
    kinds = kinds_of(typing.get_type_hints(TrainingArguments)[name])
    if type(None) in kinds and (text == "None" or (text.lower() == "none" and str not in kinds)):
        return None
    if dict in kinds and (text.startswith("{") or name.endswith("_kwargs")):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} must be a JSON object, but is none: {error}.") from None
    many = list in kinds and "," in text
    if many and str in kinds:
        return [part.strip() for part in text.split(",")]
    read = parser.parse_args([f"--{name}", *text.split(",")] if many else [f"--{name}={text}"])
    return getattr(read, name)


def _check_name(name: str) -> None:
    known = [entry.name for entry in dataclasses.fields(TrainingArguments) if entry.init]
    if name not in known:
        near = get_close_matches(name, known, 1)
        meant = f" Is it {near[0]!r}?" if near else ""
        raise ValueError(f"transformers.TrainingArguments has no argument {name!r}.{meant}")
