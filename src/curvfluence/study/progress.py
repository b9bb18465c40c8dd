"""Progress of the long stages, shown on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Stage(Protocol):
    """Told how much of a stage is done, in units of its total."""

    def __call__(self, done: int, /) -> None: ...


class Watcher(Protocol):
    """Opens a stage; the context ends with it."""

    def __call__(self, name: str, total: int) -> StageContext: ...


class StageContext(Protocol):
    def __enter__(self) -> Stage: ...

    def __exit__(self, *error: object) -> bool | None: ...


@contextmanager
def silent(name: str, total: int) -> Generator[Stage]:
    """No progress shown."""
    yield lambda done: None


@contextmanager
def bars(console: Console) -> Generator[Callable[[str, int], StageContext]]:
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
