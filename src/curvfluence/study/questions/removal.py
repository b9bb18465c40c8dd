"""What leaving out the examples that help a query most does to it, by retraining."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curvfluence.fidelity import Interval
from curvfluence.study.at_model import RungScores
from curvfluence.study.problems import StudyProblem
from curvfluence.study.progress import Watcher
from curvfluence.study.results.rung import Dampings
from curvfluence.study.retrain import require_whole, retrain
from curvfluence.study.spec import StudySpec
from curvfluence.truth import Kept, Run, Subsets, random_subsets
from curvfluence.truth.bank import Bank

DRAWS = 2_000  # of the bootstrap over models and queries


@dataclass(frozen=True)
class Removal:
    """For the first `queries` queries: the most helpful examples of each are left out, as many as
    each of `shares` of the training set, and the model is trained again."""

    shares: tuple[float, ...] = (0.01, 0.05, 0.1)
    queries: int = 20

    def counts(self, n: int) -> list[int]:
        """How many of n examples are left out, by share."""
        return [max(1, round(share * n)) for share in self.shares]

    def retrainings(self, methods: int, models: int) -> int:
        """Of all methods, the control and the model with everything."""
        return models * (1 + (methods + 1) * len(self.shares) * self.queries)

    def changes(
        self,
        study: StudySpec,
        problem: StudyProblem,
        runs: Mapping[int, Run],
        helps: Mapping[str, Tensor],
        bank: Bank,
        watch: Watcher,
    ) -> NDArray[np.float64]:
        """The change of each query's measurement against retraining on everything, [R + 1, shares,
        J, queries]: a row for each of `helps` [J, Q, N] (larger helps more), and last the control,
        as many at random.

        `runs` are the influence models by number: model j is retrained from its initialisation, in
        a minibatch order that all of its removals share.
        """
        n, queries, counts = (
            len(problem.train),
            range(self.queries),
            self.counts(len(problem.train)),
        )
        (seed,) = study.seeds("removals", 1)
        change = np.empty((len(helps) + 1, len(counts), len(runs), len(queries)))
        for at, (j, run) in enumerate(runs.items()):
            masks = [torch.ones(1, n, dtype=torch.bool)]
            for help_jqn in helps.values():
                order_qn = help_jqn[at].argsort(dim=1, descending=True)
                masks += [_without(n, order_qn[q, :k]) for k in counts for q in queries]
            for k in counts:  # the control: as many at random, for each query
                drawn = random_subsets(n, keep=1 - k / n, count=len(queries), seed=seed + j)
                masks.append(drawn.weights)
            start = (run.init_seed, tuple(study.seeds(f"removals of model {j}", 1)))
            subsets = Subsets(torch.cat(masks), Kept())
            made = retrain(study, problem, [start], subsets, bank, watch)
            require_whole(made)
            base_q, rest = made.values[0, 0, 0], made.values[0, 0, 1:]
            per = rest.view(len(helps) + 1, len(counts), len(queries), -1)
            for q in queries:
                change[:, :, at, q] = (per[:, :, q, q] - base_q[q]).numpy()
        return change


def at_chosen(rung: RungScores, dampings: Dampings, halves: Tensor) -> Tensor:
    """[J, Q, N] at the damping that each half of the queries was given."""
    first, second = (list(rung.dampings).index(damping) for damping in dampings)
    return torch.where(halves[:, None], rung.scores[:, first], rung.scores[:, second])


def _without(n: int, index: Tensor) -> Tensor:
    mask = torch.ones(1, n, dtype=torch.bool)
    mask[0, index] = False
    return mask


def means(change_rjq: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[Interval]]:
    """The mean of each row over models and queries, with its crossed bootstrap interval."""
    _, models, queries = change_rjq.shape
    generator = np.random.default_rng(0)
    of_models = generator.multinomial(models, np.full(models, 1 / models), DRAWS) / models
    of_queries = generator.multinomial(queries, np.full(queries, 1 / queries), DRAWS) / queries
    drawn = np.einsum("bj,rjq,bq->rb", of_models, change_rjq, of_queries, optimize=True)
    ends = np.quantile(drawn, (0.025, 0.975), axis=1)
    averages = change_rjq.mean((1, 2))
    return averages, [Interval(float(low), float(high)) for low, high in ends.T]
