"""Which examples are behind an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from curvfluence.cli.consoles import plain, watching
from curvfluence.cli.options import DampingName, GivenName, NoProgress, RungName, Threads
from curvfluence.cli.root import app
from curvfluence.cli.together import together
from curvfluence.cli.words import command_line, set_threads
from curvfluence.errors import CurvfluenceError


@app.command()
def attribute(
    problem: GivenName,
    query: Annotated[
        list[int] | None, typer.Option(help="Number of a query; again for more. All unless given.")
    ] = None,
    top: Annotated[int, typer.Option(help="Examples at either end of a list.")] = 10,
    rung: RungName = "EKFAC",
    damping: DampingName = "relative(0.1)",
    beside: Annotated[
        str,
        typer.Option(
            help="A second rung to compare with; auto: the highest that is forecast to take half "
            "a minute at most; none."
        ),
    ] = "auto",
    bounds: Annotated[
        bool,
        typer.Option(
            "--bounds", help="Prove a bound on the error of every score against the exact GGN."
        ),
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Hold matrices and solutions of no more than this at a time, such as 8GiB (a "
            "pass's activations and the scores come to it): blocks of parameters one group after "
            "another, with a pass over the data each."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("explorer.html"),
    table: Annotated[
        Path | None, typer.Option(help="Write the lists as a table too: a new FILE.csv.")
    ] = None,
    threads: Threads = None,
    no_progress: NoProgress = False,
) -> None:
    """Which training examples are behind an answer: a table here, and a page to look at them.

    Of a file nothing is trained again; a built-in problem is trained once. Under torchrun,
    `torchrun --nproc-per-node 2 -m curvfluence attribute my_problem.py`, processes share the work.
    """
    from curvfluence.curvature.ggn import GGN
    from curvfluence.curvature.named import damping_named, rung_named
    from curvfluence.explore import answer, companion_named, going_on
    from curvfluence.report.explorer import show_answers, write_explorer
    from curvfluence.report.parts.line import show_named
    from curvfluence.report.parts.page import require_own
    from curvfluence.runtime import ranks
    from curvfluence.score.matrix import require_new
    from curvfluence.study.problems.given import given

    chosen, at = rung_named(rung), damping_named(damping)
    second = None if beside in ("auto", "none") else rung_named(beside)
    # of those that are chosen later none takes longer than the GGN, as a rule
    fitted = [chosen, *([second] if second else []), *([GGN()] if beside == "auto" else [])]
    require_own(out)
    set_threads(threads)
    require_new(table)
    found, console, why = None, plain(), ""
    try:
        with together() as leads:
            console = plain(quiet=not leads)
            with watching(no_progress or not leads) as watch, watch("load the problem", 3) as done:
                asked = given(problem)
                done(1)
                settings = (query, chosen, beside, at, top, bounds, memory)
                with going_on(out, asked.problem, *settings, rungs=fitted):
                    if beside == "auto" and memory is not None:
                        why = "within a memory a second rung is one that is named"
                    elif beside == "auto":
                        name, why = ranks.of_first(companion_named(asked.problem, chosen))
                        second = None if name is None else rung_named(name)
                    found = answer(
                        asked,
                        query,
                        rung=chosen,
                        beside=second,
                        damping=at,
                        top=top,
                        bounds=bounds,
                        memory=memory,
                    )
                    done(2)
                    with ranks.alike():  # before what was kept on the way goes
                        page = write_explorer(found, out, command=command_line()) if leads else None
            if page is None:
                return
    except (CurvfluenceError, OSError):
        if found is not None:
            show_answers(found, console)
        raise
    show_answers(found, console)
    if table is not None:
        found.asked.with_ids(queries=found.queries).to_csv(table, top)
        show_named(console, "Table", table)
    if why:
        console.print(Text(f"beside: {second.name if second else 'nothing'}, {why}", style="dim"))
    show_named(console, "Page", page.path)
