"""What ``maha-opt train`` does, apart from reading its options."""

from __future__ import annotations

import ast
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console
from rich.markup import escape
from torch.distributed.rendezvous import rendezvous

from maha_opt.contenders import Contender
from maha_opt.run_folder import new_folder, remove_if_empty
from models.training.curves import CURVE_FILE, curve
from models.training.evaluation import bits_per_byte
from models.training.presets import OF_SCALES, TREE_NAMES
from models.training.runs import Finished, resume, train
from models.training.settings import Settings

PICTURE = "curve.png"

OF_FUSION = ("strategy", "solver", "gradient", "granularity", "prices", "scales", "ratio", "queries", "projections")
"""Options of the command that mean something only where there are several scales."""


def run(settings: Settings | None, folder: Path | None, console: Console, errors: Console) -> int:
    """Trains from the settings, or goes on with the run of a folder; prints how it went and draws the curve.

    Args:
        settings: What to do; None: go on with the run in `folder`.
        folder: Of the run; None: runs/MODEL-DATE-TIME.
        console: For what comes out.
        errors: For how it goes on; a progress bar, if it is a terminal.

    Returns:
        The exit code, 0.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()  # of loading and saving; that of training stays
    bar = errors.is_terminal

    def say(line: str) -> None:
        errors.print(line, markup=False, highlight=False)

    if settings is None:
        assert folder is not None
        finished = resume(folder, say=say, bar=bar)
    else:
        place = _new_folder(settings.model) if folder is None else folder
        try:
            finished = train(settings, place, say=say, bar=bar)
        finally:
            if folder is None:
                remove_if_empty(place)
    if finished.main:
        console.print("\n".join(_words(finished, errors)), highlight=False)
    return 0


def _new_folder(name: str) -> Path:
    """A folder of its own for a run; of the processes of a launcher the first makes it, and tells the others."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return new_folder(name)
    store, rank, _ = next(rendezvous("env://"))
    key = f"maha-opt/folder/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if rank == 0:
        store.set(key, str(new_folder(name)))
    return Path(store.get(key).decode())


def _words(finished: Finished, errors: Console) -> list[str]:
    loss = finished.metrics["eval_loss"]
    judged = f"Validation loss {loss:.4f} nats per token"
    if finished.bytes_per_token is not None:
        bits = bits_per_byte(loss, finished.bytes_per_token)
        judged += f", perplexity {math.exp(loss):.3f}, {bits:.3f} bits per byte"
    if "eval_accuracy" in finished.metrics:
        judged = f"Validation loss {loss:.4f}, accuracy {finished.metrics['eval_accuracy']:.1%}"
    files = f"the model, {CURVE_FILE}"
    try:
        from maha_opt.plots.training import save_curve
    except ImportError:
        errors.print("There is no picture, because matplotlib is missing: pip install 'maha-opt[study]'.", markup=False)
    else:
        save_curve(curve(finished.history), finished.folder / PICTURE)
        files += f", {PICTURE}"
    return [f"{judged}.", f"Written to {escape(str(finished.folder))}: {files}"]


def solver_options(word: str) -> dict[str, Any]:
    """``flag:option=value:…`` as the options of a model.

    Raises:
        ValueError: There is no such solver, or it does not take one of the options.
    """
    contender = Contender.parse(word)
    options: dict[str, Any] = {"solver": contender.solver, "gradient": contender.gradient}
    return options | {"solver_options": dict(contender.options) or None}


def assignments(words: Sequence[str], option: str) -> dict[str, Any]:
    """Reads ``name=value`` words; a value is a Python literal, or text where it is none.

    Raises:
        ValueError: A word has no '='.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{option} must read name=value, but got {word!r}.")
        try:
            found[name.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            found[name.strip()] = {"true": True, "false": False}.get(value.strip(), value.strip())
    return found


def refuse_unused(model: str, given: Sequence[str], options: Mapping[str, object]) -> None:
    """Refuses what was said of a model that has no use for it, and would otherwise be left out without a word.

    Args:
        model: Its name.
        given: Options of the command that were given, by the names of its parameters.
        options: What was given by ``--option``.

    Raises:
        ValueError: The model has no use for one of them.
    """
    if model == "maha":
        return
    for name in given:
        if name in OF_FUSION:
            raise ValueError(f"--model {model} has no scales to fuse, and no use for --{name}.")
    for name in options:
        if name in OF_SCALES or (model == "tree" and name not in TREE_NAMES):
            raise ValueError(f"--model {model} has no use for --option {name}.")


def prices(text: str) -> list[float]:
    """Reads ``--prices``.

    Raises:
        ValueError: They are not numbers.
    """
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"--prices must be 'learned' or numbers with commas between them, but got {text!r}.") from None
