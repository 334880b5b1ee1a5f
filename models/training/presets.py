"""The models that can be trained by name: MAHA, and what it is to be compared with."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from models.huggingface import HierarchicalDecoderConfig, MAHAConfig

__all__ = ["MODELS", "make_config"]

ONE_SCALE: dict[str, Any] = {"num_scales": 1, "gating": False, "target": "consensus", "solver": "mean"}
"""With one scale there is nothing to fuse: a block is then one of a plain transformer."""

MODELS = {
    "maha": "several scales, and a fusion of them",
    "plain": "a plain transformer: full attention",
    "window": "a transformer with a sliding window",
    "window-conv": "the same with the convolutions of MAHA",
    "tree": "the hierarchical decoder",
}


def make_config(model: str, *, context: int, window: int = 64, levels: int = 3, **options: Any) -> PreTrainedConfig:
    """The configuration of a model by its name.

    Args:
        model: One of `MODELS`.
        context: Largest number of tokens.
        window: Cells, of MAHA at the finer scales, or tokens that a query sees.
        levels: Of the tree.
        options: Of `MAHAConfig`, by their names there. A transformer of one scale takes those that do not belong to
            scales and their fusion, the tree those of size and `positions`, which are rotary unless given; what they
            have no use for is left out.

    Raises:
        ValueError: There is no such model or option, or an option is out of its range.
    """
    if model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, but got {model!r}.")
    if unknown := set(options) - set(MAHAConfig.__annotations__) - set(SPECIAL):
        raise ValueError(f"MAHAConfig has no option {min(unknown)!r}.")
    if model == "tree":
        sizes = {TREE_NAMES[name]: value for name, value in options.items() if name in TREE_NAMES}
        named: dict[str, Any] = {"sequence_length": context, "levels": levels, "positions": "rotary"}
        return HierarchicalDecoderConfig(**named | sizes)
    fixed: dict[str, Any] = {"max_len": context, "window": window}
    if model != "maha":
        fixed |= ONE_SCALE | {"attention": "full" if model == "plain" else "windowed", "coarsest_window": window}
        options = {name: value for name, value in options.items() if name not in OF_SCALES}
    if model in ("plain", "window"):
        fixed["conv_kernel"] = 0
    return MAHAConfig(**options | fixed)


OF_SCALES = (
    "num_scales",
    "aggregation_strategy",
    "compression_ratio",
    "decomposition",
    "decomposition_kernel",
    "dense",
    "coarsest_window",
    "query_resolution",
    "projections",
    "gating",
    "target",
    "granularity",
    "feasible",
    "feasible_options",
    "prices",
    "ridge",
    "normalise",
    "solver",
    "gradient",
    "solver_options",
    "on_failure",
)
"""Options that mean something only where there are several scales."""

SPECIAL = ("num_labels", "problem_type", "id2label", "label2id")
"""Options of every configuration of `transformers` that a task sets."""

TREE_NAMES = {
    "vocab_size": "vocab_size",
    "d_model": "d_model",
    "num_heads": "heads",
    "num_layers": "num_layers",
    "d_ff": "d_ff",
    "dropout": "drop_out",
    "pad_token_id": "pad_token_id",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "tie_word_embeddings": "tie_word_embeddings",
    "positions": "positions",
}
"""Options of `MAHAConfig` and what the tree calls them."""
