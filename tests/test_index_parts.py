"""What an index is put together of: φ a shard at a time, their files and search, and queries in
parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from msgspec import structs
from torch import Tensor

import curvfluence as cf
from curvfluence.curvature.operators.operator import Against
from curvfluence.errors import InputError, NonFiniteError
from curvfluence.indexing import encode, index, inner_products, shards
from curvfluence.indexing.encode import Encoder, encoded
from curvfluence.indexing.extremes import Extremes
from curvfluence.indexing.found import Found, Took
from curvfluence.indexing.inner_products import Gradients, grouped
from curvfluence.indexing.landmarks import Landmarks
from curvfluence.indexing.records import Recall
from curvfluence.indexing.shards import Made, Shards, read_ends, write_shard
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import query_gradients, training_gradients
from curvfluence.runtime import budget
from curvfluence.score.scores import Ranked
from tests.indexed import DAMPING, more
from tests.oracles import example_gradients
from tests.oracles import query_gradients as dense_queries
from tests.problems import chain_problem

PICKED = torch.tensor([7, 2, 9])


class Parts:
    """Three landmarks of 12 examples, with four sample queries behind them, and dense products."""

    def __init__(self, *, sample: bool = True, memory: int | None = None) -> None:
        self.memory = memory
        self.problem = chain_problem()
        self.layout, self.curvature = discover(self.problem), cf.fit(self.problem, cf.EKFAC())
        g_n, g_q = example_gradients(self.problem), dense_queries(self.problem)
        solved = self.curvature.solve(torch.cat([g_n[PICKED], g_q]), DAMPING)
        self.products = solved[:3] @ g_n.T
        self.exact = solved[3:] @ g_n.T
        factor = torch.linalg.cholesky(self.products[:, PICKED])
        self.landmarks = Landmarks(PICKED, factor)
        self.rows = Gradients.of(self.problem, self.layout, self.problem.train.take(PICKED), 2**20)
        self.sample = query_gradients(self.problem, self.layout) if sample else None

    def encoder(self) -> Encoder:
        given = self.curvature, DAMPING, self.landmarks, self.rows
        return Encoder.of(*given, self.sample, memory=self.memory)


class TestEncoder:
    def test_products_against_dense_ones(self) -> None:
        parts = Parts()
        encoder, rows = parts.encoder(), training_gradients(parts.problem, parts.layout)
        products, exact = encoder.products(rows[4:9])
        torch.testing.assert_close(products, parts.products[:, 4:9])
        torch.testing.assert_close(exact, parts.exact[:, 4:9])
        torch.testing.assert_close(encoder.of_queries(), parts.exact[:, PICKED].T)
        few = Parts(sample=False)
        products, exact = few.encoder().products(rows)
        torch.testing.assert_close(products, parts.products)
        assert exact.shape == (0, 12)

    @pytest.mark.parametrize(
        ("room", "sizes"), [(7.0, [7]), (2.99, [2, 2, 2, 1]), (1.0, [1] * 7), (0.5, [1] * 7)]
    )
    def test_as_many_solutions_at_a_time_as_fit(
        self, room: float, sizes: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All of which meet every example."""
        parts, seen, real = Parts(), list[tuple[int, Against]](), cf.Curvature.solve_rows
        monkeypatch.setattr(budget, "SOLVED", int(room * parts.problem.parameters.count))

        def solve_rows(self: cf.Curvature, rows: Any, *rest: Any, against: Against) -> Any:
            seen.append((len(rows), against))
            return real(self, rows, *rest, against=against)

        monkeypatch.setattr(cf.Curvature, "solve_rows", solve_rows)
        encoder = parts.encoder()
        assert seen == [(size, Against(12)) for size in sizes]
        rows = training_gradients(parts.problem, parts.layout)
        torch.testing.assert_close(encoder.products(rows)[1], parts.exact)

    @pytest.mark.parametrize(("room", "parts"), [(7 * 75, 1), (7 * 75 - 1, 2), (7 * 35, 3)])
    @pytest.mark.parametrize("sample", [True, False])
    def test_in_parts(
        self, room: int, parts: int, sample: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A block after the other, in any shards, with gradients that are held or made anew."""
        count = 7 if sample else 3
        made = Parts(sample=sample, memory=8 * room * count // 7)
        wanted = torch.cat([made.products, made.exact]) if sample else made.products
        for held in (True, False):
            if not held:
                made.rows = replace(made.rows, held=None)
            encoder = made.encoder()
            assert len(encoder.parts) == parts
            assert bool(encoder.held) == (parts == 1)
            monkeypatch.setattr(budget, "EXAMPLES", 5)
            monkeypatch.setattr(encode, "SHARD", 4)
            chunks = encode._in_parts if encoder.in_parts else encode._in_one_go  # pyright: ignore[reportPrivateUsage]
            tiles = list(chunks(encoder, made.problem.train, 2))
            assert [at for at, _, _ in tiles] == ([2, 6, 10] if parts > 1 else [2, 7])
            found = torch.cat([torch.cat(tile) for _, *tile in tiles], 1)
            torch.testing.assert_close(found, wanted[:, 2:])
            if sample:
                torch.testing.assert_close(encoder.of_queries(), made.exact[:, PICKED].T)

    def test_no_more_is_solved_for_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made, seen, real = Parts(memory=8 * 7 * 35), list[int](), cf.Curvature.solve_rows

        def solve_rows(self: cf.Curvature, rows: Any, *rest: Any, against: Against) -> Any:
            seen.append(len(rows) * sum(block.size for block in self.blocks))
            return real(self, rows, *rest, against=against)

        monkeypatch.setattr(cf.Curvature, "solve_rows", solve_rows)
        encoder = made.encoder()
        assert not seen  # nothing before a shard asks for it
        list(encode._in_parts(encoder, made.problem.train, 0))  # pyright: ignore[reportPrivateUsage]
        assert len(seen) == 3
        assert max(seen) <= 7 * 35

    def test_a_quarter_of_the_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """At most, whatever is asked for."""
        needed = 7 * 75 * 8
        for memory in (None, 2**40):
            made = Parts(memory=memory)
            for off, parts in ((0, 1), (1, 2)):
                told = SimpleNamespace(memory=always(4 * needed - off))
                monkeypatch.setattr(inner_products, "machine", told)
                assert len(made.encoder().parts) == parts
        with pytest.raises(InputError, match=r"7 solved landmarks .* of block 0 .* take .* GiB"):
            Parts(memory=100).encoder()


class TestGrouped:
    def test_successive_blocks(self) -> None:
        blocks = [("a", 3), ("b", 4), ("c", 1), ("d", 7)]

        def groups(room: int) -> list[list[str]]:
            return grouped(blocks, 2, 8, room)

        assert groups(16 * 15) == [["a", "b", "c", "d"]]
        assert groups(16 * 15 - 1) == [["a", "b", "c"], ["d"]]
        assert groups(16 * 7) == [["a", "b"], ["c"], ["d"]]
        with pytest.raises(InputError, match=r"of block d \(7 parameters\)"):
            groups(16 * 7 - 1)

    def test_as_rungs_say_before_a_fit(self) -> None:
        """`cf.index` groups blocks by the coverage of a rung, before there is a curvature."""
        problem = chain_problem()
        for rung in (
            cf.EKFAC(),
            cf.KFAC(),
            cf.BlockGGN(),
            cf.Diagonal(),
            cf.EKFAC(joint_bias=False),
        ):
            fitted = cf.fit(problem, rung)
            said = [(line.block, line.count) for line in rung.coverage(problem)]
            assert said == [(block.name, block.size) for block in fitted.blocks]


def always(value: Any) -> Callable[[object], Any]:
    def told(_: object) -> Any:
        return value

    return told


def ticking(ticks: Iterator[float]) -> Callable[..., float]:
    def clock(*_: object) -> float:
        return next(ticks)

    return clock


def made(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, *, dtype: str = "float32", **options: Any
) -> list[Made]:
    monkeypatch.setattr(budget, "EXAMPLES", 2)
    monkeypatch.setattr(encode, "SHARD", 4)
    scale = options.pop("scale", 0.5)
    record: Any = SimpleNamespace(scale=scale, dtype=dtype, examples=12)
    ids = 100 + torch.arange(12)
    return list(encoded(parts.encoder(), parts.problem.train, ids, record, **options))


class TestEncoded:
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    @pytest.mark.parametrize("first", [0, 4, 10])
    def test_shards_in_order(self, first: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of at least four examples in chunks of two, with the last in whatever is left; each has
        the ends of the exact scores of its own examples."""
        parts = Parts()
        found = made(parts, monkeypatch, dtype=dtype, first=first, k=3)
        assert [len(one.phi) for one in found] == {0: [4, 4, 4], 4: [4, 4], 10: [2]}[first]
        phi = torch.cat([one.phi for one in found])
        assert str(phi.dtype) == f"torch.{dtype}"
        wanted = torch.linalg.solve(parts.landmarks.factor, parts.products).T[first:] / 0.5
        torch.testing.assert_close(phi, wanted.to(phi.dtype), rtol=2e-3, atol=1e-3)
        assert torch.cat([one.ids for one in found]).tolist() == list(range(100 + first, 112))
        start = first
        for one in found:
            own = parts.exact[:, start : start + len(one.phi)] / 12
            k = min(3, own.shape[1])
            assert one.ends is not None
            for end, largest in enumerate((True, False)):
                best = own.topk(k, largest=largest)
                torch.testing.assert_close(one.ends.values[end], best.values)
                assert torch.equal(one.ends.indices[end], start + best.indices)
            start += len(one.phi)

    def test_without_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert all(one.ends is None for one in made(Parts(), monkeypatch))

    def test_seconds_are_of_each_shard(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ticks = iter([1.0, 3.0, 10.0, 14.0, 20.0, 28.0, 30.0])
        parts = Parts()
        clock = SimpleNamespace(clock=ticking(ticks), memory=always(2**40))
        monkeypatch.setattr(encode, "machine", clock)
        assert [one.seconds for one in made(parts, monkeypatch)] == [2.0, 4.0, 8.0]

    @pytest.mark.parametrize(
        ("dtype", "said"),
        [(torch.float16, r"torch\.float16 .*Use dtype=torch\.float32, or a larger damping"),
         (torch.float32, r"torch\.float32 .*Use a larger damping")],
    )  # fmt: skip
    def test_what_a_type_does_not_hold_is_named(
        self, dtype: torch.dtype, said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        short = str(dtype).removeprefix("torch.")
        with pytest.raises(NonFiniteError, match=f"of example 6 are beyond {said}"):
            made(Parts(), monkeypatch, dtype=short, scale=1e-60, first=6)
        require = encode._require_held  # pyright: ignore[reportPrivateUsage]
        phi = torch.zeros(5, 3, dtype=dtype)
        require(phi, 20)
        phi[2, 1], phi[4, 0], phi[4, 2] = torch.inf, torch.nan, torch.inf
        with pytest.raises(NonFiniteError, match=f"of example 22 are beyond {said}") as raised:
            require(phi, 20)
        assert "(2 such examples)" in str(raised.value)


class TestShards:
    def shard(self, number: int, *, ends: bool = True) -> Made:
        generator = torch.Generator().manual_seed(number)
        phi = torch.randn(5 + number, 3, generator=generator)
        found = Extremes(2)
        found.add(10 * number, torch.randn(4, len(phi), generator=generator, dtype=torch.float64))
        ids = torch.arange(len(phi)) + 1000 * number
        return Made(phi, ids, found if ends else None, 0.5 + number)

    def record(self, *written: Any, dtype: str = "float32", dimension: int = 3) -> Any:
        return SimpleNamespace(shards=written, dtype=dtype, dimension=dimension)

    def test_they_are_read_as_written(self, tmp_path: Path) -> None:
        several = [self.shard(k) for k in (0, 1)]
        written = [write_shard(tmp_path, k, one, "key") for k, one in enumerate(several)]
        assert [one.examples for one in written] == [5, 6]
        assert [one.seconds for one in written] == [0.5, 1.5]
        assert all(one.phi.key == one.ids.key == "key" for one in written)
        for verify in (False, True):
            found = Shards.opened(tmp_path, self.record(*written), verify=verify)
            for k, one in enumerate(several):
                assert torch.equal(found.phi[k], one.phi)
                assert torch.equal(found.ids[k], one.ids)
                values, indices = read_ends(tmp_path, k, written[k])
                assert one.ends is not None
                assert torch.equal(values, one.ends.values)
                assert torch.equal(indices, one.ends.indices)
        names = sorted(file.name for file in (tmp_path / "shards").iterdir())
        assert names == [f"0000{k}.{what}.npy" for k in (0, 1) for what in ("ends", "ids", "phi")]

    def test_without_ends(self, tmp_path: Path) -> None:
        whole = write_shard(tmp_path, 0, self.shard(0), "key")
        bare = write_shard(tmp_path, 1, self.shard(1, ends=False), "key")
        assert bare.ends is None
        assert whole.ends is not None
        flat = structs.replace(whole.ends, shape=whole.ends.shape[1:])
        other = structs.replace(whole.ends, dtype="float32")
        bad = (bare, *(structs.replace(whole, ends=ends) for ends in (flat, other)))
        for number, shard in enumerate(bad):
            with pytest.raises(InputError, match=f"shard {number} of .* has no exact scores"):
                read_ends(tmp_path, number, shard)

    def test_what_is_not_as_the_index_has_it(self, tmp_path: Path) -> None:
        shard = write_shard(tmp_path, 0, self.shard(0), "key")
        for record in (
            self.record(shard, dtype="float16"),
            self.record(shard, dimension=4),
            self.record(structs.replace(shard, examples=4)),
            self.record(structs.replace(shard, ids=shard.phi)),
        ):
            with pytest.raises(
                InputError, match=r"00000\.(phi|ids)\.npy is an array of float32 of"
            ):
                Shards.opened(tmp_path, record, verify=False)

    def test_only_verified_files_are_held_to_their_sums(self, tmp_path: Path) -> None:
        shard = write_shard(tmp_path, 0, self.shard(0), "key")
        for what in ("phi", "ids", "ends"):
            file = tmp_path / f"shards/00000.{what}.npy"
            kept = file.read_bytes()
            file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
            if what == "ends":
                with pytest.raises(InputError, match="is not what was written"):
                    read_ends(tmp_path, 0, shard)
                continue
            Shards.opened(tmp_path, self.record(shard), verify=False)
            with pytest.raises(InputError, match="is not what was written: make the index again"):
                Shards.opened(tmp_path, self.record(shard), verify=True)
            file.write_bytes(kept)

    @pytest.mark.parametrize("searched", [2, 3, 100])
    @pytest.mark.parametrize("scale", [1.0, 1e300, 1e-300])
    def test_search_against_products(
        self, scale: float, searched: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shards, "SEARCHED", searched)
        several = [self.shard(k) for k in (0, 1)]
        held = Shards(tuple(one.phi.half() for one in several), tuple(one.ids for one in several))
        phi_qd = torch.randn(4, 3, generator=torch.Generator().manual_seed(9)).double()
        phi_qd[2] = 0
        products = phi_qd @ torch.cat(held.phi).double().T
        found = held.search(scale * phi_qd, 4)
        size = phi_qd.abs().amax(1, keepdim=True).clamp_min(1e-9)
        for end, largest in enumerate((True, False)):
            wanted = products.topk(4, largest=largest)
            near = (wanted.values / size).float()
            torch.testing.assert_close(found.values[end], near, rtol=1e-5, atol=1e-6)
            for q in (0, 1, 3):
                assert torch.equal(found.indices[end][q], wanted.indices[q])
        assert found.values.dtype == torch.float32


def answer(**settings: Any) -> Found:
    ranked = Ranked(torch.tensor([[3, 1]]), torch.tensor([[0.5, 0.25]]))
    given: dict[str, Any] = {
        "top": ranked,
        "bottom": ranked,
        "rung": "EKFAC",
        "measurement": "loss",
        "unit": "nats",
        "candidates": 7,
        "searched": 12_345,
        "trained": 12_000,
        "recall": None,
        "took": Took(0.12345, 2.0, 30.04),
        "notes": (),
        "certifier": None,
    }
    return Found(**{**given, **settings})


class TestFound:
    def test_in_words(self) -> None:
        lines = [
            "The 2 most helpful and most harmful of 12,345 examples for 1 queries: EKFAC, exact "
            "among 7 candidates at either end",
            "  measurement  loss; unit: nats",
            "  seconds      0.123 gradients and solves, 2 search, 30 exact scores",
        ]
        assert str(answer()).splitlines() == lines
        recall = Recall(16, 10, 200, 0.99, 0.98, 0.7, ((16, 0.5), (32, 0.25)))
        found = answer(recall=recall, notes=("one", "two"))
        assert str(found).splitlines() == [
            *lines, f"  recall       {recall}", "  note: one", "  note: two"
        ]  # fmt: skip

    def test_a_certificate_is_asked_for_as_it_was(self) -> None:
        def certifier(*given: Any) -> Any:
            return given

        found: Any = answer(certifier=certifier)
        assert found.certificate() == ("GGN", None)
        assert found.certificate("Hessian", torch.float64) == ("Hessian", torch.float64)


@pytest.fixture
def made_index(tmp_path: Path) -> index.Index:
    return cf.index(chain_problem(), cf.EKFAC(), out=tmp_path / "i", damping=DAMPING, dimension=4)


class TestQueries:
    def test_what_it_is(self, made_index: index.Index, tmp_path: Path) -> None:
        said = f"{str(tmp_path / 'i')!r}: 12 examples by 4 coordinates, EKFAC, damping {DAMPING}"
        assert repr(made_index) == f"Index({said})"
        found = made_index.query(k=2, candidates=5)
        assert (found.candidates, found.searched, found.trained) == (5, 12, 12)
        assert (found.rung, found.measurement, found.unit) == ("EKFAC", "loss", "nats")
        assert found.notes == made_index.curvature.notes_at(DAMPING)
        longer = made_index.append(more(3))
        found = longer.query(k=2, candidates=500)
        assert (found.candidates, found.searched, found.trained) == (15, 15, 12)

    def test_no_more_than_there_are(self, made_index: index.Index) -> None:
        for k, candidates in ((5, 5), (12, 12), (12, 200)):
            assert made_index.query(k=k, candidates=candidates).top.indices.shape == (4, k)
        for k, candidates in ((6, 5), (13, 200)):
            said = rf"at most candidates \({candidates}\) and the 12 examples; seen {k}"
            with pytest.raises(InputError, match=said):
                made_index.query(k=k, candidates=candidates)
        assert made_index.query().top.indices.shape == (4, 10)

    @pytest.mark.parametrize(
        ("together", "room", "sizes"),
        [
            (3, 100.0, [3, 1]),
            (2, 100.0, [2, 2]),
            (16, 3.0, [3, 1]),
            (16, 0.5, [1] * 4),
            (4, 4, [4]),
        ],
    )
    def test_in_parts_they_are_the_same(
        self,
        together: int,
        room: float,
        sizes: list[int],
        made_index: index.Index,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Queries, candidates and appended examples; what it took is added up."""
        x, y = more(5)  # none of them twice: rounding would order those
        longer = made_index.append((x[:3], y[:3])).append((x[3:], y[3:]))
        wanted = longer.query(k=3, candidates=8)
        asked = len(longer.problem.queries)
        assert asked == 4
        ticks = self.ticks()
        monkeypatch.setattr(index, "TOGETHER", together)
        monkeypatch.setattr(index, "SCORED", 3)
        monkeypatch.setattr(budget, "SOLVED", int(room * longer.problem.parameters.count))
        clock = SimpleNamespace(clock=ticking(ticks))
        monkeypatch.setattr(index, "machine", clock)
        monkeypatch.setattr(index, "time", SimpleNamespace(perf_counter=ticking(ticks)))
        found = longer.query(k=3, candidates=8)
        for one, other in ((found.top, wanted.top), (found.bottom, wanted.bottom)):
            assert torch.equal(one.indices, other.indices)
            torch.testing.assert_close(one.values, other.values)
        n = len(sizes)
        assert found.took == Took(1.0 * n, 2.0 * n, 4.0 * n)

    @staticmethod
    def ticks() -> Iterator[float]:
        at = 10.0
        while True:
            for step in (0.0, 1.0, 2.0, 4.0):
                at += step
                yield at
            at += 100.0

    def test_what_is_not_finite_names_the_query(
        self, made_index: index.Index, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(index, "TOGETHER", 3)
        seen: list[tuple[str, int, int]] = []

        def require(values: Tensor, rung: str, first: int, start: int) -> None:
            seen.append((rung, first, start))

        monkeypatch.setattr(index, "require_finite_scores", require)
        made_index.query(k=2)
        assert seen == [("EKFAC", 0, 0), ("EKFAC", 3, 0)]

    def test_of_queries_given_by_number_or_by_value(self, made_index: index.Index) -> None:
        every = made_index.query(k=3, candidates=12)
        held = made_index.problem.queries
        assert isinstance(held, cf.Examples)
        for asked in ([2, 0], range(2, 4), (held.inputs, held.targets), held):
            found = made_index.query(asked, k=3, candidates=12)  # type: ignore[arg-type]
            at = list(asked) if isinstance(asked, list | range) else slice(None)
            assert torch.equal(found.top.indices, every.top.indices[at])
            torch.testing.assert_close(found.top.values, every.top.values[at])

    def test_appended_examples_have_no_weights(self, made_index: index.Index) -> None:
        """And are no less than what was there: those of the training set come first."""
        x, y = more(3)
        with pytest.raises(InputError, match="weight 1 each"):
            made_index.append(cf.Examples(x, y, torch.ones(3)))
        longer = made_index.append((x, y))
        assert torch.equal(longer.ids[:12], made_index.ids)
        assert (len(longer), len(longer.appended), len(longer.versions)) == (15, 1, 2)
