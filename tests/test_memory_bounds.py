"""Temporaries of dense curvatures are made a slice of the examples at a time: the same matrix with
slices of one example, and peaks that do not follow N × (width of a layer)²."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import curvfluence as cf
from curvfluence.runtime import budget
from tests.problems import make, mlp

RUNGS = (cf.GGN(cf.inversion.Matrix()), cf.BlockGGN(), cf.Hessian())


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@pytest.mark.parametrize("pairs", [1, 200])
def test_the_size_of_slices_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, rung: cf.Rung, pairs: int
) -> None:
    problem = make(mlp(5, 7, 4, 3), cf.CrossEntropy())
    whole = cf.fit(problem, rung).to_dense()
    monkeypatch.setattr(budget, "PAIRS", pairs)
    assert torch.allclose(cf.fit(problem, rung).to_dense(), whole, rtol=1e-12, atol=1e-14)


# Of one layer with many inputs the pairs of inputs, of one with many outputs the pairs of outputs,
# are more than a gigabyte for all examples together; matrices themselves are a tenth of that.
PEAK = """
import resource, sys, torch
from torch import nn
import curvfluence as cf
torch.manual_seed(0)
wide, rung = sys.argv[1] == "out", eval(sys.argv[2])
model = (
    nn.Sequential(nn.Linear(2, 800, bias=False), nn.Tanh(), nn.Linear(800, 1, bias=False))
    if wide else nn.Sequential(nn.Linear(300, 6))
)
x = torch.randn(500, 2) if wide else torch.randn(4000, 300)
y = torch.randn(500, 1) if wide else torch.randint(6, (4000,))
loss = nn.functional.mse_loss if wide else nn.functional.cross_entropy
problem = cf.Problem(model, loss, (x, y), (x[:3], y[:3]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cf.fit(problem, rung)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


@pytest.mark.parametrize("rung", ["cf.GGN(cf.inversion.Matrix())", "cf.BlockGGN()", "cf.Hessian()"])
@pytest.mark.parametrize("wide", ["in", "out"])
def test_the_peak_does_not_follow_pairs_of_all_examples(wide: str, rung: str) -> None:
    command = [sys.executable, "-c", PEAK, wide, rung]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(found.stdout) < 0.8  # GiB
