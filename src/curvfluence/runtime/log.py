"""What the package says to `logging`, below the logger "curvfluence"; quiet unless asked."""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from curvfluence.errors import InputError

NAME = "curvfluence"
FORMAT = "%(asctime)s %(levelname)-7s %(name)s [%(process)d]: %(message)s"


def logger(module: str) -> logging.Logger:
    """The logger of a module, `logging.getLogger(__name__)`; nothing is printed of it unless the
    program that uses the package sets logging up."""
    if not _root().handlers:
        _root().addHandler(logging.NullHandler())
    return logging.getLogger(module)


def _root() -> logging.Logger:
    return logging.getLogger(NAME)


@contextmanager
def shown(verbose: bool, file: Path | None) -> Generator[None]:
    """Within it the package's records go to stderr (`verbose`) and to the end of `file`; afterwards
    the loggers are as they were. Errors: `InputError` where the file cannot be written."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)] if verbose else []
    if file is not None:
        try:
            handlers.append(logging.FileHandler(file, encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot write to {file}: {error.strerror or error}") from error
    root, level, before = _root(), _root().level, _root().propagate
    if handlers:
        root.setLevel(logging.DEBUG if verbose else logging.INFO)
        root.propagate = False
    for handler in handlers:
        handler.setFormatter(logging.Formatter(FORMAT))
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)
        root.propagate = before
