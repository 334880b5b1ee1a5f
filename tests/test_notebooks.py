"""Every notebook runs from top to bottom, in a small form too, and is stored with what it found."""

import ast
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra notebooks")
nbclient = pytest.importorskip("nbclient", reason="needs the extra notebooks")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 1_000_000  # bytes
LOCAL = (str(ROOT), str(Path.home()), "/tmp/", "site-packages")
HOUR = 3600  # a guard against hanging; no result depends on it
SMALL = {
    "04": {
        "PASSAGES": 4, "LEARN": {"convex": 6, "nash": 3}, "SEEDS": 2, "STEPS": (3, 10, 30),
        "SHORT_SEEDS": 2, "SHORT_STEPS": 2,
    },
    "06": {"STEPS": 8, "EVALUATE_EVERY": 8, "ROWS": 4, "WRITTEN": 12},
}  # fmt: skip
"""Of notebooks that train: what stands in place of the sizes in their cell with the tag "parameters"."""

TRAINING = [path for path in NOTEBOOKS if path.stem[:2] in SMALL]
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def complaints(notebook):
    """What was written to stderr, and errors."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 4


@each
def test_a_notebook_is_stored_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) > len(cells) // 2
    assert not complaints(notebook)
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < LARGEST
    assert not [place for place in LOCAL if place in text]


@each
def test_a_notebook_asks_and_answers(path):
    notebook = nbformat.read(path, as_version=4)
    first, last = notebook.cells[0], notebook.cells[-1]
    assert first.cell_type == last.cell_type == "markdown"
    assert "?" in first.source
    assert last.source.startswith("## The answer")


def sizes_of(notebook):
    """The cell that sets the sizes, and its place."""
    places = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    assert len(places) == 1
    return places[0], notebook.cells[places[0]]


class WithoutClaims(ast.NodeTransformer):
    """Takes the assertions out."""

    def visit_Assert(self, node):
        return ast.copy_location(ast.Pass(), node)


def small_form(path):
    """The notebook with less training, and without its claims, which are about models that have learned."""
    notebook = nbformat.read(path, as_version=4)
    place, sizes = sizes_of(notebook)
    own = {name.id for name in ast.walk(ast.parse(sizes.source)) if isinstance(name, ast.Name)}
    small = SMALL[path.stem[:2]]
    assert small.keys() <= own
    for cell in code_cells(notebook):
        cell.source = ast.unparse(WithoutClaims().visit(ast.parse(cell.source)))
    lines = [f"{name} = {value!r}" for name, value in small.items()]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    return notebook


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Runs all cells; raises where a cell does."""
    for name, value in {"PYTHONPATH": ROOT, "MPLCONFIGDIR": tmp_path, "IPYTHONDIR": tmp_path}.items():
        monkeypatch.setenv(name, str(value))

    def run(notebook):
        guards = {"timeout": None, "startup_timeout": HOUR, "iopub_timeout": HOUR}
        nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}, **guards).execute()
        assert not complaints(notebook)

    return run


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_a_notebook_that_trains_runs_from_top_to_bottom_in_a_small_form(path, execute):
    execute(small_form(path))


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path in TRAINING)) for path in NOTEBOOKS]
)
def test_a_notebook_runs_from_top_to_bottom_and_its_claims_hold(path, execute):
    execute(nbformat.read(path, as_version=4))  # the claims of the text are assertions in the cells
