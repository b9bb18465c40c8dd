"""Which weights have a rule: found by tracing the model, believed where autograd agrees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from curvfluence.jacobian.capture import Capture, label, numbers, record, role
from curvfluence.jacobian.differences import require_derivative
from curvfluence.jacobian.graph import unaccounted
from curvfluence.jacobian.layers import Layer, Layout, Small
from curvfluence.jacobian.operations import Linear, Lookup, MatrixOperation
from curvfluence.jacobian.own_functions import require_own_loss, require_own_measurement
from curvfluence.jacobian.probe import Probe, require_deterministic, require_plain_mode
from curvfluence.jacobian.terms import bias_alone
from curvfluence.jacobian.tracing import Piece, Use
from curvfluence.problem.data import Examples
from curvfluence.problem.losses import Loss
from curvfluence.problem.measurement import Measurement
from curvfluence.problem.problem import Problem
from curvfluence.problem.structure import Structure
from curvfluence.problem.tree import Batched
from curvfluence.runtime import budget, generators, precision
from curvfluence.runtime.autograd import Recomputed
from curvfluence.runtime.finite import all_finite

_ASKED: WeakKeyDictionary[Structure, list[tuple[Loss, Measurement]]] = WeakKeyDictionary()
FEWEST, MOST = 3, 8  # examples of a probe
_FOUND: WeakKeyDictionary[Problem, tuple[object, Layout]] = WeakKeyDictionary()


@precision.full()
def discover(problem: Problem) -> Layout:
    """Find the weights that have a rule; say of every other trainable parameter why it has none.

    What an operation was given does not show every use of a weight (a use that is not traced, a
    hook that changes an output, a batch that is reordered), so up to eight examples, spread over
    the training set, are run together and one at a time: of a model whose gradients or layer
    inputs take much memory fewer, but three (`budget.PROBED`). Outputs must agree, or the model
    mixes examples or is random and is refused. A weight has a rule where the gradient that its
    calls give equals autograd's for each example. The answer is remembered until the examples in
    memory are changed.
    """
    problem = problem.exact
    require_plain_mode()
    state = problem.train.versions, problem.queries.versions
    known = _FOUND.get(problem)
    if known is not None and known[0] == state:
        return known[1]
    with generators.preserved():
        at = torch.linspace(0, len(problem.train) - 1, _tried(problem)).long().unique()
        if len(at) == 1:
            at = at.repeat(2)  # one alone does not show which axis holds examples
        few = problem.train.take(at)
        probe = _probed(problem, few.inputs)
        require_deterministic(problem, probe, few.inputs)
        if probe.output.requires_grad:
            found = _Sorting(problem, probe).sorted()
        else:
            found = Layout((), dict.fromkeys(problem.parameters.names, "the output ignores it"))
        count = max(1, budget.PROBED // max(1, numbers(probe.uses) // len(at)))
        # Last, since a model may write over what its last call was given.
        _require_own(problem, probe.without_graph(), few, count)
    _FOUND[problem] = (state, found)
    return found


def _tried(problem: Problem) -> int:
    """How many examples a probe takes: by one's gradients, and by one's layer inputs."""
    most = min(MOST, len(problem.train))
    most = min(most, max(FEWEST, budget.PROBED // problem.parameters.count))
    if most > FEWEST:
        tracer, _, _ = record(problem, problem.train.take(slice(0, 1)).inputs.clone())
        most = min(most, max(FEWEST, budget.PROBED // max(1, numbers(tracer.uses))))
    return most


def _probed(problem: Problem, inputs: Batched) -> Probe:
    """Run for the first time; a model that computes activations again shows it here."""
    try:
        return Probe.of(problem, inputs.clone())
    except Recomputed:
        if problem.structure.recomputes:
            raise
        problem.structure.recomputes = True
        return Probe.of(problem, inputs.clone())


def _require_own(problem: Problem, probe: Probe, tried: Examples, count: int) -> None:
    """The user's loss and measurement are of single examples, and the model's derivative is that of
    its values, on so many of those tried; asked once of a model, whichever its weights."""
    asked = _ASKED.setdefault(problem.structure, [])
    given = problem.loss, problem.measurement
    if any(each[0] is given[0] and each[1] is given[1] for each in asked):
        return
    require_derivative(problem, probe, count)
    require_own_loss(problem.loss, probe.output, tried.targets)
    few = problem.queries.take(slice(0, len(tried)))
    with torch.no_grad():
        output = problem.forward(few.inputs.clone())
    require_own_measurement(problem.measurement, output, few.targets)
    asked.append(given)


@dataclass(frozen=True)
class _Role:
    """A call that a parameter appears in, and as what."""

    call: int
    as_weight: bool
    piece: Piece


@dataclass(eq=False)
class _Sorting:
    """Sorts the parameters of a probed model into layers, small ones, and those without a rule."""

    problem: Problem
    probe: Probe
    layers: dict[str, tuple[Layer, ...]] = field(default_factory=dict[str, "tuple[Layer, ...]"])
    small: list[Small] = field(default_factory=list[Small])
    others: dict[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        self.roles: dict[str, list[_Role]] = {name: [] for name in self.problem.parameters.names}
        for k, use in enumerate(self.probe.uses):
            for as_weight in (True, False):
                piece = role(use, as_weight)
                if piece is not None:
                    self.roles[piece.name].append(_Role(k, as_weight, piece))
        probe = self.probe
        made = self.problem, probe.output, probe.leaves, probe.uses
        self.capture = Capture(*made, (), (), None)
        self.grads = self.capture.backward(self.probe.weights)
        self.batch = len(self.probe.inputs)

    def sorted(self) -> Layout:
        names = self.problem.parameters.names
        for name in names:
            if any(r.as_weight and self._is_product(r) for r in self.roles[name]):
                self._weight(name)
        claimed = {layer.bias for found in self.layers.values() for layer in found}
        for name in names:
            if name not in self.layers and name not in claimed and name not in self.others:
                self._remaining(name)
        found = tuple(layer for name in names for layer in self.layers.get(name, ()))
        layout = Layout(
            layers=found,
            others={name: self.others[name] for name in names if name in self.others},
            small=tuple(self.small),
            calls=tuple((use.kind, label(use)) for use in self.probe.uses),
            varied=self.problem.varied,
            positions=self.probe.positions,
        )
        probe = self.probe
        hidden = unaccounted(probe.output, probe.leaves, probe.uses, layout.ruled)
        proved = hidden is None
        return replace(layout, proved=proved, last=self._last(layout) if proved else None)

    def _last(self, layout: Layout) -> int | None:
        """Which layer is z = W h + b with z the model's output, of one position."""
        output = self.probe.output
        ends = [use.edge is not None and use.edge.node is output.grad_fn for use in self.probe.uses]
        if ends.count(True) != 1:
            return None
        call = ends.index(True)
        use = self.probe.uses[call]
        plain = isinstance(use.op, Linear) and use.input.ndim == 2 and output.shape[1] > 1
        others = {k for part in layout.small for k in part.calls}
        if not plain or call in others or use.edge is None or use.edge.output_nr != 0:
            return None
        for number, layer in enumerate(layout.layers):
            size = self.problem.theta[layer.weight].numel()
            whole = layer.out_features == output.shape[1] and layer.width == size
            if layer.uses == (call,) and whole and layer.axis == 0 and not layer.shared:
                probed = replace(self.capture, layers=layout.layers)
                return number if probed.ends_in(number) else None
        return None

    def _use(self, r: _Role) -> Use:
        return self.probe.uses[r.call]

    def _is_product(self, r: _Role) -> bool:
        return isinstance(self._use(r).op, MatrixOperation)

    def _label(self, name: str) -> str:
        """The module that holds a parameter, as a reason names it."""
        path = name.rpartition(".")[0]
        kind = type(self.problem.structure.modules.get_submodule(path)).__name__
        return f"{path} ({kind})" if path else kind

    def _weight(self, name: str) -> None:
        """Layers for a weight of products, or the reason why there are none."""
        reason = self._against_products(name)
        if reason is None:
            reason = self._no_axis(name)
            for axis in (0, 1):
                layers = self._candidates(name, axis)
                if not layers:
                    continue
                reason = self._against_gradients(name, layers)
                if reason is None:
                    self.layers[name] = self._with_bias(layers)
                    return
        elif (tied := self._tied(name)) is not None:
            self.layers[name] = (tied,)
            return
        self.others[name] = reason
        self._several_ways(name)

    def _several_ways(self, name: str) -> None:
        """Rows of a weight whose calls share no rule, added up call by call where that is right."""
        roles = self.roles[name]
        products = [r for r in roles if r.as_weight and self._is_product(r)]
        uses = tuple((r.call, r.as_weight) for r in roles if r not in products)
        for axis in (0, 1):
            if not all(self._fits(self._use(r).input, axis) for r in roles):
                continue
            layers = tuple(layer for r in products for layer in self._split(name, [r], axis))
            part = Small(name, self.problem.theta[name].numel(), uses, axis, layers)
            if self._is_right(part):
                self.small.append(self._sized(part))
                return

    def _sized(self, part: Small) -> Small:
        """With the positions of its calls."""
        counts = self.capture.small_positions(part, self.grads, self.batch)
        return replace(part, positions=counts)

    def _is_right(self, part: Small) -> bool:
        rows = self.capture.small_rows(part, self.grads, self.batch)
        wanted = self._own(part.name)
        return _all_agree(rows, wanted, wanted.new_zeros(len(wanted)))

    def _against_products(self, name: str) -> str | None:
        """Why the calls of a weight are not all of one kind that covers it, or None."""
        roles, where = self.roles[name], self._label(name)
        kinds = sorted({self._use(r).kind if r.as_weight else "a bias" for r in roles})
        if not all(r.as_weight and self._is_product(r) for r in roles) or len(kinds) > 1:
            return f"{where}: its weight is used by {' and '.join(kinds)}, which share no rule"
        if all(self._use(r).edge is None for r in roles):
            return f"{where} runs without a gradient"
        if all(self.grads[r.call] is None for r in roles):
            return f"{where} does not reach the output"
        pieces = {(r.piece.offset, r.piece.count) for r in roles}
        size = self.problem.theta[name].numel()
        starts = sorted(pieces)
        ends = [start + count for start, count in starts]
        if [start for start, _ in starts] != [0, *ends[:-1]] or ends[-1] != size:
            return f"{where}: its weight is used in parts that overlap or leave some of it out"
        for piece in pieces:
            ops = [self._op(r) for r in roles if (r.piece.offset, r.piece.count) == piece]
            if len({(op.rows, op.columns, op.groups, op.transposed) for op in ops}) > 1:
                return f"{where}: its weight is used in different shapes"
        return None

    def _tied(self, name: str) -> Layer | None:
        """The layer of a weight that is looked up in and multiplied by, or None."""
        roles, size = self.roles[name], self.problem.theta[name].numel()
        lookups = [r for r in roles if r.as_weight and isinstance(self._use(r).op, Lookup)]
        products = [r for r in roles if r.as_weight and isinstance(self._use(r).op, Linear)]
        whole = all((r.piece.offset, r.piece.count) == (0, size) for r in roles)
        if not (lookups and products and whole) or len(lookups) + len(products) < len(roles):
            return None
        shapes = {(op.columns, op.rows, not op.transposed) for op in map(self._op, lookups)}
        shapes |= {(op.rows, op.columns, op.transposed) for op in map(self._op, products)}
        if len(shapes) > 1:
            return None
        for first in (0, 1):
            for second in (0, 1):
                fits = all(self._fits(self._use(r).input, first) for r in lookups)
                if not fits or not all(self._fits(self._use(r).input, second) for r in products):
                    continue
                (layer,) = self._split(name, lookups, first)
                (head,) = self._split(name, products, second)
                tied = replace(layer, head=head, kind=f"{layer.kind} and {head.kind}")
                if self._against_gradients(name, (tied,)) is None:
                    head = replace(head, positions=self._positions(head))
                    return replace(tied, positions=self._positions(layer), head=head)
        return None

    def _op(self, r: _Role) -> MatrixOperation:
        return cast(MatrixOperation, self._use(r).op)

    def _no_axis(self, name: str) -> str:
        shapes = sorted({tuple(self._use(r).input.shape) for r in self.roles[name]})
        listed = ", ".join(map(str, shapes))
        return f"{self._label(name)} acts on inputs of shape {listed}, without an axis of examples"

    def _candidates(self, name: str, axis: int) -> tuple[Layer, ...]:
        """The layers of a weight if examples lie on `axis`; empty where they cannot."""
        roles = self.roles[name]
        if not all(self._fits(self._use(r).input, axis) for r in roles):
            return ()
        return tuple(self._split(name, roles, axis))

    def _fits(self, x: Tensor, axis: int) -> bool:
        if axis == 0:
            return x.ndim > 0 and x.shape[0] % self.batch == 0 and x.shape[0] > 0
        return x.ndim > 2 and x.shape[1] == self.batch

    def _split(self, name: str, roles: Sequence[_Role], axis: int) -> Iterator[Layer]:
        """One layer for each matrix in each piece of the weight."""
        path, _, local = name.rpartition(".")
        base = path if local == "weight" else name
        starts = sorted({r.piece.offset for r in roles})
        for start in starts:
            here = [r for r in roles if r.piece.offset == start]
            op = self._op(here[0])
            for group in range(op.groups):
                several = len(starts) * op.groups > 1
                part = f"[{starts.index(start) * op.groups + group}]" if several else ""
                yield Layer(
                    name=base + part,
                    part=part,
                    weight=name,
                    bias=None,
                    out_features=op.rows,
                    in_features=op.columns,
                    offset=start + group * op.rows * op.columns,
                    bias_offset=0,
                    transposed=op.transposed,
                    kind=self._use(here[0]).kind,
                    uses=tuple(r.call for r in here),
                    group=group,
                    axis=axis,
                    positions=0,
                    lookup=isinstance(op, Lookup),
                )

    def _against_gradients(self, name: str, layers: tuple[Layer, ...]) -> str | None:
        """Why the layers' rows are not the examples' gradients, or None. One example at a time,
        which stays in the cache."""
        terms = [self.capture.term(layer, [self.grads], self.batch) for layer in layers]
        agree = True
        for k in range(self.batch):
            wanted = self._own(name, slice(k, k + 1))
            found, size = torch.zeros_like(wanted), wanted.new_zeros(1)
            for layer, term in zip(layers, terms, strict=True):
                one = term[k : k + 1]
                layer.add_rows(found, one.dense()[:, 0])
                size += one.norms()
            if not (all_finite(found) and all_finite(wanted)):
                return None  # as in `_all_agree`
            agree = agree and _agree(found, wanted, size)
        if agree:
            return None
        return f"the gradient of {self._label(name)} is not that of its own calls alone"

    def _own(self, name: str, some: slice = slice(None)) -> Tensor:
        """Each probed example's gradient by autograd, [B, size]."""
        like = self.problem.theta[name]
        found = [gradients[name] for gradients in self.probe.gradients[some]]
        rows = [torch.zeros_like(like) if g is None else g for g in found]
        return torch.stack([row.flatten() for row in rows])

    def _with_bias(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """The same layers with T, and with their bias where it belongs to each of them alone."""
        sized = [replace(layer, positions=self._positions(layer)) for layer in layers]
        pieces = [self._bias_piece(layer) for layer in sized]
        name = pieces[0].name if pieces[0] is not None else None
        if name is None or any(p is None or p.name != name for p in pieces):
            return tuple(sized)
        calls = {k for layer in sized for k in layer.uses}
        if any(r.as_weight or r.call not in calls for r in self.roles[name]):
            return tuple(sized)
        with_bias = [
            replace(layer, bias=name, bias_offset=piece.offset + layer.group * layer.out_features)
            for layer, piece in zip(sized, pieces, strict=True)
            if piece is not None
        ]
        return tuple(with_bias) if self._biases_agree(name, with_bias) else tuple(sized)

    def _positions(self, layer: Layer) -> int:
        if not layer.lookup:
            return self._term_positions(layer)
        ids = sum(self.probe.uses[k].input.numel() for k in layer.uses)
        return ids // self.batch

    def _term_positions(self, layer: Layer) -> int:
        """T; `Layer.positions` = 0 keeps the term in its shared form until T is known."""
        return self.capture.term(layer, [self.grads], self.batch).s.shape[2]

    def _bias_piece(self, layer: Layer) -> Piece | None:
        """The bias that every call of the layer adds, or None."""
        pieces = {self.probe.uses[k].bias for k in layer.uses}
        op = cast(MatrixOperation, self.probe.uses[layer.uses[0]].op)
        (piece,) = pieces if len(pieces) == 1 else (None,)
        return piece if op.bias_like_rows else None

    def _biases_agree(self, name: str, layers: Sequence[Layer]) -> bool:
        wanted = self._own(name)
        found = torch.zeros_like(wanted)
        filled = torch.zeros(wanted.shape[1], dtype=torch.bool)
        sizes = wanted.new_zeros(len(wanted))
        for layer in layers:
            place = slice(layer.bias_offset, layer.bias_offset + layer.out_features)
            term = self.capture.term(layer, [self.grads], self.batch)
            found[:, place] = term.summed()[:, 0]
            sizes += bias_alone(term).norms()
            filled[place] = True
        return _all_agree(found, wanted, sizes) and bool(filled.all())

    def _remaining(self, name: str) -> None:
        """A small parameter, or one without a rule."""
        roles, where = self.roles[name], self._label(name)
        small = [not r.as_weight or not self._is_product(r) for r in roles]
        if not roles or not all(small):
            self.others[name] = f"{where} has no rule"
            return
        uses = tuple((r.call, r.as_weight) for r in roles)
        for axis in (0, 1):
            if not all(self._fits(self._use(r).input, axis) for r in roles):
                continue
            part = Small(name, self.problem.theta[name].numel(), uses, axis)
            if self._is_right(part):
                what = "an elementwise scale" if any(r.as_weight for r in roles) else "a bias alone"
                self.others[name] = f"{where}: {what}, not a matrix"
                self.small.append(self._sized(part))
                return
        self.others[name] = f"the gradient of {where} is not that of its own calls alone"


def _all_agree(found: Tensor, wanted: Tensor, sizes: Tensor) -> bool:
    """Equal to rounding example by example, relative to the gradient or to the sizes of what was
    summed (which may cancel, as for the bias of attention's keys): there is no scale below which
    any is."""
    if not (all_finite(found) and all_finite(wanted)):
        return True  # not for this check to name: the pass over the data names the example
    return _agree(found, wanted, sizes)


def _agree(found: Tensor, wanted: Tensor, sizes: Tensor) -> bool:
    size = torch.maximum(torch.maximum(found.norm(dim=1), wanted.norm(dim=1)), sizes)
    gap = (found - wanted).norm(dim=1)
    return bool((gap <= 1e3 * torch.finfo(found.dtype).eps * size).all())
