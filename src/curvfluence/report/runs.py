"""Folders of results in a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from curvfluence.errors import InputError
from curvfluence.report.parts.line import named
from curvfluence.report.parts.table import Table
from curvfluence.runs import RunFolder, find
from curvfluence.store.folder import SPEC, Header
from curvfluence.store.records import read
from curvfluence.study.words import clipped, size

MOST = 2_000  # letters of what a folder says of itself


def runs_table(found: Sequence[RunFolder], root: Path) -> Table:
    """A row for each folder."""
    rows = tuple(
        (
            str(one.path.relative_to(root)) if one.path != root else str(one.path),
            one.kind,
            one.state,
            f"{one.files}",
            size(one.bytes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(one.changed)),
            one.said,
        )
        for one in found
    )
    columns = ("Folder", "kind", "state", "files", "size", "changed", "settings")
    return Table(f"Results in {root}", columns, rows, words=("kind", "state", "settings"))


def show_run(folder: Path, console: Console) -> None:
    """Its kind, settings and makers. Errors: `InputError` where it holds no results."""
    found = [one for one in find(folder) if one.path == folder]
    if not found:
        raise InputError(f"{folder} holds no results; `curvfluence runs list {folder}` looks below")
    one = found[0]
    lines = {
        "Folder": str(one.path),
        "Kind": f"{one.kind}, {one.state}",
        "Files": f"{one.files}, {size(one.bytes)}",
        "Changed": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.changed)),
    }
    header = read(folder / SPEC, Header) if one.kind == "study" else None
    if header is not None:
        lines |= {
            "Made by": f"code {header.made_by.code}, torch {header.made_by.torch}",
            "Key": header.key,
            "Settings": ", ".join(f"{k} {v}" for k, v in header.spec.items() if v is not None),
        }
    for name, text in lines.items():
        console.print(named(name, clipped(text, MOST), 8), soft_wrap=True)
