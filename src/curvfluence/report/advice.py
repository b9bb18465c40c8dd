"""Advice as a person reads it in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from curvfluence.advising import CHOICES, Advice, Candidate
from curvfluence.advising.advice import written
from curvfluence.report.parts.table import Table
from curvfluence.study.words import NONE, number, seconds, short, size


def show_advice(found: Advice, title: str, console: Console) -> None:
    """The sentence, the ladder, the criteria for λ, what one step more would cost."""
    console.print(Text(f"{title}: ", style="bold") + Text(found.sentence))
    console.print()
    rungs(found).show(console)
    if found.tried:
        console.print()
        criteria(found).show(console)
    console.print()
    console.print(Text(found.step))
    for note in found.notes:
        console.print(Text(f"note: {note}", style="yellow"))


def rungs(found: Advice) -> Table:
    """A row a rung, from the top down."""
    first = next(one.name for one in found.candidates if one.affordable)
    measured = any(one.measured is not None for one in found.candidates)
    head = ("Rung", "forecast", "took", "memory", f"agrees with {first}", "residual")
    head += (("LDS", "best λ"), ())[not measured] + ("",)
    rows = [_row(one, found, measured) for one in found.candidates]
    return Table("", head, tuple(rows), words=("",))


def _row(one: Candidate, found: Advice, measured: bool) -> tuple[str, ...]:
    row = (
        one.name,
        seconds(one.forecast),
        NONE if one.seconds is None else seconds(one.seconds),
        size(one.nbytes),
        _agreement(one),
        short(one.residual),
    )
    if measured:
        lds = None if one.measured is None else one.measured.lds
        best = NONE if one.measured is None else written(one.measured.best)
        row += (number(lds), best)
    return (*row, "advised" if one.name == found.name else one.reason)


def criteria(found: Advice) -> Table:
    """A row a criterion for λ."""
    meaning = {one.name: one.meaning for one in CHOICES}
    rows = [
        (
            one.name,
            written(one.damping),
            meaning[one.name] + (f" ({one.note})" if one.note else ""),
            "followed" if one.name == found.by else "",
        )
        for one in found.tried
    ]
    if found.by == "truth":
        rows.append(
            ("truth", written(found.damping), "the best of a grid by retraining", "followed")
        )
    return Table("", ("λ by", "damping", "what it is", ""), tuple(rows), words=("what it is", ""))


def _agreement(one: Candidate) -> str:
    """Rank correlation, and how many of the ten most helpful."""
    if one.correlation is None or one.overlap is None:
        return NONE
    return f"{number(one.correlation, 2)}, {number(10 * one.overlap, 1)} of 10"
