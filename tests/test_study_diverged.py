"""Retrainings that diverge are counted and named, and the study holds of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import curvfluence as cf
from curvfluence.advising.retrained import retrained
from curvfluence.errors import NonFiniteError
from curvfluence.judging import Beside, Settings
from curvfluence.report.parts.cautions import cautions
from curvfluence.report.questions import notes_of
from curvfluence.study import StudySpec, run_study
from curvfluence.study.problems import load
from curvfluence.study.questions import QuestionSpec, run_questions
from curvfluence.study.questions import run as asking
from curvfluence.study.retrain import draw_subsets
from curvfluence.truth import Trained, grid, random_subsets, sgd, train
from tests.test_truth_training import RECIPE, examples

SPEC = StudySpec("wine", subsets=12, models=2, orders=2, seed=0, replicates=200, rungs=("EKFAC",))
BAD = {(1, 5), (3, 7), (2, 5)}  # (which of the starts, subset)


def poisoned(bad: set[tuple[int, int]]) -> Any:
    """`train`, of which some retrainings end in NaN."""

    def trained(recipe: Any, data: Any, runs: Any, subsets: Any = None, **options: Any) -> Trained:
        found = train(recipe, data, runs, subsets, **options)
        if subsets is not None:
            assert options["keep_diverged"]
            starts = list(dict.fromkeys((run.init_seed, run.order_seed) for run in runs))
            for k, run in enumerate(runs):
                at = starts.index((run.init_seed, run.order_seed)) + seen[0]
                if (at, run.subset) in bad:
                    found.theta["0.weight"][k, 0, 0] = torch.nan
            seen[0] += len(starts)
        return found

    seen = [0]
    return trained


def test_they_are_named_and_the_rest_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_study(SPEC, tmp_path / "whole", threads=1)
    with monkeypatch.context() as patch:
        patch.setattr("curvfluence.study.retrain.train", poisoned(BAD))
        study = run_study(SPEC, tmp_path / "x", bank=tmp_path / "bank", threads=1)
    truth = study.results.truth
    assert truth.subsets == 10
    assert truth.retrainings == 40
    assert {(2 * d.model + d.order, d.subset) for d in truth.diverged} == BAD
    assert "3 retrainings diverged: 2 subsets left out" in " ".join(cautions([study.results]))
    left = [m for m in range(12) if m not in (5, 7)]
    drawn = draw_subsets(SPEC, load("wine")).weights
    np.testing.assert_array_equal(study.array("subsets"), drawn[left].numpy())
    values = study.array("truth")
    assert values is not None
    np.testing.assert_array_equal(values, whole.array("truth")[:, :, left])  # type: ignore[index]
    again = run_study(SPEC, tmp_path / "again", bank=tmp_path / "bank", threads=1)
    assert again.results.truth.diverged == truth.diverged
    assert again.results.rungs[0].lds == study.results.rungs[0].lds


def test_more_than_half_of_the_subsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curvfluence.study.retrain.train", poisoned({(0, m) for m in range(7)}))
    with pytest.raises(NonFiniteError, match=r"7 of 48 retrainings diverged .* on 7 of 12 subsets"):
        run_study(SPEC, tmp_path, threads=1)


def test_whoever_rests_on_the_truth_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge, advice by retraining, and the questions to one ladder."""
    said = "3 retrainings diverged: 2 subsets left out"
    monkeypatch.setattr("curvfluence.study.retrain.train", poisoned(BAD))
    scores = np.random.default_rng(0).normal(size=(2, 36, 142))
    judged = cf.judge(
        scores,
        "wine",
        bank=tmp_path / "bank",
        positive="helps",
        settings=Settings(12, models=2, orders=2),
        beside=Beside(("Identity",), baselines=False),
        threads=1,
    )
    assert any(said in note for note in judged.notes)
    monkeypatch.setattr("curvfluence.study.retrain.train", poisoned({(0, 3)}))
    made = retrained(load("wine"), 12, tmp_path / "advised", threads=1)
    assert "1 retraining diverged: 1 subset left out" in made.notes[0]
    assert made.truth.left_out.shape == (11, 142)
    monkeypatch.setattr("curvfluence.study.retrain.train", poisoned(BAD))
    asks = QuestionSpec(SPEC, (0.5,), left_out=3, queries=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asking._Asker, "_removals", lambda *_: ())
        found = run_questions(asks, tmp_path / "questions", threads=1)
    assert found.questions[0].name == "keep 0.5"
    assert said in found.questions[0].notes[0]
    assert said in notes_of(found)[0]


def test_training_keeps_them_where_asked() -> None:
    recipe = replace(RECIPE, optimizer=sgd(1e30))
    data, subsets = examples(), random_subsets(50, keep=0.5, count=2, seed=0)
    runs = grid([0], [0], 2)
    assert train(recipe, data, runs, subsets, keep_diverged=True).diverged.all()
    assert not train(RECIPE, data, runs, subsets, keep_diverged=True).diverged.any()
    with pytest.raises(NonFiniteError, match="diverged to NaN or infinity in run 0"):
        train(recipe, data, runs, subsets)
