"""A study from end to end: train, retrain without, climb the ladder, compare, keep."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from msgspec import structs
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.problem.problem import Problem
from curvfluence.problem.tree import table_of
from curvfluence.runtime import journal
from curvfluence.runtime.threads import limited
from curvfluence.store.folder import Folder, Header, MadeBy, keeping
from curvfluence.store.hashes import hash_code, hash_json
from curvfluence.store.lock import held
from curvfluence.store.records import as_json
from curvfluence.store.steps import STEPS, Steps
from curvfluence.study.asked import asked
from curvfluence.study.climb import Ladder, climb, influence_problems
from curvfluence.study.compare import compare
from curvfluence.study.engines import Engine
from curvfluence.study.make_bank import fill
from curvfluence.study.problems import StudyProblem, load
from curvfluence.study.progress import Watcher, silent
from curvfluence.study.proven import prove
from curvfluence.study.response import Response, respond
from curvfluence.study.results import Results
from curvfluence.study.results.truth import StageSeconds
from curvfluence.study.retrain import (
    Models,
    draw_subsets,
    make_truth,
    source_of,
    train_models,
)
from curvfluence.study.spec import StudySpec
from curvfluence.study.study import Study, read_study
from curvfluence.study.summary import Stages, summarise
from curvfluence.truth.bank import Bank

BANK = "bank"  # where a study keeps its retrainings, unless told


@dataclass(frozen=True, eq=False)
class Common:
    """What no choice of subsets touches: influence models, and every rung at each of them."""

    models: Models
    ladder: Ladder


@dataclass(frozen=True, eq=False)
class Request:
    """A study that makes sense, a folder that is free for it or holds it already, and where its
    retrainings are kept."""

    spec: StudySpec
    problem: StudyProblem
    folder: Folder
    bank: Bank
    hashes: dict[str, str]
    seconds: float

    @property
    def finished(self) -> Study | None:
        """This very study, where this very code has finished it. Errors: as `read_study`: what a
        page of it would be refused for is not said to be there."""
        results = self.folder.finished(Results)
        return None if results is None else read_study(self.folder.path)

    def claim(self) -> None:
        """Make both folders this study's."""
        self.folder.claim()
        self.bank.claim()


def run_study(
    spec: StudySpec,
    out: Path | None = None,
    *,
    problem: StudyProblem | None = None,
    threads: int | None = None,
    rerun: bool = False,
    bank: Path | None = None,
    wait: bool = False,
    engine: Engine | None = None,
    watch: Watcher = silent,
) -> Study:
    """Run the study that `spec` describes, or read it where `out` holds it already.

    `problem` is `load(spec.problem)` where that has been done before.

    Writes `study.json`, `arrays/` and `results.json` to `out` (by default runs/<problem>);
    `curvfluence.report.write_report(out)` makes its page. A finished study with the same settings,
    data, code and torch is read back unless `rerun`. Retrainings are kept as they come in `bank`,
    by default a folder in `out`, which other studies of the problem can share: a study that was
    interrupted goes on with what is there; with an `engine` its workers retrain (`make_bank.fill`).
    While it works nobody else writes to `out`: another
    command is refused there, or with `wait` waits.

    Errors: `InputError` before any work, with nothing written, where the settings make no study or
    `out` holds anything else; `NotKeptError`, which has the results, where they cannot be written.
    """
    _require_threads(threads)
    loaded = load(spec.problem) if problem is None else problem
    request = _open(spec, out, loaded, bank, rerun=rerun)
    finished = None if rerun else request.finished
    if finished is not None:
        return finished
    with held(request.folder.path, wait=wait), limited(threads):
        finished = None if rerun else request.finished  # while we waited
        if finished is not None:
            return finished
        request.claim()
        if engine is not None:
            fill([spec], request.bank.path, engine, problem=loaded, anew=rerun, watch=watch)
            request = replace(request, bank=replace(request.bank, anew=False))
        steps = _steps([request], anew=rerun)
        results = _compare(request, _common(request, steps, watch), steps, watch)
        steps.clear()
    return Study(request.folder.path, results, reused=False)


def run_together(
    specs: Sequence[StudySpec],
    folders: Sequence[Path],
    *,
    threads: int | None = None,
    bank: Path | None = None,
) -> tuple[Study, ...]:
    """Studies that differ in `alpha` alone, on the same influence models and the same ladder.

    The same numbers as `run_study` of each by itself; only retraining and comparison are done for
    each. Finished studies are read back.

    Errors: `InputError` where the specs differ in more than alpha, and as `run_study`.
    """
    _require_threads(threads)
    if len({replace(spec, alpha=0.5) for spec in specs}) != 1:
        raise InputError("studies share their influence models where they differ in alpha alone")
    loaded = load(specs[0].problem)
    requests = [_open(spec, out, loaded, bank) for spec, out in zip(specs, folders, strict=True)]
    with limited(threads):
        studies: list[Study] = []
        common: Common | None = None
        steps = _steps(requests)
        for request in requests:
            study = request.finished
            if study is None:
                with held(request.folder.path):
                    request.claim()
                    common = _common(request, steps, silent) if common is None else common
                    results = _compare(request, common, steps, silent)
                study = Study(request.folder.path, results, reused=False)
            studies.append(study)
        steps.clear()
    return tuple(studies)


def _open(
    spec: StudySpec,
    out: Path | None,
    problem: StudyProblem | None,
    bank: Path | None = None,
    *,
    rerun: bool = False,
) -> Request:
    """Everything that is checked before any work. Writes nothing."""
    start = time.perf_counter()
    loaded = load(spec.problem) if problem is None else problem
    problem = asked(spec, loaded)
    draw_subsets(spec, problem)
    source = source_of(problem, spec)
    hashes = {
        "data": source.data,
        "code": hash_code(),
        "recipe": hash_json(source.recipe),
    }
    settings = {**as_json(spec.settings), "problem": problem.name}
    if not spec.bounds:
        del settings["bounds"]  # studies of before it was there keep their key
    key = hash_json({"spec": settings, "source": problem.source_hash, **hashes, "code": ""})
    header = Header(key, settings, MadeBy(hashes["code"], str(torch.__version__)))
    folder = Folder(Path("runs") / problem.name if out is None else out, header)
    folder.require_free()
    kept = Bank(folder.path / BANK if bank is None else bank, source, anew=rerun)
    kept.require_free()
    return Request(spec, problem, folder, kept, hashes, time.perf_counter() - start)


def _steps(requests: Sequence[Request], *, anew: bool = False) -> Steps:
    """Where what the studies have in common is kept while they are not finished: in the folder of
    the first, whatever its alpha."""
    first = requests[0]
    depends = {
        "spec": as_json(replace(first.spec, alpha=0.5).settings),
        "source": first.problem.source_hash,
        **first.hashes,
    }
    steps = Steps(first.folder.path / STEPS, depends)
    if anew:
        steps.clear()
    return steps


def _common(request: Request, steps: Steps, watch: Watcher) -> Common:
    spec, problem = request.spec, request.problem
    models = train_models(spec, problem, request.bank, watch)
    return Common(models, climb(spec, problem, models.trained, spec.plan, watch, steps))


def _compare(request: Request, common: Common, steps: Steps, watch: Watcher) -> Results:
    """Retrain, compare with what `common` predicts, and keep everything."""
    spec, problem = request.spec, request.problem
    truth = make_truth(spec, problem, common.models, request.bank, watch)
    problems = influence_problems(problem, common.models.trained)
    comparing, responding = (
        steps.within({stage: spec.alpha, **truth.told}) for stage in ("comparison", "response")
    )
    with journal.kept_in(comparing):
        fidelity = compare(spec, truth, common.ladder.rungs, spec.plan, watch)
        compared = journal.seconds()
    with journal.kept_in(responding):
        response = respond(spec, problems, truth.subsets.left_out, fidelity, watch)
        responded = journal.seconds()
    dtype = torch.float64 if spec.plan.double else None
    (first, *_) = influence_problems(problem, common.models.trained, dtype)
    proven = prove(spec, first, common.ladder.rungs, fidelity, steps, watch)
    seconds = StageSeconds(
        models=common.models.seconds,
        climb=common.ladder.seconds,
        truth=truth.seconds,
        compare=compared,
        bregman=responded,
        bounds=proven.seconds,
    )
    # of this study by itself, whatever it shared and however often it was killed
    total = request.seconds + sum(structs.astuple(seconds))
    stages = Stages(truth, common.ladder, fidelity, response, proven, seconds, total)
    made_by = request.folder.header.made_by
    results = summarise(spec.settings, problem, stages, request.hashes, made_by)
    arrays = _arrays(problem, problems, stages, kept=spec.scores)
    with keeping(request.folder.path, results):
        saved = request.folder.save(arrays, lambda seal: structs.replace(results, manifest=seal))
    comparing.clear()
    responding.clear()
    return saved


def _require_threads(threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1; seen {threads}")


def _arrays(
    problem: StudyProblem, problems: list[Problem], stages: Stages, *, kept: bool
) -> dict[str, Tensor]:
    """What a study keeps: the subsets, the truths, the draws of each rung's LDS, and with `kept`
    every prediction, and each rung's scores [J, Q, N] at the damping that its half of the queries
    was given."""
    truth, fidelity, response = stages.truth, stages.fidelity, stages.response
    halves = torch.from_numpy(fidelity.halves)
    arrays = {
        "subsets": truth.subsets.weights,
        "truth": truth.values,
        "base": truth.models.base,
        "outputs": torch.stack([at.outputs(at.queries, "queries") for at in problems]),
        "display.train": problem.display.train,
        "display.queries": problem.display.queries,
        "targets.train": table_of(problem.train.targets),
        "targets.queries": table_of(problem.queries.targets),
        "query_halves": halves,
        **{f"weights.{name}": value for name, value in truth.models.trained.theta.items()},
    }
    if isinstance(response, Response):
        arrays["bregman"], arrays["bregman.converged"] = response.change, response.converged
    for measured in fidelity.rungs:
        arrays[f"draws.{measured.name}"] = torch.from_numpy(measured.replicates.draws)
    if not kept:
        return arrays
    for rung, measured in zip(stages.ladder.rungs, fidelity.rungs, strict=True):
        grid = list(rung.dampings)
        first, second = (grid.index(damping) for damping in measured.matched.dampings)
        chosen = torch.where(halves[:, None], rung.scores[:, first], rung.scores[:, second])
        arrays[f"scores.{rung.name}"] = chosen
        arrays[f"predicted.{rung.name}"] = torch.from_numpy(measured.sweep.predicted)
    return arrays
