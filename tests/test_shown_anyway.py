"""What a command found is shown where a page or a file of it cannot be written, and not lost."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from curvfluence.cli.consoles import shown_after
from curvfluence.cli.process import main
from curvfluence.errors import InputError, NotKeptError
from curvfluence.runtime import journal
from tests.test_supervise import OWN

FAST = ["--no-progress", "--threads", "1"]
SMALL = ["--subsets", "4", "--models", "1", "--rungs", "KFAC", *FAST]
AUDIT = ["audit", "own.py", "--neighbours", "3", *FAST]
FULL = "No space left on device"


def full(*_: object, **__: object) -> None:
    raise OSError(28, FULL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    np.save(tmp_path / "scores.npy", np.random.default_rng(0).normal(size=(10, 30)))
    return tmp_path


def run(
    words: list[str], patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    patch.setattr(sys, "argv", ["curvfluence", *words])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0), *capsys.readouterr()
    return 0, *capsys.readouterr()


JUDGE = [
    "judge", "scores.npy", "--problem", "own.py", "--positive", "helps", "--order", "query,train",
    "--subsets", "4", "--models", "1", "--orders", "1", "--against", "KFAC", "--out", "j.json",
]  # fmt: skip


SWEEP = [
    "sweep", "wine", "--epochs", "2", "--subsets", "4", "--models", "1", "--jobs", "1",
    "--no-progress",
]  # fmt: skip
QUESTIONS = [
    "questions", "own.py", "--subsets", "4", "--models", "1", "--orders", "1", "--left-out", "3",
    "--queries", "2", "--alpha", "0.5", "--rungs", "KFAC", *FAST,
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "writer", "shown"),
    [
        (["study", "own.py", *SMALL], "report.parts.page.replace_bytes", "KFAC"),
        (["attribute", "own.py", *FAST], "report.parts.page.replace_bytes", "most helpful"),
        (AUDIT, "report.parts.page.replace_bytes", "loss"),
        ([*AUDIT, "--json", "a.json"], "store.records.replace_bytes", "loss"),
        ([*JUDGE, *FAST], "judging.run.write", "judged"),
        (SWEEP, "report.parts.page.replace_bytes", "EKFAC"),
        (SWEEP, "study.sweep.run.write", "EKFAC"),
        (SWEEP, "study.sweep.run.replace_file", "EKFAC"),
        (QUESTIONS, "report.parts.page.replace_bytes", "KFAC"),
        (QUESTIONS, "study.questions.run.write", "KFAC"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)  # fmt: skip
def test_a_disk_that_is_full_for_the_last_file(
    words: list[str],
    writer: str,
    shown: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(f"curvfluence.{writer}", full)
        code, out, err = run(words, patch, capsys)
    assert code == 2
    assert FULL in err
    assert shown in out


@pytest.mark.parametrize("command", ["attribute", "audit"])
def test_what_was_kept_on_the_way_is_there_until_the_page_is(
    command: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(journal, "LONG", 0.0)
    steps = here / "page.html.steps"
    words = [command, "own.py", "--out", "page.html", *FAST]
    words += ["--neighbours", "3"] if command == "audit" else []
    with monkeypatch.context() as patch:
        patch.setattr("curvfluence.report.parts.page.replace_bytes", full)
        assert run(words, patch, capsys)[0] == 2
    assert steps.is_dir()
    code, _, err = run(words, monkeypatch, capsys)
    assert code == 0, err
    assert not steps.exists()


def test_a_table_that_is_there_is_refused_before_any_work(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "t.csv").write_text("mine")
    code, out, err = run(["attribute", "own.py", "--table", "t.csv", *FAST], monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert "t.csv exists: name a new file" in err
    assert not (here / "explorer.html").exists()


def test_what_a_worker_could_not_keep_comes_whole() -> None:
    error = pickle.loads(pickle.dumps(NotKeptError("full", [1.0])))
    assert (str(error), error.results) == ("full", [1.0])


def test_shown_after() -> None:
    said: list[str] = []
    with shown_after(lambda: said.append("shown")):
        said.append("written")
    with pytest.raises(InputError), shown_after(lambda: said.append("shown")):
        raise InputError("full")
    assert said == ["written", "shown", "shown"]
    with pytest.raises(KeyboardInterrupt), shown_after(lambda: said.append("shown")):
        raise KeyboardInterrupt
    assert len(said) == 3
