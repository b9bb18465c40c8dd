"""The truth of a study: influence models, and what retraining on subsets did to the queries."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.study.problems import StudyProblem
from curvfluence.study.progress import Watcher
from curvfluence.study.spec import StudySpec
from curvfluence.truth import Run, Subsets, Trained, grid, measure, random_subsets, train


@dataclass(frozen=True, eq=False)
class Truth:
    """`models` are trained on everything, one for each initialisation; `values` [J, r, m, Q] is
    each query's measurement after training from initialisation j in order r on subset m."""

    models: Trained
    subsets: Subsets
    values: Tensor
    final_loss: Tensor  # of the retrained models, [J, r, m]
    path: str
    seconds: float

    @property
    def retrainings(self) -> int:
        return self.final_loss.numel()


def make_truth(spec: StudySpec, problem: StudyProblem, watch: Watcher) -> Truth:
    """Train J models on everything and J × r × m on subsets that keep a fraction alpha."""
    start = time.perf_counter()
    inits = spec.seeds("initialisation", spec.models)
    orders = spec.seeds("order", spec.orders)
    (own_order,) = spec.seeds("order of the influence models", 1)
    (subset_seed,) = spec.seeds("subsets", 1)
    subsets = random_subsets(
        len(problem.train), keep=spec.alpha, count=spec.subsets, seed=subset_seed
    )
    full = [Run(init, own_order) for init in inits]
    with watch("train influence models", len(full)) as done:
        models = train(problem.recipe, problem.train, full, progress=done)
    runs = grid(inits, orders, spec.subsets)
    with watch("retrain on subsets", len(runs)) as done:
        retrained = train(problem.recipe, problem.train, runs, subsets, progress=done)
    values = measure(problem.recipe, retrained, problem.queries, problem.measurement)
    shape = (spec.models, spec.orders, spec.subsets)
    return Truth(
        models=models,
        subsets=subsets,
        values=values.reshape(*shape, -1).to(torch.float64),
        final_loss=retrained.final_loss.reshape(shape),
        path=retrained.path.name.lower(),
        seconds=time.perf_counter() - start,
    )
