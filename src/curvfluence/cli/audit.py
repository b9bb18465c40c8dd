"""Labels that may be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curvfluence.cli.consoles import plain, watching
from curvfluence.cli.options import DampingName, GivenName, NoProgress, RungName, Threads
from curvfluence.cli.root import app
from curvfluence.cli.words import command_line, require_folder, set_threads
from curvfluence.errors import CurvfluenceError


@app.command()
def audit(
    problem: GivenName,
    rung: RungName = "EKFAC",
    damping: DampingName = "relative(0.1)",
    neighbours: Annotated[int, typer.Option(help="That an example is compared with.")] = 20,
    examined: Annotated[
        int | None,
        typer.Option(
            help="Examples whose neighbours are looked for; all of 5,000 or fewer, else 2,000."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("audit.html"),
    json: Annotated[Path | None, typer.Option(help="Write every number: FILE.json.")] = None,
    threads: Threads = None,
    no_progress: NoProgress = False,
) -> None:
    """Which labels look wrong, which examples harm, which are there twice; beside plain loss."""
    from curvfluence.auditing import audit as run_audit
    from curvfluence.auditing.record import record_of
    from curvfluence.curvature.named import damping_named, rung_named
    from curvfluence.explore import going_on
    from curvfluence.report.audit import show_audit, write_audit
    from curvfluence.report.parts.line import show_named
    from curvfluence.report.parts.page import require_own
    from curvfluence.store.records import write
    from curvfluence.study.problems.given import given

    chosen, at = rung_named(rung), damping_named(damping)
    require_own(out)
    if json is not None:
        require_folder(json, "--json")
    set_threads(threads)
    console, asked, found = plain(), None, None
    try:
        with watching(no_progress) as watch, watch("audit", 3) as done:
            asked = given(problem)
            done(1)
            with going_on(out, asked.problem, chosen, at, neighbours, examined, rungs=[chosen]):
                found = run_audit(
                    asked.problem,
                    chosen,
                    damping=at,
                    k=neighbours,
                    examined=examined,
                    flipped=asked.flipped,
                )
                done(2)  # and written before what was kept on the way goes
                if json is not None:
                    write(json, record_of(found, problem))
                page = write_audit(found, asked, out, command=command_line())
    except (CurvfluenceError, OSError):
        if asked is not None and found is not None:
            show_audit(found, asked, console)
        raise
    show_audit(found, asked, console)
    if json is not None:
        show_named(console, "Numbers", json)
    show_named(console, "Page", page.path)
