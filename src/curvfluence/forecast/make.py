"""What a rung would cost before any of it is done."""

from __future__ import annotations

from dataclasses import replace

from curvfluence.curvature.block_ggn import BlockGGN
from curvfluence.curvature.diagonal import Diagonal
from curvfluence.curvature.ekfac import EKFAC
from curvfluence.curvature.ggn import GGN
from curvfluence.curvature.hessian import Hessian
from curvfluence.curvature.identity import Identity
from curvfluence.curvature.kfac import KFAC
from curvfluence.curvature.rung import Rung
from curvfluence.errors import InputError
from curvfluence.forecast.plan import Plan
from curvfluence.forecast.rates import Rates
from curvfluence.forecast.scores import score_stages
from curvfluence.forecast.sizes import Sizes
from curvfluence.jacobian.discovery import discover
from curvfluence.problem.problem import Problem
from curvfluence.runtime import device as machine
from curvfluence.runtime import precision

# From the top down: what to try where a rung does not fit.
LADDER: tuple[Rung, ...] = (Hessian(), GGN(), BlockGGN(), EKFAC(), KFAC(), Diagonal(), Identity())


@precision.full()
def plan(problem: Problem, rung: Rung, *, queries: int | None = None) -> Plan:
    """Forecast the fit of `rung` and the scores of `queries` (by default all of the problem's).

    Cost: the probe of `discover`, passes over at most 1,024 examples, and a few small products.
    Errors: `InputError` for a rung that states no stages (a hybrid).
    """
    if not isinstance(rung, Rung):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"a rung is an object such as EKFAC(); seen {rung!r}")
    count = len(problem.queries) if queries is None else queries
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"queries is how many there will be, at least 1; seen {queries!r}")
    sizes = Sizes(problem, discover(problem), Rates.measured(problem), count)
    first = _plan(sizes, rung)
    if first.fits:
        return first
    lower = (_plan(sizes, below) for below in LADDER[_place(rung) + 1 :])
    return replace(first, cheaper=next((found.rung for found in lower if found.fits), None))


def _place(rung: Rung) -> int:
    """Where in the ladder a rung of the same name stands; at its top where none does."""
    names = [type(each).__name__ for each in LADDER]
    return names.index(type(rung).__name__) if type(rung).__name__ in names else 0


def _plan(sizes: Sizes, rung: Rung) -> Plan:
    return Plan(
        rung=rung.name,
        stages=(*rung.stages(sizes), *score_stages(sizes, rung)),
        coverage=rung.coverage(sizes.problem),
        memory=machine.memory(sizes.problem.device),
        reason=rung.refusal(sizes.problem),
    )
