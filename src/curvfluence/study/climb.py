"""Every rung of the ladder on every influence model, over the whole damping grid."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean, median

import numpy as np
import torch
from torch import Tensor

from curvfluence.curvature.coverage import CoverageLine
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Absolute, Damping
from curvfluence.curvature.rung import Rung, fit
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
from curvfluence.study.problems import StudyProblem
from curvfluence.study.progress import Watcher
from curvfluence.study.protocols import Protocol, hybrids
from curvfluence.study.spec import StudySpec
from curvfluence.truth import Trained

OVERLAP_RANKS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True, eq=False)
class Climbed:
    """One rung on all J models. `scores` [J, D, Q, N] are influences at every one of `dampings`.

    Seconds are medians over the models, each for one model and one damping. What the rung needs
    and its spectrum are those of the first model; a hybrid has neither seconds nor needs, and a
    study that measures no costs has no needs.
    `surprising_labels` is the mean over the models of how many labels that a sampled Fisher draws
    are expected to differ from the likeliest; None where none are drawn.
    """

    name: str
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
    fit_needs: Needs | None
    score_needs: Needs | None
    spectrum: Spectrum

    def sweep(self, left_out_mn: Tensor) -> Sweep:
        """The predicted change of each query: the sum of influences of what a subset leaves out."""
        predicted_jdqm = self.scores @ left_out_mn.to(self.scores).T
        predicted_djmq = predicted_jdqm.double().permute(1, 0, 3, 2)
        return Sweep(self.dampings, np.ascontiguousarray(predicted_djmq.numpy()))


@dataclass(frozen=True, eq=False)
class Ladder:
    """All rungs and hybrids; the decomposition of each chain, by its Fisher type, for each model;
    the overlap of leading eigenspaces (first model) between neighbours."""

    rungs: tuple[Climbed, ...]
    decompositions: Mapping[str, tuple[tuple[StepLoss, ...], ...]]
    overlap_ranks: tuple[int, ...]
    overlaps: tuple[tuple[str, str, tuple[float, ...]], ...]


def climb(
    spec: StudySpec, problem: StudyProblem, trained: Trained, protocol: Protocol, watch: Watcher
) -> Ladder:
    """Fit and score each rung of the protocol at the checkpoints of the influence models.

    Nothing here depends on which subsets are left out, so studies of other subsets can share it.
    """
    problems = influence_problems(problem, trained)
    # A draw of labels for each model: the spread over models is then that of sampling too.
    seeds = spec.seeds("Fisher", len(problems))
    ladders = [{name: protocol.rungs(seed)[name] for name in spec.ladder} for seed in seeds]
    grid: tuple[Damping, ...] = tuple(map(Absolute, spec.dampings))
    with watch("climb the ladder", len(spec.ladder) * (1 + len(problems))) as done:
        wants: dict[str, tuple[Needs, Needs]] = {}
        for name, rung in ladders[0].items() if spec.costs else ():
            wants[name] = _needs(rung, problems[0], grid[len(grid) // 2])
            done(len(wants))
        models: list[_Model] = []
        for at, ladder in zip(problems, ladders, strict=True):
            models.append(
                _one_model(ladder, at, grid, protocol, look=not models, extra=spec.hybrids)
            )
            done(len(spec.ladder) * (1 + len(models)))
    names = list(models[0].rungs)
    return Ladder(
        rungs=tuple(
            # taken out as they are gathered: scores are not held twice
            _gather(name, [m.rungs.pop(name) for m in models], wants.get(name), spec)
            for name in names
        ),
        decompositions={
            fisher: tuple(model.decompositions[fisher] for model in models)
            for fisher in models[0].decompositions
        },
        overlap_ranks=tuple(k for k in OVERLAP_RANKS if k <= len(problems[0].decay)),
        overlaps=models[0].overlaps,
    )


def influence_problems(problem: StudyProblem, trained: Trained) -> list[Problem]:
    """The study's problem at each influence model's checkpoint."""
    recipe = problem.recipe
    dtype = next(iter(trained.theta.values())).dtype
    model = recipe.build(trained.runs[0].init_seed, dtype).eval()
    return [
        Problem(
            model,
            recipe.loss,
            problem.train,
            problem.queries,
            measurement=problem.measurement,
            weight_decay=recipe.weight_decay,
            decoupled_decay=recipe.optimizer.decoupled,
            weights=trained.weights(j),
            unmodelled=problem.unmodelled,
        )
        for j in range(len(trained))
    ]


def _needs(rung: Rung, problem: Problem, damping: Damping) -> tuple[Needs, Needs]:
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


@dataclass(frozen=True, eq=False)
class _Swept:
    """One rung at one model, over its dampings."""

    full_name: str
    hybrid: bool
    fisher: str | None
    surprising_labels: float | None
    coverage: tuple[CoverageLine, ...]
    notes: tuple[str, ...]
    scores: Tensor  # [D, Q, N]
    solved: Tensor  # [D, Q, P]
    fit_seconds: float
    score_seconds: float
    spectrum: Spectrum | None


@dataclass(frozen=True, eq=False)
class _Model:
    rungs: dict[str, _Swept]
    decompositions: Mapping[str, tuple[StepLoss, ...]]
    overlaps: tuple[tuple[str, str, tuple[float, ...]], ...]


def _one_model(
    ladder: Mapping[str, Rung],
    problem: Problem,
    grid: tuple[Damping, ...],
    protocol: Protocol,
    *,
    look: bool,
    extra: bool,
) -> _Model:
    """Every rung, and with `extra` every hybrid, at one model; with `look`, their spectra and
    overlaps as well."""
    layout = discover(problem)
    queries_qp = query_gradients(problem, layout).to_dense()[:, 0]
    gradients = training_gradients(problem, layout)
    surprising = _surprising_labels(ladder.values(), problem)

    def sweep(curvature: Curvature, seconds: float, *, hybrid: bool) -> _Swept:
        fixed = curvature.fixed_damping
        dampings = grid if fixed is None else (fixed,)
        solved = list(curvature.solve_many(queries_qp, dampings))
        n = len(problem.train)
        return _Swept(
            full_name=curvature.name,
            hybrid=hybrid,
            fisher=curvature.fisher,
            surprising_labels=surprising.get(curvature.fisher),
            coverage=curvature.coverage,
            notes=curvature.notes,
            scores=torch.stack([gradients.inner(x_qp)[..., 0] / n for x_qp in solved]),
            solved=torch.stack(solved),
            fit_seconds=curvature.cost.fit_seconds,
            score_seconds=seconds,
            spectrum=spectrum(curvature) if look else None,
        )

    fitted: dict[str, Curvature] = {}
    swept: dict[str, _Swept] = {}
    for name, rung in ladder.items():
        fitted[name] = fit(problem, rung)
        start = time.perf_counter()
        _scores_at(problem, fitted[name], grid[len(grid) // 2])
        swept[name] = sweep(fitted[name], time.perf_counter() - start, hybrid=False)
    for name, curvature in (hybrids(fitted) if extra else {}).items():
        swept[name] = _without_solved(sweep(curvature, 0.0, hybrid=True))
    matrices = {name for name in fitted if fitted[name].fixed_damping is None}
    solved = {name: row.solved for name, row in swept.items()}
    scores = {name: row.scores for name, row in swept.items()}
    own = [step for step in protocol.steps if set(step) <= matrices]
    decompositions: dict[str, tuple[StepLoss, ...]] = {}
    for chain in protocol.chains:
        # The protocol's own chain stands among all steps of its ladder; another one by itself.
        main = chain is protocol.chains[0]
        steps = own if main else [step for step in chain.steps if set(step) <= matrices]
        decompositions[chain.fisher] = decompose(
            fitted, solved, scores, steps=steps, chain=chain.rungs
        )
    return _Model(
        rungs={
            # scores wait for the other models: memory need not hold them
            name: replace(_without_solved(row), scores=paged(row.scores))
            for name, row in swept.items()
        },
        decompositions=decompositions,
        overlaps=_overlaps(fitted, own) if look else (),
    )


def _surprising_labels(rungs: Iterable[Rung], problem: Problem) -> dict[str | None, float | None]:
    """By the name of each Fisher type: one of the ladder's, or of a hybrid of its rungs."""
    drawn = (rung.fisher_of(problem) for rung in rungs)
    by_name = {fisher.name: fisher for fisher in drawn if fisher is not None}
    return {name: fisher.surprising_labels(problem) for name, fisher in by_name.items()}


def _without_solved(row: _Swept) -> _Swept:
    """Solutions serve the decomposition of their own model only: Q × P numbers a damping."""
    return replace(row, solved=row.solved.new_empty(0))  # a slice would keep all of it alive


def _overlaps(
    fitted: Mapping[str, Curvature], steps: list[tuple[str, str]]
) -> tuple[tuple[str, str, tuple[float, ...]], ...]:
    names = {name for step in steps for name in step}
    spaces = {name: leading_space(fitted[name], max(OVERLAP_RANKS)) for name in names}
    return tuple(
        (a, b, overlap(spaces[a], spaces[b], [k for k in OVERLAP_RANKS if k <= len(spaces[a])]))
        for a, b in steps
    )


def _gather(
    name: str,
    parts: list[_Swept],
    wants: tuple[Needs, Needs] | None,
    spec: StudySpec,
) -> Climbed:
    scores = paged(torch.stack([part.scores for part in parts]))
    swept = scores.shape[1] == len(spec.dampings)
    surprising = [part.surprising_labels for part in parts if part.surprising_labels is not None]
    notes = [f"model {j}: {note}" for j, part in enumerate(parts) for note in part.notes]
    first = parts[0]
    assert first.spectrum is not None
    return Climbed(
        name=name,
        full_name=first.full_name,
        hybrid=first.hybrid,
        fisher=first.fisher,
        scores=scores,
        dampings=spec.dampings if swept else (None,),
        surprising_labels=fmean(surprising) if surprising else None,
        coverage=first.coverage,
        notes=tuple(notes),
        fit_seconds=None if first.hybrid else median(p.fit_seconds for p in parts),
        score_seconds=None if first.hybrid else median(p.score_seconds for p in parts),
        fit_needs=None if wants is None else wants[0],
        score_needs=None if wants is None else wants[1],
        spectrum=first.spectrum,
    )
