"""Folders of results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from curvfluence.cli.consoles import console, plain
from curvfluence.cli.options import Root
from curvfluence.cli.root import app

runs_app = typer.Typer(
    rich_markup_mode="markdown", no_args_is_help=True, help="Look after folders of results."
)
app.add_typer(runs_app, name="runs")


@runs_app.command("list")
def runs_list(root: Root = Path("runs")) -> None:
    """Every folder of results: what it is, whether it is finished, how large."""
    from curvfluence.report.runs import runs_table
    from curvfluence.runs import find

    runs_table(find(root), root).show(plain())


@runs_app.command("show")
def runs_show(folder: Root) -> None:
    """What a folder holds: its settings, its files, and which code made them."""
    from curvfluence.report.runs import show_run

    show_run(folder, plain())


@runs_app.command("verify")
def runs_verify(
    folders: Annotated[list[Path], typer.Argument(help="Folders of results.")],
) -> None:
    """Read every file that results rest on against its SHA-256; exit code 1 where one is not what
    was written."""
    from curvfluence.runs import verify

    shown = console(soft_wrap=True)
    checked = [one for folder in folders for one in verify(folder)]
    for one in checked:
        mark = Text("whole", style="green") if one.fault is None else Text("FAULT", style="red")
        said = f"  {one.kind:9} {one.path}" + ("" if one.fault is None else f": {one.fault}")
        shown.print(mark + said, highlight=False)
    wrong = sum(one.fault is not None for one in checked)
    shown.print(f"{len(checked) - wrong} of {len(checked)} are whole", highlight=False)
    if wrong:
        sys.exit(1)


@runs_app.command("clean")
def runs_clean(
    root: Root = Path("runs"),
    unfinished: Annotated[
        bool,
        typer.Option(
            "--unfinished", help="Remove what is not finished, too: folders, and works on the way."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it only list.")] = False,
) -> None:
    """List, and with --yes remove, what commands that were killed have left behind. What a command
    is writing to now is not touched."""
    from curvfluence.runs import clean, leftovers

    shown = console(soft_wrap=True)
    found = (clean if yes else leftovers)(root, unfinished=unfinished)
    for path in found:
        shown.print(str(path), highlight=False)
    done = "removed" if yes else "would be removed by --yes"
    shown.print(f"{len(found)} {done}", highlight=False)
