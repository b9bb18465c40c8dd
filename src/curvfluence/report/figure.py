"""A figure: what it shows in words and numbers, how it is drawn, and the files it becomes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from curvfluence.report.style import SETTINGS, WIDTH, variable
from curvfluence.report.table import Row


@dataclass(frozen=True, eq=False)
class Figure:
    """One figure. `reading` is its message in a sentence; `columns` and `rows` are its data, the
    first column naming the row; `draw` fills an empty canvas of 3.5 inches by `height`."""

    name: str
    title: str
    reading: str
    description: str
    columns: Row
    rows: tuple[Row, ...]
    draw: Callable[[Canvas], None]
    height: float = 2.6


@dataclass(frozen=True)
class Drawn:
    """A figure as SVG for a page and for a paper, and as PDF."""

    figure: Figure
    inline: Markup
    svg: bytes
    pdf: bytes


def render(figure: Figure) -> Drawn:
    """Draw once, in the common style, without any global state of matplotlib's."""
    with mpl.rc_context(dict(SETTINGS)):
        canvas = Canvas(figsize=(WIDTH, figure.height), layout="constrained")
        FigureCanvasAgg(canvas)
        figure.draw(canvas)
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")
        svg, pdf = BytesIO(), BytesIO()
        canvas.savefig(svg, format="svg", metadata={"Date": None, "Title": figure.title})
        canvas.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Title": figure.title})
    text = svg.getvalue()
    return Drawn(figure, _inline(figure, text.decode()), text, pdf.getvalue())


def save(drawn: Drawn, folder: Path) -> None:
    """`<name>.svg` and `<name>.pdf` in `folder`."""
    (folder / f"{drawn.figure.name}.svg").write_bytes(drawn.svg)
    (folder / f"{drawn.figure.name}.pdf").write_bytes(drawn.pdf)


def _inline(figure: Figure, svg: str) -> Markup:
    """The drawing for a page: colours by variables, ids of its own, a title and a description.

    A style element inside would apply to the whole page, so it goes; the page has its rule.
    """
    svg = svg[svg.index("<svg") :]
    for pattern in (
        r"<metadata>.*?</metadata>",
        r"<style.*?</style>",
        r"<!--.*?-->",
        r"<title>.*?</title>",
    ):
        svg = re.sub(pattern, "", svg, flags=re.S)
    svg = re.sub(
        r' id="[a-zA-Z]*(?:text|patch|axes|figure|line2d|matplotlib\.axis|xtick|ytick)[^"]*"',
        "",
        svg,
    )
    svg = re.sub(r'\bid="', f'id="{figure.name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{figure.name}-", svg)
    svg = re.sub(r'href="#', f'href="#{figure.name}-', svg)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda m: f"var({variable(m[0])})", svg)
    svg = re.sub(r"font: ((?:\w+ )*)([\d.]+px)[^;\"]*", r"font-size: \2", svg)
    svg = re.sub(r"font-family:[^;\"]*;?", "", svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    view = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    head = (
        f'<svg {view[0] if view else ""} role="img" '
        f'aria-labelledby="{figure.name}-title" aria-describedby="{figure.name}-desc">'
        f'<title id="{figure.name}-title">{escape(figure.title)}</title>'
        f'<desc id="{figure.name}-desc">{escape(figure.description)}</desc>'
    )
    return Markup(head + body)
