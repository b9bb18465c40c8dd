"""Scores by inverses at low rank against products in full, and against dense inverses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature import low_rank_inverses as found_for
from curvfluence.curvature.operators import kronecker, low_rank_search
from curvfluence.curvature.operators.low_rank_inverse import Grades, LowRankInverse
from curvfluence.curvature.operators.operator import Against
from curvfluence.curvature.places import LayerPart
from curvfluence.errors import InputError, SingularError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.drawn import Drawn, drawn_gradients
from curvfluence.jacobian.fisher_pass import FisherPass
from curvfluence.jacobian.gradients import query_gradients
from curvfluence.jacobian.rows import Rows
from curvfluence.runtime import budget
from tests import oracles
from tests.problems import make, mlp

DAMPING = cf.Absolute(1e-2)
RUNGS = {
    "EKFAC": cf.EKFAC(),
    "KFAC": cf.KFAC(),
    "apart": cf.EKFAC(joint_bias=False),
    "sampled": cf.EKFAC(cf.MonteCarlo(1, seed=0)),
    "empirical": cf.EKFAC(cf.Empirical()),
    "EShampoo": cf.EShampoo(),
    "TKFAC": cf.TKFAC(),
}


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks are looked for however short the product is."""
    monkeypatch.setattr(low_rank_search, "LEAST", 0.0)


def problem(
    weight_decay: float | dict[str, float] = 0.01, *, n: int = 80, q: int = 24
) -> cf.Problem:
    torch.manual_seed(0)
    return make(
        mlp(40, 44, 36, 3),
        cf.CrossEntropy(),
        shape=(40,),
        n=n,
        q=q,
        weight_decay=weight_decay,
    )


def each(rows: Rows) -> Drawn:
    """All of them, each for itself."""
    return Drawn(rows, torch.ones(len(rows), dtype=torch.float64))


def rank_of(grades: Grades, size: float) -> int:
    """Of a row, by definition."""
    above = sum(size > one for one in grades.sizes)
    return grades.ranks[above]


def weighted(base: cf.Problem, weights: Tensor) -> cf.Problem:
    train = base.train.inputs, base.train.targets
    return cf.Problem(
        base.model, base.loss, train, base.queries, weight_decay=0.01, sample_weight=weights
    )


def two_kinds(seed: int, n: int = 600, q: int = 60, others: int = 30) -> cf.Problem:
    """Half of the examples, and `others` of the queries, in inputs and hidden units of their own;
    the first kind weighs thirty times as much."""
    torch.manual_seed(seed)
    model = mlp(40, 44, 36, 3)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            o, i = layer.weight.shape
            layer.weight[: o // 2, i // 2 :] = 0
            layer.weight[o // 2 :, : i // 2] = 0
            layer.bias.zero_()
    x, y = torch.randn(n + q, 40, dtype=torch.float64), torch.randint(0, 3, (n + q,))
    kind = torch.zeros(n + q, dtype=torch.bool)
    kind[: n // 2] = kind[n : n + others] = True
    x[kind, :20], x[~kind, 20:] = 0, 0
    weights = torch.where(kind[:n], 1.0, 30.0).double()
    train, asked = (x[:n], y[:n]), (x[n:], y[n:])
    return cf.Problem(
        model, cf.CrossEntropy(), train, asked, weight_decay=0.01, sample_weight=weights
    )


def off(scores: cf.Scores, true: Tensor) -> Tensor:
    """‖ΔI_q‖/‖I_q‖, [Q]."""
    return (scores.values - true).norm(dim=1) / true.norm(dim=1)


@pytest.mark.usefixtures("searched")
class TestScores:
    @pytest.mark.parametrize("decay", ["one", "biases 0"])
    @pytest.mark.parametrize("rung", RUNGS.values(), ids=RUNGS)
    def test_errors_are_within_what_was_asked(self, rung: cf.Rung, decay: str) -> None:
        """Against the dense inverse, which knows nothing of bases or ranks."""
        names = [f"{k}.weight" for k in (0, 2, 4)]
        given = problem(0.01 if decay == "one" else dict.fromkeys(names, 0.01))
        curvature = cf.fit(given, rung)
        matrix = curvature.to_dense() + torch.diag(given.decay + DAMPING.value)
        g_q, g_n = oracles.query_gradients(given), oracles.example_gradients(given)
        true = g_q @ torch.linalg.solve(matrix, g_n.T) / len(given.train)
        last = torch.inf
        for error in (3e-1, 3e-2):
            scores = cf.influence(given, curvature, damping=DAMPING, inverse_error=error)
            assert scores.inverse_error is not None, "no rank was found"
            assert 1e-9 < scores.inverse_error <= error
            assert any("inverses at low rank" in note for note in scores.notes)
            # of queries and examples that nothing was chosen or measured on, too
            assert float(off(scores, true).max()) <= 2 * error
            assert scores.inverse_error < last
            last = scores.inverse_error

    def test_whichever_side_is_rotated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Few queries are rotated out of the eigenbasis, many rows into it; and slices of any size
        give the same."""
        given = problem(n=400, q=3)
        curvature = cf.fit(given, cf.EKFAC())
        whole = cf.influence(given, curvature, damping=DAMPING, inverse_error=0.1)
        assert whole.inverse_error is not None
        monkeypatch.setattr(budget, "MERGED", 1)
        assert torch.allclose(
            cf.influence(given, curvature, damping=DAMPING, inverse_error=0.1).values,
            whole.values,
            rtol=1e-10,
            atol=1e-15,
        )

    @pytest.mark.parametrize("held", [False, True])
    @pytest.mark.parametrize("decay", ["one", "biases 0"])
    def test_products_are_those_of_the_inverse_itself(self, decay: str, held: bool) -> None:
        """(u vᵀ ∘ ŝ ⊗ â) in the eigenbasis, less the term of a bias's decay, against rows of one
        column and of several; with few rows, which are rotated, and with many."""
        names = [f"{k}.weight" for k in (0, 2, 4)]
        given = problem(0.01 if decay == "one" else dict.fromkeys(names, 0.01), n=400, q=3)
        curvature = cf.fit(given, cf.EKFAC())
        layout = discover(given)
        g_q = query_gradients(given, layout)
        inverses = found_for.low_rank_inverses(
            curvature, g_q, DAMPING, examples=400, error=0.01, sample=lambda: each(g_q)
        )
        assert inverses.by_block
        ranks = set[int]()
        graded: dict[str, LowRankInverse] = {}
        for block in curvature.blocks:  # of some ranks for half of the rows
            if block.name in inverses.by_block:
                size = float(block.places.dense(g_q)[:, 0].norm(dim=1).median())
                inverse = inverses.by_block[block.name]
                some = Grades((size,), (1, inverse.rank))
                graded[block.name] = replace(inverse, grades=some, fewest=1, held=held)
        made = curvature.solve_rows(g_q, DAMPING, against=Against(0), inverses=graded)
        for block, value in curvature.damped(DAMPING):
            operator, inverse = block.operator, graded.get(block.name)
            if inverse is None:
                continue
            assert isinstance(operator, kronecker.KroneckerEigen)
            g_qn = block.places.dense(g_q)[:, 0]
            rotated = operator.rotate(g_qn)
            own = block.places.take(given.decay)
            exact = operator.solve_rotated(rotated, own, value)
            plain = rotated / (operator.values + own[0] + value)
            passed = list(FisherPass(given, cf.Type2()))
            for rows in (g_q, *passed, passed[0][:2]):
                found = made.parts[block.name].inner(rows)
                assert isinstance(block.places, LayerPart)
                size_n = block.places.term(rows).dense().flatten(1).norm(dim=1)
                for n, size in enumerate(size_n.tolist()):
                    rank = rank_of(inverse.grades, size)
                    ranks.add(rank)
                    x_qoi = rotated * (inverse.u_or[:, :rank] @ inverse.v_ir[:, :rank].T)
                    x_qn = operator.rotate_back(x_qoi + exact - plain)
                    wanted = block.places.inner(rows[n : n + 1], x_qn)[:, 0]
                    torch.testing.assert_close(found[:, n], wanted, rtol=1e-9, atol=1e-12)
            assert torch.allclose(
                made.parts[block.name].flat(), operator.solve(g_qn, own, value), rtol=1e-9
            )
        assert len(ranks) > 1

    def test_what_is_said_is_measured_on_the_other_half(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By definition: of every query, with what each drawn example counts; and at the limit it
        is believed or not."""
        generator = torch.Generator().manual_seed(0)
        weights = torch.logspace(-3, 0, 400).double()[torch.randperm(400, generator=generator)]
        given = weighted(problem(n=400), weights)
        curvature, layout = cf.fit(given, cf.EKFAC()), discover(given)
        g_q, sample = query_gradients(given, layout), drawn_gradients(given, layout)
        assert sample is not None

        def found(within: float) -> found_for.LowRankInverses:
            attempts = (found_for.Attempt(0.5, within, True),)
            monkeypatch.setattr(found_for, "ATTEMPTS", attempts)
            return found_for.low_rank_inverses(
                curvature, g_q, DAMPING, examples=400, error=1e-2, sample=lambda: sample
            )

        inverses, others = found(9.0), sample.half(1)
        full = curvature.solve_rows(g_q, DAMPING, against=Against(0))
        alone = {name: replace(one, fewest=1) for name, one in inverses.by_block.items()}
        low = curvature.solve_rows(g_q, DAMPING, against=Against(0), inverses=alone)
        true_qn = full.inner(others.rows)[..., 0]
        gap_qn = low.inner(others.rows)[..., 0] - true_qn
        squares_q, whole_q = (x.square() @ others.counts for x in (gap_qn, true_qn))
        worst = float((squares_q / whole_q).max()) ** 0.5
        assert inverses.error == pytest.approx(worst, rel=1e-6)
        of_one = float((gap_qn.norm(dim=0) / true_qn.norm(dim=0)).max())
        assert inverses.of_one == pytest.approx(of_one, rel=1e-6)
        assert (inverses.queries, inverses.examples) == (len(g_q), len(others))
        assert found(worst / 1e-2 * 1.001).error == inverses.error
        assert found(worst / 1e-2 * 0.999).error is None

    def test_several_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given = problem()
        curvature = cf.fit(given, cf.EKFAC())
        scores = cf.influence(given, curvature, damping=DAMPING, inverse_error=0.1)
        assert scores.inverse_error is not None
        numbers = found_for.LowRankInverses().numbers(curvature)
        monkeypatch.setattr(budget, "SOLVED", numbers)
        again = cf.influence(given, curvature, damping=DAMPING, inverse_error=0.1)
        assert torch.allclose(again.values, scores.values, rtol=1e-12, atol=1e-15)

    @pytest.mark.parametrize("kept", [0, 2**25])
    def test_queries_stay_merged_where_that_is_little(
        self, kept: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All blocks' together; and few rows of a size are not multiplied by themselves."""
        monkeypatch.setattr("curvfluence.runtime.budget.KEPT_MERGED", kept)
        given = problem(n=400)
        curvature, layout = cf.fit(given, cf.EKFAC()), discover(given)
        g_q = query_gradients(given, layout)
        inverses = found_for.low_rank_inverses(
            curvature, g_q, DAMPING, examples=400, error=0.01, sample=lambda: each(g_q)
        )
        assert inverses.by_block
        merged = len(g_q) * sum(one.merged for one in inverses.by_block.values())
        monkeypatch.setattr("curvfluence.runtime.budget.KEPT_MERGED", merged - (not kept))
        again = found_for.low_rank_inverses(
            curvature, g_q, DAMPING, examples=400, error=0.01, sample=lambda: each(g_q)
        )
        for found in (inverses, again):
            for one in found.by_block.values():
                assert one.held == bool(kept)
                assert one.fewest == found_for.FEWEST
                assert one.merged == one.rank * sum(one.part.shape)
                assert one.numbers == sum(one.part.shape) + (one.merged if kept else 0)

    def test_shares_and_leverage_take_the_product_in_full(self) -> None:
        """An error that is small beside a score may be all of a block's share of it."""
        given = problem().to(torch.float32)
        curvature = cf.fit(given, cf.EKFAC())
        scores = cf.influence(given, curvature, damping=cf.Absolute(10.0), by_block=True)
        assert scores.inverse_error is None
        for settings in ({"by_block": True}, {"leverage": True}):
            with pytest.raises(InputError, match="leave inverse_error out"):
                cf.influence(given, curvature, inverse_error=0.1, **settings)

    @pytest.mark.parametrize("seed", range(4))
    def test_small_gradients_take_fewer_ranks(self, seed: int) -> None:
        """Sizes that are ten thousand times apart: a query's error is what was asked for, those of
        single examples of small gradients are larger, and both are about what the result says."""
        generator = torch.Generator().manual_seed(seed)
        weights = torch.logspace(-4, 0, 600).double()[torch.randperm(600, generator=generator)]
        given = weighted(problem(n=600), weights)
        curvature = cf.fit(given, cf.EKFAC())
        true = cf.influence(given, curvature, damping=DAMPING, inverse_error=0).values
        scores = cf.influence(given, curvature, damping=DAMPING, inverse_error=1e-3)
        assert scores.inverse_error is not None
        worst = float(off(scores, true).max())
        assert worst <= 1e-3
        assert scores.inverse_error / 3 <= worst <= 3 * scores.inverse_error
        note = next(note for note in scores.notes if "low rank" in note)
        assert ", and fewer for small gradients" in note
        gap_n = (scores.values - true).norm(dim=0) / true.norm(dim=0)
        said = float(note.partition("of one example by ")[2].split()[0])
        assert float(gap_n.max()) / 5 <= said <= float(gap_n.max()) * 1.01
        assert float(gap_n[weights < 1e-3].median()) >= 2 * float(gap_n[weights > 0.3].median())

    @pytest.mark.parametrize("error", [1e-2, 1e-3])
    @pytest.mark.parametrize("seed", range(3))
    def test_two_populations(self, seed: int, error: float) -> None:
        """Half of the examples are another kind and small, and half of the queries are made of
        them: small rows that point elsewhere are no less exact for these."""
        given = two_kinds(seed)
        curvature = cf.fit(given, cf.EKFAC())
        true = cf.influence(given, curvature, damping=DAMPING, inverse_error=0).values
        scores = cf.influence(given, curvature, damping=DAMPING, inverse_error=error)
        assert float(off(scores, true).max()) <= 1.5 * error
        assert scores.inverse_error is not None
        assert float(off(scores, true).max()) <= 3 * scores.inverse_error

    def test_every_query_is_looked_at(self) -> None:
        """One of forty is unlike the others, in a part of the net that they do not reach."""
        given = two_kinds(0, n=300, q=40, others=1)
        curvature = cf.fit(given, cf.EKFAC())
        true = cf.influence(given, curvature, damping=DAMPING, inverse_error=0).values
        for error in (1e-1, 1e-2, 1e-3):
            scores = cf.influence(given, curvature, damping=DAMPING, inverse_error=error)
            assert scores.inverse_error is not None
            assert float(off(scores, true).max()) <= 2 * error, error

    def test_one_example_that_all_is_made_of(self) -> None:
        """It is in both halves of what is drawn, and ranks are found."""
        weights = torch.ones(600, dtype=torch.float64)
        weights[77] = 1e6
        given = weighted(problem(n=600), weights)
        curvature = cf.fit(given, cf.EKFAC())
        at = cf.Relative(0.1)
        true = cf.influence(given, curvature, damping=at, inverse_error=0).values
        for error in (1e-2, 1e-4):
            scores = cf.influence(given, curvature, damping=at, inverse_error=error)
            assert scores.inverse_error is not None
            assert float(off(scores, true).max()) <= error

    @pytest.mark.parametrize("seed", range(3))
    def test_weights_of_examples_count(self, seed: int) -> None:
        """A few examples of a large weight, which scores are then made of."""
        weights = torch.ones(400, dtype=torch.float64)
        weights[torch.randperm(400, generator=torch.Generator().manual_seed(seed))[:5]] = 1e4
        given = weighted(problem(n=400), weights)
        curvature = cf.fit(given, cf.EKFAC())
        at = cf.Absolute(10.0)
        true = cf.influence(given, curvature, damping=at, inverse_error=0).values
        scores = cf.influence(given, curvature, damping=at, inverse_error=0.03)
        assert scores.inverse_error is not None
        assert float(off(scores, true).max()) <= 0.03

    def test_a_heavy_example_anywhere_is_looked_at(self) -> None:
        torch.manual_seed(0)
        given = make(mlp(40, 44, 36, 3), cf.MSE(), shape=(40,), n=1500, q=24)
        targets = given.train.targets.clone()
        targets[1234] *= 1e4
        heavy = cf.Problem(
            given.model, given.loss, (given.train.inputs, targets), given.queries, weight_decay=0.01
        )
        curvature = cf.fit(heavy, cf.EKFAC())
        for damping in (cf.Relative(0.1), cf.Absolute(1e-2)):
            true = cf.influence(heavy, curvature, damping=damping, inverse_error=0).values
            scores = cf.influence(heavy, curvature, damping=damping, inverse_error=0.03)
            assert scores.inverse_error is not None
            assert float(off(scores, true).max()) <= 0.06

    def test_examples_without_a_gradient_prove_nothing(self) -> None:
        """A saturated model with five wrong labels: the others have gradients of 0."""
        torch.manual_seed(0)
        model = mlp(40, 44, 3, activation=nn.Tanh)
        with torch.no_grad():
            model[2].weight.mul_(1e4)
        x = torch.randn(900, 40)
        top = model(x).topk(2, 1).values
        x = x[top[:, 0] - top[:, 1] > 150]
        y = model(x).argmax(1)
        asked = torch.randn(30, 40), torch.randint(0, 3, (30,))
        for wrong in (0, 1, 5):
            labels = y.clone()
            labels[:wrong] = (labels[:wrong] + 1) % 3
            given = cf.Problem(model, cf.CrossEntropy(), (x, labels), asked)
            curvature = cf.fit(given, cf.EKFAC())
            true = cf.influence(given, curvature, damping=cf.Absolute(1.0), inverse_error=0)
            scores = cf.influence(given, curvature, damping=cf.Absolute(1.0), inverse_error=1e-3)
            gap = (scores.values - true.values).norm(dim=1)
            assert bool((gap <= 1e-3 * true.values.norm(dim=1)).all())

    def test_queries_without_a_gradient_prove_nothing(self) -> None:
        """Ten queries of 400 whose hinge is open, wherever they are."""
        torch.manual_seed(0)
        base = make(mlp(40, 44, 36, 3), cf.MSE(), shape=(40,), n=80, q=400)
        targets = base.outputs(base.queries, "queries").detach().clone()
        targets[200:210] += 1.0
        given = cf.Problem(base.model, base.loss, base.train, (base.queries.inputs, targets))
        curvature = cf.fit(given, cf.EKFAC())
        true = cf.influence(given, curvature, damping=DAMPING, inverse_error=0).values
        scores = cf.influence(given, curvature, damping=DAMPING, inverse_error=0.03)
        assert scores.inverse_error is not None
        assert float(off(scores, true)[200:210].max()) <= 0.03

    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_few_examples(self, n: int) -> None:
        """Too few to choose and to check on are all scored in full."""
        given = problem(n=n)
        scores = cf.influence(given, cf.EKFAC(), damping=DAMPING, inverse_error=0.1)
        assert (scores.inverse_error is not None) == (n >= 4)

    def test_saved(self, tmp_path: Path) -> None:
        scores = cf.influence(problem(), cf.EKFAC(), damping=DAMPING, inverse_error=0.1)
        scores.save(tmp_path / "scores.npy")
        assert cf.load_scores(tmp_path / "scores.npy").inverse_error == scores.inverse_error

    def test_what_others_do_not_bear_out_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A rank that other examples have a larger error under is given up: the product in full,
        to the last bit, and nothing is said of ranks."""
        given = problem()
        curvature = cf.fit(given, cf.EKFAC())
        calls: list[float] = []

        def too_low(
            inverse_oi: Tensor,
            spread: object,
            queries: object,
            rows: object,
            allowed_q: Tensor,
            slacks: tuple[float, ...],
        ) -> tuple[Tensor, Tensor, tuple[int, ...]]:
            calls.append(float(allowed_q[: found_for.QUERIES].sum()))  # of the same queries
            o, i = inverse_oi.shape
            return torch.ones(o, 1).double(), torch.ones(i, 1).double(), (1,) * len(slacks)

        monkeypatch.setattr(low_rank_search, "low_rank", too_low)
        scores = cf.influence(given, curvature, damping=DAMPING, inverse_error=1e-3)
        true = cf.influence(given, curvature, damping=DAMPING, inverse_error=0)
        assert len(calls) == 6  # two layers are wide enough; tried, for all rows alike, and tighter
        shares = [attempt.share for attempt in found_for.ATTEMPTS]
        assert calls[::2] == pytest.approx([calls[0] * share / shares[0] for share in shares])
        assert torch.equal(scores.values, true.values)
        assert scores.inverse_error is None
        assert not any("low rank" in note for note in scores.notes)

    def test_an_error_that_no_rank_reaches(self) -> None:
        given = problem()
        scores = cf.influence(given, cf.EKFAC(), damping=DAMPING, inverse_error=1e-12)
        assert scores.inverse_error is None
        true = cf.influence(given, cf.EKFAC(), damping=DAMPING, inverse_error=0)
        assert torch.equal(scores.values, true.values)

    def test_a_damping_that_cannot_be_trusted_is_refused_as_before(self) -> None:
        torch.manual_seed(0)
        given = problem(0.0).to(torch.float32)
        for error in (0, 0.1):
            with pytest.raises(SingularError, match=r"EKFAC, block \d: .* cannot be inverted"):
                cf.influence(given, cf.EKFAC(), damping=cf.Absolute(1e-12), inverse_error=error)

    def test_the_bound_knows_of_it(self) -> None:
        given = problem()
        scores = cf.influence(given, cf.EKFAC(), damping=DAMPING, inverse_error=0.3)
        ggn = cf.influence(given, cf.GGN(), damping=DAMPING)
        bounds = scores.error_bounds(rows=50)
        assert bool(((scores.values - ggn.values).abs() <= bounds.values).all())

    def test_shared_layers_and_lookups_take_the_product(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv1d(8, 40, 3), nn.Tanh(), nn.Flatten(), nn.Linear(240, 3))
        given = make(model, cf.CrossEntropy(), shape=(8, 8), n=30, q=12)
        scores = cf.influence(given, cf.EKFAC(), damping=DAMPING, inverse_error=0.3)
        assert scores.inverse_error is None


class TestChoice:
    def test_float64_is_exact_unless_asked(self) -> None:
        """And short products are exact whatever is asked."""
        given = problem()
        plain = cf.influence(given, cf.EKFAC(), damping=DAMPING)
        assert plain.inverse_error is None
        asked = cf.influence(given, cf.EKFAC(), damping=DAMPING, inverse_error=0.5)
        assert torch.equal(asked.values, plain.values)

    @pytest.mark.usefixtures("searched")
    def test_float32_is_within_a_hundred_thousandth(self) -> None:
        given = problem().to(torch.float32)
        scores = cf.influence(given, cf.EKFAC(), damping=cf.Absolute(10.0))
        assert scores.inverse_error is not None
        assert scores.inverse_error <= 1e-5
        exact = problem()
        true = cf.influence(exact, cf.EKFAC(), damping=cf.Absolute(10.0)).values
        assert float(off(scores, true).max()) <= 2e-5

    @pytest.mark.parametrize("error", [-1e-3, 1.0, float("nan"), "small"])
    def test_bad_values(self, error: float) -> None:
        with pytest.raises(InputError, match="inverse_error"):
            cf.influence(problem(), cf.EKFAC(), damping=DAMPING, inverse_error=error)

    def test_fewer_numbers_are_held(self) -> None:
        given = problem()
        curvature = cf.fit(given, cf.KFAC(factored_damping=True))
        queries = query_gradients(given, discover(given))
        inverses = found_for.low_rank_inverses(
            curvature, queries, DAMPING, examples=80, error=0.0, sample=lambda: each(queries)
        )
        assert inverses.numbers(curvature) == (44 + 41) + (36 + 45) + (3 + 37)
        assert inverses.note is None


@pytest.mark.parametrize("joint", [True, False])
def test_factored_damping_is_of_rank_one(joint: bool) -> None:
    """Exactly: against the dense Kronecker product of damped factors."""
    given = problem()
    rung = cf.KFAC(factored_damping=True, joint_bias=joint)
    curvature = cf.fit(given, rung)
    scores = cf.influence(given, curvature, damping=DAMPING)
    g_q, g_n = oracles.query_gradients(given), oracles.example_gradients(given)
    true = curvature.solve(g_q, DAMPING) @ g_n.T / len(given.train)
    assert torch.allclose(scores.values, true, rtol=1e-9, atol=1e-14)
    assert scores.inverse_error is None


class Sizes:
    """Rows of which only the sizes are asked for."""

    def __init__(self, size_q: Tensor) -> None:
        self.size_q = size_q

    def exact_norms(self) -> Tensor:
        return self.size_q[:, None]

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.size_q[index]


@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_queries_from_the_smallest_to_the_largest(count: int) -> None:
    """Sixteen of them evenly by their place, or all; of size 1 as of any other, and none of 0."""
    sizes = torch.arange(1.0, count + 1).flip(0)
    given: Any = Sizes(torch.cat([torch.zeros(3), sizes, torch.zeros(2)]))
    places = torch.linspace(0, count - 1, 16).round() if count > 16 else torch.arange(count)
    found: Any = found_for._spread(given)  # pyright: ignore[reportPrivateUsage]
    assert found.tolist() == (places + 1).tolist()


@pytest.mark.parametrize(("room", "step"), [(1, 1), (25, 2), (10**6, 6)])
def test_as_many_queries_are_compared_as_there_is_room_for(
    room: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten numbers each here; at least one, and a quarter of all at most."""
    given = problem(n=80, q=24)
    curvature, g_q = cf.fit(given, cf.EKFAC()), query_gradients(given, discover(given))
    seen, solve = list[int](), type(curvature).solve_rows

    def watched(self: cf.Curvature, rows: Rows, *args: Any, **options: Any) -> Any:
        seen.append(len(rows))
        return solve(self, rows, *args, **options)

    monkeypatch.setattr(type(curvature), "solve_rows", watched)
    monkeypatch.setattr(found_for.LowRankInverses, "numbers", lambda _self, _curvature: 10)  # pyright: ignore
    monkeypatch.setattr(budget, "CHECKED", room)
    gap_qn, true_qn = found_for._compared(curvature, g_q, DAMPING, {}, g_q)  # pyright: ignore[reportPrivateUsage]
    assert seen == [step] * 2 * (24 // step)
    assert (gap_qn.shape, true_qn.shape) == ((24, 24), (24, 24))
    assert not gap_qn.any()
    assert true_qn.isfinite().all()
