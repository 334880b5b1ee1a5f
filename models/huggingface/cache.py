"""The state of a causal MAHA model as a cache of `transformers`: fixed in size, and reordered by beams."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from models.transformer import BlockState, TransformerState

__all__ = ["MAHACache", "MAHACacheLayer"]


class MAHACacheLayer(CacheLayerMixin):
    """The state of one block. Its size is set by the windows and the model's `max_len`, not by the text so far.

    Attributes:
        state: what the block remembers; None before the first text.
        columns: how many columns were seen, padding included; what `get_seq_length` tells.
    """

    is_compileable = False
    is_sliding = False

    def __init__(self, max_len: int) -> None:
        super().__init__()
        self.max_len = max_len
        self.columns = 0
        self.state: BlockState | None = None

    def set(self, state: BlockState, columns: int) -> None:
        """Takes the state after some columns of text."""
        self.state, self.columns, self.is_initialized = state, columns, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Not for this layer: its state is made from whole cells by `MAHAModel`."""
        raise TypeError("a MAHACacheLayer is filled by MAHAModel, not by keys and values.")

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Not for this layer: its state is made from whole cells by `MAHAModel`."""
        raise TypeError("a MAHACacheLayer is filled by MAHAModel, not by keys and values.")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of a mask over all that was seen."""
        return self.columns + query_length, 0

    def get_seq_length(self) -> int:
        """How many columns were seen, padding included."""
        return self.columns

    def get_max_length(self) -> int:
        """The model's `max_len`."""
        return self.max_len

    def offload(self) -> None:
        """Moves the state to the CPU."""
        if self.state is not None:
            self.device = self.state.attention.lengths.device
            self._change(lambda x: x.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Moves the state back to where it was."""
        if self.state is not None and hasattr(self, "device"):
            self._change(lambda x: x.to(self.device, non_blocking=True))

    def reset(self) -> None:
        """Forgets everything."""
        self.state, self.columns, self.is_initialized = None, 0, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was."""
        self._change(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row."""
        self._change(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows."""
        self._change(lambda x: x[indices.to(x.device)])

    def crop(self, tokens_to_remove: int) -> None:
        """Refuses: a cell that was made cannot be unmade.

        Raises:
            ValueError: `tokens_to_remove` is not 0.
        """
        if tokens_to_remove:
            raise ValueError("a MAHACache cannot be cropped: cells that were made of the tokens cannot be unmade.")

    def _change(self, function: Callable[[Tensor], Tensor]) -> None:
        if self.state is not None:
            self.state = TransformerState([self.state]).map(function).blocks[0]


class MAHACache(Cache):
    """One layer for each block.

    Args:
        num_layers: number of blocks.
        max_len: the model's.
    """

    def __init__(self, num_layers: int, max_len: int) -> None:
        super().__init__(layers=[MAHACacheLayer(max_len) for _ in range(num_layers)])

    @property
    def transformer_state(self) -> TransformerState | None:
        """The states of all blocks; None before the first text."""
        states = [layer.state for layer in self.layers if isinstance(layer, MAHACacheLayer) and layer.state is not None]
        return TransformerState(states) if len(states) == len(self.layers) else None

    def set_transformer_state(self, state: TransformerState, columns: int) -> None:
        """Takes the states of all blocks after some columns of text."""
        for layer, block in zip(self.layers, state.blocks, strict=True):
            assert isinstance(layer, MAHACacheLayer)
            layer.set(block, columns)
