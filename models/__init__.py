"""Multiscale attention, and the MAHA transformer that is made of it."""

from models.aggregation import OptimizationDrivenAggregation
from models.attention import MultiscaleAttention
from models.block import MAHABlock
from models.convolution import DilatedConvolution
from models.decomposition import HierarchicalDecomposition
from models.gating import CrossScaleGating
from models.transformer import MAHATransformer

__all__ = [
    "CrossScaleGating",
    "DilatedConvolution",
    "HierarchicalDecomposition",
    "MAHABlock",
    "MAHATransformer",
    "MultiscaleAttention",
    "OptimizationDrivenAggregation",
]
