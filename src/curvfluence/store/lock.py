"""One command at a time in a folder: a lock that dies with its holder."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from curvfluence.errors import InputError
from curvfluence.store.files import require_no_link
from curvfluence.store.records import Record, read, write

LOCK, HOLDER = ".lock", ".holder.json"


class HeldError(InputError):
    """Another command holds a folder."""


class Holder(Record, frozen=True):
    """Who holds a folder: written once it is held, and believed only while it is."""

    remedy = "wait until the folder is free"

    process: int
    machine: str
    command: str
    since: str


@contextmanager
def held(folder: Path, *, wait: bool = False, alone: bool = True) -> Generator[None]:
    """Hold `folder`, which is made where there is none, against other commands. The lock is the
    operating system's and goes with this process, however it ends. With `wait` another holder is
    waited for. What writers that were killed have left behind is removed, unless others write to
    the folder as well, which is then not held `alone`.

    Errors: `HeldError` naming the holder; `InputError` where the folder cannot be written to.
    """
    file = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_no_link(file)
        lock = FileLock(file, timeout=-1 if wait else 0)
        lock.acquire()
    except Timeout:
        raise HeldError(f"{folder} is {_holder(folder)}: wait for it with --wait") from None
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        try:
            if alone:
                _sweep(folder)
            write(folder / HOLDER, _this())
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


@dataclass(eq=False)
class Holding:
    """A folder that is held once something is written to it, until `stack` is closed."""

    folder: Path
    wait: bool
    stack: ExitStack
    held: bool = False

    def take(self) -> None:
        """Hold it from now on. Errors: as `held`."""
        if not self.held:
            self.stack.enter_context(held(self.folder, wait=self.wait, alone=False))
            self.held = True


def is_held(folder: Path) -> bool:
    """Whether a command is at work in the folder now, which may be anybody's to read alone."""
    file = folder / LOCK
    if not file.is_file() or file.is_symlink():
        return False
    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return not _free(file)


def _free(file: Path) -> bool:
    """Whether nobody holds a lock that is not ours to write to."""
    if os.name != "posix":
        return False
    import fcntl

    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def own(path: Path) -> bool:
    """Whether a file is a lock's, which says nothing of what a folder holds."""
    name = path.name
    return name in (LOCK, HOLDER) or (name.startswith(f".{HOLDER}.") and name.endswith(".tmp"))


def _this() -> Holder:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    words = [os.path.basename(sys.argv[0] or "python"), *sys.argv[1:]]
    command = shlex.join(words).encode(errors="surrogateescape").decode(errors="backslashreplace")
    return Holder(os.getpid(), platform.node(), command[:200], since)


def _holder(folder: Path) -> str:
    try:
        found = read(folder / HOLDER, Holder)
    except InputError:
        found = None
    if found is None:
        return "being written by another command"
    return (
        f"being written by process {found.process} on {found.machine} ({found.command}), since "
        f"{found.since}"
    )


def _sweep(folder: Path) -> None:
    """Remove what writers that were killed have left behind: nobody else is writing now."""
    for place in (folder, folder / "arrays", folder / "shards"):
        if place.is_dir() and not place.is_symlink():
            for file in place.glob(".*.tmp"):
                file.unlink(missing_ok=True)
