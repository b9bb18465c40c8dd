"""The claims as Markdown and in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from curvfluence.study.claims.claim import FAILS, HOLDS, MARGIN, OPEN
from curvfluence.study.claims.plan import AXES
from curvfluence.study.claims.rows import BASE, Row
from curvfluence.study.claims.run import Claimed
from curvfluence.study.words import bounds, number

SIGNS = {HOLDS: "✓", FAILS: "✗", OPEN: "?"}


def overview(claimed: Claimed) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(columns, rows): the verdicts of each claim and protocol by problem, for the problem as it is
    and then across each axis."""
    problems = list(claimed.rows)
    keys = dict.fromkeys(
        (row.claim, row.protocol) for rows in claimed.rows.values() for row in rows
    )
    lines = [
        (claim, protocol, *(_signs(claimed.rows[name], claim, protocol) for name in problems))
        for claim, protocol in keys
    ]
    return ("Claim", "protocol", *problems), lines


def _signs(rows: Sequence[Row], claim: str, protocol: str) -> str:
    own = [row for row in rows if (row.claim, row.protocol) == (claim, protocol)]
    signs = [SIGNS[row.verdict] for row in own]
    return f"{signs[0]} {''.join(signs[1:])}".strip() if signs else "–"


def legend(claimed: Claimed) -> str:
    axes = ", ".join(AXES[axis] for axis in claimed.settings.axes)
    kinds = ", ".join(f"{sign} {verdict}" for verdict, sign in SIGNS.items())
    return f"{kinds}: first for the problem as it is, then across {axes}."


def show_claims(claimed: Claimed, console: Console) -> None:
    """The overview, and where the rest is."""
    columns, lines = overview(claimed)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for k, name in enumerate(columns):
        table.add_column(name, style="bold" if k == 0 else None, no_wrap=k > 0)
    for line in lines:
        table.add_row(*line)
    console.print(table)
    console.print(legend(claimed), highlight=False)
    console.print(
        f"[bold]Tables[/]  {claimed.path}/claims.md, {claimed.path}/claims.json", highlight=False
    )
    reports = f"{claimed.path}/<problem>-<protocol>/report.html"
    console.print(f"[bold]Reports[/] {reports}", highlight=False, markup=True)


def markdown(claimed: Claimed) -> str:
    """The whole page: the overview, each problem's table, and how it was made."""
    columns, lines = overview(claimed)
    parts = [
        "# Claims\n",
        "What “Better Hessians Matter” (arXiv 2509.23437) says of influence functions, and what "
        "was measured here. [study.md](study.md#claims) says how each claim becomes a number and "
        "an interval; the interval alone makes the verdict.\n",
        _table(columns, lines),
        f"\n{legend(claimed)}\n",
        _made(claimed),
    ]
    for name, rows in claimed.rows.items():
        parts.append(f"\n## {name}\n")
        body = [
            (
                row.claim,
                row.protocol,
                "as it is" if row.scope == BASE else AXES[row.scope],
                number(row.measured, signed=not row.share),
                bounds(row.interval, signed=not row.share),
                row.verdict,
                row.detail,
            )
            for row in rows
        ]
        head = ("Claim", "protocol", "across", "measured", "95% interval", "verdict", "detail")
        parts.append(_table(head, body))
    return "\n".join(parts) + "\n"


def _made(claimed: Claimed) -> str:
    settings, found = claimed.settings, claimed.environment
    versions = ", ".join(
        f"{name} {found[name]}" for name in ("curvfluence", "python", "torch", "numpy", "scipy")
    )
    own = settings.subsets
    subsets = "each problem's own number of subsets" if own is None else f"{own} subsets"
    return (
        f"Made by `{found['command'] or 'the library'}` with {versions}; seed {settings.seed}. "
        f"{settings.models} influence models in every study; {subsets} in {settings.orders} "
        f"minibatch orders for the problem as it is, {settings.variant_subsets} in one order for "
        f"the variants; at most {settings.queries or 'all'} queries; λ from "
        f"{min(settings.dampings):g} to {max(settings.dampings):g}; {settings.replicates} "
        f"bootstrap replicates. A rung counts as no worse "
        f"within {MARGIN:g} of LDS.\n"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
    return "\n".join(f"| {line} |" for line in cells)
