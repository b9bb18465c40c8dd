"""The study command from end to end, on a small setting; every bad request before any work."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from scipy.stats import spearmanr
from typer.testing import CliRunner

import curvfluence as cf
from curvfluence.cli import app, main
from curvfluence.fidelity import SubsetTruth, Sweep, intervals, spearman
from curvfluence.report import with_report
from curvfluence.report.terminal import show_study
from curvfluence.store import records
from curvfluence.study import GRID, LADDER, Results, StudySpec, load, run_study
from curvfluence.study.cells import batches
from curvfluence.study.climb import climb, influence_problems
from curvfluence.study.problems import require_disjoint
from curvfluence.study.progress import silent
from curvfluence.study.retrain import draw_subsets, influence_runs, train_models
from curvfluence.study.run import prepared, run_together
from curvfluence.study.sweep import cell_folder, run_sweep
from curvfluence.study.variant import Variant
from curvfluence.truth import BregmanResponse, Run, bregman_response, train_one
from tests.results_file import written

SMALL = {"subsets": 6, "models": 3, "replicates": 200, "dampings": GRID[::4]}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("runs") / "small"
    return written(with_report(run_study(StudySpec("digits", **SMALL), out))), out


class TestResults:
    def test_has_every_field_of_the_format(self, small: tuple[dict, Path]) -> None:
        results, out = small
        for key in ("problem", "protocol", "environment", "truth", "rungs", "steps"):
            assert key in results
        assert results["study_seconds"] > 0
        assert results["report_seconds"] > 0
        assert (out / "report.html").stat().st_size < 5_000_000
        truth = results["truth"]
        assert truth["retrainings"] == 6 * 3 * 2
        assert set(truth["noise_ceiling"]) == {"matched", "independent"}
        assert [rung["name"] for rung in results["rungs"]] == list(LADDER)
        for rung in results["rungs"]:
            assert rung["interval"][0] <= rung["lds"] <= rung["interval"][1]
            for key in ("interval_subsets", "interval_queries", "coverage", "dampings"):
                assert rung[key] is not None
            for key in ("lds_independent", "lds_ensemble", "fit_seconds", "score_seconds"):
                assert isinstance(rung[key], float)
            assert len(rung["sweep"]) == (1 if rung["name"] == "Identity" else 4)
        neighbours = [(step["from"], step["to"]) for step in results["steps"]]
        assert neighbours == list(zip(list(LADDER), list(LADDER)[1:], strict=False))
        lds = {rung["name"]: rung["lds"] for rung in results["rungs"]}
        for step in results["steps"]:
            assert step["lds_lost"] == pytest.approx(lds[step["from"]] - lds[step["to"]])

    def test_lds_from_the_arrays_alone(self, small: tuple[dict, Path]) -> None:
        """The reported numbers again, from what was kept on disk and scipy-style ranks."""
        results, out = small
        load_array = lambda name: np.load(out / "arrays" / f"{name}.npy", allow_pickle=False)  # noqa: E731
        left_out = 1.0 - load_array("subsets").astype(float)
        truth = load_array("truth").mean(1)  # [J, m, Q] over the minibatch orders
        for rung in results["rungs"]:
            scores = load_array(f"scores.{rung['name']}").astype(float)
            predicted = np.einsum("jqn,mn->jqm", scores, left_out)
            found = spearman(predicted, truth.transpose(0, 2, 1)).mean()
            assert found == pytest.approx(rung["lds"], abs=2e-3)  # float32 ties in the ranks

    def test_scores_are_influences_at_the_saved_weights(self, small: tuple[dict, Path]) -> None:
        results, out = small
        problem = load("digits")
        model = problem.recipe.build(0)
        rung = next(r for r in results["rungs"] if r["name"] == "EKFAC")
        halves = np.load(out / "arrays" / "query_halves.npy")
        scores = np.load(out / "arrays" / "scores.EKFAC.npy")
        weights = {
            name: torch.from_numpy(np.load(out / "arrays" / f"weights.{name}.npy")[1])
            for name, _ in model.named_parameters()
        }
        at = cf.Problem(
            model,
            problem.recipe.loss,
            problem.train,
            problem.queries,
            weight_decay=3e-3,
            weights=weights,
        )
        for half, damping in zip((halves, ~halves), rung["dampings"], strict=True):
            wanted = cf.influence(at, cf.EKFAC(), damping=cf.Absolute(damping)).values
            np.testing.assert_allclose(
                scores[1][half], wanted[torch.from_numpy(half)], rtol=2e-3, atol=1e-6
            )

    def test_is_reproducible_and_reuses_what_is_finished(
        self, small: tuple[dict, Path], tmp_path: Path
    ) -> None:
        results, out = small
        again = run_study(StudySpec("digits", **SMALL), tmp_path / "again")
        assert not again.reused
        for mine, theirs in zip(written(again)["rungs"], results["rungs"], strict=True):
            assert mine["lds"] == theirs["lds"]
            assert mine["interval"] == theirs["interval"]
        assert run_study(StudySpec("digits", **SMALL), out).reused
        assert not list(out.glob("*.tmp"))

    def test_another_seed_is_another_truth(self, small: tuple[dict, Path], tmp_path: Path) -> None:
        spec = StudySpec("digits", seed=1, rungs=("Identity",), **SMALL)
        other = written(run_study(spec, tmp_path / "seed"))
        assert other["rungs"][0]["lds"] != small[0]["rungs"][-1]["lds"]

    def test_one_model_and_one_order(self, tmp_path: Path) -> None:
        """No other initialisation, no repeat: named as missing, not made up."""
        spec = StudySpec("digits", subsets=5, models=1, orders=1, rungs=("KFAC",), replicates=200)
        results = written(run_study(spec, tmp_path / "one"))
        assert results["rungs"][0]["lds_independent"] is None
        assert results["truth"]["noise_ceiling"] == {"matched": None, "independent": None}
        assert len(results["truth"]["notes"]) == 2


class TestPoliteness:
    def test_rng_and_threads_are_left_as_found(self, tmp_path: Path) -> None:
        rng, numpy_rng = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        threads = torch.get_num_threads()
        spec = StudySpec("digits", subsets=4, models=2, rungs=("Identity",), replicates=200)
        run_study(spec, tmp_path / "polite", threads=1)
        assert torch.equal(rng, torch.get_rng_state())
        assert (numpy_rng == np.random.get_state()[1]).all()  # noqa: NPY002
        assert torch.get_num_threads() == threads


class TestBadRequests:
    """Each ends with exit code 2, says what was seen, and writes nothing."""

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["study", "digitz"], "'digitz'"),
            (["study", "digits", "--rungs", "GGN,KFACC"], "no rung 'KFACC'"),
            (["study", "digits", "--rungs", "GGN,GGN"], "each rung once"),
            (["study", "digits", "--alpha", "1.0"], "alpha"),
            (["study", "digits", "--alpha", "0"], "alpha"),
            (["study", "digits", "--subsets", "2"], "subsets must be at least 3"),
            (["study", "digits", "--models", "0"], "models must be at least 1"),
            (["study", "digits", "--threads", "0"], "threads must be at least 1"),
            (["study", "digits", "--dtype", "float16"], "dtype"),
            (["study", "digits", "--seed", "-1"], "seed must be >= 0"),
            (["study", "digits", "--subset", "9"], "No such option"),
            (["studdy"], "No such command"),
            (["study"], "Missing argument"),
        ],
    )
    def test_exit_with_2(
        self,
        arguments: list[str],
        said: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["curvfluence", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        shown = capsys.readouterr()
        assert said in " ".join(shown.err.replace("│", " ").split())
        assert shown.out == ""
        assert not list(tmp_path.iterdir())

    def test_a_folder_with_another_study_is_left_alone(self, small: tuple[dict, Path]) -> None:
        _, out = small
        before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
        with pytest.raises(
            cf.errors.InputError, match=r"holds another study \(problem digits, seed 0"
        ):
            run_study(StudySpec("digits", seed=5, **SMALL), out)
        assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def test_a_folder_with_anything_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(cf.errors.InputError, match="no study"):
            run_study(StudySpec("digits", **SMALL), tmp_path)
        file = tmp_path / "thesis.tex"
        with pytest.raises(cf.errors.InputError, match="is a file"):
            run_study(StudySpec("digits", **SMALL), file)
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_damaged_folder(self, tmp_path: Path) -> None:
        (tmp_path / "study.json").write_text("{")
        with pytest.raises(cf.errors.InputError, match="not readable"):
            run_study(StudySpec("digits", **SMALL), tmp_path)

    def test_overlapping_train_and_queries(self) -> None:
        rows = torch.arange(12.0).reshape(4, 3)
        with pytest.raises(cf.errors.InputError, match="query 1 is training example 2"):
            require_disjoint(rows, torch.stack([rows[0] + 9.5, rows[2]]))
        require_disjoint(rows, rows + 0.5)


def test_digits_are_split_once_and_standardised() -> None:
    problem = load("digits")
    assert (len(problem.train), len(problem.queries)) == (1617, 180)
    assert torch.equal(problem.train.inputs, load("digits-large").train.inputs)
    mean, std = problem.train.inputs.mean(0), problem.train.inputs.std(0, correction=0)
    assert mean.abs().max() < 1e-12
    assert (((std - 1).abs() < 1e-12) | (std == 0)).all()


def test_best_of_with_a_retrained_truth(small: tuple[dict, Path]) -> None:
    """The damping that `BestOf` picks is the best of the candidates on the validation queries."""
    _, out = small
    subsets = torch.from_numpy(np.load(out / "arrays" / "subsets.npy"))
    truth = torch.from_numpy(np.load(out / "arrays" / "truth.npy")).mean(1)[0]
    problem = load("digits")
    model = problem.recipe.build(0)
    weights = {
        name: torch.from_numpy(np.load(out / "arrays" / f"weights.{name}.npy")[0])
        for name, _ in model.named_parameters()
    }
    at = cf.Problem(
        model, cf.CrossEntropy(), problem.train, problem.queries, weight_decay=3e-3, weights=weights
    )
    judge = SubsetTruth(1 - subsets.double(), truth)
    candidates = (cf.Absolute(1e-3), cf.Absolute(1e-1), cf.Absolute(10.0))
    scores = cf.influence(at, cf.GGN(), damping=cf.BestOf(candidates, truth=judge))
    by_hand = {
        c: judge.judge(cf.influence(at, cf.GGN(), damping=c).for_group(judge.left_out.float()).T)[0]
        for c in candidates
    }
    assert scores.damping == max(by_hand, key=by_hand.__getitem__)
    assert any("held-out" in note for note in scores.notes)
    with pytest.raises(cf.errors.InputError, match="at least 3 groups"):
        SubsetTruth(judge.left_out[:2], truth[:2])


class TestCommand:
    def test_runs_and_prints(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "run"
        arguments = ["study", "digits", "--subsets", "5", "--models", "2", "--rungs", "GGN,EKFAC"]
        shown = CliRunner().invoke(app, [*arguments, "--out", str(out)])
        assert shown.exit_code == 0, shown.output
        results = json.loads((out / "results.json").read_text())
        for rung in results["rungs"]:
            assert f"{rung['lds']:.3f}" in shown.stdout
        assert "GGN → EKFAC" in shown.stdout
        assert "Noise ceiling" in shown.stdout
        again = CliRunner().invoke(app, [*arguments, "--out", str(out)])
        assert "already in" in again.stdout

    def test_help_and_version(self) -> None:
        shown = CliRunner().invoke(app, ["study", "--help"])
        for option in ("--seed", "--out", "--subsets", "--models", "--alpha", "--rungs"):
            assert option in shown.stdout
        assert cf.__version__ in CliRunner().invoke(app, ["--version"]).stdout


def spearman_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlation of the rows of two [Q, m] arrays, one at a time by scipy."""
    return np.array([spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])


def cross_fitted(predicted: np.ndarray, truth: np.ndarray, halves: np.ndarray) -> float:
    """LDS of predictions [D, J, m, Q] on truth [J, m, Q], each half at the other's best damping."""
    table = np.array(
        [
            [spearman_rows(p.T, t.T) for p, t in zip(row, truth, strict=True)]
            for row in predicted.transpose(0, 1, 2, 3)
        ]
    )  # [D, J, Q]
    means = {True: table[:, :, ~halves].mean((1, 2)), False: table[:, :, halves].mean((1, 2))}
    # of tied dampings the smallest: few subsets tie often
    best = {half: (mean >= mean.max() - 1e-12).argmax() for half, mean in means.items()}
    chosen = np.where(halves, table[best[True]], table[best[False]])
    return float(chosen.mean())


class TestNumbers:
    """Everything that is said of the truth, again from the arrays and by the obvious loops."""

    @pytest.fixture
    def arrays(self, small: tuple[dict, Path]) -> dict[str, np.ndarray]:
        _, out = small
        return {
            path.stem: np.load(path, allow_pickle=False) for path in (out / "arrays").glob("*.npy")
        }

    def test_independent_and_ensemble(
        self, small: tuple[dict, Path], arrays: dict[str, np.ndarray]
    ) -> None:
        results, _ = small
        truth, halves = arrays["truth"], arrays["query_halves"]
        by_init = truth.mean(1)
        others = np.stack([np.delete(by_init, j, axis=0).mean(0) for j in range(len(by_init))])
        for rung in results["rungs"]:
            predicted = arrays[f"predicted.{rung['name']}"]
            found = cross_fitted(predicted, by_init, halves)
            assert rung["lds"] == pytest.approx(found, abs=1e-12)
            found = cross_fitted(predicted, others, halves)
            assert rung["lds_independent"] == pytest.approx(found, abs=1e-12)
            ensemble = predicted.mean(1, keepdims=True)
            found = cross_fitted(ensemble, by_init.mean(0, keepdims=True), halves)
            assert rung["lds_ensemble"] == pytest.approx(found, abs=1e-12)

    def test_noise_ceilings(self, small: tuple[dict, Path], arrays: dict[str, np.ndarray]) -> None:
        """Matched: the two orders of one initialisation. Independent: pairs of initialisations,
        stepped up from one to the two others that a model is measured against."""
        ceiling = small[0]["truth"]["noise_ceiling"]
        truth = arrays["truth"]
        half = np.mean([spearman_rows(t[0].T, t[1].T).mean() for t in truth])
        assert ceiling["matched"] == pytest.approx(2 * half / (1 + half), abs=1e-9)
        by_init = truth.mean(1)
        pairs = [(1, 2), (0, 2), (0, 1)]
        half = np.mean([spearman_rows(by_init[a].T, by_init[b].T).mean() for a, b in pairs])
        assert ceiling["independent"] == pytest.approx(2 * half / (1 + half), abs=1e-9)
        assert small[0]["truth"]["best_lds"]["matched"] == pytest.approx(ceiling["matched"] ** 0.5)

    def test_intervals_are_those_of_their_axes(
        self, small: tuple[dict, Path], arrays: dict[str, np.ndarray]
    ) -> None:
        results, _ = small
        spec = StudySpec("digits", **SMALL)
        (seed,) = spec.seeds("bootstrap", 1)
        rung = next(r for r in results["rungs"] if r["name"] == "GGN")
        swept = Sweep(spec.dampings, arrays["predicted.GGN"])
        found = intervals(
            swept, arrays["truth"].mean(1), arrays["query_halves"], seed=seed, replicates=200
        )
        assert rung["interval"] == pytest.approx(list(found.crossed))
        assert rung["interval_subsets"] == pytest.approx(list(found.subsets))
        assert rung["interval_queries"] == pytest.approx(list(found.queries))

    def test_one_retraining_again(
        self, small: tuple[dict, Path], arrays: dict[str, np.ndarray]
    ) -> None:
        """Cell [1, 1, 2] of the truth by the plain sequential trainer, from the spec's seeds."""
        spec = StudySpec("digits", **SMALL)
        problem = prepared(load("digits"), spec.plan, torch.float32)
        init = spec.seeds("initialisation", 3)[1]
        order = spec.seeds("order", 6)[3]
        subsets = draw_subsets(spec, problem)
        assert np.array_equal(arrays["subsets"], subsets.weights.numpy())
        model = problem.recipe.build(init)
        trained = train_one(problem.recipe, problem.train, Run(init, order, 2), subsets)
        model.load_state_dict(trained.theta)
        with torch.no_grad():
            losses = problem.recipe.loss.values(
                model(problem.queries.inputs).double(), problem.queries.targets
            )
        np.testing.assert_allclose(arrays["truth"][1, 1, 2], losses, rtol=5e-2, atol=1e-3)
        other = arrays["truth"][0, 1, 2]
        assert np.abs(other - losses.numpy()).max() > 0.1  # another initialisation is far away

    def test_change_is_measured_from_the_influence_model(
        self, small: tuple[dict, Path], arrays: dict[str, np.ndarray]
    ) -> None:
        results, _ = small
        rung = next(r for r in results["rungs"] if r["name"] == "GGN")
        grid = list(SMALL["dampings"])
        at = [arrays["predicted.GGN"][grid.index(d)] for d in rung["dampings"]]
        predicted = np.where(arrays["query_halves"], at[0], at[1])
        true = arrays["truth"].mean(1) - arrays["base"][:, None]
        slope, intercept = np.polyfit(predicted.ravel(), true.ravel(), 1)
        assert rung["calibration"]["slope"] == pytest.approx(slope, rel=1e-6)
        assert rung["calibration"]["intercept"] == pytest.approx(intercept, rel=1e-5)

    def test_costs(self, small: tuple[dict, Path]) -> None:
        rungs = {rung["name"]: rung for rung in small[0]["rungs"]}
        assert rungs["Hessian"]["flops"]["fit"] > 9 * 1482**3  # the eigendecomposition
        assert rungs["GGN"]["flops"]["score"] > 1482**3 / 3  # the Cholesky factor
        assert rungs["Hessian"]["fit_seconds"] > rungs["Diagonal"]["fit_seconds"]
        for rung in rungs.values():
            assert rung["fit_seconds"] != rung["score_seconds"]
            assert rung["peak_bytes"] is None or rung["peak_bytes"] > 0
        if rungs["Hessian"]["peak_bytes"] is not None:
            assert rungs["Hessian"]["peak_bytes"] > 3 * 4 * 1482**2

    def test_decomposition(self, small: tuple[dict, Path]) -> None:
        results, _ = small
        steps = {(s["from"], s["to"]): s for s in results["decomposition"]["steps"]}
        chain = [("GGN", "BlockGGN"), ("BlockGGN", "EKFAC"), ("EKFAC", "KFAC")]
        for key in ("share", "norm_share"):
            assert sum(steps[step][key] for step in chain) == pytest.approx(1.0)
        assert steps["Hessian", "GGN"]["share"] is None
        lds = {rung["name"]: rung["lds"] for rung in results["rungs"]}
        total = lds["GGN"] - lds["KFAC"]
        for a, b in chain:
            if steps[a, b]["lds_share"] is not None:
                assert steps[a, b]["lds_share"] == pytest.approx((lds[a] - lds[b]) / total)

    def test_hybrids_and_spectra(self, small: tuple[dict, Path]) -> None:
        results, _ = small
        assert len(results["hybrids"]) == 3
        spectra = {r["name"]: r["spectrum"] for r in (*results["rungs"], *results["hybrids"])}
        block = spectra["BlockGGN"]["eigenvalues"]
        assert spectra["eigenvalues of BlockGGN on KFAC"]["eigenvalues"] == pytest.approx(
            block, rel=1e-3, abs=1e-6
        )
        assert spectra["Hessian"]["negative"]["count"] > 0
        assert spectra["GGN"]["ranks"][-1] == 1482
        for pair in results["overlap"]["pairs"]:
            assert all(0 <= value <= 1 + 1e-6 for value in pair["overlap"])


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
        study = with_report(run_study(StudySpec("wine", **TINY, **change), tmp_path / "x"))
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
            "digits",
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

    def test_decoupled_decay_reaches_the_problems(self) -> None:
        spec = StudySpec("wine", subsets=4, models=1)
        problem = prepared(load("wine"), spec.plan, torch.float32)
        recipe = replace(problem.recipe, optimizer=cf.truth.adamw(0.01), epochs=1)
        problem = replace(problem, recipe=recipe)
        trained = train_models(spec, problem, silent).trained
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


def timeless(results: Results) -> object:
    """Results less what a clock or the system says."""
    measured = {"fit_seconds", "score_seconds", "peak_bytes", "pareto", "seconds"}
    drop = measured | {"study_seconds", "report_seconds", "threads"}

    def clean(value: object) -> object:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items() if k not in drop}
        return [clean(v) for v in value] if isinstance(value, list | tuple) else value

    return clean(msgspec.to_builtins(results))


class TestSweep:
    BASE = StudySpec("wine", subsets=4, models=2, replicates=200, dampings=(1e-3, 1e-1))

    def test_table(self, tmp_path: Path) -> None:
        axes = {"depth": [1, 2], "epochs": [2]}
        base = replace(self.BASE, fishers=("empirical",))
        found = run_sweep(base, axes, tmp_path, jobs=1)
        table = pq.read_table(tmp_path / "table.parquet").to_pylist()
        assert {row["depth"] for row in table} == {1, 2}
        ladder = [row["rung"] for row in table if row["depth"] == 1 and row["kind"] == "rung"]
        assert ladder == list(base.plan.rungs(0))
        for swept in found.studies:
            spec = replace(base, variant=Variant(**swept.cell))
            own = run_study(spec, tmp_path / f"own{swept.cell['depth']}")
            assert [r.lds for r in own.results.rungs] == [r.lds for r in swept.results.rungs]
        steps = pq.read_table(tmp_path / "steps.parquet").to_pylist()
        assert {row["fisher"] for row in steps} == {"type2", "empirical"}

    def test_cells_of_other_alphas_share_models_and_ladder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The climb runs once for all alphas, and every number is that of a study alone."""
        climbs: list[float] = []

        def counted(spec: StudySpec, *arguments: object) -> object:
            climbs.append(spec.alpha)
            return climb(spec, *arguments)  # pyright: ignore[reportArgumentType]

        monkeypatch.setattr("curvfluence.study.run.climb", counted)
        axes = {"alpha": [0.5, 0.7, 0.9]}
        found = run_sweep(self.BASE, axes, tmp_path / "sweep", jobs=1)
        assert climbs == [0.5]
        for swept in found.studies:
            cell = swept.cell
            own = run_study(replace(self.BASE, **cell), tmp_path / f"{cell}")
            assert timeless(own.results) == timeless(swept.results)
            folder = cell_folder(tmp_path / "sweep", replace(self.BASE, **cell))
            for path in (own.path / "arrays").iterdir():
                assert path.read_bytes() == (folder / "arrays" / path.name).read_bytes(), path.name

    def test_goes_on_where_it_stopped(self, tmp_path: Path) -> None:
        """Cells that are there already are read back, in batches with others too."""
        axes = {"alpha": [0.5, 0.7]}
        first = run_sweep(self.BASE, {"alpha": [0.7]}, tmp_path, jobs=1).studies[0].results
        time_of = next(tmp_path.glob("cells/*/results.json")).stat().st_mtime_ns
        found = run_sweep(self.BASE, axes, tmp_path, jobs=2)
        assert found.studies[1].results == first
        folder = cell_folder(tmp_path, replace(self.BASE, alpha=0.7))
        assert (folder / "results.json").stat().st_mtime_ns == time_of
        again = run_sweep(self.BASE, axes, tmp_path, jobs=2)
        assert [one.results for one in again.studies] == [one.results for one in found.studies]

    def test_batches_leave_no_process_idle(self) -> None:
        alphas = [replace(self.BASE, alpha=alpha) for alpha in (0.5, 0.6, 0.7)]
        assert batches(alphas, 1) == [(0, 1, 2)]
        assert batches(alphas, 2) == [(0, 2), (1,)]
        other = [replace(spec, seed=1) for spec in alphas]
        assert batches([*alphas, *other], 2) == [(0, 1, 2), (3, 4, 5)]
        assert sorted(batches([*alphas, *other], 4)) == [(0, 2), (1,), (3, 5), (4,)]

    def test_only_alpha_is_shared(self, tmp_path: Path) -> None:
        specs = [self.BASE, replace(self.BASE, seed=1)]
        with pytest.raises(cf.errors.InputError, match="alpha alone"):
            run_together(specs, [tmp_path / "a", tmp_path / "b"])

    @pytest.mark.parametrize(
        ("axes", "said"),
        [
            ({"depht": [1]}, "no axis 'depht'"),
            ({"depth": []}, "different values"),
            ({"depth": [1, 1]}, "different values"),
            ({"depth": [1], "width": [16, 4000]}, "impossible cell.*4000"),
            ({"alpha": [0.5, 1.5]}, "impossible cell"),
        ],
    )
    def test_refused_before_anything_runs(self, axes: dict, said: str, tmp_path: Path) -> None:
        with pytest.raises(cf.errors.InputError, match=said):
            run_sweep(self.BASE, axes, tmp_path / "sweep")
        assert not (tmp_path / "sweep").exists()


class Numbers(records.Record, frozen=True):
    a: tuple[float | dict[str, float], ...]


def test_a_number_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(cf.errors.NonFiniteError, match=r"x.json would hold a\[1\].b = nan"):
        records.write(tmp_path / "x.json", Numbers((1.0, {"b": float("nan")})))
    assert not list(tmp_path.iterdir())
