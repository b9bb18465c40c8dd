"""Advice: criteria for λ against dense oracles, what a budget allows, retraining, the command."""

from __future__ import annotations

import dataclasses
import re
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor
from typer.testing import CliRunner

import curvfluence as cf
from curvfluence.advising import Advice, advise, seconds_of
from curvfluence.advising.advice import Candidate
from curvfluence.advising.dampings import GRID, chosen, try_all, usual
from curvfluence.advising.retrained import Retrained, retrained
from curvfluence.cli import app
from curvfluence.curvature.curvature import Curvature
from curvfluence.errors import InputError
from curvfluence.fidelity.lds import query_halves, spearman
from curvfluence.forecast import plan, plans
from curvfluence.judging.holdings import Holdings
from curvfluence.problem.problem import Problem
from curvfluence.store.lock import held
from curvfluence.study import load
from curvfluence.truth.bank import Bank
from tests.oracles import dense_ggn, example_gradients, query_gradients
from tests.problems import chain_problem, make, mlp, seeded

MODULE = import_module("curvfluence.advising.advise")  # not the function of its name
EXACT = cf.GGN(cf.inversion.Matrix())


@pytest.fixture(scope="module")
def problem() -> Problem:
    seeded()
    return make(mlp(5, 4, 3), cf.CrossEntropy(), n=30, q=5)


def scores_at(problem: Problem, curvature: Curvature, value: float, power: int = 1) -> Tensor:
    """g_nᵀ (C + W + λ)^−power g_q, [Q, N], dense."""
    matrix = curvature.to_dense() + torch.diag(curvature.decay)
    matrix = matrix + value * torch.eye(len(matrix)).double()
    inverse = torch.linalg.matrix_power(torch.linalg.inv(matrix), power)
    return query_gradients(problem) @ inverse @ example_gradients(problem).T


@pytest.mark.parametrize("rung", [EXACT, cf.BlockGGN(), cf.KFAC()])
class TestCriteria:
    def test_each_sees_its_dense_definition(self, problem: Problem, rung: cf.Rung) -> None:
        curvature = cf.fit(problem, rung)
        tried = {one.name: one for one in try_all(problem, rung, curvature, seed=3)}
        order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
        x, y = problem.train.inputs, problem.train.targets  # pyright: ignore[reportAttributeAccessIssue]
        halves = [
            cf.fit(
                Problem(
                    problem.model, problem.loss, (x[part], y[part]), problem.queries,
                    weight_decay=0.01,
                ),
                rung,
            )
            for part in (order[:15].sort().values, order[15:].sort().values)
        ]  # fmt: skip
        exact = dense_ggn(problem) + torch.diag(problem.decay)
        g_qp = query_gradients(problem)
        for k in (0, 4, 8, 13):
            value = GRID[k]
            tau = scores_at(problem, curvature, value)
            slope = scores_at(problem, curvature, value, 2)
            cosine = (tau * slope).sum(1) / tau.norm(dim=1) / slope.norm(dim=1)
            assert tried["surrogate"].seen[k] == pytest.approx(float(cosine.mean()), abs=1e-6)
            one, other = (scores_at(problem, half, value) for half in halves)
            rho = [spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)]
            assert tried["halves"].seen[k] == pytest.approx(sum(rho) / len(rho), abs=1e-3)
            matrix = curvature.to_dense() + torch.diag(curvature.decay)
            matrix = matrix + value * torch.eye(len(matrix)).double()
            x_qp = torch.linalg.solve(matrix, g_qp.T).T
            gap = x_qp @ exact + value * x_qp - g_qp
            residual = (gap.norm(dim=1) / g_qp.norm(dim=1)).median()
            assert tried["certificate"].seen[k] == pytest.approx(float(residual), abs=1e-6)

    def test_λ_is_where_the_criterion_first_holds(self, problem: Problem, rung: cf.Rung) -> None:
        for one in try_all(problem, rung, cf.fit(problem, rung)):
            if one.name == "relative":
                assert one.damping == usual(rung)
                continue
            assert isinstance(one.damping, cf.Absolute)
            wanted, seen = {"halves": 0.7, "surrogate": 0.5, "certificate": 0.5}[one.name], one.seen
            holds = [v <= wanted if one.name == "certificate" else v >= wanted for v in seen]
            at = holds.index(True) if True in holds else len(holds) - 1
            low = GRID[max(0, at - 1)]
            assert low * (1 - 1e-12) <= one.damping.value <= GRID[at] * (1 + 1e-12)


class TestBudget:
    @pytest.mark.parametrize(
        ("text", "value"),
        [("30s", 30), ("5m", 300), ("2h", 7200), ("1.5", 1.5), (2, 2), ("3min", 180)],
    )
    def test_as_somebody_writes_it(self, text: str | float, value: float) -> None:
        assert seconds_of(text) == value

    @pytest.mark.parametrize("text", ["", "soon", "-3s", "0s", "5 parsecs", "nan", 0])
    def test_what_is_none(self, text: str | float) -> None:
        with pytest.raises(InputError, match="budget"):
            seconds_of(text)

    def test_too_small_for_anything(self, problem: Problem) -> None:
        with pytest.raises(InputError, match="too small for any rung: the cheapest"):
            advise(problem, 1e-9)

    def test_the_highest_that_fits(self, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
        """Forecasts as they might be: GGN beyond the budget, BlockGGN beyond the memory."""
        cost = {"GGN": 90.0, "BlockGGN": 2.0, "EKFAC": 2.0, "KFAC": 1.5, "Diagonal": 1.0}
        room = {"BlockGGN": 10**18}

        def forecast(_: Problem, rungs: list[cf.Rung]) -> tuple[_Forecast, ...]:
            names = [rung.name for rung in rungs]
            return tuple(_Forecast(cost.get(n, 0.5), room.get(n, 10**6)) for n in names)

        monkeypatch.setattr(MODULE, "plans", forecast)
        found = advise(problem, "10s")
        assert found.name == "EKFAC"
        assert found.damping == cf.Relative(0.1)
        by = {one.name: one for one in found.candidates}
        assert by["GGN"].reason == "beyond the budget"
        assert "memory" in by["BlockGGN"].reason
        assert found.above is by["BlockGGN"]
        assert "One step more, BlockGGN, is forecast at" in str(found)
        assert by["EKFAC"].correlation == pytest.approx(1.0)
        assert by["GGN"].seconds is None

    def test_lower_rungs_wait_for_the_budget(
        self, problem: Problem, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            MODULE, "plans", lambda _, rungs: tuple(_Forecast(1e-6, 1) for _ in rungs)
        )
        found = advise(problem, 1e-5)
        taken = {one.name: one.seconds for one in found.candidates}
        assert None not in taken.values()  # none was within the budget, so the next was tried
        assert found.name == min(taken, key=lambda name: taken[name] or 0.0)
        assert "more than the budget of" in found.sentence
        assert "within" not in found.sentence

    def test_the_rung_took_no_more_than_the_budget(
        self, problem: Problem, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever was forecast: here GGN is slow, and what is below it is not."""
        run = MODULE._Runs.run

        def slow(self: Any, one: Candidate) -> Candidate:
            found = run(self, one)
            self.kept = found.name != "GGN"
            return dataclasses.replace(found, seconds=9.0 if found.name == "GGN" else 1.0)

        monkeypatch.setattr(MODULE._Runs, "run", slow)
        found = advise(problem, 5)
        assert found.name == "BlockGGN"
        assert "within the budget of 5.0 s" in found.sentence

    def test_once_one_is_within_the_others_wait(self, problem: Problem) -> None:
        runs = MODULE._Runs(problem, 1.0, 1.0)
        one = Candidate("KFAC", cf.KFAC(), 0.5, 1, True, "")
        assert runs.run(one).seconds is not None
        assert runs.kept
        runs.spent = 1.9
        assert "used by higher rungs" in runs.run(one).reason


class _Forecast:
    """What `plan` says, as far as advice asks."""

    def __init__(self, seconds: float, nbytes: float) -> None:
        self.seconds, self.bytes, self.fits, self.reason = seconds, nbytes, nbytes < 10**12, None


class TestAdvice:
    @pytest.fixture(scope="class")
    @staticmethod
    def found(problem: Problem) -> Advice:
        return advise(problem, "5m")

    def test_the_top_of_the_ladder_and_everything_about_the_rest(self, found: Advice) -> None:
        assert found.name == "GGN"
        assert found.damping == cf.Relative(1.0)
        assert found.above is None
        assert [one.name for one in found.candidates][:4] == ["GGN", "BlockGGN", "EKFAC", "KFAC"]
        for one in found.candidates:
            assert one.seconds is not None
            assert one.correlation is not None
            assert (one.residual is None) == (one.name == "Identity")

    def test_agreement_is_that_of_the_scores(self, problem: Problem, found: Advice) -> None:
        kfac = next(one for one in found.candidates if one.name == "KFAC")
        a = cf.influence(problem, cf.GGN(), damping=cf.Relative(1.0)).values
        b = cf.influence(problem, cf.KFAC(), damping=cf.Relative(0.1)).values
        rho = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
        assert kfac.correlation == pytest.approx(sum(rho) / len(rho), abs=1e-6)

    def test_one_draw_is_refused_where_labels_hardly_surprise(self, found: Advice) -> None:
        assert not any("mc(1)" in one.name for one in found.candidates)
        assert any("one drawn label" in note for note in found.notes)

    def test_by_another_criterion(self, problem: Problem) -> None:
        found = advise(problem, "5m", by="halves")
        wanted = chosen(found.tried, "halves")
        assert found.damping == wanted.damping
        with pytest.raises(InputError, match="no criterion 'luck' for a damping; there are rel"):
            advise(problem, "5m", by="luck")

    def test_a_single_example(self) -> None:
        seeded()
        alone = make(mlp(5, 4, 3), cf.CrossEntropy(), n=1)
        found = advise(alone, "5m")
        assert found.tried == ()
        assert any("one example has no halves" in note for note in found.notes)

    def test_some_queries_stand_for_all(self, problem: Problem) -> None:
        found = advise(problem, "5m", queries=2)
        assert (found.asked, found.queries) == (2, 5)

    def test_several_plans_are_those_of_each(self, problem: Problem) -> None:
        both = plans(problem, [cf.KFAC(), cf.GGN()])
        for one, rung in zip(both, (cf.KFAC(), cf.GGN()), strict=True):
            alone = plan(problem, rung)
            assert (one.rung, one.operations, one.bytes) == (
                alone.rung, alone.operations, alone.bytes,
            )  # fmt: skip


class TestRetraining:
    @pytest.fixture(scope="class")
    @staticmethod
    def made(tmp_path_factory: pytest.TempPathFactory) -> Retrained:
        return retrained(load("wine"), 8, tmp_path_factory.mktemp("advise"), threads=1)

    def test_the_best_by_held_out_queries_is_advised(self, made: Retrained) -> None:
        found = advise(made.problem, "5m", truth=made.truth)
        known = {one.name: one.measured for one in found.candidates}
        assert all(known.values())
        best = max(known, key=lambda name: known[name].lds)  # pyright: ignore[reportOptionalMemberAccess]
        assert found.name == best
        assert found.by == "truth"
        assert found.damping == known[best].best  # pyright: ignore[reportOptionalMemberAccess]

    def test_lds_is_that_of_group_predictions(self, made: Retrained) -> None:
        found = advise(made.problem, "5m", truth=made.truth)
        one = next(one for one in found.candidates if one.name == "KFAC")
        assert one.measured is not None
        scores = cf.influence(made.problem, cf.KFAC(), damping=one.measured.best)
        predicted = scores.for_group(made.truth.left_out).T
        per_query = spearman(predicted.T.double().numpy(), made.truth.values.numpy().T)
        held_out = ~query_halves(len(per_query), made.truth.seed)
        assert one.measured.lds == pytest.approx(per_query[held_out].mean(), abs=5e-3)
        usual_one = cf.influence(made.problem, cf.KFAC(), damping=usual(cf.KFAC()))
        predicted = usual_one.for_group(made.truth.left_out).T
        per_query = spearman(predicted.T.double().numpy(), made.truth.values.numpy().T)
        assert one.measured.at_advised == pytest.approx(per_query[held_out].mean(), abs=5e-3)

    def test_too_few(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="3 retrainings or more"):
            retrained(load("wine"), 2, tmp_path)

    def test_one_command_at_a_time(self, tmp_path: Path) -> None:
        call = ["advise", "wine", "--retrain", "3", "--out", str(tmp_path), "--no-progress"]
        with held(tmp_path / "bank"):
            with pytest.raises(InputError, match=r"is being written by .*--wait"):
                CliRunner().invoke(app, call, catch_exceptions=False)
            waiting = Thread(target=CliRunner().invoke, args=(app, [*call, "--wait"]))
            waiting.start()
            waiting.join(3)
            assert waiting.is_alive()
        waiting.join()
        assert Holdings.of(Bank.read(tmp_path / "bank"), 0.5).subsets == 3


class TestCommand:
    def test_without_retraining(self) -> None:
        done = CliRunner().invoke(app, ["advise", "wine", "--budget", "5m", "--no-progress"])
        assert done.exit_code == 0, done.output
        said = " ".join(done.output.split())
        assert re.search(r"Use GGN with damping Relative\(1\)", said)
        assert "followed" in said
        assert "agrees with GGN" in said

    def test_with_retraining(self, tmp_path: Path) -> None:
        call = ["advise", "wine", "--budget", "5m", "--retrain", "6", "--out", str(tmp_path)]
        done = CliRunner().invoke(app, [*call, "--threads", "1", "--no-progress"])
        assert done.exit_code == 0, done.output
        said = " ".join(done.output.split())
        assert "against retraining" in said
        assert "the best of a grid by retraining" in said

    def test_no_budget(self) -> None:
        with pytest.raises(InputError, match="a budget is a time such as"):
            CliRunner().invoke(app, ["advise", "wine", "--budget", "soon"], catch_exceptions=False)


def test_nothing_of_the_model_or_the_random_state_is_changed() -> None:
    problem = chain_problem()
    state = torch.get_rng_state()
    advise(problem, "5m")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in problem.model.parameters())
