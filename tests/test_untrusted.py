"""What files and folders of others may hold beside damage: pipes, texts that are none, arrays that
are not what their headers say, links in place of pages; and disks that are full half-way."""

from __future__ import annotations

import errno
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import curvfluence as cf
from curvfluence.errors import InputError
from curvfluence.judging.files import found, read_safetensors
from curvfluence.report.parts.text import Text
from curvfluence.runs import kind_of, verify
from curvfluence.score.load import load_scores
from curvfluence.store.arrays import StoredArray, hash_file, map_stored, read_stored
from curvfluence.store.files import append_line, replace_bytes
from curvfluence.store.lock import LOCK, held, is_held
from curvfluence.store.records import LONGEST, Record, read, seal, write
from curvfluence.truth.bank import Bank, Batch, Source
from tests.problems import make, mlp
from tests.studies import make_study

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX has pipes and such locks")


class Note(Record, frozen=True):
    text: str
    more: dict[str, str]


@posix
class TestPipes:
    """To read from one would take for ever, to write one's name would be the end of /dev/null."""

    @pytest.mark.parametrize("name", ["study.json", "manifest.json", "arrays/truth.npy"])
    def test_in_a_study(self, name: str, tmp_path: Path) -> None:
        make_study(tmp_path / "x", full=False, train=20, queries=6)
        (tmp_path / "x" / name).unlink()
        os.mkfifo(tmp_path / "x" / name)
        assert kind_of(tmp_path / "x") == "study"
        (one,) = verify(tmp_path / "x")
        assert one.fault is not None
        assert "is a pipe, a socket or a device, and no file" in one.fault

    @pytest.mark.parametrize("mapped", [True, False])
    def test_in_place_of_an_array(self, mapped: bool, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "a.npy")
        said = StoredArray("k", (0,), "float64", 0, "")
        options = {"verify": False} if mapped else {"finite": True}
        with pytest.raises(InputError, match="is a pipe"):
            (map_stored if mapped else read_stored)(tmp_path / "a.npy", said, **options)

    def test_beside_scores_that_are_judged(self, tmp_path: Path) -> None:
        np.save(tmp_path / "s.npy", np.zeros((2, 3)))
        os.mkfifo(tmp_path / "s.json")
        assert found(tmp_path / "s.npy").values.shape == (2, 3)

    def test_is_not_replaced(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "p")
        with pytest.raises(InputError, match="is a pipe"):
            replace_bytes(tmp_path / "p", b"x")
        assert (tmp_path / "p").is_fifo()
        assert os.listdir(tmp_path) == ["p"]


class TestTexts:
    @pytest.mark.parametrize(
        ("text", "said"),
        [("x" * (LONGEST + 1), "a text of 1,048,577 letters at"), ("a\ud800b", "half of a letter")],
        ids=["long", "surrogate"],
    )
    @pytest.mark.parametrize("place", ["value", "key"])
    def test_that_nothing_shows(self, text: str, said: str, place: str, tmp_path: Path) -> None:
        note = Note(text, {}) if place == "value" else Note("", {text: ""})
        with pytest.raises(InputError, match=rf"n.json would hold .*{said}"):
            write(tmp_path / "n.json", note)
        value: dict[str, Any] = {"text": note.text, "more": dict(note.more)}
        (tmp_path / "n.json").write_text(json.dumps({"sha256": seal(value), **value}))
        with pytest.raises(InputError, match=f"does not fit: it holds .*{said}") as error:
            read(tmp_path / "n.json", Note)
        assert len(str(error.value)) < 400 + len(str(tmp_path))

    def test_the_longest(self, tmp_path: Path) -> None:
        note = Note("x" * LONGEST, {"Ω": "名前"})
        write(tmp_path / "n.json", note)
        assert read(tmp_path / "n.json", Note) == note


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    problem = make(mlp(5, 4, 3), cf.CrossEntropy(), n=12, q=4)
    scores = cf.influence(problem, cf.KFAC(), damping=cf.Absolute(0.1), by_block=True)
    scores.save(tmp_path / "s.npy")
    return tmp_path / "s.npy"


def reseal(path: Path) -> None:
    """As whoever makes a file can."""
    value = json.loads(path.with_suffix(".json").read_text())
    del value["sha256"]
    value["files"] = {end: hash_file(path.with_suffix(end)) for end in (".npy", ".blocks.npz")}
    path.with_suffix(".json").write_text(json.dumps({"sha256": seal(value), **value}))


def header(*shape: int) -> bytes:
    file = io.BytesIO()
    about = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue()


class TestScores:
    """Of a file that is sealed, and no scores."""

    @pytest.mark.parametrize(
        ("kind", "value", "said"),
        [
            ("<U3", "abc", "holds <U3, and scores are floating point"),
            ("complex128", 1, "holds complex128"),
            ("int64", 1, "holds int64"),
            (">f8", 1, "holds >f8"),
            ("float64", np.nan, "holds a NaN or infinity"),
        ],
    )
    def test_of_another_kind(self, kind: str, value: Any, said: str, saved: Path) -> None:
        np.save(saved, np.full((4, 12), value, kind))
        reseal(saved)
        with pytest.raises(InputError, match=said):
            load_scores(saved)

    @pytest.mark.parametrize(
        ("shares", "said"),
        [
            ({}, "no readable array 'block0'"),
            ({"block0": np.ones((3, 3))}, "no share of block 0 in scores of shape"),
            ({"block0": np.full((4, 12), np.inf)}, "no share of block 0"),
            ({"block0": np.full((4, 12), "a")}, "it holds <U1, no numbers"),
        ],
    )
    def test_shares_that_are_none(self, shares: dict[str, Any], said: str, saved: Path) -> None:
        np.savez(saved.with_suffix(".blocks.npz"), allow_pickle=False, **shares)
        reseal(saved)
        with pytest.raises(InputError, match=said):
            load_scores(saved)

    def test_shares_that_promise_memory(self, saved: Path) -> None:
        with zipfile.ZipFile(saved.with_suffix(".blocks.npz"), "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("block0.npy", header(10**7, 10**6) + bytes(800))
        reseal(saved)
        with pytest.raises(InputError, match="not as long as an array of shape"):
            load_scores(saved)

    def test_of_others(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "s.npz", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("scores.npy", header(10**7, 10**6) + bytes(800))
            file.writestr("other.npy", header(2, 3) + bytes(48))
        with pytest.raises(InputError, match="not as long as an array of shape"):
            found(tmp_path / "s.npz")
        assert found(tmp_path / "s.npz", key="other").values.shape == (2, 3)

    def test_tensors_that_are_read_twice(self, tmp_path: Path) -> None:
        one = {"dtype": "F64", "shape": [50], "data_offsets": [0, 400]}
        text = json.dumps({f"{k}": one for k in range(1000)}).encode()
        data = len(text).to_bytes(8, "little") + text + bytes(400)
        (tmp_path / "s.safetensors").write_bytes(data)
        with pytest.raises(ValueError, match="its tensors are longer than the file"):
            read_safetensors(tmp_path / "s.safetensors")


class TestFullDisk:
    def test_a_file_of_scores_takes_its_room_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A page of mapped memory for which there is no room ends the process without a word."""
        if not hasattr(os, "posix_fallocate"):
            pytest.skip("this system has no call for it")
        asked: list[tuple[int, int]] = []

        def full(_: int, start: int, size: int) -> None:
            asked.append((start, size))
            raise OSError(errno.ENOSPC, "No space left on device")

        problem = make(mlp(5, 4, 3), cf.CrossEntropy(), n=12, q=4)
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", full)
            with pytest.raises(InputError, match=r"cannot write to .*No space left on device"):
                cf.influence(problem, cf.KFAC(), damping=cf.Absolute(0.1), out=tmp_path / "s.npy")
            assert list(tmp_path.iterdir()) == []
            assert asked == [(0, 128 + 4 * 12 * 8)]
            cannot = OSError(errno.EOPNOTSUPP, "a filesystem that cannot")
            patch.setattr(os, "posix_fallocate", _raises(cannot))
            cf.influence(problem, cf.KFAC(), damping=cf.Absolute(0.1), out=tmp_path / "s.npy")
        assert load_scores(tmp_path / "s.npy").values.shape == (4, 12)

    def test_the_record_of_scores(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = make(mlp(5, 4, 3), cf.CrossEntropy(), n=12, q=4)
        scores = cf.influence(problem, cf.KFAC(), damping=cf.Absolute(0.1))
        full = _raises(OSError(errno.ENOSPC, "No space left on device"))
        monkeypatch.setattr("curvfluence.score.saved.write", full)
        with pytest.raises(InputError, match=r"cannot write to .*No space left on device"):
            scores.save(tmp_path / "s.npy")

    def test_the_name_of_a_holder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        full = _raises(OSError(errno.ENOSPC, "No space left on device"))
        monkeypatch.setattr("curvfluence.store.lock.write", full)
        with pytest.raises(InputError, match="cannot write to"), held(tmp_path / "x"):
            pass
        assert not is_held(tmp_path / "x")

    def test_a_line_of_which_a_part_was_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The batch is whole, and its bank is read."""
        source = Source("p", {}, "m", 3, 2, "d")
        bank = Bank(tmp_path, source)
        bank.claim()
        whole, arrays = os.write, {"x": torch.ones(2)}
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda to, data: whole(to, data[:9]))
            with pytest.raises(InputError, match="No space left on device"):
                bank.keep(Batch("retrained", "float32", (0,), (0,)), arrays, 0.0)
        bank.keep(Batch("retrained", "float32", (1,), (0,)), arrays, 0.0)
        assert len(list(bank.entries())) == 2
        for file in (tmp_path / "entries").glob("*.json"):
            file.unlink()
        with pytest.raises(InputError, match=r"\.json is missing"):
            list(bank.entries())

    def test_lines_stay_apart(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_text("half")
        append_line(tmp_path / "f", "whole")
        assert (tmp_path / "f").read_text().split() == ["half", "whole"]


def _raises(error: Exception) -> Callable[..., None]:
    def raising(*_: object, **__: object) -> None:
        raise error

    return raising


class TestLinks:
    def test_a_text_and_its_pictures(self, tmp_path: Path) -> None:
        """As the tables of claims are, in a folder that may be anybody's."""
        away = tmp_path / "away"
        away.mkdir()
        (away / "mine").write_text("mine")
        folder = tmp_path / "x"
        folder.mkdir()
        (folder / "claims.md").symlink_to(away / "mine")
        with pytest.raises(InputError, match=r"claims\.md is a link"):
            Text(("hello",)).write(folder / "claims.md", "figures")
        (folder / "claims.md").unlink()
        (folder / "figures").symlink_to(away)
        with pytest.raises(InputError, match="figures is a link"):
            Text(("hello",)).write(folder / "claims.md", "figures")
        assert (away / "mine").read_text() == "mine"

    def test_scores_are_not_written_through(self, tmp_path: Path) -> None:
        problem = make(mlp(5, 4, 3), cf.CrossEntropy(), n=12, q=4)
        scores = cf.influence(problem, cf.KFAC(), damping=cf.Absolute(0.1))
        for name in ("s.csv", "s.npy.part"):
            (tmp_path / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(InputError, match=r"s\.csv exists: name a new file"):
            scores.to_csv(tmp_path / "s.csv")
        with pytest.raises(InputError, match=r"s\.npy\.part exists: name a new file"):
            cf.influence(problem, cf.KFAC(), damping=cf.Absolute(0.1), out=tmp_path / "s.npy")
        assert not (tmp_path / "elsewhere").exists()


@posix
class TestFoldersThatAreOthersToWrite:
    """The superuser is refused nothing: the system's answer is played."""

    def test_a_lock_is_asked_about_without_writing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "x"
        folder.mkdir()
        (folder / LOCK).touch()
        refused = _raises(PermissionError(errno.EACCES, "Permission denied"))
        with monkeypatch.context() as patch:
            patch.setattr("curvfluence.store.lock.FileLock", refused)
            assert not is_held(folder)
        with held(folder), monkeypatch.context() as patch:
            patch.setattr("curvfluence.store.lock.FileLock", refused)
            assert is_held(folder)
