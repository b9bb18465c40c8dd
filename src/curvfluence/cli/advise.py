"""Which rung, and which damping."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from curvfluence.cli.consoles import plain, watching
from curvfluence.cli.options import GivenName, NoProgress, Seed, Threads, Wait
from curvfluence.cli.root import app
from curvfluence.cli.words import set_threads


@app.command()
def advise(
    problem: GivenName,
    budget: Annotated[str, typer.Option(help="For all queries: 30s, 5m, 2h.")] = "5m",
    by: Annotated[
        str,
        typer.Option(help="What λ is chosen by: relative, halves, surrogate or certificate."),
    ] = "relative",
    queries: Annotated[int, typer.Option(help="Queries that rungs are tried on.")] = 32,
    retrain: Annotated[
        int | None,
        typer.Option(
            help="Retrain on so many random halves of the data, and measure: a file then defines "
            "`recipe` too."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the retrainings; runs/PROBLEM-advise unless given."),
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
    wait: Wait = False,
    no_progress: NoProgress = False,
) -> None:
    """Which rung and which damping for a budget of time, and what one step more would cost."""
    from curvfluence.advising import advise as ask
    from curvfluence.advising import seconds_of
    from curvfluence.advising.retrained import retrained
    from curvfluence.report.advice import show_advice
    from curvfluence.study import load
    from curvfluence.study.problems.given import given

    seconds = seconds_of(budget)
    set_threads(threads)
    with watching(no_progress) as watch:
        if retrain is None:
            asked = given(problem)
            title, chosen, truth, notes = asked.title, asked.problem, None, ()
        else:
            study = load(problem)
            folder = Path("runs") / f"{study.name}-advise" if out is None else out
            made = retrained(
                study,
                retrain,
                folder / "bank",
                seed=seed,
                threads=threads,
                wait=wait,
                watch=watch,
            )
            title, chosen = study.display.title, made.problem
            truth, notes = made.truth, made.notes
        with watch("try rungs", 1):
            found = ask(chosen, seconds, by=by, queries=queries, truth=truth, seed=seed)
    show_advice(replace(found, notes=(*found.notes, *notes)), title, plain())
