"""Where problems come from: random ones, those of scale outputs, the user's own; all the same to a study."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict

from maha_opt.cells import Batch
from maha_opt.validation.random_problems import Difficulty
from solvers import AffineVI

Source = AffineVI | Callable[[int], AffineVI]
"""Problems, the same for every seed; or what makes the problems of a seed, such as a `Difficulty`."""

Sources = Mapping[str, Source] | AffineVI | Difficulty
"""Sources by their names, or one."""


def named(problems: Sources) -> dict[str, Source]:
    """Sources by their names; one alone is called "problem".

    Raises:
        TypeError: If one of them is neither problems nor callable.
        ValueError: If there are none.
    """
    sources: dict[str, Source] = dict(problems) if isinstance(problems, Mapping) else {"problem": problems}
    if not sources:
        raise ValueError("problems must name at least one source, but is empty.")
    for name, source in sources.items():
        if not isinstance(source, AffineVI) and not callable(source):
            raise TypeError(f"problems[{name!r}] must be an AffineVI or a function of a seed, but got {source!r}.")
    return sources


def batch_of(name: str, source: Source, seed: int) -> Batch:
    """The problems of one seed.

    Raises:
        ValueError: If they have no batch dimension, or more than one.
    """
    problem = source if isinstance(source, AffineVI) else source(seed)
    if len(problem.batch_shape) != 1:
        raise ValueError(
            f"problems[{name!r}] must have one batch dimension, but has batch shape {tuple(problem.batch_shape)}."
        )
    return Batch(name, seed, problem)


def seeds_of(seeds: int | Iterable[int]) -> list[int]:
    """Seeds, or 0, 1, … for their number.

    Raises:
        ValueError: If there are none, or one comes twice.
    """
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"seeds must be distinct and at least one, but got {seeds!r}.")
    return chosen


def settings_of(source: Source) -> dict[str, object]:
    """The named difficulty of random problems, for the columns of a table; nothing for others."""
    return asdict(source) if isinstance(source, Difficulty) else {}
