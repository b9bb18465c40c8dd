"""The stages of a fit and of scores, with what each costs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from curvfluence.curvature import EKFAC, GGN, KFAC, BlockGGN, Hessian, Identity, Rung
from curvfluence.curvature.inversion import ConjugateGradients, Form, SampleSpace
from curvfluence.curvature.layerwise import (
    EXACT_FALLBACK_LIMIT,
    LayerPart,
    Remainder,
    layer_blocks,
    uncovered_blocks,
)
from curvfluence.curvature.rung import FisherRung
from curvfluence.forecast.plan import Stage
from curvfluence.forecast.sizes import Sizes, work
from curvfluence.jacobian.fisher import Empirical, Fisher, Type2, default_fisher
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Memo, SharedOuter, Term
from curvfluence.jacobian.terms.base import NUMBERS as TEMPORARY
from curvfluence.jacobian.terms.gram import operations as gram_operations
from curvfluence.jacobian.terms.shared import is_compact
from curvfluence.problem.problem import Problem

SOLVED = 2**25  # numbers of solved queries in the scores that are timed


def fit_stages(sizes: Sizes, rung: Rung, form: Form | None) -> list[Stage]:
    if isinstance(rung, Identity):
        return []
    if isinstance(rung, GGN | Hessian):
        assert form is not None
        return _whole_stages(sizes, rung, form)
    fisher = _fisher(sizes.problem, rung)
    if isinstance(rung, KFAC | EKFAC):
        return _kronecker_stages(sizes, rung, fisher)
    passed = sizes.passed("pass over the data", fisher.width(sizes.problem))
    if isinstance(rung, BlockGGN):
        return [passed, *_block_stages(sizes, fisher.width(sizes.problem))]
    return [passed, _squares(sizes, fisher)]


def _fisher(problem: Problem, rung: Rung) -> Fisher:
    own = rung.fisher if isinstance(rung, FisherRung) else Type2()
    return default_fisher(problem) if own is None else own


def _row_operations(sizes: Sizes, c: int) -> float:
    """Of sums of products of rows: one GEMM where no position is shared, else the rows' own."""
    total = 2.0 * sizes.n * c * sizes.rest
    for layer in sizes.layout.layers:
        width = layer.out_features * (1 if layer.lookup else layer.in_features)
        total += 2.0 * sizes.n * width * (c * layer.positions if layer.shared else 1)
    return total


def _squares(sizes: Sizes, fisher: Fisher) -> Stage:
    """The diagonal, in the parameters' own basis."""
    blocks = layer_blocks(sizes.problem.parameters, sizes.layout, joint_bias=True)

    def run(rows: Rows) -> None:
        for block in blocks:
            block.factored(rows).squares(None, None)
        rows.dense.square().sum((0, 1))

    c = fisher.width(sizes.problem)
    return sizes.timed("sums of squares", _row_operations(sizes, c), sizes.p, fisher, run)


def _kronecker_stages(sizes: Sizes, rung: KFAC | EKFAC, fisher: Fisher) -> list[Stage]:
    n, factors, eigen, second, held = sizes.n, 0.0, 0.0, 0.0, 0.0
    problem, layout = sizes.problem, sizes.layout
    c = fisher.width(problem)
    values = rung.values if isinstance(rung, EKFAC) else None
    for layer in layout.layers:
        o, t = layer.out_features, layer.positions
        i = 0 if layer.lookup else layer.in_features + (layer.bias is not None)
        factors += n * t * (gram_operations(i) + c * gram_operations(o))
        eigen += float(o) ** 3 + float(i) ** 3
        rotate = 2.0 * n * t * (c * o * o + i * i)
        if layer.shared:
            rows = 2.0 * n * c * o * i * (o + i)
            second += 2.0 * n * c * t * o * max(i, 1) + min(rotate, rows)
        else:
            second += rotate + 2.0 * n * o * i
        held += o * o + i * i + o * (layer.in_features + 1)
    memory = sizes.kept(fisher) if isinstance(rung, EKFAC) and rung.values is None else 0.0
    blocks = layer_blocks(problem.parameters, layout, joint_bias=rung.joint_bias)

    def sums(rows: Rows) -> None:
        memo: Memo = {}
        for block in blocks:
            rung.sharing.sums(block.factored(rows), rows.weights, memo)
        Remainder(problem, layout, joint=rung.joint_bias).add(rows)

    stages = [
        sizes.passed("pass over the data", c),
        sizes.timed("factors", factors, held + memory, fisher, sums),
        Stage(
            "eigendecompositions",
            9 * eigen,
            (3 * held + memory) * sizes.item,
            eigen * sizes.rates.eigen,
        ),
    ]
    if not isinstance(rung, EKFAC):
        return stages
    missing = sizes.missing(fisher)
    if values is not None:
        stages.append(sizes.passed("second pass over the data", values.width(problem)))
    elif missing:
        stages.append(sizes.passed("second pass over the data", c, missing))
    bases = {block.name: _bases(problem, block) for block in blocks}

    def squares(rows: Rows) -> None:
        memo: Memo = {}
        for block in blocks:
            block.factored(rows).squares(*bases[block.name], memo)

    read = fisher if values is None else values
    stages.append(sizes.timed("eigenvalues", second, 2 * held + memory, read, squares))
    return stages


def _bases(problem: Problem, block: LayerPart) -> tuple[Tensor, Tensor | None]:
    """Matrices of the sizes of U_B and U_A, whose numbers do not matter to a clock."""
    o, i = block.shape
    lookup = block.layer.lookup and block.with_weight
    return torch.eye(o).to(problem.decay), None if lookup else torch.eye(i).to(problem.decay)


def _block_stages(sizes: Sizes, c: int) -> list[Stage]:
    operations, factor, solve, held = 0.0, 0.0, 0.0, 0.0
    for layer in sizes.layout.layers:
        size = float(layer.out_features * (layer.in_features + (layer.bias is not None)))
        operations += sizes.n * size**2 * (2 * c if layer.shared else 0.5)
        factor += size**3 / 3
        solve += 2 * sizes.queries * size**2
        held += size**2
    for _, names in uncovered_blocks(sizes.problem, sizes.layout, joint=True):
        size = float(sum(sizes.problem.theta[name].numel() for name in names))
        if size <= EXACT_FALLBACK_LIMIT:
            operations += 2 * sizes.n * c * size**2
            held += size**2
    return [
        sizes.stage("Gram matrices", operations, 3.5 * held, 4 * held * sizes.rates.fresh),
        _factored(sizes, "Cholesky factors", factor, solve, held),
    ]


def _factored(sizes: Sizes, name: str, factor: float, solve: float, held: float) -> Stage:
    """Cholesky factors of `factor` operations in `held` numbers, and solves by them."""
    rates = sizes.rates
    seconds = factor * rates.cholesky + solve * rates.product + 3 * held * rates.fresh
    return Stage(name, factor + solve, 3.5 * held * sizes.item, seconds)


def _whole_stages(sizes: Sizes, rung: Rung, form: Form) -> list[Stage]:
    n, p, q = sizes.n, float(sizes.p), sizes.queries
    c = sizes.problem.loss.columns(sizes.problem.n_outputs)
    if isinstance(form, ConjugateGradients):
        return [*_preconditioner(sizes, form), *_iterations(sizes, form, c)]
    if isinstance(form, SampleSpace):
        operations = form.operations(sizes.problem, q)
        numbers = form.elements(sizes.problem, q)
        return [
            sizes.passed("pass over the data", c),
            sizes.stage("kernel, factor and refinement", operations, numbers),
        ]
    paired = sizes.layout.unshared and not sizes.layout.others
    rows = n * p**2 * (1 if paired else 2 * c)
    if isinstance(rung, Hessian):
        one = sizes.rates.forward.each + 2 * sizes.rates.backward.each
        products = 0.0 if paired else p * n * one
        return [
            sizes.passed("pass over the data", c),
            sizes.stage(
                "second derivatives", 2 * rows, 4 * p**2, products + 6 * p**2 * sizes.rates.fresh
            ),
            Stage(
                "eigendecomposition", 9 * p**3, 5 * p**2 * sizes.item, p**3 * sizes.rates.symmetric
            ),
        ]
    return [
        sizes.passed("pass over the data", c),
        sizes.stage("matrix", rows, 4 * p**2, 6 * p**2 * sizes.rates.fresh),
        _factored(sizes, "Cholesky factor", p**3 / 3, 2 * q * p**2, p**2),
    ]


def _preconditioner(sizes: Sizes, form: ConjugateGradients) -> list[Stage]:
    if form.preconditioner is None:
        return []
    return fit_stages(sizes, form.preconditioner, None)


def _iterations(sizes: Sizes, form: ConjugateGradients, c: int) -> list[Stage]:
    """As many as allowed: how many are needed is known only when they are done."""
    each = 2 * sizes.queries * _row_operations(sizes, min(c, 64))
    return [
        sizes.stage(
            f"up to {form.max_iterations} iterations",
            each * form.max_iterations,
            8.0 * sizes.queries * sizes.p,
        )
    ]


def score_stages(sizes: Sizes, rung: Rung) -> list[Stage]:
    n, q, p = sizes.n, sizes.queries, sizes.p
    read = _read_last(sizes.problem, rung)
    there = read is not None and sizes.gradients(read)
    left, kept = (sizes.missing(Empirical()), sizes.kept(Empirical())) if there else (1.0, 0.0)
    formed = _formed(sizes, rung) if there and left == 0 else frozenset[str]()
    solve = 0.0
    if isinstance(rung, KFAC | EKFAC):
        for layer in sizes.layout.layers:
            o, i = layer.out_features, layer.in_features
            turn = 2.0 * q * o * i * (o + i)
            solve += turn
            if layer.weight not in formed:
                solve += min(turn, 2.0 * n * layer.positions * (o * o + i * i))
    rows = sum(
        2.0 * n * work(layer)
        for layer in sizes.layout.layers
        if layer.shared and layer.weight not in formed
    )
    kept = min(kept * _shrunk(sizes, formed), sizes.problem.remember / sizes.item)
    some = min(q, max(1, SOLVED // p))
    x_qp = torch.ones(some, p).to(sizes.problem.decay)
    gradients = sizes.passed("gradients", 1, left + q / max(1, n), kept=kept)
    # solved queries, scores, the queries' own rows, a temporary of products, a chunk's pass
    held = 3.0 * q * p + q * n + q * sizes.layout.elements(1) + TEMPORARY
    held += sizes.chunk(1) if left else 0.0
    scores = sizes.timed(
        "scores",
        rows + 2.0 * q * n * p,
        held + kept,
        Empirical(),
        lambda rows: rows.inner(x_qp),
        prepare=lambda rows: _with_formed(rows, formed),
        times=q / some,
    )
    fresh = replace(scores, seconds=scores.seconds + held * sizes.rates.fresh)
    return [gradients, sizes.stage("solutions", solve, 3.0 * q * p), fresh]


def _read_last(problem: Problem, rung: Rung) -> Fisher | None:
    """The Fisher type of a fit's last pass; None where it makes none."""
    if not isinstance(rung, FisherRung):
        return None
    values = rung.values if isinstance(rung, EKFAC) else None
    return _fisher(problem, rung) if values is None else values


def _formed(sizes: Sizes, rung: Rung) -> frozenset[str]:
    """The weights whose gradients EK-FAC leaves in its eigenbasis, as matrices, where it reads
    the gradients and keeps all of them."""
    if not isinstance(rung, EKFAC):
        return frozenset()
    blocks = layer_blocks(sizes.problem.parameters, sizes.layout, joint_bias=rung.joint_bias)
    whole = (block for block in blocks if block.whole and not block.layer.lookup)
    return frozenset(
        block.layer.weight
        for block in whole
        if block.layer.shared and is_compact(*block.shape, block.layer.positions)
    )


def _shrunk(sizes: Sizes, formed: frozenset[str]) -> float:
    """How many numbers the kept gradients have then, over those of a and s."""
    before = after = 0
    for layer in sizes.layout.layers:
        o, i, t = layer.out_features, layer.in_features, layer.positions
        held = t * (o + i * (not layer.lookup))
        before += held
        after += o * i if layer.weight in formed else held
    return after / max(1, before)


def _with_formed(rows: Rows, formed: frozenset[str]) -> Rows:
    """The rows with the terms of those weights as matrices, a bias among them."""
    terms: list[Term] = list(rows.terms)
    for k, (layer, term) in enumerate(zip(rows.layers, rows.terms, strict=True)):
        if isinstance(term, SharedOuter) and layer.weight in formed:
            whole = replace(term, biased=term.ones)
            terms[k] = replace(whole.formed(None, None), biased=False)
    return replace(rows, terms=tuple(terms))
