"""Every rung of the ladder on every influence model, over the whole damping grid."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean, median

import torch

from curvfluence.curvature.damping import Absolute
from curvfluence.curvature.ggn import GGN
from curvfluence.curvature.inversion import Matrix
from curvfluence.curvature.long_work import takes_long
from curvfluence.curvature.rung import Rung
from curvfluence.errors import InputError, SingularError
from curvfluence.fidelity import StepLoss
from curvfluence.forecast.make import plan
from curvfluence.problem.problem import Problem
from curvfluence.runtime import device as machine
from curvfluence.runtime import journal
from curvfluence.runtime.paged import paged
from curvfluence.store.steps import Steps
from curvfluence.study.at_model import (
    OVERLAP_RANKS,
    ModelLadder,
    Overlap,
    RungScores,
    Vectors,
    climb_one,
)
from curvfluence.study.problems import StudyProblem
from curvfluence.study.progress import Watcher
from curvfluence.study.protocols import Protocol
from curvfluence.study.spec import DTYPES, StudySpec
from curvfluence.study.words import size
from curvfluence.truth import Trained


@dataclass(frozen=True, eq=False)
class Ladder:
    """All rungs and hybrids; the decomposition of each chain, by its name, for each model; the
    overlap of leading eigenspaces (first model) between neighbours; the gradients that inverses are
    held against the exact one's on, None where they are not; the rungs that were left out, with the
    reason; the seconds of all this, now or in an earlier run."""

    rungs: tuple[RungScores, ...]
    decompositions: Mapping[str, tuple[tuple[StepLoss, ...], ...]]
    overlap_ranks: tuple[int, ...]
    overlaps: tuple[Overlap, ...]
    vectors: Vectors | None
    refused: Mapping[str, str]
    seconds: float


def climb(
    spec: StudySpec,
    problem: StudyProblem,
    trained: Trained,
    protocol: Protocol,
    watch: Watcher,
    steps: Steps | None = None,
) -> Ladder:
    """Fit and score each rung of the protocol at the checkpoints of the influence models.

    Nothing here depends on which subsets are left out, so studies of other subsets can share it.
    The ladder of a model is kept in `steps` as soon as it is climbed, and read where it was.
    """
    start, earlier = time.perf_counter(), 0.0
    problems = influence_problems(problem, trained, torch.float64 if protocol.double else None)
    # A draw of labels for each model: the spread over models is then that of sampling too.
    seeds = spec.seeds("Fisher", len(problems))
    refused = _refused(spec, protocol, problems[0])
    names = [name for name in spec.ladder if name not in refused]
    if not names:
        raise InputError(
            f"no rung of protocol {protocol.name} is within reach here: "
            + "; ".join(f"{name}: {why}" for name, why in refused.items())
        )
    ladders = [{name: protocol.rungs(seed)[name] for name in names} for seed in seeds]
    grid = tuple(map(Absolute, spec.dampings))
    decomposed = protocol.spectra and spec.spectra
    with watch("climb the ladder", len(names) * len(problems)) as done:
        models: list[ModelLadder] = []
        for at, rungs in zip(problems, ladders, strict=True):
            name = {"ladder of model": len(models)}
            model = None if steps is None else steps.find(name, ModelLadder)
            if model is not None:
                models.append(model.put_away())
                earlier += model.seconds
            else:
                works = None if steps is None else steps.within(_works_of(len(models), at))
                with _kept(works, rungs, at):
                    earlier += journal.earlier()
                    model = climb_one(
                        rungs,
                        at,
                        grid,
                        protocol,
                        keep=DTYPES[spec.dtype],
                        spectra=decomposed and not models,
                        errors=protocol.double
                        and decomposed
                        and len(models) < _with_errors(len(at.decay)),
                        timed=spec.costs,
                        with_hybrids=spec.hybrids,
                    )
                if spec.costs and not models:
                    model = model.with_needs(rungs, at)
                if steps is not None:
                    steps.keep(name, model)
                if works is not None:
                    works.clear()
                models.append(model)
            done(len(names) * len(models))
    return Ladder(
        rungs=tuple(
            # taken out as they are gathered: scores are not held twice
            _gather(name, [m.rungs.pop(name) for m in models])
            for name in list(models[0].rungs)
        ),
        decompositions={
            chain: tuple(model.decompositions[chain] for model in models)
            for chain in models[0].decompositions
        },
        overlap_ranks=tuple(k for k in OVERLAP_RANKS if k <= len(problems[0].decay)),
        overlaps=models[0].overlaps,
        vectors=_vectors(models),
        refused=refused,
        seconds=earlier + time.perf_counter() - start,
    )


def _works_of(model: int, problem: Problem) -> dict[str, object]:
    """What the works within one ladder go by; the form of a GGN goes by the memory."""
    return {"works of model": model, "memory": machine.memory(problem.device)}


@contextmanager
def _kept(works: Steps | None, rungs: Mapping[str, Rung], problem: Problem) -> Generator[None]:
    """Keep what takes long within one ladder, where all of it does."""
    if works is None or not takes_long(problem, list(rungs.values())):
        yield
        return
    with journal.kept_in(works):
        yield


def _refused(spec: StudySpec, protocol: Protocol, problem: Problem) -> dict[str, str]:
    """The rungs that are left out, with the reason; one that was asked for by name never is."""
    if protocol.seconds is None or spec.rungs is not None:
        return {}
    found: dict[str, str] = {}
    for name, rung in protocol.rungs(0).items():
        forecast = plan(problem, rung)
        if not forecast.fits:
            found[name] = forecast.reason or f"needs about {size(forecast.bytes)}"
            continue
        # A form of the GGN solves anew at every λ; the others are decomposed once, or by the way.
        times = len(spec.dampings) if isinstance(rung, GGN) and rung.form != Matrix() else 1
        if forecast.seconds * times > protocol.seconds:
            each, together = (f" at each of {times} λ", " together") if times > 1 else ("", "")
            least = f"forecast {forecast.seconds:.0f} s{each}"
            found[name] = f"{least}, more than {protocol.seconds:g}{together}"
    return found


def _with_errors(parameters: int) -> int:
    """At how many models inverses are held against the exact Hessian's."""
    return 8 if parameters < 1_500 else 2 if parameters < 4_000 else 1


def _vectors(models: Sequence[ModelLadder]) -> Vectors | None:
    """The same ones at every model; those that are 0 at each of them together."""
    each = [model.vectors for model in models if model.vectors is not None]
    return replace(each[0], zero=sum(one.zero for one in each)) if each else None


def influence_problems(
    problem: StudyProblem, trained: Trained, dtype: torch.dtype | None = None
) -> list[Problem]:
    """The study's problem at each influence model's checkpoint, in the dtype of training or in
    another."""
    recipe = problem.recipe
    dtype = next(iter(trained.theta.values())).dtype if dtype is None else dtype
    device = problem.train.device
    train, queries = (part.to(device, dtype) for part in (problem.train, problem.queries))
    model = recipe.build(trained.runs[0].init_seed, dtype).eval()
    return [
        Problem(
            model,
            recipe.loss,
            train,
            queries,
            measurement=problem.measurement,
            weight_decay=recipe.weight_decay,
            decoupled_decay=recipe.optimizer.decoupled,
            weights={
                n: v.to(dtype) if v.is_floating_point() else v
                for n, v in trained.weights(j).items()
            },
            unmodelled=problem.unmodelled,
            decay_in_inverse=problem.decay_in_inverse,
            forward=recipe.forward,
            output=recipe.output,
        )
        for j in range(len(trained))
    ]


def _gather(name: str, parts: list[RungScores]) -> RungScores:
    """One rung on all models, at the dampings that are a hole at none of them."""
    holes: dict[float, str] = {}
    for j, part in enumerate(parts):
        holes |= {at: f"model {j}: {why}" for at, why in part.holes.items() if at not in holes}
    kept = [k for k, at in enumerate(parts[0].dampings) if at not in holes]
    if not kept:
        raise SingularError(
            f"{name} cannot be inverted at any damping of the grid at every model: "
            + "; ".join(sorted(set(holes.values())))
        )
    surprising = [part.surprising_labels for part in parts if part.surprising_labels is not None]
    notes = (f"model {j}: {note}" for j, part in enumerate(parts) for note in part.notes)
    return replace(
        parts[0],
        name=name,
        scores=paged(torch.stack([part.scores[kept] for part in parts])),
        dampings=tuple(parts[0].dampings[k] for k in kept),
        holes=dict(sorted(holes.items())),
        surprising_labels=fmean(surprising) if surprising else None,
        notes=tuple(notes),
        fit_seconds=_median([part.fit_seconds for part in parts]),
        score_seconds=_median([part.score_seconds for part in parts]),
        inverse=tuple(one for part in parts for one in part.inverse),
    )


def _median(seconds: list[float | None]) -> float | None:
    known = [value for value in seconds if value is not None]
    return median(known) if known else None
