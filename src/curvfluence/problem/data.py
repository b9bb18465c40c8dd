"""Examples in a fixed order: what scores are indexed by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.errors import InputError, NonFiniteError, about
from curvfluence.problem.tree import (
    Batched,
    Tree,
    batched,
    each,
    leaves,
    named_leaves,
)
from curvfluence.runtime.checksum import checksum, row_checksums
from curvfluence.runtime.finite import all_finite

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
        require_sound(self.inputs, self.targets)
        if len(self.inputs) == 0:
            raise InputError("no examples: the set is empty")
        if self.weights is not None:
            object.__setattr__(self, "weights", weights_of(self.weights, len(self)))

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
        return unchecked(self.inputs[index], self.targets[index], weights)

    def take(self, index: slice | Tensor) -> Examples:
        """Some of them, in memory."""
        return self[index]

    def chunks(self, size: int) -> Iterator[tuple[int, Examples]]:
        """(start, examples) of at most `size` examples at a time, in order."""
        for start in range(0, len(self), size):
            yield start, self[start : start + size]

    def weighted(self, weights: Tensor) -> Examples:
        """The same examples with weights."""
        return Examples(self.inputs, self.targets, weights)

    def to(self, device: torch.device, dtype: torch.dtype) -> Examples:
        """On `device`; floating inputs in `dtype`. Labels become int64."""
        return Examples(
            *placed(self.inputs, self.targets, device, dtype),
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

    def checksum_of(self, part: slice) -> int:
        """Of some of them, as they are now."""
        return self[part].checksum

    @property
    def varied(self) -> bool:
        """Whether examples differ in shape, as sequences that are padded batch by batch."""
        return False

    @property
    def one_tensor(self) -> bool:
        """Whether inputs are a tensor by themselves."""
        return not isinstance(self.inputs, Tree)

    @property
    def extremes(self) -> Batched:
        """Targets among which are the least and the largest of each number: all of them."""
        return self.targets

    @property
    def contents(self) -> Tensor:
        """A number for each example's content, [N]."""
        return row_sums(self.inputs, self.targets)

    @property
    def distinct(self) -> int:
        """How many different examples there are, without those of weight 0; costs as much."""
        return count_distinct(self.contents, self.weights)

    @property
    def versions(self) -> tuple[int, ...]:
        """How often each tensor was changed in place."""
        return tuple(x._version for x in self.tensors)  # pyright: ignore[reportPrivateUsage]


def placed(
    inputs: Batched, targets: Batched, device: torch.device, dtype: torch.dtype
) -> tuple[Batched, Batched]:
    """On `device`; what is floating in `dtype`, and labels as int64."""

    def moved(leaf: Tensor) -> Tensor:
        here = _ordinary(leaf.detach()).to(device)
        return here.to(dtype) if here.is_floating_point() else here

    def labelled(leaf: Tensor) -> Tensor:
        here = moved(leaf)
        return here if here.is_floating_point() else here.long()

    return each(inputs, moved), each(targets, labelled)


def row_sums(inputs: Batched, targets: Batched) -> Tensor:
    """One number for each example, of all that it holds, [N] int64."""
    rows: Tensor | None = None
    for leaf in (*leaves(inputs), *leaves(targets)):
        found = row_checksums(leaf)
        rows = found if rows is None else SECOND * rows + found  # modulo 2⁶⁴
    assert rows is not None
    return rows


def count_distinct(rows: Tensor, weights: Tensor | None) -> int:
    """How many different numbers there are, without those of weight 0."""
    rows = rows if weights is None else rows[weights.to(rows.device) > 0]
    ordered = rows.sort().values
    return len(rows) and 1 + int((ordered[1:] != ordered[:-1]).sum())


def _ordinary(x: Tensor) -> Tensor:
    """A copy of a tensor that was made in inference mode: autograd takes none."""
    return x.clone() if x.is_inference() else x


def leaf_name(what: str, path: str) -> str:
    return f"{what} {path}" if path else what


def require_sound(inputs: Batched, targets: Batched, start: int = 0) -> None:
    """Every leaf is of the same examples and finite, and targets are real; `start` is the number of
    the first."""
    require_lengths(inputs, targets)
    for path, leaf in named_leaves(targets):
        if leaf.is_complex():
            raise InputError(f"{leaf_name('targets', path)} must be real; seen {leaf.dtype}")
    for what, rows in (("input", inputs), ("target", targets)):
        for path, leaf in named_leaves(rows):
            require_finite(leaf, leaf_name(what, path), start)


def require_lengths(inputs: Batched, targets: Batched) -> None:
    """Every leaf has a first axis over the same examples."""
    named = [
        (leaf_name(what, path), leaf)
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


def unchecked(inputs: Batched, targets: Batched, weights: Tensor | None) -> Examples:
    """Some of checked examples, which need no second look.

    Errors: `InputError` where there is none."""
    if len(inputs) == 0:
        raise InputError("no examples: the set is empty")
    part = object.__new__(Examples)
    for name, value in (("inputs", inputs), ("targets", targets), ("weights", weights)):
        object.__setattr__(part, name, value)
    return part


def weights_of(weights: Tensor, n: int) -> Tensor:
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
    if all_finite(rows):
        return
    finite = rows.isfinite()
    bad = (~finite.reshape(len(rows), -1).all(-1)).nonzero().flatten()
    raise about(
        start + int(bad[0]),
        NonFiniteError,
        f"{what} of example {{n}} is NaN or infinite ({len(bad)} such examples): remove or repair "
        "them",
    )
