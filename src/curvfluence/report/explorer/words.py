"""What answers say in a sentence or a line: the same on the page and in a terminal."""

from __future__ import annotations

from curvfluence.explore import Answers
from curvfluence.report.parts.units import behind
from curvfluence.score.scores import Scores
from curvfluence.study.words import listed


def notes(found: Answers) -> tuple[str, ...]:
    """Everything that results say of themselves, each once, behind the rungs that say it where
    that is not all of them."""
    every = [one.scores.rung for one in found.answers]
    by_text: dict[str, list[str]] = {}
    for one in found.answers:
        for note in one.scores.notes:
            by_text.setdefault(note, []).append(one.scores.rung)
    said = [
        note if len(rungs) == len(every) else f"{listed(rungs)}: {note}"
        for note, rungs in by_text.items()
    ]
    return tuple(dict.fromkeys((*said, *found.notes)))


def what_values_are(scores: Scores) -> str:
    """influence on the loss, in nats."""
    if not has_units(scores):
        return f"gradient dot products with the {scores.measurement}, which have no unit"
    return f"influence on the {scores.measurement}{behind(scores.unit)}"


def has_units(scores: Scores) -> bool:
    return not scores.unit.startswith("none")
