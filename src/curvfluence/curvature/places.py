"""Where a block lies in flat vectors of all parameters, and what its part of a row is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.jacobian.layers import Layer, Layout
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Factored, Term, bias_alone, with_bias
from curvfluence.problem.parameters import Parameters


class Places(ABC):
    """An ordered choice of n of the P parameters, taken and put by strided copies."""

    @property
    @abstractmethod
    def size(self) -> int:
        """n."""

    @property
    @abstractmethod
    def index(self) -> Tensor:
        """The place of each entry in the flat vector, [n]."""

    @abstractmethod
    def take(self, v: Tensor) -> Tensor:
        """[..., P] -> [..., n]."""

    @abstractmethod
    def put(self, out: Tensor, x: Tensor) -> None:
        """Write x [..., n] to its places in out [..., P]."""

    @abstractmethod
    def dense(self, rows: Rows) -> Tensor:
        """This part of the rows, [N, C, n]."""

    @abstractmethod
    def inner(self, rows: Rows, x_qn: Tensor) -> Tensor:
        """⟨x_q, this part of row_nc⟩, [Q, N, C], for x [Q, n]."""


@dataclass(frozen=True)
class Whole(Places):
    """Every parameter, in order."""

    parameters: Parameters

    @property
    def size(self) -> int:
        return self.parameters.count

    @property
    def index(self) -> Tensor:
        return torch.arange(self.size)

    def take(self, v: Tensor) -> Tensor:
        return v

    def put(self, out: Tensor, x: Tensor) -> None:
        out.copy_(x)

    def dense(self, rows: Rows) -> Tensor:
        return rows.to_dense()

    def inner(self, rows: Rows, x_qn: Tensor) -> Tensor:
        return rows.inner(x_qn)


@dataclass(frozen=True)
class Tensors(Places):
    """Whole tensors that no layer explains, one after the other."""

    parameters: Parameters
    names: tuple[str, ...]

    @property
    def size(self) -> int:
        return sum(place.stop - place.start for place in self._slices)

    @property
    def _slices(self) -> list[slice]:
        return [self.parameters.slices[name] for name in self.names]

    @property
    def index(self) -> Tensor:
        return self.take(torch.arange(self.parameters.count))

    def take(self, v: Tensor) -> Tensor:
        return torch.cat([v[..., place] for place in self._slices], dim=-1)

    def put(self, out: Tensor, x: Tensor) -> None:
        sizes = [place.stop - place.start for place in self._slices]
        for place, part in zip(self._slices, x.split(sizes, dim=-1), strict=True):
            out[..., place] = part

    def dense(self, rows: Rows) -> Tensor:
        by_name = dict(zip(rows.rest, rows.rest_parts(), strict=True))
        return torch.cat([by_name[name] for name in self.names], dim=2)

    def inner(self, rows: Rows, x_qn: Tensor) -> Tensor:
        z_ncr = self.dense(rows)
        n, c, _ = z_ncr.shape
        return (x_qn @ z_ncr.flatten(0, 1).T).unflatten(1, (n, c))


@dataclass(frozen=True, eq=False)
class LayerPart(Places):
    """A layer's weight with its bias as a last input, or one of them alone: o × ĩ numbers."""

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
    def lookup(self) -> bool:
        """Whether every a is a unit vector."""
        return self.layer.lookup and self.with_weight

    @property
    def shared(self) -> bool:
        """Whether rows are sums of outer products over positions, and not of unit vectors."""
        return self.layer.shared and not self.layer.lookup

    @property
    def index(self) -> Tensor:
        """Place of each entry in the flat vector, [o ĩ]."""
        return self.take(torch.arange(self.of.count))

    def take(self, v: Tensor) -> Tensor:
        """The part's entries of flat vectors, [..., P] -> [..., o ĩ]."""
        parts = [self.layer.weight_of(self.of, v)] if self.with_weight else []
        if self.with_bias:
            parts.append(self.layer.bias_of(self.of, v)[..., None])
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).flatten(-2)

    def put(self, out: Tensor, x: Tensor) -> None:
        """Write the part's entries [..., o ĩ] into flat vectors [..., P]."""
        x_oi = x.unflatten(-1, self.shape)
        if self.with_weight:
            width = self.layer.in_features
            self.layer.weight_of(self.of, out).copy_(x_oi[..., :width])
        if self.with_bias:
            self.layer.bias_of(self.of, out).copy_(x_oi[..., -1])

    def term(self, rows: Rows) -> Term:
        """The part's rows, [N, C, o, ĩ]."""
        term = rows.terms[self.position]
        if not self.with_bias:
            return term
        return with_bias(term) if self.with_weight else bias_alone(term)

    def factored(self, rows: Rows) -> Factored:
        """The same of rows that a pass has just made."""
        term = self.term(rows)
        assert isinstance(term, Factored)
        return term

    def dense(self, rows: Rows) -> Tensor:
        return self.term(rows).dense().flatten(2)

    def inner(self, rows: Rows, x_qn: Tensor) -> Tensor:
        return self.term(rows).inner(x_qn.unflatten(-1, self.shape))


def layer_parts(
    parameters: Parameters, layout: Layout, *, joint_bias: bool
) -> tuple[LayerPart, ...]:
    """The parts of all layers, weight and bias together or apart."""
    parts: list[LayerPart] = []
    for k, layer in enumerate(layout.layers):
        weight, bias = layer.weight, layer.bias
        if bias is None:
            parts.append(LayerPart(layer, k, (weight,), parameters, True, False))
        elif joint_bias:
            parts.append(LayerPart(layer, k, (weight, bias), parameters, True, True))
        else:
            parts.append(LayerPart(layer, k, (weight,), parameters, True, False))
            parts.append(LayerPart(layer, k, (bias,), parameters, False, True))
    return tuple(parts)


def remaining_tensors(parameters: Parameters, layout: Layout, *, joint: bool) -> dict[str, Tensors]:
    """What no layer rule covers, by the name of its block: a module's tensors, or each alone."""
    groups: dict[str, list[str]] = {}
    for name in parameters.names:
        if name in layout.others:
            groups.setdefault(name.rpartition(".")[0] if joint else name, []).append(name)
    taken = {layer.name for layer in layout.layers}
    return {
        ", ".join(names) if name in taken else name or "model": Tensors(parameters, tuple(names))
        for name, names in groups.items()
    }
