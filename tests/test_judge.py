"""Scores that anybody made: what their files say, what they are worth, and what is refused."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.banks import SHIPPED, Slice, make_bank, make_slice
from curvfluence.errors import InputError, NonFiniteError
from curvfluence.fidelity import calibrate, spearman
from curvfluence.judging import (
    Beside,
    Judgement,
    Removal,
    Settings,
    Trak,
    model_of,
    problem_of,
    read_judgement,
)
from curvfluence.judging.baselines import (
    last_layer_cosine,
    random_scores,
    trac_in,
    trac_in_of_training,
    trak,
)
from curvfluence.judging.baselines.trac_in import parts_of
from curvfluence.judging.files import found, read_safetensors
from curvfluence.judging.given import Asked, Meaning, given
from curvfluence.judging.holdings import Holdings
from curvfluence.judging.subject import Subject
from curvfluence.report.judge import headline, method_table, removal_table
from curvfluence.store.lock import held
from curvfluence.study import StudySpec, load, run_study
from curvfluence.study.climb import influence_problems
from curvfluence.study.progress import silent
from curvfluence.study.results import Results
from curvfluence.study.retrain import make_truth, train_models
from curvfluence.study.variant import Variant
from curvfluence.study.words import number
from curvfluence.truth import Constant, Cosine, Recipe, Run, Subsets, measure, train
from curvfluence.truth.bank import Bank
from curvfluence.truth.run import batches, share
from tests.test_report import run

pytestmark = pytest.mark.xdist_group("judge")
WINE = SHIPPED / "wine"
Q, N = 36, 142
ASKED = Asked("wine", Q, N, "loss", lower_is_better=True)
ALONE = Beside((), baselines=False)


@pytest.fixture(scope="module")
def problems() -> list[cf.Problem]:
    """The four influence models of the bank that ships, as the library makes them."""
    subject = Subject.of("wine", Settings(), WINE)
    models = train_models(subject.spec, subject.problem, subject.bank, silent)
    return influence_problems(subject.problem, models.trained)


@pytest.fixture(scope="module")
def scores(problems: list[cf.Problem]) -> Tensor:
    """[J, Q, N] of K-FAC at λ = 0.1."""
    rows = [cf.influence(p, cf.KFAC(), damping=cf.Absolute(0.1)).values for p in problems]
    return torch.stack(rows)


@pytest.fixture(scope="module")
def all_models(scores: Tensor) -> Judgement:
    beside = Beside(("KFAC", "EKFAC", "GGN"), trak=Trak(20, seed=3))
    return cf.judge(scores, bank=WINE, positive="helps", units="loss", beside=beside, threads=1)


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Judgement]:
    """A study of two models, and its K-FAC scores at λ = 0.1 judged on the study's own bank."""
    spec = StudySpec(
        "wine", 12, models=2, rungs=("KFAC", "EKFAC", "GGN"), bregman=False, hybrids=False,
        costs=False, spectra=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("judge") / "wine"
    results = run_study(spec, folder, threads=1).results
    settings = Settings(12, models=2)
    rows = [
        cf.influence(problem_of("wine", j, settings=settings, bank=folder / "bank"), cf.KFAC(),
                     damping=cf.Absolute(0.1)).values
        for j in range(2)
    ]  # fmt: skip
    judged = cf.judge(
        torch.stack(rows), bank=folder / "bank", settings=settings, positive="helps", units="loss",
        beside=Beside(("KFAC", "EKFAC", "GGN"), baselines=False), threads=1,
    )  # fmt: skip
    return results, judged


class TestAgainstAStudy:
    """The same truth, resamples and dampings as `curvfluence study wine` has."""

    def test_our_rungs_are_the_studys(self, studied: tuple[Results, Judgement]) -> None:
        results, judged = studied
        for rung in results.rungs:
            own = judged.method(rung.name)
            assert own.lds == rung.lds
            assert own.interval == rung.interval
            assert own.interval_subsets == rung.interval_subsets
            assert own.interval_queries == rung.interval_queries
            assert own.lds_independent == rung.lds_independent
            assert own.lds_ensemble == rung.lds_ensemble is not None
            assert own.dampings == rung.dampings
            assert own.calibration == rung.calibration
        assert judged.best_lds == results.truth.best_lds
        assert judged.reliability == results.truth.noise_ceiling
        assert judged.retrainings == results.truth.retrainings == 48
        assert judged.trained == 0

    def test_given_scores_are_its_sweep_at_their_damping(
        self, studied: tuple[Results, Judgement]
    ) -> None:
        results, judged = studied
        (point,) = (p for p in results.rung("KFAC").sweep if p.damping == 0.1)
        assert judged.judged.lds == pytest.approx(point.lds, abs=1e-12)
        assert judged.judged.lds_independent == pytest.approx(point.lds_independent, abs=1e-12)


@pytest.fixture(scope="module")
def second(scores: Tensor) -> Judgement:
    return cf.judge(
        scores[1].numpy(), "wine", bank=WINE, positive="helps", units="loss", model=1,
        beside=Beside(("KFAC",), baselines=False), name="mine",
    )  # fmt: skip


class TestOneModel:
    def test_lds_by_hand(self, second: Judgement, scores: Tensor) -> None:
        """Spearman of the sum over what was left out with the mean of the two retrainings from
        that model's own initialisation, query by query."""
        subject = Subject.of("wine", Settings(), WINE)
        models = train_models(subject.spec, subject.problem, subject.bank, silent)
        truth = make_truth(subject.spec, subject.problem, models, subject.bank, silent)
        true_qm = truth.values[1].mean(0).T.numpy()
        predicted_qm = (scores[1].double() @ truth.subsets.left_out.T).numpy()
        assert second.judged.lds == pytest.approx(spearman(predicted_qm, true_qm).mean(), abs=1e-12)
        others_qm = truth.values[[0, 2, 3]].mean((0, 1)).T.numpy()
        wanted = spearman(predicted_qm, others_qm).mean()
        assert second.judged.lds_independent == pytest.approx(wanted, abs=1e-12)
        assert second.judged.lds_ensemble is None
        change_qm = true_qm - models.base[1].numpy()[:, None]
        line = second.judged.calibration
        assert line is not None
        wanted_line = calibrate(predicted_qm, change_qm)
        assert line.slope == pytest.approx(wanted_line.slope, rel=1e-5)
        assert line.n == Q * 60

    def test_paired_difference(self, second: Judgement) -> None:
        rung = second.method("KFAC")
        assert rung.less == second.judged.lds - rung.lds
        assert rung.less_interval is not None
        assert rung.less_interval.low <= rung.less <= rung.less_interval.high
        assert second.judged.less is None
        widths = [i.high - i.low for i in (rung.less_interval, rung.interval)]
        assert widths[0] < widths[1]  # what both share in a draw cancels

    def test_at_the_default_damping(self, second: Judgement, problems: list[cf.Problem]) -> None:
        """Our rung with a damping that no truth has chosen is what judging its scores gives."""
        own = cf.influence(problems[1], cf.KFAC())
        again = cf.judge(own, "wine", bank=WINE, model=1, beside=ALONE)
        assert second.method("KFAC at 0.1").lds == again.judged.lds
        assert again.has_units
        assert "KFAC, damping Relative(0.1)" in again.scores[0]

    def test_it_says_that_it_is_of_one(self, second: Judgement) -> None:
        assert second.models == (1,)
        assert any("no spread over models" in note for note in second.notes)


class TestSign:
    @pytest.mark.parametrize("positive", ["helps", "hurts"])
    def test_reversed(self, scores: Tensor, positive: str) -> None:
        judged = cf.judge(scores[0], "wine", bank=WINE, positive=positive, beside=ALONE)
        said = [note for note in judged.notes if "sign looks reversed" in note]
        if positive == "helps":
            assert judged.judged.interval.low > 0
            assert not said
        else:
            assert judged.judged.interval.high < 0
            (note,) = said
            assert "If a positive score helps, say so" in note

    def test_of_another_order_of_examples(self, scores: Tensor) -> None:
        """Columns that stand elsewhere: the LDS is not told from 0, and a note asks why."""
        wrong = scores[0][:, torch.randperm(N, generator=torch.Generator().manual_seed(0))]
        judged = cf.judge(wrong, "wine", bank=WINE, positive="helps", beside=ALONE)
        assert any("in its order" in note for note in judged.notes)

    def test_constant_scores(self) -> None:
        zero = np.zeros((Q, N))
        judged = cf.judge(zero, "wine", bank=WINE, positive="helps", units="loss", beside=ALONE)
        assert (judged.judged.lds, judged.judged.undefined) == (0.0, Q)
        assert judged.judged.calibration is None
        assert any("36 of 36 pairs" in note for note in judged.notes)


def read(source: Any, **meaning: str) -> Any:
    return given(source, Meaning(**meaning), ASKED)


@pytest.fixture(scope="module")
def values() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(Q, N)).astype(np.float32)


class TestMeaning:
    """However scores are given, they come out as predicted changes [model, query, train]."""

    def test_sign_order_and_units(self, values: np.ndarray[Any, Any]) -> None:
        plain = read(values, positive="helps").values
        assert torch.equal(plain, torch.from_numpy(values)[None])
        assert torch.equal(read(values, positive="hurts").values, -plain)
        turned = read(values.T, positive="helps", order="train,query").values
        assert torch.equal(turned, plain)
        several = np.stack([values.T, 2 * values.T])
        assert torch.equal(
            read(several, positive="helps", order="train,query").values,
            torch.cat([plain, 2 * plain]),
        )
        summed = read(values, positive="helps", units="loss*N")
        assert torch.equal(summed.values, plain / N)
        assert summed.units
        assert not read(values, positive="helps").units

    def test_where_higher_is_better_help_is_a_fall(self, values: np.ndarray[Any, Any]) -> None:
        asked = Asked("wine", Q, N, "margin", lower_is_better=False)
        found = given(values, Meaning("helps"), asked)
        assert torch.equal(found.values[0], -torch.from_numpy(values))

    def test_half_precision_is_summed_in_single(self, values: np.ndarray[Any, Any]) -> None:
        assert read(values.astype(np.float16), positive="helps").values.dtype == torch.float32

    def test_several_sources(self, values: np.ndarray[Any, Any], tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", values)
        both = read([tmp_path / "a.npy", torch.from_numpy(-values)], positive="helps")
        assert both.values.shape == (2, Q, N)
        assert len(both.said) == 2

    @pytest.mark.parametrize(
        ("shape", "meaning", "said"),
        [
            ((Q, N), {}, r"nothing says whether a positive score helps its query or hurts it\. "),
            ((Q, N), {"positive": "good"}, r"positive is one of helps or hurts; seen 'good'"),
            ((Q, N), {"order": "rows"}, r"order is one of query,train or train,query; seen 'rows'"),
            ((Q, N), {"units": "nats"}, r"units is one of none or loss or loss\*N; seen 'nats'"),
            ((N, Q), {"positive": "helps"},
             r"has shape \(142, 36\); wine has 36 queries and 142 training examples\. It fits "
             r"transposed only: say order='train,query' if"),
            ((Q, N), {"positive": "helps", "order": "train,query"},
             r"so in the order train,query it would end in \(142, 36\)\. It fits transposed only: "
             r"say order='query,train'"),
            ((Q, N - 1), {"positive": "helps"},
             r"shape \(36, 141\); wine has 36 queries and 142 training examples\. Score the "
             r"examples of curvfluence.judging.problem_of\('wine'\), all of them and in their "
             "order"),
            ((Q * N,), {"positive": "helps"}, r"\[model, query, train\] .* seen shape \(5112,\)"),
        ],
    )  # fmt: skip
    def test_refused(self, shape: tuple[int, ...], meaning: dict[str, str], said: str) -> None:
        with pytest.raises(InputError, match=said):
            read(np.ones(shape), **meaning)

    def test_a_square_does_not_say_its_order(self) -> None:
        asked = Asked("square", 5, 5, "loss", lower_is_better=True)
        with pytest.raises(
            InputError, match=r"does not say which is which: say order='query,train'"
        ):
            given(np.ones((5, 5)), Meaning("helps"), asked)
        turned = given(np.arange(25.0).reshape(5, 5), Meaning("helps", "train,query"), asked)
        assert turned.values[0, 0].tolist() == [0, 5, 10, 15, 20]

    def test_values_that_are_no_numbers(self, values: np.ndarray[Any, Any]) -> None:
        bad = values.copy()
        bad[3, 7] = np.nan
        with pytest.raises(NonFiniteError, match=r"at indices \(3, 7\)"):
            read(bad, positive="helps")
        for wrong in (values.astype(complex), values > 0, values.astype(str)):
            with pytest.raises(InputError, match="must be real numbers"):
                read(wrong, positive="helps")
        with pytest.raises(
            InputError, match=r"scores are a file, an array, a tensor, or cf.Scores"
        ):
            read([[0.1, 0.2]], positive="helps")
        with pytest.raises(InputError, match=r"cf.Scores, or a list of them, .* seen NoneType"):
            read(None, positive="helps")
        with pytest.raises(InputError, match="there are no scores to judge"):
            read([], positive="helps")
        with pytest.raises(InputError, match="each is of one model"):
            read([np.ones((2, Q, N)), values], positive="helps")


def write_safetensors(
    path: Path, arrays: dict[str, np.ndarray[Any, Any]], dtype: str = "F32"
) -> None:
    """By hand: eight bytes with the header's length, the header, the numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes],
        }  # fmt: skip
        at += array.nbytes
    text = json.dumps(header).encode()
    numbers = b"".join(array.tobytes() for array in arrays.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)


class TestFiles:
    def test_our_own(self, problems: list[cf.Problem], tmp_path: Path) -> None:
        """Sign, order and units stand in the JSON; a sign that contradicts it is refused."""
        own = cf.influence(problems[0], cf.Diagonal())
        own.save(tmp_path / "s.npy")
        back = read(tmp_path / "s.npy")
        assert torch.equal(back.values[0], own.values)
        assert back.units
        with pytest.raises(
            InputError, match="says that a positive score helps; seen positive='hurts'"
        ):
            read(tmp_path / "s.npy", positive="hurts")
        with pytest.raises(
            InputError, match="is in the order query,train; seen order='train,query'"
        ):
            read(tmp_path / "s.npy", order="train,query")
        assert not read(trac_in_scores(problems[0])).units

    def test_our_own_of_another_measurement(self, problems: list[cf.Problem]) -> None:
        """Of a margin a fall is help: so is a rise of the loss, which the truth is of."""
        p = problems[0]
        margin = cf.Problem(
            p.model, p.loss, p.train, p.queries, measurement=cf.Margin(), weights=p.theta,
            weight_decay=p.weight_decay,
        )  # fmt: skip
        own = cf.influence(margin, cf.KFAC())
        back = read(own)
        assert torch.equal(back.values[0], -own.values)
        assert not back.units
        assert "their order counts, their size does not" in back.notes[0]

    def test_leverage_is_refused(self, problems: list[cf.Problem]) -> None:
        own = replace(cf.influence(problems[0], cf.KFAC()), leverage=True)
        with pytest.raises(InputError, match="compute the scores with leverage=False"):
            read(own)

    def test_json_of_somebody_elses(self, values: np.ndarray[Any, Any], tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", values)
        (tmp_path / "a.json").write_text('{"rung": 1}')
        assert torch.equal(
            read(tmp_path / "a.npy", positive="helps").values[0], torch.tensor(values)
        )

    def test_npz(self, values: np.ndarray[Any, Any], tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", scores=values, other=-values)
        assert torch.equal(
            read(tmp_path / "a.npz", positive="helps", key="other").values,
            -read(tmp_path / "a.npz", positive="helps").values,
        )
        np.savez(tmp_path / "b.npz", a=values, b=values)
        with pytest.raises(InputError, match=r"2 arrays \(a, b\): say which with key"):
            read(tmp_path / "b.npz", positive="helps")
        with pytest.raises(InputError, match=r"has no array 'c'; it has a, b"):
            read(tmp_path / "b.npz", positive="helps", key="c")

    def test_kronfluence(self, values: np.ndarray[Any, Any], tmp_path: Path) -> None:
        """[query, train], positive helps; modules are added up."""
        path = tmp_path / "pairwise_scores.safetensors"
        write_safetensors(path, {"all_modules": values})
        whole = read(path, units="loss*N")
        assert torch.equal(whole.values[0], torch.from_numpy(values) / N)
        assert "is taken to help, as where the task measures a loss" in whole.notes[0]
        assert torch.equal(read(path, positive="hurts").values[0], -torch.from_numpy(values))
        assert read(path, positive="hurts").notes == ()
        write_safetensors(path, {"0": values, "2": 2 * values})
        parts = read(path)
        assert torch.allclose(parts.values[0], 3 * torch.from_numpy(values))
        assert "2 modules added up" in parts.said[0]
        with pytest.raises(InputError, match="is in the order query,train"):
            read(path, order="train,query")

    def test_kronfluence_by_token_or_torn(
        self, values: np.ndarray[Any, Any], tmp_path: Path
    ) -> None:
        path = tmp_path / "pairwise_scores.safetensors"
        write_safetensors(path, {"all_modules": values[None]})
        with pytest.raises(InputError, match="without compute_per_token_scores"):
            read(path)
        write_safetensors(path, {"0": values, "2": values[:3]})
        with pytest.raises(InputError, match="modules of several shapes"):
            read(path)
        write_safetensors(path, {"all_modules": values})
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(
            InputError, match=r"holds no readable scores .*not as long as its header"
        ):
            read(path)
        path.write_bytes(b"\xff" * 40)
        with pytest.raises(InputError, match="its header would have"):
            read(path)
        with pytest.raises(
            InputError, match="name the file of scores in it, one of pairwise_scores"
        ):
            read(tmp_path)

    def test_safetensors_of_any_kind(self, values: np.ndarray[Any, Any], tmp_path: Path) -> None:
        path = tmp_path / "mine.safetensors"
        write_safetensors(path, {"x": values.astype(np.float64)}, "F64")
        assert found(path).order is None
        assert found(path).values.dtype == torch.float64
        half = torch.from_numpy(values).bfloat16()
        write_safetensors(path, {"x": half.view(torch.int16).numpy()}, "BF16")
        assert torch.equal(read_safetensors(path)["x"], half)
        write_safetensors(path, {"x": values}, "I32")
        with pytest.raises(InputError, match="'x' is of I32"):
            read(path, positive="helps")

    def test_trak(self, values: np.ndarray[Any, Any], tmp_path: Path) -> None:
        """[train, query] in the format of numpy.lib.format.open_memmap, often in half precision."""
        path = tmp_path / "quickstart.mmap"
        made = np.lib.format.open_memmap(path, mode="w+", shape=(N, Q), dtype=np.float16)
        made[:] = values.T
        made.flush()
        back = read(path)
        assert torch.equal(back.values[0], torch.from_numpy(values.astype(np.float16)).float())
        assert back.order == "train,query"
        assert "model output is a margin" in back.notes[0]
        with pytest.raises(
            InputError, match="is in the order train,query; seen order='query,train'"
        ):
            read(path, order="query,train")

    def test_what_is_no_file_of_scores(self, values: np.ndarray[Any, Any], tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"gone.npy is not there"):
            read(tmp_path / "gone.npy", positive="helps")
        with pytest.raises(InputError, match=r"ends in none of .npy, .npz, .mmap, .safetensors"):
            read(tmp_path / "scores.pt", positive="helps")
        np.save(tmp_path / "o.npy", np.array([{"a": 1}]), allow_pickle=True)
        with pytest.raises(InputError, match=r"o.npy is no readable array"):
            read(tmp_path / "o.npy", positive="helps")
        (tmp_path / "t.npy").write_text("0.1 0.2")
        with pytest.raises(InputError, match=r"t.npy is no readable array"):
            read(tmp_path / "t.npy", positive="helps")
        (tmp_path / "z.npz").write_bytes(b"PK")
        with pytest.raises(InputError, match=r"z.npz holds no readable scores"):
            read(tmp_path / "z.npz", positive="helps")


def trac_in_scores(problem: cf.Problem) -> cf.Scores:
    return cf.influence(problem, cf.Identity())


def dense_rows(problem: cf.Problem, what: Any, data: Any) -> Tensor:
    """∇ of what(output, target) for each example, by a backward pass each, in float64: [n, P]."""
    rows: list[Tensor] = []
    for n in range(len(data)):
        model = model_of(problem).double()
        inputs, target = data.inputs[n : n + 1].double(), data.targets[n : n + 1]
        value = what(model(inputs), target).sum()
        grads = torch.autograd.grad(value, list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


@pytest.fixture(scope="module")
def pair(problems: list[cf.Problem]) -> list[cf.Problem]:
    """Two models on few examples."""
    return [small(p) for p in problems[:2]]


class TestBaselines:
    """Each against slow, dense float64."""

    def test_random(self, pair: list[cf.Problem]) -> None:
        one = random_scores(pair[0], 5)
        assert one.shape == (7, 40)
        assert torch.equal(one, random_scores(pair[0], 5))
        assert not torch.equal(one, random_scores(pair[0], 6))

    def test_cosine(self, pair: list[cf.Problem]) -> None:
        p = pair[0]
        body = model_of(p).double()[:-1]
        a_q, a_n = (body(data.inputs.double()) for data in (p.queries, p.train))
        wanted = torch.stack([torch.cosine_similarity(a[None], a_n) for a in a_q])
        assert torch.allclose(last_layer_cosine(p).double(), wanted, atol=1e-5)

    def test_cosine_needs_a_linear_layer(self) -> None:
        x, y = torch.randn(6, 1, 4), torch.tensor([0, 1, 0, 1, 0, 1])
        net = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 4), torch.nn.Flatten())
        p = cf.Problem(net, cf.CrossEntropy(), (x, y), (x, y))
        with pytest.raises(InputError, match="has no Linear layer"):
            last_layer_cosine(p)

    def test_trac_in(self, pair: list[cf.Problem]) -> None:
        loss = torch.nn.CrossEntropyLoss(reduction="none")
        g_q, g_n = (dense_rows(pair[0], loss, d) for d in (pair[0].queries, pair[0].train))
        assert torch.allclose(trac_in(pair[:1]).double(), g_q @ g_n.T / 40, rtol=1e-3, atol=1e-8)
        h_q, h_n = (dense_rows(pair[1], loss, d) for d in (pair[1].queries, pair[1].train))
        wanted = (0.5 * g_q @ g_n.T + 0.1 * h_q @ h_n.T) / 40
        found = trac_in(pair, [0.5, 0.1]).double()
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-8)
        with pytest.raises(InputError, match="checkpoints and as many rates; seen 2 and 1"):
            trac_in(pair, [1.0])
        with pytest.raises(InputError, match="seen 0 and 0"):
            trac_in([])

    @pytest.mark.parametrize("schedule", [Constant(), Cosine()])
    def test_parts_of_a_training(self, schedule: Constant | Cosine) -> None:
        """A part ends where the whole training was at that step, under the whole's schedule."""
        problem = load("wine")
        recipe = replace(problem.recipe, epochs=5, schedule=schedule)
        n = len(problem.train)
        parts = parts_of(recipe, n, 5)
        per = recipe.steps_per_epoch(n)
        assert [part.recipe.steps for part in parts] == [per * k for k in (1, 2, 3, 4, 5)]
        rates = [recipe.learning_rate(step, 5 * per) for step in range(5 * per)]
        wanted = [fmean(rates[k * per : (k + 1) * per]) for k in range(5)]
        assert [part.rate for part in parts] == pytest.approx(wanted)
        runs = [Run(3, 4)]
        whole, last = (train(r, problem.train, runs) for r in (recipe, parts[-1].recipe))
        for name, value in whole.theta.items():
            assert torch.equal(value, last.theta[name])
        by_hand = stepped(recipe, problem.train, runs[0], 2 * per)
        second = train(parts[1].recipe, problem.train, runs)
        for name, value in by_hand.items():
            assert torch.allclose(second.theta[name][0], value, rtol=1e-4, atol=1e-6)

    def test_few_steps(self) -> None:
        recipe = replace(load("wine").recipe, epochs=None, steps=3)
        assert [part.recipe.steps for part in parts_of(recipe, 100, 5)] == [1, 2, 3]

    def test_trac_in_of_a_training(self) -> None:
        problem = load("wine")
        runs = [Run(0, 1), Run(2, 3)]
        trained = train(problem.recipe, problem.train, runs)
        found = torch.stack(list(trac_in_of_training(problem, trained, 3)))
        parts = parts_of(problem.recipe, len(problem.train), 3)
        wanted = torch.zeros_like(found)
        for part in parts:
            at = influence_problems(problem, train(part.recipe, problem.train, runs))
            wanted += part.rate * torch.stack([trac_in([p]) for p in at])
        assert torch.allclose(found, wanted, rtol=1e-5)
        assert not torch.allclose(found[0], found[1])

    def test_trak(self, pair: list[cf.Problem]) -> None:
        """τ = (mean φ_q (ΦᵀΦ)⁻¹ Φᵀ) · (mean of 1 − p), with projections drawn here."""
        k, seed = 6, 11
        total, doubt = torch.zeros(7, 40, dtype=torch.float64), torch.zeros(40, dtype=torch.float64)
        for m, p in enumerate(pair):
            generator = torch.Generator().manual_seed(seed + m)
            r_pk = torch.randn(k, 275, generator=generator).double().T
            phi_q, phi_n = (dense_rows(p, log_odds, d) @ r_pk for d in (p.queries, p.train))
            total += phi_q @ torch.linalg.inv(phi_n.T @ phi_n) @ phi_n.T / 2
            true = model_of(p).double()(p.train.inputs.double()).softmax(1)
            doubt += (1 - true[torch.arange(40), p.train.targets]).detach() / 2
        found = trak(pair, Trak(k, seed))
        assert torch.allclose(found, total * doubt, rtol=1e-3, atol=1e-7)

    def test_trak_where_higher_is_better(self, pair: list[cf.Problem]) -> None:
        p = pair[0]
        margin = cf.Problem(
            p.model, p.loss, p.train, p.queries, measurement=cf.Margin(), weights=p.theta
        )
        assert torch.equal(trak([margin]), -trak([p]))
        assert torch.equal(last_layer_cosine(margin), -last_layer_cosine(p))

    def test_trak_is_of_labels(self) -> None:
        x, y = torch.randn(6, 3), torch.randn(6, 1)
        p = cf.Problem(torch.nn.Linear(3, 1), cf.MSE(), (x, y), (x, y))
        with pytest.raises(InputError, match=r"TRAK is of margins of class labels; .* is MSE"):
            trak([p])

    def test_its_dimension(self, problems: list[cf.Problem]) -> None:
        assert Trak().of(problems[0]) == N // 4
        with pytest.raises(InputError, match="dimension must be a whole number >= 1"):
            Trak(0)

    def test_beside_the_scores(self, all_models: Judgement, problems: list[cf.Problem]) -> None:
        names = [m.name for m in all_models.methods]
        assert names == [
            "judged", "GGN", "GGN at 0.1", "EKFAC", "EKFAC at 0.1", "KFAC", "KFAC at 0.1",
            "random", "cosine", "TracIn (last)", "TracIn",
            "TRAK",
        ]  # fmt: skip
        assert [m.kind for m in all_models.methods[-5:]] == ["baseline"] * 5
        assert all_models.method("TRAK").said == "of the margin, 20 dimensions, seed 3, 4 models"
        wanted = trak(problems, Trak(20, 3)).expand(4, -1, -1)
        again = cf.judge(wanted, bank=WINE, positive="helps", beside=ALONE)
        assert all_models.method("TRAK").lds == again.judged.lds
        interval = all_models.method("random").interval
        assert interval.low < 0 < interval.high
        assert all_models.judged.less is None
        assert all_models.method("TracIn (last)").calibration is None


def stepped(recipe: Recipe, data: cf.Examples, run: Run, steps: int) -> dict[str, Tensor]:
    """The weights after so many steps of the whole training, by torch's own optimiser."""
    model = recipe.build(run.init_seed, data.dtype)
    decay = recipe.weight_decay
    assert isinstance(decay, float)
    groups = [{"params": list(model.parameters()), "weight_decay": decay}]
    optimizer = recipe.optimizer.build(groups)
    shared = share(run, data, None)
    for step, (index, _) in enumerate(islice(batches(recipe, shared), steps)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step, recipe.total_steps(len(data)))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(data.inputs[index]), data.targets[index])
        loss.backward()
        optimizer.step()
    return {name: value.detach() for name, value in model.named_parameters()}


def small(p: cf.Problem) -> cf.Problem:
    """On its first 40 training examples and 7 queries."""
    few = [cf.Examples(d.inputs[:n], d.targets[:n]) for d, n in ((p.train, 40), (p.queries, 7))]
    return cf.Problem(p.model, p.loss, *few, weights=p.theta)


def log_odds(output: Tensor, target: Tensor) -> Tensor:
    p = output.softmax(1)[torch.arange(len(target)), target]
    return (p / (1 - p)).log()


class TestRegression:
    def test_what_is_missing_is_said(self, tmp_path: Path) -> None:
        make_bank([StudySpec("diabetes", 4, models=1, orders=1)], tmp_path / "bank")
        judged = cf.judge(
            np.ones((88, 354)).cumsum(1), bank=tmp_path / "bank", positive="helps",
            settings=Settings(4, models=1, orders=1), beside=Beside(("Identity",)),
        )  # fmt: skip
        names = [m.name for m in judged.methods]
        assert names == ["judged", "Identity", "random", "cosine", "TracIn (last)", "TracIn"]
        assert any("TRAK is not beside them: TRAK is of margins" in note for note in judged.notes)
        for question, takes in (("matched", "2 minibatch"), ("independent", "3 init")):
            said = f"no noise ceiling for the {question} question, which takes {takes}"
            (note,) = (note for note in judged.notes if note.startswith(said))
            assert note.endswith("the truth has 1")
        assert judged.judged.lds_independent is None
        assert judged.method("TracIn (last)").lds == judged.method("Identity").lds


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("removal") / "bank"
    make_bank([StudySpec("wine", 5, models=2, orders=1)], path, threads=1)
    return path


class TestRemoval:
    """A truth and a training of two models, of which the second is judged."""

    def test_retrained_by_hand(self, bank: Path) -> None:
        settings = Settings(5, models=2, orders=1)
        p = problem_of("wine", 1, settings=settings, bank=bank)
        own = cf.influence(p, cf.KFAC())
        removal = Removal((0.05, 0.1), queries=3)
        judged = cf.judge(
            own, "wine", bank=bank, settings=settings, model=1,
            beside=Beside((), baselines=False, removal=removal), threads=1,
        )  # fmt: skip
        subject = Subject.of("wine", settings, bank)
        problem, (_, second) = subject.problem, subject.spec.seeds("initialisation", 2)
        (order,) = subject.spec.seeds("removals of model 1", 1)
        masks = torch.ones(7, N, dtype=torch.bool)
        for at, count in enumerate((7, 14)):
            for q in range(3):
                masks[1 + 3 * at + q, own.top(count).indices[q]] = False
        runs = [Run(second, order, s) for s in range(7)]
        trained = train(problem.recipe, problem.train, runs, Subsets(masks))
        rise = measure(problem.recipe, trained, problem.queries, problem.measurement)
        rise = (rise - rise[0]).double()
        for at, removed in enumerate(judged.judged.removed):
            wanted = float(rise[1 + 3 * at : 4 + 3 * at].diagonal().mean())
            assert removed.change == pytest.approx(wanted, rel=1e-4, abs=1e-7)
            assert removed.count == (7, 14)[at]
            assert removed.interval.low <= removed.change <= removed.interval.high
        assert [c.count for c in judged.control] == [7, 14]
        assert judged.removal_retrainings == 1 + 2 * 2 * 3
        assert (bank.parent / "bank-removals").is_dir()
        table = removal_table(judged)
        assert table is not None
        assert table.columns == ("Left out", "top 5% (7)", "top 10% (14)")
        assert [row[0] for row in table.rows] == ["judged", "at random"]

    def test_more_queries_than_there_are(self, bank: Path, scores: Tensor) -> None:
        beside = Beside((), baselines=False, removal=Removal(queries=37))
        with pytest.raises(InputError, match="removal is of 37 queries; wine has 36"):
            cf.judge(scores[0], "wine", bank=WINE, positive="helps", beside=beside)


class TestSubject:
    def test_the_model_itself(self, problems: list[cf.Problem]) -> None:
        model = model_of(problems[2])
        inputs = problems[2].queries.inputs
        assert torch.equal(model(inputs), problems[2].forward(inputs))
        assert not model.training
        again = problem_of("wine", 2, bank=WINE)
        assert all(torch.equal(again.theta[k], v) for k, v in problems[2].theta.items())

    def test_a_bank_that_ships_is_found(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert Subject.of("wine", Settings()).bank.path == WINE
        own = Path("runs/wine-judge/bank")
        assert Subject.of("wine", Settings(subsets=61)).bank.path == own
        assert not any(tmp_path.iterdir())
        shutil.copytree(WINE, tmp_path / "banks/wine")
        assert Subject.of("wine", Settings()).bank.path == Path("banks/wine")

    def test_a_bank_by_another_torch_is_read_as_it_is(
        self, monkeypatch: pytest.MonkeyPatch, scores: Tensor, all_models: Judgement
    ) -> None:
        from curvfluence.truth import bank

        monkeypatch.setattr(bank, "_trainer", lambda: "another")
        judged = cf.judge(scores, bank=WINE, positive="helps", beside=ALONE)
        assert judged.judged.lds == all_models.judged.lds

    def test_a_bank_says_how_large_its_truth_is(self, bank: Path) -> None:
        """Also one that was added to, in batches that overlap."""
        spec = Subject.of(None, Settings(), bank).spec
        assert (spec.subsets, spec.models, spec.orders) == (5, 2, 1)
        assert Subject.of("wine", Settings(9, models=4), bank).spec.subsets == 9
        make_bank([StudySpec("wine", 7, models=2, orders=1)], bank, threads=1)
        assert Holdings.of(Bank.read(bank), 0.5) == Holdings(2, 7, 1)
        assert Holdings.of(Bank.read(bank), 0.9) == Holdings(2, 0, 0)

    def test_a_bank_of_another_training(self, tmp_path: Path) -> None:
        """Its protocol, variant and queries are those that made it; what it lacks is counted."""
        variant = Variant(epochs=2)
        made = StudySpec(
            "wine", 4, models=1, orders=1, protocol="paper", variant=variant, queries=9
        )
        make_bank([made], tmp_path / "bank", threads=1)
        judged = cf.judge(
            np.ones((9, N)), bank=tmp_path / "bank", positive="helps", beside=Beside(("EKFAC",)),
            settings=Settings(6), threads=1,
        )  # fmt: skip
        assert judged.settings.protocol == "paper"
        assert judged.settings.rungs == ("EKFAC",)
        assert (judged.retrainings, judged.trained) == (6, 6)

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"model": 4}, "there is no influence model 4: the truth has 4, 0 to 3; models=5"),
            ({"model": [0, 1]}, "scores are of 1 models, and model names 2"),
            ({"beside": Beside(("KFACC",))}, "there is no rung 'KFACC'"),
            ({"problem": 5}, "problem is a name such as 'digits', or a Python file; seen int"),
            ({"problem": "breast_cancer"}, "retrainings of another problem or recipe"),
            ({"out": "nowhere/x.json"}, "nowhere is no folder: out names a file"),
            ({"name": "TRAK"}, "'TRAK' is what another method is called"),
        ],
    )
    def test_refused(self, settings: dict[str, Any], said: str) -> None:
        with pytest.raises(InputError, match=said):
            cf.judge(np.ones((Q, N)), bank=WINE, positive="helps", **settings)

    def test_no_problem(self) -> None:
        with pytest.raises(InputError, match="name the problem that the scores are of"):
            cf.judge(np.ones((Q, N)), positive="helps")


class TestGoesOn:
    def test_after_the_ladder(
        self, bank: Path, scores: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A judgement that takes long and is killed climbs no ladder twice."""
        monkeypatch.setattr("curvfluence.runtime.journal.LONG", 0.0)
        monkeypatch.chdir(tmp_path)

        def judged() -> Judgement:
            return cf.judge(
                scores[0], "wine", positive="helps", units="loss", threads=1,
                beside=Beside(("KFAC",), baselines=False),
            )  # fmt: skip

        with monkeypatch.context() as patched:
            patched.setattr("curvfluence.judging.run.swept", None)
            with pytest.raises(TypeError):
                judged()
        under_way = tmp_path / "runs" / "wine-judge" / "steps"
        assert list(under_way.glob("*.json"))
        with monkeypatch.context() as patched:
            patched.setattr("curvfluence.study.climb.climb_one", None)
            again = judged()
        assert not under_way.exists()
        for one, other in zip(again.methods, judged().methods, strict=True):
            assert one == other


class TestOneAtATime:
    @pytest.fixture
    def bank(self, bank: Path, tmp_path: Path) -> Path:
        return shutil.copytree(bank, tmp_path / "bank")

    def judged(self, bank: Path, subsets: int, *, wait: bool = False) -> Judgement:
        return cf.judge(
            np.ones((Q, N)), bank=bank, positive="helps", beside=ALONE, threads=1, wait=wait,
            settings=Settings(subsets),
        )  # fmt: skip

    def test_one_that_adds_to_a_bank(self, bank: Path) -> None:
        with held(bank):
            with pytest.raises(InputError, match=r"is being written by .*--wait"):
                self.judged(bank, 6)
            assert self.judged(bank, 5).trained == 0  # which writes nothing
        assert self.judged(bank, 6).trained == 12

    def test_one_that_keeps_its_ladder(
        self, bank: Path, scores: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("curvfluence.runtime.journal.LONG", 0.0)
        beside = Beside(("KFAC",), baselines=False)
        with held(bank), pytest.raises(InputError, match="is being written by"):
            cf.judge(scores[0], bank=bank, positive="helps", beside=beside, threads=1)

    def test_one_that_waits_finds_what_the_other_made(self, bank: Path) -> None:
        begun = Event()

        def other() -> None:
            with held(bank):
                begun.set()
                time.sleep(1)
                make_slice([StudySpec("wine", 6, models=2, orders=1)], bank, Slice(1, 1), threads=1)

        thread = Thread(target=other)
        thread.start()
        begun.wait()
        assert self.judged(bank, 6, wait=True).trained == 0
        thread.join()


class TestSaid:
    def test_file(self, scores: Tensor, tmp_path: Path) -> None:
        out = tmp_path / "j.json"
        made = cf.judge(scores, bank=WINE, positive="helps", beside=ALONE, out=out)
        assert read_judgement(out) == made
        with pytest.raises(InputError, match="is not there"):
            read_judgement(tmp_path / "k.json")

    def test_table(self, all_models: Judgement) -> None:
        table = method_table(all_models)
        assert table.columns[:4] == ("Method", "LDS", "95% interval", "judged − this")
        for method, row in zip(all_models.methods, table.rows, strict=True):
            assert row[:2] == (method.name, number(method.lds))
            assert row[3] == number(method.less, signed=True)

    def test_headline(self, all_models: Judgement) -> None:
        said = headline(all_models)
        better = said.split("better than ")[1].split(";")[0]
        assert "random" in better
        assert "random" not in said.split("better than ")[1].split(";", 1)[1]

    def test_command(
        self,
        scores: Tensor,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        np.save(tmp_path / "s.npy", scores[0].numpy())
        words = ["judge", str(tmp_path / "s.npy"), "--problem", "wine", "--bank", str(WINE)]
        words += ["--against", "KFAC", "--no-progress", "--out", str(tmp_path / "j.json")]
        code, _, err = run(words, monkeypatch, capsys)
        assert code == 2
        assert "nothing says whether a positive score helps its query" in err
        code, out, err = run([*words, "--positive", "hurts"], monkeypatch, capsys)
        assert code == 0, err
        assert "judged on wine: LDS −" in out
        assert "the sign looks reversed" in " ".join(out.split())
        assert read_judgement(tmp_path / "j.json").positive == "hurts"
        code, _, err = run([*words, "--positive", "helps", "--model", "x"], monkeypatch, capsys)
        assert (code, "takes numbers by comma" in err) == (2, True)

    def test_one_object_whichever_was_imported_first(self) -> None:
        import curvfluence.judging

        assert cf.judge is curvfluence.judging.judge
