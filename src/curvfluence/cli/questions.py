"""One ladder before several questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curvfluence.cli.consoles import plain, shown_after, shown_unkept, watching
from curvfluence.cli.options import (
    Depth,
    Epochs,
    Models,
    NoProgress,
    Orders,
    ProblemName,
    ProtocolName,
    Rerun,
    RungNames,
    Seed,
    SubsetCount,
    Threads,
    Wait,
    Width,
)
from curvfluence.cli.root import app
from curvfluence.cli.words import names, value


@app.command()
def questions(
    problem: ProblemName,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder; runs/PROBLEM-questions unless given.")
    ] = None,
    subsets: SubsetCount = None,
    models: Models = 4,
    orders: Orders = 2,
    alpha: Annotated[
        str, typer.Option(help="Kept fractions, by comma, 0.5 among them.")
    ] = "0.5,0.9,0.95,0.99",
    left_out: Annotated[int, typer.Option(help="Examples to leave out one at a time.")] = 100,
    queries: Annotated[int, typer.Option(help="Queries whose most helpful are removed.")] = 20,
    depth: Depth = None,
    width: Width = None,
    epochs: Epochs = None,
    rungs: RungNames = None,
    protocol: ProtocolName = "clean",
    threads: Threads = None,
    rerun: Rerun = False,
    wait: Wait = False,
    no_progress: NoProgress = False,
) -> None:
    """Ask one ladder several questions: other fractions kept, one example left out, the most
    helpful ones removed, the spread over retrainings."""
    from curvfluence.report.questions import show_questions, write_questions
    from curvfluence.runs import forget
    from curvfluence.study import StudySpec, load
    from curvfluence.study.questions import Questions, QuestionSpec, run_questions
    from curvfluence.study.variant import Variant

    chosen = names(rungs)
    loaded = load(problem)
    spec = StudySpec(
        problem,
        loaded.subsets if subsets is None else subsets,
        seed=seed,
        models=models,
        orders=orders,
        rungs=chosen,
        protocol=protocol,
        variant=Variant(depth=depth, width=width, epochs=epochs),
        hybrids=False,
        costs=False,
    )
    alphas = tuple(float(value(part, float, "alpha")) for part in alpha.split(","))
    folder = Path("runs") / f"{loaded.name}-questions" if out is None else out
    if rerun:
        forget(folder, "questions", wait=wait)
    asks = QuestionSpec(spec, alphas, left_out=left_out, queries=queries)
    whole = shown_unkept(lambda found: show_questions(found, folder, plain()), Questions)
    with whole, watching(no_progress) as watch:
        found = run_questions(asks, folder, problem=loaded, threads=threads, wait=wait, watch=watch)
    with (
        shown_after(lambda: show_questions(found, folder, plain())),
        watching(no_progress) as watch,
        watch("write the report", 1),
    ):
        write_questions(found, folder)
