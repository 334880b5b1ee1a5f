"""Language models over several scales: multiscale attention, a decoder whose attention is a tree, and sampling."""

from models.attention import MultiscaleAttention
from models.decomposition import HierarchicalDecomposition
from models.generation import generate
from models.hierarchical_decoder import HierarchicalDecoder
from models.hierarchical_decoder import HierarchicalDecoder as Decoder

__all__ = ["Decoder", "HierarchicalDecoder", "HierarchicalDecomposition", "MultiscaleAttention", "generate"]
