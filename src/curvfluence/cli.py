"""The command line: builds the same objects as the library, and shows what they give."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from curvfluence._version import __version__
from curvfluence.errors import CurvfluenceError, InputError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"curvfluence {__version__}")
        raise typer.Exit


@app.callback()
def curvfluence(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Which training data made the model do this, and how far can the answer be trusted?"""


@app.command()
def study(
    problem: Annotated[str, typer.Argument(help="A built-in problem: digits, digits-large.")],
    seed: Annotated[int, typer.Option(help="Everything random derives from it.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder [default: runs/PROBLEM].")] = None,
    subsets: Annotated[
        int | None, typer.Option(help="Random subsets to retrain on [default: the problem's].")
    ] = None,
    models: Annotated[int, typer.Option(help="Influence models (initialisations).")] = 4,
    alpha: Annotated[float, typer.Option(help="Fraction of the data that a subset keeps.")] = 0.5,
    rungs: Annotated[
        str | None, typer.Option(help="Rungs of the ladder, by comma [default: all].")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads [default: all cores].")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    rerun: Annotated[
        bool, typer.Option("--rerun", help="Compute again what the folder already holds.")
    ] = False,
    no_progress: Annotated[
        bool, typer.Option("--no-progress", help="Show no progress bars.")
    ] = False,
) -> None:
    """Train, retrain without data, climb the ladder of curvatures, compare with the truth."""
    # Imported here so that --help and a wrong option answer at once.
    from curvfluence.study import LADDER, StudySpec, load, run_study
    from curvfluence.study.progress import bars, silent
    from curvfluence.study.table import WIDTH, show

    chosen = tuple(LADDER) if rungs is None else tuple(n.strip() for n in rungs.split(","))
    spec = StudySpec(
        problem=problem,
        subsets=load(problem).subsets if subsets is None else subsets,
        seed=seed,
        models=models,
        alpha=alpha,
        rungs=chosen,
        dtype=dtype,
    )
    plain = Console(width=None if sys.stdout.isatty() else WIDTH)
    if no_progress:
        done = run_study(spec, out, threads=threads, rerun=rerun, watch=silent)
    else:
        with bars(Console(stderr=True)) as watch:
            done = run_study(spec, out, threads=threads, rerun=rerun, watch=watch)
    if done.reused:
        plain.print(
            f"This study is already in {done.path}, made by this code; --rerun computes it again.",
            highlight=False,
        )
    show(done.results, done.path, plain)


def main() -> None:
    """Entry point: a request that cannot be carried out ends with its reason and exit code 2."""
    try:
        app()
    except CurvfluenceError as error:
        kind = "error" if isinstance(error, InputError) else type(error).__name__
        Console(stderr=True, soft_wrap=True).print(f"[bold red]{kind}:[/] ", end="")
        Console(stderr=True, soft_wrap=True).print(str(error), highlight=False, markup=False)
        sys.exit(2)
