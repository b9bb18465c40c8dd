"""What answers say in a sentence or a line: the same on the page and in a terminal."""

from __future__ import annotations

from curvfluence.explore import Answers
from curvfluence.study.words import number


def trust(found: Answers, k: int) -> tuple[tuple[str, str], ...]:
    """(measure, what it is for one query) of everything that speaks for or against an answer."""
    lines: list[tuple[str, str]] = []
    for one in found.answers:
        if one.certificate is not None:
            residual = one.certificate.residuals[k]
            lines.append(
                (
                    f"{one.scores.rung}’s inverse",
                    f"relative residual {residual:.2g} against the exact GGN "
                    "(0 is exact, 1 no better than nothing)",
                )
            )
    told = found.agreement
    if told is not None:
        a, b = (one.scores.rung for one in found.answers)
        lines.append(
            (
                f"{a} and {b}",
                f"ranks correlate at {number(float(told.correlation[k]), 2)}; share "
                f"{int(told.top[k])} of the {told.k} most helpful, {int(told.bottom[k])} of the "
                f"{told.k} most harmful",
            )
        )
    return tuple(lines)


def notes(found: Answers) -> tuple[str, ...]:
    """Everything that results say of themselves, once."""
    said = [note for one in found.answers for note in one.scores.notes]
    return tuple(dict.fromkeys((*said, *found.notes)))
