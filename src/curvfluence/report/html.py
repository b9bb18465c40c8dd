"""Pages from templates: everything inside one file, and nothing asked of the network."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from curvfluence._version import __version__
from curvfluence.report.figure import Drawn, save
from curvfluence.report.style import css_variables
from curvfluence.study.words import number, seconds

MARK = "<!-- curvfluence report -->"  # a page without it is somebody else's


def render_page(template: str, title: str, **values: Any) -> str:
    """A template with the styles and words that all pages share. Values are escaped."""
    environment = Environment(
        loader=PackageLoader("curvfluence.report", "web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    light, dark = css_variables()
    return environment.get_template(template).render(
        title=title,
        mark=Markup(MARK),
        version=__version__,
        css=source("report.css"),
        light=Markup(light),
        dark=Markup(dark),
        number=number,
        seconds=seconds,
        **values,
    )


def source(name: str) -> Markup:
    """A style sheet or a script of the package, as it is."""
    text = (files("curvfluence.report") / "web" / name).read_text(encoding="utf-8")
    return Markup(text)


def write_page(path: Path, page: str) -> None:
    """Replace `path` atomically."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)


def write_figures(drawn: Iterable[Drawn], folder: Path) -> None:
    """Each as SVG and PDF."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in drawn:
        save(figure, folder)
