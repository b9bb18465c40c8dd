"""Scores read back from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.score.saved import ALIKE, NUMBERS, SHARES, SavedScores, numpy_file
from curvfluence.score.scores import Scores
from curvfluence.store.arrays import UNREADABLE, hash_file
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
    values = _array(path)
    if values.shape != (said.queries, said.train):
        raise InputError(
            f"{path} holds an array of shape {values.shape}, and its JSON is of "
            f"{said.queries} queries and {said.train} training examples"
        )
    blocks = None
    if said.blocks:
        shares: Any = _array(path.with_suffix(".blocks.npz"))
        with shares:
            blocks = {
                name: torch.from_numpy(shares[f"block{k}"]) for k, name in enumerate(said.blocks)
            }
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


def _array(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="c" if path.suffix == ".npy" else None, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} is not there") from None
    except UNREADABLE as error:
        raise InputError(f"{path} is no array of numbers ({error})") from error
