"""The audit: every criterion against a dense oracle, lists, duplicates, files and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from typer.testing import CliRunner

import curvfluence as cf
from curvfluence.auditing import Audit
from curvfluence.auditing.audit import _suggested  # pyright: ignore[reportPrivateUsage]
from curvfluence.auditing.duplicates import duplicates
from curvfluence.auditing.record import AuditRecord, record_of
from curvfluence.cli import app
from curvfluence.errors import InputError
from curvfluence.problem.problem import Problem
from curvfluence.report.audit import write_audit
from curvfluence.report.audit.data import embedded
from curvfluence.report.audit.words import headline, why_sorted
from curvfluence.score.neighbours import Neighbours, neighbours
from curvfluence.store.records import read, write
from curvfluence.study.problems.given import Given
from tests.oracles import dense_ggn, example_gradients, query_gradients
from tests.problems import chain_problem, make, mlp, seeded

LAMBDA = 0.1
EXACT = cf.GGN(cf.inversion.Matrix())  # not by iteration, which stops at a residual


def metric(problem: Problem) -> Tensor:
    """(GGN + W + λI)⁻¹, dense."""
    return torch.linalg.inv(
        dense_ggn(problem)
        + torch.diag(problem.decay)
        + LAMBDA * torch.eye(len(problem.decay)).double()
    )


@pytest.fixture(scope="module")
def problem() -> Problem:
    return chain_problem()


@pytest.fixture(scope="module")
def found(problem: Problem) -> Audit:
    return cf.audit(problem, EXACT, damping=cf.Absolute(LAMBDA), k=4, flipped=[1, 5, 7])


class TestCriteria:
    def test_each_equals_its_dense_definition(self, problem: Problem, found: Audit) -> None:
        a, g_np, g_qp = metric(problem), example_gradients(problem), query_gradients(problem)
        n = len(g_np)
        outputs = problem.forward(problem.train.inputs)
        loss = torch.nn.functional.cross_entropy(outputs, problem.train.targets, reduction="none")
        own = (g_np @ a * g_np).sum(1) / n
        harm = -(g_qp @ a @ g_np.T / n).mean(0)
        values = found.values
        torch.testing.assert_close(values["loss"], loss.detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(values["self_influence"], own, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(values["left_out_loss"], loss.detach() + own, rtol=1e-8, atol=0)
        torch.testing.assert_close(values["harm"], harm, rtol=1e-8, atol=1e-12)

    def test_neighbours_are_the_largest_cosines(self, problem: Problem, found: Audit) -> None:
        a, g_np = metric(problem), example_gradients(problem)
        kernel = g_np @ a @ g_np.T
        norm = kernel.diagonal().sqrt()
        cosine = kernel / norm / norm[:, None]
        cosine.fill_diagonal_(0)
        best = cosine.abs().topk(4, 1).indices
        assert torch.equal(found.neighbours.indices, best)
        values = cosine.gather(1, best)
        torch.testing.assert_close(found.neighbours.cosines, values, rtol=1e-7, atol=1e-10)
        wanted = -values.sum(1) / values.abs().sum(1)
        torch.testing.assert_close(found.values["disagreement"], wanted, rtol=1e-7, atol=1e-10)

    def test_weights_of_examples_change_no_cosine(self, problem: Problem) -> None:
        """v_n stretches a gradient; what it is like stays. λ and the curvature are another, so the
        oracle is that of the weighted problem."""
        seeded()
        v = torch.tensor([2.0, 0.0, 1.0, 0.5, 3.0, 1, 1, 1, 1, 1, 1, 1], dtype=torch.float64)
        made = make(mlp(5, 4, 3), cf.CrossEntropy(), sample_weight=v)
        near = neighbours(made, EXACT, torch.arange(12), damping=cf.Absolute(LAMBDA), k=11)
        curvature = cf.fit(made, EXACT)
        plain = Problem(
            made.model, made.loss, (made.train.inputs, made.train.targets), made.queries
        )
        g_np = example_gradients(plain)
        a = torch.linalg.inv(
            curvature.to_dense()
            + torch.diag(made.decay)
            + LAMBDA * torch.eye(g_np.shape[1]).double()
        )
        kernel = g_np @ a @ g_np.T
        norm = kernel.diagonal().sqrt()
        cosine = kernel / norm / norm[:, None]
        cosine[:, 1] = cosine[1] = 0.0  # of no weight: neither has nor is a neighbour
        got = torch.zeros(12, 12, dtype=torch.float64)
        got.scatter_(1, near.indices, near.cosines)
        cosine.fill_diagonal_(0)
        torch.testing.assert_close(got, cosine, rtol=1e-7, atol=1e-9)

    def test_pieces_give_the_same_as_the_whole(
        self, problem: Problem, found: Audit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("curvfluence.score.neighbours.BLOCK", 5)
        rows = torch.tensor([3, 11, 0, 7, 2, 5, 9])
        near = neighbours(problem, EXACT, rows, damping=cf.Absolute(LAMBDA), k=4)
        assert torch.equal(near.indices, found.neighbours.indices[rows])

    def test_the_suggested_class_is_that_of_the_opposing_neighbours(self) -> None:
        labels = torch.tensor([0, 1, 1, 2, 0])
        near = Neighbours(
            torch.tensor([0, 3, 4]),
            torch.tensor([[1, 2, 3], [0, 1, 2], [0, 1, 2]]),
            torch.tensor([[-0.3, -0.3, -0.5], [0.9, 0.1, 0.2], [-0.9, 0.1, 0.2]]).double(),
        )
        # two of class 1 outweigh one of class 2; nothing against 3; against 4 only its own class
        assert _suggested(5, labels, near).tolist() == [1, -1, -1, -1, -1]

    def test_a_regression_has_no_labels(self) -> None:
        seeded()
        made = make(mlp(5, 4, 3), cf.MSE())
        found = cf.audit(made, cf.KFAC(), k=3)
        assert found.labels is None
        assert found.suggested is None
        assert found.values["disagreement"].isfinite().all()


class TestLists:
    def test_recall_and_auc_are_those_of_scikit_learn(self, found: Audit) -> None:
        truth = np.zeros(len(found))
        truth[[1, 5, 7]] = 1
        for one in found.criteria:
            values = found.values[one.name].numpy()
            assert found.auc(one.name) == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
            first = np.argsort(-values, kind="stable")[:6]
            assert found.recall(one.name, share=0.5) == truth[first].sum() / 3

    def test_only_some_are_examined_and_that_is_said(self, problem: Problem) -> None:
        found = cf.audit(problem, cf.EKFAC(), k=3, examined=5)
        known = found.values["disagreement"].isfinite()
        assert int(known.sum()) == 5
        assert any("5 examples of 12" in note for note in found.notes)
        order = found.ranking()
        assert bool(known[order[:5]].all())
        rest = found.values["loss"][order[5:]]
        assert bool((rest.diff() <= 0).all())
        ranks = found.values["loss"].argsort().argsort()
        ranks = ranks + found.values["self_influence"].argsort().argsort()
        assert int(ranks[known].min()) >= int(ranks[~known].max())

    def test_a_frame_in_the_order_of_the_list(self, found: Audit) -> None:
        pytest.importorskip("pandas")
        frame = found.to_frame()
        assert frame["example"].tolist() == found.ranking().tolist()
        assert (frame["disagreement"].diff().dropna() <= 0).all()

    def test_what_is_not_there_is_refused(self, found: Audit, problem: Problem) -> None:
        with pytest.raises(InputError, match="there is no criterion 'luck'; there are loss"):
            found.ranking("luck")
        with pytest.raises(InputError, match="at most 12"):
            found.suspects(13)
        with pytest.raises(InputError, match="flipped names training examples, 0 to 11; seen 12"):
            cf.audit(problem, cf.KFAC(), k=2, flipped=[12])
        all_of_them = cf.audit(problem, cf.KFAC(), k=50)
        assert any("only 11 neighbours" in note for note in all_of_them.notes)
        blank = cf.audit(problem, cf.KFAC(), k=2)
        with pytest.raises(InputError, match="no labels are known"):
            blank.recall()
        best = cf.BestOf((cf.Absolute(1.0),), truth=_Truth())
        with pytest.raises(InputError, match="BestOf"):
            cf.audit(problem, cf.KFAC(), damping=best)

    def test_the_file_holds_every_number(self, found: Audit, tmp_path: Path) -> None:
        write(tmp_path / "a.json", record_of(found, "chain"))
        again = read(tmp_path / "a.json", AuditRecord)
        assert again is not None
        assert again.recall_at_15_percent == found.recall()
        assert [one.example for one in again.suspects] == found.ranking().tolist()
        first = again.suspects[0]
        assert first.values["loss"] == float(found.values["loss"][first.example])


class _Truth:
    @property
    def left_out(self) -> Tensor:
        return torch.ones(1, 12)

    def judge(self, predicted_mq: Tensor) -> tuple[float, float]:
        return 0.0, 0.0


class TestDuplicates:
    def make(self, **changes: object) -> Problem:
        x = torch.arange(24.0).reshape(8, 3)
        x[5] = x[2]
        x[7] = x[2]
        x[6] = x[1]
        y = torch.tensor([0, 1, 0, 1, 0, 1, 1, 0])
        return Problem(mlp(3, 2), cf.CrossEntropy(), (x, y), (x[:1] + 100, y[:1]))

    def test_groups_and_conflicts(self) -> None:
        found = duplicates(self.make())
        assert [(group.examples, group.conflicting) for group in found] == [
            ((1, 6), False),
            ((2, 5, 7), True),
        ]

    def test_equal_checksums_are_no_proof(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "curvfluence.auditing.duplicates.row_checksums",
            lambda rows: torch.zeros(len(rows), dtype=torch.int64),
        )
        assert [group.examples for group in duplicates(self.make())] == [(1, 6), (2, 5, 7)]

    def test_none(self, problem: Problem) -> None:
        assert duplicates(problem) == ()


class TestCommand:
    @pytest.fixture(scope="class")
    @staticmethod
    def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
        folder = tmp_path_factory.mktemp("audit")
        out, numbers = folder / "audit.html", folder / "audit.json"
        done = CliRunner().invoke(
            app,
            ["audit", "digits-noisy", "--out", str(out), "--json", str(numbers), "--no-progress"],
        )
        assert done.exit_code == 0, done.output
        return done.output, folder

    def test_flipped_labels_stand_first(self, ran: tuple[str, Path]) -> None:
        """What the project promises of digits-noisy: 85% of them in the first 15%."""
        numbers = json.loads((ran[1] / "audit.json").read_text())
        assert numbers["recall_at_15_percent"] >= 0.85
        assert numbers["known_wrong"] == 162
        assert {one["name"] for one in numbers["criteria"]} >= {"loss", "disagreement"}

    def test_plain_loss_stands_beside_it(self, ran: tuple[str, Path]) -> None:
        said, folder = ran
        assert "the list by plain loss" in " ".join(said.split())
        assert "plain loss" in (folder / "audit.html").read_text()

    def test_what_it_is_sorted_by(self, ran: tuple[str, Path], found: Audit) -> None:
        said = " ".join(ran[0].split())
        assert "of the list by disagreement of neighbours hold" in said
        assert "the most; of yours another" not in said  # how well it does here is known
        blank = replace(found, flipped=None)
        assert headline(blank) == (
            "12 training examples, sorted by disagreement of neighbours; nobody has said which "
            "labels are wrong"
        )
        assert why_sorted(blank) == (
            "Of class labels that were changed at random in four data sets, the list by "
            "disagreement of neighbours found the most; of yours another may find more."
        )
        assert "of targets like these that was not measured" in why_sorted(
            replace(blank, labels=None)
        )

    def test_true_labels_go_with_their_examples(self, problem: Problem, found: Audit) -> None:
        """Whatever the order in which somebody named them."""
        asked = Given("c", "C", problem, flipped=(7, 1, 5), flipped_from=(2, 0, 1))
        assert embedded(found, asked)["wrong"] == {1: 0, 5: 1, 7: 2}

    def test_notes_stand_once(self, problem: Problem, found: Audit, tmp_path: Path) -> None:
        noted = replace(found, notes=("to keep in mind",))
        page = write_audit(noted, Given("c", "C", problem), tmp_path / "a.html")
        assert page.path.read_text().count("to keep in mind") == 1

    def test_nothing_is_written_over(self, tmp_path: Path) -> None:
        (tmp_path / "mine.html").write_text("mine")
        done = CliRunner().invoke(app, ["audit", "wine", "--out", str(tmp_path / "mine.html")])
        assert isinstance(done.exception, InputError)
        assert (tmp_path / "mine.html").read_text() == "mine"


def test_a_form_for_as_many_solves_as_examples() -> None:
    """For few queries `GGN()` takes the space of samples; self-influence solves for every example,
    so it takes the form for those: a matrix."""
    seeded()
    made = make(mlp(20, 16, 3), cf.CrossEntropy(), shape=(20,), n=120, q=1)
    assert isinstance(cf.GGN().form_of(made), cf.inversion.SampleSpace)
    assert cf.GGN().for_solves(made, 1000) == EXACT
    own = cf.self_influence(made, cf.GGN(), damping=cf.Absolute(LAMBDA))
    wanted = cf.self_influence(made, EXACT, damping=cf.Absolute(LAMBDA))
    torch.testing.assert_close(own, wanted, rtol=1e-10, atol=0)
    assert cf.KFAC().for_solves(made, 300) == cf.KFAC()
