"""Many studies along axes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curvfluence.cli.consoles import plain, shown_after, shown_unkept, watching
from curvfluence.cli.options import (
    EngineName,
    Jobs,
    NoProgress,
    ProblemName,
    ProtocolName,
    Rerun,
    Scheduler,
    Wait,
    Workers,
)
from curvfluence.cli.root import app
from curvfluence.cli.words import engine_of, value, yes
from curvfluence.errors import InputError

if TYPE_CHECKING:
    from curvfluence.study.variant import Value


@app.command()
def sweep(
    problem: ProblemName,
    depth: Annotated[str | None, typer.Option(help="Hidden layers, by comma: 1,2,4.")] = None,
    width: Annotated[str | None, typer.Option(help="Units of every hidden layer: 16,32.")] = None,
    activation: Annotated[str | None, typer.Option(help="gelu, tanh, relu.")] = None,
    bias: Annotated[str | None, typer.Option(help="Whether layers have one: yes,no.")] = None,
    epochs: Annotated[str | None, typer.Option(help="Training lengths: 3,30.")] = None,
    alpha: Annotated[str | None, typer.Option(help="Kept fractions: 0.5,0.9.")] = None,
    weight_decay: Annotated[str | None, typer.Option(help="Weight decays: 0,3e-3.")] = None,
    label_noise: Annotated[
        str | None, typer.Option(help="Shares of flipped labels: 0,0.1.")
    ] = None,
    decay_in_inverse: Annotated[
        str | None, typer.Option(help="Whether the inverse has the weight decay: yes,no.")
    ] = None,
    seed: Annotated[str | None, typer.Option(help="Seeds: 0,1,2.")] = None,
    fisher: Annotated[
        str, typer.Option(help="Further Fisher types of K-FAC and EK-FAC, on the same truth.")
    ] = "mc(1)",
    subsets: Annotated[int, typer.Option(help="Random subsets of each study.")] = 30,
    models: Annotated[int, typer.Option(help="Influence models of each study.")] = 2,
    protocol: ProtocolName = "clean",
    out: Annotated[
        Path | None, typer.Option(help="Folder; runs/PROBLEM-sweep unless given.")
    ] = None,
    jobs: Jobs = None,
    engine: EngineName = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    rerun: Rerun = False,
    wait: Wait = False,
    no_progress: NoProgress = False,
) -> None:
    """Study every cell of a grid, in parallel processes, into one tidy table and a page."""
    from curvfluence.report import write_sweep_report
    from curvfluence.report.terminal import show_sweep
    from curvfluence.runs import forget
    from curvfluence.study import StudySpec
    from curvfluence.study.sweep import Sweep, run_sweep

    where = engine_of(engine, workers, scheduler)
    given: dict[str, tuple[str | None, Callable[[str], Value]]] = {
        "depth": (depth, int),
        "width": (width, int),
        "activation": (activation, str.strip),
        "bias": (bias, yes),
        "epochs": (epochs, int),
        "alpha": (alpha, float),
        "weight_decay": (weight_decay, float),
        "label_noise": (label_noise, float),
        "decay_in_inverse": (decay_in_inverse, yes),
        "seed": (seed, int),
    }
    axes = {
        name: [value(part, kind, name) for part in text.split(",")]
        for name, (text, kind) in given.items()
        if text is not None
    }
    if not axes:
        raise InputError("a sweep needs an axis, such as --depth 1,2,4")
    fishers = tuple(name.strip() for name in fisher.split(",") if name.strip())
    base = StudySpec(
        problem, subsets, models=models, protocol=protocol, fishers=fishers, bregman=False
    )
    folder = Path("runs") / f"{Path(problem).stem}-sweep" if out is None else out
    if rerun:
        forget(folder, "sweep", wait=wait)
    # A study of the sweep that could not be kept is not the sweep.
    whole = shown_unkept(lambda found: show_sweep(found, plain()), Sweep)
    with whole, watching(no_progress) as watch:
        done = run_sweep(base, axes, folder, jobs=jobs, wait=wait, engine=where, watch=watch)
    with (
        shown_after(lambda: show_sweep(done, plain())),
        watching(no_progress) as watch,
        watch("write the report", 1),
    ):
        write_sweep_report(done)
