"""The truths that DESIGN §3 tells apart, from one grid of retrainings.

`values` is [J, r, m, Q]: initialisations, minibatch orders, subsets, queries. The first axis of a
target belongs to the influence models, one for each initialisation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from curvfluence.errors import InputError


def matched(values: Tensor) -> Tensor:
    """Average over runs with the influence model's own initialisation: [J, m, Q]."""
    return _grid(values).mean(1)


def independent(values: Tensor) -> Tensor:
    """Average over runs from all the other initialisations: [J, m, Q]. Needs J >= 2."""
    return independent_repeats(values).mean(1)


def very_run(values: Tensor) -> Tensor:
    """The runs themselves, [J · r, m, Q]: one influence model for each (initialisation, order).

    Right where the retrainings are `Weighted`, which keeps the run's minibatches.
    """
    return _grid(values).flatten(0, 1)


def matched_repeats(values: Tensor) -> Tensor:
    """What `matched` averages, [J, r, m, Q]: the units of repetition for its noise ceiling."""
    return _grid(values)


def independent_repeats(values: Tensor) -> Tensor:
    """What `independent` averages, [J, J − 1, m, Q]: each other initialisation's mean over orders.

    Runs that share an initialisation are no independent repeats of this question.
    """
    mean_jmq = _grid(values).mean(1)
    j = len(mean_jmq)
    if j < 2:
        raise InputError(
            "the average over independent initialisations needs runs from at least 2 of them; "
            f"values of shape {tuple(values.shape)} hold {j}"
        )
    others = torch.arange(j).repeat(j, 1)[~torch.eye(j, dtype=torch.bool)].view(j, j - 1)
    return mean_jmq[others]


def _grid(values: Tensor) -> Tensor:
    if values.ndim != 4 or 0 in values.shape:
        raise InputError(
            f"values must be [inits, orders, subsets, queries]; seen shape {tuple(values.shape)}"
        )
    return values
