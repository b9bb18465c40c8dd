"""Passes over the data by layer block: what every rung below GGN is accumulated from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.base import Block, Operator
from curvfluence.curvature.operators import Dense, DiagonalOperator
from curvfluence.fisher import FEW_SURPRISES, Fisher
from curvfluence.gradients import Rows, rows_in_chunks
from curvfluence.layers import Coverage, LinearLayer
from curvfluence.parameters import Parameters
from curvfluence.problem import Problem

EXACT_FALLBACK_LIMIT = 2048  # parameters of a block up to which its exact block is the fallback


@dataclass(frozen=True, eq=False)
class LayerBlock:
    """A Linear layer's block: its weight with its bias as a last input, or one of them alone."""

    layer: LinearLayer
    position: int  # of the layer in Rows
    parameters: tuple[str, ...]
    index: Tensor  # (o, ĩ): place of each entry in the flat vector
    with_weight: bool
    with_bias: bool

    @property
    def name(self) -> str:
        if self.with_weight and (self.with_bias or self.layer.bias is None):
            return self.layer.name or "model"
        return self.parameters[0]

    def inputs(self, rows: Rows) -> Tensor:
        """ã, [B, ĩ]: a with a 1 appended for the bias, or the 1 alone."""
        a_bi = rows.a[self.position]
        one = a_bi.new_ones(len(a_bi), 1)
        if not self.with_bias:
            return a_bi
        return torch.cat([a_bi, one], dim=1) if self.with_weight else one

    def grads(self, rows: Rows) -> Tensor:
        """s, [B, C, o]."""
        return rows.s[self.position]


def layer_blocks(
    parameters: Parameters, covered: Coverage, *, joint_bias: bool
) -> tuple[LayerBlock, ...]:
    """The blocks of all covered layers, weight and bias together or apart."""
    blocks: list[LayerBlock] = []
    for position, layer in enumerate(covered.layers):
        weight = _places(parameters, layer.weight).reshape(layer.out_features, layer.in_features)
        if layer.bias is None:
            blocks.append(LayerBlock(layer, position, (layer.weight,), weight, True, False))
            continue
        bias = _places(parameters, layer.bias)[:, None]
        if joint_bias:
            both = (layer.weight, layer.bias)
            index = torch.cat([weight, bias], dim=1)
            blocks.append(LayerBlock(layer, position, both, index, True, True))
        else:
            blocks.append(LayerBlock(layer, position, (layer.weight,), weight, True, False))
            blocks.append(LayerBlock(layer, position, (layer.bias,), bias, False, True))
    return tuple(blocks)


def _places(parameters: Parameters, name: str) -> Tensor:
    place = parameters.slices[name]
    return torch.arange(place.start, place.stop)


def fisher_rows(problem: Problem, covered: Coverage, fisher: Fisher) -> Iterator[Rows]:
    """The rows (Jᵀs) of the training set under a Fisher type, chunk by chunk."""
    columns = fisher.columns(problem)
    what = f"training set ({fisher.name})"
    for _, rows in rows_in_chunks(problem, covered, problem.train, columns, what=what):
        yield rows


FEW_SURPRISES_NOTE = "a sampled factor is nearly zero"


def fisher_notes(problem: Problem, fisher: Fisher) -> tuple[str, ...]:
    """What a result must say of its Fisher type."""
    outputs = problem.outputs(problem.train, "training set")
    notes = problem.loss.notes(outputs, problem.train.targets)
    surprising = fisher.surprising_labels(problem)
    if surprising is None:
        return notes
    text = (
        f"Fisher {fisher.name}, seed {getattr(fisher, 'seed', None)}: {surprising:.3g} surprising "
        f"labels expected among {len(problem.train)} examples"
    )
    if surprising < FEW_SURPRISES:
        text += (
            f"; below about {FEW_SURPRISES:.0f} {FEW_SURPRISES_NOTE} and its scores are mostly "
            "noise. Use Type2(), or more draws"
        )
    return (*notes, text)


def uncovered_blocks(
    problem: Problem, covered: Coverage, *, joint: bool
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(name, parameters) of the blocks that no layer rule covers: by module, or by tensor."""
    groups: dict[str, list[str]] = {}
    for name in problem.parameters.names:
        if name in covered.others:
            groups.setdefault(name.rpartition(".")[0] if joint else name, []).append(name)
    return tuple((name or "model", tuple(names)) for name, names in groups.items())


class Remainder:
    """Accumulates the blocks of parameters that no layer rule covers.

    A block is kept exact up to `limit` parameters, as its diagonal above. `native_exact` and
    `native_diagonal` say which of the two is the rung's own definition; the other is a fallback.
    """

    def __init__(
        self,
        problem: Problem,
        covered: Coverage,
        *,
        joint: bool,
        native_exact: bool = False,
        native_diagonal: bool = False,
        limit: int = EXACT_FALLBACK_LIMIT,
    ) -> None:
        self._parameters = problem.parameters
        self._n = len(problem.train)
        self._reasons = covered.others
        self._names = tuple(n for n in problem.parameters.names if n in covered.others)
        self._groups = uncovered_blocks(problem, covered, joint=joint)
        self._native = {True: native_exact, False: native_diagonal}
        self._limit = limit
        self._sums: dict[str, Tensor] = {}

    def add(self, rows: Rows) -> None:
        if not self._names:
            return
        widths = [len(_places(self._parameters, name)) for name in self._names]
        parts = dict(zip(self._names, rows.dense.split(widths, dim=2), strict=True))
        for name, names in self._groups:
            z = torch.cat([parts[n] for n in names], dim=2).flatten(0, 1)
            update = z.T @ z if z.shape[1] <= self._limit else z.square().sum(0)
            previous = self._sums.get(name)
            self._sums[name] = update if previous is None else previous + update

    def blocks(self) -> tuple[Block, ...]:
        made: list[Block] = []
        for name, names in self._groups:
            total = self._sums[name] / self._n
            index = torch.cat([_places(self._parameters, n) for n in names])
            exact = total.ndim == 2
            operator: Operator = Dense(total) if exact else DiagonalOperator(total)
            rule = "exact block" if exact else "diagonal"
            fallback = not self._native[exact]
            why = f"{rule} ({self._reasons[names[0]]})" if fallback else rule
            made.append(Block(name, names, index, operator, why, fallback))
        return tuple(made)


def accumulate(
    rows_of: Iterator[Rows],
    blocks: tuple[LayerBlock, ...],
    update: Callable[[LayerBlock, Tensor, Tensor], tuple[Tensor, ...]],
    remainder: Remainder | None = None,
) -> dict[str, tuple[Tensor, ...]]:
    """Sum `update(block, ã [B, ĩ], s [B, C, o])` over the chunks, for every layer block."""
    sums: dict[str, tuple[Tensor, ...]] = {}
    for rows in rows_of:
        for block in blocks:
            new = update(block, block.inputs(rows), block.grads(rows))
            old = sums.get(block.name)
            sums[block.name] = (
                new if old is None else tuple(p.add_(q) for p, q in zip(old, new, strict=True))
            )
        if remainder is not None:
            remainder.add(rows)
    return sums
