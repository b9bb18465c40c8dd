"""What a command prints of folders and files that anybody made: text, and no command or markup."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from curvfluence.cli.consoles import console
from curvfluence.cli.process import main
from curvfluence.store.folder import SPEC, Header, MadeBy
from curvfluence.store.records import write
from tests.studies import make_study

EVIL = "x\x1b]0;title\x07\x1b[31m\x9b5m\u202egnp.exe\ud800"
SOURCE = Path(__file__).parents[1] / "src/curvfluence"


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["curvfluence", *words])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


class TestConsole:
    @pytest.mark.parametrize("made", [str, Text])
    def test_no_text_is_a_command(
        self, made: type[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        console(width=200).print(made(EVIL))
        said = capsys.readouterr().out
        assert said == "x␛]0;title␛[31m␡5m\ufffdgnp.exe\ufffd\n"
        said.encode()

    def test_nor_a_cell_of_a_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        grid = Table("a")
        grid.add_row(Text(EVIL))
        console(width=200).print(grid)
        assert not set(capsys.readouterr().out) & set("\x1b\x07\x9b\u202e\ud800")

    def test_colours_and_bars_are_as_ever(self, capsys: pytest.CaptureFixture[str]) -> None:
        made = console(width=80, force_terminal=True, color_system="standard")
        made.print(Text("red", style="red"))
        with Progress(console=made) as progress:
            progress.update(progress.add_task("work", total=1), completed=1)
        said = capsys.readouterr().out
        assert "\x1b[31mred\x1b[0m" in said
        assert "\x1b[?25l" in said  # the cursor is hidden
        assert "␛" not in said

    @pytest.mark.parametrize("text", ["runs/x[lr=0.1]", "[/]", "[bold]x", ":smile:"])
    def test_no_text_is_markup(self, text: str, capsys: pytest.CaptureFixture[str]) -> None:
        console(width=200).print(text)
        assert capsys.readouterr().out == f"{text}\n"


def test_nothing_that_is_printed_has_markup() -> None:
    """A path in it would be one too."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert "[/]" not in node.value, path
                assert "[bold" not in node.value, path


def test_a_page_is_named_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x[lr=0.1]", "y[-]"):
        make_study(tmp_path / name, full=False, train=20, queries=6)
    assert run(["report", "x[lr=0.1]"], monkeypatch) == 0
    assert "Report  x[lr=0.1]/report.html" in capsys.readouterr().out
    assert run(["compare", "x[lr=0.1]", "y[-]", "--out", "c[b].html"], monkeypatch) == 0
    assert "Page  c[b].html" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["list", "show", "verify"])
def test_a_hostile_folder(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Sealed by who made it."""
    folder = tmp_path / "x\x1b[2J"
    folder.mkdir()
    evil = EVIL.replace("\ud800", "")
    write(folder / SPEC, Header(evil, {"problem": evil, evil: "y" * 100_000}, MadeBy(evil, evil)))
    assert run(["runs", command, str(folder)], monkeypatch) in (0, 1, 2)
    out, err = capsys.readouterr()
    assert not set(out + err) & set("\x1b\x07\x9b\u202e")
    assert len(out + err) < 10_000
