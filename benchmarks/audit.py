"""Does an audit find wrong labels, and does it do so better than plain loss?

    python benchmarks/audit.py [PROBLEM ...] [--share 0.1] [--seeds 3] [--out audit.json]

A share of the labels of a built-in problem is changed to another class at random, its net is
trained on them by its own recipe, and the share of the changed labels in the first 15% of each
criterion's list is printed, with the area under the ROC curve. Beside them stand the labels of the
20 nearest neighbours by the inputs themselves, which need no model at all.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

import curvfluence as cf
from curvfluence.auditing import Audit
from curvfluence.problem.data import Examples
from curvfluence.problem.tree import tensor_of
from curvfluence.study import load
from curvfluence.study.problems import StudyProblem
from curvfluence.study.problems.given import trained_once
from curvfluence.truth import Run

PROBLEMS = ("digits", "mnist5k", "breast_cancer", "wine")
NEAREST = 20


def with_wrong_labels(
    study: StudyProblem, share: float, seed: int
) -> tuple[StudyProblem, list[int]]:
    """Labels of which a random share became another class, uniformly; and which."""
    labels = tensor_of(study.train.targets, "targets").clone()
    classes, generator = int(labels.max()) + 1, torch.Generator().manual_seed(1000 + seed)
    rows = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    labels[rows] += torch.randint(1, classes, (len(rows),), generator=generator)
    labels %= classes
    return replace(study, train=Examples(study.train.inputs, labels)), sorted(rows.tolist())


def by_inputs(found: Audit, study: StudyProblem) -> Audit:
    """With the share of the nearest inputs whose label is another."""
    x = tensor_of(study.train.inputs, "inputs").flatten(1).numpy()
    labels = tensor_of(study.train.targets, "targets").numpy()
    near = NearestNeighbors(n_neighbors=NEAREST + 1).fit(x).kneighbors(x, return_distance=False)
    other = (labels[near[:, 1:]] != labels[:, None]).mean(1)
    return replace(found, values={**found.values, "nearest inputs": torch.tensor(other)})


def of_problem(name: str, share: float, seed: int) -> dict[str, Any]:
    study, wrong = with_wrong_labels(load(name), share, seed)
    given = trained_once(study, Run(seed, seed))
    found = by_inputs(cf.audit(given.problem, flipped=wrong), study)
    return {
        "problem": name,
        "seed": seed,
        "criteria": {n: [found.recall(n), found.auc(n)] for n in found.values},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problems", nargs="*", default=list(PROBLEMS))
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in asked.problems:
        some = [of_problem(name, asked.share, seed) for seed in range(asked.seeds)]
        rows += some
        print(f"{name}: recall in the first 15%, AUC; mean (least to most) of {asked.seeds} seeds")
        for criterion in some[0]["criteria"]:
            recall, auc = np.array([one["criteria"][criterion] for one in some]).T
            print(
                f"  {criterion:16} {recall.mean():.3f} ({recall.min():.2f} to {recall.max():.2f})  "
                f"{auc.mean():.3f}",
                flush=True,
            )
    if asked.out is not None:
        asked.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
