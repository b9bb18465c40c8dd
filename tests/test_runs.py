"""Folders of results as the command lists, verifies and cleans them; a small torture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import tests.torture.__main__ as torture
from curvfluence.errors import InputError
from curvfluence.runs import clean, find, forget, kind_of, leftovers, verify
from curvfluence.store.lock import HOLDER, LOCK, held
from curvfluence.store.steps import STEPS, Steps
from tests.studies import make_study
from tests.test_report import run
from tests.test_report_sweep import make_sweep
from tests.torture import commands, corruptions, inputs, stale

pytestmark = pytest.mark.xdist_group("runs")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_study(tmp_path / "runs/one", full=False, train=20, queries=6)
    make_study(tmp_path / "runs/half", full=False, train=20, queries=6)
    (tmp_path / "runs/half/results.json").unlink()
    make_sweep(tmp_path / "runs/grid", {"depth": [1, 2]})
    (tmp_path / "runs/notes").mkdir()
    (tmp_path / "runs/notes/mine.txt").write_text("mine")
    return tmp_path / "runs"


class TestFind:
    def test_every_folder(self, root: Path) -> None:
        found = {one.path.name: (one.kind, one.state) for one in find(root)}
        assert found == {
            "one": ("study", "finished"),
            "half": ("study", "unfinished"),
            "grid": ("sweep", "finished"),
        }
        one = next(one for one in find(root) if one.path.name == "one")
        files = [p for p in one.path.rglob("*") if p.is_file()]
        assert (one.files, one.bytes) == (len(files), sum(p.stat().st_size for p in files))
        assert one.said.startswith("problem ")

    def test_what_is_being_written(self, root: Path) -> None:
        with held(root / "half"):
            states = {one.path.name: one.state for one in find(root)}
        assert states["half"] == "being written"

    def test_nothing(self, root: Path) -> None:
        assert kind_of(root / "notes") is None
        (root / "link").symlink_to(root / "one")
        assert kind_of(root / "link") is None
        with pytest.raises(InputError, match="is no folder"):
            find(root / "gone")
        with pytest.raises(InputError, match="holds no results"):
            verify(root / "notes")


class TestVerify:
    def test_whole(self, root: Path) -> None:
        assert [(one.kind, one.fault) for one in verify(root / "one")] == [("study", None)]
        kinds = [one.kind for one in verify(root / "grid")]
        assert kinds == ["sweep", "study", "study"]
        assert all(one.fault is None for one in verify(root / "grid"))

    def test_faults(self, root: Path) -> None:
        file = root / "grid/cells/study1/arrays/truth.npy"
        file.write_bytes(file.read_bytes()[:-1])
        faults = {one.path.name: one.fault for one in verify(root / "grid")}
        assert faults["study0"] is None
        for name in ("grid", "study1"):
            assert "truth.npy is not what was written" in str(faults[name])
        assert "unfinished" in str(verify(root / "half")[0].fault)


class TestClean:
    def test_leftovers(self, root: Path) -> None:
        (root / "one/.results.json.77.tmp").write_text("half")
        (root / "one/arrays/.truth.npy.77.tmp").write_text("half")
        (root / "one" / LOCK).touch()
        (root / "one" / HOLDER).write_text("dead")
        (root / "notes/.x.1.tmp").write_text("not ours")
        names = [path.name for path in leftovers(root)]
        assert sorted(names) == [HOLDER, ".results.json.77.tmp", ".truth.npy.77.tmp"]
        assert (root / "one" / LOCK).exists()
        with held(root / "one"):
            (root / "one/.y.1.tmp").write_text("being written")
            assert leftovers(root) == []
        assert [path.name for path in clean(root)] == [".y.1.tmp"]
        assert leftovers(root) == []
        assert (root / "one" / LOCK).exists()  # somebody may be waiting for it
        assert (root / "notes/.x.1.tmp").exists()
        assert verify(root / "one")[0].fault is None

    def test_steps_on_the_way(self, root: Path) -> None:
        """Of what is finished; what is not goes on from there."""
        for name in ("one", "half"):
            Steps(root / name / STEPS, {}).keep({"a": 1}, 2)
        assert leftovers(root) == [root / "one" / STEPS]
        clean(root)
        assert Steps(root / "half" / STEPS, {}).find({"a": 1}, int) == 2
        assert not (root / "one" / STEPS).exists()

    def test_steps_beside_a_page(self, root: Path) -> None:
        """Left by a killed `attribute` or `audit`, or by `judge`."""
        kept, done = root / "page.html.steps", root / "notes" / "done.html.steps"
        (root / "notes" / "mine.steps").mkdir()
        (root / "notes" / "mine.steps" / "walk.txt").write_text("ten thousand")
        for folder in (kept, done, root / "wine-judge" / STEPS):
            folder.parent.mkdir(exist_ok=True)
            steps = Steps(folder, {})
            steps.keep({"a": 1}, torch.ones(2))
            steps.within({"b": 1}).keep({"c": 1}, 3)
            (folder / LOCK).touch()
        (root / "notes" / "done.html").write_text("a page")
        assert leftovers(root) == [done]
        with held(kept):
            assert kept not in leftovers(root, unfinished=True)
        assert {kept, done, root / "wine-judge" / STEPS} < set(leftovers(root, unfinished=True))
        clean(root)
        assert Steps(kept, {}).find({"a": 1}, torch.Tensor) is not None
        clean(root, unfinished=True)
        assert not kept.exists()
        assert (root / "notes" / "mine.steps").exists()

    def test_unfinished(self, root: Path) -> None:
        assert leftovers(root, unfinished=True) == [root / "half"]
        clean(root, unfinished=True)
        assert not (root / "half").exists()
        assert (root / "one").exists()


def test_commands(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["runs", "list", str(root)], monkeypatch, capsys)
    assert code == 0
    assert "unfinished" in out
    assert "sweep" in out
    code, out, _ = run(["runs", "show", str(root / "one")], monkeypatch, capsys)
    assert code == 0
    assert "study, finished" in out
    code, out, _ = run(["runs", "verify", str(root / "grid")], monkeypatch, capsys)
    assert code == 0
    assert "3 of 3 are whole" in out
    code, out, _ = run(["runs", "verify", str(root / "half")], monkeypatch, capsys)
    assert code == 1
    assert "FAULT" in out
    code, out, _ = run(["runs", "clean", str(root), "--unfinished"], monkeypatch, capsys)
    assert code == 0
    assert "1 would be removed by --yes" in out
    assert (root / "half").exists()
    code, _, err = run(["runs", "show", str(root / "notes")], monkeypatch, capsys)
    assert code == 2
    assert "holds no results" in err


class TestTorture:
    def test_parts_run_apart_are_put_together(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A part replaces its own keys alone, in what an earlier run has left."""
        counts = {"kills": 3, "stale": 5}
        parts = {
            "kills": (lambda n, _: {"kills": n, "kills_identical": n, "orphans": 0}, 1),
            "stale": (lambda n, _: {"stale": n, "stale_detected": n}, 1),
        }
        monkeypatch.setattr(torture, "PARTS", parts)
        out = tmp_path / "torture.json"
        out.write_text(json.dumps({"soak_rounds": 67, "kills": 99}))
        for name, count in counts.items():
            words = ["torture", "--only", name, "--count", str(count), "--out", str(out)]
            monkeypatch.setattr(sys, "argv", words)
            assert torture.main() == 0
        assert json.loads(out.read_text()) == {
            "soak_rounds": 67, "kills": 3, "kills_identical": 3, "orphans": 0, "stale": 5,
            "stale_detected": 5,
        }  # fmt: skip

    """A little of `make torture`, so that it runs and counts what it says."""

    def test_corruptions(self) -> None:
        assert corruptions.run(40, seed=1) == {"corruptions": 40, "corruptions_detected": 40}

    def test_stale(self) -> None:
        assert stale.run(3, seed=1) == {"stale": 3, "stale_detected": 3}

    def test_inputs(self) -> None:
        assert inputs.run(250, seed=4) == {"inputs": 250, "inputs_clear": 250}

    def test_commands(self) -> None:
        found = commands.run(120, seed=0)
        assert found["commands_clear"] == 120
        assert found["commands_reached_work"] > 3


class TestForget:
    """`--rerun`: whatever state a folder is in, its own command may begin it anew."""

    @pytest.mark.parametrize("name", ["study.json", "results.json", "manifest.json"])
    def test_a_damaged_cell(
        self,
        name: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        words = ["sweep", "wine", "--epochs", "2", "--models", "1", "--subsets", "3", "--jobs", "1"]
        words += ["--no-progress", "--out", str(tmp_path / "s")]
        code, _, err = run(words, monkeypatch, capsys)
        assert code == 0, err
        (file,) = (tmp_path / "s").glob(f"cells/*/{name}")
        text = file.read_text()
        file.write_text(text.replace("0", "1", 1))
        assert run(words, monkeypatch, capsys)[0] == 2
        code, _, err = run([*words, "--rerun"], monkeypatch, capsys)
        assert code == 0, err
        assert all(one.fault is None for one in verify(tmp_path / "s"))

    def test_what_is_not_its_own_is_left(self, tmp_path: Path) -> None:
        forget(tmp_path / "none", "sweep")
        forget(tmp_path, "sweep")
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match=r"notes\.txt, which is no result"):
            forget(tmp_path, "sweep")
        make_study(tmp_path / "x")
        with pytest.raises(InputError, match="a finished study"):
            forget(tmp_path / "x", "sweep")
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert (tmp_path / "x/results.json").is_file()
        with held(tmp_path / "x"), pytest.raises(InputError, match="being written by"):
            forget(tmp_path / "x", "study")
        forget(tmp_path / "x", "study")
        assert not (tmp_path / "x/results.json").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["sweep", "wine", "--epochs", "2", "--subsets", "4", "--models", "1"],
        ["claims", "wine"],
        ["claims", "wine", "--protocol", "table1", "--quick"],
        ["questions", "wine"],
    ],
    ids=["sweep", "claims", "table1", "questions"],
)
def test_the_folder_of_a_study_is_no_place_for_another_kind(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_study(tmp_path / "x", full=False, train=20, queries=6)
    before = sorted(p.name for p in (tmp_path / "x").iterdir())
    words = [*words, "--out", str(tmp_path / "x"), "--no-progress"]
    code, _, err = run(words, monkeypatch, capsys)
    assert code == 2
    assert "holds a study: name another folder with --out" in err
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == before
