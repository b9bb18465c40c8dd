"""A ladder interrupted within one model goes on from its last kept work, to the last bit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curvfluence.errors import InputError
from curvfluence.fidelity import bootstrap
from curvfluence.jacobian import gradients
from curvfluence.judging import Beside, Judgement, Settings, judge
from curvfluence.runtime import budget, journal
from curvfluence.runtime.journal import SPENT
from curvfluence.store.steps import STEPS, Steps
from curvfluence.study import StudySpec, at_model, climb, run_study
from curvfluence.study.questions import QuestionSpec, run_questions
from curvfluence.study.study import Study
from curvfluence.study.variant import Variant
from curvfluence.truth import proximal

SHORT = Variant(epochs=3)
STAGES = {
    "works of model": "climb",
    "comparison": "compare",
    "response": "bregman",
    "bounds of": "bounds",
}
CLEAN = StudySpec("wine", 4, 1, models=2, orders=1, variant=SHORT, replicates=200)

pytestmark = pytest.mark.filterwarnings("ignore::curvfluence.errors.CurvfluenceWarning")


class Killed(BaseException):
    """As a kill would be: nothing catches it."""


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ladder counts as long, and every work is kept as soon as a part of it is done."""
    kept_in = journal.kept_in
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(journal, "LONG", 0.0)
    monkeypatch.setattr(climb.journal, "kept_in", lambda steps: kept_in(steps, every=0.0))


def digests(study: Study) -> dict[str, str]:
    assert study.manifest is not None
    return {name: array.sha256 for name, array in study.manifest.arrays.items()}


def killed_after_each(
    count: int, spec: StudySpec, out: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Study, int]:
    """The study by a command that is killed after every `count` works of a ladder that it keeps,
    once their seconds are kept too, and given again until it ends; and how often it was killed."""
    own, kept = Steps.keep, 0

    def keep(steps: Steps, name: Mapping[str, Any], value: object) -> None:
        nonlocal kept
        own(steps, name, value)
        kept += name == SPENT
        if name == SPENT and kept % count == 0:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "keep", keep)
        for kills in range(1000):
            try:
                return run_study(spec, out), kills
            except Killed:
                pass
    raise AssertionError("it makes no headway")


def test_equals_what_was_not_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_study(CLEAN, tmp_path / "whole")
    study, kills = killed_after_each(5, CLEAN, tmp_path / "killed", monkeypatch)
    assert kills > 5
    assert digests(study) == digests(whole)
    assert study.results.digest == whole.results.digest
    assert not (tmp_path / "killed" / STEPS).exists()


def test_seconds_of_an_interrupted_fit_are_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit of which a part was read would look cheap; what was measured before is kept."""
    spec = replace(CLEAN, rungs=("GGN", "EKFAC"), models=1)
    study, _ = killed_after_each(1, spec, tmp_path / "killed", monkeypatch)
    measured = {row.name: row.score_seconds for row in study.results.rungs}
    assert measured["GGN"] is not None
    assert measured["EKFAC"] is not None
    interrupted = {row.name: row.fit_seconds for row in study.results.rungs}
    assert interrupted["GGN"] is None
    whole = run_study(spec, tmp_path / "whole")
    assert all(row.fit_seconds is not None for row in whole.results.rungs)


def test_what_was_kept_of_a_ladder_is_whole_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(steps: Steps, name: Mapping[str, Any], value: object) -> None:
        own(steps, name, value)
        if "work" in name:
            raise Killed

    own = Steps.keep
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "keep", keep)
        with pytest.raises(Killed):
            run_study(CLEAN, tmp_path / "r")
    (array,) = (tmp_path / "r" / STEPS).glob("*/*.1.npy")
    array.write_bytes(array.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(InputError, match="remove that folder"):
        run_study(CLEAN, tmp_path / "r")


def test_the_seconds_of_killed_commands_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: Counter[str] = Counter()
    own = Steps.keep

    def slow(steps: Steps, name: Mapping[str, Any], value: object) -> None:
        """Every work takes a tenth of a second more, before it is kept with its seconds."""
        if "work" in name:
            (stage,) = STAGES.keys() & steps.depends.keys()
            slept[STAGES[stage]] += 1
            time.sleep(0.1)
        own(steps, name, value)

    monkeypatch.setattr(Steps, "keep", slow)
    spec = replace(CLEAN, bounds=True, rungs=("GGN", "EKFAC"), hybrids=False, costs=False)
    study, kills = killed_after_each(3, spec, tmp_path / "killed", monkeypatch)
    seconds = study.results.seconds
    assert seconds is not None
    assert kills > 5
    assert slept.keys() == set(STAGES.values())
    for stage, count in slept.items():
        assert getattr(seconds, stage) >= 0.1 * count
    assert study.results.study_seconds is not None
    assert study.results.study_seconds >= 0.1 * slept.total() + seconds.models + seconds.truth


def test_the_seconds_of_scores_are_those_after_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was timed before, by this command or a killed one."""
    passes: list[int] = []
    own = gradients._computed

    def computed(*given: Any) -> object:
        if passes and not journal.steady():
            passes[-1] += 1
        return own(*given)

    def timed(*given: object) -> object:
        passes.append(0)
        try:
            return scores_at(*given)
        finally:
            counted.append(passes.pop())

    counted: list[int] = []
    scores_at = at_model._scores_at
    monkeypatch.setattr(gradients, "_computed", computed)
    monkeypatch.setattr(at_model, "_scores_at", timed)
    run_study(replace(CLEAN, models=1, costs=True), tmp_path / "r")
    timed_ones = counted[: len(counted) // 2]  # the others are those whose needs are measured
    assert len(timed_ones) == 7
    assert set(timed_ones) == {1}


class Counted:
    """A function that is killed at one of its calls, by number, and counts them."""

    def __init__(self, own: Callable[..., Any]) -> None:
        self.own, self.calls, self.killed_at = own, 0, 0

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == self.killed_at:
            raise Killed
        return self.own(*given, **named)


@pytest.mark.parametrize(
    ("module", "name"), [(bootstrap, "_cross_fitted"), (proximal.Proximal, "objective")]
)
def test_a_killed_comparison_repeats_one_piece(
    module: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a killed response one evaluation, of the model that it was at."""
    monkeypatch.setattr(budget, "REPLICATES", 5000)
    monkeypatch.setattr(journal, "SHARE", 0.0)
    counted = Counted(getattr(module, name))
    method = name == "objective"
    monkeypatch.setattr(module, name, (lambda *a: counted(*a)) if method else counted)
    spec = replace(CLEAN, rungs=("GGN", "Identity"), costs=False)
    whole = run_study(spec, tmp_path / "whole")
    once = counted.calls
    assert once > 10
    for kill in (2, once // 2, once - 2):
        out = tmp_path / f"{kill}"
        counted.calls, counted.killed_at = 0, kill
        with pytest.raises(Killed):
            run_study(spec, out)
        counted.killed_at = 0
        study = run_study(spec, out)
        assert once <= counted.calls <= once + 2
        assert digests(study) == digests(whole)
        assert study.results.digest == whole.results.digest
        assert not (out / STEPS).exists()


def test_what_questions_and_judgements_compare_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SHARE", 0.0)
    counted = Counted(bootstrap._cross_fitted)
    monkeypatch.setattr(bootstrap, "_cross_fitted", counted)
    spec = replace(CLEAN, rungs=("KFAC", "Identity"), bregman=False, hybrids=False)
    ask = QuestionSpec(spec, alphas=(0.5,), left_out=3, queries=2, removed=(0.1,))

    def judged() -> Judgement:
        monkeypatch.chdir(tmp_path)
        return judge(
            np.ones((36, 142)), "wine", positive="helps", settings=Settings(4, models=1, orders=1),
            beside=Beside(("KFAC",), baselines=False), threads=1,
        )  # fmt: skip

    def told(made: Any) -> Any:
        return made.methods if isinstance(made, Judgement) else made.questions

    for make in (lambda: run_questions(ask, tmp_path / "q"), judged):
        counted.calls = counted.killed_at = 0
        whole, once = make(), counted.calls
        (tmp_path / "q" / "questions.json").unlink(missing_ok=True)
        counted.calls, counted.killed_at = 0, once - 1
        with pytest.raises(Killed):
            make()
        counted.killed_at = 0
        assert told(make()) == told(whole)
        assert once <= counted.calls <= once + 2
