"""Scores as files that need no code to be read: an array of numbers, and JSON that says what of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
from torch import Tensor

from curvfluence.curvature.coverage import CoverageLine
from curvfluence.errors import InputError
from curvfluence.score.cost import ScoreCost
from curvfluence.score.matrix import require_new
from curvfluence.store.records import Record, write

Id: TypeAlias = "str | int"


class SavedScores(Record, frozen=True):
    """Everything of `Scores` but its numbers. `damping` is as it was said."""

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


# Fields that a file holds as `Scores` has them.
ALIKE = (
    "rung", "lambdas", "fisher", "measurement", "unit", "lower_is_better", "leverage", "coverage",
    "cost", "notes", "residuals", "train_ids", "query_ids",
)  # fmt: skip


def save(record: SavedScores, values: Tensor, blocks: Mapping[str, Tensor], path: Path) -> None:
    """Write `values` [Q, N] to PATH (.npy), what they are of beside it (.json), and the share of
    each block where there are any (.blocks.npz). Nothing that is there is overwritten.

    Errors: `InputError` for another ending, or where one of the files exists.
    """
    path = numpy_file(path)
    shares = path.with_suffix(".blocks.npz")
    for each in (path, path.with_suffix(".json"), shares):
        require_new(each)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if blocks:
            arrays = {f"block{k}": value.numpy() for k, value in enumerate(blocks.values())}
            np.savez(shares, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
        np.save(path, values.numpy(), allow_pickle=False)
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror or error}") from error
    write(path.with_suffix(".json"), record)  # last: what has no JSON is not finished


def numpy_file(path: Path) -> Path:
    """The path. Errors: `InputError` where its ending is not .npy."""
    if path.suffix != ".npy":
        raise InputError(f"scores are kept in a file that ends in .npy; seen {path}")
    return path
