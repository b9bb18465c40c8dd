"""Retrainings that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curvfluence.cli.consoles import watching
from curvfluence.cli.options import (
    Depth,
    EngineName,
    Epochs,
    Models,
    NoProgress,
    Orders,
    ProblemName,
    ProtocolName,
    Scheduler,
    Seed,
    SubsetCount,
    Threads,
    Wait,
    Width,
    Workers,
)
from curvfluence.cli.root import app
from curvfluence.cli.words import engine_of, value
from curvfluence.errors import InputError

bank_app = typer.Typer(
    rich_markup_mode="markdown",
    no_args_is_help=True,
    help="Keep the retrainings of a study, and check what is kept.",
)
app.add_typer(bank_app, name="bank")


@bank_app.command("make")
def bank_make(
    problem: ProblemName,
    folder: Annotated[Path, typer.Argument(help="The bank: a new folder, or one to add to.")],
    seed: Seed = 0,
    subsets: SubsetCount = None,
    models: Models = 4,
    orders: Orders = 2,
    alpha: Annotated[str, typer.Option(help="Kept fractions, by comma: 0.5,0.9.")] = "0.5",
    depth: Depth = None,
    width: Width = None,
    epochs: Epochs = None,
    protocol: ProtocolName = "clean",
    part: Annotated[
        str | None,
        typer.Option(
            "--slice",
            help="A part of the retrainings, 3/16 the third of sixteen: for many machines that "
            "share a folder. The same command without it then finds all of them there.",
        ),
    ] = None,
    engine: EngineName = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    threads: Threads = None,
    wait: Wait = False,
    no_progress: NoProgress = False,
) -> None:
    """Train the influence models of a study and retrain on its subsets: its truth, without its
    ladder. What the bank holds already is not trained again."""
    from curvfluence.banks import Slice, make_bank, make_slice, verify_bank
    from curvfluence.study import StudySpec, load
    from curvfluence.study.variant import Variant

    which = None if part is None else Slice.of(part)
    where = engine_of(engine, workers, scheduler)
    if which is not None and where is not None:
        raise InputError("name a slice or an engine: an engine gives out all of them")
    loaded = load(problem)
    specs = [
        StudySpec(
            problem,
            loaded.subsets if subsets is None else subsets,
            seed=seed,
            models=models,
            orders=orders,
            alpha=float(value(fraction, float, "alpha")),
            protocol=protocol,
            variant=Variant(depth=depth, width=width, epochs=epochs),
        )
        for fraction in alpha.split(",")
    ]
    if which is not None:
        with watching(no_progress) as watch:
            made, there = make_slice(
                specs, folder, which, problem=loaded, threads=threads, watch=watch
            )
        typer.echo(f"slice {part}: {made:,} retrainings made in {folder}, {there:,} were there")
        return
    with watching(no_progress) as watch:
        make_bank(
            specs,
            folder,
            problem=loaded,
            threads=threads,
            wait=wait,
            engine=where,
            watch=watch,
        )
    found = verify_bank(folder)
    typer.echo(f"{folder} holds {found.retrainings:,} retrainings in {found.batches} batches")


@bank_app.command("verify")
def bank_verify(
    folder: Annotated[Path, typer.Argument(help="A bank.")],
    again: Annotated[int, typer.Option(help="How many of its retrainings to train once more.")] = 0,
) -> None:
    """Read every number of a bank against its SHA-256, and train some of its runs once more."""
    from curvfluence.banks import verify_bank

    found = verify_bank(folder, again=again)
    text = f"{found.retrainings:,} retrainings in {found.batches} batches are as they were written"
    if found.again:
        text += f"; {found.equal} of {found.again} trained once more are equal to the bit"
    if found.equal < found.again:
        text += f", the others within {found.largest:.2g} of their query's spread over subsets"
    typer.echo(text)
