"""Folders on disk: whatever is cut, turned over, swapped, edited or linked is not believed."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from curvfluence.errors import InputError
from curvfluence.report import write_report
from curvfluence.report.parts import page
from curvfluence.report.study.page import with_report
from curvfluence.store.arrays import StoredArray, read_stored, write_array
from curvfluence.store.files import inside, replace_bytes, replace_file
from curvfluence.store.manifest import MANIFEST, Manifest
from curvfluence.store.records import read, write
from curvfluence.study import StudySpec, run_study
from curvfluence.study.run import run_together
from curvfluence.study.study import read_study
from tests.studies import make_study, reseal
from tests.test_report import run

SMALL = {"full": True, "train": 20, "queries": 6}
JSON = ("study.json", "results.json", MANIFEST)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_study(tmp_path / "x", **SMALL)  # type: ignore[arg-type]
    return tmp_path / "x"


class TestFiles:
    def test_whole_or_not_at_all(self, tmp_path: Path) -> None:
        path = tmp_path / "x"
        replace_bytes(path, b"old")

        def fill(file: object) -> None:
            file.write(b"ne")  # type: ignore[attr-defined]
            raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space left"):
            replace_file(path, fill)
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["x"]

    def test_a_link_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "there").write_bytes(b"mine")
        (tmp_path / "x").symlink_to(tmp_path / "there")
        replace_bytes(tmp_path / "x", b"new")
        assert (tmp_path / "there").read_bytes() == b"mine"
        assert (tmp_path / "x").read_bytes() == b"new"

    def test_a_stale_temporary_is_no_obstacle(self, tmp_path: Path) -> None:
        (tmp_path / f".x.{os.getpid()}.tmp").write_bytes(b"half")
        replace_bytes(tmp_path / "x", b"new")
        assert [p.name for p in tmp_path.iterdir()] == ["x"]

    @pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", "a\0b", "n" * 300])
    def test_outside(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="it names a folder"):
            inside(tmp_path, name)

    def test_links_below(self, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        (tmp_path / "root").symlink_to(tmp_path / "there")  # where results lie is the user's choice
        assert inside(tmp_path / "root", "a/b") == tmp_path / "root/a/b"
        (tmp_path / "root/a").symlink_to(tmp_path)
        with pytest.raises(InputError, match="is a link"):
            inside(tmp_path / "root", "a/b")


class TestArrays:
    @given(
        arrays.arrays(
            st.sampled_from([np.dtype(k) for k in ("?", "i1", "u2", "i8", "f2", "f4", "f8")]),
            arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
            elements={"allow_nan": False, "allow_infinity": False},
        )
    )
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_read_back(self, tmp_path: Path, array: np.ndarray) -> None:
        said = write_array(tmp_path / "x.npy", array, "k")
        found = read_stored(tmp_path / "x.npy", said, finite=True)
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
        plain = BytesIO()
        np.save(plain, np.ascontiguousarray(array).reshape(array.shape))
        assert (tmp_path / "x.npy").read_bytes() == plain.getvalue()

    def test_another_array(self, tmp_path: Path) -> None:
        one = write_array(tmp_path / "x.npy", np.arange(4.0), "k")
        write_array(tmp_path / "x.npy", np.arange(4.0)[::-1], "k")
        with pytest.raises(InputError, match="not what was written"):
            read_stored(tmp_path / "x.npy", one, finite=True)

    def test_a_header_that_lies(self, tmp_path: Path) -> None:
        """Believed by nothing: the file is neither as long nor the one that was written."""
        said = write_array(tmp_path / "x.npy", np.arange(4.0), "k")
        text = (tmp_path / "x.npy").read_bytes()
        (tmp_path / "x.npy").write_bytes(text.replace(b"(4,)", b"(9,)"))
        with pytest.raises(InputError, match="not what was written"):
            read_stored(tmp_path / "x.npy", said, finite=True)
        wrong = StoredArray("k", (9,), "float64", said.bytes, said.sha256)
        (tmp_path / "x.npy").write_bytes(text)
        with pytest.raises(InputError, match="not what was written"):
            read_stored(tmp_path / "x.npy", wrong, finite=True)


def flip(path: Path, generator: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    path.write_bytes(data)


def cut(path: Path, generator: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: generator.randrange(len(data))])


def lose(path: Path, _: random.Random) -> None:
    path.unlink()


def link(path: Path, _: random.Random) -> None:
    other = path.with_name("elsewhere")
    path.rename(other)
    path.symlink_to(other)


def refused(folder: Path) -> str | None:
    """What a reader says; None where it believes the folder."""
    try:
        found = read_study(folder)
        found.array("truth")
    except InputError as error:
        return str(error)
    return None


class TestDamage:
    @pytest.mark.parametrize("damage", [flip, cut, lose, link])
    def test_every_file(
        self, damage: Callable[[Path, random.Random], None], folder: Path, tmp_path: Path
    ) -> None:
        before = read_study(folder).results
        generator = random.Random(0)
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            copy = tmp_path / "copy"
            shutil.copytree(folder, copy)
            damage(copy / file.relative_to(folder), generator)
            said = refused(copy)
            if said is None:  # a blank of JSON for another
                assert file.name in JSON
                assert damage is flip
                assert read_study(copy).results == before
            shutil.rmtree(copy)

    def test_a_number_that_fits(self, folder: Path) -> None:
        """An LDS of .999 where results say .641."""
        path = folder / "results.json"
        value = json.loads(path.read_text())
        value["rungs"][0]["lds"] = 0.999
        path.write_text(json.dumps(value))
        assert "results.json is not what was written" in str(refused(folder))

    def test_a_study_that_is_there_is_whole(self, tmp_path: Path) -> None:
        """What `report` refuses is not "already here" to `study`, nor to a sweep or to claims."""
        spec = StudySpec("wine", 4, models=1, orders=1, rungs=("KFAC",), bregman=False, costs=False)
        run_study(spec, tmp_path / "x")
        assert run_study(spec, tmp_path / "x").reused
        flip(tmp_path / "x/arrays/truth.npy", random.Random(0))
        for again in (run_study, lambda one, at: run_together([one], [at])):
            with pytest.raises(InputError, match=r"truth\.npy is not what was written.*--rerun"):
                again(spec, tmp_path / "x")
        (tmp_path / "x/arrays/truth.npy").unlink()
        with pytest.raises(InputError, match=r"truth\.npy is missing"):
            run_study(spec, tmp_path / "x")
        assert not run_study(spec, tmp_path / "x", rerun=True).reused

    def test_arrays_swapped(self, folder: Path, tmp_path: Path) -> None:
        make_study(tmp_path / "y", **{**SMALL, "seed": 1})  # type: ignore[arg-type]
        (folder / "arrays/truth.npy").write_bytes((tmp_path / "y/arrays/truth.npy").read_bytes())
        assert "truth.npy is not what was written" in str(refused(folder))

    @pytest.mark.parametrize("name", JSON)
    def test_records_swapped(self, name: str, folder: Path, tmp_path: Path) -> None:
        make_study(tmp_path / "y", **{**SMALL, "seed": 1})  # type: ignore[arg-type]
        header = json.loads((tmp_path / "y/study.json").read_text())
        reseal(tmp_path / "y/study.json", {**header, "key": "another"})
        (folder / name).write_bytes((tmp_path / "y" / name).read_bytes())
        assert "the folder is of two runs" in str(refused(folder))

    def test_a_folder_linked_away(self, folder: Path, tmp_path: Path) -> None:
        (folder / "arrays").rename(tmp_path / "away")
        (folder / "arrays").symlink_to(tmp_path / "away")
        assert "arrays is a link" in str(refused(folder))

    def test_another_format(self, folder: Path) -> None:
        found = read(folder / MANIFEST, Manifest)
        assert found is not None
        seal = write(folder / MANIFEST, Manifest(1, found.study, found.arrays))
        results = json.loads((folder / "results.json").read_text())
        reseal(folder / "results.json", {**results, "manifest": seal})
        assert "is in format 1, and this version reads 2" in str(refused(folder))

    def test_an_array_that_nobody_listed(self, folder: Path) -> None:
        np.save(folder / "arrays/predicted.KFAC.npy", np.ones(3))
        assert read_study(folder).array("predicted.KFAC") is None


class TestPages:
    def test_a_page_is_kept_and_made_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = StudySpec("wine", 4, models=1, orders=1, rungs=("KFAC",), bregman=False, costs=False)
        with_report(run_study(spec, tmp_path / "x"), figures=False)
        path = tmp_path / "x/report.html"
        first = path.read_bytes()

        def again() -> bytes:
            with_report(run_study(spec, tmp_path / "x"), figures=False)
            return path.read_bytes()

        made = path.stat().st_mtime_ns
        assert again() == first
        assert path.stat().st_mtime_ns == made
        path.write_bytes(first.replace(b"KFAC", b"LFAC", 1))  # an edit
        assert b"LFAC" not in again()
        monkeypatch.setattr(page, "hash_code", lambda *_, **__: "other code")
        assert b"by other code" in again()  # not the page of another version

    def test_links_are_not_written_through(self, folder: Path, tmp_path: Path) -> None:
        target = tmp_path / "precious.svg"
        target.write_text("mine")
        (folder / "figures").mkdir()
        (folder / "figures/ladder.svg").symlink_to(target)
        write_report(folder)
        assert target.read_text() == "mine"
        assert not (folder / "figures/ladder.svg").is_symlink()
        shutil.rmtree(folder / "figures")
        (tmp_path / "away").mkdir()
        (folder / "figures").symlink_to(tmp_path / "away")
        with pytest.raises(InputError, match="figures is a link"):
            write_report(folder)
        assert not any((tmp_path / "away").iterdir())
        (folder / "figures").unlink()
        (folder / "report.html").unlink()
        (folder / "report.html").symlink_to(target)
        with pytest.raises(InputError, match=r"report\.html is a link"):
            write_report(folder)
        assert target.read_text() == "mine"


def test_a_full_disk_shows_the_table_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing finished is left behind, and the same command goes on with what was kept."""
    words = ["study", "wine", "--subsets", "4", "--models", "1", "--rungs", "KFAC", "--no-progress"]
    words += ["--out", str(tmp_path / "x")]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("curvfluence.store.manifest.write_array", full)
        code, out, err = run(words, patch, capsys)
    assert code == 2
    assert "KFAC" in out
    assert "No space left on device" in err
    assert not (tmp_path / "x/results.json").exists()
    code, out, err = run(words, monkeypatch, capsys)
    assert code == 0, err
    assert read_study(tmp_path / "x").results.rung("KFAC") is not None
