"""Long works on one problem, kept beside the page that they lead to."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from curvfluence.curvature.workload import operations
from curvfluence.errors import InputError
from curvfluence.problem.fingerprint import fingerprint
from curvfluence.problem.problem import Problem
from curvfluence.runtime import device as machine
from curvfluence.runtime import generators, ranks
from curvfluence.runtime.journal import LONG, kept_in
from curvfluence.store.steps import Steps

TRIED = 8  # queries whose outputs tell one model's code from another's


@contextmanager
def going_on(page: Path, problem: Problem, *asked: object) -> Generator[None]:
    """Keep what takes long on the way to `page`, in the folder PAGE.steps until the page is there,
    so that the same command goes on where it was killed, to the same bits. `asked` is what else
    the result depends on.

    Works are kept from about 10 seconds up, by the operations of scores: passes read no gradients
    that an earlier one left in memory then, which is what bits would hang on. Errors: `InputError`
    where another command is on the way to the same page. Nothing is kept where several processes
    work together.
    """
    if operations(problem) < LONG or ranks.here() is not None:
        yield
        return
    folder = page.with_name(f"{page.name}.steps")
    depends = {
        "problem": content(problem),
        "asked": list(map(str, asked)),
        "memory": machine.memory(problem.device),  # which the form of a GGN goes by
    }
    with Steps(folder, depends).ours() as own:
        if own is None:
            raise InputError(f"another command is on the way to {page}: name another page")
        with kept_in(own):
            yield


def content(problem: Problem) -> str:
    """A name for all that scores depend on, the same in every process: weights, examples and what
    the model, the loss and the measurement make of a few."""
    queries = problem.queries.take(slice(0, TRIED))
    with torch.no_grad(), generators.preserved():
        outputs = problem.forward(queries.inputs)
        pull = problem.measurement.gradient(outputs, queries.targets)
    return fingerprint(
        repr(problem.structure.modules),
        *problem.theta.values(),
        *problem.state.values(),
        problem.decay,
        *problem.train.tensors,
        *problem.queries.tensors,
        problem.loss if problem.loss.closed else type(problem.loss).__qualname__,
        problem.held.said,
        problem.measurement.name,
        outputs,
        pull,
        problem.autocast,
        problem.device,
    )
