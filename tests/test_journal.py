"""Work that is kept piece by piece: wherever it is interrupted, the same bits come out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.auditing import audit
from curvfluence.curvature.inversion import ConjugateGradients, SelectedRows
from curvfluence.curvature.long_work import takes_long
from curvfluence.curvature.operators import decomposed
from curvfluence.explore import Answers, answer, going_on
from curvfluence.judging import subject
from curvfluence.runtime import budget, journal
from curvfluence.runtime.eigen_solver import FAILED
from curvfluence.runtime.said import noted
from curvfluence.store.steps import Steps
from curvfluence.study import climb
from curvfluence.study.problems.given import Given

pytestmark = pytest.mark.filterwarnings("ignore::curvfluence.errors.CurvfluenceWarning")
N, Q, WIDTH, CLASSES = 23, 5, 6, 3


class Interrupted(BaseException):
    """As a kill would be: nothing catches it."""


def problem(loss: cf.Loss | None = None) -> cf.Problem:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES))
    x = torch.randn(N + Q, 4, generator=generator)
    y = torch.randint(CLASSES, (N + Q,), generator=generator)
    loss = cf.CrossEntropy() if loss is None else loss
    return cf.Problem(model, loss, (x[:N], y[:N]), (x[N:], y[N:]), weight_decay=1e-3)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "EXAMPLES", 5)
    monkeypatch.setattr(decomposed, "KEPT", 0)


def interrupted(
    make: Callable[[], Any], folder: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, int]:
    """`make()` in a command that is killed after each `after` times that something was kept, and
    given again until it ends; and how often it was killed."""
    write, steps = Steps.keep, Steps(folder, {"of": "a test"})
    kept = 0

    def keep(self: Steps, name: Any, value: Any) -> None:
        nonlocal kept
        write(self, name, value)
        kept += 1
        if kept % after == 0:
            raise Interrupted

    monkeypatch.setattr(Steps, "keep", keep)
    for kills in range(500):
        try:
            with journal.kept_in(steps, every=0.0):
                return make(), kills
        except Interrupted:
            pass
    raise AssertionError("it makes no headway")


def uninterrupted(make: Callable[[], Any], folder: Path) -> Any:
    with journal.kept_in(Steps(folder, {"of": "a test"}), every=1e9):
        return make()


def same(a: Any, b: Any) -> None:
    assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def scored(rung: cf.Rung, damping: cf.Damping = cf.Relative(0.1)) -> tuple[Tensor, Any, Any]:  # noqa: B008
    scores = cf.influence(problem(), rung, damping=damping)
    return scores.values, scores.notes, scores.certificate().residuals


RUNGS: dict[str, cf.Rung] = {
    "EKFAC": cf.EKFAC(),
    "EKFAC[mc(2)]": cf.EKFAC(fisher=cf.MonteCarlo(2, seed=3)),
    "EKFAC[mc(1), exact]": cf.EKFAC(fisher=cf.MonteCarlo(1, seed=3), values=cf.Type2()),
    "KFAC[empirical]": cf.KFAC(fisher=cf.Empirical()),
    "EKFAC[empirical]": cf.EKFAC(fisher=cf.Empirical()),
    "EKFAC of two": cf.EKFAC(eigenvectors=2),
    "Shampoo": cf.Shampoo(),
    "Diagonal": cf.Diagonal(),
    "BlockGGN": cf.BlockGGN(),
    "GGN": cf.GGN(),
    "GGN(iterative)": cf.GGN(ConjugateGradients()),
    "GGN(rows)": cf.GGN(SelectedRows(20)),
    "Hessian": cf.Hessian(),
}


class TestTheSameBits:
    @pytest.mark.parametrize("after", [1, 2, 3])
    @pytest.mark.parametrize("name", list(RUNGS))
    def test_scores(
        self, name: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Sums over the data, decompositions, iterations and tiles of scores; notes too (surprising
        labels are counted in a pass)."""
        (tmp_path / "a").mkdir()
        wanted = uninterrupted(lambda: scored(RUNGS[name]), tmp_path / "a")
        found, kills = interrupted(lambda: scored(RUNGS[name]), tmp_path / "b", after, monkeypatch)
        assert kills >= 4 // after
        for one, other in zip(found, wanted, strict=True):
            same(one, other)

    def test_next_to_those_of_the_library(self, tmp_path: Path) -> None:
        """Which may read gradients that a fit left in memory."""
        for rung in RUNGS.values():
            ours = uninterrupted(lambda rung=rung: scored(rung)[0], tmp_path / "a")
            theirs = scored(rung)[0]
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6 * float(theirs.abs().max()))

    @pytest.mark.parametrize("after", [1, 2, 5])
    def test_audit(self, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def made() -> tuple[Tensor, ...]:
            found = audit(problem(), k=4)
            near = found.neighbours
            return (*found.values.values(), near.indices, near.cosines)

        wanted = uninterrupted(made, tmp_path / "a")
        found, kills = interrupted(made, tmp_path / "b", after, monkeypatch)
        assert kills >= 10 // after
        for one, other in zip(found, wanted, strict=True):
            same(one, other)

    def test_answers_of_two_rungs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Works of one name are told apart by what they are works of."""

        def made() -> Answers:
            given = Given("x", "x", problem())
            return answer(given, rung=cf.EKFAC(), beside=cf.KFAC(), top=3)

        wanted = uninterrupted(made, tmp_path / "a")
        found, kills = interrupted(made, tmp_path / "b", 1, monkeypatch)
        assert kills > 10
        for one, other in zip(found.answers, wanted.answers, strict=True):
            same(one.scores.values, other.scores.values)
            assert one.certificate == other.certificate
        assert not torch.equal(found.answers[0].scores.values, found.answers[1].scores.values)

    def test_what_is_said_is_said_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A decomposition that did not converge says so whoever reads it."""
        once = torch.linalg.eigh
        calls = 0

        def fails(matrix: Tensor) -> Any:
            nonlocal calls
            calls += matrix.dtype == torch.float32
            if matrix.dtype == torch.float32:
                raise FAILED("no")
            return once(matrix)

        monkeypatch.setattr(torch.linalg, "eigh", fails)

        def made() -> tuple[str, ...]:
            matrix = torch.eye(3)
            with noted() as said:
                decomposed.eigh(matrix)
            return tuple(said)

        found, kills = interrupted(made, tmp_path / "b", 1, monkeypatch)
        assert kills == 1
        assert calls == 1
        assert len(found) == 1
        assert "did not converge in float32: it was done in float64" in found[0]

    def test_another_form_is_another_work(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`GGN()` takes its form by the memory: what one form kept is not read by another."""
        from curvfluence.curvature.inversion import Matrix, SampleSpace

        forms = [Matrix(), SampleSpace(), SelectedRows(20), ConjugateGradients()]
        steps = Steps(tmp_path / "s", {"of": "a test"})
        for form in forms:
            monkeypatch.setattr("curvfluence.curvature.ggn.cheapest", lambda *_, form=form: form)
            with journal.kept_in(steps, every=0.0):
                found = scored(cf.GGN())[0]
            fresh = uninterrupted(lambda: scored(cf.GGN()), tmp_path / str(forms.index(form)))[0]
            assert torch.equal(found, fresh)


class TestWhatIsKept:
    def test_nothing_without_a_journal(self, tmp_path: Path) -> None:
        assert not journal.steady()
        with journal.work("x") as ours:
            assert ours is None
        ((start, _),) = journal.in_pieces("x", lambda first: iter([(first, torch.ones(2))]))
        assert start == 0
        assert journal.whole("x", lambda: 3) == 3

    def test_a_short_work_is_done_again(self, tmp_path: Path) -> None:
        steps = Steps(tmp_path / "s", {})
        with journal.kept_in(steps):
            assert journal.whole("x", lambda: 1) == 1
        with journal.kept_in(steps):
            assert journal.whole("x", lambda: 2) == 2
            assert journal.whole("y", lambda: 3, always=True) == 3
        with journal.kept_in(steps):
            assert journal.whole("y", lambda: 4, always=True) == 3

    def test_works_of_a_work_are_no_works(self, tmp_path: Path) -> None:
        with journal.kept_in(Steps(tmp_path / "s", {})), journal.work("x") as ours:
            assert ours is not None
            with journal.work("y") as inner:
                assert inner is None
            assert journal.steady()

    def test_a_kept_work_is_not_kept_again_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Keeping takes a tenth of the time at most: a work, and the seconds spent so far."""
        now = [0.0]
        monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(Steps, "keep", lambda *_: now.__setitem__(0, now[0] + 7.0))
        own = journal.Journal(Steps(tmp_path, {}), every=20.0)
        assert not own.due
        now[0] += 20.0
        assert own.due
        own.keep({}, None)
        now[0] += 139.0
        assert not own.due
        now[0] += 1.0
        assert own.due


class TestCommands:
    def test_long_ones_are_kept_beside_the_page(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page = tmp_path / "page.html"
        with going_on(page, problem(), "x"):
            assert not journal.steady()  # short: it is done again
        monkeypatch.setattr(journal, "LONG", 0.0)
        with going_on(page, problem(), "x"):
            assert journal.steady()
            assert (tmp_path / "page.html.steps").is_dir()
            with (
                pytest.raises(cf.errors.InputError, match="another command is on the way to"),
                going_on(page, problem(), "x"),
            ):
                pass
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("rung", "examples", "long"),
        [
            (cf.Identity(), 3300, False),
            (cf.KFAC(), 3300, True),
            (cf.EKFAC(), 3300, True),
            (cf.KFAC(), 4, False),  # of the few inputs' span
            (cf.GGN(), 4, False),  # in sample space
            (cf.GGN(cf.inversion.Matrix()), 4, True),
            (cf.Hessian(), 4, True),
        ],
    )
    def test_decompositions_count(
        self, rung: cf.Rung, examples: int, *, long: bool, tmp_path: Path
    ) -> None:
        """Of many inputs and few outputs they are nearly all of the work; for a study's ladder, a
        page and a judgement it is one function."""
        n, x = examples, torch.randn(examples + 2, 3300)
        y = torch.arange(examples + 2) % 2
        wide = cf.Problem(nn.Linear(3300, 2), cf.CrossEntropy(), (x[:n], y[:n]), (x[n:], y[n:]))
        assert takes_long(wide, [rung]) == long
        with going_on(tmp_path / "page.html", wide, rungs=[rung]):
            assert journal.steady() == long
        with climb._kept(Steps(tmp_path, {}), {"one": rung}, wide):
            assert journal.steady() == long
        assert subject.takes_long is takes_long

    def test_they_stay_after_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal, "LONG", 0.0)
        page = tmp_path / "page.html"

        def stopped(value: int) -> None:
            with going_on(page, problem(), "x"):
                assert journal.whole("y", lambda: value, always=True) == 1
                raise Interrupted

        for value in (1, 2):
            with pytest.raises(Interrupted):
                stopped(value)
        with going_on(page, problem(), "other settings"):
            assert journal.whole("y", lambda: 3, always=True) == 3

    @pytest.mark.parametrize("change", ["weights", "train", "queries", "labels", "loss", "decay"])
    def test_content(self, change: str) -> None:
        """What scores depend on has another name; the same in another object has the same."""
        from curvfluence.explore.kept import content

        one, other = problem(), problem()
        assert content(one) == content(other)
        changed = {
            "weights": lambda: one.theta["0.weight"][0, 0].add_(1e-3),
            "train": lambda: one.train.inputs[0, 0].add_(1e-3),
            "queries": lambda: one.queries.inputs[0, 0].add_(1e-3),
            "labels": lambda: one.train.targets[:1].copy_((one.train.targets[:1] + 1) % CLASSES),
            "loss": lambda: None,
            "decay": lambda: None,
        }[change]
        with torch.no_grad():
            changed()
        if change == "loss":
            one = problem(cf.CrossEntropy(label_smoothing=0.1))
        if change == "decay":
            one = cf.Problem(
                one.model, cf.CrossEntropy(), (one.train.inputs, one.train.targets),
                (one.queries.inputs, one.queries.targets), weight_decay=2e-3,
            )  # fmt: skip
        assert content(one) != content(other)

    def test_content_of_a_loss_of_ones_own(self) -> None:
        """A function has another address in every process, and the same values."""
        from curvfluence.explore.kept import content

        def made(scale: float) -> cf.Problem:
            def ell(output: Tensor, target: Tensor) -> Tensor:
                return scale * nn.functional.cross_entropy(output, target, reduction="none")

            return problem(cf.CustomLoss(ell))

        assert content(made(1.0)) == content(made(1.0))
        assert content(made(1.0)) != content(made(2.0))
