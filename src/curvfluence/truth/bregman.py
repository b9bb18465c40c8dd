"""The fourth truth, the proximal Bregman response: what damped Gauss-Newton influence predicts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.problem.problem import Problem
from curvfluence.runtime import budget, precision
from curvfluence.truth.minimise import Minima, minimise
from curvfluence.truth.proximal import Proximal


@dataclass(frozen=True, eq=False)
class BregmanResponse:
    """The proximal Bregman response to leaving out each of m groups; `bregman_response` defines it.

    change [m, Q], float64: m_q at the minimiser minus m_q at θˢ, in the units of the measurement;
    what Σ_{n left out} ε I[q, n] predicts. A group that did not converge has the change at the
    point where its search ended: look at `converged` before using it.
    gradient_norm [m]: ‖∇F(θ)‖ / ‖∇F(θˢ)‖ in the norm ‖v‖² = vᵀ (GGN + diag(w) + λI)⁻¹ v.
    objective [m]: F(θ) − F(θˢ), at most 0. steps [m]: evaluations of F and ∇F.
    theta [m, P]: the minimisers, in the order of `problem.parameters`.
    """

    change: Tensor
    converged: Tensor
    gradient_norm: Tensor
    objective: Tensor
    steps: Tensor
    theta: Tensor = field(repr=False)
    damping: float
    epsilon: float
    seconds: float

    @property
    def values(self) -> Tensor:
        """`change`, under the name that a truth [m, Q] has."""
        return self.change


@precision.full()
def bregman_response(
    problem: Problem,
    left_out: Tensor,
    *,
    damping: float,
    epsilon: float,
    tolerance: float = 1e-6,
    max_steps: int = 200,
    progress: Callable[[int], None] | None = None,
) -> BregmanResponse:
    """From θˢ, the problem's weights, minimise for each group of examples

        F(θ) = (1/N) Σ_i D_i(f_i(θ), f_i(θˢ)) − (ε/N) Σ_n left_out_n ℓ_n(θ)
               + ½ Σ_p (w_p + λ) (θ − θˢ)_p²,
        D_i(f, fˢ) = ℓ_i(f) − ℓ_i(fˢ) − ∇ℓ_i(fˢ)ᵀ (f − fˢ)

    At ε = 0 the minimiser is θˢ, converged training or not, and there the Hessian of F is GGN +
    diag(w) + λI. So the change of m_q is ε Σ_n left_out_n I[q, n] + O(ε²), with the influence of
    `GGN()` at `Absolute(λ)`: this truth holds the error of a curvature apart from the gap between
    influence and retraining.

    `left_out` [m, N] says how much of each example each group leaves out, in [0, 1], as in
    `Subsets.left_out`; `damping` is λ, absolute, in the units of the GGN; w is the problem's (0
    where the decay was decoupled). Work is in float64 whatever the problem's dtype.

    Assumes small ε · left_out: the minimum is the local one that a descent from θˢ reaches. F has
    a lower bound, whatever the net, where ε left_out_n stays below 1 (`MSE`) or does not exceed the
    probability of n's label at θˢ (`CrossEntropy` without smoothing). Beyond, the outputs of a net
    can outgrow the proximal term: groups whose descent finds that way, or is not done after
    `max_steps`, come back with `converged` False, and the others do not notice; a larger λ or a
    smaller ε helps. Where w_p + λ = 0 for some p, a minimum may also lie at infinity, and
    `tolerance` is then met on the way there. With a loss that is not convex in the output
    (`CustomLoss(clip_negative=True)`) the Hessian of F at θˢ is not the clipped GGN, so the
    derivative is another one.

    Method: limited-memory BFGS in the coordinates in which GGN + diag(w) + λI is the identity, all
    groups side by side, until `gradient_norm` ≤ `tolerance`, for at most `max_steps` evaluations;
    `progress` is told how many groups are done. The error of θ, relative to the whole step, is
    about the tolerance over the smallest share of curvature that F kept in any direction.

    Cost: the dense GGN and its Cholesky factor, N P² + P³/3; then forward and backward passes of N
    examples an evaluation and group, and 2 P². Memory: three P × P matrices in float64, and m P.

    Errors: `InputError` for ε outside (0, 1], left_out of another shape or outside [0, 1], λ < 0,
    w + λ = 0 everywhere, or more than 30,000 parameters; `SingularError` where GGN + diag(w) + λI
    cannot be inverted.

    Source: Bae, Ng, Lo, Ghassemi, Grosse 2022 (arXiv 2209.05364), the proximal Bregman objective;
    ε = 1 is their removal of the group, and w, where training had it, joins their λ.
    """
    started = time.perf_counter()
    left_out = _checked(problem, left_out, damping, epsilon, tolerance, max_steps)
    proximal = Proximal.at(problem, damping)
    m, count = left_out.shape[0], len(proximal.centre)
    size = max(1, budget.RESPONSES // (30 * count))
    parts: list[Minima] = []
    for start in range(0, m, size):
        kept_mn = 1 - epsilon * left_out[start : start + size]

        def report(done: int, before: int = start) -> None:
            if progress is not None:
                progress(before + done)

        parts.append(
            minimise(
                lambda x_mp, which, kept_mn=kept_mn: proximal.objective(x_mp, kept_mn[which]),
                proximal.centre.expand(len(kept_mn), count),
                tolerance=tolerance,
                max_steps=max_steps,
                rounding=proximal.rounding,
                progress=report,
            )
        )
    theta = proximal.centre + torch.cat([proximal.shift(part.x) for part in parts])
    return BregmanResponse(
        change=proximal.measured(theta) - proximal.measured(proximal.centre[None]),
        converged=torch.cat([part.converged for part in parts]),
        gradient_norm=torch.cat([part.gradient_norm for part in parts]),
        objective=torch.cat([part.value for part in parts]),
        steps=torch.cat([part.steps for part in parts]),
        theta=theta,
        damping=damping,
        epsilon=epsilon,
        seconds=time.perf_counter() - started,
    )


def _checked(
    problem: Problem, left_out: Tensor, damping: float, epsilon: float, tolerance: float, steps: int
) -> Tensor:
    """`left_out` in float64 on the problem's device, once all settings are known to make sense."""
    if not 0 < kinds.number(epsilon, "epsilon") <= 1:
        raise InputError(f"epsilon must lie in (0, 1]; seen {epsilon}")
    kinds.number(damping, "damping")
    kinds.count(steps, "max_steps")
    kinds.number(tolerance, "tolerance")
    if damping == 0 and not bool(problem.decay.any()):
        raise InputError(
            "w + λ is 0 for every parameter, so nothing holds the response near the trained "
            "weights: give a damping > 0"
        )
    if not 0 < tolerance < 1 or steps < 1:
        raise InputError(
            f"tolerance must lie in (0, 1) and max_steps be >= 1; seen {tolerance} and {steps}"
        )
    rows = torch.as_tensor(left_out).to(problem.device, torch.float64)
    n = len(problem.train)
    if rows.ndim != 2 or rows.shape[1] != n or not len(rows):
        raise InputError(
            f"left_out must be [m, {n}], a row for each group and a column for each training "
            f"example; seen shape {tuple(rows.shape)}"
        )
    if not bool(((rows >= 0) & (rows <= 1)).all()):
        raise InputError(
            f"left_out must lie in [0, 1]; seen {float(rows.min()):.3g} to {float(rows.max()):.3g}"
        )
    return rows
