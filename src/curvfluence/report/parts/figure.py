"""A figure: what it shows in words and numbers, how it is drawn, and the files it becomes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

from curvfluence.report.parts.labels import lay_out
from curvfluence.report.parts.style import SETTINGS, WIDTH, variable
from curvfluence.report.parts.table import Table
from curvfluence.store.files import replace_bytes, replace_file


@dataclass(frozen=True, eq=False)
class Figure:
    """One figure. `reading` is its message in a sentence, `data` are its numbers, `draw` fills an
    empty canvas of 3.5 inches by `height`, `marks` says what points and bars are."""

    name: str
    title: str
    reading: str
    data: Table
    draw: Callable[[Canvas], None]
    height: float = 2.6
    marks: str = ""

    @property
    def description(self) -> str:
        """What is drawn, for those who do not see it."""
        row, *values = self.data.columns
        shown = ", ".join(value for value in values if value)
        marks = f" {self.marks}." if self.marks else ""
        return f"{self.title}: {shown}, for each {row or 'row'}.{marks} {self.reading}"


@dataclass(frozen=True, eq=False)
class Drawn:
    """A drawn figure: as SVG, for a page (`inline`), and as files for a paper."""

    figure: Figure
    canvas: Canvas
    svg: bytes

    @property
    def inline(self) -> Markup:
        return _inline(self.figure, self.svg.decode())

    def save_svg(self, folder: Path) -> None:
        """`<name>.svg` in `folder`."""
        replace_bytes(folder / f"{self.figure.name}.svg", self.svg)

    def save(self, folder: Path) -> None:
        """`<name>.svg` and `<name>.pdf` in `folder`."""
        self.save_svg(folder)
        metadata = {"CreationDate": None, "Title": self.figure.title}
        with mpl.rc_context(dict(SETTINGS)):
            canvas = FigureCanvasPdf(self.canvas)
            replace_file(
                folder / f"{self.figure.name}.pdf",
                lambda file: canvas.print_pdf(file, metadata=metadata),
            )


def level(figures: Sequence[Figure]) -> tuple[Figure, ...]:
    """All as high as the highest, so that they stand on one line."""
    height = max((figure.height for figure in figures), default=0.0)
    return tuple(replace(figure, height=height) for figure in figures)


def render(figure: Figure) -> Drawn:
    """Draw once, in the common style, without any global state of matplotlib's."""
    with mpl.rc_context(dict(SETTINGS)):
        canvas = Canvas(figsize=(WIDTH, figure.height), layout="constrained")
        FigureCanvasAgg(canvas)
        figure.draw(canvas)
        lay_out(canvas)
        canvas.set_layout_engine("none")
        out = BytesIO()
        # `savefig` would draw twice, the first time for nothing.
        metadata = {"Date": None, "Title": figure.title}
        FigureCanvasSVG(canvas).print_svg(out, metadata=metadata)
    return Drawn(figure, canvas, out.getvalue())


def _inline(figure: Figure, svg: str) -> Markup:
    """The drawing for a page: colours by variables, ids of its own, a title and a description.

    A style element inside would apply to the whole page, so it goes; the page has its rule.
    """
    svg = svg[svg.index("<svg") :]
    for tag in ("metadata", "style", "title"):
        svg = re.sub(rf"<{tag}.*?</{tag}>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
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
