"""Scores read back from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.score.saved import ALIKE, NUMBERS, SHARES, SavedScores, numpy_file
from curvfluence.score.scores import Scores
from curvfluence.store.arrays import FLOATS, UNREADABLE, all_finite, hash_file, read_packed
from curvfluence.store.files import require_no_link
from curvfluence.store.records import read


def load_scores(path: str | Path, *, verify: bool = True) -> Scores:
    """Scores that `Scores.save` wrote, their numbers read from the file as they are asked for (a
    memory map, of which changes stay in memory). They make no certificate: the problem is gone.

    All of the file is read once against its SHA-256; with `verify=False` it is not.
    Errors: `InputError` naming the file that is missing, damaged, or of other scores.
    """
    kinds.flag(verify, "verify")
    given = kinds.place(path, "path")
    path = numpy_file(given)
    said = read(path.with_suffix(".json"), SavedScores)
    if said is None:
        if not path.exists():
            raise InputError(f"{path} is not there")
        raise InputError(f"{path.with_suffix('.json')}, which says what {path} is of, is not there")
    if verify:
        _require_written(path, said)
    require_no_link(path)
    values = _array(path)
    if values.dtype not in FLOATS:
        raise InputError(f"{path} holds {values.dtype}, and scores are floating point")
    if values.shape != (said.queries, said.train):
        raise InputError(
            f"{path} holds an array of shape {values.shape}, and its JSON is of "
            f"{said.queries} queries and {said.train} training examples"
        )
    if verify and not all_finite(values):
        raise InputError(f"{path} holds a NaN or infinity: {SavedScores.remedy}")
    blocks = None
    if said.blocks:
        blocks = {name: _share(path, k, values.shape) for k, name in enumerate(said.blocks)}
    return Scores(
        values=torch.from_numpy(values),
        damping=said.damping,
        blocks=blocks,
        **{name: getattr(said, name) for name in ALIKE},
    )


def _require_written(path: Path, said: SavedScores) -> None:
    for end in (NUMBERS, *([SHARES] if said.blocks else [])):
        file = path.with_suffix(end)
        require_no_link(file)
        if not file.is_file():
            raise InputError(f"{file} is not there")
        if hash_file(file) != said.files.get(end):
            raise InputError(f"{file} is not what was written: {SavedScores.remedy}")


def _share(path: Path, k: int, shape: tuple[int, ...]) -> Tensor:
    file = path.with_suffix(SHARES)
    require_no_link(file)
    share = read_packed(file, f"block{k}", remedy=SavedScores.remedy)
    if share.dtype not in FLOATS or share.shape != shape or not all_finite(share):
        raise InputError(f"{file} holds no share of block {k} in scores of shape {shape}")
    return torch.from_numpy(share)


def _array(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} is not there") from None
    except UNREADABLE as error:
        raise InputError(f"{path} is no array of numbers ({error})") from error
