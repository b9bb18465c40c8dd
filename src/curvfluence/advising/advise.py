"""Choose a rung and a damping for a budget: by forecast, by trial, by retraining."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from curvfluence import kinds
from curvfluence.advising.advice import Advice, Candidate, Measured
from curvfluence.advising.budget import seconds_of
from curvfluence.advising.dampings import GRID, Tried, chosen, try_all, usual
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Absolute, Damping, Judge
from curvfluence.curvature.named import rung_named
from curvfluence.curvature.rung import Rung, fit
from curvfluence.errors import InputError
from curvfluence.forecast.make import plans
from curvfluence.forecast.plan import Plan
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.fisher import MonteCarlo
from curvfluence.jacobian.gradients import query_gradients
from curvfluence.problem.problem import Problem, require_problem
from curvfluence.runtime import precision, ranks
from curvfluence.score.agreement import agreement
from curvfluence.score.best_damping import group_predictions
from curvfluence.score.group_gradients import group_gradients
from curvfluence.score.influence import influence
from curvfluence.score.scores import Scores

# From the top down. The Hessian is not advised: it ties with the GGN where training converged and
# loses to it where it did not, at several times the cost.
LADDER = (
    "GGN", "BlockGGN", "EKFAC", "KFAC", "EKFAC[mc(1)]", "KFAC[mc(1)]", "Diagonal", "Identity",
)  # fmt: skip
SURPRISING = 50  # labels below which one draw an example is mostly noise
QUERIES = 32  # that candidates are run on


@precision.full()
def advise(
    problem: Problem,
    budget: str | float = "5m",
    *,
    by: str = "relative",
    queries: int = QUERIES,
    truth: Judge | None = None,
    seed: int = 0,
) -> Advice:
    """The highest rung that is forecast to do all queries within `budget` (seconds, or "30s", "5m",
    "2h") on this machine, and does; and its λ by the criterion `by`.

    The rungs that fit are run on at most `queries` of the queries, the highest first and the others
    while that takes no more than the budget again; each is compared with the highest. The criteria
    for λ are tried on the same queries (`dampings.try_all`) where that fits the budget too; beyond
    it, the multiple of the mean eigenvalue that suits the rung stands. With `truth` (retrained
    subsets, `cf.fidelity.SubsetTruth` over all queries) every rung that ran is measured, and the
    one of the highest LDS is advised at the λ that the truth chose.

    Cost: up to about three times the budget. Errors: `InputError` for a budget that no rung fits.
    """
    start = time.perf_counter()
    require_problem(problem)
    if ranks.here() is not None:
        raise InputError("advice goes by the clock, which differs by process: ask in one of them")
    seconds, by = seconds_of(budget), kinds.text(by, "by")
    every, notes = _ladder(problem, seed)
    made = dict(zip(every, plans(problem, list(every.values())), strict=True))
    fitting = [n for n, forecast in made.items() if forecast.fits and forecast.seconds <= seconds]
    if not fitting:
        cheapest = min(made, key=lambda name: made[name].seconds)
        raise InputError(
            f"a budget of {seconds:g} s is too small for any rung: the cheapest, {cheapest}, is "
            f"forecast at {made[cheapest].seconds:.2g} s for {len(problem.queries)} queries. "
            "Allow more, or ask about fewer queries"
        )
    asked = problem.asking(_few(len(problem.queries), kinds.count(queries, "queries")))
    runs = _Runs(asked, len(problem.queries) / len(asked.queries), seconds)
    table = {
        name: _candidate(name, rung, made[name], name in fitting, seconds)
        for name, rung in every.items()
    }
    for name in fitting:
        table[name] = runs.run(table[name])
    best = _within(fitting, table, seconds)
    tried, said = _dampings(asked, table[best], runs, seconds, seed)
    notes += said
    at = chosen(tried, by) if tried else Tried("relative", usual(table[best].rung))
    damping: Damping = at.damping
    if at.note:
        notes += (f"{at.name}: {at.note}",)
    if truth is not None:
        table = _measured(problem, table, runs, truth, best, damping)
        known = {n: one.measured for n, one in table.items() if one.measured is not None}
        best = max(known, key=lambda name: known[name].lds)
        damping = known[best].best
    return Advice(
        rung=every[best],
        name=best,
        damping=damping,
        budget=seconds,
        queries=len(problem.queries),
        asked=len(asked.queries),
        candidates=tuple(table.values()),
        tried=tried,
        by="truth" if truth is not None else at.name,
        notes=notes,
        seconds=time.perf_counter() - start,
    )


def _within(fitting: Sequence[str], table: Mapping[str, Candidate], budget: float) -> str:
    """The highest rung that took no more than the budget, or, where none did, the one that took
    least: a forecast of milliseconds may be off by several times."""
    taken = {name: at for name in fitting if (at := table[name].seconds) is not None}
    kept = [name for name, at in taken.items() if at <= budget]
    return kept[0] if kept else min(taken, key=lambda name: taken[name])


def _few(n: int, count: int) -> list[int]:
    """At most `count` of n, evenly spaced."""
    if n <= count:
        return list(range(n))
    return sorted({round(k * (n - 1) / max(1, count - 1)) for k in range(count)})


def _ladder(problem: Problem, seed: int) -> tuple[dict[str, Rung], tuple[str, ...]]:
    """The rungs that may be advised: one draw an example only where enough labels surprise."""
    surprising = MonteCarlo(1, seed=seed).surprising_labels(problem)
    names, notes = LADDER, tuple[str, ...]()
    if surprising is not None and surprising < SURPRISING:
        names = tuple(name for name in LADDER if "mc(1)" not in name)
        notes = (
            f"factors of one drawn label an example are not advised: {surprising:.3g} of them are "
            f"expected to be another than the likeliest, fewer than {SURPRISING}",
        )
    return {name: rung_named(name, seed=seed) for name in names}, notes


def _candidate(name: str, rung: Rung, forecast: Plan, affordable: bool, budget: float) -> Candidate:
    reason = ""
    if not forecast.fits:
        reason = forecast.reason or "more than this machine’s memory"
    elif forecast.seconds > budget:
        reason = "beyond the budget"
    return Candidate(name, rung, forecast.seconds, forecast.bytes, affordable, reason)


class _Runs:
    """Rungs that were run, on some queries; the first is what others are compared with."""

    def __init__(self, problem: Problem, times: float, budget: float) -> None:
        self.problem, self.times, self.budget = problem, times, budget
        self.fitted: dict[str, Curvature] = {}
        self.first: Scores | None = None
        self.spent = 0.0
        self.kept = False  # whether one of them was within the budget

    def run(self, one: Candidate) -> Candidate:
        if self.kept and self.spent + one.forecast > 2 * self.budget:
            return replace(one, reason="not run: the budget was used by higher rungs")
        start = time.perf_counter()
        curvature = fit(self.problem, one.rung)
        scores = influence(self.problem, curvature, damping=usual(one.rung))
        cost = scores.cost
        residual = None
        if curvature.fixed_damping is None:
            residuals = torch.tensor(scores.certificate().residuals)
            residual = float(residuals.median())
        self.fitted[one.name] = curvature
        self.spent += time.perf_counter() - start
        first = self.first = scores if self.first is None else self.first
        told = agreement(scores, first)
        taken = cost.fit_seconds + cost.score_seconds * self.times
        self.kept = self.kept or taken <= self.budget
        return replace(
            one,
            seconds=taken,
            correlation=told.mean,
            overlap=told.overlap,
            residual=residual,
        )


def _dampings(
    problem: Problem, best: Candidate, runs: _Runs, budget: float, seed: int
) -> tuple[tuple[Tried, ...], tuple[str, ...]]:
    """The criteria on the advised rung, unless that goes far beyond the budget."""
    curvature = runs.fitted[best.name]
    if curvature.fixed_damping is not None:
        return (), (f"{best.name} has no damping to choose",)
    if len(problem.train) < 2:
        return (), ("λ was not chosen by the data: one example has no halves",)
    start = time.perf_counter()
    curvature.solve(query_gradients(problem, discover(problem)).to_dense()[:, 0], Absolute(GRID[0]))
    each = time.perf_counter() - start
    wanted = 2 * curvature.cost.fit_seconds + 4 * len(GRID) * each
    if wanted > budget:
        return (), (
            f"λ was not chosen by the data: that would take about {wanted:.2g} s more, beyond the "
            "budget",
        )
    return try_all(problem, best.rung, curvature, seed), ()


def _measured(
    problem: Problem,
    table: Mapping[str, Candidate],
    runs: _Runs,
    truth: Judge,
    first: str,
    advised: Damping,
) -> dict[str, Candidate]:
    """With the LDS of every rung that ran, at each λ of the grid and at the one that is advised
    without a truth: `advised` for the `first`, the usual one for the others."""
    layout = discover(problem)
    groups_mp = group_gradients(problem, layout, truth.left_out)
    g_qp = query_gradients(problem, layout).to_dense()[:, 0]
    grid = tuple(map(Absolute, GRID))
    found = dict(table)
    for name, curvature in runs.fitted.items():
        fixed = curvature.fixed_damping
        without = advised if name == first else usual(found[name].rung)
        tried: tuple[Damping, ...] = (*grid, without) if fixed is None else (fixed,)
        rows = group_predictions(curvature, g_qp, groups_mp, tried, len(problem.train))
        judged = [truth.judge(row.T) for row in rows]
        own = judged[: len(grid)]  # the advised λ is not among those to choose from
        best = max(range(len(own)), key=lambda k: own[k][0])
        measured = Measured(tried[best], own[best][1], judged[-1][1])
        found[name] = replace(found[name], measured=measured)
    return found
