"""The page of several questions to one ladder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure as Canvas
from rich.console import Console

from curvfluence.report.parts.axes import Point, Rows, beside, legend, legend_height
from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.page import PAGE, Page, Report, Section, Verdict, write_page
from curvfluence.report.parts.style import looks, variable
from curvfluence.report.parts.table import Table
from curvfluence.study.questions import Questions
from curvfluence.study.questions.records import QUESTIONS, Question
from curvfluence.study.words import NONE, interval, listed, number, short

TERMS = (
    "A question says what is left out of the training data: a random part of which a fraction is "
    "kept, one example in the very run, or those that a rung itself says help most. The first "
    "two are answered by a LDS, the rank correlation of predicted and real change over what is "
    "left out; the last by how much the query’s measurement then really moves. “Spread” asks "
    "whether the predicted change also orders how far retrainings of a subset lie apart."
)


def write_questions(found: Questions, folder: Path, *, figures: bool = True) -> Report:
    """Write `report.html` and `figures/` into the folder of the answers."""
    start = time.perf_counter()
    return write_page(_page(found), folder / PAGE, start=start, figures=figures)


def headline(found: Questions) -> str:
    """Which rung is best for which question."""
    best: dict[str, list[str]] = {}
    for question in found.questions:
        best.setdefault(question.best.rung, []).append(question.name)
    parts = [f"{rung} for {listed(names)}" for rung, names in best.items()]
    return f"The highest answer is that of {'; '.join(parts)}."


def answer_table(found: Questions) -> Table:
    """Every rung's answer to every question."""
    rungs = dict.fromkeys(a.rung for question in found.questions for a in question.answers)
    rows = [(rung, *(_text(question, rung) for question in found.questions)) for rung in rungs]
    allowed = tuple(number(question.best_lds) for question in found.questions)
    control = tuple(_control(question) for question in found.questions)
    ends = (("noise allows", *allowed), ("random removal", *control))
    return Table(
        "Every answer with its 95% interval: LDS, and for removals the change in "
        f"{found.unit or 'units of the measurement'}",
        ("Rung", *(question.name for question in found.questions)),
        (*rows, *(row for row in ends if set(row[1:]) != {NONE})),
        open=True,
    )


def _text(question: Question, rung: str) -> str:
    answer = question.answer(rung)
    if answer is None:
        return NONE
    return f"{number(answer.value)} ({interval(answer.interval)})"


def _control(question: Question) -> str:
    if question.control is None:
        return NONE
    return f"{number(question.control)} ({interval(question.control_interval)})"


def _figure(found: Questions, questions: Sequence[Question], name: str, scale: str) -> Figure:
    rungs = list(dict.fromkeys(a.rung for question in questions for a in question.answers))
    look = looks(rungs)
    shifts = beside(len(rungs))
    points = [
        [
            Point(a.value, a.interval, look[a.rung], shift=shifts[k])
            for k, a in enumerate(question.answers)
        ]
        for question in questions
    ]
    plot = Rows([question.name for question in questions], points, scale)

    def draw(canvas: Canvas) -> None:
        plot.fill(canvas.subplots())
        legend(canvas, [(rung, look[rung]) for rung in rungs])

    data = answer_table(found).only(("Rung", *(question.name for question in questions)))
    return Figure(
        name=name,
        title=scale,
        reading="One row for each question, one point for each rung.",
        data=data,
        draw=draw,
        height=0.5 + (0.15 + 0.075 * len(rungs)) * len(questions) + legend_height(rungs),
        marks="bars: 95% crossed bootstrap intervals",
    )


def _page(found: Questions) -> Page:
    lds = [question for question in found.questions if question.kind != "removal"]
    removals = [question for question in found.questions if question.kind == "removal"]
    unit = found.unit or "measurement"
    figures = (_figure(found, removals, "removals", f"change in {unit}"),) if removals else ()
    rungs = dict.fromkeys(a.rung for question in found.questions for a in question.answers)
    look = looks(list(rungs))
    return Page(
        template="page.html",
        title=f"{found.problem}: one ladder, several questions",
        verdict=Verdict(headline(found), TERMS),
        picture=_figure(found, lds, "questions", "LDS"),
        kind="Questions",
        subject=found.problem,
        description=f"mean training loss {short(found.training_loss)}",
        beside=(answer_table(found),),
        facts=(
            ("Questions", f"{len(found.questions)}"),
            ("Influence models", f"{found.settings.models}"),
            ("Retrainings", f"{sum(q.retrainings for q in found.questions):,}"),
            ("Minutes", number(found.seconds / 60, 1)),
        ),
        sections=(
            Section(
                "removals",
                "Leaving out what helps most",
                "For each query the examples that a rung says help it most are left out and the "
                "net is trained again: the further its measurement moves, the better they were "
                "found. Beside it as many random ones.",
                figures=figures,
            ),
        ),
        chips={name: variable(one.colour) for name, one in look.items()},
    )


def show_questions(found: Questions, folder: Path, console: Console) -> None:
    """The sentence, the table turned so that it fits, and where the rest is."""
    console.print(headline(found), highlight=False)
    console.print()
    rungs = list(dict.fromkeys(a.rung for q in found.questions for a in q.answers))
    rows = tuple(
        (q.name, *(number(a.value) if (a := q.answer(rung)) else NONE for rung in rungs))
        for q in found.questions
    )
    Table("Answers", ("Question", *rungs), rows).show(console)
    for name, file in (("Report", PAGE), ("Files", QUESTIONS)):
        console.print(f"[bold]{name:9}[/]{folder / file}", highlight=False, soft_wrap=True)
