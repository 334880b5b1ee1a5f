"""The application that commands are added to, and what becomes of their errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from maha_opt.interrupts import INTERRUPTED

app = typer.Typer(
    name="maha-opt",
    help="Differentiable optimization layers for multiscale attention.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"maha-opt {version('maha-opt')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(help="Python file or module that registers solvers of your own; may be given again."),
    ] = None,
) -> None:
    """Differentiable optimization layers for multiscale attention."""
    del version
    with words_for_errors(Console(stderr=True)):
        for name in plugin or ():
            from maha_opt.plugins import load

            load(name)


def chosen(arguments: dict[str, Any]) -> dict[str, Any]:
    """The options of a command by their names, from its `locals()` before it has others; of a choice the word."""
    return {name: value.value if isinstance(value, Enum) else value for name, value in arguments.items()}


@contextmanager
def words_for_errors(errors: Console, extra: str | None = None) -> Iterator[None]:
    """Ends the command with an exit code and one line of words where it is interrupted or fails.

    `extra` is what has to be installed for the command, where it needs more than the package itself.
    """
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        errors.print("Interrupted.")
        raise typer.Exit(INTERRUPTED) from None
    except ModuleNotFoundError as error:
        wanted = f": pip install 'maha-opt\\[{extra}]'" if extra else ""
        errors.print(f"[red]Error:[/] {error.name} is not installed{wanted}.", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except Exception as error:
        errors.print(f"[red]Error:[/] {_one_line(error)}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _one_line(error: Exception) -> str:
    """What went wrong, in words; where as well if it is nothing that a user can bring about."""
    from traceback import extract_tb

    from rich.markup import escape

    line = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, (ValueError, OSError, RuntimeError, MemoryError, ImportError)):
        place = extract_tb(error.__traceback__)[-1]
        line = f"{type(error).__name__}: {line} ({Path(place.filename).name}, line {place.lineno}). This is a bug."
    return escape(line)
