"""Values against the types that a dataclass annotates."""

from __future__ import annotations

import types
import typing
from typing import Any

from huggingface_hub.dataclasses import type_validator

__all__ = ["check_type", "kinds_of"]


def check_type(name: str, value: object, hint: Any) -> None:
    """Checks a value; a whole number is a float too.

    Raises:
        TypeError: It is not of its type; the message names it.
    """
    kinds = kinds_of(hint)
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
        return
    try:
        type_validator(name, value, hint)
    except (TypeError, ValueError):
        words = " or ".join("None" if kind is type(None) else getattr(kind, "__name__", str(kind)) for kind in kinds)
        raise TypeError(f"{name} must be of type {words}, but got {value!r}.") from None


def kinds_of(hint: Any) -> list[Any]:
    """The types that an annotation allows, without what they hold."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return [typing.get_origin(kind) or kind for kind in (typing.get_args(hint) if union else (hint,))]
