"""TracIn: products of gradients at checkpoints along the training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from statistics import fmean

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.curvature.identity import Identity
from curvfluence.errors import InputError
from curvfluence.problem.problem import Problem
from curvfluence.score.influence import influence
from curvfluence.study.climb import influence_problems
from curvfluence.study.problems import StudyProblem
from curvfluence.truth import Recipe, Trained, train
from curvfluence.truth.recipe import Schedule

CHECKPOINTS = 5  # the last one is the model that is judged


def trac_in(checkpoints: Sequence[Problem], rates: Sequence[float] | None = None) -> Tensor:
    """(1/N) Σ_i η_i g_q(θ_i)ᵀ g_n(θ_i), [Q, N], over one problem at several checkpoints θ_i of its
    training and the learning rate η_i of each (1 where None). No units.

    At one checkpoint it is the rung `Identity`. Cost: for each checkpoint the gradients and 2 Q N P
    operations. Errors: `InputError` without checkpoints, or with another number of rates.
    Source: Pruthi et al. 2020, section 3.3 (TracInCP).
    """
    rates = [1.0] * len(checkpoints) if rates is None else [kinds.number(r, "rates") for r in rates]
    if not checkpoints or len(rates) != len(checkpoints):
        raise InputError(
            f"TracIn takes checkpoints and as many rates; seen {len(checkpoints)} and {len(rates)}"
        )
    terms = [
        rate * influence(problem, Identity()).values
        for problem, rate in zip(checkpoints, rates, strict=True)
    ]
    return torch.stack(terms).sum(0)


@dataclass(frozen=True)
class Part:
    """The first `recipe.steps` of a training: the same steps, by the schedule of the whole. `rate`
    is the mean learning rate since the part before it."""

    recipe: Recipe
    rate: float


@dataclass(frozen=True)
class _Longer:
    """The schedule of a training of `total_steps`, whatever a part of it has."""

    schedule: Schedule
    total_steps: int

    def factor(self, step: int, total_steps: int) -> float:
        return self.schedule.factor(step, self.total_steps)


def parts_of(recipe: Recipe, n: int, count: int = CHECKPOINTS) -> tuple[Part, ...]:
    """A training over n examples cut at `count` evenly spaced steps; the last part is all of it."""
    total = recipe.total_steps(n)
    ends = sorted({ceil(k * total / kinds.count(count, "count")) for k in range(1, count + 1)})
    schedule = _Longer(recipe.schedule, total)
    starts = [0, *ends[:-1]]
    return tuple(
        Part(
            replace(recipe, epochs=None, steps=end, schedule=schedule),
            fmean(recipe.learning_rate(step, total) for step in range(start, end)),
        )
        for start, end in zip(starts, ends, strict=True)
    )


def trac_in_of_training(
    problem: StudyProblem, trained: Trained, count: int = CHECKPOINTS
) -> Iterator[Tensor]:
    """`trac_in` of every trained model, at `count` checkpoints: the last is the model itself, the
    earlier ones are trained again, from its seeds. Cost: (count − 1)/2 trainings for each model."""
    parts = parts_of(problem.recipe, len(problem.train), count)
    at = [
        influence_problems(problem, train(part.recipe, problem.train, trained.runs))
        for part in parts[:-1]
    ]
    at.append(influence_problems(problem, trained))
    for checkpoints in zip(*at, strict=True):
        yield trac_in(checkpoints, [part.rate for part in parts])
