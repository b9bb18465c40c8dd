"""What a rung would cost before any of it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from curvfluence import kinds
from curvfluence.curvature.block_ggn import BlockGGN
from curvfluence.curvature.diagonal import Diagonal
from curvfluence.curvature.ekfac import EKFAC
from curvfluence.curvature.ggn import GGN
from curvfluence.curvature.hessian import Hessian
from curvfluence.curvature.identity import Identity
from curvfluence.curvature.kfac import KFAC
from curvfluence.curvature.rung import Rung, require_rung
from curvfluence.forecast.plan import Plan
from curvfluence.forecast.rates import Rates
from curvfluence.forecast.scores import score_stages, token_stages
from curvfluence.forecast.sizes import Sizes
from curvfluence.jacobian.discovery import discover
from curvfluence.problem.problem import Problem, require_problem
from curvfluence.runtime import device as machine
from curvfluence.runtime import precision
from curvfluence.score.tokens import require_positions

# From the top down: what to name where a rung does not fit; the first that does and takes less.
LADDER: tuple[Rung, ...] = (Hessian(), GGN(), BlockGGN(), EKFAC(), KFAC(), Diagonal(), Identity())


@precision.full()
def plan(problem: Problem, rung: Rung, *, queries: int | None = None, tokens: bool = False) -> Plan:
    """Forecast the fit of `rung` and the scores of `queries` (by default all of the problem's);
    with `tokens` those of `token_influence`.

    Cost: the probe of `discover`, passes over at most 1,024 examples, and a few small products.
    Errors: `InputError` for a rung that states no stages (a hybrid).
    """
    return plans(problem, (rung,), queries=queries, tokens=tokens)[0]


@precision.full()
def plans(
    problem: Problem,
    rungs: Sequence[Rung],
    *,
    queries: int | None = None,
    tokens: bool = False,
) -> tuple[Plan, ...]:
    """`plan` of several rungs; the machine's rates are measured once."""
    require_problem(problem)
    if kinds.flag(tokens, "tokens"):
        require_positions(problem)
    for rung in rungs:
        require_rung(rung)
    count = len(problem.queries) if queries is None else queries
    kinds.count(count, "queries (how many there will be)")
    sizes = Sizes(problem, discover(problem), Rates.measured(problem), count)
    return tuple(_or_cheaper(sizes, rung, tokens=tokens) for rung in rungs)


def _or_cheaper(sizes: Sizes, rung: Rung, *, tokens: bool) -> Plan:
    first = _plan(sizes, rung, tokens=tokens)
    if first.fits:
        return first
    lower = (_plan(sizes, below, tokens=tokens) for below in _below(rung))
    fitting = (each.rung for each in lower if each.fits and each.bytes < first.bytes)
    return replace(first, cheaper=next(fitting, None))


def _below(rung: Rung) -> tuple[Rung, ...]:
    """The ladder below a rung of it; all of the ladder for any other."""
    kinds = [type(each) for each in LADDER]
    return LADDER[kinds.index(type(rung)) + 1 :] if type(rung) in kinds else LADDER


def _plan(sizes: Sizes, rung: Rung, *, tokens: bool) -> Plan:
    scored = token_stages if tokens else score_stages
    return Plan(
        rung=rung.name,
        stages=(*rung.stages(sizes), *scored(sizes, rung)),
        coverage=rung.coverage(sizes.problem),
        memory=machine.memory(sizes.problem.device),
        reason=rung.refusal(sizes.problem),
    )
