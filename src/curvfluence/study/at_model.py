"""Every rung of the ladder at one influence model, over the whole damping grid."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from curvfluence.curvature.coverage import CoverageLine
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Absolute, Damping
from curvfluence.curvature.rung import Rung, fit
from curvfluence.errors import SingularError
from curvfluence.fidelity import (
    Spectrum,
    StepLoss,
    Sweep,
    decompose,
    leading_space,
    overlap,
    spectrum,
)
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import query_gradients, training_gradients
from curvfluence.problem.problem import Problem
from curvfluence.study.needs import Needs, needs
from curvfluence.study.paged import paged
from curvfluence.study.protocols import Protocol, hybrids

OVERLAP_RANKS = (1, 2, 5, 10, 20, 50, 100)
Overlap = tuple[str, str, tuple[float, ...]]  # two rungs, and what they share at each rank


@dataclass(frozen=True, eq=False)
class RungScores:
    """One rung, or one hybrid: `scores` [D, Q, N] are influences at every one of `dampings` at one
    model, or [J, D, Q, N] at all of them.

    Seconds are for one model and one damping, of several models their median. What the rung needs
    and its spectrum are those of the first model; a hybrid has neither seconds nor needs, and a
    study that measures no costs has no needs. `surprising_labels` is how many labels that a sampled
    Fisher draws are expected to differ from the likeliest, of several models their mean; None where
    none are drawn. `solutions` [D, Q, P] are those of (C + W + λ) x = g_q, while they are needed.
    A damping at which C + W + λ cannot be inverted is a hole, with the reason: NaN at one model,
    and not among the `dampings` of all.
    """

    full_name: str
    hybrid: bool
    fisher: str | None
    scores: Tensor
    dampings: tuple[float | None, ...]
    surprising_labels: float | None
    coverage: tuple[CoverageLine, ...]
    notes: tuple[str, ...]
    fit_seconds: float | None
    score_seconds: float | None
    spectrum: Spectrum | None
    solutions: Tensor | None = None
    name: str = ""
    needs: tuple[Needs, Needs] | None = None  # of the fit and of the scores
    holes: Mapping[float, str] = field(default_factory=dict[float, str])

    @property
    def middle(self) -> Damping:
        """The damping in the middle of those that are no holes; λ = 1 where it is fixed."""
        grid = [Absolute(1.0 if at is None else at) for at in self.dampings if at not in self.holes]
        return grid[len(grid) // 2]

    def put_away(self) -> RungScores:
        """Without the solutions, Q × P numbers a damping that serve the decomposition of their own
        model only; scores wait for the other models, and memory need not hold them."""
        return replace(self, solutions=None, scores=paged(self.scores))

    def sweep(self, left_out_mn: Tensor) -> Sweep:
        """The predicted change of each query: the sum of influences of what a subset leaves out."""
        predicted_jdqm = self.scores @ left_out_mn.to(self.scores).T
        predicted_djmq = predicted_jdqm.double().permute(1, 0, 3, 2)
        return Sweep(self.dampings, np.ascontiguousarray(predicted_djmq.numpy()))


@dataclass(frozen=True, eq=False)
class ModelLadder:
    """All rungs and hybrids at one model, the decomposition of each chain by its name, and overlaps
    of leading eigenspaces."""

    rungs: dict[str, RungScores]
    decompositions: Mapping[str, tuple[StepLoss, ...]]
    overlaps: tuple[Overlap, ...]


def measured_needs(rung: Rung, problem: Problem, damping: Damping) -> tuple[Needs, Needs]:
    """What a fit and its scores need, from a run of their own that no seconds are taken of."""
    fitted: list[Curvature] = []
    of_fit = needs(lambda: fitted.append(fit(problem, rung)))
    return of_fit, needs(lambda: _scores_at(problem, fitted[0], damping))


def _scores_at(problem: Problem, curvature: Curvature, damping: Damping) -> Tensor:
    """What a user pays for scores after the fit: gradients, one solve, one product."""
    layout = discover(problem)
    queries_qp = query_gradients(problem, layout).to_dense()[:, 0]
    gradients = training_gradients(problem, layout)
    return gradients.inner(curvature.solve(queries_qp, damping))[..., 0] / len(problem.train)


def climb_one(
    rungs: Mapping[str, Rung],
    problem: Problem,
    grid: tuple[Absolute, ...],
    protocol: Protocol,
    *,
    spectra: bool,
    with_hybrids: bool,
) -> ModelLadder:
    """Every rung at one model, with hybrids and with spectra and overlaps where asked."""
    sweep = _Sweeper(problem, grid, _surprising_labels(rungs.values(), problem), spectra)
    fitted: dict[str, Curvature] = {}
    swept: dict[str, RungScores] = {}
    for name, rung in rungs.items():
        fitted[name] = fit(problem, rung)
        row = sweep(fitted[name])
        start = time.perf_counter()
        _scores_at(problem, fitted[name], row.middle)
        swept[name] = replace(row, score_seconds=time.perf_counter() - start)
    for name, curvature in (hybrids(fitted) if with_hybrids else {}).items():
        row = sweep(curvature).put_away()
        swept[name] = replace(row, hybrid=True, fit_seconds=None)  # never had for its own sake
    steps, decompositions = _decompositions(fitted, swept, protocol)
    return ModelLadder(
        rungs={n: row if row.hybrid else row.put_away() for n, row in swept.items()},
        decompositions=decompositions,
        overlaps=_overlaps(fitted, steps) if spectra else (),
    )


class _Sweeper:
    """Scores of one curvature after another at every damping, on the same gradients."""

    def __init__(
        self,
        problem: Problem,
        grid: tuple[Absolute, ...],
        surprising: Mapping[str | None, float | None],
        spectra: bool,
    ) -> None:
        layout = discover(problem)
        self.queries_qp = query_gradients(problem, layout).to_dense()[:, 0]
        self.gradients = training_gradients(problem, layout)
        self.count = len(problem.train)
        self.grid, self.surprising, self.spectra = grid, surprising, spectra

    def __call__(self, curvature: Curvature) -> RungScores:
        """Errors: `SingularError` where every damping of the grid is a hole."""
        fixed = curvature.fixed_damping
        solutions, holes = self._solved(curvature, self.grid if fixed is None else (fixed,))
        return RungScores(
            full_name=curvature.name,
            hybrid=False,
            fisher=curvature.fisher,
            scores=torch.stack(
                [self.gradients.inner(x_qp)[..., 0] / self.count for x_qp in solutions]
            ),
            dampings=tuple(at.value for at in self.grid) if fixed is None else (None,),
            surprising_labels=self.surprising.get(curvature.fisher),
            coverage=curvature.coverage,
            notes=curvature.notes,
            fit_seconds=curvature.cost.fit_seconds,
            score_seconds=None,
            spectrum=spectrum(curvature) if self.spectra else None,
            solutions=torch.stack(solutions),
            holes=holes,
        )

    def _solved(
        self, curvature: Curvature, dampings: Sequence[Absolute]
    ) -> tuple[list[Tensor], dict[float, str]]:
        """(x [Q, P] at each damping, NaN in a hole; why each hole is one)."""
        try:
            return list(curvature.solve_many(self.queries_qp, dampings)), {}
        except SingularError:
            pass  # at some of them: one by one
        solutions: list[Tensor] = []
        holes: dict[float, str] = {}
        for damping in dampings:
            try:
                solutions.append(curvature.solve(self.queries_qp, damping))
            except SingularError as error:
                solutions.append(torch.full_like(self.queries_qp, torch.nan))
                holes[damping.value] = str(error)
        if len(holes) == len(dampings):
            raise SingularError(
                f"{curvature.name} cannot be inverted at any damping of the grid, up to "
                f"{dampings[-1].value:g}: {holes[dampings[-1].value]}"
            )
        return solutions, holes


def _decompositions(
    fitted: Mapping[str, Curvature], swept: Mapping[str, RungScores], protocol: Protocol
) -> tuple[list[tuple[str, str]], dict[str, tuple[StepLoss, ...]]]:
    """The protocol's steps between matrices, and the decomposition of each chain.

    The protocol's own chain stands among all steps of its ladder; another one by itself.
    """
    matrices = {name for name in fitted if fitted[name].fixed_damping is None}
    solutions = {n: row.solutions for n, row in swept.items() if row.solutions is not None}
    scores = {name: row.scores for name, row in swept.items()}
    ladder = [step for step in protocol.steps if set(step) <= matrices]
    by_chain: dict[str, tuple[StepLoss, ...]] = {}
    for chain in protocol.chains:
        main = chain is protocol.chains[0]
        steps = ladder if main else [step for step in chain.steps if set(step) <= matrices]
        by_chain[chain.name] = decompose(
            fitted, solutions, scores, steps=steps, chain=chain.rungs
        )
    return ladder, by_chain


def _surprising_labels(rungs: Iterable[Rung], problem: Problem) -> dict[str | None, float | None]:
    """By the name of each Fisher type: one of the ladder's, or of a hybrid of its rungs."""
    found: dict[str | None, float | None] = {}
    for rung in rungs:
        counts = [fisher.surprising_labels(problem) for fisher in rung.fishers(problem)]
        known = [count for count in counts if count is not None]
        found[rung.fisher_name(problem)] = min(known, default=None)
    return found


def _overlaps(fitted: Mapping[str, Curvature], steps: list[tuple[str, str]]) -> tuple[Overlap, ...]:
    names = {name for step in steps for name in step}
    spaces = {name: leading_space(fitted[name], max(OVERLAP_RANKS)) for name in names}
    return tuple(
        (a, b, overlap(spaces[a], spaces[b], [k for k in OVERLAP_RANKS if k <= len(spaces[a])]))
        for a, b in steps
    )
