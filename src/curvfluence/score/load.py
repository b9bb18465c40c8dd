"""Scores read back from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from curvfluence.errors import InputError
from curvfluence.score.saved import ALIKE, SavedScores, numpy_file
from curvfluence.score.scores import Scores
from curvfluence.store.records import read


def load_scores(path: str | Path) -> Scores:
    """Scores that `Scores.save` wrote, their numbers read from the file as they are asked for (a
    memory map, of which changes stay in memory). They make no certificate: the problem is gone.

    Errors: `InputError` naming the file that is missing, damaged, or of other scores.
    """
    path = numpy_file(Path(path))
    said = read(path.with_suffix(".json"), SavedScores)
    if said is None:
        raise InputError(f"{path.with_suffix('.json')} is not there: {path} says not what it is of")
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


def _array(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="c" if path.suffix == ".npy" else None, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} is not there") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no array of numbers ({error})") from error
