"""The forecast: every parameter once, what cannot fit refused with the next rung, sane numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import curvfluence as cf
from curvfluence.forecast.rates import Rates
from curvfluence.jacobian.discovery import discover
from curvfluence.runtime.stage import Stage
from tests.problems import make, mlp, seeded
from tests.zoo import CASES, zoo_problem

RUNGS = [
    cf.Identity(),
    cf.Diagonal(),
    cf.KFAC(),
    cf.EKFAC(),
    cf.Shampoo(),
    cf.TKFAC(),
    cf.EShampoo(),
    cf.BlockGGN(),
    cf.GGN(),
    cf.Hessian(),
]


@pytest.mark.parametrize("name", CASES)
def test_coverage_is_that_of_the_fit(name: str) -> None:
    problem = zoo_problem(name)
    for rung in RUNGS:
        if "bag" in name and isinstance(rung, cf.Hessian):
            continue  # torch has no second derivative of it
        assert rung.coverage(problem) == cf.fit(problem, rung).coverage


@pytest.mark.parametrize("name", ["mlp", "tied transformer", "embedding bag mean"])
def test_a_plan_says_what_the_rung_covers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = zoo_problem(name)
    rates = Rates.measured(problem)  # once for all rungs
    monkeypatch.setattr(Rates, "measured", lambda _: rates)
    for rung in RUNGS:
        assert cf.plan(problem, rung).coverage == rung.coverage(problem)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_every_rung_has_a_forecast(rung: cf.Rung) -> None:
    problem = zoo_problem("cnn with groups")
    found = cf.plan(problem, rung)
    assert found.fits
    assert found.seconds > 0
    assert found.bytes > 0
    assert found.operations > 0
    assert all(stage.seconds >= 0 and stage.bytes > 0 for stage in found.stages)
    assert found.rung in str(found)
    found.require()


def test_more_queries_and_more_data_cost_more() -> None:
    problem = zoo_problem("mlp", n=40)
    few, many = (cf.plan(problem, cf.EKFAC(), queries=q).operations for q in (1, 1000))
    assert many > few
    assert cf.plan(zoo_problem("mlp", n=80), cf.EKFAC()).operations > few


def test_rows_that_the_fit_formed_are_not_formed_again() -> None:
    """EK-FAC with the training labels leaves those of shared layers; K-FAC, and sampled labels, do
    not."""
    problem = zoo_problem("linear over positions", n=40)
    n, q, p = 40, len(problem.queries), problem.parameters.count
    shared = 3 * 3 * 2  # positions, outputs and inputs of the first layer

    def scores(rung: cf.Rung) -> float:
        (stage,) = (one for one in cf.plan(problem, rung).stages if one.name == "scores")
        return stage.operations

    product, rows = 2 * q * n * p, 2 * n * shared
    assert scores(cf.EKFAC(cf.Empirical())) == product
    assert scores(cf.EKFAC(cf.Type2(), values=cf.Empirical())) == product
    for rung in (cf.KFAC(cf.Empirical()), cf.EKFAC(cf.MonteCarlo(1))):
        assert scores(rung) == product + rows
    for room in (0, 1000):  # none is kept, and some
        problem = cf.Problem(
            problem.model, problem.loss, problem.train, problem.queries, remember=room
        )
        assert scores(cf.EKFAC(cf.Empirical())) == product + rows


def wide() -> cf.Problem:
    seeded()
    return make(mlp(5, 400, 400, 3), cf.CrossEntropy(), n=20)


def test_what_cannot_be_done_names_the_next_rung() -> None:
    problem = wide()
    found = cf.plan(problem, cf.Hessian())
    assert not found.fits
    assert "164,003 parameters" in str(found.reason)
    assert found.cheaper == "GGN"  # in sample space
    with pytest.raises(cf.errors.InputError, match="GGN is the next cheaper rung that fits"):
        found.require()
    block = cf.plan(problem, cf.BlockGGN())
    assert block.cheaper == "EKFAC"
    assert "block 2 of 160,400" in str(block.reason)


def test_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make(mlp(5, 30, 3), cf.CrossEntropy(), n=20)
    monkeypatch.setattr("curvfluence.runtime.device.memory", lambda _: 2**16)
    found = cf.plan(problem, cf.Hessian())
    assert not found.fits
    with pytest.raises(cf.errors.InputError, match=r"this machine has 0\.0"):
        found.require()


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_a_fit_that_cannot_fit_is_refused_before_it_starts(
    rung: cf.Rung, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make(mlp(5, 30, 3), cf.CrossEntropy(), n=20)
    assert cf.fit(problem, rung).rung
    monkeypatch.setattr("curvfluence.runtime.device.memory", lambda _: 2**12)
    if not rung.elements(problem):  # a vector of the size of the model
        cf.fit(problem, rung)
        return
    with pytest.raises(
        cf.errors.InputError, match=r"this machine has 0\.0: .* names the next cheaper"
    ):
        cf.fit(problem, rung)


def test_the_plan_leaves_the_model_alone() -> None:
    problem = zoo_problem("untied transformer")
    before = {n: v.clone() for n, v in problem.model.state_dict().items()}
    rng = torch.get_rng_state()
    cf.plan(problem, cf.EKFAC(fisher=cf.MonteCarlo(2)))
    assert all(torch.equal(v, before[n]) for n, v in problem.model.state_dict().items())
    assert all(p.grad is None for p in problem.model.parameters())
    assert torch.equal(rng, torch.get_rng_state())


class TestCommand:
    def test_it_shows_every_rung(self, capsys: pytest.CaptureFixture[str]) -> None:
        from typer.testing import CliRunner

        from curvfluence.cli import app

        result = CliRunner().invoke(app, ["plan", "wine", "--rungs", "EKFAC,GGN"])
        assert result.exit_code == 0, result.output
        for word in ("EKFAC", "GGN", "eigendecompositions", "Cholesky", "0.weight"):
            assert word in result.output

    def test_an_unknown_rung(self) -> None:
        from curvfluence.study.costs import forecasts

        with pytest.raises(cf.errors.InputError, match="there is no rung 'KFRA'"):
            forecasts("wine", ("KFRA",), queries=None, dtype="float32")
        with pytest.raises(cf.errors.InputError, match="queries"):
            forecasts("wine", None, queries=0, dtype="float32")


def fitted_stages(rung: cf.Rung, problem: cf.Problem) -> dict[str, Stage]:
    return {stage.name: stage for stage in cf.plan(problem, rung).stages}


@pytest.mark.parametrize("rung", [cf.KFAC(), cf.EKFAC(), cf.Shampoo(), cf.EShampoo()])
def test_factors_are_held_at_once(rung: cf.Rung) -> None:
    """o² + i² a layer and o i for Λ, of 8 bytes each."""
    stages = fitted_stages(rung, zoo_problem("mlp", n=40))
    sizes = [(p.out_features, p.in_features + 1) for p in discover(zoo_problem("mlp")).layers]
    assert stages["factors"].bytes >= 8 * sum(o * o + i * i + o * i for o, i in sizes)


@pytest.mark.parametrize("rung", [cf.EKFAC(), cf.EShampoo()])
def test_a_second_pass_is_in_the_forecast(rung: cf.Rung) -> None:
    """Where no row is remembered the corrected eigenvalues take a pass of their own."""
    made = zoo_problem("mlp", n=40)
    none = cf.Problem(made.model, made.loss, made.train, made.queries, remember=0)
    assert "second pass over the data" in fitted_stages(rung, none)
    apart = type(rung)(cf.MonteCarlo(1), values=cf.Type2())
    assert "second pass over the data" in fitted_stages(apart, made)
    assert "second pass over the data" not in fitted_stages(cf.KFAC(), none)


def test_gram_matrices_over_positions_are_counted() -> None:
    """Shampoo forms a row of each column where positions are shared: o i (o + i) operations of its
    two Gram matrices, halved by symmetry, and the row itself."""
    problem = zoo_problem("linear over positions", n=40)
    stage, count = fitted_stages(cf.Shampoo(cf.Empirical()), problem)["factors"], 0.0
    for part in cf.Shampoo(cf.Empirical()).parts(problem):
        o, i = part.shape
        count += o * i * (o + i)
    assert 40 * count / 2 <= stage.operations <= 40 * 12 * count


def test_rows_are_formed_once_for_all_queries() -> None:
    """Of 6 positions, 5 × 4: a single query meets each of them, many meet rows that are formed."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Flatten(), nn.Linear(24, 3, bias=False))
    x, y = torch.randn(30, 6, 5), torch.randint(3, (30,))
    for queries in (1, 2, 20):
        problem = cf.Problem(net, cf.CrossEntropy(), (x, y), (x[:queries], y[:queries]))
        (scores,) = (s for s in cf.plan(problem, cf.KFAC()).stages if s.name == "scores")
        shared = min(queries * 6 * 20, 6 * 20 + queries * 20)
        assert scores.operations == 2 * 30 * (shared + queries * 72)


def test_a_lookup_is_rotated_on_one_side() -> None:
    """Its inputs, 50 words, have no basis to be rotated to."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(24, 3, bias=False))
    x, y = torch.randint(50, (30, 6)), torch.randint(3, (30,))
    problem = cf.Problem(net, cf.CrossEntropy(), (x, y), (x[:2], y[:2]))
    (solved,) = (s for s in cf.plan(problem, cf.KFAC()).stages if s.name == "solutions")
    words, head = 2.0 * 2 * 4 * 50 * 4, 2.0 * 2 * 3 * 24 * (3 + 24)
    forth = (2.0 * 30 * 6 * 4 * 4, 2.0 * 30 * (9 + 24**2))
    assert solved.operations == words + min(words, forth[0]) + head + min(head, forth[1])
