"""What a cell has found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from benchmarks.fuzz.batches import Array, Batch


class Failure(NamedTuple):
    """Something wrong with item ``item`` of ``batch``."""

    kind: str
    item: int
    detail: str
    batch: Batch


@dataclass
class Findings:
    """What was found in a batch.

    Attributes:
        batch: The problems that were asked.
        failures: What is wrong.
        counts: How often what was checked, or could not be.
    """

    batch: Batch
    failures: list[Failure] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def blame(self, kind: str, wrong: Array, detail: Array | None = None, items: Array | None = None) -> None:
        """Notes every item where ``wrong``, with a number that says how far; ``items`` are their indices if not all."""
        for k in np.flatnonzero(wrong):
            said = "" if detail is None else f"{float(detail[k]):.3g}"
            self.note(kind, int(k if items is None else items[k]), said)

    def note(self, kind: str, item: int, detail: str) -> None:
        """Notes one item."""
        self.failures.append(Failure(kind, item, detail, self.batch))
