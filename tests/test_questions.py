"""Several questions to one ladder: each answer from runs and scores made here by themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from scipy.stats import spearmanr

import curvfluence as cf
from curvfluence.errors import InputError
from curvfluence.fidelity import Sweep, lds, query_halves, spearman
from curvfluence.report.questions import answer_table, headline, write_questions
from curvfluence.study import StudySpec, load
from curvfluence.study.asked import asked
from curvfluence.study.climb import influence_problems
from curvfluence.study.questions import Questions, QuestionSpec, read_questions, run_questions
from curvfluence.study.questions.records import Answer, Question
from curvfluence.study.retrain import draw_subsets, influence_runs
from curvfluence.study.variant import Variant
from curvfluence.study.words import number
from curvfluence.truth import Run, Subsets, Weighted, leave_one_out, measure, train
from tests.test_report import run

pytestmark = pytest.mark.xdist_group("questions")
GRID = (1e-2, 1e-1)
RUNGS = {"KFAC": cf.KFAC(), "Identity": cf.Identity()}
STUDY = StudySpec(
    "wine", 8, models=2, orders=2, rungs=tuple(RUNGS), dampings=GRID, replicates=200,
    variant=Variant(epochs=3), hybrids=False, costs=False,
)  # fmt: skip
SPEC = QuestionSpec(STUDY, (0.5, 0.9), left_out=10, removed=(0.05, 0.2), queries=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("questions") / "x"


@pytest.fixture(scope="module")
def found(folder: Path) -> Questions:
    return run_questions(SPEC, folder, threads=1)


@pytest.fixture(scope="module")
def scores() -> dict[str, torch.Tensor]:
    """[J, D, Q, N] of each rung, by `cf.influence` at models trained here."""
    problem = asked(STUDY, load("wine"))
    trained = train(problem.recipe, problem.train, influence_runs(STUDY, problem))
    at = influence_problems(problem, trained)
    return {
        name: torch.stack(
            [
                torch.stack(
                    [cf.influence(p, rung, damping=cf.Absolute(d)).values for d in GRID]
                    if name != "Identity"
                    else [cf.influence(p, rung).values]
                )
                for p in at
            ]
        )
        for name, rung in RUNGS.items()
    }


def test_which_questions(found: Questions, folder: Path) -> None:
    assert [q.name for q in found.questions] == [
        "keep 0.5", "spread over retrainings", "keep 0.9", "leave one out", "remove the top 5%",
        "remove the top 20%",
    ]  # fmt: skip
    assert read_questions(folder) == found
    for question in found.questions:
        assert [answer.rung for answer in question.answers] == list(RUNGS)
        for answer in question.answers:
            assert answer.interval.low <= answer.interval.high
    assert found.questions[0].best_lds is not None
    assert found.questions[1].best_lds is None


@pytest.mark.parametrize("name", RUNGS)
def test_one_left_out_of_the_very_run(
    found: Questions, scores: dict[str, torch.Tensor], name: str
) -> None:
    problem = asked(STUDY, load("wine"))
    (seed,) = STUDY.seeds("left out", 1)
    index = torch.randperm(142, generator=torch.Generator().manual_seed(seed))[:10].sort().values
    runs = influence_runs(STUDY, problem)
    every = [Run(r.init_seed, r.order_seed, s) for r in runs for s in range(10)]
    subsets = leave_one_out(142, index, Weighted())
    values = measure(
        problem.recipe,
        train(problem.recipe, problem.train, every, subsets),
        problem.queries,
        problem.measurement,
    ).view(2, 10, -1)
    predicted_djmq = scores[name][..., index].double().permute(1, 0, 3, 2)
    (half_seed,) = STUDY.seeds("query halves", 1)
    halves = query_halves(values.shape[-1], half_seed)
    grid = GRID if name != "Identity" else (None,)
    wanted = lds(Sweep(grid, predicted_djmq.numpy()), values.double().numpy(), halves)
    question = next(q for q in found.questions if q.name == "leave one out")
    answer = question.answer(name)
    assert answer is not None
    assert answer.value == pytest.approx(wanted.value, abs=1e-6)
    assert question.retrainings == 20


@pytest.mark.parametrize("name", RUNGS)
@pytest.mark.parametrize(("share", "count"), [(0.05, 7), (0.2, 28)])
def test_removal_of_what_helps_most(
    found: Questions, scores: dict[str, torch.Tensor], name: str, share: float, count: int
) -> None:
    """The rise of the query's loss when the model is trained again without its `count` examples of
    the largest influence, at the λ that keep 0.5 chose for its half."""
    problem = asked(STUDY, load("wine"))
    (half_seed,) = STUDY.seeds("query halves", 1)
    halves = query_halves(36, half_seed)
    chosen = next(a for a in found.questions[0].answers if a.rung == name).dampings
    grid = list(GRID) if name != "Identity" else [None]
    rises: list[float] = []
    for j, first in enumerate(influence_runs(STUDY, problem)):
        (order,) = STUDY.seeds(f"removals of model {j}", 1)
        masks = torch.ones(4, 142, dtype=torch.bool)
        for q in range(3):
            at = grid.index(chosen[0 if halves[q] else 1])
            masks[q + 1, scores[name][j, at, q].argsort(descending=True)[:count]] = False
        runs = [Run(first.init_seed, order, s) for s in range(4)]
        trained = train(problem.recipe, problem.train, runs, Subsets(masks))
        values = measure(problem.recipe, trained, problem.queries, problem.measurement)
        rises += [float(values[q + 1, q] - values[0, q]) for q in range(3)]
    question = next(q for q in found.questions if q.name == f"remove the top {share:.0%}")
    answer = question.answer(name)
    assert answer is not None
    assert answer.value == pytest.approx(np.mean(rises), rel=1e-5, abs=1e-7)
    assert question.control is not None


def test_spread(found: Questions, scores: dict[str, torch.Tensor]) -> None:
    """Rank correlation of the predicted change with the deviation of four retrainings."""
    problem = asked(STUDY, load("wine"))
    subsets = draw_subsets(STUDY, problem)
    seeds = STUDY.seeds("order", 4)
    inits = [r.init_seed for r in influence_runs(STUDY, problem)]
    runs = [Run(inits[k // 2], seeds[k], s) for k in range(4) for s in range(8)]
    trained = train(problem.recipe, problem.train, runs, subsets)
    values = measure(problem.recipe, trained, problem.queries, problem.measurement)
    spread_mq = values.double().view(4, 8, -1).std(0)
    predicted_jqm = scores["Identity"][:, 0].double() @ subsets.left_out.T
    rho = spearman(predicted_jqm.numpy(), spread_mq.T[None].numpy())
    answer = found.questions[1].answer("Identity")
    assert answer is not None
    assert answer.value == pytest.approx(rho.mean(), abs=1e-6)


def test_page(found: Questions, folder: Path) -> None:
    done = write_questions(found, folder)
    text = done.path.read_text()
    for question in found.questions:
        assert question.name in text
    table = answer_table(found)
    assert table.columns == ("Question", "KFAC", "Identity", "noise allows", "at random")
    for question, row in zip(found.questions, table.rows, strict=True):
        answer = question.answer("KFAC")
        assert answer is not None
        assert row[:2] == (question.name, number(answer.value))
        assert row[-1] == number(question.control)


def test_how_alike_the_questions_are(found: Questions) -> None:
    """Ranks of the rungs' answers against those of the first question."""
    interval, names = found.questions[0].answers[0].interval, ("GGN", "EKFAC", "KFAC", "Identity")

    def asked(name: str, *values: float) -> Question:
        answers = (Answer(r, v, interval, (0.1, 0.1)) for r, v in zip(names, values, strict=True))
        return Question(name, "subsets", 4, tuple(answers))

    alike = asked("a", 0.6, 0.5, 0.4, 0.3), asked("b", 6.0, 5.0, 4.0, 3.0)
    said = headline(replace(found, questions=alike))
    assert said == (
        "Of 2 questions the best rung is GGN for 2; the order of the rungs is much the same in all "
        "(rank correlation with that of “a”: 1.00 to 1.00)."
    )
    other = headline(replace(found, questions=(*alike, asked("c", 0.1, 0.4, 0.3, 0.2))))
    rho = spearmanr([4, 3, 2, 1], [1, 4, 3, 2]).statistic
    wanted = (
        f"another from question to question (rank correlation with that of “a”: {number(rho, 2)}"
    )
    assert wanted in other


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"alphas": (0.9,)}, "must have the study's own, 0.5"),
        ({"alphas": (0.5, 1.0)}, "alpha, the fraction"),
        ({"left_out": 2}, "left_out must be a whole number >= 3"),
        ({"removed": (1.5,)}, "a share to remove lies between 0 and 1; seen 1.5"),
        ({"queries": 1}, "queries must be a whole number >= 2"),
    ],
)
def test_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        QuestionSpec(STUDY, **settings)  # type: ignore[arg-type]


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["questions", "wine", "--subsets", "4", "--models", "1", "--orders", "1", "--epochs"]
    words += ["1", "--rungs", "KFAC,Identity", "--alpha", "0.5", "--left-out", "4", "--queries"]
    words += ["2", "--no-progress", "--out", str(tmp_path / "q")]
    code, out, err = run(words, monkeypatch, capsys)
    assert code == 0, err
    assert out.startswith("Of ")
    assert (tmp_path / "q" / "report.html").is_file()
