"""A user's loss and measurement, tried on a few outputs: each example's own, and not random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.problem.losses import MSE, BinaryCrossEntropy, CrossEntropy, Loss
from curvfluence.problem.measurement import LogProbability, LossMeasurement, Margin, Measurement
from curvfluence.problem.tree import Batched, each, joined
from curvfluence.runtime import generators
from curvfluence.runtime.autograd import pulled_back, reached
from curvfluence.runtime.calls import Lowest
from curvfluence.runtime.finite import all_finite

ROWS = 8  # outputs that are looked at
PROVED = (CrossEntropy, MSE, BinaryCrossEntropy, Margin, LogProbability)  # by tests, once for all
TOLERANCE = 1e4  # times eps, of the largest of its kind

Parts: TypeAlias = "Mapping[str, Tensor]"
Of: TypeAlias = "Callable[[Tensor, Batched], Parts]"
Function: TypeAlias = "Callable[[Tensor, Batched], Tensor]"


def require_own_loss(loss: Loss, output: Tensor, target: Batched) -> None:
    """Refuse a loss whose value, gradient or curvature for an example depends on the others, or is
    another each time, or is not what autograd makes of its values.

    A few outputs [B, K], each with its own target and with another's (where a model fits, losses
    are near 0, and so would be what they lend to each other). Cost: some ten calls and derivatives
    of the loss. Errors: `InputError` with both numbers.
    """
    single, f_rk, y_r = loss.of_rows(output, target)
    if type(single) in PROVED:
        return
    x_k = torch.linspace(-1, 1, f_rk.shape[1]).to(f_rk)

    def parts(f: Tensor, y: Batched) -> Parts:
        found = {"value": single.values(f, y), "gradient": single.gradient(f, y)}
        try:
            return {**found, "curvature": single.hessian_product(f, y, x_k.expand(len(f), -1))}
        except (InputError, RuntimeError, NotImplementedError):  # there is no second derivative
            return found

    f, y = _tried(parts, f_rk, y_r)
    together = parts(f, y)
    _require_separate("the loss", parts, together, f, y)
    _require_autograd(single, together, f, y, x_k)
    _require_slope("the loss", single.values, single.gradient, f, y)


def require_own_measurement(measurement: Measurement, output: Tensor, target: Batched) -> None:
    """The same of a measurement: its value and gradient."""
    if isinstance(measurement, LossMeasurement):
        return require_own_loss(measurement.loss, output, target)
    if type(measurement) in PROVED:
        return None

    def parts(f: Tensor, y: Batched) -> Parts:
        return {"value": measurement.values(f, y), "gradient": measurement.gradient(f, y)}

    f, y = _tried(parts, output, target)
    name = f"measurement {measurement.name!r}"
    _require_separate(name, parts, parts(f, y), f, y)
    leaf = f.detach().requires_grad_(True)
    with torch.enable_grad():
        _require_outputs_alone(name, measurement.values(leaf, y), leaf)
    _require_slope(name, measurement.values, measurement.gradient, f, y)


def _tried(parts: Of, output: Tensor, target: Batched) -> tuple[Tensor, Batched]:
    """Outputs with their own targets, then with the next one's where those give finite values."""
    f, y = output.detach()[:ROWS], target[:ROWS]
    if len(f) < 2:
        return f, y
    both = torch.cat([f, f]), joined([y, each(y, lambda leaf: leaf.roll(1, 0))])
    try:
        with generators.preserved():
            finite = all(map(all_finite, parts(*both).values()))
    except Exception:
        finite = False
    return both if finite else (f, y)


def _require_separate(what: str, parts: Of, together: Parts, f: Tensor, y: Batched) -> None:
    with generators.preserved():
        again = parts(f, y)
        several = [parts(f[part], y[part]) for part in _parts(len(f))]
        turned = parts(f.flip(0), each(y, lambda leaf: leaf.flip(0)))
    alone = {name: torch.cat([each[name] for each in several]) for name in together}
    ordered = {name: part.flip(0) for name, part in turned.items()}
    _require_alike(
        together,
        again,
        f"{what} is another each time that it is called",
        "an influence is of a fixed one: take out what is random (dropout, noise) or has a state",
    )
    _require_alike(
        together,
        alone,
        f"{what} of an example depends on the others in its batch",
        "influence needs one of each example alone: take out what is reduced over the batch (a "
        "mean, a division by the batch's length, in-batch negatives, shapes that broadcast), or "
        "make examples of what belongs together",
    )
    _require_alike(
        together,
        ordered,
        f"{what} of an example depends on the order of its batch",
        "influence needs one of each example alone",
    )


def _parts(n: int) -> Iterator[slice]:
    """One example alone, and the others in two parts: every example is in other company."""
    ends = sorted({0, 1, (n + 1) // 2, n})
    return (slice(start, end) for start, end in pairwise(ends))


def _require_alike(wanted: Parts, found: Parts, what: str, advice: str) -> None:
    for name, a in wanted.items():
        b = found[name]
        n = _differing(a, b)
        if n is not None:
            raise InputError(
                f"{what}: the {name} of example {n} of {len(a)} was {_said(a[n])}, then "
                f"{_said(b[n])}. {advice[0].upper()}{advice[1:]}"
            )


def _require_outputs_alone(what: str, values: Tensor, leaf: Tensor) -> None:
    """Refuse a function that has a gradient in anything but the outputs."""
    for other in reached(values):
        if other is not leaf:
            raise InputError(
                f"{what} depends on another tensor that requires a gradient, of shape "
                f"{tuple(other.shape)}, and not through the model's outputs alone: a penalty on "
                "weights belongs into weight_decay, what the loss learns into the model; detach "
                "what is a constant"
            )


def _require_autograd(loss: Loss, together: Parts, f: Tensor, y: Batched, x_k: Tensor) -> None:
    """What the loss says of its derivatives is what autograd makes of its values."""
    leaf = f.detach().requires_grad_(True)
    with torch.enable_grad():
        values = loss.values(leaf, y)
        if not values.requires_grad:
            return
        _require_outputs_alone("the loss", values, leaf)
        (first,) = pulled_back(values, [leaf], torch.ones_like(values), create_graph=True)
        second = None
        if first is not None and first.requires_grad and "curvature" in together:
            (second,) = pulled_back(first, [leaf], x_k.expand(len(f), -1))
    by_autograd = {"gradient": first, "curvature": second}
    wanted = {
        name: torch.zeros_like(f) if part is None else part.detach()
        for name, part in by_autograd.items()
    }
    said = {name: together[name] for name in wanted if name in together}
    kind = type(loss).__name__
    _require_alike(
        said,
        wanted,
        f"{kind} states another derivative than autograd finds of its values",
        "gradient and hessian_product must be those of values",
    )


def _require_slope(what: str, values: Function, gradient: Function, f: Tensor, y: Batched) -> None:
    """⟨∂v/∂f, d⟩ is (v(f + hd) − v(f − hd)) / 2h, from one of two points and with one of two h."""
    double = f.double(), each(y, _double)
    lowest = Lowest()
    try:
        with lowest:
            fine = values(*double).dtype == torch.float64
    except Exception:  # of a function with constants in the outputs' dtype
        fine = False
    fine = fine and lowest.dtype in (None, torch.float64)
    f, y = double if fine else (f, y)
    step, tolerance = (1e-6, 1e-6) if fine else (1e-3, 2e-2)
    wrong, said = torch.ones(len(f), dtype=torch.bool, device=f.device), ("", "")
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        offset, d = (torch.randn(f.shape, generator=generator).to(f) for _ in range(2))
        at = f + 100 * step * offset
        slope_n = (gradient(at, y) * d).sum(-1)
        for h in (step, step / 4):
            found_n = (values(at + h * d, y) - values(at - h * d, y)) / (2 * h)
            size = torch.maximum(slope_n.abs().max(), found_n.abs().max())
            floor = 1e3 * torch.finfo(f.dtype).eps * values(at, y).abs().max() / h
            apart = (found_n - slope_n).abs() > tolerance * size + floor
            wrong &= apart
            if bool(wrong.any()):
                n = int(wrong.nonzero()[0])
                said = _said(slope_n[n]), _said(found_n[n])
    if bool(wrong.any()):
        raise InputError(
            f"{what} does not change with the outputs as autograd says: along a direction, example "
            f"{int(wrong.nonzero()[0])} of {len(f)} by {said[0]}, and by differences {said[1]}. "
            "Take out what replaces, scales or detaches a gradient (.detach() of a weight that "
            "depends on the outputs, a rounding, a custom autograd function)"
        )


def _double(leaf: Tensor) -> Tensor:
    return leaf.double() if leaf.is_floating_point() else leaf


def _differing(a: Tensor, b: Tensor) -> int | None:
    """The first example whose rows differ by more than rounding, or None."""
    size = torch.maximum(a.abs(), b.abs()).nan_to_num()
    tolerance = (
        TOLERANCE * torch.finfo(a.dtype).eps * size.max().clamp_min(torch.finfo(a.dtype).tiny)
    )
    apart = ((a - b).abs() > tolerance) | (a.isfinite() != b.isfinite())
    bad = apart.reshape(len(a), -1).any(1).nonzero()
    return int(bad[0]) if len(bad) else None


def _said(row: Tensor) -> str:
    worst = row.flatten()[row.abs().argmax()] if row.ndim else row
    return f"{float(worst):.6g}"
