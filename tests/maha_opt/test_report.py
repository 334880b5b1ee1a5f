"""The page of a run: whole, well-formed, and in need of nothing from outside."""

import re
import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest
from typer.testing import CliRunner

from maha_opt import cli
from maha_opt.html import write_report
from maha_opt.run_folder import FolderError
from maha_opt.validation import Difficulty, sweep

VOID = {"meta", "link", "img", "br", "hr"}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


class Tags(HTMLParser):
    """Holds that every tag is closed in its turn, and keeps what the page refers to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.seen = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def fails_on_seed_1(seed):
    if seed == 1:
        raise ArithmeticError("<b>no problems</b> today")
    return Difficulty(problems=4)(seed)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of each kind of run."""
    root = tmp_path_factory.mktemp("runs")
    problems = {"convex": Difficulty(problems=4), "<i>shaky</i>": fails_on_seed_1}
    small = {"gradients": ["implicit", "unrolled"], "steps": [5, 20, None], "covered": 2}
    sweep(root / "sweep", problems, ["pivot", "projected_gradient"], seeds=3, jobs=1, **small)
    compare = [
        "compare",
        "--seeds",
        "1",
        "--problems",
        "8",
        "--reference",
        "3",
        "--scales",
        "3",
        "--unroll",
        "4",
        "--max-iter",
        "50",
    ]
    compare += ["--solvers", "pivot,best_response"]
    convergence = [
        "convergence",
        "--seeds",
        "2",
        "--iterations",
        "60",
        "--solvers",
        "projected_gradient,mirror_descent",
    ]
    for words in (compare, convergence):
        result = CliRunner().invoke(cli.app, [*words, "--output", str(root / words[0])])
        assert result.exit_code == 0, result.output
    return root


@pytest.fixture(scope="module")
def pages(runs):
    made = {}
    for kind in ("sweep", "compare", "convergence"):
        result = CliRunner().invoke(cli.app, ["report", str(runs / kind), "--pictures", "2"])
        assert result.exit_code == 0, result.output
        made[kind] = runs / kind / "report.html"
    return made


@pytest.mark.parametrize("kind", ["sweep", "compare", "convergence"])
def test_the_page_is_well_formed_and_needs_nothing_from_outside(pages, kind):
    text = pages[kind].read_text(encoding="utf-8")
    tags = Tags(text)
    assert tags.seen.count("img") >= 2
    assert tags.seen.count("table") >= 4
    assert all(reference.startswith(("data:", "#")) for reference in tags.references)
    assert not re.search(r"url\(|@import|<script", text)
    assert "Git revision" in text
    assert "torch" in text


def test_the_page_of_a_sweep_says_what_failed_and_escapes_it(pages):
    text = pages["sweep"].read_text(encoding="utf-8")
    assert "ArithmeticError: &lt;b&gt;no problems&lt;/b&gt; today" in text
    assert "<b>" not in text
    assert "<i>" not in text
    assert "6 of 6 cells" in text


def test_its_tables_hold_medians_with_their_intervals(pages, runs):
    table = pd.read_parquet(runs / "sweep" / "results.parquet")
    own = table[(table["problem"] == "convex") & (table["solver"] == "projected_gradient")]
    own = own[(own["steps"] == 5) & (own["gradient"] == "implicit")]
    shown = pd.read_html(pages["sweep"], match="error of the weights")[0]
    row = shown[(shown["solver"] == "projected_gradient") & (shown["steps"] == "5") & (shown["gradient"] == "implicit")]
    text = row["error of the weights"].item()
    assert float(text.split()[0]) == pytest.approx(own["error_weights_mean"].median(), rel=0.05)  # two digits are shown
    assert " to " in text


def test_a_sweep_that_has_not_ended_has_a_page_too(runs, tmp_path):
    folder = tmp_path / "part"
    shutil.copytree(runs / "sweep", folder)
    (folder / "results.parquet").unlink()
    (folder / "cells" / "000002.parquet").unlink()
    path = write_report(folder, tmp_path / "page.html", pictures=0)
    assert "5 of 6 cells" in path.read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_refused_in_words(tmp_path):
    with pytest.raises(FolderError, match="holds no run"):
        write_report(tmp_path)
    result = CliRunner().invoke(cli.app, ["report", str(tmp_path)])
    assert result.exit_code == 1
    assert "holds no run" in result.output


@pytest.mark.parametrize("kind", ["sweep", "compare", "convergence"])
def test_a_browser_shows_the_pictures_and_has_nothing_to_say(pages, kind):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on the path")
    said = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("requestfailed", lambda request: said.append(request.url))
        page.goto(pages[kind].as_uri())
        widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        browser.close()
    assert said == []
    assert len(widths) >= 2
    assert min(widths) > 300
