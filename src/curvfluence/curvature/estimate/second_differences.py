"""Autograd's second derivative of the loss against differences of its first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.estimate.double_backward import REFUSALS
from curvfluence.errors import InputError
from curvfluence.jacobian.capture import record
from curvfluence.jacobian.tracing import padding_of
from curvfluence.problem.data import Examples
from curvfluence.problem.problem import Problem
from curvfluence.runtime import attention
from curvfluence.runtime.autograd import pulled_back
from curvfluence.runtime.calls import Lowest

PROBED = 4  # examples
OFFSET, STEP, TOLERANCE = 1e-2, 1e-6, 1e-4  # of the weights' sizes, and of the derivative's


def require_second_derivative(problem: Problem) -> None:
    """Refuse a model with an operation whose double backward is wrong.

    Hv by double backward against (∇J(θ + hv) − ∇J(θ − hv)) / 2h of a few examples, from two points
    near θ (where no unit stands at its kink) and with two steps h: a fault is what shows in all.
    It sees more than symmetry does: a wrong second derivative of an activation is symmetric. Only
    in float64, so nothing is tried where the model or the loss runs in its own dtype alone.
    Cost: 6 backward passes over four examples where there is no fault. Errors: `InputError` with
    how far they are apart.
    """
    probe = _Probe.of(problem)
    if probe is None:
        return
    found: list[float] = []
    for seed in (0, 1):
        try:
            found.append(probe.gap(seed))
        except REFUSALS:  # of a model without any: whoever needs it names the module
            return
        if found[-1] <= TOLERANCE:
            return
    raise InputError(
        "the second derivatives of this model by autograd are not those of differences of its "
        f"gradient (apart by {min(found):.3g} of their size): an operation in it has a wrong "
        "double backward. Use a rung that needs first derivatives only: the GGN (as Matrix() or "
        "SampleSpace()), BlockGGN, EKFAC, KFAC or Diagonal"
    )


@dataclass(frozen=True, eq=False)
class _Probe:
    """Σ_n ℓ_n of a few examples in float64, with θ flat."""

    problem: Problem
    state: dict[str, Tensor]
    part: Examples
    theta: Tensor
    moved: Tensor  # [P], 0 where θ is a constant: rows of an embedding's padding

    @staticmethod
    def of(problem: Problem) -> _Probe | None:
        double = torch.float64
        state = {n: v.to(double) if v.is_floating_point() else v for n, v in problem.state.items()}
        part = problem.train.take(slice(0, PROBED)).to(problem.device, double)
        theta = problem.parameters.flatten(problem.theta).to(double)
        tracer, _, _ = record(problem, problem.train.take(slice(0, PROBED)).inputs.clone())
        moved = torch.ones_like(theta)
        for name, at in padding_of(tracer.uses).items():
            moved[problem.parameters.slices[name].start + at.to(moved.device)] = 0
        probe, lowest = _Probe(problem, state, part, theta, moved), Lowest()
        try:
            with torch.no_grad(), lowest:
                probe.total(probe.values(theta))
        except Exception:  # of a model or a loss that runs in its own dtype only
            return None
        return probe if lowest.dtype in (None, double) else None

    def values(self, theta: Tensor) -> Mapping[str, Tensor]:
        """What the model holds at θ."""
        return {**self.state, **self.problem.parameters.unflatten(theta)}

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        inputs, loss = self.part.inputs.clone(), self.problem.loss
        output = loss.rows(self.problem.run(values, inputs), len(inputs))
        return loss.values(output, self.part.targets).sum()

    def free(self, slope: Tensor) -> Tensor:
        """1 where a weight may be moved."""
        return self.moved * (slope.detach() != 0)

    def slope(self, theta: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(∇ at θ, and where v is given H v by a double backward), of what has a gradient: the rest
        is a constant."""
        leaf, bent = theta.detach().requires_grad_(True), None
        with torch.enable_grad():
            values = self.values(leaf)
            total = self.total(values)
        with self.problem.structure.holding(values):
            one = torch.ones_like(total)
            (found,) = pulled_back(total, [leaf], one, create_graph=v is not None)
            slope = torch.zeros_like(leaf) if found is None else found
            if v is not None and slope.requires_grad:
                bent = pulled_back(slope, [leaf], v * self.free(slope))[0]
        return slope.detach(), bent

    def gap(self, seed: int) -> float:
        """‖Hv − difference‖ of the larger of the two, the smaller of both steps."""
        generator = torch.Generator().manual_seed(seed)
        at, v = (
            torch.randn(self.theta.shape, generator=generator, dtype=torch.float64).to(self.theta)
            for _ in range(2)
        )
        size = self.theta.square().mean().sqrt().clamp_min(1e-3)
        base, v = self.theta + OFFSET * size * at, v * size
        with attention.plain():
            slope, found = self.slope(base, v)
            free = self.free(slope)
            v = v * free
            product = torch.zeros_like(slope) if found is None else free * found
            gaps: list[float] = []
            for h in (STEP, STEP / 4):
                up, down = (self.slope(base + t * v)[0] for t in (h, -h))
                wanted = free * (up - down) / (2 * h)
                rounding = 1e3 * torch.finfo(torch.float64).eps * float(up.norm()) / h
                scale = max(float(product.norm()), float(wanted.norm())) + rounding / TOLERANCE
                gaps.append(float((product - wanted).norm()) / scale if scale > 0 else 0.0)
        return min(gaps)
