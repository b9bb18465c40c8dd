"""Long works on one problem, kept beside the page that they lead to."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from curvfluence.curvature.workload import operations
from curvfluence.errors import InputError
from curvfluence.problem.content import content
from curvfluence.problem.problem import Problem
from curvfluence.runtime import device as machine
from curvfluence.runtime import ranks
from curvfluence.runtime.journal import LONG, kept_in
from curvfluence.store.files import require_no_link
from curvfluence.store.folder import writing
from curvfluence.store.steps import Steps


@contextmanager
def going_on(page: Path, problem: Problem, *asked: object) -> Generator[None]:
    """Keep what takes long on the way to `page`, in the folder PAGE.steps until the page is there,
    so that the same command goes on where it was killed, to the same bits. `asked` is what else
    the result depends on.

    Works are kept from about 10 seconds up, by the operations of scores: passes read no gradients
    that an earlier one left in memory then, which is what bits would hang on. Errors: `InputError`
    where another command is on the way to the same page. Where several processes work together,
    each keeps what it does by itself, for as many processes the next time.
    """
    if operations(problem) < LONG:
        yield
        return
    whole = page.with_name(f"{page.name}.steps")
    team = ranks.here()
    folder = whole if team is None else whole / f"{team.rank} of {team.count}"
    depends = {
        "problem": content(problem),
        "asked": list(map(str, asked)),
        "memory": machine.memory(problem.device),  # which the form of a GGN goes by
    }
    with ExitStack() as stack:
        with ranks.alike(), writing(folder):
            require_no_link(whole)
            whole.mkdir(exist_ok=True)
            own = stack.enter_context(Steps(folder, depends).ours())
            if own is None:
                raise InputError(f"another command is on the way to {page}: name another page")
        stack.enter_context(kept_in(own))
        yield
    with suppress(OSError):  # it holds those of other processes still
        whole.rmdir()
