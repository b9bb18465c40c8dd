"""The stages of a fit and of scores, with what each costs."""

from __future__ import annotations

from curvfluence.curvature import EKFAC, GGN, KFAC, BlockGGN, Hessian, Identity, Rung
from curvfluence.curvature.forms import ConjugateGradients, Form, SampleSpace
from curvfluence.curvature.layerwise import EXACT_FALLBACK_LIMIT, uncovered_blocks
from curvfluence.curvature.passes import REMEMBERED
from curvfluence.curvature.rung import FisherRung
from curvfluence.fisher import Fisher, Type2, default_fisher
from curvfluence.forecast.plan import Stage
from curvfluence.forecast.sizes import Sizes, work
from curvfluence.problem import Problem


def fit_stages(sizes: Sizes, rung: Rung, form: Form | None) -> list[Stage]:
    if isinstance(rung, Identity):
        return []
    if isinstance(rung, GGN | Hessian):
        assert form is not None
        return _whole_stages(sizes, rung, form)
    fisher = _fisher(sizes.problem, rung)
    c = fisher.width(sizes.problem)
    if isinstance(rung, KFAC | EKFAC):
        return _kronecker_stages(sizes, c, again=isinstance(rung, EKFAC))
    passed = sizes.passed("pass over the data", c)
    if isinstance(rung, BlockGGN):
        return [passed, *_block_stages(sizes, c)]
    return [passed, sizes.stage("sums of squares", _row_operations(sizes, c), sizes.p)]


def _fisher(problem: Problem, rung: Rung) -> Fisher:
    own = rung.fisher if isinstance(rung, FisherRung) else Type2()
    return default_fisher(problem) if own is None else own


def _row_operations(sizes: Sizes, c: int) -> float:
    """Of sums of products of rows: one GEMM where no position is shared, else the rows' own."""
    total = 2.0 * sizes.n * c * sizes.rest
    for layer in sizes.covered.layers:
        width = layer.out_features * (1 if layer.lookup else layer.in_features)
        total += 2.0 * sizes.n * width * (c * layer.positions if layer.shared else 1)
    return total


def _kronecker_stages(sizes: Sizes, c: int, *, again: bool) -> list[Stage]:
    n, factors, eigen, second, held = sizes.n, 0.0, 0.0, 0.0, 0.0
    for layer in sizes.covered.layers:
        o, t = layer.out_features, layer.positions
        i = 0 if layer.lookup else layer.in_features + (layer.bias is not None)
        factors += n * t * (_gram(i) + c * _gram(o))
        eigen += float(o) ** 3 + float(i) ** 3
        rotate = 2.0 * n * t * (c * o * o + i * i)
        if layer.shared:
            rows = 2.0 * n * c * o * i * (o + i)
            second += 2.0 * n * c * t * o * max(i, 1) + min(rotate, rows)
        else:
            second += rotate + 2.0 * n * o * i
        held += o * o + i * i + o * (layer.in_features + 1)
    memory = min(n * sizes.covered.numbers(c), REMEMBERED if again else 0)
    stages = [
        sizes.passed("pass over the data", c),
        sizes.stage("factors", factors, held + memory),
        Stage(
            "eigendecompositions",
            9 * eigen,
            (3 * held + memory) * sizes.item,
            eigen * sizes.rates.eigen,
        ),
    ]
    if again:
        missing = 1 - min(1.0, REMEMBERED / max(1, n * sizes.covered.numbers(c)))
        if missing:
            stages.append(sizes.passed("second pass over the data", c, missing))
        stages.append(sizes.stage("eigenvalues", second, 2 * held + memory))
    return stages


def _gram(k: int) -> float:
    """Operations of a Gram matrix of width k, a row: wide ones are computed by halves."""
    return 2.0 * k * k if k < 256 else 1.5 * k * k


def _block_stages(sizes: Sizes, c: int) -> list[Stage]:
    operations, solve, held = 0.0, 0.0, 0.0
    for layer in sizes.covered.layers:
        size = float(layer.out_features * (layer.in_features + (layer.bias is not None)))
        operations += sizes.n * size**2 * (2 * c if layer.shared else 0.5)
        solve += size**3 / 3 + 2 * sizes.queries * size**2
        held += size**2
    for _, names in uncovered_blocks(sizes.problem, sizes.covered, joint=True):
        size = float(sum(sizes.problem.theta[name].numel() for name in names))
        if size <= EXACT_FALLBACK_LIMIT:
            operations += 2 * sizes.n * c * size**2
            held += size**2
    return [
        sizes.stage("Gram matrices", operations, 2 * held),
        sizes.stage("Cholesky factors", solve, 2 * held),
    ]


def _whole_stages(sizes: Sizes, rung: Rung, form: Form) -> list[Stage]:
    n, p, q = sizes.n, float(sizes.p), sizes.queries
    c = sizes.problem.loss.columns(sizes.problem.n_outputs)
    if isinstance(form, ConjugateGradients):
        return [*_preconditioner(sizes, form), *_iterations(sizes, form, c)]
    if isinstance(form, SampleSpace):
        operations = form.operations(sizes.problem, q)
        numbers = form.numbers(sizes.problem, q)
        return [
            sizes.passed("pass over the data", c),
            sizes.stage("kernel, factor and refinement", operations, numbers),
        ]
    paired = sizes.covered.unshared and not sizes.covered.others
    rows = n * p**2 * (1 if paired else 2 * c)
    if isinstance(rung, Hessian):
        one = sizes.rates.forward.each + 2 * sizes.rates.backward.each
        products = 0.0 if paired else p * n * one
        return [
            sizes.passed("pass over the data", c),
            sizes.stage("second derivatives", 2 * rows, 3 * p**2, products),
            Stage("eigendecomposition", 9 * p**3, 4 * p**2 * sizes.item, p**3 * sizes.rates.eigen),
        ]
    return [
        sizes.passed("pass over the data", c),
        sizes.stage("matrix", rows, 2 * p**2),
        sizes.stage("Cholesky factor", p**3 / 3 + 2 * q * p**2, 2 * p**2),
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
    n, q = sizes.n, sizes.queries
    solve = 0.0
    if isinstance(rung, KFAC | EKFAC):
        for layer in sizes.covered.layers:
            o, i = layer.out_features, layer.in_features
            back = 2.0 * q * o * i * (o + i)
            solve += min(back, 2.0 * n * layer.positions * (o * o + i * i))
    rows = sum(2.0 * n * work(layer) for layer in sizes.covered.layers if layer.shared)
    return [
        sizes.passed("gradients", 1, 1 + q / max(1, n)),
        sizes.stage("scores", solve + rows + 2.0 * q * n * sizes.p, 3.0 * q * sizes.p + q * n),
    ]
