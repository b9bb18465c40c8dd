"""Studies as text: of each, what every rung is worth and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.repeat import study_command
from curvfluence.report.parts.table import Columns, Table, tabulate
from curvfluence.report.parts.text import Text
from curvfluence.report.study.figures.cost import front, pareto
from curvfluence.report.study.verdict import verdict
from curvfluence.study.results import Results, RungResult
from curvfluence.study.study import Study
from curvfluence.study.words import dampings, interval, number, seconds, size

Priced = tuple[RungResult, float]


def text(studies: Sequence[Study]) -> Text:
    """One page of studies: a line for each, then LDS against seconds and bytes of every rung."""
    each = [study.results for study in studies]
    made = "\n".join(filter(None, (study_command(results.spec) for results in each)))
    return Text(
        (
            "# What accuracy costs",
            "LDS is the rank correlation, over random subsets of the training data, of the change "
            "that influence predicts and the change after real retraining: 1 is perfect, 0 is "
            "chance. Seconds and bytes are those of fitting and scoring one model at one λ, "
            "medians over the models; training is not counted, since every rung needs it. A rung "
            "is on the front where no other is both cheaper and better. Where a net shares no "
            "weights between positions, (reduce) changes nothing, and which of two alike is "
            "cheaper is chance.",
            *((f"Made by:\n\n```sh\n{made}\n```",) if made else ()),
            *((_fronts(each).markdown,) if len(each) > 1 else ()),
            *(part for results in each for part in _parts(results)),
        )
    )


def _fronts(each: Sequence[Results]) -> Table:
    """The front of every study, from the cheapest up."""
    columns: Columns[Results] = {
        "Problem": lambda r: f"{r.problem}: {r.heading}",
        "training examples": lambda r: f"{r.truth.train:,}",
        "on the front, from the cheapest up": lambda r: ", ".join(
            f"{rung.full_name} {number(rung.lds)}" for rung, _ in front(_in_seconds(r))
        ),
        "noise allows": lambda r: number(r.truth.best_lds.matched),
    }
    return tabulate("Fronts", columns, each)


def _in_seconds(results: Results) -> list[Priced]:
    return [(rung, rung.seconds) for rung in results.rungs if rung.seconds]


def _parts(results: Results) -> tuple[str | Table | Figure, ...]:
    found = pareto(results)
    told = verdict(results)
    return (
        f"## {results.problem}: {results.heading}",
        told.headline,
        *((replace(found, name=f"{results.problem}-{found.name}"),) if found else ()),
        _costs(results).markdown,
        *(f"Left out: {name} ({why})." for name, why in results.refused.items()),
    )


def _costs(results: Results) -> Table:
    stairs = {rung.name for rung, _ in front(_in_seconds(results))}
    columns: Columns[RungResult] = {
        "Rung": lambda r: r.full_name,
        "LDS": lambda r: number(r.lds),
        "95% interval": lambda r: interval(r.interval),
        "λ": lambda r: dampings(r.dampings),
        "seconds": lambda r: seconds(r.seconds),
        "peak memory": lambda r: size(r.peak_bytes),
        "front": lambda r: "yes" if r.name in stairs else "",
    }
    return tabulate("What each rung costs", columns, results.rungs)
