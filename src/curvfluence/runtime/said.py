"""What a result must say of how it came about, told from deep inside of its computation."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

from curvfluence.errors import CurvfluenceWarning

_NOTES: ContextVar[list[str] | None] = ContextVar("notes", default=None)


@contextmanager
def noted() -> Generator[list[str]]:
    """Within it, what is said is added to the list, each text once: whoever makes a result puts it
    among its notes."""
    notes: list[str] = []
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)


def say(text: str) -> None:
    """A note for the result that is being made, or a `CurvfluenceWarning` where none listens."""
    notes = _NOTES.get()
    if notes is None:
        warnings.warn(text, CurvfluenceWarning, stacklevel=3)
    elif text not in notes:
        notes.append(text)
