"""Which examples each retraining sees, and what leaving one out means for the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.runtime import device as machine


@dataclass(frozen=True)
class Kept:
    """The subset is the training set: what the recipe would have done on that data.

    Minibatches are drawn from the kept examples and averaged over them, so the normaliser is the
    number kept and the minibatches differ from the full run's. Weights must be 0 or 1.
    """

    def share(self, weights_n: Tensor) -> tuple[Tensor, Tensor]:
        """(index, weight) of the examples that a run steps through, each [n]."""
        index = weights_n.nonzero().flatten()
        return index, torch.ones(len(index), dtype=torch.float64)


@dataclass(frozen=True)
class Weighted:
    """The run goes through all N examples in its usual minibatches, each loss times its weight.

    The batch mean still divides by the whole batch: the normaliser stays N, as in J₋ₙ = (1/N)
    Σ_{m≠n} ℓ_m + ½ Σ w θ². Answers "this very run": same initialisation and minibatches. Examples
    of weight 0 still pass through layers that normalise over the batch.
    """

    def share(self, weights_n: Tensor) -> tuple[Tensor, Tensor]:
        return torch.arange(len(weights_n)), weights_n.double()


@dataclass(frozen=True, eq=False)
class Subsets:
    """m subsets of N examples as weights [m, N], and the way of retraining on them.

    The prediction for subset s is Σ_n left_out[s, n] · influence[q, n].

    Errors: `InputError` for negative or non-finite weights, a subset of nothing, or weights other
    than 0 and 1 where the subset is to be a training set of its own.
    """

    weights: Tensor
    way: Kept | Weighted = Kept()

    def __post_init__(self) -> None:
        weights = kinds.tensor(self.weights, "weights of subsets")
        if weights.dtype is not torch.bool:
            weights = weights.double()
        object.__setattr__(self, "weights", weights)
        if weights.ndim != 2 or 0 in weights.shape:
            raise InputError(f"weights must be [m, N]; seen shape {tuple(weights.shape)}")
        if weights.dtype is not torch.bool:
            if not bool((weights.isfinite() & (weights >= 0)).all()):
                raise InputError("the weights of examples must be finite and >= 0")
            if isinstance(self.way, Kept) and not bool(((weights == 0) | (weights == 1)).all()):
                raise InputError(
                    "with Kept() an example is in or out: weights must be 0 or 1. Use Weighted() "
                    "to weight examples"
                )
        empty = (~weights.any(1)).nonzero().flatten()
        if len(empty):
            raise InputError(f"subset {int(empty[0])} holds no example ({len(empty)} such subsets)")

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def n(self) -> int:
        """N, the number of training examples that the subsets are subsets of."""
        return self.weights.shape[1]

    @property
    def left_out(self) -> Tensor:
        """1 − weights, [m, N] float64: the coefficients of a group's prediction."""
        return 1.0 - self.weights.double()

    def share(self, subset: int) -> tuple[Tensor, Tensor]:
        """(index, weight) of the examples that a run on this subset steps through."""
        return self.way.share(self.weights[subset])


def random_subsets(
    n: int, *, keep: float, count: int, seed: int, way: Kept | Weighted = Kept()
) -> Subsets:
    """`count` different subsets that each KEEP round(keep · n) examples, uniform without
    replacement.

    Errors: `InputError` where no such subsets exist.
    """
    n, count = kinds.count(n, "n"), kinds.count(count, "count", least=0)
    share = kinds.number(keep, "keep")
    size = round(min(share, 1.0) * n)
    if not (0 < share <= 1 and size >= 1):
        raise InputError(f"keep must lie in (0, 1] and leave an example; seen {keep} of {n}")
    found = _subsets_up_to(n, size, count)
    if count < 1 or found < count:
        there = f"; there are {found}" if count else ""
        raise InputError(f"cannot draw {count} different subsets of {size} of {n} examples{there}")
    _require_room(n, count)
    generator = torch.Generator().manual_seed(kinds.count(seed, "seed", least=0))
    drawn: dict[bytes, Tensor] = {}
    while len(drawn) < count:
        row = torch.zeros(n, dtype=torch.bool)
        row[torch.randperm(n, generator=generator)[:size]] = True
        drawn.setdefault(row.numpy().tobytes(), row)
    return Subsets(torch.stack(list(drawn.values())), way)


def leave_one_out(
    n: int, indices: Sequence[int] | Tensor, way: Kept | Weighted = Weighted()
) -> Subsets:
    """One subset for each index: everything but that example."""
    rows = _indices(indices, kinds.count(n, "n"))
    _require_room(n, len(rows))
    weights = torch.ones(len(rows), n, dtype=torch.bool)
    weights[torch.arange(len(rows)), rows] = False
    return Subsets(weights, way)


def down_weight(
    n: int, groups: Sequence[int] | Sequence[Sequence[int]] | Sequence[Tensor], epsilon: float
) -> Subsets:
    """Weight 1 − ε on each group of examples (an index is a group of one), always `Weighted`.

    The change of a measurement, divided by ε, tends to the derivative as ε → 0.
    """
    if not 0 < kinds.number(epsilon, "epsilon") <= 1:
        raise InputError(f"epsilon must lie in (0, 1]; seen {epsilon}")
    if not isinstance(groups, Sequence | Tensor) or isinstance(groups, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"groups must be a list of indices, or of lists of them; seen {groups!r}")
    _require_room(kinds.count(n, "n"), len(groups), torch.float64)
    weights = torch.ones(len(groups), n, dtype=torch.float64)
    for row, group in zip(weights, groups, strict=True):
        row[_indices(group, n)] = 1 - float(epsilon)
    return Subsets(weights, Weighted())


def _subsets_up_to(n: int, size: int, count: int) -> int:
    """How many subsets of that size there are, or a number from `count` on that is no more."""
    found = 1
    for k in range(1, min(size, n - size) + 1):
        found = found * (n - k + 1) // k  # those of k examples, which are ever more
        if found >= count:
            break
    return found


def _require_room(n: int, count: int, dtype: torch.dtype = torch.bool) -> None:
    """Errors: `InputError` for more numbers than this machine's memory holds."""
    needed, room = n * count * dtype.itemsize, machine.memory(torch.device("cpu"))
    if needed > room:
        raise InputError(
            f"{count} subsets of {n} examples take {needed / 2**30:.3g} GiB, this machine has "
            f"{room / 2**30:.1f}: take fewer of them"
        )


def _indices(given: object, n: int) -> Tensor:
    index = kinds.tensor(given, "examples' indices").flatten()
    if len(index) and (index.is_floating_point() or index.dtype is torch.bool):
        raise InputError(f"examples are named by whole-number indices; seen {index.dtype}")
    index = index.long()
    outside = index[(index < 0) | (index >= n)]
    if len(outside):
        raise InputError(f"example {int(outside[0])} is outside 0..{n - 1}")
    return index
