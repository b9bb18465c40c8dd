"""Retrainings kept on disk: each batch with its seeds, its subsets and a hash of its numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor

from curvfluence._version import __version__
from curvfluence.errors import InputError
from curvfluence.runtime.log import logger
from curvfluence.store.arrays import read_array
from curvfluence.store.files import append_line, inside, replace_file, require_inside
from curvfluence.store.folder import only_begun, writing
from curvfluence.store.hashes import hash_code, hash_json
from curvfluence.store.lock import held, own
from curvfluence.store.records import Record, as_json, read, write
from curvfluence.store.steps import STEPS, Steps

LOG = logger(__name__)
BANK, ENTRIES = "bank.json", "entries"
LISTED = "entries/kept.txt"  # a line for each entry, appended when it is whole
MODELS, RETRAINED, WEIGHTED = "models", "retrained", "weighted"  # the kinds of batches
# What the numbers of a retraining come from: a batch is only taken up again by the same code.
TRAINER = (
    *(f"truth/{name}.py" for name in ("functional", "measure", "paths", "processes", "recipe")),
    *(f"truth/{name}.py" for name in ("resume", "run", "stack", "stacked", "subsets")),
    *(f"truth/{name}.py" for name in ("together", "trainer")),
    *(f"problem/{name}.py" for name in ("forward", "measurement", "tree")),
    "problem/losses",
)
Size = Annotated[int, Meta(ge=0, le=2**53)]


class Asked(Record, frozen=True):
    """How a study came to the recipe: what it takes to train again."""

    problem: str
    protocol: str
    variant: dict[str, bool | int | float | str]
    queries: Size | None = None


class Source(Record, frozen=True):
    """`bank.json`: what was trained, and on what. The retrainings of one recipe on one data set.
    `asked` says how it was come by, and is no part of what the retrainings depend on."""

    remedy = "remove the folder, or name another one"

    problem: str
    recipe: dict[str, Any]
    measurement: str
    train: Size
    queries: Size
    data: str  # hash of training examples and queries
    code: str | None = None  # hash of the file that a problem of one's own comes from
    asked: Asked | None = None

    @property
    def key(self) -> str:
        """Of what the retrainings depend on."""
        return hash_json({k: v for k, v in as_json(self).items() if k != "asked"})


class Batch(Record, frozen=True):
    """Which retrainings an entry holds: runs from one initialisation in one minibatch order, on
    subsets whose hash this is, as training sets of their own (`RETRAINED`) or as weights
    (`WEIGHTED`); or the influence models of these seeds (`MODELS`)."""

    kind: str
    dtype: str
    init_seeds: tuple[Size, ...]
    order_seeds: tuple[Size, ...]
    subsets: str | None = None
    alpha: float | None = None


class ArrayFile(Record, frozen=True):
    """An array of an entry: its shape and the SHA-256 of its bytes."""

    shape: tuple[Size, ...]
    dtype: str
    sha256: str


class Entry(Record, frozen=True):
    """`entries/<key>.json`: written last, so that a batch without it was interrupted."""

    remedy = "remove that entry; the command that made it makes it again"

    key: str
    batch: Batch
    arrays: dict[str, ArrayFile]
    seconds: Annotated[float, Meta(ge=0)]
    torch: str
    curvfluence: str

    def __post_init__(self) -> None:
        for name in (*self.arrays, self.key):
            if "/" in name:
                raise ValueError(f"no array can be named {name!r}")
            require_inside(name)


@dataclass(frozen=True)
class Bank:
    """The retrainings of `source` in the folder `path`, by what each batch depends on. With `anew`
    nothing that it holds is read: batches are made again, and replace it. With `as_made` a batch is
    read whichever code and torch trained it: retraining would differ by rounding. Several commands
    may fill one bank at a time: each holds its entries only while it writes."""

    path: Path
    source: Source
    anew: bool = False
    as_made: bool = False

    @staticmethod
    def read(path: Path) -> Bank:
        """The bank in a folder. Errors: `InputError` where there is none."""
        source = read(path / BANK, Source) if path.is_dir() else None
        if source is None:
            raise InputError(f"{path} holds no bank: there is no {BANK} in it")
        return Bank(path, source)

    def require_free(self) -> None:
        """Refuse a folder that holds another bank, or files that are none. Writes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file: name a folder for the retrainings")
        begun = not self.path.is_dir() or only_begun(self.path, ENTRIES, BANK)
        known = read(self.path / BANK, Source)  # after that: another command may write it meanwhile
        if known is None and not begun:
            raise InputError(f"{self.path} holds files that are no bank: name another folder")
        if known is not None and known.key != self.source.key:
            raise InputError(
                f"{self.path} holds the retrainings of another problem or recipe "
                f"({known.problem}): name another folder, or remove it"
            )

    def claim(self) -> None:
        """Make the folder this bank's. Errors: `InputError` where it holds anything else."""
        self.require_free()
        with self._held():
            self.require_free()  # another command may have come first
            write(self.path / BANK, self.source)

    def key(self, batch: Batch) -> str:
        """What a batch goes by: its source, itself, and the code and torch that train it."""
        return hash_json(
            {
                "source": self.source.key,
                "batch": as_json(batch),
                "trainer": _trainer(),
                "torch": str(torch.__version__),
            }
        )

    def find(self, batch: Batch) -> tuple[Entry, dict[str, Tensor]] | None:
        """The batch where it is kept. Errors: `InputError` where its numbers are not those that
        were written."""
        entry = None if self.anew else self._entry(batch)
        LOG.debug("%s: %s %s", self.path, batch.kind, "is made" if entry is None else "is read")
        return None if entry is None else (entry, self.arrays(entry))

    def has(self, batch: Batch) -> bool:
        """Whether `find` will find it. Reads no numbers."""
        return not self.anew and self._entry(batch) is not None

    def _entry(self, batch: Batch) -> Entry | None:
        own = self._own(self.key(batch))
        if own is not None or not self.as_made:
            return own
        return next((entry for entry in self.entries() if entry.batch == batch), None)

    def _own(self, key: str) -> Entry | None:
        return read(inside(self.path, ENTRIES) / f"{key}.json", Entry)

    def keep(self, batch: Batch, arrays: Mapping[str, Tensor], seconds: float) -> None:
        """Write a batch: its arrays, each replacing atomically, and then its record. What another
        command has kept of it meanwhile stays."""
        key = self.key(batch)
        files: dict[str, ArrayFile] = {}
        with writing(self.path):
            inside(self.path, ENTRIES).stat()  # a folder that was removed is not made again
        with self._held():
            if not self.anew and self._own(key) is not None:
                return
            for name, value in arrays.items():
                array = np.ascontiguousarray(value.detach().cpu().numpy())
                _save(self._file(key, name), array)
                files[name] = ArrayFile(array.shape, str(array.dtype), _sha256(array))
            made = Entry(key, batch, files, seconds, str(torch.__version__), __version__)
            write(self.path / ENTRIES / f"{key}.json", made)
            append_line(inside(self.path, LISTED), key)

    @contextmanager
    def _held(self) -> Generator[None]:
        """The entries, for as long as something is written: others write to them too."""
        with writing(self.path), held(inside(self.path, ENTRIES), wait=True):
            yield

    @contextmanager
    def steps(self, batches: Sequence[Batch]) -> Generator[Steps | None]:
        """Where states of the training of these batches are kept until they are; None where
        another command trains them now."""
        keys = [self.key(batch) for batch in batches]
        folder = self.path.resolve() / STEPS / hash_json({"batches": keys})
        with Steps(folder, {"batches": keys}).ours() as found:
            if self.anew and found is not None:
                found.forget()
            yield found

    def entries(self) -> Iterator[Entry]:
        """Every finished batch, by key. Errors: `InputError` for one that is not what was written,
        and where one that was kept is gone."""
        listed = self._listed()  # before the files: others may be added meanwhile
        files = sorted(f for f in inside(self.path, ENTRIES).glob("*.json") if not own(f))
        for key in sorted(listed - {file.stem for file in files}):
            raise InputError(
                f"{self.path / ENTRIES / key}.json is missing: the command that made it makes it "
                "again"
            )
        for file in files:
            entry = read(file, Entry)
            if entry is None or entry.key != file.stem:
                raise InputError(f"{file} speaks of another batch than its name: remove it")
            yield entry

    def _listed(self) -> set[str]:
        """The keys of all batches that were kept; not what a full disk has left of one."""
        file = inside(self.path, LISTED)
        try:
            words = file.read_text(encoding="ascii").split() if file.is_file() else []
            return {word for word in words if len(word) == len(self.source.key)}
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read ({error}): remove it") from None

    def arrays(self, entry: Entry) -> dict[str, Tensor]:
        """The numbers of a batch. Errors: `InputError` names the file that is missing, or holds
        anything but what was written."""
        found: dict[str, Tensor] = {}
        for name, said in entry.arrays.items():
            file = self._file(entry.key, name)
            # a retraining that diverged has NaN for its numbers
            finite = entry.batch.kind == MODELS
            array = read_array(file, finite=finite, remedy=Entry.remedy)
            if array is None or _described(array) != said:
                state = "is missing" if array is None else "is not what was written"
                raise InputError(f"{file} {state}: {Entry.remedy}")
            found[name] = torch.from_numpy(array)
        return found

    def _file(self, key: str, name: str) -> Path:
        return inside(self.path, ENTRIES) / f"{key}.{name}.npy"


def packed(weights_mn: Tensor) -> Tensor:
    """Subsets as an entry keeps them: a bit an example where all weights are 0 or 1, [m, ⌈N/8⌉]."""
    if weights_mn.dtype is not torch.bool:
        return weights_mn
    return torch.from_numpy(np.packbits(weights_mn.numpy(), axis=1))


def unpacked(kept: Tensor, n: int) -> Tensor:
    """The weights [m, n] that `packed` has packed."""
    if kept.dtype is not torch.uint8:
        return kept
    return torch.from_numpy(np.unpackbits(kept.numpy(), axis=1, count=n).astype(np.bool_))


@cache
def _trainer() -> str:
    return hash_code(*TRAINER)


def _described(array: NDArray[Any]) -> ArrayFile:
    return ArrayFile(array.shape, str(array.dtype), _sha256(array))


def _sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _save(path: Path, array: NDArray[Any]) -> None:
    replace_file(path, lambda file: np.save(file, array, allow_pickle=False))
