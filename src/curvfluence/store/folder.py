"""What is kept on disk: one folder a study, JSON and arrays, nothing pickled."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from curvfluence.errors import InputError, NonFiniteError
from curvfluence.problem.data import Examples

SPEC, RESULTS, ARRAYS = "study.json", "results.json", "arrays"


@dataclass(frozen=True)
class Folder:
    """A study's folder, keyed by what its results depend on.

    `study.json` holds the key and the settings, and is written first; `results.json` is written
    last and replaces atomically, so a folder without it holds an unfinished study.
    """

    path: Path
    key: str

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Make the folder this study's. Errors: `InputError` where it holds anything else."""
        self.require_free()
        with _writing(self.path):
            (self.path / ARRAYS).mkdir(parents=True, exist_ok=True)
            # Results of an earlier run must not stand beside the arrays of this one.
            (self.path / RESULTS).unlink(missing_ok=True)
            write_json(self.path / SPEC, {"key": self.key, **settings})

    def require_free(self) -> None:
        """Refuse a folder that holds another study, or files that are no study. Writes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file: name a folder with --out")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        found = read_json(self.path / SPEC)
        if found is None:
            raise InputError(
                f"{self.path} holds files that are no study: name an empty folder with --out"
            )
        if found.get("key") != self.key:
            finished = (self.path / RESULTS).is_file()
            state = "another study" if finished else "another study, unfinished"
            raise InputError(
                f"{self.path} holds {state} ({_summary(found)}): name another folder with --out, "
                "or remove it"
            )

    def results(self) -> dict[str, Any] | None:
        """The results of this very study, where it is finished."""
        found = read_json(self.path / SPEC)
        same = found is not None and found.get("key") == self.key
        return read_json(self.path / RESULTS) if same else None

    def save(self, results: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> None:
        """Write the arrays, then the results."""
        with _writing(self.path):
            for name, array in arrays.items():
                np.save(self.path / ARRAYS / f"{name}.npy", array.numpy(), allow_pickle=False)
            write_json(self.path / RESULTS, results)


@contextmanager
def _writing(path: Path) -> Generator[None]:
    """Say which folder could not be written, and why."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror or error}") from error


def _summary(found: Mapping[str, Any]) -> str:
    spec = found.get("spec", {})
    named = [f"{k} {spec[k]}" for k in ("problem", "seed", "models", "subsets") if k in spec]
    return ", ".join(named) or "of unknown settings"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace `path` atomically. NaN is refused, by its name: a missing number is null."""
    unfit = _not_finite(value)
    if unfit is not None:
        raise NonFiniteError(f"{path.name} would hold {unfit}, which is no number to keep")
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    temporary.replace(path)


def _not_finite(value: Any, name: str = "") -> str | None:
    """Where in nested values the first NaN or infinity is."""
    if isinstance(value, float):
        return None if isfinite(value) else f"{name} = {value}"
    if isinstance(value, Mapping):
        named = ((f"{name}.{k}" if name else str(k), v) for k, v in cast(Any, value).items())
    elif isinstance(value, list | tuple):
        named = ((f"{name}[{k}]", v) for k, v in enumerate(cast(Any, value)))
    else:
        return None
    return next((found for k, v in named if (found := _not_finite(v, k))), None)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`, or None where there is no such file."""
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not readable as JSON ({error}): remove the folder") from None


def hash_json(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_examples(*sets: Examples) -> str:
    """Of the numbers themselves, in order."""
    digest = hashlib.sha256()
    for examples in sets:
        weights = () if examples.weights is None else (examples.weights,)
        for tensor in (examples.inputs, examples.targets, *weights):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def hash_code() -> str:
    """Of this package's source files, less the report's: results are only reused by the code that
    made them."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        if "report" in file.relative_to(root).parts:
            continue
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()[:16]
