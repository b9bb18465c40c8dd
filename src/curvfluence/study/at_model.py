"""Every rung of the ladder at one influence model, over the whole damping grid."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvfluence.curvature.coverage import CoverageLine
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Damping
from curvfluence.curvature.rung import Rung, fit
from curvfluence.fidelity import Spectrum, StepLoss, decompose, leading_space, overlap, spectrum
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import query_gradients, training_gradients
from curvfluence.problem.problem import Problem
from curvfluence.study.needs import Needs, needs
from curvfluence.study.paged import paged
from curvfluence.study.protocols import Protocol, hybrids

OVERLAP_RANKS = (1, 2, 5, 10, 20, 50, 100)
Overlap = tuple[str, str, tuple[float, ...]]  # two rungs, and what they share at each rank


@dataclass(frozen=True, eq=False)
class ModelRung:
    """One rung at one model, over its dampings: `scores` [D, Q, N], `solutions` [D, Q, P] of
    (C + W + λ) x = g_q, seconds of the fit and of scores at one damping."""

    full_name: str
    hybrid: bool
    fisher: str | None
    surprising_labels: float | None
    coverage: tuple[CoverageLine, ...]
    notes: tuple[str, ...]
    scores: Tensor
    solutions: Tensor
    fit_seconds: float
    score_seconds: float
    spectrum: Spectrum | None

    def put_away(self) -> ModelRung:
        """Without the solutions, Q × P numbers a damping that serve the decomposition of their own
        model only; scores wait for the other models, and memory need not hold them."""
        none = self.solutions.new_empty(0)  # a slice would keep all of it alive
        return replace(self, solutions=none, scores=paged(self.scores))


@dataclass(frozen=True, eq=False)
class ModelLadder:
    """All rungs and hybrids at one model, the decomposition of each chain by its Fisher type, and
    overlaps of leading eigenspaces."""

    rungs: dict[str, ModelRung]
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
    grid: tuple[Damping, ...],
    protocol: Protocol,
    *,
    spectra: bool,
    with_hybrids: bool,
) -> ModelLadder:
    """Every rung at one model, with hybrids and with spectra and overlaps where asked."""
    sweep = _Sweeper(problem, grid, _surprising_labels(rungs.values(), problem), spectra)
    fitted: dict[str, Curvature] = {}
    swept: dict[str, ModelRung] = {}
    for name, rung in rungs.items():
        fitted[name] = fit(problem, rung)
        start = time.perf_counter()
        _scores_at(problem, fitted[name], grid[len(grid) // 2])
        swept[name] = sweep(fitted[name], time.perf_counter() - start)
    for name, curvature in (hybrids(fitted) if with_hybrids else {}).items():
        swept[name] = sweep(curvature, None).put_away()
    own, decompositions = _decompositions(fitted, swept, protocol)
    return ModelLadder(
        rungs={n: row if row.hybrid else row.put_away() for n, row in swept.items()},
        decompositions=decompositions,
        overlaps=_overlaps(fitted, own) if spectra else (),
    )


class _Sweeper:
    """Scores of one curvature after another at every damping, on the same gradients."""

    def __init__(
        self,
        problem: Problem,
        grid: tuple[Damping, ...],
        surprising: Mapping[str | None, float | None],
        spectra: bool,
    ) -> None:
        layout = discover(problem)
        self.queries_qp = query_gradients(problem, layout).to_dense()[:, 0]
        self.gradients = training_gradients(problem, layout)
        self.count = len(problem.train)
        self.grid, self.surprising, self.spectra = grid, surprising, spectra

    def __call__(self, curvature: Curvature, score_seconds: float | None) -> ModelRung:
        """`score_seconds` is None for a hybrid, which is never computed for its own sake."""
        fixed = curvature.fixed_damping
        dampings = self.grid if fixed is None else (fixed,)
        solutions = list(curvature.solve_many(self.queries_qp, dampings))
        return ModelRung(
            full_name=curvature.name,
            hybrid=score_seconds is None,
            fisher=curvature.fisher,
            surprising_labels=self.surprising.get(curvature.fisher),
            coverage=curvature.coverage,
            notes=curvature.notes,
            scores=torch.stack(
                [self.gradients.inner(x_qp)[..., 0] / self.count for x_qp in solutions]
            ),
            solutions=torch.stack(solutions),
            fit_seconds=curvature.cost.fit_seconds,
            score_seconds=0.0 if score_seconds is None else score_seconds,
            spectrum=spectrum(curvature) if self.spectra else None,
        )


def _decompositions(
    fitted: Mapping[str, Curvature], swept: Mapping[str, ModelRung], protocol: Protocol
) -> tuple[list[tuple[str, str]], dict[str, tuple[StepLoss, ...]]]:
    """The protocol's steps between matrices, and the decomposition of each chain.

    The protocol's own chain stands among all steps of its ladder; another one by itself.
    """
    matrices = {name for name in fitted if fitted[name].fixed_damping is None}
    solutions = {name: row.solutions for name, row in swept.items()}
    scores = {name: row.scores for name, row in swept.items()}
    own = [step for step in protocol.steps if set(step) <= matrices]
    found: dict[str, tuple[StepLoss, ...]] = {}
    for chain in protocol.chains:
        main = chain is protocol.chains[0]
        steps = own if main else [step for step in chain.steps if set(step) <= matrices]
        found[chain.fisher] = decompose(fitted, solutions, scores, steps=steps, chain=chain.rungs)
    return own, found


def _surprising_labels(rungs: Iterable[Rung], problem: Problem) -> dict[str | None, float | None]:
    """By the name of each Fisher type: one of the ladder's, or of a hybrid of its rungs."""
    drawn = (rung.fisher_of(problem) for rung in rungs)
    by_name = {fisher.name: fisher for fisher in drawn if fisher is not None}
    return {name: fisher.surprising_labels(problem) for name, fisher in by_name.items()}


def _overlaps(fitted: Mapping[str, Curvature], steps: list[tuple[str, str]]) -> tuple[Overlap, ...]:
    names = {name for step in steps for name in step}
    spaces = {name: leading_space(fitted[name], max(OVERLAP_RANKS)) for name in names}
    return tuple(
        (a, b, overlap(spaces[a], spaces[b], [k for k in OVERLAP_RANKS if k <= len(spaces[a])]))
        for a, b in steps
    )
