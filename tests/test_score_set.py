"""A set of scores as an object: some of its queries, its ranks and groups, what it proves and
says."""

from __future__ import annotations

import pickle
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

import curvfluence as cf
from curvfluence.errors import InputError
from curvfluence.runtime import budget
from curvfluence.score.bounds import ErrorBounds
from curvfluence.score.scores import SHOWN, Scores
from tests.problems import chain_problem, make, mlp, seeded

DAMPING = cf.Absolute(0.1)


@pytest.fixture(scope="module")
def lower() -> Scores:
    return cf.influence(chain_problem(), cf.EKFAC(), damping=DAMPING)


@pytest.fixture(scope="module")
def higher() -> Scores:
    seeded()
    problem = make(mlp(5, 4, 3), cf.CrossEntropy(), measurement=cf.Margin())
    return cf.influence(problem, cf.EKFAC(), damping=DAMPING)


def bounded(scores: Scores) -> Scores:
    """With residuals and bounds of each query, whatever they say."""
    bounds = ErrorBounds(scores.rung, scores.values.abs() + 1, scores.unit, 3, 0.9)
    residuals = tuple(0.1 * k for k in range(len(scores.values)))
    return replace(scores, residuals=residuals, bounds=bounds)


class TestSomeQueries:
    def test_what_is_of_each_goes_along(self, lower: Scores) -> None:
        found = bounded(lower)[[2, 0]]
        assert torch.equal(found.values, lower.values[[2, 0]])
        assert found.residuals == (0.2, 0.0)
        assert found.bounds is not None
        assert torch.equal(found.bounds.values, lower.values[[2, 0]].abs() + 1)

    def test_what_is_not_there_does_not(self, lower: Scores) -> None:
        found = lower[1:3]
        assert (found.blocks, found.residuals, found.bounds, found.query_ids) == (None,) * 4

    def test_by_number_from_either_end(self, lower: Scores) -> None:
        count = len(lower.values)
        for k in range(-count, count):
            assert torch.equal(lower[k].values, lower.values[[k]])
        with pytest.raises(InputError, match=f"there are {count} queries, 0 to {count - 1}; seen"):
            lower[count]
        with pytest.raises(InputError, match=f"whole number >= -{count}"):
            lower[-count - 1]


class TestNames:
    def test_of_either_alone(self, lower: Scores) -> None:
        q, n = lower.values.shape
        found = lower.with_ids(queries=range(q))
        assert (found.train_ids, found.query_ids) == (None, tuple(range(q)))
        found = lower.with_ids(train=range(n))
        assert (found.train_ids, found.query_ids) == (tuple(range(n)), None)

    def test_numbers(self, lower: Scores) -> None:
        """Whole ones, as far as a file of JSON holds them below 0."""
        rest = [*range(1, len(lower.values))]
        for first in (0, -(2**53), np.int64(2**60)):
            found = lower.with_ids(queries=[first, *rest])
            assert found.query_ids == (first, *rest)
            assert torch.equal(found[int(first)].values, lower.values[:1])
        for bad in (-(2**53) - 1, 0.5, None, True):
            with pytest.raises(InputError, match="a name that is a number must be a whole number"):
                lower.with_ids(queries=[bad, *rest])  # pyright: ignore[reportArgumentType]


class TestRanks:
    def test_of_all_by_both_ends(
        self, lower: Scores, higher: Scores, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where less is better the largest help most; where more is, the smallest. The same in
        slices of queries."""
        for scores, best in ((lower, True), (higher, False)):
            n = scores.values.shape[1]
            for held in (budget.RANKED, 1):
                monkeypatch.setattr(budget, "RANKED", held)
                for found, descending in ((scores.top(n), best), (scores.bottom(n), not best)):
                    wanted = scores.values.sort(dim=1, descending=descending, stable=True)
                    assert torch.equal(found.indices, wanted.indices)
                    assert torch.equal(found.values, wanted.values)

    def test_ten_unless_asked(self, lower: Scores) -> None:
        assert lower.top().indices.shape == lower.bottom().indices.shape == (len(lower.values), 10)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_ties_stay_in_order(self, lower: Scores, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        values = torch.randint(0, 3, (2, 1000), generator=generator).to(dtype)
        found = replace(lower, values=values).top(1000).indices.tolist()
        for row, order in zip(values.tolist(), found, strict=True):
            assert order == sorted(range(1000), key=lambda n: -row[n])


class TestGroups:
    def test_the_first_examples(self, lower: Scores) -> None:
        assert torch.allclose(lower.for_group([0, 1]), lower.values[:, :2].sum(1))

    @pytest.mark.parametrize("group", [torch.tensor(3), torch.tensor([1 + 0j, 2])])
    def test_what_is_no_group(self, lower: Scores, group: torch.Tensor) -> None:
        with pytest.raises(InputError, match=r"a group is indices .*; seen torch\..* of shape"):
            lower.for_group(group)


class TestProof:
    def test_bounds_that_are_there_are_given(self, lower: Scores) -> None:
        with_bounds = bounded(lower)
        for found in (with_bounds.certificate(), with_bounds.certificate(bounds=True)):
            assert found.bounds is with_bounds.bounds
        assert with_bounds.certificate("Hessian").bounds is None

    def test_others_where_they_are_asked_for(self, lower: Scores) -> None:
        assert lower.certificate().bounds is None
        found = lower.certificate(bounds=True).bounds
        assert found is not None
        assert torch.equal(found.values, lower.error_bounds().values)
        with pytest.raises(InputError, match="against the exact GGN alone; seen against='Hessian'"):
            lower.certificate("Hessian", bounds=True)

    def test_they_are_of_these_scores(self, lower: Scores) -> None:
        """What is added to a score is added to its bound."""
        off = replace(lower, values=lower.values + 100)
        gap = off.error_bounds().values - lower.error_bounds().values
        assert torch.allclose(gap, torch.full_like(gap, 100))

    def test_a_thousand_rows_unless_asked(self) -> None:
        seeded()
        problem = make(nn.Linear(2, 1), cf.MSE(), shape=(2,), outputs=1, n=1005, q=1)
        scores = cf.influence(problem, cf.KFAC(), damping=DAMPING)
        assert scores.error_bounds().rows == 1000
        assert scores.error_bounds(4).rows == 4

    def test_a_copy_proves_nothing(self, lower: Scores) -> None:
        found = pickle.loads(pickle.dumps(lower))
        assert torch.equal(found.values, lower.values)
        assert str(found) == str(lower)
        with pytest.raises(InputError, match="were read back"):
            found.certificate()


class TestSaid:
    def test_which_way_is_better(self, lower: Scores, higher: Scores) -> None:
        assert ", lower is better; unit: nats" in str(lower)
        assert ", higher is better; unit: " in str(higher)

    def test_leverage(self, lower: Scores) -> None:
        heads = [str(replace(lower, leverage=told)).splitlines()[0] for told in (False, True)]
        assert heads[0].endswith(": EKFAC")
        assert heads[1] == f"{heads[0]}, leverage-corrected"

    def test_each_lambda_once(self, lower: Scores) -> None:
        def said(*lambdas: float) -> str:
            named = tuple((f"b{k}", value) for k, value in enumerate(lambdas))
            return str(replace(lower, lambdas=named)).splitlines()[2]

        assert said(0.1, 0.1, 0.1).endswith("λ = 0.1")
        assert said(0.1, 0.2).endswith("λ = 0.1 (b0), 0.2 (b1)")
        assert said(0.1, 0.2, 0.3).endswith("λ = 0.1 (b0), 0.2 (b1), 0.3 (b2)")

    @pytest.mark.parametrize("named", [False, True])
    def test_a_table_of_the_first_queries(self, lower: Scores, named: bool) -> None:
        values = lower.values.repeat(2, 1)[: SHOWN + 2]
        scores = replace(lower, values=values)
        q, n = values.shape
        train, queries = list(range(n)), list(range(q))
        if named:
            train, queries = [f"t{k}" for k in train], [f"q{k}" for k in queries]
            scores = scores.with_ids(train, queries)
        text = scores._repr_html_()
        table = ElementTree.fromstring(text[text.index("<table>") :].replace("<br>", " "))
        rows = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
        top = scores.top(SHOWN)
        wanted = [
            [str(queries[row]), *(f"{train[m]} {v:+.3g}" for m, v in zip(*best, strict=True))]
            for row, best in enumerate(
                zip(top.indices[:SHOWN].tolist(), top.values[:SHOWN].tolist(), strict=True)
            )
        ]
        assert rows == [["query", *(str(k + 1) for k in range(SHOWN))], *wanted]
        said = "".join(table.itertext())
        caption = "The most helpful training examples, with their influence in nats"
        assert said == caption + "".join(cell for row in rows for cell in row)
