"""Autograd's derivative of a model against differences of what the model returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.jacobian.probe import Probe
from curvfluence.jacobian.tracing import padding_of
from curvfluence.problem.problem import Problem
from curvfluence.problem.tree import Batched, each
from curvfluence.runtime import device as machine
from curvfluence.runtime.autograd import pulled_back
from curvfluence.runtime.calls import Lowest

Values = Mapping[str, Tensor]
# How far from θ and the step, relative to each weight's size, and the tolerance, relative to the
# derivative's: where the model's arithmetic is float64, and elsewhere.
FINE, COARSE = (1e-2, 1e-6, 1e-5), (3e-2, 1e-3, 5e-2)


def require_derivative(problem: Problem, probe: Probe, count: int) -> None:
    """Refuse a model whose outputs do not change with its weights as autograd says.

    Such as an embedding with `scale_grad_by_freq`, a straight-through estimator, a function that
    scales its gradient, or a use of a weight that is detached: scores would be of something that
    no weight's change does. Weights without any gradient (run under `no_grad`) and the row of an
    embedding's `padding_idx` are taken as constants.

    ⟨∇φ, d⟩ against (φ(θ + hd) − φ(θ)) / h and then (φ(θ + hd) − φ(θ − hd)) / 2h for φ a combination
    of the outputs of the probe's first `count` examples, along two directions d, each from a point
    of its own near θ (so that a unit that stands at its kink, as at ReLU(0), is no fault) and with
    two steps h, in float64 where the model's arithmetic is then float64 throughout. A fault is what
    both directions show, and every difference. Cost: 3 passes over these where there is no fault.
    Errors: `InputError` naming the parameters and their modules.
    """
    names = [n for n in problem.parameters.names if any(g[n] is not None for g in probe.gradients)]
    if not names:
        return
    few = replace(probe, inputs=probe.inputs[:count], weights=probe.weights[:count])
    for tried in _Differences.of(problem, few, names):
        try:
            apart = all(tried.apart(names, seed) for seed in (0, 1))
        except _Rough:
            continue
        if apart:
            raise InputError(tried.said())
        return


class _Rough(Exception):
    """The model does not compute in float64 throughout."""


@dataclass(frozen=True, eq=False)
class _Differences:
    """φ(θ) = Σ weights ∘ outputs of the probe, in the finest arithmetic the model runs in."""

    problem: Problem
    names: Sequence[str]
    values: Values  # θ and what else the model holds
    inputs: Batched
    weights: Tensor
    held: Mapping[str, Tensor]  # places in tensors that are constants: rows at a `padding_idx`
    offset: float
    step: float
    tolerance: float

    @staticmethod
    def of(problem: Problem, probe: Probe, names: Sequence[str]) -> Iterator[_Differences]:
        """In float64, where there is memory for it, and as the problem is."""
        values = {**problem.state, **problem.theta}
        held = padding_of(probe.uses)
        given = _Differences(problem, names, values, probe.inputs, probe.weights, held, *COARSE)
        doubles = 4 * 8 * problem.parameters.count  # a point near θ, a direction, θ + hd, and θ
        if problem.dtype == torch.float64 or doubles <= machine.memory(problem.device) // 16:
            yield replace(
                given,
                values={n: v if n in names else _double(v) for n, v in values.items()},
                inputs=each(probe.inputs, _double),
                weights=_double(probe.weights),
                **dict(zip(("offset", "step", "tolerance"), FINE, strict=True)),
            )
        yield given

    @property
    def fine(self) -> bool:
        return self.step == FINE[1]

    def phi(self, theta: Values) -> Tensor:
        problem, values = self.problem, {**self.values, **theta}
        output = problem.loss.rows(problem.run(values, self.inputs.clone()), len(self.inputs))
        return (output * self.weights).sum()

    def apart(self, names: Sequence[str], seed: int) -> bool:
        """Whether no difference, along a direction in `names`, is autograd's."""
        return all(
            abs(found - wanted) > self.tolerance * size
            for found, wanted, size in self._slopes(names, seed)
        )

    def _slopes(self, names: Sequence[str], seed: int) -> Iterator[tuple[float, float, float]]:
        """(difference, autograd's derivative, the size that they are compared by): to one side, and
        to both at two steps."""
        generator = torch.Generator().manual_seed(seed)
        drawn = {n: self._drawn(n, generator) for n in self.names}
        base = {n: self._ahead(self.values[n], self.offset, drawn[n]) for n in self.names}
        leaves = {n: base[n].detach().requires_grad_(True) for n in names}
        total = self._total({**base, **leaves})
        with self.problem.structure.holding(self.values, base, leaves):
            one = torch.ones_like(total)
            found = pulled_back(total, list(leaves.values()), one, retain_graph=False)
        grads = dict(zip(names, found, strict=True))
        here, rounding = float(total.detach()), torch.finfo(total.dtype).eps / self.step
        del leaves, total, found
        along, wanted, squares = dict[str, Tensor](), 0.0, 0.0
        for name in names:  # of a large model no number is held longer than it is needed
            along[name], g = self._moved(name, drawn.pop(name), grads[name]), grads.pop(name)
            if g is not None:
                slopes = g.double() * along[name]  # g may be another's memory too, or expanded
                wanted += float(slopes.sum())
                squares += float(slopes.square_().sum())
        del drawn

        def phi_at(t: float) -> float:
            with torch.no_grad():
                moved = {n: self._ahead(base[n], t, along[n]) for n in names}
                return float(self.phi({**base, **moved}))

        up = phi_at(self.step)
        for difference in (
            lambda: (up - here) / self.step,
            lambda: (up - phi_at(-self.step)) / (2 * self.step),
            lambda: (phi_at(self.step / 4) - phi_at(-self.step / 4)) / (self.step / 2),
        ):
            value = difference()
            size = max(squares**0.5, abs(wanted), abs(value))
            yield value, wanted, size + 1e3 * rounding * abs(here)

    def _ahead(self, start: Tensor, t: float, along: Tensor) -> Tensor:
        """start + t along, in float64 where that is what is differed in: a direction is held in the
        dtype of the weights."""
        dtype = torch.float64 if self.fine else start.dtype
        return along.to(dtype, copy=True).mul_(t).add_(start)

    def _moved(self, name: str, drawn: Tensor, g: Tensor | None) -> Tensor:
        """Along which a tensor is moved: a direction of its own, and what has no gradient, as rows
        at a `padding_idx`, is a constant."""
        moved = drawn.flatten().flip(0).view_as(drawn)
        if g is None:
            return moved.zero_()
        moved *= g != 0
        if name in self.held:
            moved.view(-1).index_fill_(0, self.held[name].to(moved.device), 0.0)
        return moved

    def _total(self, theta: Values) -> Tensor:
        """φ with a graph. Errors: `_Rough` where float64 was asked for and is not what runs."""
        lowest = Lowest()
        try:
            with torch.enable_grad(), lowest:
                total = self.phi(theta)
        except Exception:  # a model that runs in its own dtype only
            if self.fine:
                raise _Rough from None
            raise
        if self.fine and lowest.dtype not in (None, torch.float64):
            raise _Rough
        return total

    def _drawn(self, name: str, generator: torch.Generator) -> Tensor:
        """A direction in one tensor, as large as its entries are."""
        value = self.values[name]
        drawn = torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value)
        return drawn * value.square().mean().sqrt().clamp_min(1e-3)

    def said(self) -> str:
        """What does not agree: the parameters whose own derivative is another."""
        modules = dict(self.problem.structure.modules.named_modules())
        said: list[str] = []
        for name in self.names:
            if not all(self.apart([name], seed) for seed in (0, 1)):
                continue
            *_, (found, wanted, _) = self._slopes([name], 0)
            kind = type(modules[name.rpartition(".")[0]]).__name__
            said.append(f"{name} ({kind}): {wanted:.6g} by autograd, {found:.6g} by differences")
        said = said or ["along all weights together"]
        listed = "; ".join(said[:3]) + (f"; and {len(said) - 3} more" if len(said) > 3 else "")
        return (
            "the model's outputs do not change with its weights as autograd says, so its gradients "
            f"are of another function: {listed}. Take out what replaces, scales or detaches a "
            "gradient there or behind it (scale_grad_by_freq, straight-through estimators, custom "
            "autograd functions, .detach())"
        )


def _double(x: Tensor) -> Tensor:
    return x.to(torch.float64) if x.is_floating_point() else x
