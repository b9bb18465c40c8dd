"""Training examples whose inputs are the same, to the bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.problem.problem import Problem
from curvfluence.problem.stream import Data
from curvfluence.problem.tree import Batched, leaves, same
from curvfluence.runtime.checksum import row_checksums

CHUNK = 4096
ODD = 0x5DEECE66D  # tells the tensors of one example apart


@dataclass(frozen=True)
class Duplicates:
    """Examples of the same inputs, ascending; `conflicting` where their targets differ."""

    examples: tuple[int, ...]
    conflicting: bool


def duplicates(problem: Problem) -> tuple[Duplicates, ...]:
    """Every group of two training examples or more with equal inputs. Cost: one reading of the
    data, and a second one of the groups alone, which are compared number by number."""
    sums = torch.cat([_sums(part.inputs).cpu() for _, part in problem.train.chunks(CHUNK)])
    order = sums.argsort(stable=True)
    _, counts = sums[order].unique_consecutive(return_counts=True)
    found: list[Duplicates] = []
    start = 0
    for count in counts.tolist():
        if count > 1:
            found += _confirmed(problem.train, order[start : start + count].sort().values)
        start += count
    return tuple(sorted(found, key=lambda group: group.examples))


def _sums(inputs: Batched) -> Tensor:
    total: Tensor | None = None
    for leaf in leaves(inputs):
        rows = row_checksums(leaf)
        total = rows if total is None else ODD * total + rows  # modulo 2⁶⁴
    assert total is not None
    return total


def _confirmed(data: Data, rows: Tensor) -> list[Duplicates]:
    """The groups of equal inputs among examples whose checksums agree: one, but for chance."""
    part = data.take(rows.to(data.device))
    left, found = list(range(len(rows))), list[Duplicates]()
    while len(left) > 1:
        first = part[left[0] : left[0] + 1]
        alike = [k for k in left if same(first.inputs, part[k : k + 1].inputs)]
        if len(alike) > 1:
            targets = (part[k : k + 1].targets for k in alike)
            conflicting = not all(same(first.targets, target) for target in targets)
            found.append(Duplicates(tuple(int(rows[k]) for k in alike), conflicting))
        left = [k for k in left if k not in alike]
    return found
