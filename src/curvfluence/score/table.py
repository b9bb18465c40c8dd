"""A table of scores that is filled piece by piece, in memory or in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Table:
    """[Q, N]; with a file, a memory map of which pages are written as they are filled. The file has
    its name once it is finished, and is NAME.part until then."""

    values: Tensor
    mapped: Any = None
    path: Path | None = None

    @staticmethod
    def of(q: int, n: int, dtype: torch.dtype, path: Path | None) -> Table:
        if path is None:
            return Table(torch.full((q, n), torch.nan, dtype=dtype))
        kind = torch.empty(0, dtype=dtype).numpy().dtype
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        mapped = np.lib.format.open_memmap(_unfinished(path), mode="w+", dtype=kind, shape=(q, n))
        return Table(torch.from_numpy(mapped), mapped, Path(path))

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def put(self, row: int, column: int, part_qn: Tensor) -> None:
        q, n = part_qn.shape
        self.values[row : row + q, column : column + n] = part_qn.cpu()

    def finished(self) -> Tensor:
        """The values, and everything written."""
        if self.mapped is None or self.path is None:
            return self.values
        self.mapped.flush()
        _unfinished(self.path).rename(self.path)
        return self.values

    def discard(self) -> None:
        """Leave no file behind."""
        if self.path is not None:
            _unfinished(self.path).unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    return Path(path).with_name(f"{Path(path).name}.part")
