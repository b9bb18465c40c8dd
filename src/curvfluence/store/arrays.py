"""Arrays on disk: numbers of the size that the file states, or one error."""

from __future__ import annotations

import hashlib
import zlib
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import IO, Annotated, Any, BinaryIO
from zipfile import BadZipFile, ZipFile

import numpy as np
from msgspec import Meta
from numpy.lib import format as npy
from numpy.typing import NDArray

from curvfluence.errors import InputError
from curvfluence.store.files import replace_file, require_no_link
from curvfluence.store.records import Record

REMEDY = "run the study again with --rerun, or remove its folder"
Size = Annotated[int, Meta(ge=0, le=2**53)]
CHUNK = 2**22
# What NumPy raises of a file that is no array, whatever its header says.
UNREADABLE = (
    ValueError, TypeError, EOFError, OSError, SyntaxError, TokenError, RecursionError, MemoryError,
    OverflowError,
)  # fmt: skip
# And of an archive: damaged, compressed in a way that is not there, with a password.
NO_ARCHIVE = (BadZipFile, zlib.error, KeyError, RuntimeError)
FLOATS = tuple(map(np.dtype, ("float16", "float32", "float64")))  # in this machine's byte order


class StoredArray(Record, frozen=True):
    """What a .npy file holds: the shape and dtype of its array, and the file's length and SHA-256.
    `key` is a hash of everything that the array depends on."""

    key: str
    shape: tuple[Size, ...]
    dtype: str
    bytes: Size
    sha256: str


def write_array(path: Path, array: NDArray[Any], key: str) -> StoredArray:
    """Replace `path` atomically, and say what it holds now. Nothing is pickled."""
    array = np.ascontiguousarray(array).reshape(np.shape(array))  # the former makes 0 axes 1
    told = _Hashed()

    def fill(file: BinaryIO) -> None:
        told.file = file
        np.save(told, array, allow_pickle=False)  # pyright: ignore[reportArgumentType]

    replace_file(path, fill)
    return StoredArray(key, array.shape, str(array.dtype), told.bytes, told.digest.hexdigest())


class _Hashed:
    """A file to write to, that hashes what goes into it."""

    def __init__(self) -> None:
        self.digest, self.bytes = hashlib.sha256(), 0
        self.file: BinaryIO | None = None

    def write(self, data: bytes) -> int:
        assert self.file is not None
        self.digest.update(data)
        self.bytes += len(data)
        return self.file.write(data)


def read_stored(path: Path, said: StoredArray, *, finite: bool, remedy: str = REMEDY) -> Any:
    """The array that was written as `said`. Errors: `InputError` where the file is missing, or
    anything but what was written; and as `read_array`."""
    require_stored(path, said, remedy=remedy)
    array = read_array(path, finite=finite, remedy=remedy)
    if array is None or (array.shape, str(array.dtype)) != (said.shape, said.dtype):
        raise InputError(f"{path} is not what was written: {remedy}")
    return array


def map_stored(path: Path, said: StoredArray, *, verify: bool, remedy: str = REMEDY) -> Any:
    """The array that was written as `said`, as a memory map whose changes stay in memory; with
    `verify` all of it is read once, against its SHA-256 and for what is not finite. Errors: as
    `read_stored`."""
    if verify:
        require_stored(path, said, remedy=remedy)
    require_no_link(path)
    try:
        array: Any = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {remedy}") from None
    except UNREADABLE as error:
        raise InputError(f"{path} is no readable array ({error}): {remedy}") from None
    if (array.shape, str(array.dtype)) != (said.shape, said.dtype):
        raise InputError(f"{path} is not what was written: {remedy}")
    if array.dtype not in (*FLOATS, np.dtype("int64")):
        raise InputError(f"{path} holds {array.dtype}: {remedy}")
    if verify and not all_finite(array):
        raise InputError(f"{path} holds a NaN or infinity: {remedy}")
    return array


def all_finite(array: NDArray[Any]) -> bool:
    """Whether there is no NaN or infinity in it, a piece at a time."""
    flat = array.reshape(-1)
    return all(np.isfinite(flat[k : k + CHUNK]).all() for k in range(0, flat.size, CHUNK))


def require_stored(path: Path, said: StoredArray, *, remedy: str = REMEDY) -> None:
    """Errors: `InputError` where the file is missing, a link, or not what was written. Reads all of
    it."""
    require_no_link(path)
    try:
        same = path.stat().st_size == said.bytes and hash_file(path) == said.sha256
    except OSError as error:
        said_so = "is missing" if isinstance(error, FileNotFoundError) else f"({error.strerror})"
        raise InputError(f"{path} {said_so}: {remedy}") from None
    if not same:
        raise InputError(f"{path} is not what was written: {remedy}")


def hash_file(path: Path) -> str:
    """SHA-256 of a file, a piece at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def read_array(path: Path, *, finite: bool, remedy: str = REMEDY) -> NDArray[Any] | None:
    """The array in a .npy file, or None where there is no such file.

    The header is believed only where the file is as long as it says, and nothing pickled is read.
    Errors: `InputError` for a link, for what is no such file, for anything but booleans, integers
    and floats, and with `finite` for a NaN or infinity.
    """
    require_no_link(path)
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            kind = _require_length(file, path.stat().st_size)
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except UNREADABLE as error:
        raise InputError(f"{path} is no readable array ({error}): {remedy}") from None
    if finite and kind.kind == "f" and not bool(np.isfinite(array).all()):
        raise InputError(f"{path} holds a NaN or infinity: {remedy}")
    return array


def read_packed(path: Path, name: str, *, remedy: str = REMEDY) -> NDArray[Any]:
    """The array of that name in a .npz file, read only where it is as long as its header says.

    Errors: `InputError` where there is none, and for anything but booleans, integers and floats.
    """
    try:
        with ZipFile(path) as archive:
            entry = archive.getinfo(f"{name}.npy")
            with archive.open(entry) as file:
                _require_length(file, entry.file_size)
            with archive.open(entry) as file:
                return npy.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} is not there") from None
    except (*UNREADABLE, *NO_ARCHIVE) as error:
        raise InputError(f"{path} holds no readable array {name!r} ({error}): {remedy}") from None


def names_packed(path: Path) -> list[str]:
    """Of the arrays in a .npz file. Errors: `ValueError` for what is none."""
    try:
        with ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except NO_ARCHIVE as error:
        raise ValueError(str(error)) from None


def _require_length(file: IO[bytes], size: int) -> np.dtype[Any]:
    """The dtype that a header names. Errors: `ValueError` unless it is of numbers, and the file is
    as long as it says."""
    major, _ = npy.read_magic(file)
    read = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
    shape, _, kind = read(file)
    if kind.kind not in "biuf":
        raise ValueError(f"it holds {kind}, no numbers")
    if size != file.tell() + prod(shape) * kind.itemsize:
        raise ValueError(f"it is not as long as an array of shape {shape}")
    return kind
