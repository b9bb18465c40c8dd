"""What an audit says in tables and sentences: the same on the page and in a terminal."""

from __future__ import annotations

from curvfluence.auditing import Audit
from curvfluence.auditing.result import SHARE
from curvfluence.report.parts.table import Table
from curvfluence.study.words import counted, number, percent


def headline(found: Audit) -> str:
    """How the list does against plain loss where somebody knows, else by what it is sorted."""
    by = _by(found)
    if not found.flipped:
        wrong = "targets" if found.labels is None else "labels"
        return (
            f"{counted(len(found), 'training example')}, sorted by {by}; nobody has said which "
            f"{wrong} are wrong"
        )
    ours, plain = found.recall(), found.recall("loss")
    kept = "more than" if ours > plain else "as many as" if ours == plain else "fewer than"
    return (
        f"The first {percent(SHARE)} of the list by {by} hold {percent(ours)} of the "
        f"{len(found.flipped)} wrong labels, {kept} the list by plain loss ({percent(plain)})"
    )


def why_sorted(found: Audit) -> str:
    """Why lists go by that criterion, as far as it was measured (`benchmarks/audit.py`); nothing
    where it can be measured here."""
    if found.order != "disagreement" or found.flipped:
        return ""
    measured = (
        "Of class labels that were changed at random in four data sets, the list by disagreement "
        "of neighbours found the most"
    )
    if found.labels is None:
        return f"{measured}; of targets like these that was not measured."
    return f"{measured}; of yours another may find more."


def _by(found: Audit) -> str:
    return next(one.title.lower() for one in found.criteria if one.name == found.order)


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
