"""torch's losses as this project's, where the mean over a batch is the same number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import nn

from curvfluence.errors import InputError
from curvfluence.problem.losses import MSE, BinaryCrossEntropy, CrossEntropy, Loss

FUNCTIONS: dict[Any, Callable[[], Loss]] = {
    F.cross_entropy: CrossEntropy,
    F.mse_loss: MSE,
    F.binary_cross_entropy_with_logits: BinaryCrossEntropy,
}


def as_loss(value: object) -> Loss:
    """A loss as it is; `nn.CrossEntropyLoss`, `nn.MSELoss`, `nn.BCEWithLogitsLoss` and their
    functions as `CrossEntropy`, `MSE` and `BinaryCrossEntropy`, which per example are the same.

    Errors: `InputError` for options under which torch's mean is over something else than examples,
    with what to write instead, and for anything that is no loss.
    """
    if isinstance(value, Loss):
        return value
    if isinstance(value, nn.CrossEntropyLoss):
        _require_mean(value)
        if value.weight is not None:
            raise InputError(
                "torch divides a weighted cross-entropy by the weights of the labels in a batch, "
                "which is no mean over examples: CrossEntropy(weight=...) divides by their number"
            )
        return CrossEntropy(label_smoothing=value.label_smoothing)
    if isinstance(value, nn.MSELoss):
        _require_mean(value)
        return MSE()
    if isinstance(value, nn.BCEWithLogitsLoss):
        _require_mean(value)
        if value.weight is not None or value.pos_weight is not None:
            raise InputError(
                "BCEWithLogitsLoss with weights has no counterpart here: write it as "
                "CustomLoss(f) of one example's outputs and target, or weigh examples with "
                "Problem(sample_weight=...)"
            )
        return BinaryCrossEntropy()
    made = next((made for known, made in FUNCTIONS.items() if known is value), None)
    if made is not None:
        return made()
    raise InputError(
        "loss must be a curvfluence loss, such as CrossEntropy(), MSE() or CustomLoss(f), or "
        "torch's nn.CrossEntropyLoss(), nn.MSELoss() or nn.BCEWithLogitsLoss(); seen "
        f"{value!r}"
    )


def _require_mean(value: nn.Module) -> None:
    if value.reduction == "sum":
        raise InputError(
            f"{value!r} adds up a batch, and the objective here is the mean over examples: give "
            f"{type(value).__name__}() (gradients, and with them influences, are then of the mean)"
        )
