"""What stands beside the judged scores: our own rungs, and baselines that any method must beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from curvfluence.curvature.damping import Relative
from curvfluence.errors import InputError, NonFiniteError
from curvfluence.judging.baselines import (
    CHECKPOINTS,
    Trak,
    last_layer_cosine,
    random_scores,
    trac_in,
    trac_in_of_training,
    trak,
)
from curvfluence.judging.subject import Subject
from curvfluence.problem.problem import Problem
from curvfluence.score.influence import influence
from curvfluence.store.lock import Holding
from curvfluence.store.steps import Steps
from curvfluence.study.at_model import RungScores
from curvfluence.study.climb import climb
from curvfluence.study.progress import Watcher
from curvfluence.study.results.rung import NO_UNITS
from curvfluence.study.variant import LIMIT
from curvfluence.truth import Trained

RANDOM = "random"
DEFAULT = Relative(0.1)  # the damping of `influence`, which no truth has chosen


@dataclass(frozen=True, eq=False)
class Contender:
    """A method's scores at the judged models: [J, D, Q, N] over a grid of dampings that the truth
    chooses from, or [J, 1, Q, N] with the one damping None."""

    name: str
    kind: Literal["judged", "ours", "baseline"]
    said: str
    scores: Tensor
    dampings: tuple[float | None, ...] = (None,)
    units: bool = False
    rung: str | None = None  # of ours

    @property
    def fixed(self) -> bool:
        """Whether the truth chooses nothing."""
        return self.dampings == (None,)


def rungs_of(
    subject: Subject,
    trained: Trained,
    problems: Sequence[Problem],
    names: Sequence[str] | None,
    holding: Holding,
    watch: Watcher,
) -> tuple[list[Contender], list[str], Steps | None]:
    """Each rung twice: λ from the study's grid, cross-fitted on the truth as in a study, and at the
    default damping, which no truth has chosen; EK-FAC, and GGN up to `LIMIT` parameters, unless
    named. Then why one was left out, and where what takes long is kept until what is `holding` the
    folder is closed. `problems` are those of `trained`."""
    chosen, notes = _chosen(problems[0], names)
    if not chosen:
        return [], notes, None
    spec = replace(subject.spec, rungs=tuple(chosen))
    steps = holding.stack.enter_context(subject.steps(problems, chosen, holding))
    ladder = climb(spec, subject.problem, trained, spec.plan, watch, steps)
    seeds = spec.seeds("Fisher", len(problems))
    found: list[Contender] = []
    for rung in ladder.rungs:
        found.append(_of_rung(rung))
        if rung.dampings == (None,):
            continue
        rows = [
            influence(problem, spec.plan.rungs(seed)[rung.name], damping=DEFAULT).values
            for problem, seed in zip(problems, seeds, strict=True)
        ]
        said = f"{rung.full_name} at λ = {DEFAULT.value:g} of the mean eigenvalue"
        name = f"{rung.name} at {DEFAULT.value:g}"
        scores = torch.stack(rows)[:, None]
        found.append(Contender(name, "ours", said, scores, units=True, rung=rung.name))
    return found, notes, steps


def _chosen(problem: Problem, names: Sequence[str] | None) -> tuple[list[str], list[str]]:
    if names is not None:
        return list(names), []
    count = problem.parameters.count
    if count <= LIMIT:
        return ["EKFAC", "GGN"], []
    return ["EKFAC"], [
        f"GGN is not beside them: {count:,} parameters are more than {LIMIT:,}; --against "
        "EKFAC,GGN asks for it"
    ]


def _of_rung(rung: RungScores) -> Contender:
    fixed = rung.dampings == (None,)
    said = rung.full_name + ("" if fixed else ", λ cross-fitted on the truth as in a study")
    units = rung.name != NO_UNITS
    return Contender(rung.name, "ours", said, rung.scores, rung.dampings, units, rung.name)


def baselines_of(
    subject: Subject, trained: Trained, problems: Sequence[Problem], settings: Trak, seed: int
) -> tuple[list[Contender], list[str]]:
    """Random scores, the cosine of the last layer's features, TracIn and TRAK; and why one is
    missing. `problems` are those of `trained`."""
    count = len(problems)
    ways: dict[str, tuple[str, Callable[[], Tensor]]] = {
        RANDOM: (
            f"standard normal, seed {seed}",
            lambda: torch.stack([random_scores(p, seed + j) for j, p in enumerate(problems)]),
        ),
        "cosine": (
            "cosine of the last Linear layer's inputs",
            lambda: torch.stack([last_layer_cosine(problem) for problem in problems]),
        ),
        "TracIn (last)": (
            "g_q · g_n at the last checkpoint: the rung Identity",
            lambda: torch.stack([trac_in([problem]) for problem in problems]),
        ),
        "TracIn": (
            f"g_q · g_n times the learning rate, over {CHECKPOINTS} evenly spaced checkpoints",
            lambda: torch.stack(list(trac_in_of_training(subject.problem, trained))),
        ),
        "TRAK": (
            f"of the margin, {settings.of(problems[0])} dimensions, seed {settings.seed}, "
            f"{count} model{'s' * (count > 1)}",
            lambda: trak(problems, settings).expand(count, -1, -1),
        ),
    }
    found: list[Contender] = []
    missing: list[str] = []
    for name, (said, scores) in ways.items():
        try:
            found.append(Contender(name, "baseline", said, scores()[:, None]))
        except (InputError, NonFiniteError) as error:
            missing.append(f"{name} is not beside them: {error}")
    return found, missing
