"""The tables of a study, the same on the page and in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from curvfluence.report.parts.table import Table, tabulate
from curvfluence.study.results import ClaimRow, Results, RungResult
from curvfluence.study.words import (
    dampings,
    flops,
    interval,
    number,
    percent,
    seconds,
    short,
    size,
)

_RUNG: dict[str, Callable[[RungResult], str]] = {
    "Rung": lambda r: r.full_name,
    "LDS": lambda r: number(r.lds),
    "95% interval": lambda r: interval(r.interval),
    "Bregman": lambda r: number(r.lds_bregman),
    "independent": lambda r: number(r.lds_independent),
    "ensemble": lambda r: number(r.lds_ensemble),
    "damping λ": lambda r: dampings(r.dampings),
    "fit": lambda r: seconds(r.fit_seconds),
    "score": lambda r: seconds(r.score_seconds),
    "operations": lambda r: flops(r.operations),
    "peak memory": lambda r: size(r.peak_bytes),
    "surprising labels": lambda r: short(r.surprising_labels),
}


def rung_table(study: Results) -> Table:
    """Every rung of the ladder, from the top down."""
    caption = (
        "Every rung: LDS against retraining from the same initial weights, against the proximal "
        "Bregman response, against other initial weights (independent), and of the mean of all "
        "models as one predictor (ensemble); the cost is for one model and one damping"
    )
    return tabulate(caption, _RUNG, study.rungs, open=True)


def proven_table(study: Results) -> Table | None:
    """Bounds on the errors of every rung's scores; None where none were asked for."""
    rungs = [(rung, rung.proven) for rung in study.rungs if rung.proven is not None]
    if not rungs:
        return None
    most, share = max(p.rows for _, p in rungs), min(p.trace for _, p in rungs)
    caption = (
        f"Proven at the first model, in {study.truth.unit}: how far a score can be from the exact "
        "GGN’s at the same λ, the largest and the median over all pairs; a score that is larger "
        f"than its own bound has the exact one’s sign ({most:,} rows of the GGN, {share:.0%} of "
        "its trace)"
    )
    return tabulate(
        caption,
        {
            "Rung": lambda p: p[0].full_name,
            "damping λ": lambda p: dampings(p[0].dampings),
            "largest bound": lambda p: short(p[1].largest),
            "median bound": lambda p: short(p[1].median),
            "signs proven": lambda p: percent(p[1].signs),
        },
        rungs,
        open=True,
    )


def coverage_table(study: Results) -> Table:
    """What covers which parameters."""
    return tabulate(
        "What covers which parameters",
        {
            "Rung": lambda p: p[0].full_name,
            "block": lambda p: p[1].block,
            "rule": lambda p: p[1].rule,
            "parameters": lambda p: f"{p[1].count:,}",
        },
        [(rung, block) for rung in study.every_rung for block in rung.coverage],
        words=("block", "rule"),
    )


def seconds_table(study: Results) -> Table:
    """What each stage took."""
    spent = study.seconds
    stages = {
        "models": None if spent is None else spent.models,
        "climb": None if spent is None else spent.climb,
        "truth": None if spent is None else spent.truth,
        "compare": None if spent is None else spent.compare,
        "Bregman response": None if spent is None else spent.bregman,
        "bounds": None if spent is None or not spent.bounds else spent.bounds,
        "study": study.study_seconds,
    }
    rows = tuple((name, number(value, 1)) for name, value in stages.items() if value is not None)
    return Table("Seconds", ("stage", "seconds"), rows, open=True)


def losses_table(study: Results) -> Table:
    """Mean training losses at the end of training."""
    truth = study.truth
    rows = (
        ("influence models", ", ".join(map(short, truth.influence_model_loss))),
        ("retrained, mean", short(truth.retrained_loss)),
        *((("diverged, left out", f"{len(truth.diverged)}"),) if truth.diverged else ()),
        ("trainer", truth.path),
    )
    return Table("Training loss", ("", "value"), rows, open=True)


def claim_table(caption: str, claims: Sequence[ClaimRow], *, open: bool) -> Table:
    """What was said, what was measured, and the verdict."""
    return tabulate(
        caption,
        {
            "Claim": lambda c: c.statement,
            "protocol": lambda c: c.protocol,
            "across": lambda c: c.place,
            "measured": lambda c: number(c.measured, signed=not c.share),
            "95% interval": lambda c: interval(c.interval, signed=not c.share),
            "verdict": lambda c: c.verdict,
            "detail": lambda c: c.detail,
        },
        claims,
        open=open,
        words=("protocol", "across", "verdict", "detail"),
    )
