"""`results.json`: the numbers of a study, by name, and the environment they came from."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from curvfluence._version import __version__
from curvfluence.fidelity import LDS, Difference
from curvfluence.study.climb import Climbed
from curvfluence.study.compare import Compared, Judged
from curvfluence.study.problems import StudyProblem
from curvfluence.study.retrain import Truth
from curvfluence.study.spec import StudySpec


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of each stage of a study."""

    truth: float
    climb: float
    compare: float
    total: float


def environment(hashes: dict[str, str]) -> dict[str, Any]:
    """Versions, machine and hashes."""
    packages = ("torch", "numpy", "scipy", "scikit-learn")
    return {
        "curvfluence": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "hashes": hashes,
        "command": " ".join(["curvfluence", *sys.argv[1:]]),
    }


def as_json(
    spec: StudySpec,
    problem: StudyProblem,
    truth: Truth,
    climbed: tuple[Climbed, ...],
    compared: Compared,
    timing: Timing,
    hashes: dict[str, str],
) -> dict[str, Any]:
    """Everything that a study found, ready for JSON."""
    pairs = zip(climbed, compared.rungs, strict=True)
    return {
        "problem": problem.name,
        "protocol": spec.protocol,
        "spec": spec.as_json(),
        "recipe": problem.recipe.describe(),
        "environment": environment(hashes),
        "truth": _truth(spec, problem, truth, compared),
        "rungs": [_rung(c, j) for c, j in pairs],
        "steps": [_step(*row) for row in compared.steps],
        "differences": [_difference(*row) for row in compared.differences],
        "seconds": {"truth": timing.truth, "climb": timing.climb, "compare": timing.compare},
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
        "path": truth.path,
        "influence_model_loss": truth.models.final_loss.tolist(),
        "retrained_loss": float(truth.final_loss.mean()),
        "seconds": truth.seconds,
        "noise_ceiling": {
            name: None if c is None else c.reliability for name, c in ceilings.items()
        },
        "best_lds": {name: None if c is None else c.best_lds for name, c in ceilings.items()},
        "notes": list(compared.ceiling_notes),
    }


def _rung(climbed: Climbed, judged: Judged) -> dict[str, Any]:
    matched, intervals = judged.matched, judged.intervals
    return {
        "name": climbed.name,
        "full_name": climbed.full_name,
        "fisher": climbed.fisher,
        "lds": matched.value,
        "interval": list(intervals.crossed),
        "interval_subsets": list(intervals.subsets),
        "interval_queries": list(intervals.queries),
        "lds_independent": None if judged.independent is None else judged.independent.value,
        "lds_ensemble": judged.ensemble.value,
        "dampings": list(matched.dampings),
        "dampings_independent": (
            None if judged.independent is None else list(judged.independent.dampings)
        ),
        "dampings_ensemble": list(judged.ensemble.dampings),
        "damping_on_edge": matched.on_edge,
        "undefined": matched.undefined,
        "sweep": _sweep(matched, judged),
        "fit_seconds": climbed.fit_seconds,
        "score_seconds": climbed.score_seconds,
        "peak_bytes": climbed.peak_bytes,
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


def _sweep(matched: LDS, judged: Judged) -> list[dict[str, Any]]:
    independent = judged.independent
    return [
        {
            "damping": damping,
            "lds": value,
            "lds_independent": None if independent is None else independent.sweep[k][1],
            "lds_ensemble": judged.ensemble.sweep[k][1],
        }
        for k, (damping, value) in enumerate(matched.sweep)
    ]


def _step(above: str, below: str, lost: Difference) -> dict[str, Any]:
    return {"from": above, "to": below, "lds_lost": lost.value, "interval": list(lost.interval)}


def _difference(a: str, b: str, found: Difference) -> dict[str, Any]:
    return {"a": a, "b": b, "difference": found.value, "interval": list(found.interval)}
