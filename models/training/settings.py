"""What a run is: everything that has to be said to make it again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from maha_opt.solver_choice import as_flag

__all__ = ["SETTINGS_FILE", "Settings"]

SETTINGS_FILE = "settings.json"


@dataclass(frozen=True)
class Settings:
    """A run of training.

    Attributes:
        task: "language", "masked", "classify" or "translate".
        model: One of `models.training.presets.MODELS`.
        options: Of the model, by the names of `MAHAConfig`.
        context: Most tokens that the model reads at once.
        window: See `make_config`.
        levels: See there.
        texts: Files or folders to learn from: of text, or for "classify" and "translate" one table.
        validation: The same, to judge by; if empty, a part of what is learned from is held out.
        dataset: Name of a data set, in place of files; see `read_parts`.
        columns: Of the data set, its text; of a table, text and label, or source and target.
        held_out: Part that is held out.
        tokenizer: Name or folder of a published tokenizer; None: bytes.
        steps: Of the optimizer.
        batch: Rows for each process and step.
        accumulate: Parts that make one step.
        learning_rate: At its highest; it rises linearly, and falls with a half cosine to zero.
        warmup: Part of the steps in which it rises.
        weight_decay: Of AdamW.
        evaluate_every: Steps between evaluations.
        save_every: Steps between checkpoints.
        log_every: Steps between lines of the curve. The former two are multiples of it, or a run that is resumed would
            log other means than one that is not.
        keep: Checkpoints that are kept.
        most_blocks: Rows that an evaluation looks at, at most.
        seed: Of the weights, the order of the data and the dropout.
        precision: "fp32", "bf16" or "fp16", by autocast.
        device: "auto" or "cpu".
        trainer: More arguments of `transformers.TrainingArguments`.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: One cannot be written to a file.
    """

    task: str = "language"
    model: str = "maha"
    options: dict[str, Any] = field(default_factory=dict)
    context: int = 512
    window: int = 64
    levels: int = 3
    texts: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    dataset: str | None = None
    columns: tuple[str, ...] = ()
    held_out: float = 0.05
    tokenizer: str | None = None
    steps: int = 400
    batch: int = 8
    accumulate: int = 1
    learning_rate: float = 2e-3
    warmup: float = 0.1
    weight_decay: float = 0.1
    evaluate_every: int = 100
    save_every: int = 100
    log_every: int = 10
    keep: int = 2
    most_blocks: int = 64
    seed: int = 0
    precision: str = "fp32"
    device: str = "auto"
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("context", "window", "steps", "batch", "accumulate", "evaluate_every", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but got {getattr(self, name)}.")
        for name in ("evaluate_every", "save_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(f"{name} must be a multiple of log_every={self.log_every}, not {getattr(self, name)}.")
        for name, choices in (("precision", ("fp32", "bf16", "fp16")), ("device", ("auto", "cpu"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, but got {getattr(self, name)!r}.")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), but got {self.warmup}.")
        if self.options.get("solver") is not None:  # an object becomes its flag and its options
            flag, own = as_flag(self.options["solver"], self.options.get("solver_options"))
            object.__setattr__(self, "options", {**self.options, "solver": flag, "solver_options": own})
        try:
            json.dumps([self.options, self.trainer])
        except TypeError as error:
            raise TypeError(f"options and trainer must hold what JSON can, to be written down: {error}.") from None

    def save(self, folder: Path) -> None:
        """Writes them to a folder, which is made if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS_FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Settings:
        """Reads them from the folder of a run.

        Raises:
            FileNotFoundError: There are none.
            ValueError: They are of another version.
        """
        path = folder / SETTINGS_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is not the folder of a run: there is no {SETTINGS_FILE}.")
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if unknown := set(data) - {entry.name for entry in fields(cls)}:
            raise ValueError(f"{path} has settings that this version does not know: {', '.join(sorted(unknown))}.")
        lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
        return cls(**cast(dict[str, Any], data | lists))
