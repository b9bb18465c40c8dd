"""What each rung costs."""

from __future__ import annotations

from typing import Annotated

import typer

from curvfluence.cli.consoles import plain
from curvfluence.cli.options import DType, ProblemName, RungNames
from curvfluence.cli.root import app
from curvfluence.cli.words import names


@app.command()
def plan(
    problem: ProblemName,
    rungs: RungNames = None,
    queries: Annotated[
        int | None, typer.Option(help="Queries to score; the problem's own number unless given.")
    ] = None,
    dtype: DType = "float32",
) -> None:
    """Forecast what each rung costs here, stage by stage, before anything is fitted."""
    from curvfluence.report.terminal import show_plans
    from curvfluence.study.costs import forecasts

    found = forecasts(problem, names(rungs), queries=queries, dtype=dtype)
    show_plans(found, plain())
