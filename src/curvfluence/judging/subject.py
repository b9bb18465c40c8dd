"""What scores are made of and held against: a problem's influence models, and its bank."""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from curvfluence import kinds
from curvfluence.banks import SHIPPED
from curvfluence.curvature.long_work import takes_long
from curvfluence.errors import InputError
from curvfluence.judging.holdings import Holdings
from curvfluence.problem.content import content
from curvfluence.problem.problem import Problem
from curvfluence.runtime.threads import limited
from curvfluence.store.folder import writing
from curvfluence.store.lock import Holding
from curvfluence.store.records import as_json
from curvfluence.store.steps import STEPS, Steps
from curvfluence.study.asked import asked
from curvfluence.study.climb import influence_problems
from curvfluence.study.problems import StudyProblem, load
from curvfluence.study.progress import Watcher, silent
from curvfluence.study.retrain import draw_subsets, lacking, source_of, train_models
from curvfluence.study.spec import StudySpec
from curvfluence.study.variant import Variant
from curvfluence.truth.bank import BANK, Bank

NEAR = Path("banks")  # in the working directory
REMOVALS = "removals"


@dataclass(frozen=True)
class Settings:
    """The study whose truth scores are held against. None is as many as the bank has that is
    named, and otherwise what `curvfluence study` takes: the problem's own number of subsets, 4
    influence models, 2 minibatch orders."""

    subsets: int | None = None
    seed: int = 0
    models: int | None = None
    orders: int | None = None
    alpha: float = 0.5


@dataclass(frozen=True, eq=False)
class Subject:
    """A problem as its study trains it, the study, and where its retrainings are kept; those of
    removals apart, so that a bank stays the truth of its study."""

    spec: StudySpec
    problem: StudyProblem
    bank: Bank
    removals: Bank
    under_way: Path  # where steps of a judgement are kept while it is made
    folder: Path  # that a command holds while it writes any of these

    @staticmethod
    def of(name: str | None, settings: Settings, bank: Path | None = None) -> Subject:
        """The problem of that name, or of the study that made `bank`. Writes nothing.

        Without `bank` it is banks/PROBLEM in the working directory, or the one that ships with the
        package, where they have everything, or else runs/PROBLEM-judge/bank; removals are kept in
        runs/PROBLEM-judge too, or in a folder beside the one that is named. A bank that was named,
        or ships, is read whichever code and torch trained it; what it lacks is trained.

        Errors: `InputError` where the bank is of another problem, or there is no such problem.
        """
        if name is not None and not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"problem is a name such as 'digits', or a Python file; seen {type(name).__name__}"
            )
        made = Bank.read(bank) if bank is not None and (bank / BANK).exists() else None
        how = None if made is None else made.source.asked
        has = Holdings(0, 0, 0) if made is None else Holdings.of(made, settings.alpha)
        if name is None and how is None:
            raise InputError(
                "name the problem that the scores are of, such as problem='digits' "
                "(--problem digits)"
            )
        name = how.problem if name is None and how is not None else name
        assert name is not None
        loaded = load(name)
        spec = StudySpec(
            name,
            _first(settings.subsets, has.subsets, loaded.subsets),
            seed=settings.seed,
            models=_first(settings.models, has.models, 4),
            orders=_first(settings.orders, has.orders, 2),
            alpha=settings.alpha,
            bregman=False,
            hybrids=False,
            costs=False,
            spectra=False,
        )
        if how is not None and how.problem == name:
            spec = replace(
                spec,
                protocol=how.protocol,
                variant=Variant(**how.variant),  # pyright: ignore[reportArgumentType]
                queries=how.queries,
            )
        problem = asked(spec, loaded)
        draw_subsets(spec, problem)
        source = source_of(problem, spec)
        own = Path("runs") / f"{problem.name}-judge"
        removals, under_way = own / REMOVALS, own / STEPS
        if bank is not None:
            kept, own = Bank(bank, source, as_made=True), bank
            removals = bank.with_name(f"{bank.name}-{REMOVALS}")
            under_way = bank.with_name(f"{bank.name}-{STEPS}")
        else:
            about = (Bank(at / problem.name, source, as_made=True) for at in (NEAR, SHIPPED))
            whole = (one for one in about if _serves(one, spec, problem))
            kept = next(whole, Bank(own / "bank", source))
        kept.require_free()
        return Subject(spec, problem, kept, Bank(removals, source), under_way, own)

    @contextmanager
    def steps(
        self, problems: Sequence[Problem], rungs: Sequence[str], holding: Holding
    ) -> Generator[Steps | None]:
        """Where the ladder of each of these influence models is kept until the judgement is made;
        None where all of it is done again sooner. The folder is held for it."""
        ladder = self.spec.plan.rungs(0)
        if not takes_long(problems[0], [ladder[name] for name in rungs], len(problems)):
            yield None
            return
        depends = {
            "spec": as_json(self.spec.settings),
            "rungs": list(rungs),
            "models": [content(problem) for problem in problems],
        }
        holding.take()
        with writing(self.under_way):
            self.under_way.parent.mkdir(parents=True, exist_ok=True)
        with Steps(self.under_way, depends).ours() as found:
            yield found

    def claim(self) -> None:
        """Make the folder a bank, where it is none yet: one that is there is only added to."""
        if not (self.bank.path / BANK).exists():
            self.bank.claim()


def _first(said: int | None, held: int, otherwise: int) -> int:
    return said if said is not None else held or otherwise


def _serves(bank: Bank, spec: StudySpec, problem: StudyProblem) -> bool:
    """Whether a bank that lies about is of this problem and lacks nothing."""
    try:
        same = Bank.read(bank.path).source.key == bank.source.key
        return same and not lacking(spec, problem, bank)
    except InputError:
        return False


def problem_of(
    name: str,
    model: int = 0,
    *,
    settings: Settings = Settings(),
    bank: Path | str | None = None,
    threads: int | None = None,
    watch: Watcher = silent,
) -> Problem:
    """The problem at influence model j: what scores for `judge` are to be made of. Its `train` and
    `queries` are in the order that scores have; `model_of` is its model as a module.

    The models are trained, or read where the bank has them, as `curvfluence study NAME` trains
    them. Errors: `InputError` as `judge`.
    """
    subject = Subject.of(name, settings, kinds.path(bank, "bank"))
    require_models([model], subject.spec)
    subject.claim()
    with limited(threads):
        models = train_models(subject.spec, subject.problem, subject.bank, watch)
    return influence_problems(subject.problem, models.checkpoints([model]))[0]


def model_of(problem: Problem) -> nn.Module:
    """A copy of the problem's model with the weights that the problem speaks of, in evaluation
    mode."""
    model = copy.deepcopy(problem.model)
    model.load_state_dict({**problem.state, **problem.theta}, strict=False)
    return model.eval()


def require_models(models: list[int], spec: StudySpec) -> None:
    """Errors: `InputError` for numbers that the study has no influence model of, or one twice."""
    for model in models:
        if kinds.count(model, "model", least=0) >= spec.models:
            raise InputError(
                f"there is no influence model {model}: the truth has {spec.models}, 0 to "
                f"{spec.models - 1}; models={model + 1} makes more"
            )
    if len(set(models)) < len(models):
        raise InputError(f"name each influence model once; seen {models}")
