"""The truth of a study: influence models, and what retraining on subsets did to the queries."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from curvfluence.problem.data import Examples
from curvfluence.store.hashes import hash_tensors
from curvfluence.study.problems import StudyProblem
from curvfluence.study.progress import Watcher
from curvfluence.study.spec import StudySpec
from curvfluence.truth import Run, Subsets, Trained, grid, measure, random_subsets, train
from curvfluence.truth.bank import Asked, Bank, Batch, Source
from curvfluence.truth.paths import Path as TrainingPath

BLOCK = 50  # subsets of one batch: what is lost where a run is interrupted


@dataclass(frozen=True, eq=False)
class Models:
    """The influence models, trained on everything, one for each initialisation."""

    trained: Trained
    base: Tensor  # [J, Q]: the queries' measurements before anything was left out
    seconds: float


@dataclass(frozen=True, eq=False)
class Truth:
    """`values` [J, r, m, Q] is each query's measurement after training from initialisation j in
    order r on subset m. `seconds` are those of the retraining, now or in an earlier run."""

    models: Models
    subsets: Subsets
    values: Tensor
    final_loss: Tensor  # of the retrained models, [J, r, m]
    path: str
    seconds: float

    @property
    def retrainings(self) -> int:
        return self.final_loss.numel()


def source_of(problem: StudyProblem, spec: StudySpec) -> Source:
    """What the retrainings of a problem depend on, and the study that asked for them."""
    return Source(
        problem=problem.name,
        recipe=problem.recipe.describe(),
        measurement=problem.measurement.name,
        train=len(problem.train),
        queries=len(problem.queries),
        data=hash_tensors(*_tensors(problem.train), *_tensors(problem.queries)),
        code=problem.source_hash,
        asked=Asked(spec.problem, spec.protocol, spec.variant.changes, spec.queries),
    )


def _tensors(examples: Examples) -> tuple[Tensor, ...]:
    weights = () if examples.weights is None else (examples.weights,)
    return (examples.inputs, examples.targets, *weights)


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


def train_models(spec: StudySpec, problem: StudyProblem, bank: Bank, watch: Watcher) -> Models:
    """Train J models on everything, or read them where the bank has them."""
    start = time.perf_counter()
    full = influence_runs(spec, problem)
    batch = Batch(
        "models", spec.dtype, tuple(r.init_seed for r in full), tuple(r.order_seed for r in full)
    )
    found = bank.find(batch)
    if found is not None:
        entry, arrays = found
        return Models(_trained(full, arrays, entry.seconds), arrays["base"], entry.seconds)
    with watch("train influence models", len(full)) as done:
        trained = train(problem.recipe, problem.train, full, progress=done)
    base = measure(problem.recipe, trained, problem.queries, problem.measurement)
    models = Models(trained, base.to(torch.float64), time.perf_counter() - start)
    bank.keep(batch, _kept(models), models.seconds)
    return models


def _kept(models: Models) -> dict[str, Tensor]:
    """Weights and buffers by name, and what the queries were measured at."""
    trained = models.trained
    return {
        "base": models.base,
        "final_loss": trained.final_loss,
        "path": torch.tensor(list(TrainingPath).index(trained.path)),
        **{f"theta.{name}": value for name, value in trained.theta.items()},
        **{f"state.{name}": value for name, value in trained.state.items()},
    }


def _trained(runs: list[Run], arrays: dict[str, Tensor], seconds: float) -> Trained:
    def of(kind: str) -> dict[str, Tensor]:
        before = f"{kind}."
        return {k.removeprefix(before): v for k, v in arrays.items() if k.startswith(before)}

    path = list(TrainingPath)[int(arrays["path"])]
    final_loss, reason = arrays["final_loss"], "read from its bank"
    return Trained(tuple(runs), of("theta"), of("state"), final_loss, path, reason, seconds)


@dataclass(frozen=True, eq=False)
class _Part:
    """A batch of retrainings: where it belongs among all of them, and its runs."""

    place: tuple[int, int, slice]
    runs: list[Run]
    batch: Batch


def make_truth(
    spec: StudySpec, problem: StudyProblem, models: Models, bank: Bank, watch: Watcher
) -> Truth:
    """Train J × r × m models on subsets that keep a fraction alpha; what the bank has is read."""
    subsets = draw_subsets(spec, problem)
    shape = (spec.models, spec.orders, spec.subsets)
    values = torch.empty(*shape, len(problem.queries), dtype=torch.float64)
    final_loss = torch.empty(shape, dtype=torch.float64)
    missing: list[_Part] = []
    seconds, trained = 0.0, 0
    for part in _parts(spec, models, subsets):
        found = bank.find(part.batch)
        if found is None:
            missing.append(part)
            continue
        entry, arrays = found
        values[part.place], final_loss[part.place] = arrays["values"], arrays["final_loss"]
        seconds, trained = seconds + entry.seconds, trained + len(part.runs)
    path = models.trained.path
    with watch("retrain on subsets", final_loss.numel()) as done:
        done(trained)
        waiting = iter(missing)
        while group := list(islice(waiting, torch.get_num_threads())):  # a batch for each thread
            start, before = time.perf_counter(), trained
            runs = [run for part in group for run in part.runs]

            def show(count: int, before: int = before) -> None:
                done(before + count)

            retrained = train(problem.recipe, problem.train, runs, subsets, progress=show)
            found_rq = measure(problem.recipe, retrained, problem.queries, problem.measurement)
            path, each = retrained.path, (time.perf_counter() - start) / len(group)
            sizes = [len(part.runs) for part in group]
            rows = zip(
                group,
                found_rq.double().split(sizes),
                retrained.final_loss.split(sizes),
                strict=True,
            )
            for part, value_rq, loss_r in rows:
                values[part.place], final_loss[part.place] = value_rq, loss_r
                masks = subsets.weights[part.place[2]]
                bank.keep(
                    part.batch, {"values": value_rq, "final_loss": loss_r, "subsets": masks}, each
                )
            seconds, trained = seconds + each * len(group), trained + len(runs)
    return Truth(models, subsets, values, final_loss, path.name.lower(), seconds)


def _parts(spec: StudySpec, models: Models, subsets: Subsets) -> Iterator[_Part]:
    """The retrainings by initialisation, order and block of subsets.

    Each initialisation has minibatch orders of its own: shared ones would make the repeats of
    different initialisations agree for that reason.
    """
    orders = iter(spec.seeds("order", spec.models * spec.orders))
    for j, model in enumerate(models.trained.runs):
        for r in range(spec.orders):
            every = grid([model.init_seed], [next(orders)], spec.subsets)
            for start in range(0, spec.subsets, BLOCK):
                rows = slice(start, min(start + BLOCK, spec.subsets))
                runs = every[rows]
                batch = Batch(
                    "retrained",
                    spec.dtype,
                    (model.init_seed,),
                    (runs[0].order_seed,),
                    hash_tensors(subsets.weights[rows]),
                    spec.alpha,
                )
                yield _Part((j, r, rows), runs, batch)
