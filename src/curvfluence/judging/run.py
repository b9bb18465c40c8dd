"""Judge scores that anybody made: against retraining, beside our rungs and simple baselines."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.fidelity import query_halves
from curvfluence.judging.baselines import Trak
from curvfluence.judging.contenders import RANDOM, Contender, baselines_of, rungs_of
from curvfluence.judging.files import Source
from curvfluence.judging.given import Asked, Given, Meaning, given
from curvfluence.judging.methods import chosen, method_of, removed_of
from curvfluence.judging.records import Judgement, Method, Removed
from curvfluence.judging.subject import Settings, Subject, require_models
from curvfluence.runtime import journal
from curvfluence.runtime.threads import limited
from curvfluence.store.folder import keeping
from curvfluence.store.hashes import hash_tensors
from curvfluence.store.lock import Holding
from curvfluence.store.records import write
from curvfluence.store.steps import Steps
from curvfluence.study.at_model import swept
from curvfluence.study.climb import influence_problems
from curvfluence.study.compare import Measured, RungFidelity, noise_ceilings
from curvfluence.study.environment import environment
from curvfluence.study.progress import Watcher, silent
from curvfluence.study.questions.removal import Removal
from curvfluence.study.results.truth import ByQuestion
from curvfluence.study.retrain import Models, Truth, lacking, make_truth, train_models
from curvfluence.study.words import interval

JUDGED = "judged"  # what the scores are called, unless they are named


@dataclass(frozen=True)
class Beside:
    """What scores are held beside: rungs of ours by name (EK-FAC and, up to 10,000 parameters, GGN
    where None), baselines with their settings, and with `removal` what leaving out the examples of
    the highest scores does, which retrains (`Removal.retrainings` says how often)."""

    rungs: tuple[str, ...] | None = None
    baselines: bool = True
    trak: Trak = Trak()  # noqa: RUF009 - a frozen value
    removal: Removal | None = None


def judge(
    scores: Source | Sequence[Source],
    problem: str | None = None,
    *,
    positive: str | None = None,
    order: str | None = None,
    units: str | None = None,
    key: str | None = None,
    model: int | Sequence[int] | None = None,
    name: str = JUDGED,
    beside: Beside = Beside(),
    settings: Settings = Settings(),  # noqa: B008 - a frozen value
    bank: Path | str | None = None,
    out: Path | str | None = None,
    threads: int | None = None,
    wait: bool = False,
    watch: Watcher = silent,
) -> Judgement:
    """What scores [query, train] of a problem are worth against retraining: LDS with interval, its
    paired difference to rungs and baselines, calibration, and what removal of the top does.

    `scores` is a file, an array, a tensor or `Scores`, of one influence model, or [model, query,
    train]; or several, one a model. They are made of `problem_of(problem, j)`: all of its queries
    and training examples, in its order. `positive`, `order`, `units` and `key` say what they mean,
    see `Meaning`; where the file fixes it they are left out. `model` is the number of the influence
    model or models, 0 (and 1, 2, …) unless given. `settings` are those of the study whose truth it
    is; with them LDS of our rungs, of all of its models, is the study's own. Only retrainings from
    the judged models' own initialisations count, and with one model the interval holds no spread
    over models.

    `bank` is a folder of retrainings, see `Subject.of`; what it lacks is trained and added, but for
    removals, which are kept in a folder of their own. Where anything is kept the folder is held:
    another judgement that keeps something there is refused meanwhile, or with `wait` waits.

    `out` is a file that the result is written to as JSON.

    Cost: the retrainings that the bank lacks; a fit of each rung at each judged model.
    Errors: `InputError` before any work where the scores are not of this problem's shape, or their
    sign or order is neither said nor fixed by the file; `NotKeptError`, which has the judgement,
    where `out` cannot be written.
    """
    start = time.perf_counter()
    path = kinds.path(out, "out")
    if path is not None and not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder: out names a file in one that exists")
    subject = Subject.of(problem, settings, kinds.path(bank, "bank"))
    meaning = Meaning(positive, order, units, key)
    read = given(scores, meaning, _asked(subject))
    models = _models(model, len(read.values), subject)
    if beside.rungs:
        replace(subject.spec, rungs=beside.rungs)  # which there are
    _require_removal(beside.removal, subject)
    with limited(threads), ExitStack() as stack:
        holding = Holding(subject.folder, wait, stack)
        found = _Judge(subject, read, models, name, beside, holding, watch).judgement(start)
        if path is not None:
            with keeping(path, found):
                write(path, found)
    return found


def _asked(subject: Subject) -> Asked:
    problem = subject.problem
    return Asked(
        subject.spec.problem,  # as it was asked for: a file by its path
        len(problem.queries),
        len(problem.train),
        problem.measurement.name,
        problem.measurement.lower_is_better,
    )


def _models(model: int | Sequence[int] | None, count: int, subject: Subject) -> list[int]:
    """The judged models' numbers. Errors: `InputError` where they are not as many as scores."""
    if model is None:
        models = list(range(count))
    else:
        models = [model] if isinstance(model, int) else kinds.counts(model, "model")
    if len(models) != count:
        raise InputError(f"scores are of {count} models, and model names {len(models)}: {models}")
    require_models(models, subject.spec)
    return models


def _require_removal(removal: Removal | None, subject: Subject) -> None:
    if removal is not None and removal.queries > len(subject.problem.queries):
        raise InputError(
            f"removal is of {removal.queries} queries; {subject.problem.name} has "
            f"{len(subject.problem.queries)}"
        )


@dataclass(frozen=True, eq=False)
class _Judge:
    subject: Subject
    given: Given
    models: list[int]
    name: str
    beside: Beside
    holding: Holding  # until the judgement is written: what was kept on the way then goes
    watch: Watcher

    def judgement(self, start: float) -> Judgement:
        subject, spec, problem = self.subject, self.subject.spec, self.subject.problem
        if self.beside.removal is not None or lacking(spec, problem, subject.bank):
            self.holding.take()
        lacked = lacking(spec, problem, subject.bank)  # another command may have made some
        subject.claim()
        trained = train_models(spec, problem, subject.bank, self.watch)
        truth = make_truth(spec, problem, trained, subject.bank, self.watch)
        contenders, notes, steps = self._contenders(trained)
        (half_seed,) = spec.seeds("query halves", 1)
        halves = query_halves(truth.values.shape[-1], half_seed)
        measured = Measured(spec, truth, halves, self.models)
        fidelity = self._fidelity(contenders, measured, truth, steps)
        removed, control = self._removals(trained, contenders, fidelity, halves)
        first = fidelity[contenders[0].name]
        methods = tuple(
            method_of(
                one, fidelity[one.name], first.replicates, measured, removed.get(one.name, ())
            )
            for one in contenders
        )
        ceilings, reasons = noise_ceilings(spec, truth)
        removal = self.beside.removal
        return Judgement(
            environment=environment({"data": subject.bank.source.data}),
            problem=problem.name,
            unit=problem.measurement.unit,
            lower_is_better=problem.measurement.lower_is_better,
            settings=structs.replace(spec.settings, rungs=_rungs(contenders)),
            bank=str(subject.bank.path),
            retrainings=truth.retrainings,
            trained=lacked,
            models=tuple(self.models),
            scores=self.given.said,
            positive=self.given.positive,
            order=self.given.order,
            has_units=self.given.units,
            reliability=ByQuestion(**{q: c and c.reliability for q, c in ceilings.items()}),
            best_lds=ByQuestion(**{q: c and c.best_lds for q, c in ceilings.items()}),
            methods=methods,
            control=control,
            removal_queries=0 if removal is None else removal.queries,
            removal_retrainings=(
                0 if removal is None else removal.retrainings(len(removed), len(self.models))
            ),
            notes=(
                *self.given.notes,
                *truth.notes,
                *self._said(methods[0], truth),
                *notes,
                *reasons,
            ),
            seconds=time.perf_counter() - start,
        )

    def _fidelity(
        self,
        contenders: Sequence[Contender],
        measured: Measured,
        truth: Truth,
        steps: Steps | None,
    ) -> dict[str, RungFidelity]:
        """What each is worth, by its name."""
        left_out = measured.left_out
        sweeps = {o.name: partial(swept, o.scores, o.dampings, left_out) for o in contenders}
        with ExitStack() as stack:
            if steps is not None:
                scores = hash_tensors(*(one.scores for one in contenders))
                stack.enter_context(journal.kept_in(steps.within({"scores": scores, **truth.told})))
            return {one.name: one for one in measured.each(sweeps, self.watch)}

    def _contenders(self, models: Models) -> tuple[list[Contender], list[str], Steps | None]:
        """The judged scores, our rungs and the baselines; what is missing among them; and where
        what takes long is kept."""
        units = self.given.units
        said = (
            self.given.said[0] if len(self.given.said) == 1 else f"{len(self.given.said)} sources"
        )
        first = Contender(self.name, "judged", said, self.given.values[:, None], units=units)
        trained = models.checkpoints(self.models)
        problems = influence_problems(self.subject.problem, trained)
        ours, left_out, steps = rungs_of(
            self.subject, trained, problems, self.beside.rungs, self.holding, self.watch
        )
        base, missing = ([], [])
        if self.beside.baselines:
            (seed,) = self.subject.spec.seeds("random scores", 1)
            base, missing = baselines_of(self.subject, trained, problems, self.beside.trak, seed)
        every = [first, *ours, *base]
        names = [one.name for one in every]
        if len(set(names)) < len(names):
            raise InputError(f"{self.name!r} is what another method is called: give another name")
        return every, [*left_out, *missing], steps

    def _said(self, judged: Method, truth: Truth) -> list[str]:
        """What a reader of the judged scores' numbers must know."""
        low, high = judged.interval
        notes: list[str] = []
        if high < 0:
            other = "hurts" if self.given.positive == "helps" else "helps"
            notes.append(
                f"the LDS lies wholly below 0 ({interval(judged.interval)}): the sign looks "
                f"reversed. If a positive score {other}, say so"
            )
        elif low <= 0:
            notes.append(
                "the LDS is not told from 0: are queries and training examples those of "
                "problem_of, in its order, and the scores of its model?"
            )
        if judged.undefined:
            pairs = truth.values.shape[-1] * len(self.models)
            notes.append(
                f"{judged.undefined} of {pairs} pairs of model and query have predictions or a "
                "truth that are the same for all subsets, and count as 0"
            )
        if len(self.models) == 1:
            notes.append("scores of one influence model: the intervals hold no spread over models")
        return notes

    def _removals(
        self,
        models: Models,
        contenders: Sequence[Contender],
        fidelity: Mapping[str, RungFidelity],
        halves: NDArray[np.bool_],
    ) -> tuple[dict[str, tuple[Removed, ...]], tuple[Removed, ...]]:
        """What the removal of each method's top does, by its name, and of as many at random."""
        removal, subject = self.beside.removal, self.subject
        if removal is None:
            return {}, ()
        sign = 1.0 if subject.problem.measurement.lower_is_better else -1.0
        helps = {
            one.name: sign * chosen(one, fidelity[one.name], torch.from_numpy(halves))
            for one in contenders
            if one.kind != "baseline" or one.name != RANDOM  # the control
        }
        subject.removals.claim()
        runs = {j: models.trained.runs[j] for j in self.models}
        change_rkjq = removal.changes(
            subject.spec, subject.problem, runs, helps, subject.removals, self.watch
        )
        rows = [removed_of(change, removal, len(subject.problem.train)) for change in change_rkjq]
        return dict(zip(helps, rows, strict=False)), rows[-1]


def _rungs(contenders: Sequence[Contender]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.rung for one in contenders if one.rung is not None))
