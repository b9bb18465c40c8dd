"""What is true of a command that did not come to its end, by its words."""

from __future__ import annotations

from collections.abc import Sequence

# Commands that do work: the first of these among the words is the one that was given.
WORK = frozenset(
    {
        "study", "sweep", "claims", "questions", "plan", "attribute", "index", "query", "audit",
        "advise", "judge", "bank", "report", "compare",
    }
)  # fmt: skip
NOTHING = "this command keeps nothing on the way: given again it begins anew"
WHOLE = "what is finished is kept, whole; the same command goes on from there"
LONG = "what took long is kept, if anything did; the same command goes on from there"
RETRAININGS = (
    "retrainings that are finished are kept, whole; the same command goes on from there and tries "
    "rungs anew"
)


def kept_by(words: Sequence[str]) -> str:
    """What it has kept, and what the same command does with it."""
    name = next((word for word in words if word in WORK), "")
    if name == "advise":
        retrains = any(word.partition("=")[0] == "--retrain" for word in words)
        return RETRAININGS if retrains else NOTHING
    if name in {"plan", "query", "report", "compare"} or (name == "bank" and "verify" in words):
        return NOTHING
    return LONG if name in {"attribute", "audit", "judge"} else WHOLE
