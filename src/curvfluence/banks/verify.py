"""Whether a bank holds what was written, and whether training again gives it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.study.asked import asked
from curvfluence.study.problems import StudyProblem, load
from curvfluence.study.retrain import source_of
from curvfluence.study.spec import StudySpec
from curvfluence.study.variant import Variant
from curvfluence.truth import Kept, Run, Subsets, Weighted, measure, train
from curvfluence.truth.bank import MODELS, WEIGHTED, Bank, Entry, unpacked


@dataclass(frozen=True)
class Verified:
    """`batches` of `retrainings` whose numbers are those that were written. Of them `again` were
    trained once more: `equal` to the bit, the others off by at most `largest` of the spread (the
    standard deviation over subsets) of their query."""

    batches: int
    retrainings: int
    again: int = 0
    equal: int = 0
    largest: float = 0.0


def verify_bank(path: Path, problem: StudyProblem | None = None, *, again: int = 0) -> Verified:
    """Read every number of a bank against its SHA-256; train `again` of its runs once more.

    The runs are the first of as many batches, spread over the bank. On the machine and torch that
    made it they are equal to the bit; elsewhere they differ by rounding, which training amplifies.
    `problem` is `load` of the bank's own where that has been done.

    Errors: `InputError` for a file that is missing or changed, and where problem, recipe or data
    are no longer those that the bank was made of.
    """
    kinds.count(again, "again", least=0)
    bank = Bank.read(path)
    held = [(entry, bank.arrays(entry)) for entry in bank.entries()]
    retrained = [(e, a) for e, a in held if e.batch.kind != MODELS]
    count = sum(len(a["values"]) for _, a in retrained)
    if not again:
        return Verified(len(held), count)
    step = max(1, len(retrained) // again)
    chosen = retrained[::step][:again]
    checked = [_off(_trained_as(bank, entry, problem), entry, arrays) for entry, arrays in chosen]
    largest = max(checked, default=0.0)
    return Verified(len(held), count, len(checked), checked.count(0.0), largest)


def _trained_as(bank: Bank, entry: Entry, problem: StudyProblem | None) -> StudyProblem:
    """The problem and recipe of a batch."""
    how = bank.source.asked
    if how is None:
        raise InputError(f"{bank.path} does not say which study asked for its retrainings")
    spec = StudySpec(
        how.problem,
        3,
        dtype=entry.batch.dtype,
        protocol=how.protocol,
        variant=Variant(**how.variant),  # pyright: ignore[reportArgumentType]
        queries=how.queries,
    )
    found = asked(spec, load(how.problem) if problem is None else problem)
    if source_of(found, spec).key != bank.source.key:
        raise InputError(
            f"{bank.path} is of {how.problem} with another recipe, data or measurement than "
            "this version's"
        )
    return found


def _off(problem: StudyProblem, entry: Entry, arrays: dict[str, Tensor]) -> float:
    """How far the first run of a batch, trained again, lies from what is kept."""
    (init,), (order,) = entry.batch.init_seeds, entry.batch.order_seeds
    way = Weighted() if entry.batch.kind == WEIGHTED else Kept()
    subsets = Subsets(unpacked(arrays["subsets"][:1], len(problem.train)), way)
    run = [Run(init, order, 0)]
    found = train(problem.recipe, problem.train, run, subsets, keep_diverged=True)
    ended, wanted = bool(found.diverged[0]), bool(arrays["final_loss"][0].isnan())
    if ended or wanted:
        return 0.0 if ended == wanted else inf
    values = measure(problem.recipe, found, problem.queries, problem.measurement)
    gap = (values[0].double() - arrays["values"][0]).abs()
    whole = arrays["values"][~arrays["final_loss"].isnan()]
    spread = whole.std(0) if len(whole) > 1 else torch.ones_like(gap)
    return float((gap / spread.clamp_min(1e-300)).max())
