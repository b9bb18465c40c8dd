"""The training examples that a training example has most in common with, as the model sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Damping, Relative
from curvfluence.curvature.operators.operator import Against
from curvfluence.curvature.rung import Rung
from curvfluence.errors import InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import gradient_rows, query_gradients
from curvfluence.problem.measurement import LossMeasurement
from curvfluence.problem.problem import Problem, require_problem
from curvfluence.runtime import budget, journal, precision
from curvfluence.score.best_damping import require_named
from curvfluence.score.fitted import fitted
from curvfluence.score.self_influence import self_influence

BLOCK = 1024  # examples whose neighbours are looked for at a time


@dataclass(frozen=True, eq=False)
class Neighbours:
    """For each of `examples` [E] its k neighbours, nearest first: `indices` [E, k] and `cosines`
    [E, k], positive where a neighbour pulls the weights the same way, negative where it pulls
    against."""

    examples: Tensor
    indices: Tensor
    cosines: Tensor

    @property
    def disagreement(self) -> Tensor:
        """−Σ cos / Σ |cos| over the neighbours, [E]: 1 where all of them pull against, −1 where all
        pull along; 0 without any."""
        size = self.cosines.abs().sum(1)
        return torch.where(size > 0, -self.cosines.sum(1) / size, 0.0)


@precision.full()
def neighbours(
    problem: Problem,
    rung: Rung | Curvature,
    examples: Tensor,
    *,
    damping: Damping = Relative(0.1),  # noqa: B008 - a frozen value
    k: int = 20,
    itself: Tensor | None = None,
) -> Neighbours:
    """cos(e, n) = g_eᵀ A g_n / √(g_eᵀ A g_e · g_nᵀ A g_n), A = (C + diag(w) + λI)⁻¹: the k training
    examples n ≠ e of the largest |cos|.

    Influence itself is no measure of likeness: its largest values go to the examples of the largest
    gradients, whatever they are about (Barshan et al. 2020 divide by one of the two norms).
    Examples without a gradient, or of weight 0, have cosines of 0. `itself` [N] is `self_influence`
    where that is known. Cost: a solve and 2 N P operations for each of E; E × k numbers are kept.
    Errors: as `self_influence`.
    """
    require_problem(problem)
    curvature = fitted(problem, rung, damping, strict=False, solves=len(problem.train))
    chosen = require_named(curvature, damping, "BestOf chooses by queries", "neighbours")
    n = len(problem.train)
    k = min(kinds.count(k, "k"), n - 1)
    if k < 1:
        raise InputError("a single training example has no neighbours")
    if itself is None:
        itself = self_influence(problem, curvature, damping=damping)
    v_n = None if problem.train.weights is None else problem.train.weights.double().cpu()
    norm = (itself.double() * n).clamp_min(0)  # g_nᵀ A g_n v_n², see `self_influence`
    norm = (norm if v_n is None else norm * v_n).sqrt()
    layout = discover(problem)
    loss = LossMeasurement(problem.loss)
    step = max(1, min(BLOCK, budget.SOLVED // curvature.parameters.count))
    parts: list[tuple[Tensor, Tensor]] = []

    def tiles(rows: Tensor, first: int) -> Iterator[tuple[int, Tensor]]:
        """Cosines of `rows` and the examples from `first` on."""
        if first >= n:
            return
        asked = problem.train.take(rows.to(problem.device))
        g_e = query_gradients(problem.about(asked, loss), layout)
        x_e = curvature.solve_rows(g_e, chosen, against=Against(n))
        own = norm[rows] if v_n is None else norm[rows] / v_n[rows].clamp_min(1e-300)
        for start, g_n in gradient_rows(problem, layout, first=first):
            tile = x_e.inner(g_n)[..., 0].cpu().double()
            scale = own[:, None] * norm[start : start + tile.shape[1]]
            yield start, torch.where(scale > 0, tile / scale, 0.0)

    with journal.scope(lambda: f"neighbours {chosen} {k} {curvature.coverage}"):
        for rows in examples.split(step):
            with journal.work("nearest") as ours:
                best = (None if ours is None else ours.find(_Best)) or _Best.none(rows, k)
                begun = best.after
                for start, cosines_en in tiles(rows, best.after):
                    best.add(start, cosines_en)
                    if ours is not None:
                        ours.keep_if_due(best)
                if ours is not None and best.after > begun:
                    ours.keep_if_long(best)
            parts.append((best.indices, best.values))
    indices, cosines = (torch.cat(column) for column in zip(*parts, strict=True))
    return Neighbours(examples, indices, cosines)


@dataclass(eq=False)
class _Best:
    """The k largest in size so far, of tiles of columns up to `after`."""

    rows: Tensor
    k: int
    indices: Tensor
    values: Tensor
    after: int

    @staticmethod
    def none(rows: Tensor, k: int) -> _Best:
        indices = torch.empty(len(rows), 0, dtype=torch.long)
        return _Best(rows, k, indices, torch.empty(len(rows), 0, dtype=torch.float64), 0)

    def add(self, start: int, tile: Tensor) -> None:
        self.after = start + tile.shape[1]
        columns = torch.arange(start, self.after)
        numbers = torch.cat([self.indices, columns.expand(len(self.rows), -1)], 1)
        values = torch.cat([self.values, tile], 1)
        # an example itself is the last of all, so that it stays only while there are fewer than k
        sizes = values.abs().masked_fill(numbers == self.rows[:, None], -1.0)
        kept = sizes.topk(min(self.k, sizes.shape[1]), 1).indices
        self.indices, self.values = numbers.gather(1, kept), values.gather(1, kept)
