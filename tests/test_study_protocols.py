"""Seeds, protocols and variants of a study."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import curvfluence as cf
from curvfluence.forecast import Plan
from curvfluence.report.study.sections import missing
from curvfluence.runtime.stage import Stage
from curvfluence.study import StudySpec, load, protocols, run_study
from curvfluence.study import climb as climb_module
from curvfluence.study.asked import prepared
from curvfluence.study.climb import influence_problems
from curvfluence.study.progress import silent
from curvfluence.study.results import Results
from curvfluence.study.retrain import draw_subsets, influence_runs, source_of, train_models
from curvfluence.study.variant import Variant
from curvfluence.truth.bank import Bank
from tests.results_file import written


class TestSeeds:
    PURPOSES = (
        "initialisation", "order", "order of the influence models", "subsets", "query halves",
        "bootstrap", "splits", "Fisher",
    )  # fmt: skip

    def test_purposes_and_studies_share_no_stream(self) -> None:
        drawn = [
            seed
            for study in (0, 1)
            for purpose in self.PURPOSES
            for seed in StudySpec("digits", 60, seed=study).seeds(purpose, 16)
        ]
        assert len(set(drawn)) == len(drawn)

    def test_every_model_has_orders_of_its_own(self) -> None:
        spec = StudySpec("digits", subsets=4, models=3)
        runs = influence_runs(spec, load("digits"))
        assert len({run.order_seed for run in runs}) == 3
        assert not {run.order_seed for run in runs} & set(spec.seeds("order", 6))


class TestProtocols:
    def test_paper(self, tmp_path: Path) -> None:
        """One-sample factors, bias apart, factored damping, no decay; EK-FAC's eigenvalues both
        sampled and exact, and the expected number of surprising labels stated."""
        spec = StudySpec(
            "wine",
            subsets=4,
            models=2,
            replicates=200,
            dampings=(1e-3, 1e-1),
            protocol="paper",
            variant=Variant(epochs=5),
        )
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", cf.errors.CurvfluenceWarning
            )  # of few surprising labels
            results = written(run_study(spec, tmp_path / "paper"))
        rungs = {rung["name"]: rung for rung in results["rungs"]}
        assert list(rungs) == list(spec.plan.rungs(0))
        assert results["recipe"]["weight_decay"] == 0
        assert "Cosine" in str(results["recipe"]["schedule"])
        assert rungs["KFAC"]["fisher"] == rungs["EKFAC"]["fisher"] == "mc(1)"
        assert "factored" in rungs["KFAC"]["coverage"][0]["rule"]
        assert rungs["KFAC"]["coverage"][1]["parameters"] == ["0.bias"]
        assert rungs["Hessian"]["full_name"] == "Hessian(truncate(1e-06))"
        assert any("surprising labels expected" in note for note in rungs["KFAC"]["notes"])
        steps = {(s["from"], s["to"]): s["share"] for s in results["decomposition"]["steps"]}
        chain = spec.plan.chains[0].steps
        assert sum(steps[step] for step in chain) == pytest.approx(1.0)
        assert steps["EKFAC", "KFAC"] is None

    def test_further_fisher_types_stand_beside(self, tmp_path: Path) -> None:
        spec = StudySpec(
            "wine", subsets=4, models=2, replicates=200, dampings=(1e-2,), fishers=("mc1",)
        )
        with pytest.warns(cf.errors.CurvfluenceWarning):
            results = written(run_study(spec, tmp_path / "fishers"))
        assert [part["fisher"] for part in results["decompositions"]] == ["type2", "mc1"]
        for part in results["decompositions"]:
            shares = [s["share"] for s in part["steps"] if s["share"] is not None]
            assert sum(shares) == pytest.approx(1.0)

    def test_unknown(self) -> None:
        with pytest.raises(cf.errors.InputError, match="no protocol"):
            StudySpec("digits", 4, protocol="dirty")
        with pytest.raises(cf.errors.InputError, match="no Fisher type"):
            StudySpec("digits", 4, fishers=("mc(x)",)).plan.rungs(0)

    def test_decoupled_decay_reaches_the_problems(self, tmp_path: Path) -> None:
        spec = StudySpec("wine", subsets=4, models=1)
        problem = prepared(load("wine"), spec.plan, torch.float32)
        recipe = replace(problem.recipe, optimizer=cf.truth.adamw(0.01), epochs=1)
        problem = replace(problem, recipe=recipe)
        bank = Bank(tmp_path, source_of(problem, spec))
        bank.claim()
        trained = train_models(spec, problem, bank, silent).trained
        assert all(at.decoupled_decay for at in influence_problems(problem, trained))


class TestVariants:
    def test_apply(self) -> None:
        problem = load("digits")
        changed = Variant(depth=3, width=8, epochs=2, weight_decay=0.1, label_noise=0.2)
        found = changed.apply(problem)
        sizes = [m.weight.shape for m in found.recipe.build(0) if hasattr(m, "weight")]
        assert sizes == [(8, 64), (8, 8), (8, 8), (10, 8)]
        assert (found.recipe.epochs, found.recipe.weight_decay) == (2, 0.1)
        differ = (found.train.targets != problem.train.targets).nonzero().flatten()
        assert torch.equal(differ, found.flipped)
        assert len(differ) == round(0.2 * 1617)

    @pytest.mark.parametrize(
        ("variant", "said"),
        [
            ({"depth": 0}, "depth must be at least 1"),
            ({"width": 500}, "parameters"),
            ({"label_noise": 1.0}, "label_noise"),
            ({"weight_decay": -1.0}, "weight_decay"),
        ],
    )
    def test_impossible(self, variant: dict, said: str) -> None:
        with pytest.raises(cf.errors.InputError, match=said):
            Variant(**variant).apply(load("digits"))

    def test_regression_has_no_labels_to_flip(self) -> None:
        with pytest.raises(cf.errors.InputError, match="regression"):
            Variant(label_noise=0.1).apply(load("diabetes"))


@pytest.mark.parametrize(
    ("name", "alpha", "refused"), [("wine", 0.02, False), ("wine", 0.01, True)]
)
def test_a_subset_can_hold_one_of_each_class(
    tmp_path: Path, name: str, alpha: float, refused: bool
) -> None:
    problem = load(name)
    if not refused:
        assert len(draw_subsets(StudySpec(name, 3, alpha=alpha), problem)) == 3
        return
    with pytest.raises(cf.errors.InputError, match="keeps 1 of 142 examples, fewer than the 3"):
        run_study(StudySpec(name, 3, alpha=alpha), tmp_path / "x")
    assert not (tmp_path / "x").exists()


class TestFrontier:
    @pytest.fixture(scope="class")
    @staticmethod
    def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
        spec = StudySpec(
            "wine", 6, models=1, orders=1, dampings=(1e-2, 1e-1), protocol="frontier",
            variant=Variant(epochs=2), bregman=False, costs=False, dtype="float64",
        )  # fmt: skip
        return run_study(spec, tmp_path_factory.mktemp("frontier") / "x", threads=1).results

    def test_forms_of_one_inverse_agree(self, results: Results) -> None:
        rungs = {rung.name: rung for rung in results.rungs}
        assert rungs["GGN(samples)"].lds == pytest.approx(rungs["GGN"].lds, abs=1e-12)
        # its residual is 1e-4: ranks that are nearer than that may change places
        assert rungs["GGN(iterative)"].lds == pytest.approx(rungs["GGN"].lds, abs=5e-3)
        for name in ("EKFAC", "KFAC"):  # no position is shared here
            assert rungs[f"{name}(reduce)"].lds == rungs[name].lds

    def test_each_is_named_apart(self, results: Results) -> None:
        names = [rung.full_name for rung in results.rungs]
        assert len(set(names)) == len(names)
        assert "EKFAC(exact)[mc(1)]" in names
        assert results.refused == {}
        assert all(rung.spectrum is None for rung in results.rungs)

    def test_what_is_too_dear_is_left_out_and_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By its forecast; one that is asked for by name is done whatever that says."""
        given = protocols.PROTOCOLS["frontier"]
        spec = StudySpec(
            "wine", 4, models=1, orders=1, dampings=(1e-2, 1e-1), protocol="frontier",
            variant=Variant(epochs=1), bregman=False, costs=False, hybrids=False,
        )  # fmt: skip
        forecast = climb_module.plan

        def dear(problem: cf.Problem, rung: cf.Rung) -> Plan:
            found = forecast(problem, rung)
            late = Stage("late", 0.0, 0.0, 100.0)
            return replace(found, stages=(late,)) if isinstance(rung, cf.GGN) else found

        monkeypatch.setattr(climb_module, "plan", dear)
        found = run_study(spec, tmp_path / "x").results
        assert list(found.refused) == ["GGN", "GGN(samples)", "GGN(iterative)"]
        assert found.refused["GGN"] == "forecast 100 s, more than 60"
        assert (
            found.refused["GGN(samples)"] == "forecast 100 s at each of 2 λ, more than 60 together"
        )
        assert found.rung("GGN") is None
        assert "GGN (forecast 100 s, more than 60)" in missing(found)
        named = run_study(replace(spec, rungs=("GGN", "KFAC")), tmp_path / "y").results
        assert named.refused == {}
        monkeypatch.setattr(protocols, "PROTOCOLS", {"frontier": replace(given, seconds=-1.0)})
        with pytest.raises(cf.errors.InputError, match="no rung of protocol frontier is within"):
            run_study(spec, tmp_path / "z")
