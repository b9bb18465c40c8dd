"""Settings of the process that several threads may want at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager


class InCommon:
    """A setting of the process, not of a thread: the first that comes in makes it, the last that
    leaves puts it back. (Each by itself would put back what another had made.)"""

    def __init__(self, make: Callable[[], AbstractContextManager[object]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._inside = 0
        self._made = ExitStack()

    @contextmanager
    def __call__(self) -> Generator[None]:
        with self._lock:
            if self._inside == 0:
                self._made.enter_context(self._make())
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._made.close()
