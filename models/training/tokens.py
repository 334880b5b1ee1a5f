"""Texts as tokens: bytes, or a published tokenizer; and blocks of them, as a language model reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase

from maha_opt.text import TextError

__all__ = ["TokenBlocks", "encode", "make_tokenizer"]

PIECE = 1 << 16
"""Characters that a published tokenizer is given at once, about: it ends at a line."""


def make_tokenizer(name: str | None = None) -> PreTrainedTokenizerBase:
    """A published tokenizer by its name or folder; bytes (those of ByT5, Xue et al. 2022) if none is named.

    Raises:
        TextError: There is no such tokenizer here.
    """
    if name is None:
        return ByT5Tokenizer(extra_ids=0)
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        raise TextError(f"The tokenizer {name} cannot be loaded: {' '.join(str(error).split())}") from error


def encode(tokenizer: PreTrainedTokenizerBase, text: bytes) -> Tensor:
    """The tokens (n,) int64 of a UTF-8 text, with nothing added at either end."""
    if isinstance(tokenizer, ByT5Tokenizer):  # what it does, without a Python object for every byte
        return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).astype(np.int64)) + tokenizer.offset
    pieces, start, decoded = [], 0, text.decode("utf-8")
    while start < len(decoded):
        end = decoded.find("\n", start + PIECE) + 1 or len(decoded)
        pieces.append(decoded[start:end])
        start = end
    found = tokenizer(pieces, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return torch.tensor([token for piece in found for token in piece], dtype=torch.int64)


class TokenBlocks(Dataset[dict[str, Tensor]]):
    """Texts cut into blocks of equal length, one after the other; what does not fill a block at the end is left out.

    Args:
        tokenizer: Makes tokens of them.
        texts: UTF-8.
        length: Tokens in a block.

    Attributes:
        tokens: (blocks, length) int64.
        bytes_per_token: of the texts.

    Raises:
        TextError: There is not enough text for a block.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[bytes], length: int) -> None:
        encoded = [encode(tokenizer, text) for text in texts]
        count = sum(map(len, encoded))
        if not any(len(tokens) >= length for tokens in encoded):
            raise TextError(
                f"A block of {length} tokens does not fit into the text, whose longest part has "
                f"{max(map(len, encoded), default=0)}: use a shorter context or more text."
            )
        self.tokens = torch.cat([tokens[: len(tokens) // length * length].view(-1, length) for tokens in encoded])
        self.bytes_per_token = sum(map(len, texts)) / count

    def spread(self, count: int) -> Tensor:
        """So many of the blocks, or all, spread evenly over the texts: (at most count, length)."""
        return self.tokens[torch.linspace(0, len(self) - 1, min(count, len(self))).long()]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}
