"""No score moves unless it is meant to: every rung on every net of the zoo, against a kept file."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from tests import golden

TOLERANCE = 1e-10  # of the largest entry: what another order of float64 sums may move


@cache
def kept() -> dict[str, Tensor]:
    return golden.read()


def same(name: str, scores: Tensor) -> None:
    wanted = kept()[name]
    found = scores.double().flatten()
    assert torch.equal(found.isnan(), wanted.isnan())
    size = float(wanted.nan_to_num().abs().max())
    assert float((found - wanted).nan_to_num().abs().max()) <= TOLERANCE * size, name


@pytest.mark.filterwarnings("ignore::curvfluence.errors.CurvfluenceWarning")
@pytest.mark.parametrize("net", golden.NETS)
def test_scores_of_every_rung(net: str) -> None:
    for rung in golden.RUNGS:
        same(f"{net} | {rung}", golden.scores(net, rung))


@pytest.mark.parametrize("net", golden.NETS)
def test_scores_of_other_kinds(net: str) -> None:
    for kind, scores in golden.others(net):
        same(f"{net} | {kind}", scores)


def test_every_entry_is_looked_at() -> None:
    named = {f"{net} | {rung}" for net in golden.NETS for rung in golden.RUNGS}
    others = {name for name in kept() if name not in named}
    assert named <= set(kept())
    assert {name.split(" | ")[0] for name in others} == set(golden.NETS)
