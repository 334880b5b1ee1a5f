"""A vocabulary of the words and parts of words of some texts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

__all__ = ["learn_subwords"]

PAD, END = "<pad>", "</s>"


def learn_subwords(texts: Iterable[str], size: int, folder: Path) -> str:
    """Learns byte-pair encoding (Sennrich et al. 2016) of bytes, as GPT-2 has it, and saves it to a folder.

    A row of tokens ends with its end token, as T5 has it.

    Args:
        texts: To learn from.
        size: Number of tokens at most, those of the 256 bytes and the two special ones included.
        folder: New, or empty.

    Returns:
        The folder, as the name of a tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, END]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, special.index(END))]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False
    ).save_pretrained(folder)
    return str(folder)
