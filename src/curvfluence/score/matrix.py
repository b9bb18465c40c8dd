"""Scores [Q, N] that are filled piece by piece, in memory or in a file."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.runtime import ranks


@dataclass(frozen=True, eq=False)
class ScoreMatrix:
    """[Q, N] with each block's share beside it where asked for; with a file, a memory map of which
    pages are written as they are filled. The file has its name once it is finished, and is
    NAME.part until then."""

    values: Tensor
    blocks: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    mapped: Any = None
    path: Path | None = None

    @staticmethod
    @contextmanager
    def of(q: int, n: int, dtype: torch.dtype, path: Path | None) -> Generator[ScoreMatrix]:
        """One to fill, finished at the end; after an error no file is left behind."""
        made = ScoreMatrix._made(q, n, dtype, path)
        try:
            yield made
        except BaseException:
            if path is not None:
                _remove(_unfinished(path))
            raise
        made._finish()

    @staticmethod
    def _made(q: int, n: int, dtype: torch.dtype, path: Path | None) -> ScoreMatrix:
        if path is None:
            return ScoreMatrix(torch.full((q, n), torch.nan, dtype=dtype))
        kind = torch.empty(0, dtype=dtype).numpy().dtype
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            mapped = _open(_unfinished(path), kind, (q, n))
        except OSError as error:
            if ranks.leads():
                _remove(_unfinished(path))
            raise InputError(f"cannot write to {path}: {error.strerror or error}") from error
        return ScoreMatrix(torch.from_numpy(mapped), mapped=mapped, path=Path(path))

    def put(self, row: int, column: int, part_qn: Tensor) -> None:
        _fill(self.values, row, column, part_qn)

    def put_blocks(self, row: int, column: int, parts: Mapping[str, Tensor]) -> None:
        """Each block's share."""
        for name, part_qn in parts.items():
            shape = self.values.shape
            whole = self.blocks.setdefault(name, part_qn.new_empty(shape, device="cpu"))
            _fill(whole, row, column, part_qn)

    def gather(self) -> None:
        """Where processes work together: the columns of all, at each of them. A file has them once
        every process wrote its own."""
        team = ranks.here()
        if team is None:
            return
        if self.path is None:
            ranks.gathered(team, self.values)
        for name in team.merged(dict.fromkeys(self.blocks)):  # one without examples knows of none
            if name not in self.blocks:
                self.blocks[name] = torch.empty_like(self.values)
            ranks.gathered(team, self.blocks[name])

    def _finish(self) -> None:
        if self.path is None:
            return
        with ranks.alike():
            self.mapped.flush()
        with ranks.alike():
            if ranks.leads():
                _unfinished(self.path).rename(self.path)


def _open(part: Path, kind: Any, shape: tuple[int, int]) -> Any:
    """A memory map, made by one process and opened by all that work together."""
    ranks.wait()  # nobody still asks whether it is there
    made = None
    with ranks.alike():
        if ranks.leads():
            made = np.lib.format.open_memmap(part, mode="w+", dtype=kind, shape=shape)
            _allocate(part)
    with ranks.alike():
        return np.lib.format.open_memmap(part, mode="r+") if made is None else made


def _allocate(part: Path) -> None:
    """Take the file's room on the disk now: a disk that is full when mapped memory is written to
    ends the process without a word. Errors: `OSError` where there is no such room."""
    if not hasattr(os, "posix_fallocate"):
        return
    with part.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a filesystem that cannot
                raise


def require_new(path: Path | None) -> None:
    if path is None:
        return
    for taken in (Path(path), _unfinished(path)):
        if taken.exists() or taken.is_symlink():  # a link may lead to what is not there yet
            raise InputError(f"{taken} exists: name a new file")


def _fill(whole_qn: Tensor, row: int, column: int, part_qn: Tensor) -> None:
    q, n = part_qn.shape
    whole_qn[row : row + q, column : column + n] = part_qn.cpu()


def _remove(part: Path) -> None:
    with suppress(OSError):  # where it could not be made, or is gone: another error says why
        part.unlink()


def _unfinished(path: Path) -> Path:
    return Path(path).with_name(f"{Path(path).name}.part")
