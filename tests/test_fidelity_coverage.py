"""Layout of the bootstrap intervals where the right answer is known in closed form.

`pytest -m slow -s tests/test_fidelity_coverage.py` prints the table that the docstring of
`curvfluence.fidelity.bootstrap.interval` quotes (a little over a minute).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from curvfluence.fidelity.bootstrap import (
    bootstrap_lds,
    interval,
    paired_difference,
    resamples,
)
from curvfluence.fidelity.lds import Sweep, query_halves

SIMULATIONS = 300
REPLICATES = 250
EXAMPLES = 40


@dataclass(frozen=True)
class World:
    """Random models, subsets and queries: effects β[j, q] on each training example, retraining
    noise (part of it shared by all queries of a subset), and influences β + error."""

    models: int
    subsets: int
    queries: int
    dampings: int
    model_spread: float = 0.1  # how much the models differ in the quality of their influences
    noise: float = 0.7  # of retraining, relative to the signal
    shared_error: float = 0.0  # error of each damping that all models and queries share

    def draw(self, rng, extra_error=0.0, models=None, subsets=None, queries=None):
        """predicted [D, J, m, Q], the same with more error, truth, population ρ of both [2, D]."""
        J, m = models or self.models, subsets or self.subsets
        Q, D = queries or self.queries, self.dampings
        mask_sn = rng.integers(0, 2, size=(m, EXAMPLES)) - 0.5
        quality_j = np.exp(self.model_spread * rng.normal(size=J))
        difficulty_q = np.exp(0.5 * rng.normal(size=Q))
        beta = rng.normal(size=(Q, EXAMPLES)) + 0.3 * rng.normal(size=(J, Q, EXAMPLES))
        own = rng.normal(size=(J, Q, EXAMPLES)) * (quality_j[:, None] * difficulty_q)[..., None]
        worse = rng.normal(size=(J, Q, EXAMPLES))
        common = np.random.default_rng(99).normal(size=(D, 1, 1, EXAMPLES))  # fixed: the rung's
        inflation = 0.8 * (1 + 0.02 * (np.arange(D) - D // 2) ** 2)
        first = beta + inflation[:, None, None, None] * own + self.shared_error * common
        estimates = (first, first + extra_error * worse)
        scale = self.noise * np.sqrt(EXAMPLES) / 2
        loading_q = 0.5 * rng.normal(size=Q)
        noise = rng.normal(size=(J, m, Q)) + rng.normal(size=(m, 1)) * loading_q
        truth = np.einsum("sn,jqn->jsq", mask_sn, beta) + scale * noise
        predicted = [np.einsum("sn,djqn->djsq", mask_sn, b, optimize=True) for b in estimates]
        variance = (beta**2).sum(-1) / 4 + scale**2 * (1 + loading_q**2)
        rho = []
        for b in estimates:
            pearson = (beta * b).sum(-1) / 4 / np.sqrt((b**2).sum(-1) / 4 * variance)
            # Sums over 40 examples are near enough to normal for the normal law's Spearman.
            rho.append((6 / np.pi * np.arcsin(pearson / 2)).mean((1, 2)))
        return predicted[0], predicted[1], truth, np.array(rho)

    def sweep(self, predicted):
        grid = tuple(10.0**k for k in range(self.dampings)) if self.dampings > 1 else (None,)
        return Sweep(grid, predicted)


WORLDS = {
    "many models": World(8, 60, 40, 5, model_spread=0.3),
    "one model": World(1, 60, 40, 5, model_spread=0.0),
    "three models that differ": World(3, 100, 60, 5, model_spread=0.5),
    "few subsets": World(5, 30, 40, 1, noise=0.3),
    "noisy truth": World(5, 100, 60, 5, noise=2.0),
    "near-tied dampings": World(5, 60, 40, 9, shared_error=0.7),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_coverage_of_the_crossed_interval_and_of_paired_differences(name):
    world = WORLDS[name]
    rng = np.random.default_rng(7)
    population = np.mean(
        [world.draw(rng, 0.5, models=60, subsets=2, queries=100)[3] for _ in range(30)], axis=0
    ).max(1)
    covered, basic, differences, holds, centre, values = [], [], [], [], [], []
    below = above = 0
    for k in range(SIMULATIONS):
        first, second, truth, _ = world.draw(rng, 0.5)
        halves = query_halves(world.queries, seed=k)
        drawn = resamples(world.models, world.subsets, halves=halves, replicates=REPLICATES, seed=k)
        a = bootstrap_lds(world.sweep(first), truth, halves, drawn)
        b = bootstrap_lds(world.sweep(second), truth, halves, drawn)
        found = interval(a)
        below += found.high < population[0]
        above += found.low > population[0]
        covered.append(found.low <= population[0] <= found.high)
        basic.append(2 * a.value - found.high <= population[0] <= 2 * a.value - found.low)
        holds.append(found.low <= a.value <= found.high)
        values.append(a.value)
        centre.append((a.draws.mean() - a.value) / a.draws.std())
        paired = paired_difference(a, b).interval
        differences.append(paired.low <= population[0] - population[1] <= paired.high)
    print(
        f"\n{name}: population {population[0]:.3f}, mean LDS {np.mean(values):.3f} "
        f"(sd {np.std(values):.4f}); covered {np.mean(covered):.3f} "
        f"(too low {below / SIMULATIONS:.3f}, too high {above / SIMULATIONS:.3f}), "
        f"by the basic interval {np.mean(basic):.3f}, of differences {np.mean(differences):.3f}; "
        f"draws off centre by {np.mean(centre):+.2f} sd, holds the value {np.mean(holds):.2f}"
    )
    # Where three models differ much the interval is known to be short; see `interval`.
    lowest = 0.75 if world.models == 3 else 0.89
    assert np.mean(covered) >= lowest
    assert np.mean(differences) >= lowest
    assert np.mean(holds) == 1.0
    assert abs(np.mean(centre)) < 0.25
