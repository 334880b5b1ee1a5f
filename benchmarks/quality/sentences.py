"""Sentences: the sentiment of film reviews by an encoder, and English help texts in German by an encoder-decoder."""

from __future__ import annotations

import csv
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import DataCollatorWithPadding

from benchmarks.quality.experiments import D_FF, ENCODER_SIZES, UNSAVED, Cell
from benchmarks.quality.results import curve_of
from benchmarks.quality.sizes import as_large_as_convex
from benchmarks.quality.subwords import learn_subwords
from models.huggingface import MAHAForConditionalGeneration, MAHAForSequenceClassification
from models.training.evaluation import bleu_and_chrf, scores, translate
from models.training.runs import Finished, train
from models.training.settings import Settings
from models.training.tasks import Rows, make_task
from models.training.texts import read_columns
from models.training.tokens import make_tokenizer

__all__ = ["run_sentiment", "run_translation"]

SENTIMENT, PAIRS = "movie_sentiment.tsv.xz", "en_de_help.tsv.xz"
CLEAR = 0.5
"""Mean human rating from which a sentence counts as positive or negative."""

TESTED, TRANSLATED = 1000, 300
"""Rows that are judged by: sentences at random, and the last pairs of the file, which stand in document order."""

CONTEXT, WINDOW = 96, 16
"""Tokens of a sentence at most, and cells that each scale sees; a sentence has 25 to 30 tokens in the mean."""

VOCABULARY = 4000

Table = list[list[str]]


def run_sentiment(cell: Cell, data: Path, rate: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Accuracy of a classifier, and of logistic regression on TF-IDF where scikit-learn is installed."""
    labels, ratings, texts = read_columns(data / SENTIMENT, ["label", "score", "sentence"])
    rows = [
        [text, label] for text, label, rating in zip(texts, labels, ratings, strict=True) if abs(float(rating)) >= CLEAR
    ]
    random.Random(0).shuffle(rows)
    test, learned = rows[:TESTED], rows[TESTED:]
    with tempfile.TemporaryDirectory() as name:
        settings = _settings(cell, rate, Path(name), "classify", learned, test, MAHAForSequenceClassification)
        done = train(settings, Path(name) / "run", say=say)
        tokenizer = make_tokenizer(settings.tokenizer)
        held = make_task(settings, tokenizer).validation
    assert isinstance(held, Rows)
    logits = scores(done.model, held.rows, DataCollatorWithPadding(tokenizer)).double()
    answers = torch.tensor([row["labels"] for row in held.rows])
    record = _about(done, settings)
    record["test_loss"] = float(cross_entropy(logits, answers))
    record["test_accuracy"] = float((logits.argmax(-1) == answers).double().mean())
    return record | {"tfidf_accuracy": _tfidf(learned, test)}


def run_translation(cell: Cell, data: Path, rate: float, say: Callable[[str], None]) -> dict[str, Any]:
    """BLEU and chrF of a translator."""
    pairs = [list(pair) for pair in zip(*read_columns(data / PAIRS, ["0", "1"]), strict=True)]
    learned, test = pairs[:-TRANSLATED], pairs[-TRANSLATED:]
    with tempfile.TemporaryDirectory() as name:
        settings = _settings(cell, rate, Path(name), "translate", learned, test, MAHAForConditionalGeneration)
        done = train(settings, Path(name) / "run", say=say)
        tokenizer = make_tokenizer(settings.tokenizer)
    sources, references = zip(*test, strict=True)
    return _about(done, settings) | bleu_and_chrf(translate(done.model, tokenizer, sources), references)


def _settings(
    cell: Cell, rate: float, folder: Path, task: str, learned: Table, test: Table, make: Callable[..., Any]
) -> Settings:
    """The run of a cell, its tables and its vocabulary in a folder."""
    texts = [text for row in learned for text in (row if task == "translate" else row[:1])]
    tokenizer = learn_subwords(texts, VOCABULARY, folder / "tokenizer")
    settings = Settings(
        task=task,
        model=cell.model,
        options=cell.options,
        context=CONTEXT,
        window=WINDOW,
        texts=(_write(folder / "train.tsv", learned),),
        validation=(_write(folder / "test.tsv", test),),
        columns=("0", "1"),
        tokenizer=tokenizer,
        steps=cell.steps,
        batch=cell.batch,
        learning_rate=rate,
        evaluate_every=cell.steps // 2,
        log_every=10,
        seed=cell.seed,
        **UNSAVED,
    )
    return as_large_as_convex(settings, ENCODER_SIZES, D_FF, make, len(make_tokenizer(tokenizer)))


def _about(done: Finished, settings: Settings) -> dict[str, Any]:
    return {
        "parameters": done.parameters,
        "rows": settings.steps * settings.batch,
        "curve": curve_of(done.history),
        "validation": done.metrics["eval_loss"],
    }


def _write(file: Path, rows: Table) -> str:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, escapechar=None)
        writer.writerows(rows)
    return str(file)


def _tfidf(learned: Table, test: Table) -> float | None:
    """Accuracy of the usual baseline; None without scikit-learn."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer  # pyright: ignore[reportMissingImports]
        from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    (texts, labels), (held_texts, held_labels) = (zip(*rows, strict=True) for rows in (learned, test))
    classifier = LogisticRegression(max_iter=1000, C=10).fit(words.fit_transform(texts), labels)
    return float(classifier.score(words.transform(held_texts), held_labels))
