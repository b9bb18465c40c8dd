"""λ by criteria that need no truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Absolute, Damping, Relative
from curvfluence.curvature.estimate.products import CurvatureProduct
from curvfluence.curvature.ggn import GGN
from curvfluence.curvature.rung import Rung, fit
from curvfluence.errors import InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import gradient_rows, query_gradients
from curvfluence.problem.problem import Problem
from curvfluence.score.agreement import spearman

GRID = tuple(10.0 ** (k / 2) for k in range(-10, 4))  # 1e-5 to about 30
SURROGATE, HALVES, RESIDUAL = 0.5, 0.7, 0.5  # what each criterion wants


@dataclass(frozen=True)
class Choice:
    """A criterion by which λ is chosen, without any retraining."""

    name: str
    meaning: str


CHOICES = (
    Choice(
        "relative",
        "a multiple of the mean eigenvalue: 1 for the GGN, which has one λ for all layers, 0.1 for "
        "rungs of blocks",
    ),
    Choice(
        "halves",
        f"the least λ at which curvatures of two halves of the data give scores whose ranks "
        f"correlate at {HALVES:g}",
    ),
    Choice(
        "surrogate",
        f"the least λ at which scores and their derivative in λ have a cosine of {SURROGATE:g}",
    ),
    Choice(
        "certificate",
        f"the least λ at which the median residual against the exact GGN is {RESIDUAL:g}",
    ),
)


@dataclass(frozen=True)
class Tried:
    """One criterion on one rung: the damping it chose, and what it saw at each λ of `GRID`; `note`
    says where it could choose nothing but an end of it."""

    name: str
    damping: Damping
    seen: tuple[float, ...] = ()
    note: str = ""


def usual(rung: Rung) -> Relative:
    """The multiple of the mean eigenvalue that suits a rung: docs/which-damping.md says what it
    loses on the built-in problems."""
    return Relative(1.0 if isinstance(rung, GGN) else 0.1)


def try_all(problem: Problem, rung: Rung, curvature: Curvature, seed: int = 0) -> tuple[Tried, ...]:
    """Every criterion, on the queries of `problem`.

    surrogate: cos(τ, ∂τ/∂λ) with τ_n = g_nᵀ A⁻¹ g_q and ∂τ_n/∂λ = −g_nᵀ A⁻² g_q, A = C + W + λI;
    this is our reading of the indicator of Wang et al. (arXiv 2505.24261), which chooses where it
    is one half. halves: Spearman of the scores of two curvatures, each fitted on a random half of
    the training examples, of all examples. certificate: ‖(GGN + W + λI) x − g‖/‖g‖. Each is the
    mean over queries (the median, of residuals) at every λ of `GRID`.

    Cost: two further fits on half of the data, 2 D solves for Q vectors of three curvatures, D
    products with the GGN, 4 D Q N P operations.
    """
    grid = [Absolute(value) for value in GRID]
    layout = discover(problem)
    g_qp = query_gradients(problem, layout).to_dense()[:, 0]
    x_dqp = torch.stack(list(curvature.solve_many(g_qp, grid)))
    y_dqp = torch.stack([curvature.solve(x, at) for x, at in zip(x_dqp, grid, strict=True)])
    halves = [fit(part, rung) for part in _halves(problem, seed)]
    a_dqp, b_dqp = (torch.stack(list(half.solve_many(g_qp, grid))) for half in halves)
    tau, slope, one, other = _scores(problem, (x_dqp, y_dqp, a_dqp, b_dqp))
    return (
        Tried("relative", usual(rung)),
        _first("halves", HALVES, _correlations(one, other)),
        _first("surrogate", SURROGATE, _cosines(tau, slope)),
        _first("certificate", RESIDUAL, _residuals(problem, curvature, x_dqp, g_qp), below=True),
    )


def _halves(problem: Problem, seed: int) -> tuple[Problem, Problem]:
    n = len(problem.train)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    first, second = order[: n // 2].sort().values, order[n // 2 :].sort().values
    return problem.trained_on(first), problem.trained_on(second)


def _scores(problem: Problem, solved: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """[D, Q, N] of each, by one pass over the training set."""
    layout = discover(problem)
    parts: list[list[Tensor]] = [[] for _ in solved]
    shape = solved[0].shape[:2]
    for _, g_n in gradient_rows(problem, layout, again=True):
        for part, x_dqp in zip(parts, solved, strict=True):
            part.append(g_n.inner(x_dqp.flatten(0, 1))[..., 0].cpu().unflatten(0, shape))
    return tuple(torch.cat(part, 2) for part in parts)


def _cosines(a_dqn: Tensor, b_dqn: Tensor) -> list[float]:
    a, b = a_dqn.double(), b_dqn.double()
    size = a.norm(dim=2) * b.norm(dim=2)
    cosines = torch.where(size > 0, (a * b).sum(2) / size, torch.nan)
    return cosines.nanmean(1).tolist()


def _correlations(a_dqn: Tensor, b_dqn: Tensor) -> list[float]:
    return [
        float(torch.tensor([spearman(x, y) for x, y in zip(a, b, strict=True)]).nanmean())
        for a, b in zip(a_dqn, b_dqn, strict=True)
    ]


def _residuals(problem: Problem, curvature: Curvature, x_dqp: Tensor, g_qp: Tensor) -> list[float]:
    product = CurvatureProduct(problem.exact, "GGN")
    size = g_qp.norm(dim=1)
    found: list[float] = []
    for x_qp, value in zip(x_dqp, GRID, strict=True):
        gap = (product(x_qp) + curvature.shift(Absolute(value)) * x_qp - g_qp).norm(dim=1)
        known = gap[size > 0] / size[size > 0]
        found.append(float(known.median()) if len(known) else 0.0)
    return found


def _first(name: str, wanted: float, seen: list[float], *, below: bool = False) -> Tried:
    """The least λ of the grid from which the criterion holds, between two of them by a line in
    log λ."""
    value = torch.tensor(seen, dtype=torch.float64)
    value, wanted = (-value, -wanted) if below else (value, wanted)
    holds = (value >= wanted) & ~value.isnan()
    if not bool(holds.any()):
        return Tried(name, Absolute(GRID[-1]), tuple(seen), "at no λ of the grid: its end is taken")
    at = int(holds.int().argmax())
    if at == 0:
        return Tried(name, Absolute(GRID[0]), tuple(seen), "at every λ: the least is taken")
    low, high = float(value[at - 1]), float(value[at])
    share = (wanted - low) / (high - low) if high > low else 1.0
    return Tried(name, Absolute(GRID[at - 1] * (GRID[at] / GRID[at - 1]) ** share), tuple(seen))


def chosen(tried: Sequence[Tried], by: str) -> Tried:
    """Errors: `InputError` for a criterion that there is not."""
    kinds.text(by, "by")
    for one in tried:
        if one.name == by:
            return one
    names = ", ".join(one.name for one in CHOICES)
    raise InputError(f"there is no criterion {by!r} for a damping; there are {names}")
