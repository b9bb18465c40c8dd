"""What results depend on, part by part, so that an error names those that differ.

Whether anything differs is asked of `fingerprint` and `content`, which are hashes of everything;
these are cheaper numbers that say where.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from curvfluence.errors import listed
from curvfluence.problem.data import Examples
from curvfluence.problem.fingerprint import fingerprint
from curvfluence.problem.measurement import Measurement
from curvfluence.problem.problem import Problem
from curvfluence.problem.stream import Data
from curvfluence.problem.tree import paths_of
from curvfluence.runtime import generators
from curvfluence.runtime.checksum import checksum

TRIED = 8  # queries whose outputs tell one model's code from another's

MODEL, WEIGHTS, STATE = "the model", "the weights", "the buffers and frozen parameters"
DECAY, LOSS, TRAIN = "the weight decay", "the loss", "the training data"
DTYPE, AUTOCAST, DEVICE = "the dtype of the weights", "autocast", "the kind of device"
QUERIES, MEASUREMENT = "the queries", "the measurement"
OUTPUTS, VALUES, PULL = (
    f"what {each} computes" for each in ("the model", "the loss", "the measurement")
)

WHOLE = "the weights, loss, data or queries"  # where none of the parts says which

# Parts that differ wherever one of these others does, and by themselves only where none does.
COMES_OF: Mapping[str, frozenset[str]] = {
    **{part: frozenset({DTYPE}) for part in (WEIGHTS, STATE, TRAIN, QUERIES)},
    VALUES: frozenset({LOSS, TRAIN, DTYPE}),
    OUTPUTS: frozenset({MODEL, WEIGHTS, STATE, QUERIES, DTYPE, AUTOCAST, DEVICE}),
    PULL: frozenset(
        {MODEL, WEIGHTS, STATE, LOSS, QUERIES, MEASUREMENT, DTYPE, AUTOCAST, DEVICE}
        | {OUTPUTS, VALUES}
    ),
    WHOLE: frozenset(
        {MODEL, WEIGHTS, STATE, DECAY, LOSS, TRAIN, DTYPE, AUTOCAST, DEVICE, QUERIES, MEASUREMENT}
        | {OUTPUTS, VALUES, PULL}
    ),
}


def parts_of_fit(problem: Problem) -> dict[str, str]:
    """What a curvature depends on: a number for each part. Cost: reading weights and data."""
    loss = problem.loss
    return {
        MODEL: fingerprint(repr(problem.structure.modules)),
        DTYPE: str(problem.dtype),
        AUTOCAST: str(problem.autocast),
        WEIGHTS: _of_tensors(problem.theta),
        STATE: _of_tensors(problem.state),
        DECAY: _of_decay(problem),
        LOSS: fingerprint(loss) if loss.closed else type(loss).__qualname__,
        VALUES: fingerprint(problem.held.said),
        TRAIN: _of_data(problem.train),
    }


def parts(problem: Problem) -> dict[str, str]:
    """What scores depend on: a number for each part, the same in every process."""
    outputs, pull = tried(problem)
    return {
        **parts_of_fit(problem),
        DEVICE: problem.device.type,
        QUERIES: _of_data(problem.queries),
        MEASUREMENT: of_measurement(problem.measurement),
        OUTPUTS: fingerprint(outputs),
        PULL: fingerprint(pull),
    }


def tried(problem: Problem) -> tuple[Tensor, Tensor]:
    """What the model and the measurement make of a few queries: (outputs f, ∂m/∂f)."""
    queries = problem.queries.take(slice(0, TRIED))
    with torch.no_grad(), generators.preserved():
        outputs = problem.forward(queries.inputs)
        return outputs, problem.measurement.gradient(outputs, queries.targets)


def of_measurement(measurement: Measurement) -> str:
    """By its name and its settings; functions and losses among them are told by what they make."""
    values = vars(measurement).items()
    plain = {k: v for k, v in values if isinstance(v, str | int | float | None)}
    return fingerprint(type(measurement).__qualname__, measurement.name, plain)


def differing(kept: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """The parts that are others of themselves, in the order of `now`."""
    found = {name for name in now if kept.get(name) != now[name]}
    return tuple(n for n in now if n in found and not COMES_OF.get(n, frozenset()) & found)


def another(fitted_on: str, kept: Mapping[str, str], problem: Problem) -> str | None:
    """What something was made of that is of a `Problem.fingerprint` and of these parts, in words;
    None where it is `problem`. Files of earlier versions have no parts."""
    if fitted_on == problem.fingerprint:
        return None
    differ = differing(kept, parts_of_fit(problem)) if kept else ()
    if not differ:
        return "other weights, weight decay, loss or training data"
    return f"another problem, which differs in {listed(differ)}"


def _of_tensors(held: Mapping[str, Tensor]) -> str:
    shapes = [(tuple(x.shape), x.dtype) for x in held.values()]
    return fingerprint(shapes, checksum(*held.values()))


def _of_data(data: Data) -> str:
    shapes = [(tuple(x.shape), x.dtype) for x in data.tensors]
    if not isinstance(data, Examples):  # a reading more would tell how its items are laid out
        return fingerprint("stream", shapes, data.checksum)
    few = data.take(slice(0, 1))
    paths = paths_of(few.inputs), paths_of(few.targets)
    return fingerprint("examples", paths, shapes, data.checksum)


def _of_decay(problem: Problem) -> str:
    """One number where it is the same for all parameters, whatever these are."""
    values = problem.weight_decay if problem.has_decay else {}
    alike = set(values.values()) or {0.0}
    return repr(alike.pop() if len(alike) == 1 else dict(values))
