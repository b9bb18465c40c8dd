"""Passes over the data by layer block: what every rung below GGN is accumulated from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.curvature import Block, Operator
from curvfluence.curvature.operators.dense import Dense, DiagonalOperator
from curvfluence.curvature.operators.places import Places, Several
from curvfluence.jacobian.layers import Layer, Layout
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Factored, Memo, Term, bias_alone, with_bias
from curvfluence.problem.parameters import Parameters
from curvfluence.problem.problem import Problem

EXACT_FALLBACK_LIMIT = 2048  # parameters of a block up to which its exact block is the fallback


@dataclass(frozen=True, eq=False)
class LayerPart(Places):
    """A layer's block: its weight with its bias as a last input, or one of them alone."""

    layer: Layer
    position: int  # of the layer in Rows
    parameters: tuple[str, ...]
    of: Parameters
    with_weight: bool
    with_bias: bool

    @property
    def name(self) -> str:
        if self.whole:
            return self.layer.name or "model"
        return self.parameters[0] + self.layer.part

    @property
    def whole(self) -> bool:
        """Whether all of the layer is in it."""
        return self.with_weight and (self.with_bias or self.layer.bias is None)

    @property
    def shape(self) -> tuple[int, int]:
        """(o, ĩ)."""
        layer = self.layer
        return layer.out_features, layer.in_features * self.with_weight + self.with_bias

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def index(self) -> Tensor:
        """Place of each entry in the flat vector, [o ĩ]."""
        return self.take(torch.arange(self.of.count))

    def take(self, v: Tensor) -> Tensor:
        """The block's entries of flat vectors, [..., P] -> [..., o ĩ]."""
        parts = [self.layer.weight_of(self.of, v)] if self.with_weight else []
        if self.with_bias:
            parts.append(self.layer.bias_of(self.of, v)[..., None])
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).flatten(-2)

    def put(self, out: Tensor, x: Tensor) -> None:
        """Write the block's entries [..., o ĩ] into flat vectors [..., P]."""
        x_oi = x.unflatten(-1, self.shape)
        if self.with_weight:
            width = self.layer.in_features
            self.layer.weight_of(self.of, out).copy_(x_oi[..., :width])
        if self.with_bias:
            self.layer.bias_of(self.of, out).copy_(x_oi[..., -1])

    def term(self, rows: Rows) -> Term:
        """The block's rows, [B, C, o, ĩ]."""
        term = rows.terms[self.position]
        if not self.with_bias:
            return term
        return with_bias(term) if self.with_weight else bias_alone(term)

    def factored(self, rows: Rows) -> Factored:
        """The same of rows that a pass has just made."""
        term = self.term(rows)
        assert isinstance(term, Factored)
        return term

    def holding(self, operator: Operator, rule: str) -> Block:
        return Block(self.name, self.parameters, self, operator, rule)


def layer_blocks(
    parameters: Parameters, layout: Layout, *, joint_bias: bool
) -> tuple[LayerPart, ...]:
    """The blocks of all covered layers, weight and bias together or apart."""
    blocks: list[LayerPart] = []
    for k, layer in enumerate(layout.layers):
        weight, bias = layer.weight, layer.bias
        if bias is None:
            blocks.append(LayerPart(layer, k, (weight,), parameters, True, False))
        elif joint_bias:
            blocks.append(LayerPart(layer, k, (weight, bias), parameters, True, True))
        else:
            blocks.append(LayerPart(layer, k, (weight,), parameters, True, False))
            blocks.append(LayerPart(layer, k, (bias,), parameters, False, True))
    return tuple(blocks)


def uncovered_blocks(
    problem: Problem, layout: Layout, *, joint: bool
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(name, parameters) of the blocks that no layer rule covers: by module, or by tensor."""
    groups: dict[str, list[str]] = {}
    for name in problem.parameters.names:
        if name in layout.others:
            groups.setdefault(name.rpartition(".")[0] if joint else name, []).append(name)
    taken = {layer.name for layer in layout.layers}
    return tuple(
        (", ".join(names) if name in taken else name or "model", tuple(names))
        for name, names in groups.items()
    )


class Remainder:
    """Accumulates the blocks of parameters that no layer rule covers.

    A block is kept exact up to `limit` parameters, as its diagonal above. `native_exact` and
    `native_diagonal` say which of the two is the rung's own definition; the other is a fallback.
    """

    def __init__(
        self,
        problem: Problem,
        layout: Layout,
        *,
        joint: bool,
        native_exact: bool = False,
        native_diagonal: bool = False,
        limit: int = EXACT_FALLBACK_LIMIT,
    ) -> None:
        self._parameters = problem.parameters
        self._n = len(problem.train)
        self._reasons = layout.others
        self._names = tuple(n for n in problem.parameters.names if n in layout.others)
        self._groups = uncovered_blocks(problem, layout, joint=joint)
        self._native = {True: native_exact, False: native_diagonal}
        self._limit = limit
        self._sums: dict[str, Tensor] = {}

    def add(self, rows: Rows) -> None:
        if not self._names:
            return
        parts = dict(zip(self._names, rows.rest_parts(), strict=True))
        for name, names in self._groups:
            z = torch.cat([parts[n] for n in names], dim=2).flatten(0, 1)
            update = z.T @ z if z.shape[1] <= self._limit else z.square().sum(0)
            previous = self._sums.get(name)
            self._sums[name] = update if previous is None else previous.add_(update)

    def blocks(self) -> tuple[Block, ...]:
        made: list[Block] = []
        for name, names in self._groups:
            total = self._sums[name] / self._n
            places = Several(self._parameters, names)
            exact = total.ndim == 2
            operator: Operator = Dense(total) if exact else DiagonalOperator(total)
            rule = "exact block" if exact else "diagonal"
            fallback = not self._native[exact]
            why = f"{rule} ({self._reasons[names[0]]})" if fallback else rule
            made.append(Block(name, names, places, operator, why, fallback))
        return tuple(made)


def accumulate(
    rows_of: Iterable[Rows],
    blocks: tuple[LayerPart, ...],
    update: Callable[[LayerPart, Rows, Memo], tuple[Tensor, ...]],
    remainder: Remainder | None = None,
) -> dict[str, tuple[Tensor, ...]]:
    """Sum `update(block, rows, what the blocks of a chunk share)` over the chunks, for every block;
    blocks may be given the same tensor, so none is written to."""
    sums: dict[str, tuple[Tensor, ...]] = {}
    for rows in rows_of:
        memo: Memo = {}
        for block in blocks:
            new = update(block, rows, memo)
            old = sums.get(block.name)
            sums[block.name] = (
                new if old is None else tuple(p + q for p, q in zip(old, new, strict=True))
            )
        if remainder is not None:
            remainder.add(rows)
    return sums
