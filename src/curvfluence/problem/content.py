"""A name for a problem that is the same in every process."""

from __future__ import annotations

from curvfluence.problem.fingerprint import fingerprint
from curvfluence.problem.parts import of_measurement, tried
from curvfluence.problem.problem import Problem


def content(problem: Problem) -> str:
    """A name for all that scores depend on, the same in every process: weights, examples and what
    the model, the loss and the measurement make of a few."""
    outputs, pull = tried(problem)
    return fingerprint(
        repr(problem.structure.modules),
        *problem.theta.values(),
        *problem.state.values(),
        problem.decay,
        *problem.train.tensors,
        *problem.queries.tensors,
        problem.loss if problem.loss.closed else type(problem.loss).__qualname__,
        problem.held.said,
        of_measurement(problem.measurement),
        outputs,
        pull,
        problem.autocast,
        problem.device.type,  # of which each process may have another one
    )
