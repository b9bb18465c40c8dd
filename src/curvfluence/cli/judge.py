"""Scores that anybody made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curvfluence.cli.consoles import plain, shown_unkept, watching
from curvfluence.cli.options import NoProgress, Seed, Threads, Wait
from curvfluence.cli.root import app
from curvfluence.cli.words import names, value


@app.command()
def judge(
    scores: Annotated[
        list[Path],
        typer.Argument(
            help="A file of scores (.npy, .npz, kronfluence's .safetensors, TRAK's .mmap), of one "
            "influence model or [model, query, train]; or several files, one a model."
        ),
    ],
    problem: Annotated[
        str | None,
        typer.Option(help="What they are of: a built-in problem, or a file; the bank's own."),
    ] = None,
    positive: Annotated[
        str | None,
        typer.Option(help="What a positive score's example does to the query: helps or hurts."),
    ] = None,
    order: Annotated[
        str | None, typer.Option(help="Of the axes: query,train or train,query.")
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(
            help="loss: the change of the query's measurement. loss*N: N times that. none."
        ),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Which array of a file of several.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Number of the influence model, or several by comma; 0, 1, and so on."),
    ] = None,
    name: Annotated[str, typer.Option(help="What the scores are called.")] = "judged",
    against: Annotated[
        str | None,
        typer.Option(help="Rungs to stand beside, by comma; EKFAC, and GGN up to 10,000 weights."),
    ] = None,
    baselines: Annotated[
        bool, typer.Option(help="Stand beside random scores, cosine, TracIn and TRAK as well.")
    ] = True,
    removal: Annotated[
        bool,
        typer.Option(
            "--removal",
            help="Leave out the top 1%, 5% and 10% of each method for each of the first queries, "
            "and train again: about 500 times for each influence model.",
        ),
    ] = False,
    queries: Annotated[int, typer.Option(help="Queries of the removal, the first ones.")] = 20,
    seed: Seed = 0,
    subsets: Annotated[
        int | None, typer.Option(help="Random subsets; the bank's number, or the problem's own.")
    ] = None,
    models: Annotated[
        int | None, typer.Option(help="Influence models of the truth; the bank's number, or 4.")
    ] = None,
    orders: Annotated[
        int | None,
        typer.Option(help="Minibatch orders of each subset; the bank's number, or 2."),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Fraction of the data that a subset keeps.")] = 0.5,
    bank: Annotated[
        Path | None,
        typer.Option(
            help="Folder of retrainings to read and to add to; banks/PROBLEM, or what ships, where "
            "complete, or else runs/PROBLEM-judge/bank."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write every number too: FILE.json.")] = None,
    threads: Threads = None,
    wait: Wait = False,
    no_progress: NoProgress = False,
) -> None:
    """Hold scores that any library made against retraining: LDS, beside our rungs and baselines."""
    from curvfluence.judging import Beside, Removal, Settings
    from curvfluence.judging.run import judge as judged
    from curvfluence.report.judge import show_judgement

    numbers = None if model is None else [int(value(n, int, "model")) for n in model.split(",")]
    wanted = Removal(queries=queries) if removal else None
    with (
        shown_unkept(lambda found: show_judgement(found, plain())),
        watching(no_progress) as watch,
    ):
        found = judged(
            list(scores),
            problem,
            positive=positive,
            order=order,
            units=units,
            key=key,
            model=numbers,
            name=name,
            beside=Beside(names(against), baselines=baselines, removal=wanted),
            settings=Settings(subsets, seed, models, orders, alpha),
            bank=bank,
            out=out,
            threads=threads,
            wait=wait,
            watch=watch,
        )
    show_judgement(found, plain(), out)
