"""Texts: the built-in novel, and what is said about files that cannot be used."""

import fsspec
import pytest

from maha_opt.text import TextError, novel, read_text


def test_the_novel_is_whole():
    text = novel()
    assert len(text) > 400_000
    assert text.startswith(b"NORTHANGER ABBEY")
    assert text.decode("utf-8").count("Catherine") > 400


def test_a_file_is_read_byte_by_byte(tmp_path):
    file = tmp_path / "own.txt"
    file.write_bytes("naïve\r\n€".encode())
    assert read_text(file) == "naïve\r\n€".encode()
    assert read_text(str(file)) == read_text(file)


def test_a_byte_order_mark_is_no_text(tmp_path):
    file = tmp_path / "own.txt"
    file.write_bytes(b"\xef\xbb\xbfwords")
    assert read_text(file) == b"words"


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no file"), (b"", "empty"), (b"\xef\xbb\xbf \n", "empty"), (b"ab\xffcd", "byte 0xff at position 2")],
)
def test_a_file_that_is_no_text_is_named_with_the_reason(tmp_path, content, words):
    file = tmp_path / "own.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(TextError, match=words) as raised:
        read_text(file)
    assert str(file) in str(raised.value)


def test_a_folder_is_no_text(tmp_path):
    with pytest.raises(TextError, match="folder"):
        read_text(tmp_path)


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    file = tmp_path / "own.txt"
    file.write_text("words")

    def refuse(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(fsspec, "open", refuse)
    with pytest.raises(TextError, match=r"cannot be read: Permission denied"):
        read_text(file)
