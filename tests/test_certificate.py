"""What a certificate says, and of what it is: of the solutions that the scores were made of."""

from __future__ import annotations

import warnings

import pytest
import torch

import curvfluence as cf
from curvfluence.curvature.operators.operator import Against
from curvfluence.errors import CurvfluenceWarning
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import query_gradients
from curvfluence.runtime import budget
from curvfluence.score.certificate import Certificate, own_residuals, said_of_residuals
from tests import oracles
from tests.problems import chain_problem, make, mlp, seeded
from tests.zoo import zoo_problem

DAMPING = cf.Absolute(0.05)


class TestSaid:
    def test_the_median_and_the_largest(self) -> None:
        for residuals in ((0.5, 0.1, 0.2, 0.4, 0.3), (0.1, 0.5, 0.2, 0.3)):
            found = Certificate("EKFAC", "GGN", residuals, "float64")
            assert str(found).endswith(f"{len(residuals)} queries, median 0.3, largest 0.5")

    def test_bounds_come_last(self) -> None:
        scores = cf.influence(chain_problem(), cf.EKFAC(), damping=DAMPING)
        found = scores.certificate(bounds=True)
        assert found.bounds is not None
        assert str(found) == f"{scores.certificate()}; {found.bounds.said}"
        assert scores.error_bounds(rows=3).rows == 3

    def test_it_warns_above_twice_what_was_wanted(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert "a query is 0.5, wanted 0.25" in said_of_residuals((0.1, 0.5), 0.25)
        with pytest.warns(CurvfluenceWarning, match=r"a query is 0.6, wanted 0.25"):
            said_of_residuals((0.1, 0.6), 0.25)


class TestResiduals:
    @pytest.fixture(autouse=True, params=["at once", "one at a time"])
    def batches(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        if request.param == "one at a time":
            monkeypatch.setattr(budget, "RIGHT_HAND_SIDES", 1)

    def test_of_solutions_at_low_rank(self) -> None:
        """Those that were scored with, not those at full rank."""
        problem = zoo_problem("cnn with groups")
        curvature = cf.fit(problem, cf.EKFAC())
        g_q = query_gradients(problem, discover(problem))
        solved = curvature.solve_rows(g_q, DAMPING, against=Against(7), compress=0.9)
        assert solved.compression_error > 0.1
        x, g = solved.flat(), oracles.query_gradients(problem)
        left = x @ oracles.dense_ggn(problem) + curvature.shift(DAMPING) * x - g
        found = cf.influence(problem, curvature, damping=DAMPING, compress=0.9).certificate()
        wanted = (left.norm(dim=1) / g.norm(dim=1)).tolist()
        assert found.residuals == pytest.approx(wanted, rel=1e-9)

    def test_of_the_curvature_itself(self) -> None:
        problem = chain_problem()
        curvature = cf.fit(problem, cf.EKFAC())
        seeded()
        x, g = torch.randn(2, 3, problem.parameters.count, dtype=torch.float64)
        left = x @ curvature.to_dense() + curvature.shift(DAMPING) * x - g
        wanted = (left.norm(dim=1) / g.norm(dim=1)).tolist()
        assert own_residuals(curvature, x, g, DAMPING) == pytest.approx(wanted, rel=1e-12)

    def test_of_nothing_to_solve_for(self) -> None:
        """Where g is 0, x = 0 leaves nothing and every other x infinitely much."""
        problem = make(mlp(5, 3), cf.CrossEntropy())
        curvature = cf.fit(problem, cf.EKFAC())
        g = torch.zeros(2, problem.parameters.count, dtype=torch.float64)
        x = torch.zeros_like(g)
        x[1, 0] = 1e-3
        assert own_residuals(curvature, x, g, DAMPING) == (0.0, torch.inf)
