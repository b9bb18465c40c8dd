"""A name for what a result depends on: other for other values, the same in another process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.problem.fingerprint import fingerprint

SCRIPT = """
import functools, torch
import curvfluence as cf
from curvfluence.problem.fingerprint import fingerprint

def made(scale):
    def values(f, y):
        return scale * (f - y).square().sum(1)
    return values

class Weighted:
    def __init__(self, w):
        self.w = w
    def __call__(self, f, y):
        return self.w * (f - y).square().sum(1)
    def values(self, f, y):
        return self(f, y)

def given(f, y, power=2):
    return (f - y).abs().pow(power).sum(1)

torch.manual_seed(0)
weight = torch.arange(3.0)
functions = [made(2.0), made(weight), Weighted(weight), Weighted(weight).values, given,
    functools.partial(given, power=3), lambda f, y: (f - y).square().sum(1), {made(1.0): [made]},
    torch.nn.Linear(2, 2), lambda f: f in {"one", "two", "three", "four"}]
x = torch.randn(6, 3)
problem = cf.Problem(
    torch.nn.Linear(3, 2), cf.CustomLoss(made(2.0)), (x, x[:, :2]), (x, x[:, :2]),
    forward=lambda model, batch: model(batch),
)
print([fingerprint(each) for each in functions], problem.fingerprint)
"""


def test_the_same_in_another_process() -> None:
    """Of functions, what they close over, objects that are called, methods, and a problem."""
    said = [
        subprocess.run(
            [sys.executable, "-c", f"pad = [0] * {pad}\n{SCRIPT}"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(pad)},
        ).stdout
        for pad in (1, 100_000)
    ]
    assert said[0] == said[1]
    names = said[0].partition("]")[0].split(", ")
    assert len(names) == len(set(names)) == 10


def scaled(by: object) -> Callable[[Any], Any]:
    return lambda x: x * by


def held(x: Any, *, by: float = 2.0) -> Any:
    return x * by


class Holder:
    def __init__(self, by: object) -> None:
        self.by = by


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (scaled(1.0), scaled(2.0)),
        (scaled(torch.ones(2)), scaled(torch.zeros(2))),
        (partial(held, by=1.0), partial(held, by=2.0)),
        (Holder(1), Holder(2)),
        (Holder(scaled(1)), Holder(scaled(2))),
        ([1, 2], [1, [2]]),
        ({"a": 1}, {"a": 2}),
        (nn.Linear(2, 2), nn.Linear(2, 2)),
        (lambda x: x + 1, lambda x: x + 2),  # pyright: ignore[reportUnknownLambdaType]
        (lambda x: [x + 1 for _ in x], lambda x: [x + 2 for _ in x]),  # pyright: ignore[reportUnknownLambdaType]
        (lambda x: torch.sin(x), lambda x: torch.cos(x)),  # pyright: ignore[reportUnknownLambdaType]
        (cf.MSE, cf.CrossEntropy),
    ],
)
def test_others_for_other_values(one: object, other: object) -> None:
    assert fingerprint(one) == fingerprint(one)
    assert fingerprint(one) != fingerprint(other)


def test_defaults_count() -> None:
    before = fingerprint(held)
    kept = held.__kwdefaults__
    held.__kwdefaults__ = {"by": 3.0}
    try:
        assert fingerprint(held) != before
    finally:
        held.__kwdefaults__ = kept
    assert fingerprint(held) == before


def test_a_problem_by_its_own_name() -> None:
    """Not by what it holds: a structure without values, data, functions that were cached."""
    x = torch.randn(6, 3)
    problem = cf.Problem(nn.Linear(3, 2), cf.MSE(), (x, x[:, :2]), (x, x[:, :2]))
    before = fingerprint(Holder(problem))
    cf.influence(problem, cf.KFAC())
    assert fingerprint(Holder(problem)) == before
    assert len(fingerprint(nn.Linear(2, 2, device="meta"))) == 16


def test_what_holds_itself_ends() -> None:
    own = Holder(None)
    own.by = own
    assert len(fingerprint(own)) == 16

    def recursive(n: int) -> int:
        return n and recursive(n - 1)

    assert len(fingerprint(recursive)) == 16


def test_a_curvature_under_a_function_of_the_users(tmp_path: Any) -> None:
    """Saved, and read for a problem that is made again."""

    def problem() -> cf.Problem:
        def values(f: Tensor, y: Tensor) -> Tensor:
            return (f - y).square().sum(1)

        torch.manual_seed(0)
        x = torch.randn(6, 3)
        return cf.Problem(nn.Linear(3, 2), cf.CustomLoss(values), (x, x[:, :2]), (x, x[:, :2]))

    with torch.random.fork_rng():
        cf.fit(problem(), cf.KFAC()).save(tmp_path / "curvature")
        assert cf.Curvature.load(tmp_path / "curvature", problem()).rung == "KFAC"
