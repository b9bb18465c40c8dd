"""A study as a person reads it in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 100  # where the output is no terminal


def show(results: dict[str, Any], path: Path, console: Console) -> None:
    """The rungs, the steps between them, the noise ceiling, and where the files are."""
    truth = results["truth"]
    console.print(
        f"[bold]{results['problem']}[/]: {truth['train']} training examples, {truth['queries']} "
        f"queries, {truth['models']} influence models; truth: {truth['retrainings']} retrainings "
        f"on {truth['subsets']} subsets that keep {truth['alpha']:.0%}",
        highlight=False,
    )
    console.print(_rungs(results))
    console.print(_steps(results))
    for line in _ceiling(truth):
        console.print(line, highlight=False)
    for line in _cautions(results):
        console.print(Text(line, style="yellow"))
    console.print(
        f"[bold]Files[/]          {path}/results.json, {path}/arrays/  "
        f"({results['study_seconds']:.1f} s)",
        highlight=False,
        soft_wrap=True,
    )


def _rungs(results: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Rung", style="bold")
    for name in ("LDS", "95% interval", "independent", "ensemble", "damping λ", "fit", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    for rung in results["rungs"]:
        table.add_row(
            rung["full_name"],
            f"{rung['lds']:.3f}",
            _interval(rung["interval"]),
            _optional(rung["lds_independent"]),
            f"{rung['lds_ensemble']:.3f}",
            _dampings(rung["dampings"]),
            _seconds(rung["fit_seconds"]),
            _seconds(rung["score_seconds"]),
        )
    return table


def _steps(results: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Step", style="bold")
    table.add_column("LDS lost", justify="right")
    table.add_column("95% interval, paired", justify="right")
    table.add_column("")
    for step in results["steps"]:
        low, high = step["interval"]
        table.add_row(
            f"{step['from']} → {step['to']}",
            f"{step['lds_lost']:+.3f}",
            _interval(step["interval"], signed=True),
            "" if low > 0 or high < 0 else "not resolved",
        )
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


def _cautions(results: dict[str, Any]) -> list[str]:
    edges = [_edge(rung) for rung in results["rungs"] if rung["damping_on_edge"]]
    lost = [
        f"{rung['full_name']}: {rung['undefined']} queries have constant predictions or truth"
        for rung in results["rungs"]
        if rung["undefined"]
    ]
    if edges:
        lost.append(f"Damping on the edge of the grid (LDS at the next λ): {', '.join(edges)}")
    return lost


def _edge(rung: dict[str, Any]) -> str:
    """Whether the best λ may lie beyond the grid, or the sweep is merely flat there."""
    sweep = rung["sweep"]
    low = rung["dampings"][0] == sweep[0]["damping"]
    next_to = sweep[1] if low else sweep[-2]
    return f"{rung['full_name']} ({next_to['lds'] - rung['lds']:+.4f})"


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
