"""One traced pass: a and s of every layer, from inputs and output gradients of its calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import cast
from weakref import WeakSet

import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.jacobian.graph import unaccounted
from curvfluence.jacobian.layers import Layer, Layout, Small
from curvfluence.jacobian.operations import (
    Affine,
    Convolution,
    Linear,
    Lookup,
    MatrixOperation,
)
from curvfluence.jacobian.terms import (
    Factored,
    LastOuter,
    LookupOuter,
    Outer,
    SharedOuter,
    TiedOuter,
)
from curvfluence.jacobian.tracing import Piece, Tracer, Use
from curvfluence.problem.losses.output_hessian import OutputHessian
from curvfluence.problem.problem import Problem
from curvfluence.problem.structure import Structure
from curvfluence.problem.tree import Batched
from curvfluence.runtime.autograd import pulled_back
from curvfluence.runtime.finite import all_finite

_SHARING: WeakSet[Structure] = WeakSet()  # models that need lookups of their examples shared

ALIKE = 1e4  # ε of a gradient, by which two ways to it may part


@dataclass(frozen=True, eq=False)
class Capture:
    """One forward pass: outputs [B, K] with their graph, and every traced call in it."""

    problem: Problem
    output: Tensor
    theta: Mapping[str, Tensor]  # the leaves that it was made with
    uses: tuple[Use, ...]
    layers: tuple[Layer, ...]
    small: tuple[Small, ...]
    counted: Tensor | None  # positions of its layers that the loss counts, [B, T]
    varied: bool = False  # whether they may be other than on the probe

    def pullback(
        self, columns_bkc: Tensor, *, summed: bool = False
    ) -> tuple[tuple[Factored, ...], dict[str, Tensor], dict[str, Tensor] | None]:
        """Jᵀ column of every layer, and of every small parameter [B, C, size]; with `summed`, also
        Σ_b Jᵀ (first column) of every parameter by autograd's own rules.

        Cost: C backward passes, none into a weight but for `summed`.
        """
        b, _, c = columns_bkc.shape
        first, total = self._both(columns_bkc[:, :, 0], summed)
        grads = [first, *(self.backward(columns_bkc[:, :, k]) for k in range(1, c))]
        memo: dict[object, Tensor] = {}
        terms = tuple(self.term(layer, grads, b, memo) for layer in self.layers)
        small = {
            part.name: torch.stack([self.small_rows(part, dz, b) for dz in grads], dim=1)
            for part in self.small
        }
        return terms, small, total

    def pullback_below(
        self, last: int, columns_bhc: Tensor, hessian: OutputHessian
    ) -> tuple[tuple[Factored, ...], dict[str, Tensor]]:
        """Rows by layer: those of layer `last`, whose output is the model's, by the loss's Hessian;
        of all below it, Jᵀ of columns at its input h, [B, h, C]. C backward passes from there."""
        b, _, c = columns_bhc.shape
        (call,) = self.layers[last].uses
        source = self.uses[call].source
        if not self.ends_in(last):
            raise InputError(
                f"{self.layers[last].name or 'a layer'} ends the model on a probe, and on a batch "
                "of the data more follows, or goes past it: what does must not depend on the data. "
                "Give that use a module of its own, or take fisher=MonteCarlo(8)"
            )
        grads = [self._from(source, columns_bhc[:, :, k], call) for k in range(c)]
        memo: dict[object, Tensor] = {}
        terms: list[Factored] = []
        for number, layer in enumerate(self.layers):
            if number != last:
                terms.append(self.term(layer, grads, b, memo))
                continue
            ones = layer.bias is not None
            a_bti = _inputs(layer, self.uses[call], b, ones, memo)
            terms.append(LastOuter(a_bti[:, 0], hessian, ones=ones))
        small = {
            part.name: torch.stack([self.small_rows(part, dz, b) for dz in grads], dim=1)
            for part in self.small
        }
        return tuple(terms), small

    def ends_in(self, last: int) -> bool:
        """Whether the outputs are those of a layer, and all else reaches them by its inputs: a
        column pulled back through the whole model, and Wᵀ of it from there, give every call the
        same."""
        layer = self.layers[last]
        (call,) = layer.uses
        use, output = self.uses[call], self.output
        if use.edge is None or use.edge.node is not output.grad_fn or use.edge.output_nr:
            return False
        column = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype)
        column = column.to(output.device).reshape(output.shape)
        whole = self.backward(column)
        below = self._from(use.source, column @ layer.matrix(self.theta), call)
        eps = torch.finfo(output.dtype).eps
        for k, (a, b) in enumerate(zip(whole, below, strict=True)):
            if k == call:
                continue
            if (a is None) != (b is None):
                known = a if b is None else b
                if known is not None and bool(known.any()):
                    return False
            elif a is not None and b is not None and all_finite(a) and all_finite(b):
                size = max(float(a.norm()), float(b.norm()))
                if not float((a - b).norm()) <= ALIKE * eps * size:
                    return False
        return True

    def _from(self, source: Tensor | None, column_bh: Tensor, call: int) -> list[Tensor | None]:
        """∂/∂z of every call but one, from a column at that one's input."""
        reached = [k for k, u in enumerate(self.uses) if u.edge is not None and k != call]
        grads: list[Tensor | None] = [None] * len(self.uses)
        edges = [use.edge for k in reached if (use := self.uses[k]).edge is not None]
        if source is not None and edges:
            with self.problem.holding(self.theta):
                found = pulled_back(source, edges, column_bh)
            for k, value in zip(reached, found, strict=True):
                grads[k] = value
        return grads

    def backward(self, column_bk: Tensor) -> list[Tensor | None]:
        """∂/∂z of every call; None where it does not reach the output."""
        return self._both(column_bk, False)[0]

    def _both(
        self, column_bk: Tensor, summed: bool
    ) -> tuple[list[Tensor | None], dict[str, Tensor] | None]:
        """∂/∂z of every call and, with `summed`, ∂/∂θ of every parameter, in one pass."""
        reached = [k for k, use in enumerate(self.uses) if use.edge is not None]
        grads: list[Tensor | None] = [None] * len(self.uses)
        edges = [use.edge for use in self.uses if use.edge is not None]
        leaves = list(self.theta.values()) if summed else []
        total = {name: torch.zeros_like(v) for name, v in self.theta.items()} if summed else None
        if (edges or leaves) and self.output.requires_grad:
            with self.problem.holding(self.theta):
                values = pulled_back(self.output, [*edges, *leaves], column_bk)
            for k, value in zip(reached, values, strict=False):
                grads[k] = None if value is None else value.to(self.output.dtype)
            if total is not None:
                filled = zip(self.theta, values[len(edges) :], strict=True)
                total.update({name: value for name, value in filled if value is not None})
        return grads, total

    def term(
        self,
        layer: Layer,
        grads: Sequence[Sequence[Tensor | None]],
        b: int,
        memo: dict[object, Tensor] | None = None,
    ) -> Factored:
        """The rows of a layer; `memo` keeps inputs that groups of a call, or calls, share.

        Errors: `InputError` where the calls have other positions than on the probe.
        """
        calls = [(k, self.uses[k]) for k in layer.uses]
        s = [_joined([_grads(layer, u, dz[k], b) for k, u in calls]) for dz in grads]
        s_bcto = s[0][:, None].contiguous() if len(s) == 1 else torch.stack(s, dim=1)
        count = s_bcto.shape[2]
        self._require_positions(layer, layer.positions, count)
        if layer.head is not None:
            lookup = self.term(replace(layer, head=None), grads, b, memo)
            assert isinstance(lookup, LookupOuter)
            return TiedOuter(lookup, _as_shared(self.term(layer.head, grads, b, memo)))
        if layer.lookup:
            ids = _joined([_arranged(u.input, b, layer.axis, 0) for _, u in calls])
            return LookupOuter(
                ids, s_bcto, layer.in_features, counted=self._looked_up(layer, b, count)
            )
        ones = layer.bias is not None
        memo = {} if memo is None else memo
        a_bti = _joined([_inputs(layer, u, b, ones, memo) for _, u in calls])
        if layer.positions == 1:
            return Outer(a_bti[:, 0], s_bcto[:, :, 0], ones=ones)
        return SharedOuter(a_bti, s_bcto, counted=self._counted(count), ones=ones)

    def _require_positions(self, of: Layer | Small, wanted: int, seen: int) -> None:
        if wanted and seen != wanted and not (self.varied and wanted > 1):
            raise InputError(
                f"{of.name or 'the model'} acts on {wanted} positions an example on a "
                f"probe, on {seen} in a batch of the data: rows cannot be told apart by example. "
                "Keep padded positions in the model, or give it one example's worth at a time"
            )

    def _counted(self, positions: int) -> Tensor | None:
        """Which positions of a layer the loss counts, [B, T], where it has the same positions."""
        fits = self.counted is not None and self.counted.shape[1] == positions
        return self.counted if fits else None

    def _looked_up(self, layer: Layer, b: int, count: int) -> Tensor | None:
        """Which numbers looked up count, [B, T]: not those of padding, nor those the loss ignores
        (unless they have a gradient)."""
        counted = self._counted(count)
        uses = [self.uses[k] for k in layer.uses]
        paddings = [cast(Lookup, use.op).padding for use in uses]
        if counted is None and all(padding is None for padding in paddings):
            return None
        ids = [_arranged(use.input, b, layer.axis, 0) for use in uses]
        real = _joined(
            [
                torch.ones_like(i, dtype=torch.bool) if padding is None else i != padding
                for i, padding in zip(ids, paddings, strict=True)
            ]
        )
        return real if counted is None else real & counted

    def small_rows(self, part: Small, grads: Sequence[Tensor | None], b: int) -> Tensor:
        """One column's rows of a small parameter, [B, size], summed over its calls."""
        total = self.output.new_zeros(b, part.size)
        for number, (k, as_weight) in enumerate(part.uses):
            use, dz = self.uses[k], grads[k]
            if dz is None:
                continue
            if as_weight:
                lead = cast(Affine, use.op).weight_grads(use.input, dz)
            else:
                lead = use.op.bias_grads(dz)
            piece = role(use, as_weight)
            assert piece is not None
            place = slice(piece.offset, piece.offset + piece.count)
            rows = _arranged(lead, b, part.axis, 1)
            if part.positions:
                self._require_positions(part, part.positions[number], rows.shape[1])
            total[:, place] += rows.sum(1)
        for layer in part.layers:
            layer.add_rows(total, self.term(layer, [grads], b).dense()[:, 0])
        return total

    def small_positions(
        self, part: Small, grads: Sequence[Tensor | None], b: int
    ) -> tuple[int, ...]:
        """How many positions of an example each call of a small parameter has; 0 where it does not
        reach the output."""
        counts: list[int] = []
        for k, as_weight in part.uses:
            dz, op = grads[k], self.uses[k].op
            if dz is None:
                counts.append(0)
                continue
            lead = cast(Affine, op).weight_grads(self.uses[k].input, dz) if as_weight else None
            rows = op.bias_grads(dz) if lead is None else lead
            counts.append(_arranged(rows, b, part.axis, 1).shape[1])
        return tuple(counts)


def _as_shared(term: Factored) -> SharedOuter:
    """Rows of a single position as of shared ones."""
    if isinstance(term, Outer):
        return SharedOuter(term.a[:, None], term.s[:, :, None])
    assert isinstance(term, SharedOuter)
    return term


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Positions of successive calls, [B, T, ...]; a single call's are not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def role(use: Use, as_weight: bool) -> Piece | None:
    return use.weight if as_weight else use.bias


def _arranged(x: Tensor, b: int, axis: int, kept: int) -> Tensor:
    """[lead..., kept axes] as [B, T, kept axes]: the examples' axis first, all others merged."""
    x = x.transpose(0, 1) if axis == 1 else x
    if len(x) % b:
        raise InputError(
            f"a layer acts on {len(x)} rows for {b} examples: rows cannot be told apart by "
            "example. Keep padded positions in the model"
        )
    return x.reshape(b, -1, *x.shape[x.ndim - kept :])


def _inputs(layer: Layer, use: Use, b: int, ones: bool, memo: dict[object, Tensor]) -> Tensor:
    """a, [B, T, i], with `ones` a 1 behind each; one tensor for calls on the same input."""
    x, op = use.input, cast(MatrixOperation, use.op)
    alike = replace(op, rows=0) if isinstance(op, Linear | Convolution) else op
    key = x.data_ptr(), x.shape, x.stride(), alike, layer.axis, ones
    if key not in memo:
        memo[key] = _arranged(op.inputs(x, ones), b, layer.axis, 2)
    a_bti = memo[key][:, :, layer.group]
    return a_bti if op.groups == 1 else a_bti.contiguous()


def _grads(layer: Layer, use: Use, dz: Tensor | None, b: int) -> Tensor:
    """s, [B, T, o]; zero where the call does not reach the output."""
    op = cast(MatrixOperation, use.op)
    if isinstance(op, Lookup):
        if dz is None:
            ids = _arranged(use.input, b, layer.axis, 0)
            return torch.zeros(*ids.shape, op.rows, dtype=use.dtype, device=ids.device)
        return _arranged(op.positions(use.input, dz), b, layer.axis, 1)
    if dz is None:
        a = _inputs(layer, use, b, False, {})
        return a.new_zeros(*a.shape[:2], layer.out_features)
    return _arranged(op.grads(dz), b, layer.axis, 2)[:, :, layer.group]


def capture(problem: Problem, layout: Layout, inputs: Batched, targets: Batched) -> Capture:
    """A forward pass over `inputs` with every call of the covered weights kept."""
    tracer, output, theta = record(problem, inputs, layout.positions)
    seen = tuple((use.kind, label(use)) for use in tracer.uses)
    if seen != layout.calls:
        raise InputError(
            f"the model used its weights in other operations on a batch of the data than on a "
            f"probe ({_difference(layout.calls, seen)}): which layers run must not depend on the "
            "data"
        )
    if layout.proved:
        _require_all_seen(output, theta, tracer.uses, layout)
    counted = problem.loss.counted_inside(targets)
    uses = tuple(use.to(problem.dtype) for use in tracer.uses)
    made = problem, output, theta, uses
    return Capture(*made, layout.layers, layout.small, counted, layout.varied)


def _require_all_seen(
    output: Tensor, theta: Mapping[str, Tensor], uses: Sequence[Use], layout: Layout
) -> None:
    name = unaccounted(output, theta, uses, layout.ruled)
    if name is not None:
        raise InputError(
            f"{name} reaches the output by other operations on a batch of the data than on a "
            "probe: how it is used must not depend on the data. Give that use a module of its own"
        )


def label(use: Use) -> str:
    piece = use.weight or use.bias
    return "" if piece is None else f"{piece.name}[{piece.offset}]"


def _difference(wanted: Sequence[tuple[str, str]], seen: Sequence[tuple[str, str]]) -> str:
    for k, (a, b) in enumerate(zip(wanted, seen, strict=False)):
        if a != b:
            return f"call {k} was {a[0]} of {a[1]}, is {b[0]} of {b[1]}"
    return f"{len(wanted)} calls then, {len(seen)} now"


def numbers(uses: Iterable[Use]) -> int:
    """In the inputs of calls and in the gradients of what they return, about."""
    return 2 * sum(use.input.numel() for use in uses)


def record_shared(problem: Problem, inputs: Batched) -> tuple[Tracer, Tensor, Mapping[str, Tensor]]:
    """`record` with lookups that examples share left so, from now on for this model."""
    _SHARING.add(problem.structure)
    return record(problem, inputs)


def record(
    problem: Problem, inputs: Batched, positions: Set[str] = frozenset()
) -> tuple[Tracer, Tensor, Mapping[str, Tensor]]:
    """Run the model with gradients; every call of a trainable weight, the outputs, the leaves.

    A gradient edge is taken at once, so an in-place activation that follows does not move it. An
    input that is changed in place later is copied: the model is then run a second time. So it is
    where it does not take shared lookups of each example (see `Tracer`): without those by indices
    [T] in `positions`, and where that is not enough without any, from then on.
    """
    tracked = {name: value.detach().requires_grad_(True) for name, value in problem.theta.items()}
    values = {**problem.state, **tracked}
    batch = None if problem.structure in _SHARING else len(inputs)
    for clone in (False, True):
        tracer = Tracer(tracked, clone=clone, batch=batch, positions=positions)
        try:
            with torch.enable_grad(), tracer:
                output = problem.loss.rows(problem.run(values, inputs), len(inputs))
        except InputError:
            if not tracer.spread:
                raise
            return record(problem, inputs) if positions else record_shared(problem, inputs)
        if not tracer.overwritten:
            break
    return tracer, output, tracked
