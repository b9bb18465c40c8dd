"""Logging: quiet by default, told on request, loggers left as found."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from curvfluence.errors import InputError
from curvfluence.runtime.log import NAME, shown
from curvfluence.study import StudySpec, run_study
from tests.test_report import run

SPEC = StudySpec("wine", 4, models=1, orders=1, rungs=("KFAC",), bregman=False, costs=False)


def test_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_study(SPEC, tmp_path / "x")
    assert capsys.readouterr().err == ""


def test_told_to_whoever_listens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger=NAME):
        run_study(SPEC, tmp_path / "x")
        run_study(SPEC, tmp_path / "y", bank=tmp_path / "x/bank")
    said = [record.getMessage() for record in caplog.records]
    assert any(text.endswith("models is made") for text in said)
    assert any(text.endswith("models is read") for text in said)


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger(NAME)
    before = list(root.handlers), root.level, root.propagate
    words = ["study", "wine", "--subsets", "4", "--models", "1", "--rungs", "KFAC", "--no-progress"]
    file = tmp_path / "log.txt"
    code, _, err = run(
        ["--log-file", str(file), *words, "--out", str(tmp_path / "x")], monkeypatch, capsys
    )
    assert (code, err) == (0, "")
    assert "retrain on subsets: done in" in file.read_text()
    assert "DEBUG" not in file.read_text()
    code, _, err = run(["--verbose", *words, "--out", str(tmp_path / "y")], monkeypatch, capsys)
    assert code == 0
    assert "curvfluence.study.progress" in err
    assert (list(root.handlers), root.level, root.propagate) == before


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write to"), shown(False, tmp_path / "no/such"):
        pass
