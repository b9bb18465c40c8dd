"""What a rung costs against what it is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure as Canvas

from curvfluence.report.parts.axes import legend, legend_height, log, mark
from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.style import MUTED, PALE, Look, looks
from curvfluence.report.parts.table import Columns, tabulate
from curvfluence.study.results import Results, RungResult
from curvfluence.study.words import flops, interval, listed, number, prefix, seconds, size

Priced = tuple[RungResult, float]
MANY = 14  # rungs that a figure names one by one; of more, those on the front
OTHER = Look(PALE, ".", PALE)


def front(priced: Sequence[Priced]) -> list[Priced]:
    """The rungs that no other beats at once in cost and in LDS, from the cheapest up. LDS that
    are the same to the digits shown are the same: forms of one inverse differ by rounding."""
    on_front: list[Priced] = []
    for rung, cost in sorted(priced, key=lambda pair: (pair[1], -pair[0].lds)):
        if not on_front or round(rung.lds, 3) > round(on_front[-1][0].lds, 3):
            on_front.append((rung, cost))
    return on_front


def pareto(study: Results) -> Figure | None:
    """LDS against seconds for one model and one damping."""
    return _against(
        study,
        [(rung, rung.seconds) for rung in study.rungs if rung.seconds],
        ("pareto", "What accuracy costs in time"),
        "seconds to fit and score one model",
        seconds,
    )


def operations(study: Results) -> Figure | None:
    """LDS against floating-point operations, which do not depend on the machine."""
    priced = [(rung, rung.operations) for rung in study.rungs if rung.operations]
    power, name = prefix(max((cost for _, cost in priced), default=1.0))
    return _against(
        study,
        [(rung, cost / power) for rung, cost in priced],
        ("operations", "What accuracy costs in operations"),
        f"{name}FLOP to fit and score one model",
        lambda cost: flops(cost * power),
    )


def memory(study: Results) -> Figure | None:
    """LDS against the peak of memory."""
    held = [(rung, float(rung.peak_bytes)) for rung in study.rungs if rung.peak_bytes]
    return _against(
        study,
        [(rung, peak / 2**20) for rung, peak in held],
        ("memory", "What accuracy costs in memory"),
        "MiB at the peak, for one model",
        lambda peak: size(peak * 2**20),
    )


def _against(
    study: Results,
    priced: Sequence[Priced],
    named: tuple[str, str],
    label: str,
    shown: Callable[[float], str],
) -> Figure | None:
    if len(priced) < 2:
        return None
    stairs = front(priced)
    on_front = [rung.name for rung, _ in stairs]
    beaten = [rung.full_name for rung, _ in priced if rung.name not in on_front]
    many = len(priced) > MANY
    told = [name for name in on_front if many] or [rung.name for rung in study.rungs]
    look = {**{rung.name: OTHER for rung, _ in priced}, **looks(told)}
    entries = [(rung.full_name, look[rung.name]) for rung, _ in priced if rung.name in told]
    entries += [("others", OTHER)] if many and beaten else []
    reading = f"On the front: {listed([rung.full_name for rung, _ in stairs])}."
    if beaten:
        others = f"the {len(beaten)} others" if many else listed(beaten)
        reading += f" Another rung is both cheaper and better than {others}."

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        at, lds = [cost for _, cost in stairs], [rung.lds for rung, _ in stairs]
        axes.step(at, lds, where="post", color=MUTED, lw=0.9, ls=(0, (4, 2)), zorder=1)
        for rung, cost in priced:
            axes.plot([cost, cost], rung.interval, color=look[rung.name].colour, lw=1.6, zorder=3)
            mark(axes, cost, rung.lds, look[rung.name])
        log(axes, "x")
        axes.margins(x=0.08, y=0.08)
        axes.set_xlabel(label)
        axes.set_ylabel("LDS, with 95% interval")
        legend(canvas, entries)

    columns: Columns[Priced] = {
        "Rung": lambda p: p[0].full_name,
        "cost": lambda p: shown(p[1]),
        "LDS": lambda p: number(p[0].lds),
        "95% interval": lambda p: interval(p[0].interval),
        "front": lambda p: "yes" if p[0].name in on_front else "",
    }
    name, title = named
    height = 2.3 + legend_height([label for label, _ in entries])
    return Figure(name, title, reading, tabulate(title, columns, priced), draw, height)
