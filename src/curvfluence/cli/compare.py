"""Studies side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from curvfluence.cli.consoles import console, shown_after
from curvfluence.cli.root import app


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of two finished studies or more.")],
    out: Annotated[Path | None, typer.Option(help="Write a page too: FILE.html.")] = None,
) -> None:
    """Put studies side by side: LDS by rung, and the settings in which they differ."""
    from curvfluence.report import compare_studies, write_comparison
    from curvfluence.report.parts.line import show_named
    from curvfluence.report.terminal import WIDTH

    found = compare_studies(folders)
    wide = console(width=None if sys.stdout.isatty() else max(WIDTH, 30 + 45 * len(folders)))
    with shown_after(lambda: found.show(wide)):
        if out is not None:
            write_comparison(found, out)
    if out is not None:
        show_named(wide, "Page", out)
