"""What scores are worth, as a person reads it in a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from curvfluence.judging.records import Judgement, Method
from curvfluence.report.parts.table import Table, tabulate
from curvfluence.report.parts.units import behind
from curvfluence.study.words import NONE, counted, interval, listed, number, percent, short


def headline(found: Judgement) -> str:
    """What the scores' LDS is, what noise allows, and what they are better and worse than."""
    judged, best = found.judged, found.best_lds.matched
    text = (
        f"{judged.name} on {found.problem}: LDS {number(judged.lds)} ({interval(judged.interval)})"
    )
    text += "" if best is None else f"; what noise allows is about {number(best, 2)}"
    for said, low in (("better than", True), ("worse than", False)):
        names = [m.name for m in found.methods if _resolved(m, above=low)]
        text += f"; {said} {listed(names)}" if names else ""
    open_ = [m.name for m in found.methods if m.less_interval and not m.less_interval.resolved]
    return text + (f"; not told from {listed(open_)}" if open_ else "") + "."


def _resolved(method: Method, *, above: bool) -> bool:
    gap = method.less_interval
    return gap is not None and (gap.low > 0 if above else gap.high < 0)


def method_table(found: Judgement) -> Table:
    """A row a method; the paired difference is the judged scores' LDS minus this one's."""
    judged = found.judged.name
    return tabulate(
        f"LDS of {judged} and of what it is held beside",
        {
            "Method": lambda m: m.name,
            "LDS": lambda m: number(m.lds),
            "95% interval": lambda m: interval(m.interval),
            f"{judged} − this": lambda m: number(m.less, signed=True),
            "paired interval": lambda m: interval(m.less_interval, signed=True),
            "slope": lambda m: NONE if m.calibration is None else short(m.calibration.slope),
            "r": lambda m: NONE if m.calibration is None else number(m.calibration.r, 2),
            "independent": lambda m: number(m.lds_independent),
            "ensemble": lambda m: number(m.lds_ensemble),
        },
        found.methods,
        open=True,
    )


def removal_table(found: Judgement) -> Table | None:
    """What leaving out each method's top does to the query, in the unit of the measurement."""
    if not found.control:
        return None
    rows = [(m.name, m.removed) for m in found.methods if m.removed] + [
        ("at random", found.control)
    ]
    return Table(
        f"Change of the query{behind(found.unit)} when the top is left out",
        ("Left out", *(f"top {percent(at.share)} ({at.count})" for at in found.control)),
        tuple(
            (name, *(f"{number(at.change)} ({interval(at.interval)})" for at in removed))
            for name, removed in rows
        ),
        open=True,
    )


def show_judgement(found: Judgement, console: Console, out: Path | None = None) -> None:
    """The sentence, the tables, what each method is, and what a reader must know."""
    console.print(Text(headline(found)))
    console.print()
    method_table(found).show(console)
    removal = removal_table(found)
    if removal is not None:
        console.print()
        console.print(Text(removal.caption, style="bold"))
        removal.show(console)
    console.print()
    said = [*_facts(found), *((method.name, method.said) for method in found.methods)]
    width = max(len(name) for name, _ in said) + 2
    for name, text in said:
        console.print(Text(f"{name:{width}}", style="bold") + Text(text, style=""))
    for note in found.notes:
        console.print(Text(note, style="yellow"))
    if out is not None:
        console.print(Text(f"{'File':{width}}", style="bold") + Text(str(out)), soft_wrap=True)


def _facts(found: Judgement) -> list[tuple[str, str]]:
    settings = found.settings
    models = counted(len(found.models), "influence model")
    numbers = listed([str(model) for model in found.models])
    units = (
        f"slope of true on predicted change: where {percent(1 - settings.alpha)} is left out, "
        f"{short(1 / settings.alpha)} or somewhat more says that the size is right"
        if found.has_units
        else "the scores have no units: --units says which"
    )
    facts = [
        (
            "Truth",
            f"{found.bank}: {found.retrainings:,} retrainings of {settings.models} models on "
            f"{settings.subsets} subsets that keep {settings.alpha:g}, seed {settings.seed}; "
            + (f"{found.trained:,} trained now" if found.trained else "all read"),
        ),
        (
            "Scores",
            f"of {models} ({numbers}); in the order {found.order}, a positive one {found.positive}",
        ),
        ("Units", units),
    ]
    if found.control:
        facts.append(
            (
                "Removal",
                f"{found.removal_retrainings:,} retrainings; of {found.removal_queries} queries",
            )
        )
    return facts
