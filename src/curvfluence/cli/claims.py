"""What the paper says, judged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curvfluence.cli.consoles import plain, shown_after, shown_unkept, watching
from curvfluence.cli.options import Jobs, NoProgress, Rerun, Seed, SubsetCount, Wait
from curvfluence.cli.root import app
from curvfluence.cli.words import require_folder
from curvfluence.errors import InputError

LEAST_MODELS = 8  # influence models of a study that a claim rests on
VARIANT_SUBSETS = 40  # of each variant, unless told


@app.command()
def claims(
    problems: Annotated[
        list[str], typer.Argument(help="Built-in problems, or Python files of your own.")
    ],
    protocol: Annotated[
        str | None,
        typer.Option(
            help="table1: the paper's own nets and training lengths, one problem at a time. clean "
            "and paper, both of them, unless given."
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="With table1: a part of the cells, verdicts provisional."),
    ] = False,
    depth: Annotated[int | None, typer.Option(help="With table1: cells of that depth.")] = None,
    width: Annotated[int | None, typer.Option(help="With table1: cells of that width.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="With table1: cells trained for so many epochs.")
    ] = None,
    seed: Seed = 0,
    models: Annotated[
        int | None, typer.Option(help="Influence models of each study, 8 (the least) or more.")
    ] = None,
    subsets: SubsetCount = None,
    variant_subsets: Annotated[
        int | None, typer.Option(help="Random subsets of each variant; 40 unless given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; runs/claims or runs/table1 unless given.")
    ] = None,
    docs: Annotated[Path | None, typer.Option(help="Write the tables there too: FILE.md.")] = None,
    jobs: Jobs = None,
    rerun: Rerun = False,
    wait: Wait = False,
    no_progress: NoProgress = False,
) -> None:
    """Test what the paper says: both protocols, across width, depth and training length; or with
    --protocol table1 its own experiment."""
    from curvfluence.report import table1
    from curvfluence.report.claims import show_claims, text, write_claims
    from curvfluence.runs import forget
    from curvfluence.study.claims import Claims, Settings, run_claims
    from curvfluence.study.claims.table1 import Part
    from curvfluence.study.claims.table1_run import Table1Run, run_table1

    if docs is not None:
        require_folder(docs)
    console = plain()
    part = Part(depth, width, epochs)
    if protocol == "table1":
        fixed = {"models": models, "subsets": subsets, "variant-subsets": variant_subsets}
        given = [f"--{name}" for name, value in fixed.items() if value is not None]
        if given or len(problems) > 1:
            what = " and ".join(given) or "more than one problem"
            raise InputError(f"the cells of table1 are fixed: it does not take {what}")
        folder = out or Path("runs/table1")
        if rerun:
            forget(folder, "table1", wait=wait)
        whole = shown_unkept(lambda found: table1.show_table1(found, console), Table1Run)
        with whole, watching(no_progress) as watch:
            cells = run_table1(
                problems[0],
                folder,
                quick=quick,
                seed=seed,
                part=part,
                jobs=jobs,
                wait=wait,
                watch=watch,
            )
        with shown_after(lambda: table1.show_table1(cells, console)):
            with watching(no_progress) as watch, watch("write the report", 1):
                table1.write_table1(cells)
            if docs is not None:
                table1.text(cells.table).write(docs, docs.stem)
        return
    if protocol is not None or quick or part.given:
        alone = "--quick" if quick else f"--{next(iter(part.given), '')}"
        seen = f"--protocol {protocol}" if protocol is not None else f"{alone} alone"
        raise InputError(f"claims are of clean and paper together, or of table1; seen {seen}")
    models, variant_subsets = models or LEAST_MODELS, variant_subsets or VARIANT_SUBSETS
    if models < LEAST_MODELS:
        raise InputError(f"a claim needs {LEAST_MODELS} influence models or more; seen {models}")
    settings = Settings(seed=seed, models=models, subsets=subsets, variant_subsets=variant_subsets)
    folder = out or Path("runs/claims")
    if rerun:
        forget(folder, "claims", wait=wait)
    whole = shown_unkept(lambda found: show_claims(found, console), Claims)
    with whole, watching(no_progress) as watch:
        done = run_claims(problems, folder, settings, jobs=jobs, wait=wait, watch=watch)
    with shown_after(lambda: show_claims(done, console)):
        with watching(no_progress) as watch:
            write_claims(done, watch=watch)
        if docs is not None:
            text(done).write(docs, docs.stem)
