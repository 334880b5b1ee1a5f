"""The documentation builds without a warning, leaves nothing out, and its examples give what they show."""

import doctest
import os
import re
import shlex
import shutil
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import pytest
import torch
from filelock import FileLock  # a dependency of torch
from typer.testing import CliRunner

import solvers.registry
from maha_opt import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLE = DOCS / "examples" / "douglas_rachford.py"
PAGES = sorted(page for page in DOCS.glob("*.md") if ">>>" in page.read_text(encoding="utf-8"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PACKAGES = ("solvers", "maha_opt", "maha_opt.validation", "maha_opt.plots", "models", "models.huggingface")
LOCAL = (str(ROOT), f"{Path.home()}/", "/tmp/", "site-packages")
CONSOLE = re.findall(
    r"^```console\n\$ (maha-opt .*)\n((?:(?!```).*\n)*)```",
    (DOCS / "adding_a_solver.md").read_text(encoding="utf-8"),
    flags=re.MULTILINE,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site: one for all tests, also where several processes run them."""
    for needed in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(needed, reason="needs the extra docs")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    built, told = folder / "site", folder / "site.txt"
    with FileLock(folder / "site.lock"):
        if not told.exists():
            command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
            places = ["-d", str(folder / "doctrees"), str(DOCS), str(built)]
            done = subprocess.run(command + places, cwd=ROOT, capture_output=True, text=True, check=False)
            told.write_text("" if done.returncode == 0 else done.stderr + "\nfailed", encoding="utf-8")
    complaints = told.read_text(encoding="utf-8")
    if complaints:
        pytest.fail(complaints)
    return built


@pytest.fixture
def own_solver(monkeypatch):
    """Where the solver of the pages can be imported, and registers itself for this test only."""
    monkeypatch.syspath_prepend(DOCS / "examples")
    monkeypatch.setattr(solvers.registry, "_SOLVERS", dict(solvers.registry._SOLVERS))
    yield
    sys.modules.pop(EXAMPLE.stem, None)


class Links(HTMLParser):
    """Collects what a page refers to, and the places in it that can be referred to."""

    def __init__(self, page):
        super().__init__()
        self.targets, self.anchors = [], set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.targets += [found[name] for name in ("href", "src") if found.get(name)]
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}


def pages_of(site):
    return sorted(site.rglob("*.html"))


def documented(site):
    """The names of all Python objects of the inventory."""
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(packed).decode().splitlines()
    return {line.split(" ", 1)[0] for line in lines if " py:" in line}


def test_the_site_is_built_without_a_warning(site):
    assert (site / "index.html").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(site, package):
    known = documented(site)
    homes = (package, "models.huggingface")  # `models` passes the names of the latter on
    missing = [name for name in import_module(package).__all__ if not {f"{home}.{name}" for home in homes} & known]
    assert not missing


def test_every_built_in_solver_is_in_the_reference(site):
    known = documented(site)
    made_by = solvers.registry._SOLVERS.values()
    assert not [make for make in made_by if f"{make.__module__}.{make.__qualname__}" not in known]


def test_every_notebook_has_its_page_with_its_pictures(site):
    for notebook in NOTEBOOKS:
        page = (site / "notebooks" / notebook.name).with_suffix(".html").read_text(encoding="utf-8")
        assert page.count("<img") >= notebook.read_text(encoding="utf-8").count('"image/png"') > 0


def test_every_link_inside_the_site_leads_somewhere(site):
    links = {page: Links(page) for page in pages_of(site)}
    broken = []
    for page, found in links.items():
        for target in found.targets:
            if re.match(r"[a-z]+:|//", target) or "_modules" in page.parts:  # Sphinx guesses the ways back from sources
                continue
            path, _, anchor = target.partition("#")
            there = (page.parent / path.partition("?")[0]).resolve() if path else page
            whole = there.exists() and (there not in links or not anchor or anchor in links[there].anchors)
            if not whole:
                broken.append(f"{page.relative_to(site)}: {target}")
    assert not broken


def test_no_page_says_where_it_was_built(site):
    told = [path for path in site.rglob("*") if path.suffix in (".html", ".js", ".txt")]
    assert not [(path.name, place) for path in told for place in LOCAL if place in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_every_example_of_a_page_gives_what_it_shows(page, own_solver):
    text = re.sub(r"^```.*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)  # fences end no output
    examples = doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, page.name, str(page), 0)
    said = []
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False).run(examples, out=said.append)
    assert results.failed == 0, "".join(said)
    assert results.attempted > 10


def test_the_first_example_of_all_runs():
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "index.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    torch.manual_seed(0)
    names = {}
    exec(compile(block, "index.md", "exec"), names)
    assert bool(names["solution"].converged.all())
    assert bool(names["q"].grad.isfinite().all())


@pytest.mark.parametrize(("command", "shown"), CONSOLE, ids=[command.split()[3] for command, _ in CONSOLE])
def test_every_command_of_the_page_on_solvers_runs_as_shown(command, shown, tmp_path, monkeypatch, own_solver):
    shutil.copy(EXAMPLE, tmp_path)
    monkeypatch.chdir(tmp_path)
    one_worker = {"LOKY_MAX_CPU_COUNT": "1", "COLUMNS": "120"}  # this process
    done = CliRunner().invoke(cli.app, shlex.split(command)[1:], env=one_worker)
    assert done.exit_code == 0, done.output
    assert shown in done.stdout
    assert "douglas_rachford" in done.stdout


def test_there_are_commands_and_pages_to_test():
    assert len(CONSOLE) == 2
    assert {page.stem for page in PAGES} == {"start", "mathematics", "adding_a_solver", "models"}
