"""A study from end to end: train, retrain without, climb the ladder, compare, keep."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curvfluence import store
from curvfluence.errors import InputError
from curvfluence.study.climb import Ladder, climb, influence_problems
from curvfluence.study.compare import Compared, compare
from curvfluence.study.ladder import Protocol
from curvfluence.study.problems import StudyProblem, load
from curvfluence.study.progress import Watcher, silent
from curvfluence.study.results import Timing, as_json
from curvfluence.study.retrain import Truth, draw_subsets, make_truth
from curvfluence.study.spec import DTYPES, StudySpec

REPORT = "report.html"


@dataclass(frozen=True)
class Study:
    """The results of a study and where they are; `reused` where they had been computed before."""

    results: dict[str, Any]
    path: Path
    reused: bool


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
    start = time.perf_counter()
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1; seen {threads}")
    protocol = spec.plan
    loaded = load(spec.problem) if problem is None else problem
    problem = spec.variant.apply(prepared(loaded, protocol, DTYPES[spec.dtype]))
    draw_subsets(spec, problem)
    hashes = {
        "data": store.hash_examples(problem.train, problem.queries),
        "code": store.hash_code(),
        "recipe": store.hash_json(problem.recipe.describe()),
    }
    settings = {**spec.as_json(), "problem": problem.name}
    key = store.hash_json({"spec": settings, "source": problem.source_hash, **hashes, "code": ""})
    made_by = {"code": hashes["code"], "torch": torch.__version__}
    folder = store.Folder(Path("runs") / problem.name if out is None else out, key)
    folder.require_free()
    finished = folder.results()
    if finished is not None and not rerun and finished.get("made_by") == made_by:
        if report and not (folder.path / REPORT).is_file():
            finished = _with_report(folder, finished)
        return Study(finished, folder.path, reused=True)
    with _threads(threads):
        folder.claim({"spec": settings, "made_by": made_by})
        truth = make_truth(spec, problem, watch)
        at = time.perf_counter()
        ladder = climb(spec, problem, truth, protocol, watch)
        climb_seconds = time.perf_counter() - at
        at = time.perf_counter()
        compared = compare(spec, truth, ladder.rungs, protocol, watch)
        compare_seconds = time.perf_counter() - at
        total = time.perf_counter() - start
        timing = Timing(truth.seconds, climb_seconds, compare_seconds, total)
        results = as_json(spec, problem, truth, ladder, compared, timing, hashes)
        results["made_by"] = made_by
        folder.save(results, _arrays(problem, truth, ladder, compared))
        if report:
            with watch("write the report", 1):
                results = _with_report(folder, results)
    return Study(results, folder.path, reused=False)


def _with_report(folder: store.Folder, results: dict[str, Any]) -> dict[str, Any]:
    """Write the page; the results with the seconds that it took."""
    from curvfluence.study.report import write_report  # plotting takes a second to import

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
    problem: StudyProblem, truth: Truth, ladder: Ladder, compared: Compared
) -> dict[str, Tensor]:
    """What a study keeps: the subsets, the truth, every prediction, and each rung's scores [J, Q,
    N] at the damping that its half of the queries was given."""
    halves = torch.from_numpy(compared.halves)
    problems = influence_problems(problem, truth)
    arrays = {
        "subsets": truth.subsets.weights,
        "truth": truth.values,
        "base": truth.base,
        "outputs": torch.stack([at.outputs(at.queries, "queries") for at in problems]),
        "display.train": problem.display.train,
        "display.queries": problem.display.queries,
        "targets.train": problem.train.targets,
        "targets.queries": problem.queries.targets,
        "query_halves": halves,
        **{f"weights.{name}": value for name, value in truth.models.theta.items()},
    }
    for rung, judged in zip(ladder.rungs, compared.rungs, strict=True):
        grid = list(rung.sweep.dampings)
        first, second = (grid.index(damping) for damping in judged.matched.dampings)
        chosen = torch.where(halves[:, None], rung.scores[:, first], rung.scores[:, second])
        arrays[f"scores.{rung.name}"] = chosen
        arrays[f"predicted.{rung.name}"] = torch.from_numpy(rung.sweep.predicted)
    return arrays
