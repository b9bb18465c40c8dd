"""The claims as Markdown and in a terminal, and the pages of the studies that they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from curvfluence.report.parts.table import Table
from curvfluence.report.study.page import with_report
from curvfluence.report.study.tables import claim_table
from curvfluence.study.claims import AXES, Claims
from curvfluence.study.claims.claim import FAILS, HOLDS, MARGIN, OPEN
from curvfluence.study.claims.plan import PROTOCOL_NAMES
from curvfluence.study.progress import Watcher, silent
from curvfluence.study.results import ClaimRow
from curvfluence.study.study import read_study

PAGE = "claims.md"
SIGNS = {HOLDS: "✓", FAILS: "✗", OPEN: "?"}


def write_claims(claims: Claims, *, figures: bool = True, watch: Watcher = silent) -> Path:
    """Write `claims.md`, and the page of every base study that has none of these results; with
    `figures`, each page's figures as files too."""
    folders = [
        claims.path / f"{name}-{protocol}"
        for name in claims.table.problems
        for protocol in PROTOCOL_NAMES
    ]
    with watch("write the reports", len(folders)) as done:
        for k, folder in enumerate(folders):
            with_report(read_study(folder), figures=figures)
            done(k + 1)
    page = claims.path / PAGE
    page.write_text(markdown(claims), encoding="utf-8")
    return page


def overview(claims: Claims) -> Table:
    """The verdicts of each claim and protocol by problem, for the problem as it is and then across
    each axis."""
    problems = list(claims.table.problems)
    keys = dict.fromkeys((r.statement, r.protocol) for name in problems for r in claims.rows(name))
    lines = (
        (statement, protocol, *(_signs(claims.rows(n), statement, protocol) for n in problems))
        for statement, protocol in keys
    )
    axes = listed_axes(claims)
    signs = ", ".join(f"{sign} {verdict}" for verdict, sign in SIGNS.items())
    caption = f"{signs}: first for the problem as it is, then across {axes}."
    return Table(caption, ("Claim", "protocol", *problems), tuple(lines))


def listed_axes(claims: Claims) -> str:
    return ", ".join(AXES.get(axis, axis) for axis in claims.table.settings.axes)


def _signs(rows: Sequence[ClaimRow], statement: str, protocol: str) -> str:
    signs = [SIGNS[r.verdict] for r in rows if (r.statement, r.protocol) == (statement, protocol)]
    return f"{signs[0]} {''.join(signs[1:])}".strip() if signs else "–"


def show_claims(claims: Claims, console: Console) -> None:
    """The overview, and where the rest is."""
    table = overview(claims)
    table.show(console)
    console.print(table.caption, highlight=False)
    for name, files in (
        ("Tables", f"{claims.path}/{PAGE}, {claims.path}/claims.json"),
        ("Reports", f"{claims.path}/<problem>-<protocol>/report.html"),
    ):
        console.print(f"[bold]{name:9}[/]{files}", highlight=False, soft_wrap=True)


def markdown(claims: Claims) -> str:
    """The whole page: the overview, each problem's table, and how it was made."""
    table = overview(claims)
    parts = [
        "# Claims\n",
        "What “Better Hessians Matter” (arXiv 2509.23437) says of influence functions, and what "
        "was measured here. [study.md](study.md#claims) says how each claim becomes a number and "
        "an interval; the interval alone makes the verdict. These are nets of this project's own: "
        "the paper's setting stands in [table1.md](table1.md).\n",
        table.markdown,
        f"\n{table.caption}\n",
        _made(claims),
    ]
    for name in claims.table.problems:
        parts += [f"\n## {name}\n", claim_table(name, claims.rows(name), open=True).markdown]
    return "\n".join(parts) + "\n"


def _made(claims: Claims) -> str:
    settings, made = claims.table.settings, claims.table.environment
    shown = ("curvfluence", "python", "torch", "numpy", "scipy")
    versions = ", ".join(f"{name} {made.versions[name]}" for name in shown)
    subsets = (
        "each problem's own number of subsets"
        if settings.subsets is None
        else f"{settings.subsets} subsets"
    )
    return (
        f"Made by `{made.command or 'the library'}` with {versions}; seed {settings.seed}. "
        f"{settings.models} influence models in every study; {subsets} in {settings.orders} "
        f"minibatch orders for the problem as it is, {settings.variant_subsets} in one order for "
        f"the variants; at most {settings.queries or 'all'} queries; λ from "
        f"{min(settings.dampings):g} to {max(settings.dampings):g}; {settings.replicates} "
        f"bootstrap replicates. A rung counts as no worse "
        f"within {MARGIN:g} of LDS.\n"
    )
