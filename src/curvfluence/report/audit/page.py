"""`audit.html`: one file that opens offline."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from curvfluence.auditing import Audit
from curvfluence.report.audit.data import embedded
from curvfluence.report.audit.words import (
    criteria_table,
    headline,
    said_of_duplicates,
    why_sorted,
)
from curvfluence.report.parts.page import Report, source, write_plain
from curvfluence.study.problems.given import Given


def write_audit(found: Audit, given: Given, path: Path, *, command: str = "") -> Report:
    """Write the page of an audit.

    Errors: `InputError`, with nothing written, where `path` is anybody else's or cannot be written,
    and where the file's `show` fails.
    """
    start = time.perf_counter()
    values = {
        "title": given.title,
        "kind": "Audit",
        "details": f"{found.rung} · damping {found.damping}",
        "headline": headline(found),
        "why": why_sorted(found),
        "data": embedded(found, given),
        "criteria": criteria_table(found),
        "doubles": said_of_duplicates(found),
        "notes": found.notes,
        "said": str(replace(found, notes=())),  # they stand in a list of their own
        "command": command,
        "scripts": (source("parts.js"), source("cards.js"), source("audit.js")),
    }
    return write_plain("audit.html", values, path, start=start)
