"""Scores that are filled piece by piece, in memory or in a file."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.runtime import ranks
from curvfluence.runtime.ranks import Ranks
from curvfluence.score import matrix
from curvfluence.score.matrix import ScoreMatrix, require_new

DTYPES = [torch.float32, torch.float64]


def whole(dtype: torch.dtype) -> Tensor:
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=dtype)


def filled(made: ScoreMatrix, values: Tensor) -> None:
    """In four pieces, the last first."""
    for row in (3, 0):
        for column in (4, 0):
            part = values[row : row + 3 if row == 0 else None]
            made.put(row, column, part[:, column : column + 4 if column == 0 else None])


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_memory(dtype: torch.dtype) -> None:
    values = whole(dtype)
    with ScoreMatrix.of(5, 7, dtype, None) as made:
        assert made.values.isnan().all()
        made.put(1, 2, values[1:3, 2:4])
        assert int(made.values.isfinite().sum()) == 4
        filled(made, values)
        for k in (0, 3):
            made.put_blocks(0, k, {"a": values[:, k : k + 4], "b": -values[:, k : k + 4]})
    assert torch.equal(made.values, values)
    assert made.values.dtype == dtype
    assert made.blocks.keys() == {"a", "b"}
    assert torch.equal(made.blocks["a"], values)
    assert torch.equal(made.blocks["b"], -values)


@pytest.mark.parametrize("folder", ["", "new", "new/newer"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_a_file(dtype: torch.dtype, folder: str, tmp_path: Path) -> None:
    values, path = whole(dtype), tmp_path / folder / "s.npy"
    with ScoreMatrix.of(5, 7, dtype, path) as made:
        filled(made, values)
        assert not path.exists()
        assert path.with_name("s.npy.part").stat().st_blocks > 0
    found = np.load(path)
    assert np.array_equal(found, values.numpy())
    assert found.dtype == values.numpy().dtype
    assert [one.name for one in path.parent.iterdir()] == ["s.npy"]


@pytest.mark.parametrize("gone", [False, True])
def test_after_an_error_no_file_is_left(gone: bool, tmp_path: Path) -> None:
    """Also where somebody removed it: the error is the one that came first."""
    path = tmp_path / "s.npy"

    def fail() -> None:
        with ScoreMatrix.of(5, 7, torch.float32, path):
            if gone:
                path.with_name("s.npy.part").unlink()
            raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "s.npy", tmp_path / ("x" * 300)):
        with (
            pytest.raises(InputError, match=r"cannot write to .*: [A-Z]"),
            ScoreMatrix.of(5, 7, torch.float32, path),
        ):
            pass
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EOPNOTSUPP, errno.EINVAL])
def test_room_is_taken_at_once(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the file's; a filesystem that cannot do so goes without, one without room is said."""
    path, asked = tmp_path / "s.npy", []

    def full(number: int, start: int, length: int) -> None:
        asked.append((start, length, os.fstat(number).st_size))
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", full)
    if code == errno.ENOSPC:
        with (
            pytest.raises(InputError, match="No space left"),
            ScoreMatrix.of(5, 7, torch.float32, path),
        ):
            pass
        assert list(tmp_path.iterdir()) == []
    else:
        with ScoreMatrix.of(5, 7, torch.float32, path) as made:
            filled(made, whole(torch.float32))
        assert np.array_equal(np.load(path), whole(torch.float32).numpy())
    ((start, length, size),) = asked
    assert (start, length) == (0, size)
    assert size > 5 * 7 * 4


def test_without_such_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    with ScoreMatrix.of(5, 7, torch.float32, tmp_path / "s.npy") as made:
        filled(made, whole(torch.float32))
    assert np.array_equal(np.load(tmp_path / "s.npy"), whole(torch.float32).numpy())


def test_what_is_there_already(tmp_path: Path) -> None:
    """The file, the one that is not finished, and a link to what is not there yet."""
    path = tmp_path / "s.npy"
    require_new(None)
    require_new(path)
    for taken in (path, tmp_path / "s.npy.part"):
        taken.write_text("")
        with pytest.raises(InputError, match=f"{taken.name} exists: name a new file"):
            require_new(path)
        taken.unlink()
        taken.symlink_to(tmp_path / "nothing")
        with pytest.raises(InputError, match=f"{taken.name} exists: name a new file"):
            require_new(path)
        taken.unlink()


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch) -> Generator[list[Tensor]]:
    """The first of two processes, of which the other knows of a block more; what is handed on."""
    handed: list[Tensor] = []

    def both(every: list[Any], own: Any) -> None:
        every[:] = [own, {"b": None} if isinstance(own, dict) else own]

    def gathered(team: Ranks, whole_qn: Tensor) -> None:
        assert team.count == 2
        handed.append(whole_qn)
        whole_qn[:, 4:] = 9.0

    monkeypatch.setattr("curvfluence.runtime.ranks.dist.all_gather_object", both)
    monkeypatch.setattr(ranks, "gathered", gathered)
    monkeypatch.setattr(ranks, "wait", lambda: None)
    token = ranks._TEAM.set(Ranks(0, 2))
    yield handed
    ranks._TEAM.reset(token)


def test_of_several_processes(team: list[Tensor]) -> None:
    values = whole(torch.float64)
    with ScoreMatrix.of(5, 7, torch.float64, None) as made:
        made.put(0, 0, values[:, :4])
        made.put_blocks(0, 0, {"a": -values[:, :4]})
        made.gather()
    assert [id(one) for one in team] == [id(made.values), *map(id, made.blocks.values())]
    assert torch.equal(made.values[:, :4], values[:, :4])
    assert torch.equal(made.blocks["a"][:, :4], -values[:, :4])
    assert list(made.blocks) == ["a", "b"]
    for one in (made.values, *made.blocks.values()):
        assert (one.shape, one.dtype) == (values.shape, values.dtype)
        assert (one[:, 4:] == 9).all()


def test_a_file_of_several_processes(team: list[Tensor], tmp_path: Path) -> None:
    """Each wrote its own columns, so that nothing is handed on; the others open what is there."""
    values, path = whole(torch.float64), tmp_path / "s.npy"
    with ScoreMatrix.of(5, 7, torch.float64, path) as first:
        token = ranks._TEAM.set(Ranks(1, 2))
        opened = matrix._open(path.with_name("s.npy.part"), np.dtype("float64"), (5, 7))
        ranks._TEAM.reset(token)
        assert (opened.shape, opened.dtype) == ((5, 7), np.dtype("float64"))
        first.put(0, 0, values[:, :4])
        opened[:, 4:] = values[:, 4:]
        opened.flush()
        first.gather()
    assert not any(one is first.values for one in team)
    assert np.array_equal(np.load(path), values.numpy())
