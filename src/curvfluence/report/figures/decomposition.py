"""Where accuracy is lost: shares of the distance, and errors of the inverse and of the scores."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch

from curvfluence.report.axes import end_labels, log, rows
from curvfluence.report.figure import Figure
from curvfluence.report.style import INK, MUTED, PALE, RULE, looks, series
from curvfluence.report.table import Table
from curvfluence.study.finished import Finished
from curvfluence.study.words import NONE, interval, number, percent, resolved, short


def found_steps(study: Finished) -> list[dict[str, Any]]:
    """The steps of the decomposition, none where it was not computed."""
    return (study.results.get("decomposition") or {}).get("steps", [])


def shares(study: Finished) -> Figure | None:
    """Each step's share of the squared distance beside its share of the LDS lost."""
    chain = [step for step in found_steps(study) if step.get("share") is not None]
    if not chain:
        return None
    most = max(chain, key=lambda step: step["share"])
    reading = (
        f"{_name(most)} holds {percent(most['share'])} of the squared distance from "
        f"{chain[0]['from']} to {chain[-1]['to']}"
    )
    lost = most.get("lds_share")
    reading += f", and {percent(lost)} of the LDS lost." if lost is not None else "."
    kinds = (
        ("share", "of squared distance", MUTED),
        ("norm_share", "of plain norms", PALE),
        ("lds_share", "of LDS lost", series(1)[0].colour),
    )
    kinds = tuple(kind for kind in kinds if any(s.get(kind[0]) is not None for s in chain))

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        rows(axes, [_name(step) for step in chain], [[] for _ in chain])
        height = 0.8 / len(kinds)
        for k, (key, _, colour) in enumerate(kinds):
            for row, step in enumerate(chain):
                if step.get(key) is not None:
                    y = row + (k - (len(kinds) - 1) / 2) * height
                    axes.barh(y, step[key], height * 0.82, color=colour)
        axes.axvline(0, color=INK, lw=0.8)
        axes.xaxis.set_major_formatter(lambda value, _: percent(value))
        axes.set_xlabel("share")
        handles = [Patch(facecolor=colour, label=name) for _, name, colour in kinds]
        canvas.legend(
            handles=handles,
            loc="outside lower center",
            ncols=3,
            handlelength=0.9,
            columnspacing=1,
            handletextpad=0.4,
        )

    return Figure(
        name="shares",
        title="Shares of the steps",
        reading=reading,
        description=(
            "Bars for each step between neighbours: its share of the squared Frobenius distance, "
            "of plain norms, and of the LDS lost. " + reading
        ),
        columns=(
            "Step",
            "squared distance",
            "share",
            "of norms",
            "of LDS lost",
            "95% interval",
            "LDS lost",
            "",
        ),
        rows=tuple(
            (
                _name(step),
                short(step.get("distance_squared")),
                percent(step.get("share")),
                percent(step.get("norm_share")),
                percent(step.get("lds_share")),
                _between(step.get("lds_share_interval")),
                number(step.get("lds_lost"), signed=True),
                "" if resolved(step.get("interval") or (1, 1)) else "not resolved",
            )
            for step in found_steps(study)
        ),
        draw=draw,
        height=0.8 + 0.52 * len(chain),
    )


def errors(study: Finished) -> Figure | None:
    """Relative errors of the damped inverse on query gradients and of scores, over the damping."""
    found = [s for s in found_steps(study) if s.get("score_error") or s.get("inverse_error")]
    if not found:
        return None
    grid: list[float] = study.results["decomposition"]["dampings"]
    kinds = [
        (key, title)
        for key, title in (
            ("inverse_error", "error of inverse"),
            ("score_error", "error of scores"),
        )
        if any(step.get(key) for step in found)
    ]
    last = kinds[-1][0]
    worst = max(found, key=lambda step: (step.get(last) or [0.0])[0])
    reading = (
        f"At the smallest λ, the {kinds[-1][1]} is largest at {_name(worst)} "
        f"({short((worst.get(last) or [None])[0])})"
    )
    vanishing = all(v[-1] < v[0] / 10 for step in found for key, _ in kinds if (v := step.get(key)))
    reading += "; at the largest, all rungs are alike." if vanishing else "."
    look = [looks([step["to"]])[step["to"]] for step in found]

    def draw(canvas: Canvas) -> None:
        panels = canvas.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (key, title) in zip(panels, kinds, strict=True):
            log(axes, "x", "y")
            ends: list[Any] = []
            for step, mine in zip(found, look, strict=True):
                values = step.get(key) or []
                axes.plot(
                    grid[: len(values)], values, color=mine.colour, marker=mine.marker, ms=2.6
                )
                if values:
                    ends.append((values[-1], _name(step), mine))
            axes.set_ylabel(title)
            axes.axhline(1, color=RULE, lw=0.8, zorder=0)
            end_labels(axes, ends)
        panels[-1].set_xlabel("damping λ")

    return Figure(
        name="errors",
        title="Error of each step over the damping",
        reading=reading,
        description=(
            "Curves of the relative error that each step makes, over the damping, both axes "
            "logarithmic: of the damped inverse on query gradients, and of scores. " + reading
        ),
        columns=(
            "λ",
            *(f"{_name(step)}, {title}" for key, title in kinds for step in found if step.get(key)),
        ),
        rows=tuple(
            (
                short(at),
                *(short(step[key][k]) for key, _ in kinds for step in found if step.get(key)),
            )
            for k, at in enumerate(grid)
        ),
        draw=draw,
        height=1.0 + 1.2 * len(kinds),
    )


def by_fisher(study: Finished) -> Table | None:
    """The same shares under each Fisher type, where the study measured more than one."""
    every: list[dict[str, Any]] = study.results.get("decompositions") or []
    rows = tuple(
        (
            f"{_name(step)}, {found['fisher']}",
            percent(step.get("share")),
            percent(step.get("norm_share")),
            percent(step.get("lds_share")),
            number(step.get("lds_lost"), signed=True),
            interval(step.get("interval"), signed=True),
        )
        for found in every
        for step in found["steps"]
        if step.get("share") is not None
    )
    columns = ("Step", "of squared distance", "of norms", "of LDS lost", "LDS lost", "95% interval")
    return Table("Shares by Fisher type", columns, rows) if len(every) > 1 else None


def _between(pair: list[float] | None) -> str:
    return NONE if pair is None else f"{percent(pair[0])} to {percent(pair[1])}"


def _name(step: dict[str, Any]) -> str:
    return f"{step['from']} → {step['to']}"
