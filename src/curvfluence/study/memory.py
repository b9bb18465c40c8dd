"""Peak memory of a piece of work, as the operating system saw it."""

from __future__ import annotations

import ctypes
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """`bytes` is set when the context ends: the peak resident memory above what was held at its
    start, of the whole process; None where the system keeps no resettable peak."""

    bytes: int | None = None


@contextmanager
def peak_memory() -> Generator[Peak]:
    """Measure the peak of what runs inside: libraries' workspaces count, memory that the allocator
    keeps from before does not. Linux with glibc only; elsewhere the result is None."""
    peak = Peak()
    before = _restart()
    yield peak
    if before is not None:
        peak.bytes = max(0, _status("VmHWM") - before)


def _restart() -> int | None:
    """Reset the peak to the present; what is resident now, or None where that cannot be done."""
    try:
        # Freed memory that the allocator keeps would hide what is allocated next.
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")
    except (OSError, AttributeError):
        return None
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {field}")
