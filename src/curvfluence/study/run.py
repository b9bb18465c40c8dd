"""A study from end to end: train, retrain without, climb the ladder, compare, keep."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.problem.problem import Problem
from curvfluence.store import folder as store
from curvfluence.study.climb import Ladder, climb, influence_problems
from curvfluence.study.compare import Compared, compare
from curvfluence.study.problems import StudyProblem, load
from curvfluence.study.progress import Watcher, silent
from curvfluence.study.protocols import Protocol
from curvfluence.study.response import Missing, Response, respond
from curvfluence.study.results import Found, Timing, as_json
from curvfluence.study.retrain import Models, Truth, draw_subsets, make_truth, train_models
from curvfluence.study.spec import DTYPES, StudySpec

REPORT = "report.html"


@dataclass(frozen=True)
class Study:
    """The results of a study and where they are; `reused` where they had been computed before."""

    results: dict[str, Any]
    path: Path
    reused: bool


@dataclass(frozen=True, eq=False)
class Common:
    """What no choice of subsets touches: influence models, and every rung at each of them."""

    models: Models
    ladder: Ladder
    seconds: float  # of the climb


@dataclass(frozen=True, eq=False)
class _Opened:
    """A study that makes sense, and a folder that is free for it or holds it already."""

    spec: StudySpec
    problem: StudyProblem
    folder: store.Folder
    hashes: dict[str, str]
    made_by: dict[str, str]
    seconds: float

    def finished(self) -> dict[str, Any] | None:
        """The results that the folder holds, where this very code made them."""
        found = self.folder.results()
        return found if found is not None and found.get("made_by") == self.made_by else None


def run_study(
    spec: StudySpec,
    out: Path | None = None,
    *,
    problem: StudyProblem | None = None,
    threads: int | None = None,
    rerun: bool = False,
    report: bool = True,
    watch: Watcher = silent,
) -> Study:
    """Run the study that `spec` describes, or read it where `out` holds it already.

    `problem` is `load(spec.problem)` where that has been done before.

    Writes `study.json`, `arrays/` and `results.json` to `out` (by default runs/<problem>), and
    unless `report` is False `report.html` with its figures. A
    finished study with the same settings, data, code and torch is read back unless `rerun`.

    Errors: `InputError` before any work, with nothing written, where the settings make no study or
    `out` holds anything else.
    """
    _require_threads(threads)
    opened = _open(spec, out, problem)
    finished = None if rerun else opened.finished()
    if finished is not None:
        if report and not (opened.folder.path / REPORT).is_file():
            finished = _with_report(opened.folder, finished)
        return Study(finished, opened.folder.path, reused=True)
    with _threads(threads):
        opened.folder.claim(_settings(opened))
        results = _compare(opened, _common(opened, watch), watch)
        if report:
            with watch("write the report", 1):
                results = _with_report(opened.folder, results)
    return Study(results, opened.folder.path, reused=False)


def run_together(
    specs: Sequence[StudySpec], folders: Sequence[Path], *, threads: int | None = None
) -> tuple[Study, ...]:
    """Studies that differ in `alpha` alone, on the same influence models and the same ladder.

    The same numbers as `run_study` of each by itself; only retraining and comparison are done for
    each. Finished studies are read back; without a report.

    Errors: `InputError` where the specs differ in more than alpha, and as `run_study`.
    """
    _require_threads(threads)
    if len({replace(spec, alpha=0.5) for spec in specs}) != 1:
        raise InputError("studies share their influence models where they differ in alpha alone")
    loaded = load(specs[0].problem)
    every = [_open(spec, out, loaded) for spec, out in zip(specs, folders, strict=True)]
    with _threads(threads):
        found: list[Study] = []
        common: Common | None = None
        for opened in every:
            finished = opened.finished()
            if finished is None:
                opened.folder.claim(_settings(opened))
                common = _common(opened, silent) if common is None else common
                results = _compare(opened, common, silent)
                found.append(Study(results, opened.folder.path, reused=False))
            else:
                found.append(Study(finished, opened.folder.path, reused=True))
    return tuple(found)


def _open(spec: StudySpec, out: Path | None, problem: StudyProblem | None) -> _Opened:
    """Everything that is checked before any work. Writes nothing."""
    start = time.perf_counter()
    loaded = load(spec.problem) if problem is None else problem
    problem = spec.variant.apply(prepared(loaded, spec.plan, DTYPES[spec.dtype]))
    problem = problem.with_queries(spec.queries)
    draw_subsets(spec, problem)
    hashes = {
        "data": store.hash_examples(problem.train, problem.queries),
        "code": store.hash_code(),
        "recipe": store.hash_json(problem.recipe.describe()),
    }
    settings = {**spec.as_json(), "problem": problem.name}
    key = store.hash_json({"spec": settings, "source": problem.source_hash, **hashes, "code": ""})
    folder = store.Folder(Path("runs") / problem.name if out is None else out, key)
    folder.require_free()
    made_by = {"code": hashes["code"], "torch": torch.__version__}
    return _Opened(spec, problem, folder, hashes, made_by, time.perf_counter() - start)


def _settings(opened: _Opened) -> dict[str, Any]:
    settings = {**opened.spec.as_json(), "problem": opened.problem.name}
    return {"spec": settings, "made_by": opened.made_by}


def _common(opened: _Opened, watch: Watcher) -> Common:
    models = train_models(opened.spec, opened.problem, watch)
    at = time.perf_counter()
    ladder = climb(opened.spec, opened.problem, models.trained, opened.spec.plan, watch)
    return Common(models, ladder, time.perf_counter() - at)


def _compare(opened: _Opened, common: Common, watch: Watcher) -> dict[str, Any]:
    """Retrain, compare with what `common` predicts, and keep everything."""
    spec, problem = opened.spec, opened.problem
    start = time.perf_counter()
    truth = make_truth(spec, problem, common.models, watch)
    at = time.perf_counter()
    compared = compare(spec, truth, common.ladder.rungs, spec.plan, watch)
    compare_seconds = time.perf_counter() - at
    at = time.perf_counter()
    problems = influence_problems(problem, common.models.trained)
    response = respond(spec, problems, truth.subsets.left_out, compared, watch)
    now = time.perf_counter()
    timing = Timing(
        models=common.models.seconds,
        climb=common.seconds,
        truth=truth.seconds,
        compare=compare_seconds,
        bregman=now - at,
        # of this study by itself, whatever it shared
        total=opened.seconds + common.models.seconds + common.seconds + now - start,
    )
    results = as_json(
        spec, problem, Found(truth, common.ladder, compared, response), timing, opened.hashes
    )
    results["made_by"] = opened.made_by
    arrays = _arrays(problem, problems, truth, common.ladder, compared, response)
    opened.folder.save(results, arrays)
    return results


def _require_threads(threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1; seen {threads}")


def _with_report(folder: store.Folder, results: dict[str, Any]) -> dict[str, Any]:
    """Write the page; the results with the seconds that it took."""
    from curvfluence.report import write_report  # plotting takes a second to import

    written = write_report(folder.path)
    timed = {**results, "report_seconds": written.seconds}
    store.write_json(folder.path / store.RESULTS, timed)
    return timed


def prepared(problem: StudyProblem, protocol: Protocol, dtype: torch.dtype) -> StudyProblem:
    """The problem in a dtype, trained as the protocol says."""
    device = problem.train.inputs.device
    recipe = protocol.recipe(problem.recipe)
    return replace(
        problem,
        train=problem.train.to(device, dtype),
        queries=problem.queries.to(device, dtype),
        recipe=recipe,
        # The weights of a problem of one's own are those of its own recipe only.
        run=problem.run if recipe == problem.recipe else None,
    )


@contextmanager
def _threads(count: int | None) -> Generator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _arrays(
    problem: StudyProblem,
    problems: list[Problem],
    truth: Truth,
    ladder: Ladder,
    compared: Compared,
    response: Response | Missing,
) -> dict[str, Tensor]:
    """What a study keeps: the subsets, the truths, every prediction, and each rung's scores [J, Q,
    N] at the damping that its half of the queries was given."""
    halves = torch.from_numpy(compared.halves)
    arrays = {
        "subsets": truth.subsets.weights,
        "truth": truth.values,
        "base": truth.models.base,
        "outputs": torch.stack([at.outputs(at.queries, "queries") for at in problems]),
        "display.train": problem.display.train,
        "display.queries": problem.display.queries,
        "targets.train": problem.train.targets,
        "targets.queries": problem.queries.targets,
        "query_halves": halves,
        **{f"weights.{name}": value for name, value in truth.models.trained.theta.items()},
    }
    if isinstance(response, Response):
        arrays["bregman"], arrays["bregman.converged"] = response.change, response.converged
    for rung, judged in zip(ladder.rungs, compared.rungs, strict=True):
        grid = list(rung.dampings)
        first, second = (grid.index(damping) for damping in judged.matched.dampings)
        chosen = torch.where(halves[:, None], rung.scores[:, first], rung.scores[:, second])
        arrays[f"scores.{rung.name}"] = chosen
        arrays[f"predicted.{rung.name}"] = torch.from_numpy(judged.sweep.predicted)
        arrays[f"draws.{rung.name}"] = torch.from_numpy(judged.replicates.draws)
    return arrays
