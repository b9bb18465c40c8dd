"""Ask one ladder several questions: fractions kept, one example left out, the most helpful ones
removed, and how retrainings spread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.runtime import journal
from curvfluence.runtime.threads import limited
from curvfluence.store.folder import keeping, require_no_study
from curvfluence.store.lock import held
from curvfluence.store.records import as_json, write
from curvfluence.store.steps import STEPS, Steps
from curvfluence.study.asked import asked
from curvfluence.study.at_model import RungScores
from curvfluence.study.climb import Ladder, climb
from curvfluence.study.compare import LadderFidelity, compare
from curvfluence.study.environment import environment
from curvfluence.study.problems import StudyProblem, load
from curvfluence.study.progress import Watcher, silent
from curvfluence.study.questions.records import QUESTIONS, Answer, Kind, Question, Questions
from curvfluence.study.questions.removal import Removal, at_chosen, means
from curvfluence.study.results.rung import Dampings
from curvfluence.study.retrain import (
    Models,
    Truth,
    draw_subsets,
    make_truth,
    retrain,
    source_of,
    train_models,
    truth_of,
)
from curvfluence.study.spec import StudySpec
from curvfluence.truth import Weighted, leave_one_out
from curvfluence.truth.bank import Bank


@dataclass(frozen=True)
class QuestionSpec:
    """What is asked of the ladder of `study`: subsets that keep each of `alphas` (the study's own
    alpha among them chooses λ for removals), `left_out` random examples one at a time, and for the
    first `queries` queries the share of the training set that helps most, each of `removed`."""

    study: StudySpec
    alphas: tuple[float, ...] = (0.5, 0.9, 0.95, 0.99)
    left_out: int = 100
    removed: tuple[float, ...] = (0.01, 0.05, 0.1)
    queries: int = 20

    def __post_init__(self) -> None:
        for alpha in self.alphas:
            replace(self.study, alpha=alpha)
        if self.study.alpha not in self.alphas:
            raise InputError(f"alphas must have the study's own, {self.study.alpha:g}")
        kinds.count(self.left_out, "left_out", least=3)
        kinds.count(self.queries, "queries", least=2)
        for share in self.removed:
            if not 0 < kinds.number(share, "removed") < 1:
                raise InputError(f"a share to remove lies between 0 and 1; seen {share}")


def run_questions(
    spec: QuestionSpec,
    out: Path,
    *,
    problem: StudyProblem | None = None,
    threads: int | None = None,
    bank: Path | None = None,
    wait: bool = False,
    watch: Watcher = silent,
) -> Questions:
    """Climb the ladder once at every influence model, and hold it against each question's truth.

    LDS of a question is cross-fitted with λ of its own. A removal takes each rung's λ from the
    study's alpha, on the other half of the queries. Retrainings are kept in `bank`, by default
    `out/bank`. Writes `out/questions.json`.

    Errors: `InputError` before any work, for settings that make no study.
    """
    start = time.perf_counter()
    study = spec.study
    ready = asked(study, load(study.problem) if problem is None else problem)
    for alpha in spec.alphas:
        draw_subsets(replace(study, alpha=alpha), ready)
    kept = Bank(out / "bank" if bank is None else bank, source_of(ready, study))
    kept.require_free()
    require_no_study(out)
    with held(out, wait=wait), limited(threads):
        kept.claim()
        models = train_models(study, ready, kept, watch)
        source = {"spec": as_json(study.settings), "source": kept.source.key}
        steps = Steps(out / STEPS, source)
        ladder = climb(study, ready, models.trained, study.plan, watch, steps)
        asker = _Asker(spec, ready, models, ladder, kept, steps, watch)
        questions = asker.questions()
        found = Questions(
            environment=environment({"data": kept.source.data}),
            problem=ready.name,
            unit=ready.measurement.unit,
            lower_is_better=ready.measurement.lower_is_better,
            settings=study.settings,
            training_loss=float(models.trained.final_loss.mean()),
            questions=questions,
            seconds=time.perf_counter() - start,
        )
        with keeping(out, found):
            write(out / QUESTIONS, found)
        steps.clear()
    return found


@dataclass(frozen=True, eq=False)
class _Asker:
    spec: QuestionSpec
    problem: StudyProblem
    models: Models
    ladder: Ladder
    bank: Bank
    steps: Steps
    watch: Watcher

    @property
    def rungs(self) -> tuple[RungScores, ...]:
        return tuple(rung for rung in self.ladder.rungs if not rung.hybrid)

    def questions(self) -> tuple[Question, ...]:
        """The answers to all of them."""
        found: list[Question] = []
        own: LadderFidelity | None = None
        for alpha in self.spec.alphas:
            study = replace(self.spec.study, alpha=alpha)
            truth = make_truth(study, self.problem, self.models, self.bank, self.watch)
            judged = self._compared(study, truth)
            found.append(_answered(f"keep {alpha:g}", "subsets", truth, judged))
            if alpha == self.spec.study.alpha:
                own = judged
                if study.models * study.orders >= 4:
                    found.append(self._spread(study, truth))
        assert own is not None
        found.append(self._left_out())
        return (*found, *self._removals(own))

    def _compared(self, study: StudySpec, truth: Truth) -> LadderFidelity:
        with journal.kept_in(self.steps.within(truth.told)):
            return compare(study, truth, self.rungs, study.plan, self.watch)

    def _spread(self, study: StudySpec, truth: Truth) -> Question:
        """Whether the predicted change of a query also orders how its measurement spreads over
        retrainings of a subset (their standard deviation over initialisations and orders)."""
        values = truth.values.flatten(0, 1).std(0)[None, None]  # [1, 1, m, Q]
        first = replace(truth, values=values.expand(study.models, 1, -1, -1).contiguous())
        judged = self._compared(study, first)
        return _without_ceiling(_answered("spread over retrainings", "spread", truth, judged))

    def _left_out(self) -> Question:
        """The very run without one example: the order and minibatches of the influence model."""
        study, n = self.spec.study, len(self.problem.train)
        count = min(self.spec.left_out, n)
        (seed,) = study.seeds("left out", 1)
        index = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]
        subsets = leave_one_out(n, index.sort().values, Weighted())
        starts = [(run.init_seed, (run.order_seed,)) for run in self.models.trained.runs]
        made = retrain(study, self.problem, starts, subsets, self.bank, self.watch)
        truth = truth_of(self.models, subsets, made, "")
        settings = replace(study, subsets=count)
        judged = self._compared(settings, truth)
        return _answered("leave one out", "leave one out", truth, judged)

    def _removals(self, own: LadderFidelity) -> tuple[Question, ...]:
        """The change of a query after leaving out what each rung says helps it most."""
        halves, queries = torch.from_numpy(own.halves), min(self.spec.queries, len(own.halves))
        sign = 1.0 if self.problem.measurement.lower_is_better else -1.0
        helps = {
            rung.name: sign * at_chosen(rung, judged.matched.dampings, halves)
            for rung, judged in zip(self.rungs, own.rungs, strict=True)
        }
        removal = Removal(self.spec.removed, queries)
        runs = dict(enumerate(self.models.trained.runs))
        study, problem = self.spec.study, self.problem
        change_rkjq = removal.changes(study, problem, runs, helps, self.bank, self.watch)
        dampings = {r.name: r.matched.dampings for r in own.rungs}
        return tuple(
            self._removal(share, change_rkjq[:, k], list(helps), dampings)
            for k, share in enumerate(self.spec.removed)
        )

    def _removal(
        self,
        share: float,
        change_rjq: NDArray[np.float64],
        names: Sequence[str],
        dampings: dict[str, Dampings],
    ) -> Question:
        values, intervals = means(change_rjq)
        answers = tuple(
            Answer(name, float(values[k]), intervals[k], dampings[name])
            for k, name in enumerate(names)
        )
        return Question(
            name=f"remove the top {share:.0%}",
            kind="removal",
            retrainings=change_rjq.size,
            answers=answers,
            control=float(values[-1]),
            control_interval=intervals[-1],
        )


def _without_ceiling(question: Question) -> Question:
    """Without what noise allows: it is that of the measurement, not of its spread."""
    return structs.replace(question, best_lds=None)


def _answered(name: str, kind: Kind, truth: Truth, judged: LadderFidelity) -> Question:
    answers = tuple(
        Answer(rung.name, rung.matched.value, rung.intervals.crossed, rung.matched.dampings)
        for rung in judged.rungs
    )
    best = judged.best_lds.matched
    return Question(name, kind, truth.retrainings, answers, best, truth.notes)
