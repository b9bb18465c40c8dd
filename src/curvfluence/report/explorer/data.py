"""What the page of answers embeds: lists, cards and measures of trust, within its size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from curvfluence.explore import Answer, Answers, believed
from curvfluence.problem.losses import CausalLM
from curvfluence.problem.problem import Problem
from curvfluence.problem.stream import labels_of
from curvfluence.report.examples.cards import cards, label, scales, true_labels
from curvfluence.report.examples.shown import shown, targets_of
from curvfluence.report.explorer.trust import EXPLAINED, Measure, measures, verdict
from curvfluence.report.explorer.words import has_units
from curvfluence.report.parts.units import behind, scaled
from curvfluence.score.scores import Scores

BYTES = 18_000_000  # of the data: a page stays below 20 MB
CLASSES = 20  # up to which lists of each class are held
EACH = 5  # examples of a class at either end
DIGITS = 5  # that are embedded: more than are shown, so that nothing is rounded twice


@dataclass(frozen=True, eq=False)
class Embedded:
    """The data, and how many queries they are of where the page has no room for all."""

    data: dict[str, Any]
    left_out: int


def embedded(found: Answers) -> Embedded:
    """For as many queries, evenly spaced, as fit the page."""
    count = len(found.queries)
    rows = list(range(count))
    while True:
        data = _data(found, rows)
        size = len(json.dumps(data))
        if size <= BYTES or len(rows) == 1:
            return Embedded(data, count - len(rows))
        fewer = max(1, int(len(rows) * min(0.8, BYTES / size)))
        rows = np.unique(np.linspace(0, count - 1, fewer).round().astype(int)).tolist()


def _data(found: Answers, rows: list[int]) -> dict[str, Any]:
    given, problem = found.given, found.given.problem
    labels = labels_of(problem.train)
    classes = _classes(labels, given.class_names)
    rungs = [_rung(one, rows, found.top, labels, classes) for one in found.answers]
    train = sorted({n for rung in rungs for n in rung.pop("named")})
    queries = [found.queries[k] for k in rows]
    seen = shown(given, "train", train)
    asked = shown(given, "queries", queries)
    display = given.display
    unit = (0.0, 1.0) if display is None else (display.target_offset, display.target_scale)
    was = true_labels(given)
    return {
        "unit": behind(found.asked.unit).removeprefix(", in "),
        "scaledUnit": scaled(found.asked.unit),
        "lowerIsBetter": found.asked.lower_is_better,
        "classes": None if classes is None else list(classes),
        "targetUnit": "" if display is None else display.target_unit,
        "count": len(problem.train),
        "top": found.top,
        "rungs": rungs,
        "explained": EXPLAINED if any(one.certificate for one in found.answers) else "",
        "trust": [[_measure(one) for one in measures(found, k)] for k in rows],
        "verdicts": [[verdict(found, r, k) for k in rows] for r in range(len(rungs))],
        "queries": queries,
        "queryCards": cards(asked),
        "queryLabels": [label(t, unit) for t in targets_of(problem.queries, queries)],
        "outputs": _outputs(problem, queries),
        "train": train,
        "cards": cards(seen),
        "labels": [label(t, unit) for t in targets_of(problem.train, train)],
        "wrong": {n: was[n] for n in train if n in was},
        "scales": scales(seen),
        "tokens": _tokens(found, rows),
        "shift": 1 if isinstance(problem.loss, CausalLM) else 0,
    }


def _classes(labels: Tensor | None, names: Sequence[str]) -> tuple[str, ...] | None:
    if labels is None:
        return None
    count = int(labels.max()) + 1
    return tuple(names) if len(names) >= count else tuple(map(str, range(count)))


def _rung(
    one: Answer,
    rows: list[int],
    top: int,
    labels: Tensor | None,
    classes: Sequence[str] | None,
) -> dict[str, Any]:
    scores = one.scores[rows]
    ends = [scores.top(top), scores.bottom(top)]
    within = _within(scores, labels, classes)
    named = {int(n) for end in ends for n in end.indices.flatten()}
    named |= {
        int(n) for end in (within or {}).get("examples", ()) for c in end for r in c for n in r
    }
    return {
        "named": named,
        "name": scores.rung,
        "units": has_units(scores),
        "damping": str(scores.damping),
        "examples": [end.indices.tolist() for end in ends],
        "values": [_rows(end.values) for end in ends],
        "within": within,
    }


def _within(
    scores: Scores, labels: Tensor | None, classes: Sequence[str] | None
) -> dict[str, Any] | None:
    """The ends among the examples of each class: [end][class][query][k]."""
    if labels is None or classes is None or len(classes) > CLASSES:
        return None
    labels = labels.cpu()
    examples: list[list[Any]] = [[], []]
    values: list[list[Any]] = [[], []]
    for c in range(len(classes)):
        members = (labels == c).nonzero()[:, 0]
        for end in (0, 1):
            if not len(members):
                examples[end].append([[] for _ in scores.values])
                values[end].append([[] for _ in scores.values])
                continue
            k = min(EACH, len(members))
            best = scores.help[:, members].topk(k, largest=end == 0)
            chosen = members[best.indices]
            examples[end].append(chosen.tolist())
            values[end].append(_rows(scores.values.gather(1, chosen)))
    return {"examples": examples, "values": values}


def _outputs(problem: Problem, queries: list[int]) -> dict[str, Any] | None:
    said = believed(problem, problem.queries, queries)
    if said is None or said.values.shape[1] > 60:
        return None
    kind = "probability" if said.probable else "output"
    return {
        "kind": kind,
        "values": _rows(said.values),
        "classes": None if said.classes is None else said.classes.tolist(),
    }


def _tokens(found: Answers, rows: list[int]) -> dict[int, dict[int, list[float]]]:
    """By the query's place on the page and the example: the help of each target, as a share of the
    largest among the query's examples."""
    sign = 1.0 if found.asked.lower_is_better else -1.0
    made: dict[int, dict[int, list[float]]] = {}
    for place, k in enumerate(rows):
        if k >= len(found.tokens):
            continue
        examples, values = found.tokens[k]
        largest = float(values.abs().max()) or 1.0
        made[place] = {
            n: [round(sign * float(v) / largest, 3) for v in row]
            for n, row in zip(examples, values, strict=True)
        }
    return made


def _measure(one: Measure) -> list[str | float]:
    return [one.name, one.value, round(one.share, 3), one.words]


def _rows(values: Tensor) -> list[list[float]]:
    return [[float(f"{v:.{DIGITS}g}") for v in row] for row in values.tolist()]
