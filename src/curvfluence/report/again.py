"""Pages written again, from what a folder of any kind holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from curvfluence.errors import InputError
from curvfluence.report import claims, table1
from curvfluence.report.parts.page import Report
from curvfluence.report.parts.text import Text
from curvfluence.report.questions import write_questions
from curvfluence.report.study.page import write_report
from curvfluence.report.study.text import text as study_text
from curvfluence.report.sweep.page import write_sweep_report
from curvfluence.study.claims import is_claims, read_claims
from curvfluence.study.claims.table1_run import is_table1, joined, read_table1
from curvfluence.study.questions import read_questions
from curvfluence.study.questions.records import QUESTIONS
from curvfluence.study.study import read_study
from curvfluence.study.sweep import is_sweep, read_sweep


def write_again(folder: Path) -> str:
    """Write the page of a folder again; what was written, as a sentence says it.

    Errors: `InputError` where the folder holds nothing finished.
    """
    if folder.suffix != ".json" and is_claims(folder):
        return f"{claims.write_claims(read_claims(folder))}"
    done = _report(folder)
    figures = done.path.parent / "figures"
    size = f"{done.path} ({done.bytes / 1e6:.1f} MB), figures in {figures}"
    return f"{size}  ({done.seconds:.1f} s)"


def _report(folder: Path) -> Report:
    if folder.suffix == ".json":
        raise InputError(f"{folder}: a table alone has no page; --docs FILE.md writes its text")
    if is_table1(folder):
        return table1.write_table1(read_table1(folder))
    if (folder / QUESTIONS).is_file():
        return write_questions(read_questions(folder), folder)
    return write_sweep_report(read_sweep(folder)) if is_sweep(folder) else write_report(folder)


def text_of(folders: Sequence[Path]) -> Text:
    """Studies as a page of costs; or tables of claims, where parts of the paper's own cells are put
    together first, and stand before the claims on other problems.

    Errors: `InputError` for a folder of anything else, and for studies among claims.
    """
    others = [folder for folder in folders if is_claims(folder)]
    own = [folder for folder in folders if folder not in others and is_table1(folder)]
    rest = [folder for folder in folders if folder not in own and folder not in others]
    if rest and (own or others):
        raise InputError(
            f"claims and studies go on pages of their own; seen {(own + others)[0]} and {rest[0]}"
        )
    if rest:
        return study_text([read_study(folder) for folder in rest])
    paper = joined([read_table1(folder).table for folder in own]) if own else None
    if paper is not None and not others:
        return table1.text(paper)
    first, *more = map(read_claims, others)
    return sum(map(claims.text, more), claims.text(first, paper))
