"""The groups of blocks that a stated memory is cut into, and what becomes of their shares."""

from __future__ import annotations

import re
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature.coverage import CoverageLine
from curvfluence.errors import CoverageError, InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import cached_gradients, gradient_rows
from curvfluence.runtime import budget, ranks
from curvfluence.score import within_memory as way
from curvfluence.score.compression import COMPRESSED, UNCOMPRESSED
from curvfluence.score.cost import ScoreCost
from tests.zoo import zoo_problem

AT = cf.Absolute(1e-2)


def net(*sizes: int, **settings: Any) -> cf.Problem:
    """Linear layers without anything between them, by default of 6 → 5 → 4 → 3 → 3."""
    torch.manual_seed(0)
    wide = sizes or (6, 5, 4, 3, 3)
    model = nn.Sequential(*(nn.Linear(i, o) for i, o in pairwise(wide)))
    x, y = torch.randn(20, wide[0]), torch.randint(wide[-1], (20,))
    return cf.Problem(
        model.double(), cf.CrossEntropy(), (x.double(), y), (x[:3].double(), y[:3]), **settings
    )


def line(block: str, *parameters: str, count: int = 1, fallback: bool = False) -> CoverageLine:
    return CoverageLine(block, parameters, count, "a rule", fallback)


def scores(values: Tensor, **settings: Any) -> cf.Scores:
    given: dict[str, Any] = {
        "rung": "EKFAC",
        "damping": AT,
        "lambdas": (("a", 0.1),),
        "fisher": "type2",
        "measurement": "loss",
        "unit": "nats",
        "lower_is_better": True,
        "leverage": False,
        "coverage": (line("a", "a.weight"),),
        "cost": ScoreCost(1.0, 2.0, 30),
        "notes": ("one", "both"),
    }
    return cf.Scores(values, **{**given, **settings})


class Even:
    """A truth that finds all predictions alike."""

    left_out = torch.zeros(1, 20)

    def judge(self, predicted_mq: Tensor) -> tuple[float, float]:
        return 0.0, 0.0


class TestMemorable:
    def test_a_rung_of_blocks_is(self) -> None:
        hybrid = cf.hybrids.Sorted(cf.KFAC(), cf.EKFAC())  # which its blocks in the problem tell
        for rung in (cf.EKFAC(), cf.Diagonal(), cf.Identity(), hybrid):
            assert way.memorable(net(), rung, AT, strict=True, plain=True) is rung

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"problem": 1}, "problem"),
            ({"rung": "EKFAC"}, "a rung is an object such as"),
            ({"rung": cf.GGN()}, "is one block"),
            ({"damping": 0.1}, "damping"),
            ({"damping": cf.BestOf((AT, cf.Absolute(1.0)), truth=Even())}, "in parts"),
            ({"plain": False}, "come plain scores"),
            ({"strict": "yes"}, "strict must be"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_cannot_be(self, change: dict[str, Any], why: str) -> None:
        given: dict[str, Any] = {"problem": net(), "rung": cf.EKFAC(), "damping": AT}
        given |= {"strict": False, "plain": True, **change}
        with pytest.raises(InputError, match=why):
            way.memorable(given.pop("problem"), given.pop("rung"), given.pop("damping"), **given)

    def test_a_fitted_curvature_is_not(self) -> None:
        with pytest.raises(InputError, match="is fitted"):
            way.memorable(net(), cf.fit(net(), cf.KFAC()), AT, strict=False, plain=True)

    def test_strict_is_of_the_whole_problem(self) -> None:
        norm = zoo_problem("layer norm")
        assert way.memorable(norm, cf.EKFAC(), AT, strict=False, plain=True) == cf.EKFAC()
        with pytest.raises(CoverageError, match="has no rule for"):
            way.memorable(norm, cf.EKFAC(), AT, strict=True, plain=True)


def units(*lines: CoverageLine) -> list[tuple[str, set[str], int]]:
    """As plain values."""
    found = way._units(lines)  # pyright: ignore[reportPrivateUsage]
    return [(unit.name, set(unit.parameters), unit.count) for unit in found]


class TestUnits:
    def test_each_module_is_one_in_the_order_of_blocks(self) -> None:
        assert units(line("b", "b.weight", count=7), line("a", "a.weight", "a.bias", count=5)) == [
            ("b", {"b.weight"}, 7),
            ("a", {"a.weight", "a.bias"}, 5),
        ]

    def test_blocks_of_a_module_are_together_where_its_first_one_is(self) -> None:
        found = units(
            line("x", "x.weight", count=1),
            line("a", "a.weight", count=20),
            line("b", "b.weight", count=300),
            line("a bias", "a.bias", count=4000),
        )
        assert found == [
            ("x", {"x.weight"}, 1),
            ("a", {"a.weight", "a.bias"}, 4020),
            ("b", {"b.weight"}, 300),
        ]

    def test_a_block_of_two_modules_joins_what_was_apart(self) -> None:
        """At the first of them, under its name."""
        found = units(
            line("x", "x.weight", count=1),
            line("a", "a.weight", count=20),
            line("y", "y.weight", count=300),
            line("b", "b.weight", count=4000),
            line("both", "a.bias", "b.bias", count=50_000),
        )
        assert found == [
            ("x", {"x.weight"}, 1),
            ("a", {"a.weight", "b.weight", "a.bias", "b.bias"}, 54_020),
            ("y", {"y.weight"}, 300),
        ]

    def test_a_module_is_all_but_the_last_part_of_a_name(self) -> None:
        """`h.0.a` is none of `h.0`, nor are two parameters of one name in two modules alike."""
        found = units(line("1", "h.0.a.weight"), line("2", "h.0.weight"), line("3", "h.0.b.weight"))
        assert [name for name, _, _ in found] == ["1", "2", "3"]
        assert [name for name, _, _ in units(line("1", "p"), line("2", "q"))] == ["1"]


def needed(problem: cf.Problem, rung: cf.Rung) -> int:
    return way._needed(problem, rung)  # pyright: ignore[reportPrivateUsage]


def test_what_a_group_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices, a row a query as it is held, and the solved queries, so many of them at a time, in
    bytes of the problem's type."""
    problem, rung = net(), cf.EKFAC()
    p, rows = problem.parameters.count, discover(problem).elements(1)
    matrices = rung.elements(problem)
    assert matrices > 0
    assert needed(problem, rung) == 8 * (matrices + 3 * rows + 3 * p)
    assert needed(problem.to(torch.float32), rung) == 4 * (matrices + 3 * rows + 3 * p)
    monkeypatch.setattr(budget, "SOLVED", 2 * p + 1)
    assert needed(problem, rung) == 8 * (matrices + 3 * rows + 2 * p + 1)


def groups(problem: cf.Problem, rung: cf.Rung, room: int) -> list[tuple[str, ...]]:
    """The parameters of each."""
    every = way._units(rung.coverage(problem))  # pyright: ignore[reportPrivateUsage]
    found = list(way._groups(problem, rung, room, every))  # pyright: ignore[reportPrivateUsage]
    assert all(group.needed == needed(group.problem, rung) <= room for group in found)
    return [group.problem.parameters.names for group in found]


def names(*layers: int) -> tuple[str, ...]:
    return tuple(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))


class TestGroups:
    def test_one_is_the_problem_itself_to_the_last_byte(self) -> None:
        problem, rung = net(), cf.EKFAC()
        every = way._units(rung.coverage(problem))  # pyright: ignore[reportPrivateUsage]
        room = needed(problem, rung)
        (whole,) = way._groups(problem, rung, room, every)  # pyright: ignore[reportPrivateUsage]
        assert whole.problem is problem
        assert len(groups(problem, rung, room - 1)) == 2

    @pytest.mark.parametrize(
        ("counts", "halves"),
        [
            ((1, 1, 1, 1), ((0, 1), (2, 3))),
            ((9, 1, 1, 1), ((0,), (1, 2, 3))),
            ((1, 1, 1, 9), ((0, 1, 2), (3,))),
            ((1, 5, 5, 1), ((0, 1), (2, 3))),
            ((3, 3, 3, 1), ((0, 1), (2, 3))),
            ((4, 2, 2, 2), ((0,), (1, 2, 3))),
        ],
        ids=str,
    )
    def test_the_halves_are_as_even_as_they_can_be(
        self,
        counts: tuple[int, ...],
        halves: tuple[tuple[int, ...], ...],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """By the numbers of parameters, and in the order of layers; of two that are as even the
        first."""
        problem = net()

        def a_half_has_room(part: cf.Problem, rung: cf.Rung) -> int:
            return 2 if part is problem else 1

        monkeypatch.setattr(way, "_needed", a_half_has_room)
        every = [
            way._Unit(str(k), frozenset(names(k)), count)  # pyright: ignore[reportPrivateUsage]
            for k, count in enumerate(counts)
        ]
        found = list(way._groups(problem, cf.EKFAC(), 1, every))  # pyright: ignore[reportPrivateUsage]
        assert [group.problem.parameters.names for group in found] == [
            names(*half) for half in halves
        ]

    def test_each_layer_by_itself_where_no_more_fits(self) -> None:
        problem, rung = net(6, 6, 6, 6, 6), cf.EKFAC(cf.MonteCarlo(2))
        alone = needed(problem.restricted(names(0)), rung)
        assert groups(problem, rung, alone) == [names(k) for k in range(4)]

    def test_a_block_that_is_too_large_is_named(self) -> None:
        problem, rung = net(6, 6, 60, 6, 6), cf.Diagonal(cf.MonteCarlo(2))
        alone = needed(problem.restricted(names(1)), rung)
        needs, has = way.said(alone), way.said(alone // 2)
        said = f"block 1 takes about {needs} by itself, and memory is {has}:"
        with pytest.raises(InputError, match=re.escape(said)):
            groups(problem, rung, alone // 2)


@dataclass(frozen=True)
class ByParameters(cf.MonteCarlo):
    """As many draws as there are parameters."""

    def width(self, problem: cf.Problem) -> int:
        return problem.parameters.count


class TestColumns:
    """Those of a part must be those of the whole."""

    @staticmethod
    def require(fisher: cf.Fisher | None, layer: int, *sizes: int) -> None:
        problem = net(*sizes)
        part, rung = problem.restricted(names(layer)), cf.EKFAC(fisher)
        way._require_same_fisher(problem, part, rung)  # pyright: ignore[reportPrivateUsage]

    def test_they_are_where_they_go_by_the_outputs_or_the_last_layer_is_there(self) -> None:
        for fisher in (None, cf.Type2(), cf.MonteCarlo(2), cf.Empirical()):
            self.require(fisher, 0)
            self.require(fisher, 1, 5, 8, 70)

    def test_another_type_of_as_many_columns(self) -> None:
        """8 by the last layer's inputs, and 8 draws without it."""
        said = r"with 70 outputs type2 goes by the last layer.*: give EKFAC fisher=MonteCarlo\(8\)"
        with pytest.raises(InputError, match=said):
            self.require(None, 0, 5, 8, 70)

    def test_the_same_type_of_another_number_of_columns(self) -> None:
        with pytest.raises(InputError, match=r"with 3 outputs mc\(2\) goes by the last layer"):
            self.require(ByParameters(2), 3)


class Score:
    """Instead of scores of a group: what they are asked for, and one number each."""

    def __init__(self) -> None:
        self.asked: list[tuple[cf.Problem, cf.Rung, bool]] = []
        self.certifier: Any = object()

    def __call__(self, part: cf.Problem, rung: cf.Rung, alone: bool) -> cf.Scores:
        self.asked.append((part, rung, alone))
        for again in (False, True):
            kept = list(gradient_rows(part, discover(part), again=again))
            assert len(kept) > 0
        one = part.parameters.names[0]
        return scores(
            torch.full((3, 20), float(part.parameters.count)),
            coverage=(line(one, one, count=5, fallback=one == "1.weight"),),
            certifier=self.certifier,
        )


class TestWithin:
    def test_one_group(self) -> None:
        """All of the room that matrices leave is for gradients, and what is known is kept."""
        problem, rung, score = net(remember=10**9), cf.EKFAC(), Score()
        room = needed(problem, rung) + 12_345
        found = way.within_memory(problem, rung, room, score)
        ((part, given, alone),) = score.asked
        assert (part.remember, given, alone) == (12_345, rung, True)
        assert found.certifier is score.certifier
        assert (found.rung, found.values[0, 0]) == ("EKFAC", problem.parameters.count)
        assert found.notes[-1].startswith(f"within {way.said(room)} in one group of blocks, about ")
        assert cached_gradients(part, discover(part)).count == 20

    def test_several_groups(self) -> None:
        """Each with what its own matrices leave, forgotten when it is done; the sum is all that
        is known of the whole, with what its coverage makes of the rung's name."""
        problem, rung, score = net(7, 6, 6, 6, 6, remember=3_000), cf.EKFAC(), Score()
        room = needed(problem.restricted(names(0)), rung) + 500
        found = way.within_memory(problem, rung, room, score)
        assert [part.parameters.names for part, _, _ in score.asked] == [names(k) for k in range(4)]
        left = [room - needed(part, rung) for part, _, _ in score.asked]
        assert left[0] == 500 < min(left[1:]) < 3_000
        assert [part.remember for part, _, _ in score.asked] == [min(3_000, one) for one in left]
        assert [(given, alone) for _, given, alone in score.asked] == [(rung, False)] * 4
        assert all(cached_gradients(part, discover(part)).count == 0 for part, _, _ in score.asked)
        assert found.certifier is None
        assert found.rung == "EKFAC + fallbacks for 25%"
        assert torch.equal(found.values, torch.full((3, 20), float(problem.parameters.count)))
        assert [one.block for one in found.coverage] == [f"{k}.weight" for k in range(4)]

    def test_no_more_is_remembered_than_the_problem_allows(self) -> None:
        problem, rung, score = net(remember=100), cf.EKFAC(), Score()
        way.within_memory(problem, rung, 2**40, score)
        assert score.asked[0][0].remember == 100


def added(one: cf.Scores, other: cf.Scores) -> cf.Scores:
    return way._added(one, other)  # pyright: ignore[reportPrivateUsage]


class TestSum:
    def test_of_two_shares(self) -> None:
        one = scores(torch.ones(3, 20))
        other = scores(
            torch.full((3, 20), 4.0),
            lambdas=(("b", 0.2),),
            coverage=(line("b", "b.weight"),),
            cost=ScoreCost(10.0, 20.0, 7),
            notes=("both", "other"),
        )
        found = added(one, other)
        assert found.values is one.values  # of the size of all scores no second matrix
        assert torch.equal(found.values, torch.full((3, 20), 5.0))
        assert found.lambdas == (("a", 0.1), ("b", 0.2))
        assert [each.block for each in found.coverage] == ["a", "b"]
        assert found.cost == ScoreCost(11.0, 22.0, 30)
        assert added(other, one).cost.nbytes == 30
        assert found.notes == ("one", "both", "other")

    @pytest.mark.parametrize("last", [False, True])
    def test_that_nothing_was_compressed_is_said_where_nothing_was(self, last: bool) -> None:
        some, none = f"{COMPRESSED}: relative error up to 0.1", UNCOMPRESSED
        shares = [scores(torch.ones(3, 20), notes=(note, "more")) for note in (some, none)]
        found = added(*(reversed(shares) if last else shares))
        assert set(found.notes) == {some, "more"}
        again = added(*(scores(torch.ones(3, 20), notes=(none,)) for _ in range(2)))
        assert again.notes == (none,)
        plain = added(scores(torch.ones(3, 20), notes=(some,)), scores(torch.ones(3, 20)))
        assert plain.notes == (some, "one", "both")


def whole(problem: cf.Problem, of: cf.Scores, *sizes: int) -> tuple[str, ...]:
    """The notes."""
    groups = [way._Group(problem, size) for size in sizes]  # pyright: ignore[reportPrivateUsage]
    found = way._whole(problem, of, 3 * 2**20, groups)  # pyright: ignore[reportPrivateUsage]
    assert found.values is of.values
    return found.notes


class TestWhole:
    def test_it_says_what_it_took(self) -> None:
        problem, of = net(), scores(torch.zeros(3, 20))
        tail = " at a time (matrices and queries; a pass's activations come to it)"
        assert whole(problem, of, 2048) == (
            "one",
            "both",
            "within 3 MiB in one group of blocks, about 2 KiB" + tail,
        )
        assert whole(problem, of, 2048, 5120, 1024) == (
            "one",
            "both",
            "within 3 MiB in 3 groups of blocks, about 5 KiB" + tail,
        )

    def test_predictions_that_are_too_large_are_named(self) -> None:
        problem, values = net(), torch.zeros(3, 20, dtype=torch.float64)
        values[0, 0], values[1, 4] = 1e3, -1e6
        notes = whole(problem, scores(values, unit=problem.measurement.unit), 2048)
        assert notes[:2] == ("one", "both")
        assert notes[2].startswith("2 predictions are larger than the loss can move")
        assert "leaving out example 4 is to change query 1 by -1e+06" in notes[2]
        assert notes[3].startswith("within")
        assert len(whole(problem, scores(values, unit="none"), 2048)) == 3


class Meeting:
    """Where the threads of a test meet, each in the place of a process."""

    def __init__(self, count: int) -> None:
        self.given: list[Any] = [None] * count
        self.barrier = threading.Barrier(count, timeout=30)

    def all(self, rank: int, value: Any) -> list[Any]:
        """What every one of them gives."""
        self.given[rank] = value
        self.barrier.wait()
        every = list(self.given)
        self.barrier.wait()
        return every


@dataclass(frozen=True)
class Threads(ranks.Ranks):
    """Threads in the place of processes."""

    meeting: Meeting

    def merged(self, own: Mapping[Any, Any]) -> dict[Any, Any]:
        every = self.meeting.all(self.rank, dict(own))
        union = {key: value for one in every for key, value in one.items()}
        assert {tuple(share.values.shape) for share in union.values()} == {(0, 20)}, "no numbers"
        return {key: union[key] for key in sorted(union)}

    def broadcast(self, value: Tensor, of: int) -> Tensor:
        return self.meeting.all(self.rank, value)[of].clone()

    @contextmanager
    def alike(self) -> Generator[None]:
        yield


@contextmanager
def within(team: ranks.Ranks) -> Generator[None]:
    """As `ranks.together()`."""
    token = ranks._TEAM.set(team)  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        ranks._TEAM.reset(token)  # pyright: ignore[reportPrivateUsage]


def test_one_group_is_everyones_and_several_are_shared_out() -> None:
    problem, rung, team = net(), cf.EKFAC(), Threads(0, 1, Meeting(1))
    beside: list[ranks.Ranks | None] = []

    def score(part: cf.Problem, rung: cf.Rung, alone: bool) -> cf.Scores:
        beside.append(ranks.here())
        return scores(torch.ones(3, 20, dtype=torch.float64))

    room = needed(problem, rung)
    with within(team):
        one = way.within_memory(problem, rung, room, score)
        two = way.within_memory(problem, rung, room - 1, score)
    assert beside == [team, None, None]
    assert (float(one.values[0, 0]), float(two.values[0, 0])) == (1.0, 2.0)


@pytest.mark.parametrize(("count", "of"), [(1, 3), (2, 3), (2, 4), (3, 2), (3, 7)])
def test_groups_are_shared_out(count: int, of: int) -> None:
    """A group is done by one process from end to end, which has no other beside it then, and all
    have every share, in the order of groups."""
    meeting = Meeting(count)
    given = [way._Group(net(), number) for number in range(of)]  # pyright: ignore[reportPrivateUsage]
    done: list[tuple[int, int]] = []
    every: dict[int, list[cf.Scores]] = {}

    def scored(rank: int, group: Any) -> cf.Scores:
        assert ranks.here() is None
        done.append((group.needed, rank))
        values = torch.full((3, 20), float(group.needed), dtype=torch.float64)
        return scores(values, lambdas=((str(group.needed), 0.1),))

    def work(rank: int) -> None:
        team = Threads(rank, count, meeting)
        try:
            with within(team):
                every[rank] = list(way._shared_out(team, given, partial(scored, rank)))  # pyright: ignore[reportPrivateUsage]
                assert ranks.here() is team
        except BaseException:
            meeting.barrier.abort()  # which ends the others as well
            raise

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(every) == list(range(count)), "each came to its end"
    assert sorted(done) == [(number, number % count) for number in range(of)]
    for shares in every.values():
        assert [share.lambdas[0][0] for share in shares] == [str(k) for k in range(of)]
        assert [float(share.values[2, 19]) for share in shares] == [float(k) for k in range(of)]
        assert all(share.values.shape == (3, 20) for share in shares)


def test_sizes_in_words() -> None:
    said = {size: way.said(size) for size in (1, 1024, 2**20 - 1, 2**20, 3 * 2**29, 2**30, 2**41)}
    assert said == {
        1: "0.000977 KiB",
        1024: "1 KiB",
        2**20 - 1: "1.02e+03 KiB",
        2**20: "1 MiB",
        3 * 2**29: "1.5 GiB",
        2**30: "1 GiB",
        2**41: "2.05e+03 GiB",
    }
