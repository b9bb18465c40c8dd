"""An audit as a person reads it in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from curvfluence.auditing import Audit
from curvfluence.report.audit.words import (
    criteria_table,
    headline,
    said_of_duplicates,
    why_sorted,
)
from curvfluence.report.parts.table import Table
from curvfluence.study.problems.given import Given
from curvfluence.study.words import NONE, short

FIRST = 12


def show_audit(found: Audit, given: Given, console: Console) -> None:
    """The sentence, what each criterion finds, the first suspects."""
    console.print(Text(f"{given.title}: ", style="bold") + Text(f"{headline(found)}."))
    if why := why_sorted(found):
        console.print(Text(why))
    console.print()
    criteria_table(found).show(console)
    console.print()
    suspects(found, given).show(console)
    console.print()
    console.print(Text(said_of_duplicates(found)))
    for note in found.notes:
        console.print(Text(f"note: {note}", style="yellow"))


def suspects(found: Audit, given: Given, count: int = FIRST) -> Table:
    """The first of the list, with what the neighbours and the criteria say of them."""
    names, wrong = given.class_names, dict.fromkeys(found.flipped or ())
    labels = found.labels is not None

    def named(c: int) -> str:
        return names[c] if 0 <= c < len(names) else NONE if c < 0 else str(c)

    head = ("Example", *(("label", "neighbours say") if labels else ()))
    head += (("known",) if wrong else ()) + tuple(_short(one.name) for one in found.criteria)
    rows: list[tuple[str, ...]] = []
    for n in found.suspects(min(count, len(found))).tolist():
        row = [f"no. {n}"]
        if found.labels is not None and found.suggested is not None:
            row += [named(int(found.labels[n])), named(int(found.suggested[n]))]
        row += ["wrong" if n in wrong else ""] if wrong else []
        row += [short(_value(float(found.values[one.name][n]))) for one in found.criteria]
        rows.append(tuple(row))
    words = ("label", "neighbours say", "known")
    return Table("", head, tuple(rows), words=words)


def _short(name: str) -> str:
    """loss, self-influence, …"""
    return name.replace("self_influence", "self-influence").replace("_", " ")


def _value(value: float) -> float | None:
    return None if value != value else value
