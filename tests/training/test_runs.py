"""Runs: they learn, go on after a kill as if nothing had happened, and leave whole checkpoints whatever happens."""

import copy
import csv
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import SMALL_COMMAND, settings
from typer.testing import CliRunner

from maha_opt.cli import app
from maha_opt.run_folder import FolderError
from models.training.checkpoints import CheckpointError, checkpoints, last_whole_checkpoint
from models.training.curves import CURVE_FILE
from models.training.loading import load
from models.training.runs import resume, train
from models.training.settings import Settings

ROOT = Path(__file__).parents[2]
SAY = {"say": lambda line: None}
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests/training")
from small import settings
from models.training.runs import train
def say(line):
    if "step 25 of 30" in line:
        os.kill(os.getpid(), signal.SIGSTOP)
train(settings(), Path(sys.argv[1]), say=say)
"""
"""A run that stops some steps after its second checkpoint; by itself, so that it is at this step on any machine."""


def curve(folder):
    with (folder / CURVE_FILE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def losses(folder, name="train_loss"):
    return torch.tensor([float(row[name]) for row in curve(folder) if row[name]], dtype=torch.float64)


def test_a_run_learns_and_leaves_a_model_a_tokenizer_and_a_curve(finished):
    loaded = load(finished.folder)
    assert loaded.settings == settings()
    assert loaded.tokenizer("ab").input_ids == [100, 101, 1]
    assert torch.equal(loaded.model.lm_head.weight, finished.model.lm_head.weight)
    rows = curve(finished.folder)
    assert [int(row["step"]) for row in rows] == [5, 10, 15, 20, 25, 30]
    assert [bool(row["validation_loss"]) for row in rows] == [False, True] * 3
    assert losses(finished.folder)[-1] < losses(finished.folder)[0] - 1
    assert finished.metrics["eval_loss"] == losses(finished.folder, "validation_loss")[-1]
    assert [path.name for path in checkpoints(finished.folder)] == ["checkpoint-20", "checkpoint-30"]


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(finished, tmp_path):
    folder = tmp_path / "run"
    running = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT)
    _, status = os.waitpid(running.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    with pytest.raises(FolderError, match="Another run is writing to"):
        resume(folder, **SAY)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    assert last_whole_checkpoint(folder) == folder / "checkpoint-20"
    assert not (folder / "model.safetensors").exists()
    resume(folder, **SAY)
    assert curve(folder) == curve(finished.folder)
    ours, theirs = (load_file(place / "model.safetensors") for place in (folder, finished.folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_accumulated_parts_make_the_steps_of_the_whole(finished, tmp_path):
    # Without dropout, whose masks would be others.
    plain = {"options": {"dropout": 0.0}}
    train(settings(**plain), tmp_path / "whole", **SAY)
    train(settings(**plain, batch=1, accumulate=4), tmp_path / "parts", **SAY)
    for name in ("train_loss", "gradient_norm", "validation_loss"):
        # float32 rounding, which 30 steps of Adam magnify
        torch.testing.assert_close(
            losses(tmp_path / "parts", name), losses(tmp_path / "whole", name), rtol=1e-3, atol=0
        )
    first = [losses(tmp_path / name, "gradient_norm")[0] for name in ("parts", "whole")]
    torch.testing.assert_close(*first, rtol=1e-5, atol=0)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_make_the_steps_of_one_with_the_same_batch(tmp_path):
    small = ["train", *SMALL_COMMAND, "--steps", "5", "--evaluate-every", "5", "--save-every", "5"]
    result = CliRunner().invoke(app, [*small, "--batch", "4", "--output", str(tmp_path / "one")])
    assert result.exit_code == 0, result.output
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "maha_opt.cli"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *small, "--batch", "2"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()  # which the first process made, and told the other
    folder.rename(tmp_path / "two")
    for name in ("train_loss", "gradient_norm", "validation_loss"):
        torch.testing.assert_close(losses(tmp_path / "two", name), losses(tmp_path / "one", name), rtol=1e-4, atol=0)


def test_a_full_disk_ends_a_run_in_words_and_leaves_the_last_checkpoint_whole(finished, tmp_path, monkeypatch):
    save, folder = torch.save, tmp_path / "run"

    def save_until_full(content, file, *arguments, **options):
        if "checkpoint-20" not in str(file):
            return save(content, file, *arguments, **options)
        Path(file).write_bytes(b"the beginning of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", save_until_full)
    with pytest.raises(CheckpointError, match=r"checkpoint-20 could not be written .*No space left.* is checkpoint-10"):
        train(settings(), folder, **SAY)
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-10"]
    monkeypatch.undo()
    resume(folder, **SAY)
    assert curve(folder) == curve(finished.folder)


@pytest.mark.parametrize("damage", ["no state", "cut optimizer", "cut weights", "no weights"])
def test_a_checkpoint_that_breaks_off_is_passed_over(finished, tmp_path, damage):
    for name in ("checkpoint-20", "checkpoint-30"):
        shutil.copytree(finished.folder / name, tmp_path / name)
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-30"
    broken = tmp_path / "checkpoint-30"
    weights, optimizer = broken / "model.safetensors", broken / "optimizer.pt"
    if damage == "no state":
        (broken / "trainer_state.json").unlink()
    elif damage == "cut optimizer":
        optimizer.write_bytes(optimizer.read_bytes()[:-100])
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        weights.unlink()
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-20"


def test_folders_that_hold_a_run_or_none_are_refused(finished, tmp_path):
    with pytest.raises(CheckpointError, match="holds a run already"):
        train(settings(), finished.folder, **SAY)
    with pytest.raises(FileNotFoundError, match="not the folder of a run"):
        resume(tmp_path, **SAY)
    settings().save(tmp_path)
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        resume(tmp_path, **SAY)


def test_settings_come_back_from_their_file_and_are_checked(tmp_path):
    before = settings(texts=("a", "b"), columns=("x", "y"), trainer={"max_grad_norm": 0.5})
    before.save(tmp_path)
    assert Settings.load(tmp_path) == before
    with pytest.raises(ValueError, match="save_every must be a multiple of log_every=5, not 12"):
        settings(save_every=12)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        settings(steps=0)
    with pytest.raises(ValueError, match="precision must be"):
        settings(precision="fp8")
    with pytest.raises(ValueError, match=r"TrainingArguments has no argument 'colour'"):
        train(settings(trainer={"colour": 1}), tmp_path / "run", **SAY)
    assert not (tmp_path / "run").exists()


def test_classes_translations_and_hidden_tokens_are_learned(tmp_path):
    rows = [("good film", "yes"), ("bad film", "no")] * 20
    table = tmp_path / "table.csv"
    table.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")
    common = {"texts": (str(table),), "held_out": 0.25, "steps": 60, "batch": 8, "evaluate_every": 30, "save_every": 30}
    done = train(settings(task="classify", options={"dropout": 0.0}, **common), tmp_path / "classes", **SAY)
    assert done.metrics["eval_accuracy"] == 1
    assert done.model.config.id2label == {0: "no", 1: "yes"}

    columns = {"columns": ("text", "label")}
    done = train(settings(task="translate", options={"dropout": 0.0}, **common, **columns), tmp_path / "pairs", **SAY)
    assert done.metrics["eval_loss"] < 2  # from ln 259 = 5.6: it knows which bytes there are at least
    done = train(settings(task="masked", steps=10), tmp_path / "masked", **SAY)
    assert done.model.config.vocab_size == 260  # a token for what is hidden
    assert done.metrics["eval_loss"] < 5.6


def test_the_first_weights_follow_the_seed():
    from models.training.runs import make_model
    from models.training.tasks import make_task
    from models.training.tokens import make_tokenizer

    def weights(seed):
        run = settings(seed=seed)
        return make_model(run, make_task(run, make_tokenizer()), vocab_size=259).lm_head.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_precision_is_that_of_autocast(tmp_path):
    done = train(settings(precision="bf16", steps=10), tmp_path / "run", **SAY)
    assert done.model.dtype == torch.float32
    assert losses(tmp_path / "run").isfinite().all()


def test_a_run_goes_on_from_a_model_that_has_learned_elsewhere(finished, tmp_path):
    still = settings(steps=5, evaluate_every=5, save_every=5, learning_rate=0.0)
    again = train(still, tmp_path / "again", say=lambda line: None, start=copy.deepcopy(finished.model))
    anew = train(still, tmp_path / "anew", say=lambda line: None)
    assert again.metrics["eval_loss"] == finished.metrics["eval_loss"] < anew.metrics["eval_loss"]
    before = finished.model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in again.model.state_dict().items())
