"""Passes over examples that make their rows Jᵀs.

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
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvfluence.jacobian.agreement import Trace, drawn, require_alike, require_sum
from curvfluence.jacobian.cache import Kept
from curvfluence.jacobian.layers import Layout, capture
from curvfluence.jacobian.rows import Rows, concatenate
from curvfluence.problem.data import Examples, require_finite
from curvfluence.problem.losses import Loss
from curvfluence.problem.problem import Problem
from curvfluence.runtime import device as machine

Columns: TypeAlias = Callable[[Loss, Tensor, Tensor], Tensor]  # (loss, output, target)

CHUNK = 4096  # examples a pass
UNPROVED = 512  # in a sum of rows that is compared: one that is wrong shows above rounding
DENSE_ROWS = 2**27  # numbers in a pass's dense rows
_VMAPPED: WeakKeyDictionary[Problem, dict[tuple[str, ...], bool]] = WeakKeyDictionary()
_KEPT: WeakKeyDictionary[Problem, tuple[Layout, Kept[Rows]]] = WeakKeyDictionary()
NUMBERS = 3 * 2**22  # in a pass's layer inputs and output gradients: not far from the caches
DEVICE_NUMBERS = 2**27  # the same on a CUDA device: enough to fill it
FEW = 32  # examples


def rows_in_chunks(
    problem: Problem,
    layout: Layout,
    examples: Examples,
    columns: Columns,
    *,
    what: str,
    width: int | None = None,
    chunk: int = CHUNK,
    first: int = 0,
) -> Iterator[tuple[int, Rows]]:
    """(start, rows) of successive chunks of examples, in order; `width` is C where it is not that
    of S, `first` the number of the first example. Memory: the activations, a and s of
    `pass_examples` examples.

    One example of chunks 0, 1, 2, 4, 8, … is also run alone, and must have the same row. Where the
    graph of the probe did not prove that the watched calls are all, the rows of each chunk are also
    added up and must agree with an ordinary backward pass.

    Errors: `NonFiniteError` names the first example whose output or row is not finite, `InputError`
    what these checks find.
    """
    each = problem.loss.columns(problem.n_outputs) if width is None else width
    size = sum(problem.theta[name].numel() for name in layout.others)
    chunk = min(chunk, DENSE_ROWS // max(1, size * each))
    chunk = min(chunk, pass_examples(problem.device, layout.elements(each)))
    chunk = max(1, chunk if layout.proved else min(chunk, UNPROVED))
    for number, (place, part) in enumerate(examples.chunks(chunk)):
        start = first + place
        made = _made(problem, layout, part, columns, start, what)
        if not layout.proved:
            exact = made  # autocast's rounding would hide a use
            if problem.exact is not problem:
                exact = _made(problem.exact, layout, part, made.again(), start, what)
            assert exact.summed is not None
            require_sum(exact.rows, exact.summed, what)
        if len(part) > 1 and number & (number - 1) == 0:
            at = (7919 * number + len(part) // 3) % len(part)
            one, versions = slice(at, at + 1), made.rows.versions
            x_1p = drawn(made.rows, start + at)
            together = Trace.of(made.rows[one], made.output[one], x_1p)
            single = _made(problem, layout, part[one], made.again(one), start + at, what)
            alone = Trace.of(single.rows, single.output, x_1p)
            require_alike(together, alone, problem.autocast, start + at, what)
            if made.rows.versions != versions:  # the model keeps its activations in its own memory
                made = _made(problem, layout, part, made.again(), start, what)
        yield start, made.rows


def pass_examples(device: torch.device, numbers: int) -> int:
    """How many examples of so many numbers in a and s a pass takes at a time: `NUMBERS` of those,
    up to twice as many where that is less than 32 examples (products of fewer rows are slow); on a
    CUDA device `DEVICE_NUMBERS`, at most a 256th of its memory in float32."""
    room = NUMBERS
    if device.type == "cuda":
        room = max(NUMBERS, min(DEVICE_NUMBERS, machine.memory(device) // 2**10))
    count = room // max(1, numbers)
    return max(1, count, min(FEW, 2 * room // max(1, numbers)))


@dataclass(frozen=True, eq=False)
class _Made:
    """Rows, the outputs and columns that they were made of, and what an ordinary backward pass
    gives for the sum of their first columns, where that is to be compared."""

    rows: Rows
    output: Tensor
    columns_bkc: Tensor
    summed: Tensor | None

    def again(self, part: slice = slice(None)) -> Columns:
        """The same columns, of some of the examples."""

        def columns(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
            return self.columns_bkc[part]

        return columns


def _made(
    problem: Problem, layout: Layout, part: Examples, columns: Columns, start: int, what: str
) -> _Made:
    x, y = part.inputs, part.targets
    seen = capture(problem, layout, x, y)
    output = seen.output.detach()
    require_finite(output, f"model output for {what}", start)
    columns_bkc = columns(problem.loss_of(part), output, y)
    require_finite(columns_bkc, f"output gradient of {what}", start)
    terms, small, total = seen.pullback(
        columns_bkc, summed=not layout.proved and problem.exact is problem
    )
    dense = _rest_rows(problem, layout, x, columns_bkc, small)
    for rows in (*(term.s for term in terms), dense):
        require_finite(rows, f"gradient of {what}", start)
    rest = tuple(layout.others)
    rows = Rows(problem.parameters, layout.layers, terms, rest, dense, part.weights)
    found = None if total is None else problem.parameters.flatten(total)
    return _Made(rows, output, columns_bkc, found)


def _rest_rows(
    problem: Problem,
    layout: Layout,
    inputs: Tensor,
    columns_bkc: Tensor,
    small: dict[str, Tensor],
) -> Tensor:
    """Jᵀs of parameters of no layer, [B, C, R]: those of `small` are there already."""
    b, _, c = columns_bkc.shape
    unseen = tuple(name for name in layout.others if name not in small)
    found = dict(small)
    if unseen:
        widths = [problem.theta[name].numel() for name in unseen]
        rows = _dense_rows(problem, unseen, inputs, columns_bkc)
        found.update(zip(unseen, rows.split(widths, dim=2), strict=True))
    parts = [found[name] for name in layout.others]
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
    parts: list[Tensor] = []
    with sdpa_kernel(SDPBackend.MATH):  # vmap takes the fused kernels one example at a time
        for k in range(0, b, step):
            parts.append(vmap(one)(inputs[k : k + step], columns_bkc[k : k + step]))
    return torch.cat(parts).detach()


def gradient_rows(
    problem: Problem, layout: Layout, *, again: bool = False, factored: bool = False
) -> Iterator[tuple[int, Rows]]:
    """(start, g_n = ∇ℓ_n of a chunk of training examples), times v_n where they are weighted; with
    `factored` as a and s, for which others that are kept are dropped.

    With `again` (they will be asked for once more), and from the second time on, those of the first
    examples are kept, `Problem.remember` bytes of them, and read from then on. Fresh memory costs
    a third of a pass, which one that stays alone does not pay.
    """
    kept = _kept(problem, layout)
    if kept is None:
        kept = Kept[Rows](problem.remember)
        _KEPT[problem] = layout, kept
    if factored and not all(rows.factored for rows, _ in kept.chunks):
        kept.clear(problem.remember)
    keeping, kept.asked = again or kept.asked, True
    first = 0
    for start, rows in kept:
        yield start, rows
        first = start + len(rows)
    if first < len(problem.train):
        for start, rows in _computed(problem, layout, first):
            if keeping:
                kept.offer(start, rows)
            yield start, rows


def gradient_batches(problem: Problem, layout: Layout) -> Iterator[tuple[int, tuple[Rows, ...]]]:
    """`gradient_rows` with the chunks that are kept several at a time, up to 4,096 examples: what
    is scored against them is read from memory once for all of these."""
    kept = sum(len(rows) for rows in kept_gradients(problem, layout))
    several: list[Rows] = []
    first = count = 0
    for start, rows in gradient_rows(problem, layout):
        if several and count + len(rows) > CHUNK:
            yield first, tuple(several)
            several, first, count = [], start, 0
        several.append(rows)
        count += len(rows)
        if first + count >= kept:
            yield first, tuple(several)
            several, first, count = [], first + count, 0


def kept_gradients(problem: Problem, layout: Layout) -> tuple[Rows, ...]:
    """What `gradient_rows` will read and not compute."""
    kept = _kept(problem, layout)
    return () if kept is None else tuple(rows for _, rows in kept)


def keeps_gradients(problem: Problem, layout: Layout, rows: Rows) -> bool:
    """Whether these rows of `gradient_rows` are kept."""
    kept = _kept(problem, layout)
    return kept is not None and kept.holds(rows)


def swap_gradients(problem: Problem, layout: Layout, old: Rows, new: Rows) -> None:
    """Keep the same gradients in another form, where they are kept and there is room."""
    kept = _kept(problem, layout)
    if kept is not None:
        kept.swap(old, new)


def _kept(problem: Problem, layout: Layout) -> Kept[Rows] | None:
    """What is kept for a problem, if it was made under this coverage."""
    known = _KEPT.get(problem)
    return None if known is None or known[0] is not layout else known[1]


def _computed(problem: Problem, layout: Layout, first: int) -> Iterator[tuple[int, Rows]]:
    def columns(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
        return loss.gradient(output, target)[:, :, None]

    part = problem.train[first:]
    return rows_in_chunks(problem, layout, part, columns, what="training set", width=1, first=first)


def training_gradients(problem: Problem, layout: Layout) -> Rows:
    """g_n = ∇ℓ_n of every training example (v_n ∇ℓ_n), held all at once."""
    return concatenate([rows for _, rows in gradient_rows(problem, layout)])


def query_gradients(problem: Problem, layout: Layout) -> Rows:
    """g_q = ∇m_q of every query, factored."""

    def columns(_: Loss, output: Tensor, target: Tensor) -> Tensor:
        return problem.measurement.gradient(output, target)[:, :, None]

    found = rows_in_chunks(problem, layout, problem.queries, columns, what="queries", width=1)
    return concatenate([rows for _, rows in found])
