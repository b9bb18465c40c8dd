"""Run a study, or read it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curvfluence.cli.consoles import plain, shown_after, shown_unkept, watching
from curvfluence.cli.options import (
    Depth,
    DType,
    EngineName,
    Epochs,
    Models,
    NoProgress,
    ProtocolName,
    Rerun,
    RungNames,
    Scheduler,
    Seed,
    SubsetCount,
    Threads,
    Wait,
    Width,
    Workers,
)
from curvfluence.cli.root import app
from curvfluence.cli.words import engine_of, names


@app.command()
def study(
    problem: Annotated[
        str,
        typer.Argument(
            help="A built-in problem (digits, digits-large, digits-noisy, mnist5k, breast_cancer, "
            "wine, diabetes, autompg, boston, mnist-lr, mnist-mlp, mnist-cnn, text), or a Python "
            "file of your own."
        ),
    ],
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/PROBLEM unless given.")] = None,
    subsets: SubsetCount = None,
    models: Models = 4,
    alpha: Annotated[float, typer.Option(help="Fraction of the data that a subset keeps.")] = 0.5,
    queries: Annotated[
        int | None, typer.Option(help="The first so many queries; all unless given.")
    ] = None,
    depth: Depth = None,
    width: Width = None,
    epochs: Epochs = None,
    rungs: RungNames = None,
    threads: Threads = None,
    dtype: DType = "float32",
    protocol: ProtocolName = "clean",
    bank: Annotated[
        Path | None,
        typer.Option(help="Folder of retrainings to read and to add to; OUT/bank unless given."),
    ] = None,
    bregman: Annotated[
        bool,
        typer.Option(help="Hold every rung against the proximal Bregman response as well."),
    ] = True,
    bounds: Annotated[
        bool,
        typer.Option(
            "--bounds",
            help="Prove bounds on the errors of every rung's scores against the exact GGN.",
        ),
    ] = False,
    engine: EngineName = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    rerun: Rerun = False,
    wait: Wait = False,
    no_progress: NoProgress = False,
) -> None:
    """Train, retrain without data, climb the ladder of curvatures, compare with the truth."""
    # Imported here so that --help and a wrong option answer at once.
    from curvfluence.report import with_report
    from curvfluence.report.terminal import show_results, show_study
    from curvfluence.study import StudySpec, load, run_study
    from curvfluence.study.variant import Variant

    chosen, where = names(rungs), engine_of(engine, workers, scheduler)
    loaded = load(problem)
    spec = StudySpec(
        problem=problem,
        subsets=loaded.subsets if subsets is None else subsets,
        seed=seed,
        models=models,
        alpha=alpha,
        rungs=chosen,
        dtype=dtype,
        protocol=protocol,
        variant=Variant(depth=depth, width=width, epochs=epochs),
        bregman=bregman,
        queries=queries,
        bounds=bounds,
    )
    console = plain()
    with (
        shown_unkept(lambda results: show_results(results, console)),
        watching(no_progress) as watch,
    ):
        done = run_study(
            spec,
            out,
            problem=loaded,
            threads=threads,
            rerun=rerun,
            bank=bank,
            wait=wait,
            engine=where,
            watch=watch,
        )
    if done.reused:
        console.print(
            f"This study is already in {done.path}, made by this code; --rerun computes it again.",
            highlight=False,
            soft_wrap=True,
        )
    with (
        shown_after(lambda: show_study(done, console)),
        watching(no_progress) as watch,
        watch("write the report", 1),
    ):
        done = with_report(done)
