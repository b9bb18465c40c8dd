"""The stages of scores, after whatever a fit leaves for them."""

from __future__ import annotations

from dataclasses import replace

import torch

from curvfluence.curvature.operators.low_rank_search import LEAST, WORTH
from curvfluence.curvature.rung import LeftBehind, Rung
from curvfluence.forecast.sizes import Sizes
from curvfluence.jacobian.fisher import Empirical
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.rows import Basis, Rows
from curvfluence.runtime import budget
from curvfluence.runtime.stage import Stage
from curvfluence.score.tokens import along_queries, require_positions

FORESEEN = 60  # the rank of an inverse at low rank, on average over large and small gradients


def score_stages(sizes: Sizes, rung: Rung) -> list[Stage]:
    """The gradients, the solved queries, and their products."""
    left = rung.left_behind(sizes.problem)
    there = _reads_gradients(sizes, left)
    missing = sizes.missing(Empirical()) if there else 1.0
    formed = left.formed if there and missing == 0 else frozenset[str]()
    cached = sizes.cached(Empirical()) * _shrunk(sizes.layout, formed) if there else 0.0
    cached = sizes.in_memory(cached)
    queries, p = sizes.queries, sizes.problem.parameters.count
    passes = missing + queries / max(1, sizes.n)
    kept = 1 - (_saved(sizes) if rung.low_rank else 0.0)
    turned = kept * rung.rotations(sizes, formed)
    return [
        sizes.passed("gradients", 1, passes, cached=cached),
        sizes.products("solutions", turned, 2.0 * kept * queries * p),
        _products(sizes, kept, formed, cached, pass_too=missing > 0),
    ]


def token_stages(sizes: Sizes, rung: Rung) -> list[Stage]:
    """The queries' gradients, solved, and the shares of every position: along each query, or by a
    pass for each position."""
    problem, queries, p = sizes.problem, sizes.queries, sizes.problem.parameters.count
    positions = require_positions(problem)
    passes = queries / max(1, sizes.n)
    stages = [
        sizes.passed("queries' gradients", 1, passes),
        sizes.products("solutions", rung.rotations(sizes, frozenset()), 3.0 * queries * p),
    ]
    held = 3.0 * queries * p + queries * sizes.n * positions
    if along_queries(problem, queries):
        graphs = sizes.products("positions", 0.0, held + 4 * sizes.chunk(1))
        return [*stages, sizes.double_backward("positions, along queries", queries, graphs)]
    # each query meets a layer's inputs once, and then every position's output gradients
    rows = sum(
        2.0 * queries * sizes.n * layer.multiplications * (1 + positions / layer.in_features)
        for layer in sizes.layout.layers
    )
    each = sizes.passed("passes, one a position", positions)
    return [*stages, each, sizes.products("positions against queries", rows, held)]


def _reads_gradients(sizes: Sizes, left: LeftBehind) -> bool:
    """Whether a fit's last pass leaves the gradients that scores read."""
    gradient = left.fisher is not None and left.fisher.is_gradient
    return gradient and sizes.problem.train.weights is None


def _products(
    sizes: Sizes, kept: float, formed: frozenset[str], cached: float, *, pass_too: bool
) -> Stage:
    """Solved queries against the training rows, timed on a few of both; of the operations that
    share is done."""
    n, q, p = sizes.n, sizes.queries, sizes.problem.parameters.count
    some = min(q, max(1, budget.TIMED_QUERIES // p))
    x_qp = torch.ones(some, p).to(sizes.problem.decay)
    # solved queries, scores, the queries' own rows, a temporary of products, a chunk's pass
    held = 2.0 * kept * q * p + q * n + q * sizes.layout.elements(1) + budget.FORMED
    held += sizes.chunk(1) if pass_too else 0.0
    sample = sizes.sample(Empirical())
    sample = replace(sample, rows=_with_formed(sample.rows, formed))
    line = sample.line(lambda rows: rows.inner(x_qp))
    operations = _of_products(sizes, formed, q)
    more = operations / _of_products(sizes, formed, some)
    seconds = kept * more * line.seconds(n, sizes.chunks(1)) + held * sizes.rates.fresh
    return Stage("scores", kept * operations, (held + cached) * sizes.item, seconds)


def _of_products(sizes: Sizes, formed: frozenset[str], queries: int) -> float:
    """Of so many queries with all rows: where positions are shared a row is formed once for all of
    them, or they meet every position, whichever is less."""
    total, rest = 0.0, sizes.problem.parameters.count
    for layer in sizes.layout.layers:
        size = layer.out_features * layer.in_features
        each = layer.multiplications if layer.shared and layer.weight not in formed else 0
        total += min(queries * each, each + queries * size) if each else queries * size
        rest -= size
    return 2.0 * sizes.n * (total + queries * max(0, rest))


def _saved(sizes: Sizes) -> float:
    """The share of the products that inverses at low rank spare, if ranks are what is foreseen:
    they are known when they are found."""
    if sizes.problem.dtype != torch.float32:
        return 0.0
    pairs, spared = 2.0 * sizes.queries * sizes.n, 0.0
    for layer in sizes.layout.layers:
        o, i = layer.out_features, layer.in_features
        whole, low = pairs * o * i, pairs * FORESEEN * (o + i) + 2.0 * sizes.n * (o * o + i * i)
        if not (layer.shared or layer.lookup) and whole >= LEAST and low <= WORTH * whole:
            spared += whole - low
    return spared / (pairs * sizes.problem.parameters.count)


def _shrunk(layout: Layout, formed: frozenset[str]) -> float:
    """How many numbers the cached gradients have then, over those of a and s."""
    before = after = 0
    for layer in layout.layers:
        o, i, factored = layer.out_features, layer.in_features, layer.factored(1)
        before += factored
        after += o * i if layer.weight in formed else factored
    return after / max(1, before)


def _with_formed(rows: Rows, formed: frozenset[str]) -> Rows:
    """The rows with the terms of those weights as matrices, a bias among them."""
    plain: dict[int, Basis] = {
        k: (None, None) for k, layer in enumerate(rows.layers) if layer.weight in formed
    }
    return rows.formed(plain)
