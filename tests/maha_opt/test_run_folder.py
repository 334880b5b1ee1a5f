"""Folders of runs: every run that names none has one of its own, and a folder has one writer at a time."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maha_opt.run_folder import FolderError, folder_for, new_folder, remove_if_empty, sole_writer

ROOT = Path(__file__).parents[2]


def start(code, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    code = f"from maha_opt.run_folder import *; from pathlib import Path; import sys, time; {code}"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(16) as threads:
        made = list(threads.map(lambda _: new_folder("compare"), range(64)))
    assert len(set(made)) == 64
    assert all(path.is_dir() for path in made)


def test_processes_that_start_together_get_folders_of_their_own(tmp_path):
    code = "print(*(new_folder('sweep') for _ in range(100)), sep='\\n')"
    running = [start(code, tmp_path) for _ in range(2)]
    made = [process.communicate()[0].split() for process in running]
    assert len(set(made[0] + made[1])) == len(list((tmp_path / "runs").iterdir())) == 200


def test_a_second_writer_is_told_and_the_next_is_not(tmp_path):
    with sole_writer(tmp_path / "run"):
        with pytest.raises(FolderError, match="Another run is writing to"), sole_writer(tmp_path / "run"):
            raise AssertionError("unreachable")
        with sole_writer(tmp_path / "other"):
            pass
    with sole_writer(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_a_killed_process_holds_nothing_but_a_stopped_one_does(tmp_path):
    holder = start(
        "held = sole_writer(Path('run')); held.__enter__(); print('held', flush=True); time.sleep(600)", tmp_path
    )
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(FolderError, match="Another run is writing to"), sole_writer(tmp_path / "run"):
        raise AssertionError("unreachable")
    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists()  # it left its file, which holds nobody up
    with sole_writer(tmp_path / "run"):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_that_outlives_a_killed_process_holds_nothing(tmp_path):
    code = (
        "import os; held = sole_writer(Path('run')); held.__enter__(); child = os.fork();"
        "print(child, flush=True) if child else None; time.sleep(600)"
    )
    holder = start(code, tmp_path)
    child = int(holder.stdout.readline())
    try:
        holder.kill()
        holder.wait()
        with sole_writer(tmp_path / "run"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_new_folder_in_which_nothing_was_written_is_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="of no use"), folder_for("compare", None):
        raise ValueError("of no use")
    assert not (tmp_path / "runs").exists()
    with folder_for("compare", None) as path:
        (path / "results.csv").touch()
    remove_if_empty(path)
    assert (path / "results.csv").exists()
    named = tmp_path / "named"
    with folder_for("compare", named) as path:
        assert path == named
    assert named.exists()


def test_what_cannot_be_a_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    with pytest.raises(FolderError, match="Cannot write to runs"):
        new_folder("compare")
    with pytest.raises(FolderError, match="Cannot write to"), sole_writer(tmp_path / "runs"):
        raise AssertionError("unreachable")
