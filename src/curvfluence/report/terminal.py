"""A study as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from curvfluence.forecast import Plan
from curvfluence.study.sweep import Sweep

WIDTH = 110  # where the output is no terminal


def show(results: dict[str, Any], path: Path, console: Console) -> None:
    """The rungs, the steps between them, the noise ceiling, and where the files are."""
    truth = results["truth"]
    console.print(
        f"[bold]{results['problem']}[/]: {truth['train']} training examples, {truth['queries']} "
        f"queries, {truth['models']} influence models; truth: {truth['retrainings']} retrainings "
        f"on {truth['subsets']} subsets of {truth['kept']}",
        highlight=False,
    )
    console.print(_rungs(results))
    if results["steps"]:
        console.print(_steps(results))
    if results["hybrids"]:
        console.print(_hybrids(results))
    for line in (*_ceiling(truth), *_response(results), *_surprising(results)):
        console.print(line, highlight=False)
    for line in _cautions(results):
        console.print(Text(line, style="yellow"))
    if results["report_seconds"] is not None:
        console.print(
            Text("Report", style="bold") + Text(f"         {path}/report.html"), soft_wrap=True
        )
    files = Text(f"          {path}/results.json, {path}/arrays/")
    files.append(f"  ({results['study_seconds']:.1f} s)")
    console.print(Text("Files", style="bold") + files, highlight=False, soft_wrap=True)


def show_sweep(sweep: Sweep, console: Console) -> None:
    """A row a cell: LDS of the main rungs, and the eigenvalue step's share by Fisher type."""
    axes = list(sweep.cells[0][0])
    names = ("GGN", "BlockGGN", "EKFAC", "KFAC")
    fishers = [part["fisher"] for part in sweep.cells[0][1]["decompositions"]]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in (*axes, *names, *(f"EK→K share, {fisher}" for fisher in fishers)):
        table.add_column(name.replace("_", " "), justify="right")
    for cell, results in sweep.cells:
        lds = {rung["name"]: rung["lds"] for rung in results["rungs"]}
        last = [part["steps"] for part in results["decompositions"]]
        shares = [[s["share"] for s in steps if s["share"] is not None] for steps in last]
        table.add_row(
            *(f"{cell[axis]:g}" for axis in axes),
            *(_optional(lds.get(name)) for name in names),
            *(f"{found[-1]:.0%}" if found else "–" for found in shares),
        )
    console.print(table)
    if (sweep.path / "report.html").is_file():
        page = Text(f"         {sweep.path}/report.html")
        console.print(Text("Report", style="bold") + page, soft_wrap=True)
    files = f"          {sweep.path}/table.parquet, {sweep.path}/steps.parquet, {sweep.path}/cells/"
    console.print(Text("Files", style="bold") + Text(files), highlight=False, soft_wrap=True)


def _rungs(results: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Rung", style="bold")
    named = (
        "LDS",
        "95% interval",
        "Bregman",
        "independent",
        "ensemble",
        "damping λ",
        "fit",
        "score",
    )
    response = results["bregman"] is not None
    for name in named:
        if response or name != "Bregman":
            table.add_column(name, justify="right", no_wrap=True)
    for rung in results["rungs"]:
        table.add_row(
            rung["full_name"],
            f"{rung['lds']:.3f}",
            _interval(rung["interval"]),
            *([_optional(rung["lds_bregman"])] if response else []),
            _optional(rung["lds_independent"]),
            _optional(rung["lds_ensemble"]),
            _dampings(rung["dampings"]),
            _seconds(rung["fit_seconds"]),
            _seconds(rung["score_seconds"]),
        )
    return table


def _steps(results: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Step", style="bold")
    table.add_column("LDS lost", justify="right")
    table.add_column("‖·‖² share", justify="right")
    table.add_column("95% interval, paired", justify="right")
    table.add_column("")
    shares = {(s["from"], s["to"]): s["share"] for s in results["decomposition"]["steps"]}
    for step in results["steps"]:
        low, high = step["interval"]
        share = shares.get((step["from"], step["to"]))
        table.add_row(
            f"{step['from']} → {step['to']}",
            f"{step['lds_lost']:+.3f}",
            "" if share is None else f"{share:.0%}",
            _interval(step["interval"], signed=True),
            "" if low > 0 or high < 0 else "not resolved",
        )
    return table


def _hybrids(results: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Hybrid", style="bold")
    table.add_column("LDS", justify="right")
    table.add_column("95% interval", justify="right")
    for rung in results["hybrids"]:
        table.add_row(rung["name"], f"{rung['lds']:.3f}", _interval(rung["interval"]))
    return table


def _ceiling(truth: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for question in ("matched", "independent"):
        reliability, best = truth["noise_ceiling"][question], truth["best_lds"][question]
        if reliability is not None:
            lines.append(
                f"[bold]Noise ceiling[/]  {question}: reliability {reliability:.3f}, so the best "
                f"LDS is about {best:.2f}"
            )
    return [*lines, *truth["notes"]]


def _response(results: dict[str, Any]) -> list[str]:
    """How the proximal Bregman response was measured, or why it was not."""
    found = results["bregman"]
    if found is None:
        return [f"[bold]Bregman[/]        not measured: {results['bregman_missing']}"]
    models, drawn = results["truth"]["models"], results["truth"]["subsets"]
    dropped = found["groups_dropped"]
    lost = f"; {dropped} did not converge and are left out" if dropped else ""
    return [
        f"[bold]Bregman[/]        the proximal Bregman response at λ = {found['damping']:.2g}, "
        f"ε = {found['epsilon']:g}: {found['models']} of {models} models, {found['groups']} of "
        f"{drawn} groups{lost}"
    ]


def _surprising(results: dict[str, Any]) -> list[str]:
    """The expected number of surprising labels of each sampled Fisher type."""
    named: dict[tuple[str, float], list[str]] = {}
    for rung in results["rungs"]:
        if rung["surprising_labels"] is not None:
            key = (rung["fisher"], rung["surprising_labels"])
            named.setdefault(key, []).append(rung["full_name"])
    return [
        f"[bold]Sampled[/]        {fisher}: {count:.3g} surprising labels expected among "
        f"{results['truth']['train']} examples ({', '.join(rungs)})"
        for (fisher, count), rungs in named.items()
    ]


def _cautions(results: dict[str, Any]) -> list[str]:
    edges = [_edge(rung) for rung in results["rungs"] if rung["damping_on_edge"]]
    lost = [
        f"{rung['full_name']}: predictions or truth are constant for {rung['undefined']} pairs of "
        "model and query, which count as LDS 0"
        for rung in results["rungs"]
        if rung["undefined"]
    ]
    truth = results["truth"]
    if truth["models"] < 5:
        lost.append(
            f"{truth['models']} influence models: an interval says little of how other models "
            "would do; --models 8 or more for a claim"
        )
    if truth["subsets"] < 30:
        lost.append(f"{truth['subsets']} subsets: an LDS of so few ranks is rough")
    if edges:
        lost.append(
            f"Damping on the edge of the grid (change of LDS to the next λ): {', '.join(edges)}"
        )
    return lost


def _edge(rung: dict[str, Any]) -> str:
    """Whether the best λ may lie beyond the grid, or the sweep is merely flat there: the change of
    LDS over all queries from the chosen end of the grid to the λ next to it."""
    sweep = rung["sweep"]
    low = sweep[0]["damping"] in rung["dampings"]
    end, following = (sweep[0], sweep[1]) if low else (sweep[-1], sweep[-2])
    return f"{rung['full_name']} ({following['lds'] - end['lds']:+.4f})"


def _interval(pair: list[float], *, signed: bool = False) -> str:
    form = "+.3f" if signed else ".3f"
    return f"{pair[0]:{form}} to {pair[1]:{form}}"


def _optional(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _dampings(pair: list[float | None]) -> str:
    if pair[0] is None:
        return "–"
    return " / ".join(dict.fromkeys(f"{value:.2g}" for value in pair))


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def show_plans(plans: Sequence[Plan], console: Console) -> None:
    """A table of stages for each rung, and what covers which parameter."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("rung", "stage"):
        table.add_column(name)
    for name in ("seconds", "operations", "MiB"):
        table.add_column(name, justify="right")
    for found in plans:
        total = f"{found.operations:.2g}"
        bytes_ = f"{found.bytes / 2**20:,.1f}"
        table.add_row(
            f"[bold]{found.rung}[/]", "all", f"[bold]{found.seconds:.2g}[/]", total, bytes_
        )
        for stage in found.stages:
            mib = f"{stage.bytes / 2**20:,.1f}"
            table.add_row("", stage.name, f"{stage.seconds:.2g}", f"{stage.operations:.2g}", mib)
        if not found.fits:
            why = found.reason or "more than this machine's memory"
            table.add_row("", f"[red]does not fit[/]: {why}; next: {found.cheaper}", "", "", "")
    console.print(table)
    seen: dict[tuple[str, ...], list[str]] = {}
    for found in plans:
        for rule in found.coverage:
            seen.setdefault(rule.parameters, []).append(f"{found.rung}: {rule.rule}")
    for parameters, rules in seen.items():
        console.print(f"[bold]{', '.join(parameters)}[/]  {'; '.join(rules)}", highlight=False)
