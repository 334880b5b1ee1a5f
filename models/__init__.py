"""Multiscale attention: a sequence seen at several scales, and attention at each of them."""

from models.attention import MultiscaleAttention
from models.decomposition import HierarchicalDecomposition

__all__ = ["HierarchicalDecomposition", "MultiscaleAttention"]
