"""What the model itself says of some examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.problem.losses import BinaryCrossEntropy, CrossEntropy
from curvfluence.problem.problem import Problem
from curvfluence.problem.stream import Data

MOST = 1_000  # outputs of an example that are kept


@dataclass(frozen=True, eq=False)
class Believed:
    """`values` [B, K] are outputs, or probabilities where `probable`; `classes` [B] the likeliest
    class, None where outputs are no classes."""

    values: Tensor
    probable: bool
    classes: Tensor | None


def believed(problem: Problem, data: Data, rows: Sequence[int]) -> Believed | None:
    """Of some examples by number. None where outputs are of positions, or too many to show."""
    if problem.loss.positions is not None or not rows:
        return None
    part = data.take(torch.tensor(list(rows), device=problem.device))
    return probabilities(problem, problem.outputs(part, "examples that are shown").double().cpu())


def probabilities(problem: Problem, outputs: Tensor) -> Believed | None:
    """Outputs [B, K] as the loss reads them."""
    if problem.loss.positions is not None or outputs.shape[1] > MOST:
        return None
    if isinstance(problem.loss, CrossEntropy):
        values = outputs.softmax(1)
        return Believed(values, True, values.argmax(1))
    if isinstance(problem.loss, BinaryCrossEntropy):
        values = outputs.sigmoid()
        one = (values[:, 0] > 0.5).long() if values.shape[1] == 1 else None
        return Believed(values, True, one)
    return Believed(outputs, False, None)
