"""The error of each rung's inverse against the exact Hessian's, beside its LDS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import nan

from matplotlib.figure import Figure as Canvas

from curvfluence.report.parts.axes import log
from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.labels import end_labels
from curvfluence.report.parts.style import RULE, Look, looks
from curvfluence.report.parts.table import Table, tabulate
from curvfluence.study.results import Results, RungResult
from curvfluence.study.results.rung import Errors, InverseErrorResult
from curvfluence.study.words import NONE, number, short

CHAINS = (
    ("BlockGGN", "EKFAC", "KFAC"),
    ("BlockGGN", "EShampoo", "TKFAC"),
    ("BlockGGN", "EShampoo", "Shampoo"),
)


def tables(study: Results) -> tuple[Table | None, ...]:
    """What is known of inverses: by rung, and by step."""
    return inverse_table(study), chain_table(study)


def inverse_table(study: Results) -> Table | None:
    """The paper's error of every rung: mean and median, over training gradients and queries'."""
    rungs = [rung for rung in study.rungs if rung.inverse is not None]
    at = study.inverse
    if at is None or not rungs:
        return None
    zero = f"; {at.zero} gradients are 0 and left out" if at.zero else ""
    return tabulate(
        "The paper’s error of the inverse, ‖H Ĥ⁺v − v‖²/‖v‖² with eigenvalues |μ| ≤ "
        f"{at.threshold:g} dropped, over {at.train} training gradients and {at.queries} of "
        f"queries{zero}: 0 inverts H, 1 is no inverse at all",
        {
            "Rung": lambda r: r.full_name,
            "LDS": lambda r: number(r.lds),
            "mean": lambda r: _text(r, lambda e: e.train.cut.mean_over_models),
            "median": lambda r: _text(r, lambda e: e.train.cut.median_over_models),
            "mean, μ ≤ τ dropped": lambda r: _text(r, lambda e: e.train.signed.mean_over_models),
            "queries, mean": lambda r: _text(r, lambda e: e.queries.cut.mean_over_models),
            "queries, median": lambda r: _text(r, lambda e: e.queries.cut.median_over_models),
            "least damped": lambda r: _text(r, lambda e: _least(e.train.damped)),
        },
        rungs,
    )


def _text(rung: RungResult, of: Callable[[InverseErrorResult], float | None]) -> str:
    return NONE if rung.inverse is None else short(of(rung.inverse))


def _least(damped: Sequence[Errors]) -> float | None:
    known = [value for errors in damped if (value := errors.mean_over_models) is not None]
    return min(known, default=None)


def chain_table(study: Results) -> Table | None:
    """What each step adds to the error, with its sign: the steps of a chain sum to its whole."""
    rows: list[tuple[str, ...]] = []
    for chain in CHAINS:
        rungs = [study.rung(name) for name in chain]
        errors = [None if r is None or r.inverse is None else r.inverse.train.cut for r in rungs]
        means = [None if e is None else e.mean_over_models for e in errors]
        medians = [None if e is None else e.median_over_models for e in errors]
        if None in means:
            continue
        name = " → ".join(chain)
        rows.append((name, *(_gaps(values) for values in (means, medians))))
    if not rows:
        return None
    return Table(
        "What each step adds to the error (it is not additive: a step may take away)",
        ("Chain", "mean: steps = whole", "median: steps = whole"),
        tuple(rows),
        words=("mean: steps = whole", "median: steps = whole"),
    )


def _gaps(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return NONE
    steps = [_signed(b - a) for a, b in pairwise(known)]
    return f"{', '.join(steps)} = {_signed(known[-1] - known[0])}"


def _signed(value: float) -> str:
    return f"+{short(value)}" if value > 0 else short(value)


def damped(study: Results) -> Figure | None:
    """The error of the damped inverse over λ."""
    wanted = dict.fromkeys(("Hessian", "GGN", *(n for chain in CHAINS for n in chain)))
    rungs = [r for n in wanted if (r := study.rung(n)) is not None and r.inverse is not None]
    if not rungs:
        return None
    grid, look = study.spec.dampings, looks([rung.name for rung in rungs])
    measured = [rung.inverse for rung in rungs if rung.inverse is not None]
    curves = [[e.mean_over_models for e in one.train.damped] for one in measured]
    rows = tuple((short(at), *(short(curve[k]) for curve in curves)) for k, at in enumerate(grid))
    data = Table("Error of the damped inverse over λ", ("λ", *(r.full_name for r in rungs)), rows)

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        ends: list[tuple[float, str, Look]] = []
        for rung, curve in zip(rungs, curves, strict=True):
            mine = look[rung.name]
            drawn = [nan if not value or value < 1e-12 else value for value in curve]
            axes.plot(grid, drawn, color=mine.colour, marker=mine.marker, ms=2.6)
            last = [value for value in drawn if value == value]
            if last:
                ends.append((last[-1], rung.full_name, mine))
        axes.axhline(1, color=RULE, lw=0.8, zorder=0)
        log(axes, "x", "y")
        axes.set_xlabel("damping λ")
        axes.set_ylabel("mean of ‖(|H| + λ)(Ĥ + λ)⁻¹v − v‖²/‖v‖²", fontsize=6.5)
        end_labels(axes, ends)

    reading = "Below 1 the damped inverse of the rung is nearer to the Hessian’s than none."
    return Figure("inverses", "Error of the damped inverse", reading, data, draw, height=2.6)
