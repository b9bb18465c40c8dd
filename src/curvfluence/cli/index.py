"""The examples behind a new query, without a pass over all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curvfluence.cli.consoles import plain, watching
from curvfluence.cli.options import DampingName, GivenName, NoProgress, RungName, Threads, Wait
from curvfluence.cli.root import app
from curvfluence.cli.together import together
from curvfluence.cli.words import set_threads

Folder = Annotated[Path, typer.Option("--index", help="The folder of the index.")]


@app.command()
def index(
    problem: GivenName,
    folder: Folder = Path("index"),
    rung: RungName = "EKFAC",
    damping: DampingName = "relative(0.1)",
    dimension: Annotated[
        int, typer.Option(help="Coordinates of an example that are kept, at most.")
    ] = 256,
    error: Annotated[
        float | None,
        typer.Option(help="Keep no more than leave this relative error of sample scores."),
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Keep them in float16: half of the disk.")
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Solve for landmarks within this much memory, 8GiB say: for some blocks of the "
            "curvature after others, a pass each."
        ),
    ] = None,
    threads: Threads = None,
    wait: Wait = False,
    no_progress: NoProgress = False,
) -> None:
    """Project every training example once, for `curvfluence query` to find those behind a query.

    The same command goes on where it was stopped. Under torchrun, `torchrun --nproc-per-node 2 -m
    curvfluence index my_problem.py`, processes that see one folder share the work. Examples that
    the file lists as `appended` (sources as `Problem` takes them) are put behind the others; more
    of them are added by the same command, without making the rest again.
    """
    import torch

    from curvfluence.curvature.named import damping_named, rung_named
    from curvfluence.indexing.make import index as make_index
    from curvfluence.report.index import show_index
    from curvfluence.study.problems.given import given

    chosen, at = rung_named(rung), damping_named(damping)
    set_threads(threads)
    with together() as leads, watching(no_progress or not leads) as watch:
        with watch("load the problem", 1) as done:
            asked = given(problem)
            done(1)
        with watch("examples", len(asked.problem.train)) as done:
            made = make_index(
                asked.problem,
                chosen,
                out=folder,
                damping=at,
                dimension=dimension,
                error=error,
                dtype=torch.float16 if half else torch.float32,
                appended=asked.appended,
                memory=memory,
                wait=wait,
                progress=done,
            )
    show_index(made, plain(quiet=not leads))


@app.command()
def query(
    problem: GivenName,
    folder: Folder = Path("index"),
    query: Annotated[
        list[int] | None, typer.Option(help="Number of a query; again for more. All unless given.")
    ] = None,
    top: Annotated[int, typer.Option(help="Examples at either end of a list.")] = 10,
    candidates: Annotated[
        int, typer.Option(help="Examples at either end that are scored exactly.")
    ] = 200,
    by: Annotated[
        str | None,
        typer.Option(help="Score them under another rung, which is fitted first: GGN, say."),
    ] = None,
    certificate: Annotated[
        bool,
        typer.Option(
            "--certificate",
            help="Hold inverses to the exact GGN, by a pass over the data.",
        ),
    ] = False,
    threads: Threads = None,
) -> None:
    """Which training examples are behind an answer, by the index that `curvfluence index` made."""
    from curvfluence.curvature.named import rung_named
    from curvfluence.curvature.rung import fit
    from curvfluence.indexing.load import load_index
    from curvfluence.report.index import show_found
    from curvfluence.study.problems.given import given

    other = None if by is None else rung_named(by)
    set_threads(threads)
    asked = given(problem)
    made = load_index(folder, asked.problem, appended=asked.appended)
    queries = list(range(len(asked.problem.queries))) if query is None else query
    scoring = None if other is None else fit(asked.problem, other)
    found = made.query(queries, top, candidates=candidates, by=scoring)
    console = plain()
    show_found(found, asked, queries, console)
    if certificate:
        console.print(f"Certificate  {found.certificate()}", highlight=False, markup=False)
