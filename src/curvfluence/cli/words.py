"""What was typed, as values."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from curvfluence.errors import InputError

if TYPE_CHECKING:
    from curvfluence.study.engines import Engine
    from curvfluence.study.variant import Value


def names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(","))


def yes(text: str) -> bool:
    if text.strip() not in ("yes", "no"):
        raise ValueError(text)
    return text.strip() == "yes"


def value(text: str, kind: Callable[[str], Value], name: str) -> Value:
    try:
        return kind(text)
    except ValueError:
        what = "yes, no or both by comma" if kind is yes else "numbers by comma"
        raise InputError(f"--{name.replace('_', '-')} takes {what}; seen {text!r}") from None


def set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        from curvfluence import kinds

        torch.set_num_threads(kinds.count(threads, "threads"))


def engine_of(name: str | None, workers: int | None, scheduler: str | None) -> Engine | None:
    """Errors: `InputError` for workers or a scheduler of no engine."""
    from curvfluence.study.engines import Engine

    if name is None and (workers is not None or scheduler is not None):
        raise InputError("--workers and --scheduler are of an engine: name it, --engine dask say")
    return None if name is None else Engine(name, workers, scheduler)


def command_line() -> str:
    """As it was typed."""
    return shlex.join(["curvfluence", *sys.argv[1:]])


def require_folder(file: Path, option: str = "--docs") -> None:
    if not file.parent.is_dir():
        raise InputError(f"{file.parent} is no folder: {option} names a file in one that exists")
