"""The small runs that the tests of training share."""

import pytest

pytest.importorskip("transformers", reason="Hugging Face transformers is not installed: pip install 'maha-opt[train]'")

from models.training.settings import Settings

SMALL = {
    "d_model": 32,
    "num_heads": 2,
    "num_layers": 1,
    "d_ff": 64,
    "num_scales": 3,
    "compression_ratio": 2,
    "query_resolution": "fine",
    "projections": "shared",
    "dropout": 0.1,
}

SMALL_COMMAND = """
    --context 64 --window 8 --d-model 32 --heads 2 --layers 1 --d-ff 64 --steps 20 --batch 4
    --log-every 5 --evaluate-every 10 --save-every 10 --device cpu
""".split()  # noqa: SIM905 - options are read in lines, not one by one
"""Options of `maha-opt train` for a run of some seconds."""


def settings(**changes):
    """Settings of a run of some seconds."""
    small = {
        "context": 64,
        "window": 8,
        "steps": 30,
        "batch": 4,
        "evaluate_every": 10,
        "save_every": 10,
        "log_every": 5,
    }
    small["learning_rate"] = 3e-3
    options = SMALL | changes.pop("options", {})
    return Settings(**small | {"options": options, "device": "cpu", "most_blocks": 16} | changes)
