"""Per-example rows Jᵀs: outer products where a layer allows, dense elsewhere.

A gradient is the row whose column is ∂ℓ/∂f; the factor Z of the GGN has the rows of S.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.func import vjp, vmap  # pyright: ignore[reportPrivateImportUsage]

from curvfluence.data import Examples, require_finite
from curvfluence.errors import InputError
from curvfluence.kept import Kept
from curvfluence.layers import Coverage, Layer, capture
from curvfluence.losses import Loss
from curvfluence.parameters import Parameters
from curvfluence.problem import Problem
from curvfluence.terms import Term, joined

Columns: TypeAlias = Callable[[Loss, Tensor, Tensor], Tensor]  # (loss, output, target)

CHUNK = 4096  # examples a pass
DENSE_ROWS = 2**27  # numbers in a pass's dense rows
_VMAPPED: WeakKeyDictionary[Problem, dict[tuple[str, ...], bool]] = WeakKeyDictionary()
_AGREED: WeakKeyDictionary[Problem, Coverage] = WeakKeyDictionary()
_KEPT: WeakKeyDictionary[Problem, tuple[Coverage, Kept[Rows]]] = WeakKeyDictionary()
NUMBERS = 2**24  # numbers in a pass's layer inputs and output gradients: they stay near the caches


@dataclass(frozen=True, eq=False)
class Rows:
    """C rows for each of N examples.

    `terms` holds those of each layer, whose weights and biases stand side by side in no dense
    form. Parameters of no layer: dense [N, C, R], in the order of `rest`. `weights` [N] are the
    examples', which the rows hold already and only K-FAC's A needs to know; None is 1 each.
    """

    parameters: Parameters
    layers: tuple[Layer, ...]
    terms: tuple[Term, ...]
    rest: tuple[str, ...]
    dense: Tensor
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.dense)

    def __getitem__(self, index: slice | Tensor) -> Rows:
        terms = tuple(term[index] for term in self.terms)
        weights = None if self.weights is None else self.weights[index]
        return Rows(self.parameters, self.layers, terms, self.rest, self.dense[index], weights)

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

    def pulled(self, y_qnc: Tensor) -> Tensor:
        """Σ_n Σ_c y_qnc row_nc, [Q, P]: the adjoint of `inner`, at the same cost."""
        total = y_qnc.new_empty(len(y_qnc), self.parameters.count)
        y_qr = y_qnc.flatten(1)
        for layer, term in self._parts:
            layer.weight_of(self.parameters, total).copy_(term.pulled(y_qnc))
            if layer.bias is not None:
                b_qo = y_qr @ term.summed().flatten(0, 1)
                layer.bias_of(self.parameters, total).copy_(b_qo)
        for place, at in self.rest_slices():
            total[:, place] = y_qr @ self.dense[..., at].flatten(0, 1)
        return total

    def weighted_sum(self, weights_mn: Tensor) -> Tensor:
        """Σ_n weights_mn row_n for single-column rows, [m, P]: the gradients of groups."""
        return self.pulled(weights_mn[..., None])

    def squared_norms(self) -> Tensor:
        """‖row_nc‖², [N, C]."""
        total = self.dense.square().sum(2)
        for layer, term in self._parts:
            total += term.squared_norms()
            if layer.bias is not None:
                total += term.summed().square().sum(2)
        return total

    @property
    def nbytes(self) -> int:
        held = {t.data_ptr(): t.nbytes for term in self.terms for t in term.tensors}
        return self.dense.nbytes + sum(held.values())

    def to(self, dtype: torch.dtype) -> Rows:
        """The same rows in another dtype."""
        if self.dense.dtype == dtype:
            return self
        terms = tuple(term.to(dtype) for term in self.terms)
        dense = self.dense.to(dtype)
        return Rows(self.parameters, self.layers, terms, self.rest, dense, self.weights)

    def slices(self, numbers: int) -> Iterator[Rows]:
        """Successive examples, each part of about so many numbers."""
        held = self.nbytes // self.dense.element_size()
        step = max(1, numbers * len(self) // max(1, held))
        for start in range(0, len(self), step):
            yield self[start : start + step]

    def size(self) -> float:
        """Σ_n of bounds on ‖row_n‖ (first columns): what rounding in a sum of rows goes with."""
        layers = sum(float(term.norms().sum()) for term in self.terms)
        return layers + float(self.dense[:, 0].norm(dim=-1).sum())


def rows_in_chunks(
    problem: Problem,
    covered: Coverage,
    examples: Examples,
    columns: Columns,
    *,
    what: str,
    width: int | None = None,
    chunk: int = CHUNK,
    first: int = 0,
    summed: Tensor | None = None,
) -> Iterator[tuple[int, Rows]]:
    """(start, rows) of successive chunks of examples, in order; `width` is C where it is not that
    of S, `first` the number of the first example. Σ_n of the first columns' rows by an ordinary
    backward pass is added to `summed` [P]. Memory: a chunk's activations and 2²⁶ numbers of a and
    s.

    Errors: `NonFiniteError` names the first example whose output or row is not finite.
    """
    each = problem.loss.columns(problem.n_outputs) if width is None else width
    size = sum(problem.theta[name].numel() for name in covered.others)
    chunk = min(chunk, DENSE_ROWS // max(1, size * each))
    chunk = max(1, min(chunk, NUMBERS // max(1, covered.numbers(each))))
    for place, part in examples.chunks(chunk):
        start, x, y = first + place, part.inputs, part.targets
        seen = capture(problem, covered, x, y)
        output = seen.output.detach()
        require_finite(output, f"model output for {what}", start)
        columns_bkc = columns(problem.loss_of(part), output, y)
        require_finite(columns_bkc, f"output gradient of {what}", start)
        terms, small, total = seen.pullback(columns_bkc, summed=summed is not None)
        if summed is not None and total is not None:
            summed += problem.parameters.flatten(total)
        dense = _rest_rows(problem, covered, x, columns_bkc, small)
        for rows in (*(term.s for term in terms), dense):
            require_finite(rows, f"gradient of {what}", start)
        yield (
            start,
            Rows(
                problem.parameters,
                covered.layers,
                terms,
                tuple(covered.others),
                dense,
                part.weights,
            ),
        )


def _rest_rows(
    problem: Problem,
    covered: Coverage,
    inputs: Tensor,
    columns_bkc: Tensor,
    small: dict[str, Tensor],
) -> Tensor:
    """Jᵀs of parameters of no layer, [B, C, R]: those of `small` are there already."""
    b, _, c = columns_bkc.shape
    unseen = tuple(name for name in covered.others if name not in small)
    found = dict(small)
    if unseen:
        widths = [problem.theta[name].numel() for name in unseen]
        rows = _dense_rows(problem, unseen, inputs, columns_bkc)
        found.update(zip(unseen, rows.split(widths, dim=2), strict=True))
    parts = [found[name] for name in covered.others]
    return torch.cat(parts, dim=2) if parts else columns_bkc.new_empty(b, c, 0)


def _dense_rows(
    problem: Problem, rest: tuple[str, ...], inputs: Tensor, columns_bkc: Tensor
) -> Tensor:
    """Jᵀs for parameters without a rule, [B, C, R], by vmap over examples and columns; one example
    at a time for a model that vmap cannot take (RNNs, data-dependent control flow)."""
    b, _, c = columns_bkc.shape
    if not rest:
        return columns_bkc.new_empty(b, c, 0)
    width = sum(problem.theta[name].numel() for name in rest)
    known = _VMAPPED.setdefault(problem, {})
    if rest not in known:
        known[rest] = _vmaps(problem.exact, rest)
    rows = _vmapped_rows(problem, rest, inputs, columns_bkc) if known[rest] else None
    if rows is None:
        rows = _looped_rows(problem, rest, inputs, columns_bkc)
    assert rows.shape == (b, c, width)
    return rows


def _vmaps(problem: Problem, rest: tuple[str, ...]) -> bool:
    """Whether vmap takes the model, and rightly: tried on two examples against plain autograd."""
    inputs = problem.train.inputs[:2]
    columns = torch.ones(len(inputs), problem.n_outputs, 1).to(problem.decay)
    wanted = _looped_rows(problem, rest, inputs, columns)
    try:
        found = _vmapped_rows(problem, rest, inputs, columns)
    except Exception:
        return False
    tolerance = 1e3 * torch.finfo(wanted.dtype).eps * float(wanted.norm())
    return found.shape == wanted.shape and float((found - wanted).norm()) <= tolerance


def _looped_rows(
    problem: Problem, rest: tuple[str, ...], inputs: Tensor, columns_bkc: Tensor
) -> Tensor:
    """Jᵀs by autograd, one example and column at a time."""
    rows: list[Tensor] = []
    for k, columns_kc in enumerate(columns_bkc):
        theta = {name: problem.theta[name].detach().requires_grad_(True) for name in rest}
        with torch.enable_grad():
            output = problem.forward(inputs[k : k + 1], {**problem.theta, **theta})[0]
        for column in columns_kc.T:
            found: tuple[Tensor | None, ...] = (
                torch.autograd.grad(
                    output, list(theta.values()), column, retain_graph=True, allow_unused=True
                )
                if output.requires_grad
                else (None,) * len(theta)
            )
            flat = [
                (torch.zeros_like(value) if g is None else g).flatten()
                for g, value in zip(found, theta.values(), strict=True)
            ]
            rows.append(torch.cat(flat).detach())
    return torch.stack(rows).reshape(*columns_bkc.shape[::2], -1)


def _vmapped_rows(
    problem: Problem, rest: tuple[str, ...], inputs: Tensor, columns_bkc: Tensor
) -> Tensor:
    b, _, c = columns_bkc.shape

    def one(x: Tensor, columns_kc: Tensor) -> Tensor:
        def output(*values: Tensor) -> Tensor:
            theta = {**problem.theta, **dict(zip(rest, values, strict=True))}
            return problem.forward(x[None], theta)[0]

        pull = vjp(output, *(problem.theta[name] for name in rest))[1]
        pulled: tuple[Tensor, ...] = vmap(pull)(columns_kc.T)
        return torch.cat([value.reshape(c, -1) for value in pulled], dim=1)

    width = sum(problem.theta[name].numel() for name in rest)
    # vmapped activations and rows: keep one slice near 64 MiB of rows
    step = max(1, 2**24 // max(1, c * width))
    parts = [vmap(one)(inputs[k : k + step], columns_bkc[k : k + step]) for k in range(0, b, step)]
    return torch.cat(parts).detach()


def concatenate(parts: list[Rows]) -> Rows:
    """The rows of successive chunks as one."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    terms = tuple(joined([p.terms[k] for p in parts]) for k in range(len(first.layers)))
    dense = torch.cat([p.dense for p in parts])
    held = [p.weights for p in parts if p.weights is not None]
    weights = torch.cat(held) if held else None
    return Rows(first.parameters, first.layers, terms, first.rest, dense, weights)


def gradient_rows(
    problem: Problem, covered: Coverage, *, again: bool = False
) -> Iterator[tuple[int, Rows]]:
    """(start, g_n = ∇ℓ_n of a chunk of training examples), times v_n where they are weighted.

    With `again` (they will be asked for once more), and from the second time on, those of the first
    examples are kept, `Problem.remember` bytes of them, and read from then on. Fresh memory costs
    a third of a pass, which one that stays alone does not pay.
    """
    known = _KEPT.get(problem)
    if known is None or known[0] is not covered:
        known = _KEPT[problem] = covered, Kept[Rows](problem.remember)
    kept = known[1]
    keeping, kept.asked = again or kept.asked, True
    yield from kept
    first = kept.count
    if first < len(problem.train):
        for start, rows in _computed(problem, covered, first, None):
            if keeping:
                kept.offer(start, rows)
            yield start, rows


def _computed(
    problem: Problem, covered: Coverage, first: int, summed: Tensor | None
) -> Iterator[tuple[int, Rows]]:
    def columns(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
        return loss.gradient(output, target)[:, :, None]

    return rows_in_chunks(
        problem,
        covered,
        problem.train[first:],
        columns,
        what="training set",
        width=1,
        first=first,
        summed=summed,
    )


def training_rows(problem: Problem, covered: Coverage) -> Iterator[tuple[int, Rows]]:
    """`gradient_rows`, which are all there is.

    The probe of `coverage` sees a few examples, and a use of a weight that none of them shows would
    be left out of the rows. Where the graph does not prove that there is none, the sum of all rows
    is compared after the last chunk, once for a problem, with that of an ordinary backward pass;
    under autocast, whose rounding would hide one, in a pass without. Errors: `InputError` names the
    parameter.
    """
    if covered.proved:
        _AGREED[problem] = covered
    elif problem.exact is not problem:
        if _AGREED.get(problem.exact) is not covered:
            for _ in training_rows(problem.exact, covered):
                pass
        _AGREED[problem] = covered
    if _AGREED.get(problem) is covered:
        yield from gradient_rows(problem, covered)
        return
    total, wanted, size = torch.zeros_like(problem.decay), torch.zeros_like(problem.decay), 0.0
    for start, rows in _computed(problem, covered, 0, wanted):
        total += rows.weighted_sum(total.new_ones(1, len(rows)))[0]
        size += rows.size()
        yield start, rows
    _require_agreement(problem, total, wanted, size)
    _AGREED[problem] = covered


def training_gradients(problem: Problem, covered: Coverage) -> Rows:
    """g_n = ∇ℓ_n of every training example (v_n ∇ℓ_n), held all at once."""
    return concatenate([rows for _, rows in training_rows(problem, covered)])


def _require_agreement(problem: Problem, summed: Tensor, wanted: Tensor, size: float) -> None:
    """The sum of all rows, whose norms add up to `size`, against an ordinary backward pass."""
    # Rounding of a sum goes with the size of its terms, not with that of the sum.
    size += float(wanted.norm())
    if float((summed - wanted).norm()) <= 1e3 * torch.finfo(summed.dtype).eps * size:
        return
    slices = problem.parameters.slices
    worst = max(slices, key=lambda name: float((summed - wanted)[slices[name]].norm()))
    raise InputError(
        f"the per-example gradients of {worst} do not add up to the gradient over the training "
        "set: its weight is used in a way that depends on the data. Give it a module of its own"
    )


def query_gradients(problem: Problem, covered: Coverage) -> Rows:
    """g_q = ∇m_q of every query, factored."""

    def columns(_: Loss, output: Tensor, target: Tensor) -> Tensor:
        return problem.measurement.gradient(output, target)[:, :, None]

    found = rows_in_chunks(problem, covered, problem.queries, columns, what="queries", width=1)
    return concatenate([rows for _, rows in found])
