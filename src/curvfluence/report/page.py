"""`report.html` and the figures of a study, from its results and arrays alone."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from curvfluence.report.explorer import explore
from curvfluence.report.figure import render
from curvfluence.report.html import render_page, source, write_figures, write_page
from curvfluence.report.measured import library_call, measured
from curvfluence.report.sections import Section, sections
from curvfluence.report.style import looks, variable
from curvfluence.report.verdict import verdict
from curvfluence.study.finished import read_study

PAGE, FIGURES = "report.html", "figures"


@dataclass(frozen=True)
class Report:
    """Where the page is, the seconds it took, and its size in bytes."""

    path: Path
    seconds: float
    bytes: int


def write_report(folder: Path) -> Report:
    """Write `report.html`, `figures/*.svg` and `figures/*.pdf` into a finished study's folder.

    Reads `results.json` and `arrays/` alone. What the study did not compute, the page names as
    missing.

    Errors: `InputError`, with nothing written, where the folder holds no finished study of this
    version.
    """
    start = time.perf_counter()
    study = read_study(folder)
    said = verdict(study)
    parts = tuple(_level(part) for part in sections(study, said))
    drawn = {figure.name: render(figure) for part in parts for figure in part.figures}
    look = looks([rung["name"] for rung in study.rungs])
    page = render_page(
        "report.html",
        f"{study.results['problem']}: a study of influence",
        results=study.results,
        verdict=said,
        sections=parts,
        drawn=drawn,
        explorer=explore(study, said.rung),
        measured=measured(study),
        command=study.results["environment"].get("command", ""),
        call=library_call(study.results["spec"]),
        chips={rung["full_name"]: variable(look[rung["name"]].colour) for rung in study.rungs},
        script=source("explorer.js"),
    )
    write_figures(drawn.values(), folder / FIGURES)
    path = folder / PAGE
    write_page(path, page)
    return Report(path, time.perf_counter() - start, path.stat().st_size)


def _level(part: Section) -> Section:
    """All figures of a section as high as the highest, so that they stand on one line."""
    height = max((figure.height for figure in part.figures), default=0.0)
    return replace(part, figures=tuple(replace(f, height=height) for f in part.figures))
