"""What a supervised process, and the worker of any, owes to the one that started it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from multiprocessing import parent_process

CHILD = "CURVFLUENCE_CHILD"  # the supervisor's process number, and where to tell it of the end
FINISHED = b"finished"
POLL = 0.5  # seconds between two looks at the parent
WATCH = "curvfluence: the parent"  # a thread's name
_PR_SET_PDEATHSIG = 1


def is_child() -> bool:
    """Whether a supervisor watches this process."""
    return CHILD in os.environ


def begin() -> None:
    """To be called first: from now on this process ends with its supervisor."""
    if not is_child():
        return
    parent = int(os.environ[CHILD].partition(":")[0])
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before
        os._exit(1)


def finished() -> None:
    """Tell the supervisor that the command came to its own end, whatever its exit code."""
    if is_child():
        with contextlib.suppress(OSError, ValueError):
            os.write(int(os.environ[CHILD].partition(":")[2]), FINISHED)


def end_with_parent() -> None:
    """Let a worker process end when the one that started it does, whatever ended that. Costs a
    thread that looks twice a second; to call it again, or in no worker, changes nothing."""
    if parent_process() is None or os.name != "posix":
        return
    if any(thread.name == WATCH for thread in threading.enumerate()):
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name=WATCH, daemon=True).start()
