"""Memory that was freed and that the C library keeps."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def trim() -> None:
    """Give it back to the system between stages that hold little of each other's memory.

    glibc keeps up to 64 MiB above what is in use, and everything below it. A millisecond or less,
    and page faults where as much is wanted again; nothing where there is no glibc.
    """
    found = _malloc_trim()
    if found is not None:
        found(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library
        return None
