"""One model to train, and the minibatches it sees: functions of seeds and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.problem.data import Examples
from curvfluence.truth.recipe import Recipe
from curvfluence.truth.subsets import Subsets

MOST = 100_000_000  # runs of a grid: a list of more would not fit


@dataclass(frozen=True)
class Run:
    """One model to train: where it starts, in which order it sees its data, and which data.

    `subset` indexes the `Subsets` given to `train`; None is the whole training set.
    """

    init_seed: int
    order_seed: int
    subset: int | None = None

    def __post_init__(self) -> None:
        for name in ("init_seed", "order_seed"):
            object.__setattr__(self, name, kinds.count(getattr(self, name), name, least=0))
        if self.subset is not None:
            object.__setattr__(self, "subset", kinds.count(self.subset, "subset", least=0))


def grid(
    init_seeds: Sequence[int], order_seeds: Sequence[int], subsets: int | None = None
) -> list[Run]:
    """Runs in the order [J inits, r orders, m subsets]; with None one run each on everything.

    `measure(...)` of them reshapes to [J, r, m, Q], what `questions` takes.
    """
    which = [None] if subsets is None else range(kinds.count(subsets, "subsets"))
    inits, orders = kinds.counts(init_seeds, "init_seeds"), kinds.counts(order_seeds, "order_seeds")
    if subsets is not None and len(inits) * len(orders) * subsets > MOST:
        raise InputError(f"{len(inits)} × {len(orders)} × {subsets:,} are more than {MOST:,} runs")
    return [Run(i, o, s) for i in inits for o in orders for s in which]


@dataclass(frozen=True, eq=False)
class Share:
    """The examples a run steps through in each epoch, [n], and the weights of their losses."""

    run: Run
    index: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.index)


def share(run: Run, examples: Examples, subsets: Subsets | None) -> Share:
    """The run's examples, each loss counted as often as the subset and its own weight say."""
    share = _share(run, len(examples), subsets)
    if examples.weights is None:
        return share
    weight = share.weight * examples.weights.cpu()[share.index]
    if not bool(weight.any()):
        raise InputError(f"{run}: every example of its subset has weight 0")
    return replace(share, weight=weight)


def _share(run: Run, n: int, subsets: Subsets | None) -> Share:
    if run.subset is None:
        return Share(run, torch.arange(n), torch.ones(n, dtype=torch.float64))
    if subsets is None or not 0 <= run.subset < len(subsets):
        known = "no subsets were given" if subsets is None else f"there are {len(subsets)}"
        raise InputError(f"{run} asks for subset {run.subset}; {known}")
    if subsets.n != n:
        raise InputError(f"the subsets are of {subsets.n} examples, the training set has {n}")
    return Share(run, *subsets.share(run.subset))


def epoch_order(order_seed: int, epoch: int, n: int) -> Tensor:
    """The permutation of n examples that (order_seed, epoch) names."""
    seed = np.random.SeedSequence((order_seed, epoch)).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(seed) & (2**63 - 1))
    return torch.randperm(n, generator=generator)


def batches(recipe: Recipe, share: Share) -> Iterator[tuple[Tensor, Tensor]]:
    """(index, weight) of each step of a run: the plain form, as the sequential trainer uses it."""
    left = recipe.total_steps(len(share))
    for epoch in range(ceil(left / recipe.steps_per_epoch(len(share)))):
        order = epoch_order(share.run.order_seed, epoch, len(share))
        for positions in order.split(recipe.batch_size)[:left]:
            yield share.index[positions], share.weight[positions]
            left -= 1


def stacked_batches(
    recipe: Recipe, shares: Sequence[Share], like: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """(index, scale) of each step of M runs over equally many examples, both [M, B].

    The same batches as `batches`, in a static shape: B is the batch size rounded up to a multiple
    of 16, unused rows point at example 0, and scale is weight / (true size of the batch), 0 in
    unused rows. Σ_b scale ℓ is then the batch mean. On the device of `like`, scale in its dtype.
    """
    n = len(shares[0])
    size = min(recipe.batch_size, n)
    steps, rows = ceil(n / size), 16 * ceil(size / 16)
    index_mn = torch.stack([s.index for s in shares])
    count_s = torch.tensor([size] * (steps - 1) + [n - (steps - 1) * size])
    weight_mn = torch.stack([s.weight for s in shares])

    def shaped(values_mn: Tensor) -> Tensor:
        """[M, n] -> [S, M, B]."""
        full = values_mn.new_zeros(len(shares), steps * size)
        full[:, :n] = values_mn
        padded = values_mn.new_zeros(steps, len(shares), rows)
        padded[:, :, :size] = full.view(len(shares), steps, size).transpose(0, 1)
        return padded

    left = recipe.total_steps(n)
    for epoch in range(ceil(left / steps)):
        seeds = {s.run.order_seed for s in shares}
        order = {seed: epoch_order(seed, epoch, n) for seed in seeds}
        order_mn = torch.stack([order[s.run.order_seed] for s in shares])
        index_smb = shaped(index_mn.gather(1, order_mn))
        scale_smb = shaped(weight_mn.gather(1, order_mn)) / count_s[:, None, None]
        index_smb, scale_smb = index_smb.to(like.device), scale_smb.to(like)
        yield from zip(index_smb[:left], scale_smb[:left], strict=True)
        left -= steps
