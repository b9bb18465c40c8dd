"""Rows in files without a name: the same numbers, and nothing of them in memory or left behind."""

from __future__ import annotations

import errno
import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.jacobian import cache
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import cached_gradients, gradient_batches, gradient_rows
from curvfluence.jacobian.rows import Rows
from curvfluence.runtime import budget, paged
from tests.problems import make, mlp
from tests.zoo import CASES, zoo_problem

pytestmark = pytest.mark.skipif(os.name != "posix", reason="files without a name are POSIX's")


def views() -> list[Tensor]:
    """Of one memory and of several: side by side, one within another, with steps, of other types,
    of a single number many times, and of none."""
    torch.manual_seed(0)
    whole, other = torch.randn(6, 8), torch.randn(5, 3, dtype=torch.float64)
    ids = torch.arange(11)
    return [
        whole, whole[2:4], whole[:, 3], whole.mT, whole[5:, 1:], other[1:, ::2], ids[3:], ids[:2],
        torch.randn(4)[2].expand(3, 5), torch.empty(0, 4), torch.ones(3, dtype=torch.bool),
    ]  # fmt: skip


def test_the_same_numbers_and_what_they_share() -> None:
    given = views()
    found = paged.paged_out(given)
    assert found is not None
    for old, new in zip(given, found[0], strict=True):
        assert (new.dtype, new.shape, new.stride()) == (old.dtype, old.shape, old.stride())
        assert torch.equal(new, old)
    found[1].let_go()
    assert all(torch.equal(new, old) for old, new in zip(given, found[0], strict=True))
    whole, rows = found[0][:2]
    rows.zero_()
    assert not whole[2:4].any()
    assert given[1].any()  # the original is another memory


def test_which_memory() -> None:
    assert paged.possible(torch.device("cpu"))
    assert not paged.possible(torch.device("meta"))
    assert paged.paged_out([torch.empty(3, device="meta")]) is None
    assert paged.paged_out([torch.empty(0)]) is None


def test_a_large_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """From `PAGED` bytes on it lies in a file, where there is room."""
    monkeypatch.setattr(budget, "PAGED", 40)
    small, large = torch.arange(9.0), torch.arange(20.0)[::2]
    assert paged.paged(small) is small
    found = paged.paged(large)
    assert torch.equal(found, large)
    assert found.data_ptr() != large.data_ptr()
    monkeypatch.setattr(paged, "TemporaryFile", Full(0))
    assert paged.paged(large) is large


def test_a_tensor_given_twice() -> None:
    x = torch.randn(70)
    found = paged.paged_out([x, x])
    assert found is not None
    assert len(found[1].mapped) == 5 * 64
    assert found[0][0].data_ptr() == found[0][1].data_ptr()


def test_only_what_is_seen_of_a_memory_is_written() -> None:
    whole = torch.randn(1000, 16)
    ends = [whole[:2], whole[-3:]]
    found = paged.paged_out(ends)
    assert found is not None
    assert len(found[1].mapped) == paged.spanned(ends) == 5 * 64
    assert paged.spanned([whole, *ends]) == whole.nbytes
    # what was put in a file lies in another without the rest of the first
    again = paged.paged_out(found[0][:1])
    assert again is not None
    assert len(again[1].mapped) == 2 * 64
    assert torch.equal(again[0][0], whole[:2])


def test_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged, "TemporaryFile", in_folder(tmp_path))
    before = mappings(tmp_path)
    found = paged.paged_out(views())
    assert not list(tmp_path.iterdir())
    assert len(mappings(tmp_path)) == len(before) + 1
    kept = found[0][0] if found is not None else None
    del found
    gc.collect()
    assert len(mappings(tmp_path)) == len(before) + 1  # a tensor of it lives
    del kept
    gc.collect()
    assert mappings(tmp_path) == before


def in_folder(folder: Path) -> Any:
    opened = paged.TemporaryFile
    return lambda: opened(dir=folder)


def mappings(folder: Path) -> list[str]:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("/proc says what is mapped")
    return [line for line in maps.read_text().splitlines() if str(folder) in line]


class Full:
    """A disk without room after some files."""

    def __init__(self, room: int) -> None:
        self.room, self.opened = room, paged.TemporaryFile

    def __call__(self) -> Any:
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.opened()


def test_a_full_disk_is_said_and_costs_nothing_but_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = scores(cf.EKFAC(cf.Empirical()), remember=0)
    monkeypatch.setattr(budget, "CACHED", 0)
    monkeypatch.setattr(paged, "TemporaryFile", Full(1))
    with caplog.at_level(logging.INFO, "curvfluence"):
        found = scores(cf.EKFAC(cf.Empirical()))
    assert torch.equal(found, wanted)
    assert "stay in memory: [Errno 28] No space left on device" in caplog.text


def scores(rung: cf.Rung, **options: Any) -> Tensor:
    made = small()
    given = cf.Problem(made.model, made.loss, made.train, made.queries, **options)
    return cf.influence(given, rung, damping=cf.Absolute(0.05)).values


def small() -> cf.Problem:
    torch.manual_seed(0)
    return make(mlp(5, 7, 3), cf.CrossEntropy(), n=40)


@pytest.fixture
def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "PASS", 8 * discover(small()).elements(1))
    monkeypatch.setattr(budget, "FEWEST", 1)


@pytest.mark.usefixtures("few_at_a_time")
@pytest.mark.parametrize(
    "rung",
    [
        cf.EKFAC(cf.Empirical()),
        cf.EKFAC(cf.MonteCarlo(2, seed=3)),
        cf.EKFAC(),
        cf.GGN(cf.inversion.ConjugateGradients()),
        cf.EShampoo(cf.Empirical()),
    ],
    ids=lambda rung: rung.name,
)
@pytest.mark.filterwarnings("ignore:Fisher mc")
def test_scores_are_the_same_bits(rung: cf.Rung, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = scores(rung)
    monkeypatch.setattr(budget, "CACHED", 0)
    files: list[int] = []
    paged_out = paged.paged_out

    def counted(tensors: list[Tensor]) -> Any:
        files.append(1)
        return paged_out(tensors)

    monkeypatch.setattr("curvfluence.jacobian.rows.paged_out", counted)
    assert torch.equal(scores(rung), wanted)
    assert len(files) >= 5


@pytest.mark.usefixtures("few_at_a_time")
def test_the_first_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = small()
    each = next(rows.held for _, rows in gradient_rows(problem, discover(problem)))
    monkeypatch.setattr(budget, "CACHED", 2 * each)
    for _ in gradient_rows(problem, discover(problem), again=True):
        pass
    chunks = cached_gradients(problem, discover(problem)).chunks
    assert [chunk.pages is None for chunk in chunks] == [True, True, False, False, False]


@pytest.mark.usefixtures("few_at_a_time")
def test_one_chunk_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "CACHED", 0)
    problem = small()
    for _ in gradient_rows(problem, discover(problem), again=True):
        pass
    let_go: list[int] = []
    monkeypatch.setattr(paged.Pages, "let_go", lambda pages: let_go.append(id(pages)))
    cached = cached_gradients(problem, discover(problem))
    for k, _ in enumerate(cached):
        assert let_go == [id(chunk.pages) for chunk in cached.chunks[:k]]
    assert len(let_go) == 5


@pytest.mark.parametrize("name", list(CASES))
def test_rows_of_every_kind_of_layer(name: str) -> None:
    problem = zoo_problem(name)
    for rows in kinds_of_rows(problem):
        found = rows.paged()
        assert found is not None
        assert torch.equal(found[0].to_dense(), rows.to_dense())
        assert found[0].spanned == rows.spanned
        for k in range(len(rows.layers)):
            same = [j for j in range(k) if rows.inputs_of(j) == rows.inputs_of(k)]
            assert all(found[0].inputs_of(j) == found[0].inputs_of(k) for j in same)


def kinds_of_rows(problem: cf.Problem) -> Iterator[Rows]:
    """Gradients, and those in an eigenbasis."""
    cf.fit(problem, cf.EKFAC(cf.Empirical()))
    yield from (rows for _, rows in cached_gradients(problem, discover(problem)))
    yield from (rows for _, rows in gradient_rows(problem, discover(problem), factored=True))


def test_rows_that_somebody_writes_to_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "CACHED", 0)
    problem = small()
    for _ in gradient_rows(problem, discover(problem), again=True):
        pass
    cached = cached_gradients(problem, discover(problem))
    assert isinstance(cached, cache.CachedRows)
    assert len(list(cached)) == 1
    cached.chunks[0].rows.dense.zero_()
    assert not list(cached)
    assert cached.room == 0


@pytest.mark.usefixtures("few_at_a_time")
def test_scores_take_some_chunks_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as are `BATCH` bytes, but one at least; and none of their pages is held after it."""
    monkeypatch.setattr(budget, "CACHED", 0)
    problem = small()
    layout = discover(problem)
    each = [rows.nbytes for _, rows in gradient_rows(problem, layout, again=True)]
    assert each == [each[0]] * 5
    held: list[int] = []
    monkeypatch.setattr(paged.Pages, "let_go", lambda _: held.clear())
    for batch, wanted in ((0, [1] * 5), (2 * each[0], [2, 2, 1]), (10 * each[0], [5])):
        monkeypatch.setattr(budget, "BATCH", batch)
        found: list[int] = []
        for first, several in gradient_batches(problem, layout):
            assert first == 8 * sum(found)
            assert not held
            held.append(first)
            found.append(len(several))
        assert not held
        assert found == wanted
