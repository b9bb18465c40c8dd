"""Weights whose per-example gradients are sums of outer products: what a model's layout is made of.

A *layer* here is one weight matrix whose gradient is a sum of outer products s ⊗ a: of a Linear
layer, a convolution, an embedding, a part of a fused projection, one group of a grouped
convolution. A weight that is used several times is one layer with as many positions more. Weights
of normalisation layers have small per-example gradients, which are formed as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from curvfluence.problem.parameters import Parameters


@dataclass(frozen=True)
class Layer:
    """One weight matrix [o, i] with a rule, with its bias where that belongs to it alone.

    `uses` are the calls that it appears in, counted in the order of a forward pass; `group` says
    which of an operation's matrices it is; `axis` is the examples' axis of the operation's input.
    `positions` is T, 1 where no position shares the weights. A weight that is looked up in and is
    also an output layer's is a lookup with a `head`.
    """

    name: str
    part: str  # "" or "[k]": which of the weight's matrices, as names say it
    weight: str
    bias: str | None
    out_features: int
    in_features: int
    offset: int  # of the matrix in the flat weight, and of its bias in the flat bias
    bias_offset: int
    transposed: bool  # stored as [i, o]
    kind: str
    uses: tuple[int, ...]
    group: int
    axis: int
    positions: int
    lookup: bool
    head: Layer | None = None  # of a lookup: the calls of the same weight as a Linear's, [V, d]

    @property
    def shared(self) -> bool:
        return self.positions > 1 or self.lookup

    @property
    def width(self) -> int:
        """Numbers of a row: those of a unit vector are of one input."""
        of_head = self.in_features if self.head is not None else 1
        return self.out_features * (of_head if self.lookup else self.in_features)

    def factored(self, columns: int) -> int:
        """Numbers of an example in a and s."""
        inputs = 0 if self.lookup else self.in_features
        own = self.positions * (inputs + columns * self.out_features)
        return own if self.head is None else own + self.head.factored(columns)

    @property
    def multiplications(self) -> int:
        """Of one example's pass through it."""
        own = self.positions * self.out_features * (1 if self.lookup else self.in_features)
        return own if self.head is None else own + self.head.multiplications

    def weight_of(self, parameters: Parameters, x: Tensor) -> Tensor:
        """This matrix in flat vectors: [..., P] -> [..., o, i], a view."""
        start = parameters.slices[self.weight].start + self.offset
        flat = x[..., start : start + self.out_features * self.in_features]
        if self.transposed:
            return flat.unflatten(-1, (self.in_features, self.out_features)).mT
        return flat.unflatten(-1, (self.out_features, self.in_features))

    def matrix(self, theta: Mapping[str, Tensor]) -> Tensor:
        """This matrix where it is a whole weight, [o, i]."""
        weight = theta[self.weight].detach()
        if self.transposed:
            return weight.reshape(self.in_features, self.out_features).T
        return weight.reshape(self.out_features, self.in_features)

    def add_rows(self, flat: Tensor, rows_boi: Tensor) -> None:
        """Add this matrix's [B, o, i] to its places in the flat weight's [B, size]."""
        rows = (rows_boi.mT if self.transposed else rows_boi).flatten(1)
        flat[:, self.offset : self.offset + rows.shape[1]] += rows

    def bias_of(self, parameters: Parameters, x: Tensor) -> Tensor:
        """Its bias in flat vectors, [..., o]."""
        assert self.bias is not None
        start = parameters.slices[self.bias].start + self.bias_offset
        return x[..., start : start + self.out_features]


@dataclass(frozen=True)
class Small:
    """A parameter that is no layer, whose per-example gradients are formed from its calls.

    Those of `uses` are elementwise, or of a bias alone; those of `layers`, of a weight that is used
    in several ways (as an embedding and as the head, say), are added up from outer products.
    """

    name: str
    size: int
    uses: tuple[tuple[int, bool], ...]  # (call, whether as its weight)
    axis: int
    layers: tuple[Layer, ...] = ()
    positions: tuple[int, ...] = ()  # of an example in each of `uses`; empty where not known yet

    @property
    def calls(self) -> set[int]:
        """All that it appears in."""
        return {k for k, _ in self.uses} | {k for layer in self.layers for k in layer.uses}


@dataclass(frozen=True)
class Layout:
    """Which parameters a layer's structure explains, and why the others are not explained.

    `small` are among the others: no layer, but rows without another pass over the model. `proved`
    says that the graph of the probe shows all uses of what has a rule, as each batch's then must.
    `elements` counts the numbers that one example needs in the layers' inputs, and per column in s.
    `last` is the number of the layer whose output is the model's, where all else reaches it by
    that layer's inputs. `positions` are weights that are looked up in by indices [T] which all
    examples share.
    """

    layers: tuple[Layer, ...]
    others: Mapping[str, str]  # parameter name -> reason
    small: tuple[Small, ...] = ()
    calls: tuple[tuple[str, str], ...] = ()  # (kind, weight or bias) of each use, in order
    proved: bool = False
    varied: bool = False  # whether batches have other numbers of positions than the probe
    last: int | None = None
    positions: frozenset[str] = frozenset()

    @property
    def ruled(self) -> tuple[str, ...]:
        """The parameters whose rows come from their calls."""
        names = [name for layer in self.layers for name in (layer.weight, layer.bias)]
        names += [part.name for part in self.small]
        return tuple(dict.fromkeys(name for name in names if name is not None))

    @property
    def unshared(self) -> bool:
        return not any(layer.shared for layer in self.layers)

    def elements(self, columns: int) -> int:
        """Of one example, in a and s of all layers."""
        return sum(layer.factored(columns) for layer in self.layers)
