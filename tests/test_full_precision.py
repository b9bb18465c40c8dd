"""Torch's settings of precision: full while a rung is fitted or scored, and left as found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.runtime import precision
from curvfluence.truth import bregman_response
from tests.zoo import zoo_problem

DAMPING = cf.Absolute(0.05)
B: Any = torch.backends
GIVEN: dict[str, Callable[[], None]] = {
    "as found": lambda: None,
    "by name": lambda: torch.set_float32_matmul_precision("high"),
    "by flag": lambda: setattr(B.cuda.matmul, "allow_tf32", True),
}
OPERATIONS = (
    "cuda.matmul",
    "cudnn.conv",
    "cudnn.rnn",
    "mkldnn.matmul",
    "mkldnn.conv",
    "mkldnn.rnn",
)
PARENTS = ("cudnn", "mkldnn")


def given_precision(holder: str, value: str) -> None:
    attrgetter(holder)(B).fp32_precision = value


def by_name_and_operation() -> None:
    torch.set_float32_matmul_precision("high")
    given_precision("cuda.matmul", "ieee")


def everywhere_and_by_name() -> None:
    B.fp32_precision = "tf32"
    torch.set_float32_matmul_precision("high")


def everywhere() -> None:
    B.fp32_precision = "tf32"


if hasattr(B.cudnn, "conv"):  # torch 2.9
    GIVEN |= {
        "products": lambda: given_precision("cuda.matmul", "tf32"),
        "convolutions on the CPU": lambda: given_precision("mkldnn.conv", "bf16"),
        "recurrent ones alone": lambda: given_precision("cudnn.conv", "ieee"),
        "by name and by operation": by_name_and_operation,
        "everywhere": everywhere,
        "everywhere and by name": everywhere_and_by_name,
    }


def settings() -> list[object]:
    """All of torch's settings of precision; a kind of error where one cannot be read."""
    read: list[Callable[[], object]] = [
        lambda: B.cudnn.allow_tf32,
        lambda: B.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision,
        *(lambda h=h: attrgetter(h)(B).fp32_precision for h in (*OPERATIONS, *PARENTS)),
    ]
    found: list[object] = []
    for each in read:
        try:
            found.append(each())
        except (RuntimeError, AttributeError) as error:
            found.append(type(error))
    return found


@contextmanager
def kept_settings() -> Iterator[None]:
    """As torch starts with, whatever was set."""
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        if hasattr(B.cudnn, "conv"):
            B.fp32_precision = "none"
            for holder in (*PARENTS, *OPERATIONS):
                given_precision(holder, "none")
        B.cudnn.allow_tf32 = True


@pytest.mark.parametrize("name", GIVEN)
def test_settings_of_precision_are_left_as_found(name: str) -> None:
    with kept_settings():
        GIVEN[name]()
        before = settings()
        with precision.full():
            inside = settings()
            if hasattr(B.cudnn, "conv"):
                single = [attrgetter(holder)(B).fp32_precision for holder in OPERATIONS]
                assert set(single) <= {"ieee", "none"}
            with precision.full():
                assert settings() == inside
            assert settings() == inside
        assert settings() == before
        with pytest.raises(cf.errors.InputError):
            cf.influence(zoo_problem("mlp"), "EKFAC")  # pyright: ignore[reportArgumentType]
        assert settings() == before


def test_what_is_inherited_still_is() -> None:
    if not hasattr(B.cudnn, "conv"):
        pytest.skip("this torch has no settings of single operations")
    with kept_settings():
        B.fp32_precision = "tf32"
        with precision.full():
            pass
        assert B.cuda.matmul.fp32_precision == "tf32"
        B.fp32_precision = "ieee"
        assert B.cuda.matmul.fp32_precision == B.mkldnn.conv.fp32_precision == "ieee"


SEEN: set[str] = set()


class Asking(nn.Module):
    """Notes which precision it is called under, and uses a setting as a model may."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        SEEN.add(str(B.cudnn.allow_tf32))
        with B.cudnn.flags(enabled=False):  # as recurrent nets need for second derivatives
            return self.layer(x)


CALLS: dict[str, Callable[[cf.Problem], object]] = {
    "fit": lambda p: cf.fit(p, cf.EKFAC()),
    "influence": lambda p: cf.influence(p, cf.EKFAC(), damping=DAMPING),
    "self": lambda p: cf.self_influence(p, cf.EKFAC(), damping=DAMPING),
    "group": lambda p: cf.group_influence(p, cf.EKFAC(), torch.arange(7), damping=DAMPING),
    "plan": lambda p: cf.plan(p, cf.EKFAC()),
    "Bregman": lambda p: bregman_response(p, torch.eye(7), damping=0.1, epsilon=0.1),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_model_runs_in_full_precision(call: str) -> None:
    problem, model = zoo_problem("linear"), Asking().double()
    train, queries = problem.train, problem.queries
    asked = cf.Problem(
        model,
        problem.loss,
        (train.inputs, train.targets),
        (queries.inputs, queries.targets),
    )
    assert asked.n_outputs == 3
    SEEN.clear()
    CALLS[call](asked)
    assert {"False"} == SEEN
    assert B.cudnn.allow_tf32
