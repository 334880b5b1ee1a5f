"""The models of `benchmarks.quality` are of one size, and its vocabulary loses nothing."""

import pytest
import torch

pytest.importorskip("transformers", reason="Hugging Face transformers is not installed: pip install 'maha-opt[train]'")

from benchmarks.quality.books import make_untrained
from benchmarks.quality.experiments import EXPERIMENTS
from benchmarks.quality.subwords import learn_subwords
from models.training.tokens import make_tokenizer

TEXTS = ["The tide rises.", "Die Flut steigt; das Öl nicht.", "the tide, the tide"] * 5


@pytest.mark.parametrize("experiment", ["books", "unrolled", "ablations"])
def test_models_on_books_are_of_one_size(experiment, tmp_path):
    for name in ("other.txt", "persuasion.txt"):
        (tmp_path / name).write_text("text", encoding="utf-8")
    cells = [cell for cell in EXPERIMENTS[experiment]() if cell.seed == 0]
    with torch.device("meta"):
        sizes = [make_untrained(cell, tmp_path).num_parameters() for cell in cells]
    assert len(sizes) >= 7
    assert max(sizes) < 1.005 * min(sizes)  # widths are whole numbers


def test_subwords_give_back_every_text_and_end_with_their_token(tmp_path):
    tokenizer = make_tokenizer(learn_subwords(TEXTS, 280, tmp_path))
    assert len(tokenizer) == 280
    for text in [*TEXTS, "unseen: 日本 & ñ"]:
        ids = tokenizer(text).input_ids
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    assert len(tokenizer("The tide").input_ids) < len("The tide")
