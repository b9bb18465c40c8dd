"""Where accuracy is lost: shares of the distance, and errors of the inverse and of the scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch

from curvfluence.report.parts.axes import Rows, log
from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.labels import end_labels
from curvfluence.report.parts.style import MUTED, PALE, RULE, looks, series
from curvfluence.report.parts.table import Table, tabulate
from curvfluence.report.study.figures.ladder import NOT_RESOLVED
from curvfluence.study.results import DecompositionStep, Results
from curvfluence.study.results.step import Decomposition
from curvfluence.study.words import NONE, interval, number, percent, short

Errors = tuple[float | None, ...]  # of a step at every λ, None in a hole

_SHARES: tuple[tuple[str, Callable[[DecompositionStep], float | None], str], ...] = (
    ("of squared distance", lambda step: step.share, MUTED),
    ("of plain norms", lambda step: step.norm_share, PALE),
    ("of LDS lost", lambda step: step.lds_share, series(1)[0].colour),
)


def shares(study: Results) -> Figure | None:
    """Each step's share of the squared distance beside its share of the LDS lost."""
    part = study.decomposition
    if part is None or not part.chain:
        return None
    chain = part.chain
    most = max(chain, key=lambda step: step.share or 0.0)
    reading = (
        f"{most.name} holds {percent(most.share)} of the squared distance from {chain[0].above} "
        f"to {chain[-1].below}"
    )
    reading += f", and {percent(most.lds_share)} of the LDS lost." if most.lds_share else "."
    kinds = [kind for kind in _SHARES if any(kind[1](step) is not None for step in chain)]

    plot = Rows([step.name for step in chain], [[] for _ in chain], "share", lines=[(0.0, "")])

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        plot.fill(axes)
        height = 0.8 / len(kinds)
        for k, (_, share, colour) in enumerate(kinds):
            for row, step in enumerate(chain):
                y = row + (k - (len(kinds) - 1) / 2) * height
                axes.barh(y, share(step) or 0.0, height * 0.82, color=colour)
        axes.xaxis.set_major_formatter(lambda value, _: percent(value))
        handles = [Patch(facecolor=colour, label=name) for name, _, colour in kinds]
        canvas.legend(
            handles=handles, loc="outside lower center", ncols=3, handlelength=0.9,
            columnspacing=1, handletextpad=0.4,
        )  # fmt: skip

    data = _share_table("Shares of the steps", [(step, step.name) for step in part.steps])
    return Figure("shares", data.caption, reading, data, draw, height=0.8 + 0.52 * len(chain))


def by_fisher(study: Results) -> Table | None:
    """The same shares under each Fisher type, where the study measured more than one."""
    parts = study.decompositions
    named = [(step, f"{step.name}, {part.fisher}") for part in parts for step in part.chain]
    return _share_table("Shares by Fisher type", named) if len(parts) > 1 and named else None


def _share_table(caption: str, steps: Sequence[tuple[DecompositionStep, str]]) -> Table:
    return tabulate(
        caption,
        {
            "Step": lambda s: s[1],
            "squared distance": lambda s: short(s[0].distance_squared),
            "share": lambda s: percent(s[0].share),
            "of norms": lambda s: percent(s[0].norm_share),
            "of LDS lost": lambda s: percent(s[0].lds_share),
            "95% interval of it": lambda s: _percents(s[0].lds_share_interval),
            "LDS lost": lambda s: number(s[0].lds_lost, signed=True),
            "95% interval": lambda s: interval(s[0].interval, signed=True),
            "": lambda s: "" if s[0].resolved else NOT_RESOLVED,
        },
        steps,
    )


def _percents(pair: Sequence[float] | None) -> str:
    return NONE if pair is None else " to ".join(map(percent, pair))


_ERRORS: tuple[tuple[str, Callable[[DecompositionStep], Errors]], ...] = (
    ("error of inverse", lambda step: step.inverse_error),
    ("error of scores", lambda step: step.score_error),
)


def errors(study: Results) -> Figure | None:
    """Relative errors of the damped inverse on query gradients and of scores, over the damping."""
    part = study.decomposition
    kinds = [kind for kind in _ERRORS if part and any(_shown(kind[1](s)) for s in part.steps)]
    if part is None or not kinds:
        return None
    grid, last = part.dampings, kinds[-1]
    steps = [step for step in part.steps if any(_shown(of(step)) for _, of in kinds)]
    found = [(first, step) for step in steps if (first := _first(last[1](step))) is not None]
    error, worst = max(found, key=lambda pair: pair[0])
    holes = any(error is None for step in steps for _, of in kinds for error in of(step))
    where = "the smallest λ with an inverse" if holes else "the smallest λ"
    reading = f"At {where}, the {last[0]} is largest at {worst.name} ({short(error)})"
    curves = [_shown(of(step)) for step in steps for _, of in kinds if _shown(of(step))]
    alike = all(curve[-1] < curve[0] / 10 for curve in curves)
    reading += "; at the largest, all rungs are alike." if alike else "."

    def draw(canvas: Canvas) -> None:
        panels = canvas.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (title, of) in zip(panels, kinds, strict=True):
            _curves(axes, grid, [(step, of(step)) for step in steps if _shown(of(step))])
            axes.set_ylabel(title)
        panels[-1].set_xlabel("damping λ")

    data = _error_table(part, [(s, t, of(s)) for t, of in kinds for s in steps if _shown(of(s))])
    return Figure("errors", data.caption, reading, data, draw, height=1.0 + 1.2 * len(kinds))


def _shown(errors: Errors) -> list[float]:
    """Without holes."""
    return [error for error in errors if error is not None]


def _first(errors: Errors) -> float | None:
    """That of the smallest λ that is no hole."""
    return next(iter(_shown(errors)), None)


def _curves(
    axes: Axes, grid: Sequence[float], curves: Sequence[tuple[DecompositionStep, Errors]]
) -> None:
    look = looks([step.below for step, _ in curves])
    for step, values in curves:
        mine = look[step.below]
        drawn = [nan if value is None else value for value in values]
        axes.plot(grid, drawn, color=mine.colour, marker=mine.marker, ms=2.6)
    axes.axhline(1, color=RULE, lw=0.8, zorder=0)
    log(axes, "x", "y")
    ends = [(_shown(values)[-1], step.name, look[step.below]) for step, values in curves]
    end_labels(axes, ends)


def _error_table(
    part: Decomposition, curves: Sequence[tuple[DecompositionStep, str, Errors]]
) -> Table:
    columns = ("λ", *(f"{step.name}, {title}" for step, title, _ in curves))
    lines = (
        (short(at), *(short(values[k]) for _, _, values in curves))
        for k, at in enumerate(part.dampings)
    )
    return Table("Error of each step over the damping", columns, tuple(lines))
