"""Gradients that are kept between passes: which, when, and that they are the same ones."""

from __future__ import annotations

import copy
import gc
import sys

import pytest
import torch

import curvfluence as cf
from curvfluence.curvature.operators.kronecker import KroneckerEigen
from curvfluence.jacobian import gradients
from curvfluence.jacobian.cache import CachedRows
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.passes import pass_examples
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import SharedOuter
from curvfluence.runtime import budget
from tests.problems import make, mlp, seeded
from tests.zoo import Run, zoo_problem


class Chunk(list[int]):
    held = 10
    versions = ()

    @property
    def spanned(self) -> int:
        return self.held

    def paged(self) -> None:
        return None


class TestCachedRows:
    def test_as_many_as_fit_and_no_gap(self) -> None:
        kept = CachedRows[Chunk](25)
        assert [kept.offer(start, Chunk([1, 2])) for start in (0, 2, 4, 6)] == [
            True, True, False, False,
        ]  # fmt: skip
        assert (kept.count, list(kept)) == (4, [(0, [1, 2]), (2, [1, 2])])
        other = CachedRows[Chunk](25)
        assert not other.offer(2, Chunk([1]))
        assert not other.offer(0, Chunk([1]))  # what came before it is gone
        again = CachedRows[Chunk](25)
        assert again.offer(0, Chunk([1]))
        assert not again.offer(0, Chunk([1]))  # another pass over the same
        assert again.offer(1, Chunk([1]))

    def test_another_form_in_the_place_of_one(self) -> None:
        kept = CachedRows[Chunk](25)
        first, second, smaller, larger = Chunk([1]), Chunk([2]), Chunk([3]), Chunk([4])
        smaller.held, larger.held = 4, 30
        assert kept.offer(0, first)
        assert kept.offer(1, second)
        seen: list[list[int]] = []
        for _, rows in kept:
            seen.append(rows)
            kept.replace(rows, smaller if rows is first else larger)
        assert (seen, kept.room) == ([[1], [2]], 11)
        assert list(kept) == [(0, [3]), (1, [2])]  # the larger did not fit
        kept.replace(first, larger)  # no longer kept
        assert [rows for _, rows in kept] == [[3], [2]]

    def test_few_are_in_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As many bytes as there may be, whatever takes the place of others."""
        put: list[Chunk] = []

        def paged(chunk: Chunk) -> None:
            put.append(chunk)

        monkeypatch.setattr(Chunk, "paged", paged)
        monkeypatch.setattr(budget, "CACHED", 25)
        kept = CachedRows[Chunk](100)
        chunks = [Chunk([k]) for k in range(4)]
        for start in (0, 1):
            kept.offer(start, chunks[start])
        assert not put
        smaller = Chunk([5])
        smaller.held = 5
        kept.replace(chunks[0], smaller)
        kept.offer(2, chunks[2])  # 25 of them
        assert not put
        kept.offer(3, chunks[3])
        assert put == [chunks[3]]
        kept.clear(100)
        monkeypatch.setattr(budget, "CACHED", 10)
        kept.offer(0, chunks[0])
        assert len(put) == 1


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
        monkeypatch.setattr(budget, "PASS", 16 * discover(given).elements(1))
        monkeypatch.setattr(budget, "FEWEST", 1)
        (_, rows), *_ = gradients.gradient_rows(given, discover(given))
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
        with pytest.raises(cf.errors.InputError, match=r"remember \(bytes"):
            problem(remember=-1)


SHARED = ["linear over positions", "cnn with groups", "multi-head attention", "untied transformer"]


def held(problem: cf.Problem) -> tuple[Rows, ...]:
    return tuple(rows for _, rows in gradients.cached_gradients(problem, discover(problem)))


def in_chunks(monkeypatch: pytest.MonkeyPatch, name: str, remember: int) -> cf.Problem:
    """A problem of the zoo whose passes take three examples at a time."""
    made = zoo_problem(name)
    monkeypatch.setattr(budget, "PASS", 3 * discover(made).elements(1))
    monkeypatch.setattr(budget, "FEWEST", 1)
    return cf.Problem(
        made.model, made.loss, made.train, made.queries, weight_decay=0.01, remember=remember
    )


@pytest.fixture(params=["memory", "files"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where rows are cached."""
    if request.param == "files":
        monkeypatch.setattr(budget, "CACHED", 0)
    return request.param


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("name", SHARED)
class TestEigenbasis:
    """EK-FAC leaves the gradients of shared layers in its basis; whoever reads them, reads the
    same."""

    EKFAC = cf.EKFAC(cf.Empirical())
    DAMPING = cf.Absolute(0.05)

    def fitted(self, monkeypatch: pytest.MonkeyPatch, name: str) -> tuple[cf.Problem, cf.Problem]:
        """A problem whose gradients are kept there, and one that keeps none."""
        kept, none = (in_chunks(monkeypatch, name, room) for room in (2**20, 0))
        cf.fit(kept, self.EKFAC)
        forms = [rows.factored for rows in held(kept)]
        assert forms == [False] * 3
        assert not held(none)
        return kept, none

    def test_scores_of_the_same_curvature_and_of_others(
        self, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        kept, none = self.fitted(monkeypatch, name)
        others = cf.KFAC(), cf.Diagonal(), cf.Identity(), cf.EKFAC(joint_bias=False)
        curvatures = [cf.fit(none, rung) for rung in (self.EKFAC, *others)]
        for curvature in curvatures:
            wanted, found = (
                cf.influence(p, curvature, damping=self.DAMPING, by_block=True)
                for p in (none, kept)
            )
            torch.testing.assert_close(found.values, wanted.values, rtol=1e-9, atol=1e-12)
            for block, values in (wanted.blocks or {}).items():
                torch.testing.assert_close(
                    (found.blocks or {})[block], values, rtol=1e-9, atol=1e-12
                )
        assert not any(rows.factored for rows in held(kept))

    def test_no_pass_over_the_data_but_the_first(
        self, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        kept, none = self.fitted(monkeypatch, name)
        seen = passes(monkeypatch)
        curvature = cf.fit(none, self.EKFAC)
        del seen[:]
        found = cf.influence(kept, curvature, damping=self.DAMPING).values
        assert seen == []
        wanted = cf.influence(none, curvature, damping=self.DAMPING).values
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)

    def test_a_further_fit_needs_a_and_s(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        kept, none = self.fitted(monkeypatch, name)
        for rung in (cf.KFAC(cf.Empirical()), self.EKFAC, cf.Diagonal(cf.Empirical())):
            found, wanted = cf.fit(kept, rung), cf.fit(none, rung)
            torch.testing.assert_close(found.to_dense(), wanted.to_dense(), rtol=1e-9, atol=1e-12)

    def test_other_readers(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        kept, none = self.fitted(monkeypatch, name)
        curvature = cf.fit(none, self.EKFAC)
        groups = torch.tensor([0, 1, 0, 2, 1, 2, 0])
        readers = {
            "self": lambda p: cf.self_influence(p, curvature, damping=self.DAMPING),
            "groups": lambda p: cf.group_influence(p, curvature, groups, damping=self.DAMPING),
            "compressed": lambda p: (
                cf.influence(p, curvature, damping=self.DAMPING, compress=1e-12).values
            ),
            "all at once": lambda p: gradients.training_gradients(p, discover(p)).to_dense(),
        }
        for reader, read in readers.items():
            torch.testing.assert_close(
                read(kept), read(none), rtol=1e-9, atol=1e-12, msg=lambda m, r=reader: f"{r}: {m}"
            )

    def test_some_are_kept_and_some_are_not(
        self, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        none = in_chunks(monkeypatch, name, 0)
        (_, first), *_ = gradients.gradient_rows(none, discover(none))
        small = in_chunks(monkeypatch, name, first.held * 3 // 2)
        curvature = cf.fit(small, self.EKFAC)
        (only,) = held(small)
        assert (len(only), only.factored) == (3, False)
        found = cf.influence(small, curvature, damping=self.DAMPING).values
        wanted = cf.influence(none, self.EKFAC, damping=self.DAMPING).values
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Fisher mc")
@pytest.mark.parametrize("name", SHARED)
def test_nothing_is_formed_that_is_not_kept(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    formed: list[int] = []
    form = SharedOuter.formed

    def counted(term: SharedOuter, *args, **kwargs):
        formed.append(term.n)
        return form(term, *args, **kwargs)

    monkeypatch.setattr(SharedOuter, "formed", counted)
    for room, fisher, some in (
        (0, cf.Empirical(), False),
        (2**20, cf.MonteCarlo(1), False),
        (2**20, cf.Empirical(), True),
    ):
        del formed[:]
        cf.fit(in_chunks(monkeypatch, name, room), cf.EKFAC(fisher))
        assert bool(formed) == some


def test_what_was_kept_under_another_coverage_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = in_chunks(monkeypatch, "linear over positions", 2**20)
    cf.fit(given, cf.EKFAC(cf.Empirical()))
    assert len(held(given)) == 3
    given.train.inputs.mul_(1)  # what a rule was checked on has changed: looked for anew
    assert held(given) == ()
    found = [len(several) for _, several in gradients.gradient_batches(given, discover(given))]
    assert found == [1, 1, 1]


@pytest.mark.parametrize("name", SHARED)
def test_formed_gradients_in_float32(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    exact = zoo_problem(name)
    model = copy.deepcopy(exact.model).float()
    train, queries = (
        e.to(torch.device("cpu"), torch.float32) for e in (exact.train, exact.queries)
    )
    single = cf.Problem(model, exact.loss, train, queries, weight_decay=0.01)
    rung, damping = cf.EKFAC(cf.Empirical()), cf.Absolute(0.05)
    found = cf.influence(single, rung, damping=damping).values.double()
    assert any(not rows.factored for rows in held(single))
    wanted = cf.influence(exact, rung, damping=damping).values
    assert float((found - wanted).norm()) <= 1e-5 * float(wanted.norm())


def gated(m: Run, x: torch.Tensor) -> torch.Tensor:
    h = torch.tanh(m.first(x.reshape(-1, 3, 2)))
    return m.head((torch.sigmoid(m.gate(h)) * m.up(h)).flatten(1))


def gated_problem() -> cf.Problem:
    seeded()
    parts = {"first": (2, 4), "gate": (4, 3), "up": (4, 3), "head": (9, 3)}
    model = Run(gated, **{name: torch.nn.Linear(*sizes) for name, sizes in parts.items()})
    return make(model, cf.CrossEntropy(), shape=(6,))


def test_layers_on_the_same_inputs_share_their_basis() -> None:
    """One A, and decomposed once; the numbers are those of each layer by itself."""
    made = gated_problem()
    model, parts = made.model, ("first", "gate", "up", "head")
    for rung in (cf.KFAC(), cf.EKFAC(), cf.EKFAC(cf.Empirical()), cf.KFAC(sharing=cf.Reduce())):
        blocks = {block.name: block.operator for block in cf.fit(made, rung).blocks}
        gate, up = blocks["gate"], blocks["up"]
        assert isinstance(gate, KroneckerEigen)
        assert isinstance(up, KroneckerEigen)
        assert gate.in_basis is up.in_basis
        for name in parts:
            others = [other for other in parts if other != name]
            for other in others:
                getattr(model, other).requires_grad_(False)
            alone = make(model, cf.CrossEntropy(), shape=(6,), weight_decay=0.0)
            (block,) = cf.fit(alone, rung).blocks
            dense = blocks[name].to_dense()
            torch.testing.assert_close(block.operator.to_dense(), dense, rtol=1e-9, atol=1e-13)
            for other in others:
                getattr(model, other).requires_grad_(True)


def test_what_layers_share_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of gate and up: one Gram matrix of their inputs a chunk, and one rotation."""
    made = gated_problem()
    module = sys.modules["curvfluence.jacobian.terms.shared"]
    calls: dict[str, list[tuple[int, ...]]] = {"gram": [], "mm": []}
    for name, seen in calls.items():
        original = getattr(module, name)

        def counted(x: torch.Tensor, *args, seen=seen, original=original):
            seen.append(tuple(x.shape))
            return original(x, *args)

        monkeypatch.setattr(module, name, counted)
    cf.fit(made, cf.EKFAC(cf.Empirical()))
    n, t = len(made.train), 3
    assert calls["gram"].count((n * t, 5)) == 1  # inputs of gate and up, with their bias
    assert calls["mm"].count((n, t, 5)) == 1
    assert calls["gram"].count((n * t, 3)) == 1 + 2  # inputs of first; s of gate and up


def test_kept_chunks_are_scored_together_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    given = in_chunks(monkeypatch, "mlp", 2**20)
    layout = discover(given)

    def batches() -> list[tuple[int, list[int]]]:
        found = gradients.gradient_batches(given, layout)
        return [(first, [len(rows) for rows in several]) for first, several in found]

    assert batches() == [(0, [3]), (3, [3]), (6, [1])]
    for _ in gradients.gradient_rows(given, layout):
        pass
    assert batches() == [(0, [3, 3, 1])]
    monkeypatch.setattr(budget, "EXAMPLES", 4)
    assert batches() == [(0, [3]), (3, [3, 1])]


def test_a_pass_leaves_no_graph_to_the_garbage_collector() -> None:
    """Memory must not wait for its next round: chunks would pile up."""
    given = problem(remember=0)
    layout = discover(given)
    gc.collect()
    gc.disable()
    try:
        for _ in gradients.gradient_rows(given, layout):
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
    monkeypatch.setattr(budget, "PASS", 16 * discover(made).elements(1))
    monkeypatch.setattr(budget, "FEWEST", 1)
    given = cf.Problem(made.model, made.loss, *examples, remember=remember)
    for _ in range(3):
        found = cf.influence(given, cf.KFAC(), damping=wanted.damping).values
        torch.testing.assert_close(found, wanted.values, rtol=1e-9, atol=1e-12)


def test_a_pass_takes_some_examples_at_least() -> None:
    cpu, numbers = torch.device("cpu"), budget.PASS
    assert pass_examples(cpu, numbers // 100) == 100
    least = budget.FEWEST
    assert pass_examples(cpu, numbers // least) == least
    assert pass_examples(cpu, numbers * 7 // (2 * least)) == least  # up to four times the numbers
    assert pass_examples(cpu, numbers * 8 // least) == least // 2
    assert pass_examples(cpu, 5 * numbers) == 1
    assert pass_examples(cpu, 0) >= budget.EXAMPLES
