"""What models learn from: texts, tables, tokens."""

import lzma

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from maha_opt.text import TextError, novel
from models.training.texts import read_columns, read_parts, text_files
from models.training.tokens import TokenBlocks, encode, make_tokenizer

TOKENIZER = make_tokenizer()


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="<"), max_size=60))
def test_bytes_become_the_tokens_that_their_published_tokenizer_makes(text):
    # Without "<": the published one reads "</s>" in a text as its end, which a text cannot mean.
    assert (
        encode(TOKENIZER, text.encode()).tolist()
        == ByT5Tokenizer(extra_ids=0)(text, add_special_tokens=False).input_ids
    )


def test_a_published_tokenizer_is_given_a_long_text_in_pieces_that_end_at_lines(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path)
    tokenizer = make_tokenizer(str(tmp_path))
    text = "a b c\n" * 30_000
    assert encode(tokenizer, text.encode()).tolist() == [0, 1, 2] * 30_000
    blocks = TokenBlocks(tokenizer, [text.encode()], 8)
    assert blocks.bytes_per_token == 2


def test_a_tokenizer_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TextError, match="nowhere cannot be loaded"):
        make_tokenizer(str(tmp_path / "nowhere"))


def test_blocks_follow_each_other_through_the_text_and_never_cross_into_another():
    texts = [b"0123456789", b"abcdefg", b"xy"]
    blocks = TokenBlocks(TOKENIZER, texts, 3)
    assert [TOKENIZER.decode(block["input_ids"]) for block in blocks] == ["012", "345", "678", "abc", "def"]
    assert torch.equal(blocks[1]["labels"], blocks[1]["input_ids"])
    assert blocks.bytes_per_token == 1
    with pytest.raises(TextError, match=r"block of 11 tokens does not fit .* longest part has 10"):
        TokenBlocks(TOKENIZER, texts, 11)


@given(st.text(min_size=2, max_size=40), st.floats(0.05, 0.95))
def test_what_is_held_out_and_what_is_learned_from_make_up_the_text_and_no_character_is_cut(text, held_out):
    import tempfile
    from pathlib import Path

    text = text.encode("utf-8", "ignore").decode().strip("\ufeff") + "ab"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text.txt"
        file.write_bytes(text.encode())
        try:
            (train,), (validation,) = read_parts([file], held_out=held_out)
        except TextError as error:
            assert "too little text" in str(error)  # noqa: PT017 - a text may be too short
            return
    assert train + validation == text.encode()
    assert (train.decode() + validation.decode()) == text


def test_the_novel_is_learned_from_where_nothing_is_named():
    (train,), (validation,) = read_parts(held_out=0.1)
    assert train + validation == novel()
    assert len(validation) == pytest.approx(0.1 * len(novel()), rel=1e-3)


def test_folders_and_compressed_files(tmp_path):
    (tmp_path / "b.txt").write_text("plain", encoding="utf-8")
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"packed"))
    (tmp_path / "notes.pdf").touch()
    assert [file.name for file in text_files([tmp_path])] == ["a.txt.xz", "b.txt"]
    assert read_parts([tmp_path], [tmp_path / "b.txt"]) == ([b"packed", b"plain"], [b"plain"])
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"packed" * 100)[:-20])
    with pytest.raises(TextError, match=r"a.txt.xz cannot be read"):
        read_parts([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(TextError, match="holds no text"):
        read_parts([tmp_path / "empty"])
    with pytest.raises(TextError, match="either text files or a data set"):
        read_parts([tmp_path], dataset="somewhere")


def test_a_data_set_by_name(tmp_path):
    pytest.importorskip("datasets")
    for part in ("train", "validation"):
        (tmp_path / f"{part}.jsonl").write_text(f'{{"text": "{part} one"}}\n{{"text": "two"}}\n', encoding="utf-8")
    assert read_parts(dataset=str(tmp_path)) == ([b"train one\ntwo"], [b"validation one\ntwo"])
    with pytest.raises(TextError, match="no column 'words'"):
        read_parts(dataset=str(tmp_path), column="words")
    with pytest.raises(TextError, match="cannot be loaded"):
        read_parts(dataset=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("table.csv", 'word,kind,number\n"a, b",x,1\nc,y,2\n'),
        ("table.tsv", "word\tkind\tnumber\na, b\tx\t1\nc\ty\t2\n"),
        ("table.jsonl", '{"word": "a, b", "kind": "x"}\n{"word": "c", "kind": "y"}\n'),
    ],
)
def test_tables(tmp_path, name, content):
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    assert read_columns(file, ["kind", "word"]) == [["x", "y"], ["a, b", "c"]]
    with pytest.raises(TextError, match="no column 'sort', but 'word', 'kind'"):
        read_columns(file, ["sort"])


def test_a_table_without_names_has_numbers(tmp_path):
    (tmp_path / "pairs.tsv.xz").write_bytes(lzma.compress(b'one\t"eins\ntwo\tzwei\n'))
    assert read_columns(tmp_path / "pairs.tsv.xz", ["0", "1"]) == [["one", "two"], ['"eins', "zwei"]]


def test_tables_of_no_use_are_refused_in_words(tmp_path):
    for name, content, words in (
        ("a.txt", "x", "must end in .csv"),
        ("a.csv", "", "cannot be read"),
        ("b.csv", "a,b\n", "holds no rows"),
        ("c.csv", "a,b\n1,\n", "empty cell in column 'b', row 0"),
        ("d.csv", "a,b\n1,2,3\n4,5,6,7\n", "cannot be read"),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(TextError, match=words):
            read_columns(tmp_path / name, ["a", "b"])
    with pytest.raises(TextError, match="There is no file"):
        read_columns(tmp_path / "nowhere.csv", ["a"])
