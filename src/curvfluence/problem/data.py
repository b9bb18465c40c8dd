"""Examples in a fixed order: what scores are indexed by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
)

from curvfluence import kinds
from curvfluence.errors import InputError, NonFiniteError, about
from curvfluence.problem.own_code import own_code
from curvfluence.problem.tree import (
    Batched,
    Tree,
    batched,
    each,
    joined,
    leaves,
    named_leaves,
    paths_of,
    same,
)
from curvfluence.runtime import generators
from curvfluence.runtime.checksum import checksum, row_checksums

Source: TypeAlias = (
    "Examples | tuple[Any, Any] | Mapping[str, Any] | Dataset[Any] | DataLoader[Any]"
)

LABELS = "labels"  # what collators call the targets

SECOND = 0x5DEECE66D  # an odd factor that tells the checksums of an example's tensors apart


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs [N, ...] and targets [N, ...]; example n is row n of both. Held, not copied.

    Either is a tensor, or a container of tensors (`tree.batched`): a tuple, list, mapping, named
    tuple or dataclass, nested as it comes, each leaf with a first axis over the same examples.

    `weights` v [N] make each loss count v_n times in training, (1/N) Σ_n v_n ℓ_n: the mean still
    divides by N. None is 1 each.

    Errors: `InputError` for mismatched lengths or no example, for weights of another shape, a
    negative one or none above 0; `NonFiniteError` naming the first example that holds a NaN or
    infinity.
    """

    inputs: Batched
    targets: Batched
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            object.__setattr__(self, name, batched(getattr(self, name), name))
        _require_lengths(self.inputs, self.targets)
        for path, leaf in named_leaves(self.targets):
            if leaf.is_complex():
                raise InputError(f"{_of('targets', path)} must be real; seen {leaf.dtype}")
        if len(self.inputs) == 0:
            raise InputError("no examples: the set is empty")
        for what, rows in (("input", self.inputs), ("target", self.targets)):
            for path, leaf in named_leaves(rows):
                require_finite(leaf, _of(what, path))
        if self.weights is not None:
            object.__setattr__(self, "weights", _weights(self.weights, len(self)))

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def dtype(self) -> torch.dtype:
        """The inputs' dtype (of the first that are no integers), or torch's default."""
        floating = (leaf.dtype for leaf in leaves(self.inputs) if leaf.is_floating_point())
        return next(floating, torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        return leaves(self.inputs)[0].device

    def __getitem__(self, index: slice | Tensor) -> Examples:
        weights = None if self.weights is None else self.weights[index]
        return _part(self.inputs[index], self.targets[index], weights)

    def chunks(self, size: int) -> Iterator[tuple[int, Examples]]:
        """(start, examples) of at most `size` examples at a time, in order."""
        for start in range(0, len(self), size):
            yield start, self[start : start + size]

    def weighted(self, weights: Tensor) -> Examples:
        """The same examples with weights."""
        return Examples(self.inputs, self.targets, weights)

    def to(self, device: torch.device, dtype: torch.dtype) -> Examples:
        """On `device`; floating inputs in `dtype`. Labels become int64."""

        def moved(leaf: Tensor) -> Tensor:
            here = _ordinary(leaf.detach()).to(device)
            return here.to(dtype) if here.is_floating_point() else here

        def labelled(leaf: Tensor) -> Tensor:
            here = moved(leaf)
            return here if here.is_floating_point() else here.long()

        return Examples(
            each(self.inputs, moved),
            each(self.targets, labelled),
            None if self.weights is None else self.weights.to(device),
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every leaf of inputs and targets, and the weights where there are some."""
        weights = () if self.weights is None else (self.weights,)
        return (*leaves(self.inputs), *leaves(self.targets), *weights)

    @property
    def labels(self) -> Tensor | None:
        """The targets where they are one class of each example, [N]."""
        targets = self.targets
        if isinstance(targets, Tree) or targets.ndim != 1 or targets.is_floating_point():
            return None
        return targets

    @property
    def checksum(self) -> int:
        """Of all that is held now; costs about as much as reading it."""
        return checksum(*self.tensors)

    @property
    def distinct(self) -> int:
        """How many different examples there are, without those of weight 0; costs as much."""
        rows = torch.zeros(len(self), dtype=torch.int64, device=self.device)
        for leaf in (*leaves(self.inputs), *leaves(self.targets)):
            rows = SECOND * rows + row_checksums(leaf)  # modulo 2⁶⁴
        if self.weights is not None:
            rows = rows[self.weights > 0]
        ordered = rows.sort().values
        return len(rows) and 1 + int((ordered[1:] != ordered[:-1]).sum())

    @property
    def versions(self) -> tuple[int, ...]:
        """How often each tensor was changed in place."""
        return tuple(x._version for x in self.tensors)  # pyright: ignore[reportPrivateUsage]

    @staticmethod
    def of(source: Source, name: str) -> Examples:
        """From (inputs, targets), a mapping with `labels`, a `Dataset` of either, or a `DataLoader`
        that keeps the order. `labels` are the targets, all else in a mapping the inputs.

        A `DataLoader` that shuffles, samples or drops its last batch raises `InputError`: scores
        must line up with indices. The global random state is left as found.
        """
        if isinstance(source, Examples):
            return source
        try:
            if isinstance(source, DataLoader):
                _require_order(source, name)
                return _collect(source, name)
            if isinstance(source, Dataset) or _is_map_style(source):
                return _collect(DataLoader(cast("Dataset[Any]", source), batch_size=256), name)
            return Examples(*split(source, "expected (inputs, targets), a Dataset or a DataLoader"))
        except InputError as error:
            raise type(error)(f"{name}: {error}") from error.__cause__


def _ordinary(x: Tensor) -> Tensor:
    """A copy of a tensor that was made in inference mode: autograd takes none."""
    return x.clone() if x.is_inference() else x


def _is_map_style(source: object) -> bool:
    """An ordered set of items that is no `Dataset` of torch by name (a `datasets.Dataset`)."""
    plain = isinstance(source, Mapping | tuple | list | str | bytes) or hasattr(source, "__array__")
    return not plain and hasattr(source, "__len__") and hasattr(source, "__getitem__")


def split(value: object, expected: str) -> tuple[Any, Any]:
    """(inputs, targets) of a pair, or of a mapping in which the targets are the `labels`, as
    collators of Hugging Face make it.

    Errors: `InputError` that says what was `expected`, for anything else."""
    if isinstance(value, Mapping):
        mapping = cast("Mapping[Any, Any]", value)
        if LABELS not in mapping:
            raise InputError(
                f"a mapping needs the targets under '{LABELS}'; seen {', '.join(map(str, mapping))}"
                ". Rename them, or give (inputs, targets)"
            )
        inputs = {key: mapping[key] for key in mapping if key != LABELS}
        if not inputs:
            raise InputError(f"a mapping of '{LABELS}' alone has no inputs")
        return inputs, mapping[LABELS]
    if isinstance(value, tuple | list) and len(cast("list[Any]", value)) == 2:
        first, second = cast("tuple[Any, Any]", value)
        return first, second
    seen = f"a {type(value).__name__}"
    if isinstance(value, tuple | list):
        seen += (
            f" of {len(cast('list[Any]', value))}. Several inputs stand together: "
            "((first, second), targets), or a mapping by their names"
        )
    raise InputError(f"{expected}; seen {seen}")


def _of(what: str, path: str) -> str:
    return f"{what} {path}" if path else what


def _require_lengths(inputs: Batched, targets: Batched) -> None:
    """Every leaf has a first axis over the same examples."""
    named = [
        (_of(what, path), leaf)
        for what, rows in (("inputs", inputs), ("targets", targets))
        for path, leaf in named_leaves(rows)
    ]
    for name, leaf in named:
        if leaf.ndim == 0:
            raise InputError(f"inputs and targets need a first axis over examples; {name} has none")
    lengths = {name: len(leaf) for name, leaf in named}
    if len(set(lengths.values())) > 1:
        if len(lengths) == 2:
            a, b = lengths.values()
            raise InputError(f"{a} inputs but {b} targets: one of each an example")
        said = ", ".join(f"{n} of {name}" for name, n in lengths.items())
        raise InputError(f"one of each an example; seen {said}")


def _part(inputs: Batched, targets: Batched, weights: Tensor | None) -> Examples:
    """Some of checked examples, which need no second look.

    Errors: `InputError` where there is none."""
    if len(inputs) == 0:
        raise InputError("no examples: the set is empty")
    part = object.__new__(Examples)
    for name, value in (("inputs", inputs), ("targets", targets), ("weights", weights)):
        object.__setattr__(part, name, value)
    return part


def _weights(weights: Tensor, n: int) -> Tensor:
    found = kinds.tensor(weights, "weights").detach().double()
    if found.shape != (n,):
        raise InputError(
            f"weights must hold one number an example, [{n}]; seen shape {tuple(found.shape)}"
        )
    require_finite(found, "weight")
    negative = (found < 0).nonzero().flatten()
    if len(negative):
        first = int(negative[0])
        raise InputError(
            f"weights must be >= 0; example {first} has {float(found[first]):.6g} "
            f"({len(negative)} such examples)"
        )
    if not bool(found.any()):
        raise InputError("all weights are 0: no example counts")
    return found


def require_finite(rows: Tensor, what: str, start: int = 0) -> None:
    """Raise `NonFiniteError` with the index of the first example whose row is not finite."""
    if not (rows.is_floating_point() or rows.is_complex()):
        return
    if rows.numel() and bool(rows.sum().isfinite()):
        return  # one pass: a NaN or infinity anywhere shows in the sum
    finite = rows.isfinite()
    if bool(finite.all()):
        return
    bad = (~finite.reshape(len(rows), -1).all(-1)).nonzero().flatten()
    raise about(
        start + int(bad[0]),
        NonFiniteError,
        f"{what} of example {{n}} is NaN or infinite ({len(bad)} such examples): remove or repair "
        "them",
    )


def _require_order(loader: DataLoader[Any], name: str) -> None:
    if isinstance(loader.dataset, IterableDataset):
        if loader.num_workers > 1:
            raise InputError(
                f"{loader.num_workers} workers read the stream at once, so its order is theirs: "
                "build the DataLoader with num_workers=0"
            )
        return
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if type(sampler) is not SequentialSampler or (
        loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler
    ):
        by = sampler if type(sampler) is not SequentialSampler else loader.batch_sampler
        raise InputError(
            f"the DataLoader draws its examples by {type(by).__name__}: scores would not line "
            "up with indices. Build it with shuffle=False, or pass the dataset itself"
        )
    if loader.drop_last or getattr(loader.batch_sampler, "drop_last", False):
        raise InputError("the DataLoader has drop_last=True: the last examples would get no score")


def _collect(loader: DataLoader[Any], name: str) -> Examples:
    inputs: list[Batched] = []
    targets: list[Batched] = []
    # DataLoader draws a seed from the global generator
    with generators.preserved(), own_code("reading the dataset"):
        for batch in loader:
            x, y = split(batch, "a batch must be (inputs, targets), or a mapping with 'labels'")
            inputs.append(batched(x, "the inputs of a batch"))
            targets.append(batched(y, "the targets of a batch"))
        if not inputs:
            raise InputError("no examples: the set is empty")
        single = loader.batch_sampler is None
        examples = Examples(
            _joined(inputs, "inputs", single=single), _joined(targets, "targets", single=single)
        )
        for i, again in _read_again(loader, len(examples)):
            _require_same(i, examples, again)
    return examples


def _joined(parts: list[Batched], what: str, *, single: bool) -> Batched:
    """One set of batches, or of single items."""
    forms = {paths_of(part) for part in parts}
    if len(forms) > 1:
        said = " and ".join(f"({', '.join(form)})" for form in sorted(forms))
        raise InputError(f"{what} must have one form throughout; seen {said}")
    for k, path in enumerate(paths_of(parts[0])):
        tensors = [leaves(part)[k] for part in parts]
        shapes = {tuple(x.shape if single else x.shape[1:]) for x in tensors}
        if len(shapes) > 1:
            raise InputError(
                f"{_of(what, path)} must have one shape; seen {sorted(shapes)}. Pad sequences to "
                "one length, with Positions(loss) and its ignore_index in the targets"
            )
    return joined(parts, torch.stack if single else torch.cat)


def _read_again(loader: DataLoader[Any], n: int) -> Iterator[tuple[int, tuple[Any, Any]]]:
    """(number, (input, target)) of a few items, read from the source once more."""
    dataset, collate = cast("Any", loader.dataset), cast("Any", loader.collate_fn)
    if isinstance(dataset, IterableDataset):
        batch: Any = next(iter(loader))
        x, y = (batched(part, "a batch") for part in split(batch, "a batch"))
        if loader.batch_sampler is None:
            yield 0, (x, y)
        else:
            yield from ((i, (_item(x, i), _item(y, i))) for i in range(len(x)))
        return
    for i in sorted({0, n // 3, n // 2, n - 1}):
        if loader.batch_sampler is None:
            yield i, split(collate(dataset[i]), "an item")
        else:
            x, y = (batched(part, "a batch") for part in split(collate([dataset[i]]), "a batch"))
            yield i, (_item(x, 0), _item(y, 0))


def _item(rows: Batched, i: int) -> Batched:
    return each(rows, lambda leaf: leaf[i])


def _require_same(i: int, examples: Examples, again: tuple[Any, Any]) -> None:
    held = {"input": _item(examples.inputs, i), "target": _item(examples.targets, i)}
    for (what, row), found in zip(held.items(), again, strict=True):
        if not same(batched(found, what), row):
            raise InputError(
                f"the {what} of item {i} is another when it is read again (a random transform, "
                "say), so scores would be of one draw of the data and differ from call to call. "
                "Give the data without what is random, and name it: "
                "Problem(..., unmodelled='random crops')"
            )
