"""An index: landmarks against dense projections, lists against full scores, and its folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.errors import InputError
from curvfluence.indexing import encode, landmarks, make
from curvfluence.indexing.extremes import Extremes
from curvfluence.indexing.index import Index
from curvfluence.indexing.landmarks import randomly_pivoted
from curvfluence.jacobian.discovery import discover
from tests.indexed import DAMPING, coordinates, held, more
from tests.oracles import example_gradients, query_gradients
from tests.problems import all_problems, chain_problem
from tests.zoo import zoo_problem

RUNGS: tuple[cf.Rung, ...] = (
    cf.EKFAC(), cf.KFAC(), cf.EShampoo(), cf.BlockGGN(), cf.GGN(form=cf.inversion.Matrix()),
    cf.Diagonal(), cf.Identity(), cf.EKFAC(eigenvectors=2),
)  # fmt: skip


def kernel(problem: cf.Problem, rung: cf.Rung) -> Tensor:
    """g_nᵀ (C + diag(w) + λI)⁻¹ g_m of all examples, densely."""
    curvature = cf.fit(problem, rung)
    matrix = curvature.to_dense() + torch.diag(curvature.shift(DAMPING))
    g_np = example_gradients(problem)
    return g_np @ torch.linalg.solve(matrix, g_np.T)


@pytest.fixture
def problem() -> cf.Problem:
    return chain_problem()


class TestLandmarks:
    def test_projection(self, problem: cf.Problem, tmp_path: Path) -> None:
        """φ(g_n)·φ(g_m) = k_nᵀ K_LL⁻¹ k_m, the Nyström approximation of the kernel."""
        index = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING, dimension=5)
        wanted = kernel(problem, cf.EKFAC())
        own = index.landmarks.numbers
        assert len(own) == 5
        near = wanted[:, own] @ torch.linalg.solve(wanted[own][:, own], wanted[own])
        phi = coordinates(index)
        torch.testing.assert_close(
            phi @ phi.T, near, rtol=1e-5, atol=1e-6 * float(near.abs().max())
        )

    @pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
    def test_as_many_as_the_rank(self, problem: cf.Problem, rung: cf.Rung, tmp_path: Path) -> None:
        """Where landmarks span all gradients, φ(g_n)·φ(g_m) is the kernel: up to SPANNED of the
        trace that is left, in float32 of the file."""
        index = cf.index(problem, rung, out=tmp_path / "i", damping=DAMPING)
        wanted = (
            kernel(problem, rung)
            if rung != cf.Identity()
            else example_gradients(problem) @ example_gradients(problem).T
        )
        phi = coordinates(index)
        scale = float(wanted.diagonal().max())
        torch.testing.assert_close(phi @ phi.T, wanted, rtol=0, atol=3e-3 * scale)
        assert any("span the gradients" in note for note in index.record.notes)

    def test_what_rounding_has_made_indefinite(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of a block that has no Cholesky factor the leading part that has one is taken."""
        k = torch.tensor([[4.0, 1.0, 0.0], [1.0, 1.0, 2.0], [0.0, 2.0, 1.0]], dtype=torch.float64)

        def every(gap_bb: Tensor, *_: Tensor) -> list[int]:
            first = {tuple(row.tolist()): at for at, row in reversed(list(enumerate(gap_bb)))}
            return sorted(first.values())

        monkeypatch.setattr(landmarks, "_accepted", every)
        generator = torch.Generator().manual_seed(0)
        picked, phi = randomly_pivoted(k.diagonal().clone(), lambda at: k[:, at], 3, generator)
        assert 1 <= len(picked) < 3
        assert phi.isfinite().all()

    def test_chances(self) -> None:
        """Pairs of pivots come out as often as one after the other gives: a chance in proportion
        to the diagonal, and then to what the first leaves of it. Four standard deviations of 6,000
        draws."""
        k = torch.tensor([[4.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], dtype=torch.float64)
        count, seen = 6000, Counter[tuple[int, int]]()
        for seed in range(count):
            picked, _ = randomly_pivoted(
                k.diagonal().clone(), lambda at: k[:, at], 2, torch.Generator().manual_seed(seed)
            )
            seen[int(picked[0]), int(picked[1])] += 1
        for i in range(3):
            left = k.diagonal() - k[:, i].square() / k[i, i]
            for j in {0, 1, 2} - {i}:
                chance = float(k[i, i] / k.trace() * left[j] / left.sum())
                off = abs(seen[i, j] / count - chance)
                assert off < 4 * (chance * (1 - chance) / count) ** 0.5, (i, j)

    def test_factor(self) -> None:
        """F Fᵀ has the columns of K at the pivots, and is below K."""
        generator = torch.Generator().manual_seed(1)
        half = torch.randn(60, 25, generator=generator, dtype=torch.float64)
        k = half @ half.T
        picked, phi = randomly_pivoted(k.diagonal().clone(), lambda at: k[:, at], 12, generator)
        assert len(set(picked.tolist())) == 12
        torch.testing.assert_close(phi @ phi[picked].T, k[:, picked])
        assert float(torch.linalg.eigvalsh(k - phi @ phi.T).min()) > -1e-8 * float(k.trace())
        every, phi = randomly_pivoted(k.diagonal().clone(), lambda at: k[:, at], 60, generator)
        assert len(every) == 25
        torch.testing.assert_close(phi @ phi.T, k)

    def test_drawn_by_size(self, problem: cf.Problem) -> None:
        """Of more examples than are looked at, each with a chance that goes with its gradient: of
        one that is drawn, four standard deviations of 1,000 draws."""
        layout, count, seen = discover(problem), 1000, Counter[int]()
        drawn = landmarks._drawn  # pyright: ignore[reportPrivateUsage]
        for seed in range(count):
            seen[int(drawn(problem, layout, 1, torch.Generator().manual_seed(seed)))] += 1
        norms = example_gradients(problem).norm(dim=1)
        for n, chance in enumerate((norms / norms.sum()).tolist()):
            off = abs(seen[n] / count - chance)
            assert off < 4 * (chance * (1 - chance) / count) ** 0.5

    def test_error(self, problem: cf.Problem, tmp_path: Path) -> None:
        """`error` takes the least dimension that keeps it, and says what a limit leaves."""
        monotone = cf.index(problem, cf.EKFAC(), out=tmp_path / "all", damping=DAMPING)
        errors = dict(monotone.record.errors)
        few = cf.index(problem, cf.EKFAC(), out=tmp_path / "few", damping=DAMPING, error=0.9)
        assert few.record.dimension == next(d for d, e in errors.items() if e <= 0.9)
        short = cf.index(
            problem, cf.EKFAC(), out=tmp_path / "s", damping=DAMPING, dimension=2, error=1e-6
        )
        assert any("where 1e-06 was asked" in note for note in short.record.notes)

    def test_errors_are_of_scores(self, problem: cf.Problem, tmp_path: Path) -> None:
        index = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING, dimension=3)
        exact = cf.influence(problem, cf.EKFAC(), damping=DAMPING).values
        wanted = kernel(problem, cf.EKFAC())
        own, curvature = index.landmarks.numbers, index.curvature
        g_q, g_n = query_gradients(problem), example_gradients(problem)
        k_qd = curvature.solve(g_q, DAMPING) @ g_n[own].T
        near = k_qd @ torch.linalg.solve(wanted[own][:, own], wanted[own]) / len(problem.train)
        assert len(problem.queries) <= make.SAMPLED
        error = float((near - exact).norm() / exact.norm())
        assert index.record.errors[-1] == pytest.approx((3, error))


class TestQueries:
    @pytest.mark.parametrize("name", list(all_problems()))
    def test_lists(self, name: str, tmp_path: Path) -> None:
        """With all examples as candidates the lists are those of the scores."""
        problem = all_problems()[name]
        n = len(problem.train)
        index = cf.index(problem, cf.KFAC(), out=tmp_path / "i", damping=DAMPING)
        scores = cf.influence(problem, cf.KFAC(), damping=DAMPING)
        found = index.query(k=3, candidates=n)
        for mine, theirs in ((found.top, scores.top(3)), (found.bottom, scores.bottom(3))):
            torch.testing.assert_close(mine.values, theirs.values)
            at = mine.indices
            torch.testing.assert_close(scores.values.gather(1, at), mine.values)
        again = cf.load_index(tmp_path / "i", problem).query([1], k=3, candidates=n)
        assert torch.equal(again.top.indices[0], found.top.indices[1])

    @pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
    def test_rungs(self, problem: cf.Problem, rung: cf.Rung, tmp_path: Path) -> None:
        index = cf.index(problem, rung, out=tmp_path / "i", damping=DAMPING)
        scores = cf.influence(problem, rung, damping=DAMPING)
        found = cf.load_index(tmp_path / "i", problem).query(k=4, candidates=len(problem.train))
        torch.testing.assert_close(found.top.values, scores.top(4).values)
        assert (found.rung, found.unit) == (scores.rung, scores.unit)
        assert repr(index).endswith(f"damping {DAMPING})")

    def test_what_is_said_is_of_what_was_scored(self, problem: cf.Problem, tmp_path: Path) -> None:
        """Another measurement than the index was made with, another curvature: their names and
        units, and no recall that was measured for others."""
        ekfac = cf.index(problem, cf.EKFAC(), out=tmp_path / "a", damping=DAMPING)
        plain = ekfac.query(k=2)
        assert plain.recall is not None
        assert plain.unit == "nats"
        logs = cf.Problem(
            problem.model,
            problem.loss,
            held(problem.train),
            held(problem.queries),
            weight_decay=0.01,
            measurement=cf.LogProbability(),
        )
        found = cf.load_index(tmp_path / "a", logs).query(k=2, candidates=12)
        assert (found.measurement, found.recall) == (cf.LogProbability().name, None)
        assert "not for EKFAC and the" in found.notes[-1]
        wanted = cf.influence(logs, cf.EKFAC(), damping=DAMPING)
        torch.testing.assert_close(found.top.values, wanted.top(2).values)
        by = ekfac.query(k=2, by=cf.fit(problem, cf.Identity()))
        assert (by.unit, by.recall) == ("none (a gradient dot product)", None)
        identity = cf.index(problem, cf.Identity(), out=tmp_path / "b")
        by = identity.query(k=2, by=cf.fit(problem, cf.GGN(form=cf.inversion.Matrix())))
        assert (by.unit, by.recall, by.rung) == ("nats", None, "GGN")
        assert "was measured for Identity" in by.notes[-1]

    def test_changed_data_are_noticed(self, problem: cf.Problem, tmp_path: Path) -> None:
        """Of the training set and of what was appended, by every way to ask and to add."""
        index = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        x, y = more(3)
        longer = index.append((x, y))
        x.mul_(5)
        with pytest.raises(InputError, match="data were changed"):
            longer.query(k=2)
        by = cf.fit(problem, cf.GGN(form=cf.inversion.Matrix()))
        held(problem.train).tensors[0].add_(1.0)
        for ask in (
            lambda: index.query(k=2),
            lambda: index.query(k=2, by=by),
            lambda: index.append((x, y)),
        ):
            with pytest.raises(InputError, match="data were changed"):
                ask()

    def test_of_any_size(self, tmp_path: Path) -> None:
        """Neither one example far above the others nor gradients beyond float32 hide the rest."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        x, y = torch.randn(420, 6).double(), torch.randn(420, 1).double()
        far = y.clone()
        far[7] *= 1e5
        for k, (targets, scale) in enumerate(((far, 1.0), (y, 1e20), (y, 1e100))):
            data = (x[:400], scale * targets[:400]), (x[400:], scale * targets[400:])
            problem = cf.Problem(model, cf.MSE(), *data)
            index = cf.index(problem, cf.EKFAC(), out=tmp_path / str(k), damping=cf.Relative(0.1))
            assert index.record.dimension > 50
            recall = index.record.recall
            assert recall is not None
            assert recall.helpful == recall.harmful == 1.0
            scores = cf.influence(problem, cf.EKFAC(), damping=cf.Relative(0.1))
            found = index.query(k=5)
            torch.testing.assert_close(found.top.values, scores.top(5).values)
            large = index.query((x[400:402], 1e45 * y[400:402]), k=5)
            small = index.query((x[400:402], y[400:402]), k=5)
            assert large.top.values.isfinite().all()
            assert small.top.values.isfinite().all()

    def test_higher_is_better(self, problem: cf.Problem, tmp_path: Path) -> None:
        margin = cf.Problem(
            problem.model,
            problem.loss,
            held(problem.train),
            held(problem.queries),
            measurement=cf.Margin(),
        )
        index = cf.index(margin, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        scores = cf.influence(margin, cf.EKFAC(), damping=DAMPING)
        found = index.query(k=2, candidates=len(problem.train))
        torch.testing.assert_close(found.top.values, scores.top(2).values)
        torch.testing.assert_close(found.bottom.values, scores.bottom(2).values)

    @pytest.mark.parametrize(
        "name", ["conv2d", "multi-head attention", "embedding", "tied transformer"]
    )
    def test_shared_positions(self, name: str, tmp_path: Path) -> None:
        problem = zoo_problem(name, n=9)
        cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        scores = cf.influence(problem, cf.EKFAC(), damping=DAMPING)
        found = cf.load_index(tmp_path / "i", problem).query(k=2, candidates=9)
        torch.testing.assert_close(found.top.values, scores.top(2).values)

    def test_weighted_examples(self, problem: cf.Problem, tmp_path: Path) -> None:
        weights = torch.arange(len(problem.train)).double() % 3
        weighted = cf.Problem(
            problem.model,
            problem.loss,
            held(problem.train),
            held(problem.queries),
            sample_weight=weights,
        )
        index = cf.index(weighted, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        scores = cf.influence(weighted, cf.EKFAC(), damping=DAMPING)
        found = index.query(k=3, candidates=len(problem.train))
        torch.testing.assert_close(found.top.values, scores.top(3).values)

    def test_by_another_curvature(self, problem: cf.Problem, tmp_path: Path) -> None:
        index = cf.index(problem, cf.KFAC(), out=tmp_path / "i", damping=DAMPING)
        n = len(problem.train)
        for rung in (cf.GGN(), cf.Hessian()):
            scores = cf.influence(problem, rung, damping=DAMPING)
            found = index.query(k=3, candidates=n, by=cf.fit(problem, rung))
            torch.testing.assert_close(found.top.values, scores.top(3).values)
            assert found.rung == scores.rung
        exact = index.query(k=3, by=cf.fit(problem, cf.GGN()), candidates=n).certificate()
        assert exact.worst < 1e-9

    def test_certificate(self, problem: cf.Problem, tmp_path: Path) -> None:
        index = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        wanted = cf.influence(problem, cf.EKFAC(), damping=DAMPING).certificate()
        assert index.query().certificate().residuals == pytest.approx(wanted.residuals)

    def test_other_queries(self, problem: cf.Problem, tmp_path: Path) -> None:
        """Queries that the problem does not have, and several at a time."""
        index = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        x, y = problem.train.take(slice(0, 5)).inputs, problem.train.take(slice(0, 5)).targets
        other = cf.Problem(
            problem.model, problem.loss, held(problem.train), (x, y), weight_decay=0.01
        )
        found = index.query((x, y), k=3, candidates=len(problem.train))
        curvature = index.curvature
        exact = curvature.solve(query_gradients(other), DAMPING) @ example_gradients(problem).T
        exact = exact / len(problem.train)
        torch.testing.assert_close(found.top.values, exact.topk(3).values)

    def test_recall_is_counted(
        self, problem: cf.Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Against the exact lists, with so few candidates that some are missed."""
        monkeypatch.setattr(make, "RECALLED", 4)
        monkeypatch.setattr(make, "AMONG", 5)
        index = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING, dimension=2)
        scores = cf.influence(problem, cf.EKFAC(), damping=DAMPING).values
        phi = coordinates(index)
        k_qd = index.curvature.solve(query_gradients(problem), DAMPING)
        k_qd = k_qd @ example_gradients(problem)[index.landmarks.numbers].T
        near = index.landmarks.coordinates(k_qd.T) @ phi.T
        shares = torch.tensor(
            [
                [
                    len(set(a.topk(4, largest=end).indices.tolist())
                        & set(b.topk(5, largest=end).indices.tolist())) / 4
                    for a, b in zip(scores, near, strict=True)
                ]
                for end in (True, False)
            ]
        )  # fmt: skip
        recall = index.record.recall
        assert recall is not None
        assert (recall.k, recall.candidates) == (4, 5)
        assert recall.helpful == pytest.approx(float(shares[0].mean()))
        assert recall.harmful == pytest.approx(float(shares[1].mean()))
        assert recall.worst == pytest.approx(float(shares.min()))
        assert recall.helpful < 1 or recall.harmful < 1
        assert "are among the first 5" in str(index.query(k=2))

    def test_float16(self, problem: cf.Problem, tmp_path: Path) -> None:
        full = cf.index(problem, cf.EKFAC(), out=tmp_path / "a", damping=DAMPING)
        half = cf.index(
            problem, cf.EKFAC(), out=tmp_path / "b", damping=DAMPING, dtype=torch.float16
        )
        assert half.shards.phi[0].dtype == torch.float16
        a, near = coordinates(full), coordinates(half)
        assert float((near - a).abs().max()) < 1e-3 * float(a.abs().max())
        n = len(problem.train)
        one, other = full.query(candidates=n, k=3), half.query(candidates=n, k=3)
        assert torch.equal(one.top.indices, other.top.indices)


class TestExtremes:
    def test_tiles(self) -> None:
        values = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
        found = Extremes(7)
        for start in range(0, 50, 9):
            found.add(start, values[:, start : start + 9])
        for end, largest in enumerate((True, False)):
            wanted = values.topk(7, largest=largest)
            assert torch.equal(found.values[end], wanted.values)
            assert torch.equal(found.indices[end], wanted.indices)


class TestMemory:
    """An index whose landmarks are solved for some blocks after others is that of all at once."""

    def test_the_same_index(
        self, problem: cf.Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(encode, "SHARD", 5)

        def made(name: str, memory: int | None) -> Index:
            return cf.index(
                problem,
                cf.EKFAC(),
                out=tmp_path / name,
                damping=DAMPING,
                dimension=6,
                memory=memory,
            )

        whole = made("whole", None)
        largest = max(line.count for line in cf.EKFAC().coverage(problem))
        vectors = 6 + len(problem.queries)
        parts = made("parts", 8 * vectors * largest)
        assert torch.equal(parts.landmarks.numbers, whole.landmarks.numbers)
        torch.testing.assert_close(coordinates(parts), coordinates(whole))
        mine, its = parts.record.recall, whole.record.recall
        assert mine is not None
        assert its is not None
        assert (mine.helpful, mine.harmful, mine.worst) == (its.helpful, its.harmful, its.worst)
        # sums over blocks in another order: rounding of float64
        assert mine.errors[-1][1] == pytest.approx(its.errors[-1][1], rel=1e-12)
        assert any("groups of blocks after one another" in note for note in parts.record.notes)
        again = cf.load_index(tmp_path / "parts", problem, memory=8)  # landmarks' gradients anew
        assert again.rows.held is None
        for one in (parts, again):
            found, wanted = one.query(k=3), whole.query(k=3)
            assert torch.equal(found.top.indices, wanted.top.indices)
            torch.testing.assert_close(found.top.values, wanted.top.values)
        grown = parts.append(more(4))
        torch.testing.assert_close(coordinates(grown)[:12], coordinates(whole))
        torch.testing.assert_close(coordinates(grown)[12:], coordinates(whole.append(more(4)))[12:])

    def test_a_block_that_is_larger(self, problem: cf.Problem, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="take a smaller dimension, or a larger memory"):
            cf.index(problem, cf.EKFAC(), out=tmp_path / "index", damping=DAMPING, memory="1KiB")
        assert not (tmp_path / "index").exists()  # known before any work

    def test_gone_on_with_in_other_groups(
        self, problem: cf.Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Other groups, other rounding: one index has one, unless it is finished."""
        out = tmp_path / "index"

        def make(memory: int | None) -> Index:
            return cf.index(
                problem, cf.EKFAC(), out=out, damping=DAMPING, dimension=6, memory=memory
            )

        def killed(*_: Any) -> Any:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("curvfluence.indexing.make._filled", killed)
            with pytest.raises(KeyboardInterrupt):
                make(8 * 12 * 40)
        with pytest.raises(InputError, match="an index of another number of groups of blocks"):
            make(None)
        finished = make(8 * 12 * 40)
        assert make(None).record == finished.record


class TestAppended:
    def test_scored_like_others(self, problem: cf.Problem, tmp_path: Path) -> None:
        index = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        x, y = more(4)
        longer = index.append((x, y))
        n = len(problem.train)
        assert (len(index), len(longer)) == (n, n + 4)
        other = cf.Problem(
            problem.model, problem.loss, (x, y), held(problem.queries), weight_decay=0.01
        )
        g_n = torch.cat([example_gradients(problem), example_gradients(other)])
        exact = index.curvature.solve(query_gradients(problem), DAMPING) @ g_n.T / n
        found = longer.query(k=6, candidates=n + 4)
        torch.testing.assert_close(found.top.values, exact.topk(6).values)
        assert found.trained == n
        again = cf.load_index(tmp_path / "i", problem, appended=[(x, y)])
        torch.testing.assert_close(again.query(k=6, candidates=n + 4).top.values, found.top.values)

    def test_nothing_is_made_again(self, problem: cf.Problem, tmp_path: Path) -> None:
        cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        before = {f: f.read_bytes() for f in (tmp_path / "i").rglob("*.npy")}
        parts = [more(3), more(2)]
        made = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING, appended=parts)
        assert len(made) == len(problem.train) + 5
        assert all(f.read_bytes() == data for f, data in before.items())
        again = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING, appended=parts)
        assert len(again) == len(made)
        assert len(again.appended) == 2

    def test_refused(self, problem: cf.Problem, tmp_path: Path) -> None:
        index = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        x, y = more(3)
        index.append((x, y))
        with pytest.raises(InputError, match="take what append"):
            index.append((x, y))
        with pytest.raises(InputError, match="3 appended examples, and 0 are given"):
            cf.load_index(tmp_path / "i", problem)
        with pytest.raises(InputError, match=r"appended\[0\] holds other examples"):
            cf.load_index(tmp_path / "i", problem, appended=[(x + 1, y)])
        with pytest.raises(InputError, match="are not in the index"):
            cf.load_index(tmp_path / "i", problem, appended=[(x, y), (x, y)])
        longer = cf.load_index(tmp_path / "i", problem, appended=[(x, y)])
        with pytest.raises(InputError, match="weight 1 each"):
            longer.append(cf.Examples(x, y, torch.ones(3)))
        with pytest.raises(InputError):
            longer.append((x[:, :-1], y))
