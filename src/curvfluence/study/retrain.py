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
class Models:
    """The influence models, trained on everything, one for each initialisation."""

    trained: Trained
    base: Tensor  # [J, Q]: the queries' measurements before anything was left out
    seconds: float


@dataclass(frozen=True, eq=False)
class Truth:
    """`values` [J, r, m, Q] is each query's measurement after training from initialisation j in
    order r on subset m."""

    models: Models
    subsets: Subsets
    values: Tensor
    final_loss: Tensor  # of the retrained models, [J, r, m]
    path: str
    seconds: float

    @property
    def retrainings(self) -> int:
        return self.final_loss.numel()


def influence_runs(spec: StudySpec, problem: StudyProblem) -> list[Run]:
    """One run on everything for each influence model, each with an order of its own. The first is
    the given model of a problem of one's own, where the protocol leaves its training as it is."""
    inits = spec.seeds("initialisation", spec.models)
    orders = spec.seeds("order of the influence models", spec.models)
    runs = [Run(init, order) for init, order in zip(inits, orders, strict=True)]
    return runs if problem.run is None else [problem.run, *runs[1:]]


def draw_subsets(spec: StudySpec, problem: StudyProblem) -> Subsets:
    """The study's random subsets. Errors: `InputError` where there are not as many."""
    (seed,) = spec.seeds("subsets", 1)
    return random_subsets(len(problem.train), keep=spec.alpha, count=spec.subsets, seed=seed)


def train_models(spec: StudySpec, problem: StudyProblem, watch: Watcher) -> Models:
    """Train J models on everything."""
    start = time.perf_counter()
    full = influence_runs(spec, problem)
    with watch("train influence models", len(full)) as done:
        trained = train(problem.recipe, problem.train, full, progress=done)
    base = measure(problem.recipe, trained, problem.queries, problem.measurement)
    return Models(trained, base.to(torch.float64), time.perf_counter() - start)


def make_truth(spec: StudySpec, problem: StudyProblem, models: Models, watch: Watcher) -> Truth:
    """Train J × r × m models on subsets that keep a fraction alpha."""
    start = time.perf_counter()
    subsets = draw_subsets(spec, problem)
    # Each initialisation has minibatch orders of its own: shared ones would make the repeats of
    # different initialisations agree for that reason.
    orders = iter(spec.seeds("order", spec.models * spec.orders))
    runs = [
        run
        for model in models.trained.runs
        for run in grid([model.init_seed], [next(orders) for _ in range(spec.orders)], spec.subsets)
    ]
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
