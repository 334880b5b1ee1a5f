"""What a page is made of, and the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import jinja2
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DPI = 110


@dataclass(frozen=True)
class Part:
    """A heading and what stands under it.

    Attributes:
        title: The heading.
        words: A paragraph; may be empty.
        tables: Tables by their captions.
        pictures: Pictures by what they show, see `picture`.
    """

    title: str
    words: str
    tables: Mapping[str, pd.DataFrame]
    pictures: Mapping[str, str]

    @property
    def html_tables(self) -> dict[str, str]:
        """The tables as HTML, everything in them escaped."""
        return {
            caption: table.to_html(index=False, border=0, na_rep="", justify="left")
            for caption, table in self.tables.items()
        }


def picture(save: Callable[[io.BytesIO], object]) -> str:
    """What ``save`` writes as PNG, as the source of an image."""
    buffer = io.BytesIO()
    save(buffer)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def drawn(draw: Callable[[Axes], object]) -> str:
    """What ``draw`` draws on axes, as the source of an image."""
    figure = Figure(figsize=(7.0, 5.6), layout="constrained")
    draw(figure.subplots())
    return picture(lambda buffer: figure.savefig(buffer, dpi=DPI))


def page(title: str, words: str, parts: Iterable[Part]) -> str:
    """The whole page, which needs nothing from outside."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("maha_opt.html", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.jinja").render(title=title, words=words, parts=list(parts))
