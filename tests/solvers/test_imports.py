"""What imports what: numerics stand alone, and heavy packages are loaded when they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import maha_opt
import solvers

HEAVY = ("cvxpy", "cvxpylayers", "diffcp", "scipy", "matplotlib", "pandas")


def imported(path):
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            yield node.module


def files(package):
    return sorted(Path(package.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", files(solvers), ids=lambda path: path.name)
def test_solvers_imports_neither_maha_opt_nor_models(path):
    assert not [name for name in imported(path) if name.split(".")[0] in ("maha_opt", "models")]


@pytest.mark.parametrize("path", files(maha_opt), ids=lambda path: path.name)
def test_maha_opt_imports_models_in_the_command_line_only(path):
    if path.relative_to(Path(maha_opt.__file__).parent).parts[0] not in ("cli", "commands"):
        assert not [name for name in imported(path) if name.split(".")[0] == "models"]


@pytest.mark.parametrize("package", ["solvers", "maha_opt"])
def test_importing_a_package_loads_no_heavy_one(package):
    """torch itself loads none of them either."""
    code = f"import {package}, sys; print([name for name in {HEAVY} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_solving_with_our_own_solvers_loads_no_heavy_package_either():
    code = (
        "import sys, torch; from solvers import AffineVI, solve; p = AffineVI(torch.eye(2), torch.zeros(2));"
        "[solve(p, s) for s in ('pivot', 'best_response', 'projected_gradient', 'mirror_descent', 'mean')];"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_everything_that_is_exported_exists_and_is_documented():
    for name in solvers.__all__:
        assert getattr(solvers, name).__doc__, name
