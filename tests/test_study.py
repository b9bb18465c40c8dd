"""The study command from end to end, on a small setting; every bad request before any work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import curvfluence as cf
from curvfluence.cli import app, main
from curvfluence.fidelity import SubsetTruth, spearman
from curvfluence.study import GRID, LADDER, StudySpec, load, run_study
from curvfluence.study.problems import require_disjoint

SMALL = {"subsets": 6, "models": 3, "replicates": 200, "dampings": GRID[::4]}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("runs") / "small"
    done = run_study(StudySpec("digits", **SMALL), out)
    return done.results, out


class TestResults:
    def test_has_every_field_of_the_format(self, small: tuple[dict, Path]) -> None:
        results, out = small
        assert json.loads((out / "results.json").read_text()) == results
        for key in ("problem", "protocol", "environment", "truth", "rungs", "steps"):
            assert key in results
        assert results["study_seconds"] > 0
        assert results["report_seconds"] is None
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
        for mine, theirs in zip(again.results["rungs"], results["rungs"], strict=True):
            assert mine["lds"] == theirs["lds"]
            assert mine["interval"] == theirs["interval"]
        assert run_study(StudySpec("digits", **SMALL), out).reused
        assert not list(out.glob("*.tmp"))

    def test_another_seed_is_another_truth(self, small: tuple[dict, Path], tmp_path: Path) -> None:
        spec = StudySpec("digits", seed=1, rungs=("Identity",), **SMALL)
        other = run_study(spec, tmp_path / "seed").results
        assert other["rungs"][0]["lds"] != small[0]["rungs"][-1]["lds"]

    def test_one_model_and_one_order(self, tmp_path: Path) -> None:
        """No other initialisation, no repeat: named as missing, not made up."""
        spec = StudySpec("digits", subsets=5, models=1, orders=1, rungs=("KFAC",), replicates=200)
        results = run_study(spec, tmp_path / "one").results
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
            (["study", "digitz"], "no problem 'digitz'; built in are digits, digits-large"),
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
        with pytest.raises(cf.InputError, match=r"holds another study \(problem digits, seed 0"):
            run_study(StudySpec("digits", seed=5, **SMALL), out)
        assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def test_a_folder_with_anything_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(cf.InputError, match="no study"):
            run_study(StudySpec("digits", **SMALL), tmp_path)
        file = tmp_path / "thesis.tex"
        with pytest.raises(cf.InputError, match="is a file"):
            run_study(StudySpec("digits", **SMALL), file)
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_damaged_folder(self, tmp_path: Path) -> None:
        (tmp_path / "study.json").write_text("{")
        with pytest.raises(cf.InputError, match="not readable"):
            run_study(StudySpec("digits", **SMALL), tmp_path)

    def test_overlapping_train_and_queries(self) -> None:
        rows = torch.arange(12.0).reshape(4, 3)
        with pytest.raises(cf.InputError, match="query 1 is training example 2"):
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
    with pytest.raises(cf.InputError, match="at least 3 groups"):
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
