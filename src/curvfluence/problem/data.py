"""Examples in a fixed order: what scores are indexed by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from curvfluence.errors import InputError, NonFiniteError
from curvfluence.runtime import generators

Source: TypeAlias = "Examples | tuple[Tensor, Tensor] | Dataset[Any] | DataLoader[Any]"


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
        """What models train in: the inputs' dtype, or torch's default where those are integers."""
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
            return Examples(torch.as_tensor(inputs), torch.as_tensor(targets))
        except InputError as error:
            raise type(error)(f"{name}: {error}") from None


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
    found = torch.as_tensor(weights).detach().double()
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
    raise NonFiniteError(
        f"{what} of example {start + int(bad[0])} is NaN or infinite "
        f"({len(bad)} such examples): remove or repair them"
    )


def _require_order(loader: DataLoader[Any], name: str) -> None:
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if type(sampler) is not SequentialSampler or (
        loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler
    ):
        by = sampler if type(sampler) is not SequentialSampler else loader.batch_sampler
        raise InputError(
            f"the DataLoader draws its examples by {type(by).__name__}: scores would not line "
            "up with indices. Build it with shuffle=False, or pass the dataset itself"
        )
    if loader.drop_last:
        raise InputError("the DataLoader has drop_last=True: the last examples would get no score")


def _collect(loader: DataLoader[Any], name: str) -> Examples:
    inputs: list[Tensor] = []
    targets: list[Tensor] = []
    with generators.preserved():  # DataLoader draws a seed from the global generator
        for batch in loader:
            if not (isinstance(batch, tuple | list) and len(cast("list[Any]", batch)) == 2):
                raise InputError(
                    f"a batch must be (inputs, targets) tensors; seen {type(batch).__name__}"
                )
            x, y = cast("tuple[Any, Any]", batch)
            inputs.append(torch.as_tensor(x))
            targets.append(torch.as_tensor(y))
    if not inputs:
        raise InputError("no examples: the set is empty")
    if loader.batch_size is None:
        return Examples(torch.stack(inputs), torch.stack(targets))
    return Examples(torch.cat(inputs), torch.cat(targets))
