"""`explorer.html`: one file that opens offline."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from curvfluence.explore import Answers
from curvfluence.report.explorer.data import embedded
from curvfluence.report.explorer.words import notes
from curvfluence.report.parts.page import Report, source, write_plain
from curvfluence.study.words import counted


def write_explorer(found: Answers, path: Path, *, command: str = "") -> Report:
    """Write the page of some answers.

    Errors: `InputError`, with nothing written, where `path` is anybody else's or cannot be written,
    and where the file's `show` fails.
    """
    start = time.perf_counter()
    held = embedded(found)
    asked = found.asked
    left = ""
    if held.left_out:
        left = (
            f"{held.left_out} of {len(found.queries)} queries are left out, so that this page "
            "stays small."
        )
    values = {
        "title": found.given.title,
        "kind": "Attribution",
        "details": f"{asked.rung} · damping {asked.damping}",
        "asked": asked,
        "better": "positive" if asked.lower_is_better else "negative",
        "train": counted(len(found.given.problem.train), "training example"),
        "data": held.data,
        "left": left,
        "notes": notes(found),
        # their notes stand in one list, for all rungs
        "answers": [replace(one, scores=replace(one.scores, notes=())) for one in found.answers],
        "tokens": bool(held.data["tokens"]),
        "command": command,
        "scripts": (source("parts.js"), source("cards.js"), source("answers.js")),
    }
    return write_plain("answers.html", values, path, start=start)
