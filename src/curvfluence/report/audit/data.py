"""What the page of an audit embeds: the first of every list, with their neighbours."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

from curvfluence.auditing import Audit
from curvfluence.explore import believed
from curvfluence.report.examples.cards import cards, label, scales, true_labels
from curvfluence.report.examples.shown import shown, targets_of
from curvfluence.study.problems.given import Given

BYTES = 18_000_000
LISTED, NEAR = 200, 6  # of each criterion; neighbours of each example
TOGETHER = 12  # of a group of duplicates


def embedded(found: Audit, given: Given) -> dict[str, Any]:
    """As many of each list as fit the page; `listed` says how many."""
    count = min(LISTED, len(found))
    while True:
        data = _data(found, given, count)
        size = len(json.dumps(data))
        if size <= BYTES or count <= 10:
            return data
        count = max(10, int(count * min(0.8, BYTES / size)))


def _data(found: Audit, given: Given, count: int) -> dict[str, Any]:
    problem = given.problem
    lists = {one.name: found.suspects(count, one.name).tolist() for one in found.criteria}
    groups = sorted(found.duplicates, key=lambda group: not group.conflicting)[:count]
    listed = sorted({n for rows in lists.values() for n in rows})
    near = _near(found, listed)
    every = sorted(
        set(listed)
        | {m for row in near.values() for m, _ in row}
        | {n for group in groups for n in group.examples[:TOGETHER]}
    )
    seen = shown(given, "train", every)
    display = given.display
    unit = (0.0, 1.0) if display is None else (display.target_offset, display.target_scale)
    said = believed(problem, problem.train, listed)
    true = true_labels(given)
    was = {n: true.get(n) for n in found.flipped or ()}
    labels = found.labels
    return {
        "classes": _classes(found, given),
        "targetUnit": "" if display is None else display.target_unit,
        "count": len(found),
        "listed": count,
        "order": found.order,
        "criteria": [
            {"name": one.name, "title": one.title, "meaning": one.meaning} for one in found.criteria
        ],
        "lists": lists,
        "places": {
            one.name: dict(zip(listed, _places(found, one.name, listed), strict=True))
            for one in found.criteria
        },
        "values": {
            n: {name: _number(float(value[n])) for name, value in found.values.items()}
            for n in listed
        },
        "suggested": {}
        if found.suggested is None
        else {n: int(found.suggested[n]) for n in listed if int(found.suggested[n]) >= 0},
        "said": {}
        if said is None or said.classes is None
        else dict(zip(listed, said.classes.tolist(), strict=True)),
        "chance": {}
        if said is None or labels is None or said.values.shape[1] < 2
        else {
            n: _number(float(row[int(labels[n])]))
            for n, row in zip(listed, said.values, strict=True)
        },
        "near": near,
        "examples": every,
        "cards": cards(seen),
        "labels": [label(t, unit) for t in targets_of(problem.train, every)],
        "wrong": {n: was[n] for n in every if n in was},
        "scales": scales(seen),
        "duplicates": [
            {
                "examples": list(group.examples[:TOGETHER]),
                "more": max(0, len(group.examples) - TOGETHER),
                "conflicting": group.conflicting,
            }
            for group in groups
        ],
    }


def _classes(found: Audit, given: Given) -> list[str] | None:
    if found.labels is None:
        return None
    count = int(found.labels.max()) + 1
    names = given.class_names
    return list(names) if len(names) >= count else list(map(str, range(count)))


def _near(found: Audit, rows: list[int]) -> dict[int, list[tuple[int, float]]]:
    place = {n: k for k, n in enumerate(found.neighbours.examples.tolist())}
    near = found.neighbours
    return {
        n: [
            (int(m), round(float(c), 2))
            for m, c in zip(
                near.indices[place[n]][:NEAR], near.cosines[place[n]][:NEAR], strict=True
            )
        ]
        for n in rows
        if n in place
    }


def _places(found: Audit, name: str, rows: list[int]) -> list[int]:
    """From 1."""
    order = found.ranking(name).tolist()
    place = {n: k + 1 for k, n in enumerate(order)}
    return [place[n] for n in rows]


def _number(value: float) -> float | None:
    """More digits than are shown, so that nothing is rounded twice."""
    return float(f"{value:.5g}") if isfinite(value) else None
