"""Pages, written again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curvfluence.cli.consoles import plain
from curvfluence.cli.root import app
from curvfluence.cli.words import require_folder


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders of finished studies, sweeps, claims or questions."),
    ],
    docs: Annotated[
        Path | None,
        typer.Option(
            help="Write the tables of claims, or what each rung of studies costs, as text: FILE.md."
        ),
    ] = None,
) -> None:
    """Write pages and figures again, from what the folders hold."""
    from curvfluence.report.again import text_of, write_again
    from curvfluence.report.parts.line import show_named

    console = plain()
    if docs is not None:
        require_folder(docs)
        text_of(folders).write(docs, docs.stem)
    for folder in folders:
        if docs is not None and folder.suffix == ".json":
            continue  # a table alone: it is in the text
        show_named(console, "Report", write_again(folder))
