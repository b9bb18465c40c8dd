"""A line that names something in a terminal: a file, a stage."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


def named(name: str, text: object, width: int = 0) -> Text:
    """The name, bold, and the text as it is: of a path like `runs/x[lr=0.1]` nothing is markup."""
    return Text.assemble((f"{name:{width}}", "bold"), "  ", str(text))


def show_named(console: Console, name: str, text: object, width: int = 0) -> None:
    """`named` on a line of its own, which is never broken."""
    console.print(named(name, text, width), soft_wrap=True)
