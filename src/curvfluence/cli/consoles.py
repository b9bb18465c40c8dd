"""Where a command writes to: results, progress, errors and warnings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.text import Text

from curvfluence.errors import CurvfluenceWarning

if TYPE_CHECKING:
    from curvfluence.study.progress import Watcher


def plain(*, quiet: bool = False) -> Console:
    """Of results: as wide as the terminal, of one width in a file."""
    from curvfluence.report.terminal import WIDTH

    return Console(width=None if sys.stdout.isatty() else WIDTH, quiet=quiet)


@contextmanager
def watching(no_progress: bool) -> Generator[Watcher]:
    """Progress bars on the terminal, or none."""
    from curvfluence.study.progress import bars, logged, silent

    if no_progress:
        yield logged(silent)
    else:
        with bars(Console(stderr=True)) as watch:
            yield logged(watch)


def refuse(kind: str, text: str) -> NoReturn:
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"[bold red]{kind}:[/] ", end="")
    console.print(text, highlight=False, markup=False)
    sys.exit(2)


def show_warning(otherwise: Callable[..., None], message: Warning | str, *about: Any) -> None:
    """A warning of ours as a sentence, without the place in the source that it comes from."""
    if isinstance(message, CurvfluenceWarning):
        Console(stderr=True).print(Text(f"warning: {message}", style="yellow"))
    else:
        otherwise(message, *about)
