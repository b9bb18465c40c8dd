"""What a damping resolves to, says and refuses, whatever curvature it is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.curvature.damping import NAMED
from curvfluence.curvature.operators.mean_eigenvalue import MeanEigenvalue
from curvfluence.errors import InputError


@dataclass(frozen=True)
class OfTen:
    """A block of ten parameters."""

    name: str
    size: int = 10


@dataclass(frozen=True)
class Blocks:
    """Blocks of which so many eigenvalues are not 0, their mean as large as their count."""

    counts: Sequence[int]

    @property
    def blocks(self) -> list[OfTen]:
        return [OfTen(f"b{k}") for k in range(len(self.counts))]

    @property
    def mean_eigenvalues(self) -> list[MeanEigenvalue]:
        return [MeanEigenvalue(float(count), count) for count in self.counts]


class Truth:
    """One that is never asked."""

    @property
    def left_out(self) -> Tensor:
        return torch.zeros(1, 1)

    def judge(self, predicted_mq: Tensor) -> tuple[float, float]:
        return 0.0, 0.0


def test_one_for_each_block() -> None:
    curvature = Blocks([2, 10, 0])
    assert cf.Absolute(0.5).resolve(curvature) == (0.5, 0.5, 0.5)
    assert cf.Relative(0.5).resolve(curvature) == (1.0, 5.0, 0.0)


class TestNote:
    def test_an_absolute_one_says_nothing(self) -> None:
        assert cf.Absolute(0.5).note(Blocks([2, 3])) is None

    def test_nothing_where_all_eigenvalues_count(self) -> None:
        assert cf.Relative(0.5).note(Blocks([10, 10])) is None

    @pytest.mark.parametrize(
        ("counts", "said"),
        [
            ([2, 3], "2 of 10 in block b0, 3 of 10 in block b1"),
            ([10, 3], "3 of 10 in block b1, all in the others"),
            ([1] * NAMED, ", ".join(f"1 of 10 in block b{k}" for k in range(NAMED))),
            (
                [1] * (NAMED + 2),
                ", ".join(f"1 of 10 in block b{k}" for k in range(NAMED))
                + ", fewer than all in 2 more",
            ),
            (
                [10] + [1] * (NAMED + 1),
                ", ".join(f"1 of 10 in block b{k + 1}" for k in range(NAMED))
                + ", fewer than all in 1 more, all in the others",
            ),
        ],
    )  # fmt: skip
    def test_the_first_few_are_named(self, counts: list[int], said: str) -> None:
        note = cf.Relative(0.5).note(Blocks(counts))
        assert note is not None
        assert note.partition(": ")[2] == said


class TestBestOf:
    def test_a_tuple_or_a_list(self) -> None:
        candidates = [cf.Absolute(0.1), cf.Relative(0.1)]
        assert list(cf.BestOf(tuple(candidates), truth=Truth()).candidates) == candidates
        given: Any = candidates
        assert list(cf.BestOf(given, truth=Truth()).candidates) == candidates

    def test_it_is_not_resolved_without_queries(self) -> None:
        with pytest.raises(InputError, match="which has queries"):
            cf.BestOf((cf.Absolute(0.1),), truth=Truth()).resolve(Blocks([1]))

    @pytest.mark.parametrize(
        ("candidates", "truth", "said"),
        [
            ((), Truth(), r"one or more; seen \(\)"),
            (0.1, Truth(), "one or more; seen 0.1"),
            ((cf.Absolute(0.1), 0.1), Truth(), "a candidate is a damping .*; seen 0.1"),
            ((cf.BestOf((cf.Absolute(1.0),), Truth()),), Truth(), "cannot choose among BestOf"),
            ((cf.Absolute(0.1),), None, "BestOf without a truth"),
            ((cf.Absolute(0.1),), 3, "able to judge predictions, .*; seen 3"),
            ((cf.Absolute(0.1),), MeanEigenvalue(1.0, 1), "able to judge predictions"),
        ],
    )
    def test_refused(self, candidates: Any, truth: Any, said: str) -> None:
        with pytest.raises(InputError, match=said):
            cf.BestOf(candidates, truth=truth)
