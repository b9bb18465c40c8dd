"""A fitted curvature as files: arrays, and JSON that says which block each of them is of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from msgspec import field
from torch import Tensor

from curvfluence._version import __version__
from curvfluence.curvature.operators.block import Block
from curvfluence.curvature.operators.dense import Dense
from curvfluence.curvature.operators.diagonal import DiagonalOperator
from curvfluence.curvature.operators.eigen import Eigen, Scaled
from curvfluence.curvature.operators.kronecker import (
    FactoredKronecker,
    Kronecker,
    KroneckerEigen,
)
from curvfluence.curvature.operators.operator import Operator
from curvfluence.curvature.operators.symmetric import (
    Abs,
    Clip,
    Plain,
    Symmetric,
    Treatment,
    Truncate,
)
from curvfluence.curvature.operators.truncated_kronecker import TruncatedKronecker
from curvfluence.curvature.places import LayerPart, Places, Tensors, Whole
from curvfluence.errors import InputError
from curvfluence.jacobian.layers import Layout
from curvfluence.problem.parameters import Parameters
from curvfluence.store.arrays import StoredArray, map_stored, read_stored, write_array
from curvfluence.store.files import inside
from curvfluence.store.records import Record, read, write

CURVATURE = "curvature.json"
REMEDY = "save the curvature again"
# What is made of numbers alone. Other operators hold the problem, whose products they make.
KEPT: dict[str, type[Operator] | type[Treatment]] = {
    kind.__name__: kind
    for kind in (
        *(KroneckerEigen, FactoredKronecker, TruncatedKronecker),
        *(Eigen, DiagonalOperator, Dense, Scaled, Symmetric),
        *(Abs, Plain, Clip, Truncate),
    )
}


class SavedPlaces(Record, frozen=True):
    """Where a block lies: in the whole vector, in `tensors`, or in the layer of that number."""

    tensors: tuple[str, ...] = ()
    layer: int | None = None
    with_weight: bool = False
    with_bias: bool = False


class SavedOperator(Record, frozen=True):
    """The fields of an operator, or of how one treats eigenvalues: tensors by the name of their
    array, plain values, and what is made like it itself."""

    kind: str
    tensors: dict[str, str]
    plain: dict[str, int | float | None]
    parts: dict[str, SavedOperator]


class SavedBlock(Record, frozen=True):
    name: str
    parameters: tuple[str, ...]
    places: SavedPlaces
    operator: SavedOperator
    rule: str
    fallback: bool


class SavedCurvature(Record, frozen=True):
    """Everything of a `Curvature` but its numbers; `fixed_damping` is its λ."""

    version_at = ("version",)
    remedy = REMEDY

    version: str
    rung: str
    fisher: str | None
    fixed_damping: float | None
    notes: tuple[str, ...]
    fitted_on: str
    fit_seconds: float
    nbytes: int
    blocks: tuple[SavedBlock, ...]
    decay: str  # the name of w
    arrays: dict[str, StoredArray]
    # of what `fitted_on` is of, to say what differs; earlier files have none
    parts: dict[str, str] = field(default_factory=dict[str, str])


class Arrays:
    """Tensors under short names; one that several blocks share has one name. Of a matrix that lies
    in memory column by column the transpose is held, and the name ends in T: products with what is
    read back then have the same bits."""

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}
        self._names: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}

    def name(self, tensor: Tensor) -> str:
        key = tensor.data_ptr(), tuple(tensor.shape), tensor.stride()
        if key not in self._names:
            turned = tensor.ndim == 2 and not tensor.is_contiguous() and tensor.mT.is_contiguous()
            self._names[key] = name = f"{len(self._names):04d}{'T' * turned}"
            self.held[name] = tensor.mT if turned else tensor
        return self._names[key]


def write_curvature(
    folder: Path,
    blocks: tuple[Block, ...],
    decay: Tensor,
    describe: Callable[..., SavedCurvature],
) -> None:
    """Write the arrays of the blocks and w, and last the record that `describe` makes of what
    stands in which. Errors: `InputError` where the folder holds anything, cannot be written, or an
    operator is not made of numbers alone."""
    held = Arrays()
    saved, w = tuple(_block(block, held) for block in blocks), held.name(decay)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} exists: name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        stored = {
            name: write_array(inside(folder, f"{name}.npy"), tensor.cpu().numpy(), name)
            for name, tensor in held.held.items()
        }
        said = describe(version=__version__, blocks=saved, decay=w, arrays=stored)
        write(folder / CURVATURE, said)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error


def in_numbers(blocks: tuple[Block, ...]) -> bool:
    """Whether all of the operators are made of numbers alone, which files can hold."""
    return all(type(block.operator).__name__ in KEPT for block in blocks)


def read_curvature(
    folder: Path, device: torch.device, *, mapped: bool
) -> tuple[SavedCurvature, dict[str, Tensor]]:
    """The record and its arrays, each held to its SHA-256; `mapped` ones are memory maps. Errors:
    `InputError`."""
    try:
        said = read(folder / CURVATURE, SavedCurvature)
    except OSError as error:  # no name of a file
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from None
    if said is None:
        raise InputError(f"{folder} holds no saved curvature: there is no {CURVATURE}")
    tensors: dict[str, Tensor] = {}
    for name, one in said.arrays.items():
        if one.dtype not in ("float32", "float64"):
            raise InputError(f"{folder}: array {name} is of {one.dtype}, no curvature's: {REMEDY}")
        path = inside(folder, f"{name}.npy")
        if mapped:
            array = map_stored(path, one, verify=True, remedy=REMEDY)
        else:
            array = read_stored(path, one, finite=True, remedy=REMEDY)
        tensor = torch.from_numpy(array).to(device)
        tensors[name] = tensor.mT if name.endswith("T") else tensor
    return said, tensors


def blocks_of(
    said: SavedCurvature,
    tensors: dict[str, Tensor],
    parameters: Parameters,
    layout: Layout,
    dtype: torch.dtype,
) -> tuple[tuple[Block, ...], Tensor]:
    """(the blocks among these parameters, w). Errors: `InputError` where they do not fit them, each
    place in one block: a digest does not show that, since whoever writes files can seal them."""
    blocks = tuple(_block_of(one, tensors, parameters, layout, dtype) for one in said.blocks)
    places = torch.cat([block.index for block in blocks]) if blocks else torch.empty(0)
    if not torch.equal(places.sort().values, torch.arange(parameters.count)):
        raise InputError(f"its blocks leave parameters out, or have some twice: {REMEDY}")
    if len({block.name for block in blocks}) < len(blocks):
        raise InputError(f"two of its blocks have one name: {REMEDY}")
    decay = tensors.get(said.decay)
    if decay is None or (decay.shape, decay.dtype) != ((parameters.count,), dtype):
        raise InputError(f"its weight decay is not one number a parameter: {REMEDY}")
    return blocks, decay


def _block_of(
    saved: SavedBlock,
    tensors: dict[str, Tensor],
    parameters: Parameters,
    layout: Layout,
    dtype: torch.dtype,
) -> Block:
    try:
        places = _places_of(saved, parameters, layout)
        operator = _operator_of(saved.operator, tensors)
        fits = places.size == operator.size and _sound(operator, dtype)
        if isinstance(operator, Kronecker) and isinstance(places, LayerPart):
            fits = fits and tuple(operator.values.shape) == places.shape
        if isinstance(operator, TruncatedKronecker) and isinstance(places, LayerPart):
            fits = fits and operator.shape == places.shape
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"block {saved.name} is of another model ({error}): {REMEDY}") from None
    if not fits or not set(saved.parameters) <= set(parameters.names):
        raise InputError(f"block {saved.name} is of another model: {REMEDY}")
    return Block(saved.name, saved.parameters, places, operator, saved.rule, saved.fallback)


def _sound(operator: Operator, dtype: torch.dtype) -> bool:
    """Whether its tensors are of that dtype, and of the shapes that belong together."""
    n: dict[str, tuple[int, ...]]
    match operator:
        case Kronecker():
            o, i = operator.values.shape
            n = {"values": (o, i), "out_basis": (o, o), "in_basis": (i, i)}
            n |= {"out_values": (o,), "in_values": (i,)}
        case TruncatedKronecker():
            (o, i), (out, inp) = operator.shape, operator.held
            n = {"out_basis": (o, out), "in_basis": (i, inp)}
            n |= {"values": (out + (out < o), inp + (inp < i))}
        case Scaled():
            return _sound(operator.operator, dtype)
        case _:
            size = operator.size
            n = {"matrix": (size, size), "vectors": (size, size)}
            n |= {"values": (size,), "diagonal": (size,), "decay": (size,)}
    held = {name: x for name, x in vars(operator).items() if isinstance(x, Tensor)}
    return all((tuple(x.shape), x.dtype) == (n[name], dtype) for name, x in held.items())


def _block(block: Block, held: Arrays) -> SavedBlock:
    operator = _operator(block.operator, held, block.name)
    places = _places(block.places)
    return SavedBlock(block.name, block.parameters, places, operator, block.rule, block.fallback)


def _places(places: Places) -> SavedPlaces:
    match places:
        case Whole():
            return SavedPlaces()
        case Tensors():
            return SavedPlaces(tensors=places.names)
        case LayerPart():
            return SavedPlaces((), places.position, places.with_weight, places.with_bias)
        case _:
            raise TypeError(type(places).__name__)


def _places_of(saved: SavedBlock, parameters: Parameters, layout: Layout) -> Places:
    at = saved.places
    if at.layer is not None:
        layer = layout.layers[at.layer]
        names = saved.parameters
        return LayerPart(layer, at.layer, names, parameters, at.with_weight, at.with_bias)
    return Tensors(parameters, at.tensors) if at.tensors else Whole(parameters)


def _operator(operator: Operator | Treatment, held: Arrays, block: str) -> SavedOperator:
    kind = type(operator).__name__
    if KEPT.get(kind) is not type(operator) or not is_dataclass(operator):
        raise InputError(
            f"the curvature of block {block} is by its products with the data ({kind}), which no "
            "file holds: fit it again where it is needed"
        )
    tensors: dict[str, str] = {}
    plain: dict[str, int | float | None] = {}
    parts: dict[str, SavedOperator] = {}
    for each in fields(operator):
        value = getattr(operator, each.name)
        match value:
            case Tensor():
                tensors[each.name] = held.name(value)
            case Operator() | Treatment():
                parts[each.name] = _operator(value, held, block)
            case int() | float() | None:
                plain[each.name] = value
            case _:
                raise TypeError(f"{kind}.{each.name} is {type(value).__name__}")
    return SavedOperator(kind, tensors, plain, parts)


def _operator_of(saved: SavedOperator, tensors: dict[str, Tensor]) -> Operator:
    made = _made(saved, tensors)
    if not isinstance(made, Operator):
        raise TypeError(f"{saved.kind} is no operator")
    return made


def _made(saved: SavedOperator, tensors: dict[str, Tensor]) -> Operator | Treatment:
    values: dict[str, Any] = {
        **{name: tensors[key] for name, key in saved.tensors.items()},
        **{name: _made(one, tensors) for name, one in saved.parts.items()},
        **saved.plain,
    }
    return KEPT[saved.kind](**values)
