"""The page of several questions to one ladder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Canvas
from rich.console import Console
from rich.text import Text

from curvfluence.report.parts.axes import Point, Rows, beside, legend, legend_height
from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.line import show_named
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


SAME = 0.8  # rank correlation from which orders are called much the same


def write_questions(found: Questions, folder: Path, *, figures: bool = True) -> Report:
    """Write `report.html` and `figures/` into the folder of the answers."""
    start = time.perf_counter()
    return write_page(_page(found), folder / PAGE, start=start, figures=figures)


def headline(found: Questions) -> str:
    """Which rungs are best, for how many questions, and how alike their order is in all of them."""
    count = Counter(question.best.rung for question in found.questions)
    parts = [f"{rung} for {n}" for rung, n in count.most_common()]
    text = f"Of {len(found.questions)} questions the best rung is {listed(parts)}"
    first, *others = found.questions
    alike = [rho for question in others if (rho := _agreement(first, question)) is not None]
    if not alike:
        return f"{text}."
    order = "much the same in all" if min(alike) >= SAME else "another from question to question"
    return (
        f"{text}; the order of the rungs is {order} (rank correlation with that of "
        f"“{first.name}”: {number(min(alike), 2)} to {number(max(alike), 2)})."
    )


def _agreement(one: Question, other: Question) -> float | None:
    """Spearman of what the rungs are worth for two questions; None for fewer than three."""
    values = {answer.rung: answer.value for answer in other.answers}
    pairs = [(a.value, values[a.rung]) for a in one.answers if a.rung in values]
    if len(pairs) < 3:
        return None
    x, y = (np.argsort(np.argsort(column)) for column in zip(*pairs, strict=True))
    return float(np.corrcoef(x, y)[0, 1])


def answer_table(found: Questions) -> Table:
    """Every rung's answer to every question, a question a row."""
    rungs = _rungs(found.questions)
    extra = [
        (name, column)
        for name, column in (
            ("noise allows", [number(question.best_lds) for question in found.questions]),
            ("at random", [number(question.control) for question in found.questions]),
        )
        if set(column) != {NONE}
    ]
    rows = [
        (
            question.name,
            *(NONE if (a := question.answer(r)) is None else number(a.value) for r in rungs),
            *(column[k] for _, column in extra),
        )
        for k, question in enumerate(found.questions)
    ]
    return Table(
        "LDS; for removals the change in "
        f"{found.unit or 'units of the measurement'}, beside that of as many random ones",
        ("Question", *rungs, *(name for name, _ in extra)),
        tuple(rows),
        open=True,
    )


def interval_table(questions: Sequence[Question], caption: str) -> Table:
    """The same with 95% intervals."""
    rungs = _rungs(questions)
    rows = [
        (question.name, *(_text(question, rung) for rung in rungs), _control(question))
        for question in questions
    ]
    table = Table(caption, ("Question", *rungs, "at random"), tuple(rows))
    return table if any(row[-1] != NONE for row in rows) else table.only(("Question", *rungs))


def _rungs(questions: Sequence[Question]) -> list[str]:
    return list(dict.fromkeys(a.rung for question in questions for a in question.answers))


def _text(question: Question, rung: str) -> str:
    answer = question.answer(rung)
    if answer is None:
        return NONE
    return f"{number(answer.value)} ({interval(answer.interval)})"


def _control(question: Question) -> str:
    if question.control is None:
        return NONE
    return f"{number(question.control)} ({interval(question.control_interval)})"


def _figure(questions: Sequence[Question], name: str, scale: str) -> Figure:
    rungs = _rungs(questions)
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

    data = interval_table(questions, scale)
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
    figures = (_figure(removals, "removals", f"change in {unit}"),) if removals else ()
    look = looks(_rungs(found.questions))
    return Page(
        template="page.html",
        title=f"{found.problem}: one ladder, several questions",
        verdict=Verdict(headline(found), TERMS),
        picture=_figure(lds, "questions", "LDS"),
        kind="Questions",
        subject=found.problem,
        description=f"mean training loss {short(found.training_loss)}",
        beside=(answer_table(found),),
        facts=(
            ("Questions", f"{len(found.questions)}"),
            ("Influence models", f"{found.settings.models}"),
            ("Retrainings", f"{sum(q.retrainings for q in found.questions):,}"),
            ("Minutes", number(found.seconds / 60, 1)),
            *(("To keep in mind", note) for note in notes_of(found)),
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


def notes_of(found: Questions) -> tuple[str, ...]:
    """What a reader must know of the truths, each with its question."""
    return tuple(f"{one.name}: {note}" for one in found.questions for note in one.notes)


def show_questions(found: Questions, folder: Path, console: Console) -> None:
    """The sentence, the table, and where the rest is."""
    console.print(Text(headline(found)))
    console.print()
    answer_table(found).show(console)
    for note in notes_of(found):
        console.print(Text(note, style="yellow"))
    for name, file in (("Report", PAGE), ("Files", QUESTIONS)):
        show_named(console, name, folder / file, 7)
