"""The other truth of a study, and what a study leaves out when it is asked to."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import curvfluence as cf
from curvfluence.fidelity import Sweep, intervals
from curvfluence.report import write_report
from curvfluence.report.terminal import show_study
from curvfluence.study import StudySpec, load, run_study
from curvfluence.truth import BregmanResponse, bregman_response
from tests.results_file import cross_fitted, written

pytestmark = pytest.mark.xdist_group("study_bregman")  # its fixtures are made once

TINY = {"subsets": 6, "models": 2, "replicates": 200, "dampings": (1e-3, 1e-2, 1e-1)}


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("bregman") / "wine"
    return written(run_study(StudySpec("wine", **TINY), out)), out


class TestBregman:
    """The other truth of a study, again from the arrays and by the obvious loops."""

    def test_lds_and_interval_from_the_arrays(self, wine: tuple[dict, Path]) -> None:
        results, out = wine
        load_array = lambda name: np.load(out / "arrays" / f"{name}.npy")  # noqa: E731
        change, halves = load_array("bregman"), load_array("query_halves")
        said = results["bregman"]
        assert said["converged"]
        assert load_array("bregman.converged").all()
        assert (said["models"], said["groups"], said["groups_dropped"]) == (2, 6, 0)
        (seed,) = StudySpec("wine", **TINY).seeds("bootstrap", 1)
        for rung in (*results["rungs"], *results["hybrids"]):
            predicted = load_array(f"predicted.{rung['name']}")
            found = cross_fitted(predicted, change, halves)
            assert rung["lds_bregman"] == pytest.approx(found, abs=1e-12)
        rung = next(r for r in results["rungs"] if r["name"] == "EKFAC")
        swept = Sweep(TINY["dampings"], load_array("predicted.EKFAC"))
        crossed = intervals(swept, change, halves, seed=seed, replicates=200).crossed
        assert rung["interval_bregman"] == pytest.approx(list(crossed))

    def test_the_response_is_that_of_the_library(self, wine: tuple[dict, Path]) -> None:
        results, out = wine
        problem = load("wine")
        weights = {
            name: torch.from_numpy(np.load(out / "arrays" / f"weights.{name}.npy")[1])
            for name, _ in problem.recipe.build(0).named_parameters()
        }
        at = cf.Problem(
            problem.recipe.build(0),
            problem.recipe.loss,
            problem.train.to("cpu", torch.float32),
            problem.queries.to("cpu", torch.float32),
            weight_decay=problem.recipe.weight_decay,
            weights=weights,
        )
        ggn = next(r for r in results["rungs"] if r["name"] == "GGN")
        sweep = {row["damping"]: row["lds"] for row in ggn["sweep"]}
        damping = max(ggn["dampings"], key=sweep.__getitem__)
        assert results["bregman"]["damping"] == damping
        left_out = 1 - torch.from_numpy(np.load(out / "arrays" / "subsets.npy")).double()
        found = bregman_response(at, left_out[2:4], damping=damping, epsilon=0.1)
        kept = np.load(out / "arrays" / "bregman.npy")[1, 2:4]
        np.testing.assert_allclose(kept, found.change, rtol=1e-4, atol=1e-9)

    def test_what_does_not_converge_is_left_out_and_counted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*arguments: object, **settings: object) -> BregmanResponse:
            found = bregman_response(*arguments, **settings)  # pyright: ignore[reportArgumentType]
            converged = found.converged.clone()
            converged[4] = False
            return replace(
                found, converged=converged, change=found.change + 9 * ~converged[:, None]
            )

        monkeypatch.setattr("curvfluence.study.response.bregman_response", stop)
        spec = StudySpec("wine", rungs=("GGN", "KFAC"), **TINY)
        results = written(run_study(spec, tmp_path / "x"))
        assert not results["bregman"]["converged"]
        assert (results["bregman"]["groups"], results["bregman"]["groups_dropped"]) == (5, 1)
        arrays = tmp_path / "x" / "arrays"
        kept = [0, 1, 2, 3, 5]
        change = np.load(arrays / "bregman.npy")[:, kept]
        predicted = np.load(arrays / "predicted.KFAC.npy")[:, :, kept]
        found = cross_fitted(predicted, change, np.load(arrays / "query_halves.npy"))
        assert results["rungs"][1]["lds_bregman"] == pytest.approx(found, abs=1e-12)
        monkeypatch.setattr("curvfluence.study.response.GROUPS", 6)
        results = written(run_study(spec, tmp_path / "y"))
        assert results["bregman"] is None
        assert "only 5 of 6 groups converged" in results["bregman_missing"]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"rungs": ("KFAC", "Identity")}, "the GGN, whose damping it takes"),
            ({"bregman": False}, "not asked for"),
        ],
    )
    def test_the_reason_where_there_is_none(
        self, change: dict, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        study = run_study(StudySpec("wine", **TINY, **change), tmp_path / "x")
        write_report(study.path, figures=False)
        results = written(study)
        assert results["bregman"] is None
        assert said in results["bregman_missing"]
        assert all(rung["lds_bregman"] is None for rung in results["rungs"])
        show_study(study, Console(width=200))
        assert said in capsys.readouterr().out
        assert said in (tmp_path / "x" / "report.html").read_text()

    def test_a_large_study_measures_its_first_models(
        self, wine: tuple[dict, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("curvfluence.study.response.WORK", 1.0)
        spec = StudySpec("wine", rungs=("GGN",), **TINY)
        results = written(run_study(spec, tmp_path / "x"))
        assert (results["bregman"]["models"], results["truth"]["models"]) == (1, 2)
        first = np.load(wine[1] / "arrays" / "bregman.npy")[:1]
        assert np.array_equal(np.load(tmp_path / "x" / "arrays" / "bregman.npy"), first)


def test_fewer_queries_and_no_costs(wine: tuple[dict, Path], tmp_path: Path) -> None:
    """The same truth of the first queries; what was not measured is null, seconds are there."""
    spec = StudySpec("wine", queries=10, costs=False, hybrids=False, **TINY)
    results = written(run_study(spec, tmp_path / "x"))
    assert results["truth"]["queries"] == 10
    assert results["hybrids"] == []
    for name in ("truth", "base"):
        mine = np.load(tmp_path / "x" / "arrays" / f"{name}.npy")
        all_queries = np.load(wine[1] / "arrays" / f"{name}.npy")
        np.testing.assert_allclose(mine, all_queries[..., :10], rtol=1e-5)
    for rung in results["rungs"]:
        assert rung["flops"] is rung["peak_bytes"] is None
        assert rung["fit_seconds"] > 0
    with pytest.raises(cf.errors.InputError, match="queries must be at least 2"):
        StudySpec("wine", queries=1, **TINY)


class TestSurprisingLabels:
    def test_counted_at_every_model(self, tmp_path: Path) -> None:
        spec = StudySpec("wine", fishers=("mc(3)",), **TINY)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cf.errors.CurvfluenceWarning)
            results = written(run_study(spec, tmp_path / "x"))
        problem, model = load("wine"), load("wine").recipe.build(0)
        expected: list[float] = []
        for j in range(2):
            weights = {
                name: torch.from_numpy(
                    np.load(tmp_path / "x" / "arrays" / f"weights.{name}.npy")[j]
                )
                for name, _ in model.named_parameters()
            }
            model.load_state_dict(weights)
            with torch.no_grad():
                p = model(problem.train.inputs.float()).double().softmax(1)
            expected.append(float((1 - p.max(1).values).sum()))
        rungs = {rung["name"]: rung["surprising_labels"] for rung in results["rungs"]}
        assert rungs["KFAC[mc(3)]"] == pytest.approx(3 * np.mean(expected), rel=1e-4)
        assert rungs["EKFAC[mc(3)]"] == rungs["KFAC[mc(3)]"]
        assert rungs["KFAC"] is rungs["GGN"] is None
