"""Layers that stand in the place of self-attention, ours and others', each as a module (batch, n, d) to (batch, n, d).

All have d = 256 channels, 4 heads, float32, no dropout, no positions and no norm around them. "Our mixer" is a
`MAHABlock` without its norms and its feed-forward part: convolution, decomposition, attention, gating, fusion and
output projection, that is, what its user gets in exchange for an attention layer of a projection to queries, keys and
values, the attention, and an output projection.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

CHANNELS, HEADS = 256, 4


class Attention(nn.Module):
    """An attention layer: torch's fused attention between projections, or the same with the softmax written out."""

    def __init__(self, causal: bool, fused: bool) -> None:
        super().__init__()
        self.causal, self.fused = causal, fused
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)
        self.output = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n, d) to the same."""
        q, k, v = (y.unflatten(2, (HEADS, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=2))
        if self.fused:
            y = scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            scores = q @ k.mT / math.sqrt(q.shape[3])
            if self.causal:
                n = x.shape[1]
                scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -math.inf)
            y = scores.softmax(dim=3) @ v
        return self.output(y.transpose(1, 2).flatten(2))


class Wrapped(nn.Module):
    """A module behind a function that calls it."""

    def __init__(self, module: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n, d) to the same."""
        return self.call(self.module, x)


@dataclass(frozen=True)
class LayerContender:
    """One row of the benchmark.

    Attributes:
        name: what the command line and the results file call it.
        description: what exactly is run.
        build: ``(n, causal) -> module``.
        module: the package that it needs.
        install: how to get that package.
        modes: which of "causal" and "bidirectional" it knows.
        scores: how many numbers of a forward and backward pass grow as n² for each head, about: what decides whether
            there is enough memory for it.
    """

    name: str
    description: str
    build: Callable[[int, bool], nn.Module]
    module: str = "models"
    install: str = "pip install maha-opt"
    modes: tuple[str, ...] = ("causal", "bidirectional")
    scores: int = 0

    def missing(self, causal: bool) -> str | None:
        """Returns why it cannot run here, or None if it can."""
        if importlib.util.find_spec(self.module) is None:
            return f"{self.module} is not installed: {self.install}"
        mode = "causal" if causal else "bidirectional"
        return None if mode in self.modes else f"it cannot be {mode}"


def _ours(**options: Any) -> Callable[[int, bool], nn.Module]:
    def build(n: int, causal: bool) -> nn.Module:
        from models import MAHABlock

        del n
        block = MAHABlock(CHANNELS, HEADS, 1, 0.0, causal=causal, **options)
        unused = (block.ffn, block.norm1, block.norm2)
        for parameter in (parameter for module in unused for parameter in module.parameters()):
            parameter.requires_grad_(False)
        return Wrapped(block, lambda block, x: block.mix(x)[0])

    return build


def _bare(n: int, causal: bool) -> nn.Module:
    from models import HierarchicalDecomposition, MultiscaleAttention

    del n
    cells = HierarchicalDecomposition(CHANNELS, 3, 4, causal=causal)
    attention = MultiscaleAttention(CHANNELS, HEADS, 3, cells, projections="shared", causal=causal)
    return Wrapped(attention, lambda attention, x: attention(x)[0].mean(2))


def _h_transformer(n: int, causal: bool) -> nn.Module:
    peer: Any = importlib.import_module("h_transformer_1d.h_transformer_1d")
    kind = peer.CausalHAttention1D if causal else peer.HAttention1D
    return kind(CHANNELS, max_seq_len=n, heads=HEADS, dim_head=CHANNELS // HEADS, block_size=128)


def _local(n: int, causal: bool) -> nn.Module:
    del n
    peer: Any = importlib.import_module("local_attention.transformer")
    return peer.LocalMHA(
        dim=CHANNELS, window_size=128, heads=HEADS, dim_head=CHANNELS // HEADS, causal=causal, use_rotary_pos_emb=False
    )


def published(folder: Path) -> list[LayerContender]:
    """The published MAHA mixer with both of its aggregations, from a checkout of its code.

    Raises:
        FileNotFoundError: the folder is no such checkout.
    """
    if not (folder / "src" / "models" / "maha_block.py").is_file():
        raise FileNotFoundError(f"{folder.name} holds no src/models/maha_block.py, so it is no checkout of MAHA")
    sys.path.insert(0, str(folder))

    def build_as(strategy: str) -> Callable[[int, bool], nn.Module]:
        def build(n: int, causal: bool) -> nn.Module:
            del n, causal
            theirs: Any = importlib.import_module("src.models.maha_block")
            block = theirs.MAHABlock(CHANNELS, HEADS, 1, 0.0, aggregation_strategy=strategy)

            def mix(block: Any, x: Tensor) -> Tensor:
                h = block.dilated_conv(x.transpose(1, 2)).transpose(1, 2)
                return block.aggregation(block.attention(block.decomposition(h), None))[0]

            return Wrapped(block, mix)

        return build

    return [
        LayerContender(
            f"published-{strategy}",
            f"the published MAHA mixer, {strategy}, L = 4, r = 2 (no gating, no output projection)",
            build_as(strategy),
            module="src",
            install="give --published PATH, a checkout of it",
            modes=("bidirectional",),
            scores=4,
        )
        for strategy in ("convex", "nash")
    ]


TORCH = "sdpa"
LAYERS = (
    LayerContender(TORCH, "attention layer, torch's fused attention", lambda n, causal: Attention(causal, True)),
    LayerContender(
        "softmax",
        "attention layer, softmax written out",
        lambda n, causal: Attention(causal, False),
        scores=5,
    ),
    LayerContender("maha", "our mixer, defaults: L = 4, r = 2, coarse queries, projections per scale, convex", _ours()),
    LayerContender("maha-shared", "our mixer, L = 4, r = 2, coarse, shared, convex", _ours(projections="shared")),
    LayerContender(
        "maha-fine",
        "our mixer, L = 4, r = 2, fine, shared, convex",
        _ours(projections="shared", query_resolution="fine"),
    ),
    LayerContender(
        "maha-r4",
        "our mixer, L = 3, r = 4, coarse, per scale, convex",
        _ours(num_scales=3, compression_ratio=4),
    ),
    LayerContender(
        "maha-r4-shared",
        "our mixer, L = 3, r = 4, coarse, shared, convex",
        _ours(num_scales=3, compression_ratio=4, projections="shared"),
    ),
    LayerContender(
        "maha-r4-nash",
        "our mixer, L = 3, r = 4, coarse, shared, nash",
        _ours(num_scales=3, compression_ratio=4, projections="shared", aggregation_strategy="nash"),
    ),
    LayerContender(
        "maha-r4-head",
        "our mixer, L = 3, r = 4, coarse, shared, convex per token and head",
        _ours(num_scales=3, compression_ratio=4, projections="shared", granularity="token_head"),
    ),
    LayerContender(
        "maha-r4-mean",
        "our mixer, L = 3, r = 4, coarse, shared, plain mean",
        _ours(num_scales=3, compression_ratio=4, projections="shared", solver="mean"),
    ),
    LayerContender(
        "maha-r4-fine",
        "our mixer, L = 3, r = 4, fine, shared, convex",
        _ours(num_scales=3, compression_ratio=4, projections="shared", query_resolution="fine"),
    ),
    LayerContender(
        "attention-r4",
        "our attention alone, L = 3, r = 4, coarse, shared; scales averaged, no output projection",
        _bare,
    ),
    LayerContender(
        "h-transformer",
        "H-Transformer-1D, blocks of 128",
        _h_transformer,
        module="h_transformer_1d",
        install="pip install h-transformer-1d",
    ),
    LayerContender(
        "local",
        "local-attention, windows of 128 and their neighbours",
        _local,
        module="local_attention",
        install="pip install local-attention",
    ),
)
