"""What `--help` of every command shows: each word that was written, in whole paragraphs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from curvfluence.cli import app


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


EVERY = dict(commands(get_command(app)))


def words(text: str) -> list[str]:
    """Without the marks of a table, of code and of stress."""
    return re.sub(r"[│╭╮╰╯─]", " ", text.replace("`", "")).split()


def shown(path: tuple[str, ...], width: int) -> str:
    done = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": str(width)}, color=False)
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_every_word_is_shown(path: tuple[str, ...]) -> None:
    """What stands in brackets too, which a markup would take for a style."""
    found = " ".join(words(shown(path, 400)))
    command = EVERY[path]
    texts = [command.help, *(p.help for p in command.params if not getattr(p, "hidden", False))]
    for text in texts:
        for paragraph in inspect.cleandoc(text or "").split("\f")[0].split("\n\n"):
            assert " ".join(words(paragraph)) in found


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_paragraphs_are_filled(path: tuple[str, ...]) -> None:
    """A line ends before the next word would not fit, wherever the source broke it."""
    text = inspect.cleandoc(EVERY[path].help or "")
    lines = [line.strip() for line in shown(path, 80).split("╭")[0].splitlines()]
    for paragraph in text.split("\n\n"):
        every = " ".join(words(paragraph))
        told = [k for k in lines if k and " ".join(words(k)) in every]
        for line, following in pairwise(told):
            if f"{line} {following}" in every:
                assert len(line) + 1 + len(following.split()[0]) > 78
