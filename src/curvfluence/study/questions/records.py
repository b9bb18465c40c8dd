"""`questions.json`: what every rung is worth for each question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from curvfluence.errors import InputError
from curvfluence.fidelity import Interval
from curvfluence.store.records import Record, read
from curvfluence.study.results import Environment, StudySettings
from curvfluence.study.results.rung import Dampings
from curvfluence.study.results.settings import AtLeastOne, Seconds

QUESTIONS = "questions.json"
Kind = Literal["subsets", "leave one out", "spread", "removal"]


class Answer(Record, frozen=True):
    """What one rung is worth for a question, with the 95% interval: a LDS, or for a removal the
    change of the query's measurement that leaving its most helpful examples out brings."""

    rung: str
    value: float
    interval: Interval
    dampings: Dampings


class Question(Record, frozen=True):
    """One question: what was left out, of how many retrainings the truth is, and every rung's
    answer. `best_lds` is what noise allows, None where the repeats do not say; `control` is what a
    random removal of the same size brings; `notes` is what a reader must know of the truth."""

    name: str
    kind: Kind
    retrainings: AtLeastOne
    answers: Annotated[tuple[Answer, ...], Meta(min_length=1)]
    best_lds: float | None = None
    notes: tuple[str, ...] = ()
    control: float | None = None
    control_interval: Interval | None = None

    @property
    def best(self) -> Answer:
        """The highest answer."""
        return max(self.answers, key=lambda answer: answer.value)

    def answer(self, rung: str) -> Answer | None:
        """That of a rung."""
        return next((answer for answer in self.answers if answer.rung == rung), None)


class Questions(Record, frozen=True):
    """The whole of `questions.json`."""

    version_at = ("environment", "curvfluence")
    remedy = "ask the same questions again"

    environment: Environment
    problem: str
    unit: str
    lower_is_better: bool
    settings: StudySettings
    training_loss: float
    questions: Annotated[tuple[Question, ...], Meta(min_length=1)]
    seconds: Seconds  # of the command that wrote it, no killed one before it


def read_questions(folder: Path) -> Questions:
    """The answers in `folder`. Errors: `InputError` where there are none, or they do not fit."""
    found = read(folder / QUESTIONS, Questions)
    if found is None:
        raise InputError(f"{folder} holds no answers: there is no {QUESTIONS} in it")
    return found
