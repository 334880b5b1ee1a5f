"""How the documentation is built: `sphinx-build -W --keep-going -b html docs runs/docs`, without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))  # the packages beside these pages, not those that happen to be installed

project = "maha-opt"
author = copyright = "The maha-opt developers"
release = version = installed_version("maha-opt")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["generated"]  # included in commands.md

# Pages and notebooks. The notebooks are stored with their outputs, and tests run them.
nb_execution_mode = "off"
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
suppress_warnings = ["myst.header"]  # pages that benchmarks write go from the title to tables of the third level

# Docstrings. Names in single backticks link where there is something to link to, and are code where there is not.
default_role = "py:obj"
smartquotes_action = "D"  # dashes, but quotes as they are written
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autosummary_generate = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"maha-opt {release}"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"


def _gather(app: Sphinx) -> None:
    """Brings in what lives elsewhere: the notebooks, and what the commands say of themselves."""
    del app
    gathered = HERE / "notebooks"
    gathered.mkdir(exist_ok=True)
    sources = {path.name: path for path in (ROOT / "notebooks").glob("*.ipynb")}
    for stale in gathered.glob("*.ipynb"):
        if stale.name not in sources:
            stale.unlink()
    for name, source in sources.items():
        if not (gathered / name).exists() or (gathered / name).read_bytes() != source.read_bytes():
            shutil.copyfile(source, gathered / name)
    command = [sys.executable, "-m", "typer", "maha_opt.cli", "utils", "docs", "--name", "maha-opt"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True).stdout
    told = re.sub(r"(?<![`\w-])--[a-z][a-z-]*", r"`\g<0>`", told)  # options in running text: no dashes
    told = told.replace("\n## ", "\n<!-- commands -->\n\n## ", 1)  # the page begins with the first command
    page = HERE / "generated" / "commands.md"
    page.parent.mkdir(exist_ok=True)
    if not page.exists() or page.read_text(encoding="utf-8") != told:
        page.write_text(told, encoding="utf-8")


def _skip(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out what every module of torch has, and what Python says of the fields of every named tuple."""
    del app, what, skip, options
    said = getattr(obj, "__doc__", None) or ""
    return True if name in ("extra_repr", "reset_parameters") or said.startswith("Alias for field number") else None


def _elsewhere(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement) -> nodes.Node | None:
    """What a docstring names by another path than the reference does: `maha_opt.problems.gram` is `maha_opt.gram`."""
    name = node.get("reftarget", "")
    is_word = name.isalpha() and name.islower()  # such as an extra or an argument
    if node.get("refdomain") != "py" or is_word or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", name):
        return None
    last = name.rpartition(".")[2]
    kinds = ("class", "exception", "function")
    objects = env.domains.python_domain.objects.items()
    found = [entry for path, entry in objects if path.rpartition(".")[2] == last and entry.objtype in kinds]
    if len(found) != 1:
        return None
    return make_refnode(app.builder, node["refdoc"], found[0].docname, found[0].node_id, text, name)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # as in the docstrings
    app.connect("missing-reference", _elsewhere)
    app.connect("builder-inited", _gather)
    app.connect("autodoc-skip-member", _skip)
