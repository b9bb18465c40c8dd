"""Scores as files that need no code to be read: an array of numbers, and JSON that says what of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
from msgspec import structs
from torch import Tensor

from curvfluence.curvature.coverage import CoverageLine
from curvfluence.errors import InputError
from curvfluence.score.cost import ScoreCost
from curvfluence.score.matrix import require_new
from curvfluence.store.arrays import hash_file
from curvfluence.store.files import replace_file
from curvfluence.store.records import Record, write

Id: TypeAlias = "str | int"
NUMBERS, SHARES = ".npy", ".blocks.npz"


class SavedScores(Record, frozen=True):
    """Everything of `Scores` but its numbers. `damping` is as it was said; `files` are the SHA-256
    of the files beside it by ending, .npy and, where there are shares of blocks, .blocks.npz."""

    version_at = ("version",)
    remedy = "save the scores again"

    version: str
    queries: int
    train: int
    rung: str
    damping: str
    lambdas: tuple[tuple[str, float], ...]
    fisher: str | None
    measurement: str
    unit: str
    lower_is_better: bool
    leverage: bool
    coverage: tuple[CoverageLine, ...]
    cost: ScoreCost
    notes: tuple[str, ...]
    residuals: tuple[float, ...] | None
    train_ids: tuple[Id, ...] | None
    query_ids: tuple[Id, ...] | None
    blocks: tuple[str, ...]
    inverse_error: float | None = None
    files: dict[str, str] = msgspec.field(default_factory=dict[str, str])


# Fields that a file holds as `Scores` has them.
ALIKE = (
    "rung", "lambdas", "fisher", "measurement", "unit", "lower_is_better", "leverage", "coverage",
    "cost", "notes", "residuals", "inverse_error", "train_ids", "query_ids",
)  # fmt: skip


def save(record: SavedScores, values: Tensor, blocks: Mapping[str, Tensor], path: Path) -> None:
    """Write `values` [Q, N] to PATH (.npy), what they are of beside it (.json), and the share of
    each block where there are any (.blocks.npz). Nothing that is there is overwritten.

    Errors: `InputError` for another ending, or where one of the files exists.
    """
    path = numpy_file(path)
    shares = path.with_suffix(SHARES)
    for each in (path, path.with_suffix(".json"), shares):
        require_new(each)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if blocks:
            arrays = {f"block{k}": value.numpy() for k, value in enumerate(blocks.values())}
            replace_file(shares, lambda file: np.savez(file, allow_pickle=False, **arrays))  # pyright: ignore[reportArgumentType]
        replace_file(path, lambda file: np.save(file, values.numpy(), allow_pickle=False))
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror or error}") from error
    write_record(record, path)


def write_record(record: SavedScores, path: Path) -> None:
    """Write what is said of the scores in PATH beside them, with the SHA-256 of each of their
    files: last, for what has no JSON is not finished."""
    ends = [NUMBERS, *([SHARES] if record.blocks else [])]
    try:
        files = {end: hash_file(path.with_suffix(end)) for end in ends}
        write(path.with_suffix(".json"), structs.replace(record, files=files))
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror or error}") from error


def numpy_file(path: Path) -> Path:
    """The path. Errors: `InputError` where its ending is not .npy."""
    if path.suffix != ".npy":
        raise InputError(f"scores are kept in a file that ends in .npy; seen {path}")
    return path
