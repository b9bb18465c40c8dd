"""Answers as a person reads them in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from curvfluence.explore import Answers, believed
from curvfluence.report.examples.cards import label
from curvfluence.report.examples.seen import Features, Seen, Words
from curvfluence.report.examples.seen import Text as Plain
from curvfluence.report.examples.shown import shown, targets_of
from curvfluence.report.explorer.words import notes, trust
from curvfluence.report.parts.table import Table
from curvfluence.study.words import short

QUERIES = 3  # whose answers are printed; the page has all
WIDE = 30  # letters of an example


def show_answers(found: Answers, console: Console) -> None:
    """For the first queries: the most helpful and most harmful examples side by side, and what
    speaks for believing it."""
    for k in range(min(QUERIES, len(found.queries))):
        if k:
            console.print()
        _show(found, k, console)
    more = len(found.queries) - QUERIES
    if more > 0:
        console.print(Text(f"\n{more} more queries are on the page.", style="dim"))
    for note in notes(found):
        console.print(Text(f"note: {note}", style="yellow"))


def _show(found: Answers, k: int, console: Console) -> None:
    given, asked = found.given, found.asked
    q = found.queries[k]
    names = _names(found)
    said = believed(given.problem, given.problem.queries, [q])
    line = Text(f"{given.title}, query {q}", style="bold")
    target = _target(found, targets_of(given.problem.queries, [q])[0], names)
    line += Text(f": {target}" if target else "")
    if said is not None and said.classes is not None:
        chance = float(said.values[0].max() if said.values.shape[1] > 1 else said.values[0, 0])
        line += Text(f"; the model says {_named(int(said.classes[0]), names)} ({chance:.1%})")
    console.print(line)
    console.print(
        Text(
            f"{asked.rung}, damping {asked.damping}; influence on the {asked.measurement}, in "
            f"{asked.unit}",
            style="dim",
        )
    )
    row = asked[k]
    ends = (row.top(found.top), row.bottom(found.top))
    chosen = [end.indices[0].tolist() for end in ends]
    both = [n for rows in chosen for n in rows]
    cells = dict(zip(both, _cells(found, both, names), strict=True))
    rows = [
        (
            str(place + 1),
            *(
                cell
                for end, rows in zip(ends, chosen, strict=True)
                for cell in (
                    f"no. {rows[place]}",
                    short(float(end.values[0, place])),
                    cells[rows[place]],
                )
            ),
        )
        for place in range(found.top)
    ]
    columns = ("", "helpful", "influence", "what", "harmful", "influence ", "what ")
    Table("", columns, tuple(rows), words=("what", "what ")).show(console)
    for name, text in trust(found, k):
        console.print(Text(f"{name}: ", style="bold") + Text(text), soft_wrap=True)


def _cells(found: Answers, rows: list[int], names: tuple[str, ...]) -> list[str]:
    seen = shown(found.given, "train", rows)
    targets = targets_of(found.given.problem.train, rows)
    texts = [_text(one) for one in seen]
    labels = [_target(found, target, names) for target in targets]
    wrong = dict.fromkeys(found.given.flipped or ())
    made = [" ".join(filter(None, pair)) for pair in zip(labels, texts, strict=True)]
    return [
        f"{text} (wrong label)" if n in wrong else text for n, text in zip(rows, made, strict=True)
    ]


def _text(seen: Seen) -> str:
    """What a terminal can show of an example; nothing of a picture."""
    if isinstance(seen, Plain | Words):
        return _cut(seen.text if isinstance(seen, Plain) else " ".join(seen.words))
    if isinstance(seen, Features):
        parts = [
            f"{name} {short(value) if isinstance(value, float) else value}"
            for name, value in seen.values
        ]
        return _cut(", ".join(parts))
    return ""


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= WIDE else f"{text[: WIDE - 1].rstrip(' ,')}…"


def _names(found: Answers) -> tuple[str, ...]:
    return found.given.class_names


def _target(found: Answers, target: object, names: tuple[str, ...]) -> str:
    display = found.given.display
    unit = (0.0, 1.0) if display is None else (display.target_offset, display.target_scale)
    value = label(target, unit)  # pyright: ignore[reportArgumentType]
    if isinstance(value, int):
        return f"label {_named(value, names)}"
    if value is None:
        return ""
    words = ", ".join(short(v) if isinstance(v, float) else str(v) for v in value)
    return f"target {words}{f' {display.target_unit}' if display and display.target_unit else ''}"


def _named(c: int, names: tuple[str, ...]) -> str:
    return names[c] if c < len(names) else str(c)
