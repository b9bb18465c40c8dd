"""The command `curvfluence`, and what holds for all that it does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from curvfluence._version import __version__
from curvfluence.cli.together import require_shared
from curvfluence.runtime.log import shown

ORDER = (
    "attribute", "index", "query", "audit", "advise", "plan", "init", "study", "sweep", "claims",
    "questions", "judge", "report", "compare", "bank", "runs",
)  # fmt: skip


class InOrder(TyperGroup):
    """Help lists what a newcomer asks for first."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)


app = typer.Typer(
    cls=InOrder,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"curvfluence {__version__}")
        raise typer.Exit


@app.callback()
def curvfluence(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Tell what is done, and what is read again.")
    ] = False,
    log_file: Annotated[
        Path | None, typer.Option(help="Tell it to the end of a file: --log-file FILE study ….")
    ] = None,
) -> None:
    """Which training data made the model do this, and how far can the answer be trusted?"""
    require_shared(context.invoked_subcommand)
    context.with_resource(shown(verbose, log_file))
