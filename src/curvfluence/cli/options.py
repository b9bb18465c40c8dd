"""Options and arguments that several commands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

GivenName = Annotated[
    str, typer.Argument(help="A Python file that defines `problem`, or a built-in problem.")
]
ProblemName = Annotated[str, typer.Argument(help="A built-in problem, or a Python file.")]
Seed = Annotated[int, typer.Option(help="Everything random derives from it.")]
SubsetCount = Annotated[
    int | None, typer.Option(help="Random subsets; the problem's own number unless given.")
]
Models = Annotated[int, typer.Option(help="Influence models (initialisations).")]
Orders = Annotated[int, typer.Option(help="Minibatch orders of each subset.")]
Depth = Annotated[int | None, typer.Option(help="Hidden layers; the problem's own.")]
Width = Annotated[int | None, typer.Option(help="Of all hidden layers; the first's.")]
Epochs = Annotated[int | None, typer.Option(help="Of training; the problem's own.")]
RungNames = Annotated[
    str | None, typer.Option(help="Rungs of the ladder, by comma; all unless given.")
]
ProtocolName = Annotated[
    str,
    typer.Option(
        help="clean: exact factors. paper: one-sample factors, no decay, cosine. table1: the "
        "paper's own nets (tanh, no biases), every Fisher type, errors of inverses. frontier: "
        "every rung, Fisher type and form."
    ),
]
DType = Annotated[str, typer.Option(help="float32 or float64.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; all cores unless given.")]
Jobs = Annotated[int | None, typer.Option(help="Studies at a time; as many as cores unless given.")]
EngineName = Annotated[
    str | None,
    typer.Option(help="Workers that retrain: loky, dask or ray; this process unless given."),
]
Workers = Annotated[
    int | None, typer.Option(help="Of the engine, one thread each; as many as cores unless given.")
]
Scheduler = Annotated[
    str | None,
    typer.Option(help="Of a cluster that runs already: tcp://host:8786 of Dask, auto of Ray."),
]
Wait = Annotated[
    bool, typer.Option("--wait", help="Wait for another command that writes to the folder.")
]
Rerun = Annotated[
    bool, typer.Option("--rerun", help="Compute again what the folder already holds.")
]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Show no progress bars.")]

Root = Annotated[Path, typer.Argument(help="A folder of results, or of such folders.")]
RungName = Annotated[str, typer.Option(help="A rung: EKFAC, or EKFAC[mc(1)] with its Fisher type.")]
DampingName = Annotated[
    str, typer.Option(help="relative(0.1), times the mean eigenvalue, or a number such as 1e-3.")
]
