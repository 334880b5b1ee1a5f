"""What a cell has found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray


@dataclass
class Findings:
    """What was found in a cell.

    Attributes:
        failures: ``(kind, item, detail)``.
        counts: How often what was checked, or could not be.
    """

    failures: list[tuple[str, int, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def blame(self, kind: str, wrong: Array, detail: Array | None = None, items: Array | None = None) -> None:
        """Notes every item where ``wrong``, with a number that says how far."""
        for k in np.flatnonzero(wrong):
            said = "" if detail is None else f"{float(detail[k]):.3g}"
            self.failures.append((kind, int(k if items is None else items[k]), said))
