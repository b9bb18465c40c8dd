"""Answers as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from rich.console import Console
from rich.text import Text

from curvfluence.explore import Answers, believed
from curvfluence.problem.stream import labels_of
from curvfluence.report.examples.cards import label
from curvfluence.report.examples.seen import Features, Seen, Words
from curvfluence.report.examples.seen import Text as Plain
from curvfluence.report.examples.shown import shown, targets_of
from curvfluence.report.explorer.trust import EXPLAINED, measures, verdict
from curvfluence.report.explorer.words import notes, what_values_are
from curvfluence.report.parts.table import GAP, Table
from curvfluence.score.scores import Ranked
from curvfluence.study.problems.given import Given
from curvfluence.study.words import counted, short

QUERIES = 3  # whose answers are printed; the page has all
FIRST = 3  # examples at either end, where nobody named a query
LEAST = 12  # letters of an example, however narrow the terminal


def show_answers(found: Answers, console: Console) -> None:
    """For the first queries: the most helpful and most harmful examples side by side, and what
    speaks for believing it. In short where all queries were asked about."""
    every = 1 < len(found.queries) == len(found.given.problem.queries)
    top = min(FIRST, found.top) if every else found.top
    asked = found.asked
    for k in range(min(QUERIES, len(found.queries))):
        _show(found, k, top, console)
        console.print()
    values = f"{asked.rung}, damping {asked.damping}; {what_values_are(asked)}."
    residuals = any(one.certificate is not None for one in found.answers)
    console.print(Text(f"{values} {EXPLAINED if residuals else ''}".rstrip(), style="dim"))
    rest = _rest(found, top)
    if rest:
        console.print(Text(rest))
    for note in notes(found):
        console.print(Text(f"note: {note}", style="yellow"))


def _rest(found: Answers, top: int) -> str:
    """What is on the page alone."""
    more = len(found.queries) - QUERIES
    left = [counted(more, "more query").replace("querys", "queries")] if more > 0 else []
    left += [f"{found.top} examples at either end of each"] if top < found.top else []
    return f"On the page: {', with '.join(left)}." if left else ""


def _show(found: Answers, k: int, top: int, console: Console) -> None:
    given = found.given
    q = found.queries[k]
    names = given.class_names
    said = believed(given.problem, given.problem.queries, [q])
    line = Text(f"{given.title}, query {q}", style="bold")
    target = target_said(given, targets_of(given.problem.queries, [q])[0], "label ", "target ")
    line += Text(f": {target}" if target else "")
    if said is not None and said.classes is not None:
        chance = float(said.values[0].max() if said.values.shape[1] > 1 else said.values[0, 0])
        line += Text(f"; the model says {_named(int(said.classes[0]), names)} ({chance:.1%})")
    console.print(line)
    warned = verdict(found, 0, k)
    if warned:
        console.print(Text(warned, style="bold red"))
    lists(found, k, top, console.width).show(console)
    for one in measures(found, k):
        console.print(Text(f"{one.name}: ", style="bold") + Text(f"{one.value}, {one.words}"))


def lists(found: Answers, k: int, top: int, width: int) -> Table:
    """Both ends of the list of a query side by side, each example on one line."""
    row = found.asked[k]
    return both_ends(found.given, row.top(top), row.bottom(top), width)


def both_ends(given: Given, helpful: Ranked, harmful: Ranked, width: int) -> Table:
    """The same of ranked examples of one query, [1, top] each. Those behind the training set were
    appended to an index, and stand without their content."""
    ends = (helpful, harmful)
    chosen = [end.indices[0].tolist() for end in ends]
    places = [str(place + 1) for place in range(len(chosen[0]))]
    numbers = [[f"no. {n}" for n in rows] for rows in chosen]
    values = [[short(float(value)) for value in end.values[0]] for end in ends]
    what = "target" if labels_of(given.problem.train) is None else "label"
    columns = ("", "helpful", "influence", what, "harmful", "influence ", f"{what} ")
    held = (places, numbers[0], values[0], numbers[1], values[1])
    heads = tuple(name for name in columns if name.strip() != what)
    taken = sum(max(map(len, (head, *cells))) for head, cells in zip(heads, held, strict=True))
    room = max(LEAST, (width - taken - GAP * len(columns)) // 2)
    texts = [_cells(given, rows, room) for rows in chosen]
    cells = (places, numbers[0], values[0], texts[0], numbers[1], values[1], texts[1])
    return Table("", columns, tuple(zip(*cells, strict=True)), words=(what, f"{what} "))


def _cells(given: Given, rows: list[int], room: int) -> list[str]:
    own = [n for n in rows if n < len(given.problem.train)]
    cells = dict.fromkeys(rows, "appended")
    wrong = dict.fromkeys(given.flipped or ())
    each = zip(own, shown(given, "train", own), targets_of(given.problem.train, own), strict=True)
    for n, one, target in each:
        parts = (target_said(given, target), "wrong label" if n in wrong else "", _text(one))
        cells[n] = _cut(" · ".join(filter(None, parts)), room)
    return [cells[n] for n in rows]


def _text(seen: Seen) -> str:
    """What a terminal can show of an example; nothing of a picture."""
    if isinstance(seen, Plain | Words):
        return " ".join((seen.text if isinstance(seen, Plain) else " ".join(seen.words)).split())
    if isinstance(seen, Features):
        return ", ".join(f"{name}={_value(value)}" for name, value in seen.values)
    return ""


def _value(value: float | str) -> str:
    if isinstance(value, float) and isfinite(value):
        return short(value)
    return value if isinstance(value, str) else str(value).replace("-", "−")


def _cut(text: str, room: int) -> str:
    """A text on one line; of features no half ones, where a whole one fits."""
    if len(text) <= room:
        return text
    start = text[: room - 1]
    whole = start.rpartition(", ")[0]
    return f"{whole}, …" if "=" in whole and len(whole) + 3 <= room else f"{start.rstrip(' ,·')}…"


def target_said(given: Given, target: object, before: str = "", of_numbers: str = "") -> str:
    """A class by its name, or numbers in their unit, each behind its word."""
    display = given.display
    unit = (0.0, 1.0) if display is None else (display.target_offset, display.target_scale)
    value = label(target, unit)  # pyright: ignore[reportArgumentType]
    if isinstance(value, int):
        return f"{before}{_named(value, given.class_names)}"
    if value is None:
        return ""
    parts: Sequence[float | str] = value
    words = ", ".join(short(v) if isinstance(v, float) else str(v) for v in parts)
    behind = f" {display.target_unit}" if display and display.target_unit else ""
    return f"{of_numbers}{words}{behind}"


def _named(c: int, names: tuple[str, ...]) -> str:
    return names[c] if c < len(names) else str(c)
