"""Examples in a fixed order: what scores are indexed by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from curvfluence.runtime import generators
from curvfluence.runtime.checksum import checksum, row_checksums

Source: TypeAlias = "Examples | tuple[Tensor, Tensor] | Dataset[Any] | DataLoader[Any]"

SECOND = 0x5DEECE66D  # an odd factor that tells an input's checksum from its target's


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs [N, ...] and targets [N, ...]; example n is row n of both. Held, not copied.

    `weights` v [N] make each loss count v_n times in training, (1/N) Σ_n v_n ℓ_n: the mean still
    divides by N. None is 1 each.

    Errors: `InputError` for mismatched lengths or no example, for weights of another shape, a
    negative one or none above 0; `NonFiniteError` naming the first example that holds a NaN or
    infinity.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            object.__setattr__(self, name, kinds.tensor(getattr(self, name), name))
        if self.targets.is_complex():
            raise InputError(f"targets must be real; seen {self.targets.dtype}")
        if self.inputs.ndim == 0 or self.targets.ndim == 0:
            raise InputError("inputs and targets need a first axis over examples")
        if len(self.inputs) != len(self.targets):
            raise InputError(
                f"{len(self.inputs)} inputs but {len(self.targets)} targets: one of each an example"
            )
        if len(self.inputs) == 0:
            raise InputError("no examples: the set is empty")
        for what, rows in (("input", self.inputs), ("target", self.targets)):
            require_finite(rows, what)
        if self.weights is not None:
            object.__setattr__(self, "weights", _weights(self.weights, len(self)))

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def dtype(self) -> torch.dtype:
        """The inputs' dtype, or torch's default where those are integers."""
        inputs = self.inputs
        return inputs.dtype if inputs.is_floating_point() else torch.get_default_dtype()

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
        inputs = _ordinary(self.inputs.detach()).to(device)
        targets = _ordinary(self.targets.detach()).to(device)
        return Examples(
            inputs.to(dtype) if inputs.is_floating_point() else inputs,
            targets.to(dtype) if targets.is_floating_point() else targets.long(),
            None if self.weights is None else self.weights.to(device),
        )

    @property
    def checksum(self) -> int:
        """Of all that is held now; costs about as much as reading it."""
        return checksum(self.inputs, self.targets, self.weights)

    @property
    def distinct(self) -> int:
        """How many different examples there are, without those of weight 0; costs as much."""
        rows = row_checksums(self.inputs) + SECOND * row_checksums(self.targets)  # modulo 2⁶⁴
        if self.weights is not None:
            rows = rows[self.weights > 0]
        ordered = rows.sort().values
        return len(rows) and 1 + int((ordered[1:] != ordered[:-1]).sum())

    @property
    def versions(self) -> tuple[int, ...]:
        """How often each tensor was changed in place."""
        held = (self.inputs, self.targets, self.weights)
        return tuple(0 if x is None else x._version for x in held)  # pyright: ignore[reportPrivateUsage]

    @staticmethod
    def of(source: Source, name: str) -> Examples:
        """From tensors, a `Dataset` of (input, target) or a `DataLoader` that keeps the order.

        A `DataLoader` that shuffles, samples or drops its last batch raises `InputError`: scores
        must line up with indices. The global random state is left as found.
        """
        if isinstance(source, Examples):
            return source
        try:
            if isinstance(source, DataLoader):
                _require_order(source, name)
                return _collect(source, name)
            if isinstance(source, Dataset):
                return _collect(DataLoader(source, batch_size=256), name)
            if not (isinstance(source, tuple | list) and len(source) == 2):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InputError(
                    f"expected (inputs, targets), a Dataset or a DataLoader; seen {type(source)}"
                )
            inputs, targets = source
            return Examples(inputs, targets)
        except InputError as error:
            raise type(error)(f"{name}: {error}") from error.__cause__


def _ordinary(x: Tensor) -> Tensor:
    """A copy of a tensor that was made in inference mode: autograd takes none."""
    return x.clone() if x.is_inference() else x


def _part(inputs: Tensor, targets: Tensor, weights: Tensor | None) -> Examples:
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
    inputs: list[Tensor] = []
    targets: list[Tensor] = []
    # DataLoader draws a seed from the global generator
    with generators.preserved(), own_code("reading the dataset"):
        for batch in loader:
            if not (isinstance(batch, tuple | list) and len(cast("list[Any]", batch)) == 2):
                raise InputError(
                    f"a batch must be (inputs, targets) tensors; seen {type(batch).__name__}"
                )
            x, y = cast("tuple[Any, Any]", batch)
            inputs.append(kinds.tensor(x, "the inputs of a batch"))
            targets.append(kinds.tensor(y, "the targets of a batch"))
        if not inputs:
            raise InputError("no examples: the set is empty")
        examples = _joined(inputs, targets, single=loader.batch_sampler is None)
        for i, again in _read_again(loader, len(examples)):
            _require_same(i, examples, again)
    return examples


def _joined(inputs: list[Tensor], targets: list[Tensor], *, single: bool) -> Examples:
    """One set of batches, or of single items."""
    join = torch.stack if single else torch.cat
    shapes = {tuple(x.shape if single else x.shape[1:]) for x in inputs}
    if len(shapes) > 1:
        raise InputError(
            f"inputs must have one shape; seen {sorted(shapes)}. Pad sequences to one length, with "
            "Positions(loss) and its ignore_index in the targets"
        )
    shapes = {tuple(y.shape if single else y.shape[1:]) for y in targets}
    if len(shapes) > 1:
        raise InputError(
            f"targets must have one shape; seen {sorted(shapes)}. Pad them to one length, with "
            "Positions(loss) and its ignore_index"
        )
    return Examples(join(inputs), join(targets))


def _read_again(loader: DataLoader[Any], n: int) -> Iterator[tuple[int, Sequence[Any]]]:
    """(number, (input, target)) of a few items, read from the source once more."""
    dataset, collate = cast("Any", loader.dataset), cast("Any", loader.collate_fn)
    if isinstance(dataset, IterableDataset):
        batch: Any = next(iter(loader))
        yield from (
            [(0, batch)] if loader.batch_sampler is None else enumerate(zip(*batch, strict=True))
        )
        return
    for i in sorted({0, n // 3, n // 2, n - 1}):
        if loader.batch_sampler is None:
            yield i, collate(dataset[i])
        else:
            x, y = collate([dataset[i]])
            yield i, (x[0], y[0])


def _require_same(i: int, examples: Examples, again: Sequence[Any]) -> None:
    held = {"input": examples.inputs[i], "target": examples.targets[i]}
    for (what, row), found in zip(held.items(), again, strict=True):
        if not torch.equal(torch.as_tensor(found), row):
            raise InputError(
                f"the {what} of item {i} is another when it is read again (a random transform, "
                "say), so scores would be of one draw of the data and differ from call to call. "
                "Give the data without what is random, and name it: "
                "Problem(..., unmodelled='random crops')"
            )
