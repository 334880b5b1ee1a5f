"""Layers and data that the tests of the aggregations share."""

import pytest
import torch
from torch import nn

from maha_opt import ConvexAggregation, GateAggregation, NashAggregation
from maha_opt.aggregation_base import GRANULARITIES

BATCH, N, L, D, HEADS = 2, 5, 3, 8, 2
EVERY_KIND = pytest.mark.parametrize("kind", [ConvexAggregation, NashAggregation, GateAggregation])
BOTH = pytest.mark.parametrize("kind", [ConvexAggregation, NashAggregation])
EVERY_GRANULARITY = pytest.mark.parametrize("granularity", GRANULARITIES)
FOR_TOKENS = pytest.mark.parametrize("granularity", ["token", "token_head"])
SETS = {
    "simplex": {},
    "capped_simplex": {"cap": 0.5},
    "box": {"lower": -0.5, "upper": 1.0},
    "budget": {"total": 0.8, "learn_total": True},
    "nonnegative": {},
    "sum_to": {"total": -1.0, "learn_total": True},
    "free": {},
}


def layer(kind=ConvexAggregation, seed=0, **options):
    torch.manual_seed(seed)
    made = kind(L, D, **{"num_heads": HEADS, "on_failure": "raise", **options})
    if isinstance(made, NashAggregation):
        nn.init.normal_(made.raw_coupling, std=0.3)
    return made


def data(n=N, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    Y = torch.randn(BATCH, n, L, D, generator=generator).to(dtype)
    inputs = torch.randn(BATCH, n, D, generator=generator).to(dtype)
    available = torch.rand(BATCH, n, L, generator=generator) > 0.3
    available[..., 0] = True
    return Y, available, inputs
