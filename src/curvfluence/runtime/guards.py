"""What keeps a process its own while code of somebody else's runs in it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import TextIO

from curvfluence.errors import InputError
from curvfluence.runtime.child import finished, is_child

IMPORT = "CURVFLUENCE_IMPORT"  # seconds that a problem file may take
LIMIT = 3600.0


@contextmanager
def one_process(what: str) -> Generator[None]:
    """End the copies that the code inside makes of this process, before they do its work twice."""
    own = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != own:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"{what}: the copy of the process that it forked ends here\n")
                sys.stderr.flush()
            os._exit(1)


@contextmanager
def own_streams() -> Generator[None]:
    """In a supervised process: the code inside has copies of the standard streams, and may close
    them."""
    if not is_child():
        yield
        return
    before = sys.stdout, sys.stderr
    for stream in before:
        stream.flush()
    kept = os.dup(1), os.dup(2)
    copies = [_copy(number) for number in (1, 2)]
    sys.stdout, sys.stderr = copies
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for number, (one, copy) in enumerate(zip(kept, copies, strict=True), start=1):
            with contextlib.suppress(OSError, ValueError):
                copy.close()
            os.dup2(one, number)
            os.close(one)


def _copy(number: int) -> TextIO:
    return os.fdopen(os.dup(number), "w", encoding="utf-8", errors="replace")


@contextmanager
def time_limit(what: str) -> Generator[None]:
    """In a supervised process: end it, and say so, where the code inside takes too long. Nothing
    else ends a loop that catches everything."""
    if not is_child():
        yield
        return
    seconds = _limit()
    over = threading.Event()
    err = os.dup(2)

    def watch() -> None:
        if over.wait(seconds):
            return
        text = (
            f"error: {what} has been running for {seconds:g} s and is ended; {IMPORT}=SECONDS in "
            "the environment gives it more\n"
        )
        os.write(err, text.encode())
        finished()
        os._exit(2)

    watcher = threading.Thread(target=watch, name="curvfluence: the limit", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        os.close(err)


def _limit() -> float:
    text = os.environ.get(IMPORT, str(LIMIT))
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not found > 0:
        raise InputError(f"{IMPORT} is the seconds that a problem file may take; seen {text!r}")
    return found
