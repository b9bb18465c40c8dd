"""Per-example rows Jᵀs: outer products where a layer allows, dense elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.jacobian.layers import Layer
from curvfluence.jacobian.terms import (
    Factored,
    Memo,
    Outer,
    SharedOuter,
    Term,
    joined,
    mixed,
    with_bias,
)
from curvfluence.problem.parameters import Parameters
from curvfluence.runtime import budget
from curvfluence.runtime.paged import Pages, paged_out, spanned

Basis: TypeAlias = "tuple[Tensor | None, Tensor | None]"  # U_B and U_A; None is the identity


@dataclass(frozen=True, eq=False)
class Rows:
    """C rows for each of N examples.

    `terms` holds those of each layer, whose weights and biases stand side by side in no dense
    form. Parameters of no layer: dense [N, C, R], in the order of `rest`. `weights` [N] are the
    examples', which the rows hold already and only K-FAC's A needs to know; None is 1 each.

    With `by_layer` each layer, and the rest, has columns of its own, as many as it needs: sums
    over examples and columns within one are right, and nothing across them is.
    """

    parameters: Parameters
    layers: tuple[Layer, ...]
    terms: tuple[Term, ...]
    rest: tuple[str, ...]
    dense: Tensor
    weights: Tensor | None = None
    by_layer: bool = False

    def __len__(self) -> int:
        return len(self.dense)

    def __getitem__(self, index: slice | Tensor) -> Rows:
        terms = tuple(term[index] for term in self.terms)
        weights = None if self.weights is None else self.weights[index]
        return replace(self, terms=terms, dense=self.dense[index], weights=weights)

    def without(self, layer: int) -> Rows:
        """The same but for one layer's, which are let go of: there is none of any example."""
        terms = list(self.terms)
        terms[layer] = terms[layer][torch.arange(0)]  # a copy: a slice would hold them all
        return replace(self, terms=tuple(terms))

    @property
    def factored(self) -> bool:
        """Whether every term is still a and s."""
        return all(isinstance(term, Factored) for term in self.terms)

    def inputs_of(self, layer: int) -> int:
        """Where a layer's inputs lie in memory: layers on the same ones share theirs."""
        return self.terms[layer].tensors[0].data_ptr()

    def formed(self, bases: Mapping[int, Basis]) -> Rows:
        """The same rows, of the layers in `bases` (by number) as matrices U_Bᵀ row U_A, with the
        bias among them; where these are compact, and of a single column."""
        memo: Memo = {}  # what is rotated of the inputs that the layer before had too
        inputs: int | None = None
        terms = list(self.terms)
        for k, basis in bases.items():
            term = self.terms[k]
            if inputs != (inputs := self.inputs_of(k)):
                memo.clear()
            if isinstance(term, SharedOuter) and (whole := replace(term, biased=term.ones)).compact:
                terms[k] = replace(whole.formed(*basis, memo), biased=False)
        return replace(self, terms=tuple(terms))

    def compacted(self) -> Rows:
        """The same rows of a single column, of shared positions as matrices where these are fewer
        numbers than a and s."""
        smaller = {
            k: (None, None)
            for k, term in enumerate(self.terms)
            if isinstance(term, SharedOuter) and term.c == 1 and term.smaller_formed
        }
        return self.formed(smaller)

    @property
    def _parts(self) -> list[tuple[Layer, Term]]:
        return list(zip(self.layers, self.terms, strict=True))

    def rest_slices(self) -> Iterator[tuple[slice, slice]]:
        """(place in the flat vector, place in `dense`) of each of `rest`."""
        start = 0
        for name in self.rest:
            place = self.parameters.slices[name]
            width = place.stop - place.start
            yield place, slice(start, start + width)
            start += width

    def rest_parts(self) -> tuple[Tensor, ...]:
        """The dense rows of each of `rest`, [N, C, size]."""
        sizes = [at.stop - at.start for _, at in self.rest_slices()]
        return self.dense.split(sizes, dim=2)

    def to_dense(self) -> Tensor:
        """[N, C, P]."""
        n, c = self.dense.shape[:2]
        rows = self.dense.new_empty(n, c, self.parameters.count)
        for layer, term in self._parts:
            layer.weight_of(self.parameters, rows).copy_(term.dense())
            if layer.bias is not None:
                layer.bias_of(self.parameters, rows).copy_(term.summed())
        for place, at in self.rest_slices():
            rows[..., place] = self.dense[..., at]
        return rows

    def inner(self, x_qp: Tensor) -> Tensor:
        """⟨x_q, row_nc⟩, [Q, N, C]. Cost: 2 Q N C P operations at most; see `Term.inner`."""
        q = len(x_qp)
        n, c = self.dense.shape[:2]
        total = x_qp.new_zeros(q, n, c)
        for layer, term in self._parts:
            total += term.inner(layer.weight_of(self.parameters, x_qp))
            if layer.bias is not None:
                b_qo = layer.bias_of(self.parameters, x_qp)
                total += (b_qo @ term.summed().flatten(0, 1).T).view(q, n, c)
        for place, at in self.rest_slices():
            total += (x_qp[:, place] @ self.dense[..., at].flatten(0, 1).T).view(q, n, c)
        return total

    def adjoint(self, y_qnc: Tensor) -> Tensor:
        """Σ_n Σ_c y_qnc row_nc, [Q, P]: the adjoint of `inner`, at the same cost."""
        total = y_qnc.new_empty(len(y_qnc), self.parameters.count)
        y_qr = y_qnc.flatten(1)
        for layer, term in self._parts:
            layer.weight_of(self.parameters, total).copy_(term.adjoint(y_qnc))
            if layer.bias is not None:
                b_qo = y_qr @ term.summed().flatten(0, 1)
                layer.bias_of(self.parameters, total).copy_(b_qo)
        for place, at in self.rest_slices():
            total[:, place] = y_qr @ self.dense[..., at].flatten(0, 1)
        return total

    def weighted_sum(self, weights_mn: Tensor) -> Tensor:
        """Σ_n weights_mn row_n for single-column rows, [m, P]: the gradients of groups."""
        return self.adjoint(weights_mn[..., None])

    def first_column_sum(self) -> Tensor:
        """Σ_n row_n0, [P]."""
        n, c = self.dense.shape[:2]
        y_1nc = self.dense.new_zeros(1, n, c)
        y_1nc[:, :, 0] = 1
        return self.adjoint(y_1nc)[0]

    def mixed(self, index: Tensor, weights_rc: Tensor) -> Rows:
        """Rows of a single column: row r is Σ_c weights_rc times column c of example index_r."""
        terms = tuple(cast(Factored, term).mixed(index, weights_rc) for term in self.terms)
        dense = mixed(self.dense, index, weights_rc)
        return Rows(self.parameters, self.layers, terms, self.rest, dense)

    def shift_of(self, layer: Layer, shift: Tensor) -> tuple[float, float | None]:
        """(w + λ of a layer's weight, that of its bias), each of one value."""
        weight = _uniform(layer.weight_of(self.parameters, shift), layer.weight)
        if layer.bias is None:
            return weight, None
        return weight, _uniform(layer.bias_of(self.parameters, shift), layer.bias)

    def scaled_grams(self, shift: Tensor) -> Tensor:
        """Z_n D⁻¹ Z_nᵀ of each example, [N, C, C], with D = diag(shift), of one value a tensor."""
        n, c = self.dense.shape[:2]
        total = self.dense.new_zeros(n, c, c)
        for layer, term in self._parts:
            weight, bias = self.shift_of(layer, shift)
            if isinstance(term, Outer):
                s_nco = term.s
                size_n = term.a.square().sum(1) / weight
                if bias is not None:
                    size_n += 1 / bias
                total += size_n[:, None, None] * (s_nco @ s_nco.mT)
                continue
            width = term.shape[0] * term.shape[1]
            for start, part in term.numbered_slices(width):
                z_ncw = part.dense().flatten(2)
                total[start : start + part.n] += z_ncw @ z_ncw.mT / weight
            if bias is not None:
                b_nco = term.summed()
                total += b_nco @ b_nco.mT / bias
        for place, at in self.rest_slices():
            z_ncr = self.dense[..., at] / shift[place].sqrt()
            total += z_ncr @ z_ncr.mT
        return total

    def scaled_products(self, other: Rows, shift: Tensor) -> Tensor:
        """Z D⁻¹ Z'ᵀ of single-column rows with others, [N, N', C']."""
        n, (others, c) = len(self), other.dense.shape[:2]
        total = self.dense.new_zeros(n, others, c)
        for layer, mine, theirs in zip(self.layers, self.terms, other.terms, strict=True):
            weight, bias = self.shift_of(layer, shift)
            if isinstance(mine, Outer) and isinstance(theirs, Outer):
                inputs = mine.a @ theirs.a.T / weight
                if bias is not None:
                    inputs += 1 / bias
                outputs = mine.s[:, 0] @ theirs.s.flatten(0, 1).T
                total += outputs.view(n, others, c).mul_(inputs[:, :, None])
                continue
            width = theirs.shape[0] * theirs.shape[1]
            for start, part in theirs.numbered_slices(width):
                found_rn = mine.inner(part.dense().flatten(0, 1))[:, :, 0].T
                total[:, start : start + part.n] += found_rn.reshape(n, part.n, c) / weight
            if bias is not None:
                shared = mine.summed()[:, 0] @ theirs.summed().flatten(0, 1).T
                total += shared.view(n, others, c) / bias
        for place, at in self.rest_slices():
            scaled = self.dense[:, 0, at] / shift[place]
            total += (scaled @ other.dense[..., at].flatten(0, 1).T).view(n, others, c)
        return total

    def squares(self) -> Tensor:
        """Σ_n Σ_c row_nc² elementwise, [P]: N times the diagonal of what the rows make."""
        total = self.dense.new_empty(self.parameters.count)
        for layer, term in self._parts:
            layer.weight_of(self.parameters, total).copy_(term.squares(None, None))
            if layer.bias is not None:
                layer.bias_of(self.parameters, total).copy_(term.summed().square().sum((0, 1)))
        for place, at in self.rest_slices():
            total[place] = self.dense[..., at].square().sum((0, 1))
        return total

    def squared_norms(self) -> Tensor:
        """‖row_nc‖², [N, C]."""
        total = self.dense.square().sum(2)
        for layer, term in self._parts:
            total += term.squared_norms()
            if layer.bias is not None:
                total += term.summed().square().sum(2)
        return total

    def _whole_parts(self) -> Iterator[tuple[Layer, Term]]:
        """Each layer's rows with its bias among them."""
        for layer, term in self._parts:
            yield layer, term if layer.bias is None else with_bias(term)

    def sketched(self, x_p: Tensor) -> Tensor:
        """⟨x, row_nc⟩, [N, C]; by layer, of the columns of each side by side."""
        if not self.by_layer:
            return self.inner(x_p[None])[0]
        found: list[Tensor] = []
        for layer, term in self._whole_parts():
            x_oi = layer.weight_of(self.parameters, x_p)
            if layer.bias is not None:
                x_oi = torch.cat([x_oi, layer.bias_of(self.parameters, x_p)[:, None]], dim=1)
            found.append(term.sketched(x_oi))
        found += [self.dense[..., at] @ x_p[place] for place, at in self.rest_slices()]
        return torch.cat(found, dim=1)

    def column_norms(self) -> Tensor:
        """‖row_nc‖, [N, C]; by layer, of the columns of each side by side."""
        if not self.by_layer:
            return self.squared_norms().sqrt()
        found = [term.column_norms() for _, term in self._whole_parts()]
        found += [part.norm(dim=2) for part in self.rest_parts()]
        return torch.cat(found, dim=1)

    @property
    def _tensors(self) -> list[Tensor]:
        return [self.dense, *(t for term in self.terms for t in term.tensors)]

    @property
    def nbytes(self) -> int:
        """Of its numbers, those that terms share once."""
        return sum({(t.data_ptr(), t.nbytes): t.nbytes for t in self._tensors}.values())

    def paged(self) -> tuple[Rows, Pages] | None:
        """The same rows in a file without a name; None where there can be none."""
        tensors = self._tensors
        found = paged_out(tensors)
        if found is None:
            return None
        placed = {id(old): new for old, new in zip(tensors, found[0], strict=True)}
        terms = tuple(term.mapped(lambda held: placed[id(held)]) for term in self.terms)
        return replace(self, terms=terms, dense=placed[id(self.dense)]), found[1]

    @property
    def versions(self) -> tuple[int, ...]:
        """How often each tensor was written to."""
        return tuple(t._version for t in self._tensors)  # pyright: ignore[reportPrivateUsage]

    @property
    def held(self) -> int:
        """Bytes of memory that stay as long as it does: of a view, all that it is a view of."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in self._tensors}
        return sum(storage.nbytes() for storage in storages.values())

    @property
    def spanned(self) -> int:
        """Bytes that its numbers lie in: what a copy of them holds."""
        return spanned(self._tensors)

    def to(self, dtype: torch.dtype) -> Rows:
        """The same rows in another dtype."""
        if self.dense.dtype == dtype:
            return self
        terms = tuple(term.to(dtype) for term in self.terms)
        return replace(self, terms=terms, dense=self.dense.to(dtype))

    def slices(self, elements: int) -> Iterator[Rows]:
        """Successive examples, each part of about so many elements."""
        held = self.nbytes // self.dense.element_size()
        step = max(1, elements * len(self) // max(1, held))
        for start in range(0, len(self), step):
            yield self[start : start + step]

    def exact_norms(self) -> Tensor:
        """‖row_nc‖, [N, C], in float64, where the squares of small numbers are no 0; a slice of the
        rows at a time."""
        if not len(self):
            return self.dense.new_zeros(0, self.dense.shape[1], dtype=torch.float64)
        return torch.cat([part._exact_norms() for part in self.slices(budget.FORMED)])

    def _exact_norms(self) -> Tensor:
        squares = torch.linalg.vector_norm(self.dense, dim=2, dtype=torch.float64).square_()
        for _, term in self._whole_parts():
            squares += term.exact_norms().square_()
        return squares.sqrt_()

    def size(self) -> float:
        """Σ_n of bounds on ‖row_n‖ (first columns): what rounding in a sum of rows goes with."""
        layers = sum(float(term.norms().sum()) for term in self.terms)
        return layers + float(self.dense[:, 0].norm(dim=-1).sum())


def concatenate(parts: list[Rows]) -> Rows:
    """The rows of successive chunks as one. The list is emptied: each layer's parts are let go of
    once they are joined, so that no more than one layer is there twice."""
    first = parts[0]
    if len(parts) == 1:
        return first
    held = [p.weights for p in parts if p.weights is not None]
    weights = torch.cat(held) if held else None
    dense = torch.cat([p.dense for p in parts])
    by_layer = [[p.terms[k] for p in parts] for k in reversed(range(len(first.layers)))]
    first = replace(first, terms=(), dense=dense, weights=weights)
    parts.clear()
    terms: list[Term] = []
    while by_layer:
        terms.append(joined(by_layer.pop()))
    return replace(first, terms=tuple(terms))


def _uniform(values: Tensor, name: str) -> float:
    """The one value of w + λ in a tensor. Errors: `InputError` where there are several."""
    first = float(values.flatten()[0])
    if bool((values != first).any()):
        raise InputError(f"{name} has more than one weight decay")
    return first
