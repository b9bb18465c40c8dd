"""What to keep in mind of a study, or of all studies of a sweep: the same doubts, in one form."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from curvfluence.study.results import Results, RungResult
from curvfluence.study.words import counted, listed, number, short

ENOUGH = 5  # seeds or influence models below which an interval is said to be rough
SUBSETS = 30
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def cautions(studies: Sequence[Results]) -> tuple[str, ...]:
    """Of one study in full; of several as counts, with the settings of the first for all."""
    truth, one = studies[0].truth, len(studies) == 1
    each = "" if one else " a study"
    doubts: list[str] = []
    if truth.models < ENOUGH:
        doubts.append(
            f"{counted(truth.models, 'influence model')}{each}: an interval says little of how "
            "other models would do. Take 8 or more for a claim."
        )
    if truth.subsets < SUBSETS:
        doubts.append(
            f"{truth.subsets} subsets{each}: a correlation of so few ranks is rough, and its "
            "interval holds less than 95%."
        )
    doubts += [
        *_holes(studies),
        *_edges(studies),
        *_undefined(studies),
        *_fallbacks(studies),
        *_response(studies),
    ]
    if one:
        notes = ((rung.full_name, rung.notes) for rung in _rungs(studies))
        doubts += [*truth.notes, *merged(notes)]
    return tuple(dict.fromkeys(doubts))


def _rungs(studies: Sequence[Results]) -> list[RungResult]:
    """Of one study with its hybrids, whose numbers its page shows; of several the ladders alone."""
    if len(studies) == 1:
        return list(studies[0].every_rung)
    return [rung for study in studies for rung in study.rungs]


def _holes(studies: Sequence[Results]) -> list[str]:
    rungs = [rung for rung in _rungs(studies) if rung.holes]
    if not rungs:
        return []
    if len(studies) > 1:
        counts = Counter(rung.name for rung in rungs)
        named = [f"{name} in {count}" for name, count in counts.items()]
        return [
            f"Some λ could not be inverted and are not in the sweep, for {listed(named)} of "
            f"{len(studies)} studies."
        ]
    alike: dict[tuple[float, ...], list[RungResult]] = {}
    for rung in rungs:
        alike.setdefault(tuple(hole.damping for hole in rung.holes), []).append(rung)
    return [
        f"At λ = {listed(list(map(short, dampings)))} there is no inverse of "
        f"{listed([rung.full_name for rung in several])}, and none in the sweep "
        f"({several[0].holes[0].reason.rstrip('.')})."
        for dampings, several in alike.items()
    ]


def _edges(studies: Sequence[Results]) -> list[str]:
    rungs = [rung for rung in _rungs(studies) if rung.damping_on_edge]
    if not rungs:
        return []
    if len(studies) == 1:
        named = [f"{r.full_name} ({number(r.beyond_edge, 4, signed=True)})" for r in rungs]
        where = (
            f"{listed(named)}, in brackets the change of LDS to the next λ: near 0 it is flat there"
        )
    else:
        counts = Counter(rung.name for rung in rungs)
        named = [f"{name} in {count}" for name, count in counts.items()]
        where = f"{listed(named)} of {len(studies)} studies"
    return [f"The best damping λ lies on the edge of its grid for {where}."]


def _undefined(studies: Sequence[Results]) -> list[str]:
    """`undefined` counts pairs: a query that is constant for two models counts twice."""
    counts: Counter[str] = Counter()
    for rung in _rungs(studies):
        counts[rung.full_name] += rung.undefined
    named = [f"{count:,} for {name}" for name, count in counts.items() if count]
    pairs = sum(study.truth.models * study.truth.queries for study in studies)
    if not named:
        return []
    return [
        f"Of {pairs:,} pairs of model and query, those with constant predictions or truth have no "
        f"rank correlation and count as LDS 0: {listed(named)}."
    ]


def _fallbacks(studies: Sequence[Results]) -> list[str]:
    return list(
        dict.fromkeys(
            f"{rung.full_name} covers by a fallback: {blocks}."
            for rung in _rungs(studies)
            if (blocks := _fallback_blocks(rung))
        )
    )


def _fallback_blocks(rung: RungResult) -> str:
    return listed([f"{block.block} ({block.rule})" for block in rung.coverage if block.fallback])


def _response(studies: Sequence[Results]) -> list[str]:
    dropped = [s.bregman for s in studies if s.bregman is not None and not s.bregman.converged]
    if not dropped:
        return []
    groups = sum(response.groups_dropped for response in dropped)
    lost = f" for {counted(groups, 'group')}, left out of the LDS against it" if groups else ""
    return [f"The proximal Bregman response did not converge{lost}."]


def merged(notes: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """Notes of each rung on each model, as one for all models whose numbers alone differ, and one
    for all rungs that say the same."""
    by_text: dict[str, list[str]] = {}
    for name, of_rung in notes:
        for text in _over_models(of_rung):
            by_text.setdefault(text, []).append(name)
    return [f"{listed(names)}: {text}." for text, names in by_text.items()]


def _over_models(notes: Sequence[str]) -> list[str]:
    """One text for each note that every model has, with numbers from the least to the largest."""
    alike: dict[tuple[int, str], list[str]] = {}
    places: Counter[str] = Counter()
    for note in notes:
        start = re.match(r"model \d+: ", note)
        model = start[0] if start else ""
        text = note.removeprefix(model).rstrip(".")
        # the k-th note of one model goes with the k-th of another
        places[model] += 1
        alike.setdefault((places[model], _NUMBER.sub("#", text)), []).append(text)
    return [_ranged(texts) for texts in alike.values()]


def _ranged(texts: Sequence[str]) -> str:
    numbers_of = zip(*(_NUMBER.findall(text) for text in texts), strict=True)
    spans = iter([(min(these, key=float), max(these, key=float)) for these in numbers_of])

    def span(_: re.Match[str]) -> str:
        low, high = (end.replace("-", "−", 1) for end in next(spans))
        return low if low == high else f"{low} to {high}"

    return _NUMBER.sub(span, texts[0])
