"""The experiments: which cells there are. A cell is one model, trained once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["EXPERIMENTS", "FUSIONS", "Cell", "cells_of"]

SIZES: dict[str, Any] = {"d_model": 128, "num_heads": 4, "num_layers": 2, "dropout": 0.0}
RECALL_SIZES: dict[str, Any] = {"d_model": 64, "num_heads": 2, "num_layers": 2, "dropout": 0.0}
ENCODER_SIZES = SIZES | {"dropout": 0.2}
SCALES: dict[str, Any] = {
    "num_scales": 3,
    "compression_ratio": 4,
    "query_resolution": "fine",
    "projections": "shared",
}
FUSIONS: dict[str, dict[str, Any]] = {
    "convex": {"aggregation_strategy": "convex", "normalise": True},
    "nash": {"aggregation_strategy": "nash", "normalise": True},
    "mean": {"aggregation_strategy": "convex", "target": "consensus", "solver": "mean"},
    "softmax": {"aggregation_strategy": "convex", "normalise": True, "solver": "softmax"},
    "gate": {"aggregation_strategy": "gate"},
}
KEPT_ON: dict[str, dict[str, Any]] = {
    "convex, from the mean": FUSIONS["convex"] | {"target": "residual"},
    "convex, ridge 1": FUSIONS["convex"] | {"ridge": 1.0},
}
"""Programs that switch fewer scales off: one whose answer starts at the mean, one that is drawn to even weights."""

OTHERS: dict[str, dict[str, Any]] = {
    "window": {},
    "window-conv": {},
    "plain": {},
    "tree": {"num_layers": 1},  # a layer of it has two attentions for every level
}

CONTEXT, WINDOW, LEVELS = 1024, 64, 2
D_FF = 512
"""Of the convex model; the others get the width that gives them as many parameters."""

LONG, CHANGED, SHORT = 2400, 600, 300
"""Steps on books: of a contender, of one with something changed, and of one that tries a learning rate."""

BATCH = 1
"""Rows of a step on books: of as many bytes, models learn more in many steps of one row than in few of several."""

UNSAVED: dict[str, Any] = {"device": "cpu", "trainer": {"save_strategy": "no", "report_to": "none"}}
"""Of the settings of every run: only its results are kept."""

EXACT, UNCHANGED = "exact (pivot)", "nothing"
"""What the changes are held against."""

SEEDS = (0, 1, 2)
RATES = (7.5e-4, 1.5e-3, 3e-3, 6e-3)


@dataclass(frozen=True)
class Cell:
    """One model, trained once.

    Attributes:
        experiment: A name of `EXPERIMENTS`.
        name: Of the model within it.
        model: One of `models.training.presets.MODELS`.
        options: Of the model.
        steps: Of training.
        batch: Rows of a step.
        rate: Learning rate; None: the one that was best for `name` in the experiment "tuning".
        seed: Of weights and data.
    """

    experiment: str
    name: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = LONG
    batch: int = BATCH
    rate: float | None = None
    seed: int = 0

    def key(self) -> str:
        """What tells it from all others: its settings.

        The constants of a task's module are not among them: who changes one removes the cells of that task.
        """
        return repr(sorted(asdict(self).items()))


def _contenders() -> dict[str, tuple[str, dict[str, Any]]]:
    fused = {name: ("maha", SIZES | SCALES | fusion) for name, fusion in FUSIONS.items()}
    return fused | {name: (name, SIZES | options) for name, options in OTHERS.items()}


def _tuning() -> list[Cell]:
    return [
        Cell("tuning", name, model, options, steps=SHORT, rate=rate)
        for name, (model, options) in _contenders().items()
        for rate in RATES
    ]


def _books() -> list[Cell]:
    return [
        Cell("books", name, model, options, seed=seed)
        for seed in SEEDS
        for name, (model, options) in _contenders().items()
    ]


def _unrolled() -> list[Cell]:
    """The convex fusion, trained through so many steps of an approximation in place of the exact answer."""
    ways: dict[str, dict[str, Any]] = {EXACT: {}}
    for solver, counts in (("projected_gradient", (1, 3, 10, 30)), ("mirror_descent", (10,))):
        for steps in counts:
            way = {"solver": solver, "gradient": "unrolled", "solver_options": {"unroll": steps}}
            ways[f"{solver}, {steps} steps"] = way
    ways["one step of gradient"] = {"solver": "projected_gradient", "gradient": "one_step"}
    return _changed("unrolled", ways)


def _ablations() -> list[Cell]:
    """The convex fusion with something left out or changed: first what the paper has, then our own questions."""
    own_size = {"normalise": False}
    published: dict[str, dict[str, Any]] = {UNCHANGED: {}}
    published |= {f"{L} scales of ratio 2": {"num_scales": L, "compression_ratio": 2} for L in range(2, 7)}
    published |= {
        "pooling": {"decomposition": "pool"},
        "without gating": {"gating": False},
        "without dilated convolution": {"conv_kernel": 0},
        "nash": FUSIONS["nash"],
        "mean of the scales": FUSIONS["mean"] | own_size,
    }
    further: dict[str, dict[str, Any]] = {
        "target that starts at the mean": {"target": "residual"},
        "ridge 1": {"ridge": 1.0},
        "weights of each head": {"granularity": "token_head"},
        "scales of their own size in the problem": own_size,
        "learned prices": {"prices": "learned"},
        "budget": {"feasible": "budget", "feasible_options": {"total": 1.0, "learn_total": True}},
        "free weights": {"feasible": "free"},
        "gate": FUSIONS["gate"] | own_size,
        "sparse gate": FUSIONS["gate"] | own_size | {"solver": "pivot"},
        "gate, weights of each head": FUSIONS["gate"] | own_size | {"granularity": "token_head"},
        "nash, scales of their own size": FUSIONS["nash"] | own_size,
        "nash, weights of each head": FUSIONS["nash"] | {"granularity": "token_head"},
        "nash on the simplex": FUSIONS["nash"] | {"feasible": "simplex"},
        "coarse queries": {"query_resolution": "coarse"},
        "projections of each scale": {"projections": "scale"},
    }
    return _changed("ablations", published) + _changed("ablations", further)


def _positions() -> list[Cell]:
    """The tree with positions that turn queries and keys, as the others have them, and with fixed sinusoids added."""
    base = SIZES | OTHERS["tree"]
    return [
        Cell("positions", kind, "tree", base | {"positions": kind}, steps=CHANGED, rate=3e-3, seed=seed)
        for seed in SEEDS
        for kind in ("rotary", "sinusoidal")
    ]


def _changed(experiment: str, ways: dict[str, dict[str, Any]]) -> list[Cell]:
    """The convex model with other options, at the learning rate that is best for it."""
    base = SIZES | SCALES | FUSIONS["convex"]
    return [
        Cell(experiment, name, "maha", base | way, steps=CHANGED, rate=1.5e-3, seed=seed)
        for seed in SEEDS
        for name, way in ways.items()
    ]


def _sentiment() -> list[Cell]:
    return _encoders("sentiment", ("convex", "nash", "mean", "softmax", "gate", "plain"), steps=500, batch=32)


def _translation() -> list[Cell]:
    return _encoders("translation", ("convex", "plain", "nash", "mean"), steps=1500, batch=16)


def _encoders(experiment: str, names: Sequence[str], steps: int, batch: int) -> list[Cell]:
    """Models whose tokens see both sides, and the plain transformer."""
    contenders = _contenders()
    return [
        Cell(experiment, name, model, options | ENCODER_SIZES, steps=steps, batch=batch, rate=1e-3, seed=seed)
        for seed in SEEDS
        for name in names
        for model, options in (contenders[name],)
    ]


def _memory(experiment: str, fusions: dict[str, dict[str, Any]]) -> list[Cell]:
    """Does what was seen far back reach a token? Steps and rows are those of the shortest length."""
    models = {"plain": ("plain", RECALL_SIZES)}
    models |= {name: ("maha", RECALL_SIZES | SCALES | fusion) for name, fusion in fusions.items()}
    models |= {"window-conv": ("window-conv", RECALL_SIZES)}
    return [
        Cell(experiment, name, model, options, steps=1000, batch=64, rate=3e-3, seed=seed)
        for seed in SEEDS
        for name, (model, options) in models.items()
    ]


EXPERIMENTS: dict[str, Callable[[], list[Cell]]] = {
    "tuning": _tuning,
    "books": _books,
    "unrolled": _unrolled,
    "ablations": _ablations,
    "positions": _positions,
    "sentiment": _sentiment,
    "translation": _translation,
    "recall": lambda: _memory("recall", FUSIONS | KEPT_ON),
    "copy": lambda: _memory("copy", FUSIONS),
}


def cells_of(experiments: Sequence[str]) -> list[Cell]:
    """The cells of some experiments, in the order in which they are best run.

    Raises:
        ValueError: There is no such experiment.
    """
    for name in experiments:
        if name not in EXPERIMENTS:
            raise ValueError(f"--experiments must be of {', '.join(EXPERIMENTS)}, but got {name!r}.")
    return [cell for name in experiments for cell in EXPERIMENTS[name]()]
