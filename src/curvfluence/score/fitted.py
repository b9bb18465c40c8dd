"""The curvature that scores rest on, after everything that can be refused before work was."""

from __future__ import annotations

from curvfluence import kinds
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Absolute, Damping, Relative, require_damping
from curvfluence.curvature.rung import Rung, fit, require_together
from curvfluence.errors import InputError, SingularError
from curvfluence.problem.fingerprint import fingerprint
from curvfluence.problem.parts import another
from curvfluence.problem.problem import Problem, require_problem
from curvfluence.runtime import ranks


def fitted(
    problem: Problem,
    rung: Rung | Curvature,
    damping: Damping,
    *,
    strict: bool,
    solves: int | None = None,
) -> Curvature:
    """The curvature of `problem` under `rung`, or the given one where it is this problem's; of a
    rung that has a choice of forms in the one for `solves`, by default as many as queries."""
    require_problem(problem)
    kinds.flag(strict, "strict")
    require_damping(damping)
    if not isinstance(rung, Curvature):
        if isinstance(rung, Rung):  # pyright: ignore[reportUnnecessaryIsInstance]
            _require_regular(problem, rung, damping)
            rung = rung if solves is None else rung.for_solves(problem, solves)
        if (team := ranks.here()) is not None:  # fit asks for all else
            team.require_same({"the damping": str(damping)})
        return fit(problem, rung, strict=strict)
    if ranks.here() is not None:  # reading all of its matrices
        require_together(problem, the_rung=told_apart(rung), the_damping=damping)
    if rung.parameters != problem.parameters:
        raise InputError("the curvature was fitted on a model with other parameters")
    if rung.decay.device != problem.device:
        raise InputError(
            f"the curvature is on {rung.decay.device}, the problem on {problem.device}: fit it on "
            "this problem, or move the problem with problem.to(device=...)"
        )
    other = another(rung.fitted_on, rung.parts, problem)
    if other is not None:
        raise InputError(f"the curvature is of {other}: fit it on this problem")
    return rung


def told_apart(rung: Rung | Curvature) -> str:
    """What tells rungs with their options apart, or fitted curvatures."""
    if isinstance(rung, Curvature):
        return fingerprint(*(block.operator for block in rung.blocks))
    return repr(rung)


def _require_regular(problem: Problem, rung: Rung, damping: Damping) -> None:
    """Before any work: refuse a λ of 0 where the rank alone shows the matrix to be singular."""
    rank = rung.rank(problem)
    if rank is None or not isinstance(damping, Absolute | Relative) or damping.value > 0:
        return
    for line in rung.coverage(problem):
        places = [problem.parameters.slices[name] for name in line.parameters]
        bare = sum(int((problem.decay[place] == 0).sum()) for place in places)
        if bare > rank and not line.fallback:
            raise SingularError(
                f"{rung.name} with damping {damping} cannot be inverted: {bare:,} parameters of "
                f"block {line.block} have no weight decay, and {len(problem.train):,} examples "
                f"give it a rank of at most {rank:,}. Use Relative(0.1), or any damping > 0"
            )
