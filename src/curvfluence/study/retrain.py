"""The truth of a study: influence models, and what retraining on subsets did to the queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from curvfluence.errors import InputError, NonFiniteError
from curvfluence.store.hashes import hash_tensors
from curvfluence.store.steps import Steps
from curvfluence.study.problems import StudyProblem
from curvfluence.study.progress import Watcher
from curvfluence.study.spec import StudySpec
from curvfluence.study.words import counted
from curvfluence.truth import (
    Kept,
    Run,
    Subsets,
    Trained,
    grid,
    measure,
    random_subsets,
    train,
)
from curvfluence.truth.bank import (
    MODELS,
    RETRAINED,
    WEIGHTED,
    Asked,
    Bank,
    Batch,
    Source,
    packed,
)
from curvfluence.truth.paths import Path as TrainingPath

BLOCK = 50  # subsets of one batch


@dataclass(frozen=True, eq=False)
class Models:
    """The influence models, trained on everything, one for each initialisation."""

    trained: Trained
    base: Tensor  # [J, Q]: the queries' measurements before anything was left out
    seconds: float

    def checkpoints(self, models: Sequence[int]) -> Trained:
        """Some of them, by number."""
        return self.trained.only(models)


@dataclass(frozen=True)
class Diverged:
    """A retraining that ended in NaN or infinity: from which initialisation, in which of its
    orders, on which subset, by number."""

    model: int
    order: int
    subset: int


@dataclass(frozen=True, eq=False)
class Truth:
    """`values` [J, r, m, Q] is each query's measurement after training from initialisation j in
    order r on subset m. `seconds` are those of the retraining, now or in an earlier run. Subsets on
    which a retraining diverged are not among the m: `diverged` names these retrainings."""

    models: Models
    subsets: Subsets
    values: Tensor
    final_loss: Tensor  # of the retrained models, [J, r, m]
    path: str
    seconds: float
    diverged: tuple[Diverged, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What every result that rests on it must say."""
        gone = {one.subset for one in self.diverged}
        if not gone:
            return ()
        return (
            f"{counted(len(self.diverged), 'retraining')} diverged: {counted(len(gone), 'subset')} "
            "left out with what was trained on them, and what is said holds of the others",
        )

    @property
    def retrainings(self) -> int:
        return self.final_loss.numel()

    @property
    def told(self) -> dict[str, str]:
        """What a comparison with it goes by."""
        return {"truth": hash_tensors(self.values, self.models.base, self.subsets.weights)}


def source_of(problem: StudyProblem, spec: StudySpec) -> Source:
    """What the retrainings of a problem depend on, and the study that asked for them."""
    return Source(
        problem=problem.name,
        recipe=problem.recipe.describe(),
        measurement=problem.measurement.name,
        train=len(problem.train),
        queries=len(problem.queries),
        data=hash_tensors(*problem.train.tensors, *problem.queries.tensors),
        code=problem.source_hash,
        asked=Asked(spec.problem, spec.protocol, spec.variant.changes, spec.queries),
    )


def influence_runs(spec: StudySpec, problem: StudyProblem) -> list[Run]:
    """One run on everything for each influence model, each with an order of its own. The first is
    the given model of a problem of one's own, where the protocol leaves its training as it is."""
    inits = spec.seeds("initialisation", spec.models)
    orders = spec.seeds("order of the influence models", spec.models)
    runs = [Run(init, order) for init, order in zip(inits, orders, strict=True)]
    return runs if problem.run is None else [problem.run, *runs[1:]]


def draw_subsets(spec: StudySpec, problem: StudyProblem) -> Subsets:
    """The study's random subsets. Errors: `InputError` where there are not as many, or where they
    keep fewer examples than there are classes."""
    labels, kept = problem.train.labels, round(spec.alpha * len(problem.train))
    if labels is not None:
        classes = len(labels.unique())
        if kept < classes:
            raise InputError(
                f"alpha {spec.alpha:g} keeps {kept} of {len(labels)} examples, fewer than the "
                f"{classes} classes: a subset could not hold one of each. Use a larger alpha"
            )
    (seed,) = spec.seeds("subsets", 1)
    return random_subsets(len(problem.train), keep=spec.alpha, count=spec.subsets, seed=seed)


def train_models(spec: StudySpec, problem: StudyProblem, bank: Bank, watch: Watcher) -> Models:
    """Train J models on everything, or read them where the bank has them."""
    start = time.perf_counter()
    full = influence_runs(spec, problem)
    batch = _batch_of(spec, full)
    found = bank.find(batch)
    if found is not None:
        entry, arrays = found
        return Models(_trained(full, arrays, entry.seconds), arrays["base"], entry.seconds)
    with watch("train influence models", len(full)) as done, bank.steps([batch]) as steps:
        trained = train(problem.recipe, problem.train, full, steps=steps, progress=done)
        base = measure(problem.recipe, trained, problem.queries, problem.measurement)
        models = Models(trained, base.to(torch.float64), time.perf_counter() - start)
        bank.keep(batch, _kept(models), models.seconds)
    return models


def _batch_of(spec: StudySpec, full: Sequence[Run]) -> Batch:
    """The influence models, as a bank knows them."""
    seeds = tuple(r.init_seed for r in full), tuple(r.order_seed for r in full)
    return Batch(MODELS, spec.dtype, *seeds)


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


def _starts(spec: StudySpec, runs: Sequence[Run]) -> list[tuple[int, tuple[int, ...]]]:
    """Each influence model's initialisation, and the orders that it is retrained in."""
    r = spec.orders
    seeds = spec.seeds("order", spec.models * r)
    return [(run.init_seed, tuple(seeds[j * r : (j + 1) * r])) for j, run in enumerate(runs)]


@dataclass(frozen=True, eq=False)
class Retrained:
    """`values` [J, r, m, Q] and `final_loss` [J, r, m] of runs from J initialisations in r orders
    on m subsets, NaN where one diverged, and their seconds (now or in an earlier run)."""

    values: Tensor
    final_loss: Tensor
    seconds: float


def require_whole(made: Retrained) -> None:
    """Errors: `NonFiniteError` where a retraining diverged."""
    bad = int(made.final_loss.isnan().sum())
    if bad:
        raise NonFiniteError(
            f"{bad} of {made.final_loss.numel()} retrainings diverged to NaN or infinity: lower "
            "the learning rate, or set clip_norm"
        )


def lacking(spec: StudySpec, problem: StudyProblem, bank: Bank) -> int:
    """How many trainings of a study a bank does not have, its influence models among them. Reads
    no numbers."""
    full = influence_runs(spec, problem)
    models = 0 if bank.has(_batch_of(spec, full)) else len(full)
    parts = batches_of(spec, problem)
    return models + sum(len(part.runs) for part in parts if not bank.has(part.batch))


def make_truth(
    spec: StudySpec, problem: StudyProblem, models: Models, bank: Bank, watch: Watcher
) -> Truth:
    """Train J × r × m models on subsets that keep a fraction alpha; what the bank has is read.

    Each initialisation has minibatch orders of its own: shared ones would make the repeats of
    different initialisations agree for that reason.
    """
    subsets, starts = draw_subsets(spec, problem), _starts(spec, models.trained.runs)
    made = retrain(spec, problem, starts, subsets, bank, watch, alpha=spec.alpha)
    path = models.trained.path.name.lower()  # a matter of the recipe
    return truth_of(models, subsets, made, path)


def truth_of(models: Models, subsets: Subsets, made: Retrained, path: str) -> Truth:
    """The truth of the subsets on which every retraining converged. Errors: `NonFiniteError` where
    that is fewer than half of them."""
    bad_jrm = made.final_loss.isnan()
    diverged = tuple(Diverged(*at) for at in bad_jrm.nonzero().tolist())
    whole_m = ~bad_jrm.any(0).any(0)
    if int(whole_m.sum()) < len(subsets) / 2:
        raise NonFiniteError(
            f"{len(diverged)} of {bad_jrm.numel()} retrainings diverged to NaN or infinity, on "
            f"{int((~whole_m).sum())} of {len(subsets)} subsets: lower the learning rate, or set "
            "clip_norm"
        )
    values, loss = made.values[:, :, whole_m], made.final_loss[:, :, whole_m]
    kept = subsets if not diverged else replace(subsets, weights=subsets.weights[whole_m])
    return Truth(models, kept, values, loss, path, made.seconds, diverged)


def retrain(
    spec: StudySpec,
    problem: StudyProblem,
    starts: Sequence[tuple[int, tuple[int, ...]]],
    subsets: Subsets,
    bank: Bank,
    watch: Watcher,
    *,
    alpha: float | None = None,
) -> Retrained:
    """Train from each of `starts`, (an initialisation, its minibatch orders), on every subset;
    batches that the bank has are read, the others kept in it."""
    shape = (len(starts), len(starts[0][1]), len(subsets))
    values = torch.empty(*shape, len(problem.queries), dtype=torch.float64)
    final_loss = torch.empty(shape, dtype=torch.float64)
    missing: list[Part] = []
    seconds, done = 0.0, 0
    for part in _parts(spec.dtype, starts, subsets, alpha):
        found = bank.find(part.batch)
        if found is None:
            missing.append(part)
            continue
        entry, arrays = found
        values[part.place], final_loss[part.place] = arrays["values"], arrays["final_loss"]
        seconds, done = seconds + entry.seconds, done + len(part.runs)
    with watch("retrain on subsets", final_loss.numel()) as progress:
        progress(done)
        for part, value_rq, loss_r, each in _made(problem, missing, subsets, bank, progress, done):
            values[part.place], final_loss[part.place] = value_rq, loss_r
            seconds += each
    return Retrained(values, final_loss, seconds)


def batches_of(spec: StudySpec, problem: StudyProblem) -> list[Part]:
    """Every batch of a study's retrainings, in order."""
    return _laid_out(spec, problem, draw_subsets(spec, problem))


def _laid_out(spec: StudySpec, problem: StudyProblem, subsets: Subsets) -> list[Part]:
    starts = _starts(spec, influence_runs(spec, problem))
    return list(_parts(spec.dtype, starts, subsets, spec.alpha))


def models_of(spec: StudySpec, problem: StudyProblem) -> Batch:
    """The influence models of a study, as a bank knows them."""
    return _batch_of(spec, influence_runs(spec, problem))


def retrain_slice(
    spec: StudySpec, problem: StudyProblem, bank: Bank, watch: Watcher, which: Slice
) -> tuple[int, int]:
    """Every count-th batch of a study's retrainings, from the number-th on: (how many runs were
    trained, how many of them the bank had). Batches are numbered alike whatever it holds."""
    subsets = draw_subsets(spec, problem)
    own = _laid_out(spec, problem, subsets)[which.number - 1 :: which.count]
    missing = [part for part in own if not bank.has(part.batch)]
    total, new = (sum(len(part.runs) for part in parts) for parts in (own, missing))
    with watch("retrain on subsets", total) as progress:
        progress(total - new)
        for _ in _made(problem, missing, subsets, bank, progress, total - new):
            pass
    return new, total - new


def _made(
    problem: StudyProblem,
    missing: Sequence[Part],
    subsets: Subsets,
    bank: Bank,
    progress: Callable[[int], None],
    done: int,
) -> Iterator[tuple[Part, Tensor, Tensor, float]]:
    """(a batch, values [runs, Q], final losses, seconds) of each, kept in the bank."""
    waiting = iter(missing)
    while group := list(islice(waiting, torch.get_num_threads())):  # a batch for each thread
        start = time.perf_counter()
        with bank.steps([part.batch for part in group]) as steps:
            found_pq, loss_p = _train(
                problem, group, subsets, steps, lambda k, at=done: progress(at + k)
            )
            each = (time.perf_counter() - start) / len(group)
            for part, value_rq, loss_r in zip(group, found_pq, loss_p, strict=True):
                masks = subsets.weights[part.place[2]]
                kept = {"values": value_rq, "final_loss": loss_r, "subsets": packed(masks)}
                bank.keep(part.batch, kept, each)
                done += len(part.runs)
                yield part, value_rq, loss_r, each


@dataclass(frozen=True)
class Slice:
    """The number-th of count parts of a work, from 1 on."""

    number: int
    count: int

    @staticmethod
    def of(text: str) -> Slice:
        """3/16. Errors: `InputError` for anything else."""
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal()):
            raise InputError(f"a slice is written as 3/16, the third of sixteen; seen {text!r}")
        found = Slice(int(number), int(count))
        if not 1 <= found.number <= found.count:
            raise InputError(f"slices are numbered 1 to {found.count}; seen {text}")
        return found


@dataclass(frozen=True, eq=False)
class Part:
    """A batch of retrainings: where it belongs among all of them, and its runs."""

    place: tuple[int, int, slice]
    runs: list[Run]
    batch: Batch


def _parts(
    dtype: str,
    starts: Sequence[tuple[int, tuple[int, ...]]],
    subsets: Subsets,
    alpha: float | None,
) -> Iterator[Part]:
    """The retrainings by initialisation, order and block of subsets."""
    kind = RETRAINED if isinstance(subsets.way, Kept) else WEIGHTED
    for j, (init, orders) in enumerate(starts):
        for r, order in enumerate(orders):
            every = grid([init], [order], len(subsets))
            for start in range(0, len(subsets), BLOCK):
                rows = slice(start, min(start + BLOCK, len(subsets)))
                masks = hash_tensors(subsets.weights[rows])
                batch = Batch(kind, dtype, (init,), (order,), masks, alpha)
                yield Part((j, r, rows), every[rows], batch)


def _train(
    problem: StudyProblem,
    group: Sequence[Part],
    subsets: Subsets,
    steps: Steps | None,
    progress: Callable[[int], None],
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """(values [runs, Q] float64, final losses) of each batch of a group, trained side by side."""
    runs = [run for part in group for run in part.runs]
    recipe, queries = problem.recipe, problem.queries
    trained = train(
        recipe,
        problem.train,
        runs,
        subsets,
        steps=steps,
        keep_diverged=True,
        progress=progress,
    )
    bad_r, loss_r = trained.diverged, trained.final_loss.clone()
    loss_r[bad_r] = torch.nan
    found_rq = torch.full((len(runs), len(queries)), torch.nan, dtype=torch.float64)
    good = (~bad_r).nonzero()[:, 0].tolist()
    if good:
        whole = trained if len(good) == len(runs) else trained.only(good)
        found_rq[good] = measure(recipe, whole, queries, problem.measurement).double()
    sizes = [len(part.runs) for part in group]
    return found_rq.split(sizes), loss_r.split(sizes)
