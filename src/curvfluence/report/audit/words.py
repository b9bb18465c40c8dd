"""What an audit says in tables and sentences: the same on the page and in a terminal."""

from __future__ import annotations

from curvfluence.auditing import Audit
from curvfluence.auditing.result import SHARE
from curvfluence.report.parts.table import Table
from curvfluence.study.words import counted, number, percent


def headline(found: Audit) -> str:
    """How the list does against plain loss where somebody knows, else what it is."""
    if not found.flipped:
        return (
            f"{counted(len(found), 'training example')}, the most suspicious first; nobody has "
            "said which labels are wrong, so no list here is better than another until you look"
        )
    ours, plain = found.recall(), found.recall("loss")
    kept = "more than" if ours > plain else "as many as" if ours == plain else "fewer than"
    return (
        f"The first {percent(SHARE)} of the list hold {percent(ours)} of the "
        f"{len(found.flipped)} wrong labels, {kept} the list by plain loss ({percent(plain)})"
    )


def criteria_table(found: Audit) -> Table:
    """Each criterion, what it is, and where wrong labels are known how well it finds them."""
    known = bool(found.flipped)
    head = ("Criterion", "What it is") + (
        (f"In the first {percent(SHARE)}", "AUC") if known else ()
    )
    rows = [
        (one.title, one.meaning)
        + ((percent(found.recall(one.name)), number(found.auc(one.name))) if known else ())
        for one in found.criteria
    ]
    return Table(
        "What speaks against an example", head, tuple(rows), open=True, words=("What it is",)
    )


def said_of_duplicates(found: Audit) -> str:
    """How many there are."""
    groups = found.duplicates
    if not groups:
        return "No two training examples have the same inputs."
    conflicting = [group for group in groups if group.conflicting]
    text = (
        f"{counted(sum(len(group.examples) for group in groups), 'example')} in "
        f"{counted(len(groups), 'group')} of equal inputs"
    )
    return (
        f"{text}, {len(conflicting)} of them with different targets." if conflicting else f"{text}."
    )
