"""Gradients that are kept between passes: which, when, and that they are the same ones."""

from __future__ import annotations

import gc

import pytest
import torch

import curvfluence as cf
from curvfluence import gradients
from curvfluence.coverage import coverage
from curvfluence.kept import Kept
from tests.problems import make, mlp, seeded
from tests.zoo import zoo_problem


class Chunk(list[int]):
    held = 10
    versions = ()


class TestKept:
    def test_as_many_as_fit_and_no_gap(self) -> None:
        kept = Kept[Chunk](25)
        assert [kept.offer(start, Chunk([1, 2])) for start in (0, 2, 4, 6)] == [
            True, True, False, False,
        ]  # fmt: skip
        assert (kept.count, list(kept)) == (4, [(0, [1, 2]), (2, [1, 2])])
        other = Kept[Chunk](25)
        assert not other.offer(2, Chunk([1]))
        assert not other.offer(0, Chunk([1]))  # what came before it is gone
        again = Kept[Chunk](25)
        assert again.offer(0, Chunk([1]))
        assert not again.offer(0, Chunk([1]))  # another pass over the same
        assert again.offer(1, Chunk([1]))


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first example of each pass of gradients that is computed."""
    seen: list[int] = []
    computed = gradients._computed

    def counted(*args):
        seen.append(args[2])
        return computed(*args)

    monkeypatch.setattr(gradients, "_computed", counted)
    return seen


def problem(**options: int) -> cf.Problem:
    seeded()
    made = make(mlp(5, 4, 3), cf.CrossEntropy(), n=40)
    return cf.Problem(made.model, made.loss, made.train, made.queries, weight_decay=1e-3, **options)


class TestGradients:
    def test_scores_read_what_a_fit_with_the_training_labels_made(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen, given = passes(monkeypatch), problem()
        first = cf.influence(given, cf.EKFAC(cf.Empirical())).values
        assert seen == [0]
        none = problem(remember=0)
        assert torch.equal(cf.influence(none, cf.EKFAC(cf.Empirical())).values, first)
        assert seen == [0, 0, 0, 0]

    def test_other_scores_keep_from_the_second_time_on(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen, given = passes(monkeypatch), problem()
        found = [cf.influence(given, cf.KFAC()).values for _ in range(4)]
        assert seen == [0, 0]
        assert all(torch.equal(one, found[0]) for one in found)

    def test_what_does_not_fit_is_computed_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given, whole = problem(), problem(remember=0)
        monkeypatch.setattr(gradients, "NUMBERS", 16 * coverage(given).numbers(1))
        (_, rows), *_ = gradients.gradient_rows(given, coverage(given))
        small = problem(remember=2 * rows.nbytes)
        seen = passes(monkeypatch)
        wanted = cf.influence(whole, cf.EKFAC(cf.Empirical())).values
        del seen[:]
        found = cf.influence(small, cf.EKFAC(cf.Empirical())).values
        assert seen[0] == 0
        assert seen[1:] == [32, 32]  # the eigenvalues', and the scores'
        assert torch.allclose(found, wanted, rtol=1e-12)

    def test_weighted_examples_have_other_rows_in_the_fit(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = zoo_problem("mlp")
        v = torch.linspace(0.5, 2, len(made.train), dtype=torch.float64)
        weighted = cf.Problem(made.model, made.loss, made.train, made.queries, sample_weight=v)
        seen = passes(monkeypatch)
        cf.influence(weighted, cf.EKFAC(cf.Empirical()), damping=cf.Absolute(0.1))
        assert seen == [0]

    def test_a_room_below_zero(self) -> None:
        with pytest.raises(cf.InputError, match="remember is a number of bytes"):
            problem(remember=-1)


def test_a_pass_leaves_no_graph_to_the_garbage_collector() -> None:
    """Memory must not wait for its next round: chunks would pile up."""
    given = problem(remember=0)
    covered = coverage(given)
    gc.collect()
    gc.disable()
    try:
        for _ in gradients.gradient_rows(given, covered):
            pass
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [type(o).__name__ for o in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not [name for name in left if name.endswith("Backward0") or name == "Tensor"]


class Static(torch.nn.Module):
    """Its first layer's inputs lie in memory of its own, which each call writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(5, 4, bias=False)
        self.head = torch.nn.Linear(4, 3)
        self.memory = torch.zeros(64, 5).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            held = self.memory[: len(x)].copy_(x)
        return self.head(torch.tanh(self.first(held)))


@pytest.mark.parametrize("remember", [0, 2**20])
def test_inputs_that_the_model_writes_over(monkeypatch: pytest.MonkeyPatch, remember: int) -> None:
    seeded()
    made = make(Static(), cf.CrossEntropy(), n=40)
    plain = mlp(5, 4, 3, activation=torch.nn.Tanh).double()
    plain[0].bias = None
    plain[0].weight, plain[2] = made.model.first.weight, made.model.head  # pyright: ignore
    examples = made.train, made.queries
    wanted = cf.influence(cf.Problem(plain, cf.CrossEntropy(), *examples), cf.KFAC())
    monkeypatch.setattr(gradients, "NUMBERS", 16 * coverage(made).numbers(1))
    given = cf.Problem(made.model, made.loss, *examples, remember=remember)
    for _ in range(3):
        found = cf.influence(given, cf.KFAC(), damping=wanted.damping).values
        torch.testing.assert_close(found, wanted.values, rtol=1e-9, atol=1e-12)
