"""Files that are written whole or not at all, and never through a link."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from curvfluence.errors import InputError

LONGEST = 200  # letters of a name inside a folder of ours


def replace_file(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name, sync it to the disk, and let it take the place of what
    stands at `path`: after a crash or a power cut there is the old file or the new one, whole.

    A link at `path` is replaced, not followed. Errors: `OSError` as it comes, nothing left behind;
    `InputError` for a pipe or a device such as /dev/null, which would be gone.
    """
    if not path.is_symlink():
        require_no_link(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def replace_bytes(path: Path, data: bytes) -> None:
    """`replace_file` of these bytes."""
    replace_file(path, lambda file: file.write(data))


def append_line(path: Path, line: str) -> None:
    """Add a line to a file in one write, so that several processes can; a link is refused. What a
    full disk has left of another line before it stays apart. Errors: `OSError` as it comes, and
    where not all of the line was written."""
    require_no_link(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, 0o644)
    try:
        data = f"\n{line}\n".encode()
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """The name of a new file is safe once its folder is."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_inside(folder: str) -> None:
    """Refuse a path that leads out of the folder whose file names it, or that can be none."""
    inside = PurePosixPath(folder)
    if not folder or inside.is_absolute() or ".." in inside.parts or "\0" in folder:
        raise ValueError(f"it names a folder outside of its own, {_short(repr(folder))}")
    if max(map(len, inside.parts), default=0) > LONGEST:
        raise ValueError(f"it names a folder of more than {LONGEST} letters, {_short(folder)}")


def inside(root: Path, name: str) -> Path:
    """The path of that name below `root`, where no part below is a link; `root` itself may be one.

    Errors: `InputError` for a link, for `..` and for an absolute path.
    """
    try:
        require_inside(name)
    except ValueError as error:
        raise InputError(f"{root}: {error}") from None
    path = root
    for part in PurePosixPath(name).parts:
        path = path / part
        require_no_link(path)
    return path


def require_no_link(path: Path) -> None:
    """Errors: `InputError` where a link stands at `path`, which may lead anywhere, or a pipe, a
    socket or a device, which may be read from for ever."""
    if path.is_symlink():
        raise InputError(
            f"{path} is a link: what is kept is read from its own folder and written there; put "
            "the file or folder itself in its place"
        )
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(
            f"{path} is a pipe, a socket or a device, and no file: what is kept is in files"
        )


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"
