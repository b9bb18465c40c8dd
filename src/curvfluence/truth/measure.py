"""What each trained model makes of the queries."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from curvfluence.errors import NonFiniteError
from curvfluence.jacobian.own_functions import ROWS, require_own_measurement
from curvfluence.problem.data import Examples
from curvfluence.problem.measurement import Measurement
from curvfluence.problem.tree import Batched
from curvfluence.runtime import precision
from curvfluence.runtime.calls import OneCode
from curvfluence.truth.paths import Path, network_of
from curvfluence.truth.recipe import Recipe
from curvfluence.truth.threads import spread
from curvfluence.truth.together import evaluate
from curvfluence.truth.trainer import Trained, even


@precision.full()
def measure(
    recipe: Recipe,
    trained: Trained,
    queries: Examples,
    measurement: Measurement,
    *,
    chunk: int = 64,
    threads: int | None = None,
) -> Tensor:
    """m_q at each model's trained weights, [M, Q], in evaluation mode.

    Models run in the training dtype; the measurement is taken of their outputs in float64, since
    the loss of a well-fitted query would round to 0 in float32.

    Rows are in the order of `trained.runs`; those of `grid` reshape to [J, r, m, Q]. Cost: M·Q
    forward passes, side by side where the models were trained so.

    Errors: `NonFiniteError` naming run and query.
    """
    dtype = next(iter(trained.theta.values())).dtype
    queries = queries.to(queries.device, dtype)
    model = recipe.build(0, dtype, queries.device)

    def values(output: Tensor, target: Batched) -> Tensor:
        return measurement.values(output.double(), target)

    few = queries[:ROWS]
    model.load_state_dict(trained.weights(0), strict=False)
    with torch.no_grad(), OneCode():
        output = recipe.outputs(model.eval(), few.inputs)
    with suppress(NonFiniteError):  # named by run and query when it is measured
        require_own_measurement(measurement, output.double(), few.targets)

    def side_by_side(positions: Sequence[int]) -> Tensor:
        index = torch.tensor(even(positions))
        theta = {name: value[index] for name, value in trained.theta.items()}
        state = {name: value[index] for name, value in trained.state.items()}
        network = network_of(trained.path, recipe, model, theta, state)
        return evaluate(network, values, queries)[: len(positions)]

    def one_by_one(positions: Sequence[int]) -> Tensor:
        model.eval()
        rows: list[Tensor] = []
        for position in positions:
            model.load_state_dict(trained.weights(position), strict=False)
            with torch.no_grad(), OneCode():
                output = torch.cat(
                    [recipe.outputs(model, part.inputs) for _, part in queries.chunks(1024)]
                )
                rows.append(values(output, queries.targets))
        return torch.stack(rows)

    alone = trained.path is Path.PROCESSES
    workers = 1 if alone else torch.get_num_threads() if threads is None else threads
    pieces = [range(i, min(i + chunk, len(trained))) for i in range(0, len(trained), chunk)]
    done = dict(spread(one_by_one if alone else side_by_side, pieces, workers))
    value_mq = torch.cat([done[i] for i in range(len(pieces))])
    _require_finite(value_mq, trained, measurement)
    return value_mq


def _require_finite(value_mq: Tensor, trained: Trained, measurement: Measurement) -> None:
    bad = (~value_mq.isfinite()).nonzero()
    if len(bad):
        m, q = bad[0].tolist()
        raise NonFiniteError(
            f"{measurement.name} of query {q} is {float(value_mq[m, q])} under run {m} "
            f"({trained.runs[m]}; {len(bad)} such values): the model or the measurement overflows"
        )
