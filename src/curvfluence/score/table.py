"""Scores as a long table: a row for each query and training example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.score.matrix import require_new
from curvfluence.score.saved import Id
from curvfluence.store.files import replace_file

if TYPE_CHECKING:
    import pandas

ROWS = 50_000_000  # above which a table is refused: it would take gigabytes
Columns: TypeAlias = "Mapping[str, Sequence[Any]]"
Ids: TypeAlias = "tuple[Id, ...] | None"


def long_table(
    indices: Tensor,
    values: Tensor,
    lower_is_better: bool,
    train: tuple[int, Ids, Columns],
    queries: tuple[Ids, Columns],
) -> pandas.DataFrame:
    """A row for each of the ranked `indices` and influences `values` [Q, k], with the ids and the
    columns about training examples (and how many those are) and about queries. See
    `Scores.to_frame`."""
    try:
        import pandas
    except ImportError as error:
        raise InputError(
            "a frame needs pandas: pip install 'curvfluence[frames]', or pandas by itself"
        ) from error
    q, k = indices.shape
    if q * k > ROWS:
        raise InputError(
            f"{q:,} queries by {k:,} training examples are {q * k:,} rows, more than {ROWS:,}: ask "
            "for the k most helpful of each, or use save()"
        )
    query, index = np.repeat(np.arange(q), k), indices.numpy().ravel()
    influence = values.numpy().ravel()
    columns: dict[str, Any] = {
        "query": _named(queries[0], query),
        "train": _named(train[1], index),
        "influence": influence,
        "rank": np.tile(np.arange(1, k + 1), q),
        "help": influence if lower_is_better else -influence,
    }
    about = (("train", train[2], index, train[0]), ("query", queries[1], query, q))
    for prefix, given, places, length in about:
        for name, held in given.items():
            column = np.asarray(held)
            if len(column) != length:
                raise InputError(
                    f"the column {name!r} about {prefix} has {len(column)} values for {length}"
                )
            columns[f"{prefix}_{name}"] = column[places]
    return pandas.DataFrame(columns)


def write_table(frame: pandas.DataFrame, path: Path, kind: Literal["csv", "parquet"]) -> None:
    """Errors: `InputError` where the file exists, or the package that writes it is missing."""
    require_new(path)
    try:
        if kind == "csv":
            replace_file(path, lambda file: frame.to_csv(file, index=False))
        else:
            replace_file(path, lambda file: frame.to_parquet(file, index=False))
    except ImportError as error:
        raise InputError(f"a {kind} file needs another package: {error}") from error
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror or error}") from error


def _named(ids: Ids, places: np.ndarray[Any, Any]) -> Any:
    return places if ids is None else np.asarray(ids, dtype=object)[places]
