"""The study command from end to end, on a small setting; every bad request before any work."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace as evolve
from typer.testing import CliRunner

import curvfluence as cf
from curvfluence.cli import app, main
from curvfluence.fidelity import SubsetTruth, Sweep, intervals, spearman
from curvfluence.report import with_report
from curvfluence.study import GRID, LADDER, StudySpec, load, read_study, run_study
from curvfluence.study.asked import prepared
from curvfluence.study.at_model import measured_needs
from curvfluence.study.climb import influence_problems
from curvfluence.study.problems import require_disjoint
from curvfluence.study.retrain import draw_subsets
from curvfluence.study.variant import Variant
from curvfluence.truth import Run, train, train_one
from tests.results_file import cross_fitted, spearman_rows, written

pytestmark = pytest.mark.xdist_group("study")  # its fixtures are made once

SMALL = {"subsets": 6, "models": 3, "replicates": 200, "dampings": GRID[::4]}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("runs") / "small"
    return written(with_report(run_study(StudySpec("wine", **SMALL), out), figures=False)), out


class TestHoles:
    """A λ at which a rung cannot be inverted is a hole in its sweep, and not the study's end."""

    BASE = StudySpec(
        "wine",
        subsets=4,
        models=2,
        replicates=200,
        dampings=(1e-12, 1e-2, 1e-1),
        rungs=("GGN", "EKFAC", "KFAC", "Diagonal"),
        variant=Variant(weight_decay=0.0),
        bregman=False,
    )

    @pytest.fixture(scope="class")
    def holed(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
        out = tmp_path_factory.mktemp("runs") / "holed"
        study = with_report(run_study(self.BASE, out))
        return written(study), (out / "report.html").read_text()

    def test_it_is_named_and_the_rest_is_there(self, holed: tuple[dict, str]) -> None:
        results, page = holed
        rungs = {rung["name"]: rung for rung in results["rungs"]}
        for name in ("GGN", "EKFAC", "KFAC"):
            (hole,) = rungs[name]["holes"]
            assert hole["damping"] == 1e-12
            assert hole["reason"].startswith(f"model 0: {name}, block ")
            assert [point["damping"] for point in rungs[name]["sweep"]] == [1e-2, 1e-1]
            assert set(rungs[name]["dampings"]) <= {1e-2, 1e-1}
        assert rungs["Diagonal"]["holes"] == []
        assert len(rungs["Diagonal"]["sweep"]) == 3
        text = html.unescape(page)
        assert "At λ = 10⁻¹² there is no inverse of GGN, EKFAC and KFAC" in text
        assert "(model 0: GGN, block " in text
        assert "At the smallest λ with an inverse, the error of scores is largest" in text
        assert "seed 0 · weight decay 0" in text

    def test_numbers_are_those_of_a_study_without_it(
        self, holed: tuple[dict, str], tmp_path: Path
    ) -> None:
        """Twice the same study, with and without the λ that is a hole."""
        results, _ = holed
        spec = replace(self.BASE, dampings=(1e-2, 1e-1))
        other = written(run_study(spec, tmp_path / "whole"))
        for a, b in zip(results["rungs"], other["rungs"], strict=True):
            if a["holes"]:
                for key in ("lds", "interval", "sweep", "dampings", "damping_on_edge"):
                    assert a[key] == b[key], key
        for a, b in zip(
            results["decompositions"][0]["steps"],
            other["decompositions"][0]["steps"],
            strict=True,
        ):
            assert a["score_error"] == [None, *b["score_error"]]
            assert a["inverse_error"] == [None, *b["inverse_error"]]

    def test_a_grid_of_holes_is_refused(self, tmp_path: Path) -> None:
        spec = replace(self.BASE, rungs=("EKFAC",), dampings=(1e-14, 1e-12), hybrids=False)
        with pytest.raises(cf.errors.SingularError, match=r"EKFAC cannot be .* any damping"):
            run_study(spec, tmp_path / "none")


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
        problem = load("wine")
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
        again = run_study(StudySpec("wine", **SMALL), tmp_path / "again")
        assert not again.reused
        for mine, theirs in zip(written(again)["rungs"], results["rungs"], strict=True):
            assert mine["lds"] == theirs["lds"]
            assert mine["interval"] == theirs["interval"]
        # all numbers of both, whatever either took
        assert written(again)["digest"] == results["digest"]
        assert len(results["digest"]) == 64
        assert written(again)["study_seconds"] != results["study_seconds"]
        assert run_study(StudySpec("wine", **SMALL), out).reused
        assert not list(out.glob("*.tmp"))

    def test_another_seed_is_another_truth(self, small: tuple[dict, Path], tmp_path: Path) -> None:
        spec = StudySpec("wine", seed=1, rungs=("Identity",), **SMALL)
        other = written(run_study(spec, tmp_path / "seed"))
        assert other["rungs"][0]["lds"] != small[0]["rungs"][-1]["lds"]
        assert other["digest"] != small[0]["digest"]

    def test_the_digest_sees_a_number_and_not_a_time(self, small: tuple[dict, Path]) -> None:
        results = read_study(small[1]).results
        rung = results.rungs[0]
        for change, same in (
            (evolve(results, study_seconds=1.0), True),
            (evolve(results, rungs=(evolve(rung, fit_seconds=9.0), *results.rungs[1:])), True),
            (
                evolve(results, rungs=(evolve(rung, lds=rung.lds + 1e-15), *results.rungs[1:])),
                False,
            ),
            (evolve(results, truth=evolve(results.truth, notes=("another",))), False),
        ):
            assert (change.sealed().digest == small[0]["digest"]) == same

    def test_one_model_and_one_order(self, tmp_path: Path) -> None:
        """No other initialisation, no repeat: named as missing, not made up."""
        spec = StudySpec("wine", subsets=5, models=1, orders=1, rungs=("KFAC",), replicates=200)
        results = written(run_study(spec, tmp_path / "one"))
        assert results["rungs"][0]["lds_independent"] is None
        assert results["truth"]["noise_ceiling"] == {"matched": None, "independent": None}
        assert len(results["truth"]["notes"]) == 2


def test_one_net_by_its_depth_width_and_epochs(tmp_path: Path) -> None:
    """The options make the variant that a sweep's cell is, and the output names it."""
    out = tmp_path / "one"
    options = ["--depth", "2", "--width", "5", "--epochs", "3", "--rungs", "KFAC,Identity"]
    small = ["--subsets", "4", "--models", "2", "--no-bregman", "--no-progress"]
    done = CliRunner().invoke(app, ["study", "wine", *options, *small, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "wine (depth 2, width 5, epochs 3): 142 training examples" in done.output
    results = read_study(out).results
    assert results.spec.variant == {"depth": 2, "width": 5, "epochs": 3}
    assert sum(block.count for block in results.rungs[0].coverage) == 14 * 5 + 6 * 5 + 6 * 3
    assert (
        "protocol clean · seed 0 · depth 2, width 5, epochs 3" in (out / "report.html").read_text()
    )
    refused = CliRunner().invoke(app, ["study", "wine", "--depth", "0", "--out", str(out)])
    assert refused.exit_code != 0
    assert "depth must be at least 1" in refused.output + str(refused.exception)


class TestPoliteness:
    def test_rng_and_threads_are_left_as_found(self, tmp_path: Path) -> None:
        rng, numpy_rng = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        threads = torch.get_num_threads()
        spec = StudySpec("wine", subsets=4, models=2, rungs=("Identity",), replicates=200)
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
            cf.errors.InputError, match=r"holds another study \(problem wine, seed 0"
        ):
            run_study(StudySpec("wine", seed=5, **SMALL), out)
        assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def test_a_folder_with_anything_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(cf.errors.InputError, match="no study"):
            run_study(StudySpec("wine", **SMALL), tmp_path)
        file = tmp_path / "thesis.tex"
        with pytest.raises(cf.errors.InputError, match="is a file"):
            run_study(StudySpec("wine", **SMALL), file)
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_damaged_folder(self, tmp_path: Path) -> None:
        (tmp_path / "study.json").write_text("{")
        with pytest.raises(cf.errors.InputError, match="not readable"):
            run_study(StudySpec("wine", **SMALL), tmp_path)

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
    problem = load("wine")
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
        arguments = ["study", "wine", "--subsets", "5", "--models", "2", "--rungs", "GGN,EKFAC"]
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
        spec = StudySpec("wine", **SMALL)
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
        spec = StudySpec("wine", **SMALL)
        problem = prepared(load("wine"), spec.plan, torch.float32)
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
        assert rungs["Hessian"]["flops"]["fit"] > 9 * 275**3  # the eigendecomposition
        assert rungs["GGN"]["flops"]["score"] > 275**3 / 3  # the Cholesky factor
        assert rungs["Hessian"]["fit_seconds"] > rungs["Diagonal"]["fit_seconds"]
        for rung in rungs.values():
            assert rung["fit_seconds"] != rung["score_seconds"]
            assert rung["peak_bytes"] is None or rung["peak_bytes"] > 0

    def test_costs_of_a_larger_net(self) -> None:
        """Of P = 1,482, where memory is more than what an allocator keeps."""
        problem = prepared(load("digits"), StudySpec("digits", 3).plan, torch.float32)
        recipe = replace(problem.recipe, epochs=1)
        trained = train(recipe, problem.train, [Run(0, 0)])
        at = influence_problems(replace(problem, recipe=recipe), trained)[0]
        of_fit, _ = measured_needs(cf.Hessian(), at, cf.Absolute(1e-2))
        _, of_scores = measured_needs(cf.GGN(cf.inversion.Matrix()), at, cf.Absolute(1e-2))
        assert of_fit.flops > 9 * 1482**3
        assert of_scores.flops > 1482**3 / 3
        assert of_fit.peak_bytes is None or of_fit.peak_bytes > 3 * 4 * 1482**2

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
        assert spectra["GGN"]["ranks"][-1] == 275
        layers = {pair["b"]: pair["blocks"] for pair in results["overlap"]["pairs"]}
        assert not layers["GGN"]
        assert not layers["BlockGGN"]
        assert [b["name"] for b in layers["EKFAC"]] == [b["name"] for b in layers["KFAC"]]
        for pair in results["overlap"]["pairs"]:
            for shared in (pair["overlap"], *(block["overlap"] for block in pair["blocks"])):
                assert all(0 <= value <= 1 + 1e-6 for value in shared)
        # EK-FAC and K-FAC have the same eigenvectors, in another order at most
        assert all(block["overlap"][-1] > 0.5 for block in layers["KFAC"])
