"""One call of `influence` step by step: batches of queries, tiles of examples, and all that its
result must say."""

from __future__ import annotations

import re
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.curvature.curvature import Solved
from curvfluence.curvature.inversion import ConjugateGradients
from curvfluence.curvature.low_rank_inverses import low_rank_inverses
from curvfluence.curvature.operators import low_rank_search
from curvfluence.curvature.operators.operator import Against
from curvfluence.errors import InputError, NonFiniteError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.drawn import drawn_gradients
from curvfluence.jacobian.gradients import query_gradients, training_gradients
from curvfluence.runtime import budget, journal
from curvfluence.score import influence as way
from curvfluence.score.certificate import certify
from curvfluence.score.matrix import ScoreMatrix
from curvfluence.score.reach import Reach
from curvfluence.store.steps import Steps
from tests import oracles
from tests.problems import make, mlp, seeded
from tests.zoo import zoo_problem

pytestmark = pytest.mark.filterwarnings("ignore::curvfluence.errors.CurvfluenceWarning")
AT = cf.Absolute(1e-2)
TINY = cf.Absolute(1e-10)  # with which predictions go past anything
ITERATED = cf.GGN(ConjugateGradients(None, tolerance=1e-6))


def problem(**settings: Any) -> cf.Problem:
    """Four queries and 12 examples."""
    seeded()
    return make(mlp(5, 4, 3), cf.CrossEntropy(), **settings)


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three queries at a time, and five examples."""
    monkeypatch.setattr(budget, "SOLVED", 3 * problem().parameters.count + 2)
    monkeypatch.setattr(budget, "EXAMPLES", 5)


def dense(given: cf.Problem, rung: cf.Rung | cf.Curvature, damping: cf.Damping = AT) -> Tensor:
    curvature = cf.fit(given, rung) if isinstance(rung, cf.Rung) else rung
    g_q, g_n = oracles.query_gradients(given), oracles.example_gradients(given)
    return curvature.solve(g_q, damping) @ g_n.T / len(given.train)


WAYS: dict[str, dict[str, Any]] = {"plain": {}, "by block": {"by_block": True}}
ALL_WAYS = {**WAYS, "leverage": {"leverage": True}}


@pytest.mark.parametrize("settings", ALL_WAYS.values(), ids=ALL_WAYS)
def test_parts_make_the_whole(
    settings: dict[str, Any], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, damping = problem(), cf.Absolute(1.0)
    curvature = cf.fit(given, cf.EKFAC())
    wanted = cf.influence(given, curvature, damping=damping, **settings)
    request.getfixturevalue("in_parts")
    held: list[int] = []
    put = ScoreMatrix.put

    def seen(self: ScoreMatrix, row: int, column: int, part_qn: Tensor) -> None:
        held.append(len(part_qn))
        put(self, row, column, part_qn)

    monkeypatch.setattr(ScoreMatrix, "put", seen)
    found = cf.influence(given, curvature, damping=damping, **settings)
    torch.testing.assert_close(found.values, wanted.values, rtol=1e-10, atol=1e-14)
    assert sorted(set(held)) == [1, 3]
    for name, share in (found.blocks or {}).items():
        assert wanted.blocks is not None
        torch.testing.assert_close(share, wanted.blocks[name], rtol=1e-10, atol=1e-14)
    if not settings:
        torch.testing.assert_close(
            found.values, dense(given, curvature, damping), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize(
    ("room", "sizes"), [(4.0, [4]), (3.99, [3, 1]), (2.0, [2, 2]), (1.0, [1] * 4), (0.1, [1] * 4)]
)
def test_as_many_queries_at_a_time_as_fit(
    room: float, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where all of them do, their rows are with whoever solves for them alone."""
    given = problem()
    curvature = cf.fit(given, cf.EKFAC())
    monkeypatch.setattr(budget, "SOLVED", int(room * given.parameters.count))
    asked = way._Asked(AT, 0.0, None, leverage=False, by_block=False, out=None)  # pyright: ignore[reportPrivateUsage]
    run = way._Run.begin(given, curvature, asked)  # pyright: ignore[reportPrivateUsage]
    rows, taken = oracles.query_gradients(given), list[int]()
    for first, batch in run.batches():
        (part,) = batch
        assert first == sum(taken)
        assert len(run.queries) == (0 if sizes == [4] else 4)
        torch.testing.assert_close(part.to_dense()[:, 0], rows[first : first + len(part)])
        taken.append(len(part))
    assert taken == sizes


@pytest.mark.usefixtures("in_parts")
class TestTooLarge:
    """Wherever a prediction is, it is named by its query and its example among all."""

    @pytest.mark.parametrize("seed", range(2))
    @pytest.mark.parametrize("settings", ALL_WAYS.values(), ids=ALL_WAYS)
    def test_the_worst_is_named(self, settings: dict[str, Any], seed: int) -> None:
        given = problem(seed=seed, weight_decay=0.0)
        rung = cf.GGN() if "leverage" in settings else cf.EKFAC()
        scores = cf.influence(given, rung, damping=TINY, **settings)
        (note,) = (note for note in scores.notes if "larger than the loss can move" in note)
        reach = Reach(given)
        reach.look(scores.values, 0, 0)
        assert reach.notes() == (note,)

    def test_what_has_no_unit_is_no_prediction(self) -> None:
        seeded()
        x, y = 1e4 * torch.randn(12, 5).double(), torch.randint(3, (12,))
        given = cf.Problem(mlp(5, 4, 3).double(), cf.CrossEntropy(), (x, y), (x[:4], y[:4]))
        assert float(cf.influence(given, cf.Identity()).values.abs().max()) > 1e4
        for rung, count in ((cf.KFAC(), 1), (cf.Identity(), 0)):
            scores = cf.influence(given, rung, damping=TINY)
            assert sum("larger than" in note for note in scores.notes) == count

    def test_nor_is_a_share(self) -> None:
        """Which is looked at with the others, once."""
        given = problem(weight_decay=0.0)
        whole = cf.influence(given, cf.EKFAC(), damping=TINY)
        found = cf.influence(given, cf.EKFAC(), damping=TINY, memory=2800)
        assert "in 2 groups" in found.notes[-1]
        assert [note for note in found.notes if "larger than" in note] == [
            note for note in whole.notes if "larger than" in note
        ]


def test_what_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the numbers among all queries and examples, the first of them."""
    values = torch.zeros(3, 4)
    values[1, 2], values[2, 0] = torch.inf, torch.nan
    said = "EKFAC: the influence of training example 102 on query 11 is inf (2 such values), though"
    with pytest.raises(NonFiniteError, match=re.escape(said)):
        way.require_finite_scores(values, "EKFAC", 10, 100)
    way.require_finite_scores(torch.zeros(3, 4), "EKFAC", 10, 100)
    seeded()
    x, y = torch.randn(16, 5), torch.randn(16, 3)
    y[7] = y[15] = 1e30
    given = cf.Problem(mlp(5, 4, 3), cf.MSE(), (x[:12], y[:12]), (x[12:], y[12:]))
    monkeypatch.setattr(budget, "SOLVED", 3 * given.parameters.count)
    monkeypatch.setattr(budget, "EXAMPLES", 5)
    for settings in WAYS.values():
        with pytest.raises(NonFiniteError, match=r"EKFAC: .* training example 7 on query 3 is "):
            cf.influence(given, cf.EKFAC(), damping=cf.Absolute(1.0), **settings)


@pytest.mark.parametrize(
    ("sizes", "lost"),
    [([1.0, 1.0], 0), ([0.0, 1.0], 0), ([1e-25, 1.0], 1), ([1e-25, 0.0], 1), ([1e-25, 1e-30], 2)],
    ids=str,
)
def test_squares_that_vanish_are_said(sizes: list[float], lost: int) -> None:
    """Of queries whose gradients are there."""
    model = torch.nn.Linear(3, 2)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    seeded()
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    asked = torch.tensor(sizes)[:, None].expand(2, 2)
    given = cf.Problem(model, cf.MSE(), (x, y), (x[:2], asked))
    notes = cf.influence(given, cf.EKFAC(), damping=AT).notes
    said = [note.split(" queries")[0] for note in notes if "squares are 0 in torch.float32" in note]
    assert said == ([str(lost)] if lost else [])


def test_leverage_of_what_has_no_units() -> None:
    with pytest.raises(InputError, match="Identity has no units, so there is no leverage"):
        cf.influence(problem(), cf.Identity(), leverage=True)


class TestSaid:
    def test_what_scores_are(self) -> None:
        given = problem(measurement=cf.LogProbability())
        curvature, begun = cf.fit(given, cf.EKFAC()), monotonic()
        scores = cf.influence(given, curvature, damping=AT)
        assert 0 < scores.cost.score_seconds < monotonic() - begun
        assert (scores.cost.fit_seconds, scores.cost.nbytes) == (
            curvature.cost.fit_seconds,
            curvature.cost.nbytes,
        )
        assert scores.cost.nbytes > 0
        measurement = given.measurement
        assert (scores.measurement, scores.unit) == (measurement.name, measurement.unit)
        assert (scores.lower_is_better, scores.leverage) == (False, False)
        assert scores.lambdas == tuple((block.name, 1e-2) for block in curvature.blocks)
        assert (scores.inverse_error, scores.residuals, scores.blocks) == (None, None, None)

    @pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
    def test_compressed_queries(
        self, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With the largest error of all batches."""
        given = zoo_problem("cnn with groups", q=5)
        curvature = cf.fit(given, cf.EKFAC())
        queries = query_gradients(given, discover(given))
        monkeypatch.setattr(budget, "SOLVED", 2 * given.parameters.count)
        scores = cf.influence(given, curvature, damping=AT, compress=0.3, **settings)
        parts = [
            curvature.solve_rows(part, AT, against=Against(7), compress=0.3)
            for part in (queries[:2], queries[2:4], queries[4:])
        ]
        errors = [part.compression_error for part in parts]
        assert errors.index(max(errors)) < 2, "the last batch is not the worst"
        assert any(f"relative error up to {max(errors):.2g}" in note for note in scores.notes)
        x = torch.cat([part.flat() for part in parts])
        near = x @ oracles.example_gradients(given).T / 7
        torch.testing.assert_close(scores.values, near, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(near, dense(given, curvature), rtol=1e-4, atol=1e-9)

    def test_a_certificate_is_of_what_was_scored(self) -> None:
        given = zoo_problem("cnn with groups", q=5)
        curvature = cf.fit(given, cf.EKFAC())
        for compress in (0.9, None):
            scores = cf.influence(given, curvature, damping=AT, compress=compress)
            wanted = certify(given, curvature, AT, compress=compress)
            assert scores.certificate().residuals == wanted.residuals
            assert (wanted.residuals == certify(given, curvature, AT).residuals) == (not compress)

    def test_residuals_are_of_all_queries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given = problem()
        curvature = cf.fit(given, ITERATED)
        monkeypatch.setattr(budget, "SOLVED", 3 * given.parameters.count)
        scores = cf.influence(given, curvature, damping=AT)
        exact = oracles.dense_ggn(given) + torch.diag(given.decay + AT.value)
        g_q = oracles.query_gradients(given)
        queries = query_gradients(given, discover(given))
        x = torch.cat(
            [
                curvature.solve_rows(part, AT, against=Against(12)).flat()
                for part in (queries[:3], queries[3:])
            ]
        )
        wanted = (x @ exact - g_q).norm(dim=1) / g_q.norm(dim=1)
        assert scores.residuals == pytest.approx(wanted.tolist(), rel=1e-3, abs=1e-12)
        assert any(f"{max(scores.residuals or ()):.1e}" in note for note in scores.notes)

    def test_inverses_at_low_rank(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The scores are those by the inverses that were chosen, on gradients that were drawn, and
        their error is what was measured."""
        monkeypatch.setattr(low_rank_search, "LEAST", 0.0)
        seeded()
        given = make(mlp(40, 44, 3), cf.CrossEntropy(), shape=(40,), n=80, q=24)
        curvature, layout = cf.fit(given, cf.EKFAC()), discover(given)
        queries = query_gradients(given, layout)
        chosen = low_rank_inverses(
            curvature,
            queries,
            AT,
            examples=80,
            error=0.1,
            sample=lambda: drawn_gradients(given, layout),
        )
        assert chosen.error is not None
        solved = curvature.solve_rows(queries, AT, against=Against(80), inverses=chosen.by_block)
        wanted = solved.inner(training_gradients(given, layout))[..., 0] / 80
        found = cf.influence(given, curvature, damping=AT, inverse_error=0.1)
        torch.testing.assert_close(found.values, wanted, rtol=1e-9, atol=1e-14)
        assert not torch.allclose(found.values, dense(given, curvature), rtol=1e-6, atol=1e-12)
        assert found.inverse_error == pytest.approx(chosen.error)
        assert chosen.note in found.notes


class TestKept:
    """Where works are kept: what is read, and what is made for it."""

    @pytest.fixture(autouse=True)
    def small(self, in_parts: None) -> None:
        """Several tiles."""

    def again(self, folder: Path, make: Any) -> Any:
        """As a command that is given again."""
        with journal.kept_in(Steps(folder, {"of": "a test"}), every=0.0):
            return make()

    def test_scores_of_one_kind_are_not_read_as_anothers(self, tmp_path: Path) -> None:
        """Another damping, another curvature, another tolerance."""
        given = problem()
        by: dict[str, cf.Curvature] = {
            rung.name: cf.fit(given, rung) for rung in (cf.EKFAC(), cf.KFAC(), cf.BlockGGN())
        }
        loose = cf.fit(given, ITERATED).within(0.3)
        asked = [(curvature, damping) for curvature in by.values() for damping in (AT, TINY)]
        asked += [(loose, AT), (loose.within(1e-8), AT)]
        for curvature, damping in asked:
            wanted = cf.influence(given, curvature, damping=damping).values
            for _ in range(2):
                found = self.again(
                    tmp_path,
                    lambda c=curvature, d=damping: cf.influence(given, c, damping=d).values,
                )
                torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-14)

    @pytest.mark.parametrize(
        ("rung", "settings"), [(ITERATED, {}), (cf.EKFAC(), {"compress": 0.3})], ids=str
    )
    def test_what_solves_found_is_said_again(
        self, rung: cf.Rung, settings: dict[str, Any], tmp_path: Path
    ) -> None:
        given = zoo_problem("cnn with groups", q=5)
        curvature = cf.fit(given, rung)
        one, other = (
            self.again(tmp_path, lambda: cf.influence(given, curvature, damping=AT, **settings))
            for _ in range(2)
        )
        assert torch.equal(one.values, other.values)
        assert (one.notes, one.residuals) == (other.notes, other.residuals)
        assert any("residual" in n or "relative error up to" in n for n in other.notes)

    def test_nothing_is_solved_for_what_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given, solved = problem(), list[int]()
        curvature, real = cf.fit(given, cf.EKFAC()), cf.Curvature.solve_handed

        def seen(self: cf.Curvature, rows: Any, *rest: Any, **more: Any) -> Solved:
            solved.append(len(rows[0]))
            return real(self, rows, *rest, **more)

        monkeypatch.setattr(cf.Curvature, "solve_handed", seen)
        for _ in range(2):
            self.again(tmp_path, lambda: cf.influence(given, curvature, damping=AT))
        assert solved == [3, 1]

    def test_it_goes_on_with_the_next_tile(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given, begun, made = problem(), list[int](), list[tuple[int, int]]()
        curvature, put, real = cf.fit(given, cf.EKFAC()), ScoreMatrix.put, way.own_gradients
        wanted = cf.influence(given, curvature, damping=AT)

        class Killed(BaseException):
            """As a command is."""

        def put_one(self: ScoreMatrix, row: int, column: int, part_qn: Tensor) -> None:
            if len(made) == 1:
                raise Killed
            made.append((row, column))
            put(self, row, column, part_qn)

        def own_gradients(*given: Any, first: int = 0) -> Any:
            begun.append(first)
            return real(*given, first=first)

        monkeypatch.setattr(journal, "SHARE", 0.0)
        monkeypatch.setattr(ScoreMatrix, "put", put_one)
        monkeypatch.setattr(way, "own_gradients", own_gradients)
        with pytest.raises(Killed):
            self.again(tmp_path, lambda: cf.influence(given, curvature, damping=AT))
        monkeypatch.setattr(ScoreMatrix, "put", put)
        found = self.again(tmp_path, lambda: cf.influence(given, curvature, damping=AT))
        assert torch.equal(found.values, wanted.values)
        assert begun == [0, 10, 0], "at the third one, and for the fourth query"


def test_a_solve_knows_what_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """All examples are met, and those whose gradients are kept are handed on, and stay."""
    seeded()
    given = make(mlp(5, 4, 3), cf.CrossEntropy(), remember=10**6)
    curvature, seen, real = cf.fit(given, cf.EKFAC()), list[Against](), cf.Curvature.solve_handed

    def solve_handed(self: cf.Curvature, *rest: Any, against: Against, **more: Any) -> Solved:
        seen.append(against)
        return real(self, *rest, against=against, **more)

    monkeypatch.setattr(cf.Curvature, "solve_handed", solve_handed)
    for _ in range(4):
        cf.influence(given, curvature, damping=AT)
    assert [against.examples for against in seen] == [12] * 4
    cached = [sum(map(len, against.cached)) for against in seen]
    assert cached == [0, 0, 12, 12]
    assert seen[2].cached[0] is seen[3].cached[0]


@pytest.mark.parametrize("settings", ALL_WAYS.values(), ids=ALL_WAYS)
def test_what_processes_did_is_gathered(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once; with leverage every process has all scores by itself."""
    gathered: list[object] = []

    def gather(self: object) -> None:
        gathered.append(self)

    for kind in (ScoreMatrix, Reach):
        monkeypatch.setattr(kind, "gather", gather)
    cf.influence(problem(), cf.EKFAC(), damping=cf.Absolute(1.0), **settings)
    kinds = [type(one) for one in gathered]
    assert kinds == ([] if "leverage" in settings else [ScoreMatrix, Reach])


class TestRefused:
    """Before any work, with what was seen."""

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"leverage": 1}, "leverage must"),
            ({"by_block": "yes"}, "by_block must"),
            ({"compress": 0.0}, "compress must lie between 0 and 1; seen 0.0"),
            ({"compress": 1.0}, "compress must lie between 0 and 1; seen 1.0"),
            ({"compress": 1.5}, "compress must lie between 0 and 1; seen 1.5"),
            ({"compress": "a"}, "compress must be"),
            ({"leverage": True, "by_block": True}, "neither by block nor compressed"),
            ({"leverage": True, "compress": 0.5}, "neither by block nor compressed"),
            ({"tolerance": 0.0}, "tolerance must lie between 0 and 1; seen 0.0"),
            ({"tolerance": 1.0}, "tolerance must lie between 0 and 1; seen 1.0"),
            ({"tolerance": 1.5}, "tolerance must lie between 0 and 1; seen 1.5"),
            ({"tolerance": "a"}, "tolerance must be"),
            ({"inverse_error": -0.1}, "inverse_error must .*; seen -0.1"),
            ({"inverse_error": 1.0}, "inverse_error must be at least 0 .*; seen 1.0"),
            ({"inverse_error": 1.5}, "inverse_error must be at least 0 .*; seen 1.5"),
            ({"inverse_error": "a"}, "inverse_error must be"),
            ({"inverse_error": 0.5, "leverage": True}, "take the product in full: leave inverse_"),
            ({"inverse_error": 0.5, "by_block": True}, "take the product in full: leave inverse_"),
        ],
        ids=str,
    )
    def test_what_no_scores_come_of(self, settings: dict[str, Any], said: str) -> None:
        with pytest.raises(InputError, match=said):
            cf.influence(problem(), cf.EKFAC(), damping=AT, **settings)

    @pytest.mark.parametrize(
        "settings",
        [
            {"compress": 0.99, "by_block": True, "tolerance": 0.5},
            {"tolerance": 0.999},
            {"inverse_error": 0.0},
            {"inverse_error": 0, "by_block": True},
            {"inverse_error": 0.0, "leverage": True},
            {"inverse_error": 0.9},
        ],
        ids=str,
    )
    def test_what_they_do(self, settings: dict[str, Any]) -> None:
        scores = cf.influence(problem(), cf.GGN(), damping=AT, **settings)
        assert bool(scores.values.isfinite().all())
