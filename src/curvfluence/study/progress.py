"""Progress of the long stages, shown on a terminal only."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from curvfluence.runtime.log import logger

LOG = logger(__name__)

# Told how much of a stage is done, in units of its total.
Stage: TypeAlias = Callable[[int], None]
# Opens a stage by name and total; the context ends with it.
Watcher: TypeAlias = Callable[[str, int], AbstractContextManager[Stage]]


@contextmanager
def silent(name: str, total: int) -> Generator[Stage]:
    """No progress shown."""
    yield lambda done: None


def logged(watch: Watcher) -> Watcher:
    """The same, with each stage's beginning, end and seconds told to `logging`."""

    @contextmanager
    def stage(name: str, total: int) -> Generator[Stage]:
        start = time.perf_counter()
        LOG.info("%s: begun, %d to do", name, total)
        with watch(name, total) as done:
            yield done
        LOG.info("%s: done in %.1f s", name, time.perf_counter() - start)

    return stage


@contextmanager
def bars(console: Console) -> Generator[Watcher]:
    """One bar for each stage, on a terminal; nothing elsewhere."""
    columns = (
        TextColumn("{task.description:<26}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        @contextmanager
        def stage(name: str, total: int) -> Generator[Stage]:
            task = progress.add_task(name, total=total)
            yield lambda done: progress.update(task, completed=done)
            progress.update(task, completed=total)

        yield stage
