"""A page: what it says and shows, and the one file it becomes, which opens offline."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from curvfluence._version import __version__
from curvfluence.errors import InputError
from curvfluence.report.parts.figure import Figure, level, render
from curvfluence.report.parts.style import css_variables, looks, variable
from curvfluence.report.parts.table import Table
from curvfluence.store.files import inside, replace_bytes, require_no_link
from curvfluence.store.hashes import hash_code
from curvfluence.study.results import Results

PAGE, FIGURES = "report.html", "figures"
MARK = "<!-- curvfluence report -->"  # a page without it is somebody else's


@dataclass(frozen=True)
class Verdict:
    """What a page says first: one sentence, what its words mean, findings by what they are about,
    and what to keep in mind."""

    headline: str
    terms: str
    findings: tuple[tuple[str, str], ...] = ()
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Section:
    """One part of a page below its verdict; one without figures and tables is not shown. `second`
    is what stands before the third figure."""

    id: str
    title: str
    lead: str
    second: str = ""
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()

    @property
    def rows(self) -> tuple[tuple[Figure, ...], ...]:
        """The figures that stand side by side on a wide page: two beside each text, three else."""
        beside = 4 if self.second else 2 if len(self.figures) % 3 == 2 else 0
        ends = [*range(0, beside, 2), *range(beside, len(self.figures), 3), len(self.figures)]
        pairs = pairwise(min(end, len(self.figures)) for end in ends)
        return tuple(self.figures[start:end] for start, end in pairs if start < end)

    @property
    def shown(self) -> bool:
        return bool(self.figures or self.tables)


@dataclass(frozen=True, eq=False)
class Page:
    """Everything that a template needs. `subject` names what the page is about, `picture` and
    `facts` stand beside the verdict, the tables `beside` below it; `missing` says what was not
    computed, `more` is the template's own."""

    template: str
    title: str
    verdict: Verdict
    picture: Figure
    kind: str = ""
    subject: str = ""
    description: str = ""
    details: str = ""
    beside: tuple[Table, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    sections: tuple[Section, ...] = ()
    missing: tuple[str, ...] = ()
    measured: tuple[Table, ...] = ()
    command: str = ""
    call: str = ""
    chips: Mapping[str, str] = field(default_factory=dict[str, str])
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Report:
    """Where the page is, the seconds it took, and its size in bytes."""

    path: Path
    seconds: float
    bytes: int


def write_page(
    page: Page, path: Path, *, start: float, figures: bool = False, of: str = ""
) -> Report:
    """Write the page to `path`, and with `figures` each figure as SVG and PDF in `figures/` beside
    it. `start` is when the work on the page began; `of` names what it shows (`is_current`).

    Errors: `InputError`, with nothing written, where `path` is anybody else's or cannot be written.
    """
    require_own(path)
    sections = [section for section in page.sections if section.shown]
    rows = [level(row) for section in sections for row in section.rows]
    drawn = [render(f) for f in (page.picture, *(f for row in rows for f in row))]
    inline = {one.figure.name: one.inline for one in drawn}
    values = {"page": page, "sections": sections, "drawn": inline, **page.more}
    text = _render(page.template, values)
    try:
        if figures:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = inside(path.parent, FIGURES)
            folder.mkdir(exist_ok=True)
            for figure in drawn:
                figure.save(folder)
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror or error}") from error
    return _written(text, path, start, of)


def write_plain(template: str, values: Mapping[str, Any], path: Path, *, start: float) -> Report:
    """Write a page without figures, from a template and its values. Errors: as `write_page`."""
    require_own(path)
    return _written(_render(template, values), path, start)


def require_own(path: Path) -> None:
    """Errors: `InputError` where something that is no page of ours stands at `path`."""
    require_no_link(path)
    if path.is_dir() or (path.is_file() and MARK not in _head(path)):
        raise InputError(
            f"{path} exists and is no page of curvfluence: move it, or name another file"
        )


def is_current(path: Path, of: str) -> bool:
    """Whether `path` is the page that this very code makes `of` that, as it was written."""
    if path.is_symlink() or not path.is_file():
        return False
    first, mark, rest = path.read_text(encoding="utf-8", errors="replace").partition(MARK)
    stamp, newline, text = rest.partition("\n")
    whole = first + mark + newline + text
    return bool(mark) and stamp == _stamp(whole, of)


def _stamp(text: str, of: str) -> str:
    """What stands behind the mark of a page of that text: what it shows, and by which code."""
    made = hash_code("report", reports=True)
    digest = sha256(f"{of}\n{made}\n{text}".encode()).hexdigest()
    return f"<!-- of {of or 'itself'}, by {made}, sha256 {digest} -->"


def _head(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(200)


def _written(text: str, path: Path, start: float, of: str = "") -> Report:
    stamped = text.replace(MARK, MARK + _stamp(text, of), 1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, stamped.encode())
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror or error}") from error
    return Report(path, time.perf_counter() - start, path.stat().st_size)


def _render(template: str, values: Mapping[str, Any]) -> str:
    """The template with the styles that all pages share. Values are escaped."""
    environment = Environment(
        loader=PackageLoader("curvfluence.report", "web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    light, dark = css_variables()
    return environment.get_template(template).render(
        mark=Markup(MARK),
        version=__version__,
        css=source("report.css"),
        light=Markup(light),
        dark=Markup(dark),
        **values,
    )


def source(name: str) -> Markup:
    """A style sheet or a script of the package, as it is."""
    text = (files("curvfluence.report") / "web" / name).read_text(encoding="utf-8")
    return Markup(text)


def chips(study: Results) -> dict[str, str]:
    """The colour of each rung, by the names that tables have for it."""
    look = looks([rung.name for rung in study.every_rung])
    return {
        name: variable(look[rung.name].colour)
        for rung in study.every_rung
        for name in (rung.name, rung.full_name)
    }
