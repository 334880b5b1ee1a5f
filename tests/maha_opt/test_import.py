"""Importing maha_opt: light, and clear about folders of the user's own that stand in the way."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # -c puts the folder in front of the path, as `python script.py` and `python -m` do.
    code = f"import sys; sys.path.append({str(ROOT)!r}); {code}"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


def test_importing_needs_neither_models_nor_plots_nor_the_command_line(tmp_path):
    heavy = {"models", "matplotlib", "pandas", "typer", "rich", "cvxpy", "cvxpylayers", "scipy"}
    done = run(f"import maha_opt; print(sorted({heavy!r} & set(sys.modules)))", tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("package", ["solvers", "models"])
@pytest.mark.parametrize("kind", ["package", "module"])
def test_a_folder_of_the_users_own_that_shadows_ours_is_named(tmp_path, package, kind):
    theirs = tmp_path / (package if kind == "package" else f"{package}.py")
    if kind == "package":
        theirs.mkdir()
        (theirs / "__init__.py").touch()
    else:
        theirs.touch()
    done = run("import maha_opt, maha_opt.commands", tmp_path)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError")
    assert repr(package) in message
    assert str(theirs) in message
    assert "Rename" in message


def test_aggregations_need_no_models_and_work_beside_a_folder_of_that_name(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    code = (
        "import torch; from maha_opt import ConvexAggregation, NashAggregation;"
        "print(NashAggregation(3, 8)(torch.ones(1, 2, 3, 8)).output.shape)"
    )
    done = run(code, tmp_path)
    assert done.stdout.strip() == "torch.Size([1, 2, 8])", done.stderr


def test_a_package_of_that_name_that_is_imported_already_is_named(tmp_path):
    theirs = tmp_path / "elsewhere" / "solvers"
    theirs.mkdir(parents=True)
    (theirs / "__init__.py").touch()
    done = run(
        f"sys.path.insert(0, {str(theirs.parent)!r}); import solvers; sys.path.pop(0); import maha_opt", tmp_path
    )
    assert str(theirs) in done.stderr.strip().splitlines()[-1]


def test_folders_without_python_files_in_the_current_directory_do_no_harm_if_ours_is_on_the_path(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "weights.bin").touch()
    done = run("import maha_opt", tmp_path)
    assert done.returncode == 0, done.stderr


def test_our_packages_are_known_wherever_they_are(tmp_path):
    (tmp_path / "solvers").symlink_to(ROOT / "solvers")
    done = run("import maha_opt", tmp_path)
    assert done.returncode == 0, done.stderr
