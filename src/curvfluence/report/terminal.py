"""Studies, sweeps and forecasts as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from curvfluence.forecast import Plan
from curvfluence.report.parts.cautions import cautions
from curvfluence.report.parts.line import named
from curvfluence.report.parts.page import PAGE
from curvfluence.report.parts.table import Table
from curvfluence.report.study.figures.inverses import inverse_table
from curvfluence.report.study.figures.ladder import hybrids, step_table
from curvfluence.report.study.tables import proven_table, rung_table
from curvfluence.report.sweep.tables import overview
from curvfluence.store.folder import RESULTS
from curvfluence.store.manifest import ARRAYS
from curvfluence.study.results import Results
from curvfluence.study.study import Study
from curvfluence.study.sweep import Sweep
from curvfluence.study.words import number, percent, short

WIDTH = 110  # where the output is no terminal
_RUNGS = (
    "Rung", "LDS", "95% interval", "Bregman", "independent", "ensemble", "damping λ", "fit",
    "score",
)  # fmt: skip


def show_study(study: Study, console: Console) -> None:
    """The rungs, the steps between them, the noise ceiling, and where the files are."""
    results = study.results
    show_results(results, console)
    if (study.path / PAGE).is_file():
        _named(console, "Report", f"{study.path}/{PAGE}", wrap=False)
    spent = f"  ({results.study_seconds or 0.0:.1f} s)"
    _named(console, "Files", f"{study.path}/{RESULTS}, {study.path}/{ARRAYS}/{spent}", wrap=False)


def show_results(results: Results, console: Console) -> None:
    """What a study found, wherever it is kept."""
    truth = results.truth
    console.print(
        Text(results.problem, style="bold")
        + (f" ({results.changed})" if results.changed else "")
        + f": {truth.train} training examples, {truth.queries} queries, {truth.models} influence "
        f"models; truth: {truth.retrainings} retrainings on {truth.subsets} subsets of {truth.kept}"
    )
    rung_table(results).only(_RUNGS).show(console)
    if results.steps:
        console.print()
        _steps(results).show(console)
    mixed = hybrids(results)
    if mixed is not None:
        console.print()
        mixed.data.show(console)
    proven = proven_table(results)
    if proven is not None:
        console.print()
        proven.show(console)
        console.print(Text(proven.caption, style="dim"))
    inverses = inverse_table(results)
    if inverses is not None:
        console.print()
        inverses.show(console)
        console.print(Text(inverses.caption, style="dim"))
    console.print()
    for name, text in (*_ceilings(results), _response(results), *_surprising(results)):
        _named(console, name, text)
    for text in cautions([results]):
        console.print(Text(text, style="yellow"))


def show_sweep(sweep: Sweep, console: Console) -> None:
    """A row a cell: LDS of the main rungs, and the eigenvalue step's share by Fisher type."""
    overview(sweep).show(console)
    for text in cautions([study.results for study in sweep.studies]):
        console.print(Text(text, style="yellow"))
    if (sweep.path / PAGE).is_file():
        _named(console, "Report", f"{sweep.path}/{PAGE}", wrap=False)
    files = ", ".join(f"{sweep.path}/{n}" for n in ("table.parquet", "steps.parquet", "cells/"))
    _named(console, "Files", files, wrap=False)


def _named(console: Console, name: str, text: str, *, wrap: bool = True) -> None:
    console.print(Text(f"{name:15}", style="bold") + Text(text, style=""), soft_wrap=not wrap)


def _steps(study: Results) -> Table:
    """The steps, with the share that each has in ‖GGN − KFAC‖²."""
    chain = () if study.decomposition is None else study.decomposition.chain
    shares = {step.pair: percent(step.share) for step in chain}
    return step_table("Steps", study.steps, shares)


def _ceilings(study: Results) -> list[tuple[str, str]]:
    ceiling, best = study.truth.noise_ceiling, study.truth.best_lds
    pairs = (
        ("matched", ceiling.matched, best.matched),
        ("independent", ceiling.independent, best.independent),
    )
    return [
        (
            "Noise ceiling",
            f"{question}: reliability {number(reliability)}, so the best LDS is about "
            f"{number(top, 2)}",
        )
        for question, reliability, top in pairs
        if reliability is not None
    ]


def _response(study: Results) -> tuple[str, str]:
    """How the proximal Bregman response was measured, or why it was not."""
    response, truth = study.bregman, study.truth
    if response is None:
        return "Bregman", f"not measured: {study.bregman_missing}"
    dropped = response.groups_dropped
    lost = f"; {dropped} did not converge and are left out" if dropped else ""
    return "Bregman", (
        f"the proximal Bregman response at λ = {short(response.damping)}, ε = "
        f"{response.epsilon:g}: {response.models} of {truth.models} models, {response.groups} of "
        f"{truth.subsets} groups{lost}"
    )


def _surprising(study: Results) -> list[tuple[str, str]]:
    """The expected number of surprising labels of each sampled Fisher type."""
    named: dict[tuple[str | None, float], list[str]] = {}
    for rung in study.rungs:
        if rung.surprising_labels is not None:
            named.setdefault((rung.fisher, rung.surprising_labels), []).append(rung.full_name)
    return [
        (
            "Sampled",
            f"{fisher}: {short(count)} surprising labels expected among {study.truth.train} "
            f"examples ({', '.join(rungs)})",
        )
        for (fisher, count), rungs in named.items()
    ]


def show_plans(plans: Sequence[Plan], console: Console) -> None:
    """A table of stages for each rung, and what covers which parameter."""
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("rung", "stage"):
        grid.add_column(name)
    for name in ("seconds", "operations", "MiB"):
        grid.add_column(name, justify="right")
    for plan in plans:
        total = f"{plan.operations:.2g}"
        bytes_ = f"{plan.bytes / 2**20:,.1f}"
        rung, spent = (Text(t, style="bold") for t in (plan.rung, f"{plan.seconds:.2g}"))
        grid.add_row(rung, "all", spent, total, bytes_)
        for stage in plan.stages:
            mib = f"{stage.bytes / 2**20:,.1f}"
            grid.add_row(
                "", Text(stage.name), f"{stage.seconds:.2g}", f"{stage.operations:.2g}", mib
            )
        if not plan.fits:
            why = plan.reason or "more than this machine's memory"
            said = Text.assemble(("does not fit", "red"), f": {why}; next: {plan.cheaper}")
            grid.add_row("", said, "", "", "")
    console.print(grid)
    seen: dict[tuple[str, ...], list[str]] = {}
    for plan in plans:
        for rule in plan.coverage:
            seen.setdefault(rule.parameters, []).append(f"{plan.rung}: {rule.rule}")
    for parameters, rules in seen.items():
        console.print(named(", ".join(parameters), "; ".join(rules)))
