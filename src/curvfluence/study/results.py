"""`results.json`: the numbers of a study, by name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import log10
from typing import Any

import torch
from torch import Tensor

from curvfluence.fidelity import LDS, Difference, Spectrum, mean_steps
from curvfluence.study.climb import Climbed, Ladder
from curvfluence.study.compare import Compared, Judged
from curvfluence.study.environment import environment
from curvfluence.study.problems import StudyProblem
from curvfluence.study.response import EPSILON, Missing, Response
from curvfluence.study.retrain import Truth
from curvfluence.study.spec import StudySpec


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of each stage of a study: of training the influence models, of climbing
    the ladder (both may have served other studies too), of retraining, comparing, and of the
    proximal Bregman response."""

    models: float
    climb: float
    truth: float
    compare: float
    bregman: float
    total: float


@dataclass(frozen=True, eq=False)
class Found:
    """Everything that the stages of a study found."""

    truth: Truth
    ladder: Ladder
    compared: Compared
    response: Response | Missing


def as_json(
    spec: StudySpec,
    problem: StudyProblem,
    found: Found,
    timing: Timing,
    hashes: dict[str, str],
) -> dict[str, Any]:
    """Everything that a study found, ready for JSON."""
    truth, ladder, compared, response = found.truth, found.ladder, found.compared, found.response
    rows = [
        (climbed.hybrid, {**_rung(spec, climbed, judged), **_against(response, climbed.name)})
        for climbed, judged in zip(ladder.rungs, compared.rungs, strict=True)
    ]
    rungs = [row for hybrid, row in rows if not hybrid]
    _mark_pareto(rungs)
    decompositions = _decompositions(spec, ladder, compared)
    return {
        "problem": problem.name,
        "title": problem.display.title,
        "description": problem.display.description,
        "display": {
            "kind": problem.display.kind,
            "names": list(problem.display.feature_names) or None,
            "classes": list(problem.display.class_names) or None,
            "unit": problem.display.input_unit,
        },
        "flipped": None if problem.flipped is None else problem.flipped.tolist(),
        "flipped_from": None if problem.flipped_from is None else problem.flipped_from.tolist(),
        "own_model": None if problem.run is None else 0,
        "protocol": spec.protocol,
        "spec": spec.as_json(),
        "recipe": problem.recipe.describe(),
        "environment": environment(hashes),
        "truth": _truth(spec, problem, truth, compared),
        "rungs": rungs,
        "hybrids": [row for hybrid, row in rows if hybrid],
        "steps": [_step(*row) for row in compared.steps],
        "decomposition": decompositions[0],
        "decompositions": decompositions,
        "overlap": {
            "ranks": list(ladder.overlap_ranks),
            "pairs": [{"a": a, "b": b, "overlap": list(o)} for a, b, o in ladder.overlaps],
        },
        "differences": [_difference(*row) for row in compared.differences],
        "bregman": _bregman(spec, response) if isinstance(response, Response) else None,
        "bregman_missing": response.reason if isinstance(response, Missing) else None,
        "seconds": {name: value for name, value in asdict(timing).items() if name != "total"},
        "study_seconds": timing.total,
        "report_seconds": None,
    }


def _truth(
    spec: StudySpec, problem: StudyProblem, truth: Truth, compared: Compared
) -> dict[str, Any]:
    ceilings = compared.ceilings
    return {
        "subsets": spec.subsets,
        "alpha": spec.alpha,
        "kept": round(spec.alpha * len(problem.train)),
        "train": len(problem.train),
        "queries": len(problem.queries),
        "models": spec.models,
        "orders": spec.orders,
        "retrainings": truth.retrainings,
        "measurement": problem.measurement.name,
        "unit": problem.measurement.unit,
        "lower_is_better": problem.measurement.lower_is_better,
        "path": truth.path,
        "influence_model_loss": truth.models.trained.final_loss.tolist(),
        "retrained_loss": float(truth.final_loss.mean()),
        "seconds": truth.seconds,
        "noise_ceiling": {
            name: None if c is None else c.reliability for name, c in ceilings.items()
        },
        "best_lds": {name: None if c is None else c.best_lds for name, c in ceilings.items()},
        "notes": list(compared.ceiling_notes),
    }


def _rung(spec: StudySpec, climbed: Climbed, judged: Judged) -> dict[str, Any]:
    matched, intervals = judged.matched, judged.intervals
    return {
        "name": climbed.name,
        "full_name": climbed.full_name,
        "fisher": climbed.fisher,
        "surprising_labels": climbed.surprising_labels,
        "lds": matched.value,
        "interval": list(intervals.crossed),
        "interval_subsets": list(intervals.subsets),
        "interval_queries": list(intervals.queries),
        "lds_independent": None if judged.independent is None else judged.independent.value,
        "lds_ensemble": None if judged.ensemble is None else judged.ensemble.value,
        "dampings": list(matched.dampings),
        "dampings_independent": (
            None if judged.independent is None else list(judged.independent.dampings)
        ),
        "dampings_ensemble": (None if judged.ensemble is None else list(judged.ensemble.dampings)),
        "damping_on_edge": matched.on_edge,
        "undefined": matched.undefined,
        "sweep": _sweep(matched, judged),
        "fit_seconds": climbed.fit_seconds,
        "score_seconds": climbed.score_seconds,
        "peak_bytes": _peak(climbed),
        "flops": (
            None
            if climbed.fit_needs is None or climbed.score_needs is None
            else {"fit": climbed.fit_needs.flops, "score": climbed.score_needs.flops}
        ),
        "calibration": None if judged.calibration is None else asdict(judged.calibration),
        "spectrum": _spectrum(climbed.spectrum, spec.dampings),
        "coverage": [
            {
                "block": line.block,
                "parameters": list(line.parameters),
                "count": line.count,
                "rule": line.rule,
                "fallback": line.fallback,
            }
            for line in climbed.coverage
        ],
        "notes": list(climbed.notes),
    }


def _bregman(spec: StudySpec, response: Response) -> dict[str, Any]:
    kept = int(response.groups.sum())
    return {
        "damping": response.damping,
        "epsilon": EPSILON,
        "alpha": spec.alpha,
        "models": response.models,
        "groups": kept,
        "groups_dropped": spec.subsets - kept,
        "converged": kept == spec.subsets,
        "mean_evaluations": response.steps,
        "seconds": response.seconds,
    }


def _against(response: Response | Missing, name: str) -> dict[str, Any]:
    """A rung's LDS against the proximal Bregman response; nulls where there is none."""
    if isinstance(response, Missing):
        return dict.fromkeys(("lds_bregman", "interval_bregman", "dampings_bregman"))
    return {
        "lds_bregman": response.lds[name].value,
        "interval_bregman": list(response.intervals[name]),
        "dampings_bregman": list(response.lds[name].dampings),
    }


def _peak(climbed: Climbed) -> int | None:
    """The larger of the peaks of fit and scores."""
    found = [n.peak_bytes for n in (climbed.fit_needs, climbed.score_needs) if n is not None]
    known = [peak for peak in found if peak is not None]
    return max(known) if known else None


def _mark_pareto(rungs: list[dict[str, Any]]) -> None:
    """Mark the rungs that no other beats in both LDS and seconds of fit and scores."""
    at = [(rung["fit_seconds"] + rung["score_seconds"], rung["lds"]) for rung in rungs]
    for rung, (seconds, lds) in zip(rungs, at, strict=True):
        rung["pareto"] = not any(s <= seconds and v > lds for s, v in at)


def _spectrum(found: Spectrum, dampings: tuple[float, ...]) -> dict[str, Any]:
    ranks, values = _thinned(found.eigenvalues)
    middle = dampings[len(dampings) // 2]
    return {
        "ranks": ranks,
        "eigenvalues": values,
        "effective_dimension": [
            {"damping": damping, "value": found.effective_dimension(damping)}
            for damping in dampings
        ],
        "condition": found.condition(middle),
        "condition_damping": middle,
        "negative": {
            "count": len(found.negative),
            "lowest": float(found.eigenvalues[-1]),
            "share": found.negative_share,
        },
        "blocks": [
            {"name": name, **dict(zip(("ranks", "eigenvalues"), _thinned(block), strict=True))}
            for name, block in found.blocks
        ],
    }


def _thinned(values: Tensor, count: int = 120) -> tuple[list[int], list[float]]:
    """About `count` of the eigenvalues at log-spaced ranks, the first and last among them."""
    ranks = torch.logspace(0, log10(len(values)), count).round().long().unique()
    ranks = ranks.clamp(1, len(values))
    return ranks.tolist(), values[ranks - 1].double().tolist()


def _decompositions(spec: StudySpec, ladder: Ladder, compared: Compared) -> list[dict[str, Any]]:
    """One for each chain: the mean over models, and each model's share of each step."""
    found: list[dict[str, Any]] = []
    for fisher, models in ladder.decompositions.items():
        steps = mean_steps(models)
        by_model = [[model[k].share for model in models] for k in range(len(steps))]
        rows = [
            {
                "from": step.above,
                "to": step.below,
                "distance_squared": step.distance_squared,
                "share": step.share,
                "share_models": shares if step.share is not None else None,
                "norm_share": step.norm_share,
                "norm_share_models": (
                    [model[k].norm_share for model in models] if step.share is not None else None
                ),
                "inverse_error": list(step.inverse_error),
                "score_error": list(step.score_error),
                **_lost(compared, step.above, step.below),
            }
            for k, (step, shares) in enumerate(zip(steps, by_model, strict=True))
        ]
        found.append({"fisher": fisher, "dampings": list(spec.dampings), "steps": rows})
    return found


def _lost(compared: Compared, above: str, below: str) -> dict[str, Any]:
    found = compared.lost[above, below]
    share = compared.lds_shares.get((above, below))
    return {
        "lds_lost": found.value,
        "interval": list(found.interval),
        "lds_share": None if share is None else share[0],
        "lds_share_interval": None if share is None or share[1] is None else list(share[1]),
    }


def _sweep(matched: LDS, judged: Judged) -> list[dict[str, Any]]:
    independent = judged.independent
    return [
        {
            "damping": damping,
            "lds": value,
            "lds_independent": None if independent is None else independent.sweep[k][1],
            "lds_ensemble": None if judged.ensemble is None else judged.ensemble.sweep[k][1],
        }
        for k, (damping, value) in enumerate(matched.sweep)
    ]


def _step(above: str, below: str, lost: Difference) -> dict[str, Any]:
    return {"from": above, "to": below, "lds_lost": lost.value, "interval": list(lost.interval)}


def _difference(a: str, b: str, found: Difference) -> dict[str, Any]:
    return {"a": a, "b": b, "difference": found.value, "interval": list(found.interval)}
