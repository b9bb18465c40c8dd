"""torch's losses are taken as they are where they are the same mean, and refused where not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.problem.losses import Loss
from curvfluence.problem.torch_losses import as_loss
from tests.test_truth_training import RECIPE

LABELS = torch.randint(0, 4, (30,), generator=torch.Generator().manual_seed(0))
REALS = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
CASES: dict[str, tuple[Any, Loss, Tensor]] = {
    "cross-entropy": (nn.CrossEntropyLoss(), cf.CrossEntropy(), LABELS),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), cf.CrossEntropy(0.1), LABELS),
    "unreduced": (nn.CrossEntropyLoss(reduction="none"), cf.CrossEntropy(), LABELS),
    "squared error": (nn.MSELoss(), cf.MSE(), REALS),
    "binary": (nn.BCEWithLogitsLoss(), cf.BinaryCrossEntropy(), (REALS > 0).float()),
    "F.cross_entropy": (F.cross_entropy, cf.CrossEntropy(), LABELS),
    "F.mse_loss": (F.mse_loss, cf.MSE(), REALS),
    "F.binary": (
        F.binary_cross_entropy_with_logits,
        cf.BinaryCrossEntropy(),
        (REALS > 0).float(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_scores(name: str) -> None:
    given, ours, targets = CASES[name]
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)), torch.randn(30, 3)
    one, other = (
        cf.Problem(model, loss, (x[:25], targets[:25]), (x[25:], targets[25:]))
        for loss in (given, ours)
    )
    assert repr(one.loss) == repr(ours.bound((4,), [(targets, None)]))
    a, b = (cf.influence(p, cf.EKFAC(), damping=cf.Absolute(0.1)).values for p in (one, other))
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_the_mean_of_a_batch_is_torchs(name: str) -> None:
    """Of every example alone, so of every batch."""
    given, _, targets = CASES[name]
    output = torch.randn(30, 4, generator=torch.Generator().manual_seed(2))
    found = as_loss(given).values(output, targets).mean()
    torch.testing.assert_close(found, given(output, targets).mean())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (nn.CrossEntropyLoss(weight=torch.ones(4)), r"CrossEntropy\(weight=\.\.\.\) divides"),
        (nn.CrossEntropyLoss(reduction="sum"), "adds up a batch"),
        (nn.MSELoss(reduction="sum"), "adds up a batch"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(4)), "no counterpart"),
        (nn.BCEWithLogitsLoss(weight=torch.ones(4)), "no counterpart"),
        (nn.L1Loss(), "loss must be a curvfluence loss"),
        (F.l1_loss, "loss must be a curvfluence loss"),
        ("cross_entropy", "loss must be a curvfluence loss"),
        (None, "loss must be a curvfluence loss"),
    ],
)
def test_refused(given: Any, said: str) -> None:
    with pytest.raises(cf.errors.InputError, match=said):
        as_loss(given)


def test_a_recipe_takes_them_too() -> None:
    recipe = replace(RECIPE, loss=nn.CrossEntropyLoss())  # pyright: ignore[reportArgumentType]
    assert repr(recipe.loss) == repr(cf.CrossEntropy())
