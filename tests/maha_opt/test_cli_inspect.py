"""`maha-opt inspect`: what it says of a saved model, and what it refuses."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("transformers", reason="Hugging Face transformers is not installed: pip install 'maha-opt[hf]'")

from transformers import ByT5Tokenizer

from maha_opt import cli
from maha_opt.commands import inspect
from maha_opt.text import novel
from models import MAHAConfig, MAHAForCausalLM, MAHAForMaskedLM, MAHAForSequenceClassification, inspect_transformer
from models.training.loading import model_folder

ROOT = Path(__file__).parents[2]
PICTURES = ["attention.png", "scales.png", "weights.png"]
PASSAGE = 'Héllo, "world"!\nTwo.'


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["inspect", *map(str, arguments)], env={"COLUMNS": "100"})


def said(result):
    return " ".join(result.output.split())


def save(folder, kind=MAHAForCausalLM, *, tokenizer=True, **options):
    torch.manual_seed(0)
    settings = {
        "vocab_size": 259, "max_len": 96, "d_model": 16, "num_heads": 2, "num_layers": 2, "d_ff": 24, "num_scales": 3,
        "window": 9, "pad_token_id": 0, "eos_token_id": 1, **options,
    }  # fmt: skip
    model = kind(MAHAConfig(**settings)).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    if tokenizer:
        ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return save(folder), folder


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_weights_are_written_as_the_model_has_them(saved, tmp_path):
    model, folder = saved
    result = invoke(folder, "--passage", PASSAGE, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [*PICTURES[:2], "weights.csv", PICTURES[2]]
    ids = torch.tensor([[byte + 3 for byte in PASSAGE.encode()]])
    records = inspect_transformer(model.model.transformer, ids)
    written = rows(tmp_path / "weights.csv")
    assert len(written) == 2 * ids.shape[1] * 3
    assert "".join(row["token"] for row in written if (row["block"], row["scale"]) == ("1", "0")) == PASSAGE
    for row in written:
        assert row["head"] == "1"
        weight = records[int(row["block"]) - 1].weights[0, int(row["position"]), 0, int(row["scale"])]
        if weight.isnan():
            assert row["weight"] == ""
        else:  # nine digits are all of float32
            assert float(row["weight"]) == pytest.approx(float(weight), rel=1e-6, abs=1e-7)


def test_the_table_says_means_and_what_is_switched_off(saved, tmp_path):
    _, folder = saved
    result = invoke(folder, "--passage", PASSAGE, "--output", tmp_path)
    written = rows(tmp_path / "weights.csv")
    for block in "12":
        line = next(line for line in result.output.splitlines() if line.split()[:1] == [block])
        for scale in "012":
            own = [
                float(row["weight"])
                for row in written
                if row["block"] == block and row["scale"] == scale and row["weight"]
            ]
            off = sum(weight == 0 for weight in own) / len(own)
            assert f"{sum(own) / len(own):.3f} ({off:.0%})" in line
    assert "21 tokens, ConvexAggregation by pivot" in result.output
    assert all(name in said(result) for name in (*PICTURES, "weights.csv"))


def test_the_default_is_a_paragraph_in_the_middle_of_the_novel(saved):
    _, folder = saved
    result = invoke(folder)
    assert result.exit_code == 0, result.output
    written = rows(folder / "inspect" / "weights.csv")
    passage = "".join(row["token"] for row in written if (row["block"], row["scale"]) == ("1", "0"))
    assert len(passage) == 96  # as many as the model takes
    book = novel().decode().replace("\r\n", "\n")
    assert abs(book.index(passage) - len(book) // 2) < 3000
    assert book[book.index(passage) - 2 :].startswith("\n\n" + passage[0])


def test_a_part_of_a_file_some_blocks_and_another_solver(saved, tmp_path):
    _, folder = saved
    text = tmp_path / "text.txt"
    text.write_text("0123456789" * 5, encoding="utf-8")
    result = invoke(
        folder,
        "--text",
        text,
        "--start",
        7,
        "--length",
        12,
        "--block",
        "2",
        "--solver",
        "softmax",
        "--output",
        tmp_path,
    )
    assert result.exit_code == 0, result.output
    written = rows(tmp_path / "weights.csv")
    assert "".join(row["token"] for row in written if row["scale"] == "0") == "789012345678"
    assert {row["block"] for row in written} == {"2"}
    assert "by softmax" in result.output
    # A softmax switches nothing off.
    assert all(float(row["weight"]) > 0 for row in written if row["weight"])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (MAHAForMaskedLM, {"granularity": "token_head"}),
        (MAHAForSequenceClassification, {"granularity": "head", "num_labels": 3}),
        (MAHAForCausalLM, {"aggregation_strategy": "nash", "query_resolution": "fine"}),
    ],
)
def test_models_for_every_task(tmp_path, kind, options):
    save(tmp_path, kind, **options)
    result = invoke(tmp_path, "--passage", PASSAGE)
    assert result.exit_code == 0, result.output
    heads = {"1"} if kind is MAHAForCausalLM else {"1", "2"}
    written = rows(tmp_path / "inspect" / "weights.csv")
    assert {row["head"] for row in written} == heads
    assert len(written) == 2 * 21 * 3 * len(heads)
    assert all((tmp_path / "inspect" / name).stat().st_size > 10_000 for name in PICTURES)


def test_the_newest_checkpoint_of_a_run_is_taken(saved, tmp_path):
    _, folder = saved
    for number in (9, 10):
        shutil.copytree(folder, tmp_path / f"checkpoint-{number}", ignore=shutil.ignore_patterns("inspect"))
    (tmp_path / "checkpoint-11").mkdir()  # an unfinished one
    assert model_folder(tmp_path) == tmp_path / "checkpoint-10"
    assert model_folder(folder) == folder
    for path in tmp_path.glob("checkpoint-*/tokenizer_config.json"):  # it may stand in the run's folder alone
        path.replace(tmp_path / path.name)
    result = invoke(tmp_path, "--passage", PASSAGE)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "inspect" / "weights.png").exists()


def test_a_model_that_learned_through_unrolled_steps_is_inspected_with_an_exact_solver(tmp_path):
    unrolled = {"solver": "projected_gradient", "gradient": "unrolled", "solver_options": {"unroll": 3}}
    save(tmp_path / "model", **unrolled)
    result = invoke(tmp_path / "model", "--passage", PASSAGE, "--solver", "pivot")
    assert result.exit_code == 0, result.output
    assert "ConvexAggregation by pivot" in said(result)


def test_without_matplotlib_only_the_pictures_are_missing(saved, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "maha_opt.plots", None)
    result = invoke(saved[1], "--passage", PASSAGE, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert "pip install 'maha-opt[study]'" in said(result)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.csv"]


def test_folders_that_are_no_model_are_refused_in_words(tmp_path):
    def refusal(*arguments):
        result = invoke(*arguments)
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
        assert "bug" not in result.output
        return said(result)

    assert "There is no folder" in refusal(tmp_path / "nowhere")
    assert "is not a model: it has no config.json" in refusal(tmp_path)
    config = tmp_path / "config.json"
    assert "is a file, not a model's folder" in (config.touch(), refusal(config))[1]
    assert "is not JSON" in refusal(tmp_path)
    config.write_text('{"model_type": "bert"}', encoding="utf-8")
    assert "a model of type 'bert'" in refusal(tmp_path)
    save(tmp_path, num_scales=1)
    assert "one scale only" in refusal(tmp_path)
    save(tmp_path / "mute", tokenizer=False)
    assert "has no tokenizer: save it there too" in refusal(tmp_path / "mute")
    (tmp_path / "mute" / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(tmp_path / "mute")


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path):
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_layers": 3}), encoding="utf-8")
    result = invoke(tmp_path, "--passage", PASSAGE)
    assert result.exit_code == 1
    assert "lacks weights of its model, such as model.transformer.layers.2." in said(result)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    save(tmp_path, vocab_size=100)
    result = invoke(tmp_path, "--passage", "abc")
    assert result.exit_code == 1
    assert "it makes token 102, but the model knows 100 tokens" in said(result)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--passage", "  "), "The passage is empty"),
        (("--passage", "abc", "--start", 3), "nothing to read from character 3 on"),
        (("--passage", "abc", "--text", "a.txt"), "--text and --passage both say what to read"),
        (("--text", "nowhere.txt"), "There is no file nowhere.txt"),
        (("--length", 97), "--length is 97, but at most 96 tokens"),
        (("--block", "3"), "--block must be 'all' or numbers from 1 to 2"),
        (("--block", "first"), "--block must be 'all' or numbers from 1 to 2"),
        (("--solver", "magic"), "solver must be"),
    ],
)
def test_options_of_no_use_are_refused_by_name(saved, options, words):
    result = invoke(saved[1], *options)
    assert result.exit_code == 1
    assert words in said(result)


def test_tokens_of_several_bytes_and_texts_that_change_when_joined():
    class Joining:
        """Makes a ligature of what stood before, as some decoders do."""

        def decode(self, ids, **options):
            return "".join(map(chr, ids)).replace("ff", "ﬀ")

    assert inspect.token_texts(ByT5Tokenizer(extra_ids=0), [107, 198, 172, 124]) == ["h", "", "é", "y"]
    assert inspect.token_texts(Joining(), list(map(ord, "aff!"))) == ["a", "f", "f", "!"]


def test_help_is_quick_because_it_needs_no_torch():
    code = "import sys; from typer.testing import CliRunner; from maha_opt import cli; "
    code += "CliRunner().invoke(cli.app, ['inspect', '--help']); print(sorted({'torch', 'models'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
