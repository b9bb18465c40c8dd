"""Many independent smooth functions minimised side by side, by limited-memory BFGS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from curvfluence.runtime.journal import work

# f(x [m, P], which [m]) -> (values [m], gradients [m, P]) of the functions numbered `which`
Functions: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_MEMORY = 10  # pairs (s, y) that each function keeps
_ARMIJO = 0.1
_SLACK = 1e-6  # of the decrease so far: within it values are not compared, only slopes
_SHORTEST = 1e-10  # step at which a line search gives up
_STEEPEST = 1e6  # times the first gradient: a function that steep on its way down has no bottom


@dataclass(frozen=True, eq=False)
class Minima:
    """Where each of m searches from 0 ended.

    `value` [m] is f(x) − f(0); `gradient_norm` [m] is ‖∇f(x)‖ / ‖∇f(0)‖, 0 where both are 0;
    `steps` [m] counts evaluations of f and ∇f after the first.
    """

    x: Tensor
    value: Tensor
    gradient_norm: Tensor
    converged: Tensor
    steps: Tensor


def minimise(
    functions: Functions,
    like: Tensor,
    *,
    tolerance: float,
    max_steps: int,
    rounding: float = 0.0,
    progress: Callable[[int], None] | None = None,
) -> Minima:
    """A local minimum of each f_m, from x = 0, until ‖∇f(x)‖ ≤ tolerance ‖∇f(0)‖.

    Meant for coordinates in which the Hessian is about the identity: the first step is −∇f(0), and
    directions not yet explored keep that scale (H₀ = I). A step is accepted by Armijo's rule or,
    where values agree to within `rounding` and 1e-6 of the decrease so far, by the slope at its
    end, which rounding in f cannot mislead (the approximate Wolfe rule of Hager & Zhang 2005).

    `like` [m, P] gives shape, dtype and device. Each search depends on its own function only. Not
    converged is one that takes `max_steps` evaluations, whose step shrinks to nothing, or whose
    gradient grows to 1e6 times the first: f is then taken to be unbounded below.

    A search that takes long goes on where it was killed (`journal`), to the same bits.

    Cost: `max_steps` evaluations of those that still search; memory 20 m P numbers.

    Source: Nocedal 1980 (L-BFGS).
    """
    with work("minimise") as ours:
        state = None if ours is None else ours.find(_State)
        state = _State.begin(functions, like) if state is None else state.on(like.device)
        found, search, first_m = state.found, state.search, state.first
        for step in range(state.step, max_steps + 1):
            over = search.over(tolerance) if step < max_steps else torch.ones_like(search.stuck)
            if bool(over.any()):
                search.take(over).record(found, tolerance, step)
                search = search.take(~over)
                if progress is not None:
                    progress(len(like) - len(search.which))
            if not len(search.which):
                break
            f_m, g_mp = functions(search.trial(), search.which)
            search.advance(f_m - first_m[search.which], g_mp, rounding)
            if ours is not None:
                ours.keep_if_due(_State(found, search, first_m, step + 1))
        if ours is not None and state.step <= max_steps:  # and not read when it was over
            ours.keep_if_long(_State(found, search, first_m, max_steps + 1))
    return found


@dataclass(eq=False)
class _Search:
    """The searches that still go on, in lockstep: each is about to try x + length · direction."""

    which: Tensor  # [m]
    x: Tensor  # [m, P]
    value: Tensor  # [m]
    gradient: Tensor  # [m, P]
    direction: Tensor  # [m, P]
    length: Tensor  # [m]
    first: Tensor  # [m], ‖∇f(0)‖
    stuck: Tensor  # [m]
    s: Tensor  # [h, m, P], latest pair last
    y: Tensor  # [h, m, P]
    rho: Tensor  # [h, m], 1/sᵀy, or 0 where there is no pair

    @staticmethod
    def begin(which: Tensor, g_mp: Tensor) -> _Search:
        m, p = g_mp.shape
        return _Search(
            which=which,
            x=torch.zeros_like(g_mp),
            value=g_mp.new_zeros(m),
            gradient=g_mp,
            direction=-g_mp,
            length=g_mp.new_ones(m),
            first=g_mp.norm(dim=1),
            stuck=~g_mp.isfinite().all(1),
            s=g_mp.new_zeros(_MEMORY, m, p),
            y=g_mp.new_zeros(_MEMORY, m, p),
            rho=g_mp.new_zeros(_MEMORY, m),
        )

    def take(self, chosen: Tensor) -> _Search:
        rows = {
            name: value[:, chosen] if name in ("s", "y", "rho") else value[chosen]
            for name, value in vars(self).items()
        }
        return _Search(**rows)

    def trial(self) -> Tensor:
        return self.x + self.length[:, None] * self.direction

    def advance(self, f_m: Tensor, g_mp: Tensor, rounding: float) -> None:
        """Accept the trial or shorten the step, each search by itself."""
        slope_m = (self.gradient * self.direction).sum(1)
        end_m = (g_mp * self.direction).sum(1)
        lower = f_m <= self.value + _ARMIJO * self.length * slope_m
        level = f_m <= self.value + _SLACK * self.value.abs() + rounding
        flatter = end_m <= (2 * _ARMIJO - 1) * slope_m
        finite = f_m.isfinite() & g_mp.isfinite().all(1)
        accepted = finite & (lower | (level & flatter))
        self._shorten(~accepted, slope_m, end_m)
        self._accept(accepted, f_m, g_mp)

    def _shorten(self, rejected: Tensor, slope_m: Tensor, end_m: Tensor) -> None:
        """To where the slope, taken as linear in the step, is 0; within [1/10, 1/2] of before."""
        secant_m = (slope_m / (slope_m - end_m)).nan_to_num(0.1, 0.1, 0.1).clamp(0.1, 0.5)
        self.length = torch.where(rejected, self.length * secant_m, self.length)
        self.stuck = self.stuck | (rejected & (self.length < _SHORTEST))

    def _accept(self, accepted: Tensor, f_m: Tensor, g_mp: Tensor) -> None:
        x = self.trial()
        s, y = x - self.x, g_mp - self.gradient
        sy = (s * y).sum(1)
        # Without positive curvature along s the pair would make H indefinite.
        bends = accepted & (sy > 1e-10 * s.norm(dim=1) * y.norm(dim=1))
        for rows, latest in ((self.s, s), (self.y, y), (self.rho, 1 / sy)):
            rows[:, bends] = torch.cat([rows[1:, bends], latest[None, bends]])
        here = accepted[:, None]
        self.x = torch.where(here, x, self.x)
        self.gradient = torch.where(here, g_mp, self.gradient)
        self.value = torch.where(accepted, f_m, self.value)
        self.direction = torch.where(here, self._quasi_newton(), self.direction)
        # Where the function bends down instead, H knows no scale and the step grows.
        self.length = torch.where(accepted & ~bends, 2 * self.length, self.length)
        self.length = torch.where(bends, 1.0, self.length)

    def _quasi_newton(self) -> Tensor:
        """−H ∇f by the two-loop recursion (Nocedal 1980) with H₀ = I."""
        q = self.gradient.clone()
        alphas: list[Tensor] = []
        for s, y, rho in zip(self.s.flip(0), self.y.flip(0), self.rho.flip(0), strict=True):
            alphas.append(rho * (s * q).sum(1))
            q -= alphas[-1][:, None] * y
        for s, y, rho, alpha in zip(self.s, self.y, self.rho, reversed(alphas), strict=True):
            q += (alpha - rho * (y * q).sum(1))[:, None] * s
        return -q

    def relative(self) -> Tensor:
        norm_m = self.gradient.norm(dim=1)
        return torch.where(norm_m == 0, 0.0, norm_m / self.first)

    def over(self, tolerance: float) -> Tensor:
        relative_m = self.relative()
        return (relative_m <= tolerance) | (relative_m > _STEEPEST) | self.stuck

    def record(self, found: Minima, tolerance: float, step: int) -> None:
        relative_m = self.relative()
        found.x[self.which] = self.x
        found.value[self.which] = self.value
        found.gradient_norm[self.which] = relative_m
        found.converged[self.which] = relative_m <= tolerance
        found.steps[self.which] = step


@dataclass(frozen=True, eq=False)
class _State:
    """All searches before a step: those that are over, those that go on, f(0) [m]."""

    found: Minima
    search: _Search
    first: Tensor
    step: int

    @staticmethod
    def begin(functions: Functions, like: Tensor) -> _State:
        m = len(like)
        found = Minima(
            x=torch.zeros_like(like),
            value=like.new_zeros(m),
            gradient_norm=like.new_zeros(m),
            converged=torch.zeros(m, dtype=torch.bool, device=like.device),
            steps=torch.zeros(m, dtype=torch.long, device=like.device),
        )
        which = torch.arange(m, device=like.device)
        first_m, g_mp = functions(found.x, which)
        return _State(found, _Search.begin(which, g_mp), first_m, 0)

    def on(self, device: torch.device) -> _State:
        """What was kept comes back on the CPU."""

        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device) for name, tensor in tensors.items()}

        found, search = Minima(**moved(vars(self.found))), _Search(**moved(vars(self.search)))
        return _State(found, search, self.first.to(device), self.step)
