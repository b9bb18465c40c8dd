"""From what the stages of a study computed to the record that is kept of it."""

from __future__ import annotations

from dataclasses import dataclass

from curvfluence.store.folder import MadeBy
from curvfluence.study.climb import Ladder
from curvfluence.study.compare import LadderFidelity
from curvfluence.study.environment import environment
from curvfluence.study.problems import StudyProblem
from curvfluence.study.proven import Proven
from curvfluence.study.response import EPSILON, NoResponse, Response
from curvfluence.study.results import Results, StudySettings
from curvfluence.study.results.settings import DisplaySummary
from curvfluence.study.results.truth import (
    DivergedRetraining,
    ResponseSummary,
    StageSeconds,
    TruthSummary,
)
from curvfluence.study.retrain import Truth
from curvfluence.study.summary_rungs import decompositions, inverse_vectors, overlaps, rung_results


@dataclass(frozen=True, eq=False)
class Stages:
    """What the stages of a study computed, and the seconds of each and of all."""

    truth: Truth
    ladder: Ladder
    fidelity: LadderFidelity
    response: Response | NoResponse
    proven: Proven
    seconds: StageSeconds
    total_seconds: float


def summarise(
    settings: StudySettings,
    problem: StudyProblem,
    stages: Stages,
    hashes: dict[str, str],
    made_by: MadeBy,
) -> Results:
    """Everything that `results.json` holds."""
    ladder, fidelity, response = stages.ladder, stages.fidelity, stages.response
    chains = decompositions(ladder, fidelity, settings.dampings)
    rungs, hybrids = rung_results(
        ladder, fidelity, response, stages.proven.errors, settings.dampings
    )
    return Results(
        problem=problem.name,
        title=problem.display.title,
        description=problem.display.description,
        display=_display(problem),
        flipped=None if problem.flipped is None else tuple(problem.flipped.tolist()),
        flipped_from=(
            None if problem.flipped_from is None else tuple(problem.flipped_from.tolist())
        ),
        own_model=None if problem.run is None else 0,
        protocol=settings.protocol,
        spec=settings,
        recipe=problem.recipe.describe(),
        environment=environment(hashes),
        truth=_truth(settings, problem, stages.truth, fidelity),
        rungs=rungs,
        hybrids=hybrids,
        steps=fidelity.steps,
        decomposition=chains[0],
        decompositions=chains,
        overlap=overlaps(ladder),
        inverse=inverse_vectors(ladder),
        refused=dict(ladder.refused),
        differences=fidelity.differences,
        bregman=_response(settings, response) if isinstance(response, Response) else None,
        bregman_missing=response.reason if isinstance(response, NoResponse) else None,
        bounds_missing=stages.proven.missing,
        seconds=stages.seconds,
        study_seconds=stages.total_seconds,
        made_by=made_by,
    ).sealed()


def _display(problem: StudyProblem) -> DisplaySummary:
    display = problem.display
    return DisplaySummary(
        kind="image" if display.kind == "image" else "features",
        names=display.feature_names or None,
        classes=display.class_names or None,
        unit=display.input_unit,
    )


def _truth(
    settings: StudySettings, problem: StudyProblem, truth: Truth, fidelity: LadderFidelity
) -> TruthSummary:
    return TruthSummary(
        subsets=len(truth.subsets),
        alpha=settings.alpha,
        kept=round(settings.alpha * len(problem.train)),
        train=len(problem.train),
        queries=len(problem.queries),
        models=settings.models,
        orders=settings.orders,
        retrainings=truth.retrainings,
        measurement=problem.measurement.name,
        unit=problem.measurement.unit,
        lower_is_better=problem.measurement.lower_is_better,
        path=truth.path,
        influence_model_loss=tuple(truth.models.trained.final_loss.tolist()),
        retrained_loss=float(truth.final_loss.mean()),
        seconds=truth.seconds,
        noise_ceiling=fidelity.reliability,
        best_lds=fidelity.best_lds,
        notes=(*truth.notes, *fidelity.ceiling_notes),
        diverged=tuple(DivergedRetraining(d.model, d.order, d.subset) for d in truth.diverged),
    )


def _response(settings: StudySettings, response: Response) -> ResponseSummary:
    counted = int(response.groups.sum())
    return ResponseSummary(
        damping=response.damping,
        epsilon=EPSILON,
        alpha=settings.alpha,
        models=response.models,
        groups=counted,
        groups_dropped=len(response.groups) - counted,
        converged=counted == len(response.groups),
        mean_evaluations=response.steps,
        seconds=response.seconds,
    )
