"""What a rung would cost before any of it is done."""

from __future__ import annotations

from curvfluence.curvature import EKFAC, GGN, KFAC, BlockGGN, Diagonal, Hessian, Identity, Rung
from curvfluence.curvature.block_ggn import DENSE_LIMIT
from curvfluence.curvature.inversion import Form, Matrix, cheapest
from curvfluence.curvature.layerwise import EXACT_FALLBACK_LIMIT, uncovered_blocks
from curvfluence.errors import InputError
from curvfluence.forecast.plan import Plan, Rule
from curvfluence.forecast.rates import Rates
from curvfluence.forecast.sizes import Sizes
from curvfluence.forecast.stages import fit_stages, score_stages
from curvfluence.jacobian.discovery import discover
from curvfluence.problem.problem import Problem
from curvfluence.runtime import device as machine
from curvfluence.runtime import precision

# From the top down: what to try where a rung does not fit.
LADDER: tuple[Rung, ...] = (Hessian(), GGN(), BlockGGN(), EKFAC(), KFAC(), Diagonal(), Identity())


@precision.full()
def plan(problem: Problem, rung: Rung, *, queries: int | None = None) -> Plan:
    """Forecast the fit of `rung` and the scores of `queries` (by default all of the problem's).

    Cost: the probe of `coverage`, passes over at most 1,024 examples, and a few small products.
    """
    if not isinstance(rung, Rung):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"a rung is an object such as EKFAC(); seen {rung!r}")
    count = len(problem.queries) if queries is None else queries
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"queries is how many there will be, at least 1; seen {queries!r}")
    rates = Rates.measured(problem)
    first = _plan(problem, rung, count, rates)
    if first.fits:
        return first
    below = LADDER[_place(rung) + 1 :]
    found = (_plan(problem, lower, count, rates) for lower in below)
    cheaper = next((lower.rung for lower in found if lower.fits), None)
    return Plan(first.rung, first.stages, first.coverage, first.memory, first.reason, cheaper)


def _place(rung: Rung) -> int:
    kinds: list[type[Rung]] = [type(each) for each in LADDER]
    return kinds.index(type(rung)) if type(rung) in kinds else 0


def _plan(problem: Problem, rung: Rung, queries: int, rates: Rates) -> Plan:
    sizes = Sizes(problem, discover(problem), rates, queries)
    form = _form(problem, rung, queries)
    stages = [*fit_stages(sizes, rung, form), *score_stages(sizes, rung)]
    return Plan(
        rung=rung.name,
        stages=tuple(stages),
        coverage=tuple(_rules(sizes, rung)),
        memory=machine.memory(problem.device),
        reason=_reason(sizes, rung, form),
    )


def _form(problem: Problem, rung: Rung, queries: int) -> Form | None:
    if isinstance(rung, GGN):
        return cheapest(problem, queries) if rung.form is None else rung.form
    if isinstance(rung, Hessian):
        return Matrix() if rung.form is None else rung.form
    return None


def _reason(sizes: Sizes, rung: Rung, form: Form | None) -> str | None:
    if isinstance(form, Matrix) and sizes.p > DENSE_LIMIT:
        return f"{sizes.p:,} parameters are more than the {DENSE_LIMIT:,} of a dense matrix"
    if isinstance(rung, BlockGGN):
        for layer in sizes.layout.layers:
            own = layer.out_features * (layer.in_features + (layer.bias is not None))
            if own > DENSE_LIMIT:
                return f"block {layer.name} of {own:,} parameters is more than {DENSE_LIMIT:,}"
    return None


def _rules(sizes: Sizes, rung: Rung) -> list[Rule]:
    own: dict[type[Rung], str] = {
        KFAC: "Kronecker",
        EKFAC: "eigenvalue-corrected Kronecker",
        Diagonal: "diagonal",
    }
    exact = isinstance(rung, GGN | Hessian | BlockGGN | Identity)
    rule = "exact" if exact else own.get(type(rung), "by rule")
    found: list[Rule] = []
    for layer in sizes.layout.layers:
        names = (layer.weight, layer.bias) if layer.bias else (layer.weight,)
        count = layer.out_features * (layer.in_features + (layer.bias is not None))
        found.append(Rule(names, count, f"{rule} ({layer.kind}, T = {layer.positions})", False))
    for _, names in uncovered_blocks(sizes.problem, sizes.layout, joint=True):
        count = sum(sizes.problem.theta[name].numel() for name in names)
        if exact or isinstance(rung, Diagonal):
            found.append(Rule(names, count, rule, False))
            continue
        kind = "exact block" if count <= EXACT_FALLBACK_LIMIT else "diagonal"
        found.append(Rule(names, count, f"{kind} ({sizes.layout.others[names[0]]})", True))
    return found
