"""Scores that anybody made, brought to one meaning: predicted changes, [model, query, train]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.fidelity.arrays import finite
from curvfluence.judging.files import (
    BY_QUERY,
    BY_TRAIN,
    HELPS,
    HURTS,
    LOSS,
    LOSS_N,
    NONE,
    Found,
    Source,
    found,
)
from curvfluence.score.scores import Scores


@dataclass(frozen=True)
class Meaning:
    """What the caller says of scores; None where the file is to say it.

    `positive`: whether a positive score says that its training example helps the query or hurts.
    `order`: "query,train" or "train,query". `units`: "loss" where scores are the change of the
    query's measurement when the example is left out, "loss*N" where they are N times that (a sum,
    not a mean, over examples), "none" where only their order counts. `key`: which array of a file.
    """

    positive: str | None = None
    order: str | None = None
    units: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (
            ("positive", (HELPS, HURTS)),
            ("order", (BY_QUERY, BY_TRAIN)),
            ("units", (NONE, LOSS, LOSS_N)),
        ):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise InputError(f"{name} is one of {' or '.join(choices)}; seen {value!r}")


@dataclass(frozen=True, eq=False)
class Asked:
    """What scores are held against: so many queries and training examples, of `problem`."""

    problem: str
    queries: int
    train: int
    measurement: str
    lower_is_better: bool


@dataclass(frozen=True, eq=False)
class Given:
    """`values` [J, Q, N]: predicted changes of the measurement when an example is left out; where
    lower is better, positive is help. In its units with `units`, otherwise up to a factor."""

    values: Tensor
    units: bool
    positive: str
    order: str
    said: tuple[str, ...]
    notes: tuple[str, ...]


def given(sources: Source | Sequence[Source], meaning: Meaning, asked: Asked) -> Given:
    """Read scores, a source for all models or one for each, and bring them to one meaning.

    Errors: `InputError` where sign or order are neither stated nor fixed by the file, contradict
    it, or where the shape is not that of the problem; `NonFiniteError` names the entries.
    """
    single = isinstance(sources, str | Path | Scores | Tensor | np.ndarray)
    if not single and not isinstance(sources, list | tuple):
        raise InputError(
            "scores are a file, an array, a tensor, cf.Scores, or a list of them, one a model; "
            f"seen {type(sources).__name__}"
        )
    several: list[Source] = [sources] if single else list(sources)
    if not several:
        raise InputError("there are no scores to judge: name a file, or give an array")
    each = [_one(found(source, meaning.key), meaning, asked) for source in several]
    if len(each) > 1 and any(len(one.values) > 1 for one in each):
        raise InputError("of several sources each is of one model: [query, train]")
    if len({(one.units, one.positive) for one in each}) > 1:
        raise InputError("the scores of several models must have one sign and one unit")
    values = torch.cat([one.values for one in each])
    said = tuple(text for one in each for text in one.said)
    notes = tuple(dict.fromkeys(note for one in each for note in one.notes))
    return Given(values, each[0].units, each[0].positive, each[0].order, said, notes)


def _one(scores: Found, meaning: Meaning, asked: Asked) -> Given:
    positive, notes = _positive(scores, meaning)
    order = _order(scores, meaning, asked)
    values = scores.values if order == BY_QUERY else scores.values.mT
    finite(f"scores of {scores.said}", values.numpy())
    units = scores.units if meaning.units is None else meaning.units
    if scores.measurement not in (None, asked.measurement):
        units = NONE
        notes += (
            f"scores of {scores.measurement!r} are held against the change of "
            f"{asked.measurement!r}: their order counts, their size does not",
        )
    helps = values if positive == HELPS else -values
    change = helps if asked.lower_is_better else -helps
    if units == LOSS_N:
        change = change / asked.train
    whole = change if change.ndim == 3 else change[None]
    return Given(whole.contiguous(), units != NONE, positive, order, (scores.said,), notes)


def _positive(scores: Found, meaning: Meaning) -> tuple[str, tuple[str, ...]]:
    if scores.positive is None and meaning.positive is None:
        raise InputError(
            f"{scores.said}: nothing says whether a positive score helps its query or hurts it. "
            f"Say positive={HELPS!r} (leaving the example out makes the query worse) or {HURTS!r}; "
            f"on the command line --positive {HELPS}"
        )
    fixed = scores.positive if scores.taken is None else None
    if fixed and meaning.positive not in (None, fixed):
        raise InputError(
            f"{scores.said} says that a positive score {fixed}; seen "
            f"positive={meaning.positive!r}: leave it out"
        )
    if meaning.positive is not None:
        return meaning.positive, ()
    assert scores.positive is not None
    if scores.taken is None:
        return scores.positive, ()
    return scores.positive, (
        f"a positive score is taken to help, {scores.taken}; positive={HURTS!r} says otherwise",
    )


def _order(scores: Found, meaning: Meaning, asked: Asked) -> str:
    """Which axis is which. Errors: `InputError` says what shape was seen, and what would fit."""
    shape, by_query = tuple(scores.values.shape), (asked.queries, asked.train)
    if len(shape) not in (2, 3):
        raise InputError(
            f"{scores.said}: scores are [query, train], or [model, query, train] for several "
            f"influence models; seen shape {shape}"
        )
    if scores.order and meaning.order not in (None, scores.order):
        raise InputError(
            f"{scores.said} is in the order {scores.order}; seen order={meaning.order!r}: leave it "
            "out"
        )
    order = scores.order or meaning.order
    last = shape[-2:]
    if order is None and by_query[0] == by_query[1]:
        raise InputError(
            f"{scores.said}: {asked.problem} has {asked.queries} queries and as many training "
            f"examples, so the shape {shape} does not say which is which: say order={BY_QUERY!r} "
            f"or {BY_TRAIN!r}"
        )
    wanted = by_query[::-1] if order == BY_TRAIN else by_query
    if last == wanted:
        return order or BY_QUERY
    text = (
        f"{scores.said} has shape {shape}; {asked.problem} has {asked.queries} queries and "
        f"{asked.train} training examples"
    )
    if order is not None:
        text += f", so in the order {order} it would end in {wanted}"
    if last == wanted[::-1]:
        other = BY_QUERY if order == BY_TRAIN else BY_TRAIN
        raise InputError(
            f"{text}. It fits transposed only: say order={other!r} if that is its order"
        )
    raise InputError(
        f"{text}. Score the examples of curvfluence.judging.problem_of({asked.problem!r}), all of "
        "them and in their order"
    )
