"""What can go wrong, by kind. Every message says what is wrong, what was seen, what to do next."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

__all__ = [
    "CoverageError",
    "CurvfluenceError",
    "CurvfluenceWarning",
    "InputError",
    "NonFiniteError",
    "NotKeptError",
    "ProcessEndedError",
    "SingularError",
]


class CurvfluenceError(ValueError):
    """A request that cannot be carried out as made; the command line exits with code 2.

    `example` is the number of the example that it is about, where it is about one, and `text` the
    message with {n} in that number's place."""

    example: int | None = None
    text: str = ""


class InputError(CurvfluenceError):
    """Data, model, loss or settings that do not fit together."""


class NotKeptError(InputError):
    """Results that could not be written where they were to be kept: a full disk, say. They are in
    `results`."""

    def __init__(self, message: str, results: Any) -> None:
        super().__init__(message)
        self.results = results

    def __reduce__(self) -> tuple[type, tuple[str, Any]]:  # as a worker sends it
        return type(self), (str(self), self.results)


class ProcessEndedError(CurvfluenceError):
    """Another of the processes that work together ended, or can no longer be reached."""


class NonFiniteError(InputError):
    """A NaN or infinity, named with the example that holds it."""


class SingularError(CurvfluenceError):
    """C + diag(w) + λI cannot be inverted at the given damping."""


class CoverageError(CurvfluenceError):
    """A rung that is asked to be strict has no rule for some parameter."""


def listed(names: Sequence[str], last: str = "and") -> str:
    """a, b and c."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


def about(example: int, kind: type[CurvfluenceError], text: str) -> CurvfluenceError:
    """An error about one example of a batch; `{n}` in the text stands for its number."""
    error = kind(text.replace("{n}", str(example)))
    error.example, error.text = example, text
    return error


@contextmanager
def numbered(number: Callable[[int], int]) -> Generator[None]:
    """Within it an error about example n of a batch is raised as one about example `number(n)`."""
    try:
        yield
    except CurvfluenceError as error:
        if error.example is None:
            raise
        raise about(number(error.example), type(error), error.text) from error.__cause__


def counted_from(start: int) -> AbstractContextManager[None]:
    """`numbered`, for a batch that begins at example `start`."""
    return numbered(lambda n: start + n)


class CurvfluenceWarning(UserWarning):
    """A result that is right as defined but that its reader should know more about."""
