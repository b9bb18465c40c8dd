"""A problem of one's own to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curvfluence.cli.root import app


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The new file, such as my_problem.py.")],
) -> None:
    """Write a commented example of a problem of your own, ready to run."""
    from curvfluence.study.problems import write_template

    write_template(path)
    typer.echo(f"{path} is written. It runs as it is: curvfluence study {path}")
