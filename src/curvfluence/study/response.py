"""The rungs against the proximal Bregman response: the truth without the gap to retraining."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from curvfluence.errors import InputError, SingularError
from curvfluence.fidelity import LDS, Interval, Sweep, bootstrap_lds, interval, lds, resamples
from curvfluence.problem.problem import Problem
from curvfluence.runtime import journal
from curvfluence.runtime.journal import in_turn
from curvfluence.study.compare import LadderFidelity, RungFidelity
from curvfluence.study.progress import Watcher
from curvfluence.study.spec import StudySpec
from curvfluence.truth import BregmanResponse, bregman_response

EPSILON = 0.1  # how far the loss of what is left out is taken away: the response is local
GROUPS = 3  # converged groups below which there is no rank correlation to speak of
# Σ over models of m P (N + P), what one evaluation for all groups costs: about half a minute of a
# core for the usual handful of evaluations. Of a larger study only the first models are measured.
WORK = 2.5e9


@dataclass(frozen=True, eq=False)
class Response:
    """The response of the first `models` of the influence models, and what each rung is worth.

    `change` [J, m, Q] and `converged` [J, m] are those of all m subsets; an LDS is over the
    `groups` that converged at every one of these models. `steps` is their mean number of
    evaluations.
    """

    damping: float
    change: Tensor
    converged: Tensor
    steps: float
    seconds: float
    lds: Mapping[str, LDS]
    intervals: Mapping[str, Interval]

    @property
    def models(self) -> int:
        return len(self.change)

    @property
    def groups(self) -> Tensor:
        """[m], whether a subset counts."""
        return self.converged.all(0)


@dataclass(frozen=True)
class NoResponse:
    """No response was measured, and why."""

    reason: str


@dataclass(frozen=True, eq=False)
class _Against:
    """What a rung is worth against the response."""

    lds: LDS
    interval: Interval


def respond(
    spec: StudySpec,
    problems: list[Problem],
    left_out: Tensor,
    fidelity: LadderFidelity,
    watch: Watcher,
) -> Response | NoResponse:
    """The response to each subset's absence at ε = 0.1 and the GGN's damping, and every rung's LDS.

    Of the two dampings that the halves of the queries chose for the GGN, λ is the one with the
    higher LDS over all queries. Groups that do not converge at some model are left out and counted.
    """
    start = time.perf_counter()
    reason = _undefined(spec, problems[0], fidelity)
    if reason is not None:
        return NoResponse(reason)
    damping = _damping(next(rung for rung in fidelity.rungs if rung.name == "GGN"))
    count = _models(problems, len(left_out))
    try:
        responses = _responses(problems[:count], left_out, damping, watch)
    except (InputError, SingularError) as error:
        return NoResponse(str(error))
    change_jmq = torch.stack([r.change for r in responses])
    converged_jm = torch.stack([r.converged for r in responses])
    counted_m = converged_jm.all(0)
    if int(counted_m.sum()) < GROUPS:
        return NoResponse(
            f"only {int(counted_m.sum())} of {len(left_out)} groups converged at λ = {damping:g}"
        )
    measured = _judge(spec, change_jmq[:, counted_m].numpy(), counted_m.numpy(), fidelity)
    return Response(
        damping=damping,
        change=change_jmq,
        converged=converged_jm,
        steps=float(torch.stack([r.steps for r in responses]).double().mean()),
        seconds=time.perf_counter() - start + journal.earlier(),
        lds={name: value for name, (value, _) in measured.items()},
        intervals={name: bounds for name, (_, bounds) in measured.items()},
    )


def _responses(
    problems: list[Problem], left_out: Tensor, damping: float, watch: Watcher
) -> list[BregmanResponse]:
    """At each model."""
    count = len(left_out)
    with watch("Bregman response", len(problems) * count) as done:

        def response(j: int) -> BregmanResponse:
            found = bregman_response(
                problems[j],
                left_out,
                damping=damping,
                epsilon=EPSILON,
                progress=lambda k: done(j * count + k),
            )
            return replace(found, theta=found.theta[:, :0])  # which nobody asks for

        makes = ((f"response of model {j}", partial(response, j)) for j in range(len(problems)))
        return list(in_turn(makes, BregmanResponse))


def _undefined(spec: StudySpec, problem: Problem, fidelity: LadderFidelity) -> str | None:
    if not spec.bregman:
        return "it was not asked for"
    if not any(rung.name == "GGN" for rung in fidelity.rungs):
        return "the GGN, whose damping it takes, is not among the rungs"
    if problem.loss.clip_negative:
        return (
            "the loss is not convex in the output (clip_negative), so damped GGN influence is not "
            "the derivative of the response"
        )
    return None


def _damping(ggn: RungFidelity) -> float:
    swept = dict(ggn.matched.sweep)
    best = max(ggn.matched.dampings, key=lambda damping: swept[damping])
    assert best is not None  # the GGN is swept over a grid
    return best


def _models(problems: list[Problem], subsets: int) -> int:
    p, n = len(problems[0].decay), len(problems[0].train)
    return max(1, min(len(problems), int(WORK // (subsets * p * (n + p)))))


def _judge(
    spec: StudySpec,
    change_jmq: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    counted_m: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    fidelity: LadderFidelity,
) -> dict[str, tuple[LDS, Interval]]:
    """LDS and crossed interval of every rung, as against retraining."""
    (seed,) = spec.seeds("bootstrap", 1)
    models, groups, _ = change_jmq.shape
    halves = fidelity.halves
    drawn = resamples(models, groups, halves=halves, seed=seed, replicates=spec.replicates)

    def against(rung: RungFidelity) -> _Against:
        sweep = Sweep(rung.sweep.dampings, rung.sweep.predicted[:, :models, counted_m])
        value = lds(sweep, change_jmq, halves)
        return _Against(value, interval(bootstrap_lds(sweep, change_jmq, halves, drawn)))

    makes = (
        (f"{rung.name} against the response", partial(against, rung)) for rung in fidelity.rungs
    )
    measured = zip(fidelity.rungs, in_turn(makes, _Against), strict=True)
    return {rung.name: (one.lds, one.interval) for rung, one in measured}
