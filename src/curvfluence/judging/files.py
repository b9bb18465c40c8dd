"""Files of scores that other libraries write, and what each format fixes of their meaning."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.score.load import load_scores
from curvfluence.score.scores import Scores
from curvfluence.store.arrays import UNREADABLE, names_packed, read_array, read_packed
from curvfluence.store.records import LARGEST

HELPS, HURTS = "helps", "hurts"  # what a positive score says of its training example
BY_QUERY, BY_TRAIN = "query,train", "train,query"  # which axis comes first
NONE, LOSS, LOSS_N = "none", "loss", "loss*N"  # the change of the measurement, or N times that
ALL_MODULES, PAIRWISE = "all_modules", "pairwise_scores"  # kronfluence's
_TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip

Source: TypeAlias = "str | Path | Scores | Tensor | np.ndarray[Any, Any]"


@dataclass(frozen=True, eq=False)
class Found:
    """Scores as they were given, and what is known of their meaning: None where nothing says so.

    `taken` is why a sign is taken that is not on record, and that the caller may contradict.
    `measurement` is what they were made of, where known.
    """

    values: Tensor
    said: str
    positive: str | None = None
    order: str | None = None
    units: str = NONE
    taken: str | None = None
    measurement: str | None = None


def found(source: Source, key: str | None = None) -> Found:
    """Scores from a file, an array, a tensor or `Scores`; `key` names one of several arrays.

    .npy, with what `Scores.save` put beside it where there is that; .npz; kronfluence's
    pairwise_scores.safetensors, [query, train], its modules added up; TRAK's scores/NAME.mmap,
    [train, query]. Errors: `InputError` for anything else, and for files that cannot be read.
    """
    if isinstance(source, Scores):
        return _ours(source, "Scores")
    if isinstance(source, str | Path):
        return _file(Path(source), key)
    if isinstance(source, Tensor | np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
        return Found(_numbers(source, "scores"), f"a {type(source).__name__}")
    raise InputError(
        f"scores are a file, an array, a tensor, or cf.Scores; seen {type(source).__name__}"
    )


def _ours(scores: Scores, said: str) -> Found:
    if scores.leverage:
        raise InputError(
            f"{said}: a sum of leverage-corrected influences is no prediction for a group, which "
            "is what is judged: compute the scores with leverage=False"
        )
    return Found(
        scores.values.detach().cpu(),
        f"{said} of {scores.rung}, damping {scores.damping}",
        positive=HELPS if scores.lower_is_better else HURTS,
        order=BY_QUERY,
        units=NONE if scores.rung == "Identity" else LOSS,
        measurement=scores.measurement,
    )


def _file(path: Path, key: str | None) -> Found:
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in _READERS)
        raise InputError(
            f"{path} is a folder: name the file of scores in it"
            + (f", one of {', '.join(inside)}" if inside else "")
        )
    if path.suffix not in _READERS:
        raise InputError(
            f"{path} ends in none of {', '.join(_READERS)}: save the array with numpy.save"
        )
    if not path.is_file():
        raise InputError(f"{path} is not there")
    try:
        return _READERS[path.suffix](path, key)
    except (*UNREADABLE, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} holds no readable scores ({error})") from None


def _npy(path: Path, key: str | None) -> Found:
    if _is_ours(path.with_suffix(".json")):
        return _ours(load_scores(path), str(path))
    return Found(_numbers(_array(path), str(path)), str(path))


def _array(path: Path) -> Any:
    """What a .npy file holds, once it is as long as it says."""
    array = read_array(path.resolve(), finite=False, remedy="save the array with numpy.save")
    if array is None:
        raise InputError(f"{path} is not there")
    return array


def _is_ours(path: Path) -> bool:
    """Whether the JSON beside an array is of `Scores.save`, and not a file of somebody's own."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return False
        held: object = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(held, dict) and {"rung", "lower_is_better", "lambdas"} <= set(
        cast("dict[str, object]", held)
    )


def _npz(path: Path, key: str | None) -> Found:
    names = names_packed(path)
    name = _named(path, names, "scores" if key is None and "scores" in names else key)
    array = read_packed(path, name, remedy="save the arrays with numpy.savez")
    return Found(_numbers(array, f"{name!r} in {path}"), f"{path} ({name})")


def _mmap(path: Path, key: str | None) -> Found:
    values = _numbers(_array(path), str(path))
    said = f"{path}, a file of TRAK (a mean over its models)"
    return Found(values, said, HELPS, BY_TRAIN, taken="as where TRAK's model output is a margin")


def _safetensors(path: Path, key: str | None) -> Found:
    arrays = read_safetensors(path)
    if key is None and (ALL_MODULES in arrays or path.stem.startswith(PAIRWISE)):
        shapes = {name: tuple(value.shape) for name, value in arrays.items()}
        if not shapes or {len(shape) for shape in shapes.values()} != {2}:
            raise InputError(
                f"{path}: pairwise scores are one number a query and training example; seen "
                f"{shapes}: compute them without compute_per_token_scores"
            )
        if len(set(shapes.values())) > 1:
            raise InputError(f"{path}: modules of several shapes cannot be added up: {shapes}")
        whole = arrays.get(ALL_MODULES)
        parts = list(arrays.values()) if whole is None else [whole]
        values = _numbers(torch.stack([_numbers(p, str(path)) for p in parts]).sum(0), str(path))
        added = "" if whole is not None else f", {len(parts)} modules added up"
        said = f"{path}, a file of kronfluence{added}"
        return Found(values, said, HELPS, BY_QUERY, taken="as where the task measures a loss")
    name = _named(path, arrays, key)
    return Found(_numbers(arrays[name], f"{name!r} in {path}"), f"{path} ({name})")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file of floating point: eight bytes with the length of a JSON
    header, the header, the numbers. Errors: `ValueError` for what is no such file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ValueError(f"its header would have {length} bytes of {size}")
        header: dict[str, dict[str, Any]] = json.loads(file.read(length))
        arrays: dict[str, Tensor] = {}
        room = size - 8 - length  # each number is one tensor's: none is read twice
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, shape = entry["dtype"], tuple(entry["shape"])
            start, end = entry["data_offsets"]
            if dtype not in _TORCH:
                raise ValueError(f"{name!r} is of {dtype}; scores are {', '.join(_TORCH)}")
            kind = _TORCH[dtype]
            if (
                end - start != prod(shape) * kind.itemsize
                or not 0 <= start <= end <= size - 8 - length
            ):
                raise ValueError(f"{name!r} of shape {shape} is not as long as its header says")
            room -= end - start
            if room < 0:
                raise ValueError("its tensors are longer than the file")
            file.seek(8 + length + start)
            raw = np.frombuffer(bytearray(file.read(end - start)), dtype=np.uint8)
            arrays[name] = torch.from_numpy(raw).view(kind).view(shape)
    return arrays


def _named(path: Path, arrays: Collection[str], key: str | None) -> str:
    names = ", ".join(arrays) or "none"
    if key is not None and key not in arrays:
        raise InputError(f"{path} has no array {key!r}; it has {names}")
    if key is None and len(arrays) != 1:
        raise InputError(f"{path} has {len(arrays)} arrays ({names}): say which with key")
    return next(iter(arrays)) if key is None else key


def _numbers(values: object, what: str) -> Tensor:
    """Real numbers, in float32 or float64: sums of half precision would not be of its own."""
    if isinstance(values, np.ndarray) and values.dtype.kind not in "iuf":
        raise InputError(f"{what} must be real numbers; seen {values.dtype}")
    tensor = kinds.tensor(values, what).detach().cpu()
    if tensor.is_complex() or tensor.dtype is torch.bool:
        raise InputError(f"{what} must be real numbers; seen {tensor.dtype}")
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor
    return tensor.to(torch.float32 if tensor.is_floating_point() else torch.float64)


_READERS = {".npy": _npy, ".npz": _npz, ".mmap": _mmap, ".safetensors": _safetensors}
