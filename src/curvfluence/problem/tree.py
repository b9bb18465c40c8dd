"""Inputs and targets as users have them: a tensor, or tensors in tuples, mappings, dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.errors import InputError

Index: TypeAlias = "slice | Tensor"


@dataclass(frozen=True)
class _Leaf:
    """The place of a tensor."""

    def build(self, leaves: Iterator[Tensor]) -> Any:
        return next(leaves)


@dataclass(frozen=True)
class _Nothing:
    """None, which some mappings hold at a key: no data, and passed on as it is."""

    def build(self, leaves: Iterator[Tensor]) -> Any:
        return None


@dataclass(frozen=True)
class _Node:
    """A container of some kind, and its parts; `keys` are those of a mapping or a dataclass."""

    kind: type
    keys: tuple[Any, ...] | None
    parts: tuple[_Form, ...]

    def build(self, leaves: Iterator[Tensor]) -> Any:
        return self.made([part.build(leaves) for part in self.parts])

    def made(self, found: list[Any]) -> Any:
        """The container around its parts."""
        kind = cast("Callable[..., Any]", self.kind)
        if self.keys is None:
            return kind(*found) if hasattr(kind, "_fields") else kind(found)
        named = dict(zip(self.keys, found, strict=True))
        return kind(named) if issubclass(self.kind, Mapping) else kind(**named)


_Form: TypeAlias = "_Leaf | _Nothing | _Node"


@dataclass(frozen=True, eq=False)
class Tree:
    """Tensors [N, ...] in a container, taken by example as one tensor is: `len`, `tree[index]`.

    `value` is the container itself. `paths` says where each leaf stands: input_ids, [0], a.b[1].
    """

    leaves: tuple[Tensor, ...]
    form: _Node
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.leaves[0])

    def __getitem__(self, index: Index) -> Tree:
        return self.each(lambda leaf: leaf[index])

    @property
    def value(self) -> Any:
        """The container, of the kind that was given, around these leaves."""
        return self.form.build(iter(self.leaves))

    def each(self, function: Callable[[Tensor], Tensor]) -> Tree:
        """The same container around function(leaf)."""
        return self.of_leaves(map(function, self.leaves))

    def of_leaves(self, leaves: Iterable[Tensor]) -> Tree:
        """The same container around other leaves."""
        return dataclasses.replace(self, leaves=tuple(leaves))

    def clone(self) -> Tree:
        return self.each(torch.clone)


Batched: TypeAlias = "Tensor | Tree"


def batched(value: object, what: str) -> Batched:
    """A tensor, or the tree of tensors that a container holds; `what` names it in errors.

    Mappings (a `BatchEncoding` among them), tuples, lists, named tuples and dataclasses are
    containers, nested as they come; tensors, arrays and lists of numbers are leaves.

    Errors: `InputError` naming the leaf that is no tensor, or where there is none.
    """
    if isinstance(value, Tree):
        return value
    leaves: list[Tensor] = []
    paths: list[str] = []
    form = _form(value, "", what, leaves, paths)
    if not isinstance(form, _Node):
        return leaves[0] if leaves else kinds.tensor(value, what)
    if not leaves:
        raise InputError(f"{what} hold no tensor: seen an empty {type(value).__name__}")
    return Tree(tuple(leaves), form, tuple(paths))


def _form(value: Any, path: str, what: str, leaves: list[Tensor], paths: list[str]) -> _Form:
    parts = _parts(value, path)
    if parts is not None:
        keys = None if isinstance(value, tuple | list) else tuple(key for key, _, _ in parts)
        made = tuple(_form(part, at, what, leaves, paths) for _, at, part in parts)
        return _Node(_kind(value, keys, [part for _, _, part in parts]), keys, made)
    if value is None and path:
        return _Nothing()
    leaves.append(kinds.tensor(value, f"{what}: {path}" if path else what))
    paths.append(path)
    return _Leaf()


def _parts(value: Any, path: str) -> list[tuple[Any, str, Any]] | None:
    """(key, path, part) of each part of a container; None for a leaf."""
    if isinstance(value, Mapping):
        mapping = cast("Mapping[Any, Any]", value)
        return [(key, f"{path}.{key}".lstrip("."), mapping[key]) for key in mapping]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return [(name, f"{path}.{name}".lstrip("."), getattr(value, name)) for name in names]
    if isinstance(value, tuple | list):
        several = cast("Sequence[Any]", value)
        if isinstance(value, list) and not any(_holds_data(each) for each in several):
            return None  # numbers, which make a tensor
        return [(k, f"{path}[{k}]", each) for k, each in enumerate(several)]
    return None


def _holds_data(value: object) -> bool:
    return isinstance(value, Tensor | Mapping | tuple) or hasattr(value, "__array__")


def _kind(value: object, keys: tuple[Any, ...] | None, parts: list[Any]) -> type:
    """The kind of a container; for a mapping that its own kind does not make anew, a dict."""
    kind: type = type(value)
    if keys is None or not isinstance(value, Mapping):
        return kind
    try:
        again: Any = _Node(kind, keys, ()).made(parts)
        alike = type(again) is kind and tuple(again) == keys
    except Exception:
        return dict
    return kind if alike else dict


def leaves(x: Batched) -> tuple[Tensor, ...]:
    """Every tensor."""
    return x.leaves if isinstance(x, Tree) else (x,)


def named_leaves(x: Batched) -> tuple[tuple[str, Tensor], ...]:
    """Every tensor with where it stands; "" for a tensor by itself."""
    return tuple(zip(paths_of(x), leaves(x), strict=True))


def paths_of(x: Batched) -> tuple[str, ...]:
    """Where each leaf stands."""
    return x.paths if isinstance(x, Tree) else ("",)


def each(x: Batched, function: Callable[[Tensor], Tensor]) -> Batched:
    """function(leaf) at every leaf."""
    return x.each(function) if isinstance(x, Tree) else function(x)


def of_leaves(like: Batched, leaves: Sequence[Tensor]) -> Batched:
    """Other leaves in the form of `like`."""
    return like.of_leaves(leaves) if isinstance(like, Tree) else leaves[0]


def value_of(x: Batched) -> Any:
    """What a user's own function takes: the tensor, or the container."""
    return x.value if isinstance(x, Tree) else x


def joined(parts: Sequence[Batched], join: Callable[[list[Tensor]], Tensor] = torch.cat) -> Batched:
    """Several of one form as one, leaf by leaf."""
    first = parts[0]
    for part in parts:
        if paths_of(part) != paths_of(first):
            one, other = (", ".join(paths_of(x)) or "a tensor" for x in (first, part))
            raise InputError(f"examples must have one form throughout; seen ({one}) and ({other})")
    if not isinstance(first, Tree):
        return join([_tensor(part) for part in parts])
    columns = zip(*(leaves(part) for part in parts), strict=True)
    return first.of_leaves(join(list(column)) for column in columns)


def _tensor(x: Batched) -> Tensor:
    assert isinstance(x, Tensor)
    return x


def same(a: Batched, b: Batched) -> bool:
    """Whether every leaf is equal."""
    pairs = zip(leaves(a), leaves(b), strict=False)
    return len(leaves(a)) == len(leaves(b)) and all(torch.equal(x, y) for x, y in pairs)


def described(x: Batched) -> str:
    """Shapes of one example and dtypes, as an error names them."""
    parts = [
        f"{f'{path} of ' if path else ''}shape {tuple(leaf.shape[1:])} and dtype {leaf.dtype}"
        for path, leaf in named_leaves(x)
    ]
    return ", ".join(parts)


def table_of(x: Batched) -> Tensor:
    """A tensor as it is; the leaves of a container side by side, [N, columns], in float64."""
    if not isinstance(x, Tree):
        return x
    return torch.cat([leaf.reshape(len(leaf), -1).double() for leaf in x.leaves], dim=1)


def column_names(x: Tree) -> tuple[str, ...]:
    """What the columns of `table_of` are called: a leaf's path, and a number where it has more."""
    sizes = [leaf[0].numel() for leaf in x.leaves]
    return tuple(
        path if size == 1 else f"{path} {k}"
        for path, size in zip(x.paths, sizes, strict=True)
        for k in range(size)
    )


def tensor_of(x: Batched, what: str) -> Tensor:
    """The tensor. Errors: `InputError` for a container."""
    if isinstance(x, Tree):
        raise InputError(
            f"{what} must be one tensor; seen {type(x.value).__name__} of {', '.join(x.paths)}"
        )
    return x
