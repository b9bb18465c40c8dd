"""`report.html` and the figures of a study, from its results and arrays alone."""

from __future__ import annotations

import time
from pathlib import Path

from msgspec.structs import replace

from curvfluence.report.parts.page import (
    PAGE,
    Page,
    Report,
    chips,
    is_current,
    source,
    write_page,
)
from curvfluence.report.parts.repeat import study_call
from curvfluence.report.parts.settings import settings_tables
from curvfluence.report.parts.units import behind
from curvfluence.report.study.explorer import explore
from curvfluence.report.study.figures.ladder import ladder
from curvfluence.report.study.sections import missing, sections
from curvfluence.report.study.tables import coverage_table, losses_table, seconds_table
from curvfluence.report.study.verdict import chosen, verdict
from curvfluence.store.folder import RESULTS
from curvfluence.store.records import seal_of, write
from curvfluence.study.results import Results
from curvfluence.study.study import Study, read_study
from curvfluence.study.words import number, seconds


def write_report(folder: Path, *, figures: bool = True) -> Report:
    """Write `report.html`, and unless `figures` is False `figures/*.svg` and `figures/*.pdf`, into
    a finished study's folder.

    Reads `results.json` and `arrays/` alone. What the study did not compute, the page names as
    missing.

    Errors: `InputError`, with nothing written, where the folder holds no finished study of this
    version, or a `report.html` of somebody else.
    """
    start = time.perf_counter()
    study = read_study(folder)
    return write_page(
        _page(study), folder / PAGE, start=start, figures=figures, of=_shown(study.results)
    )


def with_report(study: Study, *, figures: bool = True) -> Study:
    """The study with its page, written unless the one that is there is what this code makes of
    these results; they then tell the seconds that it took. `figures` as in `write_report`."""
    if study.results.report_seconds is not None and is_current(
        study.path / PAGE, _shown(study.results)
    ):
        return study
    results = replace(
        study.results, report_seconds=write_report(study.path, figures=figures).seconds
    )
    write(study.path / RESULTS, results)
    return Study(study.path, results, study.reused)


def _shown(results: Results) -> str:
    """What a page shows of results: all but the seconds that the page itself took."""
    return seal_of(replace(results, report_seconds=None))


def _page(study: Study) -> Page:
    results = study.results
    rung = chosen(results)
    return Page(
        template="study.html",
        title=f"{results.problem}: a study of influence",
        verdict=verdict(results),
        picture=ladder(results),
        kind="Study of influence",
        subject=results.heading,
        description=results.description,
        details=" · ".join(
            [f"protocol {results.protocol}", f"seed {results.spec.seed}"]
            + ([results.changed] if results.changed else [])
        ),
        facts=_facts(results),
        sections=sections(study, rung.name),
        missing=missing(results),
        measured=(
            *settings_tables([results]),
            losses_table(results),
            seconds_table(results),
            coverage_table(results),
        ),
        command=results.environment.command or "",
        call=study_call(results.spec),
        chips=chips(results),
        more={
            "explorer": explore(study, rung.name),
            "truth": results.truth,
            "model": "the model under study"
            if results.own_model == 0
            else "the first influence model",
            "parts_script": source("parts.js"),
            "behind_unit": behind(results.truth.unit),
            "script": source("explorer.js"),
        },
    )


def _facts(study: Results) -> tuple[tuple[str, str], ...]:
    truth = study.truth
    spent = study.study_seconds
    return (
        ("Training examples", f"{truth.train:,}"),
        ("Queries", f"{truth.queries:,}"),
        ("Influence models", f"{truth.models:,}"),
        ("Retrainings", f"{truth.retrainings:,}"),
        ("Reliability of the truth", number(truth.noise_ceiling.matched)),
        ("Study took", seconds(spent)),
    )
