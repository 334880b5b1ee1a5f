"""Small MAHA models for tests, in every variant that computes something else."""

import torch
from torch import nn

from models import MAHATransformer

VOCAB = 23
VARIANTS = {
    "default": {},
    "nash": {"aggregation_strategy": "nash"},
    "fine queries": {"query_resolution": "fine", "window": 5, "coarsest_window": 4},
    "shared projections, per head": {"projections": "shared", "granularity": "token_head"},
    "fine, shared, nash per head, learned positions": {
        "query_resolution": "fine",
        "projections": "shared",
        "aggregation_strategy": "nash",
        "granularity": "token_head",
        "positions": "learned",
    },
    "as published": {"attention": "full", "dense": True, "norm_first": False, "gating": False, "positions": "learned"},
    "overlapping cells, ratio 3": {"decomposition_kernel": 6, "compression_ratio": 3, "window": 17},
    "pooled, no convolution, prices, scales of one size": {
        "decomposition": "pool",
        "conv_kernel": 0,
        "prices": [0.3, 0.1, 0.0],
        "normalise": True,
    },
    "one scale": {"num_scales": 1},
    "sparse gate per head": {"aggregation_strategy": "gate", "solver": "pivot", "granularity": "token_head"},
    "budget that learns": {
        "target": "residual",
        "feasible": "budget",
        "feasible_options": {"total": 0.8, "learn_total": True},
        "prices": "learned",
    },
    "no positions, coarsest sees everything": {"positions": "none", "coarsest_window": None},
}


def build(variant="default", *, causal=True, seed=0, scale=None, **overrides):
    """A model (of two layers) whose weights are large enough for everything to matter, in evaluation mode.

    `scale`: standard deviation of its matrices; 1/√fan-in if omitted, so that outputs stay of order one.
    """
    torch.manual_seed(seed)
    options = {
        "num_layers": 2,
        "max_len": 300,
        "num_scales": 3,
        "window": 9,
        "coarsest_window": 6,
        **VARIANTS[variant],
        **overrides,
    }
    model = MAHATransformer(VOCAB, d_model=16, num_heads=2, d_ff=24, dropout=0.0, causal=causal, **options)
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=scale or weight.shape[-1] ** -0.5)
    return model.eval()
