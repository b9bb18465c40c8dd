"""A name for a problem that is the same in every process."""

from __future__ import annotations

import torch

from curvfluence.problem.fingerprint import fingerprint
from curvfluence.problem.problem import Problem
from curvfluence.runtime import generators

TRIED = 8  # queries whose outputs tell one model's code from another's


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
