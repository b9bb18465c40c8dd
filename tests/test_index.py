"""An index: landmarks against dense projections, lists against full scores, and its folder."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.cli import app
from curvfluence.errors import InputError, NonFiniteError
from curvfluence.indexing import encode, landmarks, make, shards
from curvfluence.indexing.extremes import Extremes
from curvfluence.indexing.index import Index
from curvfluence.indexing.landmarks import randomly_pivoted
from curvfluence.indexing.records import INDEX, IndexRecord
from curvfluence.jacobian.discovery import discover
from curvfluence.problem.stream import Data
from curvfluence.store.arrays import write_array
from curvfluence.store.records import as_json, read, seal, write
from tests.oracles import example_gradients, query_gradients
from tests.problems import all_problems, chain_problem, mixed_problem
from tests.zoo import zoo_problem

DAMPING = cf.Absolute(0.05)
RUNGS: tuple[cf.Rung, ...] = (
    cf.EKFAC(), cf.KFAC(), cf.EShampoo(), cf.BlockGGN(), cf.GGN(form=cf.inversion.Matrix()),
    cf.Diagonal(), cf.Identity(),
)  # fmt: skip


def kernel(problem: cf.Problem, rung: cf.Rung) -> Tensor:
    """g_nᵀ (C + diag(w) + λI)⁻¹ g_m of all examples, densely."""
    curvature = cf.fit(problem, rung)
    matrix = curvature.to_dense() + torch.diag(curvature.shift(DAMPING))
    g_np = example_gradients(problem)
    return g_np @ torch.linalg.solve(matrix, g_np.T)


def coordinates(index: Index) -> Tensor:
    """φ [N, d], as they were before they were scaled."""
    return index.record.scale * torch.cat(index.shards.phi).double()


def held(data: Data) -> cf.Examples:
    assert isinstance(data, cf.Examples)
    return data


def _whole(problem: cf.Problem, *_: object) -> int:
    return len(problem.train)


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
        x, y = TestAppended().more(3)
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


class TestAppended:
    def more(self, count: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(5)
        x = torch.randn(count, 5, generator=generator, dtype=torch.float64)
        return x, torch.randint(0, 3, (count,), generator=generator)

    def test_scored_like_others(self, problem: cf.Problem, tmp_path: Path) -> None:
        index = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        x, y = self.more(4)
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
        parts = [self.more(3), self.more(2)]
        made = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING, appended=parts)
        assert len(made) == len(problem.train) + 5
        assert all(f.read_bytes() == data for f, data in before.items())
        again = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING, appended=parts)
        assert len(again) == len(made)
        assert len(again.appended) == 2

    def test_refused(self, problem: cf.Problem, tmp_path: Path) -> None:
        index = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        x, y = self.more(3)
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


class TestFolder:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(encode, "SHARD", 5)
        monkeypatch.setattr("curvfluence.runtime.budget.EXAMPLES", 5)

    def test_goes_on(
        self, problem: cf.Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Stopped after every write, each time at the next: the same bytes in the end."""

        class Stop(Exception):
            pass

        whole = cf.index(problem, cf.EKFAC(), out=tmp_path / "a", damping=DAMPING)
        assert len(whole.record.shards) > 2
        written = make.write
        stops = 0
        while True:
            allowed = 1

            def once(path: Path, record: IndexRecord) -> str:
                nonlocal allowed
                if allowed == 0:
                    raise Stop
                allowed -= path.name == INDEX  # what is begun is begun again
                return written(path, record)

            monkeypatch.setattr(make, "write", once)
            try:
                index = cf.index(problem, cf.EKFAC(), out=tmp_path / "b", damping=DAMPING)
                break
            except Stop:
                stops += 1
                with pytest.raises(InputError, match=r"is not finished|holds no index"):
                    cf.load_index(tmp_path / "b", problem)
        assert stops == len(whole.record.shards) + 2
        assert torch.equal(coordinates(index), coordinates(whole))
        assert index.record.recall == whole.record.recall
        again = cf.index(problem, cf.EKFAC(), out=tmp_path / "b", damping=DAMPING)
        assert again.record == index.record

    def test_progress(self, problem: cf.Problem, tmp_path: Path) -> None:
        told: list[int] = []
        cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING, progress=told.append)
        assert told[-1] == len(problem.train)
        assert len(told) > 2
        assert told == sorted(told)

    def test_ids(self, problem: cf.Problem, tmp_path: Path) -> None:
        index = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        assert torch.equal(index.ids, problem.train.contents)

    @pytest.mark.parametrize("what", ["phi", "ids", "landmarks", "factor", "curvature"])
    def test_damage(self, what: str, problem: cf.Problem, tmp_path: Path) -> None:
        folder = tmp_path / "i"
        cf.index(problem, cf.EKFAC(), out=folder, damping=DAMPING)
        name = {"phi": "shards/00001.phi.npy", "ids": "shards/00000.ids.npy"}.get(
            what, "curvature/0000.npy" if what == "curvature" else f"{what}.npy"
        )
        file = folder / name
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(bytes(data))
        with pytest.raises(InputError, match="is not what was written"):
            cf.load_index(folder, problem)
        file.unlink()
        with pytest.raises(InputError, match="is missing"):
            cf.load_index(folder, problem)

    def test_an_edited_record(self, problem: cf.Problem, tmp_path: Path) -> None:
        cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        file = tmp_path / "i" / INDEX
        value = json.loads(file.read_text())
        value["recall"]["helpful"] = 0.5
        file.write_text(json.dumps(value))
        with pytest.raises(InputError, match="is not what was written"):
            cf.load_index(tmp_path / "i", problem)

    def test_another(self, problem: cf.Problem, tmp_path: Path) -> None:
        folder = tmp_path / "i"
        index = cf.index(problem, cf.EKFAC(), out=folder, damping=DAMPING)
        changes: list[dict[str, Any]] = [
            {"rung": cf.KFAC()},
            {"damping": cf.Absolute(0.06)},
            {"dimension": 3},
            {"seed": 1},
            {"dtype": torch.float16},
        ]
        for changed in changes:
            options: dict[str, Any] = {"rung": cf.EKFAC(), "damping": DAMPING, **changed}
            rung = options.pop("rung")
            with pytest.raises(InputError, match=f"of another {next(iter(changed))}"):
                cf.index(problem, rung, out=folder, **options)
        with torch.no_grad():
            moved = {k: v + 0.01 for k, v in problem.model.state_dict().items()}
        with pytest.raises(InputError, match="of other weights"):
            cf.load_index(folder, problem.at(moved))
        held(problem.train).tensors[0][0] += 1
        with pytest.raises(InputError, match="data were changed since the index was made"):
            index.query()
        other = tmp_path / "o"
        other.mkdir()
        (other / "mine.txt").write_text("keep")
        with pytest.raises(InputError, match="holds files that are no index"):
            cf.index(problem, cf.EKFAC(), out=other, damping=DAMPING)
        with pytest.raises(InputError, match="holds no index"):
            cf.load_index(other, problem)

    def test_nothing_of_the_users_is_removed(self, problem: cf.Problem, tmp_path: Path) -> None:
        """A folder that holds a curvature of somebody's own is refused, as it is."""
        own = tmp_path / "i" / "curvature"
        cf.fit(problem, cf.KFAC()).save(own)
        (own / "my_notes.txt").write_text("mine")
        before = {file: file.read_bytes() for file in own.iterdir()}
        for rung in (cf.KFAC(), cf.EKFAC()):
            with pytest.raises(InputError, match="holds files that are no index"):
                cf.index(problem, rung, out=tmp_path / "i", damping=DAMPING)
        assert before == {file: file.read_bytes() for file in own.iterdir()}

    def test_killed_while_the_curvature_is_written(
        self, problem: cf.Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, calls = cf.Curvature.save, list[int]()

        def half(self: cf.Curvature, path: Path) -> None:
            real(self, path)
            calls.append(1)
            if len(calls) == 1:
                (Path(path) / "curvature.json").unlink()
                raise KeyboardInterrupt

        monkeypatch.setattr(cf.Curvature, "save", half)
        with pytest.raises(KeyboardInterrupt):
            cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        with pytest.raises(InputError, match="holds files that are no index"):
            cf.index(problem, cf.KFAC(), out=tmp_path / "i", damping=DAMPING)
        index = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        assert index.record.recall is not None

    def test_damage_is_not_gone_on_with(self, problem: cf.Problem, tmp_path: Path) -> None:
        """Neither the call that made it nor one that goes on believes a file that was changed."""
        cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        file = tmp_path / "i/shards/00001.phi.npy"
        data = bytearray(file.read_bytes())
        data[-5] ^= 255
        file.write_bytes(bytes(data))
        with pytest.raises(InputError, match="is not what was written"):
            cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)

    def test_who_made_a_finished_one_does_not_matter(
        self, problem: cf.Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        half = structs.replace(whole.record, recall=None)
        monkeypatch.setitem(make.MAKERS, "threads", lambda: "99")
        again = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        assert again.record == whole.record
        write(tmp_path / "i" / INDEX, half)
        with pytest.raises(InputError, match="an index of another threads"):
            cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)

    def test_hostile_records(self, problem: cf.Problem, tmp_path: Path) -> None:
        """Sealed anew by whoever changed them: an error of the package's own, whatever is wrong."""
        folder = tmp_path / "i"
        record = cf.index(problem, cf.EKFAC(), out=folder, damping=DAMPING).record
        assert record.recall is not None
        assert record.landmarks is not None
        assert record.factor is not None
        first, recall = record.shards[0], record.recall
        changes: list[dict[str, Any]] = [
            {"examples": record.examples + 1},
            {"examples": 10**15},
            {"shards": ()},
            {"shards": record.shards[:-1]},
            {"shards": (structs.replace(first, examples=3), *record.shards[1:])},
            {"shards": (structs.replace(first, phi=first.ids), *record.shards[1:])},
            {"shards": (structs.replace(first, ids=first.phi), *record.shards[1:])},
            {"landmarks": None},
            {"factor": None},
            {"landmarks": record.factor},
            {"factor": record.landmarks},
            {"dtype": "object"},
            {"dtype": "float16"},
            {"recall": structs.replace(recall, errors=())},
            {"recall": None},
            {"fitted_on": "0" * 16},
        ]
        for changed in changes:
            write(folder / INDEX, structs.replace(record, **changed))
            with pytest.raises(InputError):
                cf.load_index(folder, problem)
        for text in (
            {"scale": 0.0}, {"scale": -1.0}, {"recall": {"helpful": 7.0}}, {"examples": -1}
        ):  # fmt: skip
            value = as_json(record)
            for key, new in text.items():
                value[key] = {**value[key], **new} if isinstance(new, dict) else new
            sealed = {"sha256": seal(value), **value}
            (folder / INDEX).write_text(json.dumps(sealed))
            with pytest.raises(InputError):
                cf.load_index(folder, problem)
        write(folder / INDEX, record)
        cf.load_index(folder, problem)

    def test_hostile_arrays(self, problem: cf.Problem, tmp_path: Path) -> None:
        folder = tmp_path / "i"
        index = cf.index(problem, cf.EKFAC(), out=folder, damping=DAMPING)
        record = index.record
        numbers, factor = index.landmarks.numbers.numpy(), index.landmarks.factor.numpy()
        phi, ids = (one[0].clone().numpy() for one in (index.shards.phi, index.shards.ids))
        first = record.shards[0]

        def put(where: str, array: Any) -> IndexRecord:
            name = f"{where}.npy" if where in ("landmarks", "factor") else (
                f"shards/00000.{where}.npy"
            )  # fmt: skip
            said = write_array(folder / name, array, record.key)
            if where in ("landmarks", "factor"):
                return structs.replace(record, **{where: said})
            shard = structs.replace(first, **{where: said})
            return structs.replace(record, shards=(shard, *record.shards[1:]))

        nan, inf = phi.copy(), phi.copy()
        nan[2, 1], inf[0, 0] = np.nan, np.inf
        hostile: list[tuple[str, Any]] = [
            ("landmarks", numbers + 1000),
            ("landmarks", -numbers - 1),
            ("landmarks", np.zeros_like(numbers)),
            ("landmarks", numbers.astype(np.float64)),
            ("landmarks", numbers.astype(np.uint64)),
            ("landmarks", numbers[:-1]),
            ("factor", np.zeros_like(factor)),
            ("factor", -factor),
            ("factor", factor.T.copy()),
            ("factor", factor[:3, :3]),
            ("factor", factor[0]),
            ("factor", factor.astype(np.float32)),
            ("factor", factor.astype(">f8")),
            ("phi", nan),
            ("phi", inf),
            ("phi", phi[:, :-1]),
            ("phi", phi[:-1]),
            ("phi", phi[0]),
            ("phi", phi.astype(np.longdouble)),
            ("phi", phi.astype(">f4")),
            ("phi", phi.astype(complex)),
            ("phi", phi.astype(str)),
            ("ids", ids + 1),
            ("ids", ids.astype(np.float64)),
            ("ids", ids[:-1]),
        ]
        for where, array in hostile:
            write(folder / INDEX, put(where, array))
            with pytest.raises(InputError):
                cf.load_index(folder, problem)
            put(where, {"landmarks": numbers, "factor": factor, "phi": phi, "ids": ids}[where])
        write(folder / INDEX, record)
        cf.load_index(folder, problem)

    def test_a_fitted_curvature(self, problem: cf.Problem, tmp_path: Path) -> None:
        curvature = cf.fit(problem, cf.EKFAC())
        a = cf.index(problem, curvature, out=tmp_path / "a", damping=DAMPING)
        b = cf.index(problem, cf.EKFAC(), out=tmp_path / "b", damping=DAMPING)
        assert torch.equal(torch.cat(a.shards.phi), torch.cat(b.shards.phi))
        cf.index(problem, curvature, out=tmp_path / "a", damping=DAMPING)
        with pytest.raises(InputError, match="holds an index of another"):
            cf.index(problem, cf.fit(problem, cf.KFAC()), out=tmp_path / "a", damping=DAMPING)

    def test_paths_and_functions(self, problem: cf.Problem, tmp_path: Path) -> None:
        for out in ("a\0b", None, 3):
            with pytest.raises(InputError, match="out must be"):
                cf.index(problem, cf.EKFAC(), out=out, damping=DAMPING)  # pyright: ignore[reportArgumentType]
        progress: Any = 3
        with pytest.raises(InputError, match="progress"):
            cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING, progress=progress)
        assert not (tmp_path / "i").exists()
        index = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        shutil.rmtree(tmp_path / "i")
        with pytest.raises(InputError, match="there is no index"):
            index.append(TestAppended().more(2))
        assert not (tmp_path / "i").exists()

    def test_refused(self, problem: cf.Problem, tmp_path: Path) -> None:
        out = tmp_path / "i"
        truth = object()
        cases: list[tuple[cf.Rung, dict[str, Any], str]] = [
            (cf.Hessian(), {}, "may have negative eigenvalues"),
            (cf.GGN(form=cf.inversion.SampleSpace()), {}, "is inverted by products with the data"),
            (cf.EKFAC(), {"dimension": 0}, "dimension"),
            (cf.EKFAC(), {"error": 1.5}, "error must lie"),
            (cf.EKFAC(), {"dtype": torch.float64}, "torch.float32 or torch.float16"),
            (cf.EKFAC(), {"damping": 0.1}, "one damping"),
            (cf.EKFAC(), {"damping": truth}, "one damping"),
        ]
        for rung, options, said in cases:
            given: dict[str, Any] = {"damping": DAMPING, **options}
            with pytest.raises(InputError, match=said):
                cf.index(problem, rung, out=out, **given)
        index = cf.index(problem, cf.EKFAC(), out=out, damping=DAMPING)
        asked: list[tuple[dict[str, Any], str]] = [
            ({"k": 0}, "k"),
            ({"k": 300}, "k must be at most candidates"),
            ({"queries": [99999]}, "there are"),
            ({"queries": []}, "a query or more"),
            ({"by": cf.fit(mixed_problem(), cf.KFAC())}, "fitted"),
        ]
        for options, said in asked:
            with pytest.raises(InputError, match=said):
                index.query(**options)

    def test_without_gradients(self, tmp_path: Path) -> None:
        layer = nn.Linear(2, 1)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        model = nn.Sequential(layer)
        x, y = torch.randn(6, 2), torch.zeros(6, 1)
        problem = cf.Problem(model, cf.MSE(), (x, y), (x, y))
        with pytest.raises(InputError, match="are all 0"):
            cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=cf.Absolute(1.0))

    def test_beyond_float16(
        self, problem: cf.Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = make._with_landmarks  # pyright: ignore[reportPrivateUsage]

        def tiny(*given: Any) -> IndexRecord:
            return structs.replace(real(*given), scale=1e-9)

        monkeypatch.setattr(make, "_with_landmarks", tiny)
        with pytest.raises(NonFiniteError, match=r"are beyond torch\.float16"):
            cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING, dtype=torch.float16)

    def test_several_at_a_time(
        self, problem: cf.Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Landmarks solved in parts, queries in parts, a search in parts: the same."""
        one = cf.index(problem, cf.EKFAC(), out=tmp_path / "a", damping=DAMPING)
        monkeypatch.setattr("curvfluence.runtime.budget.SOLVED", 2 * problem.parameters.count)
        monkeypatch.setattr(landmarks, "sample_size", _whole)
        monkeypatch.setattr(shards, "SEARCHED", 3)
        two = cf.index(problem, cf.EKFAC(), out=tmp_path / "b", damping=DAMPING)
        torch.testing.assert_close(torch.cat(one.shards.phi), torch.cat(two.shards.phi))
        n = len(problem.train)
        a, b = one.query(k=3, candidates=n), two.query(k=3, candidates=n)
        torch.testing.assert_close(a.top.values, b.top.values)


MINE = """
import torch
from torch import nn
import curvfluence as cf

torch.manual_seed(0)
x, y = torch.randn(60, 4), torch.randint(3, (60,))
model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
problem = cf.Problem(model, cf.CrossEntropy(), (x[:40], y[:40]), (x[40:44], y[40:44]))
"""


class TestCommands:
    def run(self, *words: str) -> str:
        from typer.testing import CliRunner

        found = CliRunner().invoke(app, list(words), catch_exceptions=False)
        assert found.exit_code == 0, found.output
        return found.output

    def test_index_and_query(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine.py").write_text(MINE)
        said = self.run("index", "mine.py", "--dimension", "20", "--half", "--no-progress")
        assert "40 examples by 20 coordinates" in " ".join(said.split())
        said = self.run("query", "mine.py", "--query", "2", "--top", "3", "--certificate")
        assert "mine, query 2" in said
        assert "Certificate" in said
        record = read(tmp_path / "index" / INDEX, IndexRecord)
        assert record is not None
        assert record.dtype == "float16"
        more = f"{MINE}\nappended = [(x[44:], y[44:])]\n"
        (tmp_path / "mine.py").write_text(more)
        with pytest.raises(InputError, match="are not in the index"):
            self.run("query", "mine.py")
        said = self.run("index", "mine.py", "--dimension", "20", "--half", "--no-progress")
        assert "56 examples" in said
        said = self.run("query", "mine.py", "--by", "GGN", "--top", "30", "--query", "0")
        assert "appended" in said
        (tmp_path / "mine.py").write_text(f"{MINE}\nappended = 3\n")
        with pytest.raises(InputError, match="`appended` must be a list"):
            self.run("query", "mine.py")
