"""Long works on one problem, kept beside the page that they lead to."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from curvfluence.curvature.long_work import takes_long
from curvfluence.curvature.rung import Rung
from curvfluence.errors import InputError
from curvfluence.problem.content import content
from curvfluence.problem.problem import Problem
from curvfluence.runtime import device as machine
from curvfluence.runtime import ranks
from curvfluence.runtime.journal import kept_in
from curvfluence.store.steps import Steps


@contextmanager
def going_on(
    page: Path, problem: Problem, *asked: object, rungs: Sequence[Rung] = ()
) -> Generator[None]:
    """Keep what takes long on the way to `page`, in the folder PAGE.steps until the page is there,
    so that the same command goes on where it was killed, to the same bits. `asked` is what else
    the result depends on, `rungs` those that are fitted.

    Works are kept from about 10 seconds up, by operations (`takes_long`): passes read no gradients
    that an earlier one left in memory then, which is what bits would hang on. Errors: `InputError`
    where another command is on the way to the same page. Where several processes work together,
    each keeps what it does by itself, for as many processes the next time.
    """
    if not takes_long(problem, rungs):
        yield
        return
    folder = page.with_name(f"{page.name}.steps")
    depends = {
        "problem": content(problem),
        "asked": list(map(str, asked)),
        "memory": machine.memory(problem.device),  # which the form of a GGN goes by
    }
    team = ranks.here()
    with ExitStack() as stack:
        steps = Steps(folder, depends)
        with ranks.alike():
            own = stack.enter_context(steps.ours()) if ranks.leads() else steps
            if own is None:
                raise InputError(f"another command is on the way to {page}: name another page")
        if team is not None:
            own = own.within({"rank": team.rank, "of": team.count})
        stack.enter_context(kept_in(own))
        yield
        ranks.wait()  # for who needs its steps still: they go with the first process's lock
